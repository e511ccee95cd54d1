"""The scene of a suite: a fresh PostgreSQL with one tenant's databases, and pgtenant before it.

    with Scene("django", databases=["shop"]) as scene:
        scene.run("direct", ["python", "-m", "tests"], timeout=600)
        scene.start_proxy(chosen.pgtenant, "transaction")
        scene.run("transaction", ["python", "-m", "tests"], timeout=600)

The role is the cluster's first superuser, with a password (SCRAM): suites create and drop what they like, and some
look at who owns the catalogs. Through the proxy the tenant is chosen by PGOPTIONS, so that user,
password and database are the same as directly.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "../.."))
sys.path.insert(0, os.path.join(ROOT, "scripts"))
import throwaway  # noqa: E402

ROLE, PASSWORD, TENANT = "suite", "suite-password", "acme"
# What suites need once (sources, virtual environments), and what they leave to be looked at.
KEPT = os.path.join(ROOT, "target/suites")
MODES = ("transaction", "session")

PROXY = '''tenants_dir = "tenants.d"

[listen]
addresses = ["127.0.0.1:{port}"]

[tls]
mode = "off"

[http]
address = "off"

[instances.one]
host = "127.0.0.1"
port = {postgres}
max_backends = 200
'''

# The role's verifier stands in the record; those that a suite makes for itself are asked for.
RECORD = '''instance = "one"
database = "{database}"
databases = ["*"]

[roles.{role}]
verifier = "{verifier}"

[auth_query]
user = "{role}"
password = {{ file = "password" }}

[pool]
mode = "{mode}"
max_backends = {backends}
'''


class Scene:
    """Everything runs in a folder of its own, and is ended and removed at the end of the `with`."""

    def __init__(self, name, databases, settings=None):
        """`settings` of postgresql.conf; the first of `databases` is where clients get that name none."""
        self.name, self.databases, self.settings = name, databases, settings or {}
        self.programs = throwaway.postgres_programs()
        self.run_as = throwaway.unprivileged()
        self.running, self.ports = [], {}

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix=f"pgtenant-{self.name}-")
        try:
            os.chmod(self.folder, 0o711)
            self._start_postgres()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for server, ending in reversed(self.running):
            server.end(ending)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start_postgres(self):
        settings = {"max_connections": "220", "max_prepared_transactions": "20", **self.settings}
        server, self.admin = throwaway.start_postgres(
            self.programs, self.folder, "host all all 127.0.0.1/32 scram-sha-256\n", settings, self.running,
            superuser=ROLE)
        self.ports["direct"] = server.port
        self.sql(f"ALTER ROLE {ROLE} PASSWORD '{PASSWORD}'")
        for database in self.databases:
            self.sql(f'CREATE DATABASE "{database}" OWNER {ROLE} TEMPLATE template0')

    def sql(self, *statements, database="postgres"):
        """Runs each statement beside the proxy, by the Unix socket; returns what they print."""
        command = [argument for statement in statements for argument in ("-c", statement)]
        return subprocess.run([*self.admin, "-d", database, *command], check=True, capture_output=True,
                              text=True).stdout.strip()

    def start_proxy(self, program, mode, backends=40, pool="", record="", proxy=""):
        """pgtenant in this mode (one of MODES, also the name of the way).

        Further lines for [pool], for the rest of the record, and for proxy.toml.
        """
        folder, port = self.subfolder(f"proxy-{mode}"), throwaway.free_port()
        filled = RECORD.format(database=self.databases[0], role=ROLE, verifier=throwaway.verifier(self.admin, ROLE),
                               mode=mode, backends=backends)
        files = {
            "proxy.toml": f"{PROXY.format(port=port, postgres=self.ports['direct'])}{proxy}\n",
            f"tenants.d/{TENANT}.toml": f"{filled}{pool}\n{record}",
            "tenants.d/password": PASSWORD,
        }
        throwaway.start_pgtenant(os.path.realpath(program), folder, port, files, self.running)
        self.ports[mode] = port

    def end_proxy(self, mode):
        """Ends what `start_proxy` has started in this mode; its log stays with the scene."""
        for server, ending in self.running:
            if server.port == self.ports.get(mode):
                server.end(ending)
        del self.ports[mode]

    def log(self, way):
        """The path of PostgreSQL's log (way "direct"), or the proxy's."""
        return next(server.log for server, _ in self.running if server.port == self.ports[way])

    def subfolder(self, name):
        """An empty folder in the scene's that belongs to the user that the suite runs as."""
        path = os.path.join(self.folder, name)
        shutil.rmtree(path, ignore_errors=True)
        os.mkdir(path)
        throwaway.owned(path, self.run_as)
        return path

    def environment(self, way, **more):
        """libpq's variables for a way ("direct" or a mode); nothing of the caller's own remains."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        kept.update(PGHOST="127.0.0.1", PGPORT=str(self.ports[way]), PGUSER=ROLE, PGPASSWORD=PASSWORD,
                    PGDATABASE=self.databases[0], PGSSLMODE="disable", PGGSSENCMODE="disable",
                    PGCONNECT_TIMEOUT="10", LC_ALL="C.UTF-8", HOME=self.folder)
        if way != "direct":
            kept["PGOPTIONS"] = f"-c tenant={TENANT}"
        kept.update(more)
        return kept

    def conninfo(self, way):
        """libpq's connection string, for programs that take one instead of the environment."""
        options = f" options='-c tenant={TENANT}'" if way != "direct" else ""
        return (f"host=127.0.0.1 port={self.ports[way]} user={ROLE} password={PASSWORD} sslmode=disable "
                f"dbname={self.databases[0]}{options}")

    def run(self, way, command, timeout, output, cwd=None, as_caller=False, **more):
        """Runs a suite's program as the unprivileged user, its output into the file; the exit status, None: too long.

        `more` are further variables. The whole process group ends with the program, or after `timeout` seconds.
        `as_caller` is for programs in places that only the caller may read, such as a Python of their own.
        """
        run_as = {} if as_caller else self.run_as
        with open(output, "wb") as file:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                                       cwd=cwd or self.folder, env=self.environment(way, **more),
                                       start_new_session=True, **run_as)
            try:
                return process.wait(timeout)
            except subprocess.TimeoutExpired:
                return None
            finally:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                process.wait()


def python(name, *requirements):
    """The interpreter of the virtual environment target/suites/<name>-venv, with these packages ("name==version")."""
    folder = kept(f"{name}-venv")
    program, ready = os.path.join(folder, "bin/python"), os.path.join(folder, "ready")
    wanted = "\n".join([sys.version, *requirements])
    if not os.path.exists(ready) or open(ready).read() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([program, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements],
                       check=True)
        with open(ready, "w") as file:
            file.write(wanted)
    return program


def kept(*names):
    """A path below target/suites whose folder exists."""
    path = os.path.join(KEPT, *names)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path
