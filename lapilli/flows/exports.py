"""Who holds a volume's export, and what its target is told of it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from lapilli.domain.model import Connection, Export, Volume
from lapilli.flows import qos
from lapilli.flows.definitions import Backend
from lapilli.flows.volume_tasks import reference
from lapilli.ports.target import ExportSpec, Throttling
from lapilli.store import records, tables


def holders(connection: sa.Connection, volume_id: str) -> list[Connection]:
    """Everyone who holds the volume's export."""
    return records.all_of(connection, Connection, tables.connections.c.volume_id == volume_id)


def export_spec(
    connection: sa.Connection,
    backend: Backend,
    volume: Volume,
    export: Export,
    *,
    leaving: Collection[str] = (),
    instead: dict[str, dict[str, Any]] | None = None,
) -> ExportSpec:
    """The export as the database has it, for all who hold it save those that are leaving.

    `instead` are other facts of some holders than the database has.
    """
    present = {each.holder: each.connector for each in holders(connection, volume.id)} | (instead or {})
    connectors = tuple(present[holder] for holder in sorted(present) if holder not in leaving)
    limits = {}
    if isinstance(backend.target, Throttling):
        limits = qos.at_back_end(connection, volume.volume_type_id, volume.size)
    address = backend.driver.address(reference(volume))
    return ExportSpec(volume.id, address, export.data, export.secret, connectors, limits)
