"""Reaches an exported volume over iSCSI with QEMU's own initiator: this machine's kernel takes no part.

A CHAP secret is handed to QEMU in a file that only we can read, never as a process argument.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from commands import attempt, run
from failure import DemoFailed

INITIATOR = "iqn.2026-11.example.lapilli:demo"
_NOBODY_HOME = ("Can not reconnect", "refused")  # libiscsi's words for a peer that hung up, or is not there


@dataclass(frozen=True)
class Export:
    """Where a volume is exported, and the CHAP account that opens it."""

    portal: str
    target: str
    lun: int
    user: str
    secret: str = field(repr=False)

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Export:
        """From an attachment's `connection_info`."""
        if info.get("driver_volume_type") != "iscsi" or info.get("auth_method") != "CHAP":
            raise DemoFailed(f"not an iSCSI export with CHAP: {sorted(info)}")
        return cls(
            portal=info["target_portal"],
            target=info["target_iqn"],
            lun=int(info["target_lun"]),
            user=info["auth_username"],
            secret=info["auth_password"],
        )

    def with_wrong_secret(self) -> Export:
        """The same with a secret that is not the account's."""
        return replace(self, secret=self.secret[::-1] + "x")

    @contextmanager
    def secret_object(self) -> Iterator[str]:
        """QEMU's `--object` with this secret, named `chap`."""
        with tempfile.NamedTemporaryFile("w", prefix="lapilli-demo-") as file:  # made with mode 0600
            file.write(self.secret)
            file.flush()
            yield f"secret,id=chap,file={file.name}"

    def options(self, prefix: str = "") -> str:
        """QEMU's block options for this export; the secret is the object `chap`."""
        values = {
            "driver": "iscsi",
            "transport": "tcp",
            "portal": self.portal,
            "target": self.target,
            "lun": str(self.lun),
            "user": self.user,
            "password-secret": "chap",
            "initiator-name": INITIATOR,
        }
        return ",".join(f"{prefix}{name}={value}" for name, value in values.items())


def read_range(export: Export, offset: int, size: int, output: Path) -> None:
    """Copy a range of the volume's bytes into a file."""
    source = f"driver=raw,offset={offset},size={size},{export.options('file.')}"
    with export.secret_object() as secret:
        run("qemu-img", "convert", "--object", secret, "--image-opts", source, "-O", "raw", output)


def knock(export: Export) -> subprocess.CompletedProcess[str]:
    """Try to log in and ask for the size."""
    with export.secret_object() as secret:
        return attempt("qemu-img", "info", "--object", secret, "--image-opts", export.options(), seconds=30)


def targets(portal: str) -> list[str]:
    """Names of the targets that a portal tells to anybody who asks.

    tgtd hangs up on everybody while it has no target at all; a target that is not running exports nothing.
    """
    done = attempt("iscsi-ls", "-i", INITIATOR, f"iscsi://{portal}", seconds=30)
    if done.returncode and not any(reason in done.stderr for reason in _NOBODY_HOME):
        raise DemoFailed(f"the target at {portal} gives no list: {done.stderr.strip()}")
    return [line.split()[0].removeprefix("Target:") for line in done.stdout.splitlines() if line]
