"""A bus for processes on many hosts that share a PostgreSQL database: LISTEN and NOTIFY.

One connection listens and one sends, each in a thread of its own, so that a wake costs its caller nothing.
A wake is no part of any transaction. What is lost while a connection is made anew costs one sweep; whoever
waits is woken once it stands.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import psycopg

from lapilli.adapters.buses.local import Subscribers, WaitingSubscription

_log = logging.getLogger("lapilli.bus")

CHANNEL = "lapilli_wakes"
_LONGEST = 4000  # characters of a topic; PostgreSQL takes 8000 bytes
_NOTIFY = "SELECT pg_notify(%s, payload) FROM unnest(%s::text[]) AS payload"
_PAUSES = (0.1, 0.5, 1.0, 2.0)  # seconds before the next attempt to connect


class PostgresBus:
    """See `ports.bus.Bus`. `arguments` are further ones of psycopg.connect."""

    def __init__(self, dsn: str, arguments: Mapping[str, Any] | None = None) -> None:
        self._dsn = dsn
        self._arguments = dict(arguments or {})
        self._name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._subscribers = Subscribers()
        self._outgoing: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._connections: dict[str, psycopg.Connection[tuple[object, ...]]] = {}
        self._threads = [
            threading.Thread(
                target=self._keep, args=("listen", self._listen), name="bus-listen", daemon=True
            ),
            threading.Thread(target=self._keep, args=("send", self._send), name="bus-send", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def wake(self, topic: str) -> None:
        """Wake every subscriber of a topic, here and in the other processes."""
        self._subscribers.deliver(topic)
        if len(topic) <= _LONGEST:
            self._outgoing.put(topic)

    def subscribe(self, *topics: str) -> WaitingSubscription:
        """Begin to listen."""
        return self._subscribers.add(topics)

    def close(self) -> None:
        """Stop listening."""
        self._closed.set()
        self._outgoing.put(None)
        for thread in self._threads:
            thread.join(2)
        for connection in list(self._connections.values()):
            with contextlib.suppress(Exception):
                connection.close()

    def _keep(self, name: str, work: Callable[[psycopg.Connection[tuple[object, ...]]], None]) -> None:
        """Do `work` with a connection, and with another when that one breaks."""
        failures = 0
        while not self._closed.is_set():
            try:
                told = {**self._arguments, "application_name": f"lapilli bus {name}"}
                with psycopg.connect(self._dsn, autocommit=True, **told) as made:
                    self._connections[name] = made
                    failures = 0
                    work(made)
            except psycopg.Error as problem:
                if not self._closed.is_set():
                    _log.warning("the bus has lost the database, and connects anew: %s", str(problem).strip())
                    self._closed.wait(_PAUSES[min(failures, len(_PAUSES) - 1)])
                    failures += 1

    def _listen(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        connection.execute(f"LISTEN {CHANNEL}")
        self._subscribers.deliver_all()  # what came meanwhile was not heard
        while not self._closed.is_set():
            for notice in connection.notifies(timeout=0.25):
                sender, _, topic = notice.payload.partition(" ")
                if sender != self._name:
                    self._subscribers.deliver(topic)

    def _send(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        connection.execute("SET synchronous_commit TO off")  # each NOTIFY is a transaction
        while True:
            topics = [self._outgoing.get()]
            with contextlib.suppress(queue.Empty):
                while True:
                    topics.append(self._outgoing.get_nowait())
            told = [f"{self._name} {topic}" for topic in dict.fromkeys(topics) if topic is not None]
            try:
                if told:
                    connection.execute(_NOTIFY, (CHANNEL, told))
            except psycopg.Error:
                for topic in dict.fromkeys(topics):
                    self._outgoing.put(topic)  # by the next connection
                raise
            if None in topics:
                return
