"""Volumes over the wire: create, show, list, update, delete, metadata, summary, encryption."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.steps import a_snapshot, a_volume, fresh, good, ids, refused, wait_gone

LATEST = "3.71"
KEYS_AT_3_0 = {
    "id",
    "name",
    "description",
    "user_id",
    "availability_zone",
    "status",
    "size",
    "created_at",
    "updated_at",
    "volume_type",
    "snapshot_id",
    "source_volid",
    "consistencygroup_id",
    "metadata",
    "links",
    "bootable",
    "encrypted",
    "multiattach",
    "replication_status",
    "attachments",
}
TENANT = "os-vol-tenant-attr:tenant_id"
FOR_ADMINS = {"os-vol-host-attr:host", "os-vol-mig-status-attr:migstat", "os-vol-mig-status-attr:name_id"}


@pytest.fixture
def volume(api: Any) -> Iterator[dict[str, Any]]:
    """An available volume of the member's project."""
    with a_volume(api, metadata={"colour": "red"}) as made:
        yield made


def path_of(volume: dict[str, Any], tail: str = "") -> str:
    return f"/v3/volumes/{volume['id']}{tail}"


def create(api: Any, version: str = LATEST, **body: Any) -> Any:
    return api.post("/v3/volumes", {"volume": body}, version=version)


def dispose(api: Any, answer: Any) -> dict[str, Any]:
    """The volume of a create answer, which is deleted again."""
    made = good(answer, 202)["volume"]
    path = path_of(made)
    api.wait(path, "volume", "available")
    good(api.delete(path), 202)
    wait_gone(api, path)
    return dict(made)


# --- show ------------------------------------------------------------------------------------------------


def test_keys_at_the_oldest_version(api: Any, volume: dict[str, Any]) -> None:
    shown = good(api.get(path_of(volume), version="3.0"))["volume"]
    assert set(shown) == KEYS_AT_3_0 | {TENANT}
    assert shown["bootable"] == "false"
    assert shown["encrypted"] is False
    assert shown["multiattach"] is False
    assert shown["attachments"] == []
    assert shown["metadata"] == {"colour": "red"}
    assert len(shown["created_at"]) == 26
    assert "Z" not in shown["created_at"]


def test_administrators_see_more(api: Any, volume: dict[str, Any]) -> None:
    shown = good(api.get(path_of(volume), version="3.0", as_="admin"))["volume"]
    assert set(shown) == KEYS_AT_3_0 | {TENANT, "migration_status"} | FOR_ADMINS
    assert "#" in shown["os-vol-host-attr:host"]


@pytest.mark.parametrize(
    ("key", "version", "as_"),
    [
        ("group_id", 13, "member"),
        ("provider_id", 21, "admin"),
        ("shared_targets", 48, "member"),
        ("service_uuid", 48, "member"),
        ("cluster_name", 61, "admin"),
        ("volume_type_id", 63, "member"),
        ("consumes_quota", 65, "member"),
    ],
)
def test_keys_appear_with_their_version(
    api: Any, volume: dict[str, Any], key: str, version: int, as_: str
) -> None:
    for path, of in ((path_of(volume), "volume"), (f"/v3/volumes/detail?name={volume['name']}", "volumes")):
        extra = "&all_tenants=1" if as_ == "admin" and "?" in path else ""
        before = good(api.get(path + extra, version=f"3.{version - 1}", as_=as_))[of]
        after = good(api.get(path + extra, version=f"3.{version}", as_=as_))[of]
        for shown, expected in ((before, False), (after, True)):
            item = shown[0] if isinstance(shown, list) else shown
            assert (key in item) is expected
    if as_ == "admin":
        assert key not in good(api.get(path_of(volume), version=LATEST))["volume"]


def test_others_do_not_find_it(api: Any, volume: dict[str, Any]) -> None:
    refused(api.get(path_of(volume), as_="other"), 404)
    refused(api.get("/v3/volumes/" + str(uuid.uuid4())), 404)
    refused(api.get("/v3/volumes/root"), 404)
    assert good(api.get(path_of(volume), as_="reader"))["volume"]["id"] == volume["id"]


