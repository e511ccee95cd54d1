//! The operations there are, bounded in number, and which may not run beside each other. No I/O.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use super::act::Done;
use crate::lifecycle::Failure;
use crate::lifecycle::audit::now;

/// Waiting and at work; further orders are refused.
const MAX_UNFINISHED: usize = 64;
/// Beyond this the oldest are forgotten.
const MAX_ENDED: usize = 256;

/// What is to be done, and by whose order.
pub(super) struct Ordered {
    pub act: &'static str,
    pub tenant: String,
    pub dry_run: bool,
    pub by: String,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Too much is unfinished.
    Full,
    /// This operation works on the tenant.
    Working(String),
    /// This operation's passwords are unread.
    Unread(String),
    NoRandomness,
}

/// An operation as it is shown.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Seen {
    pub id: String,
    pub act: &'static str,
    pub tenant: String,
    pub dry_run: bool,
    /// Who has ordered it.
    pub by: String,
    pub state: State,
    /// RFC 3339.
    pub ordered: String,
    pub ended: Option<String>,
    /// Those that are done.
    pub steps: Vec<&'static str>,
    pub result: Option<Value>,
    pub error: Option<String>,
    /// What the command would have ended with; none before the end.
    pub exit_status: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Waiting,
    Running,
    Done,
    Failed,
}

/// One operation; `P` are passwords.
struct Operation<P> {
    seen: Seen,
    ended: Option<Instant>,
    unread: Option<P>,
}

impl<P> Operation<P> {
    fn is_unfinished(&self) -> bool {
        matches!(self.seen.state, State::Waiting | State::Running)
    }

    fn fail(&mut self, failure: &Failure) {
        self.seen.state = State::Failed;
        self.seen.error = Some(failure.to_string());
        self.seen.exit_status = Some(failure.status());
    }
}

/// In the order in which they were ordered.
pub(super) struct Books<P>(Vec<Operation<P>>);

impl<P> Default for Books<P> {
    fn default() -> Self {
        Books(Vec::new())
    }
}

impl<P> Books<P> {
    pub(super) fn order(&mut self, ordered: Ordered) -> Result<Seen, Refused> {
        let Ordered { act, tenant, dry_run, by } = ordered;
        for other in self.0.iter().filter(|other| !dry_run && !other.seen.dry_run && other.seen.tenant == tenant) {
            if other.is_unfinished() {
                return Err(Refused::Working(other.seen.id.clone()));
            }
            if other.unread.is_some() {
                return Err(Refused::Unread(other.seen.id.clone()));
            }
        }
        if self.0.iter().filter(|other| other.is_unfinished()).count() >= MAX_UNFINISHED {
            return Err(Refused::Full);
        }
        // One of the process before must not be taken for one of ours.
        let id = format!("{:016x}", getrandom::u64().map_err(|_| Refused::NoRandomness)?);
        let seen = Seen {
            id,
            act,
            tenant,
            dry_run,
            by,
            state: State::Waiting,
            ordered: now(),
            ended: None,
            steps: Vec::new(),
            result: None,
            error: None,
            exit_status: None,
        };
        self.0.push(Operation { seen: seen.clone(), ended: None, unread: None });
        Ok(seen)
    }

    fn find(&mut self, id: &str) -> Option<&mut Operation<P>> {
        self.0.iter_mut().find(|operation| operation.seen.id == id)
    }

    pub(super) fn begin(&mut self, id: &str) {
        if let Some(operation) = self.find(id) {
            operation.seen.state = State::Running;
        }
    }

    /// A step is done; one that a further site of the same act tells of again counts once.
    pub(super) fn passed(&mut self, id: &str, step: &'static str) {
        if let Some(operation) = self.find(id).filter(|operation| !operation.seen.steps.contains(&step)) {
            operation.seen.steps.push(step);
        }
    }

    pub(super) fn end(&mut self, id: &str, done: Result<Done<P>, Failure>, at: Instant) {
        let Some(operation) = self.find(id) else { return };
        operation.ended = Some(at);
        operation.seen.ended = Some(now());
        match done {
            Ok(Done { result, unread }) => {
                operation.seen.state = State::Done;
                operation.seen.result = Some(result);
                operation.seen.exit_status = Some(0);
                operation.unread = unread;
            }
            Err(failure) => operation.fail(&failure),
        }
        let ended = self.0.iter().filter(|operation| !operation.is_unfinished()).count();
        if ended > MAX_ENDED {
            self.forget_one();
        }
    }

