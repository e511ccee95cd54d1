"""Plugin for pytest: each outcome as a line of JSON, at once, in the file that $OUTCOMES names."""

import json
import os

outcomes = open(os.environ["OUTCOMES"], "w")


def pytest_runtest_logreport(report):
    # Set-up and teardown count where they fail or skip; a subtest reports under its test's name.
    if report.when == "call" or report.outcome != "passed":
        print(json.dumps([report.nodeid, report.outcome]), file=outcomes, flush=True)
