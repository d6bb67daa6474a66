"""What back ends hold already, over the wire: listed, managed, unmanaged; by the paths of 3.8 and before."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.api.steps import LATEST, a_snapshot, a_type, a_volume, fresh, good, refused, wait_gone
from tests.api.test_transfers import usage
from tests.service import Api, Service, until

GIB = 1 << 30
OLD, NEW = "/v3/os-volume-manage", "/v3/manageable_volumes"
OLD_SNAPSHOTS, NEW_SNAPSHOTS = "/v3/os-snapshot-manage", "/v3/manageable_snapshots"
BOTH = pytest.mark.parametrize("path", [OLD, NEW])
BOTH_SNAPSHOTS = pytest.mark.parametrize("path", [OLD_SNAPSHOTS, NEW_SNAPSHOTS])


@pytest.fixture
def host(api: Any) -> str:
    (pool,) = good(api.get("/v3/scheduler-stats/get_pools", as_="admin"))["pools"]
    return str(pool["name"])


def place(api: Any, kind: str = "volumes") -> Path:
    return Path(api.service.state_dir, "pool", kind)


@pytest.fixture
def foreign(api: Any) -> Iterator[str]:
    """The name of a file among the volumes that is not the service's, of a little more than 1 GiB."""
    path = place(api) / f"{fresh('foreign')}.img"
    make(path, GIB + 512)
    yield path.name
    path.unlink(missing_ok=True)


