"""Services, pools, zones, extensions and resource filters over the wire."""

from __future__ import annotations

import time

import pytest

from tests.api.steps import LATEST, a_type, a_volume, good, refused
from tests.service import Api

SERVICES = "/v3/os-services"
POOLS = "/v3/scheduler-stats/get_pools"


def services(api, version=LATEST, query=""):
    return good(api.get(f"{SERVICES}{query}", as_="admin", version=version))["services"]


def the_volume_service(api):
    return next(each for each in services(api) if each["binary"] == "cinder-volume")


@pytest.fixture
def backend(api):
    """Host of a volume service, which is enabled again afterwards."""
    host = the_volume_service(api)["host"]
    yield host
    api.put(f"{SERVICES}/thaw", {"host": host}, as_="admin")
    api.put(f"{SERVICES}/enable", {"host": host, "binary": "cinder-volume"}, as_="admin")


def change(api, verb, body, **kwargs):
    return api.put(f"{SERVICES}/{verb}", body, **{"as_": "admin", **kwargs})


# --- services --------------------------------------------------------------------------------------------


def test_list_of_services(api):
    base = {"binary", "host", "zone", "status", "state", "updated_at", "disabled_reason"}
    backend = {"replication_status", "active_backend_id", "frozen"}
    for version, more, more_of_backends in (
        ("3.0", set(), set()),
        ("3.6", set(), set()),
        ("3.7", {"cluster"}, set()),
        ("3.48", {"cluster"}, set()),
        ("3.49", {"cluster"}, {"backend_state"}),
    ):
        listed = services(api, version)
        assert {each["binary"] for each in listed} >= {"cinder-volume", "cinder-scheduler"}
        for each in listed:
            keys = base | more
            if each["binary"] == "cinder-volume":
                keys |= backend | more_of_backends
            assert set(each) == keys
            assert (each["status"], each["state"]) == ("enabled", "up")
            assert each["disabled_reason"] is None


def test_filters_of_services(api):
    host = the_volume_service(api)["host"]
    assert {each["binary"] for each in services(api, query="?binary=cinder-volume")} == {"cinder-volume"}
    assert host in {each["host"] for each in services(api, query=f"?host={host}")}
    plain = host.split("@")[0]
    assert host in {each["host"] for each in services(api, query=f"?host={plain}&binary=cinder-volume")}
    assert services(api, query="?host=nowhere") == []
    assert services(api, query="?binary=cinder-nothing") == []


def test_disable_and_enable_are_kept(api, backend):
    told = good(change(api, "disable", {"host": backend, "binary": "cinder-volume"}))
    assert told == {
        "host": backend,
        "service": "cinder-volume",
        "binary": "cinder-volume",
        "status": "disabled",
        "disabled": True,
    }
    shown = the_volume_service(api)
    assert (shown["status"], shown["disabled_reason"]) == ("disabled", None)
    body = {"host": backend, "service": "cinder-volume", "disabled_reason": " repair "}
    told = good(change(api, "disable-log-reason", body))
    assert (told["disabled_reason"], told["disabled"]) == ("repair", True)
    assert the_volume_service(api)["disabled_reason"] == "repair"
    told = good(change(api, "enable", {"host": backend, "binary": "cinder-volume"}))
    assert (told["status"], told["disabled"]) == ("enabled", False)
    shown = the_volume_service(api)
    assert (shown["status"], shown["disabled_reason"]) == ("enabled", None)


def test_a_disabled_service_gets_no_volumes(own_service):
    own_service.config = {"DEFAULT": {"scheduler_driver_init_wait_time": 1}}
    own_service.start()
    api = Api(own_service)
    own_service.wait_for_backends()
    with a_volume(api):
        time.sleep(1)  # the time in which a scheduler waits for back ends
    shown = the_volume_service(api)
    good(change(api, "disable", {"host": shown["host"], "binary": "cinder-volume"}))
    assert pools(api) == []
    zones = good(api.get("/v3/os-availability-zone"))["availabilityZoneInfo"]
    assert zones == [{"zoneName": shown["zone"], "zoneState": {"available": False}}]
    volume = good(api.post("/v3/volumes", {"volume": {"size": 1}}), 202)["volume"]
    api.wait(f"/v3/volumes/{volume['id']}", "volume", "error")
    own_service.stop()
    own_service.start()
    assert the_volume_service(api)["status"] == "disabled"
    good(change(api, "enable", {"host": shown["host"], "binary": "cinder-volume"}))
    with a_volume(api):
        pass


