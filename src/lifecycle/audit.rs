//! The audit log: every act on a tenant as a JSON line, each line chained to the one before by SHA-256.
//!
//! A line's `hash` is taken over the line's own bytes up to it, and those hold the hash of the line before as `prev`.
//! Beside the log lies its head (`<log>.head`, the last line's number and hash): without it nobody would miss lines
//! that were cut off at the end.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What stands before the first line.
const NOTHING: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Where the hash begins in a line, counted from its end: `,"hash":"<64 digits>"}`.
const TAIL: usize = r#","hash":""}"#.len() + 64;
const LINE_BEGINS: &[u8] = br#"{"seq":"#;
const LONGEST_DETAIL: usize = 8 * 1024;
/// Longer ones are none of ours.
const LONGEST_LINE: u64 = 64 * 1024;

/// Something that was done, or tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act<'a> {
    /// Who: see [`operator`].
    pub who: &'a str,
    /// The command, `tenant create` for one.
    pub what: &'a str,
    pub tenant: Option<&'a str>,
    /// `begun`, `ok`, or `failed`.
    pub result: &'a str,
    /// Never a secret.
    pub detail: &'a str,
}

#[derive(Debug, Serialize, Deserialize)]
struct Line<'a> {
    seq: u64,
    /// RFC 3339, UTC.
    when: String,
    who: &'a str,
    what: &'a str,
    tenant: Option<&'a str>,
    result: &'a str,
    detail: &'a str,
    prev: &'a str,
}

/// What the next line, and the head, need of a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Link {
    seq: u64,
    hash: String,
}

impl Link {
    fn first() -> Link {
        Link { seq: 0, hash: NOTHING.to_owned() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("audit log {path}: {source}; nothing is done that cannot be written down", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("audit log {path}{at}: {what}", path = path.display(), at = line.map(|n| format!(", line {n}")).unwrap_or_default())]
    Broken { path: PathBuf, line: Option<u64>, what: String },
}

/// The log at a path; it is made, readable by its owner only, with the first act.
#[derive(Debug, Clone)]
pub struct Audit {
    path: PathBuf,
}

impl Audit {
    pub fn new(path: impl Into<PathBuf>) -> Audit {
        Audit { path: path.into() }
    }

    /// Appends the act; it is on the disk when this returns. Writers wait for each other.
    ///
    /// # Errors
    /// The file cannot be written, or its last line is not one of ours.
    pub fn record(&self, act: &Act<'_>) -> Result<(), AuditError> {
        let failed = |source| AuditError::Io { path: self.path.clone(), source };
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&self.path);
        let file = file.as_mut().map_err(|error| failed(io::Error::new(error.kind(), error.to_string())))?;
        file.lock().map_err(failed)?;
        let last = self.last_link(file)?;
        let line = Line {
            seq: last.seq + 1,
            when: now(),
            who: act.who,
            what: act.what,
            tenant: act.tenant,
            result: act.result,
            detail: shortened(act.detail),
            prev: &last.hash,
        };
        let (text, hash) = seal(&line).map_err(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        self.write_head(&Link { seq: line.seq, hash }).map_err(failed)
    }

    /// The last whole line. What a writer that was killed left half is cut off: nobody was told that it is there.
    fn last_link(&self, file: &mut File) -> Result<Link, AuditError> {
        let failed = |source| AuditError::Io { path: self.path.clone(), source };
        let length = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let start = length.saturating_sub(LONGEST_LINE);
        file.seek(SeekFrom::Start(start)).map_err(failed)?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail).map_err(failed)?;
        let whole = tail.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let half = &tail[whole..];
        let begins = half.iter().zip(LINE_BEGINS).all(|(found, ours)| found == ours);
        if !begins || (whole == 0 && start > 0) {
            let what = "it does not end as an audit log does; see pgtenant audit verify".to_owned();
            return Err(AuditError::Broken { path: self.path.clone(), line: None, what });
        }
        file.set_len(start + whole as u64).map_err(failed)?;
        let Some(lines) = tail[..whole].strip_suffix(b"\n") else { return Ok(Link::first()) };
        let begin = lines.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        read_line(&lines[begin..]).map_err(|what| AuditError::Broken {
            path: self.path.clone(),
            line: None,
            what: format!("its last line: {what}; see pgtenant audit verify"),
        })
    }

    fn head(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".head");
        name.into()
    }

