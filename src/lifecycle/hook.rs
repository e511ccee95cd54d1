//! New passwords for a program of the operator's, which puts them where they belong: `[lifecycle.credentials_hook]`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use zeroize::Zeroizing;

use super::credentials::Credentials;
use super::site::Site;
use super::{Failure, faults, program};

/// Whose passwords they are.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Whose<'a> {
    /// `create`, `import` or `rotate-credentials`.
    pub act: &'a str,
    pub tenant: &'a str,
    pub instance: &'a str,
    pub region: Option<&'a str>,
    pub database: &'a str,
    /// When passwords end that these take the place of, RFC 3339.
    pub old_valid_until: Option<&'a str>,
}

#[derive(Serialize)]
struct Given<'a> {
    version: u32,
    #[serde(flatten)]
    whose: Whose<'a>,
    roles: BTreeMap<&'a str, Role<'a>>,
}

#[derive(Serialize)]
struct Role<'a> {
    password: &'a str,
}

/// Gives them to the hook, where there is one and no file has them; whether it did. They are on its standard input only:
/// everybody on this machine can read arguments, and children inherit the environment.
///
/// # Errors
/// [`Failure::Step`]: nobody else has the passwords, and the same command makes new ones and asks the hook again.
pub async fn give(
    site: &Site,
    whose: Whose<'_>,
    file: Option<&Path>,
    credentials: &Credentials,
) -> Result<bool, Failure> {
    let (Some(hook), None) = (&site.config.lifecycle.credentials_hook, file) else { return Ok(false) };
    let roles = credentials.iter().map(|(role, of)| (role.as_str(), Role { password: of.password.expose() }));
    let given = Given { version: 1, whose, roles: roles.collect() };
    // Room enough from the beginning, so that no half of it stays behind in memory.
    let mut text = Zeroizing::new(Vec::with_capacity(4096 + 512 * credentials.len()));
    serde_json::to_writer(&mut *text, &given).map_err(|error| Failure::Order(error.to_string()))?;
    let secrets: Vec<&str> = credentials.values().map(|of| of.password.expose()).collect();
    let done = program::ask(hook, &text, &secrets, site.remark).await.map(drop);
    let done = done.and_then(|()| faults::point("hook", "given")).map_err(|cause| Failure::Step {
        step: "credentials hook",
        cause: Box::new(cause),
        after: "all else is done; give the same command again to make new passwords and call the hook again".to_owned(),
        undone: false,
    });
    site.recorded_with("credentials hook", whose.tenant, done, whose.act)?;
    Ok(true)
}
