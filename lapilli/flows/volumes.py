"""A volume's life as the API asks for it: every function checks, and writes one transaction.

What takes time goes on as an operation (`volume_tasks`). Look-ups that show a volume to a caller have
happened before; these functions guard against what changed since.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from lapilli import events
from lapilli.context import Context
from lapilli.domain import quotas as quota_rules, states
from lapilli.domain.encryption import MOST_HEADER, same
from lapilli.domain.model import Attachment, Image, Service, Snapshot, Volume, VolumeType
from lapilli.domain.states import transition
from lapilli.errors import Conflict, Forbidden, InvalidInput, InvalidState, NotFound, PreconditionFailed
from lapilli.flows import encryption, images, qos, volume_tasks, volume_types
from lapilli.flows.claims import UNFINISHED
from lapilli.flows.core import Core
from lapilli.flows.volume_tasks import backend_host
from lapilli.ports.driver import GIB
from lapilli.store import quotas, records, tables
from lapilli.store.session import rerun_when_contended

_volume = tables.volumes.c
_snapshot = tables.snapshots.c

_ZONES = sa.select(tables.services.c.availability_zone).distinct()

Guard = tuple[sa.ColumnElement[bool], str]

NOT_MIGRATING: Guard = (
    sa.or_(
        _volume.migration_status.is_(None), _volume.migration_status.in_(["deleting", "error", "success"])
    ),
    "it is being migrated",
)
NOT_ATTACHED: Guard = (_volume.attach_status != "attached", "it is attached")
NOT_IN_GROUP: Guard = (_volume.group_id.is_(None), "it belongs to a group")
NOT_CONNECTED: Guard = (
    ~sa.select(tables.connections.c.volume_id)
    .where(tables.connections.c.volume_id == _volume.id)
    .correlate(tables.volumes)
    .exists(),
    "it is connected",
)
IDLE: Guard = (
    ~sa.select(tables.operations.c.id)
    .where(tables.operations.c.lane == _volume.id, tables.operations.c.state.in_(UNFINISHED))
    .correlate(tables.volumes)
    .exists(),
    "an operation on it is under way",
)
NO_SNAPSHOTS: Guard = (
    ~sa.select(_snapshot.id).where(_snapshot.volume_id == _volume.id).correlate(tables.volumes).exists(),
    "it has snapshots",
)


class VolumeRequest(msgspec.Struct, kw_only=True, frozen=True):
    """What a create asks for; sizes in GiB, references as the caller gave them."""

    size: int | None = None
    name: str | None = None
    description: str | None = None
    volume_type: str | None = None
    availability_zone: str | None = None
    snapshot_id: str | None = None
    source_volid: str | None = None
    image_ref: str | None = None
    follow_image: bool = False  # an image may name a snapshot to be made from instead
    backup_id: str | None = None
    group_id: str | None = None
    consistencygroup_id: str | None = None
    metadata: dict[str, str] = {}
    scheduler_hints: dict[str, Any] = {}
    multiattach: bool = False
    shared: bool = False  # what `multiattach` was in version 2
    may_share: bool = True  # whether the caller may have one that several servers attach


class _Sources(msgspec.Struct, kw_only=True, frozen=True):
    """What a new volume is made of, looked up."""

    snapshot: Snapshot | None = None
    snapshot_origin: Volume | None = None
    source: Volume | None = None
    image: Image | None = None


NOTHING = _Sources()


class Plan(msgspec.Struct, kw_only=True, frozen=True):
    """A create that has passed all checks; `spec` is the scheduler's part of the operation's arguments."""

    volume: Volume
    kind: VolumeType
    spec: dict[str, Any]
    encryption: dict[str, Any] | None = None  # what the operation must know of its key


# --- create ----------------------------------------------------------------------------------------------


def create(core: Core, context: Context, request: VolumeRequest) -> Volume:
    """Accept a new volume: quota, row and operation in one synced transaction (behaviour.md section 9.2).

    Raises `InvalidInput`, `InvalidState`, `NotFound`, `Conflict`, `OverQuota`: then nothing has happened.
    """
    image = find_image(core, context, request)
    with core.store.read() as connection:
        plan = plan_create(core, context, connection, request, image)
    volume, size, kind = plan.volume, plan.volume.size, plan.kind
    args = {"spec": plan.spec, "bootable": volume.bootable or volume.image_id is not None}
    if plan.encryption is not None:
        args["encryption"] = plan.encryption
    with core.store.write(durable=True) as connection:
        # again: it may have been renamed, which moves its quota, or deleted
        kind = records.get(connection, VolumeType, kind.id, lock="share")
        if kind.encryption != plan.kind.encryption:
            raise Conflict(f"Volume type {kind.name} has just been changed.")
        deltas = quota_rules.volume_deltas(size, kind.name)
        quotas.charge(connection, core.quota, context.project_id, deltas, volume_size=size)
        records.insert(connection, volume)
        row = core.journal.submit(
            connection, "volume.create", context, volume.id, role="scheduler", args=args
        )
    core.journal.announce(row)
    return volume


def find_image(core: Core, context: Context, request: VolumeRequest) -> Image | None:
    """The image that a create names, if any; looked up before any transaction, for it may take its time.

    So may the key store, when the image is encrypted: it tells whether the image's key is its own.
    """
    if request.image_ref is None:
        return None
    image = core.images.get(request.image_ref, context=context)
    encryption.check_key_of(core, image)
    return image


def plan_create(
    core: Core, context: Context, connection: sa.Connection, request: VolumeRequest, image: Image | None
) -> Plan:
    """What a create would write, and ask of the scheduler. Raises as `create` does."""
    if request.multiattach:
        raise InvalidInput("multiattach is decided by the volume type's extra spec, not by the request.")
    sources = _look_up(context, connection, request, image)
    kind = _type_for(core, context, connection, request, sources)
    if sources != NOTHING:
        _check_ready(sources)  # when everything named has been found
    size = _size_for(request, sources, kind)
    zones, zone = _zones_for(core, connection, request, sources, kind)
    spec = {
        "zones": zones,
        "extra_specs": kind.extra_specs,
        "pool": _pin(core, sources),
        "pinned_why": "its source lives elsewhere",
        "hints": request.scheduler_hints,
        "scope": None if context.is_admin else context.project_id,
    }
    if kind.qos_specs_id is not None and (specs := qos.of_type(connection, kind)) is not None:
        spec["qos"] = specs.specs  # for expressions of back ends
    volume, told = _new_volume(context, request, sources, kind, size, zone), None
    if kind.encryption is not None or sources.image is not None:
        origin = sources.source or sources.snapshot_origin
        volume, told = encryption.plan(core, kind, volume, source=origin, image=sources.image)
    return Plan(volume=volume, kind=kind, spec=spec, encryption=told)


def _look_up(
    context: Context, connection: sa.Connection, request: VolumeRequest, image: Image | None
) -> _Sources:
    named = [
        name
        for name in ("snapshot_id", "source_volid", "image_ref", "backup_id")
        if getattr(request, name) is not None
    ]
    if len(named) > 1:
        raise InvalidInput(f"A volume is made from one source at most, not from {' and '.join(named)}.")
    scope = None if context.is_admin else context.project_id
    if request.backup_id is not None:
        raise NotFound.of("backup", request.backup_id)
    if request.group_id is not None or request.consistencygroup_id is not None:
        raise NotFound.of("group", str(request.group_id or request.consistencygroup_id))
    mapped = images.mapped_snapshot(image) if image is not None and request.follow_image else None
    if request.snapshot_id is not None or mapped is not None:
        snapshot = records.get(connection, Snapshot, request.snapshot_id or mapped or "", project_id=scope)
        origin = records.get(connection, Volume, snapshot.volume_id)
        return _Sources(snapshot=snapshot, snapshot_origin=origin)
    if request.source_volid is not None:
        source = records.get(connection, Volume, request.source_volid, project_id=scope)
        return _Sources(source=source)
    return _Sources(image=image)


def _check_ready(sources: _Sources) -> None:
    """Raises `InvalidState` or `InvalidInput` for a source that nothing can be made of now."""
    snapshot, source, image = sources.snapshot, sources.source, sources.image
    if snapshot is not None and snapshot.status != "available":
        raise InvalidState(f"Invalid snapshot: its status must be available, but it is {snapshot.status}.")
    if source is not None and source.status not in ("available", "in-use"):
        raise InvalidState(
            f"Invalid volume: a source must be available or in-use, but it is {source.status}."
        )
    if image is not None and image.status != "active":
        raise InvalidInput(f"Image {image.id} is not active: its status is {image.status}.")


def _type_for(
    core: Core, context: Context, connection: sa.Connection, request: VolumeRequest, sources: _Sources
) -> VolumeType:
    wanted = request.volume_type or None
    origin = sources.source or sources.snapshot
    if wanted is None and origin is not None:
        return records.get(connection, VolumeType, origin.volume_type_id)
    if wanted is None and sources.image is not None:
        wanted = sources.image.properties.get("cinder_img_volume_type")
    kind = volume_types.resolve(connection, context, wanted, core.types)
    if origin is not None and kind.id != origin.volume_type_id:
        _may_change_type(connection, records.get(connection, VolumeType, origin.volume_type_id), kind)
    return kind


def _may_change_type(connection: sa.Connection, old: VolumeType, new: VolumeType) -> None:
    if not same(old.encryption, new.encryption):
        raise InvalidInput(
            f"The type must be {old.name}, that of the source, since {new.name} encrypts otherwise."
        )
    services = records.count(connection, Service, [tables.services.c.binary == "cinder-volume"])
    names = [kind.extra_specs.get("volume_backend_name") for kind in (old, new)]
    if services > 1 and (names[0] is None or names[0] != names[1]):
        raise InvalidInput(
            f"The type must be {old.name}, that of the source, since {new.name} may live elsewhere."
        )


def _size_for(request: VolumeRequest, sources: _Sources, kind: VolumeType) -> int:
    origin = sources.source or sources.snapshot
    size = request.size if request.size is not None else (origin.size if origin else None)
    if size is None:
        raise InvalidInput("A size is needed for a volume that is not made from a volume or a snapshot.")
    if origin is not None and size < origin.size:
        raise InvalidInput(f"Size {size} GiB is smaller than the source's {origin.size} GiB.")
    if sources.image is not None:
        image_fits(sources.image, size)
    check_type_size(kind, size)
    return size


def image_fits(image: Image, size: int) -> None:
    """Raises `InvalidInput` for an image that needs more than `size` GiB."""
    room = size * GIB + encryption.image_overhead(image, MOST_HEADER)
    for figure, text in ((image.size, "size"), (image.virtual_size, "virtual size")):
        if figure is not None and figure > room:
            raise InvalidInput(
                f"Image {image.id} has a {text} of {-(-figure // GIB)} GiB, more than {size} GiB."
            )
    if image.min_disk > size:
        raise InvalidInput(f"Image {image.id} needs min_disk {image.min_disk} GiB, more than {size} GiB.")


def check_type_size(kind: VolumeType, size: int) -> None:
    """Raises `InvalidInput` for a size outside `provisioning:min_vol_size` and `max_vol_size` of a type."""
    for word in ("min", "max"):
        text = kind.extra_specs.get(f"provisioning:{word}_vol_size")
        if text is None or not text.strip().isdigit():
            continue
        limit = int(text)
        if size < limit if word == "min" else size > limit:
            raise InvalidInput(f"Type {kind.name} allows {word}imally {limit} GiB, not {size}.")


def _pin(core: Core, sources: _Sources) -> str | None:
    if sources.source is not None:
        return sources.source.host
    if sources.snapshot_origin is not None and core.options.snapshot_same_host:
        return sources.snapshot_origin.host
    return None


def _zones_for(
    core: Core, connection: sa.Connection, request: VolumeRequest, sources: _Sources, kind: VolumeType
) -> tuple[list[str], str | None]:
    """(zones for the scheduler, the zone shown until one is chosen): behaviour.md section 9.3."""
    origin = sources.source or sources.snapshot_origin
    home = origin.availability_zone if origin else None
    known = set(connection.execute(_ZONES).scalars())
    known.add(core.service.storage_availability_zone)
    listed = kind.extra_specs.get("RESKEY:availability_zones")
    zone = request.availability_zone or home
    if zone is None and not listed:
        zone = core.options.default_availability_zone or core.service.storage_availability_zone
    if zone is not None and zone not in known:
        if not core.options.allow_availability_zone_fallback:
            raise InvalidInput(f"Availability zone {zone!r} does not exist.")
        zone = core.options.default_availability_zone or core.service.storage_availability_zone
    if core.options.cloned_volume_same_az and home is not None and zone != home:
        raise InvalidInput(f"The volume must be in its source's availability zone, {home!r}.")
    if not listed:
        return [zone] if zone else [], zone
    allowed = [part.strip() for part in listed.split(",") if part.strip() in known]
    if not allowed or (zone is not None and zone not in allowed):
        raise InvalidInput(f"Type {kind.name} is offered in {listed}, which does not fit the request.")
    return ([zone] if zone else allowed), zone


def _new_volume(
    context: Context,
    request: VolumeRequest,
    sources: _Sources,
    kind: VolumeType,
    size: int,
    zone: str | None,
) -> Volume:
    origin = sources.source or sources.snapshot
    shared = request.shared or kind.extra_specs.get("multiattach") == "<is> True"
    if shared and not request.may_share:
        raise Forbidden("volume:multiattach")
    image_metadata: dict[str, str] = dict(origin.image_metadata) if origin else {}
    if sources.image is not None:
        image_metadata = images.metadata_of(sources.image)
    return Volume(
        id=records.new_id(),
        project_id=context.project_id,
        user_id=context.user_id,
        name=request.name,
        description=request.description,
        size=size,
        status="creating",
        availability_zone=zone,
        volume_type_id=kind.id,
        snapshot_id=sources.snapshot.id if sources.snapshot else None,
        source_volid=sources.source.id if sources.source else None,
        image_id=sources.image.id if sources.image else None,
        bootable=bool(origin and origin.bootable),
        multiattach=shared,
        metadata=request.metadata or {},
        image_metadata=image_metadata,
        created_at=records.now(),
    )


# --- delete, extend --------------------------------------------------------------------------------------


@rerun_when_contended
def delete(
    core: Core, context: Context, volume: Volume, *, cascade: bool = False, force: bool = False
) -> None:
    """Begin to delete; one that was never placed is gone at once. Raises `InvalidState`."""
    row = transition("volume", "force_delete" if force else "delete")
    guards = [NOT_ATTACHED, NOT_MIGRATING, NOT_IN_GROUP]
    if not cascade:
        guards.append(NO_SNAPSHOTS)
    with core.store.write(durable=True) as connection:
        not_frozen(connection, volume.host)
        records.enter(connection, row, volume.id, *guards)
        fresh = records.get(connection, Volume, volume.id)
        if cascade:
            _cascade(core, connection, context, fresh)
        if fresh.host is None:
            if core.notices is not None:
                core.notices.volume(connection, fresh.id, "delete.start", "delete.end", gone=True)
            records.leave(connection, row, volume.id, "done")
            volume_tasks.forget_volume(core.quota, connection, fresh)
            _drop_operations(connection, volume.id)
            return
        submitted = core.journal.submit(
            connection,
            "volume.delete",
            context,
            volume.id,
            host=backend_host(fresh.host),
            args={"cascade": cascade},
        )
    core.journal.announce(submitted)


def _drop_operations(connection: sa.Connection, volume_id: str) -> None:
    """A forced delete of a volume that is still to be placed takes its create with it."""
    operations = tables.operations
    connection.execute(
        operations.delete().where(operations.c.resource_id == volume_id, operations.c.state == "queued")
    )


def _cascade(core: Core, connection: sa.Connection, context: Context, volume: Volume) -> None:
    row = transition("snapshot", "delete")
    for snapshot in records.all_of(connection, Snapshot, _snapshot.volume_id == volume.id):
        if not context.is_admin and snapshot.project_id != context.project_id:
            raise InvalidState("Invalid volume: it has snapshots of another project.")
        records.enter(
            connection, row, snapshot.id, (_snapshot.group_snapshot_id.is_(None), "it is of a group")
        )
        if core.notices is not None:
            core.notices.snapshot(connection, snapshot.id, "delete.start")


def not_frozen(connection: sa.Connection, pool: str | None) -> None:
    """Raises `InvalidState` for a pool whose back end an administrator has frozen."""
    if pool is None:
        return
    services = tables.services.c
    query = sa.select(services.frozen).where(
        services.host == backend_host(pool), services.binary == "cinder-volume"
    )
    if connection.execute(query).scalar():
        raise InvalidState(f"The back end {backend_host(pool)} is frozen.")


@rerun_when_contended
def extend(core: Core, context: Context, volume: Volume, new_size: int, *, allow_in_use: bool) -> None:
    """Begin to grow to `new_size` GiB. Raises `InvalidInput`, `InvalidState`, `OverQuota`."""
    if new_size <= volume.size:
        raise InvalidInput(f"New size {new_size} GiB must be larger than the present {volume.size} GiB.")
    attached = volume.status == "in-use" and allow_in_use
    row = transition("volume", "extend_attached" if attached else "extend")
    same_size: Guard = (_volume.size == volume.size, "its size changed meanwhile")
    with core.store.write(durable=True) as connection:
        kind = records.get(connection, VolumeType, volume.volume_type_id)
        check_type_size(kind, new_size)
        records.enter(connection, row, volume.id, NOT_MIGRATING, same_size)
        type_name = records.get(connection, VolumeType, kind.id, lock="share").name
        args = {
            "new_size": new_size,
            "old_size": volume.size,
            "project_id": volume.project_id,
            "volume_type_id": volume.volume_type_id,
            "consumes_quota": volume.consumes_quota,
        }
        deltas = volume_tasks.growth_of(args, type_name)
        quotas.charge(connection, core.quota, volume.project_id, deltas, volume_size=new_size, reserve=True)
        submitted = core.journal.submit(
            connection, "volume.extend", context, volume.id, role="scheduler", args=args
        )
    core.journal.announce(submitted)


# --- changes that take no time ---------------------------------------------------------------------------


def not_migrating(volume: Volume) -> None:
    """Raises `InvalidState` for a volume in the middle of a migration."""
    if volume.migration_status not in states.NOT_MIGRATING:
        raise InvalidState(f"Invalid volume: {NOT_MIGRATING[1]}.")


def _editable(volume: Volume, *refused: str) -> None:
    if volume.status in ("maintenance", *refused):
        raise InvalidState(f"Invalid volume: it cannot be changed while it is {volume.status}.")


@rerun_when_contended
def update(core: Core, context: Context, volume: Volume, changes: dict[str, Any]) -> Volume:
    """Change name, description or the whole metadata; returns the volume as it is then."""
    del context
    with core.store.write(durable=True) as connection:
        _editable(records.get(connection, Volume, volume.id, lock="update"))
        if core.notices is not None:
            core.notices.volume(connection, volume.id, "update.start")
        records.update(connection, Volume, volume.id, **changes)
        if core.notices is not None:
            core.notices.volume(connection, volume.id, "update.end")
        return records.get(connection, Volume, volume.id)


@rerun_when_contended
def _edit_map(
    core: Core, volume: Volume, column: str, edit: Callable[[dict[str, str]], dict[str, str]], *refused: str
) -> dict[str, str]:
    with core.store.write(durable=True) as connection:
        fresh = records.get(connection, Volume, volume.id, lock="update")
        _editable(fresh, *refused)
        changed = edit(dict(getattr(fresh, column)))
        records.update(connection, Volume, volume.id, **{column: changed})
    return changed


def write_metadata(
    core: Core,
    volume: Volume,
    changes: Mapping[str, str],
    *,
    replace: bool,
    if_match: str | None = None,
    etag: Callable[[dict[str, str]], str] | None = None,
) -> dict[str, str]:
    """Merge into the metadata, or replace it; with `if_match` only while `etag` of it is that.

    Raises `PreconditionFailed`.
    """

    def edit(present: dict[str, str]) -> dict[str, str]:
        if if_match is not None and etag is not None and etag(present) != if_match:
            raise PreconditionFailed("The metadata has changed.")
        return dict(changes) if replace else {**present, **changes}

    return _edit_map(core, volume, "metadata", edit, "uploading")


def delete_metadata(core: Core, volume: Volume, key: str) -> None:
    """Remove one key. Raises `NotFound`."""
    _edit_map(core, volume, "metadata", lambda present: _without(present, key, volume.id), "uploading")


def _without(present: dict[str, str], key: str, volume_id: str) -> dict[str, str]:
    if key not in present:
        raise NotFound(f"Volume {volume_id} has no metadata with key {key}.")
    del present[key]
    return present


def write_image_metadata(core: Core, volume: Volume, changes: Mapping[str, str]) -> dict[str, str]:
    """Merge into the image metadata; returns all of it."""
    return _edit_map(core, volume, "image_metadata", lambda present: {**present, **changes})


def delete_image_metadata(core: Core, volume: Volume, key: str) -> None:
    """Remove one key of the image metadata. Raises `NotFound`."""
    _edit_map(core, volume, "image_metadata", lambda present: _without(present, key, volume.id))


@rerun_when_contended
def set_bootable(core: Core, volume: Volume, bootable: bool) -> None:
    """Say whether it can be booted from."""
    with core.store.write(durable=True) as connection:
        _editable(records.get(connection, Volume, volume.id, lock="update"))
        records.update(connection, Volume, volume.id, bootable=bootable)


@rerun_when_contended
def set_readonly(core: Core, volume: Volume, readonly: bool) -> None:
    """Allow attaching it only read-only, or not. Raises `InvalidState` unless it is available."""
    with core.store.write(durable=True) as connection:
        fresh = records.get(connection, Volume, volume.id, lock="update")
        if fresh.status != "available":
            raise InvalidState(f"Invalid volume: it must be available, but it is {fresh.status}.")
        marked = {**fresh.admin_metadata, "readonly": str(readonly)}
        records.update(connection, Volume, volume.id, admin_metadata=marked)


@rerun_when_contended
def reset_status(
    core: Core,
    context: Context,
    volume: Volume,
    *,
    status: str | None,
    attach_status: str | None,
    migration_status: str | None,
) -> None:
    """The administrator's reset: the only status write beside the transition table."""
    if not context.is_admin:
        raise Forbidden("volume_extension:volume_admin_actions:reset_status")
    if status == "deleting":
        raise InvalidInput("The status cannot be reset to deleting.")
    if status is not None and status not in states.VOLUME_RESET:
        raise InvalidInput(f"{status!r} is not a status that a volume can be reset to.")
    changes: dict[str, Any] = {}
    with core.store.write(durable=True) as connection:
        fresh = records.get(connection, Volume, volume.id, lock="update")
        attached = records.all_of(connection, Attachment, tables.attachments.c.volume_id == volume.id)
        if status == "in-use" and not attached:
            raise InvalidInput("A volume without attachments cannot be reset to in-use.")
        if status is not None:
            changes["status"] = status
        if core.notices is not None:
            core.notices.volume(connection, volume.id, "reset_status.start")
        if attach_status is not None:
            changes["attach_status"] = attach_status
        if attach_status == "detached":
            table = tables.attachments
            connection.execute(table.delete().where(table.c.volume_id == volume.id))
            kept = {k: v for k, v in fresh.admin_metadata.items() if k != "attached_mode"}
            changes["admin_metadata"] = kept
        if migration_status is not None:
            changes["migration_status"] = None if migration_status == "none" else migration_status
        records.update(connection, Volume, volume.id, **changes)
        if core.notices is not None:
            core.notices.volume(connection, volume.id, "reset_status.end")
    events.emit("volume.reset_status.end", resource_id=volume.id, project_id=volume.project_id, **changes)
