//! The table of contents of pg_dump's directory format, `toc.dat`: read, changed and written again, byte for byte the
//! same where nothing was changed.
//!
//! The format is pg_backup_archiver.c's (`WriteHead`, `WriteToc`): archive versions 1.14 (PostgreSQL 12 to 15), 1.15 (16)
//! and 1.16 (17 and 18). Others are refused.

use std::collections::BTreeMap;

use crate::lifecycle::Failure;

/// A relation that has a kind of table access method: column `relkind` of an entry.
const WITH_RELKIND: (u8, u8) = (1, 16);
const WITH_ALGORITHM: (u8, u8) = (1, 15);
const KNOWN: [(u8, u8); 3] = [(1, 14), WITH_ALGORITHM, WITH_RELKIND];
/// pg_dump writes no longer text than a field of PostgreSQL may have.
const LONGEST: usize = 1 << 30;

/// One object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Numbers and text before and behind the fields that are looked at, as they were.
    id: i64,
    had_dumper: i64,
    table_oid: Text,
    oid: Text,
    /// The object's name.
    pub tag: Text,
    /// Its kind: `TABLE`, `SEQUENCE SET`, `ACL`.
    pub kind: Text,
    section: i64,
    /// The SQL that makes it.
    pub definition: Text,
    drop: Text,
    copy: Text,
    pub schema: Text,
    tablespace: Text,
    access_method: Text,
    relkind: Option<i64>,
    pub owner: Text,
    with_oids: Text,
    dependencies: Vec<Text>,
    file: Text,
}

/// None is C's NULL.
pub type Text = Option<String>;

/// A whole `toc.dat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    head: Vec<u8>,
    version: (u8, u8),
    int_size: u8,
    /// Name of the database that was dumped.
    pub database: Text,
    /// PostgreSQL's version there, and pg_dump's.
    pub server: Text,
    pub dumper: Text,
    pub entries: Vec<Entry>,
}

impl Archive {
    pub fn read(bytes: &[u8]) -> Result<Archive, String> {
        let mut reader = Reader { bytes, at: 0, int_size: 4 };
        if reader.take(5)? != b"PGDMP" {
            return Err("it does not begin as pg_dump's files do".to_owned());
        }
        let version = (reader.byte()?, reader.byte()?);
        reader.byte()?;
        if !KNOWN.contains(&version) {
            let (major, minor) = version;
            return Err(format!("its format {major}.{minor} is not known here; known are 1.14 to 1.16"));
        }
        reader.int_size = reader.byte()?;
        if reader.int_size != 4 {
            return Err(format!("its numbers have {} bytes", reader.int_size));
        }
        let _offset_size = reader.byte()?;
        let _format = reader.byte()?;
        match version < WITH_ALGORITHM {
            true => _ = reader.number()?,
            false => _ = reader.byte()?,
        }
        // Second to year, and whether it was summer time.
        for _ in 0..7 {
            reader.number()?;
        }
        let head = bytes[..reader.at].to_vec();
        let (database, server, dumper) = (reader.text()?, reader.text()?, reader.text()?);
        let count = reader.number()?;
        let entries = (0..count).map(|_| entry(&mut reader, version)).collect::<Result<_, _>>()?;
        if reader.at != bytes.len() {
            return Err("there is something behind its end".to_owned());
        }
        Ok(Archive { head, version, int_size: reader.int_size, database, server, dumper, entries })
    }

    pub fn write(&self) -> Vec<u8> {
        let mut out = self.head.clone();
        for text in [&self.database, &self.server, &self.dumper] {
            put_text(&mut out, text);
        }
        put_number(&mut out, self.entries.len() as i64);
        for entry in &self.entries {
            put_entry(&mut out, entry);
        }
        out
    }

    /// Takes out what PostgreSQL keeps for itself and other majors do not know: Debian's 15.20 has `pg_attver` among a
    /// column's options, pg_dump writes it down, and pg_restore into 18 then refuses the whole table.
    pub fn clean(&mut self) {
        for entry in &mut self.entries {
            if let Some(definition) = entry.definition.as_mut().filter(|text| text.contains("pg_attver")) {
                *definition = without_attver(definition);
            }
        }
    }

    /// Rights on a schema come before those in it: a grant that was made by somebody else than the owner is made in that
    /// role, which has to be let into the schema first. pg_restore's processes would take them in any order.
    pub fn order_rights(&mut self) {
        let is_acl = |entry: &Entry| entry.kind.as_deref() == Some("ACL");
        let schema_of =
            |entry: &Entry| entry.tag.as_deref().and_then(|tag| Some(tag.strip_prefix("SCHEMA ")?.to_owned()));
        let of_schemas = self.entries.iter().filter(|entry| is_acl(entry));
        let first: BTreeMap<String, i64> = of_schemas.filter_map(|entry| Some((schema_of(entry)?, entry.id))).collect();
        for entry in self.entries.iter_mut().filter(|entry| is_acl(entry)) {
            let Some(id) = entry.schema.as_ref().and_then(|schema| first.get(schema)) else { continue };
            let id = Some(id.to_string());
            if !entry.dependencies.contains(&id) {
                entry.dependencies.push(id);
            }
        }
    }

