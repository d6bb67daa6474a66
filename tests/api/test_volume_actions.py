"""The actions on a volume over the wire."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.steps import a_volume, good, refused, wait_gone

CONNECTOR = {
    "initiator": "iqn.1993-08.org.debian:01:test",
    "host": "tester",
    "ip": "127.0.0.1",
    "multipath": False,
    "platform": "x86_64",
    "os_type": "linux",
}
SERVER = "6d1f5f06-2f0c-4d6c-9a31-0a3c2f5a7e11"


@pytest.fixture
def volume(api: Any) -> Iterator[dict[str, Any]]:
    """An available volume of the member's project; whatever the test attached is forgotten afterwards."""
    with a_volume(api) as made:
        yield made
        reset = {"os-reset_status": {"status": "available", "attach_status": "detached"}}
        api.post(f"/v3/volumes/{made['id']}/action", reset, as_="admin")


def act(api: Any, volume: dict[str, Any], name: str, value: Any = None, **more: Any) -> Any:
    return api.post(f"/v3/volumes/{volume['id']}/action", {name: value}, **more)


def done(answer: Any, status: int = 202) -> None:
    """The action was accepted, and has nothing to tell."""
    assert (answer.status_code, answer.content) == (status, b""), answer.text


def status(api: Any, volume: dict[str, Any]) -> str:
    return str(good(api.get(f"/v3/volumes/{volume['id']}"))["volume"]["status"])


def shown(api: Any, volume: dict[str, Any], **more: Any) -> dict[str, Any]:
    told: dict[str, Any] = good(api.get(f"/v3/volumes/{volume['id']}", **more))["volume"]
    return told


def attach(api: Any, volume: dict[str, Any], **more: Any) -> None:
    done(act(api, volume, "os-attach", {"instance_uuid": SERVER, "mountpoint": "/dev/vdb", **more}))


# --- bodies ----------------------------------------------------------------------------------------------


def test_an_action_is_one_known_key(api: Any, volume: dict[str, Any]) -> None:
    path = f"/v3/volumes/{volume['id']}/action"
    for body in ({}, {"os-reserve": None, "os-unreserve": None}, {"nonsense": None}, [], "os-reserve", None):
        refused(api.post(path, body), 400)


def test_only_the_owner_acts(api: Any, volume: dict[str, Any]) -> None:
    refused(act(api, volume, "os-reserve", as_="other"), 404)
    refused(act(api, volume, "os-reserve", as_="reader"), 403)
    refused(api.post(f"/v3/volumes/{uuid.uuid4()}/action", {"os-reserve": None}), 404)
    for name, value in (
        ("os-reset_status", {"status": "error"}),
        ("os-force_delete", None),
        ("os-force_detach", {}),
    ):
        refused(act(api, volume, name, value), 403)


# --- attaching as the compute service does it ------------------------------------------------------------


def test_reserve_and_unreserve(api: Any, volume: dict[str, Any]) -> None:
    done(act(api, volume, "os-reserve"))
    assert status(api, volume) == "attaching"
    assert "attaching" in refused(act(api, volume, "os-reserve", {}), 400)
    done(act(api, volume, "os-unreserve", {"any": "thing"}))
    assert status(api, volume) == "available"
    done(act(api, volume, "os-unreserve"))
    assert status(api, volume) == "available"


def test_attach_and_detach(api: Any, volume: dict[str, Any]) -> None:
    done(act(api, volume, "os-reserve"))
    attach(api, volume)
    found = shown(api, volume, as_="admin")
    assert found["status"] == "in-use"
    (attachment,) = found["attachments"]
    assert attachment["id"] == attachment["volume_id"] == volume["id"]
    assert attachment["server_id"] == SERVER
    assert attachment["device"] == "/dev/vdb"
    assert attachment["host_name"] is None
    assert len(attachment["attached_at"]) == 26
    assert found["metadata"]["attached_mode"] == "rw"
    listed = good(api.get(f"/v3/volumes/detail?name={volume['name']}"))["volumes"]
    assert listed[0]["attachments"] == [attachment]
    attach(api, volume)  # a repeat changes nothing
    refused(act(api, volume, "os-attach", {"instance_uuid": str(uuid.uuid4()), "mountpoint": "/dev/x"}), 400)
    done(act(api, volume, "os-begin_detaching"))
    assert status(api, volume) == "detaching"
    done(act(api, volume, "os-roll_detaching"))
    assert status(api, volume) == "in-use"
    done(act(api, volume, "os-begin_detaching"))
    done(act(api, volume, "os-detach", {"attachment_id": attachment["attachment_id"]}))
    found = shown(api, volume)
    assert (found["status"], found["attachments"]) == ("available", [])


