"""A small cloud on hosts of its own: a database, an API, two schedulers, three volume hosts.

`left` and `right` serve one back end together, `alone` has its own. A pool that hosts share is a directory
here: what a shared file system or array is elsewhere.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from tests.hosts.network import Database, Host, Network
from tests.service import Api, Service, until, write_faults

LEASE = 15.0  # seconds: lapilli.flows.journal
TOGETHER = "both@shared"
ALONE = "alone@own"
_QUICK = {"report_interval": 1, "service_down_time": 4, "backend_stats_polling_interval": 3}


@dataclass
class Edge(Service):
    """The API of a host, as the tests' client sees it."""

    address: str = ""

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://{self.address}:8776"


class Cloud:
    """All the hosts, and what tests do to them and ask of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.network = Network()
        self.database: Database | None = None
        self.hosts: dict[str, Host] = {}

    def start(self) -> None:
        """Start the database, then everything else."""
        self.database = Database(self.network)
        self.database.create()
        self.url = self.database.fresh()
        backends = {"left": ("shared", "both"), "right": ("shared", "both"), "alone": ("own", "alone")}
        for name in ("api", "first", "second", *backends):
            config: dict[str, dict[str, Any]] = {
                "DEFAULT": {**_QUICK, "image_directory": self.directory / "images"},
                "database": {"connection": self.url},
            }
            if name in backends:
                section, host = backends[name]
                config["DEFAULT"]["enabled_backends"] = section
                config[section] = {
                    "volume_driver": "sim",
                    "sim_path": self.directory / section,
                    "target_helper": "local",
                    "backend_host": host,
                    "volume_backend_name": section,
                }
            self.hosts[name] = Host(self.network, name, self.directory, config)
        self.start_host("left")  # the first one makes the tables; the others need not wait for each other
        until(
            lambda: (
                self.ask("SELECT count(*) FROM information_schema.tables WHERE table_name = 'operations'")[0][
                    0
                ]
                == 1
            )
        )
        for name in ("right", "alone", "first", "second", "api"):
            self.start_host(name)
        edge = Edge(self.hosts["api"].state_dir, port=8776, address=self.hosts["api"].address)
        edge.process, edge_log = self.hosts["api"].process, self.hosts["api"].log
        self.api = Api(edge)
        try:
            edge.wait_until_up()
        except AssertionError:
            raise AssertionError(edge_log.read_text()[-3000:]) from None
        for name in ("shared", "own"):
            specs = {"extra_specs": {"volume_backend_name": name}}
            made = self.api.post("/v3/types", {"volume_type": {"name": name, **specs}}, as_="admin")
            assert made.status_code == 200, made.text
        limits = {"volumes": 1000, "gigabytes": 100_000, "snapshots": 1000}
        self.api.put(f"/v3/os-quota-sets/{self.api.project_id}", {"quota_set": limits}, as_="admin")
        self.wait_until_whole()

    def start_host(self, name: str) -> None:
        """Start the `lapilli` process of a host."""
        words = {
            "api": ("api", "--listen", "0.0.0.0:8776"),
            "first": ("scheduler",),
            "second": ("scheduler",),
        }
        self.hosts[name].start(*words.get(name, ("volume",)))

    def end(self) -> None:
        """Leave nothing behind."""
        for host in self.hosts.values():
            host.end()
        if self.database is not None:
            self.database.remove()
        self.network.remove()

    # --- asking ---

    def ask(self, statement: str, **values: Any) -> list[Any]:
        """Rows of the database."""
        engine = sa.create_engine(self.url, poolclass=sa.pool.NullPool)
        with engine.begin() as connection:
            return list(connection.execute(sa.text(statement), values))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """A transaction of the test's own."""
        engine = sa.create_engine(self.url, poolclass=sa.pool.NullPool)
        with engine.begin() as connection:
            yield connection

    def services(self) -> dict[str, dict[str, Any]]:
        """What `os-services` tells, by host."""
        answer = self.api.get("/v3/os-services", as_="admin")
        assert answer.status_code == 200, answer.text
        return {each["host"]: each for each in answer.json()["services"]}

    def holder(self, resource_id: str) -> str | None:
        """The host that has claimed the unfinished operation of a resource."""
        found = self.ask(
            "SELECT owner FROM operations WHERE resource_id = :id AND finished_at IS NULL "
            "AND owner IS NOT NULL AND role = 'volume'",
            id=resource_id,
        )
        return str(found[0].owner).split("|")[0] if found else None

    def holder_of(self, *resource_ids: str) -> str:
        """As above, once it is there."""
        until(lambda: all(self.holder(each) for each in resource_ids))
        return self.holder(resource_ids[0]) or ""

    def files(self, pool: str) -> dict[str, tuple[int, int, int]]:
        """What is in a pool's directory: inode, time of change and size, by name."""
        found = {}
        for kind in ("volumes", "snapshots"):
            for path in (self.directory / pool / kind).iterdir():
                if not path.name.startswith(".probe"):
                    told = path.stat()
                    found[path.name] = (told.st_ino, told.st_mtime_ns, told.st_size)
        return found

    def log(self, name: str) -> str:
        """What a host has printed."""
        return self.hosts[name].log.read_text()

    # --- doing ---

    def trouble(self, pool: str, *faults: dict[str, Any]) -> None:
        """What calls of a pool's driver suffer from now on."""
        write_faults(self.directory / pool, *faults)

    def request(self, name: str = "shared", **more: Any) -> str:
        """Ask for a volume in a pool; its id."""
        answer = self.api.post("/v3/volumes", {"volume": {"size": 1, "volume_type": name, **more}})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["volume"]["id"])

    def volume(self, name: str = "shared", **more: Any) -> str:
        """A volume of a pool, once it is available; its id."""
        made = self.request(name, **more)
        self.wait(made)
        return made

    def wait(self, volume_id: str, status: str = "available", seconds: float = 60) -> dict[str, Any]:
        """Wait until a volume has a status."""
        return self.api.wait(f"/v3/volumes/{volume_id}", "volume", status, seconds)

    def is_available(self, volume_id: str) -> bool:
        """Whether a volume is."""
        return bool(self.api.get(f"/v3/volumes/{volume_id}").json()["volume"]["status"] == "available")

    def act(self, volume_id: str, action: str, **told: Any) -> None:
        """An action on a volume."""
        answer = self.api.post(f"/v3/volumes/{volume_id}/action", {action: told})
        assert answer.status_code == 202, answer.text

    def delete(self, volume_id: str) -> None:
        """Ask for the end of a volume."""
        answer = self.api.delete(f"/v3/volumes/{volume_id}")
        assert answer.status_code == 202, answer.text

    def wait_until_whole(self, seconds: float = 40) -> None:
        """Wait until everybody is connected, and everybody knows."""

        def whole() -> bool:
            with contextlib.suppress(httpx.TransportError, AssertionError):
                told = self.services()
                wanted = {TOGETHER, ALONE, "first", "second"}
                up = {host for host, each in told.items() if each["state"] == "up"}
                pools = self.api.get("/v3/scheduler-stats/get_pools", as_="admin").json()["pools"]
                return wanted <= up and len(pools) == 2
            return False

        until(whole, seconds)

    def wait_until_idle(self, seconds: float = 60) -> None:
        """Wait until no operation is left."""
        until(lambda: not self.ask("SELECT 1 FROM operations WHERE finished_at IS NULL LIMIT 1"), seconds)

    def check(self) -> None:
        """Nothing is stuck, lost or left over: every pool, seen from a host that serves it."""
        self.trouble("shared")
        self.trouble("own")
        self.wait_until_idle()
        for name in ("right", "alone"):
            deadline = time.monotonic() + 20  # what bounced may still be tidying up
            while (found := self.hosts[name].run("doctor")).returncode and time.monotonic() < deadline:
                time.sleep(0.5)
            assert found.returncode == 0, found.stdout + found.stderr
