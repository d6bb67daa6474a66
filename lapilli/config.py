"""Options in typed sections. Each section is a dataclass declared beside its reader; this module loads them.

The file is oslo.config's INI form, with the upstream option names where the meaning is the same. No file at
all gives every option its default: a working embedded service.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, cast, get_type_hints

from lapilli.errors import ConfigError

S = TypeVar("S")


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
    secret: bool = False,
) -> Any:
    """A dataclass field that is a configuration option; lists take comma-separated values."""
    meta = {"help": help, "minimum": minimum, "maximum": maximum, "choices": choices, "secret": secret}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=meta)
    return field(default=default, metadata=meta)


def whole_section() -> Any:
    """A dataclass field that holds the whole section as it stands, for what others than we read."""
    return field(default_factory=dict, metadata={"whole": True})


class Config:
    """Values of one configuration file, read section by section."""

    def __init__(
        self, values: Mapping[str, Mapping[str, str]] | None = None, *, state_dir: str = "./var"
    ) -> None:
        self.path: str | None = None  # of the file
        self._values = values or {}
        self.state_dir = os.path.abspath(state_dir)
        self._read: dict[tuple[type, str], Any] = {}

    @classmethod
    def load(cls, path: str | None, *, state_dir: str | None = None) -> Config:
        """Read a file; None reads nothing. Raises `ConfigError` when it cannot be read or parsed.

        `state_dir` wins over the file's `state_path`.
        """
        values: dict[str, dict[str, str]] = {}
        if path is not None:
            values = _parse(path)
        directory = state_dir or values.get("DEFAULT", {}).get("state_path") or "./var"
        made = cls(values, state_dir=directory)
        made.path = None if path is None else os.path.abspath(path)
        return made

    def sections(self) -> list[str]:
        """Names of the sections that the file holds."""
        return list(self._values)

    def holds(self, section: str, name: str) -> bool:
        """Whether the file gives an option."""
        return name in self._values.get(section, {})

    def read(
        self, section_type: type[S], name: str = "DEFAULT", *, fallback: str | tuple[str, ...] | None = None
    ) -> S:
        """Values of a section; `fallback` names what supplies options that this one lacks, in order.

        Raises `ConfigError` that names section, option and value.
        """
        key = (section_type, f"{name}|{fallback}")
        if key not in self._read:
            self._read[key] = self._build(section_type, name, fallback)
        return cast(S, self._read[key])

    def _build(self, section_type: type[S], name: str, fallback: str | tuple[str, ...] | None) -> S:
        hints = get_type_hints(section_type)
        values: dict[str, Any] = {}
        sections = (name, *((fallback,) if isinstance(fallback, str) else fallback or ()))
        for entry in fields(cast(Any, section_type)):
            if entry.metadata.get("whole"):
                told = [self._values.get(section, {}) for section in reversed(sections)]
                values[entry.name] = {key: value for each in told for key, value in each.items()}
                continue
            for section in sections:
                given = self._values.get(section, {})
                if entry.name in given:
                    text, kind = given[entry.name], hints[entry.name]
                    values[entry.name] = _convert(str(section), entry.name, text, kind, entry.metadata)
                    break
        return section_type(**values)


def _parse(path: str) -> dict[str, dict[str, str]]:
    from oslo_config import iniparser  # noqa: PLC0415 - only a service with a file pays for the import

    sections: dict[str, dict[str, str]] = {}

    class Reader(iniparser.BaseParser):  # type: ignore[misc]
        current = "DEFAULT"

        def new_section(self, section: str) -> None:
            Reader.current = section
            sections.setdefault(section, {})

        def assignment(self, key: str, value: list[str]) -> None:
            sections.setdefault(Reader.current, {})[key] = "\n".join(value)

    try:
        with open(path, encoding="utf-8") as lines:
            Reader().parse(lines)
    except (OSError, UnicodeDecodeError, iniparser.ParseError) as problem:
        raise ConfigError(f"Configuration file {path} cannot be read: {problem}") from problem
    return sections


_TRUE = {"true", "1", "yes", "on"}
_FALSE = {"false", "0", "no", "off"}


def _convert(section: str, name: str, text: str, kind: Any, meta: Mapping[str, Any]) -> Any:
    shown = "(secret)" if meta.get("secret") else repr(text)

    def bad(expected: str) -> ConfigError:
        return ConfigError(f"[{section}] {name} = {shown}: {expected} expected.")

    base = [part for part in getattr(kind, "__args__", (kind,)) if part is not type(None)]
    value: Any = text
    if kind == list[str]:
        value = [part.strip() for part in text.split(",") if part.strip()]
    elif bool in base:
        lowered = text.strip().lower()
        if lowered not in _TRUE | _FALSE:
            raise bad("true or false")
        value = lowered in _TRUE
    elif int in base or float in base:
        try:
            value = int(text) if int in base else float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise bad("a whole number" if int in base else "a number")
    if meta.get("minimum") is not None and value < meta["minimum"]:
        raise bad(f"at least {meta['minimum']}")
    if meta.get("maximum") is not None and value > meta["maximum"]:
        raise bad(f"at most {meta['maximum']}")
    if meta.get("choices") and value not in meta["choices"]:
        raise bad(f"one of {', '.join(meta['choices'])}")
    return value


@dataclass(frozen=True)
class ServiceOptions:
    """Options that every role reads."""

    host: str | None = option(None, "Host part of service and pool names; default: this machine's name.")
    cluster: str | None = option(
        None, "Name of the cluster of hosts that serve the same back ends: host part of their names."
    )
    state_path: str | None = option(None, "State directory; the command's --state-dir wins.")
    enabled_backends: list[str] = option(["filepool"], "Back ends, each with a section of its name.")
    storage_availability_zone: str = option("nova", "Availability zone of this host's services.")
    report_interval: int = option(10, "Seconds between heartbeats.", minimum=1)
    service_down_time: int = option(
        60, "Seconds without a heartbeat after which a service is down.", minimum=2
    )
    backend_stats_polling_interval: int = option(60, "Seconds between pool statistics.", minimum=3)
    graceful_shutdown_timeout: int = option(
        6, "Seconds that running work has to end in at a stop; then others carry on with it.", minimum=1
    )
    log_file: str | None = option(None, "Log to this file instead of standard error.")
    log_level: str = option("INFO", "Lowest level logged.", choices=("DEBUG", "INFO", "WARNING", "ERROR"))

    @property
    def hostname(self) -> str:
        """This host's name in service and pool names."""
        return self.host or socket.gethostname()
