"""os-retype over the wire: another type for a volume where it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.steps import a_snapshot, a_type, a_volume, good, refused
from tests.api.test_transfers import usage
from tests.service import Api, Service, until


@pytest.fixture
def gold(api: Any) -> Iterator[dict[str, Any]]:
    with a_type(api, specs={"shade:of": "gold"}) as made:
        yield made


@pytest.fixture
def volume(api: Any, gold: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A volume of the default type; it is gone before the type that it may have become."""
    with a_volume(api) as made:
        yield made
        api.post(f"/v3/volumes/{made['id']}/action", {"os-force_detach": {}}, as_="admin")


def become(api: Any, volume: dict[str, Any], kind: str, **more: Any) -> Any:
    told = {"new_type": kind}
    told |= {"migration_policy": more.pop("policy")} if "policy" in more else {}
    return api.post(f"/v3/volumes/{volume['id']}/action", {"os-retype": told}, **more)


def ended(api: Any, volume: dict[str, Any], status: str = "available") -> dict[str, Any]:
    return api.wait(f"/v3/volumes/{volume['id']}", "volume", status)  # type: ignore[no-any-return]


def messages(api: Any, volume: dict[str, Any]) -> list[str]:
    found = good(api.get(f"/v3/messages?resource_uuid={volume['id']}"))["messages"]
    return [each["event_id"] for each in found]


@pytest.mark.parametrize("policy", [{}, {"policy": "never"}, {"policy": "on-demand"}])
@pytest.mark.parametrize("word", ["id", "name"])
def test_a_volume_becomes_another_type(api: Any, gold: Any, volume: Any, word: str, policy: Any) -> None:
    good(become(api, volume, gold[word], **policy), 202)
    shown = ended(api, volume)
    assert (shown["volume_type"], shown["volume_type_id"]) == (gold["name"], gold["id"])
    assert shown["id"] == volume["id"]
    assert shown["os-vol-host-attr:host"] == volume["os-vol-host-attr:host"]
    assert messages(api, volume) == []
    assert gold["name"] in refused(become(api, volume, gold["id"]), 400)


def test_counters_of_both_types_follow(api: Any, gold: Any, volume: Any) -> None:
    with a_snapshot(api, volume) as snapshot:
        before = usage(api, api.project_id)
        assert before["gigabytes___DEFAULT__"] == 2
        good(become(api, volume, gold["id"]), 202)
        ended(api, volume)
        name = gold["name"]
        told = {"volumes": 1, "gigabytes": 2, "snapshots": 1}
        assert usage(api, api.project_id) == {**told, **{f"{key}_{name}": each for key, each in told.items()}}
        with a_volume(api, snapshot_id=snapshot["id"]) as copy:
            assert copy["volume_type"] == name


def test_quota_of_the_new_type(api: Any, gold: Any, volume: Any) -> None:
    path = f"/v3/os-quota-sets/{api.project_id}"
    good(api.put(path, {"quota_set": {f"gigabytes_{gold['name']}": 0}}, as_="admin"))
    assert f"gigabytes_{gold['name']}" in refused(become(api, volume, gold["id"]), 413)
    assert ended(api, volume)["volume_type"] == "__DEFAULT__"
    good(api.put(path, {"quota_set": {f"gigabytes_{gold['name']}": 1, "gigabytes": 1}}, as_="admin"))
    good(become(api, volume, gold["id"]), 202)
    assert ended(api, volume)["volume_type"] == gold["name"]


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        ({"volume_backend_name": "elsewhere"}, "elsewhere"),
        ({"RESKEY:availability_zones": "mars"}, "mars"),
    ],
)
@pytest.mark.parametrize("policy", ["never", "on-demand"])
def test_a_type_that_lives_elsewhere(api: Any, specs: Any, says: str, policy: str) -> None:
    with a_type(api, specs=specs) as kind, a_volume(api) as volume:
        before = usage(api, api.project_id)
        good(become(api, volume, kind["id"], policy=policy), 202)
        until(lambda: messages(api, volume) == ["VOLUME_VOLUME_101_003"])
        assert ended(api, volume)["volume_type"] == "__DEFAULT__"
        assert usage(api, api.project_id) == before
        asked = {"headers": {"Lapilli-Extensions": "fault"}}
        fault = good(api.get(f"/v3/volumes/{volume['id']}", **asked))["volume"]["fault"]
        assert says in fault
        assert ("would have to be moved" in fault) == (policy == "on-demand")


