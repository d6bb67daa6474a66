"""Engines and transactions: the only way to the database.

SQLite runs in WAL mode. Writers take a kernel file lock before `BEGIN IMMEDIATE`: waiters sleep in the
kernel instead of polling in SQLite's busy handler. Commits themselves are not synced; a transaction that
must survive a power cut (`durable=True`, decisions.md D14) waits afterwards for one fsync of the WAL that
began after its commit, which all transactions waiting at that moment share. The lock is free meanwhile.
SQLite syncs WAL and database by itself before it reuses the log, so order is never lost.

PostgreSQL and MariaDB run at READ COMMITTED. What a transaction decides by, it locks first (`records.hold`),
in one order: operation, volume, its snapshots and attachments, type, quota, pool (docs/decisions/).
"""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import random
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import IO, Any, ParamSpec, Protocol, TypeVar

import msgspec
import sqlalchemy as sa

from lapilli.config import option
from lapilli.errors import ConfigError, DatabaseContended, DatabaseUnavailable
from lapilli.store import clock

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class DatabaseOptions:
    """Section [database]."""

    connection: str | None = option(
        None,
        "SQLAlchemy URL (sqlite, postgresql or mysql+pymysql); default: SQLite in the state directory.",
        secret=True,
    )
    max_pool_size: int = option(16, "Connections that a process keeps open.", minimum=1)
    max_overflow: int = option(32, "Connections beyond those, closed after use.", minimum=0)
    connection_recycle_time: int = option(
        3600, "Seconds after which a connection is made anew, -1 for never.", minimum=-1
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


# what a driver is, by the beginning of a URL: (SQLAlchemy's name for it, module, extra of this package)
_DRIVERS = {
    "postgresql": ("postgresql+psycopg", "psycopg", "postgres"),
    "mysql": ("mariadb+pymysql", "pymysql", "mariadb"),
    "mariadb": ("mariadb+pymysql", "pymysql", "mariadb"),
}
LOCK_WAIT = 10  # seconds that a statement waits for a row's lock
ABANDONED = 15  # seconds after which the database ends the transaction of a process that has stopped
# seconds after which somebody who does not answer is taken for cut off, and for a new connection: together
# less than a lease, so that who is cut off stops its work before another carries on
SILENT = 8
CONNECTING = 5
STATEMENT = 60  # seconds that a statement may take
_TIME = {
    "postgresql": "SELECT EXTRACT(EPOCH FROM clock_timestamp())",
    "mariadb": "SELECT UNIX_TIMESTAMP(SYSDATE(6))",
}
UNUSED = 600  # seconds after which MariaDB closes a connection that nobody has used
_IDLE = 1.0  # seconds without use after which a connection is tried before it is used again


def address_of(text: str) -> sa.URL:
    """The URL as SQLAlchemy takes it, with the driver that we use. Raises `ConfigError`."""
    try:
        url = sa.engine.make_url(text)
    except sa.exc.ArgumentError:
        raise ConfigError("[database] connection: this is no SQLAlchemy URL.") from None
    backend = url.get_backend_name()
    if backend == "sqlite":
        return url
    if backend not in _DRIVERS:
        raise ConfigError(
            f"[database] connection: {backend!r} is unknown; known are sqlite, postgresql, mysql and mariadb."
        )
    name, module, extra = _DRIVERS[backend]
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"[database] connection: {backend} needs another package: pip install 'lapilli[{extra}]'"
        )
    url = url.set(drivername=name)
    if module == "pymysql":
        url = url.update_query_dict({"charset": "utf8mb4"})
    return url


