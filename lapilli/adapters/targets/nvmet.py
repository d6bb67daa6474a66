"""NVMe over TCP by the kernel's own target, nvmet, which is configured in configfs.

A volume is a subsystem with one namespace. Hosts are let in by name; a subsystem is linked to its ports last
and unlinked first, so a half made one cannot be reached. A subsystem's serial number says which back end it
belongs to: back ends of one host share the kernel's target, and each restores its own exports.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lapilli.adapters.targets import configfs, strays
from lapilli.config import option
from lapilli.errors import ConfigError, InvalidInput, StorageError
from lapilli.events import emit
from lapilli.ports.target import ExportSpec

_ROOT = f"{configfs.ROOT}/nvmet"
_MODULES = ("nvmet", "nvmet_tcp")
_NSID = 1
_PORTS = 65535  # numbers that a port may have
_NQN = re.compile(r"nqn\.[\w.:+-]{1,219}", re.ASCII)  # also the name of a directory
_TRIES = 20


@dataclass(frozen=True)
class NvmetOptions:
    """Options of the `nvmet` target."""

    target_ip_address: str = option("127.0.0.1", "Address at which initiators reach the target.")
    target_secondary_ip_addresses: list[str] = option([], "Further addresses, for multipath.")
    target_port: int = option(4420, "TCP port of the target.", minimum=1, maximum=65535)
    target_prefix: str = option("nqn.2010-10.org.openstack:", "Prefix of subsystems' names.")


class Nvmet:
    """Target in the kernel."""

    serves = True
    kinds = ("file", "block")

    def __init__(self, options: NvmetOptions, *, name: str, state_dir: str) -> None:  # noqa: ARG002 - as all
        self.name = name
        self._options = options
        self._owner = hashlib.sha256(name.encode()).hexdigest()[:8]
        if not _NQN.fullmatch(f"{options.target_prefix}volume"):
            raise ConfigError(f"[{name}] target_prefix = {options.target_prefix!r}: it must begin with nqn.")

    def start(self) -> None:
        """See that the kernel has its target. Raises `ConfigError`."""
        configfs.load("nvmet", _MODULES, "nvmet")

    def stop(self) -> None:
        """The kernel goes on serving; ports of ours that serve nothing go."""
        for address in self._addresses():
            port = _find_port(*address)
            if port == f"{_ROOT}/ports/{_number(*address)}" and not configfs.names(f"{port}/subsystems"):
                configfs.remove(port)

    # -- exports ------------------------------------------------------------------------------------------

    def prepare(self, volume_id: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Name and portals. There is no secret: hosts are known by their names."""
        portals = [list(each) for each in self._addresses()]
        return {"nqn": self._nqn(volume_id), "portals": portals, "nsid": _NSID}, {}

    def _addresses(self) -> list[tuple[str, int]]:
        options = self._options
        every = [options.target_ip_address, *options.target_secondary_ip_addresses]
        return [(address.strip("[]"), options.target_port) for address in every]

    def export(self, spec: ExportSpec) -> None:
        """Serve the volume to its hosts; every part that already is as wanted is left alone."""
        self._complete(spec)

    def _complete(self, spec: ExportSpec) -> bool:
        """Bring the export from any state to the wanted one; whether anything was missing."""
        _refuse_unservable(spec)
        path = _subsystem(spec.chosen("nqn"))
        if not self._is_ours(path, spec.volume_id) and os.path.isdir(f"{path}/namespaces/{_NSID}"):
            _remove(path)  # of a back end that had another name: its mark cannot be changed
        changed = configfs.make(path)
        changed |= configfs.settle(f"{path}/attr_serial", self._serial(spec.volume_id))
        changed |= configfs.settle(f"{path}/attr_allow_any_host", "0")
        changed |= _serve(path, spec)
        changed |= _let_in(path, spec)
        wanted = [_port(address, port) for address, port in spec.chosen("portals")]
        for port in _ports():
            if port not in wanted:
                changed |= configfs.unlink(f"{port}/subsystems/{spec.chosen('nqn')}")
        for port in wanted:
            changed |= configfs.link(f"{port}/subsystems/{spec.chosen('nqn')}", path)
        return changed

    def unexport(self, volume_id: str, data: dict[str, Any]) -> None:
        """Remove the subsystem; connections are cut off."""
        _remove(_subsystem(data.get("nqn") or self._nqn(volume_id)))

    def resize(self, spec: ExportSpec, length: int) -> None:
        """Let the kernel measure the volume again: it tells the hosts, whose disks grow at once."""
        namespace = f"{_subsystem(spec.chosen('nqn'))}/namespaces/{_NSID}"
        if configfs.read(f"{namespace}/enable") == "1":
            configfs.write(f"{namespace}/revalidate_size", "1")
            emit("target.resized", target=self.name, volume_id=spec.volume_id, length=length)

    def exports(self) -> Sequence[str]:
        """Ids of the volumes with a subsystem of this back end that hosts may use."""
        linked = {nqn for port in _ports() for nqn in configfs.names(f"{port}/subsystems")}
        return [
            volume_id
            for volume_id, path in self._own()
            if os.path.basename(path) in linked and configfs.read(f"{path}/namespaces/{_NSID}/enable") == "1"
        ]

    def _own(self) -> Iterator[tuple[str, str]]:
        for nqn in configfs.names(f"{_ROOT}/subsystems"):
            volume_id = nqn.removeprefix(self._nqn(""))
            if volume_id != nqn and self._is_ours(_subsystem(nqn), volume_id):
                yield volume_id, _subsystem(nqn)

    def _unmarked(self) -> Iterator[str]:
        """Subsystems that are empty and nobody's: whoever made one was killed before it could mark it."""
        for nqn in configfs.names(f"{_ROOT}/subsystems"):
            volume_id, path = nqn.removeprefix(self._nqn("")), _subsystem(nqn)
            mark = self._serial(volume_id).removeprefix(self._owner)
            marked = (configfs.read(f"{path}/attr_serial") or mark).endswith(mark)
            if volume_id != nqn and not marked and not configfs.names(f"{path}/namespaces"):
                yield path

    def _is_ours(self, path: str, volume_id: str) -> bool:
        return configfs.read(f"{path}/attr_serial") == self._serial(volume_id)

    def _serial(self, volume_id: str) -> str:
        """20 characters: whose it is, and of which volume, since hosts tell disks apart by it."""
        return self._owner + volume_id.replace("-", "")[:12]

    def restore(self, wanted: Iterable[ExportSpec], keep: Collection[str] = ()) -> Sequence[str]:
        """Make the kernel serve exactly `wanted`; one volume's fault does not keep the others from guests."""
        self.start()
        mended = []
        present = dict(self._own())
        for spec in wanted:
            found = present.pop(spec.volume_id, None)
            try:
                changed = self._complete(spec)
            except StorageError as problem:
                mended.append(f"Volume {spec.volume_id} could not be exported: {problem.message}")
                continue
            if changed:
                what = "exported again" if found is None else "export completed"
                mended.append(f"Volume {spec.volume_id}: {what}.")
        strays.removed(map(os.path.basename, self._unmarked()), lambda nqn: _remove(_subsystem(nqn)))
        nobodys = [os.path.basename(path) for volume_id, path in present.items() if volume_id not in keep]
        return mended + strays.removed(nobodys, lambda nqn: _remove(_subsystem(nqn)))

    def connection_info(
        self, spec: ExportSpec, connector: dict[str, Any], *, access_mode: str
    ) -> dict[str, Any]:
        """The form of os-brick that names every portal; the disk is found by its UUID, the volume's id."""
        host = connector.get("nqn")
        if not host:
            raise InvalidInput("The connector lacks 'nqn', which NVMe over TCP needs.")
        if not _NQN.fullmatch(host):
            raise InvalidInput("The connector's 'nqn' is not the name of an NVMe host.")
        portals = [[address, port, "tcp"] for address, port in spec.chosen("portals")]
        return {
            "driver_volume_type": "nvmeof",
            "data": {
                "target_nqn": spec.chosen("nqn"),
                "portals": portals,
                "target_portal": portals[0][0],
                "target_port": portals[0][1],
                "transport_type": "tcp",
                "host_nqn": host,
                "ns_id": spec.chosen("nsid"),
                "vol_uuid": spec.volume_id,
                "volume_nguid": spec.volume_id.replace("-", ""),
                "volume_id": spec.volume_id,
                "access_mode": access_mode,
                "discard": True,
            },
        }

    def _nqn(self, volume_id: str) -> str:
        return f"{self._options.target_prefix}volume-{volume_id}"


