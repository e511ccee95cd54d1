//! The startup parameter `options`: command-line switches of a backend (PostgreSQL manual, 20.1.4 and `postgres`).

use thiserror::Error;

/// The switches of PostgreSQL 15's backend that take an argument (`process_postgres_switches`).
const WITH_ARGUMENT: &str = "BcCDdfhkNprStvW-";

/// Switches in the order given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StartupOptions {
    switches: Vec<Switch>,
}

/// One switch, or a word that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Switch {
    /// As the client wrote it.
    text: String,
    meaning: Meaning,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Meaning {
    /// `-c name=value` or `--name=value`.
    Sets(String, String),
    Other,
    /// `-c` at the end.
    NoValue,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OptionsError {
    #[error("-c needs a value: write -c name=value")]
    MissingValue,
    #[error("invalid argument \"{0}\" in options: write -c name=value or --name=value")]
    Unsupported(String),
}

impl StartupOptions {
    /// Takes `options` apart as PostgreSQL does: white space separates, a backslash takes the next character as it is.
    pub fn parse(options: &str) -> Self {
        let mut parsed = StartupOptions::default();
        let mut words = words(options).into_iter();
        while let Some(word) = words.next() {
            let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
                parsed.push(word.to_owned(), Meaning::Other);
                continue;
            };
            if letters == "-" {
                // The end of the switches.
                parsed.push([word].into_iter().chain(words).collect::<Vec<_>>().join(" "), Meaning::Other);
                break;
            }
            // Letters without an argument may share a word with one that has.
            let taking = letters.find(|letter| WITH_ARGUMENT.contains(letter)).unwrap_or(letters.len());
            let (plain, rest) = letters.split_at(taking);
            if !plain.is_empty() {
                parsed.push(format!("-{plain}"), Meaning::Other);
            }
            let Some(letter) = rest.chars().next() else { continue };
            let attached = Some(&rest[letter.len_utf8()..]).filter(|attached| !attached.is_empty());
            let separate = if attached.is_none() { words.next() } else { None };
            let text = match separate {
                Some(argument) => format!("-{letter} {argument}"),
                None => format!("-{rest}"),
            };
            parsed.push(text, meaning(letter, attached.or(separate)));
        }
        parsed
    }

    fn push(&mut self, text: String, meaning: Meaning) {
        self.switches.push(Switch { text, meaning });
    }

    /// Takes out every setting of `name` (in any case) and gives the last value.
    pub fn take(&mut self, name: &str) -> Option<String> {
        let mut last = None;
        self.switches.retain(|switch| match &switch.meaning {
            Meaning::Sets(key, value) if key.eq_ignore_ascii_case(name) => {
                last = Some(value.clone());
                false
            }
            _ => true,
        });
        last
    }

    /// The parameters that are set, in the order given.
    ///
    /// # Errors
    /// A switch that sets no parameter.
    pub fn settings(&self) -> Result<Vec<(&str, &str)>, OptionsError> {
        let setting = |switch: &'_ Switch| match &switch.meaning {
            Meaning::Sets(..) => None,
            Meaning::Other => Some(OptionsError::Unsupported(switch.text.clone())),
            Meaning::NoValue => Some(OptionsError::MissingValue),
        };
        if let Some(error) = self.switches.iter().find_map(setting) {
            return Err(error);
        }
        let pair = |switch| match switch {
            &Switch { meaning: Meaning::Sets(ref name, ref value), .. } => Some((name.as_str(), value.as_str())),
            _ => None,
        };
        Ok(self.switches.iter().filter_map(pair).collect())
    }

    /// The text that means these switches.
    pub fn text(&self) -> String {
        self.switches.iter().map(|switch| switch.text.as_str()).collect::<Vec<_>>().join(" ")
    }
}

/// What a switch with its argument, still escaped, means.
fn meaning(letter: char, argument: Option<&str>) -> Meaning {
    if !matches!(letter, 'c' | '-') {
        return Meaning::Other;
    }
    let Some(argument) = argument else { return Meaning::NoValue };
    match unescaped(argument).split_once('=') {
        Some((name, value)) => Meaning::Sets(name.replace('-', "_"), value.to_owned()),
        None => Meaning::Other,
    }
}

/// PostgreSQL's `pg_split_opts`, without taking the backslashes out.
fn words(options: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut begin = None;
    let mut escaped = false;
    for (at, character) in options.char_indices() {
        let separates = !escaped && matches!(character, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c');
        match (separates, begin) {
            (true, Some(begun)) => {
                words.push(&options[begun..at]);
                begin = None;
            }
            (false, None) => begin = Some(at),
            _ => {}
        }
        escaped = !escaped && character == '\\';
    }
    words.extend(begin.map(|begun| &options[begun..]));
    words
}

fn unescaped(word: &str) -> String {
    let mut text = String::new();
    let mut characters = word.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => text.extend(characters.next()),
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Vec<(String, String)> {
        let options = StartupOptions::parse(text);
        let settings = options.settings().unwrap();
        settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn every_spelling_sets() {
        let expected = vec![("a".to_owned(), "1".to_owned()), ("b_c".to_owned(), "2 3".to_owned())];
        assert_eq!(settings("-c a=1 --b-c=2\\ 3"), expected);
        assert_eq!(settings("  -ca=1\t-c b_c=2\\ 3 "), expected);
        assert_eq!(settings(""), vec![]);
        assert_eq!(settings("-c a=\\\\\\ x\\"), vec![("a".to_owned(), "\\ x".to_owned())]);
    }

    #[test]
    fn what_sets_nothing_is_refused() {
        let refusal = |text: &str| StartupOptions::parse(text).settings().unwrap_err();
        assert_eq!(refusal("-c"), OptionsError::MissingValue);
        assert_eq!(refusal("-d 5"), OptionsError::Unsupported("-d 5".into()));
        assert_eq!(refusal("-c a"), OptionsError::Unsupported("-c a".into()));
        assert_eq!(refusal("-c a=1 b"), OptionsError::Unsupported("b".into()));
        assert_eq!(refusal("-e"), OptionsError::Unsupported("-e".into()));
        assert_eq!(refusal("- --"), OptionsError::Unsupported("-".into()));
    }

    #[test]
    fn the_tenant_is_taken_out_and_the_rest_stays_as_it_was() {
        let mut options = StartupOptions::parse("-c tenant=x -c  search_path=a,\\ b -c Tenant=acme");
        assert_eq!(options.take("tenant").as_deref(), Some("acme"));
        assert_eq!(options.settings().unwrap(), vec![("search_path", "a, b")]);
        assert_eq!(options.text(), "-c search_path=a,\\ b");
        assert_eq!(options.take("tenant"), None);
        let others = [
            ("-d 5 --tenant=acme -ft", Some("acme"), "-d 5 -ft"),
            ("-ectenant=acme -j", Some("acme"), "-e -j"),
            ("-ec tenant=acme", Some("acme"), "-e"),
            // The argument of -d, and what is no switch at all.
            ("-d -ctenant=acme", None, "-d -ctenant=acme"),
            ("x -- -c tenant=acme", None, "x -- -c tenant=acme"),
        ];
        for (text, tenant, rest) in others {
            let mut options = StartupOptions::parse(text);
            assert_eq!((options.take("tenant").as_deref(), options.text().as_str()), (tenant, rest), "{text}");
        }
    }
}
