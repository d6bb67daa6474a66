"""Every microversion at the edge of its window: not there in the one before, there in it and in the newest.

One probe each: what of a microversion can be seen over the wire. Those without a probe are named, with why.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lapilli.api.versions import MAXIMUM, TABLE
from tests.api.steps import fresh, good, wait_gone
from tests.service import Api, Service

NOBODY = str(uuid.uuid4())
CONNECTOR = {"initiator": "iqn.1993-08.org.debian:01:edge", "host": "edge", "ip": "127.0.0.1"}

NOT_SEEN = {
    0: "the beginning",
    50: "marks something, and changes nothing on the wire",
    64: "no volume is encrypted yet",
    67: "paths without a project are served in all versions",
    69: "no driver tells null",
    70: "no volume is encrypted yet",
}
PROBES: dict[int, Callable[[World, str], bool]] = {}


class World:
    """A service with something of everything."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.volume = api.volume(name=fresh("edge"), metadata={"k": "v"})
        self.snapshot = api.snapshot(self.volume["id"], metadata={"k": "v"})

    def get(self, path: str, version: str, as_: str = "admin") -> Any:
        return self.api.get(f"/v3{path}", version=version, as_=as_)

    def there(self, path: str, version: str, as_: str = "admin") -> bool:
        return bool(self.get(path, version, as_).status_code == 200)

    def shown(self, path: str, key: str, version: str, as_: str = "admin") -> dict[str, Any]:
        told: dict[str, Any] = good(self.get(path, version, as_))[key]
        return told

    def listed(self, path: str, key: str, version: str, as_: str = "admin") -> list[Any]:
        told: list[Any] = good(self.get(path, version, as_))[key]
        return told

    def act(self, version: str, action: str, value: Any, as_: str = "member") -> Any:
        path = f"/v3/volumes/{self.volume['id']}/action"
        return self.api.post(path, {action: value}, version=version, as_=as_)


def probe(minor: int) -> Callable[[Callable[[World, str], bool]], Callable[[World, str], bool]]:
    def keep(function: Callable[[World, str], bool]) -> Callable[[World, str], bool]:
        assert minor not in PROBES
        PROBES[minor] = function
        return function

    return keep


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    service = Service(tmp_path_factory.mktemp("edges"))
    service.start()
    yield World(Api(service))
    service.end()


# --- one probe for each ----------------------------------------------------------------------------------


@probe(1)
def _visibility_of_uploads(world: World, version: str) -> bool:
    answer = world.act(version, "os-volume_upload_image", {"image_name": "x", "visibility": "nobody"})
    return answer.status_code == 400 and "visibility" in answer.text and "nobody" in answer.text


@probe(2)
def _bootable_is_a_boolean(world: World, version: str) -> bool:
    return world.get("/volumes?bootable=perhaps", version).status_code == 400


@probe(3)
def _messages(world: World, version: str) -> bool:
    return world.there("/messages", version)


@probe(4)
def _image_metadata_filter(world: World, version: str) -> bool:
    asked = "/volumes?glance_metadata=%7B%22no%22%3A%22such%22%7D"
    return world.listed(asked, "volumes", version) == []


@probe(5)
def _paging_of_messages(world: World, version: str) -> bool:
    return world.get("/messages?limit=x", version).status_code == 400


@probe(7)
def _clusters(world: World, version: str) -> bool:
    told = "cluster" in world.listed("/os-services", "services", version)[0]
    assert told == world.there("/clusters", version)
    return told


@probe(8)
def _manageable(world: World, version: str) -> bool:
    host = world.volume["os-vol-host-attr:host"].replace("#", "%23")
    return world.there(f"/manageable_volumes?host={host}", version)


@probe(10)
def _group_filter(world: World, version: str) -> bool:
    return world.listed(f"/volumes?group_id={NOBODY}", "volumes", version, as_="member") == []


@probe(12)
def _summary(world: World, version: str) -> bool:
    return world.there("/volumes/summary", version)


@probe(13)
def _group_of_volumes(world: World, version: str) -> bool:
    return "group_id" in world.shown(f"/volumes/{world.volume['id']}", "volume", version)