@pytest.mark.parametrize("verb", ["enable", "disable"])
def test_unknown_services_are_not_found(api, verb):
    refused(change(api, verb, {"host": "nowhere", "binary": "cinder-volume"}), 404)
    refused(change(api, verb, {"host": the_volume_service(api)["host"], "binary": "cinder-x"}), 404)


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        [],
        {"host": "h"},
        {"binary": "cinder-volume"},
        {"host": "", "binary": "cinder-volume"},
        {"host": "a b", "binary": "cinder-volume"},
        {"host": "h" * 256, "binary": "cinder-volume"},
        {"host": None, "binary": "cinder-volume"},
        {"host": "h", "binary": ""},
        {"host": "h", "binary": "b" * 256},
        {"host": "h", "binary": "cinder-volume", "unknown": 1},
    ],
)
def test_bad_service_bodies_are_refused(api, body):
    refused(change(api, "enable", body), 400)
    refused(change(api, "disable", body), 400)
    if isinstance(body, dict):
        refused(change(api, "disable-log-reason", {**body, "disabled_reason": "why"}), 400)


@pytest.mark.parametrize("reason", [None, "", "  ", "r" * 256, 5])
def test_a_reason_must_be_words(api, backend, reason):
    body = {"host": backend, "binary": "cinder-volume", "disabled_reason": reason}
    refused(change(api, "disable-log-reason", body), 400)
    assert the_volume_service(api)["status"] == "enabled"


def test_freeze_and_thaw(api, backend):
    with a_volume(api) as volume:
        path = f"/v3/volumes/{volume['id']}"
        frozen = change(api, "freeze", {"host": backend})
        assert (frozen.status_code, frozen.content) == (200, b"")
        shown = the_volume_service(api)
        assert (shown["frozen"], shown["status"], shown["disabled_reason"]) == (True, "disabled", "frozen")
        refused(change(api, "freeze", {"host": backend}), 400)
        refused(api.delete(path), 400)
        refused(api.post("/v3/snapshots", {"snapshot": {"volume_id": volume["id"]}}), 400)
        thawed = change(api, "thaw", {"host": backend}, version=LATEST)
        assert (thawed.status_code, thawed.content) == (200, b"")
        shown = the_volume_service(api)
        assert (shown["frozen"], shown["status"], shown["disabled_reason"]) == (False, "enabled", None)
        refused(change(api, "thaw", {"host": backend}), 400)


def test_freeze_by_host_or_cluster(api, backend):
    for verb in ("freeze", "thaw"):
        refused(change(api, verb, {"host": "nowhere"}), 400)
        refused(change(api, verb, {}), 400)
        refused(change(api, verb, {"cluster": "c"}, version="3.25"), 400)
        refused(change(api, verb, {"cluster": "c"}, version="3.26"), 400)
        refused(change(api, verb, {"host": backend, "cluster": "c"}, version="3.26"), 400)
        refused(change(api, verb, {}, version="3.26"), 400)
    good(change(api, "freeze", {"host": backend}, version="3.26"))
    good(change(api, "thaw", {"host": backend}, version="3.26"))


def test_operations_are_for_administrators(api, backend):
    body = {"host": backend, "binary": "cinder-volume"}
    for who in ("member", "reader", "other"):
        refused(api.get(SERVICES, as_=who), 403)
        refused(api.get(POOLS, as_=who), 403)
        refused(change(api, "enable", body, as_=who), 403)
        refused(change(api, "disable", body, as_=who), 403)
        refused(change(api, "disable-log-reason", {**body, "disabled_reason": "r"}, as_=who), 403)
        refused(change(api, "freeze", {"host": backend}, as_=who), 403)
        refused(change(api, "thaw", {"host": backend}, as_=who, version=LATEST), 403)
    assert the_volume_service(api)["status"] == "enabled"


# --- pools -----------------------------------------------------------------------------------------------


def pools(api, query="", version=LATEST):
    return good(api.get(f"{POOLS}{query}", as_="admin", version=version))["pools"]


