"""The house stands as planned: who may import whom, and a transition table without dead ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from importlinter.cli import lint_imports

from lapilli import compose
from lapilli.domain import states
from lapilli.domain.states import ANY, BACK, GONE, NEW, RECOMPUTED, TABLE, Transition
from lapilli.flows.definitions import KINDS

ROOT = Path(__file__).resolve().parents[2]
WORDS = {NEW, ANY, BACK, GONE, RECOMPUTED}  # what stands in the table for no status of its own
RESOURCES = sorted({row.resource for row in TABLE})


def test_imports_go_one_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    status = lint_imports(config_filename=str(ROOT / ".importlinter"), no_cache=True)
    told = capsys.readouterr().out
    assert status == 0, told[told.find("Contracts") :]
    assert "BROKEN" not in told


def _served() -> set[tuple[str, str]]:
    """(resource, while-state) of every kind of operation."""
    assert compose.make_core  # importing compose declares the operations
    held = set()
    for kind in KINDS.values():
        for resource, action in (*((kind.resource, each) for each in kind.actions), *kind.also):
            during = states.transition(resource, action).during
            if during is not None:
                held.add((resource, during))
    return held


@pytest.mark.parametrize("resource", RESOURCES)
def test_every_while_state_has_an_operation_that_serves_it(resource: str) -> None:
    wanted = {(resource, state) for state in states.while_states(resource)}
    assert wanted <= _served()


def test_every_operation_is_of_the_table() -> None:
    for kind in KINDS.values():
        for action in kind.actions:
            assert states.transition(kind.resource, action).event


def _name(row: Transition) -> str:
    return f"{row.resource}.{row.action}"


@pytest.mark.parametrize("row", [row for row in TABLE if row.during is not None], ids=_name)
def test_what_takes_time_ends_in_a_resting_state(row: Transition) -> None:
    """Done or failed: neither end needs an operation that has just ended."""
    for end in (row.done, row.failed):
        assert end in WORDS or end not in states.while_states(row.resource)


@pytest.mark.parametrize("row", [row for row in TABLE if row.during is None], ids=_name)
def test_what_takes_no_time_enters_no_while_state(row: Transition) -> None:
    """Nobody would lead it out again. Staying in one that an operation holds already is no entry."""
    if row.done in states.while_states(row.resource):
        assert row.sources == {row.done}


@pytest.mark.parametrize("resource", RESOURCES)
def test_every_source_can_be_reached(resource: str) -> None:
    """Where an action starts from is where another one, or the administrator's reset, leads to."""
    rows = [row for row in TABLE if row.resource == resource]
    reset = {"volume": states.VOLUME_RESET, "snapshot": states.SNAPSHOT_STATUSES}.get(resource, [])
    reached = WORDS | set(reset)
    for row in rows:
        reached |= {row.done, row.failed, row.during or row.done}
    for row in rows:
        assert row.sources <= reached, f"{row.action}: {row.sources - reached}"