# --- create ----------------------------------------------------------------------------------------------


def test_create_answers_at_once(api: Any) -> None:
    name = fresh("v")
    made = dispose(api, create(api, size=2, name=f"  {name} ", description=" d ", metadata={"a": "b"}))
    assert made["name"] == name
    assert made["description"] == "d"
    assert made["size"] == 2
    assert made["status"] == "creating"
    assert made["metadata"] == {"a": "b"}
    assert not {key for key in made if key.startswith("os-vol-")}
    assert "volume_image_metadata" not in made


def test_create_takes_the_nulls_of_clients(api: Any) -> None:
    nothing = dict.fromkeys(
        (
            *("name", "description", "volume_type", "availability_zone", "snapshot_id", "source_volid"),
            *("imageRef", "consistencygroup_id", "metadata", "multiattach", "backup_id", "group_id"),
        )
    )
    made = dispose(api, create(api, size="1", **nothing))
    assert made["name"] is None
    assert made["size"] == 1


def test_old_names_of_texts(api: Any) -> None:
    made = dispose(api, create(api, "3.0", size=1, display_name="n", display_description="d"))
    assert (made["name"], made["description"]) == ("n", "d")


def test_name_of_spaces_is_trimmed(api: Any) -> None:
    assert dispose(api, create(api, size=1, name="   "))["name"] == ""


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": "no size"},
        {"size": None},
        {"size": 0},
        {"size": -1},
        {"size": "0"},
        {"size": "-1"},
        {"size": "abc"},
        {"size": ""},
        {"size": " 1"},
        {"size": 1.5},
        {"size": True},
        {"size": [1]},
        {"size": 2147483648},
        {"size": "2147483648"},
        {"size": 10**30},
        {"size": 1, "name": "n" * 256},
        {"size": 1, "name": 7},
        {"size": 1, "description": "d" * 256},
        {"size": 1, "metadata": {"": "x"}},
        {"size": 1, "metadata": {"k" * 256: "x"}},
        {"size": 1, "metadata": {"k": "v" * 256}},
        {"size": 1, "metadata": {"k": None}},
        {"size": 1, "metadata": {"k": 1}},
        {"size": 1, "metadata": {"ä": "x"}},
        {"size": 1, "metadata": []},
        {"size": 1, "snapshot_id": "no-uuid"},
        {"size": 1, "source_volid": ""},
        {"size": 1, "availability_zone": ""},
        {"size": 1, "availability_zone": "z" * 256},
        {"size": 1, "availability_zone": "nowhere"},
        {"size": 1, "imageRef": "i" * 256},
        {"size": 1, "imageRef": "no-such-image"},
        {"size": 1, "multiattach": True},
        {"size": 1, "multiattach": "yes"},
        {"size": 1, "multiattach": 1},
        {"size": 1, "snapshot_id": str(uuid.uuid4()), "source_volid": str(uuid.uuid4())},
        {"size": 1, "snapshot_id": str(uuid.uuid4()), "imageRef": "x"},
    ],
)
def test_bad_creates_leave_nothing(api: Any, body: dict[str, Any]) -> None:
    before = ids(api.get("/v3/volumes"), "volumes")
    for version in ("3.0", LATEST):
        refused(create(api, version, **body), 400)
    assert ids(api.get("/v3/volumes"), "volumes") == before


def test_limits_of_texts_are_inclusive(api: Any) -> None:
    metadata = {"k" * 255: "v" * 255, "-_:. /": "", "1": "1"}
    made = dispose(api, create(api, size=1, name="n" * 255, description="d" * 255, metadata=metadata))
    assert made["name"] == "n" * 255
    assert made["metadata"] == metadata


def test_create_from_what_does_not_exist(api: Any) -> None:
    for key in ("snapshot_id", "source_volid", "backup_id"):
        refused(create(api, size=1, **{key: str(uuid.uuid4())}), 404)
    refused(create(api, size=1, volume_type="no-such-type"), 404)


