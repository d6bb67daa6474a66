"""Volumes over NBD, from the API to a guest's reads and writes: restarts, sharing, growth, limits."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import MIB
from tests.contract.targets.harnesses import Info, NbdHarness
from tests.contract.targets.initiator import guest, io, length
from tests.service import Api, Service, until

CONNECTOR = {"host": "guest", "ip": "127.0.0.1"}  # needs no name of an initiator
WORDS = ("write -P 0x5a 0 64k", "flush")


class Site:
    """A service whose back end exports over NBD, and its client."""

    def __init__(self, service: Service, directory: Path, backend: str = "filepool") -> None:
        self.service = service
        self.harness = NbdHarness(directory)
        self.service.config.setdefault(backend, {}).update(target_helper="nbd", **self.harness.options)
        service.start()
        self.api = Api(service)

    def attach(self, volume_id: str) -> tuple[str, Info]:
        """Attachment id and connection info, nested as the harness takes it."""
        made = self.api.post(
            "/v3/attachments", {"attachment": {"volume_uuid": volume_id, "connector": CONNECTOR}}
        )
        assert made.status_code == 200, made.text
        found = made.json()["attachment"]
        path = f"/v3/attachments/{found['id']}/action"
        assert self.api.post(path, {"os-complete": None}).status_code == 204
        info = found["connection_info"]
        return found["id"], {"driver_volume_type": info["driver_volume_type"], "data": info}

    def detach(self, attachment_id: str) -> None:
        assert self.api.delete(f"/v3/attachments/{attachment_id}").status_code == 200

    def reads(self, info: Info) -> bool:
        return io(self.harness, info, "read -P 0x5a 0 64k")

    def type(self, name: str, extra: dict[str, str] | None = None, **limits: str) -> str:
        """A volume type, with QoS specs for the back end where limits are given."""
        body: dict[str, Any] = {"volume_type": {"name": name, "extra_specs": extra or {}}}
        made = self.api.post("/v3/types", body, as_="admin").json()["volume_type"]["id"]
        if limits:
            specs = {"qos_specs": {"name": name, "consumer": "back-end", **limits}}
            kept = self.api.post("/v3/qos-specs", specs, as_="admin").json()["qos_specs"]["id"]
            path = f"/v3/qos-specs/{kept}/associate?vol_type_id={made}"
            assert self.api.get(path, as_="admin").status_code == 202
        return str(made)

    def act(self, volume_id: str, **action: Any) -> None:
        path = f"/v3/volumes/{volume_id}/action"
        answer = self.api.post(path, {name.replace("_", "-"): body for name, body in action.items()})
        assert answer.status_code == 202, answer.text

    def show(self, volume_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.get(f"/v3/volumes/{volume_id}").json()["volume"]
        return found


@pytest.fixture
def site(own_service: Service, tmp_path: Path) -> Iterator[Site]:
    made = Site(own_service, tmp_path)
    yield made
    made.harness.state = own_service.state_dir
    made.harness.perish()


@pytest.mark.parametrize("victim", ["service killed", "service stopped", "server", "both"])
def test_the_export_is_there_again(site: Site, victim: str) -> None:
    volume = site.api.volume()
    attachment, info = site.attach(volume["id"])
    assert io(site.harness, info, *WORDS)
    (file,) = site.service.state_dir.rglob("daemon.pid")
    if victim == "service stopped":
        site.service.stop()
        assert site.reads(info), "a guest loses its disk while the service is restarted"
    elif victim != "server":
        site.service.kill()
        assert site.reads(info), "a guest loses its disk when the service dies"
    if victim in ("server", "both"):
        os.kill(int(file.read_text()), signal.SIGKILL)
    if victim != "server":
        site.service.start()
    until(lambda: site.reads(info), 15)
    again = site.api.get(f"/v3/attachments/{attachment}").json()["attachment"]["connection_info"]
    assert again == info["data"], "the connection changed under the guest"
    site.detach(attachment)
    assert not site.reads(info), "a detached volume is still served"
    assert list(site.service.state_dir.rglob("daemon.pid")) == []


def test_several_attachments_share_one_server(site: Site) -> None:
    kind = site.type("shared", {"multiattach": "<is> True"})
    volume = site.api.volume(volume_type=kind)
    first, info = site.attach(volume["id"])
    second, same = site.attach(volume["id"])
    assert {**info["data"], "attachment_id": second} == same["data"]
    assert len(list(site.service.state_dir.rglob("daemon.pid"))) == 1
    with guest(site.harness, info) as one, guest(site.harness, same) as other:
        one.write(5)
        other.read(5)
        site.detach(first)
        other.write(6)
    site.detach(second)
    assert not io(site.harness, info, "read 0 4k")
    assert list(site.service.state_dir.rglob("daemon.pid")) == []


def test_a_shared_volume_is_detached_after_its_back_end_got_another_target(site: Site) -> None:
    """One holder after the other; until then nobody joins them."""
    kind = site.type("shared", {"multiattach": "<is> True"})
    volume = site.api.volume(volume_type=kind)["id"]
    holders = [site.attach(volume)[0] for _ in range(2)]
    site.service.stop()
    site.harness.state = site.service.state_dir
    site.harness.perish()
    site.service.config["filepool"] = {"target_helper": "tgt"}
    site.service.start()
    connector = {**CONNECTOR, "initiator": "iqn.1994-05.com.redhat:guest"}
    body = {"attachment": {"volume_uuid": volume, "connector": connector}}
    refused = site.api.post("/v3/attachments", body)
    assert "another kind" in refused.text
    for each in holders:
        site.detach(each)
    until(lambda: site.show(volume)["status"] == "available")
    joined = site.api.post("/v3/attachments", body)
    assert joined.json()["attachment"]["connection_info"]["driver_volume_type"] == "iscsi"
    site.detach(joined.json()["attachment"]["id"])


def test_limits_follow_type_and_size_under_a_guest(site: Site) -> None:
    slow = site.type("slow", total_bytes_sec_per_gb=str(MIB // 2))
    quick = site.type("quick")
    volume = site.api.volume(volume_type=slow)["id"]
    (pool,) = site.api.get("/v3/scheduler-stats/get_pools?detail=true", as_="admin").json()["pools"]
    assert pool["capabilities"]["QoS_support"] is True
    _, info = site.attach(volume)
    assert info["data"]["qos_specs"] is None, "the host keeps nothing of specs for the back end"
    with guest(site.harness, info) as one:
        assert _seconds(lambda: [one.write(6, f"{at}M", "512k") for at in range(3)]) > 1.5  # 0.5 MiB/s
        site.act(volume, os_extend={"new_size": 2})
        until(lambda: site.show(volume)["size"] == 2)
        assert _seconds(lambda: [one.write(6, f"{at}M", "1M") for at in range(3)]) > 1.5  # 1 MiB/s
        site.act(volume, os_retype={"new_type": quick, "migration_policy": "never"})
        until(lambda: site.show(volume)["volume_type"] == "quick")
        one.write(7, "0", "32M")  # would take half a minute, which is longer than a guest is waited for
        one.read(7, "0", "32M")

    def has_grown() -> bool:
        time.sleep(2)  # who looks is a client, too, and as long as one is there the length stays
        return length(site.harness, info) == 2048 * MIB

    until(has_grown, 30)


def _seconds(work: Any) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
