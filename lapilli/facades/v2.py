"""Version 2: the paths of 3.0 without microversions, and only its resources."""

from __future__ import annotations

from lapilli.facades.old import Version

RESOURCES = frozenset(
    """volumes snapshots types qos-specs backups os-volume-transfer consistencygroups cgsnapshots
    os-volume-manage os-snapshot-manage os-quota-sets os-quota-class-sets limits os-availability-zone
    os-services os-hosts scheduler-stats capabilities extensions""".split()
)

V2 = Version(
    name="v2",
    id="v2.0",
    media_type="2",
    resources=RESOURCES,
    absent="volumes/summary",
)
