"""Clusters of hosts that serve a back end together, and cleaning up, over the wire."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.steps import LATEST, good, refused
from tests.service import Api, Service, until

NAME = "east@pool"


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A service whose only back end belongs to a cluster, served by two processes."""
    service = Service(tmp_path_factory.mktemp("clustered"))
    service.config["DEFAULT"] = {"cluster": "east", "enabled_backends": "pool", "report_interval": 1}
    service.config["pool"] = {"volume_driver": "sim", "target_helper": "local"}
    service.config["DEFAULT"]["service_down_time"] = 3
    service.start()
    with service.log.open("ab") as log:
        second = subprocess.Popen(service.command("volume"), stdout=log, stderr=log)
    try:
        api = Api(service)
        until(lambda: bool(api.get("/v3/clusters", as_="admin", version="3.7").json()["clusters"]))
        yield api
    finally:
        second.terminate()
        second.wait(20)
        service.end()


def show(api: Api, version: str = LATEST) -> dict[str, Any]:
    told: dict[str, Any] = good(api.get(f"/v3/clusters/{NAME}", as_="admin", version=version))["cluster"]
    return told


def test_a_cluster_is_a_back_end_of_several_hosts(clustered: Api) -> None:
    [listed] = good(clustered.get("/v3/clusters", as_="admin", version="3.7"))["clusters"]
    assert listed == {"name": NAME, "binary": "cinder-volume", "state": "up", "status": "enabled"}
    [listed] = good(clustered.get("/v3/clusters", as_="admin", version="3.26"))["clusters"]
    assert listed["replication_status"] == "not-capable"
    [detailed] = good(clustered.get("/v3/clusters/detail", as_="admin", version="3.7"))["clusters"]
    assert set(detailed) == {
        *("name", "binary", "state", "status", "num_hosts", "num_down_hosts", "last_heartbeat"),
        *("created_at", "updated_at", "disabled_reason"),
    }
    newer = show(clustered, "3.26")
    assert set(newer) - set(detailed) == {"replication_status", "frozen", "active_backend_id"}
    assert (newer["num_hosts"], newer["num_down_hosts"]) == (1, 0)  # two processes, one host
    services = good(clustered.get("/v3/os-services?binary=cinder-volume", as_="admin", version="3.7"))
    assert [(each["host"], each["cluster"]) for each in services["services"]] == [(NAME, NAME)]
    older = good(clustered.get("/v3/os-services", as_="admin", version="3.6"))["services"]
    assert all("cluster" not in each for each in older)


def test_volumes_tell_their_cluster(clustered: Api) -> None:
    volume = clustered.volume()
    path = f"/v3/volumes/{volume['id']}"
    assert good(clustered.get(path, as_="admin", version="3.61"))["volume"]["cluster_name"] == NAME
    assert "cluster_name" not in good(clustered.get(path, as_="admin", version="3.60"))["volume"]
    assert "cluster_name" not in good(clustered.get(path, version="3.61"))["volume"]
    good(clustered.delete(path), 202)
    clustered.wait_gone(path)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("name=east@pool", True),
        ("name=west@pool", False),
        ("binary=cinder-volume", True),
        ("is_up=true", True),
        ("is_up=false", False),
        ("disabled=0", True),
        ("num_hosts=1&num_down_hosts=0", True),
        ("num_hosts=2", False),
        ("frozen=false&replication_status=not-capable", True),
        ("frozen=true", False),
    ],
)
def test_filters(clustered: Api, query: str, found: bool) -> None:
    listed = good(clustered.get(f"/v3/clusters?{query}", as_="admin", version="3.26"))["clusters"]
    assert bool(listed) is found


def test_unknown_filters_and_versions(clustered: Api) -> None:
    refused(clustered.get("/v3/clusters?size=1", as_="admin", version="3.7"), 400)
    refused(clustered.get("/v3/clusters?frozen=true", as_="admin", version="3.25"), 400)
    refused(clustered.get("/v3/clusters?is_up=perhaps", as_="admin", version="3.7"), 400)
    for path in ("/v3/clusters", "/v3/clusters/detail", f"/v3/clusters/{NAME}"):
        refused(clustered.get(path, as_="admin", version="3.6"), 404)
        refused(clustered.get(path, version="3.7"), 403)
    refused(clustered.get("/v3/clusters/west@pool", as_="admin", version="3.7"), 404)


