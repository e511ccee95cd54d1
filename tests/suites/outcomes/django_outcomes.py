"""Django's test runner, with each outcome as a line of JSON, at once, in the file that $OUTCOMES names."""

import json
import os
import unittest

from django.test.runner import DiscoverRunner


class Result(unittest.TextTestResult):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.outcomes = open(os.environ["OUTCOMES"], "w")

    def write(self, test, outcome):
        print(json.dumps([test.id(), outcome]), file=self.outcomes, flush=True)

    def stopTestRun(self):
        super().stopTestRun()
        self.outcomes.close()

    def addSuccess(self, test):
        super().addSuccess(test)
        self.write(test, "passed")

    def addExpectedFailure(self, test, problem):
        super().addExpectedFailure(test, problem)
        self.write(test, "passed")

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.write(test, "skipped")

    def addFailure(self, test, problem):
        super().addFailure(test, problem)
        self.write(test, "failed")

    def addError(self, test, problem):
        super().addError(test, problem)
        self.write(test, "failed")

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self.write(test, "failed")

    def addSubTest(self, test, subtest, problem):
        super().addSubTest(test, subtest, problem)
        if problem is not None:
            self.write(test, "failed")


class Runner(DiscoverRunner):
    def get_resultclass(self):
        return Result

    def teardown_databases(self, *arguments, **named):
        """A test of its own: no session may be left behind in a database that is dropped."""
        outcome = "failed"
        try:
            super().teardown_databases(*arguments, **named)
            outcome = "passed"
        finally:
            with open(os.environ["OUTCOMES"], "a") as outcomes:
                print(json.dumps(["teardown_databases", outcome]), file=outcomes)
