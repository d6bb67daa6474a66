"""What a change costs, and whether it fits (behaviour.md section 10)."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from lapilli.domain.quotas import (
    MAX,
    QuotaOptions,
    Usage,
    check,
    check_volume_size,
    snapshot_deltas,
    volume_deltas,
)
from lapilli.errors import OverQuota


def test_defaults() -> None:
    assert QuotaOptions().defaults() == {
        "volumes": 10,
        "snapshots": 10,
        "gigabytes": 1000,
        "backups": 10,
        "backup_gigabytes": 1000,
        "groups": 10,
        "per_volume_gigabytes": -1,
    }
    assert QuotaOptions().no_snapshot_gb_quota is False


def test_costs() -> None:
    assert volume_deltas(7, "gold") == {"volumes": 1, "volumes_gold": 1, "gigabytes": 7, "gigabytes_gold": 7}
    assert volume_deltas(7, "gold", volumes=0) == {"gigabytes": 7, "gigabytes_gold": 7}
    assert snapshot_deltas(7, "gold", QuotaOptions()) == {
        "snapshots": 1,
        "snapshots_gold": 1,
        "gigabytes": 7,
        "gigabytes_gold": 7,
    }
    without = QuotaOptions(no_snapshot_gb_quota=True)
    assert snapshot_deltas(7, "gold", without) == {"snapshots": 1, "snapshots_gold": 1}


sizes = st.integers(1, MAX)


@given(size=sizes, free=st.booleans())
def test_giving_back_is_the_opposite(size: int, free: bool) -> None:
    options = QuotaOptions(no_snapshot_gb_quota=free)
    taken, back = volume_deltas(size, "t"), volume_deltas(-size, "t", volumes=-1)
    assert {name: -value for name, value in taken.items()} == back
    taken, back = snapshot_deltas(size, "t", options), snapshot_deltas(-size, "t", options, snapshots=-1)
    assert {name: -value for name, value in taken.items()} == back


FITS = [
    # why, delta, limit, held, fits
    ("under", 1, 10, Usage(8, 0), True),
    ("exactly", 1, 10, Usage(9, 0), True),
    ("over", 1, 10, Usage(10, 0), False),
    ("reserved counts", 1, 10, Usage(5, 5), False),
    ("a limit of 0", 1, 0, Usage(), False),
    ("unlimited", 10**6, -1, Usage(10**6, 10**6), True),
    ("shrinking is never refused", -1, 0, Usage(10, 0), True),
    ("shrinking over the top", -1, 5, Usage(MAX, MAX), True),
    ("nothing more, but over already", 0, 5, Usage(6, 0), False),
    ("nothing more, within", 0, 5, Usage(5, 0), True),
    ("the largest sum", 1, -1, Usage(MAX - 1, 0), True),
    ("overflow", 1, -1, Usage(MAX, 0), False),
    ("overflow by what is reserved", MAX, -1, Usage(0, 1), False),
    ("overflow beats the limit", 1, MAX, Usage(MAX, 0), False),
]


@pytest.mark.parametrize("name", ["volumes", "gigabytes", "volumes_gold"])
@pytest.mark.parametrize(
    ("delta", "limit", "held", "fits"), [row[1:] for row in FITS], ids=[row[0] for row in FITS]
)
def test_fits(name: str, delta: int, limit: int, held: Usage, fits: bool) -> None:
    if fits:
        check({name: delta}, {name: limit}, {name: held})
    else:
        with pytest.raises(OverQuota):
            check({name: delta}, {name: limit}, {name: held})


def test_what_has_no_row_is_unlimited_and_unused() -> None:
    check({"volumes_gold": 5}, {}, {})
    with pytest.raises(OverQuota):
        check({"volumes": 5}, {"volumes": 4}, {})


NAMES = {
    "gigabytes": "VolumeSizeExceedsAvailableQuota",
    "gigabytes_gold": "VolumeSizeExceedsAvailableQuota",
    "backup_gigabytes": "VolumeBackupSizeExceedsAvailableQuota",
    "volumes": "VolumeLimitExceeded",
    "volumes_gold": "VolumeLimitExceeded",
    "snapshots": "SnapshotLimitExceeded",
    "snapshots_gold": "SnapshotLimitExceeded",
    "backups": "BackupLimitExceeded",
    "groups": "GroupLimitExceeded",
    "wheels": "UnexpectedOverQuota",
}


@pytest.mark.parametrize(("resource", "name"), NAMES.items())
def test_names_of_the_refusals(resource: str, name: str) -> None:
    with pytest.raises(OverQuota) as caught:
        check({resource: 3}, {resource: 2}, {resource: Usage(1, 1)})
    error = caught.value
    unit = " GiB" if "gigabytes" in resource else ""
    assert (error.name, error.status, error.code) == (name, 413, "over-quota")
    assert error.message == (f"{name}: 3{unit} exceeds quota '{resource}' of 2{unit}, of which 2 are taken.")


def test_every_resource_that_is_over_is_told() -> None:
    limits = {"volumes": 0, "gigabytes": 5, "gigabytes_gold": 100, "volumes_gold": 0}
    with pytest.raises(OverQuota) as caught:
        check(volume_deltas(6, "gold"), limits, {})
    assert caught.value.name == "VolumeSizeExceedsAvailableQuota"
    for resource in ("'volumes'", "'gigabytes'", "'volumes_gold'"):
        assert resource in caught.value.message
    assert "'gigabytes_gold'" not in caught.value.message


@pytest.mark.parametrize(
    ("size", "limit", "fits"), [(5, -1, True), (5, 5, True), (6, 5, False), (1, 0, False)]
)
def test_size_of_one_volume(size: int, limit: int, fits: bool) -> None:
    limits = {"per_volume_gigabytes": limit}
    if fits:
        check_volume_size(size, limits)
        check_volume_size(size, {})
    else:
        with pytest.raises(OverQuota, match=rf"^VolumeSizeExceedsLimit: {size} GiB .* at most {limit} GiB"):
            check_volume_size(size, limits)


names = st.sampled_from(["volumes", "gigabytes", "snapshots", "groups"])
counts = st.integers(0, MAX)


@given(
    deltas=st.dictionaries(names, st.integers(-MAX, MAX)),
    limits=st.dictionaries(names, st.integers(-1, MAX)),
    usages=st.dictionaries(names, st.builds(Usage, counts, counts)),
)
def test_check_is_the_rule(deltas: dict[str, int], limits: dict[str, int], usages: dict[str, Usage]) -> None:
    def over(name: str, delta: int) -> bool:
        held = usages.get(name, Usage())
        total = held.in_use + held.reserved + delta
        limit = limits.get(name, -1)
        return delta >= 0 and ((limit >= 0 and limit < total) or total > MAX)

    refused = any(over(name, delta) for name, delta in deltas.items())
    try:
        check(deltas, limits, usages)
    except OverQuota:
        assert refused
    else:
        assert not refused
