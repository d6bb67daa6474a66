"""Calls with an Idempotency-Key: carried out once, answered every time."""

from __future__ import annotations

import contextlib
import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from lapilli.flows.owners import owner_name
from lapilli.store import tables
from tests.api.steps import fresh, good, ids, refused
from tests.service import Api, Service, until

CONNECTOR = {"initiator": "iqn.1994-05.com.redhat:once", "host": "once", "ip": "127.0.0.1"}
KEYS = tables.idempotency_keys


def post(api: Api, path: str, body: Any, key: str, **more: Any) -> httpx.Response:
    """A POST with a key."""
    return api.post(path, body, headers={"Idempotency-Key": key}, **more)


def wanted(**more: Any) -> dict[str, Any]:
    """A create request whose volume can be told from others."""
    return {"volume": {"size": 1, "name": fresh("once"), **more}}


def named(api: Api, body: dict[str, Any]) -> list[str]:
    """Ids of the volumes that a create request has made."""
    return ids(api.get(f"/v3/volumes?name={body['volume']['name']}", as_="admin"), "volumes")


def kept(service: Service, key: str) -> Any:
    """The row of a key."""
    with service.records() as found:
        return found.execute(sa.select(KEYS).where(KEYS.c.key == key)).one()


def keep(service: Service, key: str, **values: Any) -> None:
    """Change the row of a key."""
    with service.records() as found:
        assert found.execute(KEYS.update().where(KEYS.c.key == key).values(**values)).rowcount == 1


def forget_answer(service: Service, key: str, owner: str | None) -> None:
    """As if the process had died before it could keep its answer."""
    keep(service, key, status=None, body=None, headers=sa.null(), owner=owner)


@pytest.fixture
def key() -> str:
    """A key that nobody has used."""
    return f"key {uuid.uuid4()}"


def test_a_repeat_gets_the_first_answer(api: Api, key: str) -> None:
    body = wanted()
    first = post(api, "/v3/volumes", body, key)
    made = good(first, 202)["volume"]
    assert "Idempotent-Replayed" not in first.headers
    api.wait(f"/v3/volumes/{made['id']}", "volume")
    again = post(api, "/v3/volumes", body, key)
    assert again.status_code == 202
    assert again.content == first.content  # still creating: the first answer, not the present state
    assert again.headers["Idempotent-Replayed"] == "true"
    for name in ("x-openstack-request-id", "OpenStack-API-Version", "Vary", "Content-Type"):
        assert again.headers[name] == first.headers[name]
    assert named(api, body) == [made["id"]]


def test_calls_without_a_key_are_repeated(api: Api, key: str) -> None:
    body = wanted()
    for headers in ({}, {}):
        good(api.post("/v3/volumes", body, headers=headers), 202)
    assert len(named(api, body)) == 2


def test_the_same_key_with_another_request_is_a_conflict(api: Api, key: str) -> None:
    body = wanted()
    made = good(post(api, "/v3/volumes", body, key), 202)["volume"]
    assert "another request" in refused(post(api, "/v3/volumes", wanted(), key), 409)
    refused(post(api, "/v3/volumes", body, key, version="3.70"), 409)
    refused(post(api, "/v3/snapshots", {"snapshot": {"volume_id": made["id"]}}, key), 409)
    assert good(post(api, "/v3/volumes", body, key), 202)["volume"]["id"] == made["id"]


def test_order_and_spaces_of_the_body_do_not_matter(api: Api, key: str) -> None:
    name = fresh("once")
    texts = (f'{{"volume": {{"size": 1, "name": "{name}"}}}}', f'{{"volume":{{"name":"{name}","size":1}}}}')
    headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
    found = {
        api.request("POST", "/v3/volumes", content=t, headers=headers).json()["volume"]["id"] for t in texts
    }
    assert len(found) == 1


def test_keys_belong_to_project_and_user(api: Api, service: Service, key: str) -> None:
    body = wanted()
    made = {
        good(post(api, "/v3/volumes", body, key, as_=who), 202)["volume"]["id"]
        for who in ("member", "admin", "other")
    }
    assert len(made) == 3


@pytest.mark.parametrize("bad", ["", "x" * 256, "k\xe9y".encode("latin-1")])
def test_keys_of_another_form_are_refused(api: Api, bad: Any) -> None:
    body = wanted()
    refused(post(api, "/v3/volumes", body, bad), 400)
    assert named(api, body) == []


def test_what_was_refused_does_not_take_the_key(api: Api, key: str) -> None:
    refused(post(api, "/v3/volumes", {"volume": {"size": 0}}, key), 400)
    good(post(api, "/v3/volumes", wanted(), key), 202)


