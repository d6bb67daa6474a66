"""What the NBD target does beside the contract: keys, certificates, throttles, tools of libnbd."""

from __future__ import annotations

import base64
import dataclasses
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lapilli.adapters.targets import dh, storage_daemon
from lapilli.adapters.targets.nbd import Nbd, NbdOptions
from lapilli.errors import ConfigError, StorageError
from lapilli.ports.driver import BlockAddress
from lapilli.ports.target import ExportSpec
from tests.contract.conftest import MIB, free_port
from tests.contract.targets.harnesses import NbdHarness
from tests.contract.targets.initiator import guest, info_of, io, length
from tests.service import until


@pytest.fixture
def kind() -> str:
    """Of the fixtures in conftest."""
    return "nbd"


Make = Callable[..., ExportSpec]


def _uri(spec: ExportSpec, directory: Path) -> str:
    keys = directory / "keys.psk"
    keys.write_text(f"{spec.secret['username']}:{spec.secret['password']}\n")
    place = f"{spec.data['host']}:{spec.data['port']}"
    return f"nbds://{spec.secret['username']}@{place}/{spec.data['export']}?tls-psk-file={keys}"


def test_libnbd_reads_what_it_wrote(target: Nbd, exportable: Make, tmp_path: Path) -> None:
    spec = exportable(target)
    target.export(spec)
    uri = _uri(spec, tmp_path)
    told = subprocess.run(["nbdinfo", "--json", uri], capture_output=True, text=True, check=True).stdout
    found = msgspec.json.decode(told)
    assert found["TLS"] is True
    (export,) = found["exports"]
    assert export["export-size"] == 64 * MIB
    assert export["can_multi_conn"] is True
    assert export["can_trim"] is True
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(os.urandom(8 * MIB) + bytes(56 * MIB))
    subprocess.run(["nbdcopy", "--connections=4", source, uri], check=True, timeout=60)
    subprocess.run(["nbdcopy", "--connections=4", uri, copy], check=True, timeout=60)
    assert copy.read_bytes() == source.read_bytes() == Path(spec.address.location).read_bytes()


def test_discarded_space_is_given_back(harness: NbdHarness, target: Nbd, exportable: Make) -> None:
    spec = exportable(target)
    target.export(spec)
    info = info_of(harness, target, spec)
    assert io(harness, info, "write -P 9 0 8M", "flush")
    before = os.stat(spec.address.location).st_blocks
    assert io(harness, info, "discard 0 8M", flags=("-d", "unmap"))
    assert before - os.stat(spec.address.location).st_blocks >= 8 * MIB // 512


def test_one_key_opens_one_volume(harness: NbdHarness, target: Nbd, exportable: Make) -> None:
    mine, other = exportable(target), exportable(target)
    target.export(mine)
    target.export(other)
    info = info_of(harness, target, mine)
    through = {**info, "data": {**info["data"], "name": other.data["export"]}}
    assert not io(harness, through, "read 0 4k"), "another volume is served at this port too"
    at = {**info, "data": {**info["data"], "ports": [str(other.data["port"])], "name": other.data["export"]}}
    assert not io(harness, at, "read 0 4k"), "the key opens another volume"


def test_keys_are_for_the_owner_only(target: Nbd, exportable: Make, harness: NbdHarness) -> None:
    spec = exportable(target)
    target.export(spec)
    (keys,) = harness.state.rglob("keys.psk")
    assert [each.stat().st_mode & 0o077 for each in (keys, keys.parent, keys.parents[1])] == [0, 0, 0]


def test_a_new_key_replaces_the_old_one(harness: NbdHarness, target: Nbd, exportable: Make) -> None:
    spec = exportable(target)
    target.export(spec)
    changed = msgspec.structs.replace(spec, secret={**spec.secret, "password": "ab" * 32})
    target.export(changed)
    assert io(harness, info_of(harness, target, changed), "read 0 4k")
    assert not io(harness, info_of(harness, target, spec), "read 0 4k")


