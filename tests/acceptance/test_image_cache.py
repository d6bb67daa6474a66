"""Images that a pool keeps as volumes of its own, and volumes that are cloned of where an image is kept."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance import disks, processes
from tests.acceptance.disks import GIB, MIB
from tests.acceptance.processes import lapilli
from tests.service import Api, Service, until

ROOM = 20  # GiB of the pool, none of it promised twice
MOST = 3  # images that it keeps
CONTENT = disks.sample(MIB)


@pytest.fixture
def caching(own_service: Service) -> Service:
    """A service that keeps images, tells of it, and looks after them often; not started yet."""
    own_service.config = {
        "DEFAULT": {"enabled_backends": "sim", "host": "here", "backend_stats_polling_interval": 3},
        "sim": {
            "volume_driver": "sim",
            "target_helper": "local",
            "sim_capacity_gb": ROOM,
            "max_over_subscription_ratio": 1,
            "image_volume_cache_enabled": "true",
            "image_volume_cache_max_count": MOST,
        },
        "oslo_messaging_notifications": {
            "driver": "messagingv2",
            "transport_url": "rabbit://nobody:nothing@127.0.0.1:1/",  # what is told waits in the database
        },
    }
    return own_service


@pytest.fixture
def api(caching: Service) -> Api:
    """A client of it, once it runs."""
    caching.start()
    return Api(caching)


Add = Callable[..., str]


@pytest.fixture
def add(caching: Service, tmp_path: Path) -> Add:
    """Add an image; returns its id."""

    def adding(content: bytes = CONTENT, size: int = GIB, disk_format: str = "qcow2") -> str:
        path = disks.make_image(tmp_path / f"image.{disk_format}", disk_format, content, virtual=size)
        done = lapilli(caching, "image", "add", str(path))
        assert done.returncode == 0, done.stderr
        path.unlink()
        return done.stdout.strip()

    return adding


def _create(api: Api, image: str, size: int = 1) -> str:
    answer = api.post("/v3/volumes", {"volume": {"size": size, "imageRef": image}})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["volume"]["id"])


def _volume_of(api: Api, image: str, size: int = 1) -> str:
    identifier = _create(api, image, size)
    api.wait(f"/v3/volumes/{identifier}", "volume")
    return identifier


def _file(service: Service, volume: str) -> Path:
    return service.state_dir / f"sim-sim/volumes/volume-{volume}.raw"


def _content(service: Service, volume: str, length: int = MIB) -> bytes:
    with _file(service, volume).open("rb") as file:
        return file.read(length)


def _kept(service: Service) -> dict[str, str]:
    """The volumes that the pool keeps of images, by the image."""
    found = processes.rows(service, "cached_images")
    return {each["image_id"]: each["id"] for each in found if each["state"] == "ready"}


def _told(service: Service) -> list[tuple[str, str]]:
    """What other programs would be told of the cache: (what, of which image)."""
    found = []
    for row in processes.rows(service, "outbox"):
        if row["event"].startswith("image_volume_cache."):
            payload = json.loads(row["payload"]) if isinstance(row["payload"], str) else row["payload"]
            assert row["publisher"] == "volume.here"
            assert payload == {"image_id": payload["image_id"], "host": "here@sim#sim"}
            found.append((row["event"].partition(".")[2], payload["image_id"]))
    return found


def _differences(service: Service) -> list[str]:
    """What doctor says, without the notices that wait for a broker that is not there."""
    lines = lapilli(service, "doctor").stdout.splitlines()
    return [line for line in lines if "image" in line or "pool" in line or "back end" in line]


def _placed(api: Api) -> int:
    (pool,) = api.get("/v3/scheduler-stats/get_pools?detail=True", as_="admin").json()["pools"]
    return int(pool["capabilities"]["allocated_capacity_gb"])


def test_the_second_volume_is_a_clone(api: Api, caching: Service, add: Add) -> None:
    """The first fills what the pool keeps; the second is made of that, whatever its size."""
    image = add(size=2 * GIB)
    first, second = _volume_of(api, image, 2), _volume_of(api, image, 3)
    kept = _kept(caching)[image]
    for volume, size in ((kept, 2), (first, 2), (second, 3)):
        assert _content(caching, volume) == CONTENT
        assert _file(caching, volume).stat().st_size == size * GIB
    assert _told(caching) == [("miss", image), ("hit", image)]
    (operation,) = [each for each in processes.rows(caching, "operations") if each["resource_id"] == second]
    assert operation["bytes_total"] == 2 * GIB, "it was not cloned"
    metrics = api.get("/metrics", version=None, as_=None).text
    assert 'lapilli_cached_images_bytes{pool="here@sim#sim"} 2.147483648e+09' in metrics
    name = 'lapilli_image_cache_total{outcome="hit",pool="here@sim#sim"} 1.0'
    until(lambda: name in api.get("/metrics", version=None, as_=None).text, 6)

    # nobody's volume, in nobody's quota; but its room is taken
    listed = api.get("/v3/volumes?all_tenants=1", as_="admin").json()["volumes"]
    assert {each["id"] for each in listed} == {first, second}
    assert api.get(f"/v3/volumes/{kept}", as_="admin").status_code == 404
    quota = api.get(f"/v3/os-quota-sets/{api.project_id}?usage=True").json()["quota_set"]
    assert (quota["volumes"]["in_use"], quota["gigabytes"]["in_use"]) == (2, 5)
    assert _placed(api) == 2 + 2 + 3
    assert _differences(caching) == []

    # nobody takes it over
    there = api.get("/v3/manageable_volumes/detail?host=here@sim", as_="admin").json()["manageable-volumes"]
    assert {each["cinder_id"] for each in there} == {first, second}
    wanted = {"host": "here@sim#sim", "ref": {"source-name": f"volume-{kept}.raw"}}
    refused = api.post("/v3/manageable_volumes", {"volume": wanted}, as_="admin")
    assert (refused.status_code, "is an image that" in refused.text) == (400, True), refused.text


def test_a_volume_outlives_the_image_it_was_made_of(api: Api, caching: Service, add: Add) -> None:
    """A volume stays as it is when the pool gives up what it was made of."""
    image = add()
    volume = _volume_of(api, image)
    kept = _kept(caching)[image]
    assert lapilli(caching, "image", "delete", image).returncode == 0
    until(lambda: not _file(caching, kept).exists(), 15)
    until(lambda: processes.rows(caching, "cached_images") == [])
    assert _told(caching)[-1] == ("evict", image)
    assert _content(caching, volume) == CONTENT
    assert _placed(api) == 1
    assert _differences(caching) == []


def test_the_one_unused_for_longest_goes_first(api: Api, caching: Service, add: Add) -> None:
    images = [add(bytes([65 + number]) * MIB) for number in range(MOST + 1)]
    for image in images[:MOST]:
        _volume_of(api, image)
    _volume_of(api, images[0])
    newest = _volume_of(api, images[MOST])
    assert _kept(caching).keys() == {images[0], *images[2:]}
    assert _content(caching, newest, 1) == bytes([65 + MOST])
    assert ("evict", images[1]) in _told(caching)
    assert _placed(api) == (MOST + 2) + MOST
    assert _differences(caching) == []


def test_an_image_makes_room_for_a_volume(api: Api, caching: Service, add: Add) -> None:
    """And what needs an image that there is no room for twice is made without keeping it."""
    image = add()
    _volume_of(api, image)
    full = ROOM - 1
    made = api.volume(full)
    assert _kept(caching) == {}
    assert _placed(api) == ROOM
    api.delete(f"/v3/volumes/{made['id']}")
    api.wait_gone(f"/v3/volumes/{made['id']}")
    large = _volume_of(api, image, full)
    assert _content(caching, large) == CONTENT
    assert (_kept(caching), _placed(api)) == ({}, ROOM)
    assert _differences(caching) == []


def test_an_image_that_makes_room_while_it_is_cloned(api: Api, caching: Service, add: Add) -> None:
    """What is being made of it is made without it, also while the copy is still on its way out."""
    image = add()
    _volume_of(api, image)
    kept = _kept(caching)[image]
    cloning = {"call": "clone", "delay": 4, "error": "The source is going.", "times": 1}
    going = {"call": "delete", "for": kept, "error": "It is open.", "busy": True}
    caching.suffer(cloning, going)
    volume = _create(api, image)
    until(lambda: caching.struck() == 1)  # it is at it
    assert api.volume(ROOM - 2)["status"] == "available"  # in the place of the copy
    assert _kept(caching) == {}
    api.wait(f"/v3/volumes/{volume}", "volume")
    assert _content(caching, volume) == CONTENT
    assert _file(caching, kept).exists()
    caching.suffer()
    until(lambda: _differences(caching) == [], 10)


def test_five_at_once_wait_for_one(api: Api, caching: Service, add: Add) -> None:
    image = add()
    made = [_create(api, image) for _ in range(5)]
    for each in made:
        api.wait(f"/v3/volumes/{each}", "volume")
        assert _content(caching, each) == CONTENT
    assert sorted(_told(caching)) == [("hit", image)] * 4 + [("miss", image)]


def test_what_cannot_be_kept_stands_in_nobodys_way(api: Api, caching: Service, add: Add) -> None:
    """The back end fails at the copy for all: the volume is made without it."""
    image = add()
    caching.suffer({"call": "staging", "error": "The disk is on fire.", "times": 1})
    volume = _volume_of(api, image)
    assert _content(caching, volume) == CONTENT
    assert processes.rows(caching, "cached_images") == []
    assert _placed(api) == 1
    assert processes.logged(caching, f"image {image} cannot be kept in here@sim#sim: The disk is on fire.")
    assert _differences(caching) == []


def test_what_the_back_end_has_lost(api: Api, caching: Service, add: Add) -> None:
    """Doctor tells; the next volume is made without it, and the one after that of a new copy."""
    image = add()
    _volume_of(api, image)
    lost = _kept(caching)[image]
    _file(caching, lost).unlink()
    (line,) = _differences(caching)
    assert f"the copy of image {image} that pool here@sim#sim keeps has nothing at its back end" in line
    for _ in range(2):
        assert _content(caching, _volume_of(api, image)) == CONTENT
    assert _kept(caching)[image] != lost
    assert _differences(caching) == []


def test_a_copy_that_cannot_be_removed_is_removed_later(api: Api, caching: Service, add: Add) -> None:
    image = add()
    _volume_of(api, image)
    kept = _kept(caching)[image]
    caching.suffer({"call": "delete", "for": kept, "error": "It is open.", "busy": True})
    assert api.volume(ROOM - 1)["status"] == "available"  # in its place
    (line,) = _differences(caching)
    assert f"the copy of image {image} that pool here@sim#sim keeps was given up, but is not removed" in line
    assert _file(caching, kept).exists()
    caching.suffer()
    until(lambda: not _file(caching, kept).exists(), 10)
    until(lambda: _differences(caching) == [], 10)


def test_a_silent_image_service_keeps_no_export_from_its_guest(api: Api, caching: Service, add: Add) -> None:
    """Whether what is kept is still of use is asked beside the watch over exports."""
    volume = _volume_of(api, add())
    caching.stop()
    caching.config["sim"]["target_helper"] = "sim"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        caching.config["DEFAULT"]["image_source"] = "glance"
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/v3"
        caching.config["service_user"] = {"auth_url": address, "username": "u", "password": "p"}
        caching.start()
        connector = {"initiator": "iqn.1994-05.com.redhat:cache", "host": "guest", "ip": "127.0.0.1"}
        body = {"attachment": {"volume_uuid": volume, "connector": connector}}
        assert api.post("/v3/attachments", body).status_code == 200
        silent.settimeout(30)
        with silent.accept()[0]:  # it is being asked
            export = caching.state_dir / "sim-target-sim/exports" / volume
            for _ in range(2):
                export.unlink()
                until(export.exists, 15)
        assert _kept(caching) != {}


def test_turned_off_nothing_is_kept(api: Api, caching: Service, add: Add) -> None:
    image = add()
    _volume_of(api, image)
    caching.stop()
    caching.config["sim"]["image_volume_cache_enabled"] = "false"
    caching.start()
    until(lambda: processes.rows(caching, "cached_images") == [], 15)
    _volume_of(api, image)
    assert processes.rows(caching, "cached_images") == []
    assert len(disks.files_of(caching.state_dir / "sim-sim/volumes")) == 2
    assert _placed(api) == 2
    assert _differences(caching) == []


def test_a_volume_is_written_anew_of_what_is_kept(api: Api, caching: Service, add: Add) -> None:
    image = add()
    _volume_of(api, image)
    volume = api.volume(2)["id"]
    answer = api.post(f"/v3/volumes/{volume}/action", {"os-reimage": {"image_id": image}})
    assert answer.status_code == 202, answer.text
    api.wait(f"/v3/volumes/{volume}", "volume")
    assert _content(caching, volume) == CONTENT
    assert _file(caching, volume).stat().st_size == 2 * GIB
    assert _told(caching) == [("miss", image), ("hit", image)]


# --- a clone of where the image is kept ------------------------------------------------------------------


def _located(service: Service, image: str, location: str, **more: Any) -> None:
    """Let an image's record name where a cluster keeps it; of the file itself nothing is left."""
    path = service.state_dir / f"images/{image}.json"
    record = json.loads(path.read_text()) | {"locations": [location]}
    record["properties"] |= more
    path.write_text(json.dumps(record))
    folder = service.state_dir / "sim-sim/images"
    folder.mkdir(parents=True, exist_ok=True)  # the back end may not have started yet
    shutil.copyfile(path.with_suffix(".raw"), folder / f"{image}.raw")


