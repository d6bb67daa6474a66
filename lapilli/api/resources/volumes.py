"""Volumes: the volumes, their metadata, the summary, and what is told of their encryption."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import sqlalchemy as sa

from lapilli.api.access import ADMIN, MEMBER, READER, rule
from lapilli.api.answers import META, METADATA, OBJECT, STRING, WHOLE, list_of, map_of, shape, shaped
from lapilli.api.bodies import HINTS_KEY, VOLUME_CREATE as _CREATE, VOLUME_NAMES
from lapilli.api.fields import (
    METADATA_SCHEMA,
    NULLABLE_METADATA,
    STR255,
    Look,
    body,
)
from lapilli.api.listing import exact, flag, flag_param, host, listing, maps, times
from lapilli.api.resource import Call, Routes
from lapilli.api.views import VOLUME, VOLUME_SUMMARY, VOLUME_WRITTEN
from lapilli.domain.model import Volume, VolumeType
from lapilli.errors import InvalidInput, NotFound
from lapilli.flows import volumes as flows
from lapilli.store import records, summaries, tables

route = Routes()

GET = rule("volume:get", READER)
GET_ALL = rule("volume:get_all", READER)
CREATE = rule("volume:create", MEMBER)
CREATE_FROM_IMAGE = rule("volume:create_from_image", MEMBER)
UPDATE = rule("volume:update", MEMBER)
MULTIATTACH = rule("volume:multiattach", MEMBER)
DELETE = rule("volume:delete", MEMBER)
FORCE_DELETE = rule("volume:force_delete", ADMIN)
GET_METADATA = rule("volume:get_volume_metadata", READER)
CREATE_METADATA = rule("volume:create_volume_metadata", MEMBER)
UPDATE_METADATA = rule("volume:update_volume_metadata", MEMBER)
DELETE_METADATA = rule("volume:delete_volume_metadata", MEMBER)
SEE_ENCRYPTION = rule("volume_extension:volume_encryption_metadata", READER)
MULTIATTACH = rule("volume:multiattach", MEMBER)

LIST = listing(
    Volume,
    "volumes",
    resource="volume",
    filters=(
        flag("bootable", strict="3.2"),
        maps("metadata", "metadata", "admin_metadata"),
        maps("glance_metadata", "image_metadata", since="3.4"),
        exact("group_id", since="3.10"),
        times("created_at", since="3.60"),
        times("updated_at", since="3.60"),
        flag("consumes_quota", strict="3.0", since="3.65"),
        host("host"),
    ),
    aliases={"display_name": "name", "display_description": "description"},
    hidden=("name_id",),
    private=("host", "provider_id", "cluster_name"),
    all_tenants="bool",
    counted="3.45",
)
_QUERY = (
    *("all_tenants", "limit", "marker", "offset", "sort", "sort_key", "sort_dir", "with_count"),
    *("name", "status", "metadata", "bootable", "migration_status", "availability_zone"),
    *("group_id", "size", "created_at", "updated_at", "consumes_quota"),
)

# Destinations of migrations are seen by administrators only.
_migration = tables.volumes.c.migration_status
_NO_TARGETS = sa.or_(_migration.is_(None), _migration.not_like("target:%"))


def _visible(call: Call) -> tuple[sa.ColumnElement[bool], ...]:
    return () if call.context.is_admin else (_NO_TARGETS,)


def _look(call: Call, connection: sa.Connection, volumes: list[Volume]) -> Look:
    """What the views need besides the volumes: their types' names and their attachments."""
    attached = [each.id for each in volumes if each.attach_status != "detached"]
    sees_hosts = call.context.is_admin or "service" in call.context.roles
    return Look(
        call,
        types=records.type_names(connection),
        attachments=records.attachments_of(connection, attached) if attached else {},
        sees_hosts=sees_hosts,
    )


def _get(call: Call, connection: sa.Connection, volume_id: str) -> Volume:
    return records.get(connection, Volume, volume_id, project_id=call.project_scope)


def _read(call: Call, volume_id: str) -> Volume:
    with call.core.store.read() as connection:
        return _get(call, connection, volume_id)


# --- volumes ---------------------------------------------------------------------------------------------


