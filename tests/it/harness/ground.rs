//! Commands on tenants: an instance with an admin, a proxy over it that has no tenants yet, and what they leave.

use std::path::PathBuf;
use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::process::Command;

use super::frontend;
use super::postgres::{self, Postgres};
use super::proxy::{Proxy, ProxyFiles};
use super::scene::{path_value, secret};
use super::wire::{ErrorResponse, Wire};

/// An instance with an admin, and a proxy over it that has no tenants yet.
pub struct Ground {
    pub postgres: Postgres,
    pub proxy: Proxy,
    config: PathBuf,
}

impl Ground {
    pub async fn new() -> Ground {
        Ground::with_admin("SUPERUSER", &[]).await
    }

    pub async fn with_admin(rights: &str, changes: &[(&str, toml::Value)]) -> Ground {
        Ground::on(postgres::start().await, rights, changes).await
    }

    pub async fn on(postgres: Postgres, rights: &str, changes: &[(&str, toml::Value)]) -> Ground {
        let sql = format!("CREATE ROLE keeper LOGIN {rights} PASSWORD 'k'");
        postgres.sql("postgres", &sql).await.unwrap();
        let files = ProxyFiles::new().instance("one", &postgres);
        let password = path_value(secret(&files, "keeper.password", "k"));
        let mut files = files
            .set("instances.one.region", "eu")
            .set("instances.one.admin.user", "keeper")
            .set("instances.one.admin.password.file", password)
            .set("tier.gold.pool.max_backends", 3);
        for (key, value) in changes {
            files = files.set(key, value.clone());
        }
        let proxy = Proxy::start(files).await;
        let config = proxy.files.dir().join("proxy.toml");
        Ground { postgres, proxy, config }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgtenant"));
        let address = self.proxy.address().to_string();
        command.args(arguments).arg("--config").arg(&self.config);
        if matches!(arguments, ["tenant", "create" | "apply", ..] | ["import" | "restore", ..]) {
            command.args(["--proxy", &address]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    pub async fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().await.expect("the program was built with the tests")
    }

    /// Standard output of a command that succeeds.
    pub async fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// Exit status and standard error of one that does not.
    pub async fn refused(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments).await;
        (output.status.code().expect("an exit status"), text(&output.stderr))
    }

    /// The same command, struck by a fault at this point: the signal, or the exit status.
    pub async fn struck(&self, fault: &str, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.command(arguments).env("PGTENANT_FAULT", fault).output().await.expect("an output");
        (output.status.code(), text(&output.stderr))
    }

    pub async fn sql(&self, database: &str, sql: &str) -> Vec<Vec<Option<String>>> {
        self.postgres.sql(database, sql).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Databases and roles of tenants on the instance.
    pub async fn left(&self) -> Vec<String> {
        let sql = "SELECT datname FROM pg_database WHERE datname NOT IN ('postgres', 'template0', 'template1', 'app_v1')
                   UNION ALL SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' AND rolname NOT IN ('postgres', 'keeper')
                   ORDER BY 1";
        self.sql("postgres", sql).await.into_iter().filter_map(|mut row| row.remove(0)).collect()
    }

    /// Everything that a run could leave in the folders.
    pub fn files_left(&self) -> Vec<String> {
        let dir = self.proxy.files.dir();
        let folders = ["tenants.d", "lifecycle.d"].map(|name| dir.join(name));
        let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Logs in through the proxy.
    pub async fn try_log_in(&self, tenant: &str, role: &str, password: &str) -> Result<Wire, ErrorResponse> {
        let mut client = Wire::tcp(self.proxy.address()).await.expect("the proxy listens");
        let options = format!("-c tenant={tenant}");
        let parameters = [("user", role), ("options", options.as_str())];
        client.login_with(frontend::V3_0, &parameters, password).await.map(|()| client)
    }

    pub async fn log_in(&self, tenant: &str, role: &str, password: &str) -> Wire {
        self.try_log_in(tenant, role, password).await.unwrap_or_else(|error| panic!("{error:?}"))
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The passwords of `create --json`.
pub fn password(printed: &str, role: &str) -> String {
    let told: Value = serde_json::from_str(printed.trim()).unwrap_or_else(|error| panic!("{error}: {printed}"));
    told["passwords"][role].as_str().unwrap_or_else(|| panic!("a password in {printed}")).to_owned()
}
