"""A whole service on a Ceph pool: what its users see, and what compute hosts are told and do with it."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lapilli.adapters.ceph.access import Login
from lapilli.adapters.ceph.program import Program
from tests.ceph.cluster import Cluster
from tests.ceph.serving import attach, client, io, serving
from tests.contract.drivers import bridged
from tests.service import Api, Service

POOL = "served"
SECRET = str(uuid.uuid4())
CONNECTOR = {"host": "hypervisor", "ip": "127.0.0.1", "do_local_attach": False}


@pytest.fixture(scope="module")
def served(ceph: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with one back end, whose target is not named."""
    ceph.pool(POOL)
    section = {
        "volume_driver": "rbd",
        "rbd_pool": POOL,
        "rbd_ceph_conf": ceph.conf,
        "rbd_user": ceph.user,
        "rbd_secret_uuid": SECRET,
    }
    with serving(tmp_path_factory.mktemp("served") / "state", section) as made:
        yield made


@pytest.fixture
def api(served: Service) -> Api:
    return client(served)


def _attached(api: Api, volume: dict[str, Any]) -> dict[str, Any]:
    found = attach(api, volume, CONNECTOR)
    assert api.post(f"/v3/attachments/{found['id']}/action", {"os-complete": {}}).status_code == 204
    return found


def _detach(api: Api, attachment: dict[str, Any], volume: dict[str, Any]) -> None:
    assert api.delete(f"/v3/attachments/{attachment['id']}").status_code == 200
    api.wait(f"/v3/volumes/{volume['id']}", "volume")


def _delete(api: Api, *paths: str) -> None:
    for path in paths:
        assert api.delete(path).status_code == 202
        api.wait_gone(path)


def _images(ceph: Cluster) -> list[str]:
    ways = Program(Login(str(ceph.conf), "ceph", None, 0))
    return [*ways.names(POOL), *(each.name for each in ways.trash(POOL))]


def test_compute_is_told_what_nova_and_os_brick_expect(api: Api, ceph: Cluster) -> None:
    volume = api.volume(1)
    attachment = _attached(api, volume)
    info = attachment["connection_info"]
    assert info["driver_volume_type"] == "rbd"
    wanted = {
        "name": f"{POOL}/volume-{volume['id']}",
        "hosts": ["127.0.0.1"],
        "ports": [str(ceph.port)],
        "cluster_name": "ceph",
        "auth_enabled": True,
        "auth_username": ceph.user,
        "secret_type": "ceph",
        "secret_uuid": SECRET,
        "volume_id": volume["id"],
        "discard": True,
        "access_mode": "rw",
    }
    assert {key: info[key] for key in wanted} == wanted
    assert "keyring" not in info
    key = ceph.keyring.read_text().split("key = ")[1].split()[0]
    assert key not in json.dumps(attachment)
    assert key not in api.service.log.read_text()
    _detach(api, attachment, volume)
    _delete(api, f"/v3/volumes/{volume['id']}")


_BRICK = """
import json, sys
from os_brick.initiator import connector
info = json.load(sys.stdin)
made = connector.InitiatorConnector.factory("RBD", None, do_local_attach=False)
device = made.connect_volume(info["data"])
handle = device["path"]
handle.seek(1 << 20)
handle.write(b"written by os-brick")
handle.flush()
handle.seek(0, 2)
print(handle.tell())
made.disconnect_volume(info["data"], device)
"""


