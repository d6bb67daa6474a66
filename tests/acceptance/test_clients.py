"""The real clients through the life of a volume, at the oldest microversion and at the latest."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openstack
import pytest
import yaml
from openstack.connection import Connection

from tests.acceptance import disks
from tests.acceptance.clients import Cinder, OpenStack
from tests.acceptance.disks import CONNECTOR, MIB
from tests.service import Service, until

OLDEST, LATEST = "3.0", "3.71"
# openstacksdk takes the latest microversion that it and the service know, unless the cloud names another
CLOUDS = {LATEST: "lapilli", OLDEST: "lapilli-oldest"}
pytestmark = pytest.mark.filterwarnings("ignore::openstack.warnings._RemovedInSDKWarning")
both = pytest.mark.parametrize("version", [OLDEST, LATEST])


@pytest.fixture(scope="module")
def content() -> bytes:
    """What the image holds."""
    return disks.sample(3 * MIB)


def _with_image(service: Service, directory: Path, content: bytes) -> Service:
    image = disks.make_image(directory / "image.qcow2", "qcow2", content, virtual=64 * MIB)
    words = service.command("image", "add", str(image), "--name", "debian")
    subprocess.run(words, check=True, capture_output=True)
    return service


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> Iterator[Path]:
    """clouds.yaml of a service with an image, with a second cloud that is the same at microversion 3.0."""
    service = Service(tmp_path_factory.mktemp("clouds") / "state")
    service.start()
    _with_image(service, service.state_dir.parent, content)
    made = (service.state_dir / "clouds.yaml").read_text()
    document = yaml.safe_load(made)
    entry = {**document["clouds"][CLOUDS[LATEST]], "block_storage_default_microversion": OLDEST}
    document["clouds"][CLOUDS[OLDEST]] = entry
    path = service.state_dir.parent / "clouds.yaml"
    path.write_text(yaml.safe_dump(document))
    yield path
    service.end()


# --- openstack -------------------------------------------------------------------------------------------


@pytest.fixture
def cli(clouds: Path, version: str) -> Iterator[OpenStack]:
    """The `openstack` command at one microversion."""
    with OpenStack(clouds, CLOUDS[version], "--os-volume-api-version", version) as made:
        yield made


@both
def test_openstack_volume(cli: OpenStack, version: str) -> None:
    """Create, find, describe, extend, reset, delete."""
    made = cli.json("volume", "create", "--size", "1", "--description", "words", "--property", "a=b", "root")
    assert (made["status"], made["size"], made["description"]) == ("creating", 1, "words")
    assert made["type"] == "__DEFAULT__"
    cli.wait("volume", "show", "root")
    cli.run("volume", "set", "--name", "root2", "--size", "2", "--property", "c=d", "root")
    grown = cli.wait("volume", "show", "root2")
    assert (grown["size"], grown["properties"], grown["id"]) == (2, {"a": "b", "c": "d"}, made["id"])
    assert grown["os-vol-host-attr:host"].endswith("@filepool#filepool")
    cli.run("volume", "unset", "--property", "a", "root2")
    cli.run("volume", "set", "--bootable", "--read-only", "root2")
    shown = cli.json("volume", "show", made["id"])
    assert shown["properties"]["c"] == "d"
    assert "a" not in shown["properties"]
    assert shown["bootable"] is True
    (listed,) = cli.json("volume", "list", "--long", "--name", "root2", "--status", "available")
    assert (listed["ID"], listed["Size"]) == (made["id"], 2)
    cli.run("volume", "set", "--state", "error", "root2")
    assert cli.json("volume", "show", "root2")["status"] == "error"
    cli.run("volume", "set", "--state", "available", "root2")
    assert "No Volume found" in cli.refused("volume", "show", "root")
    cli.run("volume", "delete", "root2")
    until(lambda: not cli.json("volume", "list"))


@both
def test_openstack_sources(cli: OpenStack, version: str, content: bytes) -> None:
    """Snapshots, and volumes from a snapshot, a volume, an image."""
    cli.run("volume", "create", "--size", "1", "source")
    cli.wait("volume", "show", "source")
    snapshot = cli.json("volume", "snapshot", "create", "--volume", "source", "--description", "d", "first")
    cli.wait("volume", "snapshot", "show", "first")
    cli.run("volume", "snapshot", "set", "--name", "renamed", "--property", "k=v", "first")
    assert cli.json("volume", "snapshot", "show", "renamed")["properties"] == {"k": "v"}
    cli.run("volume", "snapshot", "unset", "--property", "k", "renamed")
    (listed,) = cli.json("volume", "snapshot", "list", "--long", "--volume", "source")
    assert (listed["ID"], listed["Name"], listed["Size"]) == (snapshot["id"], "renamed", 1)
    cli.run("volume", "create", "--snapshot", "renamed", "thawed")
    cli.run("volume", "create", "--source", "source", "--size", "2", "cloned")
    cli.run("volume", "create", "--image", "debian", "--size", "1", "imaged")
    assert cli.wait("volume", "show", "thawed")["snapshot_id"] == snapshot["id"]
    assert cli.wait("volume", "show", "cloned")["size"] == 2
    imaged = cli.wait("volume", "show", "imaged")
    assert imaged["bootable"] is True
    assert imaged["volume_image_metadata"]["image_name"] == "debian"
    assert "it has snapshots" in cli.refused("volume", "delete", "source")
    cli.run("volume", "snapshot", "delete", "renamed")
    until(lambda: not cli.json("volume", "snapshot", "list"))
    cli.run("volume", "delete", "source", "thawed", "cloned", "imaged")
    until(lambda: not cli.json("volume", "list"))


@both
def test_openstack_transfer(cli: OpenStack, version: str) -> None:
    """A volume is offered, and taken by who knows the key."""
    made = cli.json("volume", "create", "--size", "1", "gift")
    cli.wait("volume", "show", "gift")
    offered = cli.json("volume", "transfer", "request", "create", "--name", "offer", "gift")
    assert offered["volume_id"] == made["id"]
    assert cli.json("volume", "show", "gift")["status"] == "awaiting-transfer"
    (listed,) = cli.json("volume", "transfer", "request", "list")
    assert (listed["ID"], listed["Name"], listed["Volume"]) == (offered["id"], "offer", made["id"])
    cli.run("volume", "transfer", "request", "delete", offered["id"])
    cli.wait("volume", "show", "gift")
    offered = cli.json("volume", "transfer", "request", "create", "gift")
    assert cli.json("volume", "transfer", "request", "show", offered["id"])["volume_id"] == made["id"]
    key = offered["auth_key"]
    cli.run("volume", "transfer", "request", "accept", "--auth-key", key, offered["id"])
    assert cli.json("volume", "show", "gift")["status"] == "available"
    cli.run("volume", "delete", "gift")
    until(lambda: not cli.json("volume", "list"))


@both
def test_openstack_operators(cli: OpenStack, version: str) -> None:
    """Types, services, pools, zones."""
    cli.run("volume", "type", "create", "--public", "--property", "volume_backend_name=filepool", "gold")
    cli.run("volume", "type", "set", "--property", "x=y", "--description", "words", "gold")
    shown = cli.json("volume", "type", "show", "gold")
    assert shown["properties"] == {"volume_backend_name": "filepool", "x": "y"}
    assert shown["description"] == "words"
    cli.run("volume", "type", "unset", "--property", "x", "gold")
    assert {each["Name"] for each in cli.json("volume", "type", "list")} == {"__DEFAULT__", "gold"}
    cli.run("volume", "create", "--size", "1", "--type", "gold", "--availability-zone", "nova", "typed")
    assert cli.wait("volume", "show", "typed")["type"] == "gold"
    assert "exist" in cli.refused("volume", "type", "delete", "gold")
    cli.run("volume", "delete", "typed")
    until(lambda: not cli.json("volume", "list"))
    cli.run("volume", "type", "delete", "gold")

    services = cli.json("volume", "service", "list")
    assert {(each["Binary"], each["State"]) for each in services} == {
        ("cinder-scheduler", "up"),
        ("cinder-volume", "up"),
    }
    host = next(each["Host"] for each in services if each["Binary"] == "cinder-volume")
    cli.run("volume", "service", "set", "--disable", "--disable-reason", "why", host, "cinder-volume")
    told = {each["Host"]: each for each in cli.json("volume", "service", "list", "--long")}
    assert (told[host]["Status"], told[host]["Disabled Reason"]) == ("disabled", "why")
    cli.run("volume", "service", "set", "--enable", host, "cinder-volume")
    (pool,) = cli.json("volume", "backend", "pool", "list", "--long")
    assert pool["Name"] == f"{host}#filepool"
    assert pool["Capabilities"]["storage_protocol"] == "iSCSI"
    (zone,) = cli.json("availability", "zone", "list", "--volume")
    assert zone == {"Zone Name": "nova", "Zone Status": "available"}


def test_openstack_other_type_and_content(clouds: Path) -> None:
    """Retype, revert, and what a back end holds."""
    with OpenStack(clouds, CLOUDS[LATEST]) as cli:
        cli.run("volume", "type", "create", "silver")
        cli.json("volume", "create", "--size", "1", "changing")
        cli.wait("volume", "show", "changing")
        cli.run("volume", "set", "--type", "silver", "--migration-policy", "never", "changing")
        assert cli.wait("volume", "show", "changing")["type"] == "silver"
        cli.json("volume", "snapshot", "create", "--volume", "changing", "moment")
        cli.wait("volume", "snapshot", "show", "moment")
        cli.run("volume", "revert", "moment")
        shown = cli.wait("volume", "show", "changing")
        found = cli.json("block", "storage", "volume", "manageable", "list", shown["os-vol-host-attr:host"])
        assert f"volume-{shown['id']}.raw" in str(found)
        cli.run("volume", "snapshot", "delete", "moment")
        until(lambda: not cli.json("volume", "snapshot", "list"))
        cli.run("volume", "delete", "changing")
        until(lambda: not cli.json("volume", "list"))
        cli.run("volume", "type", "delete", "silver")


def test_openstack_newer_commands(clouds: Path) -> None:
    """What only newer microversions have: summary, attachments, resource filters, messages."""
    with OpenStack(clouds, CLOUDS[LATEST], "--os-volume-api-version", LATEST) as cli:
        cli.run("volume", "create", "--size", "1", "counted")
        cli.wait("volume", "show", "counted")
        assert cli.json("volume", "summary")["Total Count"] == 1
        assert cli.json("volume", "attachment", "list") == []
        filters = cli.json("block", "storage", "resource", "filter", "list")
        assert "name" in next(each["Filters"] for each in filters if each["Resource"] == "volume")
        assert cli.json("image", "list")[0]["Name"] == "debian"
        cli.run("volume", "type", "create", "--property", "volume_backend_name=nowhere", "lost")
        stray = cli.json("volume", "create", "--size", "1", "--type", "lost", "stray")
        cli.wait("volume", "show", "stray", status="error")
        (message,) = cli.json("volume", "message", "list")
        assert message["Resource UUID"] == stray["id"]
        assert message["User Message"].startswith("choose a back end for the volume:No back end can take")
        cli.run("volume", "delete", "--force", "counted", "stray")
        until(lambda: not cli.json("volume", "list"))
        cli.run("volume", "type", "delete", "lost")


def test_openstack_tells_by_its_exit_status(clouds: Path) -> None:
    """One command, one process, as in a script."""
    with OpenStack(clouds, CLOUDS[LATEST]) as cli:
        good = cli.once("volume", "list", "-f", "value")
        assert (good.returncode, good.stdout.strip()) == (0, "")
        bad = cli.once("volume", "create", "--size", "999999", "huge")
        assert bad.returncode == 1
        assert "413" in bad.stderr
        assert "exceeds quota 'gigabytes' of 1000 GiB" in bad.stderr


# --- openstacksdk ----------------------------------------------------------------------------------------


@pytest.fixture
def sdk(clouds: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """A connection of openstacksdk at one microversion."""
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(clouds))
    with openstack.connect(cloud=CLOUDS[version]) as connection:
        yield connection


def _available(sdk: Connection, resource: Any) -> Any:
    return sdk.block_storage.wait_for_status(resource, "available", interval=0.05, wait=20)


def _gone(sdk: Connection, resource: Any) -> None:
    sdk.block_storage.wait_for_delete(resource, interval=0.05, wait=20)


@both
def test_sdk_volume(sdk: Connection, version: str) -> None:
    """Create, change, extend, count, snapshot, delete."""
    storage = sdk.block_storage
    volume = _available(sdk, storage.create_volume(name="one", size=1, metadata={"a": "b"}))
    assert volume.location.cloud == CLOUDS[version]
    storage.update_volume(volume, name="two", description="words")
    storage.set_volume_metadata(volume, c="d")
    storage.delete_volume_metadata(storage.get_volume(volume), ["a"])
    storage.extend_volume(volume, 2)
    volume = _available(sdk, storage.find_volume("two", ignore_missing=False))
    assert (volume.size, volume.description, volume.metadata) == (2, "words", {"c": "d"})
    assert [each.id for each in storage.volumes(name="two", limit=1)] == [volume.id]
    storage.set_volume_bootable_status(volume, True)
    storage.set_volume_image_metadata(volume, os="linux")
    assert storage.get_volume(volume).is_bootable

    snapshot = _available(sdk, storage.create_snapshot(volume_id=volume.id, name="s"))
    storage.set_snapshot_metadata(snapshot, k="v")
    assert storage.get_snapshot(snapshot).metadata == {"k": "v"}
    copy = _available(sdk, storage.create_volume(name="copy", snapshot_id=snapshot.id, size=3))
    clone = _available(sdk, storage.create_volume(name="clone", source_volid=volume.id))
    assert (copy.size, clone.size, clone.is_bootable) == (3, 2, True)

    limits = storage.get_limits().absolute
    assert (limits.total_volumes_used, limits.total_gigabytes_used) == (3, 9)
    assert limits.total_snapshots_used == 1
    used = storage.get_quota_set(volume.project_id, usage=True)
    assert (used.volumes, used.usage["volumes"], used.usage["gigabytes"]) == (10, 3, 9)
    _gone_all(sdk, storage.delete_snapshot, snapshot)
    _gone_all(sdk, storage.delete_volume, volume, copy, clone)
    assert storage.get_limits().absolute.total_gigabytes_used == 0


def _gone_all(sdk: Connection, delete: Any, *resources: Any) -> None:
    for each in resources:
        delete(each)
    for each in resources:
        _gone(sdk, each)


@both
def test_sdk_operators(sdk: Connection, version: str) -> None:
    """Types, services, pools, zones, extensions, quotas."""
    storage = sdk.block_storage
    kind = storage.create_type(name="sdk-type", extra_specs={"volume_backend_name": "filepool"})
    storage.update_type_extra_specs(kind, x="y")
    assert storage.get_type(kind).extra_specs == {"volume_backend_name": "filepool", "x": "y"}
    storage.delete_type(kind)
    assert {each.state for each in storage.services()} == {"up"}
    assert [each.name.partition("@")[2] for each in storage.backend_pools()] == ["filepool#filepool"]
    assert [each.name for each in storage.availability_zones()] == ["nova"]
    assert "os-quota-sets" in {each.alias for each in storage.extensions()}
    changed = storage.update_quota_set("some-project", volumes=21)
    assert changed.volumes == 21
    storage.revert_quota_set("some-project")
    assert storage.get_quota_set("some-project").volumes == 10


@pytest.mark.parametrize("version", [LATEST])
def test_sdk_attachment(sdk: Connection, version: str, content: bytes, tmp_path: Path) -> None:
    """An image's content is written on, read over iSCSI, uploaded, and read from the copy of the upload."""
    storage = sdk.block_storage
    image = sdk.image.find_image("debian", ignore_missing=False)
    volume = _available(sdk, storage.create_volume(name="disk", size=1, image_id=image.id))
    attachment = storage.create_attachment(volume, connector=CONNECTOR)
    info = attachment.connection_info
    assert disks.read_export(info, len(content), tmp_path) == content
    assert disks.knock(info, secret="x" * 12).returncode != 0
    disks.write_export(info, 0xA5, 100 * MIB, MIB)
    storage.complete_attachment(attachment)
    assert storage.get_volume(volume).status == "in-use"
    assert [each.id for each in storage.attachments(volume_id=volume.id)] == [attachment.id]
    with pytest.raises(openstack.exceptions.BadRequestException):
        storage.delete_volume(volume)
    storage.delete_attachment(attachment)
    _available(sdk, volume)
    assert disks.knock(info).returncode != 0, "the export outlived the attachment"

    told = storage.upload_volume_to_image(volume, "uploaded", disk_format="qcow2", container_format="bare")
    _available(sdk, volume)
    until(lambda: sdk.image.get_image(told["image_id"]).status == "active")
    again = _available(sdk, storage.create_volume(name="again", size=1, image_id=told["image_id"]))
    second = storage.create_attachment(again, connector=CONNECTOR)
    assert disks.read_export(second.connection_info, len(content), tmp_path) == content
    assert disks.holds_pattern(second.connection_info, 0xA5, 100 * MIB, MIB)
    storage.delete_attachment(second)
    _available(sdk, again)
    _gone_all(sdk, storage.delete_volume, volume, again)


