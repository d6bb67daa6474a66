"""The scheduler's dry run, its hints, and the fault of a volume that was not placed."""

from __future__ import annotations

import pytest

from tests.api.steps import LATEST, a_snapshot, a_type, a_volume, fresh, good, refused
from tests.service import Api, until

EXPLAIN = "/v3/scheduler/explain"
HINTS = "OS-SCH-HNT:scheduler_hints"
FAULT = {"Lapilli-Extensions": "fault"}
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(autouse=True)
def reported(api):
    """The pool has reported: a service that has only just started knows of none."""
    until(lambda: good(api.get("/v3/scheduler-stats/get_pools", as_="admin"))["pools"])


def explained(api, version=LATEST, as_="admin", hints=None, **volume):
    body = {"volume": {"size": 1, **volume}}
    if hints is not None:
        body[HINTS] = hints
    return good(api.post(EXPLAIN, body, as_=as_, version=version))["explanation"]


def count(api):
    return len(good(api.get("/v3/volumes?all_tenants=1", as_="admin"))["volumes"])


@pytest.mark.parametrize("version", ["3.0", "3.52", "3.53", LATEST])
def test_a_pool_that_would_take_it(api, version):
    before = count(api)
    told = explained(api, version)
    assert set(told) == {"size", "volume_type", "pool", "pools"}
    assert (told["size"], told["volume_type"]) == (1, "__DEFAULT__")
    assert told["pool"] == told["pools"][0]["name"]
    first = told["pools"][0]
    assert set(first) == {"name", "passed", "rank", "weight", "weighers"}
    assert (first["passed"], first["rank"]) == (True, 1)
    assert first["weighers"]["CapacityWeigher"] > 0
    assert count(api) == before


def test_no_pool_has_the_room(api):
    told = explained(api, size=2_000_000_000)
    assert told["pool"] is None
    for each in told["pools"]:
        assert (each["passed"], each["refused_by"]) == (False, "CapacityFilter")
        assert each["reason"].startswith("needs 2000000000 GiB, ")
        assert " free of " in each["reason"]


def test_reasons_by_type_and_zone(api):
    with a_type(api, specs={"capabilities:colour": "red"}) as kind:
        told = explained(api, volume_type=kind["name"])
        assert told["volume_type"] == kind["name"]
        assert {(each["refused_by"], each["reason"]) for each in told["pools"]} == {
            ("CapabilitiesFilter", "it reports no colour")
        }
    refused(api.post(EXPLAIN, {"volume": {"size": 1, "availability_zone": "far"}}, as_="admin"), 400)


def test_sources_bind(api):
    with a_volume(api, size=2) as volume:
        told = explained(api, source_volid=volume["id"], size=None)
        assert told["size"] == 2
        assert told["pool"] == volume["os-vol-host-attr:host"]
        with a_snapshot(api, volume) as snapshot:
            told = explained(api, snapshot_id=snapshot["id"], size=3)
            assert (told["size"], told["pool"]) == (3, volume["os-vol-host-attr:host"])
        body = {"volume": {"size": 1, "source_volid": volume["id"]}}
        assert "smaller than the source" in refused(api.post(EXPLAIN, body, as_="admin"), 400)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (None, 400),
        ({}, 400),
        ({"volume": {}}, 400),
        ({"volume": {"size": 0}}, 400),
        ({"volume": {"size": "abc"}}, 400),
        ({"volume": {"size": 1, "colour": "red"}}, 400),
        ({"volume": {"name": "no size"}}, 400),
        ({"volume": {"size": 1}, "other": 1}, 400),
        ({"volume": {"size": 1}, HINTS: {"same_host": "x"}}, 400),
        ({"volume": {"size": 1, "volume_type": "none-such"}}, 404),
        ({"volume": {"size": 1, "snapshot_id": NOBODY}}, 404),
        ({"volume": {"source_volid": NOBODY}}, 404),
    ],
)
def test_refused_as_a_create_would_be(api, body, status):
    refused(api.post(EXPLAIN, body, as_="admin", version=LATEST), status)
    refused(api.post("/v3/volumes", body, as_="admin", version=LATEST), status)


@pytest.mark.parametrize("who", ["member", "reader", "other"])
def test_for_administrators_only(api, who):
    refused(api.post(EXPLAIN, {"volume": {"size": 1}}, as_=who), 403)


def test_services_that_are_off_are_told(own_service):
    own_service.start()
    api = Api(own_service)
    with a_volume(api):
        pass
    service = {"host": explained(api)["pool"].split("#")[0], "binary": "cinder-volume"}
    for verb, more, reason in (
        ("disable", {}, "its service is disabled"),
        ("disable-log-reason", {"disabled_reason": "repair"}, "its service is disabled (repair)"),
    ):
        good(api.put(f"/v3/os-services/{verb}", {**service, **more}, as_="admin"))
        told = explained(api)
        assert told["pool"] is None
        assert [(each["refused_by"], each["reason"]) for each in told["pools"]] == [(None, reason)]
    good(api.put("/v3/os-services/enable", service, as_="admin"))
    assert api.put("/v3/os-services/freeze", {"host": service["host"]}, as_="admin").status_code < 300
    assert explained(api)["pools"][0]["reason"] == "its service is frozen"
    made = good(api.post("/v3/volumes", {"volume": {"size": 1}}), 202)["volume"]
    api.wait(f"/v3/volumes/{made['id']}", "volume", "error")
    fault = good(api.get(f"/v3/volumes/{made['id']}", headers=FAULT))["volume"]["fault"]
    assert fault.endswith("its service is frozen")


