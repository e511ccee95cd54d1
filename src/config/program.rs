//! Programs of the operator's that the commands on tenants call: `[provisioner.*]` and `[lifecycle.credentials_hook]`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::problem::Scope;
use super::resolve::positive;
use super::scalar::Period;
use super::tenants::check_id;

/// Means the instances that there are, and is no program.
pub const EXISTING: &str = "sql";
/// An instance is named after its provisioner, and has nine characters more.
const LONGEST_NAME: usize = 50;

/// What is called, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub path: PathBuf,
    pub arguments: Vec<String>,
    /// Variables of our environment that it gets beside PATH, HOME and the like; default none.
    pub environment: Vec<String>,
    /// Then it is killed with its children. Default 15 min for a provisioner, 30 s for the hook.
    pub timeout: Duration,
}

/// How instances are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    Exec,
}

/// `[provisioner.<name>]`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Provisioner {
    pub kind: Option<Kind>,
    pub program: Option<PathBuf>,
    pub arguments: Vec<String>,
    pub environment: Vec<String>,
    pub timeout: Option<Period>,
}

/// `[lifecycle.credentials_hook]`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Hook {
    pub program: Option<PathBuf>,
    pub arguments: Vec<String>,
    pub environment: Vec<String>,
    pub timeout: Option<Period>,
}

pub(super) fn provisioners(
    written: BTreeMap<String, Provisioner>,
    mut scope: Scope<'_, '_>,
) -> BTreeMap<String, Program> {
    let provisioners = written.into_iter().map(|(name, written)| {
        let mut scope = scope.enter(&name);
        if let Err(message) = check_id(&name) {
            scope.problem("", format!("a provisioner's name {message}"));
        }
        scope.require(
            name.len() <= LONGEST_NAME,
            "",
            format!("a provisioner's name has at most {LONGEST_NAME} characters"),
        );
        let taken = format!("{EXISTING:?} means the instances that there are; choose another name");
        scope.require(name != EXISTING, "", taken);
        scope.require(written.kind.is_some(), "kind", "missing; write \"exec\", a program with JSON in and out");
        let hook = Hook {
            program: written.program,
            arguments: written.arguments,
            environment: written.environment,
            timeout: written.timeout,
        };
        (name, program(hook, Duration::from_secs(15 * 60), scope))
    });
    provisioners.collect()
}

pub(super) fn hook(written: Hook, scope: Scope<'_, '_>) -> Program {
    program(written, Duration::from_secs(30), scope)
}

/// Whether the program is there is asked when it is needed: traffic does not depend on it.
fn program(written: Hook, timeout: Duration, mut scope: Scope<'_, '_>) -> Program {
    scope.require(written.program.is_some(), "program", "missing; write the path of a program");
    let name = |name: &String| !name.is_empty() && !name.contains(['=', '\0']);
    scope.require(
        written.environment.iter().all(name),
        "environment",
        "names of variables only, as in [\"AWS_PROFILE\"]",
    );
    Program {
        path: scope.path(&written.program.unwrap_or_default()),
        arguments: written.arguments,
        environment: written.environment,
        timeout: written.timeout.map_or(timeout, |period| positive(&mut scope, "timeout", period)),
    }
}
