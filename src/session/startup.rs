//! Step 2: the StartupMessage (or CancelRequest), bounded, with its hints and parameters sorted out.

use std::collections::BTreeMap;

use super::{Client, Context, Rejection};
use crate::backend::Settings;
use crate::metrics::ProtocolViolation;
use crate::tenant::route::Hints;
use crate::wire::{Opening, OptionsError, Protocol, StartupMessage, StartupOptions, StartupParameters, messages};

/// What the client wants.
pub enum Wish {
    Cancel { pid: i32, secret: Vec<u8> },
    Session(Startup),
}

/// A StartupMessage, read.
pub struct Startup {
    pub protocol: Protocol,
    pub hints: Hints,
    /// Parameters to set on a backend that others use as well; the hints are not among them.
    pub settings: Result<Settings, OptionsError>,
    /// The same for a backend of the client's own.
    pub parameters: StartupParameters,
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
    let sni = client.tls.as_ref().and_then(|tls| tls.sni.clone());
    let (mut hints, options) = hints(&message.parameters, sni);
    if hints.user.is_empty() {
        let why = "no PostgreSQL user name specified in startup packet";
        return Err(Rejection::violation(ProtocolViolation::StartupMalformed, why));
    }
    let vouched = client.tls.as_ref().and_then(|tls| tls.certificate.as_ref());
    // A chain that two tenants' CAs vouch for names neither.
    hints.certificate = vouched.and_then(|(tenants, _)| match &tenants[..] {
        [tenant] => Some(tenant.clone()),
        _ => None,
    });
    let replication = message.parameters.get("replication").filter(|mode| !is_off(mode)).cloned();
    Ok(Startup {
        protocol: message.protocol,
        hints,
        settings: settings(message, &options),
        parameters: message.for_backend(&options, replication.is_some()),
        replication,
    })
}

fn settings(message: &StartupMessage, options: &StartupOptions) -> Result<Settings, OptionsError> {
    let mut settings = Settings::default();
    // Options first: a parameter of its own wins over one in options, as in PostgreSQL.
    for (name, value) in options.settings()? {
        settings.set(name, value);
    }
    let ours = ["user", "database", "options", "replication"];
    for (name, value) in message.parameters.iter().filter(|(name, _)| !ours.contains(&name.as_str())) {
        settings.set(name, value);
    }
    Ok(settings)
}

/// As PostgreSQL's `parse_bool`, which takes unique prefixes.
fn is_off(mode: &str) -> bool {
    let mode = mode.to_ascii_lowercase();
    mode == "0" || ["false", "off", "no"].iter().any(|off| off.starts_with(&mode) && !mode.is_empty() && mode != "o")
}

/// The hints of the parameters, and the options without the tenant.
pub(super) fn hints(parameters: &BTreeMap<String, String>, sni: Option<String>) -> (Hints, StartupOptions) {
    let mut options = StartupOptions::parse(parameters.get("options").map_or("", String::as_str));
    let hints = Hints {
        sni,
        option: options.take("tenant"),
        user: parameters.get("user").cloned().unwrap_or_default(),
        database: parameters.get("database").filter(|name| !name.is_empty()).cloned(),
        certificate: None,
    };
    (hints, options)
}
