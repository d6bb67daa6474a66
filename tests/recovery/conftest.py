"""A service worked step by step; and at the end of a run, what the suite has covered and found."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recovery.figures import FIGURES
from tests.recovery.house import Scenario
from tests.recovery.idle import Idle
from tests.recovery.scenarios import create, nothing

ROOT = Path(__file__).parents[2]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures, and write them to build/."""
    if FIGURES.told["kills"] or FIGURES.told["random_kills"]:
        told = FIGURES.write(ROOT / "build", bool(os.environ.get("LAPILLI_TEST_EVERY_POINT")))
        terminalreporter.write_sep("-", "recovery")
        terminalreporter.write_line(told)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Idle]:
    """A simulated back end whose work the test does itself."""
    scenario = Scenario(
        "", "", nothing, create, lambda report: report, driver="sim", options={"attach_timeout": "20"}
    )
    made = Idle(tmp_path, scenario)
    for role in made.roles:
        for keeper in role._keepers:
            assert keeper.start()  # what a service does at its start, without its threads
        role._beat()
    yield made
    made.core.journal.bus.close()
    made.core.store.close()
