"""The funnel, row by row: capacity (behaviour 11.3), extra specs (11.4), weighers and handler (11.6)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, strategies as st

from lapilli.domain.placement import (
    FILTERS,
    WEIGHERS,
    Candidate,
    Request,
    SchedulerOptions,
    check_names,
    choose,
    over_subscription,
    virtual_free,
)
from lapilli.errors import ConfigError, NoValidBackend

THIN: dict[str, Any] = {"thin_provisioning_support": True}
THICK: dict[str, Any] = {"thin_provisioning_support": False}


def pool(
    name: str = "h@b#p", *, zone: str = "nova", placed: int = 0, since: int = 0, **told: Any
) -> Candidate:
    """A candidate; capabilities by short names: T, F, P, r, o as in the specification."""
    words = {
        "T": "total_capacity_gb",
        "F": "free_capacity_gb",
        "P": "provisioned_capacity_gb",
        "r": "reserved_percentage",
        "o": "max_over_subscription_ratio",
    }
    capabilities = {words.get(key, key): value for key, value in told.items()}
    return Candidate(
        name=name, zone=zone, capabilities=capabilities, allocated_gb=placed, claimed_since_report=since
    )


def asked(size: int = 1, **more: Any) -> Request:
    return Request(size=size, **more)


# --- capacity: one row per decision ----------------------------------------------------------------------

CAPACITY = [
    # why, pool, request, passes
    ("2: nothing is asked", pool(T=0, F=0, **THIN), asked(0), True),
    ("2: comes before a missing figure", pool(), asked(0), True),
    ("3: free is missing", pool(T=100, **THIN), asked(), False),
    ("4: free is infinite", pool(T=100, F="infinite"), asked(10**6), True),
    ("4: free is unknown", pool(T=100, F="unknown", r=50), asked(10**6), True),
    ("5: total is infinite, no reserve", pool(T="infinite", F=1), asked(10**6), True),
    ("5: total is unknown, no reserve", pool(T="unknown", F=1), asked(10**6), True),
    ("5: total is missing, no reserve", pool(F=1), asked(10**6), True),
    ("5: total is infinite, a reserve", pool(T="infinite", F=1, r=1), asked(), False),
    ("5: total is unknown, a reserve", pool(T="unknown", F=1, r=10), asked(), False),
    ("6: total is 0", pool(T=0, F=0, **THIN), asked(), False),
    ("6: total is negative", pool(T=-1, F=10, **THICK), asked(), False),
    ("7: ratio below 1", pool(T=100, F=100, P=0, o=0.9, **THIN), asked(), False),
    ("7: only for thin pools", pool(T=100, F=100, P=0, o=0.9, **THICK), asked(), True),
    ("7: only for thin requests", pool(T=100, F=100, P=0, o=0.9, **THIN),
     asked(extra_specs={"provisioning:type": "thick"}), True),
    ("8: up to the virtual room", pool(T=100, F=100, P=190, o=2, **THIN), asked(10), True),
    ("8: one more than the virtual room", pool(T=100, F=100, P=190, o=2, **THIN), asked(11), False),
    ("8: what is really free does not count", pool(T=100, F=0, P=0, o=2, **THIN), asked(200), True),
    ("8: ratio 1 leaves the total", pool(T=100, F=100, P=0, o=1, **THIN), asked(100), True),
    ("8: ratio 1 and no more", pool(T=100, F=100, P=0, o=1, **THIN), asked(101), False),
    ("8: the reserve is kept", pool(T=100, F=100, P=0, r=10, o=2, **THIN), asked(180), True),
    ("8: the reserve is not used", pool(T=100, F=100, P=0, r=10, o=2, **THIN), asked(181), False),
    ("8: everything is reserved", pool(T=100, F=100, P=0, r=100, o=2, **THIN), asked(1), False),
    ("8: placed, when provisioned is not told", pool(T=10, F=10, o=1, placed=9, **THIN), asked(2), False),
    ("8: and leaves the rest", pool(T=10, F=10, o=1, placed=9, **THIN), asked(1), True),
    ("8: placements since the report count", pool(T=10, F=10, P=5, o=1, since=4, **THIN), asked(2), False),
    ("9: up to what is free", pool(T=100, F=30, P=0, **THICK), asked(30), True),
    ("9: one more than free", pool(T=100, F=30, P=0, **THICK), asked(31), False),
    ("9: what is provisioned counts too", pool(T=100, F=100, P=80, **THICK), asked(21), False),
    ("9: up to what is provisioned", pool(T=100, F=100, P=80, **THICK), asked(20), True),
    ("9: the reserve is kept", pool(T=100, F=100, P=0, r=10, **THICK), asked(90), True),
    ("9: the reserve is not used", pool(T=100, F=100, P=0, r=10, **THICK), asked(91), False),
    ("9: the reserve is rounded down", pool(T=15, F=15, P=0, r=10, **THICK), asked(14), True),
    ("9: no ratio for thick pools", pool(T=100, F=100, P=0, o=20, **THICK), asked(101), False),
    ("9: nor for thick requests", pool(T=100, F=100, P=0, o=20, **THIN),
     asked(101, extra_specs={"provisioning:type": "thick"}), False),
    ("9: placements since the report count", pool(T=100, F=30, P=0, since=10, **THICK), asked(21), False),
    ("rounding to 2 decimals", pool(T=100, F=1.9999, P=0, **THICK), asked(2), True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("candidate", "request_", "passes"), [row[1:] for row in CAPACITY], ids=[r[0] for r in CAPACITY]
)
def test_capacity(candidate: Candidate, request_: Request, passes: bool) -> None:
    refusal = FILTERS["CapacityFilter"](request_, candidate)
    assert (refusal is None) is passes, refusal
    if refusal is not None:
        assert refusal.strip()
        assert "None" not in refusal


def test_a_refusal_can_be_read() -> None:
    told = FILTERS["CapacityFilter"](asked(50), pool(T=100, F=20, P=0, r=10, **THICK))
    assert told == "needs 50 GiB, 20 free of 100 GiB after 10 % reserved"


RATIO = [
    ("the pool's number", pool(T=10, F=10, o=3, **THIN), 3),
    ("the pool's number as text", pool(T=10, F=10, o="3.5", **THIN), 3.5),
    ("the option when the pool tells none", pool(T=10, F=10, **THIN), 20),
    ("no thin provisioning", pool(T=10, F=10, o=3, **THICK), 1),
    ("total infinite", pool(T="infinite", F=10, o=3, **THIN), 1),
    ("total unknown", pool(T="unknown", F=10, o=3, **THIN), 1),
    ("free infinite", pool(T=10, F="infinite", o=3, **THIN), 1),
    ("free unknown", pool(T=10, F="unknown", o=3, **THIN), 1),
    ("auto, nothing provisioned", pool(T=100, F=100, P=0, o="auto", **THIN), 20),
    ("auto", pool(T=100, F=51, P=100, o="auto", **THIN), 1 + 100 / (100 - 51 + 1)),
    ("auto, from what was placed", pool(T=100, F=51, placed=100, o="auto", **THIN), 3),
]


@pytest.mark.parametrize(("candidate", "ratio"), [row[1:] for row in RATIO], ids=[row[0] for row in RATIO])
def test_over_subscription(candidate: Candidate, ratio: float) -> None:
    assert over_subscription(candidate, "20.0") == pytest.approx(ratio)


sizes = st.integers(1, 10**6)
gib = st.one_of(st.floats(0.5, 10**5), st.integers(1, 10**5))


@given(
    total=gib,
    share=st.floats(0, 1),
    provisioned=gib,
    reserved=st.integers(0, 100),
    ratio=st.floats(1, 40),
    size=sizes,
)
def test_thin_capacity_is_the_formula(
    total: float, share: float, provisioned: float, reserved: int, ratio: float, size: int
) -> None:
    candidate = pool(T=total, F=total * share, P=provisioned, r=reserved, o=ratio, **THIN)
    available = total - math.floor(total * reserved / 100)
    left = round(available * ratio - provisioned, 2)
    assert virtual_free(candidate, asked(size)) == pytest.approx(left, abs=0.011)
    fits = provisioned + size <= available * ratio * ratio and left >= size
    assert (FILTERS["CapacityFilter"](asked(size), candidate) is None) is fits


@given(total=gib, share=st.floats(0, 1), provisioned=gib, reserved=st.integers(0, 100), size=sizes)
def test_thick_capacity_is_the_formula(
    total: float, share: float, provisioned: float, reserved: int, size: int
) -> None:
    free = total * share
    candidate = pool(T=total, F=free, P=provisioned, r=reserved, **THICK)
    left = round(min(free, total - math.floor(total * reserved / 100) - provisioned), 2)
    assert virtual_free(candidate, asked(size)) == left
    assert (FILTERS["CapacityFilter"](asked(size), candidate) is None) is (left >= size)


figures = st.one_of(
    st.none(), st.sampled_from(["infinite", "unknown"]), st.floats(0, 10**6), st.integers(-5, 10**6)
)


@given(
    total=figures, free=figures, provisioned=figures, reserved=st.integers(0, 100), thin=st.booleans(),
    ratio=st.one_of(st.just("auto"), st.floats(0, 40)), size=st.integers(0, 10**6),
)  # fmt: skip
def test_any_report_can_be_judged(
    total: Any, free: Any, provisioned: Any, reserved: int, thin: bool, ratio: Any, size: int
) -> None:
    """Whatever a back end reports, the filter decides and the weighers weigh: nothing is raised."""
    told = {"T": total, "F": free, "P": provisioned, "r": reserved, "o": ratio}
    candidate = pool(
        thin_provisioning_support=thin, **{key: value for key, value in told.items() if value is not None}
    )
    refusal = FILTERS["CapacityFilter"](asked(size), candidate)
    assert refusal is None or isinstance(refusal, str)
    options = SchedulerOptions()
    for weigher, _ in WEIGHERS.values():
        assert isinstance(weigher(asked(), candidate, options), float | int)
    if refusal is None and size:
        assert FILTERS["CapacityFilter"](asked(size - 1), candidate) is None, "a smaller one must fit too"


# --- extra specs -----------------------------------------------------------------------------------------

SPECS = [
    # capability, requirement, matches
    ("no operator", "SSD", "SSD", True),
    ("no operator", "SSD", "HDD", False),
    ("no operator", "SSD", "ssd", False),
    ("no operator: numbers never equal text", 10, "10", False),
    ("no operator: booleans never equal text", True, "True", False),
    ("= is at least", 10, "= 10", True),
    ("= is at least", 11, "= 10", True),
    ("= is at least", 9, "= 10", False),
    ("= of a text that is a number", "11.5", "= 10", True),
    ("==", 10, "== 10", True),
    ("==", 10.0, "== 10", True),
    ("==", 11, "== 10", False),
    ("!=", 11, "!= 10", True),
    ("!=", 10, "!= 10", False),
    (">=", 10, ">= 10", True),
    (">=", 9, ">= 10", False),
    ("<=", 10, "<= 10", True),
    ("<=", 11, "<= 10", False),
    ("negative numbers", -1, "<= -1", True),
    ("numeric operator on a text", "fast", ">= 10", False),
    ("numeric operator with a text", 10, ">= fast", False),
    ("numeric operator with nothing", 10, ">=", False),
    ("numeric operator that excludes, on a text", "fast", "!= 10", False),
    ("operator without a blank is a text", 10, ">=10", False),
    ("operator without a blank is a text", ">=10", ">=10", True),
    ("<in> a text", "abc", "<in> b", True),
    ("<in> a text", "abc", "<in> d", False),
    ("<in> with blanks", "abc de", "<in> c d", True),
    ("<in> a list", ["abc", "def"], "<in> def", True),
    ("<in> a list", ["abc", "def"], "<in> ghi", False),
    ("<or>", "b", "<or> a <or> b", True),
    ("<or>", "c", "<or> a <or> b", False),
    ("<or> with blanks", "a b", "<or> a b <or> c", True),
    ("<or> one", "a", "<or> a", True),
    ("<is>", True, "<is> True", True),
    ("<is>", False, "<is> True", False),
    ("<is>", False, "<is> False", True),
    ("<is>", True, "<is> False", False),
    ("<is> of a text", "True", "<is> true", True),
    ("<is> of a text that is no truth", "maybe", "<is> False", True),
    ("<is> of a number", 1, "<is> True", True),
    ("s==", "b", "s== b", True),
    ("s==", "b", "s== a", False),
    ("s== of a number", 10, "s== 10", True),
    ("s!=", "b", "s!= a", True),
    ("s!=", "b", "s!= b", False),
    ("s<", "a", "s< b", True),
    ("s<", "b", "s< b", False),
    ("s<=", "b", "s<= b", True),
    ("s<=", "c", "s<= b", False),
    ("s>", "c", "s> b", True),
    ("s>", "b", "s> b", False),
    ("s>=", "b", "s>= b", True),
    ("s>=", "a", "s>= b", False),
    ("s< compares texts", "10", "s< 9", True),
    ("null", None, None, True),
    ("null", "x", None, False),
    ("null", False, None, False),
    ("a null capability", None, "x", False),
    ("a null capability", None, "<is> False", False),
    ("a list: any may match", [1, 10], ">= 5", True),
    ("a list: none matches", [1, 2], ">= 5", False),
    ("a list: equality", ["a", "b"], "b", True),
    ("an empty list", [], "b", False),
]


@pytest.mark.parametrize(
    ("value", "wanted", "matches"), [row[1:] for row in SPECS], ids=[row[0] for row in SPECS]
)
@pytest.mark.parametrize("key", ["quality", "capabilities:quality"])
def test_extra_spec(key: str, value: Any, wanted: str | None, matches: bool) -> None:
    refusal = FILTERS["CapabilitiesFilter"](asked(extra_specs={key: wanted}), pool(quality=value))
    assert (refusal is None) is matches, refusal
    assert refusal is None or refusal.startswith("quality is")


@pytest.mark.parametrize("key", ["quality", "capabilities:quality", "capabilities:quality:deep"])
@pytest.mark.parametrize("wanted", ["x", "<is> False", "!= 1", None])
def test_missing_capability(key: str, wanted: str | None) -> None:
    refusal = FILTERS["CapabilitiesFilter"](asked(extra_specs={key: wanted}), pool(other=1))
    assert refusal == f"it reports no {key.removeprefix('capabilities:')}"


def test_scope_walks_nested_maps() -> None:
    candidate = pool(disk={"kind": "ssd", "speed": {"read": 500}})
    judge = FILTERS["CapabilitiesFilter"]
    assert judge(asked(extra_specs={"capabilities:disk:kind": "ssd"}), candidate) is None
    assert judge(asked(extra_specs={"capabilities:disk:speed:read": ">= 400"}), candidate) is None
    assert judge(asked(extra_specs={"capabilities:disk:speed:read": ">= 600"}), candidate) is not None
    assert judge(asked(extra_specs={"capabilities:disk:kind:more": "ssd"}), candidate) is not None


@pytest.mark.parametrize("key", ["provisioning:type", "RESKEY:availability_zones", "vendor:compression"])
def test_other_scopes_are_not_matched(key: str) -> None:
    assert FILTERS["CapabilitiesFilter"](asked(extra_specs={key: "whatever"}), pool()) is None


FAMILIES = [
    ("iSCSI", "iscsi"),
    ("FC", "fibre_channel", "fc"),
    ("NFS", "nfs"),
    ("NVMe-oF", "NVMeOF", "nvmeof"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_storage_protocol_families(family: tuple[str, ...]) -> None:
    judge = FILTERS["CapabilitiesFilter"]
    for told in family:
        for wanted in family:
            for text in (wanted, f"<or> {wanted} <or> other", f"s== {wanted}"):
                for reported in (told, [told, "other"]):
                    candidate = pool(storage_protocol=reported)
                    assert judge(asked(extra_specs={"storage_protocol": text}), candidate) is None
        for other in FAMILIES:
            if other is not family:
                specs = {"storage_protocol": other[0]}
                assert judge(asked(extra_specs=specs), pool(storage_protocol=told)) is not None
        # the families are of protocols only
        assert judge(asked(extra_specs={"brand": told}), pool(brand=told.swapcase())) is not None


def test_unknown_storage_protocol() -> None:
    judge = FILTERS["CapabilitiesFilter"]
    assert judge(asked(extra_specs={"storage_protocol": "ceph"}), pool(storage_protocol="ceph")) is None
    assert judge(asked(extra_specs={"storage_protocol": "ceph"}), pool(storage_protocol="iSCSI")) is not None


@pytest.mark.parametrize(("told", "online", "passes"), [
    ({}, True, True), ({"online_extend_support": True}, True, True),
    ({"online_extend_support": False}, True, False), ({"online_extend_support": False}, False, True),
])  # fmt: skip
def test_growth_of_an_attached_volume(told: dict[str, Any], online: bool, passes: bool) -> None:
    refusal = FILTERS["CapabilitiesFilter"](asked(online=online), pool(**told))
    assert (refusal is None) is passes


values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.text(max_size=3))
)
operators = st.sampled_from(["=", "==", "!=", ">=", "<=", "<in>", "<or>", "<is>", "s==", "s<"])
requirements = st.one_of(
    st.none(), st.text(max_size=12), st.builds("{} {}".format, operators, st.text(max_size=6))
)


@given(value=values, wanted=requirements)
def test_any_spec_can_be_judged(value: Any, wanted: str | None) -> None:
    for key in ("quality", "storage_protocol"):
        refusal = FILTERS["CapabilitiesFilter"](asked(extra_specs={key: wanted}), pool(**{key: value}))
        assert refusal is None or isinstance(refusal, str)


# --- zones -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zones", "passes"), [((), True), (("nova",), True), (("a", "nova"), True), (("a",), False)]
)
def test_availability_zone(zones: tuple[str, ...], passes: bool) -> None:
    refusal = FILTERS["AvailabilityZoneFilter"](asked(zones=zones), pool())
    assert (refusal is None) is passes
    assert refusal in (None, "zone nova is not a")


# --- weighers and the ordered handler --------------------------------------------------------------------


def order(pools: list[Candidate], **options: Any) -> list[str]:
    """Names, best first."""
    given_options = SchedulerOptions(scheduler_default_filters=[], **options)
    return [each.name for each in choose(asked(), pools, given_options)]


def test_capacity_weigher_prefers_room() -> None:
    pools = [pool("small", T=10, F=10, P=0, **THICK), pool("large", T=30, F=30, P=0, **THICK)]
    assert order(pools) == ["large", "small"]
    assert order(pools, capacity_weight_multiplier=-1.0) == ["small", "large"]


def test_capacity_weigher_reckons_virtual_room() -> None:
    thin = pool("thin", T=10, F=1, P=0, o=20, **THIN)  # 200 virtual
    thick = pool("thick", T=100, F=100, P=0, **THICK)
    full = pool("reserved", T=300, F=300, P=0, r=90, **THICK)  # 30
    assert order([full, thick, thin]) == ["thin", "thick", "reserved"]


@pytest.mark.parametrize(
    "told", [{"T": "infinite", "F": "infinite"}, {"T": 9, "F": "unknown"}, {"T": "unknown", "F": 9}]
)
def test_capacity_weigher_of_unknown_room(told: dict[str, Any]) -> None:
    """Worst (-1) when room is wanted; the largest, so worst again, when pools are to be filled up."""
    pools = [
        pool("unknown", **told),
        pool("empty", T=1, F=0, P=1, **THICK),
        pool("some", T=9, F=9, P=0, **THICK),
    ]
    weigher, multiplier = WEIGHERS["CapacityWeigher"]
    assert multiplier == "capacity_weight_multiplier"
    assert weigher(asked(), pools[0], SchedulerOptions()) == -1
    assert weigher(asked(), pools[0], SchedulerOptions(capacity_weight_multiplier=-1.0)) > 2**31
    assert order(pools) == ["some", "empty", "unknown"]
    assert order(pools, capacity_weight_multiplier=-1.0)[-1] == "unknown"


def test_allocated_capacity_weigher() -> None:
    pools = [pool("busy", placed=30), pool("idle", placed=3)]
    names = ["AllocatedCapacityWeigher"]
    assert order(pools, scheduler_default_weighers=names) == ["idle", "busy"]
    stacked = order(pools, scheduler_default_weighers=names, allocated_capacity_weight_multiplier=1.0)
    assert stacked == ["busy", "idle"]
    weigher, multiplier = WEIGHERS["AllocatedCapacityWeigher"]
    assert (weigher(asked(), pools[0], SchedulerOptions()), multiplier) == (
        30,
        "allocated_capacity_weight_multiplier",
    )


def test_defaults_of_the_multipliers() -> None:
    options = SchedulerOptions()
    assert (options.capacity_weight_multiplier, options.allocated_capacity_weight_multiplier) == (1.0, -1.0)
    assert options.scheduler_default_weighers == ["CapacityWeigher"]
    assert options.scheduler_default_filters == [
        "AvailabilityZoneFilter",
        "CapacityFilter",
        "CapabilitiesFilter",
    ]


def test_handler_sums_normalised_weights() -> None:
    # free 0 / 50 / 100 -> 0, 0.5, 1; placed 0 / 10 / 100 -> 0, 0.1, 1, times -1
    pools = [
        pool("a", T=100, F=0, P=100, placed=0, **THICK),
        pool("b", T=100, F=50, P=50, placed=10, **THICK),
        pool("c", T=100, F=100, P=0, placed=100, **THICK),
    ]
    both = ["CapacityWeigher", "AllocatedCapacityWeigher"]
    assert order(pools, scheduler_default_weighers=both) == ["b", "a", "c"]
    assert order(pools, scheduler_default_weighers=both, capacity_weight_multiplier=2.0) == ["c", "b", "a"]


def test_equal_weights_keep_the_order() -> None:
    pools = [pool(name, T=10, F=10, P=0, **THICK) for name in ("b", "a", "c")]
    assert order(pools) == ["b", "a", "c"]


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=8),
       st.floats(-3, 3), st.floats(-3, 3))  # fmt: skip
def test_order_follows_the_formula(figures: list[tuple[int, int]], first: float, second: float) -> None:
    pools = [
        pool(str(number), T=2000, F=free, P=0, placed=placed, **THICK)
        for number, (free, placed) in enumerate(figures)
    ]

    def normalised(values: list[int]) -> list[float]:
        low, high = min(values), max(values)
        return [(value - low) / (high - low) if high > low else 0.0 for value in values]

    frees, placeds = zip(*figures, strict=True)
    pairs = zip(normalised(list(frees)), normalised(list(placeds)), strict=True)
    score = {str(number): first * a + second * b for number, (a, b) in enumerate(pairs)}
    found = order(
        pools,
        scheduler_default_weighers=["CapacityWeigher", "AllocatedCapacityWeigher"],
        capacity_weight_multiplier=first,
        allocated_capacity_weight_multiplier=second,
    )
    assert sorted(found) == sorted(score)
    told = [score[name] for name in found]
    assert all(a >= b - 1e-9 for a, b in pairwise(told))


# --- the whole funnel ------------------------------------------------------------------------------------


def test_nobody_passes() -> None:
    pools = [
        pool("full", T=10, F=0, P=10, **THICK),
        pool("elsewhere", zone="far", T=10, F=10, P=0, **THICK),
        pool("slow", T=10, F=10, P=0, kind="hdd", **THICK),
        pool("tried", T=10, F=10, P=0, kind="ssd", **THICK),
    ]
    request = asked(zones=("nova",), extra_specs={"kind": "ssd"}, avoid=("tried",))
    with pytest.raises(NoValidBackend) as caught:
        choose(request, pools, SchedulerOptions())
    assert caught.value.reasons == [
        "full: CapacityFilter: needs 1 GiB, 0 free of 10 GiB",
        "elsewhere: AvailabilityZoneFilter: zone far is not nova",
        "slow: CapabilitiesFilter: kind is hdd, wanted is ssd",
        "tried: it was tried before and failed",
    ]
    assert caught.value.message.startswith("No valid backend was found: full: ")


def test_no_pool_at_all() -> None:
    with pytest.raises(NoValidBackend, match="no volume service has reported a pool yet"):
        choose(asked(), [], SchedulerOptions())


def test_pinned() -> None:
    pools = [pool(name, T=10, F=10, P=0, **THICK) for name in ("here", "there")]
    assert [each.name for each in choose(asked(pool="there"), pools, SchedulerOptions())] == ["there"]
    with pytest.raises(NoValidBackend, match="here: its source lives elsewhere"):
        choose(asked(99, pool="there", pinned_why="its source lives elsewhere"), pools, SchedulerOptions())
    with pytest.raises(NoValidBackend, match="here: the request is bound to nowhere"):
        choose(asked(pool="nowhere"), pools, SchedulerOptions())


def test_filters_run_as_configured() -> None:
    full = [pool("full", T=10, F=0, P=10, **THICK)]
    options = SchedulerOptions(scheduler_default_filters=["AvailabilityZoneFilter"])
    assert choose(asked(), full, options) == full


@pytest.mark.parametrize("name", ["scheduler_default_filters", "scheduler_default_weighers"])
def test_unknown_names_stop_the_start(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[DEFAULT\] {name} = 'FancyOne': unknown; known are A"):
        check_names(SchedulerOptions(**{name: ["FancyOne"]}))
    check_names(SchedulerOptions())


@pytest.mark.parametrize("text", ["auto", "1", "20.0", "0.5"])
def test_ratio_that_can_be_used(text: str) -> None:
    check_names(SchedulerOptions(max_over_subscription_ratio=text))


@pytest.mark.parametrize("text", ["", "many", "-1", "nan", "inf", "Auto"])
def test_ratio_that_cannot_be_used(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[DEFAULT\] max_over_subscription_ratio = '{text}': a number"):
        check_names(SchedulerOptions(max_over_subscription_ratio=text))
