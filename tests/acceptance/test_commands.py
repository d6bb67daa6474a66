"""Every command of the clients that needs only block storage; docs/reference/clients.md tells it.

`LAPILLI_WRITE_CLIENTS=1` (`make clients`) writes the page; otherwise it must say what has been seen.
`LAPILLI_CLIENTS_IDENTITIES=own,keystone` tells who knows the callers.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import httpx
import openstack
import pytest
import yaml
from cinderclient.shell import OpenStackCinderShell

from tests.acceptance import commands, disks
from tests.acceptance.clients import OpenStack
from tests.acceptance.commands import command_of, lines
from tests.api.steps import fresh, good
from tests.clouds.cloud import Cloud
from tests.service import Service

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "clients.md"
VERSION = "3.71"
COMMON = ("availability_zone_list", "extension_list", "limits_show", "quota_delete", "quota_list")
COMMON += ("quota_set", "quota_show", "versions_show")
TITLES = {"cinder": "python-cinderclient", "openstack": "python-openstackclient"}
_HEAD = """<!-- Made by a run of all commands (`make clients`): do not edit. -->

# Commands of the clients

Every command of `cinder` and `openstack` that needs only block storage, run against `lapilli serve` at
microversion 3.71, with credentials of the service's own identity. With those of a Keystone, and images in a
Glance, `make clients-keystone` does the same.
"""


@dataclass
class Place:
    """A service, and how an administrator's clients log in to it."""

    url: str
    clouds: Path
    name: str  # of the cloud in there

    @property
    def auth(self) -> dict[str, str]:
        """What the clients log in with."""
        entry: dict[str, str] = yaml.safe_load(self.clouds.read_text())["clouds"][self.name]["auth"]
        return entry


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """With the service's own identity and images."""
    made = Service(tmp_path_factory.mktemp("commands") / "state")
    made.start()
    made.wait_for_backends()
    image = disks.make_image(made.state_dir.parent / "image.qcow2", "qcow2", b"words", virtual=1 << 20)
    words = made.command("image", "add", str(image), "--name", "debian")
    subprocess.run(words, check=True, capture_output=True)
    yield Place(made.url, made.state_dir / "clouds.yaml", "lapilli")
    made.end()


