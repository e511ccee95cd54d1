//! Who listens to what on one backend, and which commands that takes. Pure.
//!
//! `M` is where a client's notifications go, `W` who waits for the answer to a LISTEN. Every LISTEN of a client is one of
//! the backend, even where it listens already: a client that is added when its answer comes hears what is sent from then
//! on, and nothing that was sent before.

use std::collections::{HashMap, VecDeque};

/// Channels of one backend; PostgreSQL looks through them one by one.
const MAX_CHANNELS: usize = 10_000;

/// A client of these books.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Member(pub usize);

/// Why somebody cannot ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// The backend goes, or is gone.
    Closed,
    Full,
}

/// See the module.
#[derive(Debug)]
pub struct Books<M, W> {
    channels: HashMap<String, Channel<M>, ahash::RandomState>,
    unsent: VecDeque<Command<M, W>>,
    sent: VecDeque<Command<M, W>>,
    closed: bool,
}

/// It is there as long as somebody listens to it, or waits for the answer.
#[derive(Debug)]
struct Channel<M> {
    members: HashMap<Member, M, ahash::RandomState>,
    asked: usize,
}

#[derive(Debug)]
enum Command<M, W> {
    Listen(String, Member, M, W),
    Unlisten(String),
    /// Nothing: what was notified before is here when it is answered.
    Nothing(W),
}

impl<M, W> Default for Books<M, W> {
    fn default() -> Self {
        Books { channels: HashMap::default(), unsent: VecDeque::new(), sent: VecDeque::new(), closed: false }
    }
}

impl<M, W> Books<M, W> {
    /// A client wants to listen; `waiter` is given back with the answer.
    ///
    /// # Errors
    /// There is no place for it.
    pub fn ask(&mut self, channel: &str, member: Member, mail: M, waiter: W) -> Result<(), NoPlace> {
        if self.closed {
            return Err(NoPlace::Closed);
        }
        if !self.channels.contains_key(channel) {
            if self.channels.len() >= MAX_CHANNELS {
                return Err(NoPlace::Full);
            }
            self.channels.insert(channel.to_owned(), Channel { members: HashMap::default(), asked: 0 });
        }
        if let Some(known) = self.channels.get_mut(channel) {
            known.asked += 1;
        }
        self.unsent.push_back(Command::Listen(channel.to_owned(), member, mail, waiter));
        Ok(())
    }

    /// Somebody wants to know when all has come that was notified before.
    ///
    /// # Errors
    /// The backend goes, or is gone.
    pub fn ask_for_all(&mut self, waiter: W) -> Result<(), NoPlace> {
        if self.closed {
            return Err(NoPlace::Closed);
        }
        self.unsent.push_back(Command::Nothing(waiter));
        Ok(())
    }

    /// A client no longer wants to listen. If its command was sent already, its waiter is seen to wait no longer.
    pub fn leave(&mut self, channel: &str, member: Member) {
        let Some(known) = self.channels.get_mut(channel) else { return };
        known.members.remove(&member);
        let asks =
            |command: &Command<M, W>| matches!(command, Command::Listen(of, by, ..) if of == channel && *by == member);
        let before = self.unsent.len();
        self.unsent.retain(|command| !asks(command));
        known.asked -= before - self.unsent.len();
        self.tidy(channel);
    }

    /// A channel that nobody has anything to do with any more.
    fn tidy(&mut self, channel: &str) {
        if self.channels.get(channel).is_some_and(|known| known.members.is_empty() && known.asked == 0) {
            self.channels.remove(channel);
            self.unsent.push_back(Command::Unlisten(channel.to_owned()));
        }
    }

    /// The next command for the backend. Answers come in the same order, to [`Books::answered`].
    pub fn next_command(&mut self) -> Option<String> {
        let command = self.unsent.pop_front()?;
        let about = |verb: &str, channel: &str| format!("{verb} \"{}\"", channel.replace('"', "\"\""));
        let sql = match &command {
            Command::Listen(channel, ..) => about("LISTEN", channel),
            Command::Unlisten(channel) => about("UNLISTEN", channel),
            Command::Nothing(_) => String::new(),
        };
        self.sent.push_back(command);
        Some(sql)
    }

    /// The oldest command was answered; the client is added if its waiter still waits. Gives who asked, if somebody did.
    pub fn answered(&mut self, succeeded: bool, waits: impl Fn(&W) -> bool) -> Option<W> {
        match self.sent.pop_front()? {
            Command::Unlisten(_) => None,
            Command::Nothing(waiter) => Some(waiter),
            Command::Listen(channel, member, mail, waiter) => {
                if let Some(known) = self.channels.get_mut(&channel) {
                    known.asked -= 1;
                    if succeeded && waits(&waiter) {
                        known.members.insert(member, mail);
                    }
                }
                self.tidy(&channel);
                Some(waiter)
            }
        }
    }

