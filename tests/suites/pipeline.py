"""libpq_pipeline, PostgreSQL's tests of libpq's pipeline mode: each of them directly and through the proxy.

PostgreSQL also compares traces of the messages, which name the backend's own statements and are left out here.
"""

import os
import shutil
import subprocess

import scene
import sources

# As in t/001_libpq_pipeline.pl; some tests send so many rows that both sides' buffers must fill.
ROWS = 10_000
SECONDS = 60


def run(chosen):
    with scene.Scene("pipeline", ["postgres_pipeline"]) as stage:
        program = os.path.join(stage.subfolder("bin"), "libpq_pipeline")
        shutil.copy(sources.postgres(stage.programs).pipeline, program)
        tests = subprocess.run([program, "tests"], check=True, capture_output=True, text=True).stdout.split()
        for mode in chosen.modes:
            stage.start_proxy(chosen.pgtenant, mode)
        failed = {way: [test for test in tests if not passes(stage, way, program, test)]
                  for way in ("direct", *chosen.modes)}
    for way, names in failed.items():
        print(f"pipeline, {way}: {len(tests) - len(names)} of {len(tests)} pass{': not ' if names else ''}"
              f"{', '.join(names)}")
    return [f"{test} in {mode} mode, see {output(mode, test)}"
            for mode in chosen.modes for test in failed[mode] if test not in failed["direct"]]


def output(way, test):
    return scene.kept("pipeline", way, f"{test}.out")


def passes(stage, way, program, test):
    status = stage.run(way, [program, "-r", str(ROWS), test], SECONDS, output(way, test))
    if status is None:
        with open(output(way, test), "a") as file:
            file.write(f"\nended after {SECONDS} s\n")
    return status == 0
