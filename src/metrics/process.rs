//! The `process_*` series, read from /proc at each scrape.
//!
//! By hand, because the prometheus crate's `process` feature brings in procfs and rustix for these few numbers.

use std::fs;

use super::text::{Micros, Text};

struct Process {
    cpu_micros: u64,
    resident_bytes: u64,
    virtual_bytes: u64,
    threads: u64,
}

/// Writes what can be read; where there is no /proc, nothing.
pub(super) fn write(text: &mut Text) {
    if let Some(process) = fs::read_to_string("/proc/self/stat").ok().and_then(|stat| parse_stat(&stat)) {
        text.family("process_cpu_seconds_total", "counter", "User and system CPU time spent.");
        text.sample("", Micros(process.cpu_micros));
        text.family("process_resident_memory_bytes", "gauge", "Resident memory.");
        text.sample("", process.resident_bytes);
        text.family("process_virtual_memory_bytes", "gauge", "Virtual memory.");
        text.sample("", process.virtual_bytes);
        text.family("process_threads", "gauge", "Threads of the process.");
        text.sample("", process.threads);
    }
    if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
        text.family("process_open_fds", "gauge", "Open file descriptors.");
        // The folder being read is one of them.
        text.sample("", descriptors.count().saturating_sub(1));
    }
    if let Some(limit) = fs::read_to_string("/proc/self/limits").ok().and_then(|limits| parse_max_fds(&limits)) {
        text.family("process_max_fds", "gauge", "Most file descriptors that may be open.");
        text.sample("", limit);
    }
}

/// Fields of proc(5), /proc/pid/stat, counted from behind the command's closing parenthesis (field 3).
fn parse_stat(stat: &str) -> Option<Process> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let ticks = field(14)? + field(15)?;
    Some(Process {
        cpu_micros: ticks * 1_000_000 / sysconf(libc::_SC_CLK_TCK)?,
        resident_bytes: field(24)? * sysconf(libc::_SC_PAGESIZE)?,
        virtual_bytes: field(23)?,
        threads: field(20)?,
    })
}

/// The soft limit; none where it is `unlimited`.
fn parse_max_fds(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn sysconf(name: libc::c_int) -> Option<u64> {
    // SAFETY: sysconf takes a number and touches no memory of ours.
    let value = unsafe { libc::sysconf(name) };
    u64::try_from(value).ok().filter(|value| *value > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 0 0 0 200 100 0 0 20 0 9 0 50 4096000 25 18446744073709551615";
        let process = parse_stat(stat).expect("a valid line");
        assert_eq!((process.threads, process.virtual_bytes), (9, 4_096_000));
        assert_eq!(process.resident_bytes, 25 * sysconf(libc::_SC_PAGESIZE).expect("a page size"));
        assert_eq!(process.cpu_micros, 300 * 1_000_000 / sysconf(libc::_SC_CLK_TCK).expect("a clock"));
        assert!(parse_stat("7 (short) S 1").is_none());
    }

    #[test]
    fn the_soft_limit_is_read() {
        assert_eq!(parse_max_fds("Max open files            1024                 4096       files\n"), Some(1024));
        assert_eq!(parse_max_fds("Max open files            unlimited            unlimited  files\n"), None);
    }
}
