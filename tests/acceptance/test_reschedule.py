"""A create goes on at another pool when one fails, and leaves nothing behind; and why none would take it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.service import Api, Service

BACKENDS = ("first", "second", "third")
CAPACITY = {"first": 300, "second": 200, "third": 100}  # so that they are tried in this order


@pytest.fixture
def three(own_service: Service) -> Service:
    """A service with three simulated back ends, not started yet."""
    own_service.config = {
        "DEFAULT": {"enabled_backends": ",".join(BACKENDS), "backend_stats_polling_interval": 3},
        "backend_defaults": {"volume_driver": "sim", "target_helper": "local"},
        **{name: {"sim_capacity_gb": CAPACITY[name]} for name in BACKENDS},
    }
    return own_service


def lapilli(service: Service, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(service.command(*words), capture_output=True, text=True, check=False, timeout=60)


def allocated(api: Api) -> dict[str, tuple[float, float]]:
    """(allocated, provisioned) by back end."""
    told = api.get("/v3/scheduler-stats/get_pools?detail=true", as_="admin").json()["pools"]
    return {
        each["name"].split("#")[1]: (
            each["capabilities"]["allocated_capacity_gb"],
            each["capabilities"]["provisioned_capacity_gb"],
        )
        for each in told
    }


def nothing_is_left_of_failures(service: Service) -> None:
    for backend in ("first", "second"):
        assert list((Path(service.state_dir) / f"sim-{backend}" / "volumes").iterdir()) == []
    found = lapilli(service, "doctor")
    assert (found.returncode, found.stdout) == (0, "Everything is as the database says.\n")


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_third_pool_takes_what_two_could_not(three: Service, when: str) -> None:
    for backend in ("first", "second"):
        three.suffer({"call": "create", "error": f"{backend} is broken", "when": when}, backend=backend)
    three.start()
    api = Api(three)
    volume = api.volume(10, name="restless")
    shown = api.get(f"/v3/volumes/{volume['id']}", as_="admin", headers={"Lapilli-Extensions": "fault"})
    assert shown.json()["volume"]["os-vol-host-attr:host"].endswith("@third#third")
    assert shown.json()["volume"]["fault"] is None
    assert allocated(api) == {"first": (0, 0), "second": (0, 0), "third": (10, 10)}
    assert api.get(f"/v3/messages?resource_uuid={volume['id']}").json()["messages"] == []
    nothing_is_left_of_failures(three)
    api.delete(f"/v3/volumes/{volume['id']}")
    api.wait_gone(f"/v3/volumes/{volume['id']}")
    assert allocated(api)["third"] == (0, 0)


def test_every_pool_fails(three: Service) -> None:
    for backend in BACKENDS:
        three.suffer({"call": "create", "error": f"{backend} is broken"}, backend=backend)
    three.start()
    api = Api(three)
    volume = api.volume(10, status="error")
    fault = fault_of(api, volume["id"])
    assert [part.split("#")[1] for part in fault.split("; ")] == [
        f"{name}: {name} is broken" for name in BACKENDS
    ]
    assert set(allocated(api).values()) == {(0, 0)}
    nothing_is_left_of_failures(three)


def fault_of(api: Api, volume_id: str) -> str:
    shown = api.get(f"/v3/volumes/{volume_id}", headers={"Lapilli-Extensions": "fault"})
    found: str = shown.json()["volume"]["fault"]
    return found


def test_only_so_many_attempts(three: Service) -> None:
    three.config["DEFAULT"]["scheduler_max_attempts"] = 1
    three.suffer({"call": "create", "error": "first is broken"}, backend="first")
    three.start()
    api = Api(three)
    volume = api.volume(10, status="error")
    assert fault_of(api, volume["id"]) == "first is broken"
    assert (
        api.get(f"/v3/volumes/{volume['id']}", as_="admin").json()["volume"]["os-vol-host-attr:host"] is None
    )
    nothing_is_left_of_failures(three)


def test_what_was_tried_is_told_when_nothing_else_fits(three: Service) -> None:
    """250 GiB fit into the first only: when that one fails, the others' reasons are told beside its own."""
    three.config["backend_defaults"]["max_over_subscription_ratio"] = "1"
    three.suffer({"call": "create", "error": "no luck today"}, backend="first")
    three.start()
    api = Api(three)
    volume = api.volume(250, status="error")
    fault = fault_of(api, volume["id"])
    assert "#first: it was tried before and failed: no luck today" in fault
    assert "#second: CapacityFilter: needs 250 GiB, 200 free of 200 GiB" in fault
    assert "#third: CapacityFilter: needs 250 GiB, 100 free of 100 GiB" in fault
    log = [json.loads(line) for line in three.log.read_text().splitlines() if "no pool for volume" in line]
    assert len(log) == 1
    assert len(log[0]["reasons"]) == 3
    assert log[0]["request_id"].startswith("req-")
    nothing_is_left_of_failures(three)


