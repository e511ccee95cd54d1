//! Files that are there whole or not at all, also after a power failure.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

/// Puts a file into place at once, on the disk: who reads it meanwhile sees the old one or the new one. Owner and
/// permissions stay; a new file is its folder's owner's, with mode 0600.
pub fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    // A symbolic link stays one.
    let target = std::fs::canonicalize(path);
    let path = target.as_deref().unwrap_or(path);
    let folder = folder(path);
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new().prefix(".pgtenant-").tempfile_in(folder)?;
    file.write_all(text)?;
    let before = std::fs::metadata(path);
    if let Ok(before) = &before {
        file.as_file().set_permissions(before.permissions())?;
    }
    // Only root may give a file away: to the account that the proxy runs as.
    let model = before.or_else(|_| std::fs::metadata(folder))?;
    let _ = chown(file.path(), Some(model.uid()), Some(model.gid()));
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_folder(folder)
}

/// Removes a file; whether there was one.
pub fn remove(path: &Path) -> io::Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_folder(folder(path)).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
