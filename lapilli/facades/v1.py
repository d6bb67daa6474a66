"""Version 1: names with `display_`, plain lists that are detailed, and 200 for what it creates."""

from __future__ import annotations

from typing import Any

from lapilli.facades.old import Version
from lapilli.facades.v2 import RESOURCES

_NAMES = {"display_name": "name", "display_description": "description"}
_VOLUME = """id status size availability_zone created_at bootable attachments volume_type snapshot_id
    source_volid encrypted metadata volume_image_metadata""".split()
_ATTACHMENT = ("id", "attachment_id", "volume_id", "server_id", "host_name", "device")
_SNAPSHOT = ("id", "created_at", "volume_id", "status", "size", "metadata")
_TYPE = ("id", "name", "extra_specs", "description", "is_public")


def _named(item: dict[str, Any], keys: Any) -> dict[str, Any]:
    told = {key: value for key, value in item.items() if key in keys or ":" in key}
    return {**told, **{old: item[present] for old, present in _NAMES.items() if present in item}}


def _volume(item: dict[str, Any]) -> dict[str, Any]:
    told = _named(item, _VOLUME)
    if "multiattach" in item:
        told["multiattach"] = str(item["multiattach"]).lower()
    if "attachments" in item:
        told["attachments"] = [{key: each.get(key) for key in _ATTACHMENT} for each in item["attachments"]]
    return told


def _snapshot(item: dict[str, Any]) -> dict[str, Any]:
    return _named(item, _SNAPSHOT)


def _type(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key in _TYPE}


V1 = Version(
    name="v1",
    id="v1.0",
    media_type="1",
    resources=RESOURCES,
    absent="volumes/summary|types/default|types/[^/]+/action",
    renamed=_NAMES,
    shapes={"volume": _volume, "snapshot": _snapshot, "volume_type": _type},
    detailed=True,
    queries=frozenset({"limit", "offset", "all_tenants", "status", "metadata", "volume_id", "display_name"}),
    created=frozenset({"volumes", "snapshots"}),
    required={"volumes": "volume", "snapshots": "snapshot"},
    uuid_images=True,
)
