"""What the encryption of a type means."""

from __future__ import annotations

from typing import Any

import pytest

from lapilli.domain.encryption import Layout, format_of, layout_of, same

LUKS = {"provider": "luks", "control_location": "front-end", "cipher": "aes-xts-plain64", "key_size": 512}
MIB = 1 << 20


@pytest.mark.parametrize(
    ("told", "layout"),
    [
        (LUKS, Layout("luks", "aes-xts-plain64", 512)),
        (LUKS | {"cipher": None, "key_size": None}, Layout("luks", "aes-xts-plain64", 256)),
        (LUKS | {"provider": "luks2", "key_size": 256}, Layout("luks2", "aes-xts-plain64", 256)),
        (LUKS | {"provider": "LuksEncryptor"}, Layout("luks", "aes-xts-plain64", 512)),
        (LUKS | {"provider": "CryptsetupEncryptor"}, Layout("plain", key_size=512)),
        (LUKS | {"cipher": "aes-cbc-plain64", "key_size": 128}, Layout("luks", "aes-cbc-plain64", 128)),
    ],
)
def test_layouts(told: dict[str, Any], layout: Layout) -> None:
    assert layout_of(told) == layout


@pytest.mark.parametrize(
    ("start", "format"),
    [
        (b"LUKS\xba\xbe\x00\x01", "luks"),
        (b"LUKS\xba\xbe\x00\x02", "luks2"),
        (b"LUKS\xba\xbe\x00\x03", None),
        (b"LUKS\xba\xbe\x01\x00", None),
        (b"LUKS\xba\xbe", None),
        (b"SKUL\xba\xbe\x00\x02", "plain"),  # of a second header, which is nowhere the first one
        (bytes(8), "plain"),
        (b"", "plain"),
    ],
)
def test_what_a_volume_begins_with(start: bytes, format: str | None) -> None:
    assert format_of(start) == format


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"provider": "os_brick.encryptors.nop.NoOpEncryptor"}, "NoOp"),
        ({"control_location": "back-end"}, "none of them encrypts"),
        ({"cipher": "aes-xts-plain65"}, "aes-xts-plain65"),
        ({"cipher": "aes"}, "'aes'"),
        ({"key_size": 384}, "256 or 512"),
        ({"cipher": "aes-cbc-plain64", "key_size": 512}, "128 or 192 or 256"),
    ],
)
def test_what_cannot_be_made(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        layout_of(LUKS | change)


def test_headers_are_of_whole_extents() -> None:
    assert [Layout(name).header for name in ("luks", "luks2", "plain")] == [4 * MIB, 16 * MIB, 0]


def test_same() -> None:
    assert same(None, None)
    assert same(LUKS | {"encryption_id": "a"}, LUKS | {"encryption_id": "b"})
    assert not same(None, LUKS)
    assert not same(LUKS, None)
    assert not same(LUKS, LUKS | {"key_size": 256})
