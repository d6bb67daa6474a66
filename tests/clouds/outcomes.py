"""Run by Tempest's own Python: what became of each test, from a subunit stream, as a line of JSON each."""

import json
import sys

import subunit
import testtools


def tell(test):
    """One line; the reason of a skip, or the traceback of a failure, goes with it."""
    details = test["details"]
    found = [each for name, each in details.items() if name == "reason" or "traceback" in name]
    began, ended = test["timestamps"]
    told = {
        "id": test["id"],
        "status": test["status"],
        "seconds": (ended - began).total_seconds() if began and ended else 0,
        "why": found[0].as_text().strip() if found else "",
    }
    print(json.dumps(told))


collected = testtools.StreamToDict(tell)
collected.startTestRun()
subunit.ByteStreamToStreamResult(sys.stdin.buffer).run(collected)
collected.stopTestRun()