@route.get("/volumes", rule=GET_ALL, query=_QUERY, lists=("volumes", VOLUME_SUMMARY))
def index(call: Call) -> dict[str, Any]:
    """List volumes."""
    with call.core.store.read() as connection:
        page = LIST.page(call, connection, *_visible(call))
    return page.answer(VOLUME_SUMMARY.render_all(page.items, Look(call)))


@route.get("/volumes/detail", rule=GET_ALL, query=_QUERY, lists=("volumes", VOLUME))
def detail(call: Call) -> dict[str, Any]:
    """List volumes with all their keys."""
    with call.core.store.read() as connection:
        page = LIST.page(call, connection, *_visible(call))
        look = _look(call, connection, page.items)
    return page.answer(VOLUME.render_all(page.items, look))


def _totals(call: Call, connection: sa.Connection) -> tuple[list[sa.ColumnElement[bool]], dict[str, Any]]:
    conditions = LIST.conditions(call)
    where: list[sa.ColumnElement[bool]] = [sa.false()]
    if conditions is not None:
        where = [*conditions, *_visible(call)]
    number, size = summaries.totals(connection, where)
    return where, {"total_count": number, "total_size": size}


@route.get(
    "/volumes/summary",
    rule=GET_ALL,
    since="3.12",
    until="3.35",
    query=("all_tenants",),
    answers=shaped({"volume-summary": shape(total_count=WHOLE, total_size=WHOLE)}),
)
def summary(call: Call) -> dict[str, Any]:
    """Tell number and size of the volumes."""
    with call.core.store.read() as connection:
        return {"volume-summary": _totals(call, connection)[1]}


@route.get(
    "/volumes/summary",
    rule=GET_ALL,
    since="3.36",
    query=("all_tenants",),
    answers=shaped(
        {"volume-summary": shape(total_count=WHOLE, total_size=WHOLE, metadata=map_of(list_of(STRING)))}
    ),
)
def summary_with_metadata(call: Call) -> dict[str, Any]:
    """Tell number, size and metadata of the volumes."""
    with call.core.store.read() as connection:
        where, told = _totals(call, connection)
        return {"volume-summary": {**told, "metadata": summaries.metadata_values(connection, where)}}


@route.get("/volumes/{volume_id}", rule=GET, hidden=True, returns=VOLUME)
def show(call: Call, volume_id: str) -> dict[str, Any]:
    """Show a volume."""
    with call.core.store.read() as connection:
        volume = _get(call, connection, volume_id)
        look = _look(call, connection, [volume])
    return {"volume": VOLUME.render(volume, look)}


def _renamed(wanted: dict[str, Any]) -> dict[str, Any]:
    """The given texts under their own names; `name` wins over `display_name`."""
    told: dict[str, Any] = {}
    for name in ("name", "description"):
        if name in wanted or f"display_{name}" in wanted:
            told[name] = wanted.get(name, wanted.get(f"display_{name}"))
    return told


@route.post(
    "/volumes",
    rule=CREATE,
    status=202,
    until="3.45",
    accepts=_CREATE,
    returns=VOLUME_WRITTEN,
    resume=lambda call, earlier: _written(call, earlier.made),
)
def create(call: Call, wanted: dict[str, Any]) -> dict[str, Any]:
    """Create a volume: empty, or from a snapshot, a volume or an image."""
    return _create(call, wanted, follow_image=False)


@route.post(
    "/volumes",
    rule=CREATE,
    status=202,
    since="3.46",
    accepts=_CREATE,
    returns=VOLUME_WRITTEN,
    resume=lambda call, earlier: _written(call, earlier.made),
)
def create_following_image(call: Call, wanted: dict[str, Any]) -> dict[str, Any]:
    """Create a volume, from the snapshot that an image stands for where it does, or from a backup."""
    return _create(call, wanted, follow_image=True)


def _create(call: Call, wanted: dict[str, Any], *, follow_image: bool) -> dict[str, Any]:
    image = wanted.get("imageRef") or wanted.get("image_id") or None
    if image is not None:
        call.enforce(CREATE_FROM_IMAGE)
    shared = bool(wanted.get("multiattach"))
    if shared and call.old_version:
        call.enforce(MULTIATTACH)
    request = flows.VolumeRequest(
        size=wanted.get("size"),
        volume_type=wanted.get("volume_type"),
        availability_zone=wanted.get("availability_zone"),
        snapshot_id=wanted.get("snapshot_id"),
        source_volid=wanted.get("source_volid"),
        image_ref=image,
        follow_image=follow_image,
        backup_id=wanted.get("backup_id"),
        group_id=wanted.get("group_id") or None,
        consistencygroup_id=wanted.get("consistencygroup_id"),
        metadata=wanted.get("metadata") or {},
        scheduler_hints=call.body.get(HINTS_KEY) or {},
        multiattach=shared and not call.old_version,
        shared=shared and bool(call.old_version),
        may_share=call.allows(MULTIATTACH),
        **_renamed(wanted),
    )
    return _written(call, flows.create(call.core, call.context, request))


