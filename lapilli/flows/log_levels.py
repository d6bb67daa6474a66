"""Levels of loggers, set for services that run: rows in the database that every process looks at.

A level that was set holds until another one is set, also for processes that start later.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from lapilli.domain.model import LogLevel, Service
from lapilli.errors import InvalidInput
from lapilli.flows.core import Core
from lapilli.store import records, upserts
from lapilli.store.session import Store

API = "cinder-api"
BINARIES = (API, "cinder-scheduler", "cinder-volume", "cinder-backup")
ROOT = "lapilli"

_applied: dict[str, str] = {}  # what this process was last told, so that only changes are carried out


def set_level(core: Core, binary: str, server: str, prefix: str, level: str) -> None:
    """Set the level of the loggers whose names begin with `prefix`; empty words mean all.

    Raises `InvalidInput` for a prefix that is none of ours.
    """
    name = _logger(prefix)
    row = LogLevel(
        id=f"{binary}/{server}/{name}",
        binary=binary,
        server=server,
        logger=name,
        level=level,
        set_at=records.now(),
    )
    with core.store.write(durable=True) as connection:
        upserts.put(connection, records.table_of(LogLevel), [_values(row)], "level", "set_at")


def levels(core: Core, binary: str, server: str, prefix: str) -> list[tuple[str, str, dict[str, str]]]:
    """(host, binary, level by logger) of the services that are meant."""
    with core.store.read() as connection:
        wanted = records.all_of(connection, LogLevel)
        services = records.all_of(connection, Service)
    here = core.service.hostname
    known = sorted({(here, API), *((each.host, each.binary) for each in services)})
    return [
        (host, each, _told(_for(wanted, [(each, host)]), prefix, core.service.log_level))
        for host, each in known
        if binary in ("", each) and server in ("", host, host.partition("@")[0])
    ]


def apply(store: Store, services: Iterable[tuple[str, str]]) -> None:
    """Let this process, which is these (binary, host), log as was set since it looked last."""
    with store.read() as connection:
        wanted = _for(records.all_of(connection, LogLevel), list(services))
    for name, level in wanted.items():
        if _applied.get(name) != level:
            logging.getLogger(name).setLevel(level)
            _applied[name] = level


def _for(rows: Iterable[LogLevel], services: list[tuple[str, str]]) -> dict[str, str]:
    """Level by logger for a process; what was set last wins."""
    found: dict[str, str] = {}
    for row in sorted(rows, key=lambda each: each.set_at):
        for binary, host in services:
            if row.binary in ("", binary) and row.server in ("", host, host.partition("@")[0]):
                for below in [name for name in found if name.startswith(f"{row.logger}.")]:
                    found[below] = row.level
                found[row.logger] = row.level
    return found


def _told(wanted: Mapping[str, str], prefix: str, otherwise: str) -> dict[str, str]:
    names = {name for name in logging.root.manager.loggerDict if name.split(".")[0] == ROOT}
    told = {}
    for name in sorted(names | wanted.keys()):
        if name.startswith(prefix):
            parents = [name.rsplit(".", cut)[0] for cut in range(name.count(".") + 1)]
            told[name] = next((wanted[each] for each in [name, *parents] if each in wanted), otherwise)
    return told


def _logger(prefix: str) -> str:
    name = prefix.rstrip(".") or ROOT
    if name.split(".")[0] != ROOT:
        raise InvalidInput(f"prefix {prefix!r}: the names of all loggers begin with {ROOT!r}.")
    return name


def _values(row: LogLevel) -> dict[str, object]:
    return {name: getattr(row, name) for name in row.__struct_fields__}
