"""What a volume's QoS specs mean for who keeps them: the back end, or the host that attaches the volume."""

from __future__ import annotations

from collections.abc import Mapping

from lapilli.domain.model import QosSpecs

CONSUMERS = ("front-end", "back-end", "both")
_SCALED = tuple(f"{what}_{unit}_sec" for what in ("read", "write", "total") for unit in ("iops", "bytes"))


def in_front(specs: QosSpecs | None, size: int) -> dict[str, str] | None:
    """The limits that the attaching host keeps for a volume of `size` GiB; None where it keeps none.

    `<limit>_per_gb` grows with the volume, from `<limit>_per_gb_min` up to `<limit>_max`.
    """
    if specs is None or specs.consumer == "back-end":
        return None
    return _resolved(specs, size)


def at_back(specs: QosSpecs | None, size: int) -> dict[str, int]:
    """The limits that the back end keeps for a volume of `size` GiB; `<limit>_max` is what a burst may be."""
    if specs is None or specs.consumer == "front-end":
        return {}
    told = _resolved(specs, size)
    limits = {name: _number(told, name) for limit in _SCALED for name in (limit, f"{limit}_max")}
    return {name: value for name, value in limits.items() if value}


def _resolved(specs: QosSpecs, size: int) -> dict[str, str]:
    told = dict(specs.specs)
    for limit in _SCALED:
        each = _number(told, f"{limit}_per_gb")
        if each is None:
            continue
        value = max(each * size, _number(told, f"{limit}_per_gb_min") or 0)
        most = _number(told, f"{limit}_max")
        for word in ("per_gb", "per_gb_min", "max"):
            told.pop(f"{limit}_{word}", None)
        told[limit] = str(value if most is None else min(value, most))
    return told


def _number(specs: Mapping[str, str], key: str) -> int | None:
    text = specs.get(key, "").strip()
    return int(text) if text.isascii() and text.isdigit() else None