@pytest.mark.parametrize("version", [OLDEST])
def test_sdk_attaching_the_old_way(sdk: Connection, version: str, tmp_path: Path) -> None:
    """Before attachments there were actions on the volume: as a compute service at 3.0 uses them."""
    storage = sdk.block_storage
    volume = _available(sdk, storage.create_volume(name="disk", size=1))
    storage.reserve_volume(volume)
    assert storage.get_volume(volume).status == "attaching"
    storage.unreserve_volume(volume)
    storage.reserve_volume(volume)
    info = storage.init_volume_attachment(volume, CONNECTOR)
    assert info["driver_volume_type"] == "iscsi"
    disks.write_export(info["data"], 0x5A, 0, MIB)
    server = "11111111-2222-3333-4444-555555555555"
    storage.attach_volume(volume, "/dev/vdb", instance=server)
    attached = storage.get_volume(volume)
    assert (attached.status, attached.attachments[0]["server_id"]) == ("in-use", server)
    assert attached.attachments[0]["device"] == "/dev/vdb"
    storage.begin_volume_detaching(volume)
    storage.abort_volume_detaching(volume)
    storage.begin_volume_detaching(volume)
    storage.terminate_volume_attachment(volume, CONNECTOR)
    assert disks.knock(info["data"]).returncode != 0
    storage.detach_volume(volume, attached.attachments[0]["attachment_id"])
    _available(sdk, volume)
    _gone_all(sdk, storage.delete_volume, volume)


