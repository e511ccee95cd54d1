//! Runs a program of the operator's: JSON in, JSON out, a deadline, and nothing of it left behind.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use super::Failure;
use crate::config::Program;

/// Longest answer, in bytes.
const MAX_ANSWER: u64 = 64 * 1024;
/// Longest line of its standard error that is told whole, in bytes.
const MAX_LINE: u64 = 4 * 1024;
/// Of our environment, it always gets these.
const ENVIRONMENT: [&str; 8] = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR"];

/// Gives the program `question` on its standard input, and returns what it has written to its standard output. Lines of
/// its standard error go to `remark`, without the `secrets`.
///
/// # Errors
/// It cannot be run, ends with another status than 0, says too much, or is not done by its deadline: then it is killed,
/// with all the children that have stayed in its process group.
pub async fn ask(program: &Program, question: &[u8], secrets: &[&str], remark: fn(&str)) -> Result<Vec<u8>, Failure> {
    let failed = |why: String| Failure::Tool { program: program.path.display().to_string(), why };
    let mut command = Command::new(&program.path);
    command.args(&program.arguments).env_clear().kill_on_drop(true).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let passed = ENVIRONMENT.into_iter().chain(program.environment.iter().map(String::as_str));
    command.envs(passed.filter_map(|name| Some((name, std::env::var_os(name)?))));
    die_with_us(&mut command);
    let mut child = command.spawn().map_err(|error| failed(format!("it cannot be run: {error}")))?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()));
    let name = program.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut last = String::new();
    let answered = tokio::time::timeout(
        program.timeout,
        talk(&mut child, question, |line| {
            let line = secrets.iter().fold(line.to_owned(), |line, secret| line.replace(secret, "[secret]"));
            remark(&format!("{name}: {line}"));
            last = line;
        }),
    );
    let answered = answered.await;
    let said = || if last.is_empty() { String::new() } else { format!("; it said: {last}") };
    match answered {
        Err(_) => Err(failed(format!("not done within {} s, and killed{}", program.timeout.as_secs_f64(), said()))),
        Ok(Err(why)) => Err(failed(why + &said())),
        Ok(Ok((answer, status))) => {
            // Its number may be another's from now on.
            group.0 = None;
            match status.success() {
                true => Ok(answer),
                false => Err(failed(format!("it ended with {status}{}", said()))),
            }
        }
    }
}

/// All at once: a program that says much before it listens must not wait for us, nor we for it.
async fn talk(
    child: &mut Child,
    question: &[u8],
    said: impl FnMut(&str),
) -> Result<(Vec<u8>, std::process::ExitStatus), String> {
    let (Some(mut stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err("it has no pipes".to_owned());
    };
    let ask = async {
        // One that does not want to know the question may still answer.
        let _ = stdin.write_all(question).await;
        drop(stdin);
        Ok::<(), String>(())
    };
    let mut answer = Vec::new();
    let mut bounded = stdout.take(MAX_ANSWER + 1);
    let read = async {
        bounded.read_to_end(&mut answer).await.map_err(|error| error.to_string())?;
        match answer.len() as u64 > MAX_ANSWER {
            true => Err(format!("its answer has more than {MAX_ANSWER} bytes")),
            false => Ok(()),
        }
    };
    let listen = async {
        lines(stderr, said).await;
        Ok(())
    };
    tokio::try_join!(ask, read, listen)?;
    let status = child.wait().await.map_err(|error| error.to_string())?;
    Ok((answer, status))
}

/// Lines of it; what is too long for one is told as several.
async fn lines(stderr: impl AsyncRead + Unpin, mut said: impl FnMut(&str)) {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => match String::from_utf8_lossy(&line).trim_end() {
                "" => {}
                text => said(text),
            },
        }
    }
}

/// The program and its children, killed when this goes before they have ended. It is not waited for until then, so that
/// its number is nobody else's.
struct Group(Option<i32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.0 {
            // SAFETY: a signal to a process group that we have made; nothing is shared.
            unsafe { libc::kill(-id, libc::SIGKILL) };
        }
    }
}

/// The program is no longer wanted when this process is gone, however it went; its files are for their owner alone.
pub(crate) fn die_with_us(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: between fork and exec only umask, prctl and getppid are called, which are async-signal-safe; the closure
    // neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(move || {
            libc::umask(0o077);
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            match libc::getppid().unsigned_abs() == parent {
                true => Ok(()),
                false => Err(std::io::Error::from_raw_os_error(libc::ESRCH)),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn shell(script: &str, timeout: Duration) -> Program {
        Program {
            path: "/bin/sh".into(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            environment: vec!["CARGO_MANIFEST_DIR".to_owned()],
            timeout,
        }
    }

    async fn run(script: &str, timeout: Duration) -> Result<String, String> {
        let answer = ask(&shell(script, timeout), b"{\"a\":1}", &["hunter2"], |_| ()).await;
        answer.map(|answer| String::from_utf8(answer).unwrap()).map_err(|failure| failure.to_string())
    }

    #[tokio::test]
    async fn it_is_asked_and_answers() {
        let minute = Duration::from_secs(60);
        assert_eq!(run("cat", minute).await.unwrap(), "{\"a\":1}");
        assert_eq!(run("echo yes", minute).await.unwrap(), "yes\n");
        let environment = run("env", minute).await.unwrap();
        assert!(
            environment.contains("CARGO_MANIFEST_DIR=") && !environment.contains("CARGO_PKG_NAME="),
            "{environment}"
        );
        let why = run("echo no room with hunter2 >&2; exit 3", minute).await.unwrap_err();
        assert!(why.contains("exit status: 3; it said: no room with [secret]"), "{why}");
        let why = run("head -c 70000 /dev/zero", minute).await.unwrap_err();
        assert!(why.contains("more than 65536 bytes"), "{why}");
        let none = Program { path: "/nowhere".into(), ..shell("", minute) };
        assert!(ask(&none, b"", &[], |_| ()).await.unwrap_err().to_string().contains("cannot be run"));
    }

    #[tokio::test]
    async fn its_children_do_not_outlive_its_time() {
        let begun = Instant::now();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("child");
        let script = format!("sleep 60 & echo $! > {}; wait", file.display());
        let why = run(&script, Duration::from_millis(500)).await.unwrap_err();
        assert!(why.contains("not done within 0.5 s, and killed"), "{why}");
        let child = std::fs::read_to_string(file).unwrap();
        let is_there = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
            stat.contains("(sleep)") && !stat.contains(") Z ")
        };
        while is_there() {
            assert!(begun.elapsed() < Duration::from_secs(10), "the child lives on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