def make(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.write(b"foreign")
        file.truncate(size)


def listed(api: Any, path: str, host: str, **params: Any) -> dict[str, dict[str, Any]]:
    query = "".join(f"&{key}={quote(str(value))}" for key, value in params.items())
    told = good(api.get(f"{path}?host={quote(host)}{query}", as_="admin"))
    (key,) = told
    return {each["reference"]["source-name"]: each for each in told[key]}


def manage(
    api: Any, path: str, host: str, file: Any, *, status: int = 202, version: str = LATEST, **more: Any
) -> Any:
    body = {"volume": {"host": host, "ref": {"source-name": file}, **more}}
    return good(api.post(path, body, as_="admin", version=version), status)["volume"]


def forget(api: Any, volume: dict[str, Any]) -> None:
    assert api.delete(f"/v3/volumes/{volume['id']}", as_="admin").status_code == 202
    wait_gone(api, f"/v3/volumes/{volume['id']}")


def file_of(api: Any, volume: dict[str, Any]) -> Path:
    return place(api) / f"volume-{volume['id']}.raw"


# --- volumes ---------------------------------------------------------------------------------------------


@BOTH
def test_a_file_becomes_a_volume(api: Any, host: str, foreign: str, path: str) -> None:
    before = usage(api, api.project_id)
    told = manage(api, path, host, foreign, name="found", description="d", metadata={"a": "b"}, bootable=True)
    assert (told["status"], told["size"], told["name"], told["bootable"]) == ("creating", 0, "found", "true")
    assert "volume_type_id" not in told
    assert "consumes_quota" not in told
    shown = api.wait(f"/v3/volumes/{told['id']}", "volume")
    assert (shown["size"], shown["description"], shown["metadata"]) == (2, "d", {"a": "b"})
    assert shown["os-vol-host-attr:host"] == host
    assert shown["consumes_quota"] is True
    assert not (place(api) / foreign).exists()
    assert file_of(api, told).stat().st_size == 2 * GIB
    with file_of(api, told).open("rb") as file:
        assert file.read(7) == b"foreign"
    assert usage(api, api.project_id)["gigabytes"] - before.get("gigabytes", 0) == 2
    forget(api, told)
    assert usage(api, api.project_id) == before


@BOTH
def test_what_is_told_of_the_files(api: Any, host: str, foreign: str, path: str) -> None:
    with a_volume(api) as volume:
        own = file_of(api, volume).name
        found = listed(api, path, host)
        assert found[foreign] == {"reference": {"source-name": foreign}, "size": 2, "safe_to_manage": True}
        assert found[own]["safe_to_manage"] is False
        detail = listed(api, f"{path}/detail", host)
        assert detail[foreign] == {
            **found[foreign],
            "reason_not_safe": None,
            "cinder_id": None,
            "extra_info": None,
        }
        assert detail[own]["reason_not_safe"] == "already managed"
        assert detail[own]["cinder_id"] == volume["id"]
        backend = host.partition("#")[0]
        assert foreign in listed(api, path, backend)
        assert "managed already" in refused(
            api.post(path, {"volume": {"host": host, "ref": {"source-name": own}}}, as_="admin"), 400
        )


def test_what_cannot_be_taken_over(api: Any, host: str) -> None:
    link, empty = place(api) / fresh("link"), place(api) / fresh("empty")
    link.symlink_to("/etc/hostname")
    empty.touch()
    try:
        found = listed(api, f"{NEW}/detail", host)
        for name in (link.name, empty.name):
            assert found[name]["safe_to_manage"] is False
            assert "no file with content" in found[name]["reason_not_safe"]
            told = manage(api, NEW, host, name)
            shown = api.wait(f"/v3/volumes/{told['id']}", "volume", "error")
            assert (shown["size"], shown["consumes_quota"]) == (0, False)
            forget(api, told)
            assert (place(api) / name).exists() or link.is_symlink()
    finally:
        link.unlink()
        empty.unlink()


@pytest.mark.parametrize("name", ["../volumes", "/etc/passwd", ".hidden", "nothing.img", "x.part"])
def test_a_reference_stays_in_the_pool(api: Any, host: str, name: str) -> None:
    told = manage(api, NEW, host, name)
    api.wait(f"/v3/volumes/{told['id']}", "volume", "error")
    (message,) = good(api.get(f"/v3/messages?resource_uuid={told['id']}", as_="admin"))["messages"]
    assert message["event_id"] == "VOLUME_VOLUME_103_001"
    assert usage(api, api.project_id) == {}
    forget(api, told)


def test_windows_of_the_volume_paths(api: Any, host: str, foreign: str) -> None:
    for path in (NEW, f"{NEW}/detail"):
        refused(api.get(f"{path}?host={quote(host)}", version="3.7", as_="admin"), 404)
        good(api.get(f"{path}?host={quote(host)}", version="3.8", as_="admin"))
    body = {"volume": {"host": host, "ref": {"source-name": foreign}}}
    refused(api.post(NEW, body, version="3.7", as_="admin"), 404)
    good(api.get(f"{OLD}?host={quote(host)}", version="3.0", as_="admin"))
    # clusters are named from 3.16 in bodies, and from 3.17 in lists; there are none
    cluster = {"volume": {"cluster": "c", "ref": {"source-name": foreign}}}
    assert "cluster" in refused(api.post(NEW, cluster, version="3.15", as_="admin"), 400)
    assert "There is no cluster c" in refused(api.post(NEW, cluster, version="3.16", as_="admin"), 400)
    assert "A host is needed" in refused(api.get(f"{NEW}?cluster=c", version="3.16", as_="admin"), 400)
    assert "There is no cluster c" in refused(api.get(f"{NEW}?cluster=c", version="3.17", as_="admin"), 400)
    both = f"{NEW}?cluster=c&host={quote(host)}"
    good(api.get(both, version="3.16", as_="admin"))
    assert "Exactly one" in refused(api.get(both, version="3.17", as_="admin"), 400)
    told = manage(api, OLD, host, foreign, version="3.0")
    api.wait(f"/v3/volumes/{told['id']}", "volume")
    forget(api, told)


def test_pages(api: Any, host: str) -> None:
    names = [fresh("page") for _ in range(3)]
    try:
        for size, name in zip((3, 1, 2), names, strict=True):
            make(place(api) / name, size * GIB)
        mine = set(names)

        def order(**params: Any) -> list[str]:
            return [name for name in listed(api, NEW, host, **params) if name in mine]

        assert order() == sorted(names, reverse=True)
        assert order(sort="reference:asc") == sorted(names)
        assert order(sort="size:asc") == [names[1], names[2], names[0]]
        assert order(sort_key="size", sort_dir="desc") == [names[0], names[2], names[1]]
        whole = list(listed(api, NEW, host, sort="reference:asc"))
        assert list(listed(api, NEW, host, sort="reference:asc", limit=2)) == whole[:2]
        assert list(listed(api, NEW, host, sort="reference:asc", limit=2, offset=1)) == whole[1:3]
        for marker in (json.dumps({"source-name": whole[0]}), str({"source-name": whole[0]}), whole[0]):
            assert list(listed(api, NEW, host, sort="reference:asc", marker=marker)) == whole[1:]
        assert listed(api, NEW, host, limit=0) == {}
    finally:
        for name in names:
            (place(api) / name).unlink()
    for query in (
        "limit=-1",
        "limit=x",
        "offset=-1",
        "sort=name:asc",
        "sort=size:up",
        "sort_key=size&sort=size",
    ):
        refused(api.get(f"{NEW}?host={quote(host)}&{query}", as_="admin"), 400)
    refused(api.get(f"{NEW}?host={quote(host)}&marker=nothing", as_="admin"), 404)


def test_administrators_only(api: Any, host: str) -> None:
    for path in (OLD, NEW, OLD_SNAPSHOTS, NEW_SNAPSHOTS):
        for tail in ("", "/detail"):
            refused(api.get(f"{path}{tail}?host={quote(host)}"), 403)
    for path in (OLD, NEW):
        refused(api.post(path, {"volume": {"host": host, "ref": {"source-name": "x"}}}), 403)
    with a_volume(api) as volume, a_snapshot(api, volume) as snapshot:
        for path in (OLD_SNAPSHOTS, NEW_SNAPSHOTS):
            body = {"snapshot": {"volume_id": volume["id"], "ref": {"source-name": "x"}}}
            refused(api.post(path, body), 403)
        refused(api.post(f"/v3/volumes/{volume['id']}/action", {"os-unmanage": None}), 403)
        refused(api.post(f"/v3/snapshots/{snapshot['id']}/action", {"os-unmanage": None}), 403)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ref": {"source-name": "x"}, "host": None},
        {"host": "nobody@nowhere#pool", "ref": {"source-name": "x"}},
        {"host": "h h", "ref": {"source-name": "x"}},
        {"ref": {}},
        {"ref": 7},
        {"ref": ""},
        {"ref": {"source-name": 7}},
        {"ref": "x", "surprise": 1},
        {"ref": "x", "name": "n" * 256},
        {"ref": "x", "metadata": {"k": 1}},
        {"ref": "x", "availability_zone": "mars"},
    ],
)
def test_bad_requests(api: Any, host: str, body: dict[str, Any]) -> None:
    refused(api.post(NEW, {"volume": {"host": host, **body}}, as_="admin"), 400)


