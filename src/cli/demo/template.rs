//! Fresh data directories: made by initdb once, then copied, each with a system identifier of its own.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::postgres::{PostgresError, SUPERUSER};

/// The unprivileged account that PostgreSQL runs as when we are root, which it refuses to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Owner {
    /// `postgres`, else `nobody`, from `/etc/passwd`; none when we are not root and PostgreSQL may run as we do.
    pub(super) fn unprivileged() -> Result<Option<Owner>, PostgresError> {
        // SAFETY: geteuid(2) takes nothing and cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            return Ok(None);
        }
        let passwd = Path::new("/etc/passwd");
        let text = fs::read_to_string(passwd).map_err(PostgresError::io("read", passwd))?;
        let owner = ["postgres", "nobody"].into_iter().find_map(|name| Owner::named(&text, name));
        owner.map(Some).ok_or(PostgresError::NoUnprivilegedUser)
    }

    fn named(passwd: &str, name: &str) -> Option<Owner> {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut numbers = line.split(':').skip(2);
        Some(Owner { uid: numbers.next()?.parse().ok()?, gid: numbers.next()?.parse().ok()? })
    }

    /// Gives `path` to the account.
    pub(super) fn take(owner: Option<Owner>, path: &Path) -> Result<(), PostgresError> {
        match owner {
            Some(owner) => chown(path, Some(owner.uid), Some(owner.gid)).map_err(PostgresError::io("chown", path)),
            None => Ok(()),
        }
    }
}

/// Where PostgreSQL's programs are.
#[derive(Debug, Clone)]
pub(super) struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    /// The given folder, else the newest of `/usr/lib/postgresql/*/bin`, else the one of `PATH` that has `postgres`
    /// and `initdb`.
    pub(super) fn find(given: Option<&Path>) -> Result<Binaries, PostgresError> {
        let complete = |dir: &PathBuf| dir.join("postgres").is_file() && dir.join("initdb").is_file();
        if let Some(dir) = given {
            let dir = dir.to_owned();
            return if complete(&dir) { Ok(Binaries { dir }) } else { Err(PostgresError::NotThere { dir }) };
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        debian_folders()
            .into_iter()
            .chain(std::env::split_paths(&path))
            .find(complete)
            .map(|dir| Binaries { dir })
            .ok_or(PostgresError::NotInstalled)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A command that runs without the caller's `PG…` variables, with English messages, in a folder everyone can enter.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.dir.join(program));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C").current_dir("/");
        command
    }

    fn run(&self, program: &str, mut command: Command) -> Result<String, PostgresError> {
        let path = self.dir.join(program);
        let Output { status, stdout, stderr } = command.output().map_err(PostgresError::io("run", &path))?;
        if status.success() {
            return Ok(String::from_utf8_lossy(&stdout).into_owned());
        }
        Err(PostgresError::Failed { program: path, output: String::from_utf8_lossy(&stderr).trim().to_owned() })
    }
}

/// Debian's folders, the newest version first.
fn debian_folders() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/usr/lib/postgresql") else { return Vec::new() };
    let mut versions: Vec<u32> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    versions.sort_unstable_by(|left, right| right.cmp(left));
    versions.into_iter().map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"))).collect()
}

/// Makes the data directory `data`, from a template in the folder `templates` where one is given.
pub(super) fn fill(
    data: &Path,
    binaries: &Binaries,
    owner: Option<Owner>,
    templates: Option<&Path>,
) -> Result<(), PostgresError> {
    let Some(templates) = templates else { return initdb(data, binaries, owner) };
    let template = cached(templates, binaries, owner)?;
    copy(&template, data, owner)?;
    renew_system_identifier(data)
}

fn initdb(data: &Path, binaries: &Binaries, owner: Option<Owner>) -> Result<(), PostgresError> {
    make_dir(data)?;
    Owner::take(owner, data)?;
    let mut command = binaries.command("initdb");
    command.arg("--pgdata").arg(data).args(["--username", SUPERUSER, "--encoding=UTF8", "--locale=C"]);
    command.args(["--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync", "--no-instructions"]);
    if let Some(owner) = owner {
        command.uid(owner.uid).gid(owner.gid);
    }
    binaries.run("initdb", command).map(drop)
}

/// The template of these binaries, made at the first call. A lock file lets several processes share the folder; a
/// finished template never changes, so reading it needs no lock.
fn cached(templates: &Path, binaries: &Binaries, owner: Option<Owner>) -> Result<PathBuf, PostgresError> {
    fs::create_dir_all(templates).map_err(PostgresError::io("create", templates))?;
    let mut version = binaries.command("postgres");
    version.arg("--version");
    let version = binaries.run("postgres", version)?;
    let mut hasher = DefaultHasher::new();
    (&version, binaries.dir()).hash(&mut hasher);
    let template = templates.join(format!("{:016x}", hasher.finish()));

    let lock = template.with_extension("lock");
    let held = File::create(&lock).map_err(PostgresError::io("create", &lock))?;
    held.lock().map_err(PostgresError::io("lock", &lock))?;
    if template.join("PG_VERSION").exists() {
        return Ok(template);
    }
    // The unprivileged user may be unable to reach `templates`: initdb runs in the temporary folder.
    let made = tempfile::Builder::new().prefix("pgtenant-initdb-").tempdir().map_err(PostgresError::temporary)?;
    Owner::take(owner, made.path())?;
    initdb(&made.path().join("data"), binaries, owner)?;
    let partial = template.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(PostgresError::io("remove", &partial))?;
    }
    copy(&made.path().join("data"), &partial, None)?;
    fs::rename(&partial, &template).map_err(PostgresError::io("rename", &partial))?;
    Ok(template)
}