def test_the_key_is_free_again_when_what_it_made_is_deleted(api: Api, key: str) -> None:
    body = wanted()
    first = good(post(api, "/v3/volumes", body, key), 202)["volume"]["id"]
    api.wait(f"/v3/volumes/{first}", "volume")
    good(api.delete(f"/v3/volumes/{first}"), 202)
    api.wait_gone(f"/v3/volumes/{first}")
    second = good(post(api, "/v3/volumes", wanted(), key), 202)["volume"]["id"]
    assert second != first


def test_a_key_lasts_24_hours(api: Api, service: Service, key: str) -> None:
    body = wanted()
    good(post(api, "/v3/volumes", body, key), 202)
    keep(service, key, created_at=kept(service, key).created_at - timedelta(hours=23))
    good(post(api, "/v3/volumes", body, key), 202)
    assert len(named(api, body)) == 1
    keep(service, key, created_at=kept(service, key).created_at - timedelta(hours=2))
    good(post(api, "/v3/volumes", body, key), 202)
    assert len(named(api, body)) == 2


def test_many_at_once_make_one(api: Api, key: str) -> None:
    body = wanted()
    gate = threading.Barrier(8)

    def ask(_number: int) -> httpx.Response:
        gate.wait()
        return post(api, "/v3/volumes", body, key)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert {each.status_code for each in answers} == {202}
    assert len({each.content for each in answers}) == 1
    assert len(named(api, body)) == 1
    assert sum("Idempotent-Replayed" not in each.headers for each in answers) == 1


@pytest.mark.parametrize("owner", [None, "gone"])
def test_a_lost_answer_is_made_again(api: Api, service: Service, key: str, owner: str | None) -> None:
    body = wanted()
    made = good(post(api, "/v3/volumes", body, key), 202)["volume"]
    if owner:
        owner = "|".join([*owner_name().split("|")[:3], "999999999", "1"])  # no such process
    forget_answer(service, key, owner)
    for _ in range(2):
        again = good(post(api, "/v3/volumes", body, key), 202)["volume"]
        assert again.keys() == made.keys()
        assert again["id"] == made["id"]
    assert len(named(api, body)) == 1


def test_a_first_call_under_way_is_waited_for_then_a_conflict(api: Api, service: Service, key: str) -> None:
    body = wanted()
    first = post(api, "/v3/volumes", body, key)
    row = kept(service, key)
    forget_answer(service, key, owner_name())  # this process lives
    began = time.monotonic()
    answer = post(api, "/v3/volumes", body, key)
    assert "under way" in refused(answer, 409)
    assert answer.headers["Retry-After"] == "1"
    assert 4 < time.monotonic() - began < 9

    def come() -> None:
        time.sleep(1)
        keep(service, key, status=row.status, body=row.body, headers=row.headers, owner=None)

    thread = threading.Thread(target=come)
    thread.start()
    assert post(api, "/v3/volumes", body, key).content == first.content
    thread.join()


def test_actions_are_done_once(api: Api, service: Service, key: str) -> None:
    volume = api.volume()
    path = f"/v3/volumes/{volume['id']}/action"
    grow = {"os-extend": {"new_size": 2}}
    for _ in range(2):
        good(post(api, path, grow, key), 202)
    api.wait(f"/v3/volumes/{volume['id']}", "volume")
    forget_answer(service, key, None)
    assert post(api, path, grow, key).status_code == 202
    refused(api.post(path, grow), 400)  # without the key it is judged anew


@pytest.mark.parametrize("lost", [False, True])
def test_everything_that_is_made(api: Api, service: Service, lost: bool) -> None:
    volume = api.volume()
    merge = {"metadata": {"a": "b"}}
    upload = {"os-volume_upload_image": {"image_name": fresh("image"), "disk_format": "qcow2"}}
    for path, body, as_, status in (
        ("/v3/snapshots", {"snapshot": {"volume_id": volume["id"], "name": fresh("s")}}, "member", 202),
        ("/v3/types", {"volume_type": {"name": fresh("type")}}, "admin", 200),
        (f"/v3/volumes/{volume['id']}/metadata", merge, "member", 200),
        (f"/v3/volumes/{volume['id']}/action", upload, "member", 202),
    ):
        key = str(uuid.uuid4())
        first = good(post(api, path, body, key, as_=as_), status)
        api.wait(f"/v3/volumes/{volume['id']}", "volume")
        if lost:
            forget_answer(service, key, None)
        again = good(post(api, path, body, key, as_=as_), status)
        (word,) = first
        assert again.keys() == first.keys()
        for name in ("id", "image_id", "name", "a"):
            assert again[word].get(name) == first[word].get(name)
    assert len(ids(api.get(f"/v3/snapshots?volume_id={volume['id']}"), "snapshots")) == 1