    /// Values that sequences will be set to, with schema and name, and whether the value was used.
    pub fn sequences(&self) -> Result<Vec<(String, String, i64, bool)>, String> {
        let sets = self.entries.iter().filter(|entry| entry.kind.as_deref() == Some("SEQUENCE SET"));
        sets.map(|entry| {
            let (schema, name) = (entry.schema.clone().unwrap_or_default(), entry.tag.clone().unwrap_or_default());
            let strange = || format!("sequence {schema}.{name} is set by something else than setval");
            let definition = entry.definition.as_deref().unwrap_or_default().trim_end();
            let arguments = definition.strip_suffix(");").ok_or_else(strange)?;
            let (rest, called) = arguments.rsplit_once(", ").ok_or_else(strange)?;
            let (_, value) = rest.rsplit_once(", ").ok_or_else(strange)?;
            let value = value.trim_matches('\'').parse().map_err(|_| strange())?;
            Ok((schema.clone(), name.clone(), value, called == "true"))
        })
        .collect()
    }
}

/// Of a table's definition, the lines `ALTER TABLE … ALTER COLUMN … SET (…)` without the option.
fn without_attver(definition: &str) -> String {
    let mut out = String::with_capacity(definition.len());
    for line in definition.split_inclusive('\n') {
        let options = line.strip_prefix("ALTER ").and_then(|_| line.rsplit_once(" SET ("));
        let options = options.and_then(|(front, rest)| Some((front, rest.trim_end().strip_suffix(");")?)));
        match options {
            Some((front, options)) if options.contains("pg_attver") => {
                let kept: Vec<&str> = options.split(", ").filter(|option| !option.starts_with("pg_attver=")).collect();
                if !kept.is_empty() {
                    out += &format!("{front} SET ({});\n", kept.join(", "));
                }
            }
            _ => out += line,
        }
    }
    out
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    int_size: u8,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(length).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| "it ends too early".to_owned())?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    /// A sign, then the value with its lowest byte first.
    fn number(&mut self) -> Result<i64, String> {
        let negative = self.byte()? != 0;
        let bytes = self.take(self.int_size.into())?;
        let value = bytes.iter().rev().fold(0i64, |value, &byte| value << 8 | i64::from(byte));
        Ok(if negative { -value } else { value })
    }

    fn text(&mut self) -> Result<Text, String> {
        match self.number()? {
            length if length < 0 => Ok(None),
            length => {
                let length = usize::try_from(length).ok().filter(|&length| length < LONGEST);
                let bytes = self.take(length.ok_or("a text in it is too long")?)?;
                let text = String::from_utf8(bytes.to_vec());
                Ok(Some(text.map_err(|_| "a text in it is not UTF-8".to_owned())?))
            }
        }
    }
}

fn entry(reader: &mut Reader<'_>, version: (u8, u8)) -> Result<Entry, String> {
    Ok(Entry {
        id: reader.number()?,
        had_dumper: reader.number()?,
        table_oid: reader.text()?,
        oid: reader.text()?,
        tag: reader.text()?,
        kind: reader.text()?,
        section: reader.number()?,
        definition: reader.text()?,
        drop: reader.text()?,
        copy: reader.text()?,
        schema: reader.text()?,
        tablespace: reader.text()?,
        access_method: reader.text()?,
        relkind: if version >= WITH_RELKIND { Some(reader.number()?) } else { None },
        owner: reader.text()?,
        with_oids: reader.text()?,
        dependencies: {
            let mut dependencies = Vec::new();
            while let Some(dependency) = reader.text()? {
                dependencies.push(Some(dependency));
            }
            dependencies
        },
        file: reader.text()?,
    })
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    put_number(out, entry.id);
    put_number(out, entry.had_dumper);
    for text in [&entry.table_oid, &entry.oid, &entry.tag, &entry.kind] {
        put_text(out, text);
    }
    put_number(out, entry.section);
    let texts = [&entry.definition, &entry.drop, &entry.copy, &entry.schema, &entry.tablespace, &entry.access_method];
    for text in texts {
        put_text(out, text);
    }
    if let Some(relkind) = entry.relkind {
        put_number(out, relkind);
    }
    put_text(out, &entry.owner);
    put_text(out, &entry.with_oids);
    for dependency in &entry.dependencies {
        put_text(out, dependency);
    }
    put_text(out, &None);
    put_text(out, &entry.file);
}

