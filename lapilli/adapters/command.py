"""The one way external programs run: an argument list, a time limit, resource limits, and one kind of error.

Never a shell, never a secret in an argument (anybody on the machine can read those), always the C locale.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lapilli.errors import StorageError

_TAIL = 4096
_TICK = 1.0  # seconds
_PATH = re.compile(r"(?:^|=)(/[^,]+)")  # an argument that is one, or options as QEMU takes them
_USERINFO = re.compile(r"//[^/@\s]+@")


class Failed(StorageError):
    """A program ended with an exit status that is not accepted."""

    def __init__(self, message: str, status: int, complaint: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.complaint = complaint  # the end of what it said of that, as it said it


@dataclass(frozen=True)
class MemoryFile:
    """A file in memory, which programs are handed; it is gone with whoever holds it, and never on a disk."""

    file: int

    @property
    def path(self) -> str:
        """What the programs call it."""
        return f"/proc/self/fd/{self.file}"


@contextlib.contextmanager
def in_memory(content: bytes = b"", *, length: int = 0) -> Iterator[MemoryFile]:
    """A file of that content, or so many zeros, for the time of the context: a secret, for instance."""
    file = os.memfd_create("lapilli", os.MFD_CLOEXEC)
    try:
        os.write(file, content)
        if length:
            os.ftruncate(file, length)
        yield MemoryFile(file)
    finally:
        os.close(file)


def run(
    arguments: Sequence[str],
    *,
    timeout: float,
    memory: int | None = None,
    cpu: int | None = None,
    on_line: Callable[[str], None] | None = None,
    on_tick: Callable[[], None] | None = None,
    environment: Mapping[str, str] | None = None,
    accept: Container[int] = (0,),
    handed: Sequence[MemoryFile] = (),
    outlive: bool = False,
) -> str:
    """Run a program and return its standard output; `timeout` and `cpu` in seconds, `memory` in bytes.

    `on_line` gets every output line as it comes (a carriage return ends one too), and nothing is returned.
    `on_tick` is called about once a second; what either raises ends the program. The arguments hold the
    paths of the files that are `handed` to it. With `outlive` it goes on to its end when this process is
    killed: for what must not stop half way.
    Raises `Failed` with the end of what the program said when its exit status is not in `accept`, and another
    `StorageError` when it does not end or cannot be started.
    """
    name = os.path.basename(arguments[0])
    try:
        child = subprocess.Popen(
            [*_prefix(memory, cpu, outlive), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {}), "LC_ALL": "C"},
            start_new_session=True,
            pass_fds=[each.file for each in handed],
            restore_signals=not outlive,  # nobody may be left to hear what it says: that must not end it
        )
    except OSError as problem:
        raise StorageError(f"{name} cannot be started: {problem.strerror}.") from problem
    try:
        said, complaint = _listen(child, name, timeout, on_line, on_tick)
    finally:
        status = _end(child)
    if status not in accept:
        raise Failed(_reason(name, status, _for_users(complaint, arguments)), status, complaint)
    return said


def _prefix(memory: int | None, cpu: int | None, outlive: bool) -> list[str]:
    # the death signal ends the program when this process is killed: nobody else would know of it
    prefix = [] if outlive else ["setpriv", "--pdeathsig", "KILL", "--"]
    if memory is not None or cpu is not None:
        prefix.append("prlimit")
        prefix += [f"--as={memory}"] if memory is not None else []
        prefix += [f"--cpu={cpu}"] if cpu is not None else []
        prefix.append("--")
    return prefix


def _listen(
    child: subprocess.Popen[bytes],
    name: str,
    timeout: float,
    on_line: Callable[[str], None] | None,
    on_tick: Callable[[], None] | None,
) -> tuple[str, str]:
    """Both outputs of the child until it has exited; standard error is cut to its end."""
    deadline, tick = time.monotonic() + timeout, time.monotonic() + _TICK
    said, complaint = bytearray(), bytearray()
    exited = os.pidfd_open(child.pid)
    with selectors.DefaultSelector() as ready, os.fdopen(exited):
        for source in (child.stdout, child.stderr, exited):
            ready.register(source, selectors.EVENT_READ)  # type: ignore[arg-type]
        while ready.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                raise StorageError(f"{name} did not finish within {timeout:g} seconds.")
            if on_tick is not None and time.monotonic() >= tick:
                tick = time.monotonic() + _TICK
                on_tick()
            for key, _ in ready.select(left if on_tick is None else min(left, _TICK)):
                if key.fd == exited:
                    _kill_group(child)  # whatever it started would hold its outputs open
                    ready.unregister(exited)
                    continue
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    ready.unregister(key.fileobj)
                elif key.fileobj is child.stderr:
                    complaint = (complaint + chunk)[-_TAIL:]
                else:
                    said = said + chunk if on_line is None else _lines(said + chunk, on_line)
    return said.decode(errors="replace"), complaint.decode(errors="replace")


def _lines(said: bytearray, on_line: Callable[[str], None]) -> bytearray:
    *whole, rest = re.split(rb"[\r\n]+", said)
    for line in whole:
        on_line(line.decode(errors="replace"))
    return bytearray(rest)


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    # only before the child is waited for: until then its number cannot have been given to anybody else
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _end(child: subprocess.Popen[bytes]) -> int:
    """End the child and whatever it started; its exit status."""
    _kill_group(child)
    status = child.wait()
    for stream in (child.stdout, child.stderr):
        if stream is not None:
            stream.close()
    return status


def _for_users(complaint: str, arguments: Sequence[str]) -> str:
    """The last lines without this host's paths and without what stands before the host in a URL."""
    for path in (found for argument in arguments for found in _PATH.findall(argument)):
        complaint = complaint.replace(path, os.path.basename(path))
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    return _USERINFO.sub("//***@", " ".join(lines[-2:]))[:300]


def _reason(name: str, status: int, tail: str) -> str:
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"{name} was stopped: it used more processor time than it may."
    if status == 127 and name in tail:
        return f"{name} is not installed on this host."
    return f"{name} failed: {tail or f'exit status {status}'}"
