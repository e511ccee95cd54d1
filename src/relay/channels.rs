//! LISTEN and UNLISTEN: those that need no backend of the client's own, and what the others change about the channels
//! that the client listens to on a shared one.

use std::collections::VecDeque;

use super::flow::{Flow, TransactionStatus};
use super::statements::look_into;
use crate::sql::{self, Alone, Look, Marks};
use crate::wire::tag::{backend, frontend};
use crate::wire::{HEADER, Header, cstr, messages};

/// Longer messages are none of these.
const LONGEST: usize = 512;
/// PostgreSQL cuts longer names off and says so, and counts in its own encoding.
const LONGEST_NAME: usize = 59;
/// Changes that are kept of one client until their transaction ends.
const MAX_CHANGES: usize = 1024;

/// A request that is LISTEN or UNLISTEN and nothing else, outside of transactions.
#[derive(Debug)]
pub struct ListenRequest {
    pub change: ChannelChange,
    /// In bytes, from the beginning of what was received.
    pub length: usize,
    /// What the client is told when it has succeeded.
    pub answer: Vec<u8>,
    /// Where in the request the rest of the Parse message is that makes the unnamed statement, if there is one.
    parse: Option<(usize, usize)>,
    simple: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelChange {
    Listen(String),
    Unlisten(String),
    UnlistenAll,
}

impl ChannelChange {
    fn of(look: &Look) -> Option<ChannelChange> {
        let named = |name: &String| (name.len() <= LONGEST_NAME).then(|| name.clone());
        match look.alone.as_ref()? {
            Alone::Listen(name) => named(name).map(ChannelChange::Listen),
            Alone::Unlisten(name) => named(name).map(ChannelChange::Unlisten),
            Alone::UnlistenAll => Some(ChannelChange::UnlistenAll),
            _ => None,
        }
    }

    fn tag(&self) -> &'static [u8] {
        if matches!(self, ChannelChange::Listen(_)) { b"LISTEN\0" } else { b"UNLISTEN\0" }
    }
}

impl Flow {
    /// The request at the beginning of `input`, if it only listens, is here whole, and its names mean the same in every
    /// session: the encoding has to be UTF-8.
    pub fn listen_request(&self, input: &[u8]) -> Option<ListenRequest> {
        if self.status != TransactionStatus::Idle {
            return None;
        }
        let request = match *input.first()? {
            frontend::QUERY => self.listen_query(input),
            frontend::PARSE | frontend::BIND => self.listen_batch(input),
            _ => None,
        }?;
        (self.state.told.get(b"client_encoding") == Some(b"UTF8")).then_some(request)
    }

    fn listen_query(&self, input: &[u8]) -> Option<ListenRequest> {
        let (_, payload, length) = message(input)?;
        let change = self.change_by(payload.strip_suffix(b"\0")?)?;
        let mut answer = Vec::new();
        messages::framed(&mut answer, backend::COMMAND_COMPLETE, &[change.tag()]);
        messages::framed(&mut answer, backend::READY, &[b"I"]);
        Some(ListenRequest { change, length, answer, parse: None, simple: true })
    }

    fn change_by(&self, text: &[u8]) -> Option<ChannelChange> {
        if !sql::may_be_command(text) || !matches!(&sql::first_word(text), b"listen\0\0" | b"unlisten") {
            return None;
        }
        ChannelChange::of(sql::look(text, self.state.standard_strings()).as_deref()?)
    }

