"""Starts the throwaway PostgreSQL, PgBouncer and pgtenant that are compared, and ends them again by pid."""

import os
import re
import shutil
import signal
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../../scripts"))
import throwaway
from throwaway import Server, free_port, owned, started, unprivileged

ROLE, DATABASE, PASSWORD = "bench", "bench", "bench-password"


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


def start_postgres(programs, folder, tls, running):
    """PostgreSQL with the pgbench database still empty: returns the server and the role's SCRAM verifier."""
    settings = {"shared_buffers": "128MB", "autovacuum": "off", "max_connections": "300", "checkpoint_timeout": "1h",
                "max_wal_size": "4GB", "log_min_messages": "fatal"}
    hba = f"host {DATABASE} {ROLE} 127.0.0.1/32 scram-sha-256\n"
    server, admin = throwaway.start_postgres(programs, folder, hba, settings, running, tls)
    subprocess.run([*admin, "-c", f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'",
                    "-c", f"CREATE DATABASE {DATABASE} OWNER {ROLE}"], check=True)
    return server, throwaway.verifier(admin, ROLE)


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
    encrypted = f'mode = "preferred"\ncertificates = "{os.path.dirname(tls[0])}"' if tls else 'mode = "off"'
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
    return throwaway.start_pgtenant(program, folder, port, files, running)
