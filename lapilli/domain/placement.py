"""The funnel: filters and weighers as pure functions over (request, pool).

A filter returns None when the pool passes, or the reason in plain words why not. Formulas and names are
those of behaviour.md section 11.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from lapilli.config import option
from lapilli.errors import ConfigError, NoValidBackend

Number = float | str


@dataclass(frozen=True)
class SchedulerOptions:
    """How pools are chosen."""

    scheduler_default_filters: list[str] = option(
        ["AvailabilityZoneFilter", "CapacityFilter", "CapabilitiesFilter"], "Filters, in order."
    )
    scheduler_default_weighers: list[str] = option(["CapacityWeigher"], "Weighers, summed.")
    scheduler_max_attempts: int = option(3, "Pools tried for one volume; 1 is no second try.", minimum=1)
    scheduler_driver_init_wait_time: int = option(
        60, "Seconds after the start in which a placement waits for a first report.", minimum=0
    )
    capacity_weight_multiplier: float = option(1.0, "Weight of free capacity; negative stacks.")
    allocated_capacity_weight_multiplier: float = option(-1.0, "Weight of allocated capacity.")
    max_over_subscription_ratio: str = option("20.0", "Thin provisioning ratio of pools that name none.")


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a placement is asked for. `size` is GiB to add; `pool` pins it; `avoid` holds failed pools.

    `online` is true for the growth of a volume that is attached.
    """

    size: int
    online: bool = False
    zones: tuple[str, ...] = ()
    extra_specs: dict[str, str | None] = {}
    pool: str | None = None
    pinned_why: str = ""
    avoid: tuple[str, ...] = ()
    over_subscription: str = "20.0"


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A pool as the funnel sees it: capabilities with what has been placed since the last report."""

    name: str
    zone: str
    capabilities: dict[str, Any]
    allocated_gb: int = 0
    claimed_since_report: int = 0

    def number(self, key: str) -> Number | None:
        """A capacity figure: GiB, `infinite`, `unknown`, or None when it is not reported."""
        value = self.capabilities.get(key)
        return value if isinstance(value, int | float | str) else None


Filter = Callable[[Request, Candidate], str | None]
Weigher = Callable[[Candidate, SchedulerOptions], float]

FILTERS: dict[str, Filter] = {}
WEIGHERS: dict[str, tuple[Weigher, str | None]] = {}


def pool_filter(name: str) -> Callable[[Filter], Filter]:
    """Register a filter under the name that the configuration uses."""

    def keep(function: Filter) -> Filter:
        FILTERS[name] = function
        return function

    return keep


def pool_weigher(name: str, multiplier: str | None = None) -> Callable[[Weigher], Weigher]:
    """Register a weigher; `multiplier` is the option that scales it."""

    def keep(function: Weigher) -> Weigher:
        WEIGHERS[name] = (function, multiplier)
        return function

    return keep


def check_names(options: SchedulerOptions) -> None:
    """Raises `ConfigError` for a filter or weigher that does not exist, or a ratio that is none."""
    check_ratio("DEFAULT", options.max_over_subscription_ratio)
    for option_name, names, known in (
        ("scheduler_default_filters", options.scheduler_default_filters, list(FILTERS)),
        ("scheduler_default_weighers", options.scheduler_default_weighers, list(WEIGHERS)),
    ):
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"[DEFAULT] {option_name} = {name!r}: unknown; known are {', '.join(sorted(known))}."
                )


def check_ratio(section: str, text: str) -> None:
    """Raises `ConfigError` for a `max_over_subscription_ratio` that is neither a number nor `auto`."""
    try:
        usable = text == "auto" or 0 <= float(text) < math.inf
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(
            f"[{section}] max_over_subscription_ratio = {text!r}: a number of at least 0, or auto, expected."
        )


def choose(request: Request, pools: Sequence[Candidate], options: SchedulerOptions) -> list[Candidate]:
    """Pools that pass every filter, best first. Raises `NoValidBackend` with a reason per pool."""
    reasons = []
    passed = []
    filters = [(name, FILTERS[name]) for name in options.scheduler_default_filters]
    for pool in pools:
        refusal = _pinned(request, pool) or next(
            (f"{name}: {why}" for name, judge in filters if (why := judge(request, pool))), None
        )
        if refusal is None:
            passed.append(pool)
        else:
            reasons.append(f"{pool.name}: {refusal}")
    if not passed:
        raise NoValidBackend(reasons)
    return passed if len(passed) == 1 else _weigh(passed, options)


def _pinned(request: Request, pool: Candidate) -> str | None:
    if request.pool is not None and pool.name != request.pool:
        return request.pinned_why or f"the request is bound to {request.pool}"
    if pool.name in request.avoid:
        return "it was tried before and failed"
    return None


def _weigh(pools: list[Candidate], options: SchedulerOptions) -> list[Candidate]:
    totals = dict.fromkeys((pool.name for pool in pools), 0.0)
    for name in options.scheduler_default_weighers:
        weigher, multiplier_option = WEIGHERS[name]
        multiplier = float(getattr(options, multiplier_option)) if multiplier_option else 1.0
        raw = {pool.name: weigher(pool, options) for pool in pools}
        low, high = min(raw.values()), max(raw.values())
        if high > low:
            for key, value in raw.items():
                totals[key] += multiplier * (value - low) / (high - low)
    return sorted(pools, key=lambda pool: -totals[pool.name])


# --- filters ---------------------------------------------------------------------------------------------


@pool_filter("AvailabilityZoneFilter")
def availability_zone(request: Request, pool: Candidate) -> str | None:
    """The pool's zone is one of those asked for."""
    if not request.zones or pool.zone in request.zones:
        return None
    return f"zone {pool.zone} is not {' or '.join(request.zones)}"


