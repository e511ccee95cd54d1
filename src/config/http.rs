//! `[http]`: where operators ask, and what opens the API to them.

use super::file;
use super::problem::Scope;
use super::secret::Secret;
use super::{Http, TlsMode};

/// Shorter ones can be guessed.
const SHORTEST_TOKEN: usize = 16;

pub(super) fn resolve(written: file::Http, tls: TlsMode, mut scope: Scope<'_, '_>) -> Http {
    let certificates = !written.tls || tls != TlsMode::Off;
    scope.require(certificates, "tls", "needs the certificates of [tls], and tls.mode is off");
    let client_ca = written.client_ca.map(|ca| scope.file("client_ca", &ca));
    let used = written.tls || client_ca.is_none();
    scope.require(used, "client_ca", "client certificates come with TLS only; set http.tls = true");
    let token = written.token.and_then(|reference| scope.secret("token", &reference));
    let printable = |token: &Secret| token.expose().bytes().all(|byte| byte.is_ascii_graphic());
    let long = |token: &Secret| token.expose().len() >= SHORTEST_TOKEN;
    let good = token.as_ref().is_none_or(|token| long(token) && printable(token));
    scope.require(
        good,
        "token",
        "must have at least 16 characters, letters and digits for one; make one with: openssl rand -hex 32",
    );
    Http {
        address: written.address.0,
        max_tenant_series: written.max_tenant_series,
        token,
        tls: written.tls,
        client_ca,
    }
}
