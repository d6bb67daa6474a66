"""Where a volume is placed: filters refuse pools with reasons, weighers order those that pass.

Pure functions over (request, pool) with the names and formulas of the upstream scheduler. What they need of
the database is gathered by the flow and passed in the request.
"""

from __future__ import annotations

from lapilli.domain.placement import filters, hints, weighers  # noqa: F401 - they register themselves
from lapilli.domain.placement.filters import has_room, over_subscription, virtual_free
from lapilli.domain.placement.funnel import (
    FILTERS,
    HANDLERS,
    WEIGHERS,
    Candidate,
    Refusal,
    Request,
    SchedulerOptions,
    Weighed,
    check_function,
    check_names,
    check_ratio,
    choose,
    sift,
    weigh,
)

__all__ = [
    "FILTERS",
    "HANDLERS",
    "WEIGHERS",
    "Candidate",
    "Refusal",
    "Request",
    "SchedulerOptions",
    "Weighed",
    "check_function",
    "check_names",
    "check_ratio",
    "choose",
    "has_room",
    "over_subscription",
    "sift",
    "virtual_free",
    "weigh",
]
