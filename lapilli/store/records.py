"""Reading and writing records: get, page, insert, update, and the guarded status changes of the table.

Functions take a connection, so that callers decide what belongs into one transaction.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any, Literal, TypeVar

import sqlalchemy as sa

from lapilli.domain import states
from lapilli.domain.model import (
    ApplicationCredential,
    Attachment,
    CachedImage,
    Connection,
    DefaultType,
    Export,
    LogLevel,
    Message,
    Operation,
    Pool,
    QosSpecs,
    Record,
    RevokedToken,
    Service,
    Snapshot,
    Transfer,
    Volume,
    VolumeType,
)
from lapilli.errors import InvalidState, NotFound
from lapilli.store import clock, tables, upserts
from lapilli.store.session import RIDER

R = TypeVar("R", bound=Record)
Lock = Literal["update", "share"]

TABLES: dict[type[Record], sa.Table] = {
    Volume: tables.volumes,
    Snapshot: tables.snapshots,
    Attachment: tables.attachments,
    Transfer: tables.transfers,
    Export: tables.exports,
    Connection: tables.connections,
    VolumeType: tables.volume_types,
    QosSpecs: tables.qos_specs,
    DefaultType: tables.default_types,
    Service: tables.services,
    LogLevel: tables.log_levels,
    ApplicationCredential: tables.application_credentials,
    RevokedToken: tables.revoked_tokens,
    Pool: tables.pools,
    CachedImage: tables.cached_images,
    Message: tables.messages,
    Operation: tables.operations,
}
RESOURCES: dict[str, type[Record]] = {"volume": Volume, "snapshot": Snapshot, "attachment": Attachment}
_STATUS = {"volume": "status", "snapshot": "status", "attachment": "attach_status"}  # columns
_NAMES: dict[type[Record], str] = {
    Volume: "volume",
    Snapshot: "snapshot",
    Attachment: "attachment",
    Transfer: "transfer",
    VolumeType: "volume type",
    QosSpecs: "QoS specs",
    ApplicationCredential: "application credential",
    DefaultType: "default type of project",
    Message: "message",
    Operation: "operation",
    Service: "service",
    Pool: "pool",
}


def new_id() -> str:
    """A fresh id for a record."""
    return str(uuid.uuid4())


now = clock.now


def table_of(kind: type[Record]) -> sa.Table:
    """The table that holds records of a kind."""
    return TABLES[kind]


@lru_cache(maxsize=256)
def _select(kind: type[Record]) -> sa.Select[Any]:
    return sa.select(TABLES[kind])


def make(kind: type[R], row: Any) -> R:
    """A record from a row that holds all its columns, in table order."""
    record: R = _maker(kind)(row)
    return record


@lru_cache(maxsize=64)
def _maker(kind: type[Record]) -> Callable[[Any], Any]:
    """A constructor by position: five times as fast as by name, and a list makes 1,000 records."""
    columns = enumerate(TABLES[kind].columns)
    told = ", ".join(f"{column.name}=row[{place}]" for place, column in columns)  # nothing from outside
    made: Callable[[Any], Any] = eval(f"lambda row: make({told})", {"make": kind})  # noqa: S307
    return made


def get(
    connection: sa.Connection,
    kind: type[R],
    identifier: str,
    *,
    project_id: str | None = None,
    lock: Lock | None = None,
) -> R:
    """One record by id. Raises `NotFound`, also when `project_id` is given and is not the record's."""
    found = find(connection, kind, identifier, lock=lock)
    if found is None or (project_id is not None and getattr(found, "project_id", None) != project_id):
        raise NotFound.of(_NAMES[kind], identifier)
    return found


def find(connection: sa.Connection, kind: type[R], identifier: str, *, lock: Lock | None = None) -> R | None:
    """One record by its (first) primary key, or None.

    `lock` until the transaction ends: "update" for a record that the transaction decides by or writes,
    "share" for one that must neither go nor change its name. SQLite has one writer, and locks nothing.
    """
    row = connection.execute(_by_key(kind, lock), {"key": identifier}).first()
    return None if row is None else make(kind, row)


@lru_cache(maxsize=64)
def _by_key(kind: type[Record], lock: Lock | None = None) -> sa.Select[Any]:
    table = TABLES[kind]
    query = _select(kind).where(next(iter(table.primary_key.columns)) == sa.bindparam("key"))
    if lock == "share":
        return query.with_for_update(read=True, key_share=True)
    return query if lock is None else query.with_for_update()


def all_of(
    connection: sa.Connection, kind: type[R], *conditions: sa.ColumnElement[bool], order: Any = None
) -> list[R]:
    """Every record that meets the conditions."""
    query = _select(kind)
    if conditions:
        query = query.where(*conditions)
    if order is not None:
        query = query.order_by(order)
    return [make(kind, row) for row in connection.execute(query)]