def test_a_limit_holds_and_is_changed_under_a_guest(
    harness: NbdHarness, target: Nbd, exportable: Make
) -> None:
    spec = msgspec.structs.replace(exportable(target), limits={"total_bytes_sec": MIB})
    target.export(spec)
    info = info_of(harness, target, spec)
    began = time.monotonic()
    assert io(harness, info, "write 0 1M", "write 1M 1M", "write 2M 1M")
    assert time.monotonic() - began > 1.5, "3 MiB at 1 MiB/s"
    with guest(harness, info) as one:
        one.write(5)
        target.throttle(msgspec.structs.replace(spec, limits={"write_bytes_sec": MIB, "read_iops_sec": 10}))
        began = time.monotonic()
        for at in range(3):
            one.write(6, f"{at}M", "1M")
        assert time.monotonic() - began > 1.5, "the new limit of writes"
        began = time.monotonic()
        for at in range(20):
            one.read(6, f"{at * 4}k", "4k")
        assert time.monotonic() - began > 0.9, "20 reads, 10 a second"
        target.throttle(msgspec.structs.replace(spec, limits={}))
        one.write(7, "0", "8M")
        assert "nnect" not in one.quit()


def test_limits_that_qemu_would_refuse_together(target: Nbd, exportable: Make) -> None:
    odd = {
        "total_iops_sec": 500,
        "read_iops_sec": 100,
        "write_bytes_sec": 10**18,
        "read_iops_sec_max": 50,
        "total_bytes_sec_max": 5,
    }
    spec = msgspec.structs.replace(exportable(target), limits=odd)
    target.export(spec)
    target.throttle(spec)
    assert list(target.exports()) == [spec.volume_id]


def test_older_clients_keep_a_new_size_waiting(harness: NbdHarness, target: Nbd, exportable: Make) -> None:
    spec = exportable(target)
    target.export(spec)
    info = info_of(harness, target, spec)
    with guest(harness, info) as one:
        one.write(5)
        for mib in (96, 128):  # twice, while it waits
            harness.grow(spec.address, mib)
            target.resize(spec, mib * MIB)
        target.exports()
        assert length(harness, info) == 64 * MIB
        one.read(5)
        one.quit()
    target.export(spec)  # as the next attachment asks for
    assert length(harness, info) == 128 * MIB
    (directory,) = harness.state.rglob(spec.volume_id)
    assert not (directory / "grown").exists()