def test_os_brick_attaches_and_qemu_reads_what_it_wrote(api: Api, ceph: Cluster) -> None:
    volume = api.volume(1)
    attachment = _attached(api, volume)
    info = attachment["connection_info"]
    # as Cinder and Nova hand it on: what describes the driver beside the data
    told = {"driver_volume_type": info["driver_volume_type"], "data": info}
    done = subprocess.run(
        [bridged.python(), "-c", _BRICK], input=json.dumps(told), capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (0, str(1 << 30)), done.stderr
    written = io(ceph, info["name"], "read -v 1M 32")
    assert "written.by.os.br" in written
    _detach(api, attachment, volume)
    _delete(api, f"/v3/volumes/{volume['id']}")


def test_a_volume_lives_its_life(api: Api, ceph: Cluster) -> None:
    volume = api.volume(1)
    attachment = _attached(api, volume)
    name = attachment["connection_info"]["name"]
    io(ceph, name, "write -P 7 0 1M", "flush")
    snapshot = api.snapshot(volume["id"], force=True)  # while it is in use
    io(ceph, name, "write -P 8 0 1M", "flush")
    _detach(api, attachment, volume)
    copy = api.volume(2, snapshot_id=snapshot["id"])
    clone = api.volume(1, source_volid=volume["id"])
    io(ceph, f"{POOL}/volume-{copy['id']}", "read -P 7 0 1M", "read -P 0 1G 1M")
    io(ceph, f"{POOL}/volume-{clone['id']}", "read -P 8 0 1M")
    path = f"/v3/volumes/{volume['id']}"
    answer = api.post(f"{path}/action", {"revert": {"snapshot_id": snapshot["id"]}})
    assert answer.status_code == 202, answer.text
    api.wait(path, "volume")
    io(ceph, name, "read -P 7 0 1M")
    answer = api.post(f"{path}/action", {"os-extend": {"new_size": 3}})
    assert answer.status_code == 202, answer.text
    assert api.wait(path, "volume")["size"] == 3
    io(ceph, name, "read -P 0 2G 1M")
    # what others are cloned of goes first, and stays readable for them
    _delete(api, f"/v3/snapshots/{snapshot['id']}", path)
    io(ceph, f"{POOL}/volume-{copy['id']}", "read -P 7 0 1M")
    _delete(api, f"/v3/volumes/{copy['id']}", f"/v3/volumes/{clone['id']}")
    assert _images(ceph) == []


def test_a_volume_grows_under_its_guest(api: Api, ceph: Cluster) -> None:
    volume = api.volume(1)
    attachment = _attached(api, volume)
    path = f"/v3/volumes/{volume['id']}"
    assert api.post(f"{path}/action", {"os-extend": {"new_size": 2}}).status_code == 202
    assert api.wait(path, "volume", "in-use")["size"] == 2
    io(ceph, attachment["connection_info"]["name"], "write -P 9 1500M 1M", "read -P 9 1500M 1M")
    _detach(api, attachment, volume)
    _delete(api, path)


def test_volumes_of_an_image(api: Api, ceph: Cluster, tmp_path: Path) -> None:
    content = tmp_path / "disk.raw"
    content.write_bytes(os.urandom(1 << 20) + bytes(15 << 20))
    added = subprocess.run(
        api.service.command("image", "add", str(content), "--name", "disk"),
        capture_output=True,
        text=True,
    )
    assert added.returncode == 0, added.stderr
    for _ in range(2):
        volume = api.volume(1, imageRef="disk")
        copied = tmp_path / "copied.raw"
        where = f"rbd:{POOL}/volume-{volume['id']}:conf={ceph.conf}:id={ceph.user}"
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", where, copied], check=True)
        with copied.open("rb") as file:
            assert file.read(16 << 20) == content.read_bytes()
        told = json.loads(ceph.rbd("info", f"{POOL}/volume-{volume['id']}", "--format", "json"))
        assert "parent" in told, "it is a clone of the image that is kept in the pool"
        _delete(api, f"/v3/volumes/{volume['id']}")


def test_what_is_in_the_pool_is_taken_over_and_let_go(api: Api, ceph: Cluster) -> None:
    ceph.rbd("create", f"{POOL}/somebodys", "--size", "1500M")
    io(ceph, f"{POOL}/somebodys", "write -P 5 1400M 1M", "flush")
    host = f"{api.get('/v3/scheduler-stats/get_pools', as_='admin').json()['pools'][0]['name']}"
    body = {"volume": {"host": host, "ref": {"source-name": "somebodys"}, "name": "taken"}}
    answer = api.post("/v3/manageable_volumes", body, as_="admin")
    assert answer.status_code == 202, answer.text
    path = f"/v3/volumes/{answer.json()['volume']['id']}"
    volume = api.wait(path, "volume")
    assert volume["size"] == 2
    io(ceph, f"{POOL}/volume-{volume['id']}", "read -P 5 1400M 1M")
    assert api.post(f"{path}/action", {"os-unmanage": {}}, as_="admin").status_code == 202
    api.wait_gone(path)
    assert f"unmanaged-{volume['id']}" in _images(ceph)
    assert not {"somebodys", f"volume-{volume['id']}"} & set(_images(ceph))
    ceph.rbd("rm", "--no-progress", f"{POOL}/unmanaged-{volume['id']}")


def test_the_pool_is_told_to_operators(api: Api) -> None:
    (pool,) = api.get("/v3/scheduler-stats/get_pools?detail=true", as_="admin").json()["pools"]
    told = pool["capabilities"]
    assert told["storage_protocol"] == "ceph"
    assert told["volume_backend_name"] == "ceph"
    assert 10 < told["free_capacity_gb"] <= told["total_capacity_gb"] <= 20


def test_a_volume_of_an_image_in_the_same_cluster_is_a_clone(api: Api, ceph: Cluster, tmp_path: Path) -> None:
    content = tmp_path / "kept.raw"
    content.write_bytes(b"image" + bytes((3 << 20) - 5))
    image_id = str(uuid.uuid4())
    ceph.rbd("import", "--no-progress", content, f"images/{image_id}")
    ceph.rbd("snap", "create", "--no-progress", f"images/{image_id}@snap")
    record = {
        "id": image_id,
        "name": "kept",
        "status": "active",
        "visibility": "public",
        "disk_format": "raw",
        "container_format": "bare",
        "size": 3 << 20,
        "virtual_size": 3 << 20,
        "locations": [f"rbd://{ceph.fsid}/images/{image_id}/snap"],
    }
    (api.service.state_dir / "images" / f"{image_id}.json").write_text(json.dumps(record))
    volume = api.volume(1, imageRef=image_id)
    told = json.loads(ceph.rbd("info", f"{POOL}/volume-{volume['id']}", "--format", "json"))
    assert told["parent"]["image"] == image_id, "its content is nowhere else, and was not copied"
    io(ceph, f"{POOL}/volume-{volume['id']}", "read -P 0x69 0 1", "read -P 0 4M 1M")
    assert volume["bootable"] == "true"
    _delete(api, f"/v3/volumes/{volume['id']}")
