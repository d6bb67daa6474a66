"""Snapshots over the wire: life, metadata, actions, lists, and both sides of each microversion's edge."""

from __future__ import annotations

import time

import pytest

from tests.api.steps import LATEST, a_snapshot, a_volume, fresh, good, ids, refused, wait_gone

SNAPSHOTS = "/v3/snapshots"
NOBODY = "00000000-0000-0000-0000-000000000000"
BASE = {
    "id",
    "name",
    "description",
    "volume_id",
    "status",
    "size",
    "created_at",
    "updated_at",
    "metadata",
}
EXTENDED = {"os-extended-snapshot-attributes:project_id", "os-extended-snapshot-attributes:progress"}


@pytest.fixture
def volume(api):
    with a_volume(api) as made:
        yield made


@pytest.fixture
def snapshot(api, volume):
    with a_snapshot(api, volume, metadata={"k": "v"}) as made:
        yield made


def reset(api, path, status):
    answer = api.post(f"{path}/action", {"os-reset_status": {"status": status}}, as_="admin")
    assert answer.status_code == 202


def wait_rest(api, path):
    """Return when the snapshot is available, or in error."""
    deadline = time.monotonic() + 10
    while good(api.get(path))["snapshot"]["status"] == "creating":
        assert time.monotonic() < deadline, f"{path} is still creating"
        time.sleep(0.02)


# --- life ------------------------------------------------------------------------------------------------


def test_life(api, volume):
    name = fresh("snap")
    body = {"volume_id": volume["id"], "name": f" {name} ", "description": "why", "metadata": {"a": "1"}}
    made = good(api.post(SNAPSHOTS, {"snapshot": body}, version="3.0"), 202)["snapshot"]
    assert set(made) == BASE
    assert (made["name"], made["description"], made["metadata"]) == (name, "why", {"a": "1"})
    assert (made["status"], made["size"], made["volume_id"]) == ("creating", 1, volume["id"])
    path = f"{SNAPSHOTS}/{made['id']}"
    api.wait(path, "snapshot", "available")
    shown = good(api.get(path, as_="reader", version="3.0"))["snapshot"]
    assert set(shown) == BASE | EXTENDED
    assert shown["os-extended-snapshot-attributes:progress"] == "100%"
    assert shown["os-extended-snapshot-attributes:project_id"] == volume["os-vol-tenant-attr:tenant_id"]
    gone = api.delete(path)
    assert (gone.status_code, gone.content) == (202, b"")
    wait_gone(api, path)


def test_keys_by_microversion(api, snapshot):
    path = f"{SNAPSHOTS}/{snapshot['id']}"
    for key, before, since in (
        ("group_snapshot_id", "3.13", "3.14"),
        ("user_id", "3.40", "3.41"),
        ("consumes_quota", "3.64", "3.65"),
    ):
        assert key not in good(api.get(path, version=before))["snapshot"]
        assert key in good(api.get(path, version=since))["snapshot"]
        listed = good(api.get(f"{SNAPSHOTS}/detail", version=since))["snapshots"]
        assert all(key in each for each in listed)
        assert all(set(each) == BASE for each in good(api.get(SNAPSHOTS, version=since))["snapshots"])
    shown = good(api.get(path, version=LATEST))["snapshot"]
    assert shown["group_snapshot_id"] is None
    assert shown["consumes_quota"] is True
    changed = good(api.put(path, {"snapshot": {"name": "n"}}, version=LATEST))["snapshot"]
    assert set(changed) == BASE | {"group_snapshot_id", "user_id", "consumes_quota"}


def test_old_words_for_names(api, volume):
    with a_snapshot(api, volume, name=None, display_name="old", display_description="words") as made:
        assert made["name"] in ("old", None)
    body = {"volume_id": volume["id"], "display_name": "old", "display_description": "words"}
    made = good(api.post(SNAPSHOTS, {"snapshot": body}), 202)["snapshot"]
    path = f"{SNAPSHOTS}/{made['id']}"
    assert (made["name"], made["description"]) == ("old", "words")
    api.wait(path, "snapshot", "available")
    changed = good(api.put(path, {"snapshot": {"display_name": "newer"}}))["snapshot"]
    assert (changed["name"], changed["description"]) == ("newer", "words")
    assert api.delete(path).status_code == 202
    wait_gone(api, path)


