"""Every action on a volume: POST /volumes/{id}/action with one key."""

from __future__ import annotations

from typing import Any

from lapilli.api.access import ADMIN, MEMBER, READER, rule
from lapilli.api.fields import (
    BOOL,
    NULLABLE_BOOL,
    NULLABLE_OBJECT,
    NULLABLE_UUID,
    OBJECT,
    SIZE,
    STR255,
    UUID,
    Property,
    body,
    required,
    since,
    timestamp,
)
from lapilli.api.resource import Call, Earlier, Routes
from lapilli.domain import states
from lapilli.domain.model import Image, Volume, VolumeType
from lapilli.errors import InvalidInput
from lapilli.flows import attachments, images, managing, retype, rewriting, volume_types, volumes
from lapilli.store import records

route = Routes()

_PATH = "/volumes/{volume_id}/action"


def _action_rule(name: str, role: str = MEMBER) -> Any:
    return rule(f"volume_extension:volume_actions:{name}", role)


def _volume(call: Call, volume_id: str) -> Volume:
    with call.core.store.read() as connection:
        return records.get(connection, Volume, volume_id, project_id=call.project_scope)


# --- attaching as the compute service does it ------------------------------------------------------------


@route.action(_PATH, "os-reserve", rule=_action_rule("reserve"), status=202)
def reserve(call: Call, volume_id: str, _anything: Any) -> None:
    """Reserve a volume that is about to be attached."""
    attachments.reserve(call.core, _volume(call, volume_id))


@route.action(_PATH, "os-unreserve", rule=_action_rule("unreserve"), status=202)
def unreserve(call: Call, volume_id: str, _anything: Any) -> None:
    """Take a reservation back."""
    attachments.unreserve(call.core, _volume(call, volume_id))


@route.action(_PATH, "os-begin_detaching", rule=_action_rule("begin_detaching"), status=202)
def begin_detaching(call: Call, volume_id: str, _anything: Any) -> None:
    """Mark a volume as being detached."""
    attachments.begin_detaching(call.core, _volume(call, volume_id))


@route.action(_PATH, "os-roll_detaching", rule=_action_rule("roll_detaching"), status=202)
def roll_detaching(call: Call, volume_id: str, _anything: Any) -> None:
    """Take a begun detach back."""
    attachments.roll_detaching(call.core, _volume(call, volume_id))


@route.action(
    _PATH,
    "os-attach",
    rule=_action_rule("attach"),
    status=202,
    accepts=body(
        None,
        mountpoint=required(Property({"type": "string", "minLength": 1, "maxLength": 255})),
        instance_uuid=UUID,
        host_name=Property(STR255),
        mode=Property({"enum": ["rw", "ro"]}),
        rules={"anyOf": [{"required": ["instance_uuid"]}, {"required": ["host_name"]}]},
    ),
)
def attach(call: Call, volume_id: str, wanted: dict[str, Any]) -> None:
    """Record that a volume is attached to a server or a host."""
    attachments.attach(
        call.core,
        call.context,
        _volume(call, volume_id),
        instance_id=wanted.get("instance_uuid"),
        host_name=wanted.get("host_name"),
        mountpoint=wanted["mountpoint"],
        mode=wanted.get("mode", "rw"),
    )


@route.action(
    _PATH,
    "os-detach",
    repeatable=True,
    rule=_action_rule("detach"),
    status=202,
    accepts=body(None, attachment_id=NULLABLE_UUID, nullable=True),
)
def detach(call: Call, volume_id: str, wanted: dict[str, Any] | None) -> None:
    """Record that a volume is detached."""
    chosen = (wanted or {}).get("attachment_id")
    attachments.detach(call.core, call.context, _volume(call, volume_id), chosen)


@route.action(
    _PATH,
    "os-force_detach",
    repeatable=True,
    rule=rule("volume_extension:volume_admin_actions:force_detach", ADMIN),
    status=202,
    accepts=body(None, attachment_id=NULLABLE_UUID, connector=NULLABLE_OBJECT),
)
def force_detach(call: Call, volume_id: str, wanted: dict[str, Any]) -> None:
    """Withdraw the connection and record the detach, whatever the status."""
    volume = _volume(call, volume_id)
    chosen, connector = wanted.get("attachment_id"), wanted.get("connector")
    attachments.force_detach(call.core, call.context, volume, chosen, connector)


