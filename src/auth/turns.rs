//! Turns for the expensive step of a login, the TLS handshake's signature: one at a time on each worker, and whatever
//! else is ready there goes in between. So a storm of logins costs a query the time of one of them.
//!
//! Those who wait take turns by tenant, and by address where the tenant is not known yet: a storm at one tenant leaves the
//! logins of the others alone. Clients that have logged in before come first, but not always: new ones get on as well.

use std::cell::OnceCell;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Of so many turns one is a stranger's, where strangers wait.
const OF_STRANGERS: u32 = 5;

/// Who wants to log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applicant {
    /// The tenant or the address, hashed.
    pub group: u64,
    /// It has logged in before.
    pub known: bool,
}

thread_local! {
    /// Of the worker whose thread this is.
    static TURNS: OnceCell<Arc<Turns>> = const { OnceCell::new() };
}

/// Runs `step` when it is the applicant's turn on this thread. Cancel safe: who leaves the queue gives up its place.
pub async fn in_turn<T>(applicant: Applicant, step: impl FnOnce() -> T) -> T {
    let turns = TURNS.with(|turns| turns.get_or_init(Arc::default).clone());
    let turn = match turns.ask(applicant) {
        Ok(turn) => turn,
        Err(granted) => granted.await.expect("a place in the queue is given up by its owner only"),
    };
    let result = step();
    // Not before the thread has looked for what became ready meanwhile.
    tokio::task::yield_now().await;
    drop(turn);
    result
}

#[derive(Debug, Default)]
struct Turns {
    queue: Mutex<Queue>,
}

/// Passed on when it is dropped.
#[derive(Debug)]
struct Turn {
    turns: Option<Arc<Turns>>,
}

type Waiter = oneshot::Sender<Turn>;

#[derive(Debug, Default)]
struct Queue {
    taken: bool,
    served: u32,
    known: Groups<Waiter>,
    strangers: Groups<Waiter>,
}

impl Turns {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(self: &Arc<Self>, applicant: Applicant) -> Result<Turn, oneshot::Receiver<Turn>> {
        let mut queue = self.queue();
        if !std::mem::replace(&mut queue.taken, true) {
            return Ok(Turn { turns: Some(self.clone()) });
        }
        let (waiter, granted) = oneshot::channel();
        let groups = if applicant.known { &mut queue.known } else { &mut queue.strangers };
        groups.push(applicant.group, waiter);
        Err(granted)
    }

    fn pass_on(self: Arc<Self>) {
        loop {
            let mut queue = self.queue();
            let Some(waiter) = queue.next() else {
                queue.taken = false;
                return;
            };
            drop(queue);
            match waiter.send(Turn { turns: Some(self.clone()) }) {
                Ok(()) => return,
                // It has left. What comes back is not passed on from here, but with the next round of this loop.
                Err(mut unwanted) => unwanted.turns = None,
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.turns.take() {
            turns.pass_on();
        }
    }
}

impl Queue {
    fn next(&mut self) -> Option<Waiter> {
        self.served = self.served.wrapping_add(1);
        match self.served.is_multiple_of(OF_STRANGERS) {
            true => self.strangers.pop().or_else(|| self.known.pop()),
            false => self.known.pop().or_else(|| self.strangers.pop()),
        }
    }
}

/// First come, first served within a group; the groups in turn.
#[derive(Debug)]
struct Groups<T> {
    waiting: HashMap<u64, VecDeque<T>, ahash::RandomState>,
    ring: VecDeque<u64>,
}

impl<T> Default for Groups<T> {
    fn default() -> Self {
        Groups { waiting: HashMap::default(), ring: VecDeque::new() }
    }
}

impl<T> Groups<T> {
    fn push(&mut self, group: u64, waiter: T) {
        let queue = self.waiting.entry(group).or_default();
        if queue.is_empty() {
            self.ring.push_back(group);
        }
        queue.push_back(waiter);
    }

    fn pop(&mut self) -> Option<T> {
        let group = self.ring.pop_front()?;
        let queue = self.waiting.get_mut(&group)?;
        let first = queue.pop_front();
        match queue.is_empty() {
            true => drop(self.waiting.remove(&group)),
            false => self.ring.push_back(group),
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_take_turns() {
        let mut groups = Groups::default();
        for (group, waiter) in [(1, "a1"), (1, "a2"), (1, "a3"), (2, "b1"), (3, "c1"), (2, "b2")] {
            groups.push(group, waiter);
        }
        let order: Vec<&str> = std::iter::from_fn(|| groups.pop()).collect();
        assert_eq!(order, ["a1", "b1", "c1", "a2", "b2", "a3"]);
        assert!(groups.waiting.is_empty() && groups.ring.is_empty());
    }

    #[tokio::test]
    async fn those_known_come_first_and_strangers_get_on() {
        let turns = Arc::new(Turns::default());
        let stranger = |group| Applicant { group, known: false };
        let first = turns.ask(stranger(1)).unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for number in 0..10 {
            for known in [false, true] {
                let granted = turns.ask(Applicant { group: 1, known }).unwrap_err();
                let order = order.clone();
                tasks.push(tokio::spawn(async move {
                    let turn = granted.await.unwrap();
                    order.lock().unwrap().push((known, number));
                    drop(turn);
                }));
            }
        }
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        let order = order.lock().unwrap();
        let strangers: Vec<usize> = (0..20).filter(|place| !order[*place].0).collect();
        assert_eq!(strangers[..2], [4, 9], "{order:?}");
        assert!(!turns.queue().taken);
    }

    #[tokio::test]
    async fn who_leaves_holds_up_nobody() {
        let applicant = Applicant { group: 1, known: true };
        let turns = Arc::new(Turns::default());
        let first = turns.ask(applicant).unwrap();
        let (gone, stays) = (turns.ask(applicant).unwrap_err(), turns.ask(applicant).unwrap_err());
        drop(gone);
        drop(first);
        // Granted, and left before it was seen.
        drop(stays);
        assert!(turns.ask(applicant).is_ok());
    }

    #[tokio::test]
    async fn other_tasks_go_between_two_steps() {
        let steps = Arc::new(Mutex::new(String::new()));
        let note = |what: &'static str| {
            let steps = steps.clone();
            move || steps.lock().unwrap().push_str(what)
        };
        let logins = (0..3).map(|group| in_turn(Applicant { group, known: false }, note("login ")));
        let logins: Vec<_> = logins.map(tokio::spawn).collect();
        let query = note("query ");
        let queries = tokio::spawn(async move {
            for _ in 0..3 {
                query();
                tokio::task::yield_now().await;
            }
        });
        for login in logins {
            login.await.unwrap();
        }
        queries.await.unwrap();
        let steps = steps.lock().unwrap();
        assert_eq!((steps.matches("login").count(), steps.contains("login login")), (3, false), "{steps}");
    }
}
