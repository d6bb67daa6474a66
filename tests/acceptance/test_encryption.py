"""Encrypted volumes: read back through QEMU with their key, and by nobody without."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lapilli.adapters.keys.local import LocalKeys
from lapilli.store.tables import METADATA
from tests.acceptance import disks
from tests.acceptance.disks import CONNECTOR, GIB, MIB
from tests.acceptance.processes import lapilli
from tests.api.steps import fresh, good, refused
from tests.service import Api, Service, until

LUKS = {"provider": "luks", "control_location": "front-end", "cipher": "aes-xts-plain64", "key_size": 256}
HEADER = {"luks": 4 * MIB, "luks2": 16 * MIB}
SIZE = 3 * MIB


@pytest.fixture(scope="module")
def content() -> bytes:
    """What the image holds."""
    return disks.sample(SIZE)


@pytest.fixture(scope="module")
def sealing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of which nothing was configured about keys; `arguments` are those of the programs it ran."""
    place = tmp_path_factory.mktemp("sealing")
    (place / "bin").mkdir()
    for name in ("qemu-img", "cryptsetup"):
        real = shutil.which(name)
        assert real is not None
        told = f'#!/bin/sh\necho "{name} $*" >>{place}/arguments\nexec {real} "$@"\n'
        (place / "bin" / name).write_text(told)
        (place / "bin" / name).chmod(0o755)
    made = Service(place / "state", {"DEFAULT": {"quota_volumes": -1}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{place}/bin:{os.environ['PATH']}")
        made.start()
    yield made
    told = lapilli(made, "doctor").stdout
    made.end()
    assert "Everything is as the database says." in told, told


@pytest.fixture
def api(sealing: Service) -> Api:
    """A client with a project of its own."""
    return Api(sealing)


@pytest.fixture(scope="module")
def image(sealing: Service, content: bytes, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with the content."""
    path = disks.make_image(tmp_path_factory.mktemp("image") / "disk.qcow2", "qcow2", content)
    done = lapilli(sealing, "image", "add", str(path), "--name", "sample")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_worker_that_comes_back_late_leaves_the_key_of_what_others_have_made(own_service: Service) -> None:
    """It was to clean up after a create that failed, and hung; meanwhile the volume was made elsewhere."""
    own_service.config = {
        "DEFAULT": {"enabled_backends": "one,two", "operation_deadlines": "volume.create=2"},
        "one": {"volume_driver": "sim", "sim_capacity_gb": 1000},
        "two": {"volume_driver": "sim", "sim_capacity_gb": 100},
    }
    own_service.start()
    own_service.wait_for_backends()
    api = Api(own_service)
    kind = good(api.post("/v3/types", {"volume_type": {"name": "sealed"}}, as_="admin"))["volume_type"]["id"]
    good(api.post(f"/v3/types/{kind}/encryption", {"encryption": LUKS}, as_="admin"))
    own_service.suffer(
        {"call": "staging", "error": "The disk is on fire."},
        {"call": "delete", "hang": True, "times": 1},
        backend="one",
    )
    volume = api.volume(volume_type="sealed")
    assert volume["os-vol-host-attr:host"].endswith("@two#two")
    (key,) = keys_of(own_service)
    own_service.suffer(backend="one")
    until(lambda: "was taken over by another worker" in own_service.log.read_text())
    assert keys_of(own_service) == {key}
    assert lapilli(own_service, "passphrase", volume["id"]).returncode == 0
    good(api.delete(f"/v3/volumes/{volume['id']}"), 202)
    api.wait_gone(f"/v3/volumes/{volume['id']}")
    assert keys_of(own_service) == set()


@pytest.fixture(autouse=True)
def no_keys_are_left(sealing: Service) -> Iterator[None]:
    """Whatever a test has made is gone after it, and so are the keys."""
    yield
    assert keys_of(sealing) == set()


def keys_of(service: Service) -> set[str]:
    """Names of the keys that there are."""
    return {path.name for path in (service.state_dir / "keys").glob("*")}


@contextlib.contextmanager
def a_type(api: Api, encryption: dict[str, Any] | None, **specs: str) -> Iterator[dict[str, Any]]:
    """A type of encrypted volumes for the time of the context."""
    wanted = {"name": fresh("sealed"), "extra_specs": specs}
    made = good(api.post("/v3/types", {"volume_type": wanted}, as_="admin"))["volume_type"]
    if encryption is not None:
        path = f"/v3/types/{made['id']}/encryption"
        good(api.post(path, {"encryption": encryption}, as_="admin"))
    yield made
    answer = api.delete(f"/v3/types/{made['id']}", as_="admin")
    assert answer.status_code == 202, answer.text


@contextlib.contextmanager
def a_volume(api: Api, kind: dict[str, Any] | None = None, **body: Any) -> Iterator[dict[str, Any]]:
    """A volume for the time of the context."""
    if kind is not None:
        body["volume_type"] = kind["name"]
    asked = good(api.post("/v3/volumes", {"volume": {"size": 1, **body}}), 202)["volume"]
    made = api.wait(f"/v3/volumes/{asked['id']}", "volume", seconds=90)
    yield made
    assert api.delete(f"/v3/volumes/{made['id']}").status_code == 202
    api.wait_gone(f"/v3/volumes/{made['id']}")


@contextlib.contextmanager
def attached(api: Api, volume: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Its connection info for the time of the context."""
    body = {"attachment": {"volume_uuid": volume["id"], "connector": CONNECTOR}}
    made = good(api.post("/v3/attachments", body))["attachment"]
    yield made["connection_info"]
    good(api.delete(f"/v3/attachments/{made['id']}"))


def passphrase(service: Service, volume: dict[str, Any]) -> str:
    """What opens it: its key in hexadecimal digits."""
    keys = LocalKeys(str(service.state_dir / "keys"), str(service.state_dir / "master.key"))
    return keys.get(volume["encryption_key_id"], "").hex()


def stored(service: Service, volume: dict[str, Any]) -> Path:
    """The volume's file in the pool."""
    return service.state_dir / "pool" / "volumes" / f"volume-{volume['id']}.raw"


def tenants_view(service: Service, volume: dict[str, Any], directory: Path) -> tuple[int, bytes]:
    """(length, first bytes) of what a hypervisor gives to its guest, by QEMU on a copy."""
    copy, key, plain = directory / "copy", directory / "key", directory / "plain"
    disks.run("cp", "--sparse=always", stored(service, volume), copy)
    key.write_text(passphrase(service, volume))
    if copy.open("rb").read(8) == b"LUKS\xba\xbe\x00\x02":  # QEMU knows the older header only
        disks.run("cryptsetup", "convert", "-q", "--type", "luks1", copy)
    words = ["--object", f"secret,id=key,file={key}"]
    opened = f"driver=luks,key-secret=key,file.filename={copy}"
    told = json.loads(disks.run("qemu-img", "info", "--output=json", *words, "--image-opts", opened))
    part = f"driver=raw,size={SIZE},file.driver=luks,file.key-secret=key,file.file.filename={copy}"
    disks.run("qemu-img", "convert", *words, "--image-opts", part, "-O", "raw", plain)
    copy.unlink()
    return told["virtual-size"], plain.read_bytes()


def pieces(content: bytes) -> list[bytes]:
    """Parts of it that would be found in anything that is not encrypted."""
    return [content[at : at + 32] for at in (0, MIB // 2, SIZE - 32)]


# --- what is in them -------------------------------------------------------------------------------------


def test_an_image_is_read_with_the_key_and_not_without(
    sealing: Service, api: Api, image: str, content: bytes
) -> None:
    with a_type(api, LUKS) as kind, a_volume(api, kind, imageRef=image) as volume:
        key = lapilli(sealing, "passphrase", volume["id"]).stdout
        assert key == passphrase(sealing, volume)
        assert len(bytes.fromhex(key)) * 8 == LUKS["key_size"]
        with attached(api, volume) as info:
            assert info["encrypted"] is True
            raw = disks.read_export(info, HEADER["luks"] + SIZE, sealing.state_dir)
            assert raw.startswith(b"LUKS\xba\xbe\x00\x01")
            assert not [each for each in pieces(content) if each in raw]
            assert disks.open_sealed(info, key, "length").stdout == "1 GiB\n"
            wrong = disks.open_sealed(info, key[::-1], "length")
            assert wrong.returncode != 0
            assert "Invalid password" in wrong.stderr
            done = disks.open_sealed(
                info, key, f"write -P 7 {GIB - MIB} {MIB}", f"read -P 7 {GIB - MIB} {MIB}"
            )
            assert "verification failed" not in done.stdout + done.stderr
            assert done.returncode == 0


@pytest.mark.parametrize(
    "encryption",
    [
        LUKS,
        LUKS | {"provider": "luks2"},
        LUKS | {"provider": "luks2", "key_size": 512},
        LUKS | {"cipher": "aes-cbc-essiv:sha256", "provider": "nova.volume.encryptors.luks.LuksEncryptor"},
        {"provider": "luks", "control_location": "front-end"},
    ],
    ids=["luks", "luks2", "luks2 of 512 bits", "cbc", "nothing said"],
)
def test_every_layout(
    sealing: Service, api: Api, image: str, content: bytes, tmp_path: Path, encryption: dict[str, Any]
) -> None:
    with a_type(api, encryption) as kind:
        with a_volume(api, kind, imageRef=image) as volume:
            assert tenants_view(sealing, volume, tmp_path) == (GIB, content)
            with stored(sealing, volume).open("rb") as file:
                raw = file.read(HEADER["luks2"] + SIZE)
            assert not [each for each in pieces(content) if each in raw]
        with a_volume(api, kind) as volume:  # empty: there is a header, and room behind it
            assert tenants_view(sealing, volume, tmp_path)[0] == GIB


def test_copies_have_keys_of_their_own(
    sealing: Service, api: Api, image: str, content: bytes, tmp_path: Path
) -> None:
    with a_type(api, LUKS | {"provider": "luks2"}) as kind, contextlib.ExitStack() as copies:
        with a_volume(api, kind, imageRef=image) as volume:
            key = passphrase(sealing, volume)
            clone = copies.enter_context(a_volume(api, source_volid=volume["id"], size=2))
            snapshot = api.snapshot(volume["id"])
            made = copies.enter_context(a_volume(api, snapshot_id=snapshot["id"]))
            ids = {each["encryption_key_id"] for each in (volume, clone, made)}
            assert len(ids) == 3
            assert keys_of(sealing) == {f"{each}.key" for each in ids}
            api.delete(f"/v3/snapshots/{snapshot['id']}")
            api.wait_gone(f"/v3/snapshots/{snapshot['id']}")
            stored(sealing, volume).write_bytes(b"")  # nothing of it is needed any more
        assert len(keys_of(sealing)) == 2
        assert {passphrase(sealing, clone), passphrase(sealing, made)} == {key}
        assert tenants_view(sealing, clone, tmp_path) == (2 * GIB, content)
        assert tenants_view(sealing, made, tmp_path) == (GIB, content)


def test_it_grows_and_goes_back(
    sealing: Service, api: Api, image: str, content: bytes, tmp_path: Path
) -> None:
    with a_type(api, LUKS) as kind, a_volume(api, kind, imageRef=image) as volume:
        path = f"/v3/volumes/{volume['id']}"
        snapshot = api.snapshot(volume["id"])
        with attached(api, volume) as info:
            key = passphrase(sealing, volume)
            assert disks.open_sealed(info, key, f"write -P 7 0 {MIB}").returncode == 0
        assert tenants_view(sealing, volume, tmp_path)[1] != content
        good(api.post(f"{path}/action", {"revert": {"snapshot_id": snapshot["id"]}}), 202)
        api.wait(path, "volume")
        assert tenants_view(sealing, volume, tmp_path) == (GIB, content)
        with attached(api, volume) as info:
            api.wait(path, "volume", "attaching")
        api.delete(f"/v3/snapshots/{snapshot['id']}")
        api.wait_gone(f"/v3/snapshots/{snapshot['id']}")
        good(api.post(f"{path}/action", {"os-extend": {"new_size": 2}}), 202)
        api.wait(path, "volume")
        assert tenants_view(sealing, volume, tmp_path) == (2 * GIB, content)
        with attached(api, volume) as info:
            assert disks.open_sealed(info, key, "length").stdout == "2 GiB\n"


def test_it_is_written_anew(sealing: Service, api: Api, image: str, content: bytes, tmp_path: Path) -> None:
    with a_type(api, LUKS | {"provider": "luks2"}) as kind, a_volume(api, kind) as volume:
        before = passphrase(sealing, volume)
        action = {"os-reimage": {"image_id": image}}
        good(api.post(f"/v3/volumes/{volume['id']}/action", action, as_="admin"), 202)
        api.wait(f"/v3/volumes/{volume['id']}", "volume")
        assert passphrase(sealing, volume) == before
        assert tenants_view(sealing, volume, tmp_path) == (GIB, content)


# --- images of encrypted bytes ---------------------------------------------------------------------------


def upload(api: Api, volume: dict[str, Any], disk_format: str = "raw", container: str = "bare") -> Any:
    wanted = {"image_name": fresh("sealed"), "disk_format": disk_format, "container_format": container}
    action = {"os-volume_upload_image": wanted}
    return api.post(f"/v3/volumes/{volume['id']}/action", action)


def image_of(api: Api, identifier: str) -> dict[str, Any]:
    answer: dict[str, Any] = good(api.get(f"/image/v2/images/{identifier}", version=None))
    return answer


def test_an_image_of_it_is_encrypted_too(
    sealing: Service, api: Api, image: str, content: bytes, tmp_path: Path
) -> None:
    with a_type(api, LUKS) as kind, a_type(api, None) as plain:
        with a_volume(api, kind, imageRef=image) as volume:
            assert "raw" in refused(upload(api, volume, "qcow2"), 400)
            assert "bare" in refused(upload(api, volume, container="ovf"), 400)
            key = passphrase(sealing, volume)
            made = good(upload(api, volume), 202)["os-volume_upload_image"]["image_id"]
            api.wait(f"/v3/volumes/{volume['id']}", "volume", seconds=120)  # a GiB is read and hashed
        told = image_of(api, made)
        assert told["cinder_encryption_key_deletion_policy"] == "on_image_deletion"
        assert keys_of(sealing) == {f"{told['cinder_encryption_key_id']}.key"}
        with a_volume(api, kind, imageRef=made) as volume:
            assert volume["encryption_key_id"] != told["cinder_encryption_key_id"]
            assert passphrase(sealing, volume) == key
            assert tenants_view(sealing, volume, tmp_path) == (GIB, content)
            action = {"os-reimage": {"image_id": made}}
            answer = api.post(f"/v3/volumes/{volume['id']}/action", action, as_="admin")
            assert "encrypted" in refused(answer, 400)
        wanted = {"volume": {"size": 1, "imageRef": made, "volume_type": plain["name"]}}
        assert "needs a type" in refused(api.post("/v3/volumes", wanted), 400)
    assert lapilli(sealing, "image", "delete", made).returncode == 0


def test_nobody_elses_key_is_had_by_naming_it(sealing: Service, api: Api, image: str) -> None:
    with a_type(api, LUKS) as kind, a_volume(api, kind) as victim:
        record = sealing.state_dir / "images" / f"{image}.json"
        before = record.read_text()
        properties = {"cinder_encryption_key_id": victim["encryption_key_id"]}
        record.write_text(json.dumps(json.loads(before) | {"properties": properties}))
        try:
            wanted = {"volume": {"size": 1, "imageRef": image, "volume_type": kind["name"]}}
            assert "not in the key store" in refused(api.post("/v3/volumes", wanted), 400)
        finally:
            record.write_text(before)


def pool_of(service: Service) -> set[Path]:
    return set((service.state_dir / "pool" / "volumes").iterdir())


@pytest.mark.parametrize(
    ("provider", "others"), [("luks", ("plain", "luks2")), ("luks2", ("luks",)), ("plain", ("luks", "luks2"))]
)
def test_an_image_of_it_needs_the_same_layout(
    sealing: Service, api: Api, provider: str, others: tuple[str, ...]
) -> None:
    """No volume becomes available with bytes that its type's hypervisors cannot open."""
    with contextlib.ExitStack() as types:
        kinds = {
            each: types.enter_context(a_type(api, LUKS | {"provider": each})) for each in (provider, *others)
        }
        with a_volume(api, kinds[provider]) as volume:
            made = good(upload(api, volume), 202)["os-volume_upload_image"]["image_id"]
            api.wait(f"/v3/volumes/{volume['id']}", "volume", seconds=120)
        before = keys_of(sealing), pool_of(sealing)
        for each in others:
            wanted = {"size": 2, "imageRef": made, "volume_type": kinds[each]["name"]}
            asked = good(api.post("/v3/volumes", {"volume": wanted}), 202)["volume"]
            path = f"/v3/volumes/{asked['id']}"
            failed = api.wait(path, "volume", "error", seconds=90)
            told = good(api.get(f"/v3/messages?resource_uuid={failed['id']}", as_="admin"))["messages"]
            assert [message["event_id"] for message in told] == ["VOLUME_VOLUME_005_029"]
            assert (keys_of(sealing), pool_of(sealing)) == before
            assert api.delete(path).status_code == 202
            api.wait_gone(path)
        with a_volume(api, kinds[provider], imageRef=made, size=2) as volume:
            assert volume["status"] == "available"
    assert lapilli(sealing, "image", "delete", made).returncode == 0


# --- what is told, and what is refused -------------------------------------------------------------------


def test_what_is_told_of_it(api: Api) -> None:
    with a_type(api, LUKS) as kind, a_volume(api, kind) as volume:
        path = f"/v3/volumes/{volume['id']}"
        key_id = volume["encryption_key_id"]
        assert volume["encrypted"] is True
        facts = LUKS | {"encryption_key_id": key_id}
        for as_ in ("member", "reader"):
            assert good(api.get(f"{path}/encryption", as_=as_)) == facts
        for name, value in facts.items():
            assert good(api.get(f"{path}/encryption/{name}")) == value
        refused(api.get(f"{path}/encryption/nonsense"), 404)
        refused(api.get(f"{path}/encryption", as_="other"), 404)
        assert "encryption_key_id" not in good(api.get(path, version="3.63"))["volume"]
        assert good(api.get(path, version="3.64"))["volume"]["encryption_key_id"] == key_id
    with a_volume(api) as volume:
        assert good(api.get(f"/v3/volumes/{volume['id']}/encryption")) == {"encryption_key_id": None}
        refused(api.get(f"/v3/volumes/{volume['id']}/encryption/cipher"), 404)


@pytest.mark.parametrize(
    ("encryption", "why"),
    [
        ({"provider": "rot13"}, "rot13"),
        ({"control_location": "back-end"}, "back end"),
        ({"cipher": "des-cbc-plain"}, "des-cbc-plain"),
        ({"key_size": 40}, "40 bits"),
    ],
)
def test_types_that_nothing_can_be_made_of(api: Api, encryption: dict[str, Any], why: str) -> None:
    with a_type(api, LUKS | encryption) as kind:
        wanted = {"volume": {"size": 1, "volume_type": kind["name"]}}
        assert why in refused(api.post("/v3/volumes", wanted), 400)


def test_the_source_must_be_encrypted_in_the_same_way(api: Api) -> None:
    with a_type(api, LUKS) as kind, a_type(api, LUKS) as same, a_type(api, None) as plain:
        with a_type(api, LUKS | {"key_size": 512}) as other, a_volume(api, kind) as volume:
            for wrong in (plain, other):
                wanted = {"volume": {"source_volid": volume["id"], "volume_type": wrong["name"]}}
                assert "encrypts otherwise" in refused(api.post("/v3/volumes", wanted), 400)
                action = {"os-retype": {"new_type": wrong["name"], "migration_policy": "never"}}
                answer = api.post(f"/v3/volumes/{volume['id']}/action", action)
                assert "differ in encryption" in refused(answer, 400)
            with a_volume(api, same, source_volid=volume["id"]) as clone:
                assert clone["encrypted"] is True
        with a_volume(api, plain) as volume:
            wanted = {"volume": {"source_volid": volume["id"], "volume_type": kind["name"]}}
            assert "encrypts otherwise" in refused(api.post("/v3/volumes", wanted), 400)


def test_plain_has_no_header_and_takes_no_image(sealing: Service, api: Api, image: str) -> None:
    with a_type(api, LUKS | {"provider": "plain"}) as kind:
        with a_volume(api, kind) as volume:
            assert stored(sealing, volume).stat().st_size == GIB
            assert passphrase(sealing, volume)
        wanted = {"volume": {"size": 1, "volume_type": kind["name"], "imageRef": image}}
        assert "plain" in refused(api.post("/v3/volumes", wanted), 400)


def test_it_is_not_unmanaged(api: Api) -> None:
    with a_type(api, LUKS) as kind, a_volume(api, kind) as volume:
        answer = api.post(f"/v3/volumes/{volume['id']}/action", {"os-unmanage": {}}, as_="admin")
        assert "encrypted" in refused(answer, 400)
        told = good(api.get(f"/v3/messages?resource_uuid={volume['id']}", as_="admin"))["messages"]
        assert [each["event_id"] for each in told] == ["VOLUME_VOLUME_006_008"]


def test_it_goes_to_another_project_with_its_key(sealing: Service, api: Api) -> None:
    with a_type(api, LUKS) as kind, a_volume(api, kind) as volume:
        key = passphrase(sealing, volume)
        wanted = {"transfer": {"volume_id": volume["id"]}}
        refused(api.post("/v3/volume-transfers", wanted, version="3.69"), 400)
        alone = {"transfer": {"volume_id": volume["id"], "no_snapshots": True}}
        refused(api.post("/v3/volume-transfers", alone, version="3.70"), 400)
        for giver, taker in (("member", "other"), ("other", "member")):
            offer = good(api.post("/v3/volume-transfers", wanted, version="3.70", as_=giver), 202)["transfer"]
            body = {"accept": {"auth_key": offer["auth_key"]}}
            path = f"/v3/volume-transfers/{offer['id']}/accept"
            good(api.post(path, body, version="3.70", as_=taker), 202)
            assert passphrase(sealing, volume) == key


# --- secrets, and what the doctor sees -------------------------------------------------------------------


def rows(connection: sa.Connection, table: sa.Table) -> str:
    """Everything in a table; a row's own text leaves out what is long."""
    return str([tuple(row) for row in connection.execute(table.select())])


def test_no_key_is_told_to_anybody(sealing: Service, api: Api, image: str) -> None:
    """Not in a log, in the database, in the pool, in an image's record, in the arguments of a program."""
    with (
        a_type(api, LUKS | {"provider": "luks2"}) as kind,
        a_volume(api, kind, imageRef=image) as volume,
        a_volume(api, source_volid=volume["id"]),
    ):
        key = passphrase(sealing, volume)
        for path in sealing.state_dir.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    found = file.read(32 * MIB)
                assert key.encode() not in found, path
                assert bytes.fromhex(key) not in found, path
        with sealing.records() as connection:
            for table in METADATA.sorted_tables:
                assert key not in rows(connection, table), table
    arguments = (sealing.state_dir.parent / "arguments").read_text()
    assert "luksFormat" in arguments
    assert "driver=luks" in arguments
    assert key not in arguments


def test_no_key_is_in_notifications(own_service: Service) -> None:
    """They wait in the database for a broker that is not there."""
    own_service.config = {
        "DEFAULT": {"transport_url": "rabbit://nobody:nothing@127.0.0.1:1/"},
        "oslo_messaging_notifications": {"driver": "messagingv2"},
    }
    own_service.start()
    api = Api(own_service)
    with a_type(api, LUKS) as kind, a_volume(api, kind) as volume:
        key = passphrase(own_service, volume)
        with own_service.records() as connection:
            told = rows(connection, METADATA.tables["outbox"])
    own_service.kill()  # it would still try for a while
    assert volume["id"] in told
    assert key not in told


def test_keys_are_for_the_services_user(sealing: Service, api: Api) -> None:
    with a_type(api, LUKS) as kind, a_volume(api, kind):
        (key,) = (sealing.state_dir / "keys").glob("*")
        assert key.stat().st_mode & 0o777 == 0o600
        assert (sealing.state_dir / "keys").stat().st_mode & 0o777 == 0o700
        assert (sealing.state_dir / "master.key").stat().st_mode & 0o777 == 0o600


def test_the_doctor_sees_keys_without_volumes_and_volumes_without_keys(sealing: Service, api: Api) -> None:
    with a_type(api, LUKS) as kind, a_volume(api, kind) as volume:
        key = sealing.state_dir / "keys" / f"{volume['encryption_key_id']}.key"
        away = sealing.state_dir / "away"
        key.rename(away)
        told = lapilli(sealing, "doctor")
        assert f"volume {volume['id']} is encrypted, but its key is gone" in told.stdout
        assert lapilli(sealing, "passphrase", volume["id"]).returncode == 1
        away.rename(key)
        shutil.copy(key, away)
    shutil.copy(away, key)
    told = lapilli(sealing, "doctor", "--fix")
    assert f"volume {volume['id']}, which is gone - mended" in told.stdout
    assert not key.exists()
