"""A worker that is stopped past its lease, while another carries on: when it goes on, it harms nothing."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

from tests.recovery.several import CONNECTOR, Several, several
from tests.service import Api, until

__all__ = ["several"]

GUEST = b"what the guest wrote meanwhile"


class Stopped:
    """One operation of each kind, all of them inside a call of the worker that is then stopped."""

    def __init__(self, house: Several, api: Api, image: str) -> None:
        self.house, self.api = house, api
        self.sources = [api.volume()["id"] for _ in range(8)]
        clone, delete, extend, frozen, upload, connect, leave, source = self.sources
        old = api.snapshot(frozen)["id"]
        self.attachment = self.attach(leave)
        once = {"hang": True, "times": 1}
        house.strike(
            *({"call": "create", "when": when, **once} for when in ("before", "after")),
            *({"call": "clone", "when": when, **once} for when in ("before", "after")),
            {"call": "staging", **once},
            {"call": "delete", "for": delete, **once},
            {"call": "extend", "for": extend, "when": "after", **once},
            {"call": "create_snapshot", "for": source, **once},
            {"call": "delete_snapshot", "for": old, **once},
            {"call": "address", "for": upload, **once},
        )
        house.strike(
            {"call": "export", "for": connect, **once},
            {"call": "unexport", "for": leave, **once},
            target=True,
        )
        made = [{"size": 1}, {"size": 1}, {"source_volid": clone}, {"source_volid": clone}]
        self.made = [self.create(each) for each in [*made, {"imageRef": image, "size": 1}]]
        api.delete(f"/v3/volumes/{delete}")
        self.deleted, self.extended, self.connected, self.left = delete, extend, connect, leave
        self.act(extend, {"os-extend": {"new_size": 2}})
        body = {"snapshot": {"volume_id": source}}
        self.snapshot = api.post("/v3/snapshots", body).json()["snapshot"]["id"]
        api.delete(f"/v3/snapshots/{old}")
        self.old = old
        house.disk(upload).open("rb+").write(GUEST)
        words = {"image_name": "copy", "disk_format": "qcow2", "container_format": "bare"}
        told = self.act(upload, {"os-volume_upload_image": words})
        self.image = told.json()["os-volume_upload_image"]["image_id"]
        self.uploaded = upload
        self.waiting = [
            threading.Thread(target=self.attach, args=(connect,)),
            threading.Thread(target=api.delete, args=(f"/v3/attachments/{self.attachment}",)),
        ]
        for thread in self.waiting:
            thread.start()
        until(lambda: self.inside() == 12)

    def create(self, request: dict[str, Any]) -> str:
        answer = self.api.post("/v3/volumes", {"volume": request})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["volume"]["id"])

    def act(self, volume: str, body: dict[str, Any]) -> Any:
        answer = self.api.post(f"/v3/volumes/{volume}/action", body)
        assert answer.status_code in (200, 202), answer.text
        return answer

    def attach(self, volume: str) -> str:
        body = {"attachment": {"volume_uuid": volume, "connector": CONNECTOR}}
        answer = self.api.post("/v3/attachments", body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["attachment"]["id"])

    def inside(self) -> int:
        """How many of its faults hold a call."""
        return sum(self.house.service.struck(name) for name in ("sim", "target-sim"))

    def goes_on_elsewhere(self) -> None:
        """The other worker ends everything well."""
        for thread in self.waiting:
            thread.join(60)
        until(lambda: self.house.unfinished() == 0, 60)
        for volume in (*self.made, self.extended, self.uploaded, self.left):
            self.api.wait(f"/v3/volumes/{volume}", "volume")
        self.api.wait(f"/v3/snapshots/{self.snapshot}", "snapshot")
        for path in (f"/v3/volumes/{self.deleted}", f"/v3/snapshots/{self.old}"):
            self.api.wait_gone(path)

    def is_used(self) -> None:
        """Guests write to what was made, and attach what was left."""
        for volume in self.made:
            with self.house.disk(volume).open("rb+") as file:
                file.write(GUEST)
        self.attachment = self.attach(self.left)
        (connected,) = self.attachments(self.connected)
        assert self.api.delete(f"/v3/attachments/{connected}").status_code == 200

    def attachments(self, volume: str) -> list[str]:
        told = self.api.get(f"/v3/attachments?volume_id={volume}").json()["attachments"]
        return [each["id"] for each in told]


def test_a_worker_that_was_stopped_harms_nothing(several: Several, tmp_path: Path) -> None:
    """It makes nothing twice, writes over nothing, and removes nothing that another has made."""
    raw, image = tmp_path / "image.raw", tmp_path / "image.qcow2"
    raw.write_bytes(b"the image" + bytes(4 << 20))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image], check=True)
    api = several.start_all("first")
    words = several.service.command("image", "add", str(image))
    added = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    work = Stopped(several, api, added)
    several.pause("first")
    several.start("second", "volume")
    work.goes_on_elsewhere()
    work.is_used()
    before = operations(several)
    several.heal()
    several.signal("first", signal.SIGCONT)
    until(lambda: several.service.log.read_text().count("was taken over by another worker") >= 12, 30)
    several.is_well(30)
    assert {key: value for key, value in operations(several).items() if key in before} == before
    for volume in work.made:
        assert several.disk(volume).read_bytes()[: len(GUEST)] == GUEST
        assert api.get(f"/v3/volumes/{volume}").json()["volume"]["status"] == "available"
    exports = several.service.state_dir / "sim-target-sim" / "exports"
    until(lambda: [path.name for path in exports.iterdir()] == [work.left], 15)
    assert work.attachments(work.left) == [work.attachment]
    told = api.get(f"/image/v2/images/{work.image}").json()
    content = several.service.state_dir / "images" / f"{work.image}.qcow2"
    assert told["status"] == "active"
    assert hashlib.md5(content.read_bytes()).hexdigest() == told["checksum"]  # noqa: S324 - as Glance
    back = tmp_path / "back.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", content, back], check=True)
    with back.open("rb") as file:
        assert file.read(len(GUEST)) == GUEST
    several.signal("second", signal.SIGTERM)  # the first is as good as before
    several.processes["second"].wait(20)
    api.volume()


def operations(house: Several) -> dict[str, tuple[str, int]]:
    """State and claim number of every operation."""
    with house.service.records() as database:
        rows = database.exec_driver_sql("SELECT id, state, claim FROM operations")
        return {row.id: (row.state, row.claim) for row in rows}
