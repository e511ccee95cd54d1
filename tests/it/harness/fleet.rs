//! Some tenants on one or two instances, made by command, with a folder of migrations for all of them.

use std::path::PathBuf;
use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::frontend;
use super::ground::text;
use super::postgres::{self, Postgres};
use super::proxy::{Proxy, ProxyFiles};
use super::scene::{path_value, secret};
use super::wire::Wire;

const INSTANCES: [&str; 2] = ["one", "two"];

/// Tenants `t00`, `t01`, … take turns on the instances.
pub struct Fleet {
    pub instances: Vec<Postgres>,
    pub proxy: Proxy,
    pub tenants: Vec<String>,
}

impl Fleet {
    /// On one instance.
    pub async fn new(tenants: usize) -> Fleet {
        Fleet::on(vec![postgres::start().await], tenants, &[]).await
    }

    pub async fn two(tenants: usize) -> Fleet {
        Fleet::on(vec![postgres::start().await, postgres::start().await], tenants, &[]).await
    }

    pub async fn on(instances: Vec<Postgres>, tenants: usize, changes: &[(&str, toml::Value)]) -> Fleet {
        let mut files = ProxyFiles::new();
        let password = path_value(secret(&files, "keeper.password", "k"));
        for (name, postgres) in INSTANCES.iter().zip(&instances) {
            postgres.sql("postgres", "CREATE ROLE keeper LOGIN SUPERUSER PASSWORD 'k'").await.unwrap();
            files = files
                .instance(name, postgres)
                .set(&format!("instances.{name}.admin.user"), "keeper")
                .set(&format!("instances.{name}.admin.password.file"), password.clone())
                .set(&format!("instances.{name}.tags"), vec![(*name).to_owned()]);
        }
        files = files.set("migrate.bake", "0s").set("tier.gold.pool.max_backends", 3);
        for (key, value) in changes {
            files = files.set(key, value.clone());
        }
        std::fs::create_dir_all(files.dir().join("migrations")).unwrap();
        std::fs::create_dir(files.dir().join("wanted")).unwrap();
        let proxy = Proxy::start(files).await;
        let mut fleet = Fleet { instances, proxy, tenants: Vec::new() };
        fleet.add(tenants).await;
        fleet
    }

    /// Makes so many more tenants, in one go.
    pub async fn add(&mut self, number: usize) {
        self.wanted(number);
        let (wanted, credentials) = (self.path("wanted"), self.path("credentials"));
        let (wanted, credentials) = (wanted.to_str().unwrap(), credentials.to_str().unwrap());
        self.done(&["tenant", "apply", "-f", wanted, "--credentials-dir", credentials]).await;
        self.proxy.reload().unwrap();
    }

