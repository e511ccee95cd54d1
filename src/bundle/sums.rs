//! `SHA256SUMS`: every other file of a bundle, in the form that `sha256sum --check` reads.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::lifecycle::Failure;
use crate::lifecycle::copies::SUMS;

/// Hexadecimal digits of a SHA-256.
const DIGITS: usize = 64;

/// A file's SHA-256 in hexadecimal, and its length.
pub fn of_file(path: &Path) -> io::Result<(String, u64)> {
    let mut file = File::open(path)?;
    let (mut hash, mut buffer, mut length) = (Sha256::new(), vec![0; 1 << 20], 0);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            let digest = hash.finalize();
            return Ok((digest.iter().map(|byte| format!("{byte:02x}")).collect(), length));
        }
        hash.update(&buffer[..read]);
        length += read as u64;
    }
}

/// Names of all files below the folder, in order, from there.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let (mut found, mut folders) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(below) = folders.pop() {
        let dir = folder.join(&below);
        for entry in std::fs::read_dir(&dir).map_err(Failure::file("read", &dir))? {
            let entry = entry.map_err(Failure::file("read", &dir))?;
            let kind = entry.file_type().map_err(Failure::file("look at", &entry.path()))?;
            let name = below.join(entry.file_name());
            match (kind.is_dir(), kind.is_file()) {
                (true, _) => folders.push(name),
                (_, true) => found.push(name),
                // A link could lead anywhere.
                _ => return Err(damaged(folder, format!("{} is neither a file nor a folder", name.display()))),
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Writes the sums of everything in the folder, and sees to it that all of it is on the disk.
pub fn write(folder: &Path) -> Result<(), Failure> {
    let mut text = String::new();
    for name in files(folder)? {
        let path = folder.join(&name);
        let (sum, _) = of_file(&path).map_err(Failure::file("read", &path))?;
        sync(&path)?;
        text += &format!("{sum}  {}\n", name.display());
    }
    let path = folder.join(SUMS);
    std::fs::write(&path, text).map_err(Failure::file("write", &path))?;
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&path, private).map_err(Failure::file("chmod", &path))?;
    sync(&path)?;
    sync(&folder.join(super::DUMP))?;
    sync(folder)
}

fn sync(path: &Path) -> Result<(), Failure> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Failure::file("sync", path))
}

/// Whether the folder holds exactly the files that it held when it was written.
pub fn check(folder: &Path) -> Result<(), Failure> {
    let path = folder.join(SUMS);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(damaged(folder, format!("it has no {SUMS}: it is no bundle, or not whole")));
        }
        Err(error) => return Err(Failure::file("read", &path)(error)),
    };
    let mut present = files(folder)?;
    present.retain(|name| name != Path::new(SUMS));
    let mut listed = Vec::new();
    for line in text.lines() {
        let (sum, name) = parse(line).ok_or_else(|| damaged(folder, format!("{SUMS} has a line that is none")))?;
        if !present.iter().any(|there| there == Path::new(name)) {
            return Err(damaged(folder, format!("file {name} is missing")));
        }
        let path = folder.join(name);
        let (found, _) = of_file(&path).map_err(Failure::file("read", &path))?;
        if found != sum {
            return Err(damaged(folder, format!("file {name} was changed: its SHA-256 is not the one in {SUMS}")));
        }
        listed.push(Path::new(name));
    }
    match present.iter().find(|name| !listed.contains(&name.as_path())) {
        Some(name) => Err(damaged(folder, format!("file {} is not in {SUMS}", name.display()))),
        None => Ok(()),
    }
}

fn parse(line: &str) -> Option<(&str, &str)> {
    let (sum, name) = line.split_once("  ")?;
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (sum.len() == DIGITS && sum.bytes().all(digit)).then_some((sum, name))
}

fn damaged(folder: &Path, why: String) -> Failure {
    Failure::Bundle { path: folder.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_byte_and_any_other_file_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let dump = dir.path().join("dump");
        std::fs::create_dir(&dump).unwrap();
        std::fs::write(dump.join("toc.dat"), "contents").unwrap();
        std::fs::write(dir.path().join("manifest.json"), "{}").unwrap();
        write(dir.path()).unwrap();
        check(dir.path()).unwrap();
        for name in files(dir.path()).unwrap() {
            let path = dir.path().join(&name);
            let whole = std::fs::read(&path).unwrap();
            for at in 0..whole.len() {
                let mut flipped = whole.clone();
                flipped[at] ^= 0x20;
                std::fs::write(&path, &flipped).unwrap();
                assert!(check(dir.path()).is_err(), "{} at {at}", name.display());
            }
            std::fs::write(&path, &whole).unwrap();
        }
        std::fs::write(dump.join("more"), "").unwrap();
        assert!(check(dir.path()).unwrap_err().to_string().contains("dump/more is not in SHA256SUMS"));
        std::fs::remove_file(dump.join("more")).unwrap();
        std::fs::remove_file(dump.join("toc.dat")).unwrap();
        assert!(check(dir.path()).unwrap_err().to_string().contains("file dump/toc.dat is missing"));
    }
}
