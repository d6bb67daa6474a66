"""A whole service on Cinder's own RBD driver: what its users and its operators see of the bridge."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lapilli.store import tables
from tests.ceph.cluster import Cluster
from tests.ceph.serving import attach, client, io, serving
from tests.contract.drivers import bridged
from tests.service import Api, Service, until

pytestmark = pytest.mark.ceph
POOL = "bridged-service"
CONNECTOR = {"host": "hypervisor", "ip": "127.0.0.1", "initiator": "iqn.hypervisor"}
SECRET = "never-to-be-seen-7731"


@pytest.fixture(scope="module")
def bridge(ceph: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with one back end: Cinder's driver on a pool of its own."""
    ceph.pool(POOL)
    own = {"volume_driver": "cinder", "rbd_pool": POOL, "san_password": SECRET}
    with serving(tmp_path_factory.mktemp("bridge") / "state", {**bridged.options(ceph), **own}) as made:
        yield made


@pytest.fixture
def api(bridge: Service) -> Api:
    return client(bridge)


def _children(service: Service) -> list[int]:
    """The processes in which drivers of Cinder run, of this service."""
    mine, found = str(service.state_dir), []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            command, files = (
                (each / "cmdline").read_bytes(),
                [os.readlink(f) for f in (each / "fd").iterdir()],
            )
        except OSError:
            continue
        if b"cinder_host.py" in command and any(name.startswith(mine) for name in files):
            found.append(int(each.name))
    return found


def test_a_volume_lives_its_life(api: Api, ceph: Cluster) -> None:
    volume = api.volume(1)
    held = attach(api, volume, CONNECTOR)
    info = held["connection_info"]
    assert (info["driver_volume_type"], info["name"]) == ("rbd", f"{POOL}/volume-{volume['id']}")
    assert (info["auth_username"], info["ports"]) == (ceph.user, [str(ceph.port)])
    assert (info["secret_uuid"], info["volume_id"]) == (ceph.fsid, volume["id"])
    io(ceph, info["name"], "write -P 7 1M 64k")
    assert api.post(f"/v3/attachments/{held['id']}/action", {"os-complete": {}}).status_code == 204
    frozen = api.snapshot(volume["id"])
    io(ceph, info["name"], "write -P 8 1M 64k")
    assert api.delete(f"/v3/attachments/{held['id']}").status_code == 200
    copy = api.volume(2, snapshot_id=frozen["id"])
    clone = api.volume(1, source_volid=volume["id"])
    for made, content in ((copy, 7), (clone, 8)):
        assert "verification failed" not in io(
            ceph, f"{POOL}/volume-{made['id']}", f"read -P {content} 1M 64k"
        )
    assert f"{2 << 30}" in ceph.rbd("info", f"{POOL}/volume-{copy['id']}", "--format", "json")
    assert api.delete(f"/v3/snapshots/{frozen['id']}").status_code == 202
    api.wait_gone(f"/v3/snapshots/{frozen['id']}", 60)
    for each in (copy, clone, volume):
        assert api.delete(f"/v3/volumes/{each['id']}").status_code == 202
        api.wait_gone(f"/v3/volumes/{each['id']}", 60)


def test_limits_of_a_type_are_kept_by_the_back_end(api: Api, ceph: Cluster) -> None:
    """The driver is told of the type, when a volume is made and when it gets another type."""

    def limit(volume: dict[str, Any]) -> str:
        told = ceph.rbd("config", "image", "list", f"{POOL}/volume-{volume['id']}", "--format", "json")
        (found,) = [each for each in json.loads(told) if each["name"] == "rbd_qos_iops_limit"]
        return str(found["value"])

    specs = {"name": f"slow-{api.mark}", "consumer": "back-end", "total_iops_sec": "450"}
    qos = api.post("/v3/qos-specs", {"qos_specs": specs}, as_="admin").json()["qos_specs"]["id"]
    kinds = []
    for name in (f"limited-{api.mark}", f"unlimited-{api.mark}"):
        answer = api.post("/v3/types", {"volume_type": {"name": name}}, as_="admin")
        kinds.append(answer.json()["volume_type"])
    answer = api.get(f"/v3/qos-specs/{qos}/associate?vol_type_id={kinds[0]['id']}", as_="admin")
    assert answer.status_code == 202
    volume = api.volume(1, volume_type=kinds[0]["name"])
    assert limit(volume) == "450"
    for kind, wanted in ((kinds[1], "0"), (kinds[0], "450")):
        body = {"os-retype": {"new_type": kind["name"], "migration_policy": "never"}}
        assert api.post(f"/v3/volumes/{volume['id']}/action", body).status_code == 202
        changed = api.wait(f"/v3/volumes/{volume['id']}", "volume")
        assert (changed["volume_type"], limit(volume)) == (kind["name"], wanted)
    assert api.delete(f"/v3/volumes/{volume['id']}").status_code == 202
    api.wait_gone(f"/v3/volumes/{volume['id']}", 60)


