//! One postmaster process: launched so that it cannot outlive us, signalled, waited for, killed with its children.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use super::template::Owner;

const POLL: Duration = Duration::from_millis(2);

/// A postmaster that we started. Dropping this value does not end it: [`Postmaster::stop`] and [`Postmaster::kill`] do.
pub(super) struct Postmaster {
    pid: u32,
    exited: Receiver<ExitStatus>,
}

impl Postmaster {
    /// Starts `command` as `owner`, with a thread of its own as the parent.
    ///
    /// The kernel signals a child at its parent's death only when the *thread* that forked it ends (`prctl(2)`,
    /// PR_SET_PDEATHSIG). That thread therefore has to stay for as long as the postmaster runs, which one of an
    /// executor or a test runner need not do; here it waits for the exit status meanwhile.
    pub(super) fn launch(mut command: Command, owner: Option<Owner>) -> io::Result<Postmaster> {
        if let Some(owner) = owner {
            command.uid(owner.uid).gid(owner.gid);
        }
        // Ctrl-C at the terminal goes to our process group: what happens then is ours to decide.
        command.process_group(0);
        die_with_parent(&mut command);
        let (started, start) = mpsc::channel();
        let (exit, exited) = mpsc::channel();
        thread::Builder::new().name("postmaster".to_owned()).spawn(move || {
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => return started.send(Err(error)).unwrap_or_default(),
            };
            started.send(Ok(child.id())).unwrap_or_default();
            if let Ok(status) = child.wait() {
                exit.send(status).unwrap_or_default();
            }
        })?;
        let pid = start.recv().map_err(io::Error::other)??;
        Ok(Postmaster { pid, exited })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether the process has ended. Once this said so, the pid may belong to somebody else.
    pub(super) fn has_exited(&self) -> bool {
        !matches!(self.exited.try_recv(), Err(TryRecvError::Empty))
    }

    /// Waits for the exit; false when it did not come in time.
    fn exits_within(&self, timeout: Duration) -> bool {
        !matches!(self.exited.recv_timeout(timeout), Err(mpsc::RecvTimeoutError::Timeout))
    }

    /// Fast shutdown (SIGINT: sessions are ended, a checkpoint is written), then harder ones when it takes too long.
    /// See the PostgreSQL manual, "Shutting Down the Server".
    pub(super) fn stop(self) {
        if self.has_exited() {
            return;
        }
        send(self.pid, libc::SIGINT);
        if !self.exits_within(Duration::from_secs(10)) {
            self.abort();
        }
    }

    /// Immediate shutdown (SIGQUIT: no checkpoint), then SIGKILL when it takes too long.
    pub(super) fn abort(self) {
        if self.has_exited() {
            return;
        }
        send(self.pid, libc::SIGQUIT);
        if !self.exits_within(Duration::from_secs(5)) {
            self.kill();
        }
    }

    /// SIGKILL for the postmaster and every process it started; returns when all of them are gone, so that the data
    /// directory is free. The postmaster is halted first: it cannot fork behind our back while we read the list.
    pub(super) fn kill(self) {
        if self.has_exited() {
            return;
        }
        send(self.pid, libc::SIGSTOP);
        wait_until(Duration::from_secs(1), || Process::read(self.pid).is_none_or(|process| process.state == b'T'));
        let children = Process::children_of(self.pid);
        send(self.pid, libc::SIGKILL);
        for child in &children {
            if child.lives() {
                send(child.pid, libc::SIGKILL);
            }
        }
        self.exits_within(Duration::from_secs(5));
        wait_until(Duration::from_secs(5), || !children.iter().any(Process::lives));
    }
}

/// Asks the kernel to send SIGQUIT, the immediate shutdown, when the thread that forks ends. This must come after the
/// change of user, which clears the setting; std runs `pre_exec` closures after it, right before exec.
fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: between fork and exec only prctl and getppid are called, which are async-signal-safe, and the closure
    // neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGQUIT) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the setting took effect.
            if libc::getppid().unsigned_abs() != parent {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            Ok(())
        });
    }
}

fn send(pid: u32, signal: libc::c_int) {
    // SAFETY: kill(2) takes two integers and touches no memory of ours. It fails only when the process is gone, which
    // every caller finds out by waiting.
    unsafe { libc::kill(pid.cast_signed(), signal) };
}

/// Whether a process with this id runs, whoever it is.
pub(super) fn runs(pid: u32) -> bool {
    Process::read(pid).is_some_and(|process| process.state != b'Z')
}

/// Removes the System V segment named in `postmaster.pid` (line 7: key and id), which a killed postmaster leaves
/// behind. Only for a data directory whose processes are all gone.
pub(super) fn remove_shared_memory(postmaster_pid: &Path) {
    let Ok(text) = fs::read_to_string(postmaster_pid) else { return };
    let id = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)).and_then(|id| id.parse().ok());
    if let Some(id) = id {
        // SAFETY: IPC_RMID ignores the pointer.
        unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
    }
}

fn wait_until(timeout: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + timeout;
    while !condition() && Instant::now() < deadline {
        thread::sleep(POLL);
    }
}

/// A process as `/proc/<pid>/stat` shows it (proc(5)); pid and start time together name one process for good.
struct Process {
    pid: u32,
    parent: u32,
    state: u8,
    start_time: u64,
}

impl Process {
    fn read(pid: u32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command's name may hold anything, also blanks and parentheses: the fields follow the last one.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(Process {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            state: *fields.first()?.as_bytes().first()?,
            start_time: fields.get(19)?.parse().ok()?,
        })
    }

    fn children_of(parent: u32) -> Vec<Process> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(Process::read)
            .filter(|process| process.parent == parent)
            .collect()
    }

    /// Whether it still runs. A zombie has let go of everything; who reaps it (process 1, in a container often nobody)
    /// does not matter.
    fn lives(&self) -> bool {
        Process::read(self.pid).is_some_and(|now| now.start_time == self.start_time && now.state != b'Z')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_child_and_sees_it_die() {
        let postmaster = Postmaster::launch(shell("sleep 60 & wait"), None).unwrap();
        wait_until(Duration::from_secs(5), || !Process::children_of(postmaster.pid()).is_empty());
        let child = Process::children_of(postmaster.pid()).pop().expect("the shell has started sleep");
        assert!(child.lives());
        postmaster.kill();
        assert!(!child.lives());
    }

    #[test]
    fn outlives_the_thread_that_asked_for_it() {
        let postmaster = thread::spawn(|| Postmaster::launch(shell("sleep 60"), None).unwrap()).join().unwrap();
        assert!(!postmaster.exits_within(Duration::from_millis(100)));
        postmaster.kill();
    }

    #[test]
    fn a_missing_program_is_an_error() {
        let error = Postmaster::launch(Command::new("/nonexistent/postgres"), None).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }
}
