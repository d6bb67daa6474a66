"""How many placements a second the scheduler decides, among few and among very many pools.

The decision is a pure function, so it is measured without a service: filters, weighers and handler of the
default configuration, then with every filter and weigher. Then with what a scheduler reads from its database
for it, where one pool has changed since the decision before, as after every placement.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lapilli.domain.model import Pool, Service
from lapilli.domain.placement import (
    FILTERS,
    WEIGHERS,
    Candidate,
    Request,
    SchedulerOptions,
    choose,
)
from lapilli.errors import NoValidBackend
from lapilli.flows.scheduling import Pools, claim_capacity
from lapilli.store import records, schema
from lapilli.store.session import Store

COUNTS = (10, 1_000, 10_000)
SPECS: dict[str, str | None] = {"volume_backend_name": "gold", "capabilities:clone": "<or> reflink <or> copy"}
DEFAULT = SchedulerOptions()
EVERYTHING = SchedulerOptions(
    scheduler_default_filters=sorted(FILTERS), scheduler_default_weighers=sorted(WEIGHERS)
)


def capabilities(number: int) -> dict[str, object]:
    """A report as the file pool makes it; no two alike."""
    return {
        "total_capacity_gb": 1000.0 + number % 17,
        "free_capacity_gb": 900.0 - number % 13,
        "provisioned_capacity_gb": 10.0 + number % 50,
        "reserved_percentage": 10,
        "max_over_subscription_ratio": "20.0",
        "thin_provisioning_support": True,
        "thick_provisioning_support": False,
        "volume_backend_name": "gold",
        "storage_protocol": "iSCSI",
        "clone": "reflink",
        "vendor_name": "Lapilli",
        "filter_function": "volume.size < 500",
        "goodness_function": "stats.allocated_capacity_gb < 25 ? 100 : 50",
    }


def pools(count: int) -> list[Candidate]:
    """Pools of one zone, four to a host."""
    return [
        Candidate(
            name=f"host{number // 4}@backend{number % 4}#pool",
            zone="nova",
            capabilities=capabilities(number),
            allocated_gb=number % 50,
            claimed_since_report=number % 3,
            volumes=number % 7,
        )
        for number in range(count)
    ]


def decide(found: list[Candidate], options: SchedulerOptions, asked: dict[str, Any]) -> None:
    """One decision, as the scheduler makes it: with a request of its own."""
    request = Request(size=10, zones=("nova",), volume={"size": 10}, **asked)
    with contextlib.suppress(NoValidBackend):
        choose(request, found, options)


def timed(work: Callable[[], object], seconds: float) -> list[float]:
    """Milliseconds of each call, for about `seconds`, at least five times: of this thread's own work, since a
    decision waits for nothing, and other processes are no part of it."""
    work()
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < ends:
        started = time.thread_time()
        work()
        times.append((time.thread_time() - started) * 1000)
    return times


def figures(seconds: float) -> Iterator[tuple[str, int, list[float]]]:
    """(what, how many pools, milliseconds of each time); `seconds` for each of them."""
    for count in COUNTS:
        found = pools(count)
        for name, options, asked in (
            ("decision", DEFAULT, {}),
            ("decision, 2 extra specs", DEFAULT, {"extra_specs": SPECS}),
            ("decision, nothing fits", DEFAULT, {"extra_specs": {"volume_backend_name": "silver"}}),
            ("decision, all filters and weighers", EVERYTHING, {}),
        ):
            yield name, count, timed(partial(decide, found, options, asked), seconds)
        with tempfile.TemporaryDirectory(prefix="lapilli-bench-") as directory:
            for name, work in _with_database(Path(directory), count):
                yield name, count, timed(work, seconds)


def _with_database(directory: Path, count: int) -> Iterator[tuple[str, Callable[[], object]]]:
    store = Store(f"sqlite:///{directory / 'pools.sqlite'}")
    schema.prepare(store)
    _report(store, count)
    pools, numbers = Pools(), itertools.count()

    def change() -> None:
        with store.write() as connection:
            claim_capacity(connection, _name(next(numbers) % count), 1, volumes=1)

    def read(known: Pools) -> list[Candidate]:
        with store.read() as connection:
            found = known.candidates(connection, 3600)
        assert len(found) == count
        return found

    yield "reading all pools for the first time", lambda: read(Pools())
    yield "reading after one has changed", lambda: (change(), read(pools))
    yield "decision with the reading", lambda: (change(), decide(read(pools), DEFAULT, {}))
    store.close()


def _name(number: int) -> str:
    return f"host{number // 4}@backend#pool{number % 4}"


def _report(store: Store, count: int) -> None:
    """Services with four pools each."""
    moment = records.now()
    with store.write() as connection:
        for number in range(count):
            name = _name(number)
            backend = name.partition("#")[0]
            if number % 4 == 0:
                service = Service(
                    id=records.new_id(), host=backend, binary="cinder-volume", availability_zone="nova",
                    heartbeat_at=moment, created_at=moment,
                )  # fmt: skip
                records.insert(connection, service)
            pool = Pool(
                name=name, backend=backend, availability_zone="nova", capabilities=capabilities(number),
                reported_at=moment,
            )  # fmt: skip
            records.insert(connection, pool)
