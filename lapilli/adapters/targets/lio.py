"""iSCSI by the kernel's own target, LIO.

A volume is a backstore and a target with one portal group; initiators are let in by name and CHAP account. A
group is enabled last and disabled first, so a half made one cannot be reached; it would refuse everybody
anyway: the kernel asks for an account from the beginning. A backstore's name says which back end it belongs
to: back ends of one host share the kernel's target, and each restores its own exports.

What is made is made by rtslib; what is taken apart is taken apart here, from whatever is left of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lapilli.adapters.targets import configfs, iscsi, strays
from lapilli.config import option
from lapilli.errors import ConfigError, InvalidInput, StorageError
from lapilli.events import emit
from lapilli.ports.target import ExportSpec

_ROOT = f"{configfs.ROOT}/target"
_MODULES = ("target_core_mod", "target_core_iblock", "target_core_file", "iscsi_target_mod")
_KINDS = {"block": "iblock", "file": "fileio"}  # kinds of addresses, and backstores for them
_DATABASE = "/etc/target"  # where the kernel keeps what initiators have reserved for longer than its own life
_LUN = 0
_INDEXES, _CANDIDATES = 1 << 20, 8  # numbers that a backstore may have; how many of them one volume may
_ATTRIBUTES = {"authentication": "1", "generate_node_acls": "0"}
_PREFIX = re.compile(r"iqn\.\d{4}-\d\d\.[a-z0-9.:-]+")


@dataclass(frozen=True)
class LioOptions:
    """Options of the `lio` target."""

    target_ip_address: str = option("127.0.0.1", "Address at which initiators reach the target.")
    target_secondary_ip_addresses: list[str] = option([], "Further addresses, for multipath.")
    target_port: int = option(3260, "TCP port of the target.", minimum=1, maximum=65535)
    target_prefix: str = option("iqn.2010-10.org.openstack:", "Prefix of target names.")


class Lio:
    """Target in the kernel."""

    serves = True
    kinds = ("file", "block")

    def __init__(self, options: LioOptions, *, name: str, state_dir: str) -> None:  # noqa: ARG002 - as all
        self.name = name
        self._options = options
        self._owner = f"lapilli-{hashlib.sha256(name.encode()).hexdigest()[:8]}-"
        if not _PREFIX.fullmatch(options.target_prefix):
            raise ConfigError(
                f"[{name}] target_prefix = {options.target_prefix!r}: the beginning of an iSCSI name, in "
                "small letters, expected, such as iqn.2010-10.org.openstack:"
            )

    def start(self) -> None:
        """See that the kernel has its target, and Python its library. Raises `ConfigError`."""
        _rtslib()
        configfs.load("lio", _MODULES, "target")
        os.makedirs(f"{_DATABASE}/pr", mode=0o700, exist_ok=True)
        with _told("be prepared"):
            _rtslib().RTSRoot()  # tells the kernel of that directory, before it serves anything
        configfs.make(f"{_ROOT}/iscsi")

    def stop(self) -> None:
        """The kernel goes on serving."""

    # -- exports ------------------------------------------------------------------------------------------

    def prepare(self, volume_id: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Name, portals and LUN; a stable user name with a random password."""
        options = self._options
        addresses = [options.target_ip_address, *options.target_secondary_ip_addresses]
        ways = iscsi.portals(addresses, options.target_port)
        data = {"iqn": self._iqn(volume_id), "portal": ways[0], "portals": ways, "lun": _LUN}
        return data, iscsi.account(volume_id)

    def export(self, spec: ExportSpec) -> None:
        """Serve the volume to its initiators; every part that already is as wanted is left alone."""
        self._complete(spec)

    def _complete(self, spec: ExportSpec) -> bool:
        """Bring the export from any state to the wanted one; whether anything was missing."""
        size = _size(spec)
        path = _target(iscsi.name(spec, _LUN))
        group = f"{path}/tpgt_1"
        store, served = self._find_store(spec.volume_id), _linked(f"{group}/lun/lun_{_LUN}")
        right = store if store is not None and _is_right(store, spec) else None
        stale = {each for each in (store, served) if each is not None and each != right}
        if stale:
            _take_apart(path)
        for each in stale:
            if each.endswith(spec.volume_id):  # else it is somebody else's
                _remove_store(each)
        store = right or self._make_store(spec, size)
        changed = right is None or _measure(store, size)
        with contextlib.suppress(StorageError):  # what cannot discard does not
            configfs.settle(f"{store}/attrib/emulate_tpu", "1")
        with _told("serve the volume"):
            changed |= _make_group(group, store, spec)
        changed |= _let_in(group, spec)
        return changed | configfs.settle(f"{group}/enable", "1")

    def _make_store(self, spec: ExportSpec, size: int) -> str:
        rtslib, name = _rtslib(), self._owner + spec.volume_id
        common = {"dev": spec.address.location, "wwn": spec.volume_id}
        with _told("open the volume"):
            number = _free_number(_KINDS[spec.address.kind], name)
            if spec.address.kind == "block":
                made = rtslib.BlockStorageObject(name, index=number, **common)
            else:  # initiators see a cache that they must flush, and flush it
                made = rtslib.FileIOStorageObject(name, index=number, size=size, write_back=True, **common)
        return str(made.path)

    def unexport(self, volume_id: str, data: dict[str, Any]) -> None:
        """Remove target and backstore; sessions are cut off."""
        _take_apart(_target(data.get("iqn") or self._iqn(volume_id)))
        store = self._find_store(volume_id)
        if store is not None:
            _remove_store(store)
        for kind in _KINDS.values():  # empty places of what was cut off
            for number in _numbers(self._owner + volume_id):
                _is_free(f"{_ROOT}/core/{kind}_{number}")

    def resize(self, spec: ExportSpec, length: int) -> None:
        """Initiators see the new size when they look again; sessions stand."""
        store = self._find_store(spec.volume_id)
        if store is not None:
            _measure(store, length)
            emit("target.resized", target=self.name, volume_id=spec.volume_id, length=length)

    def exports(self) -> Sequence[str]:
        """Ids of the volumes with a backstore of this back end and a target that initiators may use."""
        return sorted(
            volume_id
            for volume_id in self._own()
            if configfs.read(f"{_target(self._iqn(volume_id))}/tpgt_1/enable") == "1"
        )

    def _own(self) -> Iterator[str]:
        for hba in configfs.names(f"{_ROOT}/core"):
            if hba.partition("_")[0] in _KINDS.values():
                for name in configfs.names(f"{_ROOT}/core/{hba}"):
                    if name.startswith(self._owner):
                        yield name.removeprefix(self._owner)

    def _find_store(self, volume_id: str) -> str | None:
        name = self._owner + volume_id
        paths = (f"{_ROOT}/core/{kind}_{n}/{name}" for kind in _KINDS.values() for n in _numbers(name))
        return next((path for path in paths if os.path.isdir(path)), None)

    def restore(self, wanted: Iterable[ExportSpec], keep: Collection[str] = ()) -> Sequence[str]:
        """Make the kernel serve exactly `wanted`; one volume's fault does not keep the others from guests."""
        self.start()
        mended = []
        present = set(self._own())
        for spec in wanted:
            what = "export completed" if spec.volume_id in present else "exported again"
            present.discard(spec.volume_id)
            try:
                if self._complete(spec):
                    mended.append(f"Volume {spec.volume_id}: {what}.")
            except StorageError as problem:
                mended.append(f"Volume {spec.volume_id} could not be exported: {problem.message}")
        return mended + strays.removed(present - set(keep), lambda each: self.unexport(each, {}))

    def connection_info(
        self, spec: ExportSpec, connector: dict[str, Any], *, access_mode: str
    ) -> dict[str, Any]:
        """The iSCSI form of os-brick; the CHAP secret is part of it."""
        told = iscsi.connection_info(spec, connector, access_mode, _LUN)
        if not iscsi.is_initiator(connector["initiator"]):
            raise InvalidInput("The connector's 'initiator' is not the name of an iSCSI initiator.")
        return told

    def _iqn(self, volume_id: str) -> str:
        return f"{self._options.target_prefix}volume-{volume_id}"


