//! A client and its twin: everything is said to both, and what both hear is compared.

use std::fmt::Write;
use std::time::Duration;

use super::answers;
use super::frames::{ENDS, Frame};
use super::ground::Place;
use crate::harness::frontend;
use crate::harness::wire::{Message, Wire};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(8);
/// How many equal lines are told with a difference.
const MANY: usize = 12;

/// What the client got and its twin did not, or the other way round.
#[derive(Debug, Clone)]
pub struct Difference {
    /// What differs, shortly: two differences with the same kind have the same cause, most often.
    pub kind: String,
    pub text: String,
}

impl Difference {
    pub fn plain(text: String) -> Difference {
        Difference { kind: text.chars().filter(|c| !c.is_ascii_digit()).take(60).collect(), text }
    }

    /// Both sides' lines; those that only one has are marked, many equal ones left out.
    fn between(what: &str, client: &[String], twin: &[String]) -> Difference {
        let mut text = format!("{what} differs:\n");
        let (mut client, mut twin, mut equal) = (client, twin, 0);
        let first = client.iter().zip(twin).take_while(|(client, twin)| client == twin).count();
        let kind = format!(
            "{what}: {:?}, {:?}",
            client.get(first).map(|line| headline(line)),
            twin.get(first).map(|line| headline(line))
        );
        let mut tell = |who: &str, line: &str| writeln!(text, "    {who:>6}: {line}").expect("a string grows");
        loop {
            let (next_client, next_twin) = meet(client, twin);
            client[..next_client].iter().for_each(|line| tell("client", line));
            twin[..next_twin].iter().for_each(|line| tell("twin", line));
            (client, twin) = (&client[next_client..], &twin[next_twin..]);
            let Some(line) = client.first() else { break };
            equal += 1;
            if equal <= MANY {
                tell("both", line);
            }
            (client, twin) = (&client[1..], &twin[1..]);
        }
        if equal > MANY {
            tell("both", &format!("and {} more lines that are equal", equal - MANY));
        }
        Difference { kind, text }
    }
}

/// The first words of a line without its values.
fn headline(line: &str) -> String {
    let end = line.find(|c: char| c == '=' && !line.starts_with("ErrorResponse")).unwrap_or(line.len()).min(28);
    line.chars().take(end).collect()
}

/// How many lines to leave out on each side so that the next ones are equal, or none is left.
fn meet(client: &[String], twin: &[String]) -> (usize, usize) {
    let places = (0..client.len() + twin.len()).flat_map(|sum| (0..=sum).map(move |first| (first, sum - first)));
    let mut places = places.filter(|&(first, second)| first < client.len() && second < twin.len());
    places.find(|&(first, second)| client[first] == twin[second]).unwrap_or((client.len(), twin.len()))
}

pub struct Pair {
    client: Speaker,
    twin: Speaker,
}

impl Pair {
    pub async fn connect(places: &[Place; 2], role: &str, parameters: &[(&str, &str)]) -> Result<Pair, Difference> {
        let connect = |place: Place| async move { place.connect(role, parameters).await };
        let (client, twin) = tokio::join!(connect(places[0].clone()), connect(places[1].clone()));
        let error = |result: &Result<Wire, _>| result.as_ref().err().map(|error| format!("{error:?}"));
        if client.is_err() || twin.is_err() {
            let outcome = |result| vec![error(result).unwrap_or_else(|| "logged in".to_owned())];
            return Err(Difference::between("the login", &outcome(&client), &outcome(&twin)));
        }
        let [client, twin] = [client, twin].map(|wire| Speaker::new(wire.expect("errors are told above")));
        let pair = Pair { client, twin };
        pair.compare_parameters()?;
        Ok(pair)
    }

    /// The twin's transaction status: `I`, `T` or `E`.
    pub fn status(&self) -> char {
        self.twin.status
    }

    /// What cancels their queries.
    pub fn keys(&self) -> [(u32, Vec<u8>); 2] {
        [&self.client, &self.twin].map(|side| side.wire.key.clone().expect("everybody gets one"))
    }

    pub fn has_ended(&self) -> bool {
        self.twin.ended
    }

    /// Says the same to both; gives what the twin answered.
    pub async fn say(&mut self, frames: &[Frame]) -> Result<Vec<Message>, Difference> {
        self.say_and_compare(frames, |_| true).await
    }

    /// The same; lines of the answer that begin like this may differ.
    pub async fn say_but(&mut self, frames: &[Frame], beginning: &str) -> Result<Vec<Message>, Difference> {
        self.say_and_compare(frames, |line| !line.starts_with(beginning)).await
    }

