"""Every operation, killed at every step: a fresh worker brings it to the end that the table names.

A scenario says how to make what an operation needs, how to ask for it, and what is true afterwards. It is run
once undisturbed, by a process that counts the points it passes (before and after each task, each commit, each
call of a back end, each rename), and then again and again by a process that kills itself at one of them: the
last before each effect, or, with LAPILLI_TEST_EVERY_POINT set, every one. After each kill a fresh worker
starts on what is left. A kind of operation without a scenario fails the test; that every task of every kind
is undone, too, is made from the registry.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from lapilli.flows.definitions import RecordTask
from tests.recovery.figures import FIGURES
from tests.recovery.scenarios import REAL_TARGETS, SCENARIOS, declared
from tests.recovery.trials import Trial, distinct


def test_every_kind_of_operation_has_a_scenario() -> None:
    """One that is done and, for each of its tasks, one that fails there."""
    assert declared().keys() == {each.kind for each in SCENARIOS if each.state == "done"}
    tasks = {
        (kind, (role, number))
        for kind, definition in declared().items()
        for role, tasks in definition.legs.items()
        for number in range(len(tasks))
    }
    assert tasks == {(each.kind, each.breaks) for each in SCENARIOS if each.breaks}


_REAL = pytest.mark.only_on("sqlite", because="what a real target does is the same with any database")
_NUMBERS = [
    pytest.param(number, id=f"{each.kind} {each.name}", marks=[_REAL] if each.target in REAL_TARGETS else [])
    for number, each in enumerate(SCENARIOS)
]


@pytest.mark.parametrize("number", _NUMBERS)
def test_killed_at_every_step(number: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place = tmp_path
    if SCENARIOS[number].reflinks:
        place = request.getfixturevalue("xfs") / uuid.uuid4().hex
        place.mkdir()
    trial = Trial(number, place)
    (calm,) = trial.run([0])
    assert trial.wrong(calm, calm) == [], "undisturbed"
    names: list[str] = calm["passed"]
    assert _steps(number) <= {name.removeprefix("before ") for name in names}, "a step was never begun"
    points = distinct(names)
    assert len(points) >= 2, names
    found = [trial.wrong(report, calm) for report in trial.run(points)]
    FIGURES.add(trial.told.kind, names, points)
    for wrong in found:
        FIGURES.blame(wrong)
    problems = [
        f"killed {names[at - 1]} (point {at}): {problem}"
        for at, wrong in zip(points, found, strict=True)
        for problem in wrong
    ]
    assert not problems, "\n".join(problems)
    print(f"{trial.told.kind} {trial.told.name}: {len(points)} kills, {len(names)} points")


def _steps(number: int) -> set[str]:
    """What a scenario made from the registry runs through: each task up to the one that fails, and back."""
    told = SCENARIOS[number]
    if told.breaks is None:
        return set()
    role, last = told.breaks
    return {
        f"{task.name}.{word}"
        for task in declared()[told.kind].legs[role][: last + 1]
        for word in (("record", "unrecord") if isinstance(task, RecordTask) else ("execute", "revert"))
    }
