"""Transfers of volumes between projects, over the wire and under both paths."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from lapilli.store import tables
from tests.api.steps import LATEST, a_snapshot, a_type, a_volume, good, ids, refused

OLD, NEW = "/v3/os-volume-transfer", "/v3/volume-transfers"
BOTH = pytest.mark.parametrize("path", [OLD, NEW])
NOBODY = "00000000-0000-0000-0000-000000000000"


@pytest.fixture
def volume(api: Any) -> Any:
    with a_volume(api) as made:
        yield made


def offer(api: Any, volume: dict[str, Any], path: str = NEW, version: str = LATEST, **body: Any) -> Any:
    wanted = {"transfer": {"volume_id": volume["id"], **body}}
    return good(api.post(path, wanted, version=version), 202)["transfer"]


def take(api: Any, transfer: dict[str, Any], path: str = NEW, **more: Any) -> Any:
    body = {"accept": {"auth_key": transfer["auth_key"]}}
    return api.post(f"{path}/{transfer['id']}/accept", body, **{"as_": "other", **more})


def status(api: Any, volume: dict[str, Any]) -> str:
    return str(good(api.get(f"/v3/volumes/{volume['id']}", as_="admin"))["volume"]["status"])


def owner(api: Any, kind: str, identifier: str) -> str:
    key = {"volumes": "os-vol-tenant-attr:tenant_id"}.get(kind, "os-extended-snapshot-attributes:project_id")
    return str(good(api.get(f"/v3/{kind}/{identifier}", as_="admin"))[kind[:-1]][key])


def usage(api: Any, project: str) -> dict[str, int]:
    told = good(api.get(f"/v3/os-quota-sets/{project}?usage=True", as_="admin"))["quota_set"]
    return {name: each["in_use"] for name, each in told.items() if name != "id" and each["in_use"]}


# --- offer, look, take -----------------------------------------------------------------------------------


@BOTH
def test_a_volume_changes_hands(api: Any, volume: dict[str, Any], path: str) -> None:
    before = usage(api, api.project_id)
    made = offer(api, volume, path, name="gift")
    assert set(made) >= {"id", "name", "volume_id", "created_at", "links", "auth_key"}
    assert len(made["auth_key"]) == 16
    assert int(made["auth_key"], 16) >= 0
    assert status(api, volume) == "awaiting-transfer"
    taken = good(take(api, made, path), 202)["transfer"]
    assert set(taken) == {"id", "name", "volume_id", "links"}
    refused(api.get(f"/v3/volumes/{volume['id']}"), 404)
    mine = good(api.get(f"/v3/volumes/{volume['id']}", as_="other"))["volume"]
    assert mine["status"] == "available"
    assert mine["user_id"] != volume["user_id"]
    assert owner(api, "volumes", volume["id"]) == api.other_project_id
    assert usage(api, api.project_id) == {}
    assert usage(api, api.other_project_id) == before
    for as_ in ("member", "other"):
        refused(api.get(f"{path}/{made['id']}", as_=as_), 404)
    refused(take(api, made, path), 404)


@BOTH
def test_what_is_told_of_it(api: Any, volume: dict[str, Any], path: str) -> None:
    made = offer(api, volume, path, name=" gift ")
    key = made.pop("auth_key")
    assert made["name"] == "gift"
    shown = good(api.get(f"{path}/{made['id']}"))["transfer"]
    assert shown == made
    assert key not in str(shown)
    assert [link["rel"] for link in shown["links"]] == ["self", "bookmark"]
    assert shown["links"][0]["href"].endswith(f"{OLD}/{made['id']}")
    assert shown["volume_id"] == volume["id"]
    brief = {"id", "volume_id", "name", "links"}
    assert set(good(api.get(path))["transfers"][0]) == brief
    assert good(api.get(f"{path}/detail"))["transfers"] == [shown]
    assert set(shown) == brief | {
        "created_at",
        "no_snapshots",
        "source_project_id",
        "destination_project_id",
        "accepted",
    }
    assert shown["source_project_id"] == api.project_id
    assert (shown["destination_project_id"], shown["accepted"]) == (None, False)
    good(api.delete(f"{path}/{made['id']}"), 202)


@BOTH
def test_fields_by_version(api: Any, volume: dict[str, Any], path: str) -> None:
    made = offer(api, volume, path)
    history = {"source_project_id", "destination_project_id", "accepted"}
    for version, more in (
        ("3.0", set()),
        ("3.54", set()),
        ("3.55", {"no_snapshots"}),
        ("3.56", {"no_snapshots"}),
        ("3.57", {"no_snapshots", *history}),
    ):
        shown = good(api.get(f"{path}/{made['id']}", version=version))["transfer"]
        assert set(shown) == {"id", "volume_id", "name", "links", "created_at"} | more, version


@BOTH
def test_taking_it_back(api: Any, volume: dict[str, Any], path: str) -> None:
    made = offer(api, volume, path)
    refused(api.delete(f"{path}/{made['id']}", as_="reader"), 403)
    refused(api.delete(f"{path}/{made['id']}", as_="other"), 404)
    good(api.delete(f"{path}/{made['id']}"), 202)
    assert status(api, volume) == "available"
    refused(take(api, made, path), 404)
    refused(api.delete(f"{path}/{made['id']}"), 404)


def test_taking_it_back_leaves_alone_what_was_reset(api: Any, volume: dict[str, Any]) -> None:
    made = offer(api, volume)
    reset = {"os-reset_status": {"status": "error"}}
    api.post(f"/v3/volumes/{volume['id']}/action", reset, as_="admin")
    assert "awaiting-transfer" in refused(take(api, made), 400)
    good(api.delete(f"{NEW}/{made['id']}"), 202)
    assert status(api, volume) == "error"


def test_an_offer_is_seen_by_its_project_only(api: Any, volume: dict[str, Any]) -> None:
    made = offer(api, volume)
    refused(api.get(f"{NEW}/{made['id']}", as_="other"), 404)
    for query in ("", "?all_tenants=1"):
        assert ids(api.get(f"{NEW}{query}", as_="other"), "transfers") == []
    assert made["id"] in ids(api.get(f"{NEW}/detail", as_="reader"), "transfers")
    assert made["id"] in ids(api.get(f"{NEW}?all_tenants=1", as_="admin"), "transfers")


def test_a_key_opens_one_offer(api: Any, volume: dict[str, Any]) -> None:
    made = offer(api, volume)
    for key in ("0" * 16, "", 7, made["auth_key"][:-1]):
        wrong = {**made, "auth_key": key}
        assert "auth key" in refused(take(api, wrong), 400)
    assert status(api, volume) == "awaiting-transfer"
    refused(take(api, {**made, "id": NOBODY}), 404)
    refused(take(api, made, as_="reader"), 403)
    with api.service.records() as connection:
        kept = str(connection.exec_driver_sql("SELECT * FROM transfers").all())
    assert made["id"] in kept
    assert made["auth_key"] not in kept


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"volume_id": "x"},
        {"volume_id": NOBODY, "name": ""},
        {"volume_id": NOBODY, "name": "  "},
        {"volume_id": NOBODY, "name": "n" * 256},
        {"volume_id": NOBODY, "surprise": 1},
    ],
)
@BOTH
def test_bad_offers(api: Any, path: str, body: dict[str, Any]) -> None:
    refused(api.post(path, {"transfer": body}), 400)


def test_no_snapshots_begins_with_3_55(api: Any, volume: dict[str, Any]) -> None:
    wanted = {"transfer": {"volume_id": volume["id"], "no_snapshots": True}}
    refused(api.post(NEW, wanted, version="3.54"), 400)
    refused(api.post(OLD, wanted), 400)
    made = good(api.post(NEW, wanted, version="3.55"), 202)["transfer"]
    assert made["no_snapshots"] is True


# --- what may be offered ---------------------------------------------------------------------------------


@BOTH
def test_only_available_volumes_are_offered(api: Any, volume: dict[str, Any], path: str) -> None:
    wanted = {"transfer": {"volume_id": volume["id"]}}
    refused(api.post(path, wanted, as_="other"), 404)
    refused(api.post(path, wanted, as_="reader"), 403)
    refused(api.post(path, {"transfer": {"volume_id": NOBODY}}), 404)
    api.post(f"/v3/volumes/{volume['id']}/action", {"os-reserve": None})
    assert "attaching" in refused(api.post(path, wanted), 400)
    api.post(f"/v3/volumes/{volume['id']}/action", {"os-unreserve": None})
    offer(api, volume, path)
    assert "awaiting-transfer" in refused(api.post(path, wanted), 400)


def test_nothing_is_done_with_a_volume_on_offer(api: Any, volume: dict[str, Any]) -> None:
    offer(api, volume)
    path = f"/v3/volumes/{volume['id']}"
    refused(api.delete(path), 400)
    refused(api.post(f"{path}/action", {"os-extend": {"new_size": 2}}), 400)
    refused(api.post(f"{path}/action", {"os-reserve": None}), 400)
    refused(api.post("/v3/attachments", {"attachment": {"volume_uuid": volume["id"]}}), 400)
    refused(api.post("/v3/snapshots", {"snapshot": {"volume_id": volume["id"]}}), 400)


def test_a_connected_volume_is_not_offered(api: Any, volume: dict[str, Any]) -> None:
    path = f"/v3/volumes/{volume['id']}/action"
    connector = {"initiator": "iqn.1993-08.org.debian:01:transfer", "host": "tester"}
    good(api.post(path, {"os-initialize_connection": {"connector": connector}}))
    refused(api.post(NEW, {"transfer": {"volume_id": volume["id"]}}), 400)
    good(api.post(path, {"os-terminate_connection": {"connector": connector}}), 202)
    made = offer(api, volume)
    good(api.post(path, {"os-initialize_connection": {"connector": connector}}))
    assert "connected" in refused(take(api, made), 400)
    good(api.post(path, {"os-terminate_connection": {"connector": connector}}), 202)
    good(take(api, made), 202)


@pytest.mark.parametrize(
    ("path", "version", "body", "status"),
    [
        (OLD, "3.71", {}, 400),
        (NEW, "3.69", {}, 400),
        (NEW, "3.70", {"no_snapshots": True}, 400),
        (NEW, "3.70", {}, 202),
    ],
)
def test_encrypted_volumes_need_3_70(
    api: Any, volume: dict[str, Any], path: str, version: str, body: dict[str, Any], status: int
) -> None:
    with api.service.records() as connection:
        table = tables.volumes
        statement = table.update().where(table.c.id == volume["id"])
        connection.execute(statement.values(encryption_key_id=str(uuid.uuid4())))
    wanted = {"transfer": {"volume_id": volume["id"], **body}}
    assert api.post(path, wanted, version=version).status_code == status


# --- snapshots -------------------------------------------------------------------------------------------


def test_snapshots_go_along(api: Any, volume: dict[str, Any]) -> None:
    with a_snapshot(api, volume) as snapshot:
        before = usage(api, api.project_id)
        assert before["snapshots"] == 1
        good(take(api, offer(api, volume)), 202)
        assert owner(api, "snapshots", snapshot["id"]) == api.other_project_id
        assert usage(api, api.project_id) == {}
        assert usage(api, api.other_project_id) == before


@pytest.mark.parametrize(("path", "body"), [(NEW, {"no_snapshots": True}), (OLD, {})])
def test_snapshots_stay_behind(api: Any, volume: dict[str, Any], path: str, body: dict[str, Any]) -> None:
    with a_snapshot(api, volume) as snapshot:
        good(take(api, offer(api, volume, path, **body), path), 202)
        assert owner(api, "snapshots", snapshot["id"]) == api.project_id
        assert owner(api, "volumes", volume["id"]) == api.other_project_id
        assert {"snapshots": 1, "gigabytes": 1}.items() <= usage(api, api.project_id).items()
        assert {"volumes": 1, "gigabytes": 1}.items() <= usage(api, api.other_project_id).items()
        refused(api.delete(f"/v3/volumes/{volume['id']}", as_="other"), 400)
        again = api.post(NEW, {"transfer": {"volume_id": volume["id"]}}, as_="other")
        good(api.post(f"{NEW}/{good(again, 202)['transfer']['id']}/accept", {
            "accept": {"auth_key": again.json()["transfer"]["auth_key"]}}, as_="member"), 202)  # fmt: skip
        assert owner(api, "snapshots", snapshot["id"]) == api.project_id


def test_every_snapshot_that_goes_along_is_available(api: Any, volume: dict[str, Any]) -> None:
    with a_snapshot(api, volume) as snapshot:
        path = f"/v3/snapshots/{snapshot['id']}/action"
        api.post(path, {"os-reset_status": {"status": "error"}}, as_="admin")
        refused(api.post(NEW, {"transfer": {"volume_id": volume["id"]}}), 400)
        assert status(api, volume) == "available"
        good(api.delete(f"{NEW}/{offer(api, volume, no_snapshots=True)['id']}"), 202)
        api.post(path, {"os-reset_status": {"status": "available"}}, as_="admin")
        made = offer(api, volume)
        api.post(path, {"os-reset_status": {"status": "error"}}, as_="admin")
        refused(take(api, made), 400)
        assert status(api, volume) == "awaiting-transfer"


# --- quota -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ({"volumes": 0}, "VolumeLimitExceeded"),
        ({"gigabytes": 1}, "VolumeSizeExceedsAvailableQuota"),
        ({"per_volume_gigabytes": 1}, "VolumeSizeExceedsLimit"),
        ({"snapshots": 0}, "SnapshotLimitExceeded"),
    ],
)
def test_the_receiver_needs_quota(api: Any, limit: dict[str, int], says: str) -> None:
    with a_volume(api, size=2) as volume, a_snapshot(api, volume):
        made, before = offer(api, volume), usage(api, api.project_id)
        path = f"/v3/os-quota-sets/{api.other_project_id}"
        good(api.put(path, {"quota_set": limit}, as_="admin"))
        assert refused(take(api, made), 413).startswith(says)
        assert status(api, volume) == "awaiting-transfer"
        assert owner(api, "volumes", volume["id"]) == api.project_id
        assert usage(api, api.project_id) == before
        assert usage(api, api.other_project_id) == {}
        good(api.delete(path, as_="admin"))
        good(take(api, made), 202)


def test_per_type_quota_moves(api: Any) -> None:
    with a_type(api) as kind, a_volume(api, volume_type=kind["id"]) as volume:
        name = f"gigabytes_{kind['name']}"
        assert usage(api, api.project_id)[name] == 1
        good(take(api, offer(api, volume)), 202)
        assert name not in usage(api, api.project_id)
        assert usage(api, api.other_project_id)[name] == 1


def test_the_own_project_may_take_it(api: Any, volume: dict[str, Any]) -> None:
    before = usage(api, api.project_id)
    good(take(api, offer(api, volume), as_="admin"), 202)
    shown = good(api.get(f"/v3/volumes/{volume['id']}"))["volume"]
    assert shown["status"] == "available"
    assert shown["user_id"] != volume["user_id"]
    assert usage(api, api.project_id) == before


# --- repeats, force, lists -------------------------------------------------------------------------------


def test_a_repeated_call_is_told_a_key_that_works(api: Any, volume: dict[str, Any]) -> None:
    wanted, headers = {"transfer": {"volume_id": volume["id"]}}, {"Idempotency-Key": str(uuid.uuid4())}
    first = good(api.post(NEW, wanted, headers=headers), 202)["transfer"]
    second = good(api.post(NEW, wanted, headers=headers), 202)["transfer"]
    assert first["id"] == second["id"]
    refused(take(api, first), 400)
    good(take(api, second), 202)


def test_a_forced_delete_ends_the_offer(api: Any) -> None:
    volume = api.volume()
    made = offer(api, volume)
    good(api.post(f"/v3/volumes/{volume['id']}/action", {"os-force_delete": None}, as_="admin"), 202)
    api.wait_gone(f"/v3/volumes/{volume['id']}")
    refused(api.get(f"{NEW}/{made['id']}"), 404)


def test_lists_have_pages_from_3_59(api: Any) -> None:
    with a_volume(api) as first, a_volume(api) as second:
        made = [offer(api, each, name=name)["id"] for each, name in ((first, "b"), (second, "a"))]
        assert ids(api.get(NEW, version="3.58"), "transfers") == made
        assert ids(api.get(OLD, version=LATEST), "transfers") == made
        assert ids(api.get(NEW, version="3.59"), "transfers") == made[::-1]
        for path, version in ((NEW, "3.58"), (OLD, LATEST)):
            assert ids(api.get(f"{path}?limit=1", version=version), "transfers") == made[:1]
            assert ids(api.get(f"{path}?limit=1&offset=1", version=version), "transfers") == made[1:]
            assert ids(api.get(f"{path}?limit=0", version=version), "transfers") == made
            assert ids(api.get(f"{path}?sort=name:asc", version=version), "transfers") == made
            assert "transfers_links" not in good(api.get(f"{path}?limit=1", version=version))
        page = good(api.get(f"{NEW}?limit=1&sort=name:asc", version="3.59"))
        assert [each["id"] for each in page["transfers"]] == made[1:]
        (link,) = page["transfers_links"]
        assert ids(api.get(link["href"], version="3.59"), "transfers") == made[:1]
        assert ids(api.get(f"{NEW}?limit=0", version="3.59"), "transfers") == []
        assert ids(api.get(f"{NEW}?name=a"), "transfers") == made[1:]
        assert ids(api.get(f"{OLD}/detail?volume_id={first['id']}"), "transfers") == made[:1]
        for hidden in ("salt", "key_hash"):
            refused(api.get(f"{NEW}?sort={hidden}"), 400)
            assert ids(api.get(f"{NEW}?{hidden}=x"), "transfers") == []
        refused(api.get(f"{NEW}?marker={NOBODY}"), 404)
        refused(api.get(f"{NEW}?limit=-1", version="3.0"), 400)
