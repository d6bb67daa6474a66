"""The text of /metrics: counters of all processes, and what a few small tables say now.

The Prometheus library is imported by the first who asks, since its import takes longer than an answer.
"""

from __future__ import annotations

import ipaddress
import math
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from lapilli.domain.model import CachedImage, Pool, Service
from lapilli.flows import log_levels
from lapilli.flows.core import Core
from lapilli.store import metrics, outbox, quotas, records

if TYPE_CHECKING:
    from prometheus_client.core import Metric

PERIOD = 2.0  # seconds between the reports of a process that serves the API
GIB = 2**30

_stop = threading.Event()


def is_local(address: str | None, headers: Mapping[str, str]) -> bool:
    """Whether a request comes from this machine, and not through a proxy on it."""
    if "X-FORWARDED-FOR" in headers or "FORWARDED" in headers or not address:
        return False
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return bool((mapped or found).is_loopback)


def report(core: Core) -> None:
    """Begin to keep what this process counts where the others find it, and to log as they set."""
    services = [(log_levels.API, core.service.hostname)]

    def loop() -> None:
        while not _stop.wait(PERIOD):
            try:
                metrics.COUNTERS.flush(core.store, core.journal.owner)
                log_levels.apply(core.store, services)
            except Exception:  # noqa: S112 - told by whoever needs the database for more than this
                continue

    threading.Thread(target=loop, name="metrics", daemon=True).start()


def text(core: Core) -> bytes:
    """Everything in Prometheus's text format."""
    from prometheus_client import generate_latest  # noqa: PLC0415 - see above

    class Source:
        def collect(self) -> Iterator[Metric]:
            return iter(families)

    families = _families(core)
    return generate_latest(cast(Any, Source()))  # a registry would do no more than this


def _families(core: Core) -> list[Metric]:
    with core.store.read() as connection:
        totals = metrics.everything(connection, core.journal.owner)
        services = records.all_of(connection, Service)
        pools = records.all_of(connection, Pool)
        unfinished = metrics.queue(connection)
        defaults = quotas.class_limits(connection, core.quota, "default")
        held = metrics.quota(connection, defaults)
        notices = outbox.waiting(connection)
        images = records.all_of(connection, CachedImage)
    return [
        *_counted(totals),
        *_queue(unfinished),
        *_services(core, services),
        *_pools(pools),
        *_images(pools, images),
        *_quota(held),
        *_notices(*notices),
    ]


def _counted(totals: metrics.Totals) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily  # noqa: PLC0415 - see above

    found: dict[str, list[tuple[list[str], list[float]]]] = defaultdict(list)
    for key in sorted(totals):
        family, *labels = metrics.labels_of(key)
        found[family].append((labels, totals[key]))
    counters = (
        ("api", "lapilli_api_requests", "API calls answered.", ("method", "route", "status")),
        ("operation", "lapilli_operations", "Operations that have ended.", ("kind", "outcome")),
        ("overdue", "lapilli_operations_overdue", "Operations taken from calls that hang.", ("kind", "task")),
        ("image_cache", "lapilli_image_cache", "Looks into a pool's cache of images.", ("pool", "outcome")),
    )
    for family, name, help, words in counters:
        counter = CounterMetricFamily(name, help, labels=words)
        for values, figures in found[family]:
            counter.add_metric(values, figures[0])
        yield counter
    merged: metrics.Totals = {}
    for values, figures in found["api"]:
        metrics.merge(merged, {"\x1f".join(values[:2]): figures})
    by_route = [(metrics.labels_of(key), figures) for key, figures in merged.items()]
    name = "lapilli_api_request_duration_seconds"
    yield _histogram(name, "Time that API calls took.", ("method", "route"), by_route)
    name = "lapilli_operation_duration_seconds"
    yield _histogram(name, "Time from submission to end.", ("kind", "outcome"), found["operation"])
    name = "lapilli_task_duration_seconds"
    yield _histogram(name, "Time that tasks took.", ("kind", "task", "outcome"), found["task"])


def _histogram(
    name: str, help: str, labels: Sequence[str], rows: list[tuple[list[str], list[float]]]
) -> Metric:
    from prometheus_client.core import HistogramMetricFamily  # noqa: PLC0415 - see above

    made = HistogramMetricFamily(name, help, labels=labels)
    for values, (count, total, *parts) in rows:
        sums = [sum(parts[: number + 1]) for number in range(len(metrics.BUCKETS))]
        buckets = [(str(limit), reached) for limit, reached in zip(metrics.BUCKETS, sums, strict=True)]
        made.add_metric(values, [*buckets, ("+Inf", count)], total)
    return made


