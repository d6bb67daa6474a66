"""Images that were made from volumes: who meets them, and who may use them."""

from __future__ import annotations

import json
import uuid
from typing import Any

from tests.api.steps import a_volume, fresh, good, refused
from tests.service import until

IMAGES = "/image/v2/images"


def upload(api: Any, volume: dict[str, Any], name: str, as_: str = "member", **more: Any) -> str:
    """The id of an image made from a volume, once it is there."""
    wanted = {"os-volume_upload_image": {"image_name": name, "disk_format": "qcow2", **more}}
    told = good(api.post(f"/v3/volumes/{volume['id']}/action", wanted, as_=as_), 202)
    api.wait(f"/v3/volumes/{volume['id']}", "volume", seconds=60)
    return str(told["os-volume_upload_image"]["image_id"])


def listed(api: Any, as_: str) -> set[str]:
    return {each["id"] for each in good(api.get(f"{IMAGES}?limit=1000", as_=as_))["images"]}


def create(api: Any, reference: str, as_: str) -> Any:
    return api.post("/v3/volumes", {"volume": {"size": 1, "imageRef": reference}}, as_=as_)


def test_an_uploaded_image_is_its_projects(api: Any) -> None:
    name = fresh("golden")
    with a_volume(api) as volume:
        private = upload(api, volume, name)
        public = upload(api, volume, fresh("public"), as_="admin", visibility="public")
        community = upload(api, volume, fresh("community"), visibility="community")
    assert listed(api, "reader") >= {private, public, community}
    assert listed(api, "other") & {private, public, community} == {public}
    assert good(api.get(f"{IMAGES}/{private}", as_="reader"))["owner"] == api.project_id
    stranger = refused(api.get(f"{IMAGES}/{private}", as_="other"), 404)
    assert stranger.replace(private, "") == refused(
        api.get(f"{IMAGES}/{(nobody := str(uuid.uuid4()))}", as_="other"), 404
    ).replace(nobody, "")
    good(api.get(f"{IMAGES}/{community}", as_="other"))
    for reference in (private, name, f"http://images/v2/images/{private}"):
        assert "could not be found" in refused(create(api, reference, "other"), 400)
    for reference, as_ in ((name, "member"), (private, "admin"), (public, "other"), (community, "other")):
        made = good(create(api, reference, as_), 202)["volume"]
        path = f"/v3/volumes/{made['id']}"
        api.wait(path, "volume")
        good(api.delete(path, as_="admin"), 202)
        api.wait_gone(path)


def test_another_projects_image_takes_no_name_away(api: Any) -> None:
    name = fresh("shared-name")
    with a_volume(api) as mine:
        upload(api, mine, name)
    with a_volume(api, as_="other") as theirs:
        upload(api, theirs, name, as_="other")
        made = good(create(api, name, "other"), 202)["volume"]
    path = f"/v3/volumes/{made['id']}"
    api.wait(path, "volume")
    good(api.delete(path, as_="other"), 202)
    until(lambda: api.get(path, as_="admin").status_code == 404)


def test_an_image_that_stands_for_a_snapshot(api: Any) -> None:
    """Compute's image of a server booted from a volume holds no data, and names the snapshot to use."""
    volume = api.volume(1)
    snapshot = api.snapshot(volume["id"])
    mapping = [{"boot_index": 0, "source_type": "snapshot", "snapshot_id": snapshot["id"]}]
    image_id = str(uuid.uuid4())
    record = {
        "id": image_id,
        "name": "server",
        "owner": api.project_id,
        "disk_format": "raw",
        "size": 0,
        "properties": {"block_device_mapping": json.dumps(mapping)},
    }
    (api.service.state_dir / "images" / f"{image_id}.json").write_text(json.dumps(record))
    body = {"volume": {"size": 1, "imageRef": image_id}}
    since = api.post("/v3/volumes", body, version="3.46")
    assert since.status_code == 202, since.text
    assert since.json()["volume"]["snapshot_id"] == snapshot["id"]
    api.wait(f"/v3/volumes/{since.json()['volume']['id']}", "volume")
    before = api.post("/v3/volumes", body, version="3.45")
    if before.status_code == 202:
        assert before.json()["volume"]["snapshot_id"] is None


def test_a_format_that_cannot_be_written_is_refused_at_once(api: Any) -> None:
    volume = api.volume(1)
    body = {"os-volume_upload_image": {"image_name": "no", "disk_format": "ploop"}}
    answer = api.post(f"/v3/volumes/{volume['id']}/action", body)
    assert answer.status_code == 400
    assert api.get(f"/v3/volumes/{volume['id']}").json()["volume"]["status"] == "available"
