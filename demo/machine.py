"""Boots the guest from an exported volume in QEMU, and listens to its serial console."""

from __future__ import annotations

import re
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from commands import attempt, environment
from failure import DemoFailed
from iscsi import Export

GUEST = "LAPILLI-GUEST: "
_KVM_LIMIT = 2.0  # seconds for a boot sector; where KVM works it takes a tenth of that
_HELLO_LIMIT = {"kvm": 20.0, "tcg": 120.0}
_END_LIMIT = 60.0
# mov al, 0x20; out 0xf4, al; hlt: ends QEMU with status 0x20 * 2 + 1
_PROBE = b"\xb0\x20\xe6\xf4\xf4\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa"
_PROBE_STATUS = 65


@dataclass(frozen=True)
class Words:
    """What the guest said from its start to its end."""

    accelerator: str
    lines: list[str]

    def token(self, verb: str) -> str:
        """The content of the file that the guest `wrote` or `found`."""
        for line in self.lines:
            match = re.fullmatch(rf"{GUEST}{verb} /data/hello: (\S+)", line)
            if match:
                return match.group(1)
        raise DemoFailed(f"the guest has not {verb} its file")


def _machine(accel: str) -> tuple[str, ...]:
    """The QEMU command for a machine without any disk."""
    plain = ("-nodefaults", "-display", "none", "-no-reboot")
    return ("qemu-system-x86_64", "-machine", f"q35,accel={accel}", "-cpu", "max", "-m", "256", *plain)


@cache
def accelerator() -> str:
    """`kvm` where it runs a boot sector in good time, else `tcg`: on some hosts KVM is there, but hangs."""
    with tempfile.NamedTemporaryFile(prefix="lapilli-demo-") as disk:
        disk.write(_PROBE)
        disk.flush()
        probe = f"file={disk.name},format=raw,if=ide,snapshot=on"
        device = "isa-debug-exit,iobase=0xf4,iosize=1"
        words = (*_machine("kvm"), "-device", device, "-drive", probe)
        try:
            works = attempt(*words, seconds=_KVM_LIMIT).returncode == _PROBE_STATUS
        except DemoFailed:
            works = False
    return "kvm" if works else "tcg"


def boot(export: Export, show: Callable[[str], None]) -> Words:
    """Boot the guest, show what it says, wait until it powers off."""
    first = accelerator()
    try:
        return Words(first, _boot(export, first, show))
    except _NoHello:
        if first == "tcg":
            raise
    show("(no greeting under KVM: once more in software emulation)")
    return Words("tcg", _boot(export, "tcg", show))


class _NoHello(DemoFailed):
    """The guest never greeted, so it has not written to its disk and may be booted again."""


def _boot(export: Export, accel: str, show: Callable[[str], None]) -> list[str]:
    with export.secret_object() as secret:
        command = [
            *(*_machine(accel), "-serial", "stdio"),
            *("-object", secret, "-blockdev", f"{export.options()},node-name=root"),
            *("-device", "virtio-blk-pci,drive=root,bootindex=0"),
        ]
        guest = subprocess.Popen(
            command,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            lines = _listen(guest, _HELLO_LIMIT[accel], show)
            status = guest.wait(_END_LIMIT)
        finally:
            guest.kill()
            guest.wait(_END_LIMIT)
    if status:
        raise (DemoFailed if _greeted(lines) else _NoHello)(
            f"QEMU ended with {status}: {' / '.join(lines[-5:])}"
        )
    return lines


def _listen(guest: subprocess.Popen[bytes], hello: float, show: Callable[[str], None]) -> list[str]:
    """Lines of the serial console until it closes; `_NoHello` when the guest does not greet in time."""
    assert guest.stdout is not None  # noqa: S101 - it is a pipe
    lines: list[str] = []
    rest = b""
    deadline = time.monotonic() + hello
    with selectors.DefaultSelector() as ready:
        ready.register(guest.stdout, selectors.EVENT_READ)
        while True:
            if not ready.select(max(0.0, deadline - time.monotonic())):
                raise (DemoFailed if _greeted(lines) else _NoHello)(
                    f"the guest fell silent: {' / '.join(lines[-5:]) or 'not a word'}"
                )
            part = guest.stdout.read1(4096)  # type: ignore[attr-defined]
            *whole, rest = (rest + part).split(b"\n")
            for line in (_printable(raw) for raw in (whole if part else [rest])):
                if line:
                    lines.append(line)
                    show(line)
                if line.startswith(GUEST):
                    deadline = time.monotonic() + _END_LIMIT
            if not part:
                return lines


def _greeted(lines: list[str]) -> bool:
    return any(line.startswith(GUEST) for line in lines)


def _printable(raw: bytes) -> str:
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", raw.decode("utf-8", "replace"))
    return "".join(letter for letter in text if letter.isprintable()).strip()


def file_in(partition: Path, name: str) -> str:
    """Content of a small file in an ext4 file system, read without mounting it."""
    done = attempt("debugfs", "-R", f"cat {name}", partition, seconds=30)
    if done.returncode or not done.stdout:
        raise DemoFailed(f"no file {name} in the file system: {done.stderr.strip()}")
    return done.stdout.strip()
