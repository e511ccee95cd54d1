//! One hunt: a few clients with their twins, and what can be done with them, one action after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::frames::Frame;
use super::ground::{Ground, Place, Way};
use super::pair::{Difference, Pair};
use super::statements;
use crate::harness::proxy::Proxy;
use crate::harness::wire::{Message, Wire, cancel};

/// Something to do; it can be done again in another hunt.
#[derive(Clone)]
pub enum Action {
    /// A client and its twin say this.
    Say(usize, Vec<Frame>),
    /// A client and its twin say this, and their queries are cancelled while they sleep.
    Cancel(usize, Vec<Frame>),
    /// A client and its twin look at their sessions.
    View(usize),
    /// A client and its twin leave, and others come in their places.
    Replace(usize, Newcomer),
    /// Somebody without a twin takes a backend, so that the next client gets another one.
    Hold,
    LetGo,
}

impl Action {
    /// Who does it.
    pub fn client(&self) -> Option<usize> {
        match self {
            Action::Say(client, _) | Action::Cancel(client, _) | Action::View(client) | Action::Replace(client, _) => {
                Some(*client)
            }
            Action::Hold | Action::LetGo => None,
        }
    }
}

/// Role and startup parameters, and how the one before says goodbye.
#[derive(Debug, Clone)]
pub struct Newcomer {
    pub role: &'static str,
    pub parameters: Vec<(&'static str, &'static str)>,
    pub politely: bool,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Say(client, frames) => write!(f, "client {client}: {frames:?}"),
            Action::Cancel(client, frames) => write!(f, "client {client}, cancelled: {frames:?}"),
            Action::View(client) => write!(f, "client {client} looks at itself"),
            Action::Replace(client, newcomer) => write!(f, "client {client} leaves; comes again as {newcomer:?}"),
            Action::Hold => f.write_str("somebody holds a backend"),
            Action::LetGo => f.write_str("that backend is free again"),
        }
    }
}

/// How many clients, how many backends, and what may happen.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub way: Way,
    pub clients: usize,
    pub backends: usize,
    /// Whether names of PREPARE and of Parse meet: PostgreSQL keeps them in one place.
    pub mixes_names: bool,
    /// Whether clients ask for `currval` and `lastval`.
    pub reads_sequences: bool,
}

impl Rules {
    /// Whether functions may do what their call does not tell.
    pub fn hidden(self) -> bool {
        matches!(self.way, Way::Transaction { pin_check: true } | Way::Direct)
    }
}

/// What is known of a client from its twin.
#[derive(Debug, Clone, Default)]
pub struct Known {
    pub in_transaction: bool,
    pub failed: bool,
    pub ended: bool,
    /// What its last view showed of state that needs a backend of its own.
    pub pins: BTreeSet<String>,
    /// It has said something since then that may pin it.
    pub suspected: bool,
    /// It has run something of which nobody knows what it left; until DISCARD ALL.
    pub doubtful: bool,
    /// It may have advanced a sequence; until DISCARD.
    pub sequences: bool,
    /// It keeps its backend to the end.
    pub stays: bool,
    /// Its random numbers are those of its twin.
    pub seeded: bool,
    /// Prepared statements by name, as far as is known without looking.
    pub statements: BTreeMap<String, String>,
    /// Names of those whose strings another backend would read otherwise by now.
    pub misread: BTreeSet<String>,
    /// Names that some FETCH has had.
    pub fetching: BTreeSet<String>,
    /// Names of those that may pin when they run.
    risky: BTreeSet<String>,
    /// Names of those that may advance a sequence.
    advancing: BTreeSet<String>,
}

impl Known {
    /// Whether it may occupy a backend.
    pub fn is_stuck(&self) -> bool {
        self.in_transaction || !self.pins.is_empty() || self.suspected || self.doubtful || self.sequences || self.stays
    }

    /// Notes which statements would be read otherwise from now on.
    fn note_reading(&mut self, frame: &Frame) {
        let sql = match frame {
            Frame::Bind { name, .. } => self.statements.get(name).map(String::as_str),
            frame => frame.sql(),
        };
        if sql.is_some_and(statements::changes_reading) {
            let read = self.statements.iter().filter(|(_, sql)| statements::is_read_by_parameters(sql));
            self.misread.extend(read.map(|(name, _)| name.clone()));
        }
        match frame {
            Frame::Parse { name, .. } if !self.statements.contains_key(name) => drop(self.misread.remove(name)),
            Frame::CloseStatement(name) => drop(self.misread.remove(name)),
            _ => {}
        }
    }

