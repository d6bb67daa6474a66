"""Every command of the clients that needs only block storage, once; docs/reference/clients.md tells it.

`LAPILLI_WRITE_CLIENTS=1` (`make clients`) writes the page; otherwise it must say what has been seen.
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
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest
import yaml
from cinderclient.shell import OpenStackCinderShell

from tests.acceptance import commands, disks
from tests.acceptance.clients import OpenStack
from tests.acceptance.commands import command_of, lines
from tests.api.steps import fresh, good
from tests.service import Api, Service

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "clients.md"
VERSION = "3.71"
COMMON = ("availability_zone_list", "extension_list", "limits_show", "quota_delete", "quota_list")
COMMON += ("quota_set", "quota_show", "versions_show")
TITLES = {"cinder": "python-cinderclient", "openstack": "python-openstackclient"}
_HEAD = """<!-- Made by a run of all commands (`make clients`): do not edit. -->

# Commands of the clients

Every command of `cinder` and `openstack` that needs only block storage, run once against `lapilli serve` with
credentials of the service's own identity, at microversion 3.71.
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(tmp_path_factory.mktemp("commands") / "state")
    made.start()
    image = disks.make_image(made.state_dir.parent / "image.qcow2", "qcow2", b"words", virtual=1 << 20)
    words = made.command("image", "add", str(image), "--name", "debian")
    subprocess.run(words, check=True, capture_output=True)
    yield made
    made.end()


class Desk:
    """Looks up the words in braces, and waits until what a command began is done."""

    def __init__(self, service: Service) -> None:
        self.api = Api(service)
        document = yaml.safe_load((service.state_dir / "clouds.yaml").read_text())
        self.auth: dict[str, str] = document["clouds"]["lapilli"]["auth"]
        self.client = self.api.client
        self.key = ""

    def get(self, path: str) -> Any:
        """What the service answers the one who runs the commands."""
        auth = (self.auth["username"], self.auth["password"])
        headers = {"OpenStack-API-Version": f"volume {VERSION}"}
        return good(self.client.get(path, auth=auth, headers=headers))

    def _first(self, path: str) -> Any:
        told = self.get(path)
        return next(value for key, value in told.items() if not key.endswith("_links"))[0]

    def word(self, name: str) -> str:
        """What a word in braces stands for now."""
        looked: dict[str, Callable[[], Any]] = {
            "host": lambda: self._first("/v3/os-services?binary=cinder-volume")["host"],
            "pool": lambda: self._first("/v3/scheduler-stats/get_pools")["name"],
            "project": lambda: self._first("/identity/v3/auth/projects")["id"],
            "type": lambda: self.get("/v3/types")["volume_types"][0]["id"],
            "nowhere": self._nowhere,
            "qos": lambda: self._first("/v3/qos-specs")["id"],
            "volume": lambda: self._first("/v3/volumes")["id"],
            "image": lambda: self._first("/image/v2/images?name=debian")["id"],
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
        made = good(self.api.post("/v3/types", {"volume_type": told}, as_="admin"))
        return str(made["volume_type"]["name"])

    def _attachment(self) -> str:
        """An attachment: one that is there, or a fresh one of the newest volume."""
        if not self.get("/v3/attachments")["attachments"]:
            told = {"attachment": {"volume_uuid": self.word("volume"), "instance_uuid": str(uuid.uuid4())}}
            good(self.api.post("/v3/attachments", told, as_="admin"))
        return str(self._first("/v3/attachments?all_tenants=1")["id"])

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


def test_every_command_of_cinder(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in this process, which has the client's modules loaded already."""
    desk = Desk(service)
    for name in [each for each in os.environ if each.startswith(("OS_", "CINDER_"))]:
        monkeypatch.delenv(name)
    for name, value in desk.auth.items():
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


def test_every_command_of_openstack(service: Service) -> None:
    desk = Desk(service)
    found = [each.name for each in entry_points(group="openstack.volume.v3")]
    known = {name.replace("_", " ") for name in (*found, *COMMON)}
    with OpenStack(
        service.state_dir / "clouds.yaml", "lapilli", "--os-volume-api-version", VERSION
    ) as client:
        told = _seen(desk, commands.OPENSTACK, known, lambda words: client.run(*words))
    _check("openstack", known, told, commands.OPENSTACK_LATER)
