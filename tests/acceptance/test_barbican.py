"""Keys in a real Barbican: the suite of key stores, and encrypted volumes for users of a real Keystone."""

from __future__ import annotations

import json
import secrets
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from lapilli.adapters.keys.barbican import Barbican, BarbicanOptions, Login
from lapilli.errors import KeyStoreError
from tests.acceptance.processes import lapilli as command
from tests.clouds import parts
from tests.clouds.cloud import Cloud
from tests.clouds.parts import REGION
from tests.contract.test_keys import (  # noqa: F401 - the suite, on the fixtures of this module
    test_a_clone_outlives_its_source,
    test_a_key_is_made_once,
    test_a_key_is_removed_once,
    test_an_id_leads_nowhere_else,
    test_whose_key_it_is,
)
from tests.service import Service, until

LUKS = {"provider": "luks2", "control_location": "front-end", "cipher": "aes-xts-plain64", "key_size": 512}
# what a compute service does with the id that a volume shows, as the user who asked it
READ = """
import sys
from castellan.common.credentials.keystone_token import KeystoneToken
from castellan import key_manager
from oslo_config import cfg
configuration = cfg.ConfigOpts()
configuration([])
manager = key_manager.API(configuration)
configuration.set_override("barbican_endpoint", sys.argv[2], "barbican")
token = KeystoneToken(token=sys.stdin.read(), auth_url=sys.argv[1], project_id=sys.argv[3])
sys.stdout.write(manager.get(token, sys.argv[4]).get_encoded().hex())
"""


@pytest.fixture(scope="module")
def barbican(cloud: Cloud) -> Iterator[parts.Barbican]:
    """A Barbican in the catalog; the service's user may act in every project of the domain."""
    password = secrets.token_hex(12)
    made = parts.Barbican(cloud.directory, cloud.keystone, password)
    with cloud.connect() as connection:
        identity = connection.identity
        roles = {role.name: role for role in identity.roles()}
        user = identity.create_user(name="barbican", password=password, domain_id="default")
        for role in ("admin", "service"):
            identity.assign_project_role_to_user(identity.find_project("service"), user, roles[role])
        acting = identity.find_user("lapilli").id
        where = f"/OS-INHERIT/domains/default/users/{acting}/roles/{roles['member'].id}"
        assert identity.put(f"{where}/inherited_to_projects").status_code == 204
        entry = identity.create_service(type="key-manager", name="barbican")
        for interface in ("public", "internal"):
            identity.create_endpoint(service_id=entry.id, interface=interface, url=made.url, region_id=REGION)
    made.prepare()
    made.start()
    yield made
    made.stop()
    with cloud.connect() as connection:
        connection.identity.delete_service(entry)
        connection.identity.delete_user(user)


@pytest.fixture
def projects(cloud: Cloud) -> tuple[str, str]:
    """Ids of two projects."""
    with cloud.connect() as connection:
        found = [connection.identity.find_project(name).id for name in ("demo", "admin")]
    return found[0], found[1]


@pytest.fixture
def keys(cloud: Cloud, barbican: parts.Barbican, projects: tuple[str, str]) -> Iterator[Barbican]:
    """Asked by the service's user; nothing is left in it."""
    told = cloud.authentication()
    names = ("username", "password", "user_domain_id")
    auth = {name: told[name] for name in names} | {"auth_url": cloud.keystone.url}
    made = Barbican(BarbicanOptions(), Login(auth, REGION, "internal", verify=True))
    yield made
    for each in made.keys(projects):
        made.delete(each.owner, each.id, each.project_id)


