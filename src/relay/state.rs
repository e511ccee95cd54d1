//! What a client's session has beyond its transaction, as far as its requests and their answers tell; and the words that
//! bring a parameter back to what the client began with.

use std::collections::VecDeque;
use std::sync::Arc;

use super::channels::OwnChannels;
use super::replaced::Replaced;
use crate::backend::{Doubt, Parameters, Pins, Settings, set_command, set_config};
use crate::metrics::Pin;
use crate::sql::{Alone, Look, Marks, Reset};

/// More names than these are asked for all together.
const MAX_NAMES: usize = 32;

/// The parameter that says who the session is, and the statement that goes back to who has logged in.
const USER: &str = "session_authorization";
const BACK_TO_LOGIN: &str = "RESET SESSION AUTHORIZATION";
/// The identity of `set_config(text, text, boolean)` in pg_proc, which every PostgreSQL has.
const SET_CONFIG: u32 = 2078;

/// See the module.
#[derive(Debug, Default)]
pub struct SessionState {
    /// What the census has to ask for when the backend is free.
    pub doubt: Doubt,
    /// Something ran that may have left what the census cannot ask for.
    pub opaque: bool,
    /// What is known to be there without asking.
    pub certain: Pins,
    /// What running a statement of SQL-level PREPARE may do, and which parameters it may set.
    prepared: Marks,
    prepared_parameters: Vec<String>,
    /// The parameters that the client began with: RESET goes back to them.
    pub startup: Arc<Settings>,
    /// The parameters as the client was last told.
    pub told: Arc<Parameters>,
    /// Clients with the same one can share prepared statements.
    pub context: u64,
    /// The session stays on its backend.
    pub held: bool,
    /// The transaction has changed the schema.
    pub changed_schema: bool,
    /// It has set parameters for itself.
    pub local: bool,
    /// Counts what makes this session's statements differ from those of the same text before.
    own: u64,
    /// What is under way may have begun a transaction.
    pub begins: bool,
    /// Counts what may have advanced a sequence, and how much of it stood before each DISCARD that is under way.
    advances: u64,
    discards: VecDeque<u64>,
    /// What it does there to channels that it listens to on a shared one.
    pub channels: OwnChannels,
}

impl SessionState {
    /// A client that began with these parameters, and was told those.
    pub fn new(startup: Arc<Settings>, told: Arc<Parameters>) -> Self {
        let context = startup.parse_context();
        SessionState { startup, told, context, ..SessionState::default() }
    }

    /// Notes what a request may do.
    pub fn note(&mut self, look: &Look) {
        let mut marks = look.marks;
        if marks.contains(Marks::PREPARED) {
            self.prepared |= marks;
            self.prepared_parameters.extend(look.parameters.iter().cloned());
            self.prepared_parameters.truncate(MAX_NAMES);
        }
        if marks.contains(Marks::EXECUTE) {
            marks |= self.prepared;
            self.doubt.parameters.extend(self.prepared_parameters.iter().cloned());
        }
        self.doubt.all_parameters |= marks.intersects(Marks::PARAMETERS | Marks::OPAQUE) || !look.resets.is_empty();
        for name in &look.parameters {
            if !self.doubt.parameters.contains(name) {
                self.doubt.parameters.push(name.clone());
            }
        }
        if self.doubt.parameters.len() > MAX_NAMES {
            self.doubt.all_parameters = true;
            self.doubt.parameters.retain(|name| name.contains('.'));
            self.doubt.parameters.truncate(MAX_NAMES);
        }
        let asked = [
            (Marks::OPAQUE, Pins::ASKABLE),
            (Marks::TEMPORARY, Pin::Temporary.into()),
            (Marks::ADVISORY, Pin::AdvisoryLock.into()),
            (Marks::CURSOR, Pin::Cursor.into()),
            (Marks::LISTEN, Pin::Listen.into()),
            (Marks::PREPARED, Pin::Prepared.into()),
            (Marks::DISCARD_ALL, Pins::ASKABLE),
        ];
        for (mark, pins) in asked {
            if marks.contains(mark) {
                self.doubt.pins = self.doubt.pins | pins;
            }
        }
        let certain = [(Marks::LOAD, Pin::Library), (Marks::SEED, Pin::Seed), (Marks::FOREIGN, Pin::Foreign)];
        for (mark, pin) in certain {
            if marks.contains(mark) {
                self.certain.insert(pin);
            }
        }
        self.opaque |= marks.contains(Marks::OPAQUE);
        self.begins |= look.alone == Some(Alone::Begin) || marks.contains(Marks::TRANSACTION);
        self.local |= marks.contains(Marks::LOCAL);
        let changes = Marks::PARAMETERS | Marks::OPAQUE | Marks::LOCAL | Marks::EXECUTE;
        if marks.intersects(changes) || !look.parameters.is_empty() {
            self.parameters_changed();
        }
        if marks.contains(Marks::DISCARD_SEQUENCES) {
            self.discards.push_back(self.advances);
        }
    }

