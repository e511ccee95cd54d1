//! The wire protocol (PostgreSQL manual, chapter 55): framing, startup, the messages we build or read. No I/O here.

mod error;
mod frame;
pub mod messages;
mod options;
pub mod sqlstate;
mod startup;
pub mod tag;

pub use error::{PgError, Severity};
pub use frame::{FrameError, HEADER, Header, ReadFault, cstr};
pub use options::{OptionsError, StartupOptions};
pub use startup::{Opening, Protocol, StartupError, StartupMessage, StartupParameters};