def test_detach_of_null_is_detach_of_nothing_special(api: Any, volume: dict[str, Any]) -> None:
    attach(api, volume)
    done(act(api, volume, "os-detach", None))
    assert status(api, volume) == "available"
    attach(api, volume)
    done(act(api, volume, "os-detach", {"attachment_id": None}))
    assert status(api, volume) == "available"


def test_host_names_are_for_administrators(api: Any, volume: dict[str, Any]) -> None:
    done(act(api, volume, "os-attach", {"host_name": "host1", "mountpoint": "/dev/vdb"}))
    assert shown(api, volume, as_="admin")["attachments"][0]["host_name"] == "host1"
    assert shown(api, volume)["attachments"][0]["host_name"] is None


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {"instance_uuid": SERVER},
        {"mountpoint": "/dev/vdb"},
        {"instance_uuid": SERVER, "mountpoint": ""},
        {"instance_uuid": SERVER, "mountpoint": "m" * 256},
        {"instance_uuid": "x", "mountpoint": "/dev/vdb"},
        {"instance_uuid": SERVER, "mountpoint": "/dev/vdb", "mode": "wr"},
        {"host_name": "h" * 256, "mountpoint": "/dev/vdb"},
        {"instance_uuid": SERVER, "mountpoint": "/dev/vdb", "surprise": 1},
    ],
)
def test_bad_attaches(api: Any, volume: dict[str, Any], body: Any) -> None:
    refused(act(api, volume, "os-attach", body), 400)


def test_begin_detaching_needs_an_attached_volume(api: Any, volume: dict[str, Any]) -> None:
    refused(act(api, volume, "os-begin_detaching"), 400)
    done(act(api, volume, "os-roll_detaching"))


def test_readonly_volumes_attach_read_only(api: Any, volume: dict[str, Any]) -> None:
    done(act(api, volume, "os-update_readonly_flag", {"readonly": True}))
    assert shown(api, volume)["metadata"] == {"readonly": "True"}
    refused(act(api, volume, "os-attach", {"instance_uuid": SERVER, "mountpoint": "/dev/vdb"}), 400)
    attach(api, volume, mode="ro")
    assert shown(api, volume)["metadata"] == {"readonly": "True", "attached_mode": "ro"}
    refused(act(api, volume, "os-update_readonly_flag", {"readonly": False}), 400)


def test_connections(api: Any, volume: dict[str, Any]) -> None:
    answer = act(api, volume, "os-initialize_connection", {"connector": CONNECTOR})
    told = good(answer)["connection_info"]
    assert set(told) >= {"driver_volume_type", "data"}
    assert "access_mode" in told["data"]
    done(act(api, volume, "os-terminate_connection", {"connector": CONNECTOR}))
    good(act(api, volume, "os-initialize_connection", {"connector": CONNECTOR}))
    done(act(api, volume, "os-terminate_connection", {"connector": None}))
    for bad in (None, {}, {"connector": None}, {"connector": "x"}):
        refused(act(api, volume, "os-initialize_connection", bad), 400)
    for bad in (None, {}, {"connector": "x"}):
        refused(act(api, volume, "os-terminate_connection", bad), 400)


def test_force_detach(api: Any, volume: dict[str, Any]) -> None:
    attach(api, volume)
    refused(act(api, volume, "os-force_detach", {"attachment_id": "x"}, as_="admin"), 400)
    attachment = shown(api, volume)["attachments"][0]["attachment_id"]
    done(act(api, volume, "os-force_detach", {"attachment_id": attachment, "connector": None}, as_="admin"))
    assert status(api, volume) == "available"


# --- size, flags and status ------------------------------------------------------------------------------


