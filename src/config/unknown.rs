//! Words that nobody knows, and the known one that was probably meant.

use super::document::join;

/// Below this similarity (0 to 1, Jaro-Winkler) a suggestion confuses more than it helps.
const ALIKE: f64 = 0.75;

/// The candidate most like `word`, when one is alike at all.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&word, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// The message for a key in `table` that is none of `known`.
pub(super) fn key(table: &str, key: &str, known: &[&str]) -> String {
    match nearest(key, known.iter().copied()) {
        Some(near) => format!("unknown key; did you mean {}?", join(table, near)),
        None => format!("unknown key; known here: {}", list(known, "and")),
    }
}

/// The message for a value that is none of `known`.
pub(super) fn value(value: &str, known: &[&str]) -> String {
    format!("unknown value {value:?}; use {}", list(known, "or"))
}

/// The message for a name that refers to nothing, e.g. `no instance "pg2"; did you mean "pg1"?`.
pub(super) fn name<'a>(what: &str, name: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    if let Some(near) = nearest(name, known.clone()) {
        return format!("no {what} {name:?}; did you mean {near:?}?");
    }
    // Enough to choose from; ten thousand tenants are not.
    let some: Vec<&str> = known.into_iter().take(10).collect();
    match some.as_slice() {
        [] => format!("no {what} {name:?}; there is none at all"),
        some => format!("no {what} {name:?}; there are {}", some.join(", ")),
    }
}

fn list(words: &[&str], last: &str) -> String {
    match words {
        [] => "nothing".to_owned(),
        [word] => (*word).to_owned(),
        [first @ .., end] => format!("{} {last} {end}", first.join(", ")),
    }
}
