"""What drivers must remember of their objects: one row per object of a back end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from lapilli.store import tables
from lapilli.store.session import Store, rerun_when_contended
from lapilli.store.upserts import add_missing, put

_notes = tables.driver_notes
_volumes, _types, _qos = tables.volumes.c, tables.volume_types.c, tables.qos_specs.c
_Note = dict[str, Any] | None
_FACTS = (
    sa.select(_volumes.project_id, _volumes.user_id, _volumes.name, _volumes.multiattach)
    .add_columns(_types.id.label("type_id"), _types.name.label("type_name"), _types.extra_specs)
    .add_columns(_qos.id.label("qos_id"), _qos.name.label("qos_name"), _qos.consumer, _qos.specs)
    .join(tables.volume_types, _types.id == _volumes.volume_type_id)
    .outerjoin(tables.qos_specs, _qos.id == _types.qos_specs_id)
    .where(_volumes.id == sa.bindparam("volume_id"))
)


class BackendNotes:
    """The notes of one back end, each change in a transaction of its own."""

    def __init__(self, store: Store, backend: str, *, shared: bool = False) -> None:
        """`backend` is `host@backend`: all hosts of a cluster have the same."""
        self._store, self.backend, self.shared = store, backend, shared

    def read(self, kind: str, identifier: str) -> _Note:
        """The note of one object."""
        with self._store.read() as connection:
            return self._find(connection, kind, identifier)

    def all(self, kind: str) -> dict[str, dict[str, Any]]:
        """The notes of all objects of a kind, by id."""
        query = sa.select(_notes.c.id, _notes.c.data).where(
            _notes.c.backend == self.backend, _notes.c.kind == kind
        )
        with self._store.read() as connection:
            return {row.id: row.data for row in connection.execute(query) if row.data}

    @rerun_when_contended
    def change(self, kind: str, identifier: str, step: Callable[[_Note], _Note]) -> _Note:
        """Replace a note by what `step` makes of it; the row is held meanwhile."""
        with self._store.write() as connection:
            present = self._find(connection, kind, identifier, lock=True)
            if present is None and not self._store.is_sqlite:
                # an empty one, so that there is a row to hold
                row = {"backend": self.backend, "kind": kind, "id": identifier, "data": {}}
                add_missing(connection, _notes, [row])
                present = self._find(connection, kind, identifier, lock=True)
            wanted = step(present)
            if wanted is None:
                connection.execute(_notes.delete().where(*self._key(kind, identifier)))
            elif wanted != present:
                row = {"backend": self.backend, "kind": kind, "id": identifier, "data": wanted}
                put(connection, _notes, [row], "data")
            return wanted

    def facts(self, volume_id: str) -> dict[str, Any]:
        """The volume's owner, name and type."""
        with self._store.read() as connection:
            row = connection.execute(_FACTS, {"volume_id": volume_id}).first()
        if row is None:
            return {}
        qos = None
        if row.qos_id is not None:
            qos = {"id": row.qos_id, "name": row.qos_name, "consumer": row.consumer, "specs": row.specs}
        kind = {"id": row.type_id, "name": row.type_name, "extra_specs": row.extra_specs, "qos": qos}
        return {
            "project_id": row.project_id,
            "user_id": row.user_id,
            "display_name": row.name,
            "multiattach": row.multiattach,
            "type": kind,
        }

    def _find(self, connection: sa.Connection, kind: str, identifier: str, *, lock: bool = False) -> _Note:
        query = sa.select(_notes.c.data).where(*self._key(kind, identifier))
        row = connection.execute(query.with_for_update() if lock else query).first()
        return None if row is None else row.data or None

    def _key(self, kind: str, identifier: str) -> tuple[sa.ColumnElement[bool], ...]:
        return (
            _notes.c.backend == self.backend,
            _notes.c.kind == kind,
            _notes.c.id == identifier,
        )