def _subsystem(nqn: str) -> str:
    return f"{_ROOT}/subsystems/{nqn}"


def _refuse_unservable(spec: ExportSpec) -> None:
    if spec.address.kind not in ("file", "block"):
        raise StorageError("The kernel's NVMe target serves files and block devices only.", retry=False)
    if not os.path.exists(spec.address.location):
        raise StorageError(f"Volume {spec.volume_id} cannot be served: it is not there.")
    try:
        os.close(os.open(spec.address.location, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError as problem:
        if problem.errno != errno.EINVAL:
            raise StorageError(f"Volume {spec.volume_id} cannot be read: {problem.strerror}.") from problem
        raise StorageError(
            "The kernel's NVMe target passes by the page cache, which the pool's file system cannot (XFS and "
            "ext4 can): let the nbd or tgt target serve it.",
            retry=False,
        ) from None


def _serve(path: str, spec: ExportSpec) -> bool:
    """See that the subsystem's namespace is the volume; whether it was not."""
    namespace = f"{path}/namespaces/{_NSID}"
    configfs.make(namespace)
    facts = {
        "device_path": spec.address.location,
        "device_uuid": spec.volume_id,
        "device_nguid": spec.volume_id,
        # not by the page cache: where it has a part of what is read, Linux 6.1 answers with an error
        "buffered_io": "0",
    }
    right = all(configfs.read(f"{namespace}/{name}") == value for name, value in facts.items())
    if right and configfs.read(f"{namespace}/enable") == "1":
        return False
    configfs.settle(f"{namespace}/enable", "0")  # nothing can be changed while it serves
    for name, value in facts.items():
        configfs.settle(f"{namespace}/{name}", value)
    configfs.settle(f"{namespace}/enable", "1")
    return True


def _let_in(path: str, spec: ExportSpec) -> bool:
    """See that exactly the hosts that hold the volume may connect; whether it was not so."""
    facts = (each.get("nqn") for each in spec.connectors)
    wanted = {host for host in facts if isinstance(host, str) and _NQN.fullmatch(host)}
    present = set(configfs.names(f"{path}/allowed_hosts"))
    for host in present - wanted:
        _shut_out(path, host)
    for host in wanted - present:
        for tries in range(_TRIES):
            configfs.make(f"{_ROOT}/hosts/{host}")
            try:
                configfs.link(f"{path}/allowed_hosts/{host}", f"{_ROOT}/hosts/{host}")
                break
            except StorageError:  # somebody else has just removed the host, who held his last volume
                if tries == _TRIES - 1:
                    raise
    return present != wanted


def _shut_out(path: str, host: str) -> None:
    """Let a host connect no more, and forget it when it may use nothing and has no key."""
    configfs.unlink(f"{path}/allowed_hosts/{host}")
    if not configfs.read(f"{_ROOT}/hosts/{host}/dhchap_key"):
        try:
            os.rmdir(f"{_ROOT}/hosts/{host}")
        except OSError:
            return  # another subsystem lets it in


def _remove(path: str) -> None:
    """Remove a subsystem, from whatever is left of it; a missing one is success."""
    if not os.path.isdir(path):
        return
    for port in _ports():
        configfs.unlink(f"{port}/subsystems/{os.path.basename(path)}")
    for host in configfs.names(f"{path}/allowed_hosts"):
        _shut_out(path, host)
    for number in configfs.names(f"{path}/namespaces"):
        configfs.settle(f"{path}/namespaces/{number}/enable", "0")
        configfs.remove(f"{path}/namespaces/{number}")
    configfs.remove(path)


# -- ports: one for each address, for all volumes ---------------------------------------------------------


def _ports() -> list[str]:
    return [f"{_ROOT}/ports/{number}" for number in configfs.names(f"{_ROOT}/ports")]


def _facts(address: str, port: int) -> dict[str, str]:
    return {
        "addr_trtype": "tcp",
        "addr_adrfam": "ipv6" if ":" in address else "ipv4",
        "addr_trsvcid": str(port),
        "addr_traddr": address,  # the last: what has one is whole
    }


def _number(address: str, port: int) -> int:
    """The number that a port of ours has, if nobody else took it."""
    return 1 + zlib.crc32(f"{address} {port}".encode()) % _PORTS


def _find_port(address: str, port: int) -> str | None:
    """Directory of the port that has this address, whoever made it."""
    facts = _facts(address, port)
    return next(
        (p for p in _ports() if all(configfs.read(f"{p}/{name}") == facts[name] for name in facts)), None
    )


def _port(address: str, port: int) -> str:
    """Directory of the port with this address, made where there is none."""
    found = _find_port(address, port)
    number = _number(address, port)
    while found is None:
        path = f"{_ROOT}/ports/{number}"
        if configfs.make(path) or not configfs.read(f"{path}/addr_traddr"):  # a new one, or half made
            for name, value in _facts(address, port).items():
                configfs.settle(f"{path}/{name}", value)
        found = _find_port(address, port)
        number = number % _PORTS + 1
    return found
