"""Pools without room: what fits the quota but not the pool ends in plain words, and leaves nothing behind."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance import disks, processes
from tests.acceptance.disks import CONNECTOR, GIB, MIB
from tests.acceptance.processes import lapilli
from tests.service import Api, Service, until

NO_ROOM = "No back end can take the request: none has the room, the zone or the abilities asked for."


@pytest.fixture
def narrow(own_service: Service) -> Service:
    """A service whose only pool has 3 GiB, of which nothing is promised twice."""
    own_service.config = {
        "DEFAULT": {"enabled_backends": "sim", "backend_stats_polling_interval": 3},
        "sim": {
            "volume_driver": "sim",
            "target_helper": "local",
            "sim_capacity_gb": 3,
            "max_over_subscription_ratio": 1,
        },
    }
    own_service.start()
    return own_service


@pytest.fixture
def crowded(own_service: Service, tmp_path: Path) -> Iterator[Service]:
    """A service whose only pool is a file system of 64 MiB that is promised away many times over."""
    with disks.mounted(tmp_path, "ext4", 64 * MIB) as mount:
        own_service.config = {"filepool": {"filepool_path": mount, "max_over_subscription_ratio": 1000}}
        own_service.start()
        yield own_service
        own_service.end()


def _pool(service: Service) -> Path:
    return Path(service.config["filepool"]["filepool_path"])


def _used(api: Api) -> tuple[int, int, int]:
    quota = api.get(f"/v3/os-quota-sets/{api.project_id}?usage=True").json()["quota_set"]
    for each in ("volumes", "gigabytes", "snapshots"):
        assert quota[each]["reserved"] == 0
    return quota["volumes"]["in_use"], quota["gigabytes"]["in_use"], quota["snapshots"]["in_use"]


def _accepted(api: Api, **wanted: Any) -> dict[str, Any]:
    answer = api.post("/v3/volumes", {"volume": {"size": 1, **wanted}})
    assert answer.status_code == 202, answer.text
    made: dict[str, Any] = answer.json()["volume"]
    return made


def _message(api: Api, resource: str) -> str:
    """The words that the resource's owner is told."""
    found = api.get("/v3/messages").json()["messages"]
    (one,) = [each for each in found if each["resource_uuid"] == resource]
    assert one["message_level"] == "ERROR"
    words: str = one["user_message"]
    return words


def _delete(api: Api, path: str) -> None:
    answer = api.delete(path)
    assert answer.status_code == 202, answer.text
    api.wait_gone(path)


def _write(api: Api, volume_id: str, size: int) -> None:
    """Fill the start of a volume over iSCSI."""
    body = {"attachment": {"volume_uuid": volume_id, "connector": CONNECTOR}}
    attachment = api.post("/v3/attachments", body).json()["attachment"]
    disks.write_export(attachment["connection_info"], 0x11, 0, size)
    api.delete(f"/v3/attachments/{attachment['id']}")
    api.wait(f"/v3/volumes/{volume_id}", "volume")


