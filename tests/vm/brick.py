"""What Nova does with os-brick on a hypervisor, over one pipe. Runs in an environment that has os-brick:

    python brick.py LOCKS

Each line in is a JSON list: a command, its arguments. Each line out is a JSON object: an `answer` or `error`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from os_brick import encryptors, privileged
from os_brick.encryptors.luks import Luks2Encryptor
from os_brick.initiator import connector
from oslo_concurrency import lockutils
from oslo_config import cfg

Facts = dict[str, Any]


class Key:
    """A key as a key manager hands it out."""

    def __init__(self, text: str) -> None:
        self._content = bytes.fromhex(text)

    def get_encoded(self) -> bytes:
        return self._content

    def managed_type(self) -> str:
        """What kind of secret it is: one that is no text."""
        return "symmetric"

    def get(self, _context: object, _identifier: str) -> Key:
        """The only key there is."""
        return self


def facts() -> Facts:
    """What a hypervisor says of itself, and the service is told as the connector."""
    told = connector.get_connector_properties("sudo", "127.0.0.1", multipath=False, enforce_multipath=False)
    return dict(told)


def of(info: Facts) -> Any:
    """Who connects."""
    return connector.InitiatorConnector.factory(
        info["driver_volume_type"].upper(), "sudo", use_multipath=False, device_scan_attempts=10
    )


def connect(info: Facts) -> Facts:
    """The device."""
    return dict(of(info).connect_volume(info["data"]))


def extend(info: Facts) -> int:
    """The size in bytes, after it was looked at anew."""
    return int(of(info).extend_volume(info["data"]))


def disconnect(info: Facts, device: Facts) -> None:
    """End the connection."""
    of(info).disconnect_volume(info["data"], device)


def _encryptor(info: Facts, encryption: Facts, key: str) -> Any:
    made = encryptors.get_volume_encryptor("sudo", info, Key(key), **encryption)
    assert isinstance(made, Luks2Encryptor)
    return made


def unlock(info: Facts, encryption: Facts, key: str) -> str:
    """The device behind dm-crypt."""
    made = _encryptor(info, encryption, key)
    made.attach_volume(None, **encryption)
    return f"/dev/mapper/{made.dev_name}"


def lock(info: Facts, encryption: Facts, key: str) -> None:
    """End dm-crypt's part."""
    _encryptor(info, encryption, key).detach_volume()


def main() -> None:
    """Obey until there is nothing more to read."""
    lockutils.set_defaults(sys.argv[1])
    cfg.CONF([], project="brick")
    cfg.CONF.set_override("lock_path", sys.argv[1], "oslo_concurrency")
    privileged.default.set_client_mode(False)  # we are root: no daemon for that
    commands = {each.__name__: each for each in (facts, connect, extend, disconnect, unlock, lock)}
    for line in sys.stdin:
        name, *words = json.loads(line)
        try:
            answer = {"answer": commands[name](*words)}
        except Exception as problem:
            answer = {"error": f"{type(problem).__name__}: {problem}"}
        print(json.dumps(answer), flush=True)


main()
