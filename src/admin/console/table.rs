//! Answers as tables: columns with PostgreSQL's types, rows, and their messages in text and binary form.

use bytes::{BufMut, BytesMut};

use crate::wire::messages;
use crate::wire::tag::backend;

/// A column's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Int4,
    Int8,
    Numeric,
}

impl Kind {
    /// Oid and length as in `pg_type`.
    fn of_type(self) -> (u32, i16) {
        match self {
            Kind::Text => (25, -1),
            Kind::Int4 => (23, 4),
            Kind::Int8 => (20, 8),
            Kind::Numeric => (1700, -1),
        }
    }
}

pub(super) type Columns = &'static [(&'static str, Kind)];
pub(super) type Row = Vec<Value>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    Text(String),
    Number(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::Text(text)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Value::Number(flag.into())
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Null, Into::into)
    }
}

macro_rules! number {
    ($($type:ty),*) => {$(
        impl From<$type> for Value {
            fn from(number: $type) -> Self {
                Value::Number(i64::try_from(number).unwrap_or(i64::MAX))
            }
        }
    )*};
}

number!(u16, u32, i32, u64, i64, u128, usize);

/// A row of values that become [`Value`]s.
macro_rules! row {
    ($($value:expr),* $(,)?) => { vec![$(crate::admin::console::table::Value::from($value)),*] };
}
pub(super) use row;

/// How a client wants a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    Binary,
}

/// The formats of a Bind message: none, one for all, or one for each.
#[derive(Debug, Clone, Default)]
pub(super) struct Formats(pub Vec<Format>);

impl Formats {
    fn of(&self, column: usize) -> Format {
        match &self.0[..] {
            [] => Format::Text,
            [all] => *all,
            each => each.get(column).copied().unwrap_or(Format::Text),
        }
    }
}

/// RowDescription (PostgreSQL manual, 55.7).
pub(super) fn row_description(out: &mut BytesMut, columns: Columns, formats: &Formats) {
    let mut payload = BytesMut::new();
    payload.put_u16(columns.len() as u16);
    for (at, (name, kind)) in columns.iter().enumerate() {
        let (oid, length) = kind.of_type();
        payload.put_slice(name.as_bytes());
        payload.put_u8(0);
        payload.put_u32(0);
        payload.put_u16(0);
        payload.put_u32(oid);
        payload.put_i16(length);
        payload.put_i32(-1);
        payload.put_u16(u16::from(formats.of(at) == Format::Binary));
    }
    messages::framed(out, backend::ROW_DESCRIPTION, &[&payload]);
}

/// DataRow.
pub(super) fn data_row(out: &mut BytesMut, columns: Columns, row: &[Value], formats: &Formats) {
    let mut payload = BytesMut::new();
    payload.put_u16(columns.len() as u16);
    for (at, ((_, kind), value)) in columns.iter().zip(row).enumerate() {
        let field = match (value, formats.of(at)) {
            (Value::Null, _) => {
                payload.put_i32(-1);
                continue;
            }
            (Value::Text(text), _) => text.replace('\0', " ").into_bytes(),
            (Value::Number(number), Format::Text) => number.to_string().into_bytes(),
            (Value::Number(number), Format::Binary) => binary(*number, *kind),
        };
        payload.put_u32(field.len() as u32);
        payload.put_slice(&field);
    }
    messages::framed(out, backend::DATA_ROW, &[&payload]);
}

fn binary(number: i64, kind: Kind) -> Vec<u8> {
    match kind {
        Kind::Int4 => i32::try_from(number).unwrap_or(i32::MAX).to_be_bytes().to_vec(),
        Kind::Int8 => number.to_be_bytes().to_vec(),
        Kind::Numeric => numeric(number.unsigned_abs()),
        Kind::Text => number.to_string().into_bytes(),
    }
}

/// `numeric_send`: digits of base 10,000, the first with its weight, no sign, no scale.
fn numeric(mut number: u64) -> Vec<u8> {
    let mut digits = Vec::new();
    while number > 0 {
        digits.push((number % 10_000) as u16);
        number /= 10_000;
    }
    let count = digits.len() as u16;
    let head = [count, count.saturating_sub(1), 0, 0];
    head.into_iter().chain(digits.into_iter().rev()).flat_map(u16::to_be_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_postgresqls_binary_form() {
        assert_eq!(numeric(0), [0; 8]);
        // SELECT numeric_send(12345678): three digits 1234, 5678 of base 10,000.
        assert_eq!(numeric(12_345_678), [0, 2, 0, 1, 0, 0, 0, 0, 4, 210, 22, 46]);
        assert_eq!(binary(7, Kind::Int4), [0, 0, 0, 7]);
        assert_eq!(binary(-1, Kind::Int8), [255; 8]);
    }

    #[test]
    fn a_row_is_framed_as_the_manual_says() {
        let columns: Columns = &[("a", Kind::Text), ("b", Kind::Int4), ("c", Kind::Text)];
        let (mut out, formats) = (BytesMut::new(), Formats(vec![Format::Text, Format::Binary, Format::Text]));
        let row: Row = row!["x", 5, Option::<&str>::None];
        data_row(&mut out, columns, &row, &formats);
        assert_eq!(&out[..], b"D\0\0\0\x17\0\x03\0\0\0\x01x\0\0\0\x04\0\0\0\x05\xff\xff\xff\xff");
        out.clear();
        row_description(&mut out, &columns[..1], &Formats::default());
        assert_eq!(&out[..], b"T\0\0\0\x1a\0\x01a\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0");
    }
}
