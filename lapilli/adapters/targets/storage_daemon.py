"""One qemu-storage-daemon, which serves one volume over NBD: its directory, its life, its block nodes.

The directory derives from the volume's id and holds all there is to know: `export.json` (what is served, no
secret), `keys` (the pre-shared key, mode 0600, or links to certificates), `monitor` (the daemon's QMP socket)
and `alive`, a file that the daemon holds locked for as long as it lives. Whoever changes something holds the
directory locked.

A volume is a chain of nodes: what holds the bytes, raw, and two throttles, for limits of the sum and for
those of reads and writes. QEMU measures a chain when it is opened and keeps the size of an export, so a
volume that has grown gets a new chain, which takes the place of the old one when no client is connected.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lapilli.adapters import qemu
from lapilli.adapters.targets import dh
from lapilli.adapters.targets.qmp import GREETING, Qmp, QmpRefusal
from lapilli.errors import StorageError
from lapilli.ports.driver import BlockAddress

PROGRAM = "qemu-storage-daemon"
_START = 30.0  # seconds until the daemon serves: it may have to reach a cluster first
_QUIT = 5.0  # seconds for the daemon to finish what it does, then it is killed
_TICK = 0.005
_CERTIFICATES = ("ca-cert.pem", "ca-crl.pem", "server-cert.pem", "server-key.pem")  # as QEMU wants them
_GROUPS = {"total": ("total",), "split": ("read", "write")}  # QEMU refuses both kinds in one throttle
_MOST = 10**15  # QEMU's largest limit


class Daemon:
    """The daemon of one directory, running or not."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextlib.contextmanager
    def held(self, *, make: bool = False) -> Iterator[bool]:
        """Nobody else changes anything meanwhile; False when there is no such directory."""
        while True:
            if make:
                self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                if make:
                    continue
                yield False
                return
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not self._is_here(lock):
                    continue  # it was removed while we waited
                yield True
                return
            finally:
                os.close(lock)

    def _is_here(self, opened: int) -> bool:
        try:
            return os.path.samestat(os.fstat(opened), os.stat(self.directory))
        except FileNotFoundError:
            return False

    # -- what it serves -----------------------------------------------------------------------------------

    @property
    def told(self) -> dict[str, Any] | None:
        """What it was started with."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            found: dict[str, Any] = json.loads((self.directory / "export.json").read_text())
            return found
        return None

    def is_alive(self) -> bool:
        """Whether it runs."""
        try:
            lock = os.open(self.directory / "alive", os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def put_key(self, secret: Mapping[str, str]) -> None:
        """Keep the pre-shared key where the daemon reads it at each handshake."""
        self._put("keys.psk", f"{secret['username']}:{secret['password']}\n")
        self._put(dh.FILE, dh.FFDHE3072)

    def put_certificates(self, place: Path) -> None:
        """Keep links to a server's certificates where the daemon reads them when it starts."""
        fresh = self._keys() / "new"
        for name in (*_CERTIFICATES, dh.FILE):
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(place / name)
            fresh.rename(self._keys() / name)
        if not (place / dh.FILE).exists():
            self._put(dh.FILE, dh.FFDHE3072)

    def _keys(self) -> Path:
        keys = self.directory / "keys"
        keys.mkdir(mode=0o700, exist_ok=True)
        return keys

    def _put(self, name: str, text: str) -> None:
        path, fresh = self._keys() / name, self._keys() / "new"
        with contextlib.suppress(FileNotFoundError):
            if path.read_text() == text:
                return
        fresh.unlink(missing_ok=True)
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        fresh.rename(path)

    # -- its life -----------------------------------------------------------------------------------------

    def start(
        self,
        address: BlockAddress,
        told: Mapping[str, Any],
        arguments: Sequence[str],
        limits: Mapping[str, int],
    ) -> None:
        """Start it, in a session of its own: guests' disks outlive this service. Raises `StorageError`."""
        fresh = self.directory / "export.new"
        fresh.write_text(json.dumps(told))
        fresh.rename(self.directory / "export.json")
        for stale in ("monitor", "grown", "daemon.pid"):
            with contextlib.suppress(FileNotFoundError):
                (self.directory / stale).unlink()
        groups = [
            word
            for group in _GROUPS
            for word in (
                "--object",
                json.dumps({"qom-type": "throttle-group", "id": group, "limits": _limits(group, limits)}),
            )
        ]
        export = {
            "type": "nbd",
            "id": "export-1",
            "node-name": "disk-1",
            "name": told["export"],
            "writable": True,
        }
        command = [PROGRAM, *groups, "--blockdev", json.dumps(_chain(address, 1)), *arguments]
        command += ["--export", json.dumps(export), "--pidfile", "daemon.pid"]
        command += ["--chardev", "socket,id=monitor,path=monitor,server=on,wait=off"]
        command += ["--monitor", "chardev=monitor"]
        child = self._spawn(command)
        deadline, greeting = time.monotonic() + _START, 0.1
        while child.poll() is None and time.monotonic() < deadline:
            # written when all is set up. QEMU may never greet who connects to the monitor before, and now and
            # then who connects just then: the next one is greeted
            if (self.directory / "daemon.pid").exists():
                with contextlib.suppress(StorageError), Qmp(str(self.directory), "monitor", greeting):
                    return
                greeting = min(2 * greeting, GREETING)
            time.sleep(_TICK)
        child.kill()
        child.wait()
        raise StorageError(f"The NBD server cannot serve the volume: {self._last_words(address)}")

    def _spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        alive = os.open(self.directory / "alive", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the child keeps it when we have closed it
            with open(os.devnull, "rb") as nothing, open(self.directory / "daemon.log", "wb") as log:
                return subprocess.Popen(
                    command,
                    stdin=nothing,
                    stdout=log,
                    stderr=log,
                    cwd=self.directory,
                    env={**os.environ, "LC_ALL": "C"},
                    pass_fds=(alive,),
                    start_new_session=True,
                )
        except FileNotFoundError:
            raise StorageError(
                f"{PROGRAM} cannot be started: it is not installed (Debian's package is qemu-system-common)."
            ) from None
        except OSError as problem:
            raise StorageError(f"{PROGRAM} cannot be started: {problem.strerror}.") from problem
        finally:
            os.close(alive)

    def _last_words(self, address: BlockAddress) -> str:
        said = (self.directory / "daemon.log").read_text(errors="replace")[-2000:]
        said = said.replace(address.location, os.path.basename(address.location))
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it said nothing."

    def end(self) -> None:
        """End it, cutting off its clients. Raises `StorageError`."""
        if not self.is_alive():
            return
        with contextlib.suppress(StorageError), Qmp(str(self.directory), "monitor") as monitor:
            monitor.ask("quit")
            if self._ends_within(_QUIT):
                return
        # it hangs, or has only just been started, by a process that is gone
        deadline = time.monotonic() + _QUIT
        while time.monotonic() < deadline:
            for pid in self._processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self._ends_within(4 * _TICK):
                return
        raise StorageError("The NBD server does not end: what holds the volume's bytes hangs.")

    def _ends_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.is_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(_TICK)
        return True

    def _processes(self) -> list[int]:
        """Daemons whose working directory this is; also one that does not answer, and was never noted."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (entry / "comm").read_text().strip() == PROGRAM[:15] and self._works_here(entry):
                    found.append(int(entry.name))
        return found

    def _works_here(self, process: Path) -> bool:
        return os.path.samestat(os.stat(process / "cwd"), os.stat(self.directory))

    def remove(self) -> None:
        """Remove the directory of one that does not run."""
        shutil.rmtree(self.directory, ignore_errors=True)

    # -- while it runs ------------------------------------------------------------------------------------

    def _monitor(self) -> Qmp:
        """Its monitor, once it is there: who started it may have been killed since. Raises `StorageError`."""
        deadline = time.monotonic() + _START
        while True:
            try:
                return Qmp(str(self.directory), "monitor")
            except StorageError:
                if not self.is_alive() or time.monotonic() > deadline:
                    raise
            time.sleep(_TICK)

    def limit(self, limits: Mapping[str, int]) -> None:
        """Keep these limits from now on; clients stay connected."""
        with self._monitor() as monitor:
            for group in _GROUPS:
                monitor.ask(
                    "qom-set", path=f"/objects/{group}", property="limits", value=_limits(group, limits)
                )

    @property
    def has_grown(self) -> bool:
        """Whether it has yet to serve a new size."""
        return (self.directory / "grown").exists()

    def grow(self, address: BlockAddress) -> bool:
        """Measure the volume anew; False when clients are connected, who keep the old size until they go."""
        (self.directory / "grown").touch()
        with self._monitor() as monitor:
            nodes, served = _nodes(monitor), _served(monitor)
            for node in nodes.keys() - {served}:
                monitor.ask("blockdev-del", **{"node-name": node})
            latest = _number(served) if served else 0
            monitor.ask("blockdev-add", **_chain(address, latest + 1))
        return self.settle()

    def settle(self) -> bool:
        """Serve the newest chain if no client is connected to an older one; True when it is served."""
        told = self.told
        with self._monitor() as monitor:
            nodes, served = _nodes(monitor), _served(monitor)
            newest = max(nodes, key=_number)
            if served is not None and nodes[served] != nodes[newest]:
                try:
                    monitor.ask("block-export-del", id=f"export-{_number(served)}", mode="safe")
                except QmpRefusal:
                    return False
                served = None
            if served is None and told is not None:
                monitor.ask("block-export-add", **_export(_number(newest), told["export"]))
                served = newest
            for node in nodes.keys() - {served}:
                _remove_node(monitor, node)
        (self.directory / "grown").unlink()
        return True


def _chain(address: BlockAddress, number: int) -> dict[str, Any]:
    """`BlockdevOptions` of the volume behind its throttles."""
    options = qemu.blockdev(address)
    if address.kind in ("file", "block"):
        # the service itself sees to it that nobody else writes; it reads, too, while a guest is connected
        options["file"]["locking"] = "off"
    if address.kind == "block":
        options["file"]["cache"] = {"direct": True}
    for group in _GROUPS:
        options = {"driver": "throttle", "throttle-group": group, "file": options}
    options["node-name"] = f"disk-{number}"
    return _with_discard(options)


def _with_discard(options: dict[str, Any]) -> dict[str, Any]:
    below = options.get("file")
    told = {**options, "discard": "unmap"}
    if isinstance(below, dict):
        told["file"] = _with_discard(below)
    return told


def _export(number: int, name: str) -> dict[str, Any]:
    """`BlockExportOptions` of a chain."""
    told = {"type": "nbd", "name": name, "writable": True}
    return {**told, "id": f"export-{number}", "node-name": f"disk-{number}"}


def _limits(group: str, limits: Mapping[str, int]) -> dict[str, int]:
    """QEMU's words for one throttle. A burst counts only beside a limit, and is no less than it."""
    told = {}
    for what in _GROUPS[group]:
        for unit, word in (("bytes", "bps"), ("iops", "iops")):
            limit = min(limits.get(f"{what}_{unit}_sec", 0), _MOST)
            burst = min(limits.get(f"{what}_{unit}_sec_max", 0), _MOST)
            told[f"{word}-{what}"] = limit
            told[f"{word}-{what}-max"] = max(burst, limit) if limit and burst else 0
    return told


def _number(node: str) -> int:
    return int(node.partition("-")[2])


def _nodes(monitor: Qmp) -> dict[str, int]:
    """Names of the chains, and their bytes."""
    found = monitor.ask("query-named-block-nodes", flat=True)
    return {
        each["node-name"]: each["image"]["virtual-size"]
        for each in found
        if each["node-name"].startswith("disk-")
    }


def _served(monitor: Qmp) -> str | None:
    for each in monitor.ask("query-block-exports"):
        if not each["shutting-down"]:
            return str(each["node-name"])
    return None


def _remove_node(monitor: Qmp, node: str) -> None:
    """Remove a chain; an export that was just taken from it may hold it for a moment."""
    deadline = time.monotonic() + _QUIT
    while True:
        try:
            monitor.ask("blockdev-del", **{"node-name": node})
            return
        except QmpRefusal:
            if time.monotonic() > deadline:
                raise
            time.sleep(_TICK)