# --- with a log-in of the service's own ------------------------------------------------------------------


def test_cinder_with_a_password(clouds: Path) -> None:
    """A client that knows only Keystone logs in at the service itself."""
    auth = yaml.safe_load(clouds.read_text())["clouds"][CLOUDS[LATEST]]["auth"]
    for version in (OLDEST, LATEST):
        cinder = Cinder.logged_in(auth, version)
        made = cinder.fields("create", "--name", f"by-cinder-{version}", "1")
        cinder.wait("show", made["id"])
        assert made["id"] in {each["ID"] for each in cinder.rows("list")}
        cinder.run("delete", made["id"])
    wrong = Cinder.logged_in({**auth, "password": "wrong"}, LATEST)
    assert "401" in wrong.refused("list")


def test_openstack_with_a_token(clouds: Path, tmp_path: Path) -> None:
    """What needs an identity service: tokens, quota, limits, the catalog, application credentials."""
    with OpenStack(clouds, CLOUDS[LATEST]) as cli:
        token = cli.json("token", "issue")
        project = cli.json("project", "show", "admin")
        assert token["project_id"] == project["id"]
        assert {each["Name"] for each in cli.json("catalog", "list")} >= {"cinder", "cinderv3", "keystone"}
        assert cli.json("user", "show", "admin")["id"] == token["user_id"]
        told = {each["Resource"]: each["Limit"] for each in cli.json("quota", "show", "--volume", "admin")}
        assert told["volumes"] == 10
        cli.run("quota", "set", "--volumes", "11", "admin")
        told = {each["Resource"]: each["Limit"] for each in cli.json("quota", "show", "--volume", "admin")}
        assert told["volumes"] == 11
        made = cli.json("application", "credential", "create", "ci")
    entry = yaml.safe_load(clouds.read_text())["clouds"][CLOUDS[LATEST]]
    entry["auth_type"] = "v3applicationcredential"
    entry["auth"] = {
        "auth_url": entry["auth"]["auth_url"],
        "application_credential_id": made["id"] if "id" in made else made["ID"],
        "application_credential_secret": made["secret"] if "secret" in made else made["Secret"],
    }
    path = tmp_path / "clouds.yaml"
    path.write_text(yaml.safe_dump({"clouds": {"ci": entry}}))
    with OpenStack(path, "ci") as cli:
        cli.json("volume", "create", "--size", "1", "by-credential")
        cli.wait("volume", "show", "by-credential")
        cli.run("volume", "delete", "by-credential")


