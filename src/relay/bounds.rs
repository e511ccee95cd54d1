//! Which frontend messages there are, how long they may be, and how much of each has to be here before it can go on.

use super::flow::{ClientFault, Flow};
use crate::wire::tag::frontend;
use crate::wire::{FrameError, Header};

/// Names are looked for in this many bytes; PostgreSQL cuts them off at 63.
const NAME_BOUND: usize = 8 * 1024;
/// Of a simple query so much has to be here before it goes on; a longer one cannot be looked into whole.
pub const QUERY_BOUND: usize = 64 * 1024;
/// The same of a text that must not write; a longer one is refused.
pub const TEXT_BOUND: usize = 1024 * 1024;
/// PostgreSQL's bound for messages that carry names only (PQ_SMALL_MESSAGE_LIMIT).
const SMALL_MESSAGE: usize = 10_000;

impl Flow {
    /// Known types only, and names within PostgreSQL's own bound.
    pub(super) fn check(&self, header: Header) -> Result<(), ClientFault> {
        match header.tag {
            frontend::CLOSE
            | frontend::DESCRIBE
            | frontend::EXECUTE
            | frontend::FLUSH
            | frontend::SYNC
            | frontend::COPY_DONE
            | frontend::TERMINATE
                if header.payload > SMALL_MESSAGE =>
            {
                Err(FrameError::TooLong { length: header.payload, max: SMALL_MESSAGE }.into())
            }
            frontend::BIND
            | frontend::CLOSE
            | frontend::COPY_DATA
            | frontend::COPY_DONE
            | frontend::COPY_FAIL
            | frontend::DESCRIBE
            | frontend::EXECUTE
            | frontend::FLUSH
            | frontend::FUNCTION_CALL
            | frontend::PARSE
            | frontend::QUERY
            | frontend::SYNC
            | frontend::TERMINATE => Ok(()),
            other => Err(ClientFault::Type(other)),
        }
    }

    /// How much of a message's payload has to be in view before it can be forwarded.
    pub fn bytes_needed(&self, header: Header) -> usize {
        match header.tag {
            frontend::PARSE | frontend::QUERY if self.is_read_only() => TEXT_BOUND,
            frontend::PARSE if header.payload <= self.limits.max_prepared_size => header.payload,
            frontend::PARSE | frontend::BIND | frontend::FUNCTION_CALL => NAME_BOUND,
            frontend::DESCRIBE | frontend::CLOSE => header.payload,
            frontend::QUERY => QUERY_BOUND,
            _ => 0,
        }
    }
}
