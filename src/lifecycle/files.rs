//! Files that are there whole or not at all, also after a power failure.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Puts a file with mode 0600 into place at once, on the disk: who reads it meanwhile sees the old one or the new one.
pub fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let folder = folder(path);
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_folder(folder)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