    fn note(&mut self, frames: &[Frame], answers: &[Message], status: char) {
        (self.in_transaction, self.failed) = (status != 'I', status == 'E');
        let sows = |frame: &Frame| matches!(frame, Frame::Query(sql) if sql.starts_with("SELECT setseed("));
        self.seeded |= frames.iter().all(sows) && answers.iter().all(|message| message.tag != b'E');
        self.stays |= frames.iter().filter_map(Frame::sql).any(statements::stays);
        for frame in frames {
            self.note_reading(frame);
            match frame {
                Frame::Parse { name, sql } => {
                    if sql.contains("FETCH") {
                        self.fetching.insert(name.clone());
                    }
                    if statements::may_pin(sql) {
                        self.risky.insert(name.clone());
                    }
                    if statements::may_advance(sql) {
                        self.sequences = true;
                        self.advancing.insert(name.clone());
                    }
                    if !name.is_empty() {
                        self.statements.entry(name.clone()).or_insert_with(|| sql.clone());
                    }
                }
                Frame::Query(sql) => self.sequences |= statements::may_advance(sql),
                Frame::CloseStatement(name) => drop(self.statements.remove(name)),
                _ => {}
            }
            if let Frame::Bind { name, .. } = frame {
                self.suspected |= self.risky.contains(name);
                self.sequences |= self.advancing.contains(name);
            }
            self.suspected |= matches!(frame, Frame::Query(sql) if statements::may_pin(sql));
            self.doubtful |= matches!(frame, Frame::Call { .. }) || frame.sql().is_some_and(statements::is_doubtful);
        }
        for tag in answers.iter().filter(|message| message.tag == b'C').map(|message| &message.payload[..]) {
            self.doubtful &= tag != b"DISCARD ALL\0";
            self.sequences &= tag != b"DISCARD ALL\0" && tag != b"DISCARD SEQUENCES\0";
            if tag == b"DISCARD ALL\0" || tag == b"DEALLOCATE ALL\0" {
                self.statements.clear();
            }
        }
    }
}

pub struct Hunt<'a> {
    ground: &'a Ground,
    rules: Rules,
    places: [Place; 2],
    pairs: Vec<Pair>,
    pub known: Vec<Known>,
    holder: Option<Wire>,
    pub holds: bool,
    listener: Option<Wire>,
    proxy: Option<Proxy>,
    pub tally: Tally,
}

/// How often each command succeeded, and each error came.
#[derive(Default)]
pub struct Tally(BTreeMap<String, usize>);

