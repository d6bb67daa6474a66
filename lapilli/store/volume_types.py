"""Queries about volume types that other tables take part in: who may see them, and who uses them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from msgspec import structs

from lapilli.domain.model import DefaultType, VolumeType
from lapilli.store import records, tables
from lapilli.store.upserts import put

_types = tables.volume_types.c
_access = tables.volume_type_access.c
_defaults = tables.default_types.c


def visible_to(project_id: str) -> sa.ColumnElement[bool]:
    """Condition: the type is public, or granted to the project."""
    granted = sa.select(_access.volume_type_id).where(_access.project_id == project_id)
    return sa.or_(_types.is_public.is_(True), _types.id.in_(granted))


def hidden_from(connection: sa.Connection, project_id: str) -> list[str]:
    """Names of the types that a project may not see."""
    return list(connection.execute(sa.select(_types.name).where(~visible_to(project_id))).scalars())


def is_public(wanted: bool) -> sa.ColumnElement[bool]:
    """Condition: the type is public, or is private."""
    return _types.is_public.is_(wanted)


def is_visible(connection: sa.Connection, volume_type: VolumeType, project_id: str) -> bool:
    """Whether a project may see a type."""
    if volume_type.is_public:
        return True
    grant = {"type": volume_type.id, "project": project_id}
    return connection.execute(_select_grant(), grant).first() is not None


@lru_cache(maxsize=1)
def _select_grant() -> sa.Select[Any]:
    return sa.select(_access.project_id).where(
        _access.volume_type_id == sa.bindparam("type"), _access.project_id == sa.bindparam("project")
    )


def find(connection: sa.Connection, reference: str) -> VolumeType | None:
    """A type by id, or else by name; None when there is none."""
    rows = connection.execute(_by_reference(), {"reference": reference}).all()
    found = [records.make(VolumeType, row) for row in rows]
    return next((each for each in found if each.id == reference), found[0] if found else None)


@lru_cache(maxsize=1)
def _by_reference() -> sa.Select[Any]:
    reference: sa.BindParameter[str] = sa.bindparam("reference")
    return sa.select(tables.volume_types).where(sa.or_(_types.id == reference, _types.name == reference))


def find_default(connection: sa.Connection, project_id: str, otherwise: str) -> VolumeType | None:
    """A project's own default type, or else the one that `otherwise` names by id or name."""
    wanted = {"reference": otherwise, "project": project_id}
    rows = connection.execute(_default_or(), wanted).all()
    found = [(row[-1], records.make(VolumeType, row[:-1])) for row in rows]
    own = [each for belongs, each in found if belongs]
    by_id = [each for _, each in found if each.id == otherwise]
    return next(iter([*own, *by_id, *(each for _, each in found)]), None)


@lru_cache(maxsize=1)
def _default_or() -> sa.Select[Any]:
    reference: sa.BindParameter[str] = sa.bindparam("reference")
    own = (
        sa.select(_defaults.volume_type_id).where(_defaults.project_id == sa.bindparam("project"))
    ).scalar_subquery()
    is_own = sa.func.coalesce(_types.id == own, sa.false())
    return sa.select(tables.volume_types, is_own).where(
        sa.or_(_types.id == reference, _types.name == reference, _types.id == own)
    )


def projects_with_default(connection: sa.Connection, identifier: str) -> list[str]:
    """Projects whose default is the type."""
    query = sa.select(_defaults.project_id).where(_defaults.volume_type_id == identifier)
    return [row[0] for row in connection.execute(query.order_by(_defaults.project_id))]


def put_default(connection: sa.Connection, chosen: DefaultType) -> None:
    """Give a project its default type, or another one."""
    put(connection, tables.default_types, [structs.asdict(chosen)], "volume_type_id", "updated_at")


def locked(connection: sa.Connection, identifier: str) -> VolumeType | None:
    """A type by id, held against other writers until the transaction ends."""
    query = sa.select(tables.volume_types).where(_types.id == identifier).with_for_update()
    row = connection.execute(query).first()
    return None if row is None else records.make(VolumeType, row)


def in_use(connection: sa.Connection, identifier: str) -> bool:
    """Whether any volume or snapshot is of the type."""
    for table in (tables.volumes, tables.snapshots):
        query = sa.select(table.c.id).where(table.c.volume_type_id == identifier).limit(1)
        if connection.execute(query).first() is not None:
            return True
    return False


def granted_to(connection: sa.Connection, identifier: str) -> list[str]:
    """Projects that a private type is granted to."""
    query = sa.select(_access.project_id).where(_access.volume_type_id == identifier)
    return [row[0] for row in connection.execute(query.order_by(_access.project_id))]


def grant(connection: sa.Connection, identifier: str, project_id: str) -> None:
    """Grant a type to a project that has no grant yet."""
    values = {"volume_type_id": identifier, "project_id": project_id}
    connection.execute(tables.volume_type_access.insert(), values)


def revoke(connection: sa.Connection, identifier: str, project_id: str | None = None) -> bool:
    """Take a project's grant away, or all grants; False when there was none."""
    statement = tables.volume_type_access.delete().where(_access.volume_type_id == identifier)
    if project_id is not None:
        statement = statement.where(_access.project_id == project_id)
    return connection.execute(statement).rowcount > 0


def bound_to(connection: sa.Connection, specs_id: str) -> list[VolumeType]:
    """Types that are bound to QoS specs, by name."""
    return records.all_of(connection, VolumeType, _types.qos_specs_id == specs_id, order=_types.name)


def unbind_all(connection: sa.Connection, specs_id: str) -> None:
    """Free every type that is bound to QoS specs."""
    statement = tables.volume_types.update().where(_types.qos_specs_id == specs_id)
    connection.execute(statement.values(qos_specs_id=None, updated_at=records.now()))