def test_names_of_spaces_are_empty_and_255_letters_fit(api, volume):
    with a_snapshot(api, volume, name="   ") as made:
        assert made["name"] == ""
    with a_snapshot(api, volume, name="n" * 255, description="d" * 255) as made:
        assert (made["name"], made["description"]) == ("n" * 255, "d" * 255)


@pytest.mark.parametrize(
    "more",
    [
        {"volume_id": "no uuid"},
        {"volume_id": 7},
        {"name": "n" * 256},
        {"name": 1},
        {"description": "d" * 256},
        {"description": "bell\x07"},
        {"force": "perhaps"},
        {"force": 1},
        {"metadata": []},
        {"metadata": {"": "v"}},
        {"metadata": {"k" * 256: "v"}},
        {"metadata": {"k": "v" * 256}},
        {"metadata": {"k": 1}},
        {"metadata": {"k": None}},
        {"metadata": {"a/b": "v"}},
        {"unknown": 1},
    ],
)
def test_bad_creates_are_refused(api, volume, more):
    before = ids(api.get(SNAPSHOTS), "snapshots")
    refused(api.post(SNAPSHOTS, {"snapshot": {"volume_id": volume["id"], **more}}), 400)
    assert ids(api.get(SNAPSHOTS), "snapshots") == before


def test_null_is_no_volume(api):
    """As upstream answers, whose own test suite asks for it."""
    refused(api.post("/v3/snapshots", {"snapshot": {"volume_id": None}}), 404)


@pytest.mark.parametrize("document", [None, {}, [], {"snapshot": None}, {"snapshot": {}}, {"snapshot": []}])
def test_bodies_of_another_shape_are_refused(api, document):
    refused(api.post(SNAPSHOTS, document), 400)


def test_edges_of_metadata_are_kept(api, volume):
    metadata = {"k" * 255: "v" * 255, "a b.c:d-e_f": ""}
    with a_snapshot(api, volume, metadata=metadata) as made:
        assert made["metadata"] == metadata
    with a_snapshot(api, volume, metadata=None) as made:
        assert made["metadata"] == {}


def test_volume_must_be_there_and_free(api, volume):
    refused(api.post(SNAPSHOTS, {"snapshot": {"volume_id": NOBODY}}), 404)
    refused(api.post(SNAPSHOTS, {"snapshot": {"volume_id": volume["id"]}}, as_="other"), 404)
    path = f"/v3/volumes/{volume['id']}"
    for status in ("error", "maintenance", "extending", "deleting"):
        answer = api.post(f"{path}/action", {"os-reset_status": {"status": status}}, as_="admin")
        if answer.status_code != 202:  # `deleting` cannot be set by hand
            continue
        wanted = {"snapshot": {"volume_id": volume["id"], "force": True}}
        refused(api.post(SNAPSHOTS, wanted), 400)
    reset(api, path, "available")


def test_volume_in_use_and_force(api):
    with a_volume(api) as volume:
        attach = {"os-attach": {"mountpoint": "/dev/vdb", "host_name": "somewhere"}}
        assert api.post(f"/v3/volumes/{volume['id']}/action", attach).status_code == 202
        made = []

        def ask(version, **more):
            body = {"volume_id": volume["id"], **more}
            answer = api.post(SNAPSHOTS, {"snapshot": body}, version=version)
            if answer.status_code == 202:
                made.append(answer.json()["snapshot"]["id"])
            return answer

        refused(ask("3.65"), 400)
        refused(ask("3.65", force=False), 400)
        refused(ask("3.66", force=False), 400)
        refused(ask("3.66", force="no"), 400)
        good(ask("3.65", force=True), 202)
        good(ask("3.65", force="yes"), 202)
        good(ask("3.66"), 202)
        good(ask("3.66", force=True), 202)
        for each in made:  # how they end is the back end's business
            wait_rest(api, f"{SNAPSHOTS}/{each}")
            assert api.delete(f"{SNAPSHOTS}/{each}").status_code == 202
            wait_gone(api, f"{SNAPSHOTS}/{each}")


