//! Answers put together: equal columns, and the tenant's id before them. Pure.

use std::collections::BTreeMap;

use tokio_postgres::types::Type;

use super::super::Failure;
use super::{Answers, Outcome};

/// As text, as PostgreSQL writes it.
pub type Row = Vec<Option<String>>;

/// The column that says whose row it is.
pub const TENANT: &str = "tenant";

/// What a value is to those who read the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Int32,
    Int64,
    Float32,
    Float64,
    Text,
}

/// A column of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// A type that every PostgreSQL has; `text` for those of the tenant's own.
    pub sql_type: String,
}

/// Types that mean the same on every server, and whose text any of them reads.
const KNOWN: [&str; 26] = [
    "bool",
    "int2",
    "int4",
    "int8",
    "float4",
    "float8",
    "numeric",
    "text",
    "varchar",
    "bpchar",
    "date",
    "time",
    "timetz",
    "timestamp",
    "timestamptz",
    "interval",
    "uuid",
    "json",
    "jsonb",
    "bytea",
    "inet",
    "cidr",
    "macaddr",
    "bit",
    "varbit",
    "oid",
];

impl Column {
    pub fn of(column: &tokio_postgres::Column) -> Column {
        let of_postgres = Type::from_oid(column.type_().oid()).map(|it| it.name().to_owned());
        let name = of_postgres.filter(|name| KNOWN.contains(&name.strip_prefix('_').unwrap_or(name)));
        Column { name: column.name().to_owned(), sql_type: name.unwrap_or_else(|| "text".to_owned()) }
    }

    pub fn text(name: &str) -> Column {
        Column { name: name.to_owned(), sql_type: "text".to_owned() }
    }

    pub fn kind(&self) -> Kind {
        match self.sql_type.as_str() {
            "bool" => Kind::Bool,
            "int2" | "int4" => Kind::Int32,
            "int8" | "oid" => Kind::Int64,
            "float4" => Kind::Float32,
            "float8" => Kind::Float64,
            _ => Kind::Text,
        }
    }
}

/// A result.
#[derive(Debug, Default)]
pub struct Table {
    pub columns: Vec<Column>,
    pub rows: Vec<Row>,
}

impl Table {
    /// For forms where a column is found by its name.
    ///
    /// # Errors
    /// A name occurs twice.
    pub fn check_names(&self) -> Result<(), Failure> {
        let twice = |(at, column): &(usize, &Column)| self.columns[..*at].iter().any(|other| other.name == column.name);
        match self.columns.iter().enumerate().find(twice) {
            None => Ok(()),
            Some((_, column)) => {
                let remedy = "name them apart with AS";
                Err(Failure::Order(format!("the result has two columns {:?}: {remedy}", column.name)))
            }
        }
    }
}

/// The rows of all who answered with the same columns as most did, ordered by tenant; the others have failed.
pub(super) fn together(answers: Answers, outcomes: &mut BTreeMap<String, Outcome>) -> Result<Table, Failure> {
    let mut shapes: Vec<(&Vec<Column>, usize)> = Vec::new();
    for answer in answers.values().flatten() {
        match shapes.iter_mut().find(|(columns, _)| **columns == answer.columns) {
            Some((_, count)) => *count += 1,
            None => shapes.push((&answer.columns, 1)),
        }
    }
    // Of equally many the first.
    let most = shapes.iter().map(|(_, count)| *count).max();
    let shape = shapes.iter().find(|(_, count)| Some(*count) == most).map(|(columns, _)| (*columns).clone());
    let shape = shape.unwrap_or_default();
    if shape.iter().any(|column| column.name == TENANT) {
        let why = "the query has a column \"tenant\" itself: name it otherwise with AS";
        return Err(Failure::Order(why.to_owned()));
    }
    let mut rows = Vec::new();
    for (tenant, answer) in answers {
        let outcome = match answer {
            Ok(answer) if answer.columns == shape => {
                let count = answer.rows.len();
                rows.extend(answer.rows.into_iter().map(|row| [vec![Some(tenant.clone())], row].concat()));
                Outcome::Answered { rows: count, cut: answer.cut }
            }
            Ok(answer) => Outcome::Failed(format!(
                "its answer has the columns ({}), most have ({})",
                listed(&answer.columns),
                listed(&shape)
            )),
            Err(why) => Outcome::Failed(why),
        };
        outcomes.insert(tenant, outcome);
    }
    let columns = [vec![Column::text(TENANT)], shape].concat();
    Ok(Table { columns, rows })
}

fn listed(columns: &[Column]) -> String {
    columns.iter().map(|column| format!("{} {}", column.name, column.sql_type)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::read::Answer;
    use super::*;

    fn answer(columns: &[(&str, &str)], value: &str) -> Result<Answer, String> {
        let columns =
            columns.iter().map(|(name, sql_type)| Column { name: (*name).into(), sql_type: (*sql_type).into() });
        Ok(Answer { columns: columns.collect(), rows: vec![vec![Some(value.to_owned())]], cut: false })
    }

    #[test]
    fn the_columns_of_most_are_the_results() {
        let mut answers = Answers::new();
        answers.insert("a".into(), answer(&[("n", "int4")], "1"));
        answers.insert("b".into(), answer(&[("n", "int8")], "2"));
        answers.insert("c".into(), answer(&[("n", "int8")], "3"));
        answers.insert("d".into(), Err("no".into()));
        let mut outcomes = BTreeMap::new();
        let table = together(answers, &mut outcomes).unwrap();
        assert_eq!(table.rows, [[Some("b".into()), Some("2".into())], [Some("c".into()), Some("3".into())]]);
        let failed = |tenant: &str| match &outcomes[tenant] {
            Outcome::Failed(why) => why.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(failed("a"), "its answer has the columns (n int4), most have (n int8)");
        assert_eq!(failed("d"), "no");
        assert!(table.check_names().is_ok());
    }

    #[test]
    fn a_column_of_our_own_name_is_refused() {
        let answers = Answers::from([("a".to_owned(), answer(&[("tenant", "text")], "x"))]);
        let error = together(answers, &mut BTreeMap::new()).unwrap_err();
        assert!(error.to_string().contains("name it otherwise"), "{error}");
    }
}
