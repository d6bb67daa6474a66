"""The image directory, and the conversion of good, false, damaged and hostile images."""

from __future__ import annotations

import hashlib
import http.server
import os
import socket
import struct
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from lapilli.adapters.images import convert, luks
from lapilli.adapters.images.directory import DirectoryImages
from lapilli.adapters.images.glance import GlanceImages
from lapilli.adapters.images.image_api import GlanceOptions, ServiceUserOptions
from lapilli.context import Context
from lapilli.domain.encryption import Layout
from lapilli.errors import (
    Conflict,
    Forbidden,
    ImageServiceUnavailable,
    ImageUnacceptable,
    InvalidInput,
    StorageError,
)
from lapilli.ports.driver import BlockAddress
from lapilli.ports.images import Converter

MIB = 1 << 20
SIZE = 24 * MIB
FORMATS = {"raw": "raw", "qcow2": "qcow2", "vmdk": "vmdk", "vdi": "vdi", "vhd": "vpc", "vhdx": "vhdx"}
Make = Callable[..., Path]


def quiet(_done: int, _total: int) -> None:
    pass


def caller(project_id: str) -> Context:
    return Context(user_id="someone", project_id=project_id, roles=frozenset({"member"}))


ME, YOU = caller("me"), caller("you")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk of 24 MiB: some data, a hole, and data at the very end."""
    path = tmp_path_factory.mktemp("content") / "disk.raw"
    with path.open("wb") as file:
        file.write(os.urandom(3 * MIB))
        file.seek(SIZE - 4096)
        file.write(os.urandom(4096))
    return path


@pytest.fixture
def make(content: Path, tmp_path: Path) -> Make:
    """Make an image of the content in a format."""

    def image(disk_format: str, *options: str) -> Path:
        path = tmp_path / f"image.{disk_format}"
        base = ["qemu-img", "convert", "-f", "raw", "-O", FORMATS[disk_format]]
        subprocess.run([*base, *options, content, path], check=True)
        return path

    return image


@pytest.fixture
def volume(tmp_path: Path) -> BlockAddress:
    path = tmp_path / "volume.raw"
    with path.open("wb") as file:
        file.truncate(32 * MIB)
    return BlockAddress("file", str(path))


@pytest.fixture
def images(tmp_path: Path) -> DirectoryImages:
    return DirectoryImages(str(tmp_path / "images"))


def test_the_module_is_a_converter() -> None:
    converter: Converter = convert
    assert converter is convert


# --- conversion ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("disk_format", FORMATS)
def test_every_format_comes_out_as_its_content(
    disk_format: str, make: Make, volume: BlockAddress, content: Path
) -> None:
    options = ["-o", "subformat=streamOptimized"] if disk_format == "vmdk" else []
    image = make(disk_format, *options)
    virtual_size = convert.check(str(image), disk_format)
    assert SIZE <= virtual_size <= SIZE + MIB  # vhd rounds to its geometry
    told: list[tuple[int, int]] = []
    for _ in range(2):  # it may be repeated
        convert.to_raw(str(image), disk_format, volume, lambda done, total: told.append((done, total)))
        data = Path(volume.location).read_bytes()
        assert data[:SIZE] == content.read_bytes()
        assert not any(data[SIZE:])
        assert len(data) == 32 * MIB
    assert told[-1][0] == told[-1][1] == os.path.getsize(image)
    assert os.stat(volume.location).st_blocks * 512 < 5 * MIB, "the hole was filled"


def test_a_conversion_that_was_cut_off_is_repeated_over_its_remains(make: Make, volume: BlockAddress) -> None:
    with open(volume.location, "rb+") as file:
        file.write(b"remains of an earlier attempt" * MIB)
        file.truncate(32 * MIB)
    image = make("qcow2")
    convert.to_raw(str(image), "qcow2", volume, quiet)
    with open(volume.location, "rb") as file:
        file.seek(8 * MIB)
        assert not any(file.read(8 * MIB))


def test_a_monolithic_vmdk_is_accepted_and_a_split_one_refused(make: Make, tmp_path: Path) -> None:
    assert convert.check(str(make("vmdk", "-o", "subformat=monolithicSparse")), "vmdk") == SIZE
    with pytest.raises(ImageUnacceptable):
        convert.check(str(make("vmdk", "-o", "subformat=monolithicFlat")), "vmdk")


@pytest.mark.parametrize("disk_format", ["raw", "qcow2", "vmdk", "vdi", "vhd", "vhdx"])
def test_a_volume_becomes_an_image(disk_format: str, content: Path, tmp_path: Path) -> None:
    path = tmp_path / "uploaded"
    convert.from_raw(BlockAddress("file", str(content)), SIZE, disk_format, str(path), quiet)
    assert SIZE <= convert.check(str(path), disk_format) <= SIZE + MIB
    compared = subprocess.run(
        ["qemu-img", "compare", "-f", FORMATS[disk_format], "-F", "raw", path, content], capture_output=True
    )
    assert compared.returncode == 0
    assert path.stat().st_blocks * 512 < 6 * MIB


def test_an_upload_of_what_is_no_file_tells_how_far_it_is(content: Path, tmp_path: Path) -> None:
    served, path = tmp_path / "socket", tmp_path / "uploaded"
    told: list[tuple[int, int]] = []
    command = ["qemu-nbd", "-r", "-t", "-f", "raw", "-x", "volume", "-k", served, content]
    with subprocess.Popen(command) as server:
        try:
            deadline = time.monotonic() + 30
            while not served.exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            source = BlockAddress("nbd", str(served), {"export": "volume"})
            convert.from_raw(source, SIZE, "qcow2", str(path), lambda *step: told.append(step))
        finally:
            server.terminate()
    assert convert.check(str(path), "qcow2") == SIZE
    assert {total for _, total in told} == {SIZE}
    done = [done for done, _ in told]
    assert done == sorted(done)
    assert len(set(done)) > 2, "a watcher sees no progress, and takes it for hung"
    assert done[-1] == SIZE


def test_a_partitioned_disk_a_cd_and_an_encrypted_disk_are_raw_content(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    sector = bytearray(MIB)
    sector[446:462] = struct.pack("<B3BB3BII", 0x80, 0, 2, 0, 0x83, 0, 0, 0, 1, 100)
    sector[510:512] = b"\x55\xaa"
    disk.write_bytes(sector)
    assert convert.check(str(disk), "raw") == MIB
    cd = tmp_path / "cd"
    cd.write_bytes(bytes(0x8000) + b"\x01CD001\x01" + bytes(MIB - 0x8007))
    assert convert.check(str(cd), "iso") == convert.check(str(cd), "raw") == MIB
    with pytest.raises(ImageUnacceptable, match="declared as iso"):
        convert.check(str(disk), "iso")
    sealed = tmp_path / "sealed"
    with sealed.open("wb") as file:
        file.truncate(5 * MIB)
    luks.format(BlockAddress("file", str(sealed)), Layout("luks"), bytes(32), lambda _done, _total: None)
    assert convert.check(str(sealed), "luks") == convert.check(str(sealed), "raw") == 5 * MIB
    with pytest.raises(ImageUnacceptable, match="declared as luks"):
        convert.check(str(disk), "luks")


def test_a_backing_file_is_refused(make: Make, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"root:x:" * 10000)
    image = tmp_path / "evil.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, image], check=True)
    with pytest.raises(ImageUnacceptable, match="backing"):
        convert.check(str(image), "qcow2")


def test_an_external_data_file_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "evil.qcow2"
    options = f"data_file={tmp_path}/secret,data_file_raw=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, image, "1M"], check=True)
    with pytest.raises(ImageUnacceptable, match="data_file"):
        convert.check(str(image), "qcow2")


def test_a_vmdk_that_names_another_file_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "evil.vmdk"
    image.write_text(
        '# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
        'RW 2048 FLAT "/etc/shadow" 0\n'
    )
    for declared in ("vmdk", "raw"):
        with pytest.raises(ImageUnacceptable):
            convert.check(str(image), declared)


@pytest.mark.parametrize("actual", ["qcow2", "vmdk", "vdi", "vhd", "vhdx"])
def test_another_format_than_declared_is_refused(actual: str, make: Make) -> None:
    image = make(actual)
    for declared in FORMATS:
        if declared != actual:
            with pytest.raises(ImageUnacceptable, match=f"declared as {declared}"):
                convert.check(str(image), declared)


def test_formats_that_are_not_served(make: Make) -> None:
    for name in ("ploop", "qed", "", "../x"):
        with pytest.raises(ImageUnacceptable, match="is not one of"):
            convert.check(str(make("raw")), name)


@pytest.mark.parametrize("disk_format", ["qcow2", "vmdk", "vdi", "vhd", "vhdx"])
def test_garbage_and_headers_without_a_body_are_refused(disk_format: str, make: Make, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(os.urandom(MIB))
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    head = tmp_path / "head"
    head.write_bytes(make(disk_format).read_bytes()[:300])
    for path in (garbage, empty, head):
        with pytest.raises(ImageUnacceptable):
            convert.check(str(path), disk_format)


@pytest.mark.parametrize("disk_format", ["qcow2", "vmdk", "vdi", "vhd", "vhdx"])
@pytest.mark.parametrize("missing", [2 * MIB, 4096])
def test_a_truncated_image_is_refused_in_plain_words(
    disk_format: str, missing: int, make: Make, tmp_path: Path
) -> None:
    image = make(disk_format)
    os.truncate(image, image.stat().st_size - missing)
    with pytest.raises(ImageUnacceptable) as problem:
        convert.check(str(image), disk_format)
    assert str(tmp_path) not in problem.value.message


def test_a_compressed_image_is_whole(make: Make, volume: BlockAddress, content: Path) -> None:
    image = make("qcow2", "-c", "-o", "compression_type=zstd")
    assert convert.check(str(image), "qcow2") == SIZE
    convert.to_raw(str(image), "qcow2", volume, quiet)
    with open(volume.location, "rb") as file:
        assert file.read(SIZE) == content.read_bytes()


def test_a_header_that_promises_the_moon_costs_little(make: Make) -> None:
    image = make("qcow2")
    with image.open("rb+") as file:
        file.seek(36)
        file.write(struct.pack(">I", 0x7FFFFFFF))  # entries of the first table
    with pytest.raises(ImageUnacceptable, match="damaged"):
        convert.check(str(image), "qcow2")


def test_an_upload_that_fails_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "uploaded"
    with pytest.raises(StorageError, match="could not be converted to qcow2") as told:
        convert.from_raw(BlockAddress("file", str(tmp_path / "missing")), SIZE, "qcow2", str(path), quiet)
    assert not isinstance(told.value, ImageUnacceptable), "there is no image yet that could be at fault"
    assert os.listdir(tmp_path) == []


# --- an image service ------------------------------------------------------------------------------------


def test_an_identity_service_that_never_answers_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        user = ServiceUserOptions(
            auth_url=f"http://127.0.0.1:{silent.getsockname()[1]}/v3", username="u", password="p"
        )
        options = GlanceOptions(glance_num_retries=0, glance_request_timeout=1)
        images, found = GlanceImages(options, user, str(tmp_path)), []

        def ask() -> None:
            try:
                images.get(str(uuid.uuid4()))
            except ImageServiceUnavailable as problem:
                found.append(problem)

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(30)
    assert [problem.message for problem in found] == ["The image service does not answer: ConnectTimeout."]


# --- the directory ---------------------------------------------------------------------------------------


def test_an_added_image_is_found_by_id_url_and_name(images: DirectoryImages, make: Make) -> None:
    source = make("qcow2")
    told: list[tuple[int, int]] = []
    image = images.add(
        str(source),
        name="debian 12",
        disk_format="qcow2",
        min_disk=2,
        os_distro="debian",
        progress=lambda done, total: told.append((done, total)),
    )
    assert (image.status, image.min_disk, image.virtual_size) == ("active", 2, SIZE)
    assert image.size == source.stat().st_size
    assert image.checksum == hashlib.md5(source.read_bytes(), usedforsecurity=False).hexdigest()
    assert image.properties["os_distro"] == "debian"
    assert image.properties["os_hash_value"] == hashlib.sha512(source.read_bytes()).hexdigest()
    assert told[-1] == (image.size, image.size)
    for reference in (image.id, f"http://glance:9292/v2/images/{image.id}", "debian 12", image.id.upper()):
        assert images.get(reference) == image
    assert DirectoryImages(images._path).all() == [image]
    assert source.exists()


def test_names_that_fit_none_or_several(images: DirectoryImages, make: Make) -> None:
    with pytest.raises(InvalidInput, match="could not be found"):
        images.get("nothing")
    with pytest.raises(InvalidInput):
        images.get("00000000-0000-4000-8000-000000000000")
    for _ in range(2):
        images.add(str(make("raw")), name="twice", disk_format="raw")
    with pytest.raises(Conflict, match="2 images are named 'twice'"):
        images.get("twice")


@pytest.mark.parametrize(
    "damage", ["{broken", '{"id": 5}', '{"id": "../../etc/passwd", "name": "odd"}', "\udcff"]
)
def test_a_damaged_record_harms_no_other_image(images: DirectoryImages, make: Make, damage: str) -> None:
    broken = images.add(str(make("raw")), name="broken", disk_format="raw")
    whole = images.add(str(make("raw")), name="whole", disk_format="raw")
    record = Path(images._path) / f"{broken.id}.json"
    record.write_text(damage, errors="surrogateescape")
    assert images.all() == [whole]
    assert images.get("whole") == whole
    with pytest.raises(ImageUnacceptable, match=f"record of image {broken.id}"):
        images.get(broken.id)
    with pytest.raises(InvalidInput, match="could not be found"):
        images.get("odd")


def test_projects_do_not_meet_each_others_images(images: DirectoryImages, make: Make) -> None:
    everybodys = images.add(str(make("raw")), name="disk", disk_format="raw")
    mine = images.add(str(make("raw")), name="mine", disk_format="raw", owner="me")
    known = images.add(str(make("raw")), name="known", disk_format="raw", owner="me", visibility="community")
    for image in (everybodys, mine, known):
        assert images.get(image.id) == images.get(image.name or "") == image
        assert images.get(image.id, context=ME) == images.get(image.name or "", context=ME) == image
    assert images.get(everybodys.id, context=YOU) == images.get("disk", context=YOU) == everybodys
    assert images.get(known.id, context=YOU) == known
    for reference in (mine.id, "mine", "known"):
        with pytest.raises(InvalidInput, match="could not be found"):
            images.get(reference, context=YOU)


def test_fetch_gives_the_file_and_notices_damage(images: DirectoryImages, make: Make, tmp_path: Path) -> None:
    source = make("raw")
    image = images.add(f"file://{source}", name="disk", disk_format="raw")
    with images.fetch(image, str(tmp_path), quiet) as (path, whole):
        whole()
        assert Path(path).read_bytes() == source.read_bytes()
    with open(path, "rb+") as file:
        file.write(b"damage")
    with pytest.raises(ImageUnacceptable, match="checksum"), images.fetch(image, str(tmp_path), quiet):
        pass
    os.truncate(path, 100)
    with pytest.raises(ImageUnacceptable, match="not complete"), images.fetch(image, str(tmp_path), quiet):
        pass
    os.unlink(path)
    with pytest.raises(ImageUnacceptable, match="is gone"), images.fetch(image, str(tmp_path), quiet):
        pass


def test_an_image_that_is_refused_leaves_nothing(images: DirectoryImages, make: Make) -> None:
    with pytest.raises(ImageUnacceptable, match="declared as raw"):
        images.add(str(make("qcow2")), name="liar", disk_format="raw")
    with pytest.raises(ImageUnacceptable, match="such file"):
        images.add("/nowhere/at/all", name="gone", disk_format="raw")
    with pytest.raises(InvalidInput, match="ftp"):
        images.add("ftp://host/file", name="old", disk_format="raw")
    assert images.all() == []
    assert os.listdir(images.upload_directory()) == []


def test_create_upload_and_delete_may_run_twice(images: DirectoryImages, make: Make) -> None:
    identifier = "11111111-2222-4333-8444-555555555555"
    queued = images.create(
        ME, identifier, "from volume", disk_format="raw", min_disk=1, custom="yes", visibility=None
    )
    assert queued.status == "queued"
    assert queued.properties == {"custom": "yes"}
    assert images.create(ME, identifier, "other name") == queued
    with pytest.raises(ImageUnacceptable), images.fetch(queued, "/tmp", quiet):
        pass
    path = os.path.join(images.upload_directory(), "part")
    os.rename(make("raw"), path)
    active = images.upload(identifier, path, quiet)
    assert (active.status, active.size, active.name) == ("active", SIZE, "from volume")
    assert images.upload(identifier, path, quiet) == active
    assert not os.path.exists(path)
    images.delete(identifier)
    images.delete(identifier)
    assert os.listdir(images._path) == ["incoming"]


def test_a_protected_image_stays(images: DirectoryImages, make: Make) -> None:
    image = images.add(str(make("raw")), name="golden", disk_format="raw", protected=True)
    with pytest.raises(Forbidden, match="protected"):
        images.delete(image.id)
    assert images.get("golden") == image


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_image_from_the_web(images: DirectoryImages, make: Make, web: str) -> None:
    source = make("qcow2")
    image = images.add(f"{web}/{source.name}", name="web", disk_format="qcow2")
    assert image.size == source.stat().st_size
    with pytest.raises(ImageUnacceptable, match="the server answered 404"):
        images.add(f"{web}/none", name="none", disk_format="raw")
    with pytest.raises(ImageUnacceptable, match="refused"):
        images.add("http://127.0.0.1:1/x", name="none", disk_format="raw")