def test_what_is_not_there_is_told_before_what_is_not_ready(api: Any) -> None:
    with a_volume(api) as source:
        path = f"/v3/volumes/{source['id']}/action"
        good(api.post(path, {"os-reset_status": {"status": "error"}}, as_="admin"), 202)
        wanted = {"source_volid": source["id"], "size": 1}
        refused(api.post("/v3/volumes", {"volume": wanted}), 400)
        refused(api.post("/v3/volumes", {"volume": {**wanted, "volume_type": "no such"}}), 404)


def test_unknown_keys_are_refused_from_3_53_on(api: Any) -> None:
    dispose(api, create(api, "3.52", size=1, surprise=1))
    refused(create(api, "3.53", size=1, surprise=1), 400)


@pytest.mark.parametrize(("key", "version"), [("group_id", 13), ("backup_id", 47)])
def test_keys_of_later_versions_are_ignored(api: Any, key: str, version: int) -> None:
    unknown = str(uuid.uuid4())
    dispose(api, create(api, f"3.{version - 1}", size=1, **{key: unknown}))
    refused(create(api, f"3.{version}", size=1, **{key: unknown}), 404)


def test_other_keys_beside_the_volume(api: Any) -> None:
    body = {"volume": {"size": 1}, "surprise": {}}
    refused(api.post("/v3/volumes", body), 400)
    refused(api.post("/v3/volumes", {}), 400)
    refused(api.post("/v3/volumes", {"volume": None}), 400)
    refused(api.post("/v3/volumes", {"volume": []}), 400)


HINTS = "OS-SCH-HNT:scheduler_hints"


@pytest.mark.parametrize(
    "hints",
    [
        {"same_host": "x"},
        {"same_host": ["x"]},
        {"different_host": [str(uuid.UUID(int=1)), str(uuid.UUID(int=1))]},
        {"local_to_instance": "x"},
        {"query": 5},
        [],
        "x",
    ],
)
def test_bad_scheduler_hints(api: Any, hints: Any) -> None:
    refused(api.post("/v3/volumes", {"volume": {"size": 1}, HINTS: hints}), 400)


@pytest.mark.parametrize("hints", [None, {}, {"different_host": [str(uuid.UUID(int=1))], "anything": 1}])
def test_good_scheduler_hints(api: Any, hints: Any) -> None:
    dispose(api, api.post("/v3/volumes", {"volume": {"size": 1}, HINTS: hints}))


def test_readers_do_not_create(api: Any) -> None:
    refused(api.post("/v3/volumes", {"volume": {"size": 1}}, as_="reader"), 403)


def test_quota_says_when_to_retry(api: Any) -> None:
    answer = create(api, size=2147483647)
    message = refused(answer, 413)
    assert answer.headers["retry-after"] == "0"
    assert answer.json()["overLimit"]["retryAfter"] == "0"
    assert message.split(":")[0].isalpha()


# --- lists -----------------------------------------------------------------------------------------------


@pytest.fixture
def three(api: Any) -> Iterator[list[dict[str, Any]]]:
    """Three volumes, the oldest first, with a name that begins alike."""
    stem = fresh("three")
    with (
        a_volume(api, name=f"{stem}-b", size=1, metadata={"stem": stem}) as first,
        a_volume(api, name=f"{stem}-a", size=2, metadata={"stem": stem}) as second,
        a_volume(api, name=f"{stem}-c", size=3, metadata={"stem": stem}) as third,
    ):
        yield [first, second, third]


def of_these(three: list[dict[str, Any]]) -> str:
    """The filter that finds the three."""
    return f"metadata={{'stem':'{three[0]['metadata']['stem']}'}}"