    /// Notes that a sequence may be advanced.
    pub fn advances_sequence(&mut self) {
        self.advances += 1;
        self.certain.insert(Pin::Sequence);
    }

    /// DISCARD SEQUENCES or ALL is done. What the client has sent behind it may have advanced a sequence again.
    pub fn discarded_sequences(&mut self) {
        if self.discards.pop_front() == Some(self.advances) {
            self.certain.remove(Pin::Sequence);
        }
    }

    /// Nothing is under way.
    pub fn at_rest(&mut self) {
        self.discards.clear();
        self.begins = false;
    }

    /// What is prepared from now on may be read otherwise than the same text before.
    pub fn parameters_changed(&mut self) {
        self.own += 1;
    }

    /// A transaction is over, and with it what was set for it alone.
    pub fn transaction_over(&mut self) {
        if std::mem::take(&mut self.local) {
            self.parameters_changed();
        }
    }

    /// What a census has found: clients with the same `context` can share prepared statements.
    pub fn settled(&mut self, context: u64) {
        self.context = context;
        self.parameters_changed();
    }

    /// Notes a request that we cannot look into.
    pub fn note_opaque(&mut self) {
        self.parameters_changed();
        self.doubt.all_parameters = true;
        self.doubt.pins = Pins::ASKABLE;
        self.opaque = true;
    }

    /// Notes a call of a function, of whose message `view` is the beginning: `set_config` names the parameter that it sets.
    pub fn note_call(&mut self, view: &[u8]) {
        self.note_opaque();
        let name = name_in_call(view).filter(|name| !self.doubt.parameters.contains(name));
        self.doubt.parameters.extend(name.filter(|_| self.doubt.parameters.len() < MAX_NAMES));
    }

    /// A command of the client's has changed the schema: what it prepares from now on is analysed anew. What it makes for
    /// itself alone is nobody else's business.
    pub fn schema_changed(&mut self, command: &[u8]) {
        self.changed_schema |= !(command.starts_with(b"CREATE") && self.doubt.pins.contains(Pin::Temporary));
        self.own += 1;
    }

    /// Whether what a statement is parsed under may differ from what the last census found: what is prepared now cannot
    /// be shared.
    fn is_unsettled(&self) -> bool {
        self.held || self.local || self.changed_schema || self.doubt.all_parameters || !self.doubt.parameters.is_empty()
    }

    /// The same as [`SessionState::parse_context`], if what is prepared now is nobody's alone.
    pub fn shared_context(&self) -> Option<u64> {
        (!self.is_unsettled()).then_some(self.context)
    }

    /// What prepared statements are shared by now: a number for `session` alone while its state is unsettled, and one that
    /// never comes again for a statement that means the moment of its analysis.
    pub fn parse_context(&mut self, session: u32, look: Option<&Look>) -> u64 {
        if look.is_some_and(|look| look.marks.contains(Marks::MOMENT)) {
            self.own += 1;
        } else if !self.is_unsettled() {
            return self.context;
        }
        1 << 63 | u64::from(session) << 31 | self.own & 0x7fff_ffff
    }