impl Tally {
    fn count(&mut self, answers: &[Message]) {
        for message in answers {
            let what = match message.tag {
                b'C' => String::from_utf8_lossy(&message.payload)
                    .trim_end_matches([' ', '\0', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'])
                    .to_owned(),
                b'E' => message.error().sqlstate().to_owned(),
                tag => char::from(tag).to_string(),
            };
            *self.0.entry(what).or_default() += 1;
        }
    }

    pub fn add(&mut self, other: Tally) {
        other.0.into_iter().for_each(|(what, times)| *self.0.entry(what).or_default() += times);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(what, times)| write!(f, "{what}: {times}, "))
    }
}

impl<'a> Hunt<'a> {
    pub async fn begin(ground: &'a Ground, rules: Rules, clients: &[Newcomer]) -> Result<Hunt<'a>, Difference> {
        ground.clean().await;
        // One more where clients share one to listen with, which somebody keeps busy all the time.
        let shares = matches!(rules.way, Way::Transaction { .. });
        let (proxy, place) = ground.tenant(rules.way, rules.backends + usize::from(shares)).await;
        let places = [place, ground.twin()];
        let mut listener = None;
        if shares {
            let mut wire = places[0].connect("app", &[]).await.expect("the right password");
            wire.query("LISTEN nobody").await.expect("a backend is free");
            listener = Some(wire);
        }
        // It matters from the first time on that somebody in the pool asks (docs/POOLING.md).
        for role in ["app", "batch"].into_iter().filter(|_| shares && rules.reads_sequences) {
            let mut wire = places[0].connect(role, &[]).await.expect("the right password");
            wire.query("SELECT lastval()").await.expect_err("nobody has advanced a sequence");
        }
        let (mut pairs, mut known) = (Vec::new(), Vec::new());
        for Newcomer { role, parameters, .. } in clients {
            pairs.push(Pair::connect(&places, role, parameters).await?);
            known.push(Known::default());
        }
        let tally = Tally::default();
        Ok(Hunt { ground, rules, places, pairs, known, holder: None, holds: false, listener, proxy, tally })
    }

    /// How many backends are free for those who hold none.
    pub fn free(&self) -> usize {
        let stuck = self.known.iter().filter(|known| known.is_stuck()).count();
        self.rules.backends.saturating_sub(stuck + usize::from(self.holds))
    }

    /// Whether the client gets a backend without waiting for somebody else.
    pub fn may_act(&self, client: usize) -> bool {
        self.known[client].is_stuck() || self.free() > 0
    }

    /// Does it, if nobody has to wait for that.
    pub async fn perform(&mut self, action: &Action) -> Result<(), Difference> {
        match action {
            action if action.client().is_some_and(|client| !self.may_act(client)) => {}
            Action::Say(client, frames) | Action::Cancel(client, frames) => {
                let answers = match action {
                    Action::Cancel(..) => self.cancel(*client, frames).await?,
                    _ => self.pairs[*client].say(frames).await?,
                };
                let (pair, known) = (&self.pairs[*client], &mut self.known[*client]);
                known.note(frames, &answers, pair.status());
                known.sequences &= self.rules.reads_sequences;
                known.ended = pair.has_ended();
                self.tally.count(&answers);
            }
            Action::View(client) => self.view(*client).await?,
            Action::Replace(client, newcomer) => self.replace(*client, newcomer).await?,
            Action::Hold if self.free() < 2 => {}
            Action::Hold => self.hold("BEGIN; SELECT 1").await?,
            Action::LetGo => self.hold("COMMIT").await?,
        }
        for (client, pair) in self.pairs.iter_mut().enumerate() {
            let told = pair.compare_notifications().await;
            told.map_err(|difference| Difference {
                text: format!("client {client}: {}", difference.text),
                ..difference
            })?;
        }
        Ok(())
    }

    /// Says this, and cancels it when both sleep. They may be past it, or never come to it.
    async fn cancel(&mut self, client: usize, frames: &[Frame]) -> Result<Vec<Message>, Difference> {
        let (pair, ground) = (&mut self.pairs[client], self.ground);
        let (keys, addresses) = (pair.keys(), self.places.each_ref().map(|place| place.address));
        let cancelled = async {
            if ground.two_sleep().await {
                for (key, address) in keys.iter().zip(addresses) {
                    cancel(address, key).await.expect("somebody listens");
                }
            }
        };
        let (answers, ()) = tokio::join!(pair.say(frames), cancelled);
        answers
    }

    async fn view(&mut self, client: usize) -> Result<(), Difference> {
        let look = [Frame::query("SELECT pin, what, value FROM hunt.view()")];
        let answers = match self.rules.way {
            // What the proxy listens to for a client shows in what it hears.
            Way::Transaction { .. } => self.pairs[client].say_but(&look, "DataRow [\"t\", \"listens\"").await?,
            _ => self.pairs[client].say(&look).await?,
        };
        let known = &mut self.known[client];
        if !known.failed {
            let rows = answers.iter().filter(|message| message.tag == b'D').map(Message::row);
            let pins = rows.filter(|row| row[0].as_deref() == Some("t") && row[2].is_some());
            known.pins = pins.filter_map(|mut row| row.remove(1)).collect();
            // A LISTEN shows when its transaction is over.
            known.suspected &= known.in_transaction;
        }
        // These may fail: a transaction would be lost.
        if self.rules.reads_sequences && !known.in_transaction {
            let own = format!("SELECT currval('hunt.seq{client}')");
            self.pairs[client].say(&[Frame::query("SELECT lastval()"), Frame::Query(own)]).await?;
        }
        Ok(())
    }

    async fn replace(&mut self, client: usize, newcomer: &Newcomer) -> Result<(), Difference> {
        if self.holds {
            self.hold("COMMIT").await?;
        }
        let Newcomer { role, parameters, politely } = newcomer;
        self.pairs.remove(client).leave(*politely).await;
        self.known[client] = Known::default();
        if !self.ground.is_even().await {
            return Err(Difference::plain(format!(
                "client {client} has left, and its locks or transaction are still there"
            )));
        }
        self.pairs.insert(client, Pair::connect(&self.places, role, parameters).await?);
        Ok(())
    }

    async fn hold(&mut self, sql: &str) -> Result<(), Difference> {
        if self.holder.is_none() {
            self.holder = Some(self.places[0].connect("app", &[]).await.expect("the right password"));
        }
        let holder = self.holder.as_mut().expect("just connected");
        let done = holder.query(sql).await;
        done.map_err(|error| Difference::plain(format!("{sql} of somebody else failed: {error:?}")))?;
        self.holds = sql != "COMMIT";
        Ok(())
    }

    /// Everybody leaves, and the proxy ends.
    pub async fn end(self) -> Tally {
        for pair in self.pairs {
            pair.leave(true).await;
        }
        drop((self.holder, self.listener));
        if let Some(proxy) = self.proxy {
            proxy.drain(async {}).await;
        }
        self.tally
    }
}
