"""`make model`: the model test for as long as one likes, with other examples every time."""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections import Counter

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests import databases
from tests.model import driver, machine


def run(seed: int, examples: int, steps: int, *, shrink: bool) -> None:
    """One round. Raises what the first example that fails raises, with the steps that lead to it."""
    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        phases=phases,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(hypothesis.seed(seed)(machine.Machine), settings=chosen)


def told(seconds: float) -> str:
    """What has been done so far."""
    counts = driver.COUNTS + (driver._houses[0].counts if driver._houses else Counter())
    words = ("examples", "steps", "calls", "faults", "kill", "term")
    return ", ".join(f"{counts[word]} {word}" for word in words) + f" in {seconds:.0f} s"


def main() -> int:
    """Rounds of examples until the time is up, or one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="for how long (default: 10)")
    parser.add_argument("--rounds", type=int, help="how many rounds, instead of a time")
    parser.add_argument("--examples", type=int, default=10, help="examples of a round (default: 10)")
    parser.add_argument("--steps", type=int, default=40, help="most steps of an example (default: 40)")
    parser.add_argument("--seed", type=int, help="seed of the first round; default: a random one")
    parser.add_argument("--database", choices=databases.KINDS, default="sqlite")
    parser.add_argument("--no-shrink", action="store_true", help="show the first failure as it is")
    parser.add_argument("--answers", action="store_true", help="say at the end what was answered how often")
    options = parser.parse_args()
    databases.chosen = options.database
    seed = options.seed if options.seed is not None else random.randrange(10**6)
    began, rounds = time.monotonic(), 0
    try:
        while rounds < options.rounds if options.rounds else time.monotonic() - began < options.minutes * 60:
            run(seed + rounds, options.examples, options.steps, shrink=not options.no_shrink)
            rounds += 1
            print(f"seed {seed + rounds - 1}: {told(time.monotonic() - began)}", flush=True)
    except Exception:
        traceback.print_exc()
        print(f"\nFailed after {told(time.monotonic() - began)}. To see it again:")
        print(
            f"  python -m tests.model.run --seed {seed + rounds} --rounds 1 --examples {options.examples}"
            f" --steps {options.steps} --database {options.database}"
        )
        return 1
    finally:
        driver.leave_house()
    if options.answers:
        for answer, number in sorted(driver.ANSWERS.items()):
            print(f"{number:6}  {answer}")
    print(f"No difference: {told(time.monotonic() - began)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
