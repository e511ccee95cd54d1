"""The poolers that are compared: pgtenant's builds, PgBouncer, and any further one by its program and templates."""

import os
import re
import shlex
import shutil
import signal
import string
import subprocess
from dataclasses import replace

from servers import DATABASE, PASSWORD, ROLE, Pooler, Target, throwaway

HERE = os.path.dirname(os.path.realpath(__file__))
PROXY = '''tenants_dir = "{records}"

[listen]
addresses = ["127.0.0.1:{port}"]
backlog = 4096

[tls]
mode = "preferred"
certificates = "{certificates}"

[limits]
max_clients = 20000

[http]
address = "off"

[log]
sessions = false

[instances.one]
host = "127.0.0.1"
port = {postgres_port}
max_backends = {backends}
'''
RECORD = '''instance = "one"
database = "{database}"

[roles.{role}]
verifier = "{verifier}"

[pool]
max_backends = {backends}
'''


class Pgtenant(Pooler):
    """A build of ours; each tenant is a file. `more` ends its proxy.toml."""

    def __init__(self, name, program, more=""):
        super().__init__(name)
        self.program, self.more = os.path.realpath(program), more

    def about(self):
        said = subprocess.run([self.program, "--version"], capture_output=True, text=True).stdout.strip()
        return f"{self.name}: {said}"

    @staticmethod
    def records(scene, tenants, backends):
        """The folder of the tenants' files, written once for all rounds."""
        folder = os.path.join(scene.folder, f"tenants-{len(tenants)}-{backends}")
        if not os.path.exists(folder):
            os.mkdir(folder)
            for tenant in tenants:
                with open(os.path.join(folder, f"{tenant}.toml"), "w") as file:
                    file.write(RECORD.format(database=tenant, role=ROLE, verifier=scene.verifier, backends=backends))
        return folder

    def start(self, scene, folder, tenants, backends, running):
        port, records = throwaway.free_port(), self.records(scene, tenants, backends)
        files = {"proxy.toml": PROXY.format(port=port, certificates=os.path.dirname(scene.certificate), records=records,
                                            postgres_port=scene.postgres.port, backends=backends) + self.more}
        server = throwaway.start_pgtenant(self.program, folder, port, files, running)
        return Target(self.name, server, port, by_option=True)


class Template(Pooler):
    """Any pooler: `command` with `{config}` for the folder of its filled templates (appended where it is not named).

    `config` is a file or a folder of them. In each, `${name}` is replaced: port, postgres_port, role, password,
    verifier, database, databases (PgBouncer's lines, one a tenant), backends, certificate, key, config (the folder).
    """

    def __init__(self, name, command, config):
        super().__init__(name)
        self.command, self.config, self.more = shlex.split(command), config, {}

    def about(self):
        for option in ("--version", "-V"):
            done = subprocess.run([self.command[0], option], capture_output=True, text=True)
            if done.returncode == 0 and done.stdout.strip():
                return f"{self.name}: {done.stdout.strip().splitlines()[0]}"
        return self.name

    def filled(self, folder, values, run_as):
        """Writes the templates with their values into `folder`; returns what the program is to be given."""
        single = os.path.isfile(self.config)
        source, names = (os.path.dirname(self.config) or ".", [os.path.basename(self.config)]) if single else (
            self.config, os.listdir(self.config))
        for name in names:
            with open(os.path.join(source, name)) as file:
                text = string.Template(file.read()).safe_substitute(values)
            path = os.path.join(folder, name)
            with open(path, "w") as file:
                file.write(text)
            os.chmod(path, 0o600)
            throwaway.owned(path, run_as)
        return os.path.join(folder, names[0]) if single else folder

    def start(self, scene, folder, tenants, backends, running):
        run_as, port = throwaway.unprivileged(), throwaway.free_port()
        copies = [shutil.copy(path, folder) for path in (scene.certificate, scene.key)]
        for path in (folder, *copies):
            throwaway.owned(path, run_as)
        host = f"host=127.0.0.1 port={scene.postgres.port}"
        values = {
            "port": port, "postgres_port": scene.postgres.port, "role": ROLE, "password": PASSWORD,
            "verifier": scene.verifier, "database": DATABASE, "backends": backends, "config": folder,
            "databases": "\n".join(f"{tenant} = {host} dbname={tenant}" for tenant in tenants),
            "certificate": copies[0], "key": copies[1], **self.more,
        }
        config = self.filled(folder, values, run_as)
        command = [word.replace("{config}", config) for word in self.command]
        command += [] if command != self.command else [config]
        server = throwaway.Server(self.name, folder, command, port, **run_as)
        return Target(self.name, throwaway.started(server, signal.SIGTERM, running), port)


class PgBouncer(Template):
    """The one that all ratios refer to."""

    def __init__(self, program):
        super().__init__("pgbouncer", f"{shlex.quote(program)} {{config}}/pgbouncer.ini",
                         os.path.join(HERE, "pgbouncer"))
        major, minor = re.search(r"PgBouncer (\d+)\.(\d+)", super().about()).groups()
        self.keeps_statements = (int(major), int(minor)) >= (1, 21)
        self.more = {"prepared": "max_prepared_statements = 200" if self.keeps_statements else ""}


    def adapted(self, scenario):
        """Before 1.21 it mixes up prepared statements: the same work unprepared is what it can do instead."""
        if self.keeps_statements:
            return scenario
        return replace(scenario, arguments=tuple(word.replace("prepared", "extended") for word in scenario.arguments))

    def about(self):
        why = "" if self.keeps_statements else " (keeps no prepared statements: -M extended instead)"
        return super().about() + why


def pgbouncer_program():
    """The newer one that scripts/pgbouncer.sh got, or the system's, or None."""
    ours = os.path.join(HERE, "../../target/pgbouncer/pgbouncer")
    found = [ours] if os.access(ours, os.X_OK) else []
    found += [path for path in (shutil.which("pgbouncer"), "/usr/sbin/pgbouncer") if path and os.path.exists(path)]
    return os.path.realpath(found[0]) if found else None
