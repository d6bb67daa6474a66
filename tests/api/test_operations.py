"""The operator's view of operations, what may be done about one, and calls that hang."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.steps import good, ids, refused
from tests.service import Api, Service, until


@pytest.fixture(scope="module")
def sim_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on a simulator, whose calls hang when told to, and whose creates may take 2 s."""
    made = Service(tmp_path_factory.mktemp("operations") / "state")
    made.config = {
        "DEFAULT": {
            "enabled_backends": "sim",
            "volume_workers": 2,
            "operation_deadlines": "volume.create=1.5, snapshot.create=1.5",
            "quota_volumes": -1,
        },
        "sim": {"volume_driver": "sim", "target_helper": "local"},
    }
    made.start()
    yield made
    made.end()


@pytest.fixture
def sim(sim_service: Service) -> Iterator[Api]:
    """A client; nothing is left of the test's faults, nor anything that differs from the database."""
    yield Api(sim_service)
    sim_service.suffer()
    found = [""]

    def is_well() -> bool:
        found[0] = doctor(sim_service)
        return found[0] == "Everything is as the database says.\n"

    try:
        until(is_well, 15)
    except AssertionError:
        raise AssertionError(found[0]) from None


def doctor(service: Service) -> str:
    """What `lapilli doctor` prints."""
    return subprocess.run(service.command("doctor"), capture_output=True, text=True, timeout=60).stdout


