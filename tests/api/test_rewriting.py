"""Other content for a volume, over the wire: `revert` to its newest snapshot, and `os-reimage`."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lapilli.store import tables
from tests.api.steps import a_snapshot, a_volume, fresh, good, refused
from tests.service import Service

MIB = 1 << 20
SERVER = "6d1f5f06-2f0c-4d6c-9a31-0a3c2f5a7e11"
CONNECTOR = {"initiator": "iqn.1993-08.org.debian:01:rewriting", "host": "tester"}


@pytest.fixture
def volume(api: Any) -> Iterator[dict[str, Any]]:
    with a_volume(api) as made:
        yield made


def act(api: Any, volume: dict[str, Any], name: str, value: Any, **more: Any) -> Any:
    return api.post(f"/v3/volumes/{volume['id']}/action", {name: value}, **more)


def path(api: Any, volume: dict[str, Any]) -> Path:
    return Path(api.service.state_dir, "pool", "volumes", f"volume-{volume['id']}.raw")


def write(api: Any, volume: dict[str, Any], text: bytes, at: int = 0) -> None:
    with path(api, volume).open("rb+") as file:
        file.seek(at)
        file.write(text)


def read(api: Any, volume: dict[str, Any], length: int, at: int = 0) -> bytes:
    with path(api, volume).open("rb") as file:
        file.seek(at)
        return file.read(length)


def ended(api: Any, volume: dict[str, Any], status: str = "available") -> dict[str, Any]:
    return api.wait(f"/v3/volumes/{volume['id']}", "volume", status)  # type: ignore[no-any-return]


def reset(api: Any, kind: str, identifier: str, **statuses: str) -> None:
    good(api.post(f"/v3/{kind}/{identifier}/action", {"os-reset_status": statuses}, as_="admin"), 202)


# --- revert ----------------------------------------------------------------------------------------------


def test_revert(api: Any, volume: dict[str, Any]) -> None:
    write(api, volume, b"before")
    with a_snapshot(api, volume) as snapshot:
        write(api, volume, b"after!")
        answer = act(api, volume, "revert", {"snapshot_id": snapshot["id"]})
        assert (answer.status_code, answer.content) == (202, b"")
        ended(api, volume)
        assert read(api, volume, 6) == b"before"
        assert path(api, volume).stat().st_size == 1 << 30
        assert good(api.get(f"/v3/snapshots/{snapshot['id']}"))["snapshot"]["status"] == "available"
        write(api, volume, b"again!")
        good(act(api, volume, "revert", {"snapshot_id": snapshot["id"]}), 202)
        ended(api, volume)
        assert read(api, volume, 6) == b"before"


def test_revert_begins_with_3_40(api: Any, volume: dict[str, Any]) -> None:
    with a_snapshot(api, volume) as snapshot:
        body = {"snapshot_id": snapshot["id"]}
        refused(act(api, volume, "revert", body, version="3.39"), 404)
        good(act(api, volume, "revert", body, version="3.40"), 202)
        ended(api, volume)


def test_only_to_the_newest(api: Any, volume: dict[str, Any]) -> None:
    assert "newest" in refused(act(api, volume, "revert", {"snapshot_id": str(uuid.uuid4())}), 400)
    with a_snapshot(api, volume) as first, a_snapshot(api, volume) as second:
        assert "newest" in refused(act(api, volume, "revert", {"snapshot_id": first["id"]}), 400)
        with a_volume(api) as other:
            assert "newest" in refused(act(api, other, "revert", {"snapshot_id": second["id"]}), 400)
        good(act(api, volume, "revert", {"snapshot_id": second["id"]}), 202)
        ended(api, volume)


def test_only_of_the_same_size(api: Any, volume: dict[str, Any]) -> None:
    with a_snapshot(api, volume) as snapshot:
        good(act(api, volume, "os-extend", {"new_size": 2}), 202)
        ended(api, volume)
        assert "extended" in refused(act(api, volume, "revert", {"snapshot_id": snapshot["id"]}), 400)


def test_states_that_forbid_a_revert(api: Any, volume: dict[str, Any]) -> None:
    with a_snapshot(api, volume) as snapshot:
        body = {"snapshot_id": snapshot["id"]}
        reset(api, "snapshots", snapshot["id"], status="error")
        assert "error" in refused(act(api, volume, "revert", body), 409)
        assert ended(api, volume)
        reset(api, "snapshots", snapshot["id"], status="available")
        good(act(api, volume, "os-reserve", None), 202)
        assert "attaching" in refused(act(api, volume, "revert", body), 409)
        good(act(api, volume, "os-unreserve", None), 202)
        good(act(api, volume, "os-initialize_connection", {"connector": CONNECTOR}))
        assert "connected" in refused(act(api, volume, "revert", body), 409)
        good(act(api, volume, "os-terminate_connection", {"connector": CONNECTOR}), 202)
        refused(act(api, volume, "revert", body, as_="reader"), 403)
        refused(act(api, volume, "revert", body, as_="other"), 404)
        for bad in (None, {}, {"snapshot_id": "x"}, {**body, "surprise": 1}):
            refused(act(api, volume, "revert", bad), 400)


# --- re-image --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A qcow2 image of 2 MiB that begins and ends with words."""
    directory = tmp_path_factory.mktemp("reimage")
    raw, made = directory / "raw", directory / "made.qcow2"
    raw.write_bytes(b"image!" + bytes(2 * MIB - 12) + b"!egami")
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, made], check=True)
    words = service.command("image", "add", str(made), "--name", fresh("image"))
    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return next(word for word in told.replace('"', " ").split() if len(word) == 36 and word.count("-") == 4)