# --- the fault of a volume -------------------------------------------------------------------------------


@pytest.fixture
def unplaced(api):
    """A volume that no pool takes."""
    with a_type(api, specs={"colour": "red"}) as kind:
        body = {"volume": {"size": 1, "name": fresh("volume"), "volume_type": kind["id"]}}
        made = good(api.post("/v3/volumes", body), 202)["volume"]
        path = f"/v3/volumes/{made['id']}"
        api.wait(path, "volume", "error")
        yield made
        api.delete(path)
        api.wait_gone(path)


def test_fault_is_shown_to_those_who_ask(api, unplaced):
    path = f"/v3/volumes/{unplaced['id']}"
    for version in ("3.0", LATEST):
        told = good(api.get(path, version=version, headers=FAULT))["volume"]["fault"]
        assert told.startswith("No valid backend was found: ")
        assert told.endswith("CapabilitiesFilter: it reports no colour")
        listed = good(api.get("/v3/volumes/detail", version=version, headers=FAULT))["volumes"]
        assert [each["fault"] for each in listed if each["id"] == unplaced["id"]] == [told]
        for headers in ({}, {"Lapilli-Extensions": ""}, {"Lapilli-Extensions": "other, faults"}):
            assert "fault" not in good(api.get(path, version=version, headers=headers))["volume"]
        both = good(api.get(path, version=version, headers={"Lapilli-Extensions": "other, fault"}))["volume"]
        assert both["fault"] == told
    assert api.get(path, as_="other", headers=FAULT).status_code == 404


def test_fault_is_null_without_one(api):
    with a_volume(api) as volume:
        assert good(api.get(f"/v3/volumes/{volume['id']}", headers=FAULT))["volume"]["fault"] is None
        listed = good(api.get("/v3/volumes", headers=FAULT))["volumes"]
        assert all("fault" not in each for each in listed)


# --- hints -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hinted(tmp_path_factory):
    """A service with two back ends and all filters of hints."""
    from tests.service import Service  # noqa: PLC0415

    service = Service(tmp_path_factory.mktemp("hints"))
    names = (
        "AvailabilityZoneFilter CapacityFilter CapabilitiesFilter DifferentBackendFilter SameBackendFilter"
    )
    names += " InstanceLocalityFilter JsonFilter IgnoreAttemptedHostsFilter"
    service.config = {
        "DEFAULT": {
            "enabled_backends": "small,large",
            "scheduler_default_filters": ", ".join(names.split()),
            "scheduler_default_weighers": "CapacityWeigher, AllocatedCapacityWeigher, VolumeNumberWeigher",
        },
        "backend_defaults": {"volume_driver": "sim", "target_helper": "local"},
        "small": {"sim_capacity_gb": 10},
        "large": {"sim_capacity_gb": 1000},
    }
    service.start()
    yield service
    service.end()


@pytest.fixture
def two(hinted):
    return Api(hinted)


def made(api, status="available", as_="member", **hints):
    body = {"volume": {"size": 1}, HINTS: hints}
    volume = good(api.post("/v3/volumes", body, as_=as_), 202)["volume"]
    path = f"/v3/volumes/{volume['id']}"
    api.wait(path, "volume", status)
    shown = good(api.get(path, as_="admin", headers=FAULT))["volume"]
    return shown["id"], (shown["os-vol-host-attr:host"] or "").partition("#")[2], shown["fault"]


def test_near_and_far(two):
    query = '["=", "$volume_backend_name", "small"]'
    first, where, _ = made(two, query=query)
    assert where == "small"
    assert made(two, same_host=first)[1] == "small"
    assert made(two, different_host=[first])[1] == "large"
    far = explained(two, hints={"different_host": first})
    assert far["pool"].endswith("#large")
    assert [(each["refused_by"], each["reason"]) for each in far["pools"][1:]] == [
        ("DifferentBackendFilter", f"volume {first} lives on this back end")
    ]
    _, _, fault = made(two, status="error", same_host=NOBODY)
    assert fault.count(f"SameBackendFilter: none of the volumes {NOBODY} lives on this back end") == 2


def test_another_projects_volumes_tell_nothing(two):
    first, _, _ = made(two, query='["=", "$volume_backend_name", "small"]')
    body = {"volume": {"size": 1}, HINTS: {"same_host": first}}
    volume = good(two.post("/v3/volumes", body, as_="other"), 202)["volume"]
    two.wait(f"/v3/volumes/{volume['id']}", "volume", "error")
    assert made(two, as_="admin", same_host=first)[1] == "small"


def test_locality_without_a_compute_service(two):
    _, _, fault = made(two, status="error", local_to_instance=NOBODY)
    assert "InstanceLocalityFilter: no compute service is configured" in fault


def test_queries(two):
    assert made(two, query='[">=", "$free_capacity_gb", 500]')[1] == "large"
    _, _, fault = made(two, status="error", query='["like", 1]')
    assert fault.count("JsonFilter: the query cannot be evaluated: 'like' is none of") == 2
    refused(two.post("/v3/volumes", {"volume": {"size": 1}, HINTS: {"query": ["=", 1, 1]}}), 400)


def test_all_weighers_are_told(two):
    told = explained(two)
    assert [each["rank"] for each in told["pools"]] == [1, 2]
    assert told["pools"][0]["weight"] >= told["pools"][1]["weight"]
    for each in told["pools"]:
        assert set(each["weighers"]) == {"CapacityWeigher", "AllocatedCapacityWeigher", "VolumeNumberWeigher"}