def test_a_raw_image_in_the_same_cluster_is_cloned_there(api: Api, caching: Service, add: Add) -> None:
    """Before anything is fetched or looked up."""
    image = add(disk_format="raw", size=MIB)
    _located(caching, image, f"sim://{image}")
    (caching.state_dir / f"images/{image}.raw").unlink()
    for _ in range(2):
        assert _content(caching, _volume_of(api, image)) == CONTENT
    assert _told(caching) == []
    assert _kept(caching) == {}


@pytest.mark.parametrize("case", ["another's", "signed"])
def test_a_location_that_does_not_count(api: Api, caching: Service, add: Add, case: str) -> None:
    """One that is not called by the image's id may be another's volume; what is signed must be read."""
    victim, image = add(b"secret" * 1000, MIB, "raw"), add(disk_format="raw", size=MIB)
    _located(caching, victim, f"sim://{victim}")
    if case == "another's":
        _located(caching, image, f"sim://{victim}")
    else:
        shutil.copyfile(caching.state_dir / f"images/{victim}.raw", caching.state_dir / "other.raw")
        _located(caching, image, f"sim://{image}", img_signature="signed")
        shutil.copyfile(caching.state_dir / "other.raw", caching.state_dir / f"sim-sim/images/{image}.raw")
    assert _content(caching, _volume_of(api, image)) == CONTENT


