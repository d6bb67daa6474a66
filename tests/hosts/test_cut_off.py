"""Hosts that are cut off in the middle of their work: others carry on, and what they do late bounces."""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from tests.hosts.cloud import LEASE, TOGETHER, Cloud
from tests.service import until

BOUNCED = "was taken over by another worker"
LATE = LEASE + 5  # seconds: the call of a host that is cut off comes back after another has carried on


def _operations(cloud: Cloud, *resource_ids: str) -> list[tuple[str, str, int]]:
    """(kind, state, times claimed), in the order in which they were asked for."""
    found = []
    for each in resource_ids:
        rows = cloud.ask(
            "SELECT kind, state, claim FROM operations WHERE resource_id = :id ORDER BY created_at", id=each
        )
        found += [(row.kind, row.state, row.claim) for row in rows]
    return found


def test_a_volume_host_is_cut_off_in_the_middle_of_its_work(cloud: Cloud) -> None:
    """Of two that serve one back end: what it had begun is carried on, once, and its late effects go."""
    to_extend, to_delete, to_copy = (cloud.volume() for _ in range(3))
    calls = ("create", "create", "extend", "delete", "create_snapshot")
    cloud.trouble("shared", *({"call": call, "delay": LATE, "times": 1} for call in calls))
    left = cloud.hosts["left"]
    with cloud.hosts["right"].paused():
        made, doomed = cloud.request(), cloud.request()
        cloud.act(to_extend, "os-extend", new_size=2)
        cloud.delete(to_delete)
        snapshot = cloud.api.post("/v3/snapshots", {"snapshot": {"volume_id": to_copy}}).json()["snapshot"][
            "id"
        ]
        for each in (made, doomed, to_extend, to_delete, snapshot):
            until(lambda each=each: cloud.holder(each) == "left")
        came = time.monotonic()
        left.cut()
    cloud.wait(made)
    assert cloud.wait(to_extend)["size"] == 2
    cloud.api.wait_gone(f"/v3/volumes/{to_delete}", 60)
    cloud.api.wait(f"/v3/snapshots/{snapshot}", "snapshot", seconds=60)
    cloud.wait(doomed)
    cloud.delete(doomed)
    cloud.api.wait_gone(f"/v3/volumes/{doomed}", 60)
    before = cloud.files("shared")
    assert f"volume-{doomed}.raw" not in before
    until(lambda: time.monotonic() > came + LATE + 1)  # its calls have come back by now, each with its effect
    assert f"volume-{doomed}.raw" in cloud.files("shared")

    left.heal()
    until(lambda: cloud.log("left").count(BOUNCED) == len(calls), 40)
    until(lambda: cloud.files("shared") == before, 30)
    asked = (made, doomed, to_extend, to_delete, snapshot)
    cloud.wait_until_idle()
    assert _operations(cloud, *asked) == [  # a claim for each leg, and one more for what was carried on
        ("volume.create", "done", 3),
        ("volume.create", "done", 3),
        ("volume.delete", "done", 1),
        ("volume.create", "done", 2),
        ("volume.extend", "done", 3),
        ("volume.create", "done", 2),
        ("volume.delete", "done", 2),
        ("snapshot.create", "done", 2),
    ]
    with cloud.hosts["right"].paused():
        cloud.volume()  # the one that was away works again
    cloud.check()


