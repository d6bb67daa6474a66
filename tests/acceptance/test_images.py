"""Images: added by the command, made into volumes and back by the service, refused when they are not safe."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.acceptance import disks, processes
from tests.acceptance.disks import CONNECTOR, GIB, MIB
from tests.acceptance.processes import lapilli
from tests.service import Api, Service, until

FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx")


@pytest.fixture(scope="module")
def content() -> bytes:
    """What the sample images hold."""
    return disks.sample(3 * MIB)


@pytest.fixture(scope="module")
def imaging(tmp_path_factory: pytest.TempPathFactory, reflink_pool: Path) -> Iterator[Service]:
    """A service on a pool with reflinks that looks after its cache often."""
    made = Service(
        tmp_path_factory.mktemp("imaging") / "state",
        {
            "DEFAULT": {"backend_stats_polling_interval": 3, "quota_volumes": -1},
            "filepool": {"filepool_path": reflink_pool},
        },
    )
    made.start()
    yield made
    made.end()


@pytest.fixture
def api(imaging: Service) -> Api:
    """A client with a project of its own."""
    return Api(imaging)


Add = Callable[..., str]


@pytest.fixture
def add(imaging: Service) -> Iterator[Add]:
    """Add an image by the command, for the time of the test; returns its id."""
    added = []

    def adding(source: Path | str, *words: str) -> str:
        done = lapilli(imaging, "image", "add", str(source), *words)
        assert done.returncode == 0, done.stderr
        added.append(done.stdout.strip())
        return added[-1]

    yield adding
    for each in added:
        (imaging.state_dir / f"images/{each}.json").unlink(missing_ok=True)


def _create(api: Api, image: str, size: int = 1, **more: Any) -> Any:
    return api.post("/v3/volumes", {"volume": {"size": size, "imageRef": image, **more}})


def _volume_of(api: Api, image: str, size: int = 1) -> dict[str, Any]:
    answer = _create(api, image, size)
    assert answer.status_code == 202, answer.text
    return api.wait(f"/v3/volumes/{answer.json()['volume']['id']}", "volume")


@contextlib.contextmanager
def _attached(api: Api, volume: dict[str, Any]) -> Iterator[dict[str, Any]]:
    body = {"attachment": {"volume_uuid": volume["id"], "connector": CONNECTOR}}
    answer = api.post("/v3/attachments", body)
    assert answer.status_code == 200, answer.text
    made = answer.json()["attachment"]
    yield made["connection_info"]
    assert api.delete(f"/v3/attachments/{made['id']}").status_code == 200


def _read(api: Api, volume: dict[str, Any], size: int, directory: Path) -> bytes:
    with _attached(api, volume) as info:
        return disks.read_export(info, size, directory)


def _delete(api: Api, *volumes: dict[str, Any]) -> None:
    for each in volumes:
        assert api.delete(f"/v3/volumes/{each['id']}").status_code == 202
    for each in volumes:
        api.wait_gone(f"/v3/volumes/{each['id']}")


def _blocks(path: Path) -> set[int]:
    """First physical block of every extent: files that share them were not written twice."""
    lines = disks.run("filefrag", "-v", path).splitlines()
    return {int(line.split()[3].strip(".:")) for line in lines if line.strip()[:1].isdigit()}


# --- the command -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("disk_format", FORMATS)
def test_every_format_becomes_a_volume(
    disk_format: str, api: Api, add: Add, content: bytes, tmp_path: Path
) -> None:
    """Made by qemu-img, added, created from, and read back through the export."""
    path = disks.make_image(tmp_path / f"disk.{disk_format}", disk_format, content, virtual=64 * MIB)
    image = add(path, "--name", f"sample {disk_format}")
    volume = _volume_of(api, image)
    assert volume["bootable"] == "true"
    facts = volume["volume_image_metadata"]
    assert facts["image_id"] == image
    assert facts["image_name"] == f"sample {disk_format}"
    assert facts["disk_format"] == disk_format
    assert _read(api, volume, len(content), tmp_path) == content
    _delete(api, volume)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Base URL of a web server over the test's directory."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_files_and_urls_are_added_listed_and_deleted(
    imaging: Service, api: Api, add: Add, web: str, content: bytes, tmp_path: Path
) -> None:
    """What the command adds, the service's image API tells, and the other way round."""
    path = disks.make_image(tmp_path / "disk.qcow2", "qcow2", content)
    by_path = add(path)
    by_file = add(f"file://{path}", "--name", "by file URL")
    by_http = add(f"{web}/disk.qcow2", "--name", "by http URL", "--min-disk", "2")
    told = {each["id"]: each for each in api.get("/image/v2/images", version=None).json()["images"]}
    assert [told[each]["name"] for each in (by_path, by_file, by_http)] == [
        "disk.qcow2",
        "by file URL",
        "by http URL",
    ]
    assert {told[each]["checksum"] for each in (by_path, by_file, by_http)} == {told[by_path]["checksum"]}
    assert told[by_http]["min_disk"] == 2
    listed = lapilli(imaging, "image", "list").stdout
    assert by_http in listed
    assert "by http URL" in listed
    done = lapilli(imaging, "image", "delete", by_path, "by file URL")
    assert done.returncode == 0, done.stderr
    listed = lapilli(imaging, "image", "list").stdout
    assert by_path not in listed
    assert by_file not in listed
    assert not list((imaging.state_dir / "images").glob(f"{by_path}*"))
    volume = _volume_of(api, "by http URL", 2)
    assert _read(api, volume, len(content), tmp_path) == content
    _delete(api, volume)


