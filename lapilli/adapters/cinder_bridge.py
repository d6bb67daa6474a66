"""The process in which a back end's driver of Cinder runs, and calls of its methods.

What driver and target of one back end share: there is one process for both. It is started at the first call,
and anew when it has died; it ends when its socket closes, which is when this process ends, however it ends.
A call that takes longer than its time limit is given up here while it goes on there: as long as it does,
another one for the same object is refused, since Cinder's drivers do not expect two at once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, BinaryIO

import msgspec

from lapilli.adapters import cinder_host
from lapilli.config import option, whole_section
from lapilli.errors import Busy, ConfigError, StorageError, Unsupported
from lapilli.ports.driver import Notes

_LENGTH = struct.Struct(">I")
_START = 120.0  # seconds
CONTEXT: dict[str, Any] = {"$": "context"}
_OWN = ("volume_driver", "target_helper", "cinder_")  # beginnings of options that are not the driver's


@dataclass(frozen=True)
class CinderOptions:
    """Options of a back end whose driver is one of Cinder's; all others of its section are that driver's."""

    cinder_driver: str | None = option(
        None, "Class of the driver, such as cinder.volume.drivers.rbd.RBDDriver."
    )
    cinder_python: str | None = option(
        None, "Interpreter of the environment in which Cinder is installed; default: the service's own."
    )
    cinder_config: str | None = option(
        None, "A cinder.conf to be read before: for options outside the driver's section."
    )
    cinder_find_by: str | None = option(
        None,
        "Word of a reference by which the driver finds a volume of a given name (source-name): the back end "
        "itself is then asked what it has. Default: the service's own notes are believed.",
    )
    cinder_timeout: int = option(900, "Seconds that a call of the driver may take.", minimum=1)
    volume_backend_name: str | None = option(
        None, "Name that volume types match; default: the section's name."
    )
    section: Mapping[str, str] = whole_section()


class Note(msgspec.Struct):
    """What is remembered of a volume or a snapshot.

    `live` is the id by which the driver knows it; `tries` are ids that it was tried to be made under, with
    the size in GiB, 0 for what was dropped; `kept` is what the driver has told, by that id; `adopting` is the
    id by which it is to know what is being taken over; `connections` are those that were let in, without
    an `info` those that may have been. Of a snapshot also the `volume`, and that one's id at the driver
    (`origin`). `born` tells it from the note of another that had this id before.
    """

    live: str | None = None
    size: int = 0
    tries: dict[str, int] = {}
    kept: dict[str, dict[str, Any]] = {}
    adopting: str | None = None
    pool: str = ""
    volume: str | None = None
    origin: str | None = None
    connections: dict[str, dict[str, Any]] = {}
    born: str = ""

    @classmethod
    def of(cls, plain: Mapping[str, Any] | None) -> Note | None:
        """A note, from what is stored."""
        return None if plain is None else msgspec.convert(plain, cls)

    @classmethod
    def fresh(cls) -> Note:
        """A note of an object that has none."""
        return cls(born=str(uuid.uuid4()))

    def connected(self) -> Sequence[str]:
        """Keys of those connections of which the driver has said that they are let in."""
        return [key for key, each in self.connections.items() if each["info"] is not None]

    def plain(self) -> dict[str, Any]:
        """What is stored."""
        made: dict[str, Any] = msgspec.to_builtins(self)
        return made


class Answer(msgspec.Struct):
    """What came of a call: its result, and what is kept of each record afterwards."""

    result: Any
    kept: dict[str, dict[str, Any]]

    def of(self, alias: str) -> dict[str, Any]:
        """What is to be kept of an object: the record, and what the driver has returned for it."""
        update = self.result if isinstance(self.result, dict) else {}
        fields = (*cinder_host.KEPT, *cinder_host.TABLES)
        return {**self.kept.get(alias, {}), **{key: update[key] for key in fields if key in update}}


class Bridge:
    """One back end's driver of Cinder, in its process."""

    def __init__(self, options: CinderOptions, *, name: str, state_dir: str) -> None:
        self.name, self.options = name, options
        self.notes: Notes | None = None  # whoever puts the back end together gives them
        self.facts: dict[str, Any] = {}  # what the driver's process told of itself when it started
        self._state_dir = state_dir
        self._starting = threading.Lock()
        self._child: _Child | None = None

    def remembered(self) -> Notes:
        """What is kept of the driver's objects."""
        if self.notes is None:
            raise StorageError(f"Back end {self.name} has nowhere to keep what Cinder's driver tells.")
        return self.notes

    def start(self) -> None:
        """See that the process runs. Raises `ConfigError` where it never will, `StorageError` else."""
        with self._starting:
            if self._child is None or not self._child.lives():
                self._child = None
                self._child = self._spawn()

    def _spawn(self) -> _Child:
        if self.options.cinder_driver is None:
            raise ConfigError(f"[{self.name}] cinder_driver: volume_driver = cinder needs it.")
        child = _Child(self.options.cinder_python or sys.executable, self.name)
        try:
            self.facts = child.begin(self._settings())
        except BaseException:
            child.end()
            raise
        return child

    def _settings(self) -> dict[str, Any]:
        own = {key: value for key, value in self.options.section.items() if not key.startswith(_OWN)}
        own.setdefault("volume_backend_name", self.options.volume_backend_name or self.name)
        known = self.remembered().all("volume")
        return {
            "driver": self.options.cinder_driver,
            "name": self.name,
            "host": self.host_of(""),
            "cluster": self.remembered().backend if self.remembered().shared else None,
            "config": self.options.cinder_config,
            "options": own,
            "directory": os.path.join(self._state_dir, f"cinder-{self.name}"),
            "volumes": [each for note in known.values() for each in told(note)],
        }

    def volume(self, identifier: str, note: Note, alias: str, pool: str = "", **more: Any) -> dict[str, Any]:
        """A volume, as the driver is told of it."""
        size = note.size if alias == note.live else note.tries.get(alias) or note.size
        return {
            "$": "volume",
            "id": alias,
            "size": size,
            "host": self.host_of(pool or note.pool),
            "kept": note.kept.get(alias, {}),
            "attachments": [note.connections[key]["connector"] for key in note.connected()],
            "status": "in-use" if note.connected() else "available",
            **self.remembered().facts(identifier),
            **more,
        }

    def host_of(self, pool: str) -> str:
        """What Cinder calls the host of a volume."""
        return self.remembered().backend + (f"#{pool}" if pool else "")

    def call(self, method: str, *arguments: Any) -> Answer:
        """Call a method of the driver; once more in a new process where the old one has died of something.

        Raises `StorageError`, `Busy`, `Unsupported`, and `Ended` where it may have been done half.
        """
        try:
            return self._call(method, arguments)
        except Ended:
            if method not in _AGAIN:
                raise
        return self._call(method, arguments)

    def _call(self, method: str, arguments: Sequence[Any]) -> Answer:
        self.start()
        child = self._child
        if child is None:
            raise Ended
        return child.call(method, arguments, float(self.options.cinder_timeout))

    def name_of(self, kind: str, alias: str) -> str:
        """What Cinder calls an object at the back end."""
        self.start()
        return str(self.facts[f"{kind}_name"]) % alias


