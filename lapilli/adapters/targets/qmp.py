"""QEMU's machine protocol: commands as lines of JSON over a Unix socket."""

from __future__ import annotations

import json
import os
import socket
import struct
from types import TracebackType
from typing import Any

from lapilli.errors import StorageError

_PATIENCE = 30.0  # seconds for an answer
GREETING = 2.0  # seconds for the first words of a daemon


class QmpRefusal(StorageError):
    """The daemon refused a command."""


class Qmp:
    """One connection to a daemon's monitor, the socket `name` in `directory`."""

    def __init__(self, directory: str, name: str, greeting: float = GREETING) -> None:
        """Raises `StorageError` when none answers there within `greeting` seconds."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(greeting)
        try:
            self._connect(directory, name)
            self._stream = self._socket.makefile("rw", encoding="utf-8")
            self._receive("QMP")
            self.ask("qmp_capabilities")
            self._socket.settimeout(_PATIENCE)
        except BaseException:
            self._socket.close()
            raise

    def _connect(self, directory: str, name: str) -> None:
        try:
            # by the open directory, since the whole path may be longer than a socket's address can be
            place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self._socket.connect(f"/proc/self/fd/{place}/{name}")
            finally:
                os.close(place)
        except OSError as problem:
            raise StorageError(f"The storage daemon does not answer: {problem.strerror}.") from None

    @property
    def peer(self) -> int:
        """Process id of the daemon."""
        size = struct.calcsize("3i")
        told = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return int(struct.unpack("3i", told)[0])

    def ask(self, command: str, **arguments: Any) -> Any:
        """What a command returns. Raises `QmpRefusal`; `StorageError` when the daemon is gone."""
        try:
            self._stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
            self._stream.flush()
        except OSError as problem:
            raise StorageError(f"The storage daemon broke off: {problem}.") from None
        return self._receive("return")

    def _receive(self, wanted: str) -> Any:
        """The next message of that kind; events are passed over."""
        while True:
            try:
                line = self._stream.readline()
            except OSError as problem:
                raise StorageError(f"The storage daemon does not answer: {problem}.") from None
            if not line:
                raise StorageError("The storage daemon broke off.")
            told = json.loads(line)
            if "error" in told:
                raise QmpRefusal(f"The storage daemon refused: {told['error'].get('desc')}")
            if wanted in told:
                return told[wanted]

    def __enter__(self) -> Qmp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._stream.close()