    /// Parse of the unnamed statement or one that is there, Bind, Execute and Sync, with Describe where it is useful.
    fn listen_batch(&self, input: &[u8]) -> Option<ListenRequest> {
        let mut answer = Vec::new();
        let (mut change, mut parse, mut bound, mut ran) = (None, None, false, false);
        let mut at = 0;
        loop {
            let (tag, payload, length) = message(&input[at..])?;
            match tag {
                frontend::PARSE if at == 0 => {
                    let rest = payload.strip_prefix(b"\0")?;
                    let (text, types) = cstr(rest)?;
                    change = Some(self.change_by(text).filter(|_| types == [0, 0])?);
                    parse = Some((HEADER + 1, length));
                    messages::framed(&mut answer, backend::PARSE_COMPLETE, &[]);
                }
                frontend::BIND if !bound => {
                    let (name, values) = cstr(payload.strip_prefix(b"\0")?)?;
                    if !matches!(values, [0, 0, 0, 0, ..] | [0, 1, 0, 0 | 1, 0, 0, ..]) {
                        return None;
                    }
                    match parse {
                        Some(_) if !name.is_empty() => return None,
                        Some(_) => {}
                        None => change = Some(ChannelChange::of(self.look_of(name)?)?),
                    }
                    bound = true;
                    messages::framed(&mut answer, backend::BIND_COMPLETE, &[]);
                }
                frontend::DESCRIBE if !ran && bound && payload == b"P\0" => {
                    messages::framed(&mut answer, backend::NO_DATA, &[]);
                }
                frontend::DESCRIBE if !bound && parse.is_some() && payload == b"S\0" => {
                    messages::framed(&mut answer, backend::PARAMETER_DESCRIPTION, &[&[0, 0]]);
                    messages::framed(&mut answer, backend::NO_DATA, &[]);
                }
                frontend::EXECUTE if bound && !ran && payload.first() == Some(&0) => {
                    ran = true;
                    messages::framed(&mut answer, backend::COMMAND_COMPLETE, &[change.as_ref()?.tag()]);
                }
                frontend::SYNC if ran => {
                    messages::framed(&mut answer, backend::READY, &[b"I"]);
                    return Some(ListenRequest { change: change?, length: at + length, answer, parse, simple: false });
                }
                _ => return None,
            }
            at += length;
        }
    }

    fn look_of(&self, name: &[u8]) -> Option<&Look> {
        match name {
            b"" => self.mine.unnamed()?.look.as_deref(),
            name => self.mine.get(name)?.look.as_deref(),
        }
    }

    /// Notes that a request was carried out, of which `input` is the beginning.
    pub fn listened(&mut self, request: &ListenRequest, input: &[u8]) {
        self.count(1, 1);
        if let Some((from, to)) = request.parse {
            self.forget_unnamed();
            let (rest, tag, look) = look_into(&input[from..to], &self.state, true);
            self.mine.set_unnamed(&rest, tag, look, self.shared.schema());
        } else if request.simple {
            self.forget_unnamed();
        }
    }
}

/// A whole short message: its type, its payload, and its length with the header.
fn message(input: &[u8]) -> Option<(u8, &[u8], usize)> {
    let header = Header::read(input, LONGEST).ok()??;
    let length = HEADER + header.payload;
    Some((header.tag, input.get(HEADER..length)?, length))
}

/// What LISTEN and UNLISTEN on the client's own backend change, while it listens on a shared one too. UNLISTEN ends that there
/// as well; a channel that both listen to is told by the shared one, which was the first.
#[derive(Debug, Default)]
pub struct OwnChannels {
    /// What the client listens to on a shared backend: only then is there anything to note.
    shared: Vec<String>,
    /// By requests that were sent.
    asked: VecDeque<OwnChange>,
    /// Done in the open transaction.
    done: Vec<OwnChange>,
    committed: Vec<OwnChange>,
    /// The client has not got its ReadyForQuery.
    owes_ready: bool,
}

#[derive(Debug)]
struct OwnChange {
    /// None stands for all.
    channel: Option<String>,
    /// Nothing else is in its request.
    alone: bool,
    /// The client's batch that asked for it.
    batch: u64,
    listens: bool,
}

/// A channel of the shared backend that the client does not listen to any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Ceased {
    pub channel: String,
    /// It ended by a request of its own outside of transaction blocks: what was sent before that is still heard.
    pub alone: bool,
}

impl OwnChannels {
    /// The client listens to this channel on a shared backend.
    pub fn share(&mut self, channel: String) {
        self.unshare(Some(&channel));
        self.shared.push(channel);
    }

