"""NBD exports for hypervisors, by a qemu-storage-daemon per volume.

A process per volume, since NBD knows no account: whoever may speak to a server may open every export that it
has. So each volume has a port and, with TLS, a pre-shared key of its own. The daemons outlive the service,
which finds them again by their directories (`storage_daemon`).
"""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import shutil
import socket
import threading
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import msgspec

from lapilli.adapters.targets import strays
from lapilli.adapters.targets.storage_daemon import PROGRAM, Daemon
from lapilli.config import option
from lapilli.errors import ConfigError, StorageError
from lapilli.events import emit
from lapilli.ports.target import ExportSpec

_KEY_BYTES = 32


@dataclass(frozen=True)
class NbdOptions:
    """Options of the `nbd` target."""

    target_ip_address: str = option("127.0.0.1", "Address at which initiators reach the target.")
    nbd_first_port: int = option(10809, "First TCP port of its servers.", minimum=1, maximum=65535)
    nbd_last_port: int = option(
        14904, "Last TCP port of its servers: each volume needs one.", minimum=1, maximum=65535
    )
    nbd_tls: str = option(
        "psk",
        "psk: each volume has a pre-shared key of its own; x509: certificates, of which any of the authority "
        "opens every volume; off: nothing is encrypted, and nobody asked who he is.",
        choices=("psk", "x509", "off"),
    )
    nbd_tls_x509_cert_dir: str | None = option(
        None, "Directory with ca-cert.pem, server-cert.pem and server-key.pem."
    )
    nbd_allow_plain: bool = option(False, "Allow nbd_tls = off beyond the loopback interface.")


