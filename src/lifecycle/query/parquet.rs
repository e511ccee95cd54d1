//! A result as a Parquet file: every column optional; numbers and flags as such, all else as UTF-8 text.

use std::sync::Arc;

use parquet::basic::{LogicalType, Repetition, Type as Physical};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int32Type, Int64Type};
use parquet::errors::Result;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::{Type, TypePtr};

use super::super::Failure;
use super::table::{Column, Kind, Table};

/// The file's bytes.
///
/// # Errors
/// The library refuses it.
pub fn written(table: &Table) -> std::result::Result<Vec<u8>, Failure> {
    file(table).map_err(|error| Failure::Order(format!("no Parquet file can be made of the result: {error}")))
}

fn file(table: &Table) -> Result<Vec<u8>> {
    let fields = table.columns.iter().map(field).collect::<Result<Vec<_>>>()?;
    let schema = Arc::new(Type::group_type_builder("schema").with_fields(fields).build()?);
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::default())?;
    let mut group = writer.next_row_group()?;
    for (at, column) in table.columns.iter().enumerate() {
        let Some(mut column_writer) = group.next_column()? else { break };
        let values = table.rows.iter().map(|row| row[at].as_deref());
        let to = &mut column_writer;
        match column.kind() {
            Kind::Bool => put::<BoolType>(to, values, |text| Some(text == "t"))?,
            Kind::Int32 => put::<Int32Type>(to, values, |text| text.parse().ok())?,
            Kind::Int64 => put::<Int64Type>(to, values, |text| text.parse().ok())?,
            Kind::Float32 => put::<FloatType>(to, values, float)?,
            Kind::Float64 => put::<DoubleType>(to, values, float)?,
            Kind::Text => put::<ByteArrayType>(to, values, |text| Some(ByteArray::from(text)))?,
        }
        column_writer.close()?;
    }
    group.close()?;
    writer.close()?;
    Ok(bytes)
}

fn field(column: &Column) -> Result<TypePtr> {
    let (physical, logical) = match column.kind() {
        Kind::Bool => (Physical::BOOLEAN, None),
        Kind::Int32 => (Physical::INT32, None),
        Kind::Int64 => (Physical::INT64, None),
        Kind::Float32 => (Physical::FLOAT, None),
        Kind::Float64 => (Physical::DOUBLE, None),
        Kind::Text => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
    };
    let builder = Type::primitive_type_builder(&column.name, physical);
    builder.with_repetition(Repetition::OPTIONAL).with_logical_type(logical).build().map(Arc::new)
}

/// PostgreSQL writes `Infinity` and `NaN`, which Rust reads.
fn float<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

/// Definition level 1 is a value, 0 none.
fn put<'a, T: DataType>(
    writer: &mut SerializedColumnWriter<'_>,
    values: impl Iterator<Item = Option<&'a str>>,
    read: impl Fn(&str) -> Option<T::T>,
) -> Result<()> {
    let values: Vec<Option<T::T>> = values.map(|value| value.and_then(&read)).collect();
    let levels: Vec<i16> = values.iter().map(|value| i16::from(value.is_some())).collect();
    let there: Vec<T::T> = values.into_iter().flatten().collect();
    writer.typed::<T>().write_batch(&there, Some(&levels), None).map(drop)
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader, SerializedFileReader};

    use super::*;

    #[test]
    fn it_reads_back_as_it_was() {
        let column = |name: &str, sql_type: &str| Column { name: name.into(), sql_type: sql_type.into() };
        let columns = vec![column("n", "int8"), column("x", "float4"), column("ok", "bool"), column("t", "text")];
        let cells = |cells: [Option<&str>; 4]| cells.map(|cell| cell.map(str::to_owned)).to_vec();
        let rows = vec![cells([Some("-9"), Some("Infinity"), Some("f"), None]), cells([None, None, None, Some("ö")])];
        let bytes = written(&Table { columns, rows }).unwrap();
        let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).unwrap();
        let rows: Vec<String> = reader.get_row_iter(None).unwrap().map(|row| row.unwrap().to_string()).collect();
        assert_eq!(rows, ["{n: -9, x: inf, ok: false, t: null}", "{n: null, x: null, ok: null, t: \"ö\"}"]);
    }
}