@route.action(
    _PATH,
    "os-initialize_connection",
    repeatable=True,
    secret=True,
    rule=_action_rule("initialize_connection"),
    accepts=body(None, connector=required(OBJECT)),
)
def initialize_connection(call: Call, volume_id: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Export a volume to a connector and tell how to reach it."""
    volume = _volume(call, volume_id)
    told = attachments.initialize_connection(call.core, call.context, volume, wanted["connector"])
    return {"connection_info": told}


@route.action(
    _PATH,
    "os-terminate_connection",
    repeatable=True,
    rule=_action_rule("terminate_connection"),
    status=202,
    accepts=body(None, connector=required(NULLABLE_OBJECT)),
)
def terminate_connection(call: Call, volume_id: str, wanted: dict[str, Any]) -> None:
    """Withdraw a connector's connection."""
    volume = _volume(call, volume_id)
    attachments.terminate_connection(call.core, call.context, volume, wanted["connector"])


# --- size, flags and status ------------------------------------------------------------------------------

_EXTEND = body(None, new_size=required(SIZE))
_EXTEND_ATTACHED = rule("volume:extend_attached_volume", MEMBER)


@route.action(
    _PATH, "os-extend", rule=rule("volume:extend", MEMBER), status=202, until="3.41", accepts=_EXTEND
)
def extend(call: Call, volume_id: str, wanted: dict[str, Any]) -> None:
    """Grow an available volume."""
    volume = _volume(call, volume_id)
    volumes.extend(call.core, call.context, volume, wanted["new_size"], allow_in_use=False)


@route.action(
    _PATH, "os-extend", rule=rule("volume:extend", MEMBER), status=202, since="3.42", accepts=_EXTEND
)
def extend_in_use(call: Call, volume_id: str, wanted: dict[str, Any]) -> None:
    """Grow a volume, also one in use."""
    volume = _volume(call, volume_id)
    if volume.status == "in-use":
        call.enforce(_EXTEND_ATTACHED)
    volumes.extend(call.core, call.context, volume, wanted["new_size"], allow_in_use=True)


@route.action(
    _PATH,
    "os-extend_volume_completion",
    rule=rule("volume_extension:volume_admin_actions:extend_volume_completion", ADMIN),
    status=202,
    since="3.71",
    accepts=body(None, error=NULLABLE_BOOL),
)
def complete_extend(call: Call, volume_id: str, _wanted: dict[str, Any]) -> None:
    """End an extend that waits for the compute service: no back end here leaves one waiting."""
    volume = _volume(call, volume_id)
    raise InvalidInput(f"Volume {volume.id} has no extend that waits for the compute service.")


@route.action(
    _PATH, "os-set_bootable", rule=rule("volume:update", MEMBER), accepts=body(None, bootable=required(BOOL))
)
def set_bootable(call: Call, volume_id: str, wanted: dict[str, Any]) -> None:
    """Say whether a volume can be booted from."""
    volumes.set_bootable(call.core, _volume(call, volume_id), wanted["bootable"])


@route.action(
    _PATH,
    "os-update_readonly_flag",
    rule=rule("volume:update_readonly_flag", MEMBER),
    status=202,
    accepts=body(None, readonly=required(BOOL)),
)
def update_readonly_flag(call: Call, volume_id: str, wanted: dict[str, Any]) -> None:
    """Say whether a volume may be attached read-only alone."""
    volumes.set_readonly(call.core, _volume(call, volume_id), wanted["readonly"])


@route.action(
    _PATH,
    "os-reset_status",
    rule=rule("volume_extension:volume_admin_actions:reset_status", ADMIN),
    status=202,
    accepts=body(
        None,
        status=Property({"enum": states.VOLUME_RESET}),
        attach_status=Property({"enum": list(states.ATTACH_RESET)}),
        migration_status=Property({"enum": list(states.MIGRATION_RESET)}),
        least=1,
    ),
)
def reset_status(call: Call, volume_id: str, wanted: dict[str, Any]) -> None:
    """Write statuses by hand, without touching anything else."""
    volumes.reset_status(
        call.core,
        call.context,
        _volume(call, volume_id),
        status=wanted.get("status"),
        attach_status=wanted.get("attach_status"),
        migration_status=wanted.get("migration_status"),
    )


@route.action(
    _PATH,
    "os-force_delete",
    rule=rule("volume_extension:volume_admin_actions:force_delete", ADMIN),
    status=202,
)
def force_delete(call: Call, volume_id: str, _anything: Any) -> None:
    """Delete a volume whatever its status."""
    volumes.delete(call.core, call.context, _volume(call, volume_id), force=True)


@route.action(_PATH, "os-unmanage", rule=rule("volume_extension:volume_unmanage", ADMIN), status=202)
def unmanage(call: Call, volume_id: str, _anything: Any) -> None:
    """Let go of a volume, and leave at the back end what is there."""
    managing.unmanage(call.core, call.context, _volume(call, volume_id))


# --- type ------------------------------------------------------------------------------------------------

_MULTIATTACH = rule("volume:multiattach", MEMBER)


@route.action(
    _PATH,
    "os-retype",
    rule=rule("volume:retype", MEMBER),
    status=202,
    accepts=body(
        None,
        new_type=required(Property({"type": "string", "minLength": 1, "maxLength": 255})),
        migration_policy=Property({"enum": ["never", "on-demand"]}),
    ),
)
def change_type(call: Call, volume_id: str, wanted: dict[str, Any]) -> None:
    """Give a volume another type."""
    volume = _volume(call, volume_id)
    with call.core.store.read() as connection:
        kind = volume_types.resolve(connection, call.context, wanted["new_type"], call.core.types)
    if retype.turns_multiattach_on(volume, kind):
        call.enforce(_MULTIATTACH)
    on_demand = wanted.get("migration_policy") == "on-demand"
    retype.retype(call.core, call.context, volume, kind, on_demand=on_demand)


# --- other content ---------------------------------------------------------------------------------------

_REIMAGE_RESERVED = rule("volume:reimage_reserved", MEMBER)


@route.action(
    _PATH,
    "revert",
    rule=rule("volume:revert_to_snapshot", MEMBER),
    status=202,
    since="3.40",
    accepts=body(None, snapshot_id=required(UUID)),
)
def revert(call: Call, volume_id: str, wanted: dict[str, Any]) -> None:
    """Give a volume the content of its newest snapshot."""
    rewriting.revert(call.core, call.context, _volume(call, volume_id), wanted["snapshot_id"])


@route.action(
    _PATH,
    "os-reimage",
    rule=rule("volume:reimage", MEMBER),
    status=202,
    since="3.68",
    accepts=body(None, image_id=required(UUID), reimage_reserved=BOOL),
)
def reimage(call: Call, volume_id: str, wanted: dict[str, Any]) -> None:
    """Write a volume anew from an image."""
    volume, reserved = _volume(call, volume_id), wanted.get("reimage_reserved", False)
    if reserved:
        call.enforce(_REIMAGE_RESERVED)
    image = call.core.images.get(wanted["image_id"], context=call.context)
    rewriting.reimage(call.core, call.context, volume, image, reserved=reserved)


# --- images ----------------------------------------------------------------------------------------------

_UPLOAD = {
    "image_name": required(Property({"type": "string", "minLength": 1, "maxLength": 255})),
    "force": BOOL,
    "disk_format": Property({"enum": ["raw", "vmdk", "vdi", "qcow2", "vhd", "vhdx", "ploop"]}),
    "container_format": Property(STR255),
    "visibility": since("3.1", Property({"enum": ["private", "public", "shared", "community"]})),
    "protected": since("3.1", BOOL),
}
_UPLOAD_RULE = _action_rule("upload_image")
_UPLOAD_PUBLIC = _action_rule("upload_public", ADMIN)


def _upload(call: Call, volume_id: str, wanted: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    """Begin the upload; what is told of it in every version."""
    volume = _volume(call, volume_id)
    container_format = wanted.get("container_format", "bare")
    disk_format = wanted.get("disk_format", "raw")
    image = images.upload(
        call.core,
        call.context,
        volume,
        name=wanted["image_name"],
        disk_format=disk_format,
        container_format=container_format,
        force=wanted.get("force", False),
        properties=properties,
    )
    return _uploading(call, volume, image)


def _uploading(call: Call, volume: Volume, image: Image) -> dict[str, Any]:
    with call.core.store.read() as connection:
        kind = records.find(connection, VolumeType, volume.volume_type_id)
    return {
        "id": volume.id,
        "updated_at": timestamp(volume.updated_at),
        "status": "uploading",
        "display_description": volume.description,
        "size": volume.size,
        "volume_type": None if kind is None else _told_type(kind),
        "image_id": image.id,
        "container_format": image.container_format,
        "disk_format": image.disk_format,
        "image_name": image.name,
    }


def _resume_upload(call: Call, earlier: Earlier, volume_id: str) -> dict[str, Any]:
    """What was told of an upload that has begun."""
    image = images.uploaded(call.core, volume_id, earlier.request_id)
    told = _uploading(call, _volume(call, volume_id), image)
    if call.version == 0:
        return {"os-volume_upload_image": {**told, "is_public": False}}
    shown = {"visibility": image.visibility, "protected": image.protected}
    return {"os-volume_upload_image": {**told, **shown}}


def _told_type(kind: VolumeType) -> dict[str, Any]:
    return {
        "id": kind.id,
        "name": kind.name,
        "description": kind.description,
        "is_public": kind.is_public,
    }


@route.action(
    _PATH,
    "os-volume_upload_image",
    rule=_UPLOAD_RULE,
    resume=_resume_upload,
    status=202,
    until="3.0",
    accepts=body(None, _UPLOAD),
)
def upload_image(call: Call, volume_id: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Make an image of a volume."""
    told = _upload(call, volume_id, wanted, {"visibility": "private", "protected": False})
    return {"os-volume_upload_image": {**told, "is_public": False}}


@route.action(
    _PATH,
    "os-volume_upload_image",
    rule=_UPLOAD_RULE,
    resume=_resume_upload,
    status=202,
    since="3.1",
    accepts=body(None, _UPLOAD),
)
def upload_image_with_visibility(call: Call, volume_id: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Make an image of a volume, with its visibility and protection."""
    chosen = {
        "visibility": wanted.get("visibility", "private"),
        "protected": wanted.get("protected", False),
    }
    if chosen["visibility"] == "public":
        call.enforce(_UPLOAD_PUBLIC)
    told = _upload(call, volume_id, wanted, chosen)
    return {"os-volume_upload_image": {**told, **chosen}}


_IMAGE_METADATA = {
    "type": "object",
    "propertyNames": {"type": "string", "minLength": 1, "maxLength": 255},
    "additionalProperties": {"type": "string", "maxLength": 65535},
}


def _check_bytes(metadata: dict[str, str]) -> dict[str, str]:
    for key, value in metadata.items():
        if len(value.encode()) > 65535:
            raise InvalidInput(f"The value of {key} is longer than 65535 bytes.")
    return metadata


@route.action(
    _PATH,
    "os-set_image_metadata",
    repeatable=True,
    rule=rule("volume_extension:volume_image_metadata:set", MEMBER),
    accepts=body(None, metadata=required(Property(_IMAGE_METADATA, convert=_check_bytes))),
)
def set_image_metadata(call: Call, volume_id: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Merge keys into what a volume tells of its image."""
    volume = _volume(call, volume_id)
    return {"metadata": volumes.write_image_metadata(call.core, volume, wanted["metadata"])}


@route.action(
    _PATH, "os-show_image_metadata", rule=rule("volume_extension:volume_image_metadata:show", READER)
)
def show_image_metadata(call: Call, volume_id: str, _anything: Any) -> dict[str, Any]:
    """Show what a volume tells of its image."""
    return {"metadata": _volume(call, volume_id).image_metadata}


@route.action(
    _PATH,
    "os-unset_image_metadata",
    rule=rule("volume_extension:volume_image_metadata:remove", MEMBER),
    accepts=body(None, {"key": required(Property({"type": "string", "minLength": 1, "maxLength": 255}))}),
)
def unset_image_metadata(call: Call, volume_id: str, wanted: dict[str, Any]) -> None:
    """Remove one key of what a volume tells of its image."""
    volumes.delete_image_metadata(call.core, _volume(call, volume_id), wanted["key"])
