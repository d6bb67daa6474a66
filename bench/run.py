"""Measures the real service, as an operator starts it, and writes a table and a JSON file.

    python bench/run.py [--size full|small|tiny] [--only NAME ...] [--output FILE] [--pool DIR]

Starts `lapilli serve` with a fresh state directory, http_basic, SQLite, the user-space iSCSI target, and a
file pool on XFS (a loop device of the bench's own where it may mount one). Another process makes the load.
Nothing is left behind, also after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fill
import hosts
import images
import journal
import load
import machine
import scheduler
import storage
from service import Service, xfs_pool

from lapilli.adapters.drivers.filepool import FilePool, FilePoolOptions

HERE = Path(__file__).parent
CLIENTS = 8
TARGETS = ("tgt", "nbd", "local")
SWIFT = {("decision", 10_000), ("decision with the reading", 10_000)}  # decisions with an aim
PAGE = 1000
DEEP = 50  # pages before the deep one


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    seconds: float  # of each load at concurrency 8
    loop: float  # seconds of each bare SQLite loop
    singles: int  # volumes made one at a time, and attachments
    together: int  # volumes made at concurrency 8
    volumes: int  # rows that are listed from
    pages: int  # list requests
    image: int  # MiB of data in an image


SIZES = {
    "full": Size(10.0, 3.0, 200, 400, 100_000, 60, 1024),
    "small": Size(3.0, 1.0, 50, 100, 100_000, 20, 256),
    "tiny": Size(0.5, 0.3, 5, 16, 2_000, 3, 16),
}


@dataclass(frozen=True)
class Aim:
    """What a figure should be: at least, or below, `limit`."""

    sign: str
    limit: float

    def met(self, value: float) -> bool:
        """Whether the figure reaches it."""
        return value >= self.limit if self.sign == ">=" else value < self.limit


@dataclass
class Figure:
    """One line of the report; `value` is what is held against the aim."""

    name: str
    value: float
    unit: str
    aim: Aim | None = None
    more: dict[str, Any] = field(default_factory=dict)


def spread(times: Sequence[float]) -> dict[str, Any]:
    """Count, percentiles (nearest rank) and the longest, of milliseconds."""
    ordered = sorted(times)
    ranks = {f"p{p}": ordered[max(0, math.ceil(len(ordered) * p / 100) - 1)] for p in (50, 95, 99)}
    told = {**ranks, "max": ordered[-1]}
    return {"count": len(ordered), **{name: round(value, 2) for name, value in told.items()}}


class Bench:
    """One service, and the measurements in the order in which they do not disturb each other."""

    def __init__(self, service: Service, size: Size, work: Path) -> None:
        self.service = service
        self.size = size
        self.work = work
        self.targets_measured: Sequence[str] = TARGETS
        self.figures: list[Figure] = []

    def add(self, name: str, value: float, unit: str, aim: Aim | None = None, **more: Any) -> None:
        """Keep a figure, and show it at once."""
        figure = Figure(name, round(value, 3 if value < 10 else 1), unit, aim, more)
        self.figures.append(figure)
        print(line_of(figure), flush=True)

    def start(self) -> None:
        """Seconds from the start of the process to the first answer, with and without a state directory."""
        first = self.service.start()
        self.add("start, first (makes the state directory)", first, "s", Aim("<", 1.5))
        self.service.stop()
        again = []
        for _ in range(3):
            again.append(self.service.start())
            self.service.stop()
        self.add(
            "start, again", statistics.median(again), "s", Aim("<", 1.5), runs=[round(s, 3) for s in again]
        )
        self.service.start()

    def memory(self) -> None:
        """Memory at rest, once a volume has gone through its life."""
        [volume] = self._volumes(1)
        self.service.job("attach", volumes=[volume])
        time.sleep(3)
        self._memory("memory at rest (PSS)", Aim("<", 180))

    def _memory(self, name: str, aim: Aim | None) -> None:
        sizes = self.service.memory()
        self.add(name, sum(sizes.values()), "MiB", aim, processes=sizes)

    def available(self) -> None:
        """Time from the create request to the answer that says available."""
        alone = self.service.job("available_alone", count=self.size.singles)
        told = spread(alone["times"])
        self.add("create to available, one at a time, p50", told["p50"], "ms", Aim("<", 40), **told)
        together = self.service.job(
            "available_together",
            count=self.size.together,
            connections=CLIENTS,
            database=str(self.service.database),
        )
        told = spread(together["times"])
        self.add(f"create to available, {CLIENTS} at a time, p50", told["p50"], "ms", None, **told)

    def create(self) -> None:
        """Accepted creates a second, beside what the disk gives a bare loop of synced commits."""
        loops = [machine.synced_commits(self.service.state_dir, self.size.loop)]
        before = self.service.processor_time()
        found = self.service.job(
            "repeat",
            method="POST",
            path="/v3/volumes",
            document={"volume": {"size": 1}},
            status=202,
            connections=CLIENTS,
            seconds=self.size.seconds,
        )
        waited = self._drain()
        spent = (self.service.processor_time() - before) * 1000 / found["count"]
        loops.append(machine.synced_commits(self.service.state_dir, self.size.loop))
        rate, bare = found["count"] / found["seconds"], statistics.mean(loops)
        told = spread(found["times"])
        self.add(f"accepted creates/s, {CLIENTS} clients", rate, "/s", Aim(">=", 200), **told)
        self.add(
            "synced commits/s of a bare SQLite loop", bare, "/s", runs=[round(each, 1) for each in loops]
        )
        self.add("accepted creates per synced commit of the loop", rate / bare, "", Aim(">=", 0.4))
        self.add("processor time of one create, to its end, all processes", spent, "ms")
        done = found["count"] / (found["seconds"] + waited)
        self.add("volumes made available/s, same load", done, "/s", None, backlog_seconds=round(waited, 2))

    def hosts(self) -> None:
        """Creates on PostgreSQL, with one volume service and with three that serve one back end together."""
        pool = Path(self.service.pool)
        accepted, made = {}, {}
        with hosts.server() as database:
            for number in hosts.VOLUME_SERVICES:
                with hosts.roles(self.work, pool, database, number) as service:
                    _no_limits(service)
                    found = service.job(
                        "repeat",
                        method="POST",
                        path="/v3/volumes",
                        document={"volume": {"size": 1}},
                        status=202,
                        connections=CLIENTS,
                        seconds=self.size.seconds,
                    )
                    waited = self._drain(service)
                accepted[number] = found["count"] / found["seconds"]
                made[number] = found["count"] / (found["seconds"] + waited)
                what = f"PostgreSQL, {number} volume service{'s' if number > 1 else ''}"
                told = spread(found["times"])
                self.add(f"accepted creates/s, {what}", accepted[number], "/s", None, **told)
                self.add(
                    f"made available/s, {what}", made[number], "/s", None, backlog_seconds=round(waited, 2)
                )
        few, many = hosts.VOLUME_SERVICES
        self.add(f"accepted, {many} volume services to {few}", accepted[many] / accepted[few], "")
        self.add(f"made available, {many} volume services to {few}", made[many] / made[few], "")

    def _drain(self, service: Service | None = None) -> float:
        """Wait until no volume is being created; seconds."""
        asked = service or self.service
        started = time.perf_counter()
        while asked.ask("GET", "/v3/volumes?status=creating&limit=1")["volumes"]:
            if time.perf_counter() - started > 300:
                raise load.Failure("volumes are still being created after 300 s")
            time.sleep(0.05)
        if asked.ask("GET", "/v3/volumes?status=error&limit=1")["volumes"]:
            raise load.Failure("volumes have failed")
        return time.perf_counter() - started

    def show(self) -> None:
        """Shows of one volume a second."""
        [volume] = self._volumes(1)
        found = self.service.job(
            "repeat",
            method="GET",
            path=f"/v3/volumes/{volume}",
            status=200,
            connections=CLIENTS,
            seconds=self.size.seconds,
        )
        rate = found["count"] / found["seconds"]
        self.add(f"show/s, {CLIENTS} clients", rate, "/s", Aim(">=", 1500), **spread(found["times"]))

    def scheduler(self) -> None:
        """Placements decided in a second, among few and among very many pools; needs no service."""
        for what, pools, times in scheduler.figures(self.size.seconds / 5):
            told = spread(times)
            aim = Aim("<", 20) if (what, pools) in SWIFT else None
            rate = round(1000 / told["p50"]) if told["p50"] else None
            self.add(
                f"scheduler, {pools:,} pools: {what}, p50", told["p50"], "ms", aim, **told, per_second=rate
            )

    def journal(self) -> None:
        """What an operation costs, without any service or client; needs no service."""
        pool = Path(self.service.pool)
        for database, what, cost in journal.costs(self.work, pool, self.size.singles):
            told = spread(cost.times)
            counts = {"statements": cost.statements, "commits": cost.commits}
            name = f"{what} on {database}, p50 ({cost.statements} statements, {cost.commits} commits)"
            self.add(name, told["p50"], "ms", None, **told, **counts)

    def storage(self) -> None:
        """Snapshots and clones of the file pool's driver, small and large: they share blocks, or should."""
        options = FilePoolOptions(filepool_path=str(Path(self.service.pool) / "storage"))
        driver = FilePool(options, name="files", state_dir=str(self.work))
        driver.start()
        for what, size, times in storage.figures(driver, (1, 100), max(3, self.size.singles // 20)):
            told = spread(times)
            self.add(f"file pool: {what}, {size} GiB, p50", told["p50"], "ms", None, **told)

    def images(self) -> None:
        """Volumes of images: converted, in turn with plain conversions of the same file; and cloned."""
        first, plain, synced, again = [], [], [], []
        path = images.image_file(self.work, self.size.image)
        for _ in range(max(3, self.size.singles // 40)):
            with images.added(self.service, path) as (image, file):
                fast, whole = images.plainly(file, Path(self.service.pool) / "plain.raw")
                plain.append(fast)
                synced.append(whole)
                first.append(images.create(self.service, image))
                again += [images.create(self.service, image) for _ in range(5)]
        what = f"{self.size.image} MiB of data in {images.VIRTUAL} GiB"
        medians = [statistics.median(each) for each in (first, plain, synced)]
        for name, value, runs in (
            (f"create from an image, first, {what}", medians[0], first),
            ("plain qemu-img convert of the same file", medians[1], plain),
            ("the same and its fsync", medians[2], synced),
        ):
            self.add(name, value, "s", runs=[round(each, 3) for each in runs])
        self.add("first create to plain qemu-img convert", medians[0] / medians[1], "", Aim("<", 1.1))
        self.add("first create to that with its fsync", medians[0] / medians[2], "")
        told = spread([each * 1000 for each in again])
        kind = "clone" if self._clones() else "conversion, for want of reflinks"
        aim = Aim("<", 100) if self._clones() else None
        self.add(f"second create from the same image ({kind}), p50", told["p50"], "ms", aim, **told)

    def _clones(self) -> bool:
        pools = self.service.ask("GET", "/v3/scheduler-stats/get_pools?detail=True")["pools"]
        return all(pool["capabilities"]["efficient_clone"] for pool in pools)

    def attach(self) -> None:
        """Attach with a connector (a real iSCSI export with CHAP), then delete the attachment."""
        found = self.service.job("attach", volumes=self._volumes(self.size.singles))
        told = spread(found["attach"])
        self.add("attach with connector, p50", told["p50"], "ms", Aim("<", 30), **told)
        told = spread(found["delete"])
        self.add("detach (delete the attachment), p50", told["p50"], "ms", None, **told)

    def targets(self) -> None:
        """The same by each target that runs here, which is another configuration of the same back end."""
        volumes = self._volumes(max(self.size.singles, 15))
        for target in self.targets_measured:
            with self.service.configured(target_helper=target):
                found = self.service.job("attach", volumes=volumes)
            for what, times in (("attach", found["attach"]), ("detach", found["delete"])):
                told = spread(times)
                self.add(f"{what} by {target}, p50", told["p50"], "ms", None, **told)

    def list(self) -> None:
        """Pages of 1,000 detailed volumes out of many, in several projects."""
        self.service.stop()
        projects = fill.fill(self.service, self.size.volumes)
        self.service.start()
        items = min(PAGE, self.size.volumes // 4)
        deep = min(DEEP, self.size.volumes // items - 2)
        everything = f"/v3/volumes/detail?all_tenants=1&limit={items}"
        marker = fill.marker(self.service, items * deep)
        paths = {
            "first page of all projects": everything,
            f"page {deep + 1} of all projects": f"{everything}&marker={marker}",
            f"first page of one project of {projects}": f"/v3/volumes/detail?limit={items}",
        }
        for what, path in paths.items():
            found = self.service.job("pages", path=path, items=items, count=self.size.pages)
            told = spread(found["times"])
            name = f"list {items:,} of {self.size.volumes:,} detailed, p95: {what}"
            self.add(name, told["p95"], "ms", Aim("<", 60), **told, bytes=found["bytes"])
        self._metrics()
        time.sleep(3)
        self._memory("memory after the lists (PSS)", None)

    def _metrics(self) -> None:
        """The text for Prometheus, with as many volumes as were listed from."""
        found = self.service.job(
            "repeat", method="GET", path="/metrics", status=200, connections=1, seconds=self.size.seconds / 3
        )
        told = spread(found["times"][1:])  # the first imports the library
        name = f"metrics with {self.size.volumes:,} volumes, p95"
        self.add(name, told["p95"], "ms", Aim("<", 50), **told, first=round(found["times"][0], 2))

    def _volumes(self, count: int) -> list[str]:
        """Ids of some available volumes; makes what is missing."""
        path = f"/v3/volumes?status=available&limit={count}"
        found = [each["id"] for each in self.service.ask("GET", path)["volumes"]]
        for _ in range(count - len(found)):
            found.append(self.service.ask("POST", "/v3/volumes", {"volume": {"size": 1}})["volume"]["id"])
        self._drain()
        return found


MEASUREMENTS: dict[str, Callable[[Bench], None]] = {
    "start": Bench.start,
    "memory": Bench.memory,
    "available": Bench.available,
    "create": Bench.create,
    "show": Bench.show,
    "images": Bench.images,
    "attach": Bench.attach,
    "targets": Bench.targets,
    "list": Bench.list,
    "scheduler": Bench.scheduler,
    "journal": Bench.journal,
    "storage": Bench.storage,
    "hosts": Bench.hosts,
}


def measure(bench: Bench, names: Sequence[str]) -> None:
    """Do the measurements named, in their order."""
    if "start" not in names:
        bench.service.start()
    for name, measurement in MEASUREMENTS.items():
        if name not in names:
            continue
        if name == "start":
            measurement(bench)
            _no_limits(bench.service)
        else:
            _no_limits(bench.service)
            measurement(bench)


def _no_limits(service: Service) -> None:
    limits = {"volumes": -1, "gigabytes": -1, "snapshots": -1}
    service.ask("PUT", f"/v3/os-quota-sets/{service.project_id()}", {"quota_set": limits})


# --- the report ------------------------------------------------------------------------------------------


def line_of(figure: Figure) -> str:
    """A figure as a line of the table."""
    verdict = ""
    if figure.aim is not None:
        limit = f"{figure.aim.sign} {figure.aim.limit:g}"
        verdict = f"{limit:>9}  {'met' if figure.aim.met(figure.value) else 'MISSED'}"
    beside = "  ".join(f"{k} {figure.more[k]:g}" for k in ("p50", "p95", "p99", "count") if k in figure.more)
    return f"{figure.name:<66}{figure.value:>9g} {figure.unit:<4}{verdict:<18} {beside}".rstrip()


def report(figures: Sequence[Figure], about: dict[str, object], size: str, output: Path) -> None:
    """Write the JSON file."""
    told = []
    for each in figures:
        row: dict[str, Any] = {"name": each.name, "value": each.value, "unit": each.unit, **each.more}
        if each.aim is not None:
            row |= {"aim": f"{each.aim.sign} {each.aim.limit:g}", "met": each.aim.met(each.value)}
        told.append(row)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"machine": about, "size": size, "figures": told}, indent=2) + "\n")
    print(f"\nwritten to {os.path.relpath(output)}")


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the real service.")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--only", action="append", choices=MEASUREMENTS, help="may be given several times")
    parser.add_argument(
        "--targets", default=",".join(TARGETS), help="whose attachments are measured: %(default)s"
    )
    parser.add_argument("--output", type=Path, help="JSON file; default: bench/results/TIME.json")
    parser.add_argument("--pool", type=Path, help="directory for the file pool, instead of an XFS of its own")
    parser.add_argument(
        "--work", type=Path, default=Path("/var/tmp"), help="where the state directory is made"
    )
    return parser.parse_args()


def main() -> int:
    """Run; exit status 0 when everything could be measured, whatever the figures are."""
    chosen = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    output = chosen.output or HERE / "results" / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    try:
        with contextlib.ExitStack() as stack:
            work = Path(tempfile.mkdtemp(prefix="lapilli-bench-", dir=chosen.work))
            stack.callback(shutil.rmtree, work, ignore_errors=True)
            if chosen.pool is None:
                pool, kind = stack.enter_context(xfs_pool(work))
            else:
                pool, kind = (
                    Path(tempfile.mkdtemp(prefix="lapilli-bench-", dir=chosen.pool)),
                    "the directory given",
                )
                stack.callback(shutil.rmtree, pool, ignore_errors=True)
            service = Service(work / "state", pool.resolve())
            stack.callback(service.end)
            stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)  # once: nothing cuts the end short
            about = machine.describe(work, pool, kind)
            print("\n".join(f"{name:<18} {value}" for name, value in about.items()), end="\n\n")
            bench = Bench(service, SIZES[chosen.size], work)
            bench.targets_measured = chosen.targets.split(",")
            measure(bench, chosen.only or list(MEASUREMENTS))
            report(bench.figures, about, chosen.size, output)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (load.Failure, subprocess.CalledProcessError, OSError) as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
