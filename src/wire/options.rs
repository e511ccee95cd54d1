//! The startup parameter `options`: command-line switches that set parameters (PostgreSQL manual, 20.1.4 and `postgres`).

use thiserror::Error;

/// Parameters set by `-c name=value` and `--name=value`, in the order given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StartupOptions {
    pub settings: Vec<(String, String)>,
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
    ///
    /// # Errors
    /// A switch that sets no parameter.
    pub fn parse(options: &str) -> Result<Self, OptionsError> {
        let mut settings = Vec::new();
        let mut words = split(options).into_iter();
        while let Some(word) = words.next() {
            let assignment = match word.strip_prefix("--") {
                Some(long) => long.to_owned(),
                None => match word.strip_prefix("-c") {
                    Some("") => words.next().ok_or(OptionsError::MissingValue)?,
                    Some(attached) => attached.to_owned(),
                    None => return Err(OptionsError::Unsupported(word)),
                },
            };
            let Some((name, value)) = assignment.split_once('=') else {
                return Err(OptionsError::Unsupported(word));
            };
            settings.push((name.replace('-', "_"), value.to_owned()));
        }
        Ok(StartupOptions { settings })
    }

    /// Takes out every setting of `name` (in any case) and gives the last value.
    pub fn take(&mut self, name: &str) -> Option<String> {
        let mut last = None;
        self.settings.retain(|(key, value)| {
            let wanted = key.eq_ignore_ascii_case(name);
            if wanted {
                last = Some(value.clone());
            }
            !wanted
        });
        last
    }
}

/// PostgreSQL's `pg_split_opts`.
fn split(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = options.chars();
    while let Some(character) = characters.next() {
        match character {
            ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c' => words.extend(word.take()),
            '\\' => word.get_or_insert_default().extend(characters.next()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Vec<(String, String)> {
        StartupOptions::parse(text).unwrap().settings
    }

    #[test]
    fn every_spelling_sets() {
        let expected = vec![("a".to_owned(), "1".to_owned()), ("b_c".to_owned(), "2 3".to_owned())];
        assert_eq!(settings("-c a=1 --b-c=2\\ 3"), expected);
        assert_eq!(settings("  -ca=1\t-c b_c=2\\ 3 "), expected);
        assert_eq!(settings(""), vec![]);
    }

    #[test]
    fn what_sets_nothing_is_refused() {
        assert_eq!(StartupOptions::parse("-c"), Err(OptionsError::MissingValue));
        assert_eq!(StartupOptions::parse("-d 5"), Err(OptionsError::Unsupported("-d".into())));
        assert_eq!(StartupOptions::parse("-c a"), Err(OptionsError::Unsupported("-c".into())));
    }

    #[test]
    fn the_tenant_is_taken_out() {
        let mut options = StartupOptions::parse("-c tenant=x -c search_path=a,b -c Tenant=acme").unwrap();
        assert_eq!(options.take("tenant").as_deref(), Some("acme"));
        assert_eq!(options.settings, vec![("search_path".to_owned(), "a,b".to_owned())]);
        assert_eq!(options.take("tenant"), None);
    }
}