def test_extend(api: Any, volume: dict[str, Any]) -> None:
    for size, expected in ((2, 2), ("3", 3)):
        done(act(api, volume, "os-extend", {"new_size": size}))
        grown = api.wait(f"/v3/volumes/{volume['id']}", "volume", "available")
        assert grown["size"] == expected
    for bad in (3, 1, 0, -1, "abc", "", None, True, 2147483648, 4.5):
        refused(act(api, volume, "os-extend", {"new_size": bad}), 400)
    refused(act(api, volume, "os-extend", {}), 400)
    refused(act(api, volume, "os-extend", {"new_size": 2147483647}), 413)


def test_extend_in_use_from_3_42_on(api: Any, volume: dict[str, Any]) -> None:
    attach(api, volume)
    refused(act(api, volume, "os-extend", {"new_size": 2}, version="3.41"), 400)
    done(act(api, volume, "os-extend", {"new_size": 2}, version="3.42"))
    assert api.wait(f"/v3/volumes/{volume['id']}", "volume", "in-use")["size"] == 2


@pytest.mark.parametrize(
    ("value", "told"), [(True, "true"), ("yes", "true"), ("f", "false"), (False, "false")]
)
def test_bootable(api: Any, volume: dict[str, Any], value: Any, told: str) -> None:
    done(act(api, volume, "os-set_bootable", {"bootable": value}), 200)
    assert shown(api, volume)["bootable"] == told


@pytest.mark.parametrize("name", ["os-set_bootable:bootable", "os-update_readonly_flag:readonly"])
def test_flags_are_booleans(api: Any, volume: dict[str, Any], name: str) -> None:
    action, key = name.split(":")
    for bad in (None, {}, {key: None}, {key: 1}, {key: "perhaps"}, {key: []}):
        refused(act(api, volume, action, bad), 400)


def test_reset_status(api: Any, volume: dict[str, Any]) -> None:
    for word in ("error", "error_deleting", "detaching", "maintenance", "available"):
        done(act(api, volume, "os-reset_status", {"status": word}, as_="admin"))
        assert status(api, volume) == word
    for bad in (
        None,
        {},
        {"status": "deleting"},
        {"status": "in-use"},
        {"status": "nonsense"},
        {"status": None},
        {"attach_status": "reserved"},
        {"migration_status": "nonsense"},
        {"surprise": 1},
    ):
        refused(act(api, volume, "os-reset_status", bad, as_="admin"), 400)
    done(act(api, volume, "os-reset_status", {"migration_status": "migrating"}, as_="admin"))
    assert shown(api, volume, as_="admin")["migration_status"] == "migrating"
    refused(api.delete(f"/v3/volumes/{volume['id']}"), 400)
    done(act(api, volume, "os-reset_status", {"migration_status": "none"}, as_="admin"))
    assert shown(api, volume, as_="admin")["migration_status"] is None


def test_reset_to_detached_drops_attachments(api: Any, volume: dict[str, Any]) -> None:
    attach(api, volume)
    body = {"status": "available", "attach_status": "detached"}
    done(act(api, volume, "os-reset_status", body, as_="admin"))
    found = shown(api, volume)
    assert (found["status"], found["attachments"], found["metadata"]) == ("available", [], {})


def test_maintenance_refuses(api: Any, volume: dict[str, Any]) -> None:
    done(act(api, volume, "os-reset_status", {"status": "maintenance"}, as_="admin"))
    refused(act(api, volume, "os-set_bootable", {"bootable": True}), 400)
    refused(act(api, volume, "os-attach", {"instance_uuid": SERVER, "mountpoint": "/dev/vdb"}), 400)
    refused(act(api, volume, "os-initialize_connection", {"connector": CONNECTOR}), 400)
    refused(api.put(f"/v3/volumes/{volume['id']}", {"volume": {"name": "x"}}), 400)
    refused(api.post(f"/v3/volumes/{volume['id']}/metadata", {"metadata": {"a": "b"}}), 400)


def test_force_delete(api: Any, volume: dict[str, Any]) -> None:
    done(act(api, volume, "os-reset_status", {"status": "error_deleting"}, as_="admin"))
    refused(api.delete(f"/v3/volumes/{volume['id']}"), 400)
    done(act(api, volume, "os-force_delete", as_="admin"))
    wait_gone(api, f"/v3/volumes/{volume['id']}")


