"""The service against the model: the same examples in every run, so that CI says the same twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model import driver, machine

EXAMPLES = 9
STEPS = 40


@pytest.fixture
def counts() -> Iterator[dict[str, int]]:
    """What the run has done; the service ends with it."""
    driver.COUNTS.clear()
    yield driver.COUNTS
    driver.leave_house()


def test_the_service_does_what_the_model_says(counts: dict[str, int]) -> None:
    run_state_machine_as_test(
        machine.Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    driver.leave_house()
    print(dict(counts))
    assert counts["steps"] > EXAMPLES * STEPS / 4, "it has not done much"
    assert counts["kill"], "no process was killed"
    assert counts["faults"], "no call of the back end failed"