    /// Whether plain strings take a backslash as it is.
    pub fn standard_strings(&self) -> bool {
        self.told.get(b"standard_conforming_strings").is_none_or(|value| value != b"off")
    }

    /// The text with statements instead of those resets that would go back to the login's values, where the client's own
    /// differ; none when there are none. `idle`: no transaction is open; `several`: where one statement stands, there may be
    /// several. Gives what the client expects of them, too.
    pub fn restore(&self, text: &[u8], resets: &[Reset], idle: bool, several: bool) -> Option<(Vec<u8>, Replaced)> {
        if resets.is_empty() {
            return None;
        }
        let mut replaced = Replaced::new(self.told.get(b"client_encoding").is_none_or(|value| value == b"UTF8"));
        let mut restored = Vec::with_capacity(text.len());
        let mut done = 0;
        for reset in resets {
            // Outside of a transaction SET LOCAL does nothing, with a warning of PostgreSQL's.
            let in_vain = reset.local && idle && is_alone(text, reset);
            let Some((words, hidden)) = self.words_for(reset, several).filter(|_| !in_vain) else { continue };
            restored.extend_from_slice(&text[done..reset.range.start]);
            restored.extend_from_slice(words.as_bytes());
            done = reset.range.end;
            replaced.push(text, reset, words.len(), hidden);
        }
        restored.extend_from_slice(&text[done..]);
        (done > 0).then_some((restored, replaced))
    }

    /// SET where it can say it; a block is the one statement without a result that can say the rest, in every protocol and
    /// in every transaction, but it counts as a query to SET TRANSACTION. With the number of statements before the last.
    fn words_for(&self, reset: &Reset, several: bool) -> Option<(String, usize)> {
        let body = match &reset.name {
            // With it goes the role (assign_session_authorization in PostgreSQL).
            Some(name) if name == USER && !reset.local && self.startup.get("role").is_some() => {
                let role = self.startup.get("role")?;
                let user = self.startup.get(USER);
                let set_user = user.map_or_else(|| Some(BACK_TO_LOGIN.into()), |user| set_command(USER, user, false));
                if several && let (Some(set_user), Some(set_role)) = (set_user, set_command("role", role, false)) {
                    return Some((format!("{set_user};{set_role}"), 1));
                }
                let user =
                    user.map_or(BACK_TO_LOGIN.into(), |user| format!("PERFORM {}", set_config(USER, user, false)));
                format!("{user};PERFORM {};", set_config("role", role, false))
            }
            Some(name) => {
                let value = self.startup.get(name)?;
                if let Some(words) = set_command(name, value, reset.local) {
                    return Some((words, 0));
                }
                format!("PERFORM {};", set_config(name, value, reset.local))
            }
            None => {
                // RESET ALL passes over who the session is (manual, RESET).
                let identity = |name: &str| name == "role" || name == USER;
                let own = || self.startup.iter().filter(|(name, _)| !identity(name));
                own().next()?;
                let commands = || own().map(|(name, value)| set_command(name, value, false));
                if several && let Some(commands) = commands().collect::<Option<Vec<_>>>() {
                    return Some((format!("RESET ALL;{}", commands.join(";")), commands.len()));
                }
                let calls = own().map(|(name, value)| format!("PERFORM {};", set_config(name, value, false)));
                format!("RESET ALL;{}", calls.collect::<String>())
            }
        };
        let mut quote = "$pgt$".to_owned();
        while body.contains(&quote) {
            quote.insert(1, 'x');
        }
        Some((format!("DO {quote}BEGIN {body} END{quote}"), 0))
    }
}

