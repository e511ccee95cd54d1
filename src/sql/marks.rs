//! The kinds of session state that the text of a request may touch, as a set.

use std::ops::{BitOr, BitOrAssign};

/// A set of kinds of session state.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Marks(u32);

impl Marks {
    /// Parameters change whose names the text does not tell.
    pub const PARAMETERS: Marks = Marks(1);
    /// Something temporary is made or dropped.
    pub const TEMPORARY: Marks = Marks(1 << 1);
    /// Session advisory locks are taken or released.
    pub const ADVISORY: Marks = Marks(1 << 2);
    /// A cursor is declared WITH HOLD, or one is closed.
    pub const CURSOR: Marks = Marks(1 << 3);
    /// LISTEN or UNLISTEN.
    pub const LISTEN: Marks = Marks(1 << 4);
    /// PREPARE or DEALLOCATE in SQL.
    pub const PREPARED: Marks = Marks(1 << 5);
    /// A statement that SQL's PREPARE made is run.
    pub const EXECUTE: Marks = Marks(1 << 6);
    /// A library is loaded, by LOAD or for a function written in C.
    pub const LOAD: Marks = Marks(1 << 7);
    /// The random generator is seeded.
    pub const SEED: Marks = Marks(1 << 8);
    /// nextval or setval is called: currval and lastval have something to tell.
    pub const SEQUENCE: Marks = Marks(1 << 9);
    /// currval or lastval is called.
    pub const SEQUENCE_READ: Marks = Marks(1 << 10);
    /// State that nobody can see again: connections of dblink, replication origins and temporary slots, base backups,
    /// statistics not told yet.
    pub const FOREIGN: Marks = Marks(1 << 11);
    /// Anything may happen inside, or the text cannot be read to its end.
    pub const OPAQUE: Marks = Marks(1 << 12);
    /// DISCARD ALL: takes away all session state.
    pub const DISCARD_ALL: Marks = Marks(1 << 13);
    /// DISCARD SEQUENCES or ALL: currval and lastval know nothing any more.
    pub const DISCARD_SEQUENCES: Marks = Marks(1 << 14);
    /// Statements that begin or end a transaction and do not stand alone, or do more than that.
    pub const TRANSACTION: Marks = Marks(1 << 15);

    /// A string means the moment when the statement is analysed: 'now', 'today' and the like (PostgreSQL manual, 8.5.1.4).
    pub const MOMENT: Marks = Marks(1 << 16);

    /// It looks at the prepared statements of its backend.
    pub const STATEMENTS: Marks = Marks(1 << 17);

    /// A parameter is set for this transaction only.
    pub const LOCAL: Marks = Marks(1 << 18);

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of `other` is in it.
    pub fn contains(self, other: Marks) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any of `other` is in it.
    pub fn intersects(self, other: Marks) -> bool {
        self.0 & other.0 != 0
    }

    /// A set from several, for constants.
    pub(super) const fn with(self, other: Marks) -> Marks {
        Marks(self.0 | other.0)
    }
}

impl BitOr for Marks {
    type Output = Marks;

    fn bitor(self, other: Marks) -> Marks {
        self.with(other)
    }
}

impl BitOrAssign for Marks {
    fn bitor_assign(&mut self, other: Marks) {
        self.0 |= other.0;
    }
}
