//! Encryption with age (age-encryption.org/v1): each file for itself, `<name>.age`, readable by the program `age` as well.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use age::x25519::{Identity, Recipient};
use age::{Decryptor, Encryptor};
use zeroize::Zeroizing;

use crate::lifecycle::Failure;

/// What encrypted files end with.
pub const ENDING: &str = "age";

/// For whom bundles are encrypted; nobody: they are not.
#[derive(Clone, Default)]
pub struct Recipients(Vec<Recipient>);

impl Recipients {
    /// # Errors
    /// One is no public key of age.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Recipients, Failure> {
        let parsed = texts.into_iter().map(|text| {
            let wrong = |_| Failure::Order(format!("{text:?} is no public key of age (they begin with age1)"));
            text.parse().map_err(wrong)
        });
        Ok(Recipients(parsed.collect::<Result<_, _>>()?))
    }

    /// Of a file with a key on each line; empty lines and comments are passed over, as `age -R` does.
    pub fn of_file(path: &Path) -> Result<Recipients, Failure> {
        let text = std::fs::read_to_string(path).map_err(Failure::file("read", path))?;
        let keys = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let recipients = Recipients::parse(keys)?;
        match recipients.0.is_empty() {
            true => Err(Failure::Order(format!("{} holds no public key of age", path.display()))),
            false => Ok(recipients),
        }
    }

    pub fn and(mut self, more: Recipients) -> Recipients {
        self.0.extend(more.0);
        self
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Private keys, to open what was encrypted.
pub struct Identities(Vec<Identity>);

impl Identities {
    /// From a file of `age-keygen`.
    pub fn of_file(path: &Path) -> Result<Identities, Failure> {
        let text = Zeroizing::new(std::fs::read_to_string(path).map_err(Failure::file("read", path))?);
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let wrong = |_| Failure::Order(format!("{} holds something else than private keys of age", path.display()));
        let identities: Vec<Identity> = lines.map(str::parse).collect::<Result<_, _>>().map_err(wrong)?;
        match identities.is_empty() {
            true => Err(Failure::Order(format!("{} holds no private key of age", path.display()))),
            false => Ok(Identities(identities)),
        }
    }
}

/// Encrypts a file to a new one.
pub fn seal(from: &Path, to: &Path, recipients: &Recipients) -> Result<(), Failure> {
    let input = File::open(from).map_err(Failure::file("read", from))?;
    let output = create(to)?;
    let keys = recipients.0.iter().map(|key| key as &dyn age::Recipient);
    let encryptor = Encryptor::with_recipients(keys).map_err(|error| Failure::Order(error.to_string()))?;
    let sealed = || -> io::Result<()> {
        let mut writer = encryptor.wrap_output(io::BufWriter::with_capacity(1 << 18, output))?;
        io::copy(&mut BufReader::with_capacity(1 << 18, input), &mut writer)?;
        writer.finish()?.flush()
    };
    sealed().map_err(Failure::file("encrypt", from))
}

/// Opens an encrypted file to a new one. What was changed is found: nothing of it is taken for whole.
pub fn open(from: &Path, to: &Path, identities: &Identities) -> Result<(), Failure> {
    let damaged = |why: String| Failure::Bundle { path: from.to_owned(), why };
    let input = BufReader::with_capacity(1 << 18, File::open(from).map_err(Failure::file("read", from))?);
    let decryptor = Decryptor::new_buffered(input).map_err(|error| damaged(told(&error)))?;
    let keys = identities.0.iter().map(|key| key as &dyn age::Identity);
    let mut reader = decryptor.decrypt(keys).map_err(|error| damaged(told(&error)))?;
    let mut output = io::BufWriter::with_capacity(1 << 18, create(to)?);
    io::copy(&mut reader, &mut output).and_then(|_| output.flush()).map_err(|error| damaged(error.to_string()))
}

fn told(error: &age::DecryptError) -> String {
    match error {
        age::DecryptError::NoMatchingKeys => "it was encrypted for other keys than the given one".to_owned(),
        error => format!("it cannot be decrypted: {error}"),
    }
}

fn create(path: &Path) -> Result<File, Failure> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.map_err(Failure::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipient_opens_it_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let keys: Vec<Identity> = (0..3).map(|_| Identity::generate()).collect();
        let public: Vec<String> = keys.iter().map(|key| key.to_public().to_string()).collect();
        std::fs::write(at("recipients"), format!("# two\n\n{}\n", public[1])).unwrap();
        let recipients = Recipients::parse([public[0].as_str()]).unwrap();
        let recipients = recipients.and(Recipients::of_file(&at("recipients")).unwrap());
        let text = "x".repeat(200_000);
        std::fs::write(at("plain"), &text).unwrap();
        seal(&at("plain"), &at("sealed"), &recipients).unwrap();
        for (number, key) in keys.into_iter().enumerate() {
            let to = at(&format!("opened{number}"));
            let opened = open(&at("sealed"), &to, &Identities(vec![key]));
            match number {
                2 => assert!(opened.unwrap_err().to_string().contains("for other keys")),
                _ => assert!(opened.is_ok() && std::fs::read_to_string(to).unwrap() == text),
            }
        }
        assert!(Recipients::parse(["age1nonsense"]).is_err());
        std::fs::write(at("empty"), "# none\n").unwrap();
        assert!(Recipients::of_file(&at("empty")).is_err() && Identities::of_file(&at("empty")).is_err());
    }
}