def test_the_back_ends_expressions_decide(three: Service) -> None:
    """A section's own, those for all back ends, and those in DEFAULT."""
    filters = "AvailabilityZoneFilter, CapacityFilter, CapabilitiesFilter, DriverFilter"
    three.config["DEFAULT"] |= {
        "scheduler_default_filters": filters,
        "scheduler_default_weighers": "GoodnessWeigher",
        "filter_function": "volume.size < 20",
        "goodness_function": "10",
    }
    three.config["first"]["filter_function"] = "\"volume.size > 5 && capabilities.clone == 'none'\""
    three.config["third"]["goodness_function"] = "volume.size > 3 ? 90 : 5"
    three.start()
    api = Api(three)
    for size, backend in ((4, "third"), (1, "second")):
        volume = api.volume(size)
        host = api.get(f"/v3/volumes/{volume['id']}", as_="admin").json()["volume"]["os-vol-host-attr:host"]
        assert host.endswith(f"#{backend}")
    refused = fault_of(api, api.volume(20, status="error")["id"])
    assert "#first: DriverFilter: its filter_function is false: volume.size > 5" in refused
    assert "#second: DriverFilter: its filter_function is false: volume.size < 20" in refused


@pytest.mark.parametrize(
    ("section", "option", "value", "told"),
    [
        (
            "DEFAULT",
            "scheduler_default_filters",
            "CapacityFilter, FancyFilter",
            "known are AvailabilityZoneFilter",
        ),
        ("DEFAULT", "scheduler_default_filters", "RetryFilter", "IgnoreAttemptedHostsFilter"),
        ("DEFAULT", "scheduler_default_weighers", "FancyWeigher", "known are AllocatedCapacityWeigher"),
        ("DEFAULT", "scheduler_weight_handler", "FancyHandler", "known are OrderedHostWeightHandler"),
        ("second", "filter_function", "volume.size <", "it ends too soon"),
        ("DEFAULT", "goodness_function", "os.system", "not understood at 'os.system'"),
        ("DEFAULT", "volume_number_multiplier", "many", "a number expected"),
    ],
)
def test_names_and_expressions_that_are_none_stop_the_start(
    three: Service, section: str, option: str, value: str, told: str
) -> None:
    three.config[section][option] = value
    three.state_dir.mkdir(parents=True)
    done = lapilli(three, "roles")
    assert done.returncode == 1
    assert done.stderr.startswith(f"lapilli: [{section}] {option} = ")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_explain_on_the_command_line(three: Service) -> None:
    three.config["backend_defaults"]["max_over_subscription_ratio"] = "1"
    three.start()
    api = Api(three)
    volume = api.volume(150)
    done = lapilli(three, "scheduler", "explain", "--size", "120")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    host = (
        api.get(f"/v3/volumes/{volume['id']}", as_="admin")
        .json()["volume"]["os-vol-host-attr:host"]
        .split("@")[0]
    )
    assert lines == [
        "120 GiB of type __DEFAULT__:",
        f"1 {host}@second#second passed, weight 1 (CapacityWeigher 200)",
        f"2 {host}@first#first passed, weight 0 (CapacityWeigher 150)",
        f"- {host}@third#third refused by CapacityFilter: needs 120 GiB, 100 free of 100 GiB",
    ]
    bound = lapilli(three, "scheduler", "explain", "--source", volume["id"])
    assert bound.returncode == 0
    assert bound.stdout.count("not considered: its source lives elsewhere") == 2
    nothing = lapilli(three, "scheduler", "explain", "--size", "1000", "--availability-zone", "nova")
    assert nothing.returncode == 1
    assert nothing.stdout.endswith("No pool would take it.\n")
    for words, told in (
        (("--size", "1", "--type", "none-such"), "none-such could not be found"),
        (("--size", "1", "--hint", "same_host"), "KEY=VALUE expected"),
        ((), "A size is needed"),
    ):
        wrong = lapilli(three, "scheduler", "explain", *words)
        assert (wrong.returncode, wrong.stdout) == (1, "")
        assert told in wrong.stderr
    assert allocated(api) == {"first": (150, 150), "second": (0, 0), "third": (0, 0)}
    assert [each["id"] for each in api.get("/v3/volumes").json()["volumes"]] == [volume["id"]]
