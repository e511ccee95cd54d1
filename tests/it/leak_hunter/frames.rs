//! Frontend messages as values: they can be sent, printed, and asked what answers they get.

use std::fmt;

use crate::harness::frontend;

#[derive(Clone, PartialEq, Eq)]
pub enum Frame {
    Query(String),
    Parse { name: String, sql: String },
    Bind { portal: String, name: String, values: Vec<Option<String>> },
    DescribeStatement(String),
    DescribePortal(String),
    Execute { portal: String, rows: u32 },
    CloseStatement(String),
    ClosePortal(String),
    Sync,
    Flush,
    CopyData(String),
    CopyDone,
    CopyFail(String),
    Call { function: u32, arguments: Vec<String> },
}

impl Frame {
    pub fn query(sql: impl Into<String>) -> Frame {
        Frame::Query(sql.into())
    }

    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Frame::Query(sql) => frontend::query(sql),
            Frame::Parse { name, sql } => frontend::parse(name, sql),
            Frame::Bind { portal, name, values } => {
                frontend::bind(portal, name, &values.iter().map(Option::as_deref).collect::<Vec<_>>())
            }
            Frame::DescribeStatement(name) => frontend::describe_statement(name),
            Frame::DescribePortal(name) => frontend::describe_portal(name),
            Frame::Execute { portal, rows } => frontend::execute(portal, *rows),
            Frame::CloseStatement(name) => frontend::close_statement(name),
            Frame::ClosePortal(name) => frontend::close_portal(name),
            Frame::Sync => frontend::sync(),
            Frame::Flush => frontend::flush(),
            Frame::CopyData(data) => frontend::copy_data(data.as_bytes()),
            Frame::CopyDone => frontend::copy_done(),
            Frame::CopyFail(reason) => frontend::copy_fail(reason),
            Frame::Call { function, arguments } => {
                frontend::function_call(*function, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
            }
        }
    }

    /// Whether ReadyForQuery ends its answer.
    pub fn gets_ready(&self) -> bool {
        matches!(self, Frame::Query(_) | Frame::Sync | Frame::Call { .. })
    }

    /// Whether an answer of its own ends with a message of [`ENDS`], when it succeeds.
    pub fn gets_answer(&self) -> bool {
        !matches!(self, Frame::Sync | Frame::Flush | Frame::CopyData(_) | Frame::CopyDone | Frame::CopyFail(_))
    }

    /// The SQL that it brings.
    pub fn sql(&self) -> Option<&str> {
        match self {
            Frame::Query(sql) | Frame::Parse { sql, .. } => Some(sql),
            _ => None,
        }
    }
}

/// Types of the messages that end the answer to one message of the extended protocol.
pub const ENDS: &[u8] = b"123nTCIsE";

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Frame::Query(sql) => write!(f, "Query {sql:?}"),
            Frame::Parse { name, sql } => write!(f, "Parse {name:?} {sql:?}"),
            Frame::Bind { portal, name, values } => {
                let values: Vec<_> = values.iter().map(|value| value.as_deref().unwrap_or("NULL")).collect();
                write!(f, "Bind portal {portal:?} statement {name:?} {values:?}")
            }
            Frame::DescribeStatement(name) => write!(f, "Describe statement {name:?}"),
            Frame::DescribePortal(name) => write!(f, "Describe portal {name:?}"),
            Frame::Execute { portal, rows } => write!(f, "Execute portal {portal:?} rows {rows}"),
            Frame::CloseStatement(name) => write!(f, "Close statement {name:?}"),
            Frame::ClosePortal(name) => write!(f, "Close portal {name:?}"),
            Frame::Sync => f.write_str("Sync"),
            Frame::Flush => f.write_str("Flush"),
            Frame::CopyData(data) => write!(f, "CopyData {data:?}"),
            Frame::CopyDone => f.write_str("CopyDone"),
            Frame::CopyFail(reason) => write!(f, "CopyFail {reason:?}"),
            Frame::Call { function, arguments } => write!(f, "FunctionCall {function} {arguments:?}"),
        }
    }
}
