"""Request bodies that more than one resource accepts."""

from __future__ import annotations

from lapilli.api.fields import (
    DESCRIPTION,
    NAME,
    NULLABLE_BOOL,
    NULLABLE_METADATA,
    NULLABLE_SIZE,
    NULLABLE_UUID,
    TEXT,
    UUID_SCHEMA,
    Property,
    body,
    since,
)

_HOSTS = {"anyOf": [UUID_SCHEMA, {"type": "array", "items": UUID_SCHEMA, "uniqueItems": True}]}
_HINTS = {
    "type": ["object", "null"],
    "properties": {
        "same_host": _HOSTS,
        "different_host": _HOSTS,
        "local_to_instance": {"anyOf": [UUID_SCHEMA, {"type": "null"}]},
        "query": {"type": ["string", "object"]},
    },
}
HINTS_KEY = "OS-SCH-HNT:scheduler_hints"
VOLUME_NAMES = {
    "name": NAME,
    "display_name": NAME,
    "description": DESCRIPTION,
    "display_description": DESCRIPTION,
}
VOLUME_CREATE = body(
    "volume",
    VOLUME_NAMES,
    size=NULLABLE_SIZE,
    volume_type=TEXT,
    availability_zone=Property({"type": ["string", "null"], "minLength": 1, "maxLength": 255}),
    snapshot_id=NULLABLE_UUID,
    source_volid=NULLABLE_UUID,
    consistencygroup_id=NULLABLE_UUID,
    imageRef=TEXT,
    image_id=TEXT,
    group_id=since("3.13", TEXT),
    backup_id=since("3.47", NULLABLE_UUID),
    metadata=NULLABLE_METADATA,
    multiattach=NULLABLE_BOOL,
    closed="3.53",
    least=1,
    also={HINTS_KEY: _HINTS},
)
