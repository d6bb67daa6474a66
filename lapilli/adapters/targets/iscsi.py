"""What every iSCSI target has in common: portals, the account of an export, what initiators are told."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from typing import Any

from lapilli.errors import InvalidInput
from lapilli.ports.target import ExportSpec, OfAnotherKind

_INITIATOR = re.compile(r"(iqn|eui|naa)\.[\w.:-]{1,219}", re.ASCII)


def portal(address: str, port: int) -> str:
    """`address:port`, an IPv6 address in brackets."""
    return f"[{address}]:{port}" if ":" in address and not address.startswith("[") else f"{address}:{port}"


def portals(addresses: Iterable[str], port: int) -> list[str]:
    """Portals of a target, each once, in the order given."""
    return list(dict.fromkeys(portal(address, port) for address in addresses))


def account(volume_id: str) -> dict[str, str]:
    """A stable user name with a random password: 96 bits, in as many characters as every initiator takes."""
    user = "u" + hashlib.sha256(volume_id.encode()).hexdigest()[:19]
    return {"username": user, "password": secrets.token_urlsafe(12)}


def name(spec: ExportSpec, lun: int) -> str:
    """Name of the export's target, for a kind of target that serves volumes as this unit.

    Raises `OfAnotherKind` where another kind has made the export: the names are the same, but initiators were
    told another unit, and would find none there.
    """
    if spec.chosen("lun") != lun:
        raise OfAnotherKind(spec.volume_id)
    found: str = spec.chosen("iqn")
    return found


def initiators(spec: ExportSpec) -> set[str]:
    """Names of the initiators that hold the export."""
    return {each["initiator"] for each in spec.connectors if is_initiator(each.get("initiator"))}


def is_initiator(name: object) -> bool:
    """Whether an initiator can have that name: a target that lists them makes it the name of a directory."""
    return isinstance(name, str) and _INITIATOR.fullmatch(name) is not None


def connection_info(
    spec: ExportSpec, connector: dict[str, Any], access_mode: str, lun: int
) -> dict[str, Any]:
    """The iSCSI form of os-brick; the CHAP secret is part of it. Raises `InvalidInput`.

    With several portals each is named, for multipath; an initiator without it takes the first that answers.
    """
    if not connector.get("initiator"):
        raise InvalidInput("The connector lacks 'initiator', which iSCSI needs.")
    iqn = name(spec, lun)
    ways = spec.data.get("portals", [spec.chosen("portal")])
    several = {
        "target_portals": ways,
        "target_iqns": [iqn] * len(ways),
        "target_luns": [lun] * len(ways),
    }
    return {
        "driver_volume_type": "iscsi",
        "data": {
            "target_discovered": False,
            "target_portal": spec.chosen("portal"),
            "target_iqn": iqn,
            "target_lun": lun,
            **(several if len(ways) > 1 or connector.get("multipath") else {}),
            "volume_id": spec.volume_id,
            "auth_method": "CHAP",
            "auth_username": spec.secret["username"],
            "auth_password": spec.secret["password"],
            "access_mode": access_mode,
            "discard": True,
        },
    }