def told(note: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """The volumes of a note, as the driver's process is told of them."""
    live = note.get("live")
    return [{"id": live, "size": note["size"], "kept": note["kept"].get(live, {})}] if live else []


_bridges: dict[tuple[str, str], Bridge] = {}


def bridge_of(options: CinderOptions, *, name: str, state_dir: str) -> Bridge:
    """The bridge of a back end: driver and target of one section share it."""
    key = (os.path.abspath(state_dir), name)
    if key not in _bridges or _bridges[key].options != options:
        _bridges[key] = Bridge(options, name=name, state_dir=key[0])
    return _bridges[key]


class _Child:
    """A started process, and the calls that it has not answered yet."""

    def __init__(self, python: str, name: str) -> None:
        self._log = logging.getLogger(f"lapilli.cinder.{name}")
        self._name = name
        self._sending = threading.Lock()
        self._waiting: dict[int, tuple[Future[dict[str, Any]], str | None]] = {}
        self._table = threading.Lock()
        self._last = 0
        self._secrets: list[str] = []
        self.alive = True
        ours, theirs = socket.socketpair()
        self._socket = ours
        command = [python, "-I", "-W", "ignore", cinder_host.__file__, str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                start_new_session=True,
            )
        except OSError as problem:
            ours.close()
            raise ConfigError(
                f"[{name}] cinder_python = {python!r}: it cannot be started: {problem.strerror}."
            ) from problem
        finally:
            theirs.close()
        self._ready: Future[dict[str, Any]] = Future()
        for work in (self._read, self._listen):
            threading.Thread(target=work, name=f"cinder-{name}", daemon=True).start()

    def lives(self) -> bool:
        """Whether it can be called; its end may not have been told yet."""
        return self.alive and self._process.poll() is None

    def begin(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Tell the configuration; what the driver tells of itself. Raises `StorageError`, `ConfigError`."""
        self._secrets = cinder_host.secrets_of(settings["options"])
        self._send(settings)
        try:
            answer = self._ready.result(_START)
        except TimeoutError:
            raise StorageError(
                f"Cinder's driver of back end {self._name} has not started within {_START:.0f} seconds."
            ) from None
        if answer["ready"] is None:
            raise _refusal(self._name, answer["error"])
        ready: dict[str, Any] = answer["ready"]
        self._log.info("Cinder %s runs the driver of back end %s", ready["release"], self._name)
        return ready

    def call(self, method: str, arguments: Sequence[Any], seconds: float) -> Answer:
        """Raises `StorageError`, `Busy`, `Unsupported`."""
        changed = _changed(method, arguments)
        answer: Future[dict[str, Any]] = Future()
        with self._table:
            others = [other for _, other in self._waiting.values()]
            if changed is not None and changed in others and method != _LETS_IN:
                raise Busy("The back end is still busy with an earlier call for it.")
            self._last += 1
            number = self._last
            self._waiting[number] = (answer, changed)
        self._send({"id": number, "call": method, "with": arguments})
        try:
            found = answer.result(seconds)
        except TimeoutError:
            raise StorageError(f"The back end has not answered within {seconds:.0f} seconds.") from None
        if "error" in found:
            raise _plain(found["error"])
        return Answer(found["result"], found["kept"])

    def _send(self, message: Any) -> None:
        text = json.dumps(message).encode()
        try:
            with self._sending:
                self._socket.sendall(_LENGTH.pack(len(text)) + text)
        except OSError:
            self.end()
            raise Ended from None

    def _read(self) -> None:
        """Hand out what the process tells, until it ends, be it in the middle of a message."""
        try:
            with contextlib.suppress(OSError), self._socket.makefile("rb") as stream:
                while (message := _received(stream)) is not None:
                    self._take(message)
        finally:
            self.end()

    def _take(self, message: dict[str, Any]) -> None:
        if "log" in message:
            level, name, text = message["log"]
            self._log.log(level, "%s", text, extra={"fields": {"source": name}})
        elif "secrets" in message:
            self._secrets = message["secrets"]
            with contextlib.suppress(Ended):
                self._send({})
        elif "ready" in message:
            self._ready.set_result(message)
        else:
            with self._table:
                answer, _ = self._waiting.pop(message["id"])
            answer.set_result(message)

    def _listen(self) -> None:
        """Log what the process writes: it should not, but libraries do."""
        if self._process.stdout is not None:
            for line in self._process.stdout:
                text = line.decode(errors="replace").rstrip()
                self._log.info("%s", cinder_host.masked(text, self._secrets))

    def end(self) -> None:
        """Let go of the process; whoever waits for it is told."""
        with self._table:
            was, self.alive = self.alive, False
            waiting, self._waiting = self._waiting, {}
        if was:
            self._process.kill()
            self._process.wait()
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
        gone = {"kinds": ["Ended"], "text": Ended().message}
        for answer, _ in waiting.values():
            answer.set_result({"error": gone})
        if not self._ready.done():
            self._ready.set_result({"ready": None, "error": gone})


def _received(stream: BinaryIO) -> dict[str, Any] | None:
    """The next message; None where no whole one comes any more."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    body = stream.read(length)
    if len(body) < length:
        return None
    message: dict[str, Any] = json.loads(body)
    return message


def _changed(method: str, arguments: Sequence[Any]) -> str | None:
    """The object that a call changes: the first of those that it is about."""
    if method in _READING:
        return None
    return next((each["id"] for each in arguments if isinstance(each, dict) and "id" in each), None)


_READING = frozenset(
    "get_volume_stats manage_existing_get_size manage_existing_snapshot_get_size get_manageable_volumes "
    "get_manageable_snapshots validate_connector".split()
)
# it may begin beside another call, since it also tells where a volume is; but until it ends nobody is let out
_LETS_IN = "initialize_connection"
# what may be called twice: what only reads, and what Cinder's drivers take as done when it is
_AGAIN = _READING | frozenset(
    "delete_volume delete_snapshot initialize_connection terminate_connection create_export ensure_export "
    "remove_export revert_to_snapshot".split()
)
_BUSY = {"VolumeIsBusy", "SnapshotIsBusy", "VolumeInUse", "SnapshotInUse", "VolumeAttached"}
_MISSING = {"VolumeNotFound", "SnapshotNotFound", "ManageExistingInvalidReference", "ImageNotFound"}
_FINAL = {
    "Invalid",
    "InvalidInput",
    "InvalidConnectorException",
    "ManageExistingVolumeTypeMismatch",
    "ManageExistingAlreadyManaged",
}


class Ended(StorageError):
    """The driver's process has died in the middle of a call."""

    def __init__(self) -> None:
        super().__init__("The process of the back end's driver has ended.")


class Missing(StorageError):
    """The back end has no such object."""

    code = "storage"
    retry = False


def _plain(error: Mapping[str, Any]) -> StorageError:
    """An exception of the driver, in our words."""
    kinds, text = set(error["kinds"]), str(error["text"]).strip()
    text = text if text.endswith((".", "!", "?")) else f"{text}."
    if kinds == {"Ended"}:
        return Ended()
    if "NotImplementedError" in kinds:
        return Unsupported("The driver of this back end cannot do that.")
    if kinds and "CinderException" not in kinds:  # not meant for anybody's eyes
        return StorageError(f"The back end's driver failed ({error['kinds'][0]}); see the service's log.")
    if kinds & _BUSY:
        return Busy(text)
    if kinds & _MISSING:
        return Missing(text)
    return StorageError(text, retry=False if kinds & _FINAL else None)


def _refusal(name: str, error: Mapping[str, Any]) -> StorageError | ConfigError:
    """Why the driver has not started."""
    kinds, text = set(error["kinds"]), str(error["text"])
    if "ModuleNotFoundError" in kinds and "cinder'" in text:
        return ConfigError(
            f"[{name}] cinder_python: this interpreter has no Cinder: {text}. Install the extra `cinder`, or "
            "name another interpreter."
        )
    if "ImportError" in kinds or "ConfigFileParseError" in kinds or "ConfigFileValueError" in kinds:
        return ConfigError(f"[{name}] the driver of Cinder cannot be loaded: {text}")
    return StorageError(f"Cinder's driver of back end {name} does not start: {text}")
