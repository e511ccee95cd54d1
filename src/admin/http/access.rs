//! Who may use the API: whoever has the token or a certificate, and on loopback without either, this machine's users.
//!
//! Browsers are kept from being turned against us: a page of another site may neither change anything (`Origin`) nor
//! read by giving our address a name of its own (`Host`).

use std::net::IpAddr;
use std::time::Duration;

use axum::Json;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::Peer;
use crate::config::Http;

/// What a wrong token costs whoever tries many.
const WRONG_TOKEN: Duration = Duration::from_millis(250);

const CLOSED: &str = "the API and the page's data are off: http.address is not a loopback address, and anybody could \
                      ask. Set http.token, or http.tls with http.client_ca";

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// The endpoint can be reached from elsewhere, and nothing would keep anybody out.
    Closed,
    NoToken,
    WrongToken,
    NoCertificate,
    /// What everybody on this machine could do.
    NoCredential,
    /// Asked for by a name that is not this machine's.
    Host,
    /// Sent by a page of another site.
    CrossSite,
}

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Looking, and changes that are undone as easily.
    Operate,
    /// Making and erasing tenants, and reading their passwords. Nobody may without a credential, and a GET counts as a
    /// change as well: the first look at a password is the last.
    Lifecycle,
}

/// Why nobody may use the API; none where somebody may.
pub fn closed(http: &Http) -> Option<&'static str> {
    let open = http.is_local() || http.token.is_some() || http.client_ca.is_some();
    (!open).then_some(CLOSED)
}

