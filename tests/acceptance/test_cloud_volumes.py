"""Volumes from images of a real Glance, and back to it, for users of a real Keystone."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from lapilli.domain.model import Operation
from lapilli.store import tables
from tests.clouds.cloud import Cloud
from tests.service import Service, until

MIB = 1 << 20
CONTENT = b"what was on the disk" + bytes(3 * MIB)


@pytest.fixture(scope="module")
def lapilli(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service, in the cloud."""
    config: dict[str, dict[str, Any]] = {
        "DEFAULT": {
            "auth_strategy": "keystone",
            "image_source": "glance",
            "glance_num_retries": 1,
        },
        "keystone_authtoken": {**cloud.authentication(), "interface": "public"},
    }
    service = Service(tmp_path_factory.mktemp("lapilli"), config=config)
    service.start()
    yield service
    service.end()


@pytest.fixture(scope="module")
def demo(cloud: Cloud) -> Iterator[Any]:
    with cloud.connect("demo", "demo") as connection:
        yield connection


class User:
    """Calls of the service as one of the cloud's users."""

    def __init__(self, service: Service, connection: Any) -> None:
        token = {"X-Auth-Token": connection.auth_token, "OpenStack-API-Version": "volume 3.71"}
        token["Lapilli-Extensions"] = "fault"
        self.client = httpx.Client(base_url=f"{service.url}/v3", headers=token, timeout=90)

    def create(self, **wanted: Any) -> httpx.Response:
        return self.client.post("/volumes", json={"volume": {"size": 1, **wanted}})

    def act(self, volume_id: str, action: str, **wanted: Any) -> httpx.Response:
        return self.client.post(f"/volumes/{volume_id}/action", json={action: wanted})

    def volume(self, volume_id: str) -> dict[str, Any]:
        return dict(self.client.get(f"/volumes/{volume_id}").json()["volume"])

    def settled(self, answer: httpx.Response, status: str = "available") -> dict[str, Any]:
        """The volume that was accepted, once it is done."""
        assert answer.status_code == 202, answer.text
        identifier = answer.json()["volume"]["id"]
        until(lambda: self.volume(identifier)["status"] not in ("creating", "downloading", "uploading"), 90)
        found = self.volume(identifier)
        assert found["status"] == status, found
        return found

    def gone(self, path: str) -> None:
        assert self.client.delete(path).status_code == 202
        until(lambda: self.client.get(path).status_code == 404, 60)

    def count(self) -> int:
        return int(self.client.get("/volumes/summary").json()["volume-summary"]["total_count"])


@pytest.fixture
def user(lapilli: Service, demo: Any) -> User:
    return User(lapilli, demo)


