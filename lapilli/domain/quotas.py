"""What a change costs, and whether it fits: arithmetic over limits and usages (behaviour.md section 10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from lapilli.config import option
from lapilli.errors import OverQuota

MAX = 2**31 - 1


@dataclass(frozen=True)
class QuotaOptions:
    """Default limits; -1 is unlimited."""

    quota_volumes: int = option(10, "Volumes a project may have.", minimum=-1)
    quota_snapshots: int = option(10, "Snapshots a project may have.", minimum=-1)
    quota_gigabytes: int = option(1000, "GiB of volumes and snapshots a project may have.", minimum=-1)
    quota_backups: int = option(10, "Backups a project may have.", minimum=-1)
    quota_backup_gigabytes: int = option(1000, "GiB of backups a project may have.", minimum=-1)
    quota_groups: int = option(10, "Groups a project may have.", minimum=-1)
    per_volume_size_limit: int = option(-1, "Largest volume, in GiB.", minimum=-1)
    no_snapshot_gb_quota: bool = option(False, "Leave snapshots out of the gigabytes.")

    def defaults(self) -> dict[str, int]:
        """Limits by resource name."""
        return {
            "volumes": self.quota_volumes,
            "snapshots": self.quota_snapshots,
            "gigabytes": self.quota_gigabytes,
            "backups": self.quota_backups,
            "backup_gigabytes": self.quota_backup_gigabytes,
            "groups": self.quota_groups,
            "per_volume_gigabytes": self.per_volume_size_limit,
        }


class Usage(msgspec.Struct, frozen=True):
    """What a project holds of a resource, and what running operations have reserved."""

    in_use: int = 0
    reserved: int = 0


def volume_deltas(size: int, type_name: str, *, volumes: int = 1) -> dict[str, int]:
    """The cost of a volume of `size` GiB (negative figures give it back; `volumes=0` for an extend)."""
    deltas = {"gigabytes": size, f"gigabytes_{type_name}": size}
    if volumes:
        deltas |= {"volumes": volumes, f"volumes_{type_name}": volumes}
    return deltas


def snapshot_deltas(
    size: int, type_name: str, options: QuotaOptions, *, snapshots: int = 1
) -> dict[str, int]:
    """The cost of a snapshot of `size` GiB; both figures negative give it back."""
    deltas = {"snapshots": snapshots, f"snapshots_{type_name}": snapshots}
    if not options.no_snapshot_gb_quota:
        deltas |= {"gigabytes": size, f"gigabytes_{type_name}": size}
    return deltas


def check(deltas: Mapping[str, int], limits: Mapping[str, int], usages: Mapping[str, Usage]) -> None:
    """Raises `OverQuota` when a growing resource would pass its limit. Shrinking is never refused."""
    over = []
    for name, delta in deltas.items():
        held = usages.get(name, Usage())
        total = held.in_use + held.reserved + delta
        limit = limits.get(name, -1)
        if delta >= 0 and (0 <= limit < total or total > MAX):
            over.append(name)
    if over:
        raise _refusal(over, deltas, limits, usages)


def check_volume_size(size: int, limits: Mapping[str, int]) -> None:
    """Raises `OverQuota` for a volume larger than the per-volume limit."""
    limit = limits.get("per_volume_gigabytes", -1)
    if 0 <= limit < size:
        raise OverQuota(
            "VolumeSizeExceedsLimit", f"{size} GiB exceeds the limit for a volume: at most {limit} GiB."
        )


# resource -> the upstream exception's name; a per-type resource is named after what it counts
_REFUSALS = {
    "gigabytes": "VolumeSizeExceedsAvailableQuota",
    "backup_gigabytes": "VolumeBackupSizeExceedsAvailableQuota",
    "volumes": "VolumeLimitExceeded",
    "snapshots": "SnapshotLimitExceeded",
    "backups": "BackupLimitExceeded",
    "groups": "GroupLimitExceeded",
}


def _refusal(
    over: list[str], deltas: Mapping[str, int], limits: Mapping[str, int], usages: Mapping[str, Usage]
) -> OverQuota:
    """Named after the first resource that is over, sizes before counts; all of them are told.

    Clients tell a quota from a rate limit by the word "exceed" in the text.
    """
    over = sorted(over, key=lambda each: ("gigabytes" not in each, each))
    first = next((word for word in _REFUSALS if over[0] == word or over[0].startswith(f"{word}_")), "")
    told = [_told(name, deltas[name], limits.get(name, -1), usages.get(name, Usage())) for name in over]
    return OverQuota(_REFUSALS.get(first, "UnexpectedOverQuota"), "; ".join(told) + ".")


def _told(name: str, delta: int, limit: int, held: Usage) -> str:
    unit = " GiB" if "gigabytes" in name else ""
    most, taken = limit if limit >= 0 else MAX, held.in_use + held.reserved
    return f"{delta}{unit} exceeds quota '{name}' of {most}{unit}, of which {taken} are taken"
