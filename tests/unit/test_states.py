"""Each row of the transition table, and what follows from attachments; see also tests/architecture."""

from __future__ import annotations

import itertools

import pytest

from lapilli.domain.states import (
    ANY,
    ATTACH_RESET,
    BACK,
    GONE,
    NEW,
    RECOMPUTED,
    SNAPSHOT_STATUSES,
    TABLE,
    VOLUME_RESET,
    Transition,
    attachment_summary,
    transition,
    while_states,
)

VOLUME = {*VOLUME_RESET, "reverting", "unmanaging", "error_unmanaging"}  # and what nobody resets to
ATTACHMENT = {"reserved", "attaching", "attached", "detaching", "error_attaching", "error_detaching"}
KNOWN = {"volume": VOLUME, "snapshot": set(SNAPSHOT_STATUSES), "attachment": ATTACHMENT}
SPECIAL = {BACK, GONE, RECOMPUTED}


def ids(row: Transition) -> str:
    return f"{row.resource}-{row.action}"


@pytest.mark.parametrize("row", TABLE, ids=ids)
def test_row_names_only_what_exists(row: Transition) -> None:
    known = KNOWN[row.resource]
    assert row.sources
    assert row.sources <= known | {NEW, ANY}
    if row.sources & {NEW, ANY}:
        assert len(row.sources) == 1, "a status beside (new) or (any)"
    assert row.during is None or row.during in known
    assert row.done in known | SPECIAL
    assert row.failed in known | {BACK, RECOMPUTED}
    assert row.after_crash == "resume"
    assert row.event.startswith(f"{row.resource}.")
    assert transition(row.resource, row.action) is row
    assert [row.ends_as(each) for each in ("done", "failed", "refused")] == [row.done, row.failed, BACK]


def test_rows_are_unique() -> None:
    assert len({(row.resource, row.action) for row in TABLE}) == len(TABLE)
    with pytest.raises(KeyError):
        transition("volume", "fly")


def test_a_change_that_takes_no_time_cannot_fail_half_way() -> None:
    for row in TABLE:
        if row.during is None and (row.resource, row.action) != ("attachment", "connect"):
            assert row.failed == BACK, ids(row)


def test_resets() -> None:
    assert while_states("volume") <= VOLUME
    assert ATTACH_RESET == ("attached", "detached")
    assert "deleting" in VOLUME_RESET


WORDS = ["attached", "attaching", "detaching", "reserved"]


@pytest.mark.parametrize(("statuses", "ends"), [
    ([], ("available", "detached")),
    (["reserved"], ("reserved", "reserved")),
    (["attaching"], ("attaching", "attaching")),
    (["attached"], ("in-use", "attached")),
    (["detaching"], ("detaching", "detaching")),
    (["error_attaching"], ("available", "detached")),
    (["error_detaching", "error_attaching"], ("available", "detached")),
    (["error_attaching", "reserved"], ("reserved", "reserved")),
])  # fmt: skip
def test_summary(statuses: list[str], ends: tuple[str, str]) -> None:
    assert attachment_summary(statuses) == ends


def test_summary_takes_the_strongest() -> None:
    for first, second in itertools.combinations(WORDS, 2):
        for statuses in ([first, second], [second, first], [second, "error_attaching", first, second]):
            assert attachment_summary(statuses)[1] == first
