"""Attachments over the wire."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from lapilli.store import tables
from tests.api.steps import a_type, a_volume, fresh, good, ids, refused

CONNECTOR = {"initiator": "iqn.1993-08.org.debian:01:test", "host": "tester", "ip": "127.0.0.1"}


@pytest.fixture
def volume(api: Any) -> Iterator[dict[str, Any]]:
    """An available volume of the member's project; its attachments are removed afterwards."""
    with a_volume(api) as made:
        yield made
        reset = {"os-reset_status": {"status": "available"}}
        api.post(f"/v3/volumes/{made['id']}/action", reset, as_="admin")
        for each in good(api.get(f"/v3/attachments?volume_id={made['id']}"))["attachments"]:
            good(api.delete(f"/v3/attachments/{each['id']}"))


def create(api: Any, volume: dict[str, Any], version: str = "3.71", as_: str = "member", **more: Any) -> Any:
    body = {"attachment": {"volume_uuid": volume["id"], **more}}
    return api.post("/v3/attachments", body, version=version, as_=as_)


def made(answer: Any) -> dict[str, Any]:
    told: dict[str, Any] = good(answer)["attachment"]
    return told


def status(api: Any, volume: dict[str, Any]) -> str:
    return str(good(api.get(f"/v3/volumes/{volume['id']}"))["volume"]["status"])


def test_from_reserve_to_gone(api: Any, volume: dict[str, Any]) -> None:
    server = str(uuid.uuid4())
    attachment = made(create(api, volume, instance_uuid=server))
    assert set(attachment) == {
        *("id", "status", "instance", "volume_id", "attached_at", "detached_at"),
        *("attach_mode", "connection_info"),
    }
    assert attachment["status"] == "reserved"
    assert attachment["instance"] == server
    assert attachment["volume_id"] == volume["id"]
    assert (attachment["attached_at"], attachment["detached_at"]) == ("", "")
    assert attachment["attach_mode"] == "null"
    assert attachment["connection_info"] == {}
    assert status(api, volume) == "reserved"
    path = f"/v3/attachments/{attachment['id']}"
    connected = made(api.put(path, {"attachment": {"connector": CONNECTOR}}))
    assert connected["status"] == "attaching"
    info = connected["connection_info"]
    assert info["attachment_id"] == attachment["id"]
    assert "driver_volume_type" in info
    assert "enforce_multipath" in info
    assert info["access_mode"] == "rw"
    assert "data" not in info
    done = api.post(f"{path}/action", {"os-complete": attachment["id"]})
    assert (done.status_code, done.content) == (204, b"")
    shown = made(api.get(path))
    assert shown["status"] == "attached"
    assert len(shown["attached_at"]) == 26
    assert status(api, volume) == "in-use"
    assert good(api.delete(path)) == {"attachments": []}
    assert status(api, volume) == "available"
    refused(api.get(path), 404)


def test_connected_at_once(api: Any, volume: dict[str, Any]) -> None:
    attachment = made(create(api, volume, connector=CONNECTOR))
    assert attachment["status"] == "attaching"
    assert attachment["instance"] is None
    assert attachment["connection_info"]["driver_volume_type"]
    assert status(api, volume) == "attaching"


def test_windows(api: Any, volume: dict[str, Any]) -> None:
    refused(create(api, volume, "3.26"), 404)
    refused(create(api, volume, "3.53", mode="ro"), 400)
    attachment = made(create(api, volume, "3.54", mode="ro"))
    assert attachment["attach_mode"] == "ro"
    action = f"/v3/attachments/{attachment['id']}/action"
    refused(api.post(action, {"os-complete": None}, version="3.43"), 404)
    refused(api.get(f"/v3/attachments/{attachment['id']}", version="3.26"), 404)
    refused(api.delete(f"/v3/attachments/{attachment['id']}", version="3.26"), 404)


def test_what_openstacksdk_sends(api: Any, volume: dict[str, Any]) -> None:
    made(create(api, volume, connector=None, instance=None))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"attachment": {}},
        {"attachment": {"volume_uuid": "x"}},
        {"attachment": {"volume_uuid": None}},
        {"attachment": {"volume_uuid": str(uuid.uuid4()), "instance_uuid": "x"}},
        {"attachment": {"volume_uuid": str(uuid.uuid4()), "connector": "x"}},
        {"attachment": {"volume_uuid": str(uuid.uuid4()), "mode": "wr"}},
        {"attachment": {"volume_uuid": str(uuid.uuid4()), "surprise": 1}},
    ],
)
def test_bad_creates(api: Any, body: Any) -> None:
    refused(api.post("/v3/attachments", body), 400)


