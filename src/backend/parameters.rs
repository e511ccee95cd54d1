//! What a backend reports about itself by ParameterStatus.

use crate::wire::cstr;

/// Names and values as the backend wrote them, in the order of their first report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Parameters(Vec<(Text, Text)>);

/// In whatever encoding it came.
type Text = Box<[u8]>;

impl Parameters {
    /// Takes over the payload of a ParameterStatus; a malformed one is passed over.
    pub fn note(&mut self, payload: &[u8]) {
        let Some((name, rest)) = cstr(payload) else { return };
        let Some((value, _)) = cstr(rest) else { return };
        match self.0.iter_mut().find(|(known, _)| **known == *name) {
            Some((_, known)) => *known = value.into(),
            None => self.0.push((name.into(), value.into())),
        }
    }

    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.0.iter().find(|(known, _)| **known == *name).map(|(_, value)| &**value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_the_backends() {
        let mut parameters = Parameters::default();
        for payload in [&b"b\x001\0"[..], b"a\x002\0", b"broken", b"b\x003\0"] {
            parameters.note(payload);
        }
        assert_eq!(parameters.iter().collect::<Vec<_>>(), [(&b"b"[..], &b"3"[..]), (b"a", b"2")]);
        assert_eq!((parameters.get(b"b"), parameters.get(b"c")), (Some(&b"3"[..]), None));
    }
}