def test_newest_first(api: Any, three: list[dict[str, Any]]) -> None:
    found = ids(api.get(f"/v3/volumes?{of_these(three)}"), "volumes")
    assert found == [each["id"] for each in reversed(three)]
    item = good(api.get(f"/v3/volumes?{of_these(three)}"))["volumes"][0]
    assert set(item) == {"id", "name", "links"}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sort=name:asc", "bac"),
        ("sort=name", "cab"),
        ("sort=size:asc,name:desc", "abc"),
        ("sort_key=display_name&sort_dir=asc", "bac"),
        ("sort_key=size", "cba"),
        ("sort_dir=asc", "abc"),
    ],
)
def test_sorting(api: Any, three: list[dict[str, Any]], query: str, expected: str) -> None:
    found = ids(api.get(f"/v3/volumes/detail?{of_these(three)}&{query}"), "volumes")
    # letters stand for the order of creation
    assert found == [three["abc".index(letter)]["id"] for letter in expected]


def test_pages_follow_their_links(api: Any, three: list[dict[str, Any]]) -> None:
    query = f"{of_these(three)}&sort=size:asc"
    document = good(api.get(f"/v3/volumes?limit=2&{query}"))
    assert [each["id"] for each in document["volumes"]] == [three[0]["id"], three[1]["id"]]
    (link,) = document["volumes_links"]
    assert link["rel"] == "next"
    assert f"marker={three[1]['id']}" in link["href"]
    following = good(api.get(link["href"].removeprefix(api.service.url)))
    assert [each["id"] for each in following["volumes"]] == [three[2]["id"]]
    assert "volumes_links" not in following


def test_offset_and_limit_zero(api: Any, three: list[dict[str, Any]]) -> None:
    found = ids(api.get(f"/v3/volumes?offset=1&limit=1&{of_these(three)}"), "volumes")
    assert found == [three[1]["id"]]
    assert good(api.get("/v3/volumes?limit=0")) == {"volumes": []}


def test_count_from_3_45_on(api: Any, three: list[dict[str, Any]]) -> None:
    query = f"/v3/volumes/detail?with_count=true&limit=1&{of_these(three)}"
    assert "count" not in good(api.get(query, version="3.44"))
    document = good(api.get(query, version="3.45"))
    assert document["count"] == 3
    assert len(document["volumes"]) == 1
    refused(api.get("/v3/volumes?with_count=perhaps", version="3.45"), 400)
    last = f"{query}&offset=2"
    assert "volumes_links" in good(api.get(last, version="3.45"))  # kept: the page behind it is empty


def test_filters(api: Any, three: list[dict[str, Any]]) -> None:
    def found(query: str, version: str = LATEST, as_: str = "member") -> list[str]:
        return ids(api.get(f"/v3/volumes?{of_these(three)}&{query}", version=version, as_=as_), "volumes")

    everything = [each["id"] for each in reversed(three)]
    assert found(f"name={three[1]['name']}") == [three[1]["id"]]
    assert found("name=nobody") == []
    assert found("size=2") == [three[1]["id"]]
    assert found("size=two") == []
    assert found("status=available") == everything
    assert found("status=['error','available']") == everything
    assert found("bootable=false") == everything
    assert found("bootable=true") == []
    assert found("availability_zone=nowhere") == []
    assert found("consumes_quota=false", "3.65") == []
    assert found("consumes_quota=false", "3.64") == everything


def test_metadata_filter(api: Any, three: list[dict[str, Any]]) -> None:
    for text in ("{'stem':'other'}", "nonsense", "['a']", '{"quo\\"te": "x"}', "(" * 500, "-" * 19999 + "1"):
        assert ids(api.get("/v3/volumes", params={"metadata": text}, version=LATEST), "volumes") == []


def test_bootable_filter_is_strict_from_3_2_on(api: Any) -> None:
    good(api.get("/v3/volumes?bootable=perhaps", version="3.1"))
    refused(api.get("/v3/volumes?bootable=perhaps", version="3.2"), 400)


def test_unknown_filters(api: Any, volume: dict[str, Any]) -> None:
    assert volume["id"] in ids(api.get("/v3/volumes?surprise=1", version="3.30"), "volumes")
    assert "surprise" in refused(api.get("/v3/volumes?surprise=1", version="3.31"), 400)
    assert ids(api.get("/v3/volumes?surprise=1", version=LATEST, as_="admin"), "volumes") == []
    good(api.get("/v3/volumes?all_tenants=1", version="3.31"))