def test_version_2_clients(clouds: Path, tmp_path: Path) -> None:
    """openstacksdk and the openstack client told to speak version 2."""
    document = yaml.safe_load(clouds.read_text())
    entry = {**document["clouds"][CLOUDS[LATEST]], "block_storage_api_version": "2"}
    entry.pop("block_storage_default_microversion")
    path = tmp_path / "clouds.yaml"
    path.write_text(yaml.safe_dump({"clouds": {"old": entry}}))
    with OpenStack(path, "old", "--os-volume-api-version", "2") as cli:
        cli.json("volume", "create", "--size", "1", "old-volume")
        cli.wait("volume", "show", "old-volume")
        cli.run("volume", "snapshot", "create", "--volume", "old-volume", "old-snapshot")
        cli.wait("volume", "snapshot", "show", "old-snapshot")
        assert [each["Name"] for each in cli.json("volume", "snapshot", "list")] == ["old-snapshot"]
    loaded = openstack.config.OpenStackConfig(config_files=[str(path)])
    storage = Connection(config=loaded.get_one("old")).block_storage
    found = storage.find_volume("old-volume")
    assert storage.get_endpoint().endswith(f"/v2/{storage.get_project_id()}")
    for snapshot in storage.snapshots():
        storage.delete_snapshot(snapshot)
        storage.wait_for_delete(snapshot)
    storage.delete_volume(found)
    storage.wait_for_delete(found)