def test_services_that_cannot(api: Any, host: str, foreign: str) -> None:
    backend = host.partition("#")[0]
    which = {"host": backend, "binary": "cinder-volume"}
    good(api.put("/v3/os-services/disable", which, as_="admin"))
    try:
        body = {"volume": {"host": host, "ref": {"source-name": foreign}}}
        assert "disabled" in refused(api.post(NEW, body, as_="admin"), 400)
        assert "disabled" in refused(api.get(f"{NEW}?host={quote(host)}", as_="admin"), 400)
    finally:
        good(api.put("/v3/os-services/enable", which, as_="admin"))
    assert "could not be found" in refused(api.get(f"{NEW}?host=a@b", as_="admin"), 400)
    wrong = {"volume": {"host": f"{backend}#elsewhere", "ref": {"source-name": foreign}}}
    assert host in refused(api.post(NEW, wrong, as_="admin"), 400)
    refused(api.get(NEW, as_="admin"), 400)


def test_types_of_managed_volumes(api: Any, host: str, foreign: str) -> None:
    with a_type(api, specs={"volume_backend_name": "elsewhere"}) as wrong:
        told = manage(api, NEW, host, foreign, volume_type=wrong["id"])
        api.wait(f"/v3/volumes/{told['id']}", "volume", "error")
        (message,) = good(api.get(f"/v3/messages?resource_uuid={told['id']}", as_="admin"))["messages"]
        assert message["event_id"] == "VOLUME_VOLUME_103_003"
        assert (place(api) / foreign).exists()
        forget(api, told)
    with a_type(api) as right:
        told = manage(api, NEW, host, foreign, volume_type=right["name"])
        assert told["volume_type"] == right["name"]
        api.wait(f"/v3/volumes/{told['id']}", "volume")
        assert usage(api, api.project_id)[f"gigabytes_{right['name']}"] == 2
        forget(api, told)
    with a_type(api) as secret:
        body = {"encryption": {"provider": "luks", "control_location": "front-end"}}
        good(api.post(f"/v3/types/{secret['id']}/encryption", body, as_="admin"))
        body = {"volume": {"host": host, "ref": {"source-name": foreign}, "volume_type": secret["id"]}}
        assert "encrypted" in refused(api.post(NEW, body, as_="admin"), 400)