def test_what_cannot_be_fetched_is_not_added(imaging: Service, web: str, tmp_path: Path) -> None:
    """A file or a URL that is not there, a scheme that is not served, a format that nobody told."""
    before = disks.files_of(imaging.state_dir / "images")
    (tmp_path / "disk").write_bytes(b"x" * 512)
    for source, reason in (
        (tmp_path / "missing.raw", "No such file or directory"),
        (f"{web}/missing.raw", "the server answered 404"),
        ("http://127.0.0.1:1/x.raw", "Connection refused"),
        ("ftp://127.0.0.1/x.raw", "not ftp://"),
        (tmp_path / "disk", "give --disk-format"),
        (tmp_path, "give --disk-format"),
    ):
        done = lapilli(imaging, "image", "add", str(source))
        assert done.returncode == 1, source
        assert reason in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    done = lapilli(imaging, "image", "delete", "nothing of that name")
    assert done.returncode == 1
    assert "could not be found" in done.stderr
    assert disks.files_of(imaging.state_dir / "images") == before


def test_a_protected_image_stays(imaging: Service, add: Add, content: bytes, tmp_path: Path) -> None:
    """Deleting it is refused, and a volume can still be made."""
    image = add(disks.make_image(tmp_path / "disk.raw", "raw", content), "--protected")
    done = lapilli(imaging, "image", "delete", image)
    assert done.returncode == 1
    assert "protected" in done.stderr
    assert image in lapilli(imaging, "image", "list").stdout


# --- requests that are refused ---------------------------------------------------------------------------


def test_sizes_names_and_ids_that_do_not_fit(
    api: Api, add: Add, imaging: Service, content: bytes, tmp_path: Path
) -> None:
    """400 and 409: then nothing has happened."""
    large = add(disks.make_image(tmp_path / "large.qcow2", "qcow2", content, virtual=2 * GIB + 512))
    picky = add(disks.make_image(tmp_path / "picky.qcow2", "qcow2", content), "--min-disk", "3")
    for name in ("one", "two"):
        add(disks.make_image(tmp_path / f"{name}.raw", "raw", content), "--name", "twins")
    for image, size, status, words in (
        (large, 2, 400, "virtual size of 3 GiB"),
        (picky, 2, 400, "min_disk 3"),
        (str(uuid.uuid4()), 1, 400, "could not be found"),
        ("no such name", 1, 400, "could not be found"),
        ("twins", 1, 409, "2 images"),
        ("../images/x", 1, 400, "could not be found"),
    ):
        answer = _create(api, image, size)
        assert answer.status_code == status, (image, answer.text)
        assert words in answer.text
    assert api.get("/v3/volumes").json()["volumes"] == []
    quota = api.get(f"/v3/os-quota-sets/{api.project_id}?usage=True").json()["quota_set"]
    assert (quota["volumes"]["in_use"], quota["gigabytes"]["in_use"]) == (0, 0)
    _delete(api, _volume_of(api, large, 3), _volume_of(api, picky, 3))


# --- content that is refused -----------------------------------------------------------------------------


def _backed(directory: Path, content: bytes) -> Path:
    base = disks.make_image(directory / "base.raw", "raw", content)
    path = directory / "backed.qcow2"
    disks.run("qemu-img", "create", "-f", "qcow2", "-b", base, "-F", "raw", path)
    return path


