"""Clocks that are set by an hour, either way, while everything runs: the real processes under libfaketime."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from glob import glob
from pathlib import Path

import pytest

from tests.recovery.several import CONNECTOR, Several, several
from tests.service import Api, until

__all__ = ["several"]

HOUR = 3600


class FakedTime:
    """A clock for processes that are started with its environment."""

    def __init__(self, path: Path) -> None:
        found = glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
        assert found, "libfaketime is missing: scripts/install-packages installs it"
        self.path = path
        self.set(0)
        # libfaketime 0.9.10 refuses the absolute sleeps that Python makes
        code = "import select, time\ntime.sleep = lambda seconds: select.select([], [], [], seconds)\n"
        path.with_suffix(".python").mkdir()
        (path.with_suffix(".python") / "sitecustomize.py").write_text(code)
        self.environment = {
            "LD_PRELOAD": found[0],
            "PYTHONPATH": str(path.with_suffix(".python")),
            "FAKETIME_TIMESTAMP_FILE": str(path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, seconds: int) -> None:
        """From now on it differs from the machine's by so much."""
        fresh = self.path.with_suffix(".fresh")
        fresh.write_text(f"{seconds:+d}")
        fresh.rename(self.path)


@pytest.fixture
def clock(tmp_path: Path) -> FakedTime:
    return FakedTime(tmp_path / "clock")


def create(api: Api, **request: object) -> str:
    answer = api.post("/v3/volumes", {"volume": {"size": 1, **request}})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["volume"]["id"])


def claims(house: Several) -> dict[str, int]:
    """How often the operations of each resource were claimed, all together."""
    with house.service.records() as database:
        query = "SELECT resource_id, sum(claim) AS times FROM operations GROUP BY resource_id"
        return {row.resource_id: int(row.times) for row in database.exec_driver_sql(query)}


def image(house: Several, directory: Path) -> str:
    raw = directory / "image.raw"
    raw.write_bytes(b"the image" + bytes(4 << 20))
    words = house.service.command("image", "add", str(raw), "--disk-format", "raw")
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_clock_that_is_set(several: Several, clock: FakedTime, tmp_path: Path, step: int) -> None:
    """What runs stays whose it is; what waits does not wait an hour; new work is placed at once."""
    api = several.start_all("volume", environment=clock.environment)
    added = image(several, tmp_path)
    several.strike(
        {"call": "create", "hang": True, "times": 1},
        {"call": "staging", "hang": True, "times": 1},
    )
    running, filling = create(api), create(api, imageRef=added)
    until(lambda: several.service.struck() == 2)
    postponed = create(api, imageRef=added)  # it looks again and again whether the first has been filled
    until(lambda: claims(several).get(postponed, 0) > 3)
    clock.set(step)
    at_once = create(api)
    api.wait(f"/v3/volumes/{at_once}", "volume", seconds=15)
    body = {"attachment": {"volume_uuid": at_once, "connector": CONNECTOR}}
    assert api.post("/v3/attachments", body).status_code == 200
    time.sleep(7)  # leases have been looked at, and renewed, by the new time
    assert {each: claims(several)[each] for each in (running, filling)} == {running: 2, filling: 2}
    shown = api.get(f"/v3/operations?resource_id={running}", as_="admin").json()["operations"][0]
    assert shown["held_by"] is not None
    several.heal()
    for volume in (running, filling, postponed):
        api.wait(f"/v3/volumes/{volume}", "volume")
    several.is_well()
    services = api.get("/v3/os-services", as_="admin").json()["services"]
    assert {each["state"] for each in services} == {"up"}
    assert several.service.log.read_text().count("the clock was set by") >= 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a process another host's name")
def test_a_dead_worker_of_another_host_and_a_clock_that_is_set_back(
    several: Several, clock: FakedTime
) -> None:
    """Its lease, which by the clock has an hour to go, ends when nobody has renewed it for as long as one."""
    several.service.config["DEFAULT"]["host"] = "box"
    api = several.start_all(environment=clock.environment)
    elsewhere = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$0" "$@"']
    command = several.service.command("volume")
    several.service.command = lambda *_words: [*elsewhere, *command]  # type: ignore[method-assign]
    several.start("first", environment=clock.environment)
    several.service.command = lambda *_words: command  # type: ignore[method-assign]
    until(lambda: bool(api.get("/v3/scheduler-stats/get_pools", as_="admin").json()["pools"]))
    several.strike({"call": "create", "hang": True, "times": 1})
    volume = create(api)
    until(lambda: several.service.struck() == 1)
    held = api.get(f"/v3/operations?resource_id={volume}", as_="admin").json()["operations"][0]["held_by"]
    assert held["host"] == "elsewhere"
    os.killpg(several.processes["first"].pid, signal.SIGKILL)
    clock.set(-HOUR)
    several.start("second", environment=clock.environment)
    began = time.monotonic()
    api.wait(f"/v3/volumes/{volume}", "volume", seconds=60)
    assert time.monotonic() - began > 10, "its lease was not waited for: it might have been alive"
    assert claims(several)[volume] == 3
    del several.service.command
    several.is_well()
