//! `pgtenant serve` as a process of its own: for signals, exit status, logs and memory.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};

use super::proxy::{ProxyFiles, http_get};

/// Killed when dropped.
pub struct Served {
    pub files: ProxyFiles,
    pub address: SocketAddr,
    pub http: SocketAddr,
    child: Child,
}

impl Served {
    pub async fn start(files: ProxyFiles) -> Served {
        Served::struck(files, "").await
    }

    /// The same, to be struck by a fault at this point.
    pub async fn struck(files: ProxyFiles, fault: &str) -> Served {
        let log = File::create(files.dir().join("log")).expect("a file in the proxy's folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgtenant"));
        command.args(["serve", "--config"]).arg(files.write()).env("PGTENANT_FAULT", fault);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        let mut child = command.spawn().expect("the program was built with the tests");
        let path = files.dir().join("log");
        let addresses = || (address(&path, "listening"), address(&path, "metrics and health"));
        crate::eventually!(
            matches!(addresses(), (Some(_), Some(_))) || child.try_wait().expect("a child").is_some(),
            "{}",
            fs::read_to_string(&path).unwrap_or_default()
        );
        let (Some(address), Some(http)) = addresses() else {
            panic!("the proxy does not start:\n{}", fs::read_to_string(&path).unwrap_or_default());
        };
        Served { files, address, http, child }
    }

    pub fn pid(&self) -> i32 {
        let pid = self.child.id().expect("not waited for yet");
        i32::try_from(pid).expect("process ids are small")
    }

    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: kill takes two numbers; the process is our own child and not waited for yet.
        let sent = unsafe { libc::kill(self.pid(), signal) };
        assert_eq!(sent, 0, "a process that takes signals");
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let ended = tokio::time::timeout(Duration::from_secs(30), self.child.wait()).await;
        ended.expect("an end within 30 s").expect("a child")
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_some()
    }

    /// Everything it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.files.dir().join("log")).expect("the log of a started proxy")
    }

    /// The same as parsed objects, where `log.format` is `json`.
    pub fn events(&self) -> Vec<serde_json::Value> {
        let log = self.log();
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }

    /// The value of a series on `/metrics`, all lines that begin with `series` summed.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = http_get(self.http, "/metrics").await.1;
        let lines = text.lines().filter(|line| line.starts_with(series));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// The most resident memory so far, in bytes (`VmHWM` of proc(5)).
    pub fn peak_memory(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// The memory that is resident now, in bytes (`VmRSS` of proc(5)).
    pub fn resident_memory(&self) -> u64 {
        self.memory("VmRSS:")
    }

    fn memory(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a Linux kernel");
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
        kilobytes * 1024
    }
}

/// The address in the log's line that says `what`.
fn address(log: &PathBuf, what: &str) -> Option<SocketAddr> {
    let log = fs::read_to_string(log).ok()?;
    let line = log.lines().find(|line| line.contains(what))?;
    let address = &line[line.find("127.0.0.1:")?..];
    let end = address.find(|c: char| c != '.' && c != ':' && !c.is_ascii_digit()).unwrap_or(address.len());
    address[..end].parse().ok()
}
