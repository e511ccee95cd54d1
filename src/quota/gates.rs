//! What has to be looked at on a tenant's way, as bits of one number: nothing, for most tenants.

use std::ops::{BitOr, BitOrAssign};

use crate::config::Quota;

/// One thing to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Gate {
    /// Whether a transaction may begin: concurrency and rates.
    Begin = 1,
    /// How large a result is.
    Result = 1 << 1,
    /// How long a statement or a transaction takes.
    Time = 1 << 2,
    /// How long a session does nothing.
    Idle = 1 << 3,
    /// The tenant is paused.
    Paused = 1 << 4,
    /// The tenant may only read.
    ReadOnly = 1 << 5,
}

/// A set of gates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gates(u32);

impl Gates {
    pub const NONE: Gates = Gates(0);

    /// Those that quotas make.
    pub fn of(quota: &Quota) -> Gates {
        let begin = quota.max_transactions.is_some()
            || quota.transactions_per_second.is_some()
            || quota.bytes_per_second.is_some()
            || quota.backend_seconds_per_minute.is_some();
        let time = quota.query_timeout.is_some()
            || quota.transaction_timeout.is_some()
            || quota.idle_in_transaction_timeout.is_some();
        let mut gates = Gates::NONE;
        for (gate, is_there) in [
            (Gate::Begin, begin),
            (Gate::Result, quota.max_result.is_some()),
            (Gate::Time, time),
            (Gate::Idle, quota.idle_session_timeout.is_some()),
        ] {
            if is_there {
                gates |= gate.into();
            }
        }
        gates
    }

    pub fn from_bits(bits: u32) -> Gates {
        Gates(bits)
    }

    pub fn bits(self) -> u32 {
        self.0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn has(self, gate: Gate) -> bool {
        self.0 & gate as u32 != 0
    }

    /// Something is to be asked before a transaction begins.
    pub fn bar(self) -> bool {
        self.has(Gate::Begin) || self.has(Gate::Paused) || self.has(Gate::ReadOnly)
    }
}

impl From<Gate> for Gates {
    fn from(gate: Gate) -> Self {
        Gates(gate as u32)
    }
}

impl BitOr for Gates {
    type Output = Gates;

    fn bitor(self, other: Gates) -> Gates {
        Gates(self.0 | other.0)
    }
}

impl BitOrAssign for Gates {
    fn bitor_assign(&mut self, other: Gates) {
        self.0 |= other.0;
    }
}