@probe(14)
def _group_snapshot_of_snapshots(world: World, version: str) -> bool:
    return "group_snapshot_id" in world.shown(f"/snapshots/{world.snapshot['id']}", "snapshot", version)


@probe(15)
def _etag(world: World, version: str) -> bool:
    return "ETag" in world.get(f"/volumes/{world.volume['id']}/metadata", version).headers


@probe(16)
def _manage_takes_a_cluster(world: World, version: str) -> bool:
    wanted = {"volume": {"ref": {"source-name": "x"}, "cluster": "nowhere@pool"}}
    answer = world.api.post("/v3/manageable_volumes", wanted, version=version, as_="admin")
    assert answer.status_code == 400
    return "There is no cluster" in answer.text


@probe(17)
def _lists_take_a_cluster(world: World, version: str) -> bool:
    return "There is no cluster" in world.get("/manageable_volumes?cluster=nowhere@pool", version).text


@probe(21)
def _provider_id(world: World, version: str) -> bool:
    return "provider_id" in world.shown(f"/volumes/{world.volume['id']}", "volume", version)


@probe(22)
def _metadata_filter_of_snapshots(world: World, version: str) -> bool:
    asked = "/snapshots?metadata=%7B%22no%22%3A%22such%22%7D"
    return world.listed(asked, "snapshots", version, as_="member") == []


@probe(23)
def _delete_takes_force(world: World, version: str) -> bool:
    """A member may not force; before, the word means nothing, and the volume is not there."""
    volume = world.api.volume()
    answer = world.api.delete(f"/v3/volumes/{volume['id']}?force=true", version=version)
    if answer.status_code == 202:
        wait_gone(world.api, f"/v3/volumes/{volume['id']}")
        return False
    assert answer.status_code == 403
    good(world.api.delete(f"/v3/volumes/{volume['id']}"), 202)
    return True


@probe(24)
def _workers_cleanup(world: World, version: str) -> bool:
    answer = world.api.post("/v3/workers/cleanup", {}, version=version, as_="admin")
    return bool(answer.status_code == 202)


@probe(26)
def _freeze_takes_a_cluster(world: World, version: str) -> bool:
    wanted = {"cluster": "nowhere@pool"}
    answer = world.api.put("/v3/os-services/freeze", wanted, version=version, as_="admin")
    return "There is no cluster" in answer.text


@probe(27)
def _attachments(world: World, version: str) -> bool:
    return world.there("/attachments", version)


@probe(28)
def _pool_filters(world: World, version: str) -> bool:
    return world.listed("/scheduler-stats/get_pools?name=none", "pools", version) == []


@probe(30)
def _snapshots_sorted_by_name(world: World, version: str) -> bool:
    return world.there("/snapshots?sort=name:asc", version, as_="member")


@probe(31)
def _unknown_filters(world: World, version: str) -> bool:
    return world.get("/volumes?nonsense=1", version, as_="member").status_code == 400


@probe(32)
def _log_levels(world: World, version: str) -> bool:
    answer = world.api.put("/v3/os-services/get-log", {}, version=version, as_="admin")
    return bool(answer.status_code == 200)


@probe(33)
def _resource_filters(world: World, version: str) -> bool:
    return world.there("/resource_filters", version)


@probe(34)
def _like_filters(world: World, version: str) -> bool:
    found = world.listed(f"/volumes?name~={world.volume['name'][:4]}", "volumes", version)
    return world.volume["id"] in {each["id"] for each in found}


@probe(35)
def _pools_by_type(world: World, version: str) -> bool:
    return world.get("/scheduler-stats/get_pools?volume_type=none", version).status_code == 404


@probe(36)
def _metadata_in_the_summary(world: World, version: str) -> bool:
    return "metadata" in world.shown("/volumes/summary", "volume-summary", version)