def test_quota_is_asked_when_the_size_is_known(api: Any, host: str, foreign: str) -> None:
    path = f"/v3/os-quota-sets/{api.project_id}"
    good(api.put(path, {"quota_set": {"gigabytes": 1}}, as_="admin"))
    told = manage(api, NEW, host, foreign)
    api.wait(f"/v3/volumes/{told['id']}", "volume", "error")
    shown = api.get(f"/v3/volumes/{told['id']}", headers={"Lapilli-Extensions": "fault"}).json()["volume"]
    assert "VolumeSizeExceedsAvailableQuota" in shown["fault"]
    assert (place(api) / foreign).stat().st_size == GIB + 512
    assert usage(api, api.project_id) == {}
    forget(api, told)
    assert usage(api, api.project_id) == {}
    good(api.delete(path, as_="admin"))


def test_a_repeated_call_manages_once(api: Any, host: str, foreign: str) -> None:
    body, headers = {"volume": {"host": host, "ref": foreign}}, {"Idempotency-Key": str(uuid.uuid4())}
    ids = {good(api.post(NEW, body, as_="admin", headers=headers), 202)["volume"]["id"] for _ in range(2)}
    assert len(ids) == 1
    (identifier,) = ids
    api.wait(f"/v3/volumes/{identifier}", "volume")
    forget(api, {"id": identifier})


# --- unmanage --------------------------------------------------------------------------------------------


def unmanage(api: Any, kind: str, identifier: str) -> Any:
    return api.post(f"/v3/{kind}/{identifier}/action", {"os-unmanage": None}, as_="admin")


def test_unmanage_and_manage_again(api: Any, host: str) -> None:
    volume = api.volume()
    with file_of(api, volume).open("rb+") as file:
        file.write(b"kept")
    good(unmanage(api, "volumes", volume["id"]), 202)
    wait_gone(api, f"/v3/volumes/{volume['id']}")
    assert usage(api, api.project_id) == {}
    left = f"unmanaged-{volume['id']}.raw"
    assert listed(api, NEW, host)[left]["safe_to_manage"] is True
    told = manage(api, NEW, host, left)
    assert told["id"] != volume["id"]
    api.wait(f"/v3/volumes/{told['id']}", "volume")
    with file_of(api, told).open("rb") as file:
        assert file.read(4) == b"kept"
    forget(api, told)
    assert left not in listed(api, NEW, host)