    /// The oldest that has ended; one with unread passwords only where all have them.
    fn forget_one(&mut self) {
        let oldest = |wanted: fn(&Operation<P>) -> bool| {
            self.0.iter().position(|operation| !operation.is_unfinished() && wanted(operation))
        };
        if let Some(at) = oldest(|operation| operation.unread.is_none()).or_else(|| oldest(|_| true)) {
            self.0.remove(at);
        }
    }

    /// Its passwords could not be handed over.
    pub(super) fn fail(&mut self, id: &str, failure: &Failure) -> Option<Seen> {
        let operation = self.find(id)?;
        operation.fail(failure);
        Some(operation.seen.clone())
    }

    pub(super) fn look(&mut self, id: &str) -> Option<Seen> {
        self.find(id).map(|operation| operation.seen.clone())
    }

    /// Its passwords, for the first who asks.
    pub(super) fn take(&mut self, id: &str) -> Option<P> {
        self.find(id)?.unread.take()
    }

    /// The newest first.
    pub(super) fn all(&self) -> Vec<Seen> {
        self.0.iter().rev().map(|operation| operation.seen.clone()).collect()
    }

    /// What ended so long ago, with the passwords that nobody has read.
    pub(super) fn forget(&mut self, age: Duration, now: Instant) {
        self.0.retain(|operation| operation.ended.is_none_or(|ended| now.saturating_duration_since(ended) < age));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn order(books: &mut Books<&'static str>, tenant: &str, dry_run: bool) -> Result<String, Refused> {
        let ordered = Ordered { act: "tenant create", tenant: tenant.to_owned(), dry_run, by: "api".to_owned() };
        books.order(ordered).map(|seen| seen.id)
    }

    fn done(unread: Option<&'static str>) -> Result<Done<&'static str>, Failure> {
        Ok(Done { result: json!({}), unread })
    }

    #[test]
    fn one_tenant_has_one_operation_until_its_passwords_are_read() {
        let mut books = Books::default();
        let first = order(&mut books, "acme", false).unwrap();
        assert_eq!(order(&mut books, "acme", false), Err(Refused::Working(first.clone())));
        order(&mut books, "acme", true).unwrap();
        order(&mut books, "globex", false).unwrap();
        books.begin(&first);
        books.passed(&first, "roles");
        books.passed(&first, "roles");
        assert_eq!(books.look(&first).unwrap().steps, ["roles"]);
        let now = Instant::now();
        books.end(&first, done(Some("hunter2")), now);
        assert_eq!(order(&mut books, "acme", false), Err(Refused::Unread(first.clone())));
        assert_eq!((books.take(&first), books.take(&first)), (Some("hunter2"), None));
        assert_eq!(books.look(&first).unwrap().state, State::Done);
        order(&mut books, "acme", false).unwrap();
        let age = Duration::from_secs(60);
        books.forget(age, now + age / 2);
        assert!(books.look(&first).is_some());
        books.forget(age, now + age);
        assert!(books.look(&first).is_none());
        assert_eq!(books.all().len(), 3, "what is unfinished stays");
    }

    #[test]
    fn there_are_never_more_than_the_bounds() {
        let mut books = Books::default();
        let ids: Vec<String> =
            (0..MAX_UNFINISHED).map(|number| order(&mut books, &format!("t{number}"), false).unwrap()).collect();
        assert_eq!(order(&mut books, "acme", true), Err(Refused::Full));
        books.end(&ids[0], Err(Failure::NoRandomness), Instant::now());
        assert_eq!(books.look(&ids[0]).unwrap().exit_status, Some(1));
        books.end(&ids[1], done(Some("hunter2")), Instant::now());
        for _ in 0..2 * MAX_ENDED {
            let id = order(&mut books, "acme", true).unwrap();
            books.end(&id, done(None), Instant::now());
        }
        assert_eq!(books.all().len(), MAX_ENDED + MAX_UNFINISHED - 2);
        assert!(books.look(&ids[0]).is_none() && books.look(&ids[2]).is_some());
        assert_eq!(books.take(&ids[1]), Some("hunter2"), "looks push no passwords out");
    }
}
