"""Weighers, and the two ways of choosing by what they say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

from lapilli.domain.placement import expressions
from lapilli.domain.placement.filters import names_of, unrounded_free
from lapilli.domain.placement.funnel import (
    Candidate,
    Column,
    Request,
    SchedulerOptions,
    pool_weigher,
    weight_handler,
)


@pool_weigher("CapacityWeigher", "capacity_weight_multiplier")
def free_capacity(request: Request, pool: Candidate, options: SchedulerOptions) -> float:
    """Virtual free GiB; an unknown figure is worst."""
    left = unrounded_free(pool, request)
    if left == math.inf:
        return -1.0 if options.capacity_weight_multiplier > 0 else float(2**62)
    return left


@pool_weigher("AllocatedCapacityWeigher", "allocated_capacity_weight_multiplier")
def allocated_capacity(_request: Request, pool: Candidate, _options: SchedulerOptions) -> float:
    """GiB placed so far."""
    return float(pool.allocated_gb)


@pool_weigher("VolumeNumberWeigher", "volume_number_multiplier")
def volume_number(_request: Request, pool: Candidate, _options: SchedulerOptions) -> float:
    """Volumes placed so far."""
    return float(pool.volumes)


@pool_weigher("ChanceWeigher")
def chance(request: Request, _pool: Candidate, _options: SchedulerOptions) -> float:
    """A random number."""
    return request.draw()


@pool_weigher("GoodnessWeigher")
def goodness(request: Request, pool: Candidate, _options: SchedulerOptions) -> float:
    """What the back end's `goodness_function` says, 0 to 100; anything else is 0."""
    text = pool.capabilities.get("goodness_function")
    if text is None:
        return 0.0
    try:
        value = expressions.parse(str(text)).value(names_of(request, pool))
    except expressions.ExpressionError:
        return 0.0
    if isinstance(value, bool):
        return 100.0 if value else 0.0
    return float(value) if isinstance(value, int | float) and 0 <= value <= 100 else 0.0


# --- handlers --------------------------------------------------------------------------------------------


@weight_handler("OrderedHostWeightHandler")
def ordered(columns: Sequence[Column], count: int, _draw: Callable[[], float]) -> list[tuple[int, float]]:
    """The highest sum of normalised weights first; equal ones in the order of the pools."""
    totals = [0.0] * count
    for multiplier, raw in columns:
        low, high = min(raw), max(raw)
        if high > low:
            scale = multiplier / (high - low)
            totals = [total + (value - low) * scale for total, value in zip(totals, raw, strict=True)]
    order = sorted(range(count), key=totals.__getitem__, reverse=True)
    return [(at, totals[at]) for at in order]


@weight_handler("StochasticHostWeightHandler")
def stochastic(columns: Sequence[Column], count: int, draw: Callable[[], float]) -> list[tuple[int, float]]:
    """A winner drawn with the probability of its share of all weight; the rest follow in rotated order.

    A negative sum has no probability; when nothing has any, all pools are equally likely.
    """
    totals = [sum(multiplier * raw[at] for multiplier, raw in columns) for at in range(count)]
    shares = [max(0.0, total) for total in totals]
    if sum(shares) == 0:
        shares = [1.0] * count
    bounds = list(accumulate(shares))
    drawn = draw() * bounds[-1]
    winner = next((at for at, bound in enumerate(bounds) if drawn < bound), count - 1)
    return [(at % count, totals[at % count]) for at in range(winner, winner + count)]