    async fn say_and_compare(
        &mut self,
        frames: &[Frame],
        counts: impl Fn(&str) -> bool,
    ) -> Result<Vec<Message>, Difference> {
        let (client, twin) = tokio::join!(self.client.say(frames), self.twin.say(frames));
        let [client, twin_lines] = [&client, &twin]
            .map(|answer| answer.lines().into_iter().filter(|line| counts(line)).collect::<Vec<String>>());
        if client != twin_lines {
            return Err(Difference::between("the answer", &client, &twin_lines));
        }
        self.compare_parameters()?;
        Ok(twin.messages)
    }

    fn compare_parameters(&self) -> Result<(), Difference> {
        let [client, twin] = [&self.client, &self.twin].map(|side| &side.wire.parameters);
        if client == twin {
            return Ok(());
        }
        let only = |these: &std::collections::BTreeMap<String, String>, those: &std::collections::BTreeMap<_, _>| {
            let these = these.iter().filter(|(name, value)| those.get(*name) != Some(*value));
            these.map(|(name, value)| format!("{name}={value:?}")).collect::<Vec<_>>()
        };
        Err(Difference::between("what ParameterStatus has told", &only(client, twin), &only(twin, client)))
    }

    /// Compares the notifications so far. PostgreSQL sends them to an idle session on its own, and at the latest before
    /// it looks at the next message; the client's may take a while. Those of one channel come in their order; who listens in
    /// both ways hears from two backends (docs/POOLING.md).
    pub async fn compare_notifications(&mut self) -> Result<(), Difference> {
        if self.twin.status == 'I' && !self.twin.ended {
            self.twin.say(&[Frame::Sync]).await;
        }
        let due = self.twin.notifications.len();
        let mut answer = Answer::default();
        while self.client.notifications.len() < due && answer.end.is_none() {
            self.client.read(&mut answer).await;
        }
        let [client, twin] = [&mut self.client, &mut self.twin].map(|side| std::mem::take(&mut side.notifications));
        let client = [client, answer.lines()].concat();
        let [client, twin] = [client, twin].map(|mut told| {
            told.sort_by(|one, other| one.split(' ').next().cmp(&other.split(' ').next()));
            told
        });
        if client == twin { Ok(()) } else { Err(Difference::between("what was notified", &client, &twin)) }
    }

    /// Ends both connections and waits until the twin's backend is gone; the client may leave without a Terminate
    /// message.
    pub async fn leave(self, politely: bool) {
        let sides = if politely { vec![self.client, self.twin] } else { vec![self.twin] };
        for mut side in sides {
            side.wire.send(&frontend::terminate()).await.unwrap_or_default();
            while matches!(side.wire.read_in_time().await, Some(Ok(_))) {}
        }
    }
}

/// What came in answer, without notifications and ParameterStatus.
#[derive(Default)]
struct Answer {
    messages: Vec<Message>,
    /// Why no more came.
    end: Option<String>,
}

impl Answer {
    fn lines(&self) -> Vec<String> {
        self.messages.iter().map(answers::line).chain(self.end.clone()).collect()
    }

    fn count(&self, tags: &[u8]) -> usize {
        self.messages.iter().filter(|message| tags.contains(&message.tag)).count()
    }
}

/// One connection.
struct Speaker {
    wire: Wire,
    status: char,
    notifications: Vec<String>,
    ended: bool,
}

impl Speaker {
    fn new(mut wire: Wire) -> Speaker {
        wire.deadline = PATIENCE;
        Speaker { wire, status: 'I', notifications: Vec::new(), ended: false }
    }

    async fn say(&mut self, frames: &[Frame]) -> Answer {
        let mut answer = Answer::default();
        let (mut ready, mut answered) = (0, 0);
        for part in frames.split_inclusive(|frame| *frame == Frame::Flush) {
            let bytes: Vec<Vec<u8>> = part.iter().map(Frame::bytes).collect();
            if self.wire.send(&bytes.concat()).await.is_err() {
                answer.end.get_or_insert("the connection takes no more".to_owned());
            }
            ready += part.iter().filter(|frame| frame.gets_ready()).count();
            answered += part.iter().filter(|frame| frame.gets_answer()).count();
            let flushes = part.last() == Some(&Frame::Flush);
            while answer.end.is_none() {
                let done = match flushes {
                    // After an error nothing comes until Sync.
                    true => answer.count(b"E") > 0 || answer.count(ENDS) >= answered,
                    false => answer.count(b"Z") >= ready,
                };
                if done {
                    break;
                }
                self.read(&mut answer).await;
            }
        }
        answer
    }

    async fn read(&mut self, answer: &mut Answer) {
        match self.wire.read_in_time().await {
            Some(Ok(message)) => match message.tag {
                b'A' => self.notifications.push(answers::notification(&message)),
                b'S' => {}
                tag => {
                    if tag == b'Z' {
                        self.status = message.status();
                    }
                    answer.messages.push(message);
                }
            },
            Some(Err(_)) => {
                self.ended = true;
                answer.end = Some("the connection ends".to_owned());
            }
            None => answer.end = Some(format!("nothing more within {PATIENCE:?}")),
        }
    }
}
