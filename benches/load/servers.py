"""Starts the throwaway PostgreSQL, PgBouncer and pgtenant that are compared, and ends them again by pid."""

import glob
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import time

ROLE, DATABASE, PASSWORD = "bench", "bench", "bench-password"
START_SECONDS = 30
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def postgres_programs():
    """The folder with initdb, postgres and pgbench: $PGT_POSTGRES_BIN, or the newest of Debian's, or that of $PATH."""
    given = os.environ.get("PGT_POSTGRES_BIN")
    debian = sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"), key=lambda path: int(path.split("/")[4]))
    found = given and os.path.join(given, "postgres") or (debian[-1] if debian else shutil.which("postgres"))
    if not found or not os.path.exists(found):
        raise SystemExit("bench-load: no PostgreSQL server found; set PGT_POSTGRES_BIN to the folder of initdb")
    return os.path.dirname(os.path.realpath(found))


def unprivileged():
    """Arguments for Popen: PostgreSQL and PgBouncer refuse to run as root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        except KeyError:
            continue
    raise SystemExit("bench-load: run as root, and there is neither a user postgres nor nobody")


class Server:
    """One process that listens on `port` on loopback; output goes to `<name>.log` in the folder of the run."""

    def __init__(self, name, folder, command, port, **run_as):
        self.name, self.port = name, port
        self.log = os.path.join(folder, f"{name}.log")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, **run_as)

    def wait(self):
        """Returns once the port takes connections; an end or silence until the deadline ends the whole run."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        with open(self.log, errors="replace") as log:
            raise SystemExit(f"bench-load: {self.name} did not start:\n{log.read()[-4000:]}")

    def cpu_seconds(self):
        """User and system time of the process so far, all threads together (proc(5): utime and stime)."""
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS

    def resident_kb(self):
        """The largest resident set so far, VmHWM."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmHWM:\s+(\d+)", status.read()).group(1))

    def end(self, ending):
        if self.process.poll() is None:
            self.process.send_signal(ending)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def started(server, ending, running):
    """Notes a server with the signal that ends it, before anything can fail, and waits for it."""
    running.append((server, ending))
    server.wait()
    return server


def certificate(folder):
    """A CA-less certificate for localhost that lasts a day, as certs/default.crt and .key."""
    certs = os.path.join(folder, "certs")
    os.mkdir(certs)
    crt, key = os.path.join(certs, "default.crt"), os.path.join(certs, "default.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", crt],
        check=True, capture_output=True)
    return crt, key


def owned(path, run_as):
    if run_as:
        os.chown(path, run_as["user"], run_as["group"])


def start_postgres(programs, folder, tls, running):
    """PostgreSQL with the pgbench database still empty: returns the server and the role's SCRAM verifier."""
    run_as, data, port = unprivileged(), os.path.join(folder, "data"), free_port()
    os.mkdir(data, 0o700)
    owned(data, run_as)
    subprocess.run([f"{programs}/initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale",
                    "--no-sync"], check=True, stdout=subprocess.DEVNULL, cwd=folder, **run_as)
    with open(os.path.join(data, "pg_hba.conf"), "w") as hba:
        hba.write(f"local all all trust\nhost {DATABASE} {ROLE} 127.0.0.1/32 scram-sha-256\n")
    command = [f"{programs}/postgres", "-D", data, "-p", str(port), "-k", data]
    options = {"listen_addresses": "127.0.0.1", "shared_buffers": "128MB", "fsync": "off", "autovacuum": "off",
               "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "300",
               "checkpoint_timeout": "1h", "max_wal_size": "4GB", "log_min_messages": "fatal"}
    if tls:
        for name, source in zip(("server.crt", "server.key"), tls):
            shutil.copy(source, os.path.join(data, name))
            os.chmod(os.path.join(data, name), 0o600)
            owned(os.path.join(data, name), run_as)
        options["ssl"] = "on"
    for name, value in options.items():
        command += ["-c", f"{name}={value}"]
    # SIGINT is PostgreSQL's fast shutdown.
    server = started(Server("postgres", folder, command, port, **run_as), signal.SIGINT, running)
    admin = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", data, "-p", str(port), "-U", "postgres"]
    subprocess.run([*admin, "-c", f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'",
                    "-c", f"CREATE DATABASE {DATABASE} OWNER {ROLE}"], check=True)
    verifier = subprocess.run([*admin, "-c", f"SELECT rolpassword FROM pg_authid WHERE rolname = '{ROLE}'"],
                              check=True, capture_output=True, text=True).stdout.strip()
    return server, verifier