fn put_number(out: &mut Vec<u8>, value: i64) {
    out.push(u8::from(value < 0));
    // What was read had four bytes, and a text's length is below 1 GiB.
    let magnitude = u32::try_from(value.unsigned_abs()).expect("four bytes");
    out.extend(magnitude.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &Text) {
    match text {
        None => put_number(out, -1),
        Some(text) => {
            put_number(out, text.len() as i64);
            out.extend(text.as_bytes());
        }
    }
}

/// The table of contents in a dump's folder.
pub fn load(path: &std::path::Path) -> Result<Archive, Failure> {
    let bytes = std::fs::read(path).map_err(Failure::file("read", path))?;
    Archive::read(&bytes).map_err(|why| Failure::Bundle { path: path.to_owned(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Archive {
        /// Of kind, owner and definition.
        pub fn of(entries: &[(&str, &str, &str)]) -> Archive {
            let entries = entries.iter().map(|entry| entry_of(entry, (1, 14))).collect();
            Archive { entries, ..sample((1, 14)) }
        }
    }

    fn text(text: &str) -> Text {
        Some(text.to_owned())
    }

    fn entry_of((kind, owner, definition): &(&str, &str, &str), version: (u8, u8)) -> Entry {
        Entry {
            id: 7,
            had_dumper: 0,
            table_oid: text("1259"),
            oid: text("16385"),
            tag: text("a_id_seq"),
            kind: text(kind),
            section: 3,
            definition: text(definition),
            drop: text(""),
            copy: None,
            schema: text("public"),
            tablespace: None,
            access_method: None,
            relkind: (version >= WITH_RELKIND).then_some(114),
            owner: text(owner),
            with_oids: text("false"),
            dependencies: vec![text("3")],
            file: text(""),
        }
    }

    fn sample(version: (u8, u8)) -> Archive {
        let mut head = b"PGDMP".to_vec();
        head.extend([version.0, version.1, 0, 4, 8, 3]);
        match version < WITH_ALGORITHM {
            true => put_number(&mut head, -1),
            false => head.push(1),
        }
        (0..7).for_each(|_| put_number(&mut head, 1));
        let table = "CREATE TABLE public.a (\n    id integer\n);\n\
             ALTER TABLE ONLY public.a ALTER COLUMN id SET (n_distinct=5, pg_attver=3);\n\
             ALTER TABLE ONLY public.a ALTER COLUMN b SET (pg_attver=3);\n\n";
        let entries = vec![
            entry_of(&("SEQUENCE SET", "o", "SELECT pg_catalog.setval('public.\"a, b\"', -42, true);\n\n\n"), version),
            entry_of(&("TABLE", "o", table), version),
        ];
        Archive { head, version, int_size: 4, database: text("acme"), server: text("15"), dumper: None, entries }
    }

    #[test]
    fn what_was_not_changed_is_written_as_it_was_read() {
        for version in KNOWN {
            let archive = sample(version);
            let bytes = archive.write();
            assert_eq!(Archive::read(&bytes).unwrap(), archive);
            for cut in 0..bytes.len() {
                assert!(Archive::read(&bytes[..cut]).is_err());
            }
        }
        let mut newer = sample((1, 16)).write();
        newer[6] = 17;
        assert!(Archive::read(&newer).unwrap_err().contains("format 1.17 is not known here"));
    }

    #[test]
    fn rights_within_a_schema_wait_for_those_on_it() {
        let mut archive =
            Archive::of(&[("ACL", "o", "of a table"), ("ACL", "o", "of its schema"), ("TABLE", "o", "t")]);
        archive.entries[1] = Entry { id: 9, tag: text("SCHEMA public"), schema: None, ..archive.entries[1].clone() };
        archive.order_rights();
        archive.order_rights();
        let waits: Vec<usize> = archive.entries.iter().map(|entry| entry.dependencies.len()).collect();
        assert_eq!(waits, [2, 1, 1]);
        assert_eq!(archive.entries[0].dependencies[1], text("9"));
    }

    #[test]
    fn values_of_sequences_are_read_and_options_of_debian_are_taken_out() {
        let mut archive = sample((1, 14));
        let expected = ("public".to_owned(), "a_id_seq".to_owned(), -42, true);
        assert_eq!(archive.sequences().unwrap(), [expected]);
        archive.clean();
        let cleaned = archive.entries[1].definition.as_deref().unwrap();
        assert_eq!(
            cleaned,
            "CREATE TABLE public.a (\n    id integer\n);\n\
             ALTER TABLE ONLY public.a ALTER COLUMN id SET (n_distinct=5);\n\n"
        );
        let mut strange = sample((1, 14));
        strange.entries[0].definition = Some("SELECT 1;".to_owned());
        assert!(strange.sequences().is_err());
    }
}