# --- cinder ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_service(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> Iterator[Service]:
    """A service on a loopback address that believes everybody."""
    made = Service(tmp_path_factory.mktemp("open") / "state", {"DEFAULT": {"auth_strategy": "none"}})
    made.start()
    yield _with_image(made, made.state_dir.parent, content)
    made.end()


@pytest.fixture
def cinder(open_service: Service, version: str) -> Cinder:
    """The `cinder` command at one microversion, with a project of its own."""
    return Cinder(open_service.url, version, project=f"project-{version}")


@both
def test_cinder_volume(cinder: Cinder, version: str) -> None:
    """Create, show, list, rename, extend, metadata, reset, delete."""
    made = cinder.fields("create", "1", "--name", "vol", "--metadata", "a=b", "--poll")
    assert (made["status"], made["size"]) == ("available", "1")
    assert made["os-vol-tenant-attr:tenant_id"] == f"project-{version}"
    cinder.run("extend", "vol", "2")
    assert cinder.wait("show", "vol")["size"] == "2"
    cinder.run("rename", "vol", "named", "--description", "words")
    cinder.run("metadata", "named", "set", "k=v")
    cinder.run("metadata", "named", "unset", "a")
    shown = cinder.fields("show", made["id"])
    assert (shown["name"], shown["description"], shown["metadata"]) == ("named", "words", "k : v")
    cinder.run("image-metadata", "named", "set", "os=linux")
    cinder.run("set-bootable", "named", "true")
    cinder.run("readonly-mode-update", "named", "true")
    (listed,) = cinder.rows("list", "--status", "available", "--sort", "size:asc", "--limit", "2")
    assert (listed["ID"], listed["Bootable"], listed["Volume Type"]) == (made["id"], "true", "__DEFAULT__")
    cinder.run("reset-state", "named", "--state", "error")
    assert cinder.fields("show", "named")["status"] == "error"
    assert "No volume with a name or ID" in cinder.refused("delete", "nosuch")
    cinder.run("delete", "named")
    until(lambda: not cinder.rows("list"))


