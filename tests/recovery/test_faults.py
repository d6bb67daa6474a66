"""A driver and a target that fail, lie or hang at any call: all ends somehow, and nothing is left over."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.recovery.several import CONNECTOR, FINE, Several, several
from tests.service import Api, until

__all__ = ["several"]

FAULTS: dict[str, dict[str, Any]] = {
    "fails before": {"error": "The disk is on fire."},
    "fails after": {"error": "The disk is on fire.", "when": "after"},
    "lies": {"lie": True},
    "hangs before": {"hang": True},
    "hangs after": {"hang": True, "when": "after"},
}
DRIVER = "create clone create_from_snapshot staging extend create_snapshot".split()
DEADLINES = ", ".join(
    f"{kind}=2"
    for kind in "volume.create volume.extend volume.delete volume.upload snapshot.create snapshot.delete "
    "attachment.connect attachment.disconnect".split()
)


class Asked:
    """One operation for each call that is struck; what they end in."""

    def __init__(self, api: Api, house: Several, image: str) -> None:
        self.api, self.house, self.image = api, house, image
        sources = [api.volume()["id"] for _ in range(8)]
        self.source, self.grown, self.gone, self.uploaded, self.connected, self.left = sources[:6]
        self.frozen, self.old = (api.snapshot(each)["id"] for each in sources[6:])
        self.attachment = self.attach(self.left).json()["attachment"]["id"]

    def attach(self, volume: str) -> Any:
        body = {"attachment": {"volume_uuid": volume, "connector": CONNECTOR}}
        return self.api.post("/v3/attachments", body)

    def create(self, **request: Any) -> str:
        answer = self.api.post("/v3/volumes", {"volume": {"size": 1, **request}})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["volume"]["id"])

    def all(self) -> None:
        api = self.api
        self.created = [
            self.create(),
            self.create(source_volid=self.source),
            self.create(snapshot_id=self.frozen),
            self.create(imageRef=self.image),
        ]
        api.post(f"/v3/volumes/{self.grown}/action", {"os-extend": {"new_size": 2}})
        api.delete(f"/v3/volumes/{self.gone}")
        body = {"snapshot": {"volume_id": self.source}}
        self.taken = api.post("/v3/snapshots", body).json()["snapshot"]["id"]
        api.delete(f"/v3/snapshots/{self.old}")
        words = {"image_name": "copy", "disk_format": "raw", "container_format": "bare"}
        told = api.post(f"/v3/volumes/{self.uploaded}/action", {"os-volume_upload_image": words})
        self.copy = told.json()["os-volume_upload_image"]["image_id"]

    def end(self) -> None:
        """All have ended as the table of states names it under `failed`."""
        wait = self.api.wait
        for volume in self.created:
            wait(f"/v3/volumes/{volume}", "volume", "error", seconds=40)
        wait(f"/v3/volumes/{self.grown}", "volume", "error_extending")
        wait(f"/v3/volumes/{self.gone}", "volume", "error_deleting")
        wait(f"/v3/snapshots/{self.taken}", "snapshot", "error")
        wait(f"/v3/snapshots/{self.old}", "snapshot", "error_deleting")
        wait(f"/v3/volumes/{self.uploaded}", "volume", "available")
        assert self.api.get(f"/image/v2/images/{self.copy}").status_code == 404

    def go(self) -> None:
        """Asked again, everything can be deleted."""
        for snapshot in self.api.get("/v3/snapshots").json()["snapshots"]:
            path = f"/v3/snapshots/{snapshot['id']}/action"
            assert self.api.post(path, {"os-force_delete": None}, as_="admin").status_code == 202
        until(lambda: self.api.get("/v3/snapshots").json()["snapshots"] == [])
        for attachment in self.api.get("/v3/attachments").json()["attachments"]:
            assert self.api.delete(f"/v3/attachments/{attachment['id']}").status_code == 200
        for volume in self.api.get("/v3/volumes").json()["volumes"]:
            path = f"/v3/volumes/{volume['id']}/action"
            assert self.api.post(path, {"os-force_delete": None}, as_="admin").status_code == 202
        until(lambda: self.api.get("/v3/volumes").json()["volumes"] == [])


@pytest.mark.parametrize("name", FAULTS)
def test_each_call_is_struck(several: Several, tmp_path: Path, name: str) -> None:
    several.service.config["DEFAULT"] |= {"operation_deadlines": DEADLINES, "scheduler_max_attempts": 1}
    api = several.start_all("volume")
    raw = tmp_path / "image.raw"
    raw.write_bytes(b"the image" + bytes(1 << 20))
    words = several.service.command("image", "add", str(raw), "--disk-format", "raw")
    image = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    asked = Asked(api, several, image)
    hangs, struck = "hang" in FAULTS[name], {**FAULTS[name], "times": 1}
    several.strike(
        *({"call": call, **struck} for call in DRIVER),
        # undoing another's work calls these too
        {"call": "delete", "for": asked.gone, **struck},
        {"call": "delete_snapshot", "for": asked.old, **struck},
        {"call": "address", "for": asked.uploaded, **struck},
    )
    asked.all()
    asked.end()
    several.strike(
        {"call": "export", "for": asked.connected, **struck},
        {"call": "unexport", "for": asked.left, **struck},
        target=True,
    )
    connected, left = asked.attach(asked.connected), api.delete(f"/v3/attachments/{asked.attachment}")
    ends = 200 if name == "lies" else 500
    assert (connected.status_code, left.status_code) == (ends, ends), (connected.text, left.text)
    if hangs:
        is_told(several, api, asked)
        assert api.volume()["status"] == "available", "other work goes on meanwhile"
    several.heal()  # what hangs comes back now, and may make what nobody wants any more
    several.is_well(30)
    asked.go()
    several.is_well(30)
    usage = api.get(f"/v3/os-quota-sets/{api.project_id}?usage=True", as_="admin").json()["quota_set"]
    assert [usage[key]["in_use"] for key in ("volumes", "snapshots", "gigabytes")] == [0, 0, 0]
    assert list(several.service.state_dir.glob("sim-sim/*/*.raw*")) == []


def is_told(house: Several, api: Api, asked: Asked) -> None:
    """What hangs is shown with the operation, in the log, and to the user."""
    path = f"/v3/operations?resource_id={asked.created[0]}"
    (operation,) = api.get(path, as_="admin").json()["operations"]
    (hung,) = [each for each in operation["tasks"] if each["state"] == "hung"]
    assert (hung["name"], hung["seconds"] >= 2) == ("CreateVolumeFromSpec", True)
    assert hung["started_at"] is not None
    assert (operation["error"]["code"], operation["error"]["hangs_in"]) == ("deadline", "Sim.create")
    log = house.service.log.read_text()
    assert "Sim.create hangs since" in log
    assert "SimTarget.export hangs since" in log
    (message,) = api.get(f"/v3/messages?resource_uuid={asked.created[0]}").json()["messages"]
    assert "could not create the volume" in message["user_message"]
    words = house.service.command("operation", "show", operation["id"])
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "hung in    Sim.create" in shown


def test_an_undoing_that_hangs(several: Several) -> None:
    """It is taken away from the call as well, tried again, and the volume ends in error."""
    several.service.config["DEFAULT"] |= {"operation_deadlines": DEADLINES, "scheduler_max_attempts": 1}
    api = several.start_all("volume")
    several.strike(
        {"call": "create", "error": "no", "when": "after"}, {"call": "delete", "hang": True, "times": 1}
    )
    volume = api.post("/v3/volumes", {"volume": {"size": 1}}).json()["volume"]["id"]
    api.wait(f"/v3/volumes/{volume}", "volume", "error", seconds=30)
    (operation,) = api.get(f"/v3/operations?resource_id={volume}", as_="admin").json()["operations"]
    assert [each["state"] for each in operation["tasks"]].count("hung") == 1
    several.heal()
    several.is_well()


def test_a_back_end_that_hangs_holds_up_no_other(several: Several) -> None:
    """Neither at the start nor later; its service is down until it answers, and the log says what hangs."""
    several.service.config["DEFAULT"] |= {
        "enabled_backends": "sim,other",
        "service_down_time": 4,
        "report_interval": 1,
        "backend_stats_polling_interval": 3,
    }
    several.service.config["other"] = {"volume_driver": "sim", "target_helper": "sim"}
    several.strike({"call": "start", "hang": True})
    api = several.start_all("volume")
    states = service_states(api)
    until(lambda: states().get("other") == "up")
    assert api.volume()["status"] == "available"
    assert states().get("sim", "down") == "down"
    several.heal()
    until(lambda: states().get("sim") == "up")
    several.strike({"call": "pools", "hang": True})
    until(lambda: states().get("sim") == "down")
    assert states()["other"] == "up"
    assert api.volume()["status"] == "available"
    assert "Sim.pools hangs" in several.service.log.read_text()
    several.heal()
    until(lambda: states().get("sim") == "up")
    several.is_well()


def service_states(api: Api) -> Callable[[], dict[str, str]]:
    def states() -> dict[str, str]:
        told = api.get("/v3/os-services?binary=cinder-volume", as_="admin").json()["services"]
        return {each["host"].partition("@")[2]: each["state"] for each in told}

    return states


def test_a_back_end_that_cannot_start_is_tried_again(several: Several) -> None:
    several.strike({"call": "start", "error": "The disk is asleep.", "times": 2})
    api = several.start_all("volume")
    assert api.volume()["status"] == "available"
    assert several.service.log.read_text().count("cannot start; it is tried again: The disk is asleep.") == 2


def test_a_conversion_that_hangs_is_told_and_ended(several: Several, tmp_path: Path) -> None:
    """A qemu-img that does nothing any more is not waited for."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "qemu-img").write_text(
        '#!/bin/sh\n[ "$1" = convert ] && exec sleep 600\nexec /usr/bin/qemu-img "$@"\n'
    )
    (programs / "qemu-img").chmod(0o755)
    several.service.config["DEFAULT"] |= {"operation_deadlines": DEADLINES, "scheduler_max_attempts": 1}
    api = several.start_all("volume", environment={"PATH": f"{programs}:{os.environ['PATH']}"})
    raw = tmp_path / "image.raw"
    raw.write_bytes(b"the image" + bytes(1 << 20))
    words = several.service.command("image", "add", str(raw), "--disk-format", "raw")
    image = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    volume = api.post("/v3/volumes", {"volume": {"size": 1, "imageRef": image}}).json()["volume"]["id"]
    api.wait(f"/v3/volumes/{volume}", "volume", "error", seconds=20)
    time.sleep(2)
    assert subprocess.run(["pgrep", "-f", "sleep 600"], capture_output=True).returncode == 1
    assert several.doctor() == FINE