@pool_filter("CapacityFilter")
def capacity(request: Request, pool: Candidate) -> str | None:
    """There is room, with reserved space and over-subscription reckoned (section 11.3)."""
    total, free = pool.number("total_capacity_gb"), pool.number("free_capacity_gb")
    if request.size == 0:
        return None
    if free is None:
        return "it reports no free capacity"
    if isinstance(free, str):
        return None
    reserved = int(pool.capabilities.get("reserved_percentage", 0))
    if total is None or isinstance(total, str):
        return None if reserved == 0 else "its total is unknown, so its reserve cannot be kept"
    if total <= 0:
        return "its total capacity is 0"
    ratio = over_subscription(pool, request.over_subscription)
    thin = _is_thin(pool, request)
    available = total - math.floor(total * reserved / 100)
    told = f"of {total:g} GiB" + (f" after {reserved} % reserved" if reserved else "")
    if thin:
        if ratio < 1:
            return f"its over-subscription ratio {ratio:g} is below 1"
        provisioned = _provisioned(pool)
        if provisioned + request.size > available * ratio * ratio:
            return f"needs {request.size} GiB, {provisioned:g} are provisioned {told}"
    left = virtual_free(pool, request)
    if left < request.size:
        return f"needs {request.size} GiB, {left:g} free {told}" + (
            f" with {ratio:g} times over-subscription" if thin else ""
        )
    return None


@pool_filter("CapabilitiesFilter")
def capabilities(request: Request, pool: Candidate) -> str | None:
    """Every extra spec that speaks of capabilities matches (section 11.4)."""
    if request.online and pool.capabilities.get("online_extend_support") is False:
        return "it cannot grow a volume that is attached"
    for key, wanted in request.extra_specs.items():
        scope, _, rest = key.partition(":")
        if rest and scope != "capabilities":
            continue
        name = rest or key
        try:
            value = _reported(pool.capabilities, name)
        except KeyError:
            return f"it reports no {name}"
        if not _matches(_variants(value) if name == "storage_protocol" else value, wanted):
            return f"{name} is {value}, wanted is {wanted}"
    return None


def _reported(capabilities: Mapping[str, Any], name: str) -> Any:
    """The capability of a name, whose colons lead into nested maps. Raises KeyError for a missing one."""
    value: Any = capabilities
    for part in name.split(":"):
        if not isinstance(value, Mapping):
            raise KeyError(name)
        value = value[part]
    return value


# --- capacity --------------------------------------------------------------------------------------------