# --- images ----------------------------------------------------------------------------------------------


def test_image_metadata(api: Any, volume: dict[str, Any]) -> None:
    assert "volume_image_metadata" not in shown(api, volume)
    answer = act(api, volume, "os-set_image_metadata", {"metadata": {"a": "1", "b": "2"}})
    assert good(answer) == {"metadata": {"a": "1", "b": "2"}}
    assert shown(api, volume)["volume_image_metadata"] == {"a": "1", "b": "2"}
    assert good(act(api, volume, "os-show_image_metadata", as_="reader")) == {
        "metadata": {"a": "1", "b": "2"}
    }
    done(act(api, volume, "os-unset_image_metadata", {"key": "a"}), 200)
    refused(act(api, volume, "os-unset_image_metadata", {"key": "a"}), 404)
    assert shown(api, volume)["volume_image_metadata"] == {"b": "2"}
    written = good(api.put(f"/v3/volumes/{volume['id']}", {"volume": {"name": "x"}}))["volume"]
    assert "volume_image_metadata" not in written
    query = {"glance_metadata": "{'b': '2'}", "all_tenants": "1", "name": "x"}
    found = good(api.get("/v3/volumes", params=query, as_="admin", version="3.4"))["volumes"]
    assert [each["id"] for each in found] == [volume["id"]]


def test_bad_image_metadata(api: Any, volume: dict[str, Any]) -> None:
    for bad in (None, {}, {"metadata": None}, {"metadata": {"k": 1}}, {"metadata": {"": "x"}}):
        refused(act(api, volume, "os-set_image_metadata", bad), 400)
    good(act(api, volume, "os-set_image_metadata", {"metadata": {"k": "v" * 65535}}))
    refused(act(api, volume, "os-set_image_metadata", {"metadata": {"k": "v" * 65536}}), 400)
    refused(act(api, volume, "os-set_image_metadata", {"metadata": {"k": "ä" * 32768}}), 400)
    for bad in (None, {}, {"key": ""}, {"key": "k" * 256}, {"key": 1}):
        refused(act(api, volume, "os-unset_image_metadata", bad), 400)


@pytest.mark.parametrize(
    ("version", "more", "told"),
    [
        ("3.0", {}, {"is_public": False}),
        ("3.1", {}, {"visibility": "private", "protected": False}),
        ("3.1", {"visibility": "shared", "protected": "no"}, {"visibility": "shared", "protected": False}),
    ],
)
def test_upload(
    api: Any, volume: dict[str, Any], version: str, more: dict[str, Any], told: dict[str, Any]
) -> None:
    body = {"image_name": "made", "disk_format": "raw", "container_format": "bare", **more}
    answer = good(act(api, volume, "os-volume_upload_image", body, version=version), 202)
    image = answer["os-volume_upload_image"]
    assert image.items() >= told.items()
    assert image["id"] == volume["id"]
    assert (image["status"], image["image_name"], image["size"]) == ("uploading", "made", 1)
    assert uuid.UUID(image["image_id"])
    assert set(image) - set(told) == {
        *("id", "updated_at", "status", "display_description", "size", "volume_type", "image_id"),
        *("container_format", "disk_format", "image_name"),
    }
    api.wait(f"/v3/volumes/{volume['id']}", "volume", "available")


def test_bad_uploads(api: Any, volume: dict[str, Any]) -> None:
    for bad in (
        None,
        {},
        {"image_name": ""},
        {"image_name": "n" * 256},
        {"image_name": "n", "disk_format": "floppy"},
        {"image_name": "n", "force": "perhaps"},
        {"image_name": "n", "visibility": "secret"},
        {"image_name": "n", "container_format": "compressed"},
    ):
        refused(act(api, volume, "os-volume_upload_image", bad), 400)
    refused(act(api, volume, "os-volume_upload_image", {"image_name": "n", "visibility": "public"}), 403)
    refused(
        act(api, volume, "os-volume_upload_image", {"image_name": "n", "protected": True}, version="3.0"), 400
    )
    assert status(api, volume) == "available"