/// Whether this request may be answered.
pub(super) fn check(http: &Http, peer: &Peer, right: Right, head: &Parts) -> Result<(), Refused> {
    if closed(http).is_some() {
        return Err(Refused::Closed);
    }
    if right == Right::Lifecycle && http.token.is_none() && http.client_ca.is_none() {
        return Err(Refused::NoCredential);
    }
    let changes = right == Right::Lifecycle || !matches!(head.method, Method::GET | Method::HEAD);
    if changes && is_cross_site(&head.headers) {
        return Err(Refused::CrossSite);
    }
    // Browsers show a certificate unasked, a token never.
    if http.client_ca.is_some() && peer.has_certificate && !(changes && http.token.is_some()) {
        return Ok(());
    }
    match (&http.token, bearer(&head.headers)) {
        (Some(token), Some(given)) if is_same(token.expose(), given) => Ok(()),
        (Some(_), Some(_)) => Err(Refused::WrongToken),
        (Some(_), None) => Err(Refused::NoToken),
        (None, _) if http.client_ca.is_some() => Err(Refused::NoCertificate),
        (None, _) if is_this_machine(&head.headers) => Ok(()),
        (None, _) => Err(Refused::Host),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// In time that tells neither where they differ nor how long the token is.
fn is_same(token: &str, given: &str) -> bool {
    Sha256::digest(token).ct_eq(&Sha256::digest(given)).into()
}

/// Browsers say where a request comes from; programs say nothing.
fn is_cross_site(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let elsewhere = text("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none");
    let host = text("host").unwrap_or_default();
    let other = text("origin").is_some_and(|origin| origin.split_once("://").is_none_or(|(_, from)| from != host));
    elsewhere || other
}

fn is_this_machine(headers: &HeaderMap) -> bool {
    // HTTP/1.0 needs no host, and browsers do not speak it.
    let Some(host) = headers.get(header::HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Refused {
    pub(super) async fn answer(self) -> Response {
        let (status, text) = match self {
            Refused::Closed => (StatusCode::FORBIDDEN, CLOSED),
            Refused::NoToken => (StatusCode::UNAUTHORIZED, "needs the token (http.token), as Authorization: Bearer …"),
            Refused::WrongToken => {
                tokio::time::sleep(WRONG_TOKEN).await;
                (StatusCode::UNAUTHORIZED, "the token is wrong (http.token)")
            }
            Refused::NoCertificate => (StatusCode::FORBIDDEN, "needs a client certificate (http.client_ca)"),
            Refused::NoCredential => {
                (StatusCode::FORBIDDEN, "acts on tenants need http.token, or http.tls with http.client_ca, to be set")
            }
            Refused::Host => (StatusCode::FORBIDDEN, "ask by a loopback address or localhost, or set http.token"),
            Refused::CrossSite => (StatusCode::FORBIDDEN, "refused: the request was made by another site's page"),
        };
        let body = Json(serde_json::json!({ "error": text }));
        if status == StatusCode::UNAUTHORIZED {
            return (status, [(header::WWW_AUTHENTICATE, "Bearer realm=\"pgtenant\"")], body).into_response();
        }
        (status, body).into_response()
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;
    use crate::config::Secret;

    const TOKEN: &str = "0123456789abcdef";

    fn http(address: &str, token: Option<&str>, client_ca: bool) -> Http {
        Http {
            address: Some(address.parse().unwrap()),
            max_tenant_series: 500,
            token: token.map(Secret::new),
            tls: client_ca,
            client_ca: client_ca.then(|| "ca.crt".into()),
        }
    }

    fn ask(http: &Http, has_certificate: bool, method: &str, headers: &[(&str, &str)]) -> Result<(), Refused> {
        let mut request = Request::builder().method(method).uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(http, &peer(has_certificate), Right::Operate, &request.body(()).unwrap().into_parts().0)
    }

    fn peer(has_certificate: bool) -> Peer {
        Peer { has_certificate, ..Peer::default() }
    }

    #[test]
    fn this_machine_may_ask_by_its_own_names_only() {
        let http = http("127.0.0.1:9930", None, false);
        for host in ["127.0.0.1:9930", "localhost:9930", "LOCALHOST", "[::1]:9930", "127.3.2.1"] {
            assert_eq!(ask(&http, false, "GET", &[("host", host)]), Ok(()), "{host}");
        }
        for host in ["evil.example.com:9930", "127.0.0.1.evil.example.com", "10.0.0.1:9930", ""] {
            assert_eq!(ask(&http, false, "GET", &[("host", host)]), Err(Refused::Host), "{host}");
        }
        assert_eq!(ask(&http, false, "GET", &[]), Ok(()));
    }

    #[test]
    fn elsewhere_it_takes_a_token_or_a_certificate() {
        let bare = http("0.0.0.0:9930", None, false);
        assert_eq!(ask(&bare, false, "GET", &[("host", "localhost")]), Err(Refused::Closed));
        assert!(closed(&bare).unwrap().contains("http.token"));
        let token = http("0.0.0.0:9930", Some(TOKEN), false);
        let with = |value: &str| ask(&token, false, "GET", &[("host", "pgtenant.internal"), ("authorization", value)]);
        assert_eq!(with(&format!("Bearer {TOKEN}")), Ok(()));
        assert_eq!(with(&format!("bearer {TOKEN} ")), Ok(()));
        for wrong in ["Bearer 0123456789abcdeX", "Bearer ", "Bearer 0123456789abcde", "Bearer 0123456789abcdef0"] {
            assert_eq!(with(wrong), Err(Refused::WrongToken), "{wrong}");
        }
        assert_eq!(with(&format!("Basic {TOKEN}")), Err(Refused::NoToken));
        assert_eq!(ask(&token, true, "GET", &[]), Err(Refused::NoToken), "no CA vouches for that certificate");
        let mutual = http("0.0.0.0:9930", None, true);
        assert_eq!(ask(&mutual, true, "GET", &[("host", "pgtenant.internal")]), Ok(()));
        assert_eq!(ask(&mutual, false, "GET", &[]), Err(Refused::NoCertificate));
        let both = http("0.0.0.0:9930", Some(TOKEN), true);
        assert_eq!(ask(&both, true, "GET", &[]), Ok(()));
        assert_eq!(ask(&both, true, "PUT", &[]), Err(Refused::NoToken), "changes always need the token");
        assert_eq!(ask(&both, false, "GET", &[]), Err(Refused::NoToken));
        let local = http("127.0.0.1:9930", Some(TOKEN), false);
        assert_eq!(ask(&local, false, "GET", &[("host", "localhost")]), Err(Refused::NoToken));
    }

    #[test]
    fn acts_on_tenants_take_a_credential_everywhere() {
        let ask = |http: &Http, has_certificate, headers: &[(&str, &str)]| {
            let mut request = Request::builder().uri("/").header("host", "localhost");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let head = request.body(()).unwrap().into_parts().0;
            check(http, &peer(has_certificate), Right::Lifecycle, &head)
        };
        let token = format!("Bearer {TOKEN}");
        let token = ("authorization", token.as_str());
        assert_eq!(ask(&http("127.0.0.1:9930", None, false), false, &[]), Err(Refused::NoCredential));
        let with_token = http("127.0.0.1:9930", Some(TOKEN), false);
        assert_eq!(ask(&with_token, false, &[]), Err(Refused::NoToken));
        assert_eq!(ask(&with_token, false, &[token]), Ok(()));
        let mutual = http("127.0.0.1:9930", None, true);
        assert_eq!(ask(&mutual, true, &[]), Ok(()));
        let elsewhere = ("sec-fetch-site", "cross-site");
        assert_eq!(ask(&mutual, true, &[elsewhere]), Err(Refused::CrossSite), "a look takes the passwords away");
        assert_eq!(ask(&http("127.0.0.1:9930", Some(TOKEN), true), true, &[]), Err(Refused::NoToken));
    }

    #[test]
    fn other_sites_change_nothing() {
        let http = http("127.0.0.1:9930", None, false);
        let put =
            |headers: &[(&str, &str)]| ask(&http, false, "PUT", &[&[("host", "localhost:9930")], headers].concat());
        assert_eq!(put(&[]), Ok(()));
        assert_eq!(put(&[("origin", "http://localhost:9930"), ("sec-fetch-site", "same-origin")]), Ok(()));
        for header in [
            ("origin", "https://evil.example.com"),
            ("origin", "http://localhost:9931"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            assert_eq!(put(&[header]), Err(Refused::CrossSite), "{header:?}");
        }
    }
}
