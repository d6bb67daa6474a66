"""The driver under test, and the table of what each passes (docs/reference/backends.md)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lapilli.ports.driver import Driver
from tests.contract.drivers.backends import BACKENDS, chosen
from tests.contract.results import Results

RESULTS = Results("backend", Path(__file__).with_name("results.json"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test of the contract on every back end that is chosen."""
    if "backend" in metafunc.fixturenames:
        marks = {True: [pytest.mark.ceph], False: []}
        wanted = [pytest.param(name, marks=marks[BACKENDS[name].ceph]) for name in chosen()]
        metafunc.parametrize("backend", wanted, scope="function")


@pytest.fixture
def driver(request: pytest.FixtureRequest, backend: str, tmp_path: Path) -> Driver:
    """A started driver on storage that holds nothing."""
    kind = BACKENDS[backend]
    if reason := kind.cannot.get(request.function.__name__):
        pytest.skip(reason)
    made = kind.make(request, tmp_path)
    made.start()
    assert not [*made.volumes(), *made.snapshots()], "the storage is another's"
    return made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None]:  # what came of a test, for the table
    """Note what came of each test of the contract."""
    report: pytest.TestReport = yield  # type: ignore[assignment, misc]
    RESULTS.note(item, report)
    return report  # type: ignore[return-value]


def pytest_sessionfinish() -> None:
    """Write the results of the back ends that ran, where that is asked for."""
    RESULTS.write({name: each.title for name, each in BACKENDS.items()})
