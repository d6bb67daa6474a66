"""Versions 2 and 1 over the wire: the same service under the paths, names and statuses of old."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance import disks
from tests.api.steps import a_volume, fresh, good, refused, wait_gone
from tests.service import Api, Service

NOBODY = str(uuid.uuid4())


def call(api: Api, method: str, version: str, path: str, json: Any = None, **more: Any) -> Any:
    """A call of an old version, in the path of the caller's project."""
    return api.request(method, f"/{version}/{api.project_id}{path}", json=json, version=None, **more)


@pytest.fixture
def volume(api: Api) -> Iterator[dict[str, Any]]:
    with a_volume(api, description="words", metadata={"a": "b"}) as made:
        yield made


@pytest.mark.parametrize(("version", "identifier"), [("v1", "v1.0"), ("v2", "v2.0")])
def test_version_documents(api: Api, version: str, identifier: str) -> None:
    for path in (f"/{version}", f"/{version}/"):
        [told] = good(api.get(path, as_=None, version=None))["versions"]
        assert (told["id"], told["status"], told["version"]) == (identifier, "DEPRECATED", "")
        assert told["links"][0]["href"] == f"{api.service.url}/{version}/"


def test_all_versions_are_told_at_the_root(api: Api) -> None:
    told = good(api.get("/", as_=None, version=None), 300)["versions"]
    assert [(each["id"], each["status"]) for each in told] == [
        ("v1.0", "DEPRECATED"),
        ("v2.0", "DEPRECATED"),
        ("v3.0", "CURRENT"),
    ]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_what_did_not_exist_is_not_there(api: Api, version: str) -> None:
    for path in (
        *("/messages", "/clusters", "/groups", "/attachments", "/resource_filters", "/default-types"),
        *("/volume-transfers", "/manageable_volumes", "/workers/cleanup", "/volumes/summary"),
    ):
        answer = call(api, "GET", version, path, as_="admin")
        assert answer.status_code == 404, path
        assert answer.headers["content-type"].startswith("text/plain")
    assert api.get(f"/{version}/volumes", version=None).status_code == 404  # the project is part of the path
    refused(api.get(f"/{version}/{'0' * 32}/volumes", version=None), 400)
    assert api.get(f"/{version}/{api.project_id}/volumes", as_=None, version=None).status_code == 401


# --- version 2 -------------------------------------------------------------------------------------------


def test_v2_is_3_0_without_microversions(api: Api, volume: dict[str, Any]) -> None:
    path = f"/volumes/{volume['id']}"
    answer = call(api, "GET", "v2", path, headers={"OpenStack-API-Version": "volume 3.71"})
    assert "OpenStack-API-Version" not in answer.headers
    assert "Vary" not in answer.headers
    shown = good(answer)["volume"]
    present = good(api.get(f"/v3/{api.project_id}{path}", version="3.0"))["volume"]
    assert set(shown) == set(present)
    assert "group_id" not in shown
    links = {each["rel"]: each["href"] for each in shown["links"]}
    assert links["self"] == f"{api.service.url}/v2/{api.project_id}{path}"
    page = good(call(api, "GET", "v2", "/volumes?limit=1"))
    assert page["volumes_links"][0]["href"].startswith(f"{api.service.url}/v2/{api.project_id}/volumes?")


def test_v2_creates_with_202(api: Api) -> None:
    answer = call(api, "POST", "v2", "/volumes", {"volume": {"size": 1, "name": fresh("two")}})
    made = good(answer, 202)["volume"]
    api.wait(f"/v3/volumes/{made['id']}", "volume")
    good(call(api, "POST", "v2", f"/volumes/{made['id']}/action", {"os-extend": {"new_size": 2}}), 202)
    api.wait(f"/v3/volumes/{made['id']}", "volume")
    assert good(call(api, "GET", "v2", f"/volumes/{made['id']}"))["volume"]["size"] == 2
    good(call(api, "DELETE", "v2", f"/volumes/{made['id']}"), 202)
    wait_gone(api, f"/v3/volumes/{made['id']}")
    refused(call(api, "POST", "v2", "/volumes", {}), 400)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_multiattach_was_asked_of_the_request(api: Api, version: str) -> None:
    status = {"v1": 200, "v2": 202}[version]
    wanted = {"volume": {"size": 1, "multiattach": True}}
    made = good(call(api, "POST", version, "/volumes", wanted), status)["volume"]
    api.wait(f"/v3/volumes/{made['id']}", "volume")
    assert good(api.get(f"/v3/volumes/{made['id']}"))["volume"]["multiattach"] is True
    good(api.delete(f"/v3/volumes/{made['id']}"), 202)
    wait_gone(api, f"/v3/volumes/{made['id']}")
    refused(api.post("/v3/volumes", wanted, version="3.0"), 400)


# --- version 1 -------------------------------------------------------------------------------------------

VOLUME_KEYS = {
    *("id", "status", "size", "availability_zone", "created_at", "bootable", "multiattach", "attachments"),
    *("display_name", "display_description", "volume_type", "snapshot_id", "source_volid", "encrypted"),
    "metadata",
}