def test_in_use(api: Any, gold: Any, volume: Any) -> None:
    body = {"os-attach": {"host_name": "h", "mountpoint": "/dev/vdb"}}
    good(api.post(f"/v3/volumes/{volume['id']}/action", body), 202)
    with a_type(api, specs={"multiattach": "<is> True"}) as many:
        assert "multiattach" in refused(become(api, volume, many["id"]), 400)
    good(become(api, volume, gold["id"]), 202)
    assert ended(api, volume, "in-use")["volume_type"] == gold["name"]


def test_qos_that_speaks_to_the_host_needs_a_detached_volume(api: Any, gold: Any, volume: Any) -> None:
    body = {"qos_specs": {"name": gold["name"], "consumer": "both", "total_iops_sec": "5"}}
    specs = good(api.post("/v3/qos-specs", body, as_="admin"))["qos_specs"]["id"]
    bind = f"/v3/qos-specs/{specs}"
    good(api.get(f"{bind}/associate?vol_type_id={gold['id']}", as_="admin"), 202)
    attach = {"os-attach": {"host_name": "h", "mountpoint": "/dev/vdb"}}
    good(api.post(f"/v3/volumes/{volume['id']}/action", attach), 202)
    assert "QoS" in refused(become(api, volume, gold["id"]), 400)
    good(api.put(bind, {"qos_specs": {"consumer": "back-end"}}, as_="admin"))
    good(become(api, volume, gold["id"]), 202)
    assert ended(api, volume, "in-use")["volume_type"] == gold["name"]
    good(api.delete(f"{bind}?force=True", as_="admin"), 202)


def test_multiattach_turns_on_and_off(api: Any, volume: Any, gold: Any) -> None:
    with a_type(api, specs={"multiattach": "<is> True"}) as many:
        good(become(api, volume, many["id"]), 202)
        assert ended(api, volume)["multiattach"] is True
        good(become(api, volume, gold["id"]), 202)
        assert ended(api, volume)["multiattach"] is False


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {"new_type": ""},
        {"new_type": "x" * 256},
        {"new_type": "__DEFAULT__", "migration_policy": "x"},
        {"new_type": "__DEFAULT__", "surprise": 1},
    ],
)
def test_bad_bodies(api: Any, volume: Any, body: Any) -> None:
    refused(api.post(f"/v3/volumes/{volume['id']}/action", {"os-retype": body}), 400)


def test_refusals(api: Any, gold: Any, volume: Any) -> None:
    refused(become(api, volume, gold["id"], as_="reader"), 403)
    refused(become(api, volume, gold["id"], as_="other"), 404)
    refused(become(api, volume, "nonsense"), 404)
    with a_type(api, public=False) as private:
        refused(become(api, volume, private["id"]), 404)
    with a_type(api, specs={"provisioning:min_vol_size": "5"}) as large:
        assert "5" in refused(become(api, volume, large["id"]), 400)
    with a_type(api) as secret:
        body = {"encryption": {"provider": "luks", "control_location": "front-end"}}
        good(api.post(f"/v3/types/{secret['id']}/encryption", body, as_="admin"))
        assert "encryption" in refused(become(api, volume, secret["id"], policy="on-demand"), 400)
    reset = {"os-reset_status": {"status": "error"}}
    api.post(f"/v3/volumes/{volume['id']}/action", reset, as_="admin")
    assert "error" in refused(become(api, volume, gold["id"]), 400)


def test_a_type_deleted_meanwhile(own_service: Service) -> None:
    own_service.config = {"DEFAULT": {"enabled_backends": "sim"}, "sim": {"volume_driver": "sim"}}
    own_service.start()
    api = Api(own_service)
    volume = api.volume()
    kind = good(api.post("/v3/types", {"volume_type": {"name": "brief"}}, as_="admin"))["volume_type"]
    specs = {"extra_specs": {"shade:of": "grey"}}
    good(api.post(f"/v3/types/{kind['id']}/extra_specs", specs, as_="admin"))
    own_service.suffer({"call": "retype", "delay": 1, "times": 1})
    good(become(api, volume, kind["id"]), 202)
    until(lambda: own_service.struck() == 1)
    good(api.delete(f"/v3/types/{kind['id']}", as_="admin"), 202)
    assert ended(api, volume)["volume_type"] == "__DEFAULT__"
    assert messages(api, volume) == ["VOLUME_VOLUME_101_001"]
    assert usage(api, api.project_id) == {
        "volumes": 1, "gigabytes": 1, "volumes___DEFAULT__": 1, "gigabytes___DEFAULT__": 1
    }  # fmt: skip
