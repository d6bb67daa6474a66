"""What an operator sees of an operation, and may do about it. Nothing here shows what it was asked with."""

from __future__ import annotations

from typing import Any

from lapilli.domain.model import Operation
from lapilli.flows.claims import HELD, UNFINISHED
from lapilli.flows.core import Core
from lapilli.flows.definitions import KINDS
from lapilli.store import records


def retry(core: Core, identifier: str) -> Operation:
    """Have it claimed now. Raises `NotFound`, or `InvalidState` when it has ended."""
    return core.journal.retry(identifier)


def abandon(core: Core, identifier: str, *, force: bool = False) -> Operation:
    """Have it reverted; with `force` write its end at once, and leave at the back end what is there.

    Raises `NotFound`, or `InvalidState` when it has ended.
    """
    if force:
        return core.journal.end_at_once(core, identifier)
    return core.journal.abandon(identifier)


def tasks(row: Operation) -> list[dict[str, Any]]:
    """The tasks that have ended, in that order, the one under way, and those to come."""
    told = [
        {"name": name, "role": role, "state": state, "started_at": began, "seconds": seconds}
        for role, name, began, seconds, state in row.timings
    ]
    definition = KINDS.get(row.kind)
    if definition is None or row.state not in UNFINISHED:
        return told
    here = [each.name for each in definition.legs.get(row.role, ())]
    if row.state == "reverting":
        return [*told, _to_come(here[row.step] if row.step < len(here) else "", row.role, "reverting")]
    coming = [(name, row.role) for name in here[row.step :]]
    if row.role == "scheduler":
        coming += [(each.name, "volume") for each in definition.legs.get("volume", ())]
    told += [_to_come(name, role, "waiting") for name, role in coming]
    if row.state == "running" and coming:
        told[-len(coming)]["state"] = "running"
    return told


def _to_come(name: str, role: str, state: str) -> dict[str, Any]:
    return {"name": name, "role": role, "state": state, "started_at": None, "seconds": None}


def progress(row: Operation) -> dict[str, Any] | None:
    """How far the bytes are; None where none were moved."""
    if not row.bytes_total:
        return None
    left = max(0, row.bytes_total - row.bytes_done)
    known = row.bytes_rate > 0 and row.state in HELD
    return {
        "bytes_done": row.bytes_done,
        "bytes_total": row.bytes_total,
        "bytes_per_second": row.bytes_rate,
        "seconds_left": round(left / row.bytes_rate, 1) if known else None,
    }


def holder(row: Operation) -> dict[str, Any] | None:
    """Who works on it, and until when its lease lasts; None while nobody does."""
    if row.state not in HELD or row.owner is None:
        return None
    parts = row.owner.split("|")
    pid = int(parts[3]) if len(parts) == 5 and parts[3].isdigit() else None
    return {"host": parts[0], "pid": pid, "lease_until": row.lease_until}


def error(row: Operation) -> dict[str, Any] | None:
    """The last error: its code and its message, and the call that hangs, for one that does."""
    if row.error is None:
        return None
    return {key: row.error[key] for key in ("code", "message", "hangs_in") if key in row.error}


def hangs(row: Operation) -> dict[str, Any] | None:
    """The task that has shown no progress until its deadline, and since when; None while all is well."""
    if not overdue(row):
        return None
    here = [each["name"] for each in tasks(row) if each["state"] in ("running", "reverting")]
    return {"task": here[0] if here else None, "since": row.updated_at}


def overdue(row: Operation) -> bool:
    """Whether its task has shown no progress until its deadline."""
    return row.state in HELD and row.deadline_at is not None and row.deadline_at < records.now()


def seconds(row: Operation) -> float:
    """Seconds from its submission to its end, or until now."""
    return round(((row.finished_at or records.now()) - row.created_at).total_seconds(), 3)