def test_like_filters_are_for_those_allowed(api: Any, three: list[dict[str, Any]]) -> None:
    stem = three[0]["metadata"]["stem"]
    refused(api.get(f"/v3/volumes?name~={stem}", version="3.34"), 400)
    query = f"/v3/volumes?name~={stem}-&all_tenants=1"
    assert len(ids(api.get(query, version="3.34", as_="admin"), "volumes")) == 3
    assert ids(api.get(query, version="3.33", as_="admin"), "volumes") == []
    query = f"/v3/volumes?name~=%25{stem}&all_tenants=1"
    assert ids(api.get(query, version="3.34", as_="admin"), "volumes") == []
    assert stem.upper() != stem
    query = f"/v3/volumes?name~={stem.upper()}-&all_tenants=1"
    assert ids(api.get(query, version="3.34", as_="admin"), "volumes") == [], "texts are told apart by case"


def test_group_filter_from_3_10_on(api: Any, volume: dict[str, Any]) -> None:
    query = f"/v3/volumes?group_id={uuid.uuid4()}"
    assert volume["id"] in ids(api.get(query, version="3.9"), "volumes")
    assert ids(api.get(query, version="3.10"), "volumes") == []


def test_time_comparisons_from_3_60_on(api: Any, three: list[dict[str, Any]]) -> None:
    middle = three[1]["created_at"]

    def found(text: str, version: str = "3.60") -> int:
        params = {"created_at": text, "metadata": of_these(three).removeprefix("metadata=")}
        return len(ids(api.get("/v3/volumes", params=params, version=version), "volumes"))

    assert found(f"gt:{middle}") == 1
    assert found(f"gte:{middle}") == 2
    assert found(f"lt:{middle}") == 1
    assert found(f"lte:{middle}+00:00") == 2
    assert found(f"eq:{middle}Z") == 1
    assert found(f"neq:{middle}") == 2
    assert found(f"gt:{middle},lt:{middle}") == 2  # either of them
    assert found("gt:2999-01-01T00:00:00") == 0
    assert found("gt:2999-01-01T00:00:00", "3.59") == 3
    for text in (
        "2020-01-01T00:00:00",
        "near:2020-01-01T00:00:00",
        "gt:yesterday",
        "gt:",
        "",
        "gt:0001-01-01T00:00:00+23:59",
    ):
        refused(api.get("/v3/volumes", params={"created_at": text}, version="3.60"), 400)


def test_all_tenants_is_for_administrators(api: Any) -> None:
    with a_volume(api, as_="other") as volume:
        query = f"/v3/volumes?name={volume['name']}"
        assert ids(api.get(query, as_="admin"), "volumes") == []
        assert ids(api.get(f"{query}&all_tenants=1", as_="admin"), "volumes") == [volume["id"]]
        assert ids(api.get(f"{query}&all_tenants=0", as_="admin"), "volumes") == []
        assert ids(api.get(f"{query}&all_tenants=1"), "volumes") == []


def test_host_filter(api: Any, volume: dict[str, Any]) -> None:
    pool = volume["os-vol-host-attr:host"]
    for host, expected in ((pool, 1), (pool.split("#")[0], 1), (pool.split("@")[0], 1), (pool[:-1], 0)):
        params = {"host": host, "all_tenants": "1", "name": volume["name"]}
        assert len(ids(api.get("/v3/volumes", params=params, as_="admin"), "volumes")) == expected


def test_markers_of_other_projects_are_unknown(api: Any, volume: dict[str, Any]) -> None:
    refused(api.get(f"/v3/volumes?marker={volume['id']}", as_="other"), 404)
    good(api.get(f"/v3/volumes?marker={volume['id']}"))


# --- summary ---------------------------------------------------------------------------------------------