def _written(call: Call, volume: Volume) -> dict[str, Any]:
    with call.core.store.read() as connection:
        look = _look(call, connection, [volume])
    return {"volume": VOLUME_WRITTEN.render(volume, look)}


@route.put(
    "/volumes/{volume_id}",
    rule=UPDATE,
    returns=VOLUME_WRITTEN,
    until="3.52",
    accepts=body("volume", VOLUME_NAMES, metadata=NULLABLE_METADATA),
)
@route.put(
    "/volumes/{volume_id}",
    rule=UPDATE,
    returns=VOLUME_WRITTEN,
    since="3.53",
    accepts=body("volume", VOLUME_NAMES, metadata=NULLABLE_METADATA, least=1),
)
def update(call: Call, volume_id: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Change name, description or metadata of a volume."""
    changes = _renamed(wanted)
    if wanted.get("metadata") is not None:
        changes["metadata"] = wanted["metadata"]
    volume = _read(call, volume_id)
    if changes:
        volume = flows.update(call.core, call.context, volume, changes)
    return _written(call, volume)


@route.delete("/volumes/{volume_id}", rule=DELETE, status=202, until="3.22", query=("cascade",))
def delete(call: Call, volume_id: str) -> None:
    """Delete a volume."""
    cascade = flag_param(call, "cascade")
    flows.delete(call.core, call.context, _read(call, volume_id), cascade=cascade)


@route.delete("/volumes/{volume_id}", rule=DELETE, status=202, since="3.23", query=("cascade", "force"))
def delete_or_force(call: Call, volume_id: str) -> None:
    """Delete a volume, with `force` whatever its status."""
    cascade, force = flag_param(call, "cascade"), flag_param(call, "force")
    volume = _read(call, volume_id)
    if force:
        call.enforce(FORCE_DELETE)
    flows.delete(call.core, call.context, volume, cascade=cascade, force=force)


# --- metadata --------------------------------------------------------------------------------------------

_METADATA = body("metadata", extra=STR255, rules=METADATA_SCHEMA)
_META = body("meta", extra=STR255, rules={**METADATA_SCHEMA, "minProperties": 1, "maxProperties": 1})


def _encoded(metadata: dict[str, str]) -> bytes:
    return msgspec.json.encode({"metadata": metadata})


def _etag(metadata: dict[str, str]) -> str:
    return hashlib.md5(_encoded(metadata), usedforsecurity=False).hexdigest()


def _match(call: Call) -> dict[str, Any]:
    """What `If-Match` asks of a write: nothing without it, or when any state will do."""
    given = call.headers.get("IF-MATCH")
    if given is None or given.strip() == "*":
        return {}
    wanted = [part.strip().removeprefix("W/").strip('"') for part in given.split(",")]

    def tag(metadata: dict[str, str]) -> str:
        present = _etag(metadata)
        return wanted[0] if present in wanted else present

    return {"if_match": wanted[0], "etag": tag}


@route.get("/volumes/{volume_id}/metadata", rule=GET_METADATA, until="3.14", answers=METADATA)
def metadata(call: Call, volume_id: str) -> dict[str, Any]:
    """Show the metadata of a volume."""
    return {"metadata": _read(call, volume_id).metadata}


@route.get("/volumes/{volume_id}/metadata", rule=GET_METADATA, since="3.15", answers=METADATA)
def metadata_with_etag(call: Call, volume_id: str) -> bytes:
    """Show the metadata of a volume, with an ETag of its present state."""
    present = _read(call, volume_id).metadata
    call.response_headers["ETag"] = _etag(present)
    return _encoded(present)


@route.post(
    "/volumes/{volume_id}/metadata",
    rule=CREATE_METADATA,
    accepts=_METADATA,
    repeatable=True,
    answers=METADATA,
)
def merge_metadata(call: Call, volume_id: str, changes: dict[str, str]) -> dict[str, Any]:
    """Merge keys into the metadata of a volume."""
    return {"metadata": flows.write_metadata(call.core, _read(call, volume_id), changes, replace=False)}


@route.put(
    "/volumes/{volume_id}/metadata", rule=UPDATE_METADATA, accepts=_METADATA, until="3.14", answers=METADATA
)
def replace_metadata(call: Call, volume_id: str, changes: dict[str, str]) -> dict[str, Any]:
    """Replace the metadata of a volume."""
    return {"metadata": flows.write_metadata(call.core, _read(call, volume_id), changes, replace=True)}


@route.put(
    "/volumes/{volume_id}/metadata", rule=UPDATE_METADATA, accepts=_METADATA, since="3.15", answers=METADATA
)
def replace_metadata_if(call: Call, volume_id: str, changes: dict[str, str]) -> dict[str, Any]:
    """Replace the metadata of a volume, with `If-Match` only in the state that it names."""
    volume = _read(call, volume_id)
    return {"metadata": flows.write_metadata(call.core, volume, changes, replace=True, **_match(call))}


@route.get("/volumes/{volume_id}/metadata/{key}", rule=GET_METADATA, answers=META)
def metadata_item(call: Call, volume_id: str, key: str) -> dict[str, Any]:
    """Show one key of the metadata."""
    present = _read(call, volume_id).metadata
    if key not in present:
        raise NotFound(f"Volume {volume_id} has no metadata with key {key}.")
    return {"meta": {key: present[key]}}


def _one_key(changes: dict[str, str], key: str) -> dict[str, str]:
    if key not in changes:
        raise InvalidInput("The key in the body and the key in the URL differ.")
    return changes


@route.put(
    "/volumes/{volume_id}/metadata/{key}", rule=UPDATE_METADATA, accepts=_META, until="3.14", answers=META
)
def write_metadata_item(call: Call, volume_id: str, key: str, changes: dict[str, str]) -> dict[str, Any]:
    """Write one key of the metadata."""
    flows.write_metadata(call.core, _read(call, volume_id), _one_key(changes, key), replace=False)
    return {"meta": changes}


@route.put(
    "/volumes/{volume_id}/metadata/{key}", rule=UPDATE_METADATA, accepts=_META, since="3.15", answers=META
)
def write_metadata_item_if(call: Call, volume_id: str, key: str, changes: dict[str, str]) -> dict[str, Any]:
    """Write one key of the metadata, with `If-Match` only in the state that it names."""
    volume = _read(call, volume_id)
    flows.write_metadata(call.core, volume, _one_key(changes, key), replace=False, **_match(call))
    return {"meta": changes}


@route.delete("/volumes/{volume_id}/metadata/{key}", rule=DELETE_METADATA)
def delete_metadata_item(call: Call, volume_id: str, key: str) -> None:
    """Remove one key of the metadata."""
    flows.delete_metadata(call.core, _read(call, volume_id), key)


# --- encryption ------------------------------------------------------------------------------------------


def _encryption(call: Call, volume: Volume) -> dict[str, Any]:
    """The key's id; of an encrypted volume also how its type says that it is encrypted."""
    with call.core.store.read() as connection:
        how = records.get(connection, VolumeType, volume.volume_type_id).encryption or {}
    facts = ("control_location", "cipher", "key_size", "provider")
    return {"encryption_key_id": volume.encryption_key_id, **{key: how[key] for key in facts if key in how}}


@route.get("/volumes/{volume_id}/encryption", rule=SEE_ENCRYPTION, answers=OBJECT)
def encryption(call: Call, volume_id: str) -> dict[str, Any]:
    """Tell how a volume is encrypted."""
    return _encryption(call, _read(call, volume_id))


_FACT = {"type": ["string", "integer", "null"]}


@route.get("/volumes/{volume_id}/encryption/{key}", rule=SEE_ENCRYPTION, answers=_FACT)
def encryption_item(call: Call, volume_id: str, key: str) -> bytes:
    """Tell one fact of a volume's encryption, as a bare value."""
    facts = _encryption(call, _read(call, volume_id))
    if key not in facts:
        raise NotFound(f"Volume {volume_id} has no encryption fact {key}.")
    return msgspec.json.encode(facts[key])
