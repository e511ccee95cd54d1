//! A folder of migrations: what its files are called, what is in them, and their checksums.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::super::Failure;
use super::script::{Script, Section, sections};

/// All migrations of a folder, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Folder {
    pub path: PathBuf,
    pub migrations: Vec<Migration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    pub version: i64,
    pub name: String,
    pub file: PathBuf,
    /// SHA-256 of the way up, in hexadecimal; line breaks count as they do in Unix, the way down does not count.
    pub checksum: String,
    pub up: Script,
    pub down: Option<Script>,
}

impl std::fmt::Display for Migration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}_{}", self.version, self.name)
    }
}

/// What a file's name says.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    version: i64,
    name: String,
    part: Part,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Part {
    Up,
    Down,
    /// `<version>_<name>.sql`
    Whole,
}

/// Text of a migration's files.
#[derive(Default)]
struct Texts {
    name: String,
    up: Option<(PathBuf, String, Part)>,
    down: Option<(PathBuf, String)>,
}

impl Folder {
    /// # Errors
    /// A file cannot be read, or would not be run as it is meant; it is named.
    pub fn read(path: &Path) -> Result<Folder, Failure> {
        let entries = std::fs::read_dir(path).map_err(Failure::file("read", path))?;
        let mut files: Vec<PathBuf> =
            entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
        files.sort();
        let mut texts: BTreeMap<i64, Texts> = BTreeMap::new();
        for file in files {
            let wrong = |what: String| Failure::Order(format!("{}: {what}", file.display()));
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(named) = named(&name).map_err(wrong)? else { continue };
            let text = std::fs::read_to_string(&file).map_err(Failure::file("read", &file))?;
            let entry = texts.entry(named.version).or_default();
            entry.add(named, &file, text).map_err(wrong)?;
        }
        let migrations = texts.into_iter().map(|(version, texts)| texts.migration(version));
        Ok(Folder { path: path.to_owned(), migrations: migrations.collect::<Result<_, _>>()? })
    }

    pub fn get(&self, version: i64) -> Option<&Migration> {
        let place = self.migrations.binary_search_by_key(&version, |it| it.version);
        place.ok().map(|place| &self.migrations[place])
    }

    /// The hash of a database that has all of them, or all up to a version.
    pub fn hash(&self, to: Option<i64>) -> String {
        let applied = self.migrations.iter().filter(|it| to.is_none_or(|to| it.version <= to));
        set_hash(applied.map(|it| (it.version, it.checksum.as_str())))
    }
}

impl Texts {
    fn add(&mut self, named: Named, file: &Path, text: String) -> Result<(), String> {
        let version = named.version;
        if !self.name.is_empty() && self.name != named.name {
            return Err(format!("version {version} is {:?} already", self.name));
        }
        self.name = named.name;
        let twice = match named.part {
            Part::Down => self.down.replace((file.to_owned(), text)).is_some(),
            part => self.up.replace((file.to_owned(), text, part)).is_some(),
        };
        if twice { Err(format!("there are two files for version {version}")) } else { Ok(()) }
    }

    fn migration(self, version: i64) -> Result<Migration, Failure> {
        let Some((file, text, part)) = self.up else {
            let down = self.down.map(|(file, _)| file.display().to_string()).unwrap_or_default();
            return Err(Failure::Order(format!("{down}: there is no way up to it, no {version}_{}.up.sql", self.name)));
        };
        let wrong = |file: &Path| {
            let file = file.display().to_string();
            move |what: String| Failure::Order(format!("{file}: {what}"))
        };
        let found = match part {
            Part::Whole => sections(&text),
            _ => Section::whole(&text).map(|up| super::script::Sections { up, down: None }),
        };
        let found = found.map_err(wrong(&file))?;
        let mut down = found.down.as_ref().map(Script::new).transpose().map_err(wrong(&file))?;
        if let Some((path, text)) = &self.down {
            if down.is_some() {
                return Err(wrong(path)(format!("{} has a way down as well", file.display())));
            }
            down = Some(Section::whole(text).and_then(|section| Script::new(&section)).map_err(wrong(path))?);
        }
        let checksum = hex(&Sha256::digest(found.up.text.replace("\r\n", "\n").as_bytes()));
        let up = Script::new(&found.up).map_err(wrong(&file))?;
        Ok(Migration { version, name: self.name, checksum, up, down, file })
    }
}

