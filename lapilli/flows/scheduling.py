"""What the scheduler's decision needs besides the pools, and what it tells when there is none."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from lapilli.domain.model import Pool, Service, Volume
from lapilli.domain.placement import Refusal
from lapilli.store import records, tables

DOWN = "its service is down"
_HINTED = ("different_host", "same_host")


def lives(connection: sa.Connection, hints: Mapping[str, Any], project_id: str | None) -> dict[str, str]:
    """The back ends of the volumes that hints name, as far as the project (None: anybody) may know them."""
    found = {}
    for key in _HINTED:
        given = hints.get(key) or []
        for name in given if isinstance(given, list) else [given]:
            volume = records.find(connection, Volume, str(name).lower())
            if volume is not None and volume.host and project_id in (None, volume.project_id):
                found[str(name)] = volume.host.partition("#")[0]
    return found


def left_out(connection: sa.Connection, down_after: int) -> list[Refusal]:
    """The pools that a decision does not even look at, and the services without any pool."""
    moment = records.now()
    of_volumes = tables.services.c.binary == "cinder-volume"
    services = {each.host: each for each in records.all_of(connection, Service, of_volumes)}
    found, reported = [], set()
    for pool in records.all_of(connection, Pool):
        reported.add(pool.backend)
        service = services.get(pool.backend)
        why = "it has no service" if service is None else _absence(service, moment, down_after)
        if why is None and pool.reported_at is None:
            why = "it has not reported yet"
        if why is not None:
            found.append(Refusal(pool.name, "", why))
    silent = sorted(services.keys() - reported)
    return found + [Refusal(host, "", "its service has not reported a pool yet") for host in silent]


def _absence(service: Service, moment: datetime, down_after: int) -> str | None:
    if service.frozen:
        return "its service is frozen"
    if service.disabled:
        reason = f" ({service.disabled_reason})" if service.disabled_reason else ""
        return f"its service is disabled{reason}"
    if not service.is_up(moment, down_after):
        return DOWN
    return None