def test_attachments_are_made_once_and_their_secret_is_not_kept(api: Api, service: Service, key: str) -> None:
    volume = api.volume()
    body = {"attachment": {"volume_uuid": volume["id"], "connector": CONNECTOR}}
    first = good(post(api, "/v3/attachments", body, key))["attachment"]
    again = good(post(api, "/v3/attachments", body, key))["attachment"]
    assert again == first
    secret = first["connection_info"]["auth_password"]
    assert secret not in repr(kept(service, key))
    assert len(ids(api.get(f"/v3/attachments?volume_id={volume['id']}"), "attachments")) == 1
    good(api.delete(f"/v3/attachments/{first['id']}"))
    other = good(post(api, "/v3/attachments", body, key))["attachment"]
    assert other["id"] != first["id"]
    good(api.delete(f"/v3/attachments/{other['id']}"))


def test_an_attachment_cut_off_before_it_was_connected_is_connected_by_the_repeat(
    api: Api, service: Service, key: str
) -> None:
    volume = api.volume()
    body = {"attachment": {"volume_uuid": volume["id"], "connector": CONNECTOR}}
    whole = good(post(api, "/v3/attachments", body, key))["attachment"]
    table = tables.attachments
    with service.records() as found:
        changes = {"connection_info": None, "attach_status": "reserved"}
        found.execute(table.update().where(table.c.id == whole["id"]).values(**changes))
    again = good(post(api, "/v3/attachments", body, key))["attachment"]
    assert again["id"] == whole["id"]
    assert again["connection_info"]["target_iqn"] == whole["connection_info"]["target_iqn"]
    good(api.delete(f"/v3/attachments/{whole['id']}"))


def test_a_failed_attach_frees_its_key(api: Api, key: str) -> None:
    volume = api.volume()
    body = {"attachment": {"volume_uuid": volume["id"], "connector": {"host": "without an initiator"}}}
    first = post(api, "/v3/attachments", body, key)
    if first.status_code == 200:
        pytest.skip("this target asks nothing of a connector")
    again = post(api, "/v3/attachments", body, key)
    assert again.status_code == first.status_code
    assert "Idempotent-Replayed" not in again.headers


def test_final_states_are_success(api: Api) -> None:
    volume = api.volume()
    path = f"/v3/volumes/{volume['id']}"
    for _ in range(2):
        assert api.post(f"{path}/action", {"os-detach": {}}).status_code == 202
    body = {"attachment": {"volume_uuid": volume["id"], "connector": CONNECTOR}}
    made = good(api.post("/v3/attachments", body))["attachment"]
    for _ in range(2):
        answer = api.post(f"/v3/attachments/{made['id']}/action", {"os-complete": None})
        assert answer.status_code == 204
    good(api.delete(f"/v3/attachments/{made['id']}"))
    refused(api.delete(f"/v3/attachments/{made['id']}"), 404)


def test_other_methods_ignore_the_header(api: Api, key: str) -> None:
    headers = {"Idempotency-Key": key}
    for name in ("first", "second"):
        volume = good(post(api, "/v3/volumes", wanted(), str(uuid.uuid4())), 202)["volume"]
        changed = api.put(f"/v3/volumes/{volume['id']}", {"volume": {"name": name}}, headers=headers)
        assert good(changed)["volume"]["name"] == name


def test_killed_at_any_moment_nothing_is_made_twice_or_lost(own_service: Service) -> None:
    own_service.config = {"DEFAULT": {"quota_volumes": -1, "quota_gigabytes": -1}}
    own_service.config["filepool"] = {"max_over_subscription_ratio": "1000", "target_helper": "local"}
    own_service.start()
    api = Api(own_service)
    asked: dict[str, dict[str, Any]] = {}
    answers: dict[str, bytes] = {}
    dice = random.Random(5)
    for _ in range(4):

        def load() -> None:
            with contextlib.suppress(httpx.TransportError):  # it was shot
                while True:
                    key, body = str(uuid.uuid4()), wanted()
                    asked[key] = body
                    answer = post(api, "/v3/volumes", body, key)
                    assert answer.status_code == 202, answer.text
                    answers[key] = answer.content

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.4 + dice.random() * 0.3)
        own_service.kill()
        for thread in threads:
            thread.join()
        own_service.start()
    repeated = {key: post(api, "/v3/volumes", body, key) for key, body in asked.items()}
    lost = [key for key in asked if key not in answers]
    print(f"{len(asked)} keyed creates, {len(lost)} answers lost")
    assert lost
    for key, answer in repeated.items():
        assert answer.status_code == 202, answer.text
        if key in answers:
            assert (
                answer.json()["volume"]["id"]
                == httpx.Response(202, content=answers[key]).json()["volume"]["id"]
            )
    listed = [each["name"] for each in good(api.get("/v3/volumes"))["volumes"]]
    assert sorted(listed) == sorted(body["volume"]["name"] for body in asked.values())
    until(lambda: not ids(api.get("/v3/volumes?status=creating&limit=1"), "volumes"), 60)