@pytest.fixture(scope="module")
def sealing(
    cloud: Cloud, barbican: parts.Barbican, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """The service, with its keys in Barbican."""
    config: dict[str, dict[str, Any]] = {
        "DEFAULT": {"auth_strategy": "keystone"},
        "keystone_authtoken": cloud.authentication(),
        "key_manager": {"backend": "barbican"},
        "barbican": {"number_of_retries": 0},
    }
    service = Service(tmp_path_factory.mktemp("sealing"), config=config)
    service.start()
    yield service
    service.end()


class User:
    """Calls of the service as one of the cloud's users."""

    def __init__(self, service: Service, connection: Any) -> None:
        self.token, self.project_id = connection.auth_token, connection.current_project_id
        told = {"X-Auth-Token": self.token, "OpenStack-API-Version": "volume 3.71"}
        self.client = httpx.Client(base_url=f"{service.url}/v3", headers=told, timeout=90)

    def post(self, path: str, **body: Any) -> Any:
        answer = self.client.post(path, json=body)
        assert answer.status_code in (200, 202), answer.text
        return answer.json()

    def look(self, volume_id: str) -> dict[str, Any]:
        return dict(self.client.get(f"/volumes/{volume_id}").json()["volume"])

    def volume(self, status: str = "available", **wanted: Any) -> dict[str, Any]:
        made = self.post("/volumes", volume={"size": 1, **wanted})["volume"]
        until(lambda: self.look(made["id"])["status"] not in ("creating", "downloading"), 90)
        found = self.look(made["id"])
        assert found["status"] == status, found
        return found

    def delete(self, volume: dict[str, Any]) -> None:
        assert self.client.delete(f"/volumes/{volume['id']}").status_code == 202
        until(lambda: self.client.get(f"/volumes/{volume['id']}").status_code == 404, 60)


@pytest.fixture
def admin(sealing: Service, cloud: Cloud) -> Iterator[User]:
    with cloud.connect() as connection:
        yield User(sealing, connection)


@pytest.fixture
def demo(sealing: Service, cloud: Cloud) -> Iterator[User]:
    with cloud.connect("demo", "demo") as connection:
        yield User(sealing, connection)


@pytest.fixture
def kind(admin: User) -> Iterator[str]:
    """A type of encrypted volumes."""
    name = f"sealed-{secrets.token_hex(4)}"
    made = admin.post("/types", volume_type={"name": name})["volume_type"]
    admin.post(f"/types/{made['id']}/encryption", encryption=LUKS)
    yield name
    assert admin.client.delete(f"/types/{made['id']}").status_code == 202


def read_by_compute(barbican: parts.Barbican, cloud: Cloud, user: User, volume: dict[str, Any]) -> str:
    """The passphrase that a hypervisor makes of what castellan tells it."""
    words = [barbican.environment / "bin/python", "-W", "ignore", "-c", READ]
    words += [cloud.keystone.url, barbican.url, user.project_id, volume["encryption_key_id"]]
    done = subprocess.run(list(map(str, words)), input=user.token, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def opens(service: Service, volume: dict[str, Any], passphrase: str) -> bool:
    path = service.state_dir / "pool" / "volumes" / f"volume-{volume['id']}.raw"
    words = ["cryptsetup", "open", "--test-passphrase", "--key-file", "-", str(path)]
    return subprocess.run(words, input=passphrase.encode(), capture_output=True).returncode == 0


def test_a_compute_service_opens_it_with_the_users_token(
    sealing: Service, barbican: parts.Barbican, cloud: Cloud, demo: User, kind: str, keys: Barbican
) -> None:
    volume = demo.volume(volume_type=kind)
    assert volume["encrypted"] is True
    key = read_by_compute(barbican, cloud, demo, volume)
    assert len(bytes.fromhex(key)) * 8 == 512
    assert opens(sealing, volume, key)
    assert not opens(sealing, volume, key[::-1])
    assert command(sealing, "passphrase", volume["id"]).stdout == key
    clone = demo.volume(source_volid=volume["id"])
    assert clone["encryption_key_id"] != volume["encryption_key_id"]
    demo.delete(volume)
    assert [each.owner for each in keys.keys([demo.project_id])] == [f"volume-{clone['id']}"]
    assert read_by_compute(barbican, cloud, demo, clone) == key
    assert opens(sealing, clone, key)
    demo.delete(clone)
    assert not keys.keys([demo.project_id])


def test_the_key_goes_to_the_project_that_takes_the_volume(
    sealing: Service,
    barbican: parts.Barbican,
    cloud: Cloud,
    demo: User,
    admin: User,
    kind: str,
    keys: Barbican,
) -> None:
    volume = demo.volume(volume_type=kind)
    key = read_by_compute(barbican, cloud, demo, volume)
    offer = demo.post("/volume-transfers", transfer={"volume_id": volume["id"]})["transfer"]
    path = f"/volume-transfers/{offer['id']}/accept"
    assert admin.client.post(path, json={"accept": {"auth_key": "wrong"}}).status_code == 400
    assert not keys.keys([admin.project_id])
    admin.post(path, accept={"auth_key": offer["auth_key"]})
    assert not keys.keys([demo.project_id])
    taken = admin.look(volume["id"])
    assert taken["encryption_key_id"] != volume["encryption_key_id"]
    assert read_by_compute(barbican, cloud, admin, taken) == key
    admin.delete(taken)
    assert not keys.keys([admin.project_id])


def test_an_image_is_opened_by_its_own_key_only(
    sealing: Service, barbican: parts.Barbican, cloud: Cloud, demo: User, kind: str, keys: Barbican
) -> None:
    """Whoever may write an image's properties gets at no other secret of the project by naming it."""
    victim = demo.volume(volume_type=kind)
    key = read_by_compute(barbican, cloud, demo, victim)
    wanted = {"image_name": "sealed", "disk_format": "raw", "container_format": "bare"}
    told = demo.post(f"/volumes/{victim['id']}/action", **{"os-volume_upload_image": wanted})
    until(lambda: demo.look(victim["id"])["status"] == "available", 120)
    image = told["os-volume_upload_image"]["image_id"]
    made = demo.volume(volume_type=kind, imageRef=image)
    assert read_by_compute(barbican, cloud, demo, made) == key
    assert opens(sealing, made, key)
    record = sealing.state_dir / "images" / f"{image}.json"
    before = json.loads(record.read_text())
    own = before["properties"]["cinder_encryption_key_id"]
    for named in (victim["encryption_key_id"], str(uuid.uuid4()), f"{own}/../{own}", "?"):
        record.write_text(json.dumps(before | {"properties": {"cinder_encryption_key_id": named}}))
        body = {"volume": {"size": 1, "imageRef": image, "volume_type": kind}}
        answer = demo.client.post("/volumes", json=body)
        assert answer.status_code == 400, named
        assert "not in the key store" in answer.text
    record.write_text(json.dumps(before))
    barbican.stop()
    try:
        assert demo.client.post("/volumes", json=body).status_code == 503
    finally:
        barbican.start()
    assert command(sealing, "image", "delete", image).returncode == 0
    for each in (made, victim):
        demo.delete(each)
    assert not keys.keys([demo.project_id])


def test_barbican_is_away(
    sealing: Service, barbican: parts.Barbican, demo: User, kind: str, keys: Barbican
) -> None:
    barbican.stop()
    try:
        volume = demo.volume("error", volume_type=kind)
        with pytest.raises(KeyStoreError, match="cannot be asked"):
            keys.create("volume-x", demo.project_id, 256)
        told = command(sealing, "doctor").stdout
        assert "the keys of encrypted volumes cannot be looked at: The key manager cannot be asked" in told
    finally:
        barbican.start()
    demo.delete(volume)
    assert not keys.keys([demo.project_id])


def test_the_doctor_sees_a_key_whose_volume_is_gone(
    sealing: Service, demo: User, kind: str, keys: Barbican
) -> None:
    volume = demo.volume(volume_type=kind)
    gone = "11111111-2222-3333-4444-555555555555"
    keys.create(f"volume-{gone}", demo.project_id, 256)
    told = command(sealing, "doctor", "--fix").stdout
    assert f"of volume {gone}, which is gone - mended" in told
    assert [each.owner for each in keys.keys([demo.project_id])] == [f"volume-{volume['id']}"]
    demo.delete(volume)