def page(
    connection: sa.Connection,
    kind: type[R],
    conditions: Sequence[sa.ColumnElement[bool]],
    *,
    sort: Sequence[tuple[str, str]],
    marker: str | None = None,
    limit: int | None = None,
    offset: int = 0,
) -> list[R]:
    """One page in keyset order: `sort` holds (column name, asc|desc), and must end with the id.

    Nulls sort first ascending, on every database. Raises `NotFound` for a marker that does not exist.
    """
    table = TABLES[kind]
    query = _select(kind).where(*conditions)
    if marker is not None:
        last = find(connection, kind, marker)
        if last is None:
            raise NotFound.of("marker", marker)
        query = query.where(_after(table, sort, last))
    for name, direction in sort:
        column = table.c[name]
        if column.nullable:
            empty = sa.case((column.is_(None), 0), else_=1)
            query = query.order_by(empty.asc() if direction == "asc" else empty.desc())
        query = query.order_by(column.asc() if direction == "asc" else column.desc())
    if limit is not None:
        query = query.limit(limit)
    if offset:
        query = query.offset(offset)
        if limit is None:
            query = query.limit(2**31 - 1)
    return [make(kind, row) for row in connection.execute(query)]


def _after(table: sa.Table, sort: Sequence[tuple[str, str]], last: Record) -> sa.ColumnElement[bool]:
    """Rows strictly behind `last` in the order of `sort`."""
    branches: list[sa.ColumnElement[bool]] = []
    equal: list[sa.ColumnElement[bool]] = []
    for name, direction in sort:
        column, value = table.c[name], getattr(last, name)
        behind: sa.ColumnElement[bool]
        if value is None:
            behind = column.is_not(None) if direction == "asc" else sa.false()
        elif direction == "asc":
            behind = column > sa.literal(value, column.type)  # literal: a bare bool is no operand of >
        else:
            behind = column < sa.literal(value, column.type)
            behind = sa.or_(behind, column.is_(None)) if column.nullable else behind
        branches.append(sa.and_(*equal, behind))
        equal.append(column.is_(None) if value is None else column == value)
    return sa.or_(*branches)


def count(connection: sa.Connection, kind: type[Record], conditions: Sequence[sa.ColumnElement[bool]]) -> int:
    """How many records meet the conditions."""
    query = sa.select(sa.func.count()).select_from(TABLES[kind]).where(*conditions)
    return int(connection.execute(query).scalar_one())


def insert(connection: sa.Connection, record: Record) -> None:
    """Add a record."""
    if (rider := RIDER.get()) is not None:
        rider.note(record)
    table = TABLES[type(record)]
    connection.execute(table.insert(), {name: getattr(record, name) for name in record.__struct_fields__})


def add_missing(connection: sa.Connection, record: Record) -> None:
    """Add a record that another process may be adding at this moment: then nothing changes."""
    values = {name: getattr(record, name) for name in record.__struct_fields__}
    upserts.add_missing(connection, TABLES[type(record)], [values])


def update(connection: sa.Connection, kind: type[Record], identifier: str, **changes: Any) -> bool:
    """Change columns of one record; False when it is not there. Statuses go through `enter` and `leave`."""
    if "updated_at" in TABLES[kind].c:
        changes.setdefault("updated_at", now())
    values = {f"new_{name}": value for name, value in changes.items()}
    return connection.execute(_update(kind, tuple(changes)), {"key": identifier, **values}).rowcount > 0


@lru_cache(maxsize=256)
def _update(kind: type[Record], names: tuple[str, ...]) -> sa.Update:
    """An update by key; made once per set of columns, since making it costs more than running it."""
    table = TABLES[kind]
    return (
        table.update()
        .where(next(iter(table.primary_key.columns)) == sa.bindparam("key"))
        .values({name: sa.bindparam(f"new_{name}") for name in names})
    )


def delete(connection: sa.Connection, kind: type[Record], identifier: str) -> bool:
    """Remove one record; False when it was not there."""
    table = TABLES[kind]
    key = next(iter(table.primary_key.columns))
    return connection.execute(table.delete().where(key == identifier)).rowcount > 0


def enter(
    connection: sa.Connection,
    row: states.Transition,
    identifier: str,
    *conditions: tuple[sa.ColumnElement[bool], str],
    status: str | None = None,
    **changes: Any,
) -> None:
    """Begin an action: one guarded UPDATE from the row's sources to its `during` (or `done`) status.

    `conditions` are further guards, each with the sentence that explains a refusal. `status` overrides the
    new status (a recomputed one). Raises `NotFound`, or `InvalidState` whose text is made from the row.
    """
    kind = RESOURCES[row.resource]
    table = TABLES[kind]
    column = table.c[_STATUS[row.resource]]
    target = status or row.during or row.done
    guards = [table.c.id == identifier, *(condition for condition, _ in conditions)]
    if states.ANY not in row.sources:
        guards.append(column.in_(sorted(row.sources)))
    if conditions and connection.dialect.name != "sqlite":
        # an UPDATE that waited for the row would judge other tables as they were before it waited
        connection.execute(_by_key(kind, "update"), {"key": identifier})
    values: dict[str, Any] = {column.name: target, "updated_at": now(), **changes}
    if row.during and "previous_status" in table.c:
        values.setdefault("previous_status", column)
    if connection.execute(table.update().where(*guards).values(**values)).rowcount:
        return
    raise _refusal(connection, row, identifier, conditions)