@both
def test_cinder_sources(cinder: Cinder, version: str) -> None:
    """Snapshots, volumes made from them, from volumes and images, and an upload."""
    source = cinder.fields("create", "1", "--name", "src")
    cinder.wait("show", "src")
    snapshot = cinder.fields("snapshot-create", "src", "--name", "snap", "--description", "d")
    cinder.wait("snapshot-show", "snap")
    cinder.run("snapshot-rename", "snap", "snap2")
    cinder.run("snapshot-metadata", "snap2", "set", "q=r")
    cinder.run("snapshot-reset-state", "snap2", "--state", "error")
    cinder.run("snapshot-reset-state", "snap2", "--state", "available")
    (listed,) = cinder.rows("snapshot-list")
    assert (listed["ID"], listed["Name"]) == (snapshot["id"], "snap2")
    cinder.run("create", "2", "--name", "thawed", "--snapshot-id", snapshot["id"])
    cinder.run("create", "--name", "cloned", "--source-volid", source["id"])
    cinder.run("create", "1", "--name", "imaged", "--image", "debian")
    thawed = cinder.wait("show", "thawed")
    assert (thawed["snapshot_id"], thawed["size"]) == (snapshot["id"], "2")
    cinder.wait("show", "cloned")
    assert cinder.wait("show", "imaged")["bootable"] == "true"
    told = cinder.fields("upload-to-image", "imaged", f"up-{version}", "--disk-format", "qcow2")
    assert told["status"] == "uploading"
    cinder.wait("show", "imaged")
    cinder.run("snapshot-delete", "snap2")
    until(lambda: not cinder.rows("snapshot-list"))
    cinder.run("delete", "src", "thawed", "cloned", "imaged")
    until(lambda: not cinder.rows("list"))


