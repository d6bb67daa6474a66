"""The words of `lapilli operation`: operations as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lapilli.domain.model import Operation
from lapilli.flows import operations as flows
from lapilli.flows.core import Core
from lapilli.store import records, tables

_op = tables.operations.c


def show(core: Core, identifier: str) -> Iterator[str]:
    """Lines about one operation. Raises `NotFound`."""
    with core.store.read() as connection:
        row = records.get(connection, Operation, identifier)
    yield f"id         {row.id}"
    yield f"kind       {row.kind}"
    yield f"state      {_state(row)}"
    yield f"resource   {row.resource_id}"
    yield f"project    {row.project_id}"
    yield f"request    {row.request_id}"
    yield f"asked at   {row.created_at.isoformat()}  ({flows.seconds(row):g} s)"
    yield f"runs at    {row.role} {row.host or ''}".rstrip()
    holder = flows.holder(row)
    if holder is not None:
        yield f"held by    {holder['host']}, process {holder['pid']}, until {holder['lease_until']}"
        yield f"deadline   {row.deadline_at}"
    if (hanging := flows.hangs(row)) is not None:
        yield f"hangs      {hanging['task']}, no sign of life since {hanging['since']}"
    yield f"attempts   {row.attempts}"
    if (progress := flows.progress(row)) is not None:
        yield f"progress   {_progress(progress)}"
    if row.error is not None:
        yield f"error      {row.error['code']}: {row.error['message']}"
        if row.error.get("hangs_in"):
            yield f"hung in    {row.error['hangs_in']}"
    yield "tasks"
    for task in flows.tasks(row):
        spent = "" if task["seconds"] is None else f"{task['seconds']:9.3f} s  {task['started_at']}"
        yield f"  {task['state']:<10}{task['role']:<11}{task['name']:<26}{spent}".rstrip()


def listing(
    core: Core, *, state: str | None, kind: str | None, resource_id: str | None, limit: int
) -> Iterator[str]:
    """A line for each, the newest first."""
    wanted = {"state": state, "kind": kind, "resource_id": resource_id}
    conditions = [_op[name] == text for name, text in wanted.items() if text is not None]
    sort = [("created_at", "desc"), ("id", "desc")]
    with core.store.read() as connection:
        found = records.page(connection, Operation, conditions, sort=sort, limit=limit)
    for row in found:
        where = row.host or row.role
        spent = f"{flows.seconds(row):>9.1f} s"
        yield f"{row.id}  {_state(row):<17}{row.kind:<22}{row.resource_id}  {spent}  {where}"


def _state(row: Operation) -> str:
    return f"{row.state} (overdue)" if flows.overdue(row) else row.state


def _progress(told: dict[str, Any]) -> str:
    share = 100 * told["bytes_done"] / told["bytes_total"]
    text = f"{told['bytes_done']} of {told['bytes_total']} bytes ({share:.0f} %)"
    if told["seconds_left"] is not None:
        text += f", {told['bytes_per_second'] / 1e6:.1f} MB/s, {told['seconds_left']:g} s left"
    return text