def test_disabled_clusters_take_no_volumes(clustered: Api) -> None:
    wanted = {"name": NAME, "disabled_reason": "mending"}
    told = good(clustered.put("/v3/clusters/disable", wanted, as_="admin", version="3.7"))["cluster"]
    try:
        assert told == {
            "name": NAME,
            "binary": "cinder-volume",
            "state": "up",
            "status": "disabled",
            "disabled_reason": "mending",
        }
        clustered.volume(status="error")
    finally:
        told = good(clustered.put("/v3/clusters/enable", {"name": NAME}, as_="admin", version="3.7"))[
            "cluster"
        ]
    assert (told["status"], told["disabled_reason"]) == ("enabled", None)
    clustered.volume()
    for wrong, status in (
        ({"name": "west@pool"}, 404),
        ({}, 400),
        ({**wanted, "binary": "cinder-backup"}, 404),
    ):
        refused(clustered.put("/v3/clusters/disable", wrong, as_="admin", version="3.7"), status)


def test_freezing_a_cluster(clustered: Api) -> None:
    good(clustered.put("/v3/os-services/freeze", {"cluster": NAME}, as_="admin", version="3.26"))
    assert show(clustered)["frozen"] is True
    good(clustered.put("/v3/os-services/thaw", {"cluster": NAME}, as_="admin", version="3.26"))
    assert show(clustered)["frozen"] is False
    refused(
        clustered.put("/v3/os-services/freeze", {"cluster": "west@pool"}, as_="admin", version="3.26"), 400
    )
    refused(clustered.put("/v3/os-services/freeze", {"cluster": NAME}, as_="admin", version="3.25"), 400)


def test_manageable_lists_take_a_cluster(clustered: Api) -> None:
    good(clustered.get(f"/v3/manageable_volumes?cluster={NAME}%23pool", as_="admin", version="3.17"))
    refused(clustered.get("/v3/manageable_volumes?cluster=west@pool%23x", as_="admin", version="3.17"), 400)


# --- cleaning up -----------------------------------------------------------------------------------------


def clean_up(api: Api, version: str = "3.24", as_: str = "admin", **wanted: Any) -> Any:
    return api.post("/v3/workers/cleanup", wanted, as_=as_, version=version)


def test_services_that_are_up_need_no_cleaning(clustered: Api) -> None:
    assert good(clean_up(clustered), 202) == {"cleaning": [], "unavailable": []}
    told = good(clean_up(clustered, is_up=True, binary="cinder-volume"), 202)
    assert [(each["host"], each["cluster_name"]) for each in told["cleaning"]] == [(NAME, NAME)]
    assert good(clean_up(clustered, is_up="yes", host="elsewhere"), 202)["cleaning"] == []


def test_bad_cleaning(clustered: Api) -> None:
    for wrong in ({"binary": "cinder-api"}, {"resource_type": "Backup"}, {"resource_id": "x"}, {"what": 1}):
        refused(clean_up(clustered, **wrong), 400)
    refused(clean_up(clustered, version="3.23"), 404)
    refused(clean_up(clustered, as_="member"), 403)


def test_a_service_that_is_down_and_alone_is_unavailable(own_service: Service) -> None:
    own_service.config["DEFAULT"] = {"report_interval": 1, "service_down_time": 2}
    own_service.start()
    api = Api(own_service)
    with own_service.records() as connection:
        statement = "INSERT INTO services (id, host, binary, availability_zone, disabled, frozen, created_at)"
        values = "VALUES ('gone', 'gone@pool', 'cinder-volume', 'nova', {0}, {0}, '2026-01-01 00:00:00')"
        zero = "false" if connection.dialect.name == "postgresql" else "0"
        connection.exec_driver_sql(f"{statement} {values.format(zero)}")
    told = good(clean_up(api), 202)
    assert [each["host"] for each in told["unavailable"]] == ["gone@pool"]
    assert told["cleaning"] == []
