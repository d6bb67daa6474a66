"""User messages over the wire: each is caused by a volume that no back end can take."""

from __future__ import annotations

import pytest

from tests.api.steps import LATEST, a_type, good, ids, refused, wait_gone

MESSAGES = "/v3/messages"
NOBODY = "00000000-0000-0000-0000-000000000000"


@pytest.fixture
def failed(api):
    """A volume in error because of its type, with its message."""
    with a_type(api, specs={"capabilities:colour": "unheard of"}) as kind:
        wanted = {"volume": {"size": 1, "volume_type": kind["id"]}}
        volume = good(api.post("/v3/volumes", wanted), 202)["volume"]
        path = f"/v3/volumes/{volume['id']}"
        api.wait(path, "volume", "error")
        found = good(api.get(f"{MESSAGES}?resource_uuid={volume['id']}", version="3.5"))["messages"]
        assert len(found) == 1
        yield volume, found[0]
        api.delete(f"{MESSAGES}/{found[0]['id']}", version="3.3", as_="admin")
        assert api.delete(path).status_code == 202
        wait_gone(api, path)


def test_a_failed_create_leaves_a_message(api, failed):
    volume, message = failed
    assert set(message) == {
        "id",
        "event_id",
        "user_message",
        "message_level",
        "created_at",
        "guaranteed_until",
        "request_id",
        "links",
        "resource_type",
        "resource_uuid",
    }
    assert message["event_id"] == "VOLUME_VOLUME_001_003"
    assert message["message_level"] == "ERROR"
    assert message["resource_type"] == "VOLUME"
    assert message["resource_uuid"] == volume["id"]
    assert message["request_id"].startswith("req-")
    action, detail = message["user_message"].split(":", 1)
    assert action
    assert detail
    assert message["guaranteed_until"] > message["created_at"]
    assert [link["rel"] for link in message["links"]] == ["self", "bookmark"]
    assert message["links"][0]["href"].endswith(f"/v3/messages/{message['id']}")
    shown = good(api.get(f"{MESSAGES}/{message['id']}", version="3.3"))
    assert shown == {"message": message}


def test_messages_begin_with_3_3(api, failed):
    path = f"{MESSAGES}/{failed[1]['id']}"
    for answer in (api.get(MESSAGES, version="3.2"), api.get(path, version="3.2")):
        refused(answer, 404)
    refused(api.delete(path, version="3.2"), 404)
    good(api.get(MESSAGES, version="3.3"))


def test_messages_stay_in_their_project(api, failed):
    path = f"{MESSAGES}/{failed[1]['id']}"
    refused(api.get(path, version=LATEST, as_="other"), 404)
    refused(api.delete(path, version=LATEST, as_="other"), 404)
    assert failed[1]["id"] not in ids(api.get(MESSAGES, version=LATEST, as_="other"), "messages")
    refused(api.get(f"{MESSAGES}?marker={failed[1]['id']}", version=LATEST, as_="other"), 404)
    assert failed[1]["id"] in ids(api.get(MESSAGES, version=LATEST, as_="reader"), "messages")
    assert failed[1]["id"] in ids(api.get(MESSAGES, version=LATEST, as_="admin"), "messages")


def test_delete(api, failed):
    path = f"{MESSAGES}/{failed[1]['id']}"
    refused(api.delete(path, version=LATEST, as_="reader"), 403)
    gone = api.delete(path, version=LATEST)
    assert (gone.status_code, gone.content) == (204, b"")
    refused(api.get(path, version=LATEST), 404)
    refused(api.delete(path, version=LATEST), 404)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("event_id=VOLUME_VOLUME_001_003", True),
        ("event_id=VOLUME_VOLUME_SNAPSHOT_009_013", False),
        ("event_id=nonsense", False),
        ("resource_type=VOLUME", True),
        ("resource_type=VOLUME_SNAPSHOT", False),
        ("message_level=ERROR", True),
        ("message_level=INFO", False),
        ("request_id=req-0", False),
    ],
)
def test_filters(api, failed, query, found):
    listed = ids(api.get(f"{MESSAGES}?{query}", version="3.5"), "messages")
    assert (failed[1]["id"] in listed) == found


def test_paging_begins_with_3_5(api, failed):
    assert ids(api.get(f"{MESSAGES}?limit=0", version="3.5"), "messages") == []
    assert failed[1]["id"] in ids(api.get(f"{MESSAGES}?limit=0", version="3.4"), "messages")
    page = good(api.get(f"{MESSAGES}?limit=1", version="3.5"))
    assert [link["rel"] for link in page["messages_links"]] == ["next"]
    for key in (
        "event_id",
        "id",
        "resource_uuid",
        "resource_type",
        "request_id",
        "message_level",
        "created_at",
    ):
        good(api.get(f"{MESSAGES}?sort={key}:asc", version="3.5"))
    for query in ("limit=-1", "sort=colour", "offset=x"):
        refused(api.get(f"{MESSAGES}?{query}", version="3.5"), 400)
    refused(api.get(f"{MESSAGES}?marker={NOBODY}", version="3.5"), 404)
    refused(api.get(f"{MESSAGES}?colour=red", version="3.31"), 400)
    good(api.get(f"{MESSAGES}?colour=red", version="3.30"))


def test_unknown_message(api):
    refused(api.get(f"{MESSAGES}/{NOBODY}", version=LATEST), 404)
