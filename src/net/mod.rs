//! Sockets and TLS on both sides: streams, certificates by SNI towards clients, trust towards instances.

pub mod certificates;
mod control;
pub mod crypto;
mod dial;
mod endpoint;
pub mod instance_tls;
pub mod pem;
pub mod ring;
pub mod server_tls;
pub mod stream;
mod web_tls;
pub mod x509;

#[cfg(test)]
mod test_certificates;

pub use control::{ControlConnections, ControlError, ControlPool, control, with_sources};
pub use crypto::{crypto_provider, warm_up};
pub use dial::{DialError, Place, dial};
pub use endpoint::Endpoint;
pub use instance_tls::{InstanceTlsClient, InstanceTlsError};
pub use server_tls::{ServerTls, ServerTlsError};
pub use web_tls::{WebTlsError, web_tls};
pub use x509::CertificateFacts;