    fn write_head(&self, link: &Link) -> io::Result<()> {
        super::files::replace(&self.head(), serde_json::to_string(link)?.as_bytes())
    }

    /// Checks every line against the one before, and the last against the head. Gives the number of lines and the last
    /// one's hash, which can be kept elsewhere.
    ///
    /// # Errors
    /// The first line that is not as it was written, with its number.
    pub fn verify(&self) -> Result<(u64, String), AuditError> {
        let failed = |source| AuditError::Io { path: self.path.clone(), source };
        let broken = |line: u64, what: String| AuditError::Broken {
            path: self.path.clone(),
            line: (line > 0).then_some(line),
            what,
        };
        let file = File::open(&self.path).map_err(failed)?;
        // No writer is halfway through a line then.
        file.lock_shared().map_err(failed)?;
        let head = match std::fs::read(self.head()) {
            Ok(text) => serde_json::from_slice::<Link>(&text)
                .map_err(|_| broken(0, format!("its head {} is not one of ours", self.head().display())))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(broken(0, format!("its head {} is missing", self.head().display())));
            }
            Err(error) => return Err(failed(error)),
        };
        let mut reader = BufReader::new(file);
        let (mut last, mut text, mut head_is_there) = (Link::first(), Vec::new(), head == Link::first());
        loop {
            text.clear();
            let read = (&mut reader).take(LONGEST_LINE).read_until(b'\n', &mut text).map_err(failed)?;
            if read == 0 {
                break;
            }
            let number = last.seq + 1;
            let line = text.strip_suffix(b"\n").ok_or_else(|| broken(number, "it does not end".to_owned()))?;
            last = follows(&last, line).map_err(|what| broken(number, what))?;
            head_is_there |= last == head;
        }
        // A writer that was killed may have left the head one line behind.
        if !head_is_there || last.seq > head.seq + 1 {
            let what = match last.seq < head.seq {
                true => format!("missing: lines up to {} were written", head.seq),
                false => format!("the head says line {} with another hash", head.seq),
            };
            return Err(broken(last.seq.min(head.seq) + u64::from(last.seq < head.seq), what));
        }
        Ok((last.seq, last.hash))
    }
}

fn shortened(detail: &str) -> &str {
    let end = detail.char_indices().map(|(at, _)| at).find(|&at| at >= LONGEST_DETAIL);
    &detail[..end.unwrap_or(detail.len())]
}

/// The line's text with its hash and a newline; and the hash.
fn seal(line: &Line<'_>) -> io::Result<(String, String)> {
    let text = serde_json::to_string(line)?;
    let body = text.strip_suffix('}').expect("an object's end");
    let hash = hash(body.as_bytes());
    Ok((format!("{body},\"hash\":\"{hash}\"}}\n"), hash))
}

