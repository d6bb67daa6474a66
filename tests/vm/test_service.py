"""The service on Linux's own storage: kernel initiators attach what was made by HTTP, through kills and power
failures. LIO serves a thin pool, tgt a volume group, nvmet a pool of files.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clouds import machine
from tests.contract.conftest import MIB
from tests.contract.targets.kernel import Node, clear_lio, clear_nvmet, connect, device_of, run
from tests.service import Api, Service, free_port, until
from tests.vm import groups
from tests.vm.test_targets import holds, size, write

CONNECTOR = {
    "initiator": "iqn.1994-05.com.redhat:contract",
    "nqn": f"nqn.2014-08.org.nvmexpress:uuid:{uuid.uuid4()}",
    "host": "guest",
    "ip": "127.0.0.1",
}
GIB = 1024 * MIB
OTHER = "lapilli-service"  # a volume group without a thin pool
PATIENCE = 120  # seconds: the machine is emulated


class Iscsi:
    """open-iscsi, told what os-brick is told."""

    def __init__(self, info: dict[str, Any]) -> None:
        self._node = Node(info)

    def open(self) -> str:
        return self._node.login()

    def look_again(self) -> None:
        self._node.rescan()

    def close(self) -> None:
        self._node.leave()


class Nvme:
    """nvme-cli, the same."""

    def __init__(self, info: dict[str, Any]) -> None:
        self._info = info

    def open(self) -> str:
        connect(self._info, patience=60)
        return device_of(self._info)

    def look_again(self) -> None:
        """The target tells by itself."""

    def close(self) -> None:
        run("nvme", "disconnect", "--nqn", self._info["target_nqn"])


def clear_tgt() -> None:
    """End the daemon as a power failure does."""
    run("pkill", "-9", "-x", "tgtd")
    until(lambda: subprocess.run(["pgrep", "-x", "tgtd"], capture_output=True).returncode == 1, PATIENCE)


@dataclass(frozen=True)
class Kind:
    """A back end, who connects to it, and what a power failure does to its target."""

    options: dict[str, Any]
    initiator: type[Iscsi | Nvme]
    fail: Callable[[], None]
    group: str = ""


THIN = {"volume_driver": "lvm", "volume_group": groups.MAIN, "lvm_thin_pool": groups.POOL, "lvm_type": "thin"}
THICK = {"volume_driver": "lvm", "volume_group": OTHER, "lvm_type": "default"}
KINDS = {
    "lio": Kind(THIN, Iscsi, clear_lio, groups.MAIN),
    "tgt": Kind(THICK, Iscsi, clear_tgt, OTHER),
    "nvmet": Kind({}, Nvme, clear_nvmet),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    groups.lvm("vgcreate", "--yes", OTHER, groups.disk("service"))
    made = Service(tmp_path_factory.mktemp("story") / "state")
    made.config = {"DEFAULT": {"enabled_backends": ",".join(KINDS), "report_interval": 2}}
    for name, kind in KINDS.items():
        ways = {"target_helper": name, "target_port": free_port(), "volume_backend_name": name}
        made.config[name] = {"filepool_path": made.state_dir / name} | ways | kind.options
    made.start(wait=False)
    made.wait_until_up(PATIENCE)
    yield made
    made.end()
    clear_lio()
    clear_nvmet()
    groups.empty(groups.MAIN, keep=(groups.POOL,))
    groups.lvm("vgremove", "--yes", "--force", OTHER)


@pytest.fixture(scope="module")
def api(service: Service) -> Api:
    """A client, once all back ends are known."""
    made = Api(service)
    path = "/v3/scheduler-stats/get_pools"
    until(lambda: len(made.get(path, as_="admin").json()["pools"]) == len(KINDS), PATIENCE)
    for name in KINDS:
        told = {"volume_type": {"name": name, "extra_specs": {"volume_backend_name": name}}}
        assert made.post("/v3/types", told, as_="admin").status_code == 200
    return made


def volume_of(api: Api, kind: str, **more: Any) -> str:
    """A fresh volume of 1 GiB, or of what else is asked for."""
    answer = api.post("/v3/volumes", {"volume": {"size": 1, "volume_type": kind, **more}})
    assert answer.status_code == 202, answer.text
    identifier = str(answer.json()["volume"]["id"])
    api.wait(f"/v3/volumes/{identifier}", "volume", "available", PATIENCE)
    return identifier


def attach(api: Api, volume: str, connector: dict[str, Any] = CONNECTOR) -> dict[str, Any]:
    body = {"attachment": {"volume_uuid": volume, "connector": connector}}
    answer = api.post("/v3/attachments", body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["attachment"])


def complete(api: Api, attachment: dict[str, Any]) -> None:
    path = f"/v3/attachments/{attachment['id']}/action"
    assert api.post(path, {"os-complete": None}).status_code == 204


def detach(api: Api, attachment: dict[str, Any]) -> None:
    assert api.delete(f"/v3/attachments/{attachment['id']}").status_code == 200


@contextmanager
def opened(api: Api, volume: str, kind: str) -> Iterator[str]:
    """The disk of a volume while it is attached."""
    attachment = attach(api, volume)
    initiator = KINDS[kind].initiator(attachment["connection_info"])
    disk = initiator.open()
    try:
        yield disk
    finally:
        initiator.close()
    detach(api, attachment)


@pytest.mark.parametrize("kind", KINDS)
def test_from_attaching_to_gone_through_a_kill_and_a_power_failure(
    service: Service, api: Api, kind: str
) -> None:
    volume = volume_of(api, kind)
    attachment = attach(api, volume)
    info = attachment["connection_info"]
    initiator = KINDS[kind].initiator(info)
    disk = initiator.open()
    try:
        complete(api, attachment)
        until(lambda: size(disk) == GIB, PATIENCE)
        write(disk, 7, MIB)
        body = {"os-extend": {"new_size": 2}}
        assert api.post(f"/v3/volumes/{volume}/action", body).status_code == 202
        api.wait(f"/v3/volumes/{volume}", "volume", "in-use", PATIENCE)
        initiator.look_again()
        until(lambda: size(disk) == 2 * GIB, PATIENCE)
        frozen = api.post("/v3/snapshots", {"snapshot": {"volume_id": volume, "force": True}})
        snapshot = frozen.json()["snapshot"]["id"]
        api.wait(f"/v3/snapshots/{snapshot}", "snapshot", "available", PATIENCE)
        write(disk, 6, MIB)
        service.kill()
        write(disk, 8, 2 * MIB)  # the service is not needed for that
        KINDS[kind].fail()
        service.start(wait=False)
        service.wait_until_up(PATIENCE)
        assert holds(disk, 6, MIB), "the disk is there again, after a wait"
        write(disk, 9, 3 * MIB)
    finally:
        initiator.close()
    again = api.get(f"/v3/attachments/{attachment['id']}").json()["attachment"]["connection_info"]
    assert again == info
    detach(api, attachment)
    with pytest.raises(ConnectionError):
        KINDS[kind].initiator(info).open()

    copy = volume_of(api, kind, snapshot_id=snapshot, size=2)
    with opened(api, copy, kind) as disk:
        assert holds(disk, 7, MIB), "as it was when it was frozen"
        assert not holds(disk, 8, 2 * MIB)
    with opened(api, volume, kind) as disk:
        assert holds(disk, 8, 2 * MIB)
        assert holds(disk, 9, 3 * MIB)
    for path in (f"/v3/snapshots/{snapshot}", f"/v3/volumes/{copy}", f"/v3/volumes/{volume}"):
        assert api.delete(path).status_code == 202
        api.wait_gone(path, PATIENCE)
    if group := KINDS[kind].group:
        left = " ".join(groups.names(group))
        assert [each for each in (volume, snapshot, copy) if each in left] == []


class Brick:
    """os-brick, which Nova connects volumes with, in a process of its own: its packages are not ours."""

    def __init__(self, directory: Path) -> None:
        python = machine.environment("cinder") / "bin/python"
        self._log = (directory / "os-brick.log").open("w+")
        self._process = subprocess.Popen(
            [python, Path(__file__).with_name("brick.py"), directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __call__(self, command: str, *words: object) -> Any:
        """What one of its commands answers. Raises `ConnectionError` with its complaint."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([command, *words]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, Path(self._log.name).read_text()[-3000:]
        answer = json.loads(line)
        if "error" in answer:
            raise ConnectionError(answer["error"])
        return answer["answer"]

    def end(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)
        self._log.close()