def test_pools(api):
    plain = pools(api)
    assert plain
    assert all(set(each) == {"name"} for each in plain)
    detailed = pools(api, "?detail=True")
    assert [each["name"] for each in detailed] == [each["name"] for each in plain]
    told = detailed[0]["capabilities"]
    assert isinstance(told["storage_protocol"], str)
    assert told["QoS_support"] is False, "tgtd has no throttle"
    for key in ("allocated_capacity_gb", "total_capacity_gb", "free_capacity_gb", "timestamp"):
        assert key in told
    refused(api.get(f"{POOLS}?detail=perhaps", as_="admin"), 400)


def test_allocation_shows_at_once(api):
    before = {each["name"]: each["capabilities"]["allocated_capacity_gb"] for each in pools(api, "?detail=1")}
    with a_volume(api, size=3) as volume:
        during = {e["name"]: e["capabilities"]["allocated_capacity_gb"] for e in pools(api, "?detail=1")}
        pool = volume["os-vol-host-attr:host"]
        assert during[pool] - before[pool] == 3


def test_pool_filters_by_microversion(api):
    every = pools(api)
    name = every[0]["name"]
    assert pools(api, "?name=nothing", "3.27") == every
    assert pools(api, "?name=nothing", "3.28") == []
    assert pools(api, f"?name={name.replace('#', '%23')}", "3.28") == [{"name": name}]
    assert pools(api, "?colour=red", "3.27") == every
    assert pools(api, "?colour=red", "3.30") == []
    refused(api.get(f"{POOLS}?colour=red", as_="admin", version="3.31"), 400)
    assert pools(api, "?name=nothing", "3.31") == []
    with a_type(api, specs={"capabilities:colour": "red"}) as unfit, a_type(api) as fit:
        for kind, found in ((unfit, []), (fit, every)):
            assert pools(api, f"?volume_type={kind['name']}", "3.35") == found
            assert pools(api, f"?volume_type={kind['id']}", "3.34") == every
            assert pools(api, f"?volume_type={kind['id']}", "3.28") == every
    refused(api.get(f"{POOLS}?volume_type=no-such-type", as_="admin", version="3.35"), 404)


# --- zones, extensions, filters --------------------------------------------------------------------------


def test_zones_are_open_to_everybody(api):
    zone = the_volume_service(api)["zone"]
    for who in ("member", "reader", "other"):
        told = good(api.get("/v3/os-availability-zone", as_=who))["availabilityZoneInfo"]
        assert {"zoneName": zone, "zoneState": {"available": True}} in told


def test_extensions(api):
    listed = good(api.get("/v3/extensions", as_="reader"))["extensions"]
    assert len(listed) == 32
    assert len({each["alias"] for each in listed}) == 32
    for each in listed:
        assert set(each) == {"name", "alias", "description", "updated", "links"}
        assert each["description"]
    shown = good(api.get("/v3/extensions/OS-SCH-HNT"))["extension"]
    assert shown in listed
    refused(api.get("/v3/extensions/nothing"), 404)


def test_resource_filters(api):
    refused(api.get("/v3/resource_filters", version="3.32"), 404)
    told = good(api.get("/v3/resource_filters", version="3.33"))["resource_filters"]
    by_name = {each["resource"]: each["filters"] for each in told}
    assert by_name["pool"] == ["name", "volume_type"]
    assert by_name["volume_type"] == ["is_public", "extra_specs"]
    one = good(api.get("/v3/resource_filters?resource=group", version="3.33"))
    assert one == {"resource_filters": [{"resource": "group", "filters": ["name"]}]}
    assert good(api.get("/v3/resource_filters?resource=x", version="3.33")) == {"resource_filters": []}


def test_failing_over_needs_a_replica(api, backend):
    refused(change(api, "failover_host", {"host": backend}), 400)
    refused(change(api, "failover_host", {"host": "nowhere@none"}), 400)
    told = api.put("/v3/os-services/failover", {"host": backend}, as_="admin", version="3.26")
    assert told.status_code == 400
    assert "replication_status" in told.json()["badRequest"]["message"]
    before = api.put("/v3/os-services/failover", {"host": backend}, as_="admin", version="3.25")
    assert before.status_code == 404
    assert api.put("/v3/os-services/failover_host", {"host": backend}).status_code == 403
