"""QoS specs over the wire: their keys, who is bound to them, and what a connection tells of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.steps import LATEST, a_type, a_volume, fresh, good, ids, refused

SPECS = "/v3/qos-specs"
NOBODY = "00000000-0000-0000-0000-000000000000"


def create(api: Any, as_: str = "admin", **body: Any) -> Any:
    return api.post(SPECS, {"qos_specs": body}, as_=as_)


@pytest.fixture
def specs(api: Any) -> Iterator[dict[str, Any]]:
    made = good(create(api, name=fresh("qos"), consumer="front-end", read_iops_sec="100"))["qos_specs"]
    yield made
    api.delete(f"{SPECS}/{made['id']}?force=true", as_="admin")


def test_from_create_to_gone(api: Any) -> None:
    name = fresh("qos")
    answer = good(create(api, name=f" {name} ", read_iops_sec="100"))
    made = answer["qos_specs"]
    assert made == {
        "id": made["id"],
        "name": name,
        "consumer": "back-end",
        "specs": {"read_iops_sec": "100"},
    }
    path = f"{SPECS}/{made['id']}"
    assert [link["rel"] for link in answer["links"]] == ["self", "bookmark"]
    assert answer["links"][0]["href"].endswith(path)
    assert good(api.get(path, as_="admin")) == answer
    assert made["id"] in ids(api.get(SPECS, as_="admin"), "qos_specs")
    assert ids(api.get(f"{SPECS}?name={name}", as_="admin"), "qos_specs") == [made["id"]]
    changes = {"consumer": "both", "write_iops_sec": "7"}
    assert good(api.put(path, {"qos_specs": changes}, as_="admin")) == {"qos_specs": changes}
    changed = good(api.get(path, as_="admin"))["qos_specs"]
    assert changed["consumer"] == "both"
    assert changed["specs"] == {"read_iops_sec": "100", "write_iops_sec": "7"}
    answer = api.delete(path, as_="admin")
    assert (answer.status_code, answer.content) == (202, b"")
    refused(api.get(path, as_="admin"), 404)
    refused(api.delete(path, as_="admin"), 404)


def test_a_name_is_taken_once(api: Any, specs: dict[str, Any]) -> None:
    assert specs["name"] in refused(create(api, name=specs["name"]), 409)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "   "},
        {"name": "n" * 256},
        {"name": "good", "consumer": "nobody"},
        {"name": "good", "key": 7},
        {"name": "good", "key": None},
        {"name": "good", "a/b": "1"},
        {"name": "good", "key": "v" * 256},
    ],
)
def test_bad_bodies(api: Any, body: dict[str, Any]) -> None:
    refused(create(api, **body), 400)


def test_keys_are_deleted_one_after_the_other(api: Any, specs: dict[str, Any]) -> None:
    path = f"{SPECS}/{specs['id']}"
    good(api.put(path, {"qos_specs": {"a": "1", "b": "2", "c": "3"}}, as_="admin"))
    answer = api.put(f"{path}/delete_keys", {"keys": ["a"]}, as_="admin")
    assert (answer.status_code, answer.content) == (202, b"")
    refused(api.put(f"{path}/delete_keys", {"keys": ["b", "missing", "c"]}, as_="admin"), 404)
    left = good(api.get(path, as_="admin"))["qos_specs"]["specs"]
    assert left == {"read_iops_sec": "100", "c": "3"}
    refused(api.put(f"{path}/delete_keys", {"keys": ["c", "c"]}, as_="admin"), 400)
    refused(api.put(f"{path}/delete_keys", {"keys": "c"}, as_="admin"), 400)


def test_types_are_bound_and_freed(api: Any, specs: dict[str, Any]) -> None:
    path = f"{SPECS}/{specs['id']}"
    other = good(create(api, name=fresh("qos")))["qos_specs"]
    with a_type(api) as kind:
        for _ in range(2):  # binding again changes nothing
            answer = api.get(f"{path}/associate?vol_type_id={kind['id']}", as_="admin")
            assert (answer.status_code, answer.content) == (202, b"")
        bound = good(api.get(f"{path}/associations", as_="admin"))["qos_associations"]
        assert bound == [{"association_type": "volume_type", "name": kind["name"], "id": kind["id"]}]
        assert (
            good(api.get(f"/v3/types/{kind['id']}", as_="admin"))["volume_type"]["qos_specs_id"]
            == specs["id"]
        )
        message = refused(
            api.get(f"{SPECS}/{other['id']}/associate?vol_type_id={kind['id']}", as_="admin"), 400
        )
        assert specs["id"] in message
        assert kind["name"] in refused(api.delete(path, as_="admin"), 400)
        # unbinding from specs that it is not bound to changes nothing
        good(api.get(f"{SPECS}/{other['id']}/disassociate?vol_type_id={kind['id']}", as_="admin"), 202)
        assert len(good(api.get(f"{path}/associations", as_="admin"))["qos_associations"]) == 1
        good(api.get(f"{path}/disassociate?vol_type_id={kind['id']}", as_="admin"), 202)
        assert good(api.get(f"{path}/associations", as_="admin")) == {"qos_associations": []}
        good(api.get(f"{path}/associate?vol_type_id={kind['id']}", as_="admin"), 202)
        good(api.get(f"{path}/disassociate_all", as_="admin"), 202)
        assert good(api.get(f"{path}/associations", as_="admin")) == {"qos_associations": []}
        good(api.get(f"{path}/associate?vol_type_id={kind['id']}", as_="admin"), 202)
        good(api.delete(f"{path}?force=True", as_="admin"), 202)
        assert good(api.get(f"/v3/types/{kind['id']}", as_="admin"))["volume_type"]["qos_specs_id"] is None
    good(api.delete(f"{SPECS}/{other['id']}", as_="admin"), 202)


@pytest.mark.parametrize("call", ["associate", "disassociate"])
def test_binding_needs_a_type_that_exists(api: Any, specs: dict[str, Any], call: str) -> None:
    refused(api.get(f"{SPECS}/{specs['id']}/{call}", as_="admin"), 400)
    refused(api.get(f"{SPECS}/{specs['id']}/{call}?vol_type_id={NOBODY}", as_="admin"), 404)
    with a_type(api) as kind:
        refused(api.get(f"{SPECS}/{NOBODY}/{call}?vol_type_id={kind['id']}", as_="admin"), 404)


def test_only_administrators(api: Any, specs: dict[str, Any]) -> None:
    path = f"{SPECS}/{specs['id']}"
    for as_ in ("member", "reader"):
        refused(create(api, as_=as_, name=fresh("qos")), 403)
        for each in (SPECS, path, f"{path}/associations", f"{path}/disassociate_all"):
            refused(api.get(each, as_=as_), 403)
        refused(api.put(path, {"qos_specs": {"a": "1"}}, as_=as_), 403)
        refused(api.delete(path, as_=as_), 403)


@pytest.mark.parametrize(
    ("consumer", "limits", "told"),
    [
        ("front-end", {"read_iops_sec": "100"}, {"read_iops_sec": "100"}),
        ("both", {"x": "y"}, {"x": "y"}),
        ("back-end", {"read_iops_sec": "100"}, None),
        (
            "front-end",
            {"total_iops_sec_per_gb": "30", "total_iops_sec_per_gb_min": "50", "write_bytes_sec": "9"},
            {"total_iops_sec": "60", "write_bytes_sec": "9"},
        ),
        (
            "front-end",
            {"read_bytes_sec_per_gb": "10", "read_bytes_sec_per_gb_min": "500", "read_bytes_sec_max": "400"},
            {"read_bytes_sec": "400"},
        ),
    ],
)
def test_a_connection_tells_what_the_host_keeps(
    api: Any, consumer: str, limits: dict[str, str], told: dict[str, str] | None
) -> None:
    made = good(create(api, name=fresh("qos"), consumer=consumer, **limits))["qos_specs"]
    try:
        with a_type(api) as kind:
            good(api.get(f"{SPECS}/{made['id']}/associate?vol_type_id={kind['id']}", as_="admin"), 202)
            with a_volume(api, size=2, volume_type=kind["name"]) as volume:
                wanted = {"volume_uuid": volume["id"], "connector": {"initiator": "iqn.2026-01.org.x:1"}}
                answer = api.post("/v3/attachments", {"attachment": wanted}, version=LATEST)
                attachment = good(answer)["attachment"]
                assert attachment["connection_info"]["qos_specs"] == told
                good(api.delete(f"/v3/attachments/{attachment['id']}", version=LATEST))
    finally:
        good(api.delete(f"{SPECS}/{made['id']}?force=true", as_="admin"), 202)
