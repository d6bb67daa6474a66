"""The scheduler's decision and the database: what it chooses from, the room that it takes, what it tells."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec.structs import replace

from lapilli import events
from lapilli.domain import placement
from lapilli.domain.model import CachedImage, Operation, Pool, Service, Volume
from lapilli.domain.placement import Candidate, Refusal
from lapilli.errors import NoValidBackend
from lapilli.flows.claims import Work
from lapilli.flows.definitions import Postponed
from lapilli.flows.notices import Notices
from lapilli.store import records, tables

_log = logging.getLogger("lapilli.scheduler")

FILLING, READY, EVICTING = "filling", "ready", "evicting"  # states of a cached image
DOWN = "its service is down"
NO_SERVICE = "it has no service"
_HINTED = ("different_host", "same_host")
_pool, _service = tables.pools.c, tables.services.c

_Row = tuple[Any, ...]
_Entry = tuple[str, Candidate]  # its back end, and what a decision is given
_GONE: _Entry = ("", Candidate(name="", zone="", capabilities={}))
# what changes without a report, and by `reported_at` whether there was one; as the database writes it, since
# it is only compared
_FIGURES = sa.select(
    _pool.name,
    sa.type_coerce(_pool.reported_at, sa.String),
    _pool.allocated_gb,
    _pool.volumes,
).where(_pool.reported_at.is_not(None))


class Pools:
    """What decisions choose from. A report is read and decoded once, not at every decision."""

    def __init__(self) -> None:
        # the rows of `_FIGURES` of the last look, and beside each what was made of it; replaced as a whole
        self._kept: tuple[Sequence[_Row], list[_Entry]] = ((), [])

    def candidates(self, connection: sa.Connection, down_after: int) -> list[Candidate]:
        """Pools of volume services that are enabled, up, not frozen, and have reported."""
        moment, allowed = records.now(), timedelta(seconds=down_after)
        asked = {"since": moment - allowed, "until": moment + allowed}
        services = set(connection.execute(_services_up(), asked).scalars())
        # as the driver gives them: rows of SQLAlchemy would take longer than a decision among 10,000 pools
        rows: Sequence[_Row] = connection.execute(_FIGURES).cursor.fetchall()
        before, entries = self._kept
        changed = [at for at, (row, old) in enumerate(zip(rows, before, strict=False)) if row != old]
        if changed or len(rows) != len(before):
            entries = _follow(connection, rows, before, entries, changed)
            self._kept = rows, entries
        return [candidate for backend, candidate in entries if backend in services]


def _follow(
    connection: sa.Connection,
    rows: Sequence[_Row],
    before: Sequence[_Row],
    entries: list[_Entry],
    changed: list[int],
) -> list[_Entry]:
    """The entries for `rows`, of which some differ from those at their places before."""
    shared = min(len(rows), len(before))
    old = {before[at][0]: (before[at], entries[at]) for at in [*changed, *range(shared, len(before))]}
    entries = entries[:shared] + [_GONE] * (len(rows) - shared)
    reported = {}
    for at in [*changed, *range(shared, len(rows))]:
        row = rows[at]
        known, entry = old.get(row[0], (None, _GONE))
        if known is None or known[1] != row[1]:
            reported[row[0]], entries[at] = at, _GONE
            continue
        backend, pool = entry
        if known != row:
            _, _, allocated, volumes = row
            claimed = pool.claimed_since_report + allocated - pool.allocated_gb
            pool = replace(
                pool, allocated_gb=allocated, claimed_since_report=claimed, volumes=volumes, reckoned=None
            )
        entries[at] = backend, pool
    names = list(reported)
    for start in range(0, len(names), 500):
        for read in records.all_of(connection, Pool, _pool.name.in_(names[start : start + 500])):
            entries[reported[read.name]] = read.backend, candidate(read)
    return entries


def candidate(pool: Pool) -> Candidate:
    """A pool as the funnel sees it."""
    return Candidate(
        name=pool.name,
        zone=pool.availability_zone,
        capabilities=pool.capabilities,
        allocated_gb=pool.allocated_gb,
        claimed_since_report=pool.allocated_gb - pool.reported_allocated_gb,
        volumes=pool.volumes,
    )


@lru_cache(maxsize=1)
def _services_up() -> sa.Select[Any]:
    up = _service.heartbeat_at.between(sa.bindparam("since"), sa.bindparam("until"))  # `Service.is_up`
    return sa.select(_service.host).where(
        _service.binary == "cinder-volume", up, _service.disabled.is_(False), _service.frozen.is_(False)
    )


def claim_capacity(
    connection: sa.Connection, pool: str, gib: int, *, volumes: int = 0, judged: int | None = None
) -> bool:
    """Take (or give back) room in a pool, in the caller's transaction.

    With `judged` only while that much is allocated: False when another scheduler was faster, so that the
    pool must be judged anew.
    """
    values = {"pool": pool, "gib": gib, "more": volumes}
    if judged is not None:
        values["judged"] = judged
    return connection.execute(_claim_capacity(judged is not None), values).rowcount > 0


@lru_cache(maxsize=2)
def _claim_capacity(guarded: bool) -> sa.Update:
    statement = tables.pools.update().where(_pool.name == sa.bindparam("pool"))
    if guarded:
        statement = statement.where(_pool.allocated_gb == sa.bindparam("judged"))
    changes = {
        "allocated_gb": _pool.allocated_gb + sa.bindparam("gib"),
        "volumes": _pool.volumes + sa.bindparam("more"),
    }
    return statement.values(changes)


def _report_is_due(work: Work, connection: sa.Connection, pool: str | None) -> bool:
    """Whether the service has only just started, and that pool (None: any) has not reported since."""
    asked = [_pool.reported_at >= work.core.started_at]
    if pool is not None:
        asked.append(_pool.name == pool)
    return work.core.just_started and records.count(connection, Pool, asked) == 0


def _heartbeat_is_due(work: Work, connection: sa.Connection, absent: Sequence[Refusal]) -> bool:
    """Whether a pool has reported since the start whose service has not: back ends report first."""
    silent = [each.pool for each in absent if each.reason in (NO_SERVICE, DOWN)]
    asked = [_pool.name.in_(silent), _pool.reported_at >= work.core.started_at]
    return bool(silent) and work.core.just_started and records.count(connection, Pool, asked) > 0


def place(
    work: Work, connection: sa.Connection, request: placement.Request, *, volumes: int = 0
) -> Candidate:
    """The best pool, with the room taken in it (for so many volumes more).

    Raises `NoValidBackend` with a reason for each; `Postponed` while reports or heartbeats are due.
    """
    try:
        while True:  # until no other scheduler was faster
            pools = work.core.pools.candidates(connection, work.core.service.service_down_time)
            seen = any(pool.name == request.pool for pool in pools) if request.pool else bool(pools)
            if not seen and _report_is_due(work, connection, request.pool):
                raise Postponed(0.1)
            best = placement.choose(request, pools, work.core.scheduler)[0]
            judged = best.allocated_gb
            if claim_capacity(connection, best.name, request.size, volumes=volumes, judged=judged):
                return best
    except NoValidBackend as refused:
        roomier = _with_fewer_images(work, connection, request, pools)
        if roomier is not None:
            claim_capacity(connection, roomier.name, request.size, volumes=volumes)
            return roomier
        absent = left_out(connection, work.core.service.service_down_time)
        present = work.core.pools.candidates(connection, work.core.service.service_down_time)
        if {pool.name for pool in present} - {pool.name for pool in pools}:
            raise Postponed(0.1) from None  # one came while we looked: neither judged nor absent
        if _heartbeat_is_due(work, connection, absent):
            raise Postponed(0.1) from None
        unsure = work.core.contact.was_lost or work.core.clock.was_set()
        if unsure and any(each.reason == DOWN for each in absent):
            raise Postponed(0.5) from None  # their heartbeats may not have come through, or by the old time
        reasons = [*refused.reasons, *(str(each) for each in absent)]
        if request.pool:  # that the others are other pools explains nothing
            reasons = [each for each in reasons if each.startswith(f"{request.pool}: ")] or reasons
        _log.info(
            "no pool for volume %s",
            work.resource_id,
            extra={"fields": {"size": request.size, "reasons": reasons}},
        )
        raise NoValidBackend(reasons) from None


def _with_fewer_images(
    work: Work, connection: sa.Connection, request: placement.Request, pools: Sequence[Candidate]
) -> Candidate | None:
    """A pool that has room once it gives up images that it keeps, the one unused for longest first.

    Which, is noted for the back end: it removes them before it makes anything.
    """
    kept: dict[str, list[CachedImage]] = {}
    column = tables.cached_images.c
    for image in records.all_of(connection, CachedImage, column.state == READY, order=column.last_used_at):
        kept.setdefault(image.pool, []).append(image)
    for pool in pools:
        images = kept.get(pool.name, [])
        for count in range(1, len(images) + 1):
            roomier = relieved(pool, sum(image.size for image in images[:count]))
            if placement.sift(request, [roomier], work.core.scheduler)[0]:
                row = records.get(connection, Pool, pool.name, lock="update")
                if row.allocated_gb != pool.allocated_gb:
                    raise Postponed(0.1)  # another scheduler was faster
                evict(work.core.notices, connection, images[:count], asked=work.operation)
                work.results["evicted"] = [image.id for image in images[:count]]
                return roomier
    return None


def relieved(pool: Candidate, gib: int) -> Candidate:
    """The pool with so much less placed in it."""
    placed, claimed = pool.allocated_gb - gib, pool.claimed_since_report - gib
    return replace(pool, allocated_gb=placed, claimed_since_report=claimed, reckoned=None)


def evict(
    notices: Notices | None,
    connection: sa.Connection,
    images: Sequence[CachedImage],
    *,
    asked: Operation | None = None,
) -> None:
    """Give up cached images: nothing is made of them any more, and their room is free for others.

    What they hold is removed after this transaction. Whoever calls has locked the pool's row.
    """
    table = tables.cached_images
    for image in images:
        statement = table.update().where(table.c.id == image.id, table.c.state == image.state)
        values = {"state": EVICTING, "operation_id": asked.id if asked else None}
        if connection.execute(statement.values(values)).rowcount == 0:
            continue
        claim_capacity(connection, image.pool, -image.size)
        if image.state == READY:
            tell_of_image(notices, connection, image, "evict", asked=asked)


def tell_of_image(
    notices: Notices | None,
    connection: sa.Connection,
    image: CachedImage,
    what: str,
    *,
    asked: Operation | None,
) -> None:
    """Count, and tell other programs of, a hit, a miss or an eviction."""
    events.note(("image_cache", image.pool, what, 0.0))
    if notices is not None:
        told = {"image_id": image.image_id, "host": image.pool}
        notices.tell(connection, "volume", f"image_volume_cache.{what}", told, asked=asked)


def request_for(
    connection: sa.Connection,
    volume: Volume,
    spec: Mapping[str, Any],
    options: placement.SchedulerOptions,
    results: Mapping[str, Any],
) -> placement.Request:
    """What a new volume asks of its pool; `results` tell which pools have failed."""
    hints = spec.get("hints") or {}
    return placement.Request(
        size=volume.size,
        zones=tuple(spec["zones"]),
        extra_specs=spec["extra_specs"],
        pool=spec["pool"],
        pinned_why=spec["pinned_why"],
        avoid=tuple(results.get("avoid", ())),
        failures=results.get("failures", {}),
        hints=hints,
        lives=lives(connection, hints, spec["scope"]) if hints else {},
        volume=msgspec.structs.asdict(volume),
        qos=spec.get("qos", {}),
        over_subscription=options.max_over_subscription_ratio,
    )


def lives(connection: sa.Connection, hints: Mapping[str, Any], project_id: str | None) -> dict[str, str]:
    """The back ends of the volumes that hints name, as far as the project (None: anybody) may know them."""
    found = {}
    for key in _HINTED:
        given = hints.get(key) or []
        for name in given if isinstance(given, list) else [given]:
            volume = records.find(connection, Volume, str(name).lower())
            if volume is not None and volume.host and project_id in (None, volume.project_id):
                found[str(name)] = volume.host.partition("#")[0]
    return found


def left_out(connection: sa.Connection, down_after: int) -> list[Refusal]:
    """The pools that a decision does not even look at, and the services without any pool."""
    moment = records.now()
    of_volumes = tables.services.c.binary == "cinder-volume"
    services = {each.host: each for each in records.all_of(connection, Service, of_volumes)}
    found, reported = [], set()
    for pool in records.all_of(connection, Pool):
        reported.add(pool.backend)
        service = services.get(pool.backend)
        why = NO_SERVICE if service is None else _absence(service, moment, down_after)
        if why is None and pool.reported_at is None:
            why = "it has not reported yet"
        if why is not None:
            found.append(Refusal(pool.name, "", why))
    silent = sorted(services.keys() - reported)
    return found + [Refusal(host, "", "its service has not reported a pool yet") for host in silent]


def _absence(service: Service, moment: datetime, down_after: int) -> str | None:
    if service.frozen:
        return "its service is frozen"
    if service.disabled:
        reason = f" ({service.disabled_reason})" if service.disabled_reason else ""
        return f"its service is disabled{reason}"
    if not service.is_up(moment, down_after):
        return DOWN
    return None