def test_create_refuses(api: Any, volume: dict[str, Any]) -> None:
    refused(create(api, {"id": str(uuid.uuid4())}), 404)
    refused(create(api, volume, as_="other"), 404)
    refused(create(api, volume, as_="reader"), 403)
    body = {"os-reset_status": {"status": "error"}}
    good(api.post(f"/v3/volumes/{volume['id']}/action", body, as_="admin"), 202)
    refused(create(api, volume), 400)
    assert ids(api.get(f"/v3/attachments?volume_id={volume['id']}"), "attachments") == []


def test_one_volume_one_user(api: Any, volume: dict[str, Any]) -> None:
    server = str(uuid.uuid4())
    first = made(create(api, volume, instance_uuid=server))
    refused(create(api, volume, instance_uuid=str(uuid.uuid4())), 400)
    second = made(create(api, volume, instance_uuid=server))
    path = "/v3/attachments/{}"
    made(api.put(path.format(first["id"]), {"attachment": {"connector": CONNECTOR}}))
    refused(api.put(path.format(second["id"]), {"attachment": {"connector": CONNECTOR}}), 409)
    remaining = good(api.delete(path.format(second["id"])))["attachments"]
    assert [each["id"] for each in remaining] == [first["id"]]
    assert set(remaining[0]) == {"id", "status", "instance", "volume_id"}


def test_one_volume_several_users(api: Any) -> None:
    """A shared volume that is reserved waits for the one who has reserved it; in use, anybody may come."""
    server = str(uuid.uuid4())
    with (
        a_type(api, specs={"multiattach": "<is> True"}) as kind,
        a_volume(api, volume_type=kind["id"]) as volume,
    ):
        first = made(create(api, volume, instance_uuid=server))
        assert "reserved" in refused(create(api, volume, instance_uuid=str(uuid.uuid4())), 400)
        good(api.post(f"/v3/attachments/{first['id']}/action", {"os-complete": None}), 204)
        second = made(create(api, volume, instance_uuid=server))
        assert status(api, volume) == "reserved"
        good(api.delete(f"/v3/attachments/{second['id']}"))
        assert status(api, volume) == "in-use"
        good(api.delete(f"/v3/attachments/{first['id']}"))


def test_update_refuses(api: Any, volume: dict[str, Any]) -> None:
    attachment = made(create(api, volume))
    path = f"/v3/attachments/{attachment['id']}"
    for bad in (
        {},
        {"connector": {}},
        {"connector": None},
        {"connector": "x"},
        {"connector": CONNECTOR, "x": 1},
    ):
        refused(api.put(path, {"attachment": bad}), 400)
    refused(api.put(path, {"attachment": {"connector": CONNECTOR}}, as_="other"), 404)
    refused(api.put(path, {"attachment": {"connector": CONNECTOR}}, as_="reader"), 403)
    body = {"os-reset_status": {"status": "error"}}
    good(api.post(f"/v3/volumes/{volume['id']}/action", body, as_="admin"), 202)
    refused(api.put(path, {"attachment": {"connector": CONNECTOR}}), 409)


def test_lists(api: Any, volume: dict[str, Any]) -> None:
    server = str(uuid.uuid4())
    attachment = made(create(api, volume, instance_uuid=server))
    (item,) = good(api.get(f"/v3/attachments?volume_id={volume['id']}"))["attachments"]
    assert item == {
        "id": attachment["id"],
        "status": "reserved",
        "instance": server,
        "volume_id": volume["id"],
    }
    (item,) = good(api.get(f"/v3/attachments/detail?volume_id={volume['id']}"))["attachments"]
    assert item == attachment
    one = [attachment["id"]]
    assert ids(api.get(f"/v3/attachments?instance_id={server}"), "attachments") == one
    assert ids(api.get(f"/v3/attachments?instance_id={server}&attach_status=reserved"), "attachments") == one
    assert ids(api.get(f"/v3/attachments?instance_id={server}&attach_status=attached"), "attachments") == []
    assert ids(api.get(f"/v3/attachments?instance_id={server}&status=reserved"), "attachments") == []
    document = good(api.get("/v3/attachments?limit=1"))
    assert "attachments_links" not in document
    refused(api.get("/v3/attachments?surprise=1"), 400)