class Store:
    """One database: `read()` for looking, `write()` for one transaction."""

    def __init__(self, url: str, options: DatabaseOptions | None = None) -> None:
        self.url = address_of(url)
        self.kind = "mariadb" if self.url.get_backend_name() == "mariadb" else self.url.get_backend_name()
        self.is_sqlite = self.kind == "sqlite"
        arguments: dict[str, Any] = {"json_serializer": _dumps, "json_deserializer": _DECODER.decode}
        if self.is_sqlite:
            self.path = self.url.database or ""
            if not self.path or self.path == ":memory:":
                raise ConfigError("[database] connection: SQLite needs a file; one in memory is not shared.")
            arguments |= {"pool_size": 32, "max_overflow": 32}
            arguments["connect_args"] = {"timeout": 30, "check_same_thread": False}
            self._flusher = _WalFlusher(self.path + "-wal")
            self._locks = threading.local()
        else:
            arguments |= _shared(self.kind, options or DatabaseOptions())
        self.engine = sa.create_engine(self.url, **arguments)
        if self.is_sqlite:
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
        else:
            sa.event.listen(self.engine, "checkin", _note_use)
            if self.kind == "mariadb":
                sa.event.listen(self.engine, "connect", _watch_silence)
            sa.event.listen(self.engine, "checkout", functools.partial(_try_idle, self.kind))
            sa.event.listen(self.engine, "connect", functools.partial(_ask_time, self.kind))

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection for queries; each statement sees the latest commit."""
        try:
            with self.engine.connect() as connection:
                yield connection
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as problem:
            raise _translated(problem) from problem

    @contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        """A connection for queries that all see the database as it was at one moment."""
        begin = {
            "sqlite": "BEGIN",
            "postgresql": "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            "mariadb": "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
        }
        with self.read() as connection:
            if self.kind == "mariadb":
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            connection.exec_driver_sql(begin[self.kind])
            try:
                yield connection
            finally:
                with _discarded_if_broken(connection):
                    connection.exec_driver_sql("ROLLBACK")

    @contextmanager
    def write(self, *, durable: bool = False) -> Iterator[sa.Connection]:
        """One transaction: commits at the end, rolls back on an exception.

        With `durable` it returns only when the commit would survive a power cut.
        """
        if not self.is_sqlite:
            with self._write_shared(durable) as connection:
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
                    connection.exec_driver_sql("COMMIT")
                except BaseException:
                    with suppress(sa.exc.DBAPIError):  # SQLite may have done it itself, on a full disk
                        connection.exec_driver_sql("ROLLBACK")
                    raise
                if rider is not None:
                    RIDER.set(None)
        except sa.exc.DBAPIError as problem:
            raise _translated(problem) from problem
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)
        if durable:
            self._flush()

    def _flush(self) -> None:
        try:
            self._flusher.flush()
        except OSError as problem:
            raise DatabaseUnavailable(f"The database cannot be written: {problem.strerror}.") from problem

    @contextmanager
    def _write_shared(self, durable: bool) -> Iterator[sa.Connection]:
        """Connections are in autocommit: BEGIN and COMMIT are ours, and reads cost no round trip more."""
        begin = "START TRANSACTION"
        if self.kind == "postgresql":
            begin = "BEGIN" if durable else "BEGIN; SET LOCAL synchronous_commit TO off"
        try:
            with self.engine.connect() as connection:
                connection.exec_driver_sql(begin)
                try:
                    yield connection
                    connection.exec_driver_sql("COMMIT")
                except BaseException:
                    with _discarded_if_broken(connection):
                        connection.exec_driver_sql("ROLLBACK")
                    raise
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as problem:
            raise _translated(problem) from problem

    def _lock_file(self) -> IO[bytes]:
        """This thread's own open file: `flock` then keeps threads apart as well as processes."""
        file: IO[bytes] | None = getattr(self._locks, "file", None)
        if file is None:
            file = self._locks.file = open(self.path + ".lock", "ab")  # noqa: SIM115 - lives as long as the thread
        return file

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _shared(kind: str, options: DatabaseOptions) -> dict[str, Any]:
    """How an engine for many hosts is made: bounded waits, and connections that notice a dead server."""
    arguments: dict[str, Any] = {
        "pool_size": options.max_pool_size,
        "max_overflow": options.max_overflow,
        "pool_recycle": options.connection_recycle_time,
        "pool_timeout": 10,
        "isolation_level": "AUTOCOMMIT",
        "skip_autocommit_rollback": True,
    }
    if kind == "postgresql":
        session = {
            "default_transaction_isolation": "read\\ committed",
            "lock_timeout": f"{LOCK_WAIT}s",
            "statement_timeout": f"{STATEMENT}s",
            "idle_in_transaction_session_timeout": f"{ABANDONED}s",
        }
        arguments["connect_args"] = postgres_lifeline(session)
    else:
        arguments["connect_args"] = {
            "connect_timeout": CONNECTING,
            "read_timeout": STATEMENT + 5,
            "write_timeout": SILENT,
            # SIMULTANEOUS_ASSIGNMENT: with SET a = b, b = a the old values count, as the standard has it
            "init_command": (
                "SET SESSION tx_isolation = 'READ-COMMITTED', "
                f"SESSION innodb_lock_wait_timeout = {LOCK_WAIT}, "
                f"SESSION idle_transaction_timeout = {ABANDONED}, "
                f"SESSION max_statement_time = {STATEMENT}, SESSION wait_timeout = {UNUSED}, "
                "SESSION sql_mode = 'TRADITIONAL,SIMULTANEOUS_ASSIGNMENT', SESSION time_zone = '+00:00'"
            ),
        }
    return arguments


