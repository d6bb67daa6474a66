"""Runs scenarios in processes of their own that are killed at their points."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lapilli.errors import StorageError
from lapilli.flows.definitions import KINDS, RecordTask
from tests import databases
from tests.contract.targets.harnesses import harness_of
from tests.recovery.figures import moments
from tests.recovery.house import House, Report, Scenario
from tests.recovery.scenarios import SCENARIOS
from tests.recovery.wire import Wire

# processes of a server that has only imported: as clean as fresh ones, and there at once
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        __name__,
        "lapilli.adapters.drivers.sim",
        "lapilli.adapters.images.convert",
        "lapilli.adapters.targets.local",
        "oslo_utils.imageutils.format_inspector",
        "sqlalchemy.dialects.sqlite",
        "sqlalchemy.dialects.postgresql",
        "lapilli.adapters.buses.postgres",
        "pymysql",
    ]
)


def _fail(house: House, told: tuple[str, Exception]) -> None:
    """Let a call of driver or target fail whenever it is made."""
    where, _, name = told[0].partition(".")

    def fail(*_arguments: Any, **_named: Any) -> None:
        raise told[1]

    for backend in house.backends:
        setattr(getattr(backend, where), name, fail)


def _break(told: Scenario) -> None:
    """Let the task that the scenario names fail when it has done its work; each time."""
    assert told.breaks is not None
    definition = KINDS[told.kind]
    role, number = told.breaks
    task = definition.legs[role][number]
    name = "record" if isinstance(task, RecordTask) else "execute"
    work = getattr(task, name)

    def fail(*arguments: Any) -> None:
        work(*arguments)
        raise StorageError("The disk is on fire.")

    setattr(task, name, fail)


def _build(directory: Path, number: int) -> None:
    """Make what the operation needs, stop working, and ask for it."""
    told = SCENARIOS[number]
    house = House(directory, told)
    house.start()
    made = told.prepare(house)
    house.settle()
    for role in house.roles:
        assert role.stop(10)
    (directory / "before.json").write_text(json.dumps(house.report()))
    if house.harness is not None:
        house.harness.perish()  # each trial has daemons of its own, at the same ports
    told.submit(house, made)
    house.core.journal.bus.close()
    house.core.store.close()
    (directory / "ready").touch()
    os._exit(0)


def _work(directory: Path, number: int, at: int, to: Path | None) -> None:
    """Work until nothing is left to do or the point comes; then write down how things are."""
    told = SCENARIOS[number]
    house = House(directory, told)
    wire = Wire(at)
    if told.fails:
        _fail(house, told.fails)
    if told.breaks:
        _break(told)
    wire.lay(house)
    house.start()
    house.settle()
    house.rest()
    if to is not None:
        to.write_text(json.dumps({**house.report(), "passed": wire.passed}))
    os._exit(0)


def _fork(work: Callable[..., None], *arguments: Any) -> int:
    """The exit status of a child of this process, which has one thread."""
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _copied(source: Path, target: Path, half: int) -> Path:
    """The state directory, holes left holes, without what belongs to processes; its database too."""
    subprocess.run(["cp", "-a", "--sparse=always", source, target], check=True)
    shutil.rmtree(target / "run", ignore_errors=True)
    databases.borrow(target, f"lapilli_trials_{half}")
    return target


def _trials(place: Path, number: int, points: list[int], half: int) -> None:
    """For each point: kill a worker there (0: nowhere), let a fresh one go on, and keep its report."""
    for at in points:
        report = place / f"report-{at}"
        for near in _near(number, at):
            here = _copied(place / "built", place / f"at-{at}", half)
            killed = at == 0 or _fork(_work, here, number, near, None) == -signal.SIGKILL
            worked = killed and _fork(_work, here, number, 0, report) == 0
            _end_daemons(here, number)
            shutil.rmtree(here)
            if killed:
                break
        if not worked:
            report.write_text(
                json.dumps({"broken": "not killed" if not killed else "the fresh worker failed"})
            )
    os._exit(0)


def _near(number: int, at: int) -> list[int]:
    """The points to try: a daemon that ends removes files of its own, or leaves them to whoever removes the
    directory, who then has an effect more or less before the last points."""
    return [at] if at == 0 or SCENARIOS[number].target == "local" else [at, at, at - 1, at - 2]


def _end_daemons(directory: Path, number: int) -> None:
    """Those that outlive the service."""
    if SCENARIOS[number].target != "local":
        harness = harness_of(SCENARIOS[number].target)(directory.parent)
        harness.state = directory
        harness.end()


def _process(work: Callable[..., None], *arguments: Any) -> Any:
    child = FORKED.Process(target=work, args=arguments)
    child.start()
    return child


class Trial:
    """One scenario: built once, run at every point."""

    def __init__(self, number: int, place: Path) -> None:
        self.number = number
        self.told = SCENARIOS[number]
        self.place = place
        databases.section(str(place / "built"))
        _process(_build, place / "built", number).join()
        assert (place / "built" / "ready").exists(), "it could not be built"

    def run(self, points: list[int]) -> list[Report]:
        """How things are after a kill at each of the points and a fresh start; by two processes."""
        # daemons have the same ports in every trial: one after the other
        parts = 2 if self.told.target == "local" else 1
        halves = [
            _process(_trials, self.place, self.number, points[part::parts], part) for part in range(parts)
        ]
        for half in halves:
            half.join()
        return [json.loads((self.place / f"report-{at}").read_text()) for at in points]

    def wrong(self, report: Report, calm: Report) -> list[str]:
        """What is not as it should be, or not as it is without a kill."""
        if "broken" in report:
            return [report["broken"]]
        same = {name: calm[name] for name in ("operations", "pools", "usages", "messages")}
        wanted = same | self.told.wanted(report) | {"differences": [], "rubbish": []}
        wanted["reached"] = report["exports"]
        if self.told.messages is not None:
            wanted["messages"] = self.told.messages
        last = report["operations"][-1]
        said = [
            f"{key} are {report[key]}, not {value}" for key, value in wanted.items() if report[key] != value
        ]
        if tuple(last) != (self.told.kind, self.told.state):
            said.append(f"the last operation is {last}")
        return said


def distinct(points: list[str]) -> list[int]:
    """The last point of each moment (see `figures`): between two effects all are the same."""
    if os.environ.get("LAPILLI_TEST_EVERY_POINT"):
        return list(range(1, len(points) + 1))
    moment = moments(points)
    return [at for at in range(1, len(points) + 1) if at == len(points) or moment[at] != moment[at - 1]]