def test_a_scheduler_is_cut_off_within_its_transaction(cloud: Cloud) -> None:
    """It has chosen a pool and taken the room, but the answer to that never comes."""
    [(before,)] = cloud.ask("SELECT allocated_gb FROM pools WHERE backend = :host", host=TOGETHER)
    with cloud.transaction() as connection:
        pool = sa.text("SELECT * FROM pools WHERE backend = :host FOR UPDATE")
        connection.execute(pool, {"host": TOGETHER})
        made = cloud.request(size=3)
        waiting = "SELECT client_addr FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        until(lambda: bool(cloud.ask(waiting)))
        owner = cloud.ask("SELECT owner FROM operations WHERE resource_id = :id", id=made)[0].owner
        victim = cloud.hosts[owner.split("|")[0]]
        victim.cut()
    cloud.wait(made)
    assert cloud.ask("SELECT allocated_gb FROM pools WHERE backend = :host", host=TOGETHER) == [(before + 3,)]
    until(lambda: cloud.services()[victim.name]["state"] == "down", 30)
    victim.heal()
    until(lambda: cloud.services()[victim.name]["state"] == "up", 40)
    until(lambda: BOUNCED in cloud.log(victim.name), 40)
    [(kind, state, _)] = _operations(cloud, made)
    assert (kind, state) == ("volume.create", "done")
    assert cloud.ask("SELECT allocated_gb FROM pools WHERE backend = :host", host=TOGETHER) == [(before + 3,)]
    cloud.check()


def test_the_database_is_cut_off_from_everybody(cloud: Cloud) -> None:
    """Under load, for longer than connections live: each request that is repeated until it is answered
    makes one volume."""
    accepted: dict[str, str] = {}
    stop, abandoned = threading.Event(), threading.Event()

    def load() -> None:
        while not stop.is_set():
            key = uuid.uuid4().hex
            while key not in accepted and not abandoned.is_set():
                body = {"volume": {"size": 1, "volume_type": "shared", "name": key}}
                try:
                    answer = cloud.api.post("/v3/volumes", body, headers={"Idempotency-Key": key})
                except httpx.TransportError:
                    continue
                if answer.status_code == 202:
                    accepted[key] = answer.json()["volume"]["id"]
                else:
                    assert answer.status_code in (409, 503), answer.text
                    time.sleep(0.2)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for each in threads:
        each.start()
    assert cloud.database is not None
    try:
        until(lambda: len(accepted) > 5)
        cloud.database.cut()
        time.sleep(14)  # every connection ends of it
        cloud.database.heal()
        known = len(accepted)
        until(lambda: len(accepted) > known + 10, 60)
    finally:
        cloud.database.heal()
        stop.set()
        for each in threads:
            each.join(60)
        abandoned.set()
    for identifier in accepted.values():
        cloud.wait(identifier)
    listed: list[Any] = []
    while page := cloud.api.get(f"/v3/volumes?limit=500&offset={len(listed)}").json()["volumes"]:
        listed += page
    assert sorted(each["name"] for each in listed if each["name"]) == sorted(accepted)
    cloud.check()


_SLOW = """#!/bin/sh
case "$1" in
convert) while :; do touch {marker}; sleep 0.2; done ;;
*) exec {real} "$@" ;;
esac
"""


def test_a_conversion_is_ended_before_another_host_begins_it(cloud: Cloud, tmp_path: Path) -> None:
    """A program that a host has started writes nothing any more when its operation is taken over."""
    left, marker, content = cloud.hosts["left"], tmp_path / "converting", tmp_path / "small.raw"
    content.write_bytes(os.urandom(1 << 20))
    added = left.run("image", "add", str(content), "--name", "small")
    assert added.returncode == 0, added.stdout + added.stderr
    image = re.search(r"[0-9a-f-]{36}", added.stdout)
    assert image is not None, added.stdout
    real = shutil.which("qemu-img")
    left.programs.mkdir(exist_ok=True)
    program = left.programs / "qemu-img"
    program.write_text(_SLOW.format(marker=marker, real=real))
    program.chmod(0o755)
    try:
        with cloud.hosts["right"].paused():
            made = cloud.request(imageRef=image[0])
            until(marker.exists)
            left.cut()
        until(lambda: cloud.holder(made) == "right" or cloud.is_available(made), 40)
        stopped = marker.stat().st_mtime_ns
        cloud.wait(made)
        time.sleep(0.5)
        assert marker.stat().st_mtime_ns == stopped
    finally:
        program.unlink()
    with (cloud.directory / "shared" / "volumes" / f"volume-{made}.raw").open("rb") as volume:
        assert volume.read(1 << 20) == content.read_bytes()
    left.heal()
    until(lambda: cloud.log("left").count(f"{BOUNCED}") > 0, 40)
    cloud.check()