fn hash(body: &[u8]) -> String {
    Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A line by itself: its number, and its hash where that is right.
fn read_line(line: &[u8]) -> Result<Link, String> {
    Ok(read_with_prev(line)?.0)
}

fn read_with_prev(line: &[u8]) -> Result<(Link, String), String> {
    let strange = || "it is not a line of an audit log".to_owned();
    let at = line.len().checked_sub(TAIL).ok_or_else(strange)?;
    let (body, tail) = line.split_at(at);
    let written =
        tail.strip_prefix(br#","hash":""#).and_then(|rest| rest.strip_suffix(br#""}"#)).ok_or_else(strange)?;
    let written = String::from_utf8(written.to_vec()).map_err(|_| strange())?;
    let whole = [body, b"}"].concat();
    let value: serde_json::Value = serde_json::from_slice(&whole).map_err(|_| strange())?;
    let seq = value["seq"].as_u64().ok_or_else(strange)?;
    let prev = value["prev"].as_str().ok_or_else(strange)?;
    if hash(body) != written {
        return Err("it was changed: its hash does not fit".to_owned());
    }
    Ok((Link { seq, hash: written }, prev.to_owned()))
}

/// Whether `line` is the one that came after `last`.
fn follows(last: &Link, line: &[u8]) -> Result<Link, String> {
    let (link, prev) = read_with_prev(line)?;
    let wanted = last.seq + 1;
    if link.seq > wanted {
        return Err(format!("removed: line {} follows on line {}", link.seq, last.seq));
    }
    if link.seq < wanted {
        return Err(format!("inserted: it says that it is line {}", link.seq));
    }
    if prev != last.hash {
        return Err("inserted or rewritten: it does not follow on the line before".to_owned());
    }
    Ok(link)
}

/// The present moment as the log has it.
pub fn now() -> String {
    let now = OffsetDateTime::now_utc();
    let now = now.replace_millisecond(now.millisecond()).unwrap_or(now);
    now.format(&Rfc3339).unwrap_or_else(|_| now.unix_timestamp().to_string())
}

/// Who runs this program: the account's name, with the one behind sudo.
pub fn operator() -> String {
    // SAFETY: getuid takes nothing and cannot fail (POSIX).
    let uid = unsafe { libc::getuid() };
    let name = account(uid).unwrap_or_else(|| format!("uid {uid}"));
    match std::env::var("SUDO_USER") {
        Ok(user) if uid == 0 => format!("{user} (as {name})"),
        _ => name,
    }
}

/// By passwd(5); accounts of a directory service are told by their number.
fn account(uid: libc::uid_t) -> Option<String> {
    let passwd = std::fs::read_to_string(Path::new("/etc/passwd")).ok()?;
    let uid = uid.to_string();
    let of = |line: &&str| line.split(':').nth(2) == Some(&uid);
    passwd.lines().find(of)?.split(':').next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn act(tenant: &str) -> Act<'_> {
        Act { who: "ops", what: "tenant create", tenant: Some(tenant), result: "ok", detail: "say \"hi\"\n" }
    }

    fn log_of(number: usize) -> (tempfile::TempDir, Audit, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::new(dir.path().join("audit.jsonl"));
        for at in 0..number {
            audit.record(&act(&format!("t{at}"))).unwrap();
        }
        let lines = std::fs::read_to_string(&audit.path).unwrap().lines().map(|line| format!("{line}\n")).collect();
        (dir, audit, lines)
    }

    fn complaint(audit: &Audit, lines: &[String]) -> String {
        std::fs::write(&audit.path, lines.concat()).unwrap();
        audit.verify().unwrap_err().to_string()
    }

    #[test]
    fn what_was_done_to_the_log_is_named() {
        let (_dir, audit, lines) = log_of(5);
        assert_eq!(audit.verify().unwrap().0, 5);
        let changed = complaint(&audit, &[&lines[..2], &[lines[2].replace("t2", "t9")], &lines[3..]].concat());
        assert!(changed.contains("line 3: it was changed"), "{changed}");
        let removed = complaint(&audit, &[&lines[..2], &lines[3..]].concat());
        assert!(removed.contains("line 3: removed: line 4 follows on line 2"), "{removed}");
        let inserted = complaint(&audit, &[&lines[..2], &lines[1..]].concat());
        assert!(inserted.contains("line 3: inserted: it says that it is line 2"), "{inserted}");
        let first = complaint(&audit, &lines[1..]);
        assert!(first.contains("line 1: removed"), "{first}");
        let cut = complaint(&audit, &lines[..3]);
        assert!(cut.contains("line 4: missing: lines up to 5 were written"), "{cut}");
        let forged = seal(&Line {
            seq: 3,
            when: now(),
            who: "x",
            what: "x",
            tenant: None,
            result: "ok",
            detail: "",
            prev: &read_with_prev(lines[2].trim_end().as_bytes()).unwrap().1,
        });
        let rewritten = complaint(&audit, &[&lines[..2], &[forged.unwrap().0], &lines[3..]].concat());
        assert!(rewritten.contains("line 4: inserted or rewritten"), "{rewritten}");
    }

    #[test]
    fn a_line_that_was_written_half_is_cut_off_by_the_next() {
        let (_dir, audit, lines) = log_of(2);
        std::fs::write(&audit.path, format!("{}{}", lines.concat(), &lines[1][..20])).unwrap();
        audit.record(&act("next")).unwrap();
        assert_eq!(audit.verify().unwrap().0, 3);
        // Killed between a line and its head.
        let head = std::fs::read(audit.head()).unwrap();
        audit.record(&act("another")).unwrap();
        std::fs::write(audit.head(), head).unwrap();
        assert_eq!(audit.verify().unwrap().0, 4);
    }

    #[test]
    fn writers_at_the_same_time_make_one_chain() {
        let (_dir, audit, _) = log_of(1);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5).for_each(|_| audit.record(&act("many")).unwrap()));
            }
        });
        assert_eq!(audit.verify().unwrap().0, 21);
    }
}
