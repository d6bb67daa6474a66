"""Everything in one command: a state directory made at the first start, the roles, and the HTTP server.

Three processes, so that they do not share an interpreter lock: this one keeps the other two, the roles run
in a child, and Granian serves HTTP from a worker of its own. Both are forked from this process while it has
one thread and no database connection: they share its memory, and start at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import secrets
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from granian import Granian
from granian.constants import Interfaces
from granian.log import LogLevels

from lapilli.errors import LapilliError

_log = logging.getLogger("lapilli.embedded")

_CLOUDS = """\
clouds:
  {cloud}:
    auth:
      auth_url: {url}/identity/v3
      username: {user}
      password: {password}
      project_name: admin
      user_domain_id: default
      project_domain_id: default
    region_name: RegionOne
    block_storage_api_version: "3"
    block_storage_default_microversion: "3.71"
    image_api_version: "2"
    has_compute: false
"""


def write_private(path: str, text: str) -> None:
    """Write a file that only its owner may read; it appears whole or not at all."""
    temporary = f"{path}.{os.getpid()}.new"
    with open(
        os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8"
    ) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def make_credentials(state_dir: str, url: str, line_for: Callable[[str, str, str, str], str]) -> str:
    """See that htpasswd and clouds.yaml are there, and name `url`; returns the path of clouds.yaml.

    `line_for(name, password, project_id, roles)` makes a line of the user file.
    """
    users, clouds = os.path.join(state_dir, "htpasswd"), os.path.join(state_dir, "clouds.yaml")
    if not os.path.exists(users):
        password = secrets.token_urlsafe(18)
        write_private(users, line_for("admin", password, f"admin={secrets.token_hex(16)}", "admin"))
        write_private(clouds, _CLOUDS.format(cloud="lapilli", url=url, user="admin", password=password))
    elif os.path.exists(clouds):
        _readdress(clouds, url)
    return clouds


def _readdress(clouds: str, url: str) -> None:
    """Let an earlier clouds.yaml name the address of this start."""
    with open(clouds, encoding="utf-8") as file:
        old = file.read()
    endings = {
        "auth_url": "/identity/v3",
        "endpoint": "/v3/",
        "block_storage_endpoint_override": "/v3/",
        "image_endpoint_override": "/image/v2/",
    }
    lines = []
    for line in old.splitlines():
        key = line.strip().partition(":")[0]
        if key in endings:
            line = f"{line[: line.index(key)]}{key}: {url}{endings[key]}"
        lines.append(line)
    new = "\n".join(lines) + "\n"
    if new != old:
        write_private(clouds, new)


CANNOT_START = 78  # exit status of a child that was refused its start (EX_CONFIG of sysexits.h)


class RolesProcess:
    """The child that runs the roles; started again when it dies."""

    def __init__(self, run: Callable[[], None], command: Sequence[str]) -> None:
        """`run` is called in a fork of this process; `command` starts a substitute for one that died."""
        self._run = run
        self._command = ["setpriv", "--pdeathsig", "TERM", "--", *command]  # as `die_with_parent`
        self._pid = 0
        self._stopping = threading.Event()
        self.failed = False  # the first child could not start at all

    def fork(self) -> None:
        """Start it. Only while this process has one thread."""
        gc.freeze()  # what is shared now stays shared
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                die_with_parent()
                self._run()
                status = 0
            except LapilliError as error:
                print(f"lapilli: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the command's own words
                status = CANNOT_START
            except Exception:
                _log.exception("the process of the roles ends")
            finally:
                logging.shutdown()
                os._exit(status)

    def watch(self) -> None:
        """Begin to look after it (in a thread)."""
        threading.Thread(target=self._watch, name="roles-watch", daemon=True).start()

    def _watch(self) -> None:
        pause = 0.2
        while True:
            started = time.monotonic()
            _, status = os.waitpid(self._pid, 0)
            if self._stopping.is_set():
                return
            if os.waitstatus_to_exitcode(status) == CANNOT_START:
                self.failed = True
                os.kill(os.getpid(), signal.SIGTERM)  # it has said why: without roles there is no service
                return
            pause = 0.2 if time.monotonic() - started > 30 else min(pause * 2, 10)
            _log.error("the process of the roles has died; starting another in %.1f s", pause)
            if self._stopping.wait(pause):
                return
            # not fork: this process has threads by now; not subprocess: its pipe would be inherited by a
            # worker that Granian forks at the same moment, and never close
            self._pid = os.posix_spawnp(self._command[0], self._command, dict(os.environ))

    def stop(self, seconds: float) -> None:
        """SIGTERM, and SIGKILL for one that does not end within `seconds`."""
        self._stopping.set()
        if self._pid == 0:
            return  # never started; and 0 would mean the whole process group
        for number, wait in ((signal.SIGTERM, seconds), (signal.SIGKILL, 1.0)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)
            deadline = time.monotonic() + wait
            while time.monotonic() < deadline:
                if not os.path.exists(f"/proc/{self._pid}") or _is_zombie(self._pid):
                    return
                time.sleep(0.02)


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    return True


def die_with_parent() -> None:
    """Have the kernel end this process (SIGTERM) when its parent is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, prctl(2)


def serve_http(address: str, port: int, *, workers: int, threads: int) -> None:
    """Serve `lapilli.wsgi:application` until SIGTERM or SIGINT."""
    warnings.filterwarnings("ignore", module="granian")
    logging.getLogger("_granian").setLevel(logging.ERROR)
    os.register_at_fork(after_in_child=die_with_parent)  # an orphan would keep the port, and serve on
    Granian(
        "lapilli.wsgi:application",
        address=address,
        port=port,
        interface=Interfaces.WSGI,
        workers=workers,
        blocking_threads=threads,
        backpressure=threads * 2,
        websockets=False,
        log_level=LogLevels.error,
        respawn_failed_workers=True,
        workers_kill_timeout=3,
    ).serve()


def listen_for_stop() -> threading.Event:
    """An event that SIGTERM and SIGINT set; ask for it before starting anything that has to be ended."""
    told = threading.Event()

    def handle(_number: int, _frame: Any) -> None:
        told.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
    return told
