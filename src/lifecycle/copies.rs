//! Where copies of a tenant's data were made: bundles and backups, so that erasing it finds them.
//!
//! `<journal_dir>/<tenant>.copies`, a line of JSON for each, written before the copy is begun.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Failure, Site, audit, files};

/// The file that every bundle has, and nothing else.
pub const SUMS: &str = "SHA256SUMS";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    pub path: PathBuf,
    /// RFC 3339.
    pub begun: String,
}

fn file(site: &Site, tenant: &str) -> PathBuf {
    site.config.lifecycle.journal_dir.join(format!("{tenant}.copies"))
}

/// Notes that there will be a copy; on the disk when this returns.
pub fn note(site: &Site, tenant: &str, path: &Path) -> Result<(), Failure> {
    let list = file(site, tenant);
    let copy = Copy { path: path.to_owned(), begun: audit::now() };
    let mut line = serde_json::to_string(&copy).expect("plain data");
    line.push('\n');
    let dir = &site.config.lifecycle.journal_dir;
    std::fs::create_dir_all(dir).map_err(Failure::file("make", dir))?;
    let opened = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&list);
    let written = opened.and_then(|mut file| file.write_all(line.as_bytes()).and_then(|()| file.sync_all()));
    written.map_err(Failure::file("write", &list))
}

/// Those that were noted, each path once; half a line at the end, of a run that was killed, does not count.
pub fn noted(site: &Site, tenant: &str) -> Result<Vec<Copy>, Failure> {
    let list = file(site, tenant);
    let text = match std::fs::read_to_string(&list) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Failure::file("read", &list)(error)),
    };
    let mut copies: Vec<Copy> = Vec::new();
    for copy in text.lines().filter_map(|line| serde_json::from_str::<Copy>(line).ok()) {
        copies.retain(|known| known.path != copy.path);
        copies.push(copy);
    }
    Ok(copies)
}

/// Forgets the ones at these paths.
pub fn forget(site: &Site, tenant: &str, gone: &[PathBuf]) -> Result<(), Failure> {
    let list = file(site, tenant);
    let mut copies = noted(site, tenant)?;
    copies.retain(|copy| !gone.contains(&copy.path));
    let text: String =
        copies.iter().map(|copy| serde_json::to_string(copy).expect("plain data") + "\n").collect::<String>();
    match text.is_empty() {
        true => files::remove(&list).map(drop).map_err(Failure::file("remove", &list)),
        false => files::replace(&list, text.as_bytes()).map_err(Failure::file("write", &list)),
    }
}

/// Where the bundle at `path` is while it is written: beside it, so that it can be renamed into place.
pub fn partial(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.partial"))
}

/// Removes the bundle, and what a killed export has left of it; whether there was anything. A folder that is no bundle
/// stays. After a kill no half of a bundle bears its name.
pub fn destroy(path: &Path) -> Result<bool, Failure> {
    let partial = partial(path);
    let remove = |folder: &Path| std::fs::remove_dir_all(folder).map_err(Failure::file("remove", folder));
    let mut found = false;
    if partial.is_dir() {
        remove(&partial)?;
        found = true;
    }
    if path.join(SUMS).is_file() {
        std::fs::rename(path, &partial).map_err(Failure::file("rename", path))?;
        remove(&partial)?;
        found = true;
    }
    Ok(found)
}