    /// It does no longer; none stands for all.
    pub fn unshare(&mut self, channel: Option<&str>) {
        match channel {
            Some(channel) => self.shared.retain(|shared| shared != channel),
            None => self.shared = Vec::new(),
        }
    }

    pub fn shares(&self, channel: &str) -> bool {
        self.shared.iter().any(|shared| shared == channel)
    }

    pub fn watched(&self) -> bool {
        !self.shared.is_empty()
    }

    /// Whether the client hears of this notification through a shared backend.
    pub fn hears(&self, notification: &[u8]) -> bool {
        let channel = notification.get(4..).and_then(cstr).map(|(channel, _)| channel);
        channel.is_some_and(|channel| self.shared.iter().any(|shared| shared.as_bytes() == channel))
    }

    /// A request of this batch is about to run.
    pub(super) fn asked(&mut self, look: &Look, batch: u64) {
        if !self.watched() || self.asked.len() + self.done.len() + self.committed.len() > MAX_CHANGES {
            return;
        }
        let alone = look.alone.is_some();
        let change = |channel| OwnChange { channel, alone, batch, listens: false };
        self.asked.extend(look.channels.iter().cloned().map(change));
        if look.marks.contains(Marks::DISCARD_ALL) {
            self.asked.push_back(change(None));
        }
    }

    /// A statement was completed; `outside` of transaction blocks. ROLLBACK may be one to a savepoint: then some of what we
    /// forget was done, and the client hears more than it wants. It never hears less.
    pub(super) fn completed(&mut self, command: &[u8], outside: bool) {
        if !self.watched() {
            return;
        }
        match command {
            b"LISTEN" | b"UNLISTEN" | b"DISCARD ALL" => {
                let change = self.asked.pop_front();
                let listens = command == b"LISTEN";
                self.done.extend(change.map(|it| OwnChange { alone: it.alone && outside, listens, ..it }));
            }
            b"ROLLBACK" => self.done.clear(),
            _ => {}
        }
    }

    /// A request of this batch failed, which ends its transaction or leaves nothing to end but ROLLBACK.
    pub(super) fn failed(&mut self, batch: u64) {
        self.asked.retain(|change| change.batch > batch);
        self.done.clear();
    }

    /// No transaction is open any more.
    pub(super) fn settled(&mut self) {
        self.committed.append(&mut self.done);
    }

    /// Whether the client has to wait for its ReadyForQuery until what was committed is in force.
    pub(super) fn withhold_ready(&mut self) -> bool {
        self.owes_ready = self.watched() && self.committed.iter().any(|change| !change.listens);
        self.owes_ready
    }

    /// Whether it was withheld.
    pub(super) fn withholds_ready(&self) -> bool {
        self.owes_ready
    }

    /// Whether the open transaction, or a request under way, changes what is listened to.
    pub(super) fn is_changing(&self) -> bool {
        !self.asked.is_empty() || !self.done.is_empty()
    }

    /// Whether it was withheld; the caller sends it.
    pub fn owes_ready(&mut self) -> bool {
        std::mem::take(&mut self.owes_ready)
    }

