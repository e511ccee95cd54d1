//! `pgtenant verifier`: what a tenant's record holds instead of a password.

use std::io::Read;

use anyhow::{Context as _, bail};
use zeroize::Zeroizing;

use crate::auth::ScramVerifier;

/// More than any password.
const MAX_PASSWORD: u64 = 4096;

/// Reads a password from standard input, up to its line's end, and prints its verifier.
pub fn run() -> anyhow::Result<()> {
    let mut password = Zeroizing::new(String::new());
    std::io::stdin().take(MAX_PASSWORD).read_to_string(&mut password).context("cannot read standard input")?;
    let password = password.strip_suffix('\n').unwrap_or(&password);
    if password.is_empty() {
        bail!("no password on standard input; write: pgtenant verifier < password-file");
    }
    let (verifier, _) = ScramVerifier::generate(password);
    println!("{}", *verifier.to_text());
    Ok(())
}
