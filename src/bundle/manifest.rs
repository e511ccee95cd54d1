//! What a bundle says of itself: where it comes from, and what has to be there when it was restored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Of bundles that are written here.
pub const FORMAT: u32 = 1;

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    /// pgtenant's version.
    pub pgtenant: String,
    /// When the snapshot was taken, RFC 3339.
    pub made: String,
    pub tenant: TenantRecord,
    pub source: Source,
    pub database: Database,
    pub roles: Vec<Role>,
    pub contents: Contents,
    /// Of `dump/`, as pg_dump wrote them.
    pub files: Vec<File>,
}

/// The tenant's record without what is secret and without what belongs to its place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TenantRecord {
    pub id: String,
    /// Where it has to stay.
    pub region: Option<String>,
    pub tier: Option<String>,
    /// `[pool]`, `[quota]` and `allow`.
    pub record: toml::Table,
    /// Keys that were left out: secrets, and what refers to other files.
    pub left_out: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    pub instance: String,
    pub region: Option<String>,
    pub system_identifier: Option<String>,
    /// `server_version`, and `server_version_num` as in 150018.
    pub server: String,
    pub server_number: u32,
    pub pg_dump: String,
    pub pg_dump_major: u32,
}

/// As `CREATE DATABASE` needs it, and what `ALTER DATABASE … SET` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Database {
    pub name: String,
    pub encoding: String,
    /// `libc`, `icu` or `builtin`.
    pub locale_provider: String,
    pub collate: String,
    pub ctype: String,
    /// Of ICU and the built-in provider.
    pub locale: Option<String>,
    pub icu_rules: Option<String>,
    pub collation_version: Option<String>,
    pub settings: Vec<Setting>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// None: for everybody.
    pub role: Option<String>,
    pub name: String,
    pub value: String,
}

/// A role that the database needs, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Role {
    pub name: String,
    pub part: Part,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Owns the database.
    Owner,
    /// `<tenant>_app` and `<tenant>_ro`, as `tenant create` makes them.
    App,
    ReadOnly,
    /// A superuser.
    Instance,
    /// Another one.
    Other,
}

/// What a database holds, as it can be counted and added up on every major.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Contents {
    pub tables: Vec<Table>,
    pub sequences: Vec<Sequence>,
    pub large_objects: LargeObjects,
    pub extensions: Vec<Extension>,
    /// By kind: views, indexes, policies, comments and so on.
    pub objects: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Table {
    pub schema: String,
    pub name: String,
    /// On the disk, with TOAST, without indexes.
    pub bytes: u64,
    pub rows: u64,
    pub checksum: Option<Checksum>,
}

/// Of all rows, in whatever order they are: the exclusive or and the sum of their hashes, as decimal numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksum {
    pub xor: String,
    pub sum: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequence {
    pub schema: String,
    pub name: String,
    pub value: i64,
    pub is_called: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LargeObjects {
    pub count: u64,
    pub checksum: Option<Checksum>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    pub name: String,
    pub version: String,
    pub schema: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
}

impl Manifest {
    pub fn rows(&self) -> u64 {
        self.contents.tables.iter().map(|table| table.rows).sum()
    }
}

impl Table {
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}
