"""kill -9 of the whole service at random moments under load: nothing stays stuck, lost or left behind."""

from __future__ import annotations

import contextlib
import random
import subprocess
import threading
import time

import httpx

from tests.recovery.figures import FIGURES
from tests.service import Api, Service, until

KILLS = 20
CONNECTOR = {"initiator": "iqn.1994-05.com.redhat:kill", "host": "kill", "ip": "127.0.0.1"}
RESTING = {"available", "in-use", "error", "reserved", "attaching", "error_deleting"}


class Load:
    """Threads that create, snapshot, attach and delete until they are told to stop."""

    def __init__(self, api: Api, seed: int) -> None:
        self.api = api
        self.seed = seed
        self.stopping = threading.Event()
        self.done = 0
        self.accepted: set[str] = set()  # volumes that a 202 was given for
        self.doomed: set[str] = set()  # volumes whose deletion was asked for
        self.threads = [threading.Thread(target=self._work, args=(n,)) for n in range(4)]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def _work(self, number: int) -> None:
        dice = random.Random(f"{self.seed}-{number}")
        while not self.stopping.is_set():
            try:
                self._step(dice)
                self.done += 1
            except (httpx.TransportError, AssertionError, KeyError, IndexError, ValueError):
                time.sleep(0.01)  # the service was shot in the middle of it, or the resource is gone

    def _step(self, dice: random.Random) -> None:
        volumes = self.api.get("/v3/volumes/detail?limit=40").json()["volumes"]
        available = [each["id"] for each in volumes if each["status"] == "available"]
        snapshots = self.api.get("/v3/snapshots/detail?limit=40").json()["snapshots"]
        choice = dice.random()
        if choice < 0.35 or len(available) < 3:
            self._create({"size": 1})
        elif choice < 0.45:
            self._create({"source_volid": dice.choice(available)})
        elif choice < 0.60:
            body = {"snapshot": {"volume_id": dice.choice(available), "name": "load"}}
            self.api.post("/v3/snapshots", body)
        elif choice < 0.65 and snapshots:
            self._create({"snapshot_id": dice.choice(snapshots)["id"]})
        elif choice < 0.75:
            self._attach(dice.choice(available))
        elif choice < 0.80:
            grown = {"os-extend": {"new_size": 2}}
            self.api.post(f"/v3/volumes/{dice.choice(available)}/action", grown)
        elif choice < 0.85 and snapshots:
            self.api.delete(f"/v3/snapshots/{dice.choice(snapshots)['id']}")
        else:
            victim = dice.choice(available)
            self.doomed.add(victim)
            self.api.delete(f"/v3/volumes/{victim}?cascade=true")

    def _create(self, request: dict[str, object]) -> None:
        answer = self.api.post("/v3/volumes", {"volume": request})
        if answer.status_code == 202:
            self.accepted.add(answer.json()["volume"]["id"])

    def _attach(self, volume_id: str) -> None:
        body = {"attachment": {"volume_uuid": volume_id, "connector": CONNECTOR}}
        made = self.api.post("/v3/attachments", body)
        if made.status_code != 200:
            return
        attachment = made.json()["attachment"]["id"]
        self.api.post(f"/v3/attachments/{attachment}/action", {"os-complete": None})
        self.api.delete(f"/v3/attachments/{attachment}")


def test_killed_under_load(own_service: Service) -> None:
    """After each of 20 kills everything rests within 10 s, and nothing differs from the database."""
    service = own_service
    service.config = {
        "DEFAULT": {"quota_volumes": -1, "quota_snapshots": -1, "quota_gigabytes": -1},
        "filepool": {"max_over_subscription_ratio": 1000},
    }
    service.start()
    api = Api(service)
    dice = random.Random(20261121)
    work = interrupted = 0
    for round_number in range(KILLS):
        with Load(api, round_number) as load:
            time.sleep(0.3 + dice.random() * 1.2)
            service.kill()
        interrupted += _unfinished(service)
        service.start()
        work += load.done
        _everything_rests(api)
        _nothing_differs(service)
        present = {each["id"] for each in api.get("/v3/volumes").json()["volumes"]}
        assert load.accepted - load.doomed <= present, "an accepted volume was lost"
        _thin_out(api)
    FIGURES.told["random_kills"] += KILLS
    FIGURES.told["operations_interrupted"] += interrupted
    print(f"{KILLS} kills, {work} calls, {interrupted} operations interrupted")
    assert work > KILLS * 5, "the load did not run"
    assert interrupted > KILLS / 2, "the kills hit nothing"


def _unfinished(service: Service) -> int:
    with service.records() as database:
        query = "SELECT count(*) FROM operations WHERE state IN ('queued', 'running', 'reverting')"
        return int(database.exec_driver_sql(query).scalar_one())


def _everything_rests(api: Api) -> None:
    def rests() -> bool:
        with contextlib.suppress(httpx.TransportError):
            found = [
                each["status"]
                for kind in ("volumes", "snapshots")
                for each in api.get(f"/v3/{kind}/detail").json()[kind]
            ]
            return all(status in RESTING for status in found)
        return False

    until(rests, 10)


def _nothing_differs(service: Service) -> None:
    def compared() -> subprocess.CompletedProcess[str]:
        return subprocess.run(service.command("doctor"), capture_output=True, text=True, timeout=60)

    found = compared()
    deadline = time.monotonic() + 10
    while found.returncode != 0 and time.monotonic() < deadline:
        time.sleep(0.5)  # detaching goes on in the background, and holds no status
        found = compared()
    assert found.returncode == 0, found.stdout + found.stderr


def _thin_out(api: Api) -> None:
    """Keep the lists short: detach and delete what there is."""
    for attachment in api.get("/v3/attachments").json()["attachments"]:
        api.delete(f"/v3/attachments/{attachment['id']}")
    for volume in api.get("/v3/volumes").json()["volumes"][10:]:
        api.delete(f"/v3/volumes/{volume['id']}?cascade=true")