def over_subscription(pool: Candidate, fallback: str) -> float:
    """The ratio in force: 1 without thin provisioning, `auto` from what is provisioned and used."""
    total, free = pool.number("total_capacity_gb"), pool.number("free_capacity_gb")
    if not pool.capabilities.get("thin_provisioning_support"):
        return 1.0
    if not isinstance(total, int | float) or not isinstance(free, int | float):
        return 1.0
    value = pool.capabilities.get("max_over_subscription_ratio", fallback)
    if value == "auto":
        provisioned = _provisioned(pool)
        return 20.0 if provisioned == 0 else 1 + provisioned / (total - free + 1)
    return float(value)


def virtual_free(pool: Candidate, request: Request) -> float:
    """GiB that may still be placed: by over-subscription when thin, by what is really free when thick."""
    total, free = pool.number("total_capacity_gb"), pool.number("free_capacity_gb")
    if not isinstance(total, int | float) or not isinstance(free, int | float):
        return math.inf
    reserved = int(pool.capabilities.get("reserved_percentage", 0))
    available = total - math.floor(total * reserved / 100)
    if _is_thin(pool, request):
        ratio = over_subscription(pool, request.over_subscription)
        return round(available * ratio - _provisioned(pool), 2)
    return round(min(free - pool.claimed_since_report, available - _provisioned(pool)), 2)


def _is_thin(pool: Candidate, request: Request) -> bool:
    wants_thick = request.extra_specs.get("provisioning:type") == "thick"
    return bool(pool.capabilities.get("thin_provisioning_support")) and not wants_thick


def _provisioned(pool: Candidate) -> float:
    reported = pool.capabilities.get("provisioned_capacity_gb")
    if isinstance(reported, int | float):
        return reported + pool.claimed_since_report
    return pool.allocated_gb


# --- extra specs -----------------------------------------------------------------------------------------

# spellings of one storage protocol: whoever asks for one of them is served by all
_FAMILIES = (
    ("iSCSI", "iscsi"),
    ("FC", "fibre_channel", "fc"),
    ("NFS", "nfs"),
    ("NVMe-oF", "NVMeOF", "nvmeof"),
)
_NUMERIC: dict[str, Callable[[float, float], bool]] = {
    "=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
}
_TEXTUAL: dict[str, Callable[[str, str], bool]] = {
    "s==": lambda a, b: a == b,
    "s!=": lambda a, b: a != b,
    "s<": lambda a, b: a < b,
    "s<=": lambda a, b: a <= b,
    "s>": lambda a, b: a > b,
    "s>=": lambda a, b: a >= b,
}
_YES = {"1", "t", "true", "on", "y", "yes"}


def _matches(value: Any, wanted: str | None) -> bool:
    if isinstance(value, list | tuple):
        return any(_matches(each, wanted) for each in value)
    if value is None or wanted is None:
        return value is wanted
    words = wanted.split()
    operator = words[0] if words else ""
    rest = wanted.strip()[len(operator) :].strip()
    if operator in _NUMERIC:
        try:
            return _NUMERIC[operator](float(value), float(rest))
        except (TypeError, ValueError):
            return False
    if operator in _TEXTUAL:
        return _TEXTUAL[operator](str(value), rest)
    if operator == "<in>":
        return rest in str(value)
    if operator == "<or>":
        return str(value) in [part.strip() for part in wanted.split("<or>") if part.strip()]
    if operator == "<is>":
        return (str(value).lower() in _YES) == (rest.lower() in _YES)
    return isinstance(value, str) and value == wanted


def _variants(protocol: Any) -> list[Any]:
    """Every spelling of a storage protocol, or of each of several."""
    spoken = protocol if isinstance(protocol, list | tuple) else [protocol]
    return [name for each in spoken for name in next((f for f in _FAMILIES if each in f), (each,))]


# --- weighers --------------------------------------------------------------------------------------------


@pool_weigher("CapacityWeigher", "capacity_weight_multiplier")
def free_capacity(pool: Candidate, options: SchedulerOptions) -> float:
    """Virtual free GiB; an unknown figure is worst."""
    left = virtual_free(pool, Request(size=0, over_subscription=options.max_over_subscription_ratio))
    if math.isinf(left):
        return -1.0 if options.capacity_weight_multiplier > 0 else float(2**62)
    return left


@pool_weigher("AllocatedCapacityWeigher", "allocated_capacity_weight_multiplier")
def allocated_capacity(pool: Candidate, _options: SchedulerOptions) -> float:
    """GiB placed so far."""
    return float(pool.allocated_gb)