def test_others_do_not_see_it(api: Any, volume: dict[str, Any]) -> None:
    attachment = made(create(api, volume))
    refused(api.get(f"/v3/attachments/{attachment['id']}", as_="other"), 404)
    refused(api.delete(f"/v3/attachments/{attachment['id']}", as_="other"), 404)
    assert ids(api.get("/v3/attachments?all_tenants=1", as_="other"), "attachments") == []
    assert attachment["id"] in ids(api.get("/v3/attachments?all_tenants=1", as_="admin"), "attachments")
    assert made(api.get(f"/v3/attachments/{attachment['id']}", as_="reader"))["id"] == attachment["id"]


@pytest.mark.parametrize(
    "odd",
    [
        {"host": 5},
        {"host": {"a": 1}},
        {"host": "h" * 256},
        {"initiator": ["a"]},
        {"mode": "both"},
        {"mode": {"a": 1}},
    ],
)
def test_a_connector_of_odd_facts_is_refused_before_anything_happens(
    api: Any, volume: dict[str, Any], odd: dict[str, Any]
) -> None:
    connector = {**CONNECTOR, **odd}
    refused(create(api, volume, connector=connector), 400)
    assert good(api.get(f"/v3/attachments?volume_id={volume['id']}"))["attachments"] == []
    wanted = {"os-initialize_connection": {"connector": connector}}
    refused(api.post(f"/v3/volumes/{volume['id']}/action", wanted), 400)
    attachment = made(create(api, volume))
    refused(api.put(f"/v3/attachments/{attachment['id']}", {"attachment": {"connector": connector}}), 400)
    assert made(api.get(f"/v3/attachments/{attachment['id']}"))["status"] == "reserved"


def test_nothing_secret_of_a_connector_is_kept(api: Any, volume: dict[str, Any]) -> None:
    secret = fresh("open-sesame")
    connector = {
        **CONNECTOR,
        "auth_key": secret,
        "vendor": [{"password": secret, "nested": {"Secret": secret}}],
    }
    made(create(api, volume, connector=connector))
    for path in (*api.service.state_dir.glob("lapilli.sqlite*"), api.service.log):
        assert secret.encode() not in path.read_bytes()
    with api.service.records() as database:
        for table in tables.METADATA.sorted_tables:
            assert secret not in repr(database.execute(sa.select(table)).all())


def test_a_refused_force_detach_leaves_the_connections(api: Any, volume: dict[str, Any]) -> None:
    server = str(uuid.uuid4())
    first = made(create(api, volume, instance_uuid=server, connector=CONNECTOR))
    good(api.post(f"/v3/attachments/{first['id']}/action", {"os-complete": None}), 204)
    made(create(api, volume, instance_uuid=server))
    action = f"/v3/volumes/{volume['id']}/action"
    refused(api.post(action, {"os-force_detach": {}}, as_="admin"), 400)
    info = good(api.post(action, {"os-initialize_connection": {"connector": CONNECTOR}}))["connection_info"]
    kept = first["connection_info"]
    assert info["data"]["auth_password"] == kept["auth_password"]  # an export that was dropped gets a new one
    good(api.post(action, {"os-terminate_connection": {"connector": CONNECTOR}}), 202)


@pytest.mark.parametrize("word", ["error", "error_deleting", "awaiting-transfer"])
def test_a_detach_of_nothing_leaves_the_status(api: Any, volume: dict[str, Any], word: str) -> None:
    action = f"/v3/volumes/{volume['id']}/action"
    good(api.post(action, {"os-reset_status": {"status": word}}, as_="admin"), 202)
    good(api.post(action, {"os-detach": None}), 202)
    good(api.post(action, {"os-detach": {"attachment_id": str(uuid.uuid4())}}), 202)
    good(api.post(action, {"os-terminate_connection": {"connector": None}}), 202)
    good(api.post(action, {"os-force_detach": {}}, as_="admin"), 202)
    assert status(api, volume) == word