def test_a_block_device(
    harness: NbdHarness, target: Nbd, exportable: Make, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file = tmp_path / "disk"
    with file.open("wb") as made:
        made.truncate(64 * MIB)
    done = subprocess.run(["losetup", "--find", "--show", file], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no loop device can be had here: {done.stderr}")
    device = done.stdout.strip()
    request.addfinalizer(lambda: subprocess.run(["losetup", "--detach", device], check=True))
    spec = msgspec.structs.replace(exportable(target), address=BlockAddress("block", device))
    target.export(spec)
    info = info_of(harness, target, spec)
    with guest(harness, info) as one:
        one.write(5, "1M")
        os.truncate(file, 96 * MIB)
        subprocess.run(["losetup", "--set-capacity", device], check=True)
        target.resize(spec, 96 * MIB)
        one.read(5, "1M")
    until(lambda: bool(target.exports()) and length(harness, info) == 96 * MIB)
    target.unexport(spec.volume_id, spec.data)
    with open(device, "rb") as disk:
        disk.seek(MIB)
        assert disk.read(64 << 10) == b"\x05" * (64 << 10)


def test_a_daemon_that_answers_nobody_is_ended(
    harness: NbdHarness, target: Nbd, exportable: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_daemon, "_QUIT", 0.3)
    spec = exportable(target)
    target.export(spec)
    (file,) = harness.state.rglob("daemon.pid")
    pid = int(file.read_text())
    os.kill(pid, signal.SIGSTOP)
    target.unexport(spec.volume_id, spec.data)
    assert not os.path.exists(f"/proc/{pid}/exe")
    assert harness.leftovers(spec.volume_id) == []


def test_a_port_that_somebody_else_has_is_passed_over(tmp_path: Path, exportable: Make) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        options = NbdOptions(nbd_first_port=port, nbd_last_port=port)
        full = Nbd(options, name="full", state_dir=str(tmp_path))
        with pytest.raises(StorageError, match="No port is left"):
            full.prepare("v1")
    data, _ = full.prepare("v1")
    assert data["port"] == port
    assert full.prepare("v1")[0] == data, "asked twice, it is the same port"
    with pytest.raises(StorageError, match="No port is left"):
        full.prepare("v2")
    full.unexport("v1", data)
    assert full.prepare("v2")[0]["port"] == port


def test_a_port_taken_meanwhile_is_told(target: Nbd, exportable: Make) -> None:
    spec = exportable(target)
    with socket.socket() as other:
        other.bind(("127.0.0.1", spec.data["port"]))
        other.listen()
        with pytest.raises(StorageError, match="Address already in use"):
            target.export(spec)
    assert list(target.exports()) == []
    target.export(spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nbd_tls": "off", "target_ip_address": "192.0.2.1"}, "nbd_tls = 'off': anybody"),
        ({"nbd_tls": "x509"}, "nbd_tls_x509_cert_dir: nbd_tls = x509 needs it"),
        ({"nbd_tls": "x509", "nbd_tls_x509_cert_dir": "/nowhere"}, "has no ca-cert.pem"),
        ({"nbd_first_port": 2000, "nbd_last_port": 1999}, "nbd_last_port = 1999"),
    ],
)
def test_wrong_options_are_told_before_anything_starts(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Nbd(NbdOptions(**options), name="far", state_dir=str(tmp_path / "state")).start()
    assert not (tmp_path / "state").exists()


def test_without_tls_on_loopback(tmp_path: Path, exportable: Make, harness: NbdHarness) -> None:
    port = free_port()
    plain = Nbd(
        NbdOptions(nbd_first_port=port, nbd_last_port=port, nbd_tls="off"),
        name="files",
        state_dir=str(harness.state),
    )
    plain.start()
    spec = exportable(plain)
    assert spec.secret == {}
    plain.export(spec)
    assert io(harness, info_of(harness, plain, spec), "write -P 7 0 64k", "read -P 7 0 64k")
    assert io(harness, info_of(harness, plain, spec), "write -P 7 0 64k", "read -P 7 0 64k")


def test_the_group_is_the_one_of_the_standard() -> None:
    """RFC 7919, appendix A.2: 2^3072 - 2^3008 + (floor(2^2942 * e) + 2625351) * 2^64 - 1."""
    term, euler, count = 1 << 3200, 0, 0
    while term:
        euler, count = euler + term, count + 1
        term //= count
    prime = 2**3072 - 2**3008 + ((euler >> (3200 - 2942)) + 2625351) * 2**64 - 1
    numbers = b"\x02\x82\x01\x81" + prime.to_bytes(385, "big") + b"\x02\x01\x02"  # DER: INTEGER, INTEGER
    whole = b"\x30\x82" + len(numbers).to_bytes(2, "big") + numbers
    assert base64.b64decode("".join(dh.FFDHE3072.splitlines()[1:-1])) == whole


def test_certificates(tmp_path: Path, exportable: Make, harness: NbdHarness) -> None:
    ours, strangers = _authority(tmp_path / "ours"), _authority(tmp_path / "strangers")
    port = free_port()
    options = NbdOptions(
        nbd_first_port=port, nbd_last_port=port, nbd_tls="x509", nbd_tls_x509_cert_dir=str(ours)
    )
    target = Nbd(options, name="files", state_dir=str(harness.state))
    target.start()
    spec = exportable(target)
    target.export(spec)
    assert info_of(harness, target, spec)["data"]["tls"] == "x509"
    uri = f"nbds://127.0.0.1:{port}/{spec.data['export']}?tls-certificates="
    assert _size(f"{uri}{ours}") == str(64 * MIB)
    assert _size(f"{uri}{strangers}") is None
    assert not io(harness, info_of(harness, target, spec), "read 0 4k"), "without a certificate"
    # the site's own group, and other certificates, are taken by the next start
    (strangers / dh.FILE).write_text(dh.FFDHE3072)
    moved = dataclasses.replace(options, nbd_tls_x509_cert_dir=str(strangers))
    target = Nbd(moved, name="files", state_dir=str(harness.state))
    harness.perish()
    target.export(spec)
    assert _size(f"{uri}{strangers}") == str(64 * MIB)
    assert _size(f"{uri}{ours}") is None


def _size(uri: str) -> str | None:
    done = subprocess.run(["nbdinfo", "--size", uri], capture_output=True, text=True, timeout=30)
    return done.stdout.strip() if done.returncode == 0 else None


def _authority(place: Path) -> Path:
    """An authority, and what it signed: a server and a client certificate, in files as GnuTLS wants them."""
    place.mkdir()

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=place, check=True, capture_output=True)

    openssl(*"req -x509 -newkey rsa:2048 -nodes -keyout ca-key.pem -out ca-cert.pem -subj /CN=ca".split())
    for name in ("server", "client"):
        openssl(
            *f"req -newkey rsa:2048 -nodes -keyout {name}-key.pem -out {name}.csr -subj /CN=127.0.0.1".split()
        )
        (place / "names").write_text("subjectAltName=IP:127.0.0.1\n")
        openssl(
            *f"x509 -req -in {name}.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial".split(),
            *f"-extfile names -out {name}-cert.pem".split(),
        )
    return place