def test_volume_with_snapshots_stays(api, volume, snapshot):
    refused(api.delete(f"/v3/volumes/{volume['id']}"), 400)
    assert good(api.get(f"{SNAPSHOTS}/{snapshot['id']}"))["snapshot"]["status"] == "available"


@pytest.mark.parametrize(
    "body", [{}, {"name": "n" * 256}, {"name": 3}, {"description": "d" * 256}, {"size": 2}, {"metadata": {}}]
)
def test_bad_updates_are_refused(api, snapshot, body):
    refused(api.put(f"{SNAPSHOTS}/{snapshot['id']}", {"snapshot": body}), 400)


def test_update(api, snapshot):
    path = f"{SNAPSHOTS}/{snapshot['id']}"
    body = {"name": " new ", "description": None}
    changed = good(api.put(path, {"snapshot": body}, version="3.0"))["snapshot"]
    assert (changed["name"], changed["description"]) == ("new", None)
    assert changed["updated_at"] is not None
    assert set(changed) == BASE


def test_delete_needs_a_resting_status(api, snapshot):
    path = f"{SNAPSHOTS}/{snapshot['id']}"
    reset(api, path, "creating")
    assert "creating" in refused(api.delete(path), 400)
    reset(api, path, "error")
    assert api.delete(path).status_code == 202
    wait_gone(api, path)
    refused(api.delete(path), 404)


# --- who may ---------------------------------------------------------------------------------------------


def test_another_projects_snapshot_is_not_found(api, snapshot):
    path = f"{SNAPSHOTS}/{snapshot['id']}"
    refused(api.get(path, as_="other"), 404)
    refused(api.put(path, {"snapshot": {"name": "mine"}}, as_="other"), 404)
    refused(api.delete(path, as_="other"), 404)
    refused(api.get(f"{path}/metadata", as_="other"), 404)
    refused(api.get(f"{path}/metadata/k", as_="other"), 404)
    refused(api.post(f"{path}/metadata", {"metadata": {"a": "b"}}, as_="other"), 404)
    refused(api.delete(f"{path}/metadata/k", as_="other"), 404)
    report = {"os-update_snapshot_status": {"status": "available"}}
    refused(api.post(f"{path}/action", report, as_="other"), 404)
    assert snapshot["id"] not in ids(api.get(f"{SNAPSHOTS}?all_tenants=1", as_="other"), "snapshots")
    refused(api.get(f"{SNAPSHOTS}?marker={snapshot['id']}", as_="other"), 404)


def test_readers_only_look(api, volume, snapshot):
    path = f"{SNAPSHOTS}/{snapshot['id']}"
    good(api.get(path, as_="reader"))
    good(api.get(f"{path}/metadata/k", as_="reader"))
    assert snapshot["id"] in ids(api.get(SNAPSHOTS, as_="reader"), "snapshots")
    refused(api.post(SNAPSHOTS, {"snapshot": {"volume_id": volume["id"]}}, as_="reader"), 403)
    refused(api.put(path, {"snapshot": {"name": "mine"}}, as_="reader"), 403)
    refused(api.delete(path, as_="reader"), 403)
    refused(api.put(f"{path}/metadata", {"metadata": {}}, as_="reader"), 403)
    refused(api.delete(f"{path}/metadata/k", as_="reader"), 403)
    report = {"os-update_snapshot_status": {"status": "available"}}
    refused(api.post(f"{path}/action", report, as_="reader"), 403)


def test_members_are_no_administrators(api, snapshot):
    path = f"{SNAPSHOTS}/{snapshot['id']}/action"
    refused(api.post(path, {"os-reset_status": {"status": "error"}}), 403)
    refused(api.post(path, {"os-force_delete": {}}), 403)


# --- metadata --------------------------------------------------------------------------------------------


