"""A volume host is taken out of work: drained, seen empty, stopped, and put back."""

from __future__ import annotations

from typing import Any

from tests.hosts.cloud import ALONE, TOGETHER, Cloud
from tests.service import until

_VOLUME = {"binary": "cinder-volume"}


def _drain(cloud: Cloud, host: str) -> dict[str, Any]:
    answer = cloud.api.put("/v3/os-services/drain", {"host": host}, as_="admin")
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def test_one_of_two_is_drained_while_the_other_carries_on(cloud: Cloud) -> None:
    """By the command, from another host: it waits for what is in hand, and nothing new is begun there."""
    left, right = cloud.hosts["left"], cloud.hosts["right"]
    cloud.trouble("shared", {"call": "create", "delay": 4, "times": 1})
    with right.paused():
        slow = cloud.request()
        until(lambda: cloud.holder(slow) == "left")
    done = cloud.hosts["first"].run("service", "drain", "left", "--reason", "a new kernel", "--timeout", "40")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{TOGETHER} on left: 1 in hand, 0 waiting"), lines
    assert lines[0].endswith("served by right")
    assert lines[-1] == "Host left is empty: it can be stopped."
    cloud.wait(slow)
    assert cloud.ask("SELECT owner FROM operations WHERE resource_id = :id", id=slow)[0].owner.startswith(
        "left|"
    )
    assert cloud.services()[TOGETHER]["status"] == "enabled"

    made = [cloud.volume() for _ in range(5)]
    owners = {
        cloud.ask("SELECT owner FROM operations WHERE resource_id = :id", id=each)[0].owner for each in made
    }
    assert {owner.split("|")[0] for owner in owners} == {"right"}
    left.terminate()
    left.start("volume")
    told = "SELECT claiming FROM members WHERE host = 'left'"
    until(lambda: cloud.ask(told) == [(False,)])  # a restart does not end it
    assert "  on left, drained" in cloud.hosts["first"].run("service", "list").stdout
    assert cloud.hosts["first"].run("service", "enable", "left").returncode == 0
    until(lambda: cloud.ask(told) == [(True,)])
    with right.paused():
        cloud.volume()


def test_the_only_host_of_a_back_end_is_drained(cloud: Cloud) -> None:
    """By the API: its service is disabled, what is asked for meanwhile waits, and is done afterwards."""
    old = cloud.volume("own")
    first = _drain(cloud, "alone")
    [backend] = first["backends"]
    assert (backend["host"], backend["backend"], backend["others"]) == ("alone", ALONE, [])
    until(lambda: bool(_drain(cloud, "alone")["empty"]))
    seen = cloud.services()[ALONE]
    assert (seen["status"], seen["state"], seen["disabled_reason"]) == ("disabled", "up", "drained")
    refused = cloud.request("own")
    cloud.wait(refused, "error")
    cloud.delete(old)
    until(lambda: _drain(cloud, "alone")["backends"][0]["waiting"] == 1)
    assert _drain(cloud, "alone")["empty"]
    answer = cloud.api.put("/v3/os-services/enable", {"host": "alone", **_VOLUME}, as_="admin")
    assert answer.status_code == 200, answer.text
    cloud.api.wait_gone(f"/v3/volumes/{old}")
    assert cloud.services()[ALONE]["status"] == "enabled"
    for each in (refused, cloud.volume("own")):
        cloud.delete(each)


def test_nobody_to_drain(cloud: Cloud) -> None:
    answer = cloud.api.put("/v3/os-services/drain", {"host": "nobody"}, as_="admin")
    assert answer.status_code == 404, answer.text
    assert cloud.api.put("/v3/os-services/drain", {"host": "left"}).status_code == 403


def test_what_a_host_has_in_hand_at_its_stop_is_handed_over(cloud: Cloud) -> None:
    """SIGTERM: another host carries on at once, without waiting for a lease to end."""
    cloud.trouble("shared", {"call": "create", "delay": 30, "times": 1})
    with cloud.hosts["right"].paused():
        made = cloud.request()
        until(lambda: cloud.holder(made) == "left")
    cloud.hosts["left"].terminate()
    cloud.wait(made, seconds=5)
    cloud.hosts["left"].start("volume")
    until(lambda: len(cloud.ask("SELECT 1 FROM members WHERE host = 'left'")) == 1)