def test_summary(api: Any, three: list[dict[str, Any]]) -> None:
    path = "/v3/volumes/summary"
    refused(api.get(path, version="3.11"), 404)
    told = good(api.get(path, version="3.12"))["volume-summary"]
    assert set(told) == {"total_count", "total_size"}
    assert told["total_count"] >= 3
    assert set(good(api.get(path, version="3.35"))["volume-summary"]) == {"total_count", "total_size"}
    told = good(api.get(path, version="3.36"))["volume-summary"]
    assert three[0]["metadata"]["stem"] in told["metadata"]["stem"]
    assert len(told["metadata"]["stem"]) == len(set(told["metadata"]["stem"]))
    theirs = good(api.get(path, version="3.36", as_="other"))["volume-summary"]
    assert theirs == {"total_count": 0, "total_size": 0, "metadata": {}}
    everybody = good(api.get(f"{path}?all_tenants=1", version="3.12", as_="admin"))["volume-summary"]
    assert everybody["total_size"] >= 6


# --- update and delete -----------------------------------------------------------------------------------


def test_update(api: Any, volume: dict[str, Any]) -> None:
    body = {"volume": {"name": " new ", "display_description": "d", "metadata": {"only": "this"}}}
    told = good(api.put(path_of(volume), body, version=LATEST))["volume"]
    assert (told["name"], told["description"]) == ("new", "d")
    assert told["metadata"] == {"only": "this"}
    assert told["updated_at"] is not None
    assert not {key for key in told if key.startswith("os-vol-")}
    good(api.put(path_of(volume), {"volume": {"name": None}}))
    assert good(api.get(path_of(volume)))["volume"]["name"] is None


def test_update_refuses(api: Any, volume: dict[str, Any]) -> None:
    for bad in ({"size": 2}, {"name": "n" * 256}, {"metadata": {"": "x"}}, {"metadata": "x"}):
        refused(api.put(path_of(volume), {"volume": bad}), 400)
    refused(api.put(path_of(volume), {"name": "x"}), 400)
    good(api.put(path_of(volume), {"volume": {}}, version="3.52"))
    refused(api.put(path_of(volume), {"volume": {}}, version="3.53"), 400)
    refused(api.put(path_of(volume), {"volume": {"name": "x"}}, as_="reader"), 403)
    refused(api.put(path_of(volume), {"volume": {"name": "x"}}, as_="other"), 404)


def test_delete(api: Any) -> None:
    with a_volume(api) as volume:
        refused(api.delete(path_of(volume), as_="reader"), 403)
        refused(api.delete(path_of(volume), as_="other"), 404)
        refused(api.delete(path_of(volume, "?cascade=perhaps")), 400)
        answer = api.delete(path_of(volume, "?cascade=False&force=False"), version=LATEST)
        assert (answer.status_code, answer.content) == (202, b"")
        wait_gone(api, path_of(volume))
        refused(api.delete(path_of(volume)), 404)


def test_delete_with_snapshots_needs_cascade(api: Any) -> None:
    with a_volume(api) as volume, a_snapshot(api, volume):
        refused(api.delete(path_of(volume)), 400)
        good(api.delete(path_of(volume, "?cascade=true")), 202)
        wait_gone(api, path_of(volume))


def test_forced_delete_from_3_23_on(api: Any, volume: dict[str, Any]) -> None:
    body = {"os-reset_status": {"status": "error_deleting"}}
    good(api.post(path_of(volume, "/action"), body, as_="admin"), 202)
    refused(api.delete(path_of(volume, "?force=true"), version="3.22", as_="admin"), 400)
    refused(api.delete(path_of(volume, "?force=true"), version="3.23"), 403)
    good(api.delete(path_of(volume, "?force=true"), version="3.23", as_="admin"), 202)
    wait_gone(api, path_of(volume))


# --- metadata --------------------------------------------------------------------------------------------