def test_reimage(api: Any, volume: dict[str, Any], image: str) -> None:
    write(api, volume, b"secret")
    write(api, volume, b"secret", at=MIB)
    write(api, volume, b"secret", at=100 * MIB)
    body = {"image_id": image}
    answer = act(api, volume, "os-reimage", body)
    assert (answer.status_code, answer.content) == (202, b"")
    shown = ended(api, volume)
    assert read(api, volume, 6) == b"image!"
    assert read(api, volume, 6, at=2 * MIB - 6) == b"!egami"
    assert read(api, volume, 6, at=MIB) == read(api, volume, 6, at=100 * MIB) == bytes(6)
    assert path(api, volume).stat().st_size == 1 << 30
    assert shown["bootable"] == "true"
    assert shown["volume_image_metadata"]["image_id"] == image
    assert shown["id"] == volume["id"]


def test_reimage_begins_with_3_68(api: Any, volume: dict[str, Any], image: str) -> None:
    refused(act(api, volume, "os-reimage", {"image_id": image}, version="3.67"), 404)
    good(act(api, volume, "os-reimage", {"image_id": image}, version="3.68"), 202)
    ended(api, volume)


def test_reimage_mends_a_volume_in_error(api: Any, volume: dict[str, Any], image: str) -> None:
    reset(api, "volumes", volume["id"], status="error")
    good(act(api, volume, "os-reimage", {"image_id": image}), 202)
    api.wait(f"/v3/volumes/{volume['id']}", "volume", "available")
    assert read(api, volume, 6) == b"image!"


def test_a_reserved_volume_stays_reserved(api: Any, volume: dict[str, Any], image: str) -> None:
    body = {"attachment": {"volume_uuid": volume["id"], "instance_uuid": SERVER}}
    attachment = good(api.post("/v3/attachments", body))["attachment"]
    assert "reserved" in refused(act(api, volume, "os-reimage", {"image_id": image}), 400)
    told = {"image_id": image, "reimage_reserved": True}
    good(act(api, volume, "os-reimage", told), 202)
    ended(api, volume, "reserved")
    assert read(api, volume, 6) == b"image!"
    with api.service.records() as connection:  # one more, as of a volume that several may attach
        table = tables.volumes
        connection.execute(table.update().where(table.c.id == volume["id"]).values(multiattach=True))
    second = good(api.post("/v3/attachments", body))["attachment"]  # once more for the same server
    assert "several" in refused(act(api, volume, "os-reimage", told), 409)
    for each in (attachment, second):
        good(api.delete(f"/v3/attachments/{each['id']}"))


def test_reimage_refusals(api: Any, volume: dict[str, Any], image: str) -> None:
    body = {"image_id": image}
    refused(act(api, volume, "os-reimage", body, as_="reader"), 403)
    refused(act(api, volume, "os-reimage", body, as_="other"), 404)
    refused(act(api, volume, "os-reimage", {"image_id": str(uuid.uuid4())}), 400)
    for bad in (None, {}, {"image_id": "x"}, {**body, "reimage_reserved": 3}, {**body, "surprise": 1}):
        refused(act(api, volume, "os-reimage", bad), 400)
    good(act(api, volume, "os-initialize_connection", {"connector": CONNECTOR}))
    assert "connected" in refused(act(api, volume, "os-reimage", body), 400)
    good(act(api, volume, "os-terminate_connection", {"connector": CONNECTOR}), 202)
    assert ended(api, volume)
