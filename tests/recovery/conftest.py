"""Says at the end of a run what the recovery suite has covered and found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.recovery.figures import FIGURES

ROOT = Path(__file__).parents[2]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures, and write them to build/."""
    if FIGURES.told["kills"] or FIGURES.told["random_kills"]:
        told = FIGURES.write(ROOT / "build", bool(os.environ.get("LAPILLI_TEST_EVERY_POINT")))
        terminalreporter.write_sep("-", "recovery")
        terminalreporter.write_line(told)