def _nothing_differs(service: Service) -> None:
    done = lapilli(service, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr


# --- no pool has the room --------------------------------------------------------------------------------


def test_a_create_that_no_pool_can_take(narrow: Service) -> None:
    """Error, with a reason for the owner, and a reason per pool for the operator."""
    api = Api(narrow)
    path = f"/v3/volumes/{_accepted(api, size=4)['id']}"
    volume = api.wait(path, "volume", "error")
    assert volume["os-vol-host-attr:host"] is None
    assert _message(api, volume["id"]) == f"choose a back end for the volume:{NO_ROOM}"
    (line,) = processes.logged(narrow, "volume.create.error", resource_id=volume["id"])
    assert "@sim#sim: CapacityFilter: " in line["reason"]
    assert "4 GiB" in line["reason"]
    assert "3 GiB" in line["reason"]
    assert disks.files_of(narrow.state_dir / "sim-sim") == []
    assert _used(api) == (1, 4, 0)
    _delete(api, path)
    assert _used(api) == (0, 0, 0)
    _nothing_differs(narrow)


def test_room_is_taken_before_the_next_report(narrow: Service) -> None:
    """Eight at once for a pool of three: three get in, and a deleted one makes room."""
    api = Api(narrow)
    made = [_accepted(api)["id"] for _ in range(8)]
    settled: dict[str, str] = {}

    def all_settled() -> bool:
        settled.update(
            {each["id"]: each["status"] for each in api.get("/v3/volumes/detail").json()["volumes"]}
        )
        return set(settled.values()) <= {"available", "error"}

    until(all_settled)
    assert sorted(settled.values()) == ["available"] * 3 + ["error"] * 5
    assert set(settled) == set(made)
    for each, status in settled.items():
        if status == "error":
            _delete(api, f"/v3/volumes/{each}")
    assert _used(api) == (3, 3, 0)
    _delete(api, f"/v3/volumes/{next(each for each, status in settled.items() if status == 'available')}")

    def fits_again() -> bool:
        path = f"/v3/volumes/{_accepted(api)['id']}"
        until(lambda: api.get(path).json()["volume"]["status"] != "creating")
        if api.get(path).json()["volume"]["status"] == "available":
            return True
        _delete(api, path)
        return False

    until(fits_again, 10)
    _nothing_differs(narrow)


def test_an_extend_that_the_pool_cannot_take(narrow: Service) -> None:
    """The volume is available again, with its old size, and its owner is told."""
    api = Api(narrow)
    volume = api.volume()
    path = f"/v3/volumes/{volume['id']}"
    assert api.post(f"{path}/action", {"os-extend": {"new_size": 9}}).status_code == 202
    until(lambda: api.get(path).json()["volume"]["status"] != "extending")
    after = api.wait(path, "volume")
    assert after["size"] == 1
    assert _message(api, volume["id"]) == f"extend volume:{NO_ROOM}"
    (line,) = processes.logged(narrow, "volume.resize.error", resource_id=volume["id"])
    assert "CapacityFilter" in line["reason"]
    assert _used(api) == (1, 1, 0)
    assert api.post(f"{path}/action", {"os-extend": {"new_size": 2}}).status_code == 202
    until(lambda: api.get(path).json()["volume"]["size"] == 2)
    assert _used(api) == (1, 2, 0)
    over = api.post(f"{path}/action", {"os-extend": {"new_size": 99999}})
    assert over.status_code == 413
    assert "overLimit" in over.json()
    _nothing_differs(narrow)


def test_an_extend_that_breaks(narrow: Service) -> None:
    """A back end that fails is another matter than one without room: error_extending, quota as before."""
    api = Api(narrow)
    volume = api.volume()
    path = f"/v3/volumes/{volume['id']}"
    narrow.suffer({"call": "extend", "error": "The disk is on fire.", "times": 1})
    assert api.post(f"{path}/action", {"os-extend": {"new_size": 2}}).status_code == 202
    assert api.wait(path, "volume", "error_extending")["size"] == 1
    assert _message(api, volume["id"]) == "extend volume:The back end could not extend the volume."
    (line,) = processes.logged(narrow, "volume.resize.error", resource_id=volume["id"])
    assert line["reason"] == "The disk is on fire."
    assert _used(api) == (1, 1, 0)
    _delete(api, path)
    assert _used(api) == (0, 0, 0)


def test_another_pool_is_tried(own_service: Service) -> None:
    """What fails in one pool is made in another; what fails in all says so, and why is in the log."""
    own_service.config = {
        "DEFAULT": {"enabled_backends": "one,two"},
        "backend_defaults": {"volume_driver": "sim", "target_helper": "local"},
    }
    own_service.start()
    api = Api(own_service)
    for name in ("one", "two"):
        own_service.suffer({"call": "create", "error": "The disk is on fire."}, backend=name)
    path = f"/v3/volumes/{_accepted(api)['id']}"
    lost = api.wait(path, "volume", "error")
    told = "create volume from storage of the back end:The back end could not create the volume."
    assert _message(api, lost["id"]) == told
    first, second = [
        line["message"]
        for line in processes.log_lines(own_service)
        if line["level"] == "WARNING" and lost["id"] in line["message"]
    ]
    assert first.endswith(" and is tried elsewhere: The disk is on fire.")
    assert second.endswith(" and is tried elsewhere: The disk is on fire.")
    assert {"@one" in first, "@one" in second} == {True, False}
    own_service.suffer(backend="two")
    for _ in range(3):
        volume = api.volume()
        assert volume["os-vol-host-attr:host"].endswith("@two#two")
    _delete(api, path)
    _nothing_differs(own_service)


# --- the disk is full ------------------------------------------------------------------------------------


def _fails_for_want_of_space(service: Service, api: Api, path: str, kind: str, words: str) -> None:
    """The resource ends in `error`, its owner is told in these words, the log says why."""
    found = api.wait(path, kind, "error", seconds=30)
    assert _message(api, found["id"]) == words
    told = [line for line in processes.log_lines(service) if found["id"] in json.dumps(line)]
    assert "no space left" in json.dumps(told).lower(), told


def test_an_image_that_fills_the_disk(crowded: Service, tmp_path: Path) -> None:
    """The conversion breaks off; not even a piece stays."""
    api = Api(crowded)
    source = disks.make_image(tmp_path / "big.qcow2", "qcow2", os.urandom(80 * MIB))
    image = lapilli(crowded, "image", "add", str(source)).stdout.strip()
    path = f"/v3/volumes/{_accepted(api, imageRef=image)['id']}"
    told = "copy image to volume:The back end could not create the volume."
    _fails_for_want_of_space(crowded, api, path, "volume", told)
    assert disks.files_of(_pool(crowded)) == []
    assert _used(api) == (1, 1, 0)
    _delete(api, path)
    assert _used(api) == (0, 0, 0)
    api.volume()
    _nothing_differs(crowded)


def test_copies_that_fill_the_disk(crowded: Service) -> None:
    """A clone and a snapshot of a volume that holds more than the space left."""
    api = Api(crowded)
    source = api.volume()
    _write(api, source["id"], 36 * MIB)
    before = disks.files_of(_pool(crowded))
    assert before == [f"volume-{source['id']}.raw"]

    clone = f"/v3/volumes/{_accepted(api, source_volid=source['id'])['id']}"
    told = "create volume from storage of the back end:The back end could not create the volume."
    _fails_for_want_of_space(crowded, api, clone, "volume", told)
    assert disks.files_of(_pool(crowded)) == before
    body = {"snapshot": {"volume_id": source["id"], "name": "s"}}
    snapshot = f"/v3/snapshots/{api.post('/v3/snapshots', body).json()['snapshot']['id']}"
    told = "create snapshot:The back end could not create the snapshot."
    _fails_for_want_of_space(crowded, api, snapshot, "snapshot", told)
    assert disks.files_of(_pool(crowded)) == before
    assert _used(api) == (2, 3, 1)
    _delete(api, snapshot)
    _delete(api, clone)
    assert _used(api) == (1, 1, 0)
    assert api.wait(f"/v3/volumes/{source['id']}", "volume")["size"] == 1
    _nothing_differs(crowded)


def test_an_upload_that_fills_the_disk(own_service: Service, tmp_path: Path) -> None:
    """The volume is available again; there is no image, and no piece of one."""
    with disks.mounted(tmp_path, "ext4", 64 * MIB) as mount:
        own_service.config = {"DEFAULT": {"image_directory": mount / "images"}}
        own_service.start()
        api = Api(own_service)
        volume = api.volume()
        body = {"attachment": {"volume_uuid": volume["id"], "connector": CONNECTOR}}
        attachment = api.post("/v3/attachments", body).json()["attachment"]
        for start in range(0, 80, 16):
            disks.write_export(attachment["connection_info"], 1 + start, start * MIB, 16 * MIB)
        api.delete(f"/v3/attachments/{attachment['id']}")
        path = f"/v3/volumes/{volume['id']}"
        api.wait(path, "volume")
        wanted = {"image_name": "too large", "disk_format": "raw", "container_format": "bare"}
        assert api.post(f"{path}/action", {"os-volume_upload_image": wanted}).status_code == 202
        until(lambda: api.get(path).json()["volume"]["status"] != "uploading", 30)
        assert api.get(path).json()["volume"]["status"] == "available"
        told = "copy volume to image:The volume could not be uploaded to the image."
        assert _message(api, volume["id"]) == told
        (line,) = processes.logged(own_service, "volume.upload.error", resource_id=volume["id"])
        assert "no space left" in line["reason"].lower()
        assert api.get("/image/v2/images", version=None).json()["images"] == []
        assert disks.files_of(mount / "images") == []
        own_service.end()


def test_an_image_is_not_added_where_there_is_no_room(own_service: Service, tmp_path: Path) -> None:
    """The command says why, and leaves nothing."""
    with disks.mounted(tmp_path, "ext4", 64 * MIB) as mount:
        own_service.config = {"DEFAULT": {"image_directory": mount / "images"}}
        source = tmp_path / "big.raw"
        source.write_bytes(os.urandom(80 * MIB))
        done = lapilli(own_service, "image", "add", str(source))
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert disks.files_of(mount / "images") == []


def test_sizes_at_the_edge_of_the_file_system(crowded: Service) -> None:
    """A size that no file can have is an error of that volume, not of the service."""
    api = Api(crowded)
    limits = {"quota_set": {"gigabytes": -1, "per_volume_gigabytes": -1}}
    assert api.put(f"/v3/os-quota-sets/{api.project_id}", limits, as_="admin").status_code == 200
    path = f"/v3/volumes/{_accepted(api, size=2**31 - 1)['id']}"
    api.wait(path, "volume", "error")
    assert _message(api, path.rsplit("/", 1)[1])
    assert disks.files_of(_pool(crowded)) == []
    assert _used(api) == (1, 2**31 - 1, 0)
    _delete(api, path)
    assert api.volume()["size"] * GIB == GIB