@probe(39)
def _limits_of_a_project(world: World, version: str) -> bool:
    project = f"some-{world.api.mark}"
    world.api.put(f"/v3/os-quota-sets/{project}", {"quota_set": {"volumes": 77}}, as_="admin")
    told = world.shown(f"/limits?project_id={project}", "limits", version)
    return bool(told["absolute"]["maxTotalVolumes"] == 77)


@probe(40)
def _revert(world: World, version: str) -> bool:
    answer = world.act(version, "revert", {"snapshot_id": NOBODY})
    assert answer.status_code in (400, 404)
    return "not supported on this method" not in answer.text


@probe(41)
def _user_of_snapshots(world: World, version: str) -> bool:
    return "user_id" in world.shown(f"/snapshots/{world.snapshot['id']}", "snapshot", version)


@probe(42)
def _extend_in_use(world: World, version: str) -> bool:
    volume = world.api.volume()
    path = f"/v3/volumes/{volume['id']}"
    attached = {"volume_uuid": volume["id"], "instance_uuid": NOBODY, "connector": CONNECTOR}
    made = good(world.api.post("/v3/attachments", {"attachment": attached}))["attachment"]
    good(world.api.post(f"/v3/attachments/{made['id']}/action", {"os-complete": None}), 204)
    wanted = {"os-extend": {"new_size": 2}}
    answer = world.api.post(f"{path}/action", wanted, version=version)
    if answer.status_code == 202:
        world.api.wait(path, "volume", "in-use")
    good(world.api.delete(f"/v3/attachments/{made['id']}"))
    good(world.api.delete(path), 202)
    return bool(answer.status_code == 202)


@probe(44)
def _completion_of_attachments(world: World, version: str) -> bool:
    answer = world.api.post(f"/v3/attachments/{NOBODY}/action", {"os-complete": None}, version=version)
    assert answer.status_code == 404
    return "not supported on this method" not in answer.text


@probe(45)
def _counts(world: World, version: str) -> bool:
    return "count" in good(world.get("/volumes?with_count=true", version))


@probe(46)
def _snapshot_that_an_image_stands_for(world: World, version: str) -> bool:
    """Where the image is followed, its snapshot is what is missing."""
    mapping = [{"boot_index": 0, "source_type": "snapshot", "snapshot_id": NOBODY}]
    image = str(uuid.uuid4())
    record = {
        "id": image,
        "name": "server",
        "owner": world.api.project_id,
        "disk_format": "raw",
        "size": 0,
        "properties": {"block_device_mapping": json.dumps(mapping)},
    }
    images = world.api.service.state_dir / "images"
    images.mkdir(exist_ok=True)
    (images / f"{image}.json").write_text(json.dumps(record))
    answer = world.api.post("/v3/volumes", {"volume": {"size": 1, "imageRef": image}}, version=version)
    return answer.status_code == 404 and NOBODY in answer.text


@probe(47)
def _from_a_backup(world: World, version: str) -> bool:
    wanted = {"volume": {"size": 1, "backup_id": NOBODY}}
    answer = world.api.post("/v3/volumes", wanted, version=version)
    if answer.status_code == 202:
        path = f"/v3/volumes/{answer.json()['volume']['id']}"
        world.api.wait(path, "volume")
        good(world.api.delete(path), 202)
    return bool(answer.status_code == 404)


@probe(48)
def _shared_targets(world: World, version: str) -> bool:
    told = world.shown(f"/volumes/{world.volume['id']}", "volume", version)
    return {"shared_targets", "service_uuid"} <= set(told)


@probe(49)
def _state_of_back_ends(world: World, version: str) -> bool:
    services = world.listed("/os-services?binary=cinder-volume", "services", version)
    return "backend_state" in services[0]


@probe(52)
def _types_by_extra_specs(world: World, version: str) -> bool:
    asked = "/types?extra_specs=%7B%22multiattach%22%3A%22%3Cis%3E%20True%22%7D"
    return world.listed(asked, "volume_types", version, as_="member") == []


@probe(53)
def _strict_bodies(world: World, version: str) -> bool:
    answer = world.api.post("/v3/volumes", {"volume": {"size": 1, "nonsense": 1}}, version=version)
    if answer.status_code == 202:
        path = f"/v3/volumes/{answer.json()['volume']['id']}"
        world.api.wait(path, "volume")
        good(world.api.delete(path), 202)
    return bool(answer.status_code == 400)


