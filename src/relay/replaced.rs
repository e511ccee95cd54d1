//! Statements that stand for others in a simple query: the client is told of its own.

use crate::sql::Reset;

/// See the module.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    /// The text is in UTF-8; else a byte is taken for a character.
    utf8: bool,
    stands: Vec<Stand>,
    places: Vec<Place>,
}

/// One of the client's statements, and what stands for it.
#[derive(Debug, PartialEq, Eq)]
struct Stand {
    /// How many statements of the client's are before it.
    statement: usize,
    /// How many statements stand for it before the last.
    hidden: usize,
    /// The command tag that the client expects.
    tag: &'static str,
}

/// What the client is told when a statement was completed.
#[derive(Debug, PartialEq, Eq)]
pub enum Completed {
    AsItSays,
    As(&'static str),
    Nothing,
}

/// Where a statement stands, in characters from 0: in the client's text, and what replaces it in the backend's.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    start: usize,
    end: usize,
    new_start: usize,
    new_end: usize,
}

impl Replaced {
    pub fn new(utf8: bool) -> Replaced {
        Replaced { utf8, ..Replaced::default() }
    }

    /// The next reset of `text` is replaced by so many characters, which are one statement and so many more before it.
    pub fn push(&mut self, text: &[u8], reset: &Reset, length: usize, hidden: usize) {
        self.stands.push(Stand { statement: reset.statement, hidden, tag: reset.tag });
        let (start, end) = (self.characters(&text[..reset.range.start]), self.characters(&text[..reset.range.end]));
        let new_start = self.places.last().map_or(start, |last| last.new_end + start - last.end);
        self.places.push(Place { start, end, new_start, new_end: new_start + length });
    }

    fn characters(&self, text: &[u8]) -> usize {
        // Bytes that go on with a character begin with the bits 10.
        text.iter().filter(|byte| !self.utf8 || **byte & 0xc0 != 0x80).count()
    }

    /// The next statement was completed.
    pub fn completed(&mut self) -> Completed {
        let completed = match self.stands.first_mut() {
            Some(Stand { statement: 0, hidden, .. }) if *hidden > 0 => {
                *hidden -= 1;
                return Completed::Nothing;
            }
            Some(Stand { statement: 0, tag, .. }) => Completed::As(tag),
            _ => Completed::AsItSays,
        };
        self.stands.retain(|stand| stand.statement > 0);
        self.stands.iter_mut().for_each(|stand| stand.statement -= 1);
        completed
    }

    pub fn first(&self) -> Option<&'static str> {
        self.stands.first().map(|stand| stand.tag)
    }

    /// An error's or notice's payload with the place in the client's text (PostgreSQL manual, 55.8: field P); none when
    /// there is nothing to change.
    pub fn with_own_position(&self, payload: &[u8]) -> Option<Vec<u8>> {
        let field = payload.split_inclusive(|byte| *byte == 0).find(|field| field.first() == Some(&b'P'))?;
        let at = field.as_ptr().addr() - payload.as_ptr().addr();
        let told: usize = str::from_utf8(&field[1..]).ok()?.trim_end_matches('\0').parse().ok()?;
        let own = self.position(told).filter(|own| *own != told)?;
        Some([&payload[..at], format!("P{own}\0").as_bytes(), &payload[at + field.len()..]].concat())
    }

    /// Both count characters from 1.
    fn position(&self, told: usize) -> Option<usize> {
        let at = told.checked_sub(1)?;
        let Some(last) = self.places.iter().take_while(|place| place.new_start <= at).last() else { return Some(told) };
        let behind = at.checked_sub(last.new_end);
        Some(1 + behind.map_or(last.start, |behind| last.end + behind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_what_was_sent_are_told_as_places_in_what_the_client_wrote() {
        let text = "SELECT 'ä'; RESET a; SELECT 1; RESET b; SELEC".as_bytes();
        let mut replaced = Replaced::new(true);
        let reset =
            |start: usize| Reset { range: start..start + 7, statement: 0, name: None, local: false, tag: "RESET" };
        replaced.push(text, &reset(13), 20, 0);
        replaced.push(text, &reset(32), 30, 0);
        let own: Vec<_> =
            [1, 12, 13, 32, 33, 35, 44, 45, 74, 75, 77].map(|told| replaced.position(told).unwrap()).into();
        assert_eq!(own, [1, 12, 13, 13, 20, 22, 31, 32, 32, 39, 41]);
        let error = b"SERROR\0C42601\0P75\0Fx\0\0";
        assert_eq!(replaced.with_own_position(error).unwrap(), b"SERROR\0C42601\0P39\0Fx\0\0");
        assert_eq!(replaced.with_own_position(b"SERROR\0P3\0\0"), None);
        assert_eq!(replaced.with_own_position(b"SERROR\0\0"), None);
    }
}
