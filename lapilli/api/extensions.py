"""The extensions that clients may look for: every one of them is simply part of this service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_SINCE = "2026-01-01T00:00:00+00:00"  # all have been there since the first release


@dataclass(frozen=True)
class Extension:
    """One alias with its words."""

    alias: str
    name: str
    description: str

    def told(self) -> dict[str, Any]:
        """As the API shows it."""
        return {
            "name": self.name,
            "alias": self.alias,
            "description": self.description,
            "updated": _SINCE,
            "links": [],
        }


_ALL = (
    Extension("os-vol-image-meta", "VolumeImageMetadata", "Image properties kept with a volume."),
    Extension("os-volume-unmanage", "VolumeUnmanage", "Let go of a volume without deleting its data."),
    Extension("os-used-limits", "UsedLimits", "What is used of each limit."),
    Extension("os-admin-actions", "AdminActions", "Reset, force delete and migrate, for administrators."),
    Extension("cgsnapshots", "Cgsnapshots", "Snapshots of consistency groups."),
    Extension("os-types-extra-specs", "TypesExtraSpecs", "Extra specs of volume types."),
    Extension("os-snapshot-unmanage", "SnapshotUnmanage", "Let go of a snapshot without deleting it."),
    Extension("encryption", "VolumeTypeEncryption", "How volumes of a type are encrypted."),
    Extension("os-volume-encryption-metadata", "VolumeEncryptionMetadata", "How one volume is encrypted."),
    Extension("consistencygroups", "Consistencygroups", "Volumes that are snapped together."),
    Extension("os-snapshot-actions", "SnapshotActions", "Progress reports on snapshots."),
    Extension("backups", "Backups", "Copies of volumes in another store."),
    Extension("os-quota-sets", "Quotas", "Limits of projects."),
    Extension("os-volume-actions", "VolumeActions", "Attach, detach, extend and further actions."),
    Extension("os-quota-class-sets", "QuotaClasses", "Limits by class."),
    Extension("os-availability-zone", "AvailabilityZones", "The zones that volumes can be in."),
    Extension("os-volume-type-access", "VolumeTypeAccess", "Which projects may use a private type."),
    Extension("os-services", "Services", "The processes of the service, and whether they are up."),
    Extension("os-hosts", "Hosts", "The hosts of the service."),
    Extension("os-types-manage", "TypesManage", "Create, change and delete volume types."),
    Extension(
        "os-extended-snapshot-attributes", "ExtendedSnapshotAttributes", "Project and progress of snapshots."
    ),
    Extension("os-snapshot-manage", "SnapshotManage", "Take a snapshot that exists under control."),
    Extension("qos-specs", "QosSpecs", "Quality of service by volume type."),
    Extension("os-vol-host-attr", "VolumeHostAttribute", "The pool that a volume is in."),
    Extension("scheduler-stats", "SchedulerStats", "What pools report."),
    Extension("os-volume-manage", "VolumeManage", "Take a volume that exists under control."),
    Extension("os-vol-mig-status-attr", "VolumeMigStatusAttribute", "How a migration is coming along."),
    Extension("os-volume-transfer", "VolumeTransfer", "Give a volume to another project."),
    Extension("os-vol-tenant-attr", "VolumeTenantAttribute", "The project that a volume belongs to."),
    Extension("OS-SCH-HNT", "SchedulerHints", "Wishes about where a volume is placed."),
    Extension("os-extended-services", "ExtendedServices", "Why a service is disabled."),
    Extension("capabilities", "Capabilities", "What a back end can do."),
)

EXTENSIONS = {each.alias: each for each in _ALL}
