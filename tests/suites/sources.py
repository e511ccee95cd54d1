"""PostgreSQL's own tests from Debian's source package, for the version that is installed; fetched and compiled once.

apt runs on a configuration of its own in target/suites: the system's sources with their source packages added. Nothing
is installed, and nothing of the system's apt is changed.
"""

import glob
import os
import re
import shutil
import subprocess

import scene


class Sources:
    """`tests` is src/test of the source tree, `library` regress.so, `pipeline` the program libpq_pipeline."""

    def __init__(self, folder):
        self.tests = os.path.join(folder, "source/src/test")
        self.library = os.path.join(folder, "regress.so")
        self.pipeline = os.path.join(folder, "libpq_pipeline")


def postgres(programs):
    """The sources that belong to the PostgreSQL whose `programs` these are."""
    said = subprocess.run([f"{programs}/postgres", "--version"], capture_output=True, text=True, check=True).stdout
    # As in "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"; built by somebody else it has no package's version.
    major = re.search(r"\) (\d+)", said).group(1)
    package = re.search(r"\([A-Z]\w+ (\S+)\)", said)
    folder = scene.kept("postgresql", package.group(1) if package else major)
    if not os.path.exists(os.path.join(folder, "ready")):
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        print(f"suites: fetching the sources of {said.strip()} with apt-get", flush=True)
        fetch(folder, major, package and package.group(1))
        build(folder, major)
        open(os.path.join(folder, "ready"), "w").close()
    return Sources(folder)


def with_sources(text):
    """apt's sources (one a line, or in deb822 stanzas) with the source packages of each."""
    lines = []
    for line in text.splitlines():
        if re.match(r"deb[ \t]", line):
            lines += [line, f"deb-src{line[3:]}"]
        else:
            lines.append(re.sub(r"^Types:.*", "Types: deb deb-src", line))
    return "\n".join(lines) + "\n"


def apt(folder):
    """apt-get on lists and a cache in `folder`."""
    parts = os.path.join(folder, "sources.list.d")
    for path in (parts, os.path.join(folder, "lists/partial"), os.path.join(folder, "archives/partial")):
        os.makedirs(path)
    system = ["/etc/apt/sources.list", *glob.glob("/etc/apt/sources.list.d/*")]
    for path in (path for path in system if path.endswith((".list", ".sources")) and os.path.exists(path)):
        with open(path) as file, open(os.path.join(parts, os.path.basename(path)), "w") as ours:
            ours.write(with_sources(file.read()))
    options = {"Dir::Etc::sourcelist": "/dev/null", "Dir::Etc::sourceparts": parts,
               "Dir::State::lists": f"{folder}/lists", "Dir::Cache": folder, "Acquire::Languages": "none"}
    if os.geteuid() == 0:
        options["APT::Sandbox::User"] = "root"
    return ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]


def fetch(folder, major, version):
    """Unpacks the source package into `source` and the packages with headers into `headers`."""
    if not shutil.which("apt-get"):
        raise SystemExit("suites: this is not a Debian system: PostgreSQL's sources come by `apt-get source`")
    command = apt(os.path.join(folder, "apt"))
    # A further repository may have no source packages: what is really missing shows at the next step.
    subprocess.run([*command, "update"], check=False, capture_output=True)
    packages = [f"postgresql-server-dev-{major}", "libpq-dev"]

    def get(suffix):
        subprocess.run([*command, "source", f"postgresql-{major}{suffix}"], check=True, capture_output=True, cwd=folder)
        subprocess.run([*command, "download", *(name + suffix for name in packages)], check=True, capture_output=True,
                       cwd=folder)

    try:
        get(f"={version}" if version else "")
    except subprocess.CalledProcessError:
        # An older minor version leaves the archive when the next one comes: its tests are nearly the same.
        try:
            get("")
        except subprocess.CalledProcessError as problem:
            raise SystemExit(f"suites: {' '.join(problem.cmd)}:\n{problem.stderr.decode()}") from None
    os.rename(max(glob.glob(f"{folder}/postgresql-{major}-{major}*/")), os.path.join(folder, "source"))
    for package in glob.glob(f"{folder}/*.deb"):
        subprocess.run(["dpkg", "-x", package, os.path.join(folder, "headers")], check=True)
    shutil.rmtree(os.path.join(folder, "apt"))


def build(folder, major):
    """Compiles regress.c, the functions that the regression tests call, and libpq_pipeline.c."""
    made, headers = Sources(folder), os.path.join(folder, "headers/usr")
    include = [f"-I{headers}/include/postgresql/{major}/server", f"-I{headers}/include/postgresql/internal",
               f"-I{headers}/include/postgresql"]
    subprocess.run(["cc", "-O1", "-w", "-fPIC", "-shared", f'-DDLSUFFIX=".so"', *include,
                    f"{made.tests}/regress/regress.c", "-o", made.library], check=True)
    libraries = f"{headers}/lib/postgresql/{major}/lib"
    subprocess.run(["cc", "-O1", "-w", *include, f"{made.tests}/modules/libpq_pipeline/libpq_pipeline.c",
                    f"-L{libraries}", "-lpgcommon", "-lpgport", "-l:libpq.so.5", "-o", made.pipeline], check=True)
