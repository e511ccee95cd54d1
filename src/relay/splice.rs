//! Forwarding with changes: what passes unchanged is not copied, until the first change asks for it.

/// Bytes for what is put in, in a copy: names of statements, seldom more.
const ROOM: usize = 128;

/// Bytes on their way through: either a prefix of the input as it came, or a rewritten copy.
#[derive(Debug)]
pub struct Splice<'a> {
    input: &'a [u8],
    /// While nothing was changed: the input up to here goes on as it is.
    kept: usize,
    rewritten: Option<Vec<u8>>,
}

impl<'a> Splice<'a> {
    pub fn new(input: &'a [u8]) -> Self {
        Splice { input, kept: 0, rewritten: None }
    }

    /// Lets `input[from..to]` pass. Ranges come in ascending order.
    #[inline]
    pub fn pass(&mut self, from: usize, to: usize) {
        if self.rewritten.is_none() && from == self.kept {
            self.kept = to;
        } else {
            let range = &self.input[from..to];
            self.copy().extend_from_slice(range);
        }
    }

    /// Puts other bytes in.
    pub fn insert(&mut self) -> &mut Vec<u8> {
        self.copy()
    }

    fn copy(&mut self) -> &mut Vec<u8> {
        self.rewritten.get_or_insert_with(|| {
            let mut copy = Vec::with_capacity(self.input.len() + ROOM);
            copy.extend_from_slice(&self.input[..self.kept]);
            copy
        })
    }

    /// What goes on.
    pub fn bytes(&self) -> &[u8] {
        match &self.rewritten {
            Some(rewritten) => rewritten,
            None => &self.input[..self.kept],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unchanged_input_is_not_copied() {
        let mut splice = Splice::new(b"abcdef");
        splice.pass(0, 2);
        splice.pass(2, 4);
        assert_eq!(splice.bytes(), b"abcd");
        assert!(splice.rewritten.is_none());
    }

    #[test]
    fn gaps_and_insertions() {
        let mut splice = Splice::new(b"abcdef");
        splice.pass(0, 1);
        splice.insert().extend_from_slice(b"--");
        splice.pass(3, 5);
        assert_eq!(splice.bytes(), b"a--de");
        let mut splice = Splice::new(b"abcdef");
        splice.pass(2, 4);
        assert_eq!(splice.bytes(), b"cd");
    }
}