def pgbouncer_version():
    """(major, minor) of the installed PgBouncer, or None."""
    try:
        said = subprocess.run([pgbouncer_program(), "--version"], capture_output=True, text=True).stdout
    except OSError:
        return None
    major, minor = re.search(r"PgBouncer (\d+)\.(\d+)", said).groups()
    return int(major), int(minor)


def pgbouncer_program():
    return shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"


def start_pgbouncer(folder, postgres, verifier, backends, tls, running):
    run_as, port = unprivileged(), free_port()
    lines = ["[databases]", f"{DATABASE} = host=127.0.0.1 port={postgres.port} dbname={DATABASE}", "[pgbouncer]",
             "listen_addr = 127.0.0.1", f"listen_port = {port}", "unix_socket_dir =", "auth_type = scram-sha-256",
             f"auth_file = {folder}/userlist.txt", "pool_mode = transaction", f"default_pool_size = {backends}",
             "max_client_conn = 1000", "server_tls_sslmode = disable", "log_connections = 0",
             "log_disconnections = 0", "log_stats = 0"]
    if pgbouncer_version() >= (1, 21):
        lines.append("max_prepared_statements = 200")
    if tls:
        lines += ["client_tls_sslmode = allow", f"client_tls_cert_file = {folder}/pgbouncer.crt",
                  f"client_tls_key_file = {folder}/pgbouncer.key"]
        for source, name in zip(tls, ("pgbouncer.crt", "pgbouncer.key")):
            shutil.copy(source, os.path.join(folder, name))
            owned(os.path.join(folder, name), run_as)
    for name, text in (("pgbouncer.ini", "\n".join(lines) + "\n"), ("userlist.txt", f'"{ROLE}" "{verifier}"\n')):
        path = os.path.join(folder, name)
        with open(path, "w") as file:
            file.write(text)
        os.chmod(path, 0o600)
        owned(path, run_as)
    server = Server("pgbouncer", folder, [pgbouncer_program(), f"{folder}/pgbouncer.ini"], port, **run_as)
    return started(server, signal.SIGTERM, running)


def start_pgtenant(program, folder, postgres, verifier, backends, tls, running):
    port = free_port()
    os.mkdir(os.path.join(folder, "tenants.d"))
    encrypted = 'mode = "preferred"\ncertificates = "certs"' if tls else 'mode = "off"'
    files = {
        "proxy.toml": f'''tenants_dir = "tenants.d"

[listen]
addresses = ["127.0.0.1:{port}"]

[tls]
{encrypted}

[http]
address = "off"

[log]
sessions = false

[instances.one]
host = "127.0.0.1"
port = {postgres.port}
max_backends = {backends}
''',
        "tenants.d/bench.toml": f'''instance = "one"
database = "{DATABASE}"

[roles.{ROLE}]
verifier = "{verifier}"

[pool]
max_backends = {backends}
''',
    }
    for name, text in files.items():
        path = os.path.join(folder, name)
        with open(path, "w") as file:
            file.write(text)
        os.chmod(path, 0o600)
    server = Server("pgtenant", folder, [program, "serve", "--config", f"{folder}/proxy.toml"], port)
    return started(server, signal.SIGTERM, running)
