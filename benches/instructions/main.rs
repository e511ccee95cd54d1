//! Replays what pgbench and PostgreSQL said to each other through the relay, for check.py to count its instructions:
//! `instructions CONVERSATION TIMES`. Prints the number of exchanges.

mod conversation;

use std::hint::black_box;
use std::sync::Arc;

use conversation::Exchange;
use pgtenant::backend::{BackendState, Statements};
use pgtenant::relay::{Flow, FlowLimits, SessionState, Splice};
use pgtenant::wire::messages::framed;

const CONVERSATIONS: [(&str, &[Exchange]); 5] = [
    ("simple", conversation::SIMPLE),
    ("extended", conversation::EXTENDED),
    ("prepared", conversation::PREPARED),
    ("tpcb-like", conversation::TPCB),
    ("pipeline", conversation::PIPELINE),
];
/// PostgreSQL's headers: a type and a length that counts itself.
const HEADER: usize = 5;

/// One client on one backend, both new.
struct Line {
    flow: Flow,
    backend: BackendState,
    replies: Vec<u8>,
}

impl Line {
    fn new(statements: &Arc<Statements>) -> Self {
        let limits = FlowLimits {
            max_message: 1 << 30,
            max_prepared_per_client: 1000,
            max_prepared_per_backend: 200,
            max_prepared_size: 1 << 20,
            cache_unnamed: true,
        };
        let flow = Flow::new(1, limits, false, SessionState::default(), Arc::clone(statements));
        Line { flow, backend: BackendState::default(), replies: Vec::new() }
    }

    /// Counted, with `counted_answer`: callgrind knows them by their names.
    #[inline(never)]
    fn counted_request<'a>(&mut self, request: &'a [u8]) -> Splice<'a> {
        let mut splice = Splice::new(request);
        let taken = self.flow.requests(&mut self.backend, request, &mut splice, &mut self.replies);
        black_box(taken.expect("a good request"));
        splice
    }

    #[inline(never)]
    fn counted_answer(&mut self, answer: &[u8]) {
        let mut splice = Splice::new(answer);
        let consumed = self.flow.responses(&mut self.backend, answer, &mut splice);
        black_box((consumed.expect("a good answer"), splice.bytes()));
        self.replies.clear();
        self.flow.take_figures();
    }
}

fn messages(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (header, _) = rest.split_first_chunk::<HEADER>()?;
        let [tag, a, b, c, d] = *header;
        let length = 1 + u32::from_be_bytes([a, b, c, d]) as usize;
        let (message, more) = rest.split_at(length);
        rest = more;
        Some((tag, message))
    })
}

/// What the backend says to the requests that reached it, with the recorded rows: the relay may have prepared a
/// statement ahead, or have kept back what the backend knows already.
fn answer(requests: &[u8], recorded: &[u8]) -> Vec<u8> {
    let mut said = Vec::new();
    let mut descriptions = messages(recorded).filter(|(tag, _)| matches!(tag, b'T' | b'n'));
    let mut results = messages(recorded).filter(|(tag, _)| matches!(tag, b'D' | b'C'));
    for (tag, _) in messages(requests) {
        match tag {
            b'P' => framed(&mut said, b'1', &[]),
            b'B' => framed(&mut said, b'2', &[]),
            b'C' => framed(&mut said, b'3', &[]),
            b'D' => said.extend_from_slice(descriptions.next().expect("as many as were recorded").1),
            b'E' => {
                for (tag, message) in results.by_ref() {
                    said.extend_from_slice(message);
                    if tag == b'C' {
                        break;
                    }
                }
            }
            b'S' => framed(&mut said, b'Z', &[b"I"]),
            b'Q' => said.extend_from_slice(recorded),
            other => panic!("pgbench sends no {:?}", char::from(other)),
        }
    }
    said
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    // As `cargo bench` runs it among the others, without arguments: a look at whether it works.
    let (name, times) = match &arguments[..] {
        [name, times] => (Some(name.as_str()), times.parse().expect("a number")),
        _ => (None, 1),
    };
    let chosen = CONVERSATIONS.iter().filter(|(known, _)| name.is_none_or(|name| name == *known));
    let mut exchanges = 0;
    for (_, conversation) in chosen {
        let statements = Arc::<Statements>::default();
        for _ in 0..times {
            let mut line = Line::new(&statements);
            for (request, recorded) in *conversation {
                let forwarded = line.counted_request(request);
                let answer = answer(forwarded.bytes(), recorded);
                line.counted_answer(&answer);
                exchanges += 1;
            }
            assert!(line.flow.is_free() || conversation.is_empty());
        }
    }
    println!("{exchanges}");
}
