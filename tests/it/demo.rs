//! `pgtenant demo` as its users run it: a process of its own, from the first line to nothing left behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::harness::proxy::http_get;

/// Three initdb, five seconds of pgbench, and whatever else the machine has to do.
const PATIENCE: Duration = Duration::from_secs(120);

/// The command, with a temporary folder of its own: what it leaves behind is there, or runs there.
struct Demo {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    folder: TempDir,
}

impl Demo {
    fn start(arguments: &[&str]) -> Demo {
        let folder = tempfile::Builder::new().prefix("pgt-demo-").tempdir().unwrap();
        // PostgreSQL runs as somebody else when we are root.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgtenant"));
        command.arg("demo").args(arguments).env("TMPDIR", folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Demo { child, lines, folder }
    }

    /// Reads up to the first line that holds `text`, all of it included.
    async fn read_until(&mut self, text: &str) -> String {
        let mut read = String::new();
        while !read.contains(text) {
            let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("a line in time").unwrap();
            let Some(line) = line else { panic!("ended before {text:?}:\n{read}\n{}", self.errors().await) };
            read += &line;
            read.push('\n');
        }
        read
    }

    async fn errors(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.as_mut().unwrap().read_to_string(&mut text).await.unwrap();
        text
    }

    fn signal(&self, signal: libc::c_int) {
        let pid = self.child.id().expect("it still runs").cast_signed();
        // SAFETY: kill(2) takes two integers.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Waits for the end: status, the rest of standard output, standard error. Asserts that nothing is left.
    async fn end(mut self) -> (ExitStatus, String, String) {
        let mut rest = String::new();
        let all = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                rest += &line;
                rest.push('\n');
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("the end in time");
        let errors = self.errors().await;
        let status = self.child.wait().await.unwrap();
        let left = leftovers(self.folder.path());
        assert!(left.is_empty(), "left behind: {left:#?}\n{rest}\n{errors}");
        (status, rest, errors)
    }
}

/// Files in the folder, and processes that work in it or were started with its name.
fn leftovers(folder: &Path) -> Vec<String> {
    let name = folder.to_str().unwrap();
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path().display().to_string());
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let process = entry.unwrap().path();
        process.file_name()?.to_str()?.parse::<u32>().ok()?;
        let works_there = fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
        let text = |file| fs::read(process.join(file)).unwrap_or_default();
        let mentions = |file| String::from_utf8_lossy(&text(file)).contains(name);
        let command = String::from_utf8_lossy(&text("cmdline")).replace('\0', " ");
        (works_there || mentions("cmdline") || mentions("environ")).then(|| format!("{}: {command}", process.display()))
    });
    files.chain(processes).collect()
}

fn fits_a_terminal(text: &str) -> bool {
    text.lines().all(|line| line.chars().count() <= 100)
}

#[tokio::test]
async fn once_proves_the_main_job_and_leaves_nothing_behind() {
    let demo = Demo::start(&["--once"]);
    let (status, output, errors) = demo.end().await;
    assert!(status.success(), "{output}\n{errors}");
    assert_eq!(errors, "");
    for expected in [
        "  what                 how  ",
        "3 of 3 read their own row",
        "6 of 6 refused (28P01)",
        "the answer to a wrong password",
        "0 errors",
        "the tenant's bound is 5",
    ] {
        assert!(output.contains(expected), "no {expected:?} in\n{output}");
    }
    assert!(!output.contains("FAILED") && !output.contains('\x1b'), "{output}");
    assert!(fits_a_terminal(&output), "{output}");
}

#[tokio::test]
async fn serves_until_ctrl_c() {
    let mut demo = Demo::start(&[]);
    let output = demo.read_until("Serving until Ctrl-C").await;
    assert!(fits_a_terminal(&output), "{output}");
    let url = output.split_once("metrics  http://").expect("the metrics' address").1;
    let address = url.split('/').next().unwrap().parse().unwrap();
    assert_eq!(http_get(address, "/readyz").await.0, 200);
    assert!(!leftovers(demo.folder.path()).is_empty(), "the leftovers of a running demo are not seen");
    demo.signal(libc::SIGINT);
    let (status, rest, errors) = demo.end().await;
    assert!(status.success(), "{rest}\n{errors}");
    assert_eq!(errors, "");
}

#[tokio::test]
async fn interrupted_while_it_sets_up_or_proves_it_leaves_nothing_behind() {
    for (at, signal) in
        [("pgtenant demo", libc::SIGINT), ("starting three", libc::SIGTERM), ("making certificates", libc::SIGHUP)]
    {
        let mut demo = Demo::start(&["--once"]);
        demo.read_until(at).await;
        demo.signal(signal);
        let (status, output, errors) = demo.end().await;
        assert_eq!(status.code(), Some(1), "{output}\n{errors}");
        assert!(errors.contains("interrupted"), "{errors}");
    }
}