def test_an_image_becomes_a_volume_and_a_volume_an_image(api: Api, ceph: Cluster, tmp_path: Path) -> None:
    picture = tmp_path / "picture.raw"
    picture.write_bytes(bytes(1 << 20) + b"\x06" * (1 << 20))
    words = ("image", "add", str(picture), "--name", "picture", "--disk-format", "raw")
    done = subprocess.run(api.service.command(*words), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    volumes = [api.volume(1, imageRef=done.stdout.split()[-1]) for _ in range(2)]  # of a kept copy at last
    for each in volumes:
        io(ceph, f"{POOL}/volume-{each['id']}", "read -P 6 1M 1M")
    wanted = {"image_name": "again", "disk_format": "qcow2", "container_format": "bare"}
    path = f"/v3/volumes/{volumes[0]['id']}"
    answer = api.post(f"{path}/action", {"os-volume_upload_image": wanted})
    assert answer.status_code == 202, answer.text
    api.wait(path, "volume")
    again = answer.json()["os-volume_upload_image"]["image_id"]
    volumes.append(api.volume(1, imageRef=again))
    io(ceph, f"{POOL}/volume-{volumes[-1]['id']}", "read -P 6 1M 1M")
    for each in volumes:
        assert api.delete(f"/v3/volumes/{each['id']}").status_code == 202
        api.wait_gone(f"/v3/volumes/{each['id']}", 60)


def test_the_pool_is_as_the_driver_tells(api: Api) -> None:
    (pool,) = api.get("/v3/scheduler-stats/get_pools?detail=true", as_="admin").json()["pools"]
    told = pool["capabilities"]
    assert (told["storage_protocol"], told["vendor_name"]) == ("ceph", "Open Source")
    assert 0 < told["free_capacity_gb"] <= told["total_capacity_gb"] < 100


def test_a_driver_that_dies_is_started_again(api: Api, bridge: Service, ceph: Cluster) -> None:
    (first,) = _children(bridge)
    before = set(ceph.rbd("ls", POOL).split())
    os.kill(first, signal.SIGKILL)
    volume = api.volume(1)
    assert len(set(ceph.rbd("ls", POOL).split()) - before) == 1
    (second,) = _children(bridge)
    assert second != first
    assert api.delete(f"/v3/volumes/{volume['id']}").status_code == 202
    api.wait_gone(f"/v3/volumes/{volume['id']}", 60)


def test_an_array_of_somebody_elses_volumes_is_taken_over(api: Api, ceph: Cluster) -> None:
    """As the images of another service would be: found, renamed, used, and let go again."""
    ceph.rbd("create", f"{POOL}/volume-of-old", "--size", "1G")
    io(ceph, f"{POOL}/volume-of-old", "write -P 5 1M 64k")
    host = api.get("/v3/scheduler-stats/get_pools", as_="admin").json()["pools"][0]["name"]
    found = api.get(f"/v3/manageable_volumes?host={host}", as_="admin").json()["manageable-volumes"]
    (mine,) = [each for each in found if each["reference"] == {"source-name": "volume-of-old"}]
    assert mine["safe_to_manage"], mine
    body = {"host": host, "ref": {"source-name": "volume-of-old"}}
    answer = api.post("/v3/manageable_volumes", {"volume": body}, as_="admin")
    assert answer.status_code == 202, answer.text
    path = f"/v3/volumes/{answer.json()['volume']['id']}"
    managed = api.wait(path, "volume")
    assert managed["size"] == 1
    io(ceph, f"{POOL}/volume-{managed['id']}", "read -P 5 1M 64k")
    assert api.post(f"{path}/action", {"os-unmanage": {}}, as_="admin").status_code == 202
    api.wait_gone(path)
    assert f"unmanaged-{managed['id']}" in ceph.rbd("ls", POOL)
    ceph.rbd("remove", f"{POOL}/unmanaged-{managed['id']}")


def test_a_service_killed_while_the_array_works_carries_on(own_service: Service) -> None:
    """What the array had made, and the driver could not tell any more, goes with the volume."""
    array = own_service.state_dir.parent / "array"
    array.mkdir()
    section = {
        "volume_driver": "cinder",
        "target_helper": "cinder",
        "cinder_driver": "lapilli_tests_array.ArrayDriver",
        "cinder_python": bridged.python(),
        "array_directory": array,
    }
    own_service.config = {"DEFAULT": {"enabled_backends": "array"}, "array": section}
    own_service.start()
    api = Api(own_service)
    until(lambda: "#vast" in api.get("/v3/scheduler-stats/get_pools", as_="admin").text, 60)
    (array / "hang").touch()
    made = api.post("/v3/volumes", {"volume": {"size": 1}}).json()["volume"]
    until(lambda: (array / "objects.json").exists())
    own_service.kill()
    (array / "hang").unlink()
    own_service.start()
    path = f"/v3/volumes/{made['id']}"
    api.wait(path, "volume", seconds=60)
    held = attach(api, made, CONNECTOR)
    assert held["connection_info"]["auth_password"]
    assert held["connection_info"]["auth_password"] not in own_service.log.read_text()
    assert api.delete(f"/v3/attachments/{held['id']}").status_code == 200
    assert api.delete(path).status_code == 202
    api.wait_gone(path)
    assert json.loads((array / "objects.json").read_text()) == {}


def test_no_secret_of_its_section_is_told(bridge: Service) -> None:
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert SECRET.encode() not in each.read_bytes()
        except OSError:
            continue
    assert SECRET not in bridge.log.read_text()
    for each in (bridge.state_dir / "cinder-ceph").rglob("*"):
        assert not each.is_file() or SECRET.encode() not in each.read_bytes(), each


def test_nothing_is_left_running_or_lying(bridge: Service, ceph: Cluster) -> None:
    children = _children(bridge)
    assert len(children) == 1
    bridge.kill()
    until(lambda: not _children(bridge), 10)
    assert not list((bridge.state_dir / "cinder-ceph").glob("scratch-*"))
    # of a clone's source, Cinder 29.0.0 keeps the image, even after the clone
    left = {name for name in ceph.rbd("ls", POOL).split() if not name.endswith(".deleted")}
    with bridge.records() as connection:
        kept = connection.execute(sa.select(tables.cached_images.c.id)).scalars().all()
    assert left == {f"volume-{each}" for each in kept}, "the copies of images that the pool keeps"
