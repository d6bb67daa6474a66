"""A guest's volume stays reachable over whatever is restarted: the service, the target daemon, or both."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.service import Api, Service, until

CONNECTOR = {"initiator": "iqn.1994-05.com.redhat:guest", "host": "guest", "ip": "127.0.0.1"}


def _attach(api: Api, volume_id: str) -> dict[str, Any]:
    body = {"attachment": {"volume_uuid": volume_id, "connector": CONNECTOR}}
    made = api.post("/v3/attachments", body)
    assert made.status_code == 200, made.text
    found: dict[str, Any] = made.json()["attachment"]
    assert api.post(f"/v3/attachments/{found['id']}/action", {"os-complete": None}).status_code == 204
    return found


def _io(info: dict[str, Any], command: str, secret_file: Path) -> subprocess.CompletedProcess[str]:
    secret_file.write_text(info["auth_password"])
    disk = (
        f"driver=raw,file.driver=iscsi,file.transport=tcp,file.portal={info['target_portal']},"
        f"file.target={info['target_iqn']},file.lun={info['target_lun']},"
        f"file.user={info['auth_username']},file.password-secret=chap"
    )
    secret = f"secret,id=chap,file={secret_file}"
    words = ["qemu-io", "--object", secret, "-c", command, "--image-opts", disk]
    return subprocess.run(words, capture_output=True, text=True, timeout=30)


def _daemon(service: Service) -> int:
    return int((service.state_dir / "tgtd.pid").read_text())


def _works(info: dict[str, Any], secret_file: Path) -> bool:
    read = _io(info, "read -P 0x5a 0 64k", secret_file)
    return read.returncode == 0 and "verification failed" not in read.stdout


@pytest.mark.parametrize("victim", ["service killed", "service stopped", "daemon", "both"])
def test_the_export_is_there_again(own_service: Service, tmp_path: Path, victim: str) -> None:
    service = own_service
    service.start()
    api = Api(service)
    volume = api.volume()
    attachment = _attach(api, volume["id"])
    info, secret_file = attachment["connection_info"], tmp_path / "chap"
    assert _io(info, "write -P 0x5a 0 64k", secret_file).returncode == 0
    daemon = _daemon(service)
    if victim == "service stopped":
        assert service.stop() < 10
        assert _works(info, secret_file), "a guest loses its disk while the service is restarted"
    elif victim == "service killed":
        service.kill()
        assert _works(info, secret_file), "a guest loses its disk when the service dies"
    elif victim == "both":
        service.kill()
    if victim in ("daemon", "both"):
        os.kill(daemon, signal.SIGKILL)
    if victim != "daemon":
        service.start()
    until(lambda: _works(info, secret_file), 15)
    again = api.get(f"/v3/attachments/{attachment['id']}").json()["attachment"]
    assert again["connection_info"] == info, "the connection changed under the guest"
    assert api.delete(f"/v3/attachments/{attachment['id']}").status_code == 200
    assert not _works(info, secret_file), "a detached volume is still served"


def test_extended_while_exported(own_service: Service, tmp_path: Path) -> None:
    service = own_service
    service.start()
    api = Api(service)
    volume = api.volume()
    info = _attach(api, volume["id"])["connection_info"]
    path = f"/v3/volumes/{volume['id']}"
    assert api.post(f"{path}/action", {"os-extend": {"new_size": 2}}, version="3.41").status_code == 400
    assert api.post(f"{path}/action", {"os-extend": {"new_size": 2}}, version="3.42").status_code == 202
    assert api.wait(path, "volume", "in-use")["size"] in (1, 2)
    until(lambda: api.get(path).json()["volume"]["size"] == 2, 10)
    assert "2 GiB" in _io(info, "length", tmp_path / "chap").stdout