    /// Where a notification of this channel goes.
    pub fn members(&self, channel: &[u8]) -> impl Iterator<Item = &M> {
        let known = str::from_utf8(channel).ok().and_then(|channel| self.channels.get(channel));
        known.into_iter().flat_map(|known| known.members.values())
    }

    /// Closes the books if nobody listens or asks and every command was answered; says whether they are closed.
    pub fn close_if_idle(&mut self) -> bool {
        let asks = |command: &Command<M, W>| matches!(command, Command::Listen(..));
        if self.channels.is_empty() && self.sent.is_empty() && !self.unsent.iter().any(asks) {
            self.unsent.clear();
            self.closed = true;
        }
        self.closed
    }

    /// The backend is lost: closes the books, and gives everybody who is in them.
    pub fn close(&mut self) -> (Vec<M>, Vec<W>) {
        self.closed = true;
        let channels = std::mem::take(&mut self.channels);
        let commands = self.sent.drain(..).chain(self.unsent.drain(..));
        let waiters = commands.filter_map(|command| match command {
            Command::Listen(.., waiter) | Command::Nothing(waiter) => Some(waiter),
            Command::Unlisten(_) => None,
        });
        let waiters = waiters.collect();
        (channels.into_values().flat_map(|channel| channel.members.into_values()).collect(), waiters)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: Member = Member(1);
    const B: Member = Member(2);

    type Plain = Books<char, u32>;

    fn heard(books: &Plain, channel: &str) -> String {
        let mut heard: Vec<char> = books.members(channel.as_bytes()).copied().collect();
        heard.sort_unstable();
        heard.into_iter().collect()
    }

    #[test]
    fn a_client_hears_from_the_answer_on() {
        let mut books = Plain::default();
        books.ask("x\"y", A, 'a', 1).unwrap();
        assert_eq!(books.next_command().unwrap(), "LISTEN \"x\"\"y\"");
        assert_eq!(heard(&books, "x\"y"), "");
        assert_eq!(books.answered(true, |_| true), Some(1));
        books.ask("x\"y", B, 'b', 2).unwrap();
        assert_eq!((books.next_command().is_some(), heard(&books, "x\"y")), (true, "a".into()));
        assert_eq!((books.answered(true, |_| true), heard(&books, "x\"y")), (Some(2), "ab".into()));
        assert_eq!(heard(&books, "z"), "");
        // The last one switches it off, and the backend can go when that is answered.
        books.leave("x\"y", A);
        assert_eq!((books.next_command(), books.close_if_idle()), (None, false));
        books.leave("x\"y", B);
        assert_eq!(books.next_command().unwrap(), "UNLISTEN \"x\"\"y\"");
        assert!(!books.close_if_idle());
        assert_eq!(books.answered(true, |_| true), None);
        assert!(books.close_if_idle());
        assert_eq!(books.ask("x", A, 'a', 3), Err(NoPlace::Closed));
    }

    #[test]
    fn a_channel_stays_while_somebody_asks_for_it() {
        let mut books = Plain::default();
        books.ask("x", A, 'a', 1).unwrap();
        books.next_command().unwrap();
        books.answered(true, |_| true);
        books.ask("x", B, 'b', 2).unwrap();
        books.next_command().unwrap();
        books.leave("x", A);
        assert_eq!(books.next_command(), None, "the answer for the other one is still to come");
        assert_eq!((books.answered(true, |_| true), heard(&books, "x")), (Some(2), "b".into()));
    }

    #[test]
    fn who_leaves_before_the_command_is_sent_costs_nothing() {
        let mut books = Plain::default();
        books.ask("x", A, 'a', 1).unwrap();
        books.ask("x", B, 'b', 2).unwrap();
        books.leave("x", A);
        books.next_command().unwrap();
        assert_eq!((books.answered(false, |_| true), heard(&books, "x")), (Some(2), String::new()), "refused");
        books.ask("x", A, 'a', 1).unwrap();
        books.leave("x", A);
        assert!(books.close_if_idle());
    }

    #[test]
    fn who_gave_up_waiting_is_not_added_and_may_ask_again() {
        let mut books = Plain::default();
        books.ask("x", A, 'a', 1).unwrap();
        books.next_command().unwrap();
        books.leave("x", A);
        books.ask("x", A, 'a', 2).unwrap();
        assert_eq!((books.answered(true, |waiter| *waiter == 2), heard(&books, "x")), (Some(1), String::new()));
        books.next_command().unwrap();
        assert_eq!((books.answered(true, |waiter| *waiter == 2), heard(&books, "x")), (Some(2), "a".into()));
    }

    #[test]
    fn all_are_told_when_the_backend_is_lost() {
        let mut books = Plain::default();
        books.ask("x", A, 'a', 1).unwrap();
        books.next_command().unwrap();
        books.answered(true, |_| true);
        books.ask("y", A, 'a', 2).unwrap();
        books.next_command().unwrap();
        books.ask("x", B, 'b', 3).unwrap();
        books.ask_for_all(4).unwrap();
        assert_eq!(books.close(), (vec!['a'], vec![2, 3, 4]));
        assert_eq!((books.ask("x", A, 'a', 4), books.ask_for_all(4)), (Err(NoPlace::Closed), Err(NoPlace::Closed)));
        books.leave("x", A);
        assert_eq!(books.next_command(), None);
    }

    #[test]
    fn a_command_that_does_nothing_tells_that_all_is_here() {
        let mut books = Plain::default();
        books.ask("x", A, 'a', 1).unwrap();
        books.next_command().unwrap();
        books.ask_for_all(2).unwrap();
        assert_eq!((books.next_command(), books.next_command()), (Some(String::new()), None));
        assert_eq!((books.answered(true, |_| true), heard(&books, "x")), (Some(1), "a".into()));
        books.leave("x", A);
        assert!(!books.close_if_idle());
        assert_eq!(
            (books.answered(true, |_| true), books.next_command().as_deref()),
            (Some(2), Some("UNLISTEN \"x\""))
        );
    }

    #[test]
    fn channels_are_bounded() {
        let mut books = Plain::default();
        for number in 0..MAX_CHANNELS {
            books.ask(&number.to_string(), A, 'a', 0).unwrap();
        }
        assert_eq!(books.ask("x", A, 'a', 0), Err(NoPlace::Full));
        books.ask("1", B, 'b', 0).unwrap();
    }

    #[derive(Debug, Clone)]
    enum Event {
        Ask(usize, usize),
        Leave(usize, usize),
        Send,
        Answer(bool),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0..3_usize, 0..3_usize).prop_map(|(channel, member)| Event::Ask(channel, member)),
            (0..3_usize, 0..3_usize).prop_map(|(channel, member)| Event::Leave(channel, member)),
            Just(Event::Send),
            any::<bool>().prop_map(Event::Answer),
        ]
    }

    proptest! {
        /// Against a backend that does what it is told: it listens to every channel that somebody hears, and in the end
        /// to none that nobody does.
        #[test]
        fn the_backend_listens_to_what_somebody_hears(events in proptest::collection::vec(event(), 0..60)) {
            const NAMES: [&str; 3] = ["x", "y", "z"];
            let mut books = Plain::default();
            let mut under_way = VecDeque::new();
            let mut listens: HashMap<String, bool> = HashMap::new();
            let mut answer = |books: &mut Plain, sql: String, succeeds: bool| {
                let (verb, name) = sql.split_once(' ').unwrap();
                if verb == "UNLISTEN" || succeeds {
                    listens.insert(name.trim_matches('"').to_owned(), verb == "LISTEN");
                }
                books.answered(succeeds || verb == "UNLISTEN", |_| true);
                for name in NAMES {
                    assert!(heard(books, name).is_empty() || listens.get(name) == Some(&true), "{name}");
                }
            };
            for event in events {
                match event {
                    Event::Ask(channel, member) => {
                        books.ask(NAMES[channel], Member(member), ['a', 'b', 'c'][member], 0).unwrap();
                    }
                    Event::Leave(channel, member) => books.leave(NAMES[channel], Member(member)),
                    Event::Send => under_way.extend(books.next_command()),
                    Event::Answer(succeeds) => {
                        if let Some(sql) = under_way.pop_front() {
                            answer(&mut books, sql, succeeds);
                        }
                    }
                }
            }
            for _ in 0..2 {
                for (channel, member) in (0..9).map(|n| (n / 3, n % 3)) {
                    books.leave(NAMES[channel], Member(member));
                }
                under_way.extend(std::iter::from_fn(|| books.next_command()));
                while let Some(sql) = under_way.pop_front() {
                    answer(&mut books, sql, true);
                }
            }
            prop_assert!(books.close_if_idle());
            prop_assert!(!listens.values().any(|listens| *listens));
        }
    }
}
