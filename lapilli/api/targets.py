"""What a call is about, for rules that look at it: the record that the first variable of its path names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from lapilli.api.rules import own_project
from lapilli.context import Context
from lapilli.domain.model import Attachment, Message, Snapshot, Transfer, Volume
from lapilli.flows.core import Core
from lapilli.store import records

_KINDS: dict[str, Any] = {
    "volume_id": Volume,
    "snapshot_id": Snapshot,
    "attachment_id": Attachment,
    "message_id": Message,
    "transfer_id": Transfer,
}
_VARIABLE = re.compile(r"\{(\w+)")


def of(core: Core, context: Context, path: str, values: Sequence[str]) -> Mapping[str, Any]:
    """A rule's target. Raises `NotFound` for what the caller may not find."""
    own = own_project(context)
    variable = _VARIABLE.search(path)
    kind = _KINDS.get(variable.group(1)) if variable else None
    if kind is None or path.endswith("/accept"):  # the offer is another project's
        return own
    project = None if context.is_admin else context.project_id
    with core.store.read() as connection:
        found = records.get(connection, kind, values[0], project_id=project)
    return {**own, **msgspec.structs.asdict(found)}