@pytest.fixture
def image(demo: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes images of the user's."""
    made: list[str] = []

    def make(name: str = "disk", **facts: Any) -> Any:
        path = tmp_path / "disk.raw"
        path.write_bytes(CONTENT)
        facts = {"disk_format": "raw", "container_format": "bare", **facts}
        found = demo.image.create_image(name, filename=str(path), wait=True, allow_duplicates=True, **facts)
        made.append(found.id)
        return demo.image.get_image(found.id)

    yield make
    for each in made:
        demo.image.delete_image(each)


def on_disk(service: Service, volume_id: str) -> bytes:
    (path,) = service.state_dir.rglob(f"volume-{volume_id}*")
    with path.open("rb") as file:
        return file.read(len(CONTENT))


def rubbish(service: Service) -> list[str]:
    return [path.name for path in (service.state_dir / "conversion").rglob("*")]


def test_there_and_back_again(lapilli: Service, user: User, demo: Any, image: Callable[..., Any]) -> None:
    """From an image by its name to a volume, its snapshot and its clone, and to another image."""
    name = f"disk {uuid.uuid4().hex}"
    source = image(name, min_ram=64, os_distro="debian", hw_disk_bus="scsi")
    volume = user.settled(user.create(imageRef=name))
    assert volume["bootable"] == "true"
    assert on_disk(lapilli, volume["id"]) == CONTENT
    kept = volume["volume_image_metadata"]
    expected = {"image_id": source.id, "image_name": name, "os_distro": "debian", "hw_disk_bus": "scsi"}
    expected |= {"disk_format": "raw", "container_format": "bare", "min_ram": "64", "min_disk": "0"}
    expected |= {"size": str(len(CONTENT)), "checksum": source.checksum}
    assert expected.items() <= kept.items()
    clone = user.settled(user.create(source_volid=volume["id"]))
    assert clone["volume_image_metadata"] == kept
    assert (clone["bootable"], on_disk(lapilli, clone["id"])) == ("true", CONTENT)
    answer = user.client.post("/snapshots", json={"snapshot": {"volume_id": volume["id"]}})
    snapshot = f"/snapshots/{answer.json()['snapshot']['id']}"
    until(lambda: user.client.get(snapshot).json()["snapshot"]["status"] == "available", 60)
    copy = user.settled(user.create(snapshot_id=snapshot.rpartition("/")[2]))
    assert copy["volume_image_metadata"] == kept
    wanted = {"image_name": "made of a volume", "disk_format": "qcow2", "container_format": "bare"}
    answer = user.act(copy["id"], "os-volume_upload_image", **wanted, visibility="shared", protected=True)
    assert answer.status_code == 202, answer.text
    told = answer.json()["os-volume_upload_image"]
    until(lambda: user.volume(copy["id"])["status"] == "available", 120)
    uploaded = demo.image.get_image(told["image_id"])
    assert (uploaded.status, uploaded.owner_id) == ("active", demo.current_project_id)
    assert (uploaded.visibility, uploaded.is_protected, uploaded.disk_format) == ("shared", True, "qcow2")
    assert (uploaded.min_disk, uploaded.name) == (1, "made of a volume")
    assert uploaded.to_dict()["os_distro"] == "debian"
    again = user.settled(user.create(imageRef=uploaded.id))
    assert on_disk(lapilli, again["id"]) == CONTENT
    assert rubbish(lapilli) == []
    demo.image.update_image(uploaded, is_protected=False)
    demo.image.delete_image(uploaded)
    user.gone(snapshot)
    for each in (volume, clone, copy, again):
        user.gone(f"/volumes/{each['id']}")


def test_an_image_chooses_the_type(
    lapilli: Service, cloud: Cloud, user: User, image: Callable[..., Any]
) -> None:
    name = f"kind-{uuid.uuid4().hex[:8]}"
    with cloud.connect() as admin:
        User(lapilli, admin).client.post("/types", json={"volume_type": {"name": name}})
    source = image(cinder_img_volume_type=name)
    volume = user.settled(user.create(imageRef=source.id))
    assert volume["volume_type"] == name
    user.gone(f"/volumes/{volume['id']}")


def test_what_cannot_be_made_is_refused_at_once(
    user: User, cloud: Cloud, demo: Any, image: Callable[..., Any]
) -> None:
    before = user.count()
    queued = demo.image.create_image(f"queued-{uuid.uuid4().hex}", disk_format="raw", container_format="bare")
    large, switched_off = image(min_disk=2), image()
    with cloud.connect() as admin:
        admin.image.deactivate_image(switched_off.id)
        hidden = admin.image.create_image(
            f"hidden-{uuid.uuid4().hex}", disk_format="raw", visibility="private"
        )
    for reference, words in (
        (queued.id, "its status is queued"),
        (switched_off.id, "its status is deactivated"),
        (large.id, "min_disk"),
        (hidden.id, "could not be found"),
        (str(uuid.uuid4()), "could not be found"),
    ):
        answer = user.create(imageRef=reference)
        assert answer.status_code == 400
        assert words in answer.json()["badRequest"]["message"]
    assert user.count() == before
    demo.image.delete_image(queued.id)
    with cloud.connect() as admin:
        admin.image.delete_image(hidden.id)


def test_an_upload_that_is_refused_leaves_no_image(user: User, demo: Any) -> None:
    volume = user.settled(user.create())
    before = {each.id for each in demo.image.images()}
    wanted = {"image_name": "no", "container_format": "cardboard"}
    answer = user.act(volume["id"], "os-volume_upload_image", **wanted)
    assert (answer.status_code, "container_format" in answer.text) == (400, True), answer.text
    answer = user.act(volume["id"], "os-volume_upload_image", image_name="no", visibility="public")
    assert answer.status_code == 403
    assert user.volume(volume["id"])["status"] == "available"
    assert {each.id for each in demo.image.images()} == before
    user.gone(f"/volumes/{volume['id']}")


def test_damaged_content(lapilli: Service, cloud: Cloud, user: User, image: Callable[..., Any]) -> None:
    source = image()
    stored = cloud.glance.directory / "images" / source.id
    stored.write_bytes(CONTENT[:-1] + b"!")
    volume = user.settled(user.create(imageRef=source.id), "error")
    assert "sha512 checksum" in volume["fault"]
    assert rubbish(lapilli) == []
    user.gone(f"/volumes/{volume['id']}")


def test_glance_is_away(
    lapilli: Service, cloud: Cloud, user: User, demo: Any, image: Callable[..., Any]
) -> None:
    """Calls that need it are refused, those that do not go on; what was accepted ends, and says why."""
    source, volume = image(), user.settled(user.create())
    before = user.count()
    cloud.glance.stop()
    try:
        for answer in (
            user.create(imageRef=source.id),
            user.act(volume["id"], "os-volume_upload_image", image_name="no"),
        ):
            assert answer.status_code == 503
            told = answer.json()["serviceUnavailable"]["message"]
            assert told.startswith("The image service does not answer")
        assert user.count() == before
        assert user.volume(volume["id"])["status"] == "available"
        user.settled(user.create())
    finally:
        cloud.glance.start()
    user.settled(user.create(imageRef=source.id))
    assert rubbish(lapilli) == []


def test_glance_dies_during_an_upload(lapilli: Service, cloud: Cloud, user: User, demo: Any) -> None:
    """The volume is free again, a message says why, and the image is removed once Glance is back."""
    volume = user.settled(user.create())
    answer = user.act(volume["id"], "os-volume_upload_image", image_name="lost", disk_format="raw")
    cloud.glance.kill()
    try:
        until(lambda: _reverting(lapilli, volume["id"]), 120)
    finally:
        cloud.glance.start()
    until(lambda: user.volume(volume["id"])["status"] == "available", 120)
    image_id = answer.json()["os-volume_upload_image"]["image_id"]
    assert _status(demo, image_id) is None
    messages = user.client.get("/messages").json()["messages"]
    assert any(each["resource_uuid"] == volume["id"] for each in messages)
    assert rubbish(lapilli) == []
    user.gone(f"/volumes/{volume['id']}")


def _reverting(service: Service, volume_id: str) -> bool:
    table = tables.operations
    with service.records() as connection:
        query = sa.select(table.c.state).where(table.c.resource_id == volume_id)
        return "reverting" in connection.execute(query).scalars().all()


def _status(demo: Any, image_id: str) -> str | None:
    found = demo.image.find_image(image_id, ignore_missing=True)
    return None if found is None else str(found.status)


def test_no_token_is_written_down(lapilli: Service, user: User, demo: Any, image: Callable[..., Any]) -> None:
    """Neither in the database, with its operations, nor in a log."""
    source = image()
    volume = user.settled(user.create(imageRef=source.id))
    token = demo.auth_token.encode()
    secret = str(lapilli.config["keystone_authtoken"]["password"]).encode()
    assert "token" not in Operation.__struct_fields__
    for path in lapilli.state_dir.rglob("*"):
        if path.is_file() and path.stat().st_size < 64 * MIB:
            content = path.read_bytes()
            assert token not in content, path
            assert secret not in content or path.name == "lapilli.conf", path
    user.gone(f"/volumes/{volume['id']}")