def test_v1_volume(api: Api, volume: dict[str, Any]) -> None:
    shown = good(call(api, "GET", "v1", f"/volumes/{volume['id']}"))["volume"]
    assert {key for key in shown if ":" not in key} == VOLUME_KEYS
    assert shown["display_name"] == volume["name"]
    assert shown["display_description"] == "words"
    assert (shown["bootable"], shown["multiattach"]) == ("false", "false")
    assert shown["os-vol-tenant-attr:tenant_id"] == api.project_id
    for path in ("/volumes", "/volumes/detail"):
        listed = good(call(api, "GET", "v1", path))
        assert listed == {"volumes": [shown]}
    assert good(call(api, "GET", "v1", f"/volumes?display_name={volume['name']}"))["volumes"] == [shown]
    assert good(call(api, "GET", "v1", "/volumes?display_name=other"))["volumes"] == []
    assert good(call(api, "GET", "v1", "/volumes?limit=1&offset=1"))["volumes"] == []
    changed = {"volume": {"display_name": "new", "display_description": None}}
    answer = good(call(api, "PUT", "v1", f"/volumes/{volume['id']}", changed))["volume"]
    assert (answer["display_name"], answer["display_description"]) == ("new", None)


def test_v1_attached(api: Api, volume: dict[str, Any]) -> None:
    wanted = {"instance_uuid": NOBODY, "mountpoint": "/dev/vdb"}
    path = f"/volumes/{volume['id']}"
    good(call(api, "POST", "v1", f"{path}/action", {"os-attach": wanted}), 202)
    [attached] = good(call(api, "GET", "v1", path))["volume"]["attachments"]
    assert set(attached) == {"id", "attachment_id", "volume_id", "server_id", "host_name", "device"}
    assert (attached["server_id"], attached["device"]) == (NOBODY, "/dev/vdb")
    good(call(api, "POST", "v1", f"{path}/action", {"os-detach": {}}), 202)


def test_v1_creates_with_200(api: Api) -> None:
    name = fresh("one")
    wanted = {"volume": {"size": 1, "display_name": name, "display_description": "words"}}
    made = good(call(api, "POST", "v1", "/volumes", wanted))["volume"]
    assert (made["display_name"], made["display_description"], made["status"]) == (name, "words", "creating")
    assert not {"name", "description", "links"} & set(made)
    api.wait(f"/v3/volumes/{made['id']}", "volume")
    body = {"snapshot": {"volume_id": made["id"], "display_name": "s"}}
    taken = good(call(api, "POST", "v1", "/snapshots", body))["snapshot"]
    assert taken["display_name"] == "s"
    api.wait(f"/v3/snapshots/{taken['id']}", "snapshot")
    listed = good(call(api, "GET", "v1", f"/snapshots?volume_id={made['id']}"))["snapshots"]
    assert {key for key in listed[0] if ":" not in key} == {
        *("id", "created_at", "display_name", "display_description", "volume_id", "status", "size"),
        "metadata",
    }
    good(call(api, "DELETE", "v1", f"/snapshots/{taken['id']}"), 202)
    wait_gone(api, f"/v3/snapshots/{taken['id']}")
    good(call(api, "DELETE", "v1", f"/volumes/{made['id']}"), 202)
    wait_gone(api, f"/v3/volumes/{made['id']}")


@pytest.mark.parametrize("path", ["/volumes", "/snapshots"])
@pytest.mark.parametrize("document", [None, {}, {"other": {}}, {"volume": None, "snapshot": "x"}, []])
def test_v1_says_422_where_the_key_is_missing(api: Api, path: str, document: Any) -> None:
    answer = call(api, "POST", "v1", path, document)
    assert answer.status_code == 422, answer.text
    assert answer.json()["unprocessableEntity"]["code"] == 422


def test_v1_types(api: Api) -> None:
    [kind] = [
        each for each in good(call(api, "GET", "v1", "/types"))["volume_types"] if "DEFAULT" in each["name"]
    ]
    assert set(kind) == {"id", "name", "extra_specs", "description", "is_public"}
    assert good(call(api, "GET", "v1", f"/types/{kind['id']}"))["volume_type"] == kind
    assert call(api, "GET", "v1", "/types/default").status_code == 404
    assert call(api, "POST", "v1", f"/types/{kind['id']}/action", {}, as_="admin").status_code == 404


def test_v1_volume_from_an_image(own_service: Service) -> None:
    """The request that old compute services send."""
    own_service.start()
    api = Api(own_service)
    image = disks.make_image(
        own_service.state_dir / "image.qcow2", "qcow2", disks.sample(1 << 20), virtual=1 << 26
    )
    words = own_service.command("image", "add", str(image), "--name", "old")
    image_id = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    body = {
        "status": "creating",
        "availability_zone": None,
        "source_volid": None,
        "display_description": None,
        "snapshot_id": None,
        "user_id": None,
        "size": 10,
        "display_name": "ubuntuvolumefromimage1",
        "imageRef": image_id,
        "attach_status": "detached",
        "volume_type": None,
        "project_id": None,
        "metadata": {},
    }
    for reference in (image_id, f"http://images:9292/v1/images/{image_id}"):
        made = good(call(api, "POST", "v1", "/volumes", {"volume": {**body, "imageRef": reference}}))[
            "volume"
        ]
        assert made["image_id"] == image_id
        api.wait(f"/v3/volumes/{made['id']}", "volume")
        shown = good(call(api, "GET", "v1", f"/volumes/{made['id']}"))["volume"]
        assert (shown["bootable"], shown["size"], shown["display_name"]) == ("true", 10, body["display_name"])
        assert shown["volume_image_metadata"]["image_name"] == "old"
    refused(call(api, "POST", "v1", "/volumes", {"volume": {**body, "imageRef": "old"}}), 400)


def test_old_versions_can_be_left_out(own_service: Service) -> None:
    own_service.config["DEFAULT"] = {"enable_v1_api": "false", "enable_v2_api": "false"}
    own_service.start()
    api = Api(own_service)
    for version in ("v1", "v2"):
        assert api.get(f"/{version}/", version=None).status_code == 404
        assert call(api, "GET", version, "/volumes").status_code == 404