@pytest.fixture
def limited(caching: Service) -> Service:
    """The same, allowed to keep a GiB of images."""
    caching.config["DEFAULT"]["image_volume_cache_max_size_gb"] = 1
    return caching


def test_an_image_beyond_the_limit_is_not_kept(limited: Service, api: Api, add: Add) -> None:
    small, large = add(), add(size=2 * GIB)
    _volume_of(api, small)
    _volume_of(api, large, 2)
    assert _kept(limited).keys() == {small}
    assert _differences(limited) == []


# --- conversion ------------------------------------------------------------------------------------------


def test_where_nothing_is_converted(caching: Service, add: Add) -> None:
    """Raw images become volumes, and volumes raw images; others are refused."""
    caching.config["DEFAULT"]["image_conversion_disable"] = "true"
    caching.start()
    api = Api(caching)
    raw, other = add(disk_format="raw", size=MIB), add()
    volume = _volume_of(api, raw)
    assert _content(caching, volume) == CONTENT
    refused = api.wait(f"/v3/volumes/{_create(api, other)}", "volume", "error")
    (line,) = processes.logged(caching, "volume.create.error", resource_id=refused["id"])
    assert line["reason"] == f"Image {other} is qcow2, and images are not converted."
    assert _kept(caching).keys() == {raw}
    for disk_format, status in (("qcow2", 400), ("raw", 202)):
        wanted = {"image_name": "copy", "disk_format": disk_format}
        answer = api.post(f"/v3/volumes/{volume}/action", {"os-volume_upload_image": wanted})
        assert answer.status_code == status, answer.text
    assert _differences(caching) == []


def test_images_are_converted_where_the_operator_says(caching: Service, add: Add, tmp_path: Path) -> None:
    caching.config["DEFAULT"]["image_conversion_dir"] = tmp_path / "scratch"
    caching.start()
    assert _content(caching, _volume_of(Api(caching), add())) == CONTENT
    assert (tmp_path / "scratch").is_dir()
    assert not (caching.state_dir / "conversion").exists()
