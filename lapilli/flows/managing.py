"""Manage what is at a back end already, and unmanage without removing it: what the API asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from lapilli.context import Context
from lapilli.domain.model import CachedImage, Pool, Service, Snapshot, Volume, VolumeType
from lapilli.errors import InvalidInput, InvalidState
from lapilli.flows import messages
from lapilli.flows.core import Core
from lapilli.flows.managing_tasks import MANAGE, MANAGE_SNAPSHOT, UNMANAGE, UNMANAGE_SNAPSHOT
from lapilli.flows.scheduling import claim_capacity
from lapilli.flows.snapshots import begin_removal
from lapilli.flows.volume_tasks import backend_host, forget_volume
from lapilli.flows.volumes import (
    NO_SNAPSHOTS,
    NOT_ATTACHED,
    NOT_IN_GROUP,
    NOT_MIGRATING,
)
from lapilli.store import records, tables
from lapilli.store.session import rerun_when_contended

_OWN = re.compile(r"(volume|snapshot)-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_KINDS: dict[str, type[Volume | Snapshot]] = {"volume": Volume, "snapshot": Snapshot}


class ManageRequest(msgspec.Struct, kw_only=True, frozen=True):
    """What is to become a volume, and where: `host` is `host@backend#pool`, or `host@backend` of one pool."""

    reference: dict[str, str]
    host: str
    kind: VolumeType
    name: str | None = None
    description: str | None = None
    availability_zone: str | None = None
    bootable: bool = False
    metadata: dict[str, str] = {}


# --- where -----------------------------------------------------------------------------------------------


def _check_service(core: Core, connection: sa.Connection, host: str) -> None:
    """Raises `InvalidInput` for a back end whose service is unknown, disabled or down."""
    table = tables.services.c
    found = records.all_of(connection, Service, table.host == host, table.binary == "cinder-volume")
    if not found:
        raise InvalidInput(f"Service cinder-volume on host {host} could not be found.")
    alive = records.now() - timedelta(seconds=core.service.service_down_time)
    if found[0].disabled:
        raise InvalidInput(f"Service is unavailable at this time: that of {host} is disabled.")
    if found[0].heartbeat_at is None or found[0].heartbeat_at < alive:
        raise InvalidInput(f"Service is unavailable at this time: that of {host} is down.")


def _pool(connection: sa.Connection, host: str) -> Pool:
    """The pool that a host means. Raises `InvalidInput`."""
    backend = backend_host(host)
    pools = records.all_of(connection, Pool, tables.pools.c.backend == backend)
    chosen = [each for each in pools if host in (each.name, backend)]
    if len(chosen) != 1:
        names = ", ".join(sorted(each.name for each in pools)) or "none"
        raise InvalidInput(f"Host {host} names no pool; those of {backend} are: {names}.")
    return chosen[0]


def _check_reference(connection: sa.Connection, reference: Mapping[str, str]) -> None:
    """Raises `InvalidInput` for a name of something that is managed already."""
    for text in reference.values():
        for kind, identifier in _OWN.findall(str(text)):
            if records.find(connection, _KINDS[kind], identifier) is not None:
                raise InvalidInput(f"{text} is managed already, as {kind} {identifier}.")
            if records.find(connection, CachedImage, identifier) is not None:
                raise InvalidInput(f"{text} is an image that the back end keeps.")


# --- look ------------------------------------------------------------------------------------------------


def existing(
    core: Core, context: Context, host: str, what: str, page: dict[str, Any]
) -> list[dict[str, Any]]:
    """A page of what a back end holds: `what` is volumes or snapshots, `page` as of `managing_tasks.page`.

    Raises `InvalidInput`, and whatever the back end says.
    """
    backend = backend_host(host)
    operation_id = records.new_id()
    listening = core.journal.listen(operation_id)
    try:
        with core.store.write() as connection:
            _check_service(core, connection, backend)
            row = core.journal.submit(
                connection,
                "backend.list",
                context,
                operation_id,  # nothing is held for it
                host=backend,
                args={"what": what, "page": page},
                operation_id=operation_id,
            )
    except BaseException:
        listening.close()
        raise
    core.journal.announce(row)
    ended = core.journal.wait(operation_id, listening, core.options.attach_timeout)
    found: list[dict[str, Any]] = ended.results["page"]
    return found


# --- volumes ---------------------------------------------------------------------------------------------


@rerun_when_contended
def manage(core: Core, context: Context, request: ManageRequest) -> Volume:
    """Begin to take something over as a volume. Raises `InvalidInput`."""
    if request.kind.encryption is not None:
        raise InvalidInput(f"Type {request.kind.name} is encrypted: nothing can be taken over as such.")
    with core.store.write(durable=True) as connection:
        _check_service(core, connection, backend_host(request.host))
        pool = _pool(connection, request.host)
        if request.availability_zone not in (None, pool.availability_zone):
            raise InvalidInput(f"Pool {pool.name} is in availability zone {pool.availability_zone!r}.")
        _check_reference(connection, request.reference)
        kind = records.get(connection, VolumeType, request.kind.id, lock="share")
        volume = Volume(
            id=records.new_id(),
            project_id=context.project_id,
            user_id=context.user_id,
            name=request.name,
            description=request.description,
            size=0,
            status=MANAGE.during or "",
            availability_zone=pool.availability_zone,
            host=pool.name,
            volume_type_id=kind.id,
            bootable=request.bootable,
            multiattach=kind.extra_specs.get("multiattach") == "<is> True",
            consumes_quota=False,
            metadata=request.metadata,
            created_at=records.now(),
        )
        records.insert(connection, volume)
        claim_capacity(connection, pool.name, 0, volumes=1)
        args = {"reference": request.reference}
        row = core.journal.submit(
            connection, "volume.manage", context, volume.id, role="scheduler", args=args
        )
    core.journal.announce(row)
    return volume


@rerun_when_contended
def unmanage(core: Core, context: Context, volume: Volume) -> None:
    """Begin to let go of a volume; what is at the back end stays. Raises `InvalidState`."""
    if volume.encryption_key_id is not None:
        messages.write(core, context, "VOLUME", volume.id, "006", "008")
        raise InvalidState("Invalid volume: an encrypted one cannot be unmanaged: its key would be lost.")
    guards = (NOT_ATTACHED, NOT_MIGRATING, NOT_IN_GROUP, NO_SNAPSHOTS)
    with core.store.write(durable=True) as connection:
        records.enter(connection, UNMANAGE, volume.id, *guards)
        fresh = records.get(connection, Volume, volume.id)
        if fresh.host is None:
            if core.notices is not None:
                core.notices.volume(connection, fresh.id, "unmanage.start", "unmanage.end", gone=True)
            records.leave(connection, UNMANAGE, volume.id, "done")
            forget_volume(core.quota, connection, fresh)
            return
        row = core.journal.submit(
            connection, "volume.unmanage", context, volume.id, host=backend_host(fresh.host)
        )
    core.journal.announce(row)


# --- snapshots -------------------------------------------------------------------------------------------


@rerun_when_contended
def manage_snapshot(
    core: Core,
    context: Context,
    volume: Volume,
    *,
    reference: dict[str, str],
    name: str | None,
    description: str | None,
    metadata: dict[str, str],
) -> Snapshot:
    """Begin to take something over as a snapshot of a volume. Raises `InvalidInput`, `InvalidState`."""
    with core.store.write(durable=True) as connection:
        fresh = records.get(connection, Volume, volume.id, lock="update")
        if fresh.status not in ("available", "in-use") or fresh.host is None:
            raise InvalidState(f"Invalid volume: it must be available or in-use, but it is {fresh.status}.")
        _check_service(core, connection, backend_host(fresh.host))
        _check_reference(connection, reference)
        snapshot = Snapshot(
            id=records.new_id(),
            volume_id=fresh.id,
            project_id=context.project_id,
            user_id=context.user_id,
            name=name,
            description=description,
            size=fresh.size,
            status=MANAGE_SNAPSHOT.during or "",
            volume_type_id=fresh.volume_type_id,
            consumes_quota=False,
            metadata=metadata,
            image_metadata=fresh.image_metadata if fresh.bootable else {},
            bootable=fresh.bootable,
            created_at=records.now(),
        )
        records.insert(connection, snapshot)
        row = core.journal.submit(
            connection,
            "snapshot.manage",
            context,
            snapshot.id,
            lane=fresh.id,
            host=backend_host(fresh.host),
            args={"reference": reference},
        )
    core.journal.announce(row)
    return snapshot


def unmanage_snapshot(core: Core, context: Context, snapshot: Snapshot) -> None:
    """Begin to let go of a snapshot; what is at the back end stays. Raises `InvalidState`."""
    begin_removal(core, context, snapshot, UNMANAGE_SNAPSHOT, "snapshot.unmanage")
