//! Who a client is and how we prove it to a backend: SCRAM on both sides, md5, cleartext, back-off,
//! and whose turn it is to log in.
//!
//! Nothing here does I/O: each step takes the bytes of one message and returns the bytes of the next. The wire codes
//! of the messages around them (`AuthenticationSASL` and so on, PostgreSQL manual 55.2 and 55.3) are the caller's.

pub mod backoff;
pub mod md5;
pub mod password;
pub mod scram;
pub mod scram_client;
pub mod scram_server;
pub mod turns;
pub mod verifier;

pub use backoff::Backoff;
pub use md5::Md5Verifier;
pub use scram::{MAX_ITERATIONS, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramKeys};
pub use scram_client::{ClientSecret, ScramClient, ScramClientError};
pub use scram_server::{ScramError, ScramServer};
pub use turns::in_turn;
pub use verifier::{Mock, Proven, ScramVerifier, Verifier, VerifierError};
