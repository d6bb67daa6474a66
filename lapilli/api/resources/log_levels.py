"""Log levels of services, read and set while they run."""

from __future__ import annotations

from typing import Any

from lapilli.api.access import ADMIN, rule
from lapilli.api.answers import STRING, STRINGS, listed
from lapilli.api.fields import Property, body, required
from lapilli.api.resource import Call, Routes
from lapilli.flows import log_levels as flows

route = Routes()

UPDATE = rule("volume_extension:services:update", ADMIN)
SINCE = "3.32"

_TEXT = Property({"type": ["string", "null"], "maxLength": 255})
_WHICH = {
    "binary": Property({"type": ["string", "null"], "enum": [None, "", "*", *flows.BINARIES]}),
    "server": _TEXT,
    "prefix": _TEXT,
}
_LEVEL = required(Property({"type": "string", "pattern": "^(?i:debug|info|warning|error)$"}))


@route.put(
    "/os-services/set-log", rule=UPDATE, status=202, since=SINCE, accepts=body(None, _WHICH, level=_LEVEL)
)
def set_log(call: Call, wanted: dict[str, Any]) -> None:
    """Set the level of loggers, of all services or of those of a binary or a server."""
    flows.set_level(call.core, *_which(wanted), wanted["level"].upper())


@route.put(
    "/os-services/get-log",
    rule=UPDATE,
    since=SINCE,
    accepts=body(None, _WHICH),
    answers=listed("log_levels", host=STRING, binary=STRING, levels=STRINGS),
)
def get_log(call: Call, wanted: dict[str, Any]) -> dict[str, Any]:
    """Tell the levels of loggers by service."""
    told = [
        {"host": host, "binary": binary, "levels": levels}
        for host, binary, levels in flows.levels(call.core, *_which(wanted))
    ]
    return {"log_levels": told}


def _which(wanted: dict[str, Any]) -> tuple[str, str, str]:
    """(binary, server, prefix); an empty word means all."""
    binary = wanted.get("binary") or ""
    return "" if binary == "*" else binary, wanted.get("server") or "", wanted.get("prefix") or ""