@both
def test_cinder_changes_of_type_owner_and_origin(cinder: Cinder, open_service: Service, version: str) -> None:
    """Retype, transfer, unmanage and manage."""
    kind = f"other-{version}"
    cinder.run("type-create", kind)
    made = cinder.fields("create", "1", "--name", "wanderer")
    cinder.wait("show", "wanderer")
    cinder.run("retype", "wanderer", kind)
    cinder.wait("show", "wanderer")
    assert cinder.fields("show", "wanderer")["volume_type"] == kind
    offered = cinder.fields("transfer-create", "wanderer", "--name", "offer")
    (listed,) = cinder.rows("transfer-list")
    assert (listed["ID"], listed["Volume ID"], listed["Name"]) == (offered["id"], made["id"], "offer")
    receiver = Cinder(open_service.url, version, project=f"receiver-{version}")
    receiver.run("transfer-accept", offered["id"], offered["auth_key"])
    shown = receiver.fields("show", made["id"])
    assert shown["os-vol-tenant-attr:tenant_id"] == f"receiver-{version}"
    host = shown["os-vol-host-attr:host"]
    receiver.run("unmanage", made["id"])
    left = f"unmanaged-{made['id']}.raw"
    until(lambda: not receiver.rows("list"))
    if version == LATEST:
        assert left in receiver.run("manageable-list", host)
    found = receiver.fields("manage", "--name", "back", "--volume-type", kind, host, left)
    assert receiver.wait("show", "back")["size"] == "1"
    receiver.run("delete", found["id"])
    until(lambda: not receiver.rows("list"))
    cinder.run("type-delete", kind)


