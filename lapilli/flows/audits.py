"""What is told of things that have not changed: every volume and snapshot of a period, and room in pools."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from lapilli.domain import placement
from lapilli.domain.model import Pool
from lapilli.errors import ConfigError
from lapilli.flows.core import Core
from lapilli.flows.notices import Notices, Payload
from lapilli.store import records, tables

_PAGE = 500  # rows of a transaction
_UNITS = {"hour": 59, "day": 23, "month": 28, "year": 12}  # with the highest offset of each


# --- every volume and snapshot ---------------------------------------------------------------------------


def last_period(moment: datetime, text: str) -> tuple[datetime, datetime]:
    """Beginning and end of the last whole period: hour, day, month or year, which UNIT@OFFSET moves.

    The offset is the minute, hour, day or month in which a period begins. Raises `ConfigError`.
    """
    unit, separator, told = text.partition("@")
    least = 1 if unit in ("month", "year") else 0
    offset = int(told) if told.isdigit() else -1 if separator else least
    if unit not in _UNITS or not least <= offset <= _UNITS[unit]:
        raise ConfigError(f"[DEFAULT] volume_usage_audit_period = {text!r}: as month, or day@6, expected.")
    hour = moment.replace(minute=0, second=0, microsecond=0)
    midnight = hour.replace(hour=0)
    if unit in ("hour", "day"):
        length = timedelta(hours=1) if unit == "hour" else timedelta(days=1)
        end = hour.replace(minute=offset) if unit == "hour" else midnight.replace(hour=offset)
        end -= length if end > moment else timedelta()
        return end - length, end
    earlier = _month_before if unit == "month" else _year_before
    end = midnight.replace(day=offset) if unit == "month" else midnight.replace(month=offset, day=1)
    end = earlier(end) if end > moment else end
    return earlier(end), end


def _month_before(day: datetime) -> datetime:
    return (day.replace(day=1) - timedelta(days=1)).replace(day=day.day)


def _year_before(day: datetime) -> datetime:
    return day.replace(year=day.year - 1)


def tell_existing(core: Core, begin: datetime, end: datetime) -> tuple[int, int]:
    """Tell of each volume and snapshot that was there in a period and still is; how many they were.

    Raises `ConfigError` where nobody is told anything.
    """
    if core.notices is None:
        raise ConfigError("[oslo_messaging_notifications] driver: there is none, so nobody would be told.")
    more = {"audit_period_beginning": str(begin), "audit_period_ending": str(end)}
    told = core.notices.volume, core.notices.snapshot
    counts = [
        _tell_all(core, table, end, tell, more)
        for table, tell in zip((tables.volumes, tables.snapshots), told, strict=True)
    ]
    return counts[0], counts[1]


def _tell_all(core: Core, table: sa.Table, end: datetime, tell: Any, more: Payload) -> int:
    count, last = 0, ""
    while True:
        query = sa.select(table.c.id).where(table.c.created_at < end, table.c.id > last)
        with core.store.write(durable=True) as connection:
            ids = list(connection.scalars(query.order_by(table.c.id).limit(_PAGE)))
            for identifier in ids:
                tell(connection, identifier, "exists", more=more)
        count += len(ids)
        if len(ids) < _PAGE:
            return count
        last = ids[-1]


# --- room ------------------------------------------------------------------------------------------------


def room_of(pool: Pool, over_subscription: str) -> Payload:
    """The figures of a pool, GiB, save for the time of its report."""
    told = pool.capabilities
    candidate = placement.Candidate(
        name=pool.name, zone=pool.availability_zone, capabilities=told, allocated_gb=pool.allocated_gb
    )
    request = placement.Request(size=0, over_subscription=over_subscription)
    return {
        "total": told.get("total_capacity_gb"),
        "free": told.get("free_capacity_gb"),
        "allocated": pool.allocated_gb,
        "provisioned": told.get("provisioned_capacity_gb", pool.allocated_gb),
        "virtual_free": placement.virtual_free(candidate, request),
    }


def tell_room(core: Core, notices: Notices, backend: str, before: dict[str, Payload]) -> dict[str, Payload]:
    """Tell of pools whose figures are not as `before`, and of their back end; returns the figures."""
    with core.store.write() as connection:
        pools = records.all_of(connection, Pool, tables.pools.c.backend == backend)
        ratio = core.scheduler.max_over_subscription_ratio
        now = {pool.name: room_of(pool, ratio) for pool in pools}
        at = records.now().isoformat()
        for name, figures in now.items():
            if figures != before.get(name):
                told = {"name_to_id": name, **figures, "reported_at": at}
                notices.tell(connection, "capacity", "capacity.pool", told)
        if now and now != before:
            sums = {key: _sum([figures[key] for figures in now.values()]) for key in next(iter(now.values()))}
            told = {"name_to_id": backend, **sums, "reported_at": at}
            notices.tell(connection, "capacity", "capacity.backend", told)
    return now


def _sum(figures: list[Any]) -> float:
    """Of those that are numbers: a pool may be `infinite`, or not know."""
    return round(sum(each for each in figures if isinstance(each, int | float)), 2)
