//! Unnamed statements that come again and again: each backend parses them once, and not at every use.

use std::collections::HashMap;
use std::sync::Arc;

use super::Statement;

/// Texts that came once are remembered by a number, in so many places: one that never comes again costs no more.
const SEEN: usize = 256;
/// Statements in each of two generations. When the younger one is full it becomes the older one, and what is in that and was
/// not used meanwhile is forgotten.
const GENERATION: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub struct Recurring {
    hasher: ahash::RandomState,
    seen: Vec<u64>,
    young: HashMap<u64, Kept, ahash::RandomState>,
    old: HashMap<u64, Kept, ahash::RandomState>,
}

#[derive(Debug)]
struct Kept {
    context: u64,
    statement: Arc<Statement>,
}

/// What is known of a statement.
pub enum Found {
    Kept(Arc<Statement>),
    /// Its text has come before, and it is worth keeping.
    Again(u64),
    New,
}

impl Recurring {
    /// `rest` is Parse's payload after the name; the other two are what it is parsed under.
    pub fn find(&mut self, rest: &[u8], context: u64, schema: u64) -> Found {
        let number = self.hasher.hash_one((rest, context, schema));
        let is_meant =
            |kept: &Kept| kept.context == context && kept.statement.schema == schema && *kept.statement.rest == *rest;
        if let Some(kept) = self.young.get(&number).filter(|kept| is_meant(kept)) {
            return Found::Kept(kept.statement.clone());
        }
        if let Some(kept) = self.old.remove(&number).filter(is_meant) {
            let statement = kept.statement.clone();
            self.keep(number, context, statement.clone());
            return Found::Kept(statement);
        }
        self.seen.resize(SEEN, 0);
        let place = &mut self.seen[number as usize % SEEN];
        if std::mem::replace(place, number) == number { Found::Again(number) } else { Found::New }
    }

    /// Keeps a statement under the number that [`Recurring::find`] gave.
    pub fn keep(&mut self, number: u64, context: u64, statement: Arc<Statement>) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(number, Kept { context, statement });
    }
}

#[cfg(test)]
mod tests {
    use super::super::Statements;
    use super::*;

    fn use_once(recurring: &mut Recurring, statements: &Statements, text: &str, context: u64) -> bool {
        let rest = format!("{text}\0\0\0");
        match recurring.find(rest.as_bytes(), context, statements.schema()) {
            Found::Kept(statement) => {
                assert_eq!(*statement.rest, *rest.as_bytes());
                true
            }
            Found::Again(number) => {
                let statement = statements.intern(rest.as_bytes(), context, None, || None);
                recurring.keep(number, context, statement);
                false
            }
            Found::New => false,
        }
    }

    #[test]
    fn what_comes_a_second_time_is_kept() {
        let (mut recurring, statements) = (Recurring::default(), Statements::default());
        let mut uses = |text, context| use_once(&mut recurring, &statements, text, context);
        assert_eq!(["a", "a", "a", "a"].map(|text| uses(text, 0)), [false, false, true, true]);
        assert!(!uses("a", 1), "parsed under other parameters");
        statements.schema_changed();
        assert!(!use_once(&mut recurring, &statements, "a", 0), "after a change of the schema");
    }

    #[test]
    fn what_is_used_stays_and_the_rest_is_forgotten() {
        let (mut recurring, statements) = (Recurring::default(), Statements::default());
        for number in 0..10 * GENERATION {
            for _ in 0..2 {
                use_once(&mut recurring, &statements, &number.to_string(), 0);
            }
            assert_eq!(use_once(&mut recurring, &statements, "used", 0), number > 1, "{number}");
        }
        assert!(recurring.young.len() + recurring.old.len() <= 2 * GENERATION);
        assert!(!use_once(&mut recurring, &statements, "0", 0));
    }
}
