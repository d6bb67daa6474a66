"""Fills the database of a stopped service with many volumes, in bulk."""

from __future__ import annotations

import sqlite3
import uuid
from datetime import timedelta

from service import Service

from lapilli.domain.model import Volume, VolumeType
from lapilli.store import records, tables
from lapilli.store.session import Store

PROJECTS = 5
_BATCH = 5000


def fill(service: Service, count: int) -> int:
    """Add `count` available volumes, shared out among the admin's project and others; how many projects."""
    store = Store(f"sqlite:///{service.database}")
    projects = [service.project_id(), *(uuid.uuid4().hex for _ in range(PROJECTS - 1))]
    with store.read() as connection:
        kind = records.all_of(connection, VolumeType)[0]
    moment = records.now()
    for start in range(0, count, _BATCH):
        rows = [
            _row(number, projects, kind.id, moment) for number in range(start, min(start + _BATCH, count))
        ]
        with store.write() as connection:
            connection.execute(tables.volumes.insert(), rows)
    with store.read() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    return PROJECTS


def _row(number: int, projects: list[str], type_id: str, moment: object) -> dict[str, object]:
    created = moment - timedelta(days=30) + timedelta(seconds=number * 7)  # type: ignore[operator]
    volume = Volume(
        id=records.new_id(),
        project_id=projects[number % len(projects)],
        user_id=projects[number % len(projects)],
        name=f"volume {number}",
        description="one of many",
        size=1 + number % 100,
        status="available",
        availability_zone="nova",
        host="bench@filepool#filepool",
        volume_type_id=type_id,
        metadata={"number": str(number)},
        created_at=created,
        updated_at=created,
        launched_at=created,
    )
    return {name: getattr(volume, name) for name in volume.__struct_fields__}


def marker(service: Service, behind: int) -> str:
    """Id of the volume that is `behind` places from the newest."""
    database = sqlite3.connect(f"file:{service.database}?mode=ro", uri=True)
    query = "SELECT id FROM volumes ORDER BY created_at DESC, id DESC LIMIT 1 OFFSET ?"
    found: str = database.execute(query, (behind - 1,)).fetchone()[0]
    database.close()
    return found
