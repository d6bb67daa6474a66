"""`make fuzz`: calls made of the API's description for as long as one likes, other ones every time."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter

from tests import databases
from tests.fuzz.caller import Caller
from tests.fuzz.house import House

VERSIONS = ("3.0", "3.27", "3.71")


def main() -> int:
    """Rounds of all versions until the time is up; tells every kind of problem once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="for how long (default: 10)")
    parser.add_argument("--examples", type=int, default=10, help="calls per operation and kind (default: 10)")
    parser.add_argument("--seed", type=int, help="seed of the first round; default: a random one")
    parser.add_argument("--versions", nargs="+", default=VERSIONS, help="microversions")
    parser.add_argument("--database", choices=databases.KINDS, default="sqlite")
    options = parser.parse_args()
    databases.chosen = options.database
    seed = options.seed if options.seed is not None else random.randrange(10**6)
    began = time.monotonic()
    problems: dict[str, str] = {}
    while time.monotonic() - began < options.minutes * 60:
        house = House()
        answers: Counter[int] = Counter()
        try:
            for version in options.versions:
                caller = Caller(house, version)
                caller.run(options.examples, seed)
                answers += caller.answers
                for key in caller.problems.keys() - problems.keys():
                    print(f"{key}\n    {caller.problems[key]}", flush=True)
                problems |= caller.problems
        finally:
            house.close()
        print(f"seed {seed}: {dict(sorted(answers.items()))}, {time.monotonic() - began:.0f} s", flush=True)
        seed += 1
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