def test_what_is_not_unmanaged(api: Any) -> None:
    with a_volume(api) as volume:
        path = f"/v3/volumes/{volume['id']}"
        with a_snapshot(api, volume):
            assert "snapshots" in refused(unmanage(api, "volumes", volume["id"]), 400)
        api.post(f"{path}/action", {"os-attach": {"host_name": "h", "mountpoint": "/dev/vdb"}})
        assert "attached" in refused(unmanage(api, "volumes", volume["id"]), 400)
        api.post(f"{path}/action", {"os-force_detach": {}}, as_="admin")
        refused(unmanage(api, "volumes", str(uuid.uuid4())), 404)
        assert file_of(api, volume).exists()


# --- snapshots -------------------------------------------------------------------------------------------


@BOTH_SNAPSHOTS
def test_a_file_becomes_a_snapshot(api: Any, host: str, path: str) -> None:
    with a_volume(api, size=2) as volume:
        before = usage(api, api.project_id)
        name = fresh("foreign")
        make(place(api, "snapshots") / name, GIB)
        ref = {"source-name": name}
        found = listed(api, path, host)[name]
        assert found == {"reference": ref, "size": 1, "safe_to_manage": True, "source_reference": None}
        body = {"volume_id": volume["id"], "ref": ref, "name": "found", "metadata": {"a": "b"}}
        told = good(api.post(path, {"snapshot": body}, as_="admin"), 202)["snapshot"]
        assert (told["status"], told["volume_id"], told["metadata"]) == ("creating", volume["id"], {"a": "b"})
        words = "id name description volume_id status size created_at updated_at metadata"
        assert set(told) == set(words.split())
        shown = api.wait(f"/v3/snapshots/{told['id']}", "snapshot")
        assert (shown["size"], shown["os-extended-snapshot-attributes:progress"]) == (1, "100%")
        own = listed(api, f"{path}/detail", host)[f"snapshot-{told['id']}.raw"]
        assert (own["safe_to_manage"], own["reason_not_safe"]) == (False, "already managed")
        assert (own["cinder_id"], own["source_reference"]) == (told["id"], {"source-id": volume["id"]})
        taken = usage(api, api.project_id)
        assert (taken["snapshots"], taken["gigabytes"]) == (1, before["gigabytes"] + 1)
        with a_volume(api, snapshot_id=told["id"]) as copy, file_of(api, copy).open("rb") as file:
            assert file.read(7) == b"foreign"
        good(unmanage(api, "snapshots", told["id"]), 202)
        wait_gone(api, f"/v3/snapshots/{told['id']}")
        assert usage(api, api.project_id) == before
        (place(api, "snapshots") / f"unmanaged-{told['id']}.raw").unlink()


def test_snapshots_that_cannot_be(api: Any, host: str) -> None:
    with a_volume(api) as volume:
        name = fresh("large")
        make(place(api, "snapshots") / name, GIB + 1)
        body = {"snapshot": {"volume_id": volume["id"], "ref": name}}
        for word in (name, "nothing"):
            body["snapshot"]["ref"] = word
            told = good(api.post(NEW_SNAPSHOTS, body, as_="admin"), 202)["snapshot"]
            api.wait(f"/v3/snapshots/{told['id']}", "snapshot", "error")
            (message,) = good(api.get(f"/v3/messages?resource_uuid={told['id']}", as_="admin"))["messages"]
            assert message["event_id"] == "VOLUME_VOLUME_SNAPSHOT_104_001"
            assert "snapshots" not in usage(api, api.project_id)
            good(api.delete(f"/v3/snapshots/{told['id']}", as_="admin"), 202)
            wait_gone(api, f"/v3/snapshots/{told['id']}")
        (place(api, "snapshots") / name).unlink()
        reset = {"os-reset_status": {"status": "error"}}
        api.post(f"/v3/volumes/{volume['id']}/action", reset, as_="admin")
        assert "error" in refused(api.post(NEW_SNAPSHOTS, body, as_="admin"), 400)
        for bad in ({}, {"volume_id": volume["id"]}, {"volume_id": "x", "ref": "y"}):
            refused(api.post(NEW_SNAPSHOTS, {"snapshot": bad}, as_="admin"), 400)
        unknown = {"snapshot": {"volume_id": str(uuid.uuid4()), "ref": "y"}}
        refused(api.post(NEW_SNAPSHOTS, unknown, as_="admin"), 404)


