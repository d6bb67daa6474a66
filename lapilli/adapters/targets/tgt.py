"""iSCSI exports by Debian's user-space target daemon, tgtd.

Everything is asked of tgtd over its management socket: no process is started per request, and no secret is
ever an argument of one. A target is opened to initiators (`ALL` in its access list)
as the last step of an export and closed as the first of any change of its account: tgtd lets everybody in
where a target has no account, so a half made one must not be reachable.

tgtd keeps exports in memory only and does not tell passwords. So LUN 0 (a controller without storage) holds
our notes: its serial number a digest of the account, so that a changed password is noticed; its identity the
back end that owns the target, since back ends of one host share a tgtd and each restores its own exports.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import time
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lapilli.adapters.targets import iscsi, strays
from lapilli.adapters.targets.holding import held
from lapilli.adapters.targets.tgt_wire import (
    ACCOUNT,
    BIND,
    DELETE,
    DEVICE,
    NEW,
    NOTHING,
    PATIENCE,
    PORTAL,
    SYSTEM,
    TARGET,
    UNBIND,
    UPDATE,
    ShownTarget,
    TgtRefusal,
    Unit,
    Wire,
    answers_within,
)
from lapilli.config import option
from lapilli.errors import StorageError
from lapilli.events import emit
from lapilli.ports.target import ExportSpec

_LUN = 1
_HOLD = 0.01  # seconds that tgtd's threads are held for an answer
_SETTLE = 0.003
_TRIES = 100
_FIRST_TID, _TIDS = 1, 32000
_OWNER = "owner-"


@dataclass(frozen=True)
class TgtOptions:
    """Options of the `tgt` target."""

    target_ip_address: str = option("127.0.0.1", "Address at which initiators reach the target.")
    target_secondary_ip_addresses: list[str] = option(
        [], "Further addresses at which initiators reach it: paths for multipath."
    )
    target_port: int = option(3260, "TCP port of the target.", minimum=1, maximum=65535)
    target_prefix: str = option("iqn.2010-10.org.openstack:", "Prefix of target names.")
    tgt_control_port: int = option(
        0, "tgtd's control port; 0: a number derived from the state directory.", minimum=0, maximum=32767
    )
    tgt_manage_daemon: bool = option(True, "Start tgtd when none answers at the control port.")


class Tgt:
    """Target on tgtd."""

    kinds = ("file", "block")
    serves = True

    def __init__(self, options: TgtOptions, *, name: str, state_dir: str) -> None:
        self.name = name
        self._options = options
        self._state_dir = os.path.abspath(state_dir)
        control = options.tgt_control_port or 1 + zlib.crc32(self._state_dir.encode()) % 32000
        self._control = control
        self._wire = Wire(control)
        self._owner = _OWNER + hashlib.sha256(name.encode()).hexdigest()[:24]

    # -- the daemon ---------------------------------------------------------------------------------------

    @property
    def portal(self) -> str:
        """`address:port`, an IPv6 address in brackets."""
        return self._portals[0]

    @property
    def _portals(self) -> list[str]:
        options = self._options
        return iscsi.portals(
            [options.target_ip_address, *options.target_secondary_ip_addresses], options.target_port
        )

    def start(self) -> None:
        """Adopt the tgtd that answers, or start one. Raises `StorageError` when there is none."""
        if self._wire.answers():
            self._check_portal()
            self._add_portals()
            return
        if not self._options.tgt_manage_daemon:
            raise StorageError(f"No iSCSI target daemon answers at control port {self._control}.")
        os.makedirs(self._state_dir, exist_ok=True)
        # two services of one state directory may start at once
        with open(self._file("lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._wire.answers():
                self._spawn()
        self._add_portals()

    def _add_portals(self) -> None:
        """Let the tgtd that we started listen at the secondary addresses too. Raises `StorageError`."""
        if len(self._portals) == 1 or self._managed_pid() is None:
            return
        there = self._wire.portals()
        for portal in self._portals:
            if portal in there:
                continue
            try:
                self._wire.ask(f"listen at {portal}", PORTAL, NEW, text=f"portal={portal}")
            except TgtRefusal:
                if portal not in self._wire.portals():  # another service's start may have been faster
                    raise

    def _check_portal(self) -> None:
        """Raises `StorageError` when the tgtd that we started listens elsewhere: nobody would reach us."""
        pid = self._managed_pid()
        if pid is not None and not _listens(pid, self._options.target_port):
            raise StorageError(
                f"The tgtd of this state directory does not serve {self.portal}. Back ends that share a "
                "state directory share one portal: give them the same target_port."
            )

    def stop(self) -> None:
        """End a tgtd that we started and that serves nothing."""
        pid = self._managed_pid()
        if pid is None or self._wire.targets():
            return
        self._wire.ask("stop", SYSTEM, DELETE)  # it ignores SIGTERM
        deadline = time.monotonic() + 5
        while _is_tgtd(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)  # it serves nothing
            _reap(pid)
            time.sleep(0.02)
        self._tidy()

    def _spawn(self) -> None:
        """Start tgtd in a session of its own: guests' disks outlive this service."""
        program = shutil.which("tgtd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if program is None:
            raise StorageError("tgtd cannot be started: it is not installed (Debian's package is tgt).")
        command = [program, "-f", "--iscsi", f"portal={self.portal}", "-C", str(self._control)]
        # tgtd takes a unit's file for number 0 while it reopens it, see `resize`: what is there must take no
        # writes, and so may not be the usual read-and-write null device
        with open(os.devnull, "rb") as nothing, open(self._file("log"), "ab") as log:
            try:
                child = subprocess.Popen(
                    command, stdin=nothing, stdout=log, stderr=log, cwd="/", start_new_session=True
                )
            except OSError as problem:
                raise StorageError(f"tgtd cannot be started: {problem.strerror}.") from problem
        with open(self._file("pid"), "w") as file:
            file.write(f"{child.pid}\n")
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and child.poll() is None:
            if _listens(child.pid, self._options.target_port):
                emit("target.daemon.started", target=self.name, portal=self.portal)
                return
            if self._wire.answers():  # it listens by then, or never will: it goes on without a portal
                deadline = min(deadline, time.monotonic() + 0.5)
            time.sleep(0.02)
        child.kill()
        child.wait()
        self._tidy()
        rights = "" if os.geteuid() == 0 else " It needs root; without, use target_helper = local."
        told = _last_line(self._file("log"))
        raise StorageError(f"tgtd did not start to listen at {self.portal}: {told}{rights}")

    def _tidy(self) -> None:
        for path in (self._file("pid"), *self._wire.leftovers):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _managed_pid(self) -> int | None:
        with contextlib.suppress(OSError, ValueError), open(self._file("pid")) as file:
            pid = int(file.read())
            return pid if pid == self._wire.peer() else None
        return None

    def _file(self, kind: str) -> str:
        return os.path.join(self._state_dir, f"tgtd.{kind}")

    # -- exports ------------------------------------------------------------------------------------------

    def prepare(self, volume_id: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Name, portal and LUN; a stable user name with a random password."""
        data: dict[str, Any] = {"iqn": self._iqn(volume_id), "portal": self.portal, "lun": _LUN}
        if len(self._portals) > 1:
            data["portals"] = self._portals
        return data, iscsi.account(volume_id)

    def export(self, spec: ExportSpec) -> None:
        """Serve the volume; every part that already is as wanted is left alone."""
        iqn, path = iscsi.name(spec, _LUN), _path(spec)
        while True:
            found = self._wire.find(iqn)
            if found is None:
                found = self._new_target(iqn)
            try:
                self._complete(found, spec, path)
                return
            except TgtRefusal as refusal:
                if refusal.number != TgtRefusal.NO_TARGET:
                    raise
                # tgtd was restarted, or somebody else removed the target: look again

    def _new_target(self, iqn: str) -> ShownTarget:
        """A fresh target under a free number; another process may take that number before us."""
        while True:
            taken = {one.tid: one for one in self._wire.targets()}
            for one in taken.values():
                if one.iqn == iqn:
                    return one
            start = zlib.crc32(iqn.encode())
            tids = (_FIRST_TID + (start + step) % _TIDS for step in range(_TIDS))
            tid = next((number for number in tids if number not in taken), None)
            if tid is None:
                raise StorageError("The iSCSI target daemon has no target number left.")
            try:
                self._wire.ask("make a target", TARGET, NEW, tid, text=f"targetname={iqn}")
            except TgtRefusal as refusal:
                if refusal.number not in TgtRefusal.EXISTS:
                    raise
            else:
                return ShownTarget(tid, iqn, units={0: Unit()})

    def _complete(self, found: ShownTarget, spec: ExportSpec, path: str) -> None:
        """Bring one target from any state to the wanted one."""
        wire, tid, user = self._wire, found.tid, spec.secret["username"]
        if found.units[0].identity != self._owner:
            wire.ask("mark the target", DEVICE, UPDATE, tid, 0, text=f"targetOps scsi_id={self._owner}")
        unit = found.units.get(_LUN)
        if unit is None or unit.path != path:
            wire.close_to_all(found)
            if unit is not None:
                self._remove_unit(tid)
            wire.ask("open the volume", DEVICE, NEW, tid, _LUN, text=f"path={path}")
            unit = Unit(path, online=True)
        if (unit.identity, unit.serial, unit.thin) != (_identity(spec), spec.volume_id, True):
            # initiators tell disks apart by these; tgtd's own are made of the target number, which changes
            text = (
                f"scsi_id={_identity(spec)},scsi_sn={spec.volume_id},vendor_id=LAPILLI,product_id=VOLUME,"
                "thin_provisioning=1"
            )
            wire.ask("describe the volume", DEVICE, UPDATE, tid, _LUN, text=f"targetOps {text}")
        if not unit.online:
            wire.ask("reopen the volume", DEVICE, UPDATE, tid, _LUN, text=f"targetOps path={path}")
        digest = _digest(spec.secret)
        if found.accounts != [user] or found.units[0].serial != digest:
            self._set_account(found, spec.secret, digest)
        if not found.ready:
            wire.ask("enable the target", TARGET, UPDATE, tid, text="state=ready")
        if "ALL" not in found.open_to:
            wire.open_to_all(found)

    def _set_account(self, found: ShownTarget, secret: dict[str, str], digest: str) -> None:
        """Make the account anew and bind it alone; sessions that stand are not asked for it again."""
        wire, tid, user = self._wire, found.tid, secret["username"]
        wire.close_to_all(found)
        for stranger in found.accounts:
            if stranger != user:
                wire.ask("unbind an account", ACCOUNT, UNBIND, tid, text=f"user={stranger}")
        wire.forget_account(user)
        text = f"user={user},password={secret['password']}"
        wire.ask("make the account", ACCOUNT, NEW, text=text)
        wire.ask("bind the account", ACCOUNT, BIND, tid, text=f"user={user}")
        wire.ask("mark the account", DEVICE, UPDATE, tid, 0, text=f"targetOps scsi_sn={digest}")

    def _remove_unit(self, tid: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._wire.ask("remove the logical unit", DEVICE, DELETE, tid, _LUN)
                return
            except TgtRefusal as refusal:
                if refusal.number == TgtRefusal.NO_LUN:
                    return
                if time.monotonic() > deadline:  # commands are being carried out
                    raise
                time.sleep(0.02)

    def unexport(self, volume_id: str, data: dict[str, Any]) -> None:
        """Remove target and account; sessions are cut off."""
        found = self._wire.find(data.get("iqn") or self._iqn(volume_id))
        if found is not None:
            self._remove(found)
        # an export that was cut off may have left an account without a target
        self._wire.forget_account(self.prepare(volume_id)[1]["username"])

    def _remove(self, found: ShownTarget) -> None:
        self._wire.close_to_all(found)  # else a session could come back without an account
        for user in found.accounts:
            self._wire.forget_account(user)
        try:
            self._wire.ask("remove the target", TARGET, DELETE, found.tid, force=True)
        except TgtRefusal as refusal:
            if refusal.number != TgtRefusal.NO_TARGET:
                raise

    def resize(self, spec: ExportSpec, length: int) -> None:
        """Make tgtd measure the file again: READ CAPACITY then tells the new size, and sessions stand.

        tgtd takes a size only when it opens a file. One request that takes the unit offline and opens its
        path again is carried out between two commands of the initiators, so none meets the unit offline. But
        tgtd's worker threads read and write meanwhile, and one that starts a command between the close and
        the open uses file number 0, which fails as a medium error in the guest. Hence they are held for that
        moment. Measured with tgt 1.0.85, resizes that failed a command of two initiators that never pause:
        1 of 7 without holding; 0 of 2,800 with it. With 64 commands outstanding and no idle processor
        tgtd often waits for a lock of a held thread: then 1 of 40 still did.

        What does not do: deleting the unit and adding it (commands in between get "no such unit"), taking
        the target offline (commands in between are never answered), the unit offline for longer (kernel
        initiators try again, QEMU's own gives the guest an error).
        """
        found = self._wire.find(spec.chosen("iqn"))
        unit = found.units.get(_LUN) if found else None
        if found is None or unit is None:
            return
        text = f"targetOps online=0,path={_path(spec)}"
        daemon = self._wire.peer() if found.connected else None
        if daemon is None or not self._ask_held(daemon, found.tid, text):
            self._wire.ask("reopen the volume", DEVICE, UPDATE, found.tid, _LUN, text=text)
        emit("target.resized", target=self.name, volume_id=spec.volume_id, length=length)

    def _ask_held(self, daemon: int, tid: int, text: str) -> bool:
        """Update the unit while tgtd's worker threads are held; False when it could not be done so."""
        for _ in range(_TRIES):
            with held(daemon) as still:
                if not still:
                    return False
                # without answers, initiators soon have nothing more to send. A held thread may have a lock
                # that tgtd waits for to take their commands: let it go, and catch a better moment
                time.sleep(_SETTLE)
                probe = self._wire.send(*NOTHING)
                lively = answers_within(probe, _HOLD)
                if lively:
                    asked = self._wire.send(DEVICE, UPDATE, tid, _LUN, text=text)
                    answers_within(asked, 10 * _HOLD)
            answers_within(probe, PATIENCE)
            probe.close()
            if lively:
                self._wire.receive(asked, "reopen the volume")
                return True
            time.sleep(_SETTLE * secrets.randbelow(3))
        return False

    def exports(self) -> Sequence[str]:
        """Ids of the volumes with a target of this back end that initiators may use."""
        return sorted(
            one.iqn[len(self._iqn("")) :]
            for one in self._targets(self._owner)
            if _LUN in one.units and one.open_to
        )

    def _targets(self, *owners: str) -> list[ShownTarget]:
        return [
            one
            for one in self._wire.targets()
            if one.iqn.startswith(self._iqn("")) and 0 in one.units and _owner(one) in owners
        ]

    def restore(self, wanted: Iterable[ExportSpec], keep: Collection[str] = ()) -> Sequence[str]:
        """Make tgtd serve exactly `wanted`; one volume's fault does not keep the others from guests."""
        self.start()
        mended = []
        # nobody's are those of exports that were cut off at once; who makes one now makes it again
        present = {one.iqn: one for one in self._targets(self._owner, "")}
        for spec in wanted:
            found = present.pop(spec.data.get("iqn", ""), None)
            try:
                if found is not None and _is_as_wanted(found, spec):
                    continue
                self.export(spec)
            except StorageError as problem:
                mended.append(f"Volume {spec.volume_id} could not be exported: {problem.message}")
            else:
                what = "exported again" if found is None else "export completed"
                mended.append(f"Volume {spec.volume_id}: {what}.")
        nobodys = present.keys() - {self._iqn(each) for each in keep}
        return mended + strays.removed(
            nobodys, lambda iqn: self.unexport(iqn[len(self._iqn("")) :], {"iqn": iqn})
        )

    def connection_info(
        self, spec: ExportSpec, connector: dict[str, Any], *, access_mode: str
    ) -> dict[str, Any]:
        """The iSCSI form of os-brick; the CHAP secret is part of it."""
        return iscsi.connection_info(spec, connector, access_mode, _LUN)

    def _iqn(self, volume_id: str) -> str:
        return f"{self._options.target_prefix}volume-{volume_id}"


def _owner(found: ShownTarget) -> str:
    """The back end that has marked a target, if any: tgtd gives it an identity of its own at first."""
    identity = found.units[0].identity
    return identity if identity.startswith(_OWNER) else ""


def _is_as_wanted(found: ShownTarget, spec: ExportSpec) -> bool:
    unit, zero = found.units.get(_LUN), found.units.get(0)
    return (
        unit == Unit(_path(spec), spec.volume_id, _identity(spec), online=True, thin=True)
        and zero is not None
        and zero.serial == _digest(spec.secret)
        and found.accounts == [spec.secret["username"]]
        and found.open_to == ["ALL"]
        and found.ready
    )


def _digest(secret: dict[str, str]) -> str:
    """Fits a serial number (36 characters); the password is random, so this does not give it away."""
    return hashlib.sha256(f"{secret['username']}:{secret['password']}".encode()).hexdigest()[:32]


def _identity(spec: ExportSpec) -> str:
    """tgtd makes the disk's world wide name of the last 31 characters, if they are hexadecimal digits."""
    return spec.volume_id.replace("-", "")


def _path(spec: ExportSpec) -> str:
    if spec.address.kind not in ("file", "block"):
        raise StorageError("The iSCSI target daemon serves raw files and block devices only.", retry=False)
    if "," in spec.address.location:
        raise StorageError("The iSCSI target daemon cannot serve a path that has a comma.", retry=False)
    return spec.address.location


def _listens(pid: int, port: int) -> bool:
    """Whether a process listens on a TCP port (somebody else may have taken it)."""
    sockets = set()
    for file in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            sockets.add(os.readlink(f"/proc/{pid}/fd/{file}"))
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError), open(table) as lines:
            for columns in (line.split() for line in lines):
                # local address, state (0A: listening), inode
                if (
                    columns[1].endswith(f":{port:04X}")
                    and columns[3] == "0A"
                    and f"socket:[{columns[9]}]" in sockets
                ):
                    return True
    return False


def _is_tgtd(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return "(tgtd) Z" not in file.read()
    except OSError:
        return False


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _last_line(path: str) -> str:
    with open(path, errors="replace") as file:
        lines = file.read()[-2000:].split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
