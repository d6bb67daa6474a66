"""How an encrypted volume's bytes are laid out: what the providers, ciphers and key sizes of types mean.

A LUKS volume begins with a header that holds the key of its data, sealed with a passphrase; the data follow.
The header's room is a multiple of LVM's extents and of Ceph's objects, so that the tenant's part has exactly
the size asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

_MIB = 1 << 20
_HEADERS = {"luks": 4 * _MIB, "luks2": 16 * _MIB, "plain": 0}
MOST_HEADER = max(_HEADERS.values())
_PROVIDERS = {
    **{name: name for name in _HEADERS},
    "LuksEncryptor": "luks",
    "nova.volume.encryptors.luks.LuksEncryptor": "luks",
    "os_brick.encryptors.luks.LuksEncryptor": "luks",
    "os_brick.encryptors.luks.Luks2Encryptor": "luks2",
    "CryptsetupEncryptor": "plain",
    "nova.volume.encryptors.cryptsetup.CryptsetupEncryptor": "plain",
    "os_brick.encryptors.cryptsetup.CryptsetupEncryptor": "plain",
}
_CIPHER = "aes-xts-plain64"
_KEY_SIZE = 256
# the two halves of an XTS key are counted together, as cryptsetup counts them
_KEY_SIZES = {"aes-xts": (256, 512), "aes-cbc": (128, 192, 256)}
_VECTORS = ("plain", "plain64", "essiv:sha256")
# how a LUKS volume begins: with a mark and a version of two bytes (cryptsetup's specifications of both)
_LUKS_MARK = b"LUKS\xba\xbe"
_LUKS_VERSIONS = {1: "luks", 2: "luks2"}
MARK_LENGTH = len(_LUKS_MARK) + 2
_FACTS = ("provider", "control_location", "cipher", "key_size")


class Layout(msgspec.Struct, frozen=True):
    """How volumes of a type are encrypted: `format` is luks, luks2 or plain, `key_size` in bits."""

    format: str
    cipher: str = _CIPHER
    key_size: int = _KEY_SIZE

    @property
    def header(self) -> int:
        """Bytes in front of the tenant's data."""
        return _HEADERS[self.format]


def layout_of(encryption: Mapping[str, Any]) -> Layout:
    """What a type's encryption means. Raises `ValueError` with the reason why nothing can be made of it."""
    provider = encryption["provider"]
    if provider not in _PROVIDERS:
        raise ValueError(f"encryption provider {provider!r} is not one of luks, luks2 and plain")
    if encryption["control_location"] != "front-end":
        raise ValueError("its encryption is left to the back end, and none of them encrypts")
    found = Layout(
        _PROVIDERS[provider], encryption.get("cipher") or _CIPHER, encryption.get("key_size") or _KEY_SIZE
    )
    kind, _, vector = found.cipher.rpartition("-")
    if kind not in _KEY_SIZES or vector not in _VECTORS:
        raise ValueError(f"cipher {found.cipher!r} is not one that is known, such as {_CIPHER}")
    if found.key_size not in _KEY_SIZES[kind]:
        sizes = " or ".join(str(each) for each in _KEY_SIZES[kind])
        raise ValueError(f"a key of {found.key_size} bits does not fit {found.cipher}: {sizes} are wanted")
    return found


def format_of(start: bytes) -> str | None:
    """Which format an encrypted volume is of, by its first `MARK_LENGTH` bytes; None: an unknown version."""
    if not start.startswith(_LUKS_MARK):
        return "plain"
    return _LUKS_VERSIONS.get(int.from_bytes(start[len(_LUKS_MARK) : MARK_LENGTH], "big"))


def same(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Whether volumes of two types are encrypted in the same way."""
    if one is None or other is None:
        return one is other
    return all(one.get(fact) == other.get(fact) for fact in _FACTS)