@probe(54)
def _mode_of_attachments(world: World, version: str) -> bool:
    wanted = {"attachment": {"volume_uuid": NOBODY, "instance_uuid": NOBODY, "mode": "nonsense"}}
    answer = world.api.post("/v3/attachments", wanted, version=version)
    return answer.status_code == 400 and "nonsense" in answer.text


def _transfer(world: World, version: str) -> dict[str, Any]:
    """A transfer, as a version shows it."""
    volume = world.api.volume()
    made = good(world.api.post("/v3/volume-transfers", {"transfer": {"volume_id": volume["id"]}}), 202)
    path = f"/volume-transfers/{made['transfer']['id']}"
    told = world.shown(path, "transfer", version, as_="member")
    good(world.api.delete(f"/v3{path}"), 202)
    good(world.api.delete(f"/v3/volumes/{volume['id']}"), 202)
    return told


@probe(55)
def _transfers_with_snapshots(world: World, version: str) -> bool:
    return "no_snapshots" in _transfer(world, version)


@probe(57)
def _history_of_transfers(world: World, version: str) -> bool:
    return {"source_project_id", "destination_project_id", "accepted"} <= set(_transfer(world, version))


@probe(59)
def _paging_of_transfers(world: World, version: str) -> bool:
    return world.get(f"/volume-transfers?marker={NOBODY}", version).status_code == 404


@probe(60)
def _times_in_filters(world: World, version: str) -> bool:
    return world.get("/volumes?created_at=about:2001-01-01T00:00:00", version).status_code == 400


@probe(61)
def _cluster_of_volumes(world: World, version: str) -> bool:
    return "cluster_name" in world.shown(f"/volumes/{world.volume['id']}", "volume", version)


@probe(62)
def _default_types(world: World, version: str) -> bool:
    return world.there("/default-types", version)


@probe(63)
def _type_of_volumes(world: World, version: str) -> bool:
    return "volume_type_id" in world.shown(f"/volumes/{world.volume['id']}", "volume", version)


@probe(65)
def _what_consumes_quota(world: World, version: str) -> bool:
    return "consumes_quota" in world.shown(f"/volumes/{world.volume['id']}", "volume", version)


@probe(66)
def _snapshots_in_use(world: World, version: str) -> bool:
    """From here on `force` is neither needed nor taken when it is false."""
    wanted = {"snapshot": {"volume_id": world.volume["id"], "force": False}}
    answer = world.api.post("/v3/snapshots", wanted, version=version)
    if answer.status_code == 202:
        path = f"/v3/snapshots/{answer.json()['snapshot']['id']}"
        world.api.wait(path, "snapshot")
        good(world.api.delete(path), 202)
        wait_gone(world.api, path)
    return bool(answer.status_code == 400)


@probe(68)
def _reimage(world: World, version: str) -> bool:
    answer = world.act(version, "os-reimage", {"image_id": "nonsense"})
    return bool(answer.status_code == 400)


@probe(71)
def _completion_of_extends(world: World, version: str) -> bool:
    answer = world.act(version, "os-extend_volume_completion", {"error": False}, as_="admin")
    return answer.status_code == 400 and "has no extend" in answer.text


# --- the edges -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("minor", sorted(PROBES))
def test_it_begins_there(world: World, minor: int) -> None:
    seen = PROBES[minor]
    assert not seen(world, f"3.{minor - 1}"), TABLE[minor].sentence
    assert seen(world, f"3.{minor}"), TABLE[minor].sentence
    if minor != MAXIMUM:
        assert seen(world, f"3.{MAXIMUM}"), TABLE[minor].sentence


def test_every_row_is_probed_or_has_its_reason() -> None:
    waiting = {row.minor for row in TABLE.values() if row.where == "later"}
    assert not waiting & PROBES.keys()
    assert waiting | PROBES.keys() | NOT_SEEN.keys() == set(TABLE)
