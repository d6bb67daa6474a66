"""tgtd's management socket: requests in its own binary form, and the text in which it shows what it serves.

One request and one answer per connection. The form is that of `usr/tgtadm.h` of tgt 1.0.85: integers as the
machine has them, then a text of `key=value` parts.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from lapilli.errors import StorageError

SYSTEM, TARGET, DEVICE, PORTAL, ACCOUNT = 0, 1, 2, 3, 7
NEW, DELETE, SHOW, BIND, UNBIND, UPDATE = 0, 1, 2, 3, 4, 5
NOTHING = (DEVICE, SHOW)  # there is no such request: tgtd answers at once, and in one piece
PATIENCE = 30.0  # seconds for an answer: tgtd opens the backing file before it gives one
_REQUEST = struct.Struct("<II64sIiQQIIIIII")
_ANSWER = struct.Struct("<II")  # an error number and the length
_NO_LUN_GIVEN = 0xFFFFFFFFFFFFFFFF


class TgtRefusal(StorageError):
    """tgtd refused a request; `number` is its reason."""

    NO_TARGET, NO_LUN, NO_USER = 4, 5, 15
    EXISTS = frozenset({9, 10, 12, 14})

    def __init__(self, deed: str, number: int) -> None:
        super().__init__(f"The iSCSI target daemon could not {deed} (reason {number}).")
        self.number = number


@dataclass
class Unit:
    """A logical unit as tgtd shows it."""

    path: str = ""
    serial: str = ""
    identity: str = ""
    online: bool = False
    thin: bool = False


@dataclass
class ShownTarget:
    """A target as tgtd shows it."""

    tid: int
    iqn: str
    units: dict[int, Unit] = field(default_factory=dict)
    accounts: list[str] = field(default_factory=list)
    open_to: list[str] = field(default_factory=list)
    ready: bool = True
    connected: bool = False


class Wire:
    """tgtd's management socket."""

    def __init__(self, control: int) -> None:
        self._path = f"/var/run/tgtd/socket.{control}"
        self.leftovers = (self._path, f"{self._path}.lock")

    def ask(
        self,
        deed: str,
        mode: int,
        op: int,
        tid: int = -1,
        lun: int = _NO_LUN_GIVEN,
        *,
        text: str = "",
        force: bool = False,
    ) -> str:
        """The text that answers one request. Raises `TgtRefusal`; `StorageError` when tgtd is not there."""
        return self.receive(self.send(mode, op, tid, lun, text=text, force=force), deed)

    def send(
        self,
        mode: int,
        op: int,
        tid: int = -1,
        lun: int = _NO_LUN_GIVEN,
        *,
        text: str = "",
        force: bool = False,
    ) -> socket.socket:
        """Send one request; its answer comes by the socket. Raises `StorageError`."""
        body = text.encode() + b"\0" if text else b""
        length = _REQUEST.size + len(body)
        head = _REQUEST.pack(mode, op, b"iscsi", length, tid, 0, lun, 0, 0, 0, 0, 0, int(force))
        channel: socket.socket | None = None
        try:
            channel = self._connect()
            channel.sendall(head + body)
        except OSError as problem:
            if channel is not None:
                channel.close()
            raise _silence(problem) from None
        return channel

    def receive(self, channel: socket.socket, deed: str) -> str:
        """The answer to a request that was sent. Raises `TgtRefusal`; `StorageError` when tgtd is gone."""
        try:
            with channel:
                answer = b"".join(iter(lambda: channel.recv(1 << 18), b""))
        except OSError as problem:
            raise _silence(problem) from None
        if len(answer) < _ANSWER.size:
            raise StorageError(f"The iSCSI target daemon broke off when asked to {deed}.")
        number, _ = _ANSWER.unpack_from(answer)
        if number:
            raise TgtRefusal(deed, number)
        return answer[_ANSWER.size :].rstrip(b"\0").decode(errors="replace")

    def _connect(self) -> socket.socket:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        channel.settimeout(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                channel.connect(self._path)
                return channel
            except BlockingIOError:  # too many are waiting already
                if time.monotonic() > deadline:
                    channel.close()
                    raise
                time.sleep(0.005)
            except OSError:
                channel.close()
                raise

    def answers(self) -> bool:
        """Whether a daemon is there."""
        with contextlib.suppress(StorageError):
            self.ask("answer", SYSTEM, SHOW)
            return True
        return False

    def peer(self) -> int | None:
        """Process id of the daemon.

        Asked with a request: a connection that ends without one tgtd judges by the last error of any other,
        and where that was "try again" it keeps it, and polls it for ever.
        """
        with contextlib.suppress(StorageError), self.send(*NOTHING) as channel:
            credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            with contextlib.suppress(StorageError):
                self.receive(channel, "answer")
            return int(struct.unpack("3i", credentials)[0])
        return None

    def portals(self) -> set[str]:
        """Where it listens."""
        return set(
            re.findall(r"^Portal: (.+),\d+$", self.ask("show its portals", PORTAL, SHOW), re.MULTILINE)
        )

    def targets(self) -> list[ShownTarget]:
        """Everything that tgtd serves."""
        return list(_parse(self.ask("show its targets", TARGET, SHOW)))

    def find(self, iqn: str) -> ShownTarget | None:
        """The target of that name."""
        shown = self.ask("show its targets", TARGET, SHOW)
        # only its own part is parsed: thousands of targets make megabytes of text
        match = re.search(rf"^Target \d+: {re.escape(iqn)}\n(?: .*\n)*", shown + "\n", re.MULTILINE)
        return next(_parse(match.group()), None) if match else None

    def close_to_all(self, target: ShownTarget) -> None:
        """Let no initiator log in any more; sessions that stand are left."""
        for address in target.open_to:
            text = f"initiator-address={address}"
            self.ask("close the target", TARGET, UNBIND, target.tid, text=text)
        target.open_to.clear()

    def open_to_all(self, target: ShownTarget) -> None:
        """Let initiators log in who know the account."""
        try:
            self.ask("open the target", TARGET, BIND, target.tid, text="initiator-address=ALL")
        except TgtRefusal as refusal:
            if refusal.number not in TgtRefusal.EXISTS:
                raise

    def forget_account(self, user: str) -> None:
        """Delete an account, which unbinds it everywhere; a missing one is success."""
        try:
            self.ask("delete an account", ACCOUNT, DELETE, text=f"user={user}")
        except TgtRefusal as refusal:
            if refusal.number != TgtRefusal.NO_USER:
                raise


def _parse(shown: str) -> Iterator[ShownTarget]:
    """Targets from tgtd's indented text."""
    target: ShownTarget | None = None
    unit = Unit()
    part = ""
    for line in shown.splitlines():
        depth = len(line) - len(line.lstrip(" "))
        name, _, value = line.strip().partition(": ")
        if depth == 0 and name.startswith("Target "):
            if target is not None:
                yield target
            target = ShownTarget(int(name.split()[1]), value)
        elif target is None:
            continue
        elif depth == 4:
            part = name
        elif part.startswith("System") and name == "State":
            target.ready = value == "ready"
        elif part.startswith("I_T nexus") and depth == 8:
            target.connected = True
        elif part.startswith("Account"):
            target.accounts.append(name.removesuffix(" (outgoing)"))
        elif part.startswith("ACL"):
            target.open_to.append(name)
        elif name == "LUN":
            unit = target.units[int(value)] = Unit()
        elif part.startswith("LUN"):
            _note(unit, name, value)
    if target is not None:
        yield target


def _note(unit: Unit, name: str, value: str) -> None:
    if name == "Backing store path":
        unit.path = value
    elif name == "SCSI SN":
        unit.serial = value
    elif name == "SCSI ID":
        unit.identity = value
    elif name == "Online":
        unit.online = value == "Yes"
    elif name == "Thin-provisioning":
        unit.thin = value == "Yes"


def answers_within(channel: socket.socket, seconds: float) -> bool:
    return bool(select.select([channel], [], [], seconds)[0])


def _silence(problem: OSError) -> StorageError:
    return StorageError(f"The iSCSI target daemon does not answer: {problem.strerror or problem}.")
