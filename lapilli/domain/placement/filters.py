"""Filters that look at zone, capacity, capabilities and the back end's own expression."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from lapilli.domain.placement import expressions
from lapilli.domain.placement.extra_specs import matches, variants
from lapilli.domain.placement.funnel import Candidate, Request, pool_filter

NUMBER = (int, float)  # a tuple: a union would be made anew at every look, and there may be 10,000 pools


@pool_filter("AvailabilityZoneFilter", needed=lambda request: bool(request.zones))
def availability_zone(request: Request, pool: Candidate) -> str | None:
    """The pool's zone is one of those asked for."""
    if not request.zones or pool.zone in request.zones:
        return None
    return f"zone {pool.zone} is not {' or '.join(request.zones)}"


@pool_filter("CapabilitiesFilter", needed=lambda request: request.online or bool(request.extra_specs))
def capabilities(request: Request, pool: Candidate) -> str | None:
    """Every extra spec that speaks of capabilities matches (behaviour 11.4)."""
    if request.online and pool.capabilities.get("online_extend_support") is False:
        return "it cannot grow a volume that is attached"
    for key, wanted in request.extra_specs.items():
        path = _path(key)
        if path is None:
            continue
        value: Any = pool.capabilities
        for part in path:
            if not isinstance(value, dict) or part not in value:
                return f"it reports no {':'.join(path)}"
            value = value[part]
        if not matches(variants(value) if path == ("storage_protocol",) else value, wanted):
            return f"{':'.join(path)} is {value}, wanted is {wanted}"
    return None


@lru_cache(maxsize=1024)
def _path(key: str) -> tuple[str, ...] | None:
    """The way to the capability that a spec's key speaks of, into nested maps; None for other scopes."""
    scope, _, rest = key.partition(":")
    if rest and scope != "capabilities":
        return None
    return tuple((rest or key).split(":"))


@pool_filter("DriverFilter")
def driver(request: Request, pool: Candidate) -> str | None:
    """The back end's `filter_function` is unset, or true for this request."""
    text = pool.capabilities.get("filter_function")
    if text is None:
        return None
    try:
        passes = expressions.parse(str(text)).value(names_of(request, pool))
    except expressions.ExpressionError as error:
        return f"its filter_function cannot be evaluated: {error}"
    return None if passes else f"its filter_function is false: {str(text)[:200]}"


def names_of(request: Request, pool: Candidate) -> expressions.Names:
    """What an expression may ask of the request and the pool."""
    return {
        "stats": pool.stats,
        "capabilities": pool.capabilities,
        "extra": request.extra_specs,
        "volume": request.volume,
        "qos": request.qos,
    }


@pool_filter("IgnoreAttemptedHostsFilter", needed=lambda request: bool(request.avoid))
def ignore_attempted_hosts(request: Request, pool: Candidate) -> str | None:
    """No pool of this back end has failed for this request."""
    failed = next((name for name in request.avoid if name.split("#", 1)[0] == pool.backend), None)
    return None if failed is None else f"{failed} of the same back end was tried before and failed"


# --- capacity --------------------------------------------------------------------------------------------


@pool_filter("CapacityFilter", needed=lambda request: request.size != 0)
def capacity(request: Request, pool: Candidate) -> str | None:
    """There is room, with reserved space and over-subscription reckoned (behaviour 11.3)."""
    size = request.size
    if size == 0 or pool.name == request.present:
        return None
    room = _room(request, pool)
    if room is None:
        return _without_figures(pool)
    total, thin, ratio, available, provisioned, left = room
    if total <= 0:
        return "its total capacity is 0"
    fits = left >= size or round(left, 2) >= size  # rounding is slow, and seldom matters
    if fits and (not thin or (ratio >= 1 and provisioned + size <= available * ratio * ratio)):
        return None
    reserved = int(pool.capabilities.get("reserved_percentage", 0))
    whole = f"of {total:g} GiB" + (f" after {reserved} % reserved" if reserved else "")
    if thin and ratio < 1:
        return f"its over-subscription ratio {ratio:g} is below 1"
    if left >= size:
        return f"needs {size} GiB, {provisioned:g} are provisioned {whole}"
    times = f" with {ratio:g} times over-subscription" if thin and ratio != 1 else ""
    return f"needs {size} GiB, {round(left, 2):g} free {whole}{times}"


def has_room(request: Request, pool: Candidate) -> bool:
    """Whether the pool has room for it, whatever else is asked."""
    return capacity(request, pool) is None


def _without_figures(pool: Candidate) -> str | None:
    """The verdict on a pool that does not tell numbers."""
    free = pool.capabilities.get("free_capacity_gb")
    if isinstance(free, str):
        return None
    if not isinstance(free, NUMBER):
        return "it reports no free capacity"
    unreserved = int(pool.capabilities.get("reserved_percentage", 0)) == 0
    return None if unreserved else "its total is unknown, so its reserve cannot be kept"


def virtual_free(pool: Candidate, request: Request) -> float:
    """GiB that may still be placed: by over-subscription when thin, by what is really free when thick."""
    return round(unrounded_free(pool, request), 2)


def unrounded_free(pool: Candidate, request: Request) -> float:
    """As `virtual_free`, for comparisons of many pools: rounding takes longer than all the rest."""
    room = _room(request, pool)
    return math.inf if room is None else room[5]


def over_subscription(pool: Candidate, fallback: str) -> float:
    """The ratio in force: 1 without thin provisioning, `auto` from what is provisioned and used."""
    room = _room(Request(size=0, over_subscription=fallback), pool)
    return 1.0 if room is None else room[2]


# total, thin, ratio in force, available after the reserve, provisioned, virtual free
_Room = tuple[float, bool, float, float, float, float]


def _room(request: Request, pool: Candidate) -> _Room | None:
    """Behaviour 11.3; None without figures. Reckoned once for all that ask on the same terms."""
    noted: tuple[tuple[str, str | None], _Room | None] | None = pool.reckoned
    if noted is not None and noted[0] == request.terms:
        return noted[1]
    total, free = pool.capabilities.get("total_capacity_gb"), pool.capabilities.get("free_capacity_gb")
    if not isinstance(total, NUMBER) or not isinstance(free, NUMBER):
        pool.reckoned = (request.terms, None)
        return None
    told, claimed = pool.capabilities, pool.claimed_since_report
    reserved = told.get("reserved_percentage")
    available = total - math.floor(total * int(reserved) / 100) if reserved else total
    provisioned = told.get("provisioned_capacity_gb")
    placed = provisioned + claimed if isinstance(provisioned, NUMBER) else pool.allocated_gb
    thin, ratio = bool(told.get("thin_provisioning_support")), 1.0
    if thin:
        value = told.get("max_over_subscription_ratio", request.over_subscription)
        if value != "auto":
            ratio = float(value)
        else:
            ratio = 20.0 if placed == 0 else 1 + placed / (total - free + 1)
        thin = request.extra_specs.get("provisioning:type") != "thick"
    left = available * ratio - placed if thin else min(free - claimed, available - placed)
    room = (total, thin, ratio, available, placed, left)
    pool.reckoned = (request.terms, room)
    return room
