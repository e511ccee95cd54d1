//! The time that a transaction takes, where somebody wants to know.

use super::Serving;
use crate::config::PoolMode;
use crate::trace::Transaction;

impl Serving {
    /// A transaction that begins with the request that is here. In session mode nobody knows where one ends.
    pub(super) fn traced(&self) -> Option<Box<Transaction>> {
        match self.session.mode {
            PoolMode::Session => None,
            PoolMode::Transaction | PoolMode::Statement => self.context.tracer.transaction(self.client.received()),
        }
    }

    pub(super) fn traced_to_end(&self, traced: Option<Box<Transaction>>, failure: Option<&str>) {
        if let Some(traced) = traced {
            traced.end(&self.context.tracer, self.session.who(), failure.map(str::to_owned));
        }
    }
}
