"""The funnel: what it is asked, what it chooses from, and how filters and weighers are put together.

A filter returns None when the pool passes, or the reason in plain words why not. A weigher returns a number,
of which more is better. Both register under the name that the configuration uses.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from lapilli.config import option
from lapilli.domain.placement import expressions
from lapilli.errors import ConfigError, NoValidBackend


@dataclass(frozen=True)
class SchedulerOptions:
    """How pools are chosen."""

    scheduler_default_filters: list[str] = option(
        ["AvailabilityZoneFilter", "CapacityFilter", "CapabilitiesFilter"], "Filters, in order."
    )
    scheduler_default_weighers: list[str] = option(["CapacityWeigher"], "Weighers, summed.")
    scheduler_weight_handler: str = option(
        "OrderedHostWeightHandler", "How weights choose: the highest, or (Stochastic...) drawn by weight."
    )
    scheduler_max_attempts: int = option(3, "Pools tried for one volume; 1 is no second try.", minimum=1)
    scheduler_driver_init_wait_time: int = option(
        60, "Seconds after the start in which a placement waits for a first report.", minimum=0
    )
    capacity_weight_multiplier: float = option(1.0, "Weight of free capacity; negative stacks.")
    allocated_capacity_weight_multiplier: float = option(-1.0, "Weight of allocated capacity.")
    volume_number_multiplier: float = option(-1.0, "Weight of the number of volumes; negative spreads.")
    max_over_subscription_ratio: str = option("20.0", "Thin provisioning ratio of pools that name none.")


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a placement is asked for. `size` is GiB to add; `pool` pins it; `avoid` holds failed pools.

    `online` is true for the growth of a volume that is attached, `present` is the pool that holds it already.
    `lives` tells the back ends of the volumes that hints name, `instance_host` the host of the server that
    one names. `volume` and `qos` are what expressions may ask of them.
    """

    size: int
    online: bool = False
    zones: tuple[str, ...] = ()
    extra_specs: dict[str, str | None] = {}
    pool: str | None = None
    pinned_why: str = ""
    present: str | None = None
    avoid: tuple[str, ...] = ()
    failures: dict[str, str] = {}  # why the pools to avoid have failed
    hints: dict[str, Any] = {}
    lives: dict[str, str] = {}
    instance_host: str | None = None
    volume: dict[str, Any] = {}
    qos: dict[str, Any] = {}
    over_subscription: str = "20.0"
    draw: Callable[[], float] = random.random
    terms: tuple[str, str | None] = (
        "",
        None,
    )  # what the reckoning of room depends on; follows from the others

    def __post_init__(self) -> None:
        """Note the terms: they are compared for every pool."""
        terms = (self.over_subscription, self.extra_specs.get("provisioning:type"))
        msgspec.structs.force_setattr(self, "terms", terms)


class Candidate(msgspec.Struct, kw_only=True, eq=False):
    """A pool as the funnel sees it: capabilities with what has been placed since the last report.

    Nothing of it changes, so decisions may share it; `reckoned` is a note of its capacity's reckoning.
    """

    name: str  # host@backend#pool
    zone: str
    capabilities: dict[str, Any]
    allocated_gb: int = 0
    claimed_since_report: int = 0
    volumes: int = 0
    reckoned: Any = None

    @property
    def backend(self) -> str:
        """`host@backend`."""
        return self.name.split("#", 1)[0]

    @property
    def stats(self) -> dict[str, Any]:
        """The capabilities, with what has been placed since the report counted in."""
        told = {**self.capabilities, "allocated_capacity_gb": self.allocated_gb}
        for key, sign in (("free_capacity_gb", -1), ("provisioned_capacity_gb", 1)):
            if isinstance(told.get(key), int | float):
                told[key] += sign * self.claimed_since_report
        return told


class Refusal(msgspec.Struct, frozen=True):
    """Why a pool is out: the filter (empty when the request itself excludes the pool) and its reason."""

    pool: str
    filter: str
    reason: str

    def __str__(self) -> str:
        """One plain sentence."""
        return f"{self.pool}: {self.filter}: {self.reason}" if self.filter else f"{self.pool}: {self.reason}"


class Weighed(msgspec.Struct, frozen=True):
    """A pool that passed, with its weight and what each weigher said (before its multiplier)."""

    pool: Candidate
    weight: float
    raw: dict[str, float]


Filter = Callable[[Request, Candidate], str | None]
Weigher = Callable[[Request, Candidate, SchedulerOptions], float]
Column = tuple[float, Sequence[float]]  # a weigher's multiplier, and its raw weights in the order of pools
Handler = Callable[[Sequence[Column], int, Callable[[], float]], list[tuple[int, float]]]

FILTERS: dict[str, Filter] = {}
WEIGHERS: dict[str, tuple[Weigher, str | None]] = {}
HANDLERS: dict[str, Handler] = {}
_NEEDED: dict[str, Callable[[Request], bool]] = {}


