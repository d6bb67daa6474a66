"""PostgreSQL and MariaDB for tests: servers of our own on loopback, each with a private data directory.

A server starts when a test first asks for it, and ends with the test run. Neither flushes to the disk:
tests kill the service, not the machine.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa

from lapilli.store import schema, tables

KINDS = ("sqlite", "postgresql", "mariadb")
_PATHS = (
    "/usr/sbin",
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/bin",
    *sorted(glob("/usr/lib/postgresql/*/bin")),
)


class NotInstalled(Exception):
    """The server's programs are not on this machine."""


class Server:
    """One database server; `start` it, `stop` it, start it again with the same data."""

    kind = ""
    user = ""  # who it runs as when we are root

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=f"lapilli-{self.kind}-"))
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._log: IO[bytes] | None = None
        if os.geteuid() == 0:
            try:
                owner = pwd.getpwnam(self.user)
            except KeyError:
                raise NotInstalled(f"there is no user {self.user}") from None
            os.chown(self.directory, owner.pw_uid, owner.pw_gid)

    def command(self, name: str, *words: str) -> list[str]:
        """A program of the server, run as its user."""
        path = shutil.which(name, path=":".join(reversed(_PATHS)))
        if path is None:
            raise NotInstalled(f"{name} is not installed")
        line = [path, *words]
        if os.geteuid() != 0:
            return line
        return ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", *line]

    def run(self, name: str, *words: str) -> None:
        """Run a program of the server to its end."""
        done = subprocess.run(self.command(name, *words), cwd=self.directory, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name} failed:\n{done.stdout}{done.stderr}")

    def initialise(self) -> None:
        """Make the data directory."""

    def server_command(self) -> list[str]:
        """What runs the server."""
        raise NotImplementedError

    def url(self, database: str) -> str:
        """SQLAlchemy URL of a database."""
        raise NotImplementedError

    def create(self) -> None:
        """Make the data directory and start."""
        self.initialise()
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = int(found.getsockname()[1])
        self.start()

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        self._log = (self.directory / "server.log").open("ab")
        self._process = subprocess.Popen(
            self.server_command(),
            cwd=self.directory,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.sql("SELECT 1")
                return
            except sa.exc.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log = (self.directory / "server.log").read_text(errors="replace")
                    raise RuntimeError(f"the database server did not start:\n{log[-3000:]}") from None
                time.sleep(0.05)

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """End it at once (SIGINT: PostgreSQL's fast shutdown)."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        if self._log is not None:
            self._log.close()

    def remove(self) -> None:
        """End it and delete its data."""
        with contextlib.suppress(Exception):
            self.stop(signal.SIGKILL if self.kind == "mariadb" else signal.SIGQUIT)
        shutil.rmtree(self.directory, ignore_errors=True)

    def sql(self, statement: str, database: str | None = None) -> list[Any]:
        """Run one statement as the administrator; its rows."""
        url = self.url(database or self.first_database)
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
        with engine.connect() as connection:
            result = connection.exec_driver_sql(statement)
            return list(result) if result.returns_rows else []

    @property
    def first_database(self) -> str:
        """A database that is always there."""
        raise NotImplementedError

    def fresh(self) -> str:
        """URL of a new, empty database."""
        name = f"lapilli_{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)


class Postgresql(Server):
    """Debian's PostgreSQL."""

    kind = "postgresql"
    user = "postgres"
    first_database = "postgres"

    def initialise(self) -> None:
        """Make the data directory, with a locale that is not the C one, as operators have it."""
        data = str(self.directory / "data")
        self.run(
            "initdb",
            "-D",
            data,
            "-U",
            "lapilli",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        )

    def server_command(self) -> list[str]:
        """What runs the server."""
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": "400",
            "shared_buffers": "64MB",
            "max_wal_size": "4GB",
        }
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return self.command("postgres", "-D", str(self.directory / "data"), *words)

    def url(self, database: str) -> str:
        """SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://lapilli@127.0.0.1:{self.port}/{database}"


class Mariadb(Server):
    """Debian's MariaDB."""

    kind = "mariadb"
    user = "mysql"
    first_database = "mysql"

    def initialise(self) -> None:
        """Make the data directory, with a user that may come over TCP."""
        data = str(self.directory / "data")
        self.run(
            "mariadb-install-db",
            "--no-defaults",
            f"--datadir={data}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--skip-name-resolve",
            "--innodb-log-file-size=16M",
        )

    def server_command(self) -> list[str]:
        """What runs the server."""
        return self.command(
            "mariadbd",
            "--no-defaults",
            f"--datadir={self.directory}/data",
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            f"--socket={self.directory}/socket",
            f"--pid-file={self.directory}/pid",
            "--skip-name-resolve",
            "--max-connections=400",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-flush-method=nosync",
            "--innodb-buffer-pool-size=64M",
            "--innodb-log-file-size=96M",
            "--character-set-server=latin1",  # what the tables need they must say themselves
        )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it."""
        super().stop(number)

    def url(self, database: str) -> str:
        """SQLAlchemy URL of a database."""
        return f"mariadb+pymysql://root@127.0.0.1:{self.port}/{database}"


chosen = "sqlite"  # the kind that every service and store of this test run uses: pytest --database
_servers: dict[str, Server] = {}


def server(kind: str) -> Server:
    """The test run's server of a kind. Raises `NotInstalled`."""
    if kind not in _servers:
        made: Server = {"postgresql": Postgresql, "mariadb": Mariadb}[kind]()
        atexit.register(made.remove)
        made.create()
        _servers[kind] = made
    return _servers[kind]