    /// Writes what `apply` needs for so many more tenants.
    pub fn wanted(&mut self, number: usize) {
        let wanted = self.path("wanted");
        for _ in 0..number {
            let place = self.tenants.len();
            let tenant = format!("t{place:02}");
            let instance = INSTANCES[place % self.instances.len()];
            std::fs::write(wanted.join(format!("{tenant}.toml")), format!("instance = \"{instance}\"\n")).unwrap();
            self.tenants.push(tenant);
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.proxy.files.dir().join(name)
    }

    /// Writes a migration.
    pub fn file(&self, name: &str, text: &str) {
        std::fs::write(self.path("migrations").join(name), text).unwrap();
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgtenant"));
        command.args(arguments).arg("--config").arg(self.path("proxy.toml"));
        if arguments.first() == Some(&"migrate") && arguments.get(1) != Some(&"resume") {
            command.arg("--dir").arg(self.path("migrations"));
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Exit status, standard output and standard error.
    pub async fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let Output { status, stdout, stderr } = self.command(arguments).output().await.expect("the program");
        (status.code().expect("an exit status"), text(&stdout), text(&stderr))
    }

    /// Standard output of a command that ends with this status.
    pub async fn ends(&self, status: i32, arguments: &[&str]) -> String {
        let (found, printed, why) = self.run(arguments).await;
        assert_eq!(found, status, "{arguments:?}: {printed}{why}");
        format!("{printed}{why}")
    }

    pub async fn done(&self, arguments: &[&str]) -> String {
        self.ends(0, arguments).await
    }

    /// Killed at a fault point.
    pub async fn struck(&self, fault: &str, arguments: &[&str]) {
        let output = self.command(arguments).env("PGTENANT_FAULT", fault).output().await.expect("an output");
        let told = format!("{}{}", text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), None, "{fault} was not reached: {told}");
    }

    /// A command with --json that goes on while the test does something else.
    pub fn begin(&self, arguments: &[&str]) -> Ongoing {
        let mut child = self.command(&[arguments, &["--json"]].concat()).spawn().expect("the program");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Ongoing { child, lines, told: Vec::new() }
    }

    pub fn instance_of(&self, tenant: &str) -> &Postgres {
        let number: usize = tenant[1..].parse().expect("t and a number");
        &self.instances[number % self.instances.len()]
    }

    pub async fn sql(&self, tenant: &str, sql: &str) -> Vec<Vec<Option<String>>> {
        self.instance_of(tenant).sql(tenant, sql).await.unwrap_or_else(|error| panic!("{tenant}: {error}"))
    }

    /// One value.
    pub async fn value(&self, tenant: &str, sql: &str) -> String {
        self.sql(tenant, sql).await[0][0].clone().unwrap_or_default()
    }

    /// Versions in the histories, the same for all of these tenants.
    pub async fn versions(&self, tenants: &[String]) -> String {
        let sql =
            "SELECT string_agg(version::text, ',' ORDER BY version) FROM pgtenant.migrations WHERE unfinished IS NULL";
        let mut all = Vec::new();
        for tenant in tenants {
            all.push(self.value(tenant, sql).await);
        }
        all.dedup();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    /// Roles of migrations that were left behind.
    pub async fn roles_left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for postgres in &self.instances {
            let sql = "SELECT rolname FROM pg_roles WHERE rolname ~ '^pgtenant_migrate'";
            left.extend(postgres.sql("postgres", sql).await.unwrap().into_iter().filter_map(|mut row| row.remove(0)));
        }
        left
    }

    pub fn password(&self, tenant: &str) -> String {
        let text = std::fs::read_to_string(self.path("credentials").join(format!("{tenant}.credentials"))).unwrap();
        let table: toml::Table = text.parse().unwrap();
        table["roles"][&format!("{tenant}_app")]["password"].as_str().unwrap().to_owned()
    }

    /// The tenant's application, through the proxy.
    pub async fn log_in(&self, tenant: &str) -> Wire {
        let mut client = Wire::tcp(self.proxy.address()).await.expect("the proxy listens");
        let (user, options) = (format!("{tenant}_app"), format!("-c tenant={tenant}"));
        let parameters = [("user", user.as_str()), ("options", options.as_str())];
        client.login_with(frontend::V3_0, &parameters, &self.password(tenant)).await.unwrap();
        client
    }

    pub fn proxy_url(&self) -> String {
        format!("http://{}", self.proxy.http_address())
    }
}

/// See [`Fleet::begin`].
pub struct Ongoing {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    pub told: Vec<Value>,
}

impl Ongoing {
    /// Reads until something is told that is meant.
    pub async fn until(&mut self, meant: impl Fn(&Value) -> bool) -> Value {
        loop {
            let line = self.lines.next_line().await.unwrap();
            let line = line.unwrap_or_else(|| panic!("it has ended: {:#?}", self.told));
            let value: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
            self.told.push(value.clone());
            if meant(&value) {
                return value;
            }
        }
    }

    /// kill -9.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Ctrl-C.
    pub fn interrupt(&self) {
        let pid = self.child.id().expect("it runs");
        // SAFETY: a signal to a child of ours that was not waited for.
        unsafe { libc::kill(pid.cast_signed(), libc::SIGINT) };
    }

    /// All that was told, to the end.
    pub async fn end_telling(mut self) -> Vec<Value> {
        while let Some(line) = self.lines.next_line().await.unwrap() {
            self.told.push(serde_json::from_str(&line).unwrap());
        }
        self.child.wait().await.unwrap();
        self.told
    }

    /// The exit status, and the last object.
    pub async fn end(mut self) -> (i32, Value) {
        while let Some(line) = self.lines.next_line().await.unwrap() {
            self.told.push(serde_json::from_str(&line).unwrap());
        }
        let status = self.child.wait_with_output().await.unwrap();
        let last = self.told.pop().unwrap_or_else(|| panic!("it told something: {}", text(&status.stderr)));
        (status.status.code().expect("an exit status"), last)
    }
}
