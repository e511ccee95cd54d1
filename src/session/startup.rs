//! Step 2: the StartupMessage (or CancelRequest), bounded, with its hints and parameters sorted out.

use std::collections::BTreeMap;

use super::{Client, Context, Rejection};
use crate::backend::Settings;
use crate::metrics::ProtocolViolation;
use crate::tenant::route::Hints;
use crate::wire::{Opening, OptionsError, Protocol, StartupMessage, StartupOptions, messages};

/// What the client wants.
pub enum Wish {
    Cancel { pid: i32, secret: Vec<u8> },
    Session(Startup),
}

/// A StartupMessage, read.
pub struct Startup {
    pub protocol: Protocol,
    pub hints: Hints,
    /// Parameters for the backend: the hints are not among them.
    pub settings: Settings,
    /// The parameter `replication`, unless it is off.
    pub replication: Option<String>,
}

/// Reads the client's wish; `opening` was read before on a plain connection. A version or option that we do not know
/// is answered with NegotiateProtocolVersion, which goes out with the next answer.
pub(super) async fn read(client: &mut Client, opening: Option<Opening>, context: &Context) -> Result<Wish, Rejection> {
    let opening = match opening {
        Some(opening) => opening,
        None => {
            let max = context.config.load().limits.max_startup;
            let frame = client.stream.read_untyped::<Rejection>(|first| Ok(Opening::length(first, max)?)).await?;
            Opening::parse(&frame)?
        }
    };
    match opening {
        Opening::Cancel { pid, secret } => Ok(Wish::Cancel { pid, secret }),
        Opening::Startup(message) => {
            if message.negotiate {
                messages::negotiate_protocol(&mut client.answers, message.protocol, &message.unknown_options);
            }
            session(client, &message).map(Wish::Session)
        }
        Opening::Ssl | Opening::Gss => Err(Rejection::violation(
            ProtocolViolation::MessageUnexpected,
            "encryption was already negotiated on this connection",
        )),
    }
}

fn session(client: &Client, message: &StartupMessage) -> Result<Startup, Rejection> {
    let malformed = |why: String| Rejection::violation(ProtocolViolation::StartupMalformed, why);
    let sni = client.tls.as_ref().and_then(|tls| tls.sni.clone());
    let (mut hints, options) =
        hints(&message.parameters, sni).map_err(|error| malformed(format!("startup parameter options: {error}")))?;
    if hints.user.is_empty() {
        return Err(malformed("no PostgreSQL user name specified in startup packet".into()));
    }
    let vouched = client.tls.as_ref().and_then(|tls| tls.certificate.as_ref());
    // A chain that two tenants' CAs vouch for names neither.
    hints.certificate = vouched.and_then(|(tenants, _)| match &tenants[..] {
        [tenant] => Some(tenant.clone()),
        _ => None,
    });
    let mut settings = Settings::default();
    // Options first: a parameter of its own wins over one in options, as in PostgreSQL.
    for (name, value) in &options.settings {
        settings.set(name, value);
    }
    let ours = ["user", "database", "options", "replication"];
    for (name, value) in message.parameters.iter().filter(|(name, _)| !ours.contains(&name.as_str())) {
        settings.set(name, value);
    }
    let replication = message.parameters.get("replication").filter(|mode| !is_off(mode)).cloned();
    Ok(Startup { protocol: message.protocol, hints, settings, replication })
}

fn is_off(mode: &str) -> bool {
    ["false", "off", "no", "0"].contains(&mode.to_ascii_lowercase().as_str())
}

/// The hints of the parameters, and the options without the tenant.
pub(super) fn hints(
    parameters: &BTreeMap<String, String>,
    sni: Option<String>,
) -> Result<(Hints, StartupOptions), OptionsError> {
    let mut options = StartupOptions::parse(parameters.get("options").map_or("", String::as_str))?;
    let hints = Hints {
        sni,
        option: options.take("tenant"),
        user: parameters.get("user").cloned().unwrap_or_default(),
        database: parameters.get("database").filter(|name| !name.is_empty()).cloned(),
        certificate: None,
    };
    Ok((hints, options))
}