def fresh_url(directory: Path, kind: str | None = None) -> str:
    """URL of an empty database of the kind chosen for this test run, or of another."""
    wanted = kind or chosen
    if wanted == "sqlite":
        return f"sqlite:///{directory}/lapilli.sqlite"
    return server(wanted).fresh()


def section(state_dir: str) -> dict[str, dict[str, str]]:
    """What a configuration says of the database: each state directory has one of its own."""
    note = _note(Path(state_dir))
    if chosen != "sqlite" and not note.exists():
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(fresh_url(Path(state_dir)))
    return {"database": {"connection": note.read_text()}} if note.exists() else {}


def _note(state_dir: Path) -> Path:
    return state_dir / "database-url"


def borrow(state_dir: Path, name: str) -> None:
    """Give a state directory that was copied a database of that name, with the rows of its original's.

    The database is made when it is not there, and used again when it is: rows are copied faster than tables.
    """
    if not _note(state_dir).exists():
        return  # SQLite: its file was copied
    old = sa.engine.make_url(_note(state_dir).read_text())
    new = old.set(database=name)
    if name not in {row[0] for row in _administrate(old, _LISTED[old.get_backend_name()])}:
        _administrate(old, f"CREATE DATABASE {name}")
        with _engine(new).begin() as connection:
            tables.METADATA.create_all(connection)
            version = sa.Table("alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32)))
            version.create(connection)
            connection.execute(version.insert(), {"version_num": schema.HEAD})
    _end_connections(new)
    rows = _rows(old)
    with _engine(new).begin() as connection:
        for table in tables.METADATA.sorted_tables:
            connection.execute(table.delete())
            if rows[table.name]:
                connection.execute(table.insert(), rows[table.name])
    _note(state_dir).write_text(new.render_as_string(hide_password=False))


_LISTED = {"postgresql": "SELECT datname FROM pg_database", "mariadb": "SHOW DATABASES"}


def _end_connections(url: sa.URL) -> None:
    """The server may not have noticed yet that processes were killed."""
    name = url.database
    if url.get_backend_name() == "postgresql":
        _administrate(
            url,
            f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'",  # noqa: S608
        )
        return
    found = _administrate(url, f"SELECT id FROM information_schema.processlist WHERE db = '{name}'")  # noqa: S608
    for row in found:
        with contextlib.suppress(sa.exc.OperationalError):  # it has ended by itself
            _administrate(url, f"KILL {row[0]}")


@functools.lru_cache(maxsize=8)
def _rows(url: sa.URL) -> dict[str, list[dict[str, Any]]]:
    """Everything in a database."""
    with _engine(url).connect() as connection:
        return {
            table.name: [dict(row) for row in connection.execute(sa.select(table)).mappings()]
            for table in tables.METADATA.sorted_tables
        }


@functools.lru_cache(maxsize=8)
def _engine(url: sa.URL) -> sa.Engine:
    return sa.create_engine(url, poolclass=sa.pool.NullPool)


def _administrate(url: sa.URL, statement: str) -> list[Any]:
    """Run a statement on a server; its rows."""
    kind = Postgresql if url.get_backend_name() == "postgresql" else Mariadb
    with _engine(url.set(database=kind.first_database)).connect() as connection:
        result = connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql(statement)
        return list(result) if result.returns_rows else []


def main(words: Sequence[str]) -> None:
    """Start a server, say its URL, and keep it until Ctrl-C."""
    made = server(words[0])
    print(made.fresh(), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
