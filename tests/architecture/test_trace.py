"""One create, traced from the request to `available`: how much of the house somebody must read to follow it.

The whole service runs in this process: WSGI application, scheduler and volume service with the file pool,
asked over a socket. A profile hook in every thread sees each call of a function of the package.

*Functions* are distinct code objects. Lambdas, comprehensions and generator expressions are not counted:
they are parts of the function, or the declaration, that they are written in. *Files* are where they are.

*Hops* are those of the design (house.md, section 5): modules that hand the request on to the next. They are
read off the call stacks of three moments: when the API submits the operation, when the scheduler chooses a
pool, and when the driver makes the volume. Each module on a stack is a hop, counted once; the loop of
runtime/service.py once for each role. Not hops of their own are: the door that the server knocks at
(wsgi.py), the tasks of an operation (they run under flows/journal.py and count with it), and what is asked
and answers at once (placement, with what it reads and writes, inside the scheduler's hop). So a layer put in
between makes one hop more.

A first create warms up. Of some traced ones the smallest counts: in others a heartbeat or a sweep may run.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import sqlite3
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest

import lapilli
from lapilli import compose, events, wsgi
from lapilli.adapters.auth.users import line_for
from lapilli.api.app import make_app
from lapilli.config import Config
from lapilli.runtime.service import leave_nothing_running

PACKAGE = str(Path(lapilli.__file__).parent) + os.sep
MOST_HOPS, MOST_FILES, MOST_FUNCTIONS = 8, 26, 130
RUNS = 5
PARTS = {"<lambda>", "<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>", "<module>"}
MOMENTS = {
    ("flows/journal.py", "submit"),
    ("domain/placement/funnel.py", "choose"),
    ("adapters/drivers/filepool.py", "create"),
}
NOT_HOPS = {"wsgi.py", "flows/volume_tasks.py", "flows/scheduling.py", "domain/placement/funnel.py"}


@dataclass
class Trace:
    """What one create called."""

    codes: set[CodeType] = field(default_factory=set)
    hops: list[str] = field(default_factory=list)

    @property
    def functions(self) -> list[tuple[str, str]]:
        """(file, qualified name) of every function."""
        counted = [code for code in self.codes if code.co_name not in PARTS]
        return sorted((_file(code), code.co_qualname) for code in counted)

    @property
    def files(self) -> list[str]:
        """Files that they are in."""
        return sorted({file for file, _ in self.functions})


def _file(code: CodeType) -> str:
    return code.co_filename.removeprefix(PACKAGE)


class Tracer:
    """The hook of every thread; it keeps nothing until it is given a trace."""

    def __init__(self) -> None:
        self.trace: Trace | None = None

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        trace, code = self.trace, frame.f_code
        if trace is None or event != "call" or not code.co_filename.startswith(PACKAGE):
            return
        trace.codes.add(code)
        if (_file(code), code.co_name) in MOMENTS:
            trace.hops = list(dict.fromkeys([*trace.hops, *_stack(frame)]))


def _stack(frame: FrameType | None) -> list[str]:
    """Modules of the package on the stack, outermost first; the roles' loop with the role's name."""
    found: list[str] = []
    while frame is not None:
        file = _file(frame.f_code)
        if file == "runtime/service.py":
            file += f" ({frame.f_locals['self'].role})"
        if frame.f_code.co_filename.startswith(PACKAGE) and file not in NOT_HOPS:
            found.append(file)
        frame = frame.f_back
    return found[::-1]


class Quiet(WSGIRequestHandler):
    """Logs nothing."""

    def log_message(self, *_arguments: Any) -> None:
        """Nothing."""


@dataclass
class House:
    """The running service."""

    url: str
    database: str

    def create(self) -> str:
        """Ask for a volume; its id."""
        request = urllib.request.Request(
            f"{self.url}/v3/volumes",
            json.dumps({"volume": {"size": 1, "name": "traced"}}).encode(),
            {
                "Content-Type": "application/json",
                "OpenStack-API-Version": "volume 3.71",
                "Authorization": "Basic " + base64.b64encode(b"admin:secret").decode(),
            },
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 202
            identifier: str = json.load(answer)["volume"]["id"]
            return identifier

    def wait(self, identifier: str) -> None:
        """Wait for `available`, with a connection of our own: looking is no part of a create."""
        deadline = time.monotonic() + 20
        database = sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)
        query = "SELECT status FROM volumes WHERE id = ?"
        while (status := database.execute(query, (identifier,)).fetchone()[0]) != "available":
            assert status == "creating", status
            assert time.monotonic() < deadline, status
            time.sleep(0.005)
        database.close()
        time.sleep(0.1)  # the end is told after it is written, and that is a part


@pytest.fixture
def tracer() -> Iterator[Tracer]:
    """A hook in every thread that is started from now on."""
    made = Tracer()
    before = threading.getprofile()
    threading.setprofile(made)
    yield made
    made.trace = None
    threading.setprofile(before)  # type: ignore[arg-type] - None ends it


@pytest.fixture
def house(tmp_path: Path, tracer: Tracer, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """Every role in this process, and the application behind a socket."""
    logger = logging.getLogger("lapilli")
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(events.JsonLines())
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel("INFO")
    (tmp_path / "htpasswd").write_text(line_for("admin", "secret", "f" * 32, "admin"))
    config = Config({"filepool": {"target_helper": "local"}}, state_dir=str(tmp_path))
    core = compose.make_core(config)
    roles = compose.make_roles(core, ("scheduler", "volume"))
    for role in roles:
        role.start()
    monkeypatch.setitem(wsgi._built, os.getpid(), make_app(core, compose.make_authenticator(core)))
    server = make_server("127.0.0.1", 0, wsgi.application, handler_class=Quiet)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    yield House(f"http://127.0.0.1:{server.server_port}", str(tmp_path / "lapilli.sqlite"))
    server.shutdown()
    serving.join()
    server.server_close()
    leave_nothing_running(roles, 5)
    core.journal.bus.close()
    core.store.close()
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.mark.only_on("sqlite", because="the budget is that of the embedded service")
def test_a_create_stays_within_its_budget(house: House, tracer: Tracer) -> None:
    assert sys.getprofile() is None  # this thread only asks
    house.wait(house.create())
    traces = []
    for _ in range(RUNS):
        trace = tracer.trace = Trace()
        house.wait(house.create())
        tracer.trace = None
        traces.append(trace)
    least = min(traces, key=lambda each: len(each.functions))
    print(f"create to available: {len(least.hops)} hops, {len(least.files)} files, ", end="")
    print(f"{len(least.functions)} functions ({len(least.codes)} with lambdas and comprehensions)")
    print("hops:", " > ".join(least.hops))
    told = "\n".join(f"{count:4} {file}" for file, count in Counter(f for f, _ in least.functions).items())
    print(told)
    if len(least.functions) > MOST_FUNCTIONS or len(least.files) > MOST_FILES:
        print("\n".join(f"{file}: {name}" for file, name in least.functions))
    assert len(least.hops) <= MOST_HOPS, least.hops
    assert len(least.files) <= MOST_FILES, least.files
    assert len(least.functions) <= MOST_FUNCTIONS, told
