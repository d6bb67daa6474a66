"""Addresses of volumes in QEMU's words."""

from __future__ import annotations

import pytest

from lapilli.adapters import qemu
from lapilli.errors import StorageError
from lapilli.ports.driver import BlockAddress


def test_every_kind_of_address() -> None:
    options = {
        "driver=raw,file.driver=file,file.filename=/pool/a,,b.raw": BlockAddress("file", "/pool/a,b.raw"),
        "driver=raw,file.driver=host_device,file.filename=/dev/vg/lv": BlockAddress("block", "/dev/vg/lv"),
        "driver=raw,file.driver=rbd,file.pool=rbd,file.image=volume-1,file.conf=/etc/c.conf,file.user=u": (
            BlockAddress("rbd", "rbd/volume-1", {"conf": "/etc/c.conf", "user": "u"})
        ),
        "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path=/run/s,file.export=e": (
            BlockAddress("nbd", "/run/s", {"export": "e"})
        ),
        "driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=127.0.0.1:3260,"
        "file.target=iqn.x:y,file.lun=1": (
            BlockAddress("iscsi", "127.0.0.1:3260", {"iqn": "iqn.x:y", "lun": "1"})
        ),
    }
    assert [qemu.image_options(address) for address in options.values()] == list(options)


def test_a_format_layer() -> None:
    made = qemu.blockdev(BlockAddress("file", "/a"), driver="luks", **{"key-secret": "s"})
    assert made == {
        "driver": "luks",
        "key-secret": "s",
        "file": {"driver": "file", "filename": "/a"},
    }


def test_an_address_of_another_kind_is_refused() -> None:
    with pytest.raises(StorageError, match="no way to a volume of kind 'tape'"):
        qemu.image_options(BlockAddress("tape", "1"))
