"""LVM's programs on one volume group: what is there, in data; commands, with errors in plain words.

A change of LVM's is a single write of the group's metadata: a logical volume has been made, renamed or
removed, or not at all. Who runs them decides by what a command complains of, and so needs not look before.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from functools import partial
from typing import Any

import msgspec

from lapilli.adapters import command
from lapilli.adapters.privileged import Privileged
from lapilli.errors import Busy, StorageError

_PATIENCE = 120  # seconds: one command waits for those of others
_MOMENTS = (0.1, 0.2, 0.4, 0.8, 1.5)  # seconds
_LISTED = (
    "lv_name,lv_size,origin,origin_size,pool_lv,lv_layout,lv_role,lv_active,lv_device_open,lv_suspended,"
    "lv_skip_activation,lv_snapshot_invalid,data_percent,metadata_percent,zero"
)
_NAME = re.compile(r"(?!snapshot|pvmove|[.-])[A-Za-z0-9+_.-]{1,110}")
_PART = re.compile(r"prohibited while logical volume (\S+_t(?:meta|data)) is active")
_RESERVED = re.compile(r"_(cdata|cmeta|corig|mlog|mimage|pmspare|rimage|rmeta|tdata|tmeta|vorigin|vdata)")


class Missing(StorageError):
    """There is no such logical volume."""

    retry = False


class Exists(StorageError):
    """There is one of that name already."""

    retry = False


class Full(StorageError):
    """There is no room for it."""


class LargeEnough(StorageError):
    """It cannot grow to this size, since it has it already, or all that LVM gives to a snapshot."""

    retry = False


class CutOff(StorageError):
    """A thin pool is in the middle of a change, and LVM cannot end that while the pool is used."""

    retry = False


# what LVM complains of in the C locale, and what that means
_COMPLAINTS: tuple[tuple[str, type[StorageError], str], ...] = (
    (r"already exists in volume group", Exists, "the name is taken"),
    (r"Failed to find logical volume|not found in volume group", Missing, "it is missing"),
    (r"in thin pool .* reached threshold|free space in thin pool", Full, "the thin pool has no space left"),
    (
        r"transaction_id is \d+, while expected|with queued messages",
        CutOff,
        "the thin pool is in the middle of a change, because one of LVM's programs was killed. LVM ends the "
        "change when the pool is activated anew: detach the volumes, and type vgchange --activate n, then "
        "--activate y, with the name of the group; or restart this host. Where that does not help, "
        "the pool must be repaired by hand, see lvmthin(7)",
    ),
    (r"[Ii]nsufficient (free|suitable)", Full, "the volume group has no space left"),
    (r"not larger than existing size|matches existing size", LargeEnough, "it is that large already"),
    (
        r"contains a filesystem in use| in use|is used by another|[Dd]evice or resource busy",
        Busy,
        "it is in use",
    ),
)


class Logical(msgspec.Struct, frozen=True):
    """A logical volume as LVM shows it; sizes in bytes."""

    name: str
    size: int  # that can be read
    room: int  # that it takes in the group, of a thick one
    origin: str
    pool: str  # the thin pool that it is in
    is_pool: bool
    cow: bool  # a snapshot that copies on write, of a thick volume
    has_cows: bool
    active: bool
    open: bool
    suspended: bool
    skips: bool  # is not activated with the others
    invalid: bool
    data_percent: float
    metadata_percent: float
    zeroes: bool  # of a pool: it zeroes what it gives out

    @property
    def thin(self) -> bool:
        """Whether it is in a thin pool."""
        return bool(self.pool)


class Room(msgspec.Struct, frozen=True):
    """Of the volume group, in bytes."""

    total: int
    free: int
    extent: int


def is_plain(name: object) -> bool:
    """Whether a word is a name that LVM takes for a logical volume, and is not one of its own."""
    return isinstance(name, str) and bool(_NAME.fullmatch(name)) and not _RESERVED.search(name)


class Group:
    """One volume group."""

    def __init__(self, name: str, root: Privileged, *, system_dir: str | None = None) -> None:
        self.name = name
        self._root = root
        self._environment = {"LVM_SUPPRESS_FD_WARNINGS": "1"}
        if system_dir is not None:
            self._environment["LVM_SYSTEM_DIR"] = system_dir

    def path(self, name: str) -> str:
        """The device of a logical volume that is active."""
        return f"/dev/{self.name}/{name}"

    def full_name(self, name: str) -> str:
        """What LVM's programs call it."""
        return f"{self.name}/{name}"

    # -- what is there ----------------------------------------------------------------------------------

    def room(self) -> Room:
        """Sizes of the group. Raises `Missing`."""
        (found,) = self._report("vgs", "vg", "vg_size,vg_free,vg_extent_size", self.name)
        return Room(*(int(found[key]) for key in ("vg_size", "vg_free", "vg_extent_size")))

    def all(self) -> dict[str, Logical]:
        """All logical volumes by name, but for LVM's own."""
        rows = self._report("lvs", "lv", _LISTED, self.name)
        shown = [_logical(row) for row in rows]
        return {each.name: each for each in shown}

    def find(self, name: str) -> Logical | None:
        """One logical volume."""
        with contextlib.suppress(Missing):
            for row in self._report("lvs", "lv", _LISTED, self.full_name(name)):
                return _logical(row)
        return None

    def is_open(self, lv: Logical) -> bool:
        """Whether somebody has it open. What looks at changed devices, such as udev, does not count: that
        lasts a moment."""
        found: Logical | None = lv
        for pause in _MOMENTS:
            if found is None or not found.open:
                return False
            time.sleep(pause)
            found = self.find(lv.name)
        return found is not None and found.open

    def _report(self, program: str, kind: str, fields: str, what: str) -> list[dict[str, str]]:
        words = ["--reportformat", "json", "--units", "b", "--nosuffix", "--binary", "-o", fields, what]
        answer: dict[str, Any] = json.loads(self.run(program, *words, deed="look at the volume group"))
        rows: list[dict[str, str]] = answer["report"][0][kind]
        return rows

    # -- changes ----------------------------------------------------------------------------------------

    def rename(self, name: str, to: str, *, deed: str) -> None:
        """Raises `Missing`, and `Exists` where the new name is taken."""
        self.run("lvrename", self.name, name, to, deed=deed)

    def remove(self, name: str, *, deed: str) -> None:
        """A missing one is success. Raises `Busy`."""
        with contextlib.suppress(Missing):
            self.run("lvremove", "--yes", self.full_name(name), deed=deed)

    def run(self, program: str, *words: str, deed: str, timeout: int = _PATIENCE) -> str:
        """Run one of LVM's programs. Raises `StorageError`, or the class that fits its complaint.

        Of a thin pool whose activation was cut off, parts are active by themselves, and LVM does nothing with
        it until they no longer are.
        """
        command_line = partial(self._root.run, timeout=timeout, environment=self._environment)
        parts_left = 2  # metadata and data
        while True:
            try:
                return command_line(program, *words)
            except command.Failed as problem:
                part = _PART.search(problem.complaint)
                if part is None or parts_left == 0:
                    raise _told(problem, deed) from problem
            parts_left -= 1
            with contextlib.suppress(command.Failed):
                command_line("lvchange", "--activate", "n", part[1])


