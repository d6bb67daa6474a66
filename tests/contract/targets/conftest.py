"""The target under test, and a volume exported by it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lapilli.ports.driver import BlockAddress
from lapilli.ports.target import ExportSpec, Target
from tests.contract.results import Results
from tests.contract.targets.harnesses import HARNESSES, Harness, chosen, harness_of

RESULTS = Results("kind", Path(__file__).with_name("results.json"))
Exportable = Callable[[Target], ExportSpec]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test of the contract on every target that is chosen; other modules name theirs (`kind`)."""
    if "kind" in metafunc.fixturenames and not hasattr(metafunc.module, "kind"):
        metafunc.parametrize("kind", chosen(), scope="function")


@pytest.fixture
def harness(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Iterator[Harness]:
    """How the target is made, reached and ended."""
    found = harness_of(kind)
    if reason := found.cannot.get(request.function.__name__):
        pytest.skip(reason)
    made = found(tmp_path)
    made.state.mkdir()
    yield made
    made.end()


@pytest.fixture
def target(harness: Harness) -> Target:
    """The target, started, serving nothing."""
    made = harness.make()
    made.start()
    assert list(made.exports()) == []
    return made


@pytest.fixture
def exportable(harness: Harness) -> Exportable:
    """Make a new volume of 64 MiB and what exports it."""

    def make(target: Target, address: BlockAddress | None = None) -> ExportSpec:
        volume_id = str(uuid.uuid4())
        data, secret = target.prepare(volume_id)
        return ExportSpec(volume_id, address or harness.volume(), data, secret, (harness.connector,))

    return make


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Note what came of each test of the contract."""
    report: pytest.TestReport = yield  # type: ignore[assignment, misc]
    RESULTS.note(item, report)
    return report  # type: ignore[return-value]


def pytest_sessionfinish() -> None:
    """Write the results of the targets that ran, where that is asked for."""
    RESULTS.write({name: name for name in HARNESSES})