def check(connection: sa.Connection, row: states.Transition, identifier: str) -> None:
    """Whether `enter` would let an action begin now, without beginning it. Raises as that does."""
    kind = RESOURCES[row.resource]
    found = find(connection, kind, identifier)
    if found is None or getattr(found, _STATUS[row.resource]) not in row.sources:
        raise _refusal(connection, row, identifier, ())


def _refusal(
    connection: sa.Connection,
    row: states.Transition,
    identifier: str,
    conditions: Iterable[tuple[sa.ColumnElement[bool], str]],
) -> Exception:
    kind = RESOURCES[row.resource]
    found = find(connection, kind, identifier)
    if found is None:
        return NotFound.of(row.resource, identifier)
    present = getattr(found, _STATUS[row.resource])
    reasons = []
    if states.ANY not in row.sources and present not in row.sources:
        allowed = " or ".join(sorted(row.sources))
        reasons.append(f"status must be {allowed}, but it is {present}")
    table = TABLES[kind]
    for condition, sentence in conditions:
        query = sa.select(table.c.id).where(table.c.id == identifier, condition)
        if connection.execute(query).first() is None:
            reasons.append(sentence)
    told = "; ".join(reasons) or "it changed meanwhile, try again"
    action = row.action.replace("_", " ")
    return InvalidState(f"Invalid {row.resource}: cannot {action} {row.resource} {identifier}: {told}.")


def leave(
    connection: sa.Connection, row: states.Transition, identifier: str, outcome: str, **changes: Any
) -> bool:
    """End an action: from its `during` status to the one the table names for `done`, `failed` or `refused`.

    Returns False when the resource is not in the `during` status any more (the administrator has reset it,
    or this end was already written): nothing changes then. A GONE end removes the row.
    """
    statement, end = _leaving(row, outcome, tuple(changes))
    values: dict[str, Any] = {"key": identifier}
    if end != states.GONE:
        values |= {"moment": now(), **{f"new_{name}": value for name, value in changes.items()}}
    if end == states.RECOMPUTED:
        if connection.dialect.name != "sqlite":  # whoever changes attachments holds the row
            connection.execute(_by_key(RESOURCES[row.resource], "update"), {"key": identifier})
        values["end"] = summary_of(connection, identifier)[0]
    return connection.execute(statement, values).rowcount > 0


@lru_cache(maxsize=256)
def _leaving(
    row: states.Transition, outcome: str, names: tuple[str, ...]
) -> tuple[sa.Update | sa.Delete, str]:
    """(the statement that ends an action, the end that the table names), per set of columns."""
    table = TABLES[RESOURCES[row.resource]]
    column = table.c[_STATUS[row.resource]]
    guards = [table.c.id == sa.bindparam("key")]
    if row.during:
        guards.append(column == row.during)
    end = row.ends_as(outcome)
    if end == states.GONE:
        return table.delete().where(*guards), end
    value: Any = end
    if end == states.BACK:
        value = table.c.previous_status
    elif end == states.RECOMPUTED:
        value = sa.bindparam("end")
    values = {column.name: value, "updated_at": sa.bindparam("moment")}
    values |= {name: sa.bindparam(f"new_{name}") for name in names}
    return table.update().where(*guards).values(values), end


def summary_of(connection: sa.Connection, volume_id: str) -> tuple[str, str]:
    """(volume status, attach_status) that follow from the volume's attachments."""
    column = tables.attachments.c.attach_status
    rows = connection.execute(sa.select(column).where(tables.attachments.c.volume_id == volume_id))
    return states.attachment_summary([row[0] for row in rows])


def attachments_of(connection: sa.Connection, volume_ids: Sequence[str]) -> dict[str, list[Attachment]]:
    """Attachments in status `attached`, by volume id."""
    found: dict[str, list[Attachment]] = {}
    column = tables.attachments.c.volume_id
    for start in range(0, len(volume_ids), 500):
        part = volume_ids[start : start + 500]
        condition = column == part[0] if len(part) == 1 else column.in_(part)
        rows = all_of(connection, Attachment, condition, tables.attachments.c.attach_status == "attached")
        for attachment in rows:
            found.setdefault(attachment.volume_id, []).append(attachment)
    return found


_TYPE_NAMES = sa.select(tables.volume_types.c.id, tables.volume_types.c.name)


def type_names(connection: sa.Connection) -> Mapping[str, str]:
    """Volume type names by id."""
    return {row[0]: row[1] for row in connection.execute(_TYPE_NAMES)}


def message(
    connection: sa.Connection,
    operation: Operation,
    resource_type: str,
    action_id: str,
    detail_id: str,
    ttl: int,
) -> None:
    """Write a user message about an operation's failure; `ttl` in seconds."""
    created = now()
    insert(
        connection,
        Message(
            id=new_id(),
            project_id=operation.project_id,
            request_id=operation.request_id,
            resource_type=resource_type,
            resource_id=operation.resource_id,
            action_id=action_id,
            detail_id=detail_id,
            created_at=created,
            expires_at=created + timedelta(seconds=ttl),
        ),
    )
