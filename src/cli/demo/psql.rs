//! The `psql` lines that the demo hands to people, and the proof that each of them does what is said of it.

use anyhow::ensure;

use super::load::{libpq_program, output};
use super::setup::Site;

const QUERY: &str = "TABLE marker";

/// A connection string and what comes of it.
pub(super) struct Line {
    pub(super) conninfo: &'static str,
    pub(super) note: &'static str,
    /// The tenant whose marker row is read; none: the login is refused.
    tenant: Option<&'static str>,
}

pub(super) const LINES: [Line; 4] = [
    Line { conninfo: "service=acme", note: "by SNI", tenant: Some("acme") },
    Line {
        conninfo: "service=globex host=localhost options='-c tenant=globex'",
        note: "by options",
        tenant: Some("globex"),
    },
    Line { conninfo: "service=initech host=localhost user=app.initech", note: "by user", tenant: Some("initech") },
    Line { conninfo: "service=acme host=globex.localhost", note: "refused", tenant: None },
];

/// The commands, to be copied into another terminal.
pub(super) fn invitation(site: &Site) -> String {
    let line = |line: &Line| (format!("psql \"{}\" -c '{QUERY}'", line.conninfo), line.note);
    let mut commands: Vec<(String, &str)> = LINES.iter().map(line).collect();
    commands.push(("pgbench -S -M prepared -c 40 -T 10 \"service=acme\"".to_owned(), "40 clients"));
    let width = commands.iter().map(|(command, _)| command.len()).fold(0, usize::max);
    let mut text = format!("  export PGSERVICEFILE={}\n", site.service_file().display());
    for (command, note) in commands {
        text += &format!("  {command:width$}  # {note}\n");
    }
    text
}

/// Runs every line with psql itself.
pub(super) async fn prove(site: &Site) -> anyhow::Result<String> {
    for Line { conninfo, tenant, .. } in &LINES {
        let mut psql = libpq_program(site, &site.tenants[0], "psql");
        psql.args(["--no-psqlrc", "--no-password", "--tuples-only", "--no-align", "--command", QUERY, conninfo]);
        let read = output(&mut psql).await;
        match tenant {
            Some(tenant) => {
                let read = read?;
                ensure!(read.trim() == *tenant, "psql \"{conninfo}\" reads {:?}", read.trim());
            }
            None => {
                let why = read.err().map(|error| error.to_string());
                let refused = why.as_ref().is_some_and(|why| why.contains("password authentication failed"));
                ensure!(refused, "psql \"{conninfo}\" is not refused: {why:?}");
            }
        }
    }
    Ok(format!("{0} of {0} as said", LINES.len()))
}
