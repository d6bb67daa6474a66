"""Hosts, capabilities, and log levels of services that run, over the wire."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.steps import a_snapshot, a_volume, good, refused
from tests.service import Api, until


@pytest.fixture
def backend(api: Api) -> Any:
    """Host of a volume service, which is enabled again afterwards."""
    found = good(api.get("/v3/os-services?binary=cinder-volume", as_="admin"))["services"]
    host = found[0]["host"]
    yield host
    api.put("/v3/os-services/enable", {"host": host, "binary": "cinder-volume"}, as_="admin")


def test_hosts_are_the_services_that_are_enabled(api: Api, backend: str) -> None:
    shown = good(api.get("/v3/os-hosts", as_="admin"))["hosts"]
    mine = next(each for each in shown if each["host_name"] == backend)
    assert mine["service"] == "cinder-volume"
    assert mine["service-status"] == "available"
    assert mine["service-state"] == "enabled"
    assert set(mine) == {*("host_name", "service", "zone", "service-status", "service-state", "last-update")}
    assert good(api.get("/v3/os-hosts?zone=nowhere", as_="admin")) == {"hosts": []}
    assert good(api.get(f"/v3/os-hosts?zone={mine['zone']}", as_="admin"))["hosts"] == shown
    changed = api.put(f"/v3/os-hosts/{backend}", {"status": "disable"}, as_="admin")
    assert good(changed) == {"host": backend, "status": "disabled"}
    left = good(api.get("/v3/os-hosts", as_="admin"))["hosts"]
    assert backend not in [each["host_name"] for each in left]
    changed = api.put(f"/v3/os-hosts/{backend}", {"status": "enable"}, as_="admin")
    assert good(changed) == {"host": backend, "status": "enabled"}
    services = good(api.get("/v3/os-services?binary=cinder-volume", as_="admin"))["services"]
    assert next(each for each in services if each["host"] == backend)["status"] == "enabled"


def test_a_host_tells_what_lives_there(api: Api, backend: str) -> None:
    with a_volume(api, size=2) as volume, a_snapshot(api, volume):
        host = volume["os-vol-host-attr:host"].partition("#")[0]
        rows = [each["resource"] for each in good(api.get(f"/v3/os-hosts/{host}", as_="admin"))["host"]]
        assert rows[0]["project"] == "(total)"
        mine = next(each for each in rows if each["project"] == api.project_id)
        assert mine == {
            "host": host,
            "project": api.project_id,
            "volume_count": "1",
            "total_volume_gb": "2",
            "snapshot_count": "1",
            "total_snapshot_gb": "2",
        }
        assert int(rows[0]["volume_count"]) == sum(int(each["volume_count"]) for each in rows[1:])


def test_unknown_hosts(api: Api) -> None:
    refused(api.get("/v3/os-hosts/nowhere", as_="admin"), 404)
    refused(api.put("/v3/os-hosts/nowhere", {"status": "enable"}, as_="admin"), 404)
    refused(api.put("/v3/os-hosts/nowhere", {"status": "sleep"}, as_="admin"), 400)
    refused(api.get("/v3/capabilities/nowhere", as_="admin"), 404)


def test_capabilities_of_a_back_end_and_of_its_pool(api: Api, backend: str) -> None:
    pools = good(api.get("/v3/scheduler-stats/get_pools?detail=true", as_="admin"))["pools"]
    pool = next(each for each in pools if each["name"].startswith(f"{backend}#"))
    for host in (backend, pool["name"].replace("#", "%23")):
        told = good(api.get(f"/v3/capabilities/{host}", as_="admin"))
        assert set(told) == {
            *("namespace", "vendor_name", "volume_backend_name", "pool_name", "driver_version"),
            *("storage_protocol", "display_name", "description", "visibility", "replication_targets"),
            "properties",
        }
        for key in ("vendor_name", "volume_backend_name", "driver_version", "storage_protocol"):
            assert told[key] == pool["capabilities"].get(key)
        assert told["namespace"] == f"OS::Storage::Capabilities::cinder-volume.{backend}"
        thin = bool(pool["capabilities"]["thin_provisioning_support"])
        assert ("thin_provisioning" in told["properties"]) is thin


@pytest.mark.parametrize("path", ["/v3/os-hosts", "/v3/os-hosts/x", "/v3/capabilities/x"])
def test_only_administrators(api: Api, path: str) -> None:
    for as_ in ("member", "reader"):
        refused(api.get(path, as_=as_), 403)
        which = {"level": "INFO"}
        refused(api.put("/v3/os-services/set-log", which, as_=as_), 403)


# --- log levels ------------------------------------------------------------------------------------------


def set_log(api: Api, **body: Any) -> None:
    answer = api.put("/v3/os-services/set-log", body, as_="admin", version="3.32")
    assert (answer.status_code, answer.content) == (202, b""), answer.text


def get_log(api: Api, **body: Any) -> list[dict[str, Any]]:
    answer = good(api.put("/v3/os-services/get-log", body, as_="admin", version="3.32"))
    levels: list[dict[str, Any]] = answer["log_levels"]
    return levels


def logged(api: Api, name: str) -> int:
    lines = api.service.log.read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return sum(1 for line in found if line["message"] == name)


def test_levels_are_set_while_services_run(api: Api) -> None:
    """A silenced logger falls silent in the process that has it, and speaks again."""

    def silent() -> bool:
        before = logged(api, "qos_specs.create")
        made = good(api.post("/v3/qos-specs", {"qos_specs": {"name": f"q{before}-{api.mark}"}}, as_="admin"))
        good(api.delete(f"/v3/qos-specs/{made['qos_specs']['id']}", as_="admin"), 202)
        return logged(api, "qos_specs.create") == before

    try:
        assert not silent()
        set_log(api, binary="cinder-api", server="", prefix="lapilli.events", level="error")
        until(silent)
        [told] = get_log(api, binary="cinder-api", prefix="lapilli.events")
        assert told["binary"] == "cinder-api"
        assert told["levels"] == {"lapilli.events": "ERROR"}
        others = get_log(api, binary="cinder-volume", prefix="lapilli.events")
        assert [each["levels"] for each in others] == [{"lapilli.events": "INFO"}] * len(others)
    finally:
        set_log(api, binary="*", level="INFO")  # all loggers of all services
    until(lambda: not silent())
    for each in get_log(api):
        assert set(each["levels"].values()) == {"INFO"}


def test_bad_log_levels(api: Api) -> None:
    for wrong in (
        {"level": "LOUD"},
        {},
        {"level": "INFO", "binary": "cinder"},
        {"level": "INFO", "prefix": "elsewhere"},
    ):
        refused(api.put("/v3/os-services/set-log", wrong, as_="admin", version="3.32"), 400)
    refused(api.put("/v3/os-services/set-log", {"level": "INFO"}, as_="admin", version="3.31"), 404)
    refused(api.put("/v3/os-services/get-log", {}, as_="admin", version="3.31"), 404)
    assert get_log(api, server="nowhere") == []