/// The parameter that a FunctionCall sets: its function, argument formats, and then the arguments, each with its length.
fn name_in_call(view: &[u8]) -> Option<String> {
    let (function, rest) = view.split_first_chunk::<4>()?;
    let (formats, rest) = rest.split_first_chunk::<2>()?;
    let arguments = rest.get(2 * usize::from(u16::from_be_bytes(*formats)) + 2..)?;
    let (length, arguments) = arguments.split_first_chunk::<4>()?;
    let name = arguments.get(..u32::from_be_bytes(*length) as usize)?;
    let name = str::from_utf8(name).ok().filter(|_| u32::from_be_bytes(*function) == SET_CONFIG)?;
    Some(name.to_ascii_lowercase())
}

/// Whether the text has nothing else.
fn is_alone(text: &[u8], reset: &Reset) -> bool {
    reset.statement == 0 && text[reset.range.end..].iter().all(|byte| byte.is_ascii_whitespace() || *byte == b';')
}

#[cfg(test)]
mod tests {
    use super::super::replaced::Completed;
    use super::*;

    fn state(startup: &[(&str, &str)]) -> SessionState {
        let mut settings = Settings::default();
        startup.iter().for_each(|(name, value)| settings.set(name, value));
        SessionState::new(Arc::new(settings), Arc::default())
    }

    fn reset(text: &str, statement: &str, number: usize, name: Option<&str>) -> Reset {
        let start = text.find(statement).unwrap();
        let range = start..start + statement.len();
        Reset { range, statement: number, name: name.map(Into::into), local: false, tag: "RESET" }
    }

    #[test]
    fn a_reset_goes_back_to_what_the_client_began_with() {
        let state = state(&[("timezone", "UTC"), ("role", "x")]);
        let text = "SELECT 1; RESET TimeZone; RESET work_mem; RESET ALL";
        let resets = [
            reset(text, "RESET TimeZone", 1, Some("timezone")),
            reset(text, "RESET work_mem", 2, Some("work_mem")),
            reset(text, "RESET ALL", 3, None),
        ];
        let (restored, mut replaced) = state.restore(text.as_bytes(), &resets, true, true).unwrap();
        let set = "SET \"timezone\" TO E'UTC'";
        assert_eq!(String::from_utf8(restored).unwrap(), format!("SELECT 1; {set}; RESET work_mem; RESET ALL;{set}"));
        let told: Vec<_> = (0..5).map(|_| replaced.completed()).collect();
        use Completed::{As, AsItSays, Nothing};
        assert_eq!(told, [AsItSays, As("RESET"), AsItSays, Nothing, As("RESET")]);
        assert_eq!(state.restore(text.as_bytes(), &resets[1..2], true, true), None);
        let alone = [reset("RESET ALL", "RESET ALL", 0, None)];
        let (restored, mut replaced) = state.restore(b"RESET ALL", &alone, true, false).unwrap();
        let block = "DO $pgt$BEGIN RESET ALL;PERFORM pg_catalog.set_config(E'timezone',E'UTC',false); END$pgt$";
        assert_eq!((String::from_utf8(restored).unwrap().as_str(), replaced.completed()), (block, As("RESET")));
    }

    #[test]
    fn a_value_cannot_end_the_block() {
        let state = state(&[("my.var", "$pgt$; DROP TABLE x")]);
        let text = "RESET ALL";
        let (restored, _) = state.restore(text.as_bytes(), &[reset(text, text, 0, None)], true, false).unwrap();
        assert!(String::from_utf8(restored).unwrap().ends_with("END$xpgt$"));
    }

    #[test]
    fn what_a_prepared_statement_may_do_is_noted_when_it_runs() {
        let mut state = SessionState::default();
        state.note(&Look { marks: Marks::PREPARED | Marks::ADVISORY, ..Look::default() });
        state.doubt = Doubt::default();
        state.note(&Look { marks: Marks::EXECUTE, ..Look::default() });
        assert!(state.doubt.pins.contains(Pin::AdvisoryLock) && !state.is_unsettled());
        state.note(&Look { parameters: (0..40).map(|n| format!("p{n}")).collect(), ..Look::default() });
        assert!(state.doubt.all_parameters && state.doubt.parameters.is_empty() && state.is_unsettled());
        assert_ne!(state.parse_context(1, None), state.parse_context(2, None));
    }
}