def postgres_lifeline(session: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of a connection whose two ends notice within `SILENT` seconds that the other is cut off."""
    idle, interval = SILENT // 3, SILENT // 3
    both = {"keepalives_idle": idle, "keepalives_interval": interval, "keepalives_count": 2}
    theirs = {f"tcp_{name}": str(value) for name, value in both.items()}
    told = {**session, **theirs, "tcp_user_timeout": str(SILENT * 1000)}
    return {
        "connect_timeout": CONNECTING,
        **both,
        "tcp_user_timeout": SILENT * 1000,
        "options": " ".join(f"-c {name}={value}" for name, value in told.items()),
    }


def _watch_silence(connection: Any, _record: Any) -> None:
    """As `postgres_lifeline`, for a driver that has no options for it."""
    wire = getattr(connection, "_sock", None)
    if wire is None or wire.family not in (socket.AF_INET, socket.AF_INET6):
        return
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option_name, value in (
        (socket.TCP_KEEPIDLE, SILENT // 3),
        (socket.TCP_KEEPINTVL, SILENT // 3),
        (socket.TCP_KEEPCNT, 2),
        (socket.TCP_USER_TIMEOUT, SILENT * 1000),
    ):
        wire.setsockopt(socket.IPPROTO_TCP, option_name, value)


def _note_use(_connection: Any, record: Any) -> None:
    record.info["used"] = time.monotonic()


def _try_idle(kind: str, connection: Any, record: Any, _proxy: Any) -> None:
    """Try a connection that was idle: when the server was restarted meanwhile, the pool is made anew."""
    if time.monotonic() - record.info.get("used", time.monotonic()) < _IDLE and clock.is_fresh():
        return
    try:
        _ask_time(kind, connection)
    except Exception:
        raise sa.exc.InvalidatePoolError from None


def _ask_time(kind: str, connection: Any, _record: Any = None) -> None:
    asked = time.monotonic()
    cursor = connection.cursor()
    try:
        cursor.execute(_TIME[kind])
        clock.heard(asked, float(cursor.fetchone()[0]), time.monotonic())
    finally:
        cursor.close()


@contextmanager
def _discarded_if_broken(connection: sa.Connection) -> Iterator[None]:
    """A connection whose transaction cannot even be rolled back is not used again."""
    try:
        yield
    except Exception:
        with suppress(Exception):
            connection.invalidate()


_CONTENDED: set[object] = {
    "40001",  # PostgreSQL: serialization failure
    "40P01",  # deadlock
    "55P03",  # lock not available in time
    1205,  # MariaDB: lock wait timeout
    1213,  # deadlock
    1020,  # record has changed since last read
}
_GONE: set[object] = {
    "57P01",  # PostgreSQL: ended by the administrator
    "57P02",
    "57P03",  # starting up, or shutting down
    "53300",  # too many connections
    "25P03",  # our transaction was idle for too long
    "25006",  # read-only: a standby
    "57014",  # a statement took too long
    1040,  # MariaDB: too many connections
    1053,  # shutting down
    1290,  # read-only
    1969,  # a statement took too long
    2003,
    2006,
    2013,
    4031,
}


# primary result codes of SQLite
_DISK = {
    10: "The database's disk reports an error.",
    13: "The database's disk is full.",
    14: "The database cannot be opened.",
}


def _translated(problem: sa.exc.SQLAlchemyError) -> Exception:
    """What callers are told: the database is away, or others were faster; anything else stays as it is."""
    if isinstance(problem, sa.exc.TimeoutError):
        return DatabaseUnavailable("Every connection to the database is in use.")
    if not isinstance(problem, sa.exc.DBAPIError):
        return problem
    cause = problem.orig
    if (code := getattr(cause, "sqlite_errorcode", None)) is not None and code & 0xFF in _DISK:
        return DatabaseUnavailable(_DISK[code & 0xFF])
    codes = {getattr(cause, "sqlstate", None), *(cause.args[:1] if cause is not None else ())}
    if codes & _CONTENDED:
        return DatabaseContended("Others were writing the same records: try again.")
    at_connect = isinstance(problem, sa.exc.OperationalError) and problem.statement is None
    if problem.connection_invalidated or codes & _GONE or at_connect:
        return DatabaseUnavailable("The database cannot be reached at the moment.")
    return problem


def rerun_when_contended(function: Callable[P, T]) -> Callable[P, T]:
    """For functions whose one effect is one transaction: run anew after a deadlock or a lock not got."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        for attempt in range(4):
            try:
                return function(*args, **kwargs)
            except DatabaseContended:
                time.sleep(random.uniform(0.005, 0.02) * 2**attempt)  # noqa: S311 - spreads them, nothing secret
        return function(*args, **kwargs)

    return run


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are ours: see `write`
    cursor = connection.cursor()
    _switch_to_wal(cursor)
    for pragma in (
        "synchronous=NORMAL",
        "busy_timeout=30000",
        "cache_size=-16384",
        "temp_store=MEMORY",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _switch_to_wal(cursor: Any) -> None:
    """While others do so with a new database, SQLite fails at once, whatever its timeout: try again."""
    deadline = time.monotonic() + 30
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as problem:
            if problem.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0.001, 0.01))  # noqa: S311 - spreads them, nothing secret


class _WalFlusher:
    """Group commit: one fsync of the WAL serves every transaction committed before it began."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._condition = threading.Condition()
        self._started = 0
        self._finished = 0
        self._running = False
        self._named = 0  # inode of the WAL whose name is known to be on the disk

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
                inode = os.fstat(descriptor).st_ino
                if inode != self._named:
                    self._keep_name(inode)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            pass  # checkpointed and removed: SQLite has synced the database itself
        except OSError:
            self._end(None)
            raise
        self._end(mine)

    def _keep_name(self, inode: int) -> None:
        """Sync the directory: the WAL is a new file, whose name might else not survive."""
        directory = os.open(os.path.dirname(self._path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self._named = inode

    def _end(self, number: int | None) -> None:
        with self._condition:
            self._running = False
            if number is not None:
                self._finished = max(self._finished, number)
            self._condition.notify_all()
