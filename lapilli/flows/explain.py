"""The scheduler's decision as a dry run: what a create would be told, without creating anything."""

from __future__ import annotations

import msgspec

from lapilli.context import Context
from lapilli.domain import placement
from lapilli.flows import scheduling
from lapilli.flows.core import Core
from lapilli.flows.volumes import VolumeRequest, find_image, plan_create


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Pools that pass, best first; why the others do not; and those that are not looked at."""

    size: int
    volume_type: str
    weighed: list[placement.Weighed]
    refused: list[placement.Refusal]
    absent: list[placement.Refusal]


def explain(core: Core, context: Context, request: VolumeRequest) -> Explanation:
    """Decide for a request as it is now. Raises as a create does, but asks for no quota."""
    image = find_image(core, context, request)
    with core.store.read() as connection:
        plan = plan_create(core, context, connection, request, image)
        asked = scheduling.request_for(connection, plan.volume, plan.spec, core.scheduler, {})
        pools = core.pools.candidates(connection, core.service.service_down_time)
        absent = scheduling.left_out(connection, core.service.service_down_time)
    passed, refused = placement.sift(asked, pools, core.scheduler)
    return Explanation(
        size=plan.volume.size,
        volume_type=plan.kind.name,
        weighed=placement.weigh(asked, passed, core.scheduler) if passed else [],
        refused=refused,
        absent=absent,
    )
