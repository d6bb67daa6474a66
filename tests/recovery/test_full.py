"""Disks without space, of a pool and of the database: clear words, nothing half made, later all goes on."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import databases
from tests.recovery.several import FINE
from tests.service import Api, Service, until, write_faults

MIB = 1 << 20
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A directory that holds 24 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@contextmanager
def full(directory: Path) -> Iterator[None]:
    """No byte of space, meanwhile."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass
    try:
        yield
    finally:
        filler.unlink()


def doctor(service: Service) -> str:
    return subprocess.run(service.command("doctor"), capture_output=True, text=True, timeout=60).stdout


def fault(api: Api, volume: str) -> str:
    shown = api.get(f"/v3/volumes/{volume}", headers={"Lapilli-Extensions": "fault"})
    return str(shown.json()["volume"]["fault"])


def create(api: Api, **request: object) -> str:
    answer = api.post("/v3/volumes", {"volume": {"size": 1, **request}})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["volume"]["id"])


def test_a_full_pool(own_service: Service, small: Path) -> None:
    """What needs no space works, also a start; a copy ends in error, says why, and leaves nothing."""
    own_service.config = {
        "DEFAULT": {"scheduler_max_attempts": 1},
        "filepool": {
            "filepool_path": small,
            "target_helper": "local",
            "max_over_subscription_ratio": "10000",
        },
    }
    own_service.start()
    api = Api(own_service)
    source = api.volume()["id"]
    with (small / "volumes" / f"volume-{source}.raw").open("rb+") as file:
        file.write(os.urandom(10 * MIB))
    with full(small):
        clone = create(api, source_volid=source)
        api.wait(f"/v3/volumes/{clone}", "volume", "error")
        assert "the pool has no space left" in fault(api, clone)
        body = {"snapshot": {"volume_id": source}}
        taken = api.post("/v3/snapshots", body).json()["snapshot"]["id"]
        api.wait(f"/v3/snapshots/{taken}", "snapshot", "error")
        assert not [path for path in small.rglob("*.part") if path.is_file()]
        own_service.kill()
        own_service.start()
        until(lambda: api.get(f"/v3/volumes/{source}").status_code == 200)
        for path in (f"/v3/snapshots/{taken}", f"/v3/volumes/{clone}"):
            assert api.delete(path).status_code == 202
            api.wait_gone(path)
    api.wait(f"/v3/volumes/{create(api, source_volid=source)}", "volume")
    assert doctor(own_service) == FINE


@pytest.mark.skipif(databases.chosen != "sqlite", reason="the state directory holds only SQLite's database")
def test_a_full_disk_of_the_database(small: Path) -> None:
    """Calls are refused in plain words; what runs waits for space; what was accepted is not lost."""
    service = Service(small / "state")
    service.config = {
        "DEFAULT": {"enabled_backends": "sim"},
        "sim": {"volume_driver": "sim", "target_helper": "local", "sim_path": small.parent / "elsewhere"},
    }
    try:
        service.start()
        api = Api(service)
        kept = api.volume()["id"]
        faults = small.parent / "elsewhere" / "faults.json"
        write_faults(faults.parent, {"call": "create", "hang": True, "times": 1})
        running = create(api)
        until(lambda: '"times": 0' in faults.read_text())
        accepted = [kept, running]
        with full(small):
            answers = []
            for _ in range(300):  # until the log of the database has no room left in its file either
                answers.append(api.post("/v3/volumes", {"volume": {"size": 1}}))
                if answers[-1].status_code != 202:
                    break
                accepted.append(answers[-1].json()["volume"]["id"])
            assert answers[-1].status_code == 503, answers[-1].text
            assert "The database's disk is full." in answers[-1].text
            write_faults(faults.parent)
            assert api.get(f"/v3/volumes/{kept}").status_code == 200, "what is there can be read"
            threading.Event().wait(1)
        for volume in accepted:
            api.wait(f"/v3/volumes/{volume}", "volume", seconds=30)
        api.volume()
        listed = {each["id"] for each in api.get("/v3/volumes?limit=1000").json()["volumes"]}
        assert len(listed) == len(accepted) + 1, "a refused call has left a volume"
        assert doctor(service) == FINE
    finally:
        service.end()