def lapilli(service: Service, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of the operator."""
    return subprocess.run(service.command(*words), capture_output=True, text=True, timeout=60)


def create(api: Api) -> str:
    """Id of a new volume, whatever becomes of it."""
    made = good(api.post("/v3/volumes", {"volume": {"size": 1}}), 202)
    return str(made["volume"]["id"])


def operation_of(api: Api, resource_id: str, **filters: str) -> dict[str, Any]:
    """The newest operation of a resource."""
    words = "".join(f"&{key}={text}" for key, text in filters.items())
    found = good(api.get(f"/v3/operations?resource_id={resource_id}{words}", as_="admin"))["operations"]
    assert found, "it has no operation"
    newest: dict[str, Any] = found[0]
    return newest


def running(api: Api, resource_id: str) -> dict[str, Any]:
    """Its operation, once a volume service is at work on it."""
    until(lambda: operation_of(api, resource_id)["tasks"][1]["state"] == "running", 5)
    return operation_of(api, resource_id)


def test_an_operation_shows_its_tasks_with_their_times(api: Api) -> None:
    volume = api.volume()
    found = operation_of(api, volume["id"])
    shown = good(api.get(f"/v3/operations/{found['id']}", as_="admin"))["operation"]
    assert shown["kind"] == "volume.create"
    assert shown["state"] == "done"
    assert shown["project_id"] == api.project_id
    assert shown["request_id"].startswith("req-")
    assert shown["held_by"] is shown["error"] is shown["deadline_at"] is None
    assert shown["overdue"] is False
    names = ["ScheduleCreateVolume", "CreateVolumeFromSpec", "CreateVolumeOnFinish"]
    assert [each["name"] for each in shown["tasks"]] == names
    assert [each["role"] for each in shown["tasks"]] == ["scheduler", "volume", "volume"]
    for task in shown["tasks"]:
        assert task["state"] == "done"
        assert 0 <= task["seconds"] < 5
        assert task["started_at"] >= shown["created_at"]
    assert 0 < shown["seconds"] < 20


def test_a_failed_operation_says_why(sim: Api) -> None:
    sim.service.suffer({"call": "create", "error": "the shelf is on fire"})
    volume = create(sim)
    sim.wait(f"/v3/volumes/{volume}", "volume", "error")
    shown = operation_of(sim, volume, state="failed")
    assert shown["error"]["code"] == "no-valid-backend"  # the last word, of the second attempt
    assert [each["state"] for each in shown["tasks"]] == ["done", "failed", "reverted", "failed", "reverted"]
    sim.delete(f"/v3/volumes/{volume}")


def test_lists_are_filtered_sorted_and_paged(api: Api) -> None:
    first, second = api.volume(), api.volume()
    page = good(api.get("/v3/operations?limit=1", as_="admin"))
    assert [each["resource_id"] for each in page["operations"]] == [second["id"]]
    following = good(api.get(f"/v3/operations?limit=1&marker={page['operations'][0]['id']}", as_="admin"))
    assert [each["resource_id"] for each in following["operations"]] == [first["id"]]
    assert page["operations_links"][0]["rel"] == "next"
    query = f"/v3/operations?kind=volume.create&state=done&resource_id={first['id']}"
    assert len(ids(api.get(query, as_="admin"), "operations")) == 1
    query = f"/v3/operations?kind=volume.delete&resource_id={first['id']}"
    assert ids(api.get(query, as_="admin"), "operations") == []


def test_only_administrators_see_and_touch_operations(api: Api) -> None:
    found = operation_of(api, api.volume()["id"])
    for as_ in ("member", "reader", "other"):
        refused(api.get("/v3/operations", as_=as_), 403)
        refused(api.get(f"/v3/operations/{found['id']}", as_=as_), 403)
        for word in ("retry", "abandon"):
            refused(api.post(f"/v3/operations/{found['id']}/action", {word: None}, as_=as_), 403)


def test_refusals(api: Api) -> None:
    found = operation_of(api, api.volume()["id"])
    nobody = "00000000-0000-0000-0000-000000000000"
    refused(api.get(f"/v3/operations/{nobody}", as_="admin"), 404)
    for word in ("retry", "abandon"):
        refused(api.post(f"/v3/operations/{nobody}/action", {word: None}, as_="admin"), 404)
        told = refused(api.post(f"/v3/operations/{found['id']}/action", {word: None}, as_="admin"), 400)
        assert "has ended" in told
    for bad in ({"force": "perhaps"}, {"gently": True}, []):
        refused(api.post(f"/v3/operations/{found['id']}/action", {"abandon": bad}, as_="admin"), 400)


def test_nothing_secret_is_shown(api: Api) -> None:
    volume = api.volume()
    connector = {
        "initiator": "iqn.1994-05.com.redhat:ops",
        "host": "h",
        "ip": "127.0.0.1",
        "password": "xyzzy",
    }
    body = {"attachment": {"volume_uuid": volume["id"], "connector": connector}}
    made = good(api.post("/v3/attachments", body))["attachment"]
    shown = json.dumps(operation_of(api, volume["id"], kind="attachment.connect"))
    assert made["connection_info"]["auth_password"] not in shown
    assert "xyzzy" not in shown
    api.delete(f"/v3/attachments/{made['id']}")


def test_a_hanging_call_is_taken_over_and_its_late_effect_undone(sim: Api) -> None:
    sim.service.suffer({"call": "create", "delay": 6, "times": 3})
    hung = [create(sim) for _ in range(3)]  # more than there are workers
    for volume in hung:
        shown = sim.wait(f"/v3/volumes/{volume}", "volume", "error", seconds=15)
        del shown
    told = operation_of(sim, hung[0], state="failed")
    failed = [each for each in told["tasks"] if each["state"] == "reverted"]
    assert failed, told
    began = time.monotonic()
    sim.wait(f"/v3/volumes/{create(sim)}", "volume")
    assert time.monotonic() - began < 3, "the hanging calls hold the threads of others"
    assert "CreateVolumeFromSpec has shown no progress for 1.5 s" in sim.service.log.read_text()
    good(sim.delete(f"/v3/volumes/{hung[0]}"), 202)
    time.sleep(4)  # now the calls come back, and make what nobody wants any more; the fixture looks


def test_a_hanging_snapshot_ends_in_error(sim: Api) -> None:
    volume = sim.volume()
    sim.service.suffer({"call": "create_snapshot", "delay": 5, "times": 1})
    body = {"snapshot": {"volume_id": volume["id"]}}
    made = good(sim.post("/v3/snapshots", body), 202)["snapshot"]
    sim.wait(f"/v3/snapshots/{made['id']}", "snapshot", "error")
    assert operation_of(sim, made["id"])["error"]["code"] == "deadline"
    good(sim.delete(f"/v3/snapshots/{made['id']}"), 202)
    sim.wait_gone(f"/v3/snapshots/{made['id']}")
    time.sleep(4)


def test_progress_keeps_an_operation_alive(sim: Api) -> None:
    """Slow is not hanging: what is counted is the time without progress."""
    volume = sim.volume()
    sim.service.suffer({"call": "clone", "delay": 1, "times": 1})
    made = good(sim.post("/v3/volumes", {"volume": {"source_volid": volume["id"]}}), 202)["volume"]
    sim.wait(f"/v3/volumes/{made['id']}", "volume")


def test_abandon_reverts_what_is_under_way(sim: Api) -> None:
    volume = sim.volume()
    sim.service.suffer({"call": "extend", "delay": 3, "times": 1})
    good(sim.post(f"/v3/volumes/{volume['id']}/action", {"os-extend": {"new_size": 2}}), 202)
    shown = running(sim, volume["id"])
    assert shown["held_by"]["pid"] > 1
    assert shown["held_by"]["lease_until"] > shown["created_at"]
    assert shown["deadline_at"] > shown["created_at"]
    assert [each["state"] for each in shown["tasks"]] == ["done", "running", "waiting"]
    good(sim.post(f"/v3/operations/{shown['id']}/action", {"abandon": None}, as_="admin"), 202)
    sim.wait(f"/v3/volumes/{volume['id']}", "volume", "error_extending", seconds=2.5)
    assert operation_of(sim, volume["id"])["error"]["code"] == "abandoned"
    time.sleep(3)
    assert operation_of(sim, volume["id"])["state"] == "failed", "the late call wrote over the end"


def test_abandon_by_force_needs_no_volume_service(sim: Api) -> None:
    volume = create(sim)
    sim.wait(f"/v3/volumes/{volume}", "volume")
    sim.service.suffer({"call": "delete", "delay": 3, "times": 1})
    good(sim.delete(f"/v3/volumes/{volume}"), 202)
    until(lambda: operation_of(sim, volume)["state"] == "running", 5)
    identifier = operation_of(sim, volume)["id"]
    body = {"abandon": {"force": True}}
    ended = good(sim.post(f"/v3/operations/{identifier}/action", body, as_="admin"), 202)["operation"]
    assert ended["state"] == "failed"
    sim.wait(f"/v3/volumes/{volume}", "volume", "error_deleting", seconds=1)
    time.sleep(3)
    good(sim.post(f"/v3/volumes/{volume}/action", {"os-force_delete": None}, as_="admin"), 202)
    sim.wait_gone(f"/v3/volumes/{volume}")


def test_retry_lets_a_waiting_revert_go_on(sim: Api) -> None:
    sim.service.suffer({"call": "create", "error": "no"}, {"call": "delete", "error": "not now either"})
    volume = create(sim)
    until(lambda: operation_of(sim, volume)["attempts"] >= 2, 10)
    sim.service.suffer()
    shown = operation_of(sim, volume)
    assert shown["state"] == "reverting"
    retried = good(sim.post(f"/v3/operations/{shown['id']}/action", {"retry": None}, as_="admin"), 202)
    assert retried["operation"]["attempts"] == 0
    sim.wait(f"/v3/volumes/{volume}", "volume", "error", seconds=2)


def test_the_command_shows_and_does_the_same(sim: Api) -> None:
    volume = sim.volume()
    sim.service.suffer({"call": "extend", "delay": 10, "times": 1})
    good(sim.post(f"/v3/volumes/{volume['id']}/action", {"os-extend": {"new_size": 2}}), 202)
    shown = running(sim, volume["id"])
    listed = lapilli(sim.service, "operation", "list", "--state", "running").stdout
    assert shown["id"] in listed
    assert "volume.extend" in listed
    told = lapilli(sim.service, "operation", "show", shown["id"]).stdout
    for word in (
        volume["id"],
        "ExtendVolume",
        "running",
        "ScheduleExtendVolume",
        str(shown["held_by"]["pid"]),
    ):
        assert word in told
    assert lapilli(sim.service, "operation", "abandon", shown["id"]).returncode == 0
    sim.wait(f"/v3/volumes/{volume['id']}", "volume", "error_extending", seconds=2.5)
    again = lapilli(sim.service, "operation", "retry", shown["id"])
    assert again.returncode == 1
    assert "has ended" in again.stderr
    missing = lapilli(sim.service, "operation", "show", "nothing")
    assert missing.returncode == 1
    assert "could not be found" in missing.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("volume.creat=5", "known are attachment.connect"),
        ("volume.create", "KIND=SECONDS"),
        ("volume.create=soon", "KIND=SECONDS"),
        ("volume.create=0", "more than 0 seconds"),
    ],
)
def test_bad_deadlines_stop_the_start(own_service: Service, text: str, told: str) -> None:
    own_service.state_dir.mkdir()
    own_service.config = {"DEFAULT": {"operation_deadlines": text}}
    found = lapilli(own_service, "doctor")
    assert found.returncode == 1
    assert f"[DEFAULT] operation_deadlines = {text!r}" in found.stderr
    assert told in found.stderr