@pytest.fixture(scope="module")
def keystone(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """With a Keystone's identity and a Glance's images."""
    directory = tmp_path_factory.mktemp("commands")
    config: dict[str, dict[str, Any]] = {
        "DEFAULT": {"auth_strategy": "keystone", "image_source": "glance"},
        "keystone_authtoken": {**cloud.authentication(), "interface": "public"},
    }
    service = Service(directory / "state", config=config, port=cloud.volume_port)
    service.start()
    service.wait_for_backends()
    with cloud.connect() as connection:
        content = {"disk_format": "raw", "container_format": "bare", "visibility": "public"}
        connection.image.create_image("debian", data=b"words", wait=True, **content)
    told = cloud.variables()
    names = {each: told[f"OS_{each.upper()}"] for each in _AUTH}
    entry = {"auth": names, "region_name": told["OS_REGION_NAME"], "identity_api_version": "3"}
    (directory / "clouds.yaml").write_text(yaml.safe_dump({"clouds": {"keystone": entry}}))
    yield Place(service.url, directory / "clouds.yaml", "keystone")
    service.end()


_AUTH = ("auth_url", "username", "password", "project_name", "user_domain_id", "project_domain_id")
IDENTITIES = os.environ.get("LAPILLI_CLIENTS_IDENTITIES", "own").split(",")


@pytest.fixture(params=IDENTITIES)
def place(request: pytest.FixtureRequest) -> Place:
    made: Place = request.getfixturevalue(request.param)
    return made


class Desk:
    """Looks up the words in braces, and waits until what a command began is done."""

    def __init__(self, place: Place) -> None:
        config = openstack.config.OpenStackConfig(
            config_files=[str(place.clouds)], load_envvars=False
        ).get_one(place.name)
        self.connection = openstack.connection.Connection(config=config)
        headers = {"OpenStack-API-Version": f"volume {VERSION}"}
        headers["X-Auth-Token"] = self.connection.auth_token
        self.client = httpx.Client(base_url=place.url, headers=headers, timeout=60)
        self.key = ""

    def get(self, path: str) -> Any:
        """What the service answers the one who runs the commands."""
        return good(self.client.get(path))

    def _first(self, path: str) -> Any:
        told = self.get(path)
        return next(value for key, value in told.items() if not key.endswith("_links"))[0]

    def word(self, name: str) -> str:
        """What a word in braces stands for now."""
        looked: dict[str, Callable[[], Any]] = {
            "host": lambda: self._first("/v3/os-services?binary=cinder-volume")["host"],
            "pool": lambda: self._first("/v3/scheduler-stats/get_pools")["name"],
            "project": lambda: self.connection.current_project_id,
            "type": lambda: self.get("/v3/types")["volume_types"][0]["id"],
            "nowhere": self._nowhere,
            "qos": lambda: self._first("/v3/qos-specs")["id"],
            "volume": lambda: self._first("/v3/volumes")["id"],
            "image": lambda: self.connection.image.find_image("debian").id,
            "attachment": self._attachment,
            "transfer": lambda: self._first("/v3/volume-transfers")["id"],
            "message": lambda: self._first("/v3/messages")["id"],
            "key": lambda: self.key,
            "server": lambda: str(uuid.uuid4()),
            "left-volume": lambda: self._left("volumes"),
            "left-snapshot": lambda: self._left("snapshots"),
        }
        return str(looked[name]())

    def words(self, line: str) -> list[str]:
        """A line's words, those in braces replaced."""
        return [re.sub(r"\{([\w-]+)\}", lambda found: self.word(found[1]), each) for each in line.split()]

    def _nowhere(self) -> str:
        """A type that no back end serves."""
        told = {"name": fresh("nowhere"), "extra_specs": {"volume_backend_name": "nowhere"}}
        made = good(self.client.post("/v3/types", json={"volume_type": told}))
        return str(made["volume_type"]["name"])

    def _attachment(self) -> str:
        """An attachment: one that is there, or a fresh one of the newest volume."""
        if not self.get("/v3/attachments")["attachments"]:
            told = {"attachment": {"volume_uuid": self.word("volume"), "instance_uuid": str(uuid.uuid4())}}
            good(self.client.post("/v3/attachments", json=told))
        return str(self._first("/v3/attachments")["id"])

    def _left(self, kind: str) -> str:
        """What a back end holds that nobody manages."""
        found = self.get(f"/v3/manageable_{kind}?host={self.word('pool').replace('#', '%23')}")
        reference = next(each["reference"] for each in found[f"manageable-{kind}"] if each["safe_to_manage"])
        return str(next(iter(reference.values())))

    def heard(self, said: str) -> None:
        """Keep the key of a transfer."""
        if found := re.search(r"auth_key\W+(\w+)", said):
            self.key = found[1]

    def settle(self) -> None:
        """Wait until nothing is under way."""
        deadline = time.monotonic() + 60
        while any(
            each["status"].endswith("ing") and each["status"] not in ("attaching",)
            for kind in ("volumes", "snapshots")
            for each in self.get(f"/v3/{kind}/detail")[kind]
        ):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _seen(desk: Desk, script: str, known: set[str], run: Callable[[list[str]], str]) -> dict[str, str]:
    """What each command of a script came to: `works`, or what it complained of."""
    told: dict[str, str] = {}
    for line in lines(script):
        name = command_of(line, known)
        try:
            words = [
                re.sub(r"\{([\w-]+)\}", lambda found: desk.word(found[1]), each) for each in line.split()
            ]
            desk.heard(run(words))
            desk.settle()
        except (Exception, SystemExit) as problem:
            told[name] = f"fails: {line}: {type(problem).__name__} {problem}"
        else:
            told.setdefault(name, "works")
    return told


def _check(client: str, known: set[str], told: dict[str, str], later: dict[str, str]) -> None:
    """All work that are said to, none is left out, and the page says so."""
    failed = [words for words in told.values() if words != "works"]
    assert not failed, "\n".join(failed)
    assert known - told.keys() == later.keys(), "commands that are neither run nor said to come later"
    rows = {**told, **later}
    table = [f"## {client}", "", f"{TITLES[client]} {version(TITLES[client])}.", ""]
    table += ["| command | |", "|---|---|", *(f"| `{name}` | {rows[name]} |" for name in sorted(rows))]
    text = "\n".join(table)
    present = PAGE.read_text() if PAGE.exists() else _HEAD
    if os.environ.get("LAPILLI_WRITE_CLIENTS"):
        others = re.split(r"\n(?=## )", present.rstrip())
        kept = [each for each in others[1:] if not each.startswith(f"## {client}\n")]
        present = "\n".join([_HEAD, *(f"{each.rstrip()}\n" for each in sorted([*kept, text]))])
        PAGE.write_text(present)
    assert text in present, "run `make clients`"


# --- cinder ----------------------------------------------------------------------------------------------


def test_every_command_of_cinder(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in this process, which has the client's modules loaded already."""
    desk = Desk(place)
    for name in [each for each in os.environ if each.startswith(("OS_", "CINDER_"))]:
        monkeypatch.delenv(name)
    for name, value in place.auth.items():
        monkeypatch.setenv(f"OS_{name.upper()}", value)

    def run(words: list[str]) -> str:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            OpenStackCinderShell().main(["--os-volume-api-version", VERSION, *words])
        return said.getvalue()

    known = {each for each in run(["bash-completion"]).split() if not each.startswith("-")}
    told = _seen(desk, commands.CINDER, known, run)
    _check("cinder", known, told, commands.CINDER_LATER)


# --- openstack -------------------------------------------------------------------------------------------


def test_every_command_of_openstack(place: Place) -> None:
    desk = Desk(place)
    found = [each.name for each in entry_points(group="openstack.volume.v3")]
    known = {name.replace("_", " ") for name in (*found, *COMMON)}
    with OpenStack(place.clouds, place.name, "--os-volume-api-version", VERSION) as client:
        told = _seen(desk, commands.OPENSTACK, known, lambda words: client.run(*words))
    _check("openstack", known, told, commands.OPENSTACK_LATER)