def test_metadata(api: Any, volume: dict[str, Any]) -> None:
    path = path_of(volume, "/metadata")
    assert good(api.get(path)) == {"metadata": {"colour": "red"}}
    assert good(api.post(path, {"metadata": {"a": "1"}})) == {"metadata": {"colour": "red", "a": "1"}}
    assert good(api.put(path, {"metadata": {"b": "2"}})) == {"metadata": {"b": "2"}}
    assert good(api.get(f"{path}/b")) == {"meta": {"b": "2"}}
    assert good(api.put(f"{path}/c", {"meta": {"c": "3"}})) == {"meta": {"c": "3"}}
    answer = api.delete(f"{path}/b")
    assert (answer.status_code, answer.content) == (200, b"")
    refused(api.get(f"{path}/b"), 404)
    refused(api.delete(f"{path}/b"), 404)
    assert good(api.get(path)) == {"metadata": {"c": "3"}}
    assert good(api.put(path, {"metadata": {}})) == {"metadata": {}}


def test_metadata_refuses(api: Any, volume: dict[str, Any]) -> None:
    path = path_of(volume, "/metadata")
    for bad in ({"": "x"}, {"k" * 256: "x"}, {"k": "v" * 256}, {"k": None}, {"k": 1}, {"k?": "x"}, [], None):
        refused(api.post(path, {"metadata": bad}), 400)
        refused(api.put(path, {"metadata": bad}), 400)
    refused(api.post(path, {"meta": {}}), 400)
    refused(api.put(f"{path}/a", {"meta": {"b": "1"}}), 400)
    refused(api.put(f"{path}/a", {"meta": {"a": "1", "b": "1"}}), 400)
    refused(api.put(f"{path}/a", {"meta": {}}), 400)
    refused(api.post(path, {"metadata": {}}, as_="reader"), 403)
    refused(api.get(path, as_="other"), 404)
    good(api.get(path, as_="reader"))


def test_etags_from_3_15_on(api: Any, volume: dict[str, Any]) -> None:
    path = path_of(volume, "/metadata")
    assert "etag" not in api.get(path, version="3.14").headers
    answer = api.get(path, version="3.15")
    tag = answer.headers["etag"]
    assert tag == hashlib.md5(answer.content, usedforsecurity=False).hexdigest()
    stale = {"If-Match": "0" * 32}
    lost = api.put(path, {"metadata": {"a": "1"}}, version="3.15", headers=stale)
    assert (lost.status_code, lost.content) == (412, b"")
    lost = api.put(f"{path}/a", {"meta": {"a": "1"}}, version="3.15", headers=stale)
    assert lost.status_code == 412
    assert good(api.get(path))["metadata"] == {"colour": "red"}
    for given in (tag, f'"{tag}"', f'"other", "{tag}"', "*"):
        good(api.put(path, {"metadata": {"colour": "red"}}, version="3.15", headers={"If-Match": given}))
    good(api.put(path, {"metadata": {"a": "1"}}, version="3.14", headers=stale))


# --- encryption ------------------------------------------------------------------------------------------


def test_encryption_of_a_plain_volume(api: Any, volume: dict[str, Any]) -> None:
    path = path_of(volume, "/encryption")
    assert good(api.get(path)) == {"encryption_key_id": None}
    assert good(api.get(f"{path}/encryption_key_id")) is None
    refused(api.get(f"{path}/nothing"), 404)
    refused(api.get(path, as_="other"), 404)


def test_a_clone_of_a_volume_in_use_is_whole_or_refused(api: Any) -> None:
    capabilities = good(api.get("/v3/scheduler-stats/get_pools?detail=true", as_="admin"))["pools"][0]
    instant = capabilities["capabilities"]["clone"] == "reflink"
    with a_volume(api) as source:
        action = f"/v3/volumes/{source['id']}/action"
        attach = {"os-attach": {"mountpoint": "/dev/vdb", "host_name": "somewhere"}}
        good(api.post(action, attach), 202)
        made = good(api.post("/v3/volumes", {"volume": {"source_volid": source["id"]}}), 202)["volume"]
        path = f"/v3/volumes/{made['id']}"
        api.wait(path, "volume", "available" if instant else "error")
        good(api.delete(path), 202)
        api.wait_gone(path)
        good(api.post(action, {"os-detach": None}), 202)