@pytest.fixture(scope="module")
def brick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brick]:
    made = Brick(tmp_path_factory.mktemp("brick"))
    yield made
    made.end()


def as_nova_has_it(info: dict[str, Any]) -> dict[str, Any]:
    """Connection information in two parts: os-brick reads one of them, and chooses by the other."""
    return {"driver_volume_type": info["driver_volume_type"], "data": info}


@pytest.mark.parametrize("kind", KINDS)
def test_nova_attaches_by_os_brick(api: Api, brick: Brick, kind: str) -> None:
    volume = volume_of(api, kind)
    attachment = attach(api, volume, brick("facts"))
    info = as_nova_has_it(attachment["connection_info"])
    device = brick("connect", info)
    try:
        complete(api, attachment)
        disk = os.path.realpath(device["path"])
        assert size(disk) == GIB
        write(disk, 7, MIB)
        assert api.post(f"/v3/volumes/{volume}/action", {"os-extend": {"new_size": 2}}).status_code == 202
        api.wait(f"/v3/volumes/{volume}", "volume", "in-use", PATIENCE)
        assert brick("extend", info) == 2 * GIB
        assert holds(disk, 7, MIB)
    finally:
        brick("disconnect", info, device)
    detach(api, attachment)
    with opened(api, volume, kind) as disk:
        assert holds(disk, 7, MIB)
    assert api.delete(f"/v3/volumes/{volume}").status_code == 202
    api.wait_gone(f"/v3/volumes/{volume}", PATIENCE)


