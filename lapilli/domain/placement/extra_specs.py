"""What an extra spec requires of a capability (behaviour 11.4)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

# spellings of one storage protocol: whoever asks for one of them is served by all
_FAMILIES = (
    ("iSCSI", "iscsi"),
    ("FC", "fibre_channel", "fc"),
    ("NFS", "nfs"),
    ("NVMe-oF", "NVMeOF", "nvmeof"),
)
_NUMERIC: dict[str, Callable[[float, float], bool]] = {
    "=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
}
_TEXTUAL: dict[str, Callable[[str, str], bool]] = {
    "s==": lambda a, b: a == b,
    "s!=": lambda a, b: a != b,
    "s<": lambda a, b: a < b,
    "s<=": lambda a, b: a <= b,
    "s>": lambda a, b: a > b,
    "s>=": lambda a, b: a >= b,
}
_YES = {"1", "t", "true", "on", "y", "yes"}


def matches(value: Any, wanted: str | None) -> bool:
    """Whether a capability meets a requirement."""
    if isinstance(value, (list, tuple)):
        return any(matches(each, wanted) for each in value)
    if value is None or wanted is None:
        return value is wanted
    operator, rest = _parts(wanted)
    if operator in _NUMERIC:
        try:
            return _NUMERIC[operator](float(value), float(rest))
        except (TypeError, ValueError):
            return False
    if operator in _TEXTUAL:
        return _TEXTUAL[operator](str(value), rest)
    if operator == "<in>":
        return rest in str(value)
    if operator == "<or>":
        return str(value) in _choices(wanted)
    if operator == "<is>":
        return (str(value).lower() in _YES) == (rest.lower() in _YES)
    return isinstance(value, str) and value == wanted


@lru_cache(maxsize=1024)
def _parts(wanted: str) -> tuple[str, str]:
    """(first word, what follows it)."""
    words = wanted.split()
    operator = words[0] if words else ""
    return operator, wanted.strip()[len(operator) :].strip()


@lru_cache(maxsize=1024)
def _choices(wanted: str) -> frozenset[str]:
    return frozenset(part.strip() for part in wanted.split("<or>") if part.strip())


def variants(protocol: Any) -> list[Any]:
    """Every spelling of a storage protocol, or of each of several."""
    spoken = protocol if isinstance(protocol, (list, tuple)) else [protocol]
    return [name for each in spoken for name in next((f for f in _FAMILIES if each in f), (each,))]