fn make_dir(path: &Path) -> Result<(), PostgresError> {
    fs::DirBuilder::new().mode(0o700).create(path).map_err(PostgresError::io("create", path))
}

/// Copies a data directory, which holds folders and plain files only.
fn copy(from: &Path, to: &Path, owner: Option<Owner>) -> Result<(), PostgresError> {
    make_dir(to)?;
    Owner::take(owner, to)?;
    for entry in fs::read_dir(from).map_err(PostgresError::io("read", from))? {
        let source = entry.map_err(PostgresError::io("read", from))?.path();
        let target = to.join(source.file_name().expect("an entry of a folder has a name"));
        if source.is_dir() {
            copy(&source, &target, owner)?;
        } else {
            fs::copy(&source, &target).map_err(PostgresError::io("copy", &source))?;
            Owner::take(owner, &target)?;
        }
    }
    Ok(())
}

/// Position of `xlp_sysid` in the long header of a WAL segment's first page (`XLogLongPageHeaderData`).
const WAL_SYSTEM_IDENTIFIER: usize = 24;

/// Gives a copied, cleanly shut down cluster an identity of its own: the proxy tells instances apart by it.
/// `pg_control` begins with the identifier and ends its data with a CRC-32C; each WAL segment repeats the identifier.
fn renew_system_identifier(data: &Path) -> Result<(), PostgresError> {
    let random = getrandom::u64().map_err(|_| PostgresError::NoRandomness)?;
    // PostgreSQL's own hold the time in the upper half and are positive as a bigint.
    let identifier = (random >> 1).to_le_bytes();
    let control = data.join("global/pg_control");
    rewrite(&control, |bytes| {
        let end = control_data_length(bytes)?;
        bytes[..8].copy_from_slice(&identifier);
        let crc = crc32c(&bytes[..end]);
        bytes[end..end + 4].copy_from_slice(&crc.to_le_bytes());
        Some(())
    })?;
    let wal = data.join("pg_wal");
    for entry in fs::read_dir(&wal).map_err(PostgresError::io("read", &wal))? {
        let segment = entry.map_err(PostgresError::io("read", &wal))?.path();
        if segment.is_file() {
            rewrite(&segment, |bytes| {
                let field = bytes.get_mut(WAL_SYSTEM_IDENTIFIER..WAL_SYSTEM_IDENTIFIER + 8)?;
                field.copy_from_slice(&identifier);
                Some(())
            })?;
        }
    }
    Ok(())
}

fn rewrite(path: &Path, change: impl FnOnce(&mut [u8]) -> Option<()>) -> Result<(), PostgresError> {
    let mut bytes = fs::read(path).map_err(PostgresError::io("read", path))?;
    change(&mut bytes).ok_or_else(|| PostgresError::UnknownFormat { path: path.to_owned() })?;
    fs::write(path, bytes).map_err(PostgresError::io("write", path))
}

/// Where the CRC stands, which differs between versions: the one place whose value is the CRC of all that is before it.
fn control_data_length(bytes: &[u8]) -> Option<usize> {
    (64..512).step_by(4).find(|&end| {
        let stored = bytes.get(end..end + 4).and_then(|field| field.try_into().ok()).map(u32::from_le_bytes);
        stored == Some(crc32c(&bytes[..end]))
    })
}

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4), bit by bit: a few hundred bytes need no table.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg()))
    })
}

/// The `system_identifier` of the cluster in `data`, from `pg_control`.
pub(super) fn system_identifier(data: &Path) -> Result<u64, PostgresError> {
    let path = data.join("global/pg_control");
    let bytes = fs::read(&path).map_err(PostgresError::io("read", &path))?;
    let field = bytes.get(..8).and_then(|field| field.try_into().ok());
    field.map(u64::from_le_bytes).ok_or(PostgresError::UnknownFormat { path })
}

/// Writes a file that only the owner may read (a key, say).
pub(super) fn write_private(path: &Path, text: &str, owner: Option<Owner>) -> Result<(), PostgresError> {
    fs::write(path, "").map_err(PostgresError::io("write", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(PostgresError::io("chmod", path))?;
    fs::write(path, text).map_err(PostgresError::io("write", path))?;
    Owner::take(owner, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_matches_the_published_check_values() {
        // RFC 3720 B.4 and the catalogue's check value.
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
    }

    #[test]
    fn an_account_is_found_by_its_whole_name() {
        let passwd = "root:x:0:0::/:/bin/sh\npostgres2:x:9:9::/:\npostgres:x:101:104:admin,,,:/:/bin/bash\n";
        assert_eq!(Owner::named(passwd, "postgres"), Some(Owner { uid: 101, gid: 104 }));
        assert_eq!(Owner::named(passwd, "nobody"), None);
    }

    #[test]
    fn a_folder_without_the_programs_is_named() {
        let error = Binaries::find(Some(Path::new("/nonexistent/bin"))).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/bin"), "{error}");
    }
}
