"""What a run costs: CPU time of the pooler, of PostgreSQL and of everybody else, and perf's counts of the pooler."""

import glob
import os
import resource
import shutil
import signal
import subprocess

TICKS = os.sysconf("SC_CLK_TCK")
EVENTS = {"raw_syscalls:sys_enter": "syscalls", "instructions:u": "instructions"}


def numbers(pid):
    """Fields of /proc/<pid>/stat from the third (state) on."""
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def process_seconds(pid):
    """User and system time of all its threads, in nanoseconds where utime and stime of the process have ticks of 10 ms.

    A thread that ended is missing: poolers keep theirs.
    """
    total = 0
    for thread in glob.glob(f"/proc/{pid}/task/*/schedstat"):
        try:
            with open(thread) as file:
                total += int(file.read().split()[0])
        except OSError:
            continue
    return total / 1e9


def family_seconds(pid):
    """CPU time of a process and its children, the ended ones, too (for PostgreSQL: the postmaster and its backends)."""
    ended = sum(int(field) for field in numbers(pid)[13:15]) / TICKS
    return ended + process_seconds(pid) + sum(process_seconds(child) for child in children(pid))


def switches(pid):
    """Context switches of all threads so far, voluntary and not."""
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{thread}/status") as status:
                total += sum(int(line.split()[1]) for line in status if "ctxt_switches" in line)
        except OSError:
            continue
    return total


def resident_kb(pid):
    """The resident set now, exactly (statm's figure lags behind by some pages a thread)."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Rss:"))


def machine_seconds():
    """(CPU seconds that processes of this machine had, seconds that the host took away), all cores together."""
    with open("/proc/stat") as stat:
        user, nice, system, _idle, _wait, _irq, _softirq, steal = (int(word) for word in stat.readline().split()[1:9])
    return (user + nice + system) / TICKS, steal / TICKS


def own_seconds():
    """CPU seconds of this program and of the load generators that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


class Cost:
    """CPU times and context switches between its making and `since`."""

    def __init__(self, target, postgres):
        self.target, self.postgres = target, postgres
        self.before = self.now()

    def now(self):
        server = self.target.server
        machine, steal = machine_seconds()
        return {
            "proxy": process_seconds(server.process.pid) if server else 0.0,
            "postgres": family_seconds(self.postgres.process.pid),
            "switches": switches(server.process.pid) if server else 0,
            "machine": machine,
            "steal": steal,
            "client": own_seconds(),
        }

    def since(self):
        return {name: value - self.before[name] for name, value in self.now().items()}


class Perf:
    """perf counting one process from `with` to its end; `counts` is empty where perf or the right to it is missing."""

    def __init__(self, pid):
        self.pid, self.counts, self.perf = pid, {}, None

    def __enter__(self):
        if not shutil.which("perf"):
            return self
        orders, self.orders = os.pipe()
        self.answers, answers = os.pipe()
        command = ["perf", "stat", "-x,", "-D", "-1", "--control", f"fd:{orders},{answers}",
                   "-e", ",".join(EVENTS), "-p", str(self.pid)]
        self.perf = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                     pass_fds=(orders, answers))
        os.close(orders)
        os.close(answers)
        os.write(self.orders, b"enable\n")
        os.read(self.answers, 16)  # returns also when perf ends
        return self

    def __exit__(self, *_):
        if not self.perf:
            return
        self.perf.send_signal(signal.SIGINT)
        said = self.perf.communicate(timeout=10)[1]
        os.close(self.orders)
        os.close(self.answers)
        for line in said.splitlines():
            fields = line.split(",")
            if len(fields) > 2 and fields[2] in EVENTS and fields[0].isdigit():
                self.counts[EVENTS[fields[2]]] = int(fields[0])