/// None: the file is none of ours.
fn named(file: &str) -> Result<Option<Named>, String> {
    let digits = file.bytes().take_while(u8::is_ascii_digit).count();
    if file.starts_with('.') {
        return Ok(None);
    }
    let Some(stem) = file.strip_suffix(".sql") else {
        return match digits > 0 && file.ends_with(".go") {
            true => Err("a migration in Go cannot be run; write it in SQL".to_owned()),
            false => Ok(None),
        };
    };
    let (stem, part) = match (stem.strip_suffix(".up"), stem.strip_suffix(".down")) {
        (Some(stem), _) => (stem, Part::Up),
        (_, Some(stem)) => (stem, Part::Down),
        _ => (stem, Part::Whole),
    };
    let name = stem[digits..].strip_prefix('_').filter(|name| digits > 0 && !name.is_empty());
    let Some(name) = name else {
        return Err(
            "its name says no version: <version>_<name>.sql, with .up.sql and .down.sql for both ways".to_owned()
        );
    };
    let version = stem[..digits].parse().map_err(|_| "its version is too large".to_owned())?;
    Ok(Some(Named { version, name: name.to_owned(), part }))
}

/// Of what is applied, in the order of versions.
pub fn set_hash<'a>(applied: impl Iterator<Item = (i64, &'a str)>) -> String {
    let digest = applied
        .fold(Sha256::new(), |digest, (version, checksum)| digest.chain_update(format!("{version} {checksum}\n")));
    hex(&digest.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[(&str, &str)]) -> Result<Folder, String> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Folder::read(dir.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn names_of_all_tools_are_understood() {
        let folder = read(&[
            ("0001_init.up.sql", "CREATE TABLE a ();"),
            ("0001_init.down.sql", "DROP TABLE a;"),
            ("2_plain.sql", "CREATE TABLE b ();"),
            ("20240101120000_dbmate.sql", "-- migrate:up\nSELECT 1;\n-- migrate:down\nSELECT 2;"),
            ("00003_goose.sql", "-- +goose Up\nSELECT 1;"),
            ("README.md", "no migration"),
            (".keep.sql", "no migration"),
        ])
        .unwrap();
        let seen: Vec<(String, bool)> =
            folder.migrations.iter().map(|it| (it.to_string(), it.down.is_some())).collect();
        let expected = [("1_init", true), ("2_plain", false), ("3_goose", false), ("20240101120000_dbmate", true)];
        assert_eq!(seen, expected.map(|(name, down)| (name.to_owned(), down)));
        assert_eq!(folder.get(3).unwrap().name, "goose");
    }

    #[test]
    fn what_is_not_understood_is_not_passed_over() {
        for (files, reason) in [
            (&[("add_users.sql", "")][..], "says no version"),
            (&[("1.sql", "")], "says no version"),
            (&[("1_a.down.sql", "")], "there is no way up"),
            (&[("1_a.up.sql", ""), ("01_a.sql", "")], "two files for version 1"),
            (&[("1_a.up.sql", ""), ("1_b.up.sql", "")], "version 1 is \"a\" already"),
            (&[("1_a.sql", "-- migrate:up\n-- migrate:down"), ("1_a.down.sql", "")], "has a way down as well"),
            (&[("1_a.go", "")], "in Go"),
            (&[("99999999999999999999_a.sql", "")], "too large"),
            (&[("1_a.up.sql", "-- migrate:up")], "belongs into a file"),
            (&[("1_a.up.sql", "SELECT '")], "1_a.up.sql: a string"),
        ] {
            let error = read(files).unwrap_err();
            assert!(error.contains(reason), "{files:?}: {error}");
        }
    }

    #[test]
    fn a_checksum_is_that_of_the_way_up() {
        let checksum = |text: &str| read(&[("1_a.sql", text)]).unwrap().migrations[0].checksum.clone();
        let one = checksum("-- migrate:up\nSELECT 1;\n-- migrate:down\nSELECT 2;");
        assert_eq!(one, checksum("-- migrate:up\r\nSELECT 1;\r\n-- migrate:down\nSELECT 3;"));
        assert_ne!(one, checksum("-- migrate:up\nSELECT 2;\n-- migrate:down\nSELECT 2;"));
        let two = [("1_a.sql", "SELECT 1"), ("2_b.sql", "SELECT 2")];
        assert_eq!(read(&two).unwrap().hash(Some(1)), read(&two[..1]).unwrap().hash(None));
    }
}
