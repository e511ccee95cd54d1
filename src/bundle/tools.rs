//! pg_dump and pg_restore: the ones of the right major, run without a password in sight.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::config::{Config, InstanceAddress, InstanceTls, Secret};
use crate::lifecycle::Failure;
use crate::lifecycle::instance::Instance;
use crate::lifecycle::program::die_with_us;

/// Where Debian's packages have them, by major.
const DEBIAN: &str = "/usr/lib/postgresql";
/// As much of what a program says goes into an error.
const LINES_TOLD: usize = 4;

/// A program of PostgreSQL's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    pub path: PathBuf,
    /// As in 15.18.
    pub version: String,
    pub major: u32,
    minor: u32,
}

/// The program of this major with the highest minor; from the configured folders, Debian's, and PATH.
///
/// # Errors
/// There is none.
pub async fn find(config: &Config, name: &str, major: u32) -> Result<Tool, Failure> {
    let mut best: Option<Tool> = None;
    for folder in folders(config) {
        let path = folder.join(name);
        if !path.is_file() {
            continue;
        }
        if let Some(tool) = version(&path).await.filter(|tool| tool.major == major)
            && best.as_ref().is_none_or(|best| tool.minor > best.minor)
        {
            best = Some(tool);
        }
    }
    best.ok_or_else(|| {
        let remedy = format!("install postgresql-client-{major}, or name its folder in lifecycle.postgres_tools");
        Failure::Order(format!("no {name} of PostgreSQL {major} on this machine; {remedy}"))
    })
}

fn folders(config: &Config) -> Vec<PathBuf> {
    let mut folders = config.lifecycle.postgres_tools.clone();
    let entries = std::fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    folders.extend(entries.map(|entry| entry.path().join("bin")));
    folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    folders
}

/// From `pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
async fn version(path: &Path) -> Option<Tool> {
    let output = Command::new(path).arg("--version").stdin(Stdio::null()).output().await.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split(") ").nth(1)?.split_whitespace().next()?.to_owned();
    let (major, minor) = version.split_once('.').unwrap_or((&version, "0"));
    // Betas are told as 18beta1: they have no place here.
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    Some(Tool { path: path.to_owned(), major, minor, version })
}

impl Tool {
    /// Whether the server, by its `server_version_num`, is of a later minor: then it may know what the program does not.
    pub fn is_older_than(&self, server: u32) -> bool {
        (self.major, self.minor) < (server / 10_000, server % 10_000)
    }

    /// A run on a database of the instance, as its admin or as somebody else. It has nothing of our environment, and ends
    /// when we do.
    pub fn command(&self, instance: &Instance, database: &str, role: Option<(&str, &Secret)>) -> Command {
        let mut command = Command::new(&self.path);
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        command.env("PATH", "/usr/bin:/bin").env("LC_ALL", "C.UTF-8").arg("--no-password");
        for (name, value) in connection(instance, database) {
            command.env(name, value);
        }
        if let Some((role, password)) = role {
            command.env("PGUSER", role).env("PGPASSWORD", password.expose());
        }
        die_with_us(&mut command);
        command
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// What it said, without the lines that may hold a tenant's data.
    pub async fn run(&self, mut command: Command) -> Result<(), Failure> {
        let failed = |why: String| Failure::Tool { program: self.path.display().to_string(), why };
        let output = command.output().await.map_err(|error| failed(error.to_string()))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(failed(told(&String::from_utf8_lossy(&output.stderr), &output.status))),
        }
    }
}

/// libpq's environment (PostgreSQL manual, section 34.15). The password is in no argument, which everybody could see.
fn connection(instance: &Instance, database: &str) -> Vec<(&'static str, String)> {
    let at = &instance.host.instance;
    let admin = instance.admin();
    let mut variables = vec![
        ("PGUSER", admin.user.clone()),
        ("PGDATABASE", database.to_owned()),
        ("PGAPPNAME", "pgtenant lifecycle".to_owned()),
        ("PGCONNECT_TIMEOUT", "10".to_owned()),
        ("PGPASSFILE", "/dev/null".to_owned()),
        ("PGSSLCERT", "/dev/null/none".to_owned()),
    ];
    match &at.address {
        InstanceAddress::Unix { dir, port } => {
            variables.extend([("PGHOST", dir.display().to_string()), ("PGPORT", port.to_string())]);
        }
        InstanceAddress::Tcp { host, port } => {
            variables.extend([("PGHOST", at.tls_server_name.clone()), ("PGPORT", port.to_string())]);
            // The name is for the certificate, the address for the way there.
            if at.tls_server_name != *host {
                variables.push(("PGHOSTADDR", address(host, *port)));
            }
            let mode = match at.tls {
                InstanceTls::Off => "disable",
                InstanceTls::Require => "require",
                InstanceTls::VerifyCa => "verify-ca",
                InstanceTls::VerifyFull => "verify-full",
            };
            variables.push(("PGSSLMODE", mode.to_owned()));
            variables.extend(at.tls_ca.as_ref().map(|ca| ("PGSSLROOTCERT", ca.display().to_string())));
        }
    }
    variables.extend(admin.password.as_ref().map(|password| ("PGPASSWORD", password.expose().to_owned())));
    variables
}

/// libpq's PGHOSTADDR takes no names.
fn address(host: &str, port: u16) -> String {
    let found = std::net::ToSocketAddrs::to_socket_addrs(&(host, port)).ok().and_then(|mut found| found.next());
    found.map_or_else(|| host.to_owned(), |address| address.ip().to_string())
}

/// The errors in what a program said. DETAIL, CONTEXT and the statements have rows in them.
fn told(said: &str, status: &std::process::ExitStatus) -> String {
    let errors = said.lines().filter_map(|line| line.split_once(": error: ").map(|(_, error)| error));
    let errors: Vec<&str> = errors.take(LINES_TOLD).collect();
    match errors.is_empty() {
        true => format!("it ended with {status}"),
        false => errors.join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_not_told() {
        let said = "pg_restore: error: COPY failed for table \"t\": ERROR:  duplicate key\nDETAIL:  Key (a)=(secret)\n\
                    CONTEXT:  COPY t, line 1: \"secret\"\n";
        let status = std::os::unix::process::ExitStatusExt::from_raw(256);
        assert_eq!(told(said, &status), "COPY failed for table \"t\": ERROR:  duplicate key");
        assert_eq!(told("secret", &status), "it ended with exit status: 1");
    }
}