def _gauge(name: str, help: str, labels: Sequence[str], rows: Sequence[tuple[list[str], float]]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 - see above

    made = GaugeMetricFamily(name, help, labels=labels)
    for values, figure in rows:
        made.add_metric(values, figure)
    return made


def _queue(unfinished: list[Any]) -> Iterator[Metric]:
    now = records.now()
    counted = [([state, role], float(count)) for state, role, count, _, _ in unfinished]
    name = "lapilli_operations_unfinished"
    yield _gauge(name, "Operations that have not ended.", ("state", "role"), counted)
    ages = {"scheduler": 0.0, "volume": 0.0}
    ages |= {row[1]: max(0.0, (now - row[3]).total_seconds()) for row in unfinished if row[0] == "queued"}
    name = "lapilli_operation_oldest_unclaimed_seconds"
    told = [([role], age) for role, age in ages.items()]
    yield _gauge(name, "Age of the oldest operation that waits to be claimed.", ("role",), told)
    late = float(sum(row[4] or 0 for row in unfinished))
    yield _gauge("lapilli_operations_past_deadline", "Operations past their deadline now.", (), [([], late)])


def _notices(waiting: int, since: datetime | None) -> Iterator[Metric]:
    told = "Notifications that no broker has confirmed yet."
    yield _gauge("lapilli_notifications_waiting", told, (), [([], float(waiting))])
    age = 0.0 if since is None else max(0.0, (records.now() - since).total_seconds())
    name = "lapilli_notification_oldest_waiting_seconds"
    yield _gauge(name, "Age of the oldest notification that waits.", (), [([], age)])


def _services(core: Core, services: list[Service]) -> Iterator[Metric]:
    labels = ("host", "binary", "zone")
    moment, allowed = records.now(), core.service.service_down_time
    named = [([each.host, each.binary, each.availability_zone], each) for each in services]
    up = [(values, float(each.is_up(moment, allowed))) for values, each in named]
    yield _gauge("lapilli_service_up", "Whether a service's heartbeat is recent.", labels, up)
    enabled = [(values, float(not each.disabled)) for values, each in named]
    yield _gauge("lapilli_service_enabled", "Whether work is placed on a service.", labels, enabled)


def _pools(pools: list[Pool]) -> Iterator[Metric]:
    for word, help in (("total", "Capacity of a pool."), ("free", "Free capacity, as its driver told last.")):
        sizes = [([each.name], _bytes(each.capabilities.get(f"{word}_capacity_gb"))) for each in pools]
        yield _gauge(f"lapilli_pool_{word}_bytes", help, ("pool",), sizes)
    sizes = [([each.name], float(each.allocated_gb * GIB)) for each in pools]
    yield _gauge(
        "lapilli_pool_allocated_bytes", "Nominal size of what is placed in a pool.", ("pool",), sizes
    )
    counts = [([each.name], float(each.volumes)) for each in pools]
    yield _gauge("lapilli_pool_volumes", "Volumes in a pool.", ("pool",), counts)


def _images(pools: list[Pool], images: list[CachedImage]) -> Iterator[Metric]:
    sizes: dict[str, list[int]] = {pool.name: [] for pool in pools}
    for image in images:
        sizes.setdefault(image.pool, []).append(image.size)
    counts = [([pool], float(len(found))) for pool, found in sizes.items()]
    yield _gauge("lapilli_cached_images", "Images that a pool keeps as volumes.", ("pool",), counts)
    totals = [([pool], float(sum(found) * GIB)) for pool, found in sizes.items()]
    yield _gauge("lapilli_cached_images_bytes", "Nominal size of these images.", ("pool",), totals)


def _bytes(told: Any) -> float:
    """A figure in GiB as bytes; `infinite` is, and what is unknown is no number."""
    if isinstance(told, int | float):
        return float(told * GIB)
    return math.inf if told == "infinite" else math.nan


def _quota(held: list[tuple[str, str, int, int, int]]) -> Iterator[Metric]:
    labels = ("project", "resource")
    used = [([row[0], row[1]], float(row[2])) for row in held]
    yield _gauge("lapilli_quota_in_use", "Quota that a project uses.", labels, used)
    kept = [([row[0], row[1]], float(row[3])) for row in held]
    yield _gauge("lapilli_quota_reserved", "Quota that operations under way have taken.", labels, kept)
    most = [([row[0], row[1]], math.inf if row[4] < 0 else float(row[4])) for row in held]
    yield _gauge("lapilli_quota_limit", "Quota that a project has.", labels, most)