def test_windows_of_the_snapshot_paths(api: Any, host: str) -> None:
    for path in (NEW_SNAPSHOTS, f"{NEW_SNAPSHOTS}/detail"):
        refused(api.get(f"{path}?host={quote(host)}", version="3.7", as_="admin"), 404)
        good(api.get(f"{path}?host={quote(host)}", version="3.8", as_="admin"))
        assert "There is no cluster" in refused(
            api.get(f"{path}?cluster=c", version="3.17", as_="admin"), 400
        )
    good(api.get(f"{OLD_SNAPSHOTS}?host={quote(host)}", version="3.0", as_="admin"))
    body = {"snapshot": {"volume_id": str(uuid.uuid4()), "ref": "x"}}
    assert "not supported" in refused(api.post(NEW_SNAPSHOTS, body, version="3.7", as_="admin"), 404)


# --- a back end that fails -------------------------------------------------------------------------------


def test_failures_of_the_back_end(own_service: Service) -> None:
    own_service.config = {"DEFAULT": {"enabled_backends": "sim"}, "sim": {"volume_driver": "sim"}}
    own_service.start()
    api = Api(own_service)
    pool = own_service.state_dir / "sim-sim"
    volume = api.volume()
    faults = [{"call": "adopt", "error": "no", "times": 1}, {"call": "release", "error": "no", "times": 1}]
    own_service.suffer(faults[0])
    make(pool / "volumes" / "found", GIB)
    (name,) = [each["name"] for each in good(api.get("/v3/scheduler-stats/get_pools", as_="admin"))["pools"]]
    told = manage(api, NEW, name, "found")
    api.wait(f"/v3/volumes/{told['id']}", "volume", "error")
    assert (pool / "volumes" / "found").exists()
    assert usage(api, api.project_id)["volumes"] == 1
    own_service.suffer(faults[1])
    good(unmanage(api, "volumes", volume["id"]), 202)
    shown = api.wait(f"/v3/volumes/{volume['id']}", "volume", "error_unmanaging")
    assert shown["size"] == 1
    assert (pool / "volumes" / f"volume-{volume['id']}.raw").exists()
    (message,) = good(api.get(f"/v3/messages?resource_uuid={volume['id']}", as_="admin"))["messages"]
    assert message["event_id"] == "VOLUME_VOLUME_006_001"


@pytest.mark.parametrize("call", ["adopt", "release"])
def test_a_back_end_that_answers_too_late(own_service: Service, call: str) -> None:
    """What it does after it was given up is undone."""
    own_service.config = {
        "DEFAULT": {
            "enabled_backends": "sim",
            "operation_deadlines": "volume.manage=1, volume.unmanage=1",
        },
        "sim": {"volume_driver": "sim"},
    }
    own_service.start()
    api = Api(own_service)
    volume, folder = api.volume(), own_service.state_dir / "sim-sim" / "volumes"
    make(folder / "found", GIB)
    own_service.suffer({"call": call, "delay": 3, "times": 1})
    (pool,) = good(api.get("/v3/scheduler-stats/get_pools", as_="admin"))["pools"]
    if call == "adopt":
        told = manage(api, NEW, pool["name"], "found")
        api.wait(f"/v3/volumes/{told['id']}", "volume", "error")
    else:
        good(unmanage(api, "volumes", volume["id"]), 202)
        api.wait(f"/v3/volumes/{volume['id']}", "volume", "error_unmanaging")
    time.sleep(3)
    until(lambda: {each.name for each in folder.iterdir()} == {"found", f"volume-{volume['id']}.raw"})