def test_metadata_life(api, snapshot):
    path = f"{SNAPSHOTS}/{snapshot['id']}/metadata"
    assert good(api.get(path)) == {"metadata": {"k": "v"}}
    assert good(api.post(path, {"metadata": {"a": "1"}})) == {"metadata": {"k": "v", "a": "1"}}
    assert good(api.get(f"{path}/a")) == {"meta": {"a": "1"}}
    assert good(api.put(f"{path}/a", {"meta": {"a": "2"}})) == {"meta": {"a": "2"}}
    assert good(api.put(path, {"metadata": {"b": ""}})) == {"metadata": {"b": ""}}
    refused(api.get(f"{path}/a"), 404)
    refused(api.delete(f"{path}/a"), 404)
    gone = api.delete(f"{path}/b")
    assert (gone.status_code, gone.content) == (200, b"")
    assert good(api.get(path)) == {"metadata": {}}
    assert good(api.put(f"{path}/c", {"meta": {"c": "3"}})) == {"meta": {"c": "3"}}


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        {"metadata": None},
        {"metadata": []},
        {"metadata": {"": "v"}},
        {"metadata": {"k" * 256: "v"}},
        {"metadata": {"k": "v" * 256}},
        {"metadata": {"k": None}},
        {"metadata": {"a/b": "v"}},
        {"metadata": {}, "more": 1},
    ],
)
def test_bad_metadata_is_refused(api, snapshot, document):
    path = f"{SNAPSHOTS}/{snapshot['id']}/metadata"
    refused(api.post(path, document), 400)
    refused(api.put(path, document), 400)
    assert good(api.get(path)) == {"metadata": {"k": "v"}}


@pytest.mark.parametrize(
    "document", [None, {}, {"meta": {}}, {"meta": {"x": "1"}}, {"meta": {"k": "1", "x": "2"}}]
)
def test_one_item_must_be_the_one_of_the_url(api, snapshot, document):
    refused(api.put(f"{SNAPSHOTS}/{snapshot['id']}/metadata/k", document), 400)


# --- actions ---------------------------------------------------------------------------------------------


def test_reset_status_takes_every_word(api, snapshot):
    path = f"{SNAPSHOTS}/{snapshot['id']}"
    for status in ("error", "deleting", "backing-up", "restoring", "available"):
        reset(api, path, status)
        assert good(api.get(path))["snapshot"]["status"] == status


@pytest.mark.parametrize(
    "value", [None, {}, [], {"status": "in-use"}, {"status": None}, {"status": "error", "x": 1}]
)
def test_bad_resets_are_refused(api, snapshot, value):
    path = f"{SNAPSHOTS}/{snapshot['id']}"
    refused(api.post(f"{path}/action", {"os-reset_status": value}, as_="admin"), 400)
    assert good(api.get(path))["snapshot"]["status"] == "available"


def test_force_delete_whatever_the_status(api, snapshot):
    path = f"{SNAPSHOTS}/{snapshot['id']}"
    reset(api, path, "updating")
    refused(api.delete(path), 400)
    assert api.post(f"{path}/action", {"os-force_delete": None}, as_="admin").status_code == 202
    wait_gone(api, path)


@pytest.mark.parametrize(
    ("present", "reported", "status"),
    [
        ("creating", "creating", 202),
        ("creating", "available", 202),
        ("creating", "error", 202),
        ("creating", "deleting", 400),
        ("creating", "error_deleting", 400),
        ("deleting", "deleting", 202),
        ("deleting", "error_deleting", 202),
        ("deleting", "available", 400),
        ("available", "error", 400),
        ("error", "available", 400),
        ("creating", "backing-up", 400),
        ("creating", "nonsense", 400),
    ],
)
def test_reported_statuses(api, snapshot, present, reported, status):
    path = f"{SNAPSHOTS}/{snapshot['id']}"
    reset(api, path, present)
    report = {"os-update_snapshot_status": {"status": reported, "progress": "42%"}}
    answer = api.post(f"{path}/action", report)
    assert answer.status_code == status, answer.text
    shown = good(api.get(path))["snapshot"]
    assert shown["status"] == (reported if status == 202 else present)
    assert shown["os-extended-snapshot-attributes:progress"] == ("42%" if status == 202 else "100%")


@pytest.mark.parametrize("progress", ["101%", "5", "-1%", "x%", 50, ""])
def test_bad_progress_is_refused(api, snapshot, progress):
    path = f"{SNAPSHOTS}/{snapshot['id']}"
    reset(api, path, "creating")
    report = {"os-update_snapshot_status": {"status": "creating", "progress": progress}}
    refused(api.post(f"{path}/action", report), 400)


@pytest.mark.parametrize(
    "document", [None, {}, {"dance": {}}, {"os-reset_status": {}, "os-force_delete": {}}]
)
def test_unknown_actions_are_refused(api, snapshot, document):
    refused(api.post(f"{SNAPSHOTS}/{snapshot['id']}/action", document, as_="admin"), 400)


