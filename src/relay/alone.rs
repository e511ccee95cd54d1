//! Batches that need no backend: statements that the pool has are prepared and closed by their names only.
//!
//! It spares a round trip, and it keeps a client alive that waits for this answer while others of its own connections
//! hold all the backends, as pgbench does with `-M prepared`.

use std::sync::Arc;

use super::flow::{Flow, TransactionStatus};
use crate::backend::Statement;
use crate::wire::tag::{backend, frontend};
use crate::wire::{HEADER, Header, cstr, messages};

/// One message of such a batch.
enum Step<'a> {
    Prepare(&'a [u8], Arc<Statement>),
    Close(&'a [u8]),
}

impl Step<'_> {
    fn name(&self) -> &[u8] {
        match self {
            Step::Prepare(name, _) | Step::Close(name) => name,
        }
    }
}

impl Flow {
    /// Answers a batch at the beginning of `input` in `replies`, if it is here whole, up to its Sync, and needs no
    /// backend. Gives its length in bytes, 0 if it needs one.
    pub fn answer_alone(&mut self, input: &[u8], replies: &mut Vec<u8>) -> usize {
        if self.status != TransactionStatus::Idle || !matches!(input.first(), Some(&frontend::PARSE | &frontend::CLOSE))
        {
            return 0;
        }
        let Some((steps, length)) = self.batch_of_names(input) else { return 0 };
        for step in steps {
            match step {
                Step::Prepare(name, statement) => {
                    self.mine.insert(name, statement);
                    messages::framed(replies, backend::PARSE_COMPLETE, &[]);
                }
                Step::Close(name) => {
                    self.mine.remove(name);
                    messages::framed(replies, backend::CLOSE_COMPLETE, &[]);
                }
            }
        }
        messages::framed(replies, backend::READY, &[b"I"]);
        self.mine.at_rest();
        length
    }

    fn batch_of_names<'a>(&self, input: &'a [u8]) -> Option<(Vec<Step<'a>>, usize)> {
        let mut steps: Vec<Step<'a>> = Vec::new();
        let mut at = 0;
        loop {
            let header = Header::read(&input[at..], self.limits.max_prepared_size).ok()??;
            let end = at + HEADER + header.payload;
            let payload = input.get(at + HEADER..end)?;
            at = end;
            let step = match header.tag {
                frontend::SYNC if !steps.is_empty() => return Some((steps, at)),
                frontend::PARSE => {
                    let (name, rest) = cstr(payload)?;
                    let free = !name.is_empty() && self.mine.get(name).is_none();
                    let room = self.mine.len() + steps.len() < self.limits.max_prepared_per_client;
                    Step::Prepare(name, (free && room).then(|| self.shared.proved(rest, self.state.context))??)
                }
                frontend::CLOSE => {
                    let (name, _) = cstr(payload.strip_prefix(b"S")?)?;
                    self.mine.get(name)?;
                    Step::Close(name)
                }
                _ => return None,
            };
            // A name that comes twice is a case for the backend.
            if steps.iter().any(|earlier| earlier.name() == step.name()) {
                return None;
            }
            steps.push(step);
        }
    }
}