def pool_filter(name: str, *, needed: Callable[[Request], bool] | None = None) -> Callable[[Filter], Filter]:
    """Register a filter; `needed` tells the requests that it judges, when it lets all others pass."""

    def keep(function: Filter) -> Filter:
        FILTERS[name] = function
        if needed is not None:
            _NEEDED[name] = needed
        return function

    return keep


def pool_weigher(name: str, multiplier: str | None = None) -> Callable[[Weigher], Weigher]:
    """Register a weigher; `multiplier` is the option that scales it."""

    def keep(function: Weigher) -> Weigher:
        WEIGHERS[name] = (function, multiplier)
        return function

    return keep


def weight_handler(name: str) -> Callable[[Handler], Handler]:
    """Register a handler: from columns of weights, and how many pools, to their numbers in order."""

    def keep(function: Handler) -> Handler:
        HANDLERS[name] = function
        return function

    return keep


# --- configuration ---------------------------------------------------------------------------------------


def check_names(options: SchedulerOptions) -> None:
    """Raises `ConfigError` for a filter, weigher or handler that does not exist, or a ratio that is none."""
    check_ratio("DEFAULT", options.max_over_subscription_ratio)
    chosen: tuple[tuple[str, Sequence[str], Mapping[str, object]], ...] = (
        ("scheduler_default_filters", options.scheduler_default_filters, FILTERS),
        ("scheduler_default_weighers", options.scheduler_default_weighers, WEIGHERS),
        ("scheduler_weight_handler", [handler_name(options)], HANDLERS),
    )
    for option_name, names, known in chosen:
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"[DEFAULT] {option_name} = {name!r}: unknown; known are {', '.join(sorted(known))}."
                )


def handler_name(options: SchedulerOptions) -> str:
    """The handler's name; configurations of the upstream scheduler put its Python module before it."""
    return options.scheduler_weight_handler.rpartition(".")[2]


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


def check_function(section: str, name: str, text: str) -> None:
    """Raises `ConfigError` for a `filter_function` or `goodness_function` that cannot be understood."""
    try:
        expressions.parse(text)
    except expressions.ExpressionError as error:
        raise ConfigError(f"[{section}] {name} = {text!r}: {error}.") from None


# --- the decision ----------------------------------------------------------------------------------------


def choose(request: Request, pools: Sequence[Candidate], options: SchedulerOptions) -> list[Candidate]:
    """Pools that pass every filter, best first. Raises `NoValidBackend` with a reason per pool."""
    passed, refused = sift(request, pools, options)
    if not passed:
        raise NoValidBackend([str(each) for each in refused])
    return passed if len(passed) == 1 else [passed[at] for at, _ in _ranked(request, passed, options)[1]]


def sift(
    request: Request, pools: Sequence[Candidate], options: SchedulerOptions
) -> tuple[list[Candidate], list[Refusal]]:
    """(pools that pass every filter, why the others do not)."""
    passed, refused = [], []
    filters = [
        (name, FILTERS[name])
        for name in options.scheduler_default_filters
        if name not in _NEEDED or _NEEDED[name](request)
    ]
    only, avoid = request.pool, request.avoid
    for pool in pools:
        if only is not None and pool.name != only:
            why = request.pinned_why or f"the request is bound to {only}"
            refused.append(Refusal(pool.name, "", why))
            continue
        if pool.name in avoid:
            why = f": {request.failures[pool.name]}" if pool.name in request.failures else ""
            refused.append(Refusal(pool.name, "", f"it was tried before and failed{why}"))
            continue
        for name, judge in filters:
            refusal = judge(request, pool)
            if refusal is not None:
                refused.append(Refusal(pool.name, name, refusal))
                break
        else:
            passed.append(pool)
    return passed, refused


def weigh(request: Request, pools: Sequence[Candidate], options: SchedulerOptions) -> list[Weighed]:
    """The pools with their weights, best first."""
    columns, ranked = _ranked(request, pools, options)
    return [
        Weighed(pools[at], weight, {name: raw[at] for name, (_, raw) in columns.items()})
        for at, weight in ranked
    ]


def _ranked(
    request: Request, pools: Sequence[Candidate], options: SchedulerOptions
) -> tuple[dict[str, Column], list[tuple[int, float]]]:
    """(what each weigher says of all pools, numbers of the pools with their weights, best first)."""
    columns: dict[str, Column] = {}
    for name in options.scheduler_default_weighers:
        weigher, multiplier = WEIGHERS[name]
        raw = [weigher(request, pool, options) for pool in pools]
        columns[name] = (float(getattr(options, multiplier)) if multiplier else 1.0, raw)
    handler = HANDLERS[handler_name(options)]
    return columns, handler(list(columns.values()), len(pools), request.draw)
