"""The load generator: a process of its own that asks over keep-alive connections and measures.

Reads one job as JSON from standard input and writes what it found as JSON to standard output. Requests are
prepared bytes on plain sockets, served by one thread, so that the generator costs the machine little.
Times are milliseconds.
"""

from __future__ import annotations

import json
import selectors
import socket
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

WATCH = 0.002  # seconds between two looks at something that is to change
PATIENCE = 60.0
CONNECTOR = {
    "initiator": "iqn.1994-05.com.redhat:bench",
    "nqn": "nqn.2014-08.org.nvmexpress:uuid:b7e2c1f0-5d0a-4a7e-9a55-2f0f5f0c8a11",
    "host": "bench",
    "ip": "127.0.0.1",
}


class Failure(Exception):
    """The service did not answer as it should; the measurement is worthless."""


class Asker:
    """Requests for one service by one user."""

    def __init__(self, port: int, authorization: str, version: str = "3.71") -> None:
        self.port = port
        self.head = (
            f"Host: 127.0.0.1:{port}\r\nAuthorization: {authorization}\r\n"
            f"OpenStack-API-Version: volume {version}\r\nAccept: application/json\r\n"
        )

    def request(self, method: str, path: str, document: Any = None) -> bytes:
        """The bytes of one request."""
        body = b"" if document is None else json.dumps(document).encode()
        kind = "Content-Type: application/json\r\n" if body else ""
        head = f"{method} {path} HTTP/1.1\r\n{self.head}{kind}Content-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    def connect(self) -> Wire:
        """A connection."""
        return Wire(self.port)


class Wire:
    """One keep-alive connection with at most one request under way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._got = bytearray()
        self.sent_at = 0.0

    def send(self, request: bytes) -> None:
        """Send a request; the clock starts before its first byte."""
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> tuple[int, bytes] | None:
        """Read what has come: (status, body) once the answer is whole."""
        part = self.socket.recv(1 << 18)
        if not part:
            raise Failure("the service closed a connection")
        self._got += part
        end = self._got.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = bytes(self._got[:end]).lower()
        at = head.find(b"\r\ncontent-length:")
        if at < 0:
            raise Failure("an answer without Content-Length")
        length = int(head[at + 17 :].split(b"\r\n", 1)[0])
        if len(self._got) < end + 4 + length:
            return None
        body = bytes(self._got[end + 4 :])
        self._got.clear()
        return int(head.split(b" ", 2)[1]), body

    def ask(self, request: bytes, *expected: int) -> tuple[float, Any]:
        """Send and wait: (milliseconds, the decoded body). Raises `Failure` for another status."""
        self.send(request)
        answer = self.receive()
        while answer is None:
            answer = self.receive()
        spent = (time.perf_counter() - self.sent_at) * 1000
        if answer[0] not in expected:
            raise Failure(f"{answer[0]}: {answer[1][:300]!r}, not {expected}")
        return spent, json.loads(answer[1]) if answer[1] else None


# --- jobs ------------------------------------------------------------------------------------------------


def repeat(asker: Asker, job: dict[str, Any]) -> dict[str, Any]:
    """The same request over and over on some connections, for a time; answers' ids are told on demand."""
    request = asker.request(job["method"], job["path"], job.get("document"))
    wires = [asker.connect() for _ in range(job["connections"])]
    selector = selectors.DefaultSelector()
    times: list[float] = []
    statuses: Counter[int] = Counter()
    started = time.perf_counter()
    until = started + job["seconds"]
    for wire in wires:
        selector.register(wire.socket, selectors.EVENT_READ, wire)
        wire.send(request)
    under_way = len(wires)
    while under_way:
        for key, _ in selector.select(PATIENCE):
            wire = key.data
            answer = wire.receive()
            if answer is None:
                continue
            now = time.perf_counter()
            times.append((now - wire.sent_at) * 1000)
            statuses[answer[0]] += 1
            if now < until:
                wire.send(request)
            else:
                under_way -= 1
    elapsed = time.perf_counter() - started
    _only(statuses, job["status"])
    return {"times": times, "seconds": elapsed, "count": len(times)}


def _only(statuses: Counter[int], wanted: int) -> None:
    if set(statuses) != {wanted}:
        raise Failure(f"answers were {dict(statuses)}, not all {wanted}")


def available_alone(asker: Asker, job: dict[str, Any]) -> dict[str, Any]:
    """One create at a time, each until a GET, repeated every 2 ms, says `available`."""
    create = asker.request("POST", "/v3/volumes", {"volume": {"size": 1}})
    wire = asker.connect()
    times = []
    for _ in range(job["count"]):
        started = time.perf_counter()
        identifier = wire.ask(create, 202)[1]["volume"]["id"]
        show = asker.request("GET", f"/v3/volumes/{identifier}")
        while True:
            status = wire.ask(show, 200)[1]["volume"]["status"]
            if status == "available":
                break
            _still_good(status, started)
            time.sleep(WATCH)
        times.append((time.perf_counter() - started) * 1000)
    return {"times": times, "count": len(times)}