    /// The channels of the shared backend that the client does not listen to any more.
    pub fn take(&mut self) -> Vec<Ceased> {
        self.asked.clear();
        self.done.clear();
        let committed = std::mem::take(&mut self.committed);
        let last = |channel: &str| {
            let is_meant = |change: &&OwnChange| change.channel.as_deref().is_none_or(|it| it == channel);
            committed.iter().rev().find(is_meant).filter(|change| !change.listens)
        };
        let ceased = |channel: &String| last(channel).map(|it| Ceased { channel: channel.clone(), alone: it.alone });
        self.shared.iter().filter_map(ceased).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backend::Parameters;
    use crate::relay::{FlowLimits, SessionState};

    fn flow(encoding: &str) -> Flow {
        let mut told = Parameters::default();
        told.note(format!("client_encoding\0{encoding}\0").as_bytes());
        let limits = FlowLimits {
            max_message: 1 << 20,
            max_prepared_per_client: 9,
            max_prepared_per_backend: 9,
            max_prepared_size: 999,
            cache_unnamed: true,
        };
        Flow::new(1, limits, false, SessionState::new(Arc::default(), Arc::new(told)), Arc::default())
    }

    fn framed(messages: &[(u8, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        messages.iter().for_each(|(tag, payload)| messages::framed(&mut out, *tag, &[payload]));
        out
    }

    fn tags(mut answer: &[u8]) -> String {
        let mut tags = String::new();
        while let Some((tag, _, length)) = message(answer) {
            tags.push(tag.into());
            answer = &answer[length..];
        }
        tags
    }

    #[test]
    fn one_statement_that_listens_and_nothing_else() {
        let simple = |text: &[u8]| flow("UTF8").listen_request(&framed(&[(b'Q', text), (b'S', b"")]));
        let request = simple(b" listen News;\0").unwrap();
        assert_eq!((request.change, request.length), (ChannelChange::Listen("news".into()), 5 + 14));
        assert_eq!(request.answer, b"C\0\0\0\x0bLISTEN\0Z\0\0\0\x05I");
        assert_eq!(simple(b"UNLISTEN \"A b\"\0").unwrap().change, ChannelChange::Unlisten("A b".into()));
        assert_eq!(simple(b"UNLISTEN *\0").unwrap().change, ChannelChange::UnlistenAll);
        let long = format!("LISTEN a{}\0", "b".repeat(LONGEST_NAME));
        for other in ["LISTEN a; LISTEN b\0", "LISTEN\0", "SELECT 1\0", "NOTIFY a\0", "LISTEN a", &long] {
            assert!(simple(other.as_bytes()).is_none(), "{other}");
        }
        let whole = framed(&[(b'Q', b"LISTEN a\0")]);
        assert!((0..whole.len()).all(|end| flow("UTF8").listen_request(&whole[..end]).is_none()));
        assert!(flow("LATIN1").listen_request(&whole).is_none());
        let mut busy = flow("UTF8");
        busy.set_status(TransactionStatus::InTransaction);
        assert!(busy.listen_request(&whole).is_none());
    }

    #[test]
    fn a_batch_that_listens_and_nothing_else() {
        let parse: (u8, &[u8]) = (b'P', b"\0LISTEN a\0\0\0");
        let bind: (u8, &[u8]) = (b'B', b"\0\0\0\0\0\0\0\0");
        let binary: (u8, &[u8]) = (b'B', b"\0\0\0\x01\0\x01\0\0\0\x01\0\x01");
        let portal: (u8, &[u8]) = (b'D', b"P\0");
        let statement: (u8, &[u8]) = (b'D', b"S\0");
        let execute: (u8, &[u8]) = (b'E', b"\0\0\0\0\0");
        let sync: (u8, &[u8]) = (b'S', b"");
        let mut flow = flow("UTF8");
        for (batch, expected) in [
            (&[parse, bind, execute, sync][..], "12CZ"),
            (&[parse, bind, portal, execute, sync], "12nCZ"),
            (&[parse, statement, binary, execute, sync], "1tn2CZ"),
        ] {
            let mut input = framed(batch);
            let whole = input.len();
            input.extend_from_slice(&framed(batch));
            let request = flow.listen_request(&input).unwrap();
            assert_eq!((tags(&request.answer).as_str(), request.length), (expected, whole));
            assert_eq!(request.change, ChannelChange::Listen("a".into()));
            assert!((0..whole).all(|end| flow.listen_request(&input[..end]).is_none()));
        }
        let other: (u8, &[u8]) = (b'P', b"\0SELECT 1\0\0\0");
        let named: (u8, &[u8]) = (b'P', b"x\0LISTEN a\0\0\0");
        let parameter: (u8, &[u8]) = (b'B', b"\0\0\0\0\0\x01\0\0\0\x01x\0\0");
        for batch in [
            &[parse, bind, sync][..],
            &[bind, execute, sync],
            &[other, bind, execute, sync],
            &[named, bind, execute, sync],
            &[parse, parameter, execute, sync],
            &[parse, bind, execute, execute, sync],
            &[parse, bind, execute, parse, sync],
            &[parse, bind, execute, (b'H', b""), sync],
        ] {
            assert!(flow.listen_request(&framed(batch)).is_none(), "{batch:?}");
        }
        // The statement is there for later batches.
        let input = framed(&[parse, bind, execute, sync]);
        let request = flow.listen_request(&input).unwrap();
        flow.listened(&request, &input);
        assert_eq!(&*flow.mine.unnamed().unwrap().rest, b"LISTEN a\0\0\0");
        assert_eq!(tags(&flow.listen_request(&framed(&[bind, execute, sync])).unwrap().answer), "2CZ");
        let simple = framed(&[(b'Q', b"UNLISTEN *\0")]);
        let request = flow.listen_request(&simple).unwrap();
        flow.listened(&request, &simple);
        assert!(flow.mine.unnamed().is_none());
    }

    #[test]
    fn what_the_own_backend_did_counts_once_it_is_committed() {
        let mut own = OwnChannels::default();
        let look = |sql: &str| sql::look(sql.as_bytes(), true).unwrap();
        let names = |channels: Vec<Ceased>| -> Vec<String> {
            let mut names: Vec<String> =
                channels.into_iter().map(|it| it.channel + if it.alone { "!" } else { "" }).collect();
            names.sort_unstable();
            names
        };
        own.asked(&look("UNLISTEN a"), 0);
        own.completed(b"UNLISTEN", true);
        own.settled();
        assert!(own.take().is_empty(), "nobody asks");
        ["a", "b", "c"].into_iter().for_each(|channel| own.share(channel.to_owned()));
        let mut outside = true;
        // The tags that the backend answers with; a capital stands for ReadyForQuery (T within a transaction) or an error.
        for (sql, tags, expected) in [
            ("UNLISTEN a", "UNLISTEN;I", &["a!"][..]),
            ("ROLLBACK; SELECT 1; UNLISTEN *; RESET ALL", "ROLLBACK;SELECT 1;UNLISTEN;RESET;I", &["a", "b", "c"]),
            ("DISCARD ALL", "DISCARD ALL;I", &["a!", "b!", "c!"]),
            ("BEGIN; LISTEN \"A\"; UNLISTEN b; COMMIT", "BEGIN;LISTEN;UNLISTEN;COMMIT;I", &["b"]),
            ("BEGIN; UNLISTEN b; ROLLBACK; UNLISTEN c", "BEGIN;UNLISTEN;ROLLBACK;UNLISTEN;I", &["c"]),
            ("UNLISTEN b; SELECT 1/0", "UNLISTEN;E;I", &[]),
            ("UNLISTEN *; LISTEN b", "UNLISTEN;LISTEN;I", &["a", "c"]),
            ("LISTEN b; UNLISTEN b; UNLISTEN z", "LISTEN;UNLISTEN;UNLISTEN;I", &["b"]),
            ("BEGIN; UNLISTEN b", "BEGIN;UNLISTEN;T", &[]),
            ("ROLLBACK", "ROLLBACK;I", &[]),
            ("UNLISTEN a", "I", &[]),
            ("BEGIN", "BEGIN;T", &[]),
            ("UNLISTEN a", "UNLISTEN;T", &[]),
            ("COMMIT", "COMMIT;I", &["a"]),
            ("UNLISTEN b", "UNLISTEN;I", &["b!"]),
        ] {
            if let Some(look) = sql::look(sql.as_bytes(), true) {
                own.asked(&look, 0);
            }
            for tag in tags.split(';') {
                match tag {
                    "I" => own.settled(),
                    "T" => {}
                    "E" => own.failed(0),
                    tag => own.completed(tag.as_bytes(), outside),
                }
            }
            outside = tags.ends_with('I');
            if outside {
                assert_eq!(names(own.take()), expected, "{sql}");
            }
        }
        // One that fails passes over its own batch only.
        own.asked(&look("UNLISTEN a"), 1);
        own.asked(&look("UNLISTEN b"), 2);
        own.failed(1);
        own.completed(b"UNLISTEN", true);
        own.settled();
        assert_eq!(names(own.take()), ["b!"]);
    }
}
