"""THE microversion table, 3.0 to 3.71: number, name, sentence. Maximum and version document are derived.

Declarations name a row by its number (`since="3.13"`). `where` says who honours a row: "declared" (some
declaration names it), "edge" (a rule of the edge itself: listing or app), "none" (no change on the wire),
"later" (belongs to a part that is not built yet). A test holds the table and the declarations together.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from lapilli.errors import InvalidInput, VersionOutOfRange

SERVICE = "volume"


class Microversion(NamedTuple):
    """One row."""

    minor: int
    name: str
    sentence: str
    where: str = "declared"


_ROWS = (
    Microversion(0, "base", "Everything of v2; discovery lists 3.x.", "edge"),
    Microversion(1, "upload-visibility", "Image upload takes visibility and protected."),
    Microversion(2, "bootable-filter", "The bootable filter of volumes must be a boolean."),
    Microversion(3, "messages", "User messages can be listed, shown and deleted."),
    Microversion(4, "glance-metadata-filter", "Volumes can be filtered by image metadata."),
    Microversion(5, "message-paging", "The list of messages has paging, sorting and filters."),
    Microversion(6, "cg-empty-names", "Updating a consistency group accepts empty texts.", "later"),
    Microversion(7, "clusters", "Clusters can be listed; services tell theirs."),
    Microversion(8, "manageable", "Manageable volumes and snapshots have paths of their own."),
    Microversion(9, "backup-update", "Backups can be updated.", "later"),
    Microversion(10, "group-filter", "Volumes can be filtered by group_id."),
    Microversion(11, "group-types", "Group types and their specs.", "later"),
    Microversion(12, "summary", "Volume summary: number and total size."),
    Microversion(13, "groups", "Groups; group_id in volumes."),
    Microversion(14, "group-snapshots", "Group snapshots; group_snapshot_id in snapshots."),
    Microversion(15, "metadata-etag", "ETag and If-Match on volume metadata."),
    Microversion(16, "migrate-cluster", "Migrate (not built yet) and manage take a cluster."),
    Microversion(17, "manageable-cluster", "Manageable lists take a cluster."),
    Microversion(18, "backup-project", "Backups show their project to administrators.", "later"),
    Microversion(19, "group-snapshot-reset", "The status of a group snapshot can be reset.", "later"),
    Microversion(20, "group-reset", "The status of a group can be reset.", "later"),
    Microversion(21, "provider-id", "Volumes show provider_id to administrators."),
    Microversion(22, "snapshot-metadata-filter", "Snapshots can be filtered by metadata."),
    Microversion(23, "delete-force", "Volume delete takes force."),
    Microversion(24, "workers-cleanup", "Workers can be cleaned up."),
    Microversion(25, "group-volumes", "Groups can tell their volumes.", "later"),
    Microversion(26, "cluster-replication", "Failover, freeze and thaw of clusters."),
    Microversion(27, "attachments", "Attachments are resources of their own."),
    Microversion(28, "pool-filters", "Pools can be filtered."),
    Microversion(29, "group-snapshot-lists", "Lists of group snapshots have filters and paging.", "later"),
    Microversion(30, "snapshot-sort-name", "Snapshots can be sorted by name."),
    Microversion(31, "configured-filters", "Filters are configurable; an unknown one is refused.", "edge"),
    Microversion(32, "log-levels", "Log levels of services can be read and set."),
    Microversion(33, "resource-filters", "The configured filters can be listed."),
    Microversion(34, "like-filters", "Filters of the form key~=text find parts of a value."),
    Microversion(35, "pool-type-filter", "Pools can be filtered by volume_type."),
    Microversion(36, "summary-metadata", "The volume summary tells metadata."),
    Microversion(37, "backup-sort-name", "Backups can be sorted by name.", "later"),
    Microversion(38, "group-replication", "Replication of groups.", "later"),
    Microversion(39, "limits-project", "Administrators can ask for a project's limits."),
    Microversion(40, "revert", "A volume can be reverted to its newest snapshot."),
    Microversion(41, "snapshot-user", "Snapshots show user_id."),
    Microversion(42, "extend-in-use", "A volume in use can be extended."),
    Microversion(43, "backup-metadata", "Backups have metadata.", "later"),
    Microversion(44, "attachment-complete", "An attachment can be completed."),
    Microversion(45, "with-count", "Lists of volumes, snapshots and backups can tell the total."),
    Microversion(46, "image-snapshot", "An image made from a server's snapshot creates from it.", "declared"),
    Microversion(47, "create-from-backup", "A volume can be created from a backup."),
    Microversion(48, "shared-targets", "Volumes show shared_targets and service_uuid."),
    Microversion(49, "backend-state", "Services show backend_state."),
    Microversion(50, "multiattach", "Marks that multiattach is supported.", "none"),
    Microversion(51, "backup-zone", "Backups take an availability zone.", "later"),
    Microversion(52, "type-extra-specs-filter", "Types can be filtered by extra specs."),
    Microversion(53, "strict-volumes", "Creating and updating volumes refuses unknown keys."),
    Microversion(54, "attachment-mode", "Attachment create takes a mode."),
    Microversion(55, "transfer-snapshots", "Transfers move snapshots too."),
    Microversion(56, "backup-user", "Backups show user_id to administrators.", "later"),
    Microversion(57, "transfer-history", "Transfers tell both projects."),
    Microversion(58, "group-project", "Groups show their project to administrators.", "later"),
    Microversion(59, "transfer-paging", "Lists of transfers have paging."),
    Microversion(60, "time-filters", "Volumes can be filtered by comparisons of times."),
    Microversion(61, "cluster-name", "Volumes show cluster_name to administrators."),
    Microversion(62, "default-types", "A project can have its own default type."),
    Microversion(63, "volume-type-id", "Volumes show volume_type_id."),
    Microversion(64, "encryption-key-id", "Encrypted volumes and backups show encryption_key_id."),
    Microversion(65, "consumes-quota", "Volumes and snapshots show consumes_quota, also a filter."),
    Microversion(66, "snapshot-in-use", "A snapshot of a volume in use needs no force."),
    Microversion(67, "no-project-id", "URLs may leave the project id out.", "edge"),
    Microversion(68, "reimage", "A volume can be written anew from an image."),
    Microversion(69, "shared-targets-null", "shared_targets may be null."),
    Microversion(70, "encrypted-transfer", "Encrypted volumes can be transferred."),
    Microversion(71, "extend-completion", "The compute service ends an extend that it was told of."),
)
TABLE: dict[int, Microversion] = {row.minor: row for row in _ROWS}
MAXIMUM = max(TABLE)


@lru_cache(maxsize=256)  # clients send few spellings
def negotiate(header: str | None) -> int:
    """The minor number that a request asks for. Raises `InvalidInput` or `VersionOutOfRange`."""
    if header is None:
        return 0
    for part in header.split(","):
        words = part.split()
        if len(words) == 2 and words[0].lower() == SERVICE:
            return _parse(words[1])
    raise InvalidInput(f"The header OpenStack-API-Version names no version of the service {SERVICE!r}.")


def _parse(text: str) -> int:
    if text == "latest":
        return MAXIMUM
    major, dot, minor = text.partition(".")
    plain = dot and all(part.isascii() and part.isdigit() for part in (major, minor))
    if not plain or len(text) > 10 or (minor[0] == "0" and minor != "0") or major[0] == "0":
        raise InvalidInput(f"API version {text!r} is not of the form 'major.minor'.")
    if major != "3" or int(minor) > MAXIMUM:
        raise VersionOutOfRange(
            f"Version {text} is not supported by the API. Minimum is 3.0 and maximum is 3.{MAXIMUM}."
        )
    return int(minor)


def document(base_url: str) -> dict[str, Any]:
    """The version document."""
    return {
        "versions": [
            {
                "id": "v3.0",
                "status": "CURRENT",
                "version": f"3.{MAXIMUM}",
                "min_version": "3.0",
                "updated": "2023-08-31T00:00:00Z",
                "links": [
                    {
                        "rel": "describedby",
                        "type": "text/html",
                        "href": "https://docs.openstack.org/api-ref/block-storage/v3/",
                    },
                    {"rel": "self", "href": f"{base_url}/v3/"},
                ],
                "media-types": [
                    {
                        "base": "application/json",
                        "type": "application/vnd.openstack.volume+json;version=3",
                    }
                ],
            }
        ]
    }