# --- lists -----------------------------------------------------------------------------------------------


def test_paging_sorting_and_count(api, volume):
    with a_snapshot(api, volume, name="b-list") as first, a_snapshot(api, volume, name="a-list") as second:
        mine = f"volume_id={volume['id']}"
        both = [second["id"], first["id"]]
        assert ids(api.get(f"{SNAPSHOTS}?{mine}"), "snapshots") == both
        assert ids(api.get(f"{SNAPSHOTS}/detail?{mine}&sort=created_at:asc"), "snapshots") == both[::-1]
        page = good(api.get(f"{SNAPSHOTS}?{mine}&limit=1&with_count=true", version="3.45"))
        assert ([each["id"] for each in page["snapshots"]], page["count"]) == ([second["id"]], 2)
        assert f"marker={second['id']}" in page["snapshots_links"][0]["href"]
        following = api.get(f"{SNAPSHOTS}?{mine}&limit=1&marker={second['id']}")
        assert ids(following, "snapshots") == [first["id"]]
        assert "count" not in good(api.get(f"{SNAPSHOTS}?with_count=true", version="3.44"))
        assert ids(api.get(f"{SNAPSHOTS}?{mine}&sort=name:desc", version="3.30"), "snapshots") == both[::-1]
        refused(api.get(f"{SNAPSHOTS}?sort=name:desc", version="3.29"), 400)
        older = f"{SNAPSHOTS}?{mine}&sort_key=display_name&sort_dir=desc"
        assert ids(api.get(older, version="3.0"), "snapshots") == both[::-1]
    for query in ("limit=-1", "limit=x", "offset=x", "sort=colour", "sort=id:up", "sort=id&sort_key=id"):
        refused(api.get(f"{SNAPSHOTS}?{query}"), 400)
    refused(api.get(f"{SNAPSHOTS}?marker={NOBODY}"), 404)


def test_filters(api, volume):
    with (
        a_snapshot(api, volume, name="filtered", metadata={"colour": "red"}) as made,
        a_snapshot(api, volume) as plain,
    ):

        def seen(query, version, as_="member"):
            found = ids(api.get(f"{SNAPSHOTS}?{query}", version=version, as_=as_), "snapshots")
            return made["id"] in found, plain["id"] in found

        assert seen("name=filtered", LATEST) == (True, False)
        assert seen("status=available", LATEST) == (True, True)
        assert seen("status=error", LATEST) == (False, False)
        assert seen(f"volume_id={volume['id']}", LATEST) == (True, True)
        assert seen("metadata={'colour':'red'}", "3.22") == (True, False)
        assert seen("metadata={'colour':'blue'}", "3.22") == (False, False)
        assert seen("metadata=nonsense", "3.22") == (False, False)
        assert seen("metadata={'colour':'red'}", "3.21") == (True, True)
        assert seen("consumes_quota=false", "3.65") == (False, False)
        assert seen("consumes_quota=false", "3.64") == (True, True)
        assert seen("colour=red", "3.30") == (True, True)
        refused(api.get(f"{SNAPSHOTS}?colour=red", version="3.31"), 400)
        assert seen("colour=red", "3.31", "admin") == (False, False)
        assert seen("name~=ilter", "3.34", "admin") == (True, False)


def test_all_tenants_is_for_administrators(api):
    with a_volume(api, as_="other") as theirs, a_snapshot(api, theirs, as_="other") as made:
        assert made["id"] in ids(api.get(SNAPSHOTS, as_="other"), "snapshots")
        assert made["id"] in ids(api.get(f"{SNAPSHOTS}?all_tenants=1", as_="admin"), "snapshots")
        assert made["id"] not in ids(api.get(SNAPSHOTS, as_="admin"), "snapshots")
        assert made["id"] not in ids(api.get(f"{SNAPSHOTS}?all_tenants=0", as_="admin"), "snapshots")
        assert made["id"] not in ids(api.get(f"{SNAPSHOTS}?all_tenants=1", as_="member"), "snapshots")
        good(api.get(f"{SNAPSHOTS}/{made['id']}", as_="admin"))
