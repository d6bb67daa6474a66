"""Services of several hosts: up and down, enabled and disabled, seen from another host."""

from __future__ import annotations

from tests.hosts.cloud import ALONE, TOGETHER, Cloud
from tests.service import until

FAULT = {"Lapilli-Extensions": "fault"}


def _fault(cloud: Cloud, volume_id: str) -> str:
    told = cloud.api.get(f"/v3/volumes/{volume_id}", headers=FAULT).json()["volume"]["fault"]
    return str(told)


def test_nothing_is_placed_on_a_host_that_is_down(cloud: Cloud) -> None:
    cloud.hosts["alone"].cut()
    until(lambda: cloud.services()[ALONE]["state"] == "down")
    assert cloud.services()[TOGETHER]["state"] == "up"
    refused = cloud.request("own")
    cloud.wait(refused, "error")
    assert f"{ALONE}#own: its service is down" in _fault(cloud, refused)
    assert "CapabilitiesFilter" in _fault(cloud, refused)  # what was looked at, and why not
    cloud.hosts["alone"].heal()
    until(lambda: cloud.services()[ALONE]["state"] == "up", 40)
    for each in (refused, cloud.volume("own")):
        cloud.delete(each)


def test_one_of_two_on_a_back_end_is_enough(cloud: Cloud) -> None:
    cloud.hosts["right"].cut()
    for _ in range(4):
        cloud.delete(cloud.volume())
    assert cloud.services()[TOGETHER]["state"] == "up"
    cloud.hosts["right"].heal()


def test_nothing_is_placed_on_a_disabled_host(cloud: Cloud) -> None:
    told = {"host": ALONE, "binary": "cinder-volume"}
    reason = {**told, "disabled_reason": "a disk is changed"}
    answer = cloud.api.put("/v3/os-services/disable-log-reason", reason, as_="admin")
    assert answer.status_code == 200, answer.text
    seen = cloud.services()[ALONE]
    assert (seen["status"], seen["state"], seen["disabled_reason"]) == ("disabled", "up", "a disk is changed")
    refused = cloud.request("own")
    cloud.wait(refused, "error")
    assert f"{ALONE}#own: its service is disabled (a disk is changed)" in _fault(cloud, refused)
    cloud.api.put("/v3/os-services/enable", told, as_="admin")
    for each in (refused, cloud.volume("own")):
        cloud.delete(each)
