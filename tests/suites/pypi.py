"""Python suites: one virtual environment with pinned packages, source distributions, and pytest."""

import glob
import os
import shutil
import subprocess
import sys
import tarfile

import scene

HERE = os.path.dirname(os.path.realpath(__file__))
REQUIREMENTS = os.path.join(HERE, "requirements.txt")
# One test that hangs must not take the others' time.
TEST_SECONDS = 30


def version(package):
    """The version in requirements.txt."""
    with open(REQUIREMENTS) as file:
        return dict(line.strip().split("==") for line in file)[package]


def inputs():
    """Everything in requirements.txt, and the interpreter."""
    with open(REQUIREMENTS) as file:
        return [file.read(), sys.version]


def python():
    """The interpreter of the environment with the packages of requirements.txt."""
    with open(REQUIREMENTS) as file:
        return scene.python("python", "--only-binary", ":all:", *file.read().split())


def source(package):
    """The unpacked source distribution of the version that is installed: wheels come without tests."""
    folder = scene.kept("sources", f"{package}-{version(package)}")
    if not os.path.exists(folder):
        loaded = f"{folder}.loading"
        shutil.rmtree(loaded, ignore_errors=True)
        print(f"suites: fetching the sources of {package}", flush=True)
        subprocess.run([python(), "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                        "--no-binary", package, "--dest", loaded, f"{package}=={version(package)}"], check=True)
        with tarfile.open(glob.glob(f"{loaded}/*.tar.gz")[0]) as archive:
            archive.extractall(loaded)
        os.rename(glob.glob(f"{loaded}/*/")[0], folder)
        shutil.rmtree(loaded)
    return folder


def run(stage, way, name, arguments, seconds, folder, **more):
    """Runs Python with these arguments in the folder; returns the path of the outcomes that it has written."""
    path = scene.kept(name, f"{way}.outcomes")
    if os.path.exists(path):
        os.remove(path)
    output = scene.kept(name, f"{way}.out")
    more = {"OUTCOMES": path, "PYTHONPATH": os.path.join(HERE, "outcomes"), "PYTHONDONTWRITEBYTECODE": "1", **more}
    if stage.run(way, [python(), *arguments], seconds, output, cwd=folder, as_caller=True, **more) is None:
        with open(output, "a") as file:
            file.write(f"\nended after {seconds} s\n")
    return path


def pytest(stage, way, name, arguments, seconds, folder, **more):
    """Runs pytest there, without the suite's own choices on how to report."""
    command = ["-m", "pytest", "-q", "-o", "addopts=", "--tb=short", "-p", "no:cacheprovider", "-p", "pytest_outcomes",
               f"--timeout={TEST_SECONDS}", *arguments]
    return run(stage, way, name, command, seconds, folder, **more)