class Nbd:
    """Target on qemu-storage-daemon."""

    kinds = ("file", "block", "rbd", "nbd", "iscsi")
    serves = True
    # ports of volumes that are served, or soon will be, by (root, volume); back ends of a process share them
    _ports: ClassVar[dict[tuple[Path, str], int]] = {}
    _choosing = threading.Lock()

    def __init__(self, options: NbdOptions, *, name: str, state_dir: str) -> None:
        self.name = name
        self._options = options
        self._root = Path(state_dir).absolute() / "nbd" / quote(name, safe="")

    def start(self) -> None:
        """Check the options; a daemon is started with each export. Raises `ConfigError`, `StorageError`."""
        self._check()
        if shutil.which(PROGRAM) is None:
            raise StorageError(f"{PROGRAM} is not installed (Debian's package is qemu-system-common).")
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _check(self) -> None:
        options = self._options
        if options.nbd_last_port < options.nbd_first_port:
            raise ConfigError(
                f"[{self.name}] nbd_last_port = {options.nbd_last_port}: before nbd_first_port."
            )
        if options.nbd_tls == "x509":
            place = options.nbd_tls_x509_cert_dir
            if place is None:
                raise ConfigError(f"[{self.name}] nbd_tls_x509_cert_dir: nbd_tls = x509 needs it.")
            for file in ("ca-cert.pem", "server-cert.pem", "server-key.pem"):
                if not (Path(place) / file).is_file():
                    raise ConfigError(f"[{self.name}] nbd_tls_x509_cert_dir = {place!r}: it has no {file}.")
        if options.nbd_tls == "off" and not options.nbd_allow_plain and not self._is_loopback():
            raise ConfigError(
                f"[{self.name}] nbd_tls = 'off': anybody who reaches {options.target_ip_address} could read "
                "and write every volume; set nbd_allow_plain where that is wanted."
            )

    def _is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self._options.target_ip_address).is_loopback
        except ValueError:
            return False

    def stop(self) -> None:
        """Every daemon serves a volume: none is stopped."""

    def prepare(self, volume_id: str) -> tuple[dict[str, Any], dict[str, str]]:
        """A port that is free, an export name, and a random key."""
        data = {
            "host": self._options.target_ip_address,
            "port": self._port(volume_id),
            "export": f"volume-{volume_id}",
            "tls": self._options.nbd_tls,
        }
        if self._options.nbd_tls != "psk":
            return data, {}
        return data, {"username": f"volume-{volume_id}", "password": secrets.token_hex(_KEY_BYTES)}

    def _port(self, volume_id: str) -> int:
        first, count = (
            self._options.nbd_first_port,
            1 + self._options.nbd_last_port - self._options.nbd_first_port,
        )
        with self._choosing:
            if (self._root, volume_id) in self._ports:
                return self._ports[self._root, volume_id]
            taken = set(self._ports.values())
            start = zlib.crc32(volume_id.encode())
            for port in (first + (start + step) % count for step in range(count)):
                if port not in taken and _is_free(self._options.target_ip_address, port):
                    self._ports[self._root, volume_id] = port
                    return port
        raise StorageError("No port is left for another NBD server: see nbd_last_port.", retry=False)

    def export(self, spec: ExportSpec) -> None:
        """Serve the volume; a daemon that serves it as wanted is left alone."""
        daemon = self._daemon(spec.volume_id)
        self._ports[self._root, spec.volume_id] = spec.chosen("port")
        with daemon.held(make=True):
            if spec.secret:
                daemon.put_key(spec.secret)
            if self._stands(daemon, spec):
                return
            daemon.end()
            if spec.chosen("tls") == "x509":
                daemon.put_certificates(Path(str(self._options.nbd_tls_x509_cert_dir)).absolute())
            try:
                daemon.start(spec.address, _told(spec), self._server(spec), spec.limits)
            except StorageError:
                daemon.remove()
                raise
        emit("target.daemon.started", target=self.name, volume_id=spec.volume_id, port=spec.chosen("port"))

    def _stands(self, daemon: Daemon, spec: ExportSpec) -> bool:
        """Whether a daemon serves the volume as wanted; it has the limits and the size of now afterwards."""
        if not daemon.is_alive() or daemon.told != _told(spec):
            return False
        try:
            daemon.limit(spec.limits)
        except StorageError:
            if daemon.is_alive():
                raise
            return False  # it was only just starting, and could not
        self._settle(daemon)
        return True

    def _server(self, spec: ExportSpec) -> list[str]:
        host, port = spec.chosen("host"), spec.chosen("port")
        address = f"addr.type=inet,addr.host={host},addr.port={port},max-connections=0"
        if spec.chosen("tls") == "psk":
            return ["--object", "tls-creds-psk,id=tls,endpoint=server,dir=keys", *_listening(address, "tls")]
        if spec.chosen("tls") == "x509":
            credentials = "tls-creds-x509,id=tls,endpoint=server,verify-peer=on,dir=keys"
            return ["--object", credentials, *_listening(address, "tls")]
        return _listening(address, None)

    def unexport(self, volume_id: str, data: dict[str, Any]) -> None:  # noqa: ARG002 - its id is enough
        """End the daemon and forget its key; clients are cut off."""
        daemon = self._daemon(volume_id)
        with daemon.held() as there:
            if there:
                daemon.end()
                daemon.remove()
        self._ports.pop((self._root, volume_id), None)

    def resize(self, spec: ExportSpec, length: int) -> None:
        """Offer a new length to who connects from now on.

        NBD has no word for a size that has changed: a client that is connected keeps the one that it was
        told. QEMU's server, too, measures an export once; while older clients are there, newer ones get the
        old size, until the last of them has gone (looked for at each `exports` and `export`).
        """
        daemon = self._daemon(spec.volume_id)
        with daemon.held() as there:
            if there and daemon.is_alive():
                whole = daemon.grow(spec.address)
                emit(
                    "target.resized", target=self.name, volume_id=spec.volume_id, length=length, at_once=whole
                )

    def throttle(self, spec: ExportSpec) -> None:
        """Keep the limits of the spec from now on."""
        daemon = self._daemon(spec.volume_id)
        with daemon.held() as there:
            if there and daemon.is_alive():
                daemon.limit(spec.limits)

    def exports(self) -> Sequence[str]:
        """Ids of the volumes that a daemon serves; new sizes that had to wait are offered now."""
        served = []
        for volume_id in self._known():
            daemon = self._daemon(volume_id)
            with daemon.held() as there:
                if there and daemon.is_alive():
                    served.append(volume_id)
                    self._settle(daemon)
        return served

    @staticmethod
    def _settle(daemon: Daemon) -> None:
        if daemon.has_grown:
            with contextlib.suppress(StorageError):  # it is tried again
                daemon.settle()

    def restore(self, wanted: Iterable[ExportSpec], keep: Collection[str] = ()) -> Sequence[str]:
        """Serve exactly `wanted`; one volume's fault does not keep the others from guests."""
        self.start()
        specs = {spec.volume_id: spec for spec in wanted}
        # first: nobody who comes now may be given a port that a guest will look at
        for spec in specs.values():
            if "port" in spec.data:
                self._ports[self._root, spec.volume_id] = spec.data["port"]
        mended = []
        for volume_id, spec in specs.items():
            daemon = self._daemon(volume_id)
            try:
                with daemon.held() as there:  # only so: who looks holds up who starts it
                    stands = there and daemon.is_alive() and daemon.told == _told(spec)
                self.export(spec)
            except StorageError as problem:
                mended.append(f"Volume {volume_id} could not be exported: {problem.message}")
            else:
                mended += [] if stands else [f"Volume {volume_id}: exported again."]
        nobodys = set(self._known()) - specs.keys() - set(keep)
        return mended + strays.removed(nobodys, lambda each: self.unexport(each, {}))

    def connection_info(
        self,
        spec: ExportSpec,
        connector: dict[str, Any],  # noqa: ARG002 - any will do
        *,
        access_mode: str,
    ) -> dict[str, Any]:
        """Where and how; `name`, `hosts` and `ports` are the words of libvirt's network disks in Nova."""
        data = {
            "name": spec.chosen("export"),
            "hosts": [spec.chosen("host")],
            "ports": [str(spec.chosen("port"))],
            "tls": spec.chosen("tls"),
            "volume_id": spec.volume_id,
            "access_mode": access_mode,
            "discard": True,
        }
        if spec.secret:
            data |= {
                "auth_method": "PSK",
                "auth_username": spec.secret["username"],
                "auth_password": spec.secret["password"],
            }
        return {"driver_volume_type": "nbd", "data": data}

    def _daemon(self, volume_id: str) -> Daemon:
        return Daemon(self._root / volume_id)

    def _known(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return sorted(entry.name for entry in self._root.iterdir())
        return []


def _told(spec: ExportSpec) -> dict[str, Any]:
    """What a daemon is started with, without the secret."""
    return {**spec.data, "address": msgspec.to_builtins(spec.address)}


def _listening(address: str, credentials: str | None) -> list[str]:
    return ["--nbd-server", address if credentials is None else f"{address},tls-creds={credentials}"]


def _is_free(address: str, port: int) -> bool:
    """Whether nobody listens at a port."""
    try:
        kind, _, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError:
        return False
    return True
