"""The scheduler: why a volume would be placed where, or nowhere."""

from __future__ import annotations

from typing import Any

from lapilli.api.access import ADMIN, rule
from lapilli.api.bodies import HINTS_KEY, VOLUME_CREATE
from lapilli.api.fields import field, view
from lapilli.api.resource import Call, Routes
from lapilli.flows.explain import Explanation, explain
from lapilli.flows.volumes import VolumeRequest

route = Routes()

EXPLAIN = rule("scheduler:explain", ADMIN)

_TEXT = {"type": ["string", "null"]}


def _pools(told: Explanation) -> list[dict[str, Any]]:
    """Pools that pass by rank, then those that are refused, then those that are not looked at."""
    shown: list[dict[str, Any]] = [
        {
            "name": each.pool.name,
            "passed": True,
            "rank": rank,
            "weight": round(each.weight, 6),
            "weighers": {name: round(value, 6) for name, value in each.raw.items()},
        }
        for rank, each in enumerate(told.weighed, 1)
    ]
    for each in (*told.refused, *told.absent):
        shown.append(
            {"name": each.pool, "passed": False, "refused_by": each.filter or None, "reason": each.reason}
        )
    return shown


EXPLANATION = view(
    "explanation",
    field("size", schema={"type": "integer"}),
    field("volume_type", schema={"type": "string"}),
    field("pool", lambda told, _look: told.weighed[0].pool.name if told.weighed else None, _TEXT),
    field("pools", lambda told, _look: _pools(told), {"type": "array", "items": {"type": "object"}}),
)


@route.post("/scheduler/explain", rule=EXPLAIN, accepts=VOLUME_CREATE, returns=EXPLANATION)
def explain_create(call: Call, wanted: dict[str, Any]) -> Explanation:
    """Tell where a volume would be placed now, and why the other pools would not take it; creates nothing."""
    request = VolumeRequest(
        size=wanted.get("size"),
        volume_type=wanted.get("volume_type"),
        availability_zone=wanted.get("availability_zone"),
        snapshot_id=wanted.get("snapshot_id"),
        source_volid=wanted.get("source_volid"),
        image_ref=wanted.get("imageRef") or wanted.get("image_id") or None,
        backup_id=wanted.get("backup_id"),
        group_id=wanted.get("group_id") or None,
        consistencygroup_id=wanted.get("consistencygroup_id"),
        name=wanted.get("name", wanted.get("display_name")),
        scheduler_hints=call.body.get(HINTS_KEY) or {},
        multiattach=bool(wanted.get("multiattach")),
    )
    return explain(call.core, call.context, request)