def _external(directory: Path, content: bytes) -> Path:
    path = directory / "external.qcow2"
    options = f"data_file={directory}/data.raw,data_file_raw=on"
    disks.run("qemu-img", "create", "-f", "qcow2", "-o", options, path, "64M")
    return path


def _password_file(directory: Path, content: bytes) -> Path:
    """A qcow2 that names a file of this host's as its base, without a check whether that can be."""
    path = directory / "passwd.qcow2"
    disks.run("qemu-img", "create", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", path, "1M")
    return path


def _mismatch(directory: Path, content: bytes) -> Path:
    path = disks.make_image(directory / "is-a.qcow2", "qcow2", content)
    return path.rename(directory / "mismatch.raw")


def _not_qcow2(directory: Path, content: bytes) -> Path:
    path = directory / "garbage.qcow2"
    path.write_bytes(content)
    return path


def _truncated(directory: Path, content: bytes) -> Path:
    path = disks.make_image(directory / "truncated.qcow2", "qcow2", content)
    os.truncate(path, path.stat().st_size // 2)
    return path


def _extents_elsewhere(directory: Path, content: bytes) -> Path:
    """A vmdk descriptor that names a file of this host's as its extent."""
    path = directory / "descriptor.vmdk"
    path.write_text(
        '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
        'RW 2048 FLAT "/etc/passwd" 0\nddb.adapterType = "ide"\n'
    )
    return path


def _two_at_once(directory: Path, content: bytes) -> Path:
    """A qcow2 that is also the image of a CD."""
    path = disks.make_image(directory / "both.qcow2", "qcow2", content)
    with path.open("rb+") as file:
        file.seek(0x8000)
        file.write(b"\x01CD001")
    return path


def _sparse_elsewhere(directory: Path, content: bytes) -> Path:
    """A sparse vmdk whose descriptor names a file of this host's as its extent."""
    path = disks.make_image(directory / "sparse.vmdk", "vmdk", content)
    found = path.read_bytes()
    begin = found.index(b"RW ")
    line = b'RW 2048 FLAT "/etc/passwd" 0\n'
    path.write_bytes(found[:begin] + line + found[begin + len(line) :])
    return path


HOSTILE = [
    *(_backed, _external, _password_file, _mismatch, _not_qcow2, _truncated, _extents_elsewhere),
    *(_two_at_once, _sparse_elsewhere),
]
hostile = pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__.strip("_"))


@hostile
def test_refused_when_it_is_added(
    make: Callable[[Path, bytes], Path], imaging: Service, content: bytes, tmp_path: Path
) -> None:
    """Exit status 1, one line, nothing kept."""
    before = disks.files_of(imaging.state_dir / "images")
    done = lapilli(imaging, "image", "add", str(make(tmp_path, content)))
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("lapilli: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert disks.files_of(imaging.state_dir / "images") == before


def _plant(imaging: Service, path: Path, **facts: Any) -> str:
    """Put an image into the directory by hand, as somebody would who circumvents the command."""
    image = str(uuid.uuid4())
    disk_format = path.suffix[1:]
    directory = imaging.state_dir / "images"
    directory.mkdir(exist_ok=True)
    shutil.copyfile(path, directory / f"{image}.{disk_format}")
    record = {
        "id": image,
        "name": path.name,
        "status": "active",
        "disk_format": disk_format,
        "size": path.stat().st_size,
        **facts,
    }
    (directory / f"{image}.json").write_text(json.dumps(record))
    return image


def _uproot(imaging: Service, image: str) -> None:
    for path in (imaging.state_dir / "images").glob(f"{image}*"):
        path.unlink()


def _ends_in_error(api: Api, imaging: Service, pool: Path, image: str) -> dict[str, Any]:
    """Create from an image that must be refused; the volume, after a look at everything around it."""
    left = disks.files_of(pool)
    answer = _create(api, image)
    assert answer.status_code == 202, answer.text
    path = f"/v3/volumes/{answer.json()['volume']['id']}"
    volume = api.wait(path, "volume", "error")
    assert set(disks.files_of(pool)) <= set(left)  # what was kept of other images may go meanwhile
    (message,) = api.get("/v3/messages").json()["messages"]
    assert message["resource_uuid"] == volume["id"]
    assert message["message_level"] == "ERROR"
    quota = api.get(f"/v3/os-quota-sets/{api.project_id}?usage=True").json()["quota_set"]
    assert (quota["volumes"]["in_use"], quota["gigabytes"]["in_use"]) == (1, 1)
    assert api.delete(path).status_code == 202
    api.wait_gone(path)
    quota = api.get(f"/v3/os-quota-sets/{api.project_id}?usage=True").json()["quota_set"]
    assert (quota["volumes"]["in_use"], quota["gigabytes"]["in_use"]) == (0, 0)
    volume["told"] = message["user_message"]
    return volume


@hostile
def test_refused_when_it_was_planted(
    make: Callable[[Path, bytes], Path],
    api: Api,
    imaging: Service,
    reflink_pool: Path,
    content: bytes,
    tmp_path: Path,
) -> None:
    """The volume ends in `error`, its owner is told why, and nothing is left in the pool."""
    image = _plant(imaging, make(tmp_path, content))
    try:
        volume = _ends_in_error(api, imaging, reflink_pool, image)
    finally:
        _uproot(imaging, image)
    assert volume["told"] == "copy image to volume:The format of the image's disk is not acceptable."
    (line,) = processes.logged(imaging, "volume.create.error", resource_id=volume["id"])
    assert line["reason"]
    assert "/" not in line["reason"].replace("and/or", ""), "the reason shows a path of the host"


@pytest.mark.parametrize(
    "facts",
    [{"size": 1}, {"checksum": "0" * 32}, {"disk_format": "ploop"}, {"size": 3 * MIB + 1}],
    ids=lambda facts: next(iter(facts)),
)
def test_records_that_do_not_fit_their_content(
    facts: dict[str, Any], api: Api, imaging: Service, reflink_pool: Path, content: bytes, tmp_path: Path
) -> None:
    """A size, a checksum or a format that is not the file's."""
    image = _plant(imaging, disks.make_image(tmp_path / "disk.raw", "raw", content), **facts)
    try:
        volume = _ends_in_error(api, imaging, reflink_pool, image)
    finally:
        _uproot(imaging, image)
    assert volume["told"].startswith("copy image to volume:")


def test_a_virtual_size_that_the_record_hid(
    api: Api, imaging: Service, reflink_pool: Path, content: bytes, tmp_path: Path
) -> None:
    """The request looked right; the file says otherwise."""
    path = disks.make_image(tmp_path / "large.qcow2", "qcow2", content, virtual=3 * GIB)
    image = _plant(imaging, path)
    try:
        volume = _ends_in_error(api, imaging, reflink_pool, image)
    finally:
        _uproot(imaging, image)
    assert volume["told"] == "copy image to volume:The image is larger than the space there is for it."


# --- one conversion --------------------------------------------------------------------------------------


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """An image whose conversion takes a while."""
    source = tmp_path / "big.source"
    with source.open("wb") as file:
        file.writelines(os.urandom(MIB) for _ in range(192))
    path = tmp_path / "big.qcow2"
    disks.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, path)
    source.unlink()
    return path


def test_one_conversion_serves_all_who_wait(
    api: Api, add: Add, big: Path, imaging: Service, reflink_pool: Path, tmp_path: Path
) -> None:
    """Five at once share the blocks of one conversion, and so does one that comes later."""
    image = add(big)
    path = reflink_pool / "volumes"
    before = shutil.disk_usage(reflink_pool).used
    waiting = [_create(api, image).json()["volume"] for _ in range(5)]
    volumes = [api.wait(f"/v3/volumes/{each['id']}", "volume", seconds=40) for each in waiting]
    began = time.monotonic()
    volumes.append(_volume_of(api, image, 2))
    assert time.monotonic() - began < 1.5
    assert volumes[-1]["size"] == 2
    cached = path / f"volume-{_cached(imaging, image)}.raw"
    original = _blocks(cached)
    assert original
    for each in volumes:
        assert _blocks(path / f"volume-{each['id']}.raw") == original
    assert shutil.disk_usage(reflink_pool).used - before < 300 * MIB
    first, last = (_read(api, each, 4 * MIB, tmp_path) for each in (volumes[0], volumes[-1]))
    assert first == last
    _delete(api, *volumes)

    assert lapilli(imaging, "image", "delete", image).returncode == 0
    until(lambda: not cached.exists(), 15)
    # XFS gives the space of removed files back in the background
    until(lambda: shutil.disk_usage(reflink_pool).used - before < 20 * MIB, 15)


def _cached(service: Service, image: str) -> str:
    """The id of the volume that the pool keeps of an image."""
    with service.records() as database:
        query = sa.text("SELECT id FROM cached_images WHERE image_id = :image AND state = 'ready'")
        return str(database.execute(query, {"image": image}).scalar_one())


def test_a_kill_during_the_conversion(
    own_service: Service, big: Path, reflink_pool: Path, tmp_path: Path
) -> None:
    """kill -9 of everything while qemu-img runs: the next start makes the volume whole."""
    pool = reflink_pool / "killed"
    pool.mkdir()
    own_service.config = {"filepool": {"filepool_path": pool}}
    own_service.start()
    api = Api(own_service)
    image = lapilli(own_service, "image", "add", str(big)).stdout.strip()
    volume = _create(api, image).json()["volume"]
    path = f"/v3/volumes/{volume['id']}"
    file = pool / "volumes" / f"volume-{volume['id']}.raw"
    staged = pool / "staging"
    until(lambda: any(each.stat().st_blocks > 8 * MIB // 512 for each in staged.glob("*/*.raw")))
    own_service.kill()
    assert not _converting(big), "qemu-img outlived the service"
    assert not file.exists(), "the conversion was over already"
    own_service.start()
    whole = api.wait(path, "volume", seconds=30)
    expected = tmp_path / "expected.raw"
    disks.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", big, expected)
    assert _read(api, whole, 192 * MIB, tmp_path) == expected.read_bytes()
    cached = f"volume-{_cached(own_service, image)}.raw"
    assert disks.files_of(pool / "volumes") == sorted([file.name, cached])
    assert list(staged.iterdir()) == []
    _delete(api, whole)
    assert disks.files_of(pool / "volumes") == [cached]


def _converting(image: Path) -> bool:
    done = subprocess.run(["pgrep", "-f", f"qemu-img convert.*{image.parent.name}"], capture_output=True)
    return done.returncode == 0


def test_without_reflinks_every_volume_is_a_conversion(
    own_service: Service, content: bytes, tmp_path: Path
) -> None:
    """On a plain file system nothing is cached: a cache would cost as much as it saves."""
    own_service.start()
    api = Api(own_service)
    path = disks.make_image(tmp_path / "disk.qcow2", "qcow2", content)
    image = lapilli(own_service, "image", "add", str(path)).stdout.strip()
    volumes = [_volume_of(api, image) for _ in range(2)]
    pool = api.get("/v3/scheduler-stats/get_pools?detail=True", as_="admin").json()["pools"][0]
    assert pool["capabilities"]["clone"] == "copy", "this test wants a file system without reflinks"
    for each in volumes:
        assert _read(api, each, len(content), tmp_path) == content
    found = disks.files_of(own_service.state_dir / "pool/volumes")
    assert found == sorted(f"volume-{each['id']}.raw" for each in volumes)


# --- upload ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("disk_format", FORMATS)
def test_a_volume_becomes_an_image_and_that_a_volume(
    disk_format: str, api: Api, imaging: Service, content: bytes, tmp_path: Path
) -> None:
    """What was written over iSCSI is in the image, and in the volume that is made of it."""
    volume = api.volume()
    with _attached(api, volume) as info:
        disks.write_export(info, 0xC3, 5 * MIB, MIB)
    api.wait(f"/v3/volumes/{volume['id']}", "volume")
    wanted = {"image_name": f"upload {disk_format}", "disk_format": disk_format, "container_format": "bare"}
    answer = api.post(f"/v3/volumes/{volume['id']}/action", {"os-volume_upload_image": wanted})
    assert answer.status_code == 202, answer.text
    told = answer.json()["os-volume_upload_image"]
    api.wait(f"/v3/volumes/{volume['id']}", "volume", seconds=40)
    image = api.get(f"/image/v2/images/{told['image_id']}", version=None).json()
    assert (image["status"], image["disk_format"], image["name"]) == (
        "active",
        disk_format,
        wanted["image_name"],
    )
    file = imaging.state_dir / "images" / f"{image['id']}.{disk_format}"
    facts = json.loads(disks.run("qemu-img", "info", "--output", "json", file))
    assert (facts["format"], facts["virtual-size"]) == (disk_format, GIB)
    assert file.stat().st_blocks * 512 < 64 * MIB, "zeros were written out"

    copy = _volume_of(api, image["id"])
    with _attached(api, copy) as info:
        assert disks.holds_pattern(info, 0xC3, 5 * MIB, MIB)
        assert disks.holds_pattern(info, 0, 6 * MIB, MIB)
    _delete(api, volume, copy)
    assert lapilli(imaging, "image", "delete", image["id"]).returncode == 0
    assert not list((imaging.state_dir / "images/incoming").iterdir())