def _rtslib() -> Any:
    try:
        return importlib.import_module("rtslib_fb")
    except ImportError as problem:
        raise ConfigError(
            f"target_helper = lio: {problem.name} is missing; install the extra `lio`, or Debian's package "
            "python3-rtslib-fb."
        ) from problem


@contextlib.contextmanager
def _told(deed: str) -> Iterator[None]:
    try:
        yield
    except (_rtslib().RTSLibError, OSError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else re.sub(r"/\S+", "it", str(problem))
        raise StorageError(f"The kernel's iSCSI target could not {deed}: {why}.") from problem


def _target(iqn: str) -> str:
    return f"{_ROOT}/iscsi/{iqn}"


def _numbers(name: str) -> list[int]:
    start = zlib.crc32(name.encode())
    return [(start + step) % _INDEXES for step in range(_CANDIDATES)]


# -- backstores -------------------------------------------------------------------------------------------


def _size(spec: ExportSpec) -> int:
    """Bytes of a file. Raises `StorageError` for what cannot be served, before anything is changed."""
    if spec.address.kind not in _KINDS:
        raise StorageError("The kernel's iSCSI target serves files and block devices only.", retry=False)
    if "," in spec.address.location:
        raise StorageError("The kernel's iSCSI target cannot serve a path that has a comma.", retry=False)
    try:
        return os.stat(spec.address.location).st_size
    except OSError as problem:
        raise StorageError(f"Volume {spec.volume_id} cannot be served: {problem.strerror}.") from problem


def _free_number(kind: str, name: str) -> int:
    """A number for a backstore that no other has."""
    for number in _numbers(name):
        if _is_free(f"{_ROOT}/core/{kind}_{number}"):
            return number
    raise StorageError("The kernel's iSCSI target has no number left for the volume.")


def _is_free(place: str) -> bool:
    """Whether nobody has the place of a backstore; one that was left empty is removed."""
    if any(os.path.isdir(f"{place}/{each}") for each in configfs.names(place)):
        return False
    configfs.remove(place)
    return True


def _is_right(store: str, spec: ExportSpec) -> bool:
    """Whether a backstore is of this volume, and whole."""
    serial = configfs.read(f"{store}/wwn/vpd_unit_serial") or ""
    return (
        os.path.basename(os.path.dirname(store)).partition("_")[0] == _KINDS[spec.address.kind]
        and configfs.read(f"{store}/enable") == "1"
        and configfs.read(f"{store}/udev_path") == spec.address.location
        and serial.rpartition(": ")[2] == spec.volume_id
    )


def _measure(store: str, size: int) -> bool:
    """Tell the kernel a file's size, which it does not look for; it sees a device's by itself."""
    told = re.search(r"File: .*?\sSize: (\d+)", configfs.read(f"{store}/info") or "")
    if told is None or int(told[1]) == size or "/fileio_" not in store:
        return False
    configfs.write(f"{store}/control", f"fd_dev_size={size}")
    return True


def _remove_store(store: str) -> None:
    configfs.remove(store)
    configfs.remove(os.path.dirname(store))


# -- targets ----------------------------------------------------------------------------------------------


def _linked(directory: str) -> str | None:
    """Where the link in a directory leads."""
    for name in configfs.names(directory):
        if os.path.islink(f"{directory}/{name}"):
            return os.path.realpath(f"{directory}/{name}")
    return None


def _make_group(path: str, store: str, spec: ExportSpec) -> bool:
    """See that the target has the volume as its unit, and its portals; whether it had not."""
    rtslib = _rtslib()
    changed = not os.path.isdir(path)
    group = rtslib.TPG(rtslib.Target(rtslib.FabricModule("iscsi"), iscsi.name(spec, _LUN)), 1)
    for name, value in _ATTRIBUTES.items():
        changed |= configfs.settle(f"{path}/attrib/{name}", value)
    unit = f"{path}/lun/lun_{_LUN}"
    if _linked(unit) is None:
        configfs.remove(unit)
        kind = rtslib.BlockStorageObject if "/iblock_" in store else rtslib.FileIOStorageObject
        index = int(os.path.dirname(store).rpartition("_")[2])
        rtslib.LUN(group, _LUN, storage_object=kind(os.path.basename(store), index=index))
        changed = True
    present, wanted = (
        set(configfs.names(f"{path}/np")),
        set(spec.data.get("portals", [spec.chosen("portal")])),
    )
    for portal in wanted - present:
        address, _, port = portal.rpartition(":")
        rtslib.NetworkPortal(group, address, int(port))
    for portal in present - wanted:
        configfs.remove(f"{path}/np/{portal}")
    return changed or present != wanted


def _let_in(group: str, spec: ExportSpec) -> bool:
    """See that just the initiators that hold the volume are let in, by its account; whether it was not so.

    Not by rtslib, which writes their names in small letters; the kernel compares them as they are.
    """
    wanted, present = iscsi.initiators(spec), set(configfs.names(f"{group}/acls"))
    for name in present - wanted:
        _shut_out(f"{group}/acls/{name}")
    changed = present != wanted
    for name in sorted(wanted):
        path = f"{group}/acls/{name}"
        configfs.make(path)
        changed |= configfs.settle(f"{path}/auth/userid", spec.secret["username"])
        changed |= configfs.settle(f"{path}/auth/password", spec.secret["password"])
        if _linked(f"{path}/lun_{_LUN}") is None:
            configfs.make(f"{path}/lun_{_LUN}")
            configfs.link(f"{path}/lun_{_LUN}/volume", f"{group}/lun/lun_{_LUN}")
            changed = True
    return changed


def _shut_out(path: str) -> None:
    """Remove an initiator's entry, which ends its sessions."""
    for unit in (name for name in configfs.names(path) if name.startswith("lun_")):
        _unlink_all(f"{path}/{unit}")
        configfs.remove(f"{path}/{unit}")
    configfs.remove(path)


def _unlink_all(directory: str) -> None:
    for name in configfs.names(directory):
        if os.path.islink(f"{directory}/{name}"):
            configfs.unlink(f"{directory}/{name}")


def _take_apart(path: str) -> None:
    """Remove a target, from whatever is left of it; a missing one is success."""
    for name in (each for each in configfs.names(path) if each.startswith("tpgt_")):
        group = f"{path}/{name}"
        with contextlib.suppress(StorageError):  # half made, it may not know that yet
            configfs.settle(f"{group}/enable", "0")
        for initiator in configfs.names(f"{group}/acls"):
            _shut_out(f"{group}/acls/{initiator}")
        for unit in configfs.names(f"{group}/lun"):
            _unlink_all(f"{group}/lun/{unit}")
            configfs.remove(f"{group}/lun/{unit}")
        for portal in configfs.names(f"{group}/np"):
            configfs.remove(f"{group}/np/{portal}")
        configfs.remove(group)
    if os.path.isdir(path):
        configfs.remove(path)
