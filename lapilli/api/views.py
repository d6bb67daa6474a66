"""Representations that more than one resource answers with: of volumes and of snapshots."""

from __future__ import annotations

from typing import Any

from lapilli.api.access import ADMIN, IS_ADMIN, READER, rule
from lapilli.api.fields import OMIT, Look, field, time_field, timestamp, view
from lapilli.domain.model import Attachment, Volume

SEE_HOST = rule("volume_extension:volume_host_attribute", ADMIN)
SEE_TENANT = rule("volume_extension:volume_tenant_attribute", READER)
SEE_MIGRATION = rule("volume_extension:volume_mig_status_attribute", ADMIN)
SEE_IMAGE = rule("volume_extension:volume_image_metadata:show", READER)
SEE_FAULT = rule("volume:get_fault", READER)

_STRING = {"type": "string"}
_TEXT = {"type": ["string", "null"]}
_FLAG = {"type": "boolean"}
_MAP = {"type": "object", "additionalProperties": _STRING}
_LINKS = {"type": "array", "items": {"type": "object"}}

# Stored words that have no meaning for users.
_SHOWN_STATUS = {"managing": "creating", "error_managing": "error", "error_managing_deleting": "deleting"}
_NO_KEY = (None, "00000000-0000-0000-0000-000000000000")


# --- volumes ---------------------------------------------------------------------------------------------


def _attachment(each: Attachment, look: Look) -> dict[str, Any]:
    return {
        "id": each.volume_id,
        "attachment_id": each.id,
        "volume_id": each.volume_id,
        "server_id": each.instance_id,
        "host_name": each.attached_host if look.maps["sees_hosts"] else None,
        "device": each.mountpoint,
        "attached_at": timestamp(each.attached_at),
    }


def _with_marks(volume: Volume) -> dict[str, str]:
    shown = {k: v for k, v in volume.admin_metadata.items() if k in ("readonly", "attached_mode")}
    return {**volume.metadata, **shown}


VOLUME_BASE = (
    field("id", schema=_STRING),
    field("name", schema=_TEXT),
    field("description", schema=_TEXT),
    field("user_id", schema=_TEXT),
    field("availability_zone", schema=_TEXT),
    field("status", lambda volume, _look: _SHOWN_STATUS.get(volume.status, volume.status), _STRING),
    field("size", schema={"type": "integer"}),
    time_field("created_at"),
    time_field("updated_at"),
    field("volume_type", lambda volume, look: look.maps["types"].get(volume.volume_type_id), _TEXT),
    field("snapshot_id", schema=_TEXT),
    field("source_volid", schema=_TEXT),
    field("consistencygroup_id", lambda _volume, _look: None, _TEXT),
    field(
        "metadata",
        lambda volume, _look: _with_marks(volume) if volume.admin_metadata else volume.metadata,
        _MAP,
    ),
    field("links", lambda volume, look: look.call.links("volumes", volume.id), _LINKS),
    field("bootable", lambda volume, _look: "true" if volume.bootable else "false", _STRING),
    field("encrypted", lambda volume, _look: volume.encryption_key_id is not None, _FLAG),
    field("multiattach", schema=_FLAG),
    field("replication_status", schema=_TEXT),
    field(
        "attachments",
        lambda volume, look: [
            _attachment(each, look) for each in look.maps["attachments"].get(volume.id, ())
        ],
        {"type": "array", "items": {"type": "object"}},
    ),
    field("migration_status", schema=_TEXT, rule=IS_ADMIN),
    field("group_id", schema=_TEXT, since="3.13"),
    field("provider_id", schema=_TEXT, since="3.21", rule=IS_ADMIN),
    field("shared_targets", schema=_FLAG, since="3.48", until="3.68"),
    field("shared_targets", schema={"type": ["boolean", "null"]}, since="3.69"),
    field("service_uuid", schema=_TEXT, since="3.48"),
    field("cluster_name", schema=_TEXT, since="3.61", rule=IS_ADMIN),
    field("volume_type_id", schema=_STRING, since="3.63"),
    field(
        "encryption_key_id",
        lambda volume, _look: volume.encryption_key_id if volume.encryption_key_id not in _NO_KEY else OMIT,
        _STRING,
        since="3.64",
        optional=True,
    ),
    field("consumes_quota", schema=_FLAG, since="3.65"),
)
VOLUME_SUMMARY = view(
    "volume",
    field("id", schema=_STRING),
    field("name", schema=_TEXT),
    field("links", lambda volume, look: look.call.links("volumes", volume.id), _LINKS),
)
VOLUME_WRITTEN = view("volume", *VOLUME_BASE)
VOLUME_MANAGED = view("volume", *(each for each in VOLUME_BASE if not each.since))  # whatever the version
VOLUME = view(
    "volume",
    *VOLUME_BASE,
    field("os-vol-host-attr:host", "host", _TEXT, rule=SEE_HOST),
    field("os-vol-tenant-attr:tenant_id", "project_id", _STRING, rule=SEE_TENANT),
    field("os-vol-mig-status-attr:migstat", "migration_status", _TEXT, rule=SEE_MIGRATION),
    field("os-vol-mig-status-attr:name_id", "name_id", _TEXT, rule=SEE_MIGRATION),
    field(
        "volume_image_metadata",
        lambda volume, _look: volume.image_metadata or OMIT,
        _MAP,
        rule=SEE_IMAGE,
        optional=True,
    ),
    field("fault", schema=_TEXT, rule=SEE_FAULT, extension="fault"),
)


# --- snapshots -------------------------------------------------------------------------------------------

SEE_EXTENDED = rule("volume_extension:extended_snapshot_attributes", READER)
SNAPSHOT_BASE = (
    field("id", schema=_STRING),
    field("name", schema=_TEXT),
    field("description", schema=_TEXT),
    field("volume_id", schema=_STRING),
    field("status", schema=_STRING),
    field("size", schema={"type": "integer"}),
    time_field("created_at"),
    time_field("updated_at"),
    field("metadata", schema={"type": "object"}),
)
_WINDOWS = (
    field("group_snapshot_id", schema=_TEXT, since="3.14"),
    field("user_id", schema=_STRING, since="3.41"),
    field("consumes_quota", schema={"type": "boolean"}, since="3.65"),
)
SNAPSHOT_SUMMARY = view("snapshot", *SNAPSHOT_BASE)
SNAPSHOT_WRITTEN = view("snapshot", *SNAPSHOT_BASE, *_WINDOWS)
SNAPSHOT = view(
    "snapshot",
    *SNAPSHOT_BASE,
    *_WINDOWS,
    field("os-extended-snapshot-attributes:project_id", "project_id", _STRING, rule=SEE_EXTENDED),
    field("os-extended-snapshot-attributes:progress", "progress", _STRING, rule=SEE_EXTENDED),
)