def test_nova_opens_a_locked_volume_by_os_bricks_encryptor(service: Service, api: Api, brick: Brick) -> None:
    told = {"volume_type": {"name": "locked", "extra_specs": {"volume_backend_name": "lio"}}}
    kind = api.post("/v3/types", told, as_="admin").json()["volume_type"]["id"]
    how = {"provider": "luks2", "cipher": "aes-xts-plain64", "key_size": 512, "control_location": "front-end"}
    assert api.post(f"/v3/types/{kind}/encryption", {"encryption": how}, as_="admin").status_code == 200
    volume = volume_of(api, "locked")
    attachment = attach(api, volume, brick("facts"))
    assert attachment["connection_info"]["encrypted"] is True
    metadata = api.get(f"/v3/volumes/{volume}/encryption", as_="admin").json()
    assert metadata.items() >= how.items()
    done = subprocess.run(service.command("passphrase", volume), capture_output=True, timeout=120, check=True)
    key = done.stdout.decode().strip()
    info = as_nova_has_it(attachment["connection_info"])
    device = brick("connect", info)
    try:
        disk = os.path.realpath(device["path"])
        info["data"]["device_path"] = device["path"]
        with pytest.raises(ConnectionError):
            brick("unlock", info, metadata, key[::-1])
        clear = os.path.realpath(brick("unlock", info, metadata, key))
        try:
            assert size(clear) == GIB, "the tenant has all of the size asked for"
            write(clear, 7, 4 * MIB)
            assert holds(clear, 7, 4 * MIB)
            assert not holds(disk, 7, 20 * MIB), "the target sees LUKS"
        finally:
            brick("lock", info, metadata, key)
    finally:
        brick("disconnect", info, device)
    detach(api, attachment)