def _told(problem: command.Failed, deed: str) -> StorageError:
    lines = problem.complaint.splitlines()
    complaint = " ".join(line.strip() for line in lines if not line.lstrip().startswith("WARNING"))
    for pattern, kind, words in _COMPLAINTS:
        if re.search(pattern, complaint):
            return kind(f"Could not {deed}: {words}.")
    if re.search(r"Volume group .* not found", complaint):
        return StorageError(f"Could not {deed}: there is no such volume group on this host.")
    return StorageError(f"Could not {deed}: {complaint[-200:] or problem.message}")


def _logical(row: dict[str, str]) -> Logical:
    layout, role = row["lv_layout"].split(","), row["lv_role"].split(",")
    cow = "thicksnapshot" in role
    size = row["origin_size"] if cow and row["origin_size"] else row["lv_size"]
    return Logical(
        name=row["lv_name"].strip("[]"),
        size=int(size),
        room=int(row["lv_size"]),
        origin=row["origin"].strip("[]"),
        pool=row["pool_lv"].strip("[]"),
        is_pool="pool" in layout,
        cow=cow,
        has_cows="thickorigin" in role,
        active=row["lv_active"] not in ("", "0"),
        open=row["lv_device_open"] == "1",
        suspended=row["lv_suspended"] == "1",
        skips=row["lv_skip_activation"] == "1",
        invalid=row["lv_snapshot_invalid"] == "1",
        data_percent=float(row["data_percent"] or 0),
        metadata_percent=float(row["metadata_percent"] or 0),
        zeroes=row["zero"] == "1",
    )