def _still_good(status: str, started: float) -> None:
    if status.startswith("error"):
        raise Failure(f"a volume is {status}")
    if time.perf_counter() - started > PATIENCE:
        raise Failure(f"a volume is still {status} after {PATIENCE:g} s")


def available_together(asker: Asker, job: dict[str, Any]) -> dict[str, Any]:
    """Creates on some connections at once, each until a GET says `available`.

    Eight clients that repeat their GET every 2 ms would themselves be the load that is measured. So the
    generator looks into the database every 2 ms, and does the GET, which ends the time, when it says so.
    """
    create = asker.request("POST", "/v3/volumes", {"volume": {"size": 1}})
    database = sqlite3.connect(f"file:{job['database']}?mode=ro", uri=True)
    selector = selectors.DefaultSelector()
    started: dict[Wire, float] = {}
    watched: dict[str, Wire] = {}
    times: list[float] = []
    left = job["count"]
    for _ in range(job["connections"]):
        wire = asker.connect()
        selector.register(wire.socket, selectors.EVENT_READ, wire)
        wire.send(create)
        started[wire] = wire.sent_at
        left -= 1
    while started:
        for key, _ in selector.select(WATCH):
            wire = key.data
            answer = wire.receive()
            if answer is None:
                continue
            volume = json.loads(answer[1])["volume"]
            if answer[0] == 202:
                watched[volume["id"]] = wire
                continue
            if answer[0] != 200 or volume["status"] != "available":
                raise Failure(f"{answer[0]}: {answer[1][:300]!r}")
            times.append((time.perf_counter() - started.pop(wire)) * 1000)
            if left > 0:
                left -= 1
                wire.send(create)
                started[wire] = wire.sent_at
        for identifier in _ready(database, watched, started):
            watched.pop(identifier).send(asker.request("GET", f"/v3/volumes/{identifier}"))
    return {"times": times, "count": len(times)}


def _ready(database: sqlite3.Connection, watched: dict[str, Wire], started: dict[Wire, float]) -> list[str]:
    """Ids of the watched volumes that are available."""
    if not watched:
        return []
    marks = ",".join("?" * len(watched))
    rows = database.execute(f"SELECT id, status FROM volumes WHERE id IN ({marks})", list(watched))  # noqa: S608
    ready = []
    for identifier, status in rows:
        if status == "available":
            ready.append(identifier)
        else:
            _still_good(status, started[watched[identifier]])
    return ready


def attach(asker: Asker, job: dict[str, Any]) -> dict[str, Any]:
    """Attachments with a connector, one at a time, each deleted again."""
    wire = asker.connect()
    made, deleted = [], []
    for identifier in job["volumes"]:
        wanted = {"attachment": {"volume_uuid": identifier, "connector": CONNECTOR}}
        spent, answer = wire.ask(asker.request("POST", "/v3/attachments", wanted), 200)
        made.append(spent)
        path = f"/v3/attachments/{answer['attachment']['id']}"
        deleted.append(wire.ask(asker.request("DELETE", path), 200)[0])
    return {"attach": made, "delete": deleted, "count": len(made)}


def pages(asker: Asker, job: dict[str, Any]) -> dict[str, Any]:
    """One list request again and again, one at a time; every answer must hold `items` volumes."""
    wire = asker.connect()
    request = asker.request("GET", job["path"])
    times: list[float] = []
    size = 0
    for _ in range(job["count"]):
        spent, answer = wire.ask(request, 200)
        if len(answer["volumes"]) != job["items"]:
            raise Failure(f"{len(answer['volumes'])} volumes were listed, not {job['items']}")
        size = len(json.dumps(answer))
        times.append(spent)
    return {"times": times, "count": len(times), "bytes": size}


JOBS: dict[str, Callable[[Asker, dict[str, Any]], dict[str, Any]]] = {
    "repeat": repeat,
    "available_alone": available_alone,
    "available_together": available_together,
    "attach": attach,
    "pages": pages,
}


def main() -> int:
    """Do the job; the exit status tells whether it went well."""
    job = json.load(sys.stdin)
    asker = Asker(job["port"], job["authorization"])
    try:
        found = JOBS[job["job"]](asker, job)
    except (Failure, OSError) as problem:
        print(f"{job['job']}: {problem}", file=sys.stderr)
        return 1
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
