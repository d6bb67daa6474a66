"""The volume groups of the virtual machine, see `guest/parts/lvm.sh`."""

from __future__ import annotations

import os
import subprocess

MAIN, THIN, THICK = "lapilli-test", "lapilli-thin", "lapilli-thick"
POOL = "pool"  # thin, in the first two


def lvm(*words: str) -> str:
    """Run one of LVM's programs; what it said."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def names(group: str) -> list[str]:
    """Of its logical volumes, snapshots before what they were made of."""
    return lvm("lvs", "--noheadings", "-o", "lv_name", "--sort", "-origin", group).split()


def empty(group: str, *, keep: tuple[str, ...] = ()) -> None:
    """Remove its logical volumes."""
    left = [f"{group}/{name}" for name in names(group) if name not in keep]
    if left:
        lvm("lvremove", "--yes", *left)


def disk(name: str = "other") -> str:
    """The device of a disk that nothing is on: `other`, `service`."""
    return os.path.realpath(f"/dev/disk/by-id/virtio-{name}")
