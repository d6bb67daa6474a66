"""What came of each test of a contract on each adapter, for the tables in docs/reference/backends.md."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest


class Results:
    """Outcomes by adapter and test; `param` is the parameter of the tests that names the adapter."""

    def __init__(self, param: str, path: Path) -> None:
        self._param = param
        self._path = path
        self._told: dict[str, dict[str, str]] = {}

    def note(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """Note what came of a test; of one that runs several times the worst."""
        name, chosen = getattr(item, "originalname", ""), getattr(item, "callspec", None)
        if chosen is None or self._param not in chosen.params or (report.passed and report.when != "call"):
            return
        outcome: str = report.outcome
        if report.skipped and isinstance(report.longrepr, tuple):
            outcome = f"cannot: {report.longrepr[2].removeprefix('Skipped: ')}"
        present = self._told.setdefault(chosen.params[self._param], {})
        if present.get(name) != "failed":
            present[name] = outcome

    def write(self, titles: Mapping[str, str]) -> None:
        """Write down the results of the adapters that ran, where that is asked for."""
        if not self._told or not os.environ.get("LAPILLI_WRITE_BACKENDS"):
            return
        kept = json.loads(self._path.read_text()) if self._path.exists() else {}
        for name, outcomes in self._told.items():
            kept[name] = {"title": titles[name], "tests": dict(sorted(outcomes.items()))}
        told = {name: kept[name] for name in titles if name in kept}
        self._path.write_text(json.dumps(told, indent=1) + "\n")