@both
def test_cinder_operators(cinder: Cinder, version: str) -> None:
    """Types, quotas, limits, services, pools, zones."""
    kind = f"gold-{version}"
    cinder.run("type-create", kind)
    cinder.run("type-key", kind, "set", "x=y", "z=1")
    cinder.run("type-key", kind, "unset", "z")
    assert cinder.fields("type-show", kind)["extra_specs"] == "x : y"
    assert kind in {each["Name"] for each in cinder.rows("type-list")}
    cinder.run("type-delete", kind)

    project = f"project-{version}"
    assert cinder.fields("quota-show", project)["volumes"] == "10"
    assert cinder.fields("quota-update", project, "--volumes", "20")["volumes"] == "20"
    usage = {each["Type"]: each for each in cinder.rows("quota-usage", project)}
    assert (usage["volumes"]["Limit"], usage["volumes"]["In_use"]) == ("20", "0")
    limits = {each["Name"]: each["Value"] for each in cinder.rows("absolute-limits")}
    assert (limits["maxTotalVolumes"], limits["totalVolumesUsed"]) == ("20", "0")
    cinder.run("quota-delete", project)
    assert cinder.fields("quota-defaults", project)["volumes"] == "10"
    assert cinder.fields("quota-class-show", "default")["gigabytes"] == "1000"

    services = {each["Binary"]: each for each in cinder.rows("service-list")}
    assert {each["State"] for each in services.values()} == {"up"}
    host = services["cinder-volume"]["Host"]
    (disabled,) = cinder.rows("service-disable", host, "cinder-volume", "--reason", "why")
    assert disabled["Disabled Reason"] == "why"
    cinder.run("service-enable", host, "cinder-volume")
    assert cinder.fields("get-pools", "--detail")["name"] == f"{host}#filepool"
    assert cinder.rows("availability-zone-list") == [{"Name": "nova", "Status": "available"}]
    assert "os-quota-sets" in {each["Alias"] for each in cinder.rows("list-extensions")}


@pytest.mark.parametrize("version", [LATEST])
def test_cinder_other_content(cinder: Cinder, open_service: Service, version: str) -> None:
    """Revert to a snapshot, and write anew from an image."""
    made = cinder.fields("create", "1", "--name", "content")
    cinder.wait("show", "content")
    cinder.fields("snapshot-create", "content", "--name", "moment")
    cinder.wait("snapshot-show", "moment")
    cinder.run("revert-to-snapshot", "moment")
    cinder.wait("show", "content")
    cinder.run("snapshot-delete", "moment")
    until(lambda: not cinder.rows("snapshot-list"))
    listed = subprocess.run(open_service.command("image", "list"), check=True, capture_output=True, text=True)
    image = next(line.split()[0] for line in listed.stdout.splitlines() if "debian" in line)
    cinder.run("reimage", "content", image)
    assert cinder.wait("show", "content")["bootable"] == "true"
    cinder.run("delete", made["id"])
    until(lambda: not cinder.rows("list"))


@pytest.mark.parametrize("version", [LATEST])
def test_cinder_newer_commands(cinder: Cinder, version: str, tmp_path: Path) -> None:
    """Attachments, summary, messages, filters."""
    volume = cinder.fields("create", "1", "--name", "disk")
    cinder.wait("show", "disk")
    words = ["--initiator", disks.INITIATOR, "--ip", "127.0.0.1", "--host", "h", "--mode", "rw"]
    made = cinder.run("attachment-create", volume["id"], "--connect", "True", *words)
    assert "iscsi" in made
    (attachment,) = cinder.rows("attachment-list")
    assert attachment["Volume ID"] == volume["id"]
    cinder.run("attachment-complete", attachment["ID"])
    assert cinder.fields("show", "disk")["status"] == "in-use"
    assert attachment["ID"] in cinder.run("attachment-show", attachment["ID"])
    cinder.run("attachment-delete", attachment["ID"])
    cinder.wait("show", "disk")
    assert cinder.fields("summary")["total_count"] == "1"
    assert cinder.rows("message-list") == []
    filters = {each["Resource"]: each["Filters"] for each in cinder.rows("list-filters")}
    assert "name" in filters["volume"]
    found = cinder.run("list", "--filters", "name~=dis", "--with-count")
    assert volume["id"] in found
    cinder.run("force-delete", "disk")
    until(lambda: not cinder.rows("list"))
