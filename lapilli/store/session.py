"""Engines and transactions: the only way to the database.

SQLite runs in WAL mode. Writers take a kernel file lock before `BEGIN IMMEDIATE`: waiters sleep in the
kernel instead of polling in SQLite's busy handler. Commits themselves are not synced; a transaction that
must survive a power cut (`durable=True`, decisions.md D14) waits afterwards for one fsync of the WAL that
began after its commit, which all transactions waiting at that moment share. The lock is free meanwhile.
SQLite syncs WAL and database by itself before it reuses the log, so order is never lost.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import IO, Any, Protocol

import msgspec
import sqlalchemy as sa

from lapilli.config import option
from lapilli.errors import ConfigError


@dataclass(frozen=True)
class DatabaseOptions:
    """Section [database]."""

    connection: str | None = option(
        None, "SQLAlchemy URL; default: SQLite in the state directory.", secret=True
    )


class Rider(Protocol):
    """What goes along in the first transaction of a call that commits."""

    def begin(self, connection: sa.Connection) -> None:
        """Called before anything is written; what it raises rolls back."""

    def note(self, record: Any) -> None:
        """A record is inserted."""

    def end(self, connection: sa.Connection) -> None:
        """Called when everything is written."""


RIDER: ContextVar[Rider | None] = ContextVar("rider", default=None)

_DECODER = msgspec.json.Decoder()
_ENCODER = msgspec.json.Encoder()


def _dumps(value: Any) -> str:
    return _ENCODER.encode(value).decode()


class Store:
    """One database: `read()` for looking, `write()` for one transaction."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        arguments: dict[str, Any] = {
            "json_serializer": _dumps,
            "json_deserializer": _DECODER.decode,
            "pool_size": 32,
            "max_overflow": 32,
        }
        if self.is_sqlite:
            self.path = sa.engine.make_url(url).database or ""
            if not self.path or self.path == ":memory:":
                raise ConfigError("[database] connection: SQLite needs a file; one in memory is not shared.")
            arguments["connect_args"] = {"timeout": 30, "check_same_thread": False}
            self._flusher = _WalFlusher(self.path + "-wal")
            self._locks = threading.local()
        self.engine = sa.create_engine(url, **arguments)
        if self.is_sqlite:
            sa.event.listen(self.engine, "connect", _prepare_sqlite)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection for queries; each statement sees the latest commit."""
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self, *, durable: bool = False) -> Iterator[sa.Connection]:
        """One transaction: commits at the end, rolls back on an exception.

        With `durable` it returns only when the commit would survive a power cut.
        """
        if not self.is_sqlite:
            with self.engine.begin() as connection:
                if (rider := RIDER.get()) is None:
                    yield connection
                else:
                    rider.begin(connection)
                    yield connection
                    rider.end(connection)
            if rider is not None:
                RIDER.set(None)  # it has committed
            return
        lock = self._lock_file()
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            with self.engine.connect() as connection:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                try:
                    if (rider := RIDER.get()) is None:
                        yield connection
                    else:
                        rider.begin(connection)
                        yield connection
                        rider.end(connection)
                except BaseException:
                    connection.exec_driver_sql("ROLLBACK")
                    raise
                connection.exec_driver_sql("COMMIT")
                if rider is not None:
                    RIDER.set(None)
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)
        if durable:
            self._flusher.flush()

    def _lock_file(self) -> IO[bytes]:
        """This thread's own open file: `flock` then keeps threads apart as well as processes."""
        file: IO[bytes] | None = getattr(self._locks, "file", None)
        if file is None:
            file = self._locks.file = open(self.path + ".lock", "ab")  # noqa: SIM115 - lives as long as the thread
        return file

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are ours: see `write`
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "busy_timeout=30000",
        "cache_size=-16384",
        "temp_store=MEMORY",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


class _WalFlusher:
    """Group commit: one fsync of the WAL serves every transaction committed before it began."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._condition = threading.Condition()
        self._started = 0
        self._finished = 0
        self._running = False

    def flush(self) -> None:
        """Return when a sync that began after this call has ended."""
        with self._condition:
            wanted = self._started + 1
            while self._finished < wanted:
                if not self._running:
                    break
                self._condition.wait()
            else:
                return
            self._running = True
            self._started += 1
            mine = self._started
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            pass  # checkpointed and removed: SQLite has synced the database itself
        except OSError:
            self._end(None)
            raise
        self._end(mine)

    def _end(self, number: int | None) -> None:
        with self._condition:
            self._running = False
            if number is not None:
                self._finished = max(self._finished, number)
            self._condition.notify_all()
