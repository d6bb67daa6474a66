"""Filters beyond the default three, row by row (behaviour 11.2), weighers and handlers (11.6)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, strategies as st

from lapilli import compose
from lapilli.domain.placement import (
    FILTERS,
    HANDLERS,
    WEIGHERS,
    Candidate,
    Request,
    SchedulerOptions,
    check_names,
    choose,
    sift,
    weigh,
)
from lapilli.errors import ConfigError, NoValidBackend

A, B, C = (f"{letter * 8}-0000-4000-8000-000000000000" for letter in "abc")
LIVES = {A: "host@one", B: "host@two"}


def pool(name: str = "host@one#p", **told: Any) -> Candidate:
    own = {key: told.pop(key) for key in ("allocated_gb", "claimed_since_report", "volumes") if key in told}
    return Candidate(name=name, zone="nova", capabilities=told, **own)


def refusal(name: str, request: Request, candidate: Candidate) -> str | None:
    """What a filter says, asked directly and as part of the funnel: both must agree."""
    direct = FILTERS[name](request, candidate)
    passed, refused = sift(request, [candidate], SchedulerOptions(scheduler_default_filters=[name]))
    assert [each.reason for each in refused] == ([] if direct is None else [direct])
    assert len(passed) == (direct is None)
    return direct


def test_all_are_there() -> None:
    assert sorted(FILTERS) == [
        "AvailabilityZoneFilter", "CapabilitiesFilter", "CapacityFilter", "DifferentBackendFilter",
        "DriverFilter", "IgnoreAttemptedHostsFilter", "InstanceLocalityFilter", "JsonFilter",
        "SameBackendFilter",
    ]  # fmt: skip
    assert {name: multiplier for name, (_, multiplier) in WEIGHERS.items()} == {
        "CapacityWeigher": "capacity_weight_multiplier",
        "AllocatedCapacityWeigher": "allocated_capacity_weight_multiplier",
        "VolumeNumberWeigher": "volume_number_multiplier",
        "ChanceWeigher": None,
        "GoodnessWeigher": None,
    }
    assert sorted(HANDLERS) == ["OrderedHostWeightHandler", "StochasticHostWeightHandler"]


HINTED = [
    # filter, hints, what is told of host@one (None: it passes)
    ("DifferentBackendFilter", {}, None),
    ("DifferentBackendFilter", {"different_host": []}, None),
    ("DifferentBackendFilter", {"different_host": A}, f"volume {A} lives on this back end"),
    ("DifferentBackendFilter", {"different_host": [B, A]}, f"volume {A} lives on this back end"),
    ("DifferentBackendFilter", {"different_host": B}, None),
    ("DifferentBackendFilter", {"different_host": C}, None),
    ("DifferentBackendFilter", {"different_host": "x"}, "'x' is no id of a volume"),
    ("DifferentBackendFilter", {"different_host": [B, "x"]}, "'x' is no id of a volume"),
    ("DifferentBackendFilter", {"same_host": A}, None),
    ("SameBackendFilter", {}, None),
    ("SameBackendFilter", {"same_host": []}, None),
    ("SameBackendFilter", {"same_host": A}, None),
    ("SameBackendFilter", {"same_host": [B, A]}, None),
    ("SameBackendFilter", {"same_host": B}, f"none of the volumes {B} lives on this back end"),
    ("SameBackendFilter", {"same_host": C}, f"none of the volumes {C} lives on this back end"),
    ("SameBackendFilter", {"same_host": "x"}, "'x' is no id of a volume"),
    ("SameBackendFilter", {"same_host": [A, "x"]}, "'x' is no id of a volume"),
    ("SameBackendFilter", {"different_host": B}, None),
]


@pytest.mark.parametrize(("name", "hints", "told"), HINTED)
def test_near_and_far(name: str, hints: dict[str, Any], told: str | None) -> None:
    assert refusal(name, Request(size=1, hints=hints, lives=LIVES), pool()) == told


def test_other_pools_of_a_back_end_count_as_the_same() -> None:
    request = Request(size=1, hints={"different_host": A, "same_host": A}, lives=LIVES)
    assert refusal("DifferentBackendFilter", request, pool("host@one#other")) is not None
    assert refusal("SameBackendFilter", request, pool("host@one#other")) is None
    assert refusal("SameBackendFilter", request, pool("host@onetwo#p")) is not None


@pytest.mark.parametrize(
    ("hints", "host", "told"),
    [
        ({}, None, None),
        ({"local_to_instance": None}, None, None),
        ({"local_to_instance": C}, "host", None),
        ({"local_to_instance": C}, "other", f"server {C} runs on other"),
        (
            {"local_to_instance": C},
            None,
            f"no compute service is configured that could tell where server {C} runs",
        ),
    ],
)
def test_instance_locality(hints: dict[str, Any], host: str | None, told: str | None) -> None:
    request = Request(size=1, hints=hints, instance_host=host)
    assert refusal("InstanceLocalityFilter", request, pool()) == told


def test_a_request_for_locality_fails_clearly() -> None:
    options = SchedulerOptions(scheduler_default_filters=["InstanceLocalityFilter"])
    with pytest.raises(NoValidBackend, match="no compute service is configured"):
        choose(Request(size=1, hints={"local_to_instance": C}), [pool()], options)


ATTEMPTED = [((), True), (("host@two#p",), True), (("host@one#p",), False), (("host@one#other",), False)]


@pytest.mark.parametrize(("avoid", "passes"), ATTEMPTED)
def test_ignore_attempted_hosts(avoid: tuple[str, ...], passes: bool) -> None:
    told = FILTERS["IgnoreAttemptedHostsFilter"](Request(size=1, avoid=avoid), pool())
    assert (told is None) is passes


def test_a_tried_pool_is_never_tried_again() -> None:
    """Also without the filter, which is of whole back ends; with why it failed."""
    pools = [pool("host@one#p"), pool("host@one#q"), pool("host@two#p")]
    request = Request(size=1, avoid=("host@one#p",), failures={"host@one#p": "it burns"})
    passed, refused = sift(request, pools, SchedulerOptions(scheduler_default_filters=[]))
    assert [each.name for each in passed] == ["host@one#q", "host@two#p"]
    assert [str(each) for each in refused] == ["host@one#p: it was tried before and failed: it burns"]
    options = SchedulerOptions(scheduler_default_filters=["IgnoreAttemptedHostsFilter"])
    assert [each.name for each in sift(request, pools, options)[0]] == ["host@two#p"]


def test_a_pool_that_holds_the_volume_has_the_room() -> None:
    full = pool(total_capacity_gb=10, free_capacity_gb=0)
    assert refusal("CapacityFilter", Request(size=5), full) is not None
    assert refusal("CapacityFilter", Request(size=5, present="host@one#p"), full) is None


# --- filter_function and goodness_function ---------------------------------------------------------------

DRIVER = [
    (None, None),
    ("volume.size < 20", None),
    ("volume.size < 10", "its filter_function is false: volume.size < 10"),
    ("0", "its filter_function is false: 0"),
    ("5", None),
    (True, "its filter_function cannot be evaluated: not understood at 'True'"),
    ("volume.size / 0 > 1", "its filter_function cannot be evaluated: division by zero"),
    ("stats.nothing > 1", "its filter_function cannot be evaluated: there is no stats.nothing"),
    ("volume.size <", "its filter_function cannot be evaluated: it ends too soon"),
    ("stats.free_capacity_gb == 80 && capabilities.free_capacity_gb == 100", None),
    ("stats.allocated_capacity_gb == 30 && stats.provisioned_capacity_gb == 60", None),
    ("extra.tier == 'gold' && qos.speed == 5", None),
]


@pytest.mark.parametrize(("function", "told"), DRIVER)
def test_driver_filter(function: Any, told: str | None) -> None:
    capabilities = {} if function is None else {"filter_function": function}
    candidate = pool(
        free_capacity_gb=100, provisioned_capacity_gb=40, allocated_capacity_gb=10,
        allocated_gb=30, claimed_since_report=20, **capabilities,
    )  # fmt: skip
    request = Request(size=10, volume={"size": 10}, extra_specs={"tier": "gold"}, qos={"speed": 5})
    assert refusal("DriverFilter", request, candidate) == told


GOODNESS = [
    (None, 0), ("50", 50), ("100", 100), ("0", 0), ("101", 0), ("0 - 1", 0), ("1 == 1", 100), ("1 == 2", 0),
    ("volume.size * 2", 20), ("'80'", 0), ("1 / 0", 0), ("what", 0), ("99.5", 99.5),
]  # fmt: skip


@pytest.mark.parametrize(("function", "weight"), GOODNESS)
def test_goodness_weigher(function: str | None, weight: float) -> None:
    candidate = pool(**({} if function is None else {"goodness_function": function}))
    request = Request(size=10, volume={"size": 10})
    assert WEIGHERS["GoodnessWeigher"][0](request, candidate, SchedulerOptions()) == weight


# --- queries ---------------------------------------------------------------------------------------------

QUERIES = [
    # query, passes
    (["=", "$kind", "ssd"], True),
    (["=", "$kind", "hdd"], False),
    (["=", "$free_capacity_gb", 80], True),
    (["<", "$free_capacity_gb", 81, 82], True),
    (["<", "$free_capacity_gb", 81, 80], False),
    ([">", "$free_capacity_gb", 79], True),
    (["<=", "$free_capacity_gb", 80], True),
    ([">=", "$free_capacity_gb", 80.5], False),
    (["in", "$kind", "hdd", "ssd"], True),
    (["in", "$kind", "hdd"], False),
    (["in", "$kind"], False),
    (["not", ["=", "$kind", "ssd"]], False),
    (["not", ["=", "$kind", "hdd"]], True),
    (["and", [">", "$free_capacity_gb", 10], ["=", "$kind", "ssd"]], True),
    (["and", [">", "$free_capacity_gb", 10], ["=", "$kind", "hdd"]], False),
    (["or", ["=", "$kind", "hdd"], ["=", "$kind", "ssd"]], True),
    (["or", ["=", "$kind", "hdd"], ["=", "$kind", "tape"]], False),
    (["=", "$disk.speed.read", 500], True),
    (["=", "$disk.speed.write", 500], False),
    (["=", "$kind.speed", 500], False),
    (["=", "$capabilities.free_capacity_gb", 100], True),
    (["=", "$availability_zone", "nova"], True),
    (["=", "$backend", "host@one"], True),
    ([">", "$nothing", 5], False),
    (["<", "$kind", 5], False),
    (["="], False),
    (["=", "$kind"], False),
    ([], True),
    ("", True),
    ({}, True),
]


@pytest.mark.parametrize(("query", "passes"), QUERIES, ids=[json.dumps(row[0]) for row in QUERIES])
def test_json_filter(query: Any, passes: bool) -> None:
    candidate = pool(kind="ssd", free_capacity_gb=100, claimed_since_report=20, disk={"speed": {"read": 500}})
    for given_query in (query, json.dumps(query) if query != "" else ""):
        told = refusal("JsonFilter", Request(size=1, hints={"query": given_query}), candidate)
        assert told == (None if passes else "the query is false")


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("[", "it is not JSON"),
        ('"text"', "it must be a list that begins with an operator"),
        ({"=": 1}, "it must be a list that begins with an operator"),
        (["like", 1, 2], "'like' is none of = < > <= >= in not or and"),
        ([["="], 1], "is none of"),
        ([1, 2], "'1' is none of"),
        ("[" * 100_000, "it is not JSON"),
        ('["not", ' * 30 + "1" + "]" * 30, "more than 20 lists are within each other"),
    ],
    ids=lambda each: str(each)[:20],
)
def test_what_is_no_query(query: Any, told: str) -> None:
    found = refusal("JsonFilter", Request(size=1, hints={"query": query}), pool())
    assert found is not None
    assert told in found


documents = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.just("$kind"), st.just("$no.a")
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.builds(
            lambda word, rest: [word, *rest], st.sampled_from(["=", "<", "in", "not", "or"]), st.lists(inner)
        ),
        st.dictionaries(st.text(max_size=3), inner, max_size=2),
    ),
    max_leaves=12,
)


@given(documents)
def test_any_query_can_be_judged(query: Any) -> None:
    told = FILTERS["JsonFilter"](Request(size=1, hints={"query": query}), pool(kind="ssd"))
    assert told is None or told


# --- weighers and handlers -------------------------------------------------------------------------------


def test_volume_number_weigher() -> None:
    pools = [pool("many", volumes=9), pool("few", volumes=2), pool("none")]
    options = SchedulerOptions(
        scheduler_default_filters=[], scheduler_default_weighers=["VolumeNumberWeigher"]
    )
    assert [each.name for each in choose(Request(size=1), pools, options)] == ["none", "few", "many"]
    stacked = SchedulerOptions(
        scheduler_default_filters=[],
        scheduler_default_weighers=["VolumeNumberWeigher"],
        volume_number_multiplier=1.0,
    )
    assert [each.name for each in choose(Request(size=1), pools, stacked)] == ["many", "few", "none"]


def test_chance_weigher() -> None:
    numbers = iter([0.2, 0.9, 0.5])
    options = SchedulerOptions(scheduler_default_filters=[], scheduler_default_weighers=["ChanceWeigher"])
    pools = [pool("a"), pool("b"), pool("c")]
    request = Request(size=1, draw=lambda: next(numbers))
    assert [each.name for each in choose(request, pools, options)] == ["b", "c", "a"]
    winners = {choose(Request(size=1), pools, options)[0].name for _ in range(200)}
    assert winners == {"a", "b", "c"}


def test_weights_are_told_by_weigher() -> None:
    options = SchedulerOptions(scheduler_default_weighers=["AllocatedCapacityWeigher", "VolumeNumberWeigher"])
    told = weigh(
        Request(size=1), [pool("a", allocated_gb=10, volumes=4), pool("b", allocated_gb=30)], options
    )
    assert [(each.pool.name, each.weight, each.raw) for each in told] == [
        ("a", -1.0, {"AllocatedCapacityWeigher": 10, "VolumeNumberWeigher": 4}),
        ("b", -1.0, {"AllocatedCapacityWeigher": 30, "VolumeNumberWeigher": 0}),
    ]


STOCHASTIC = [
    # raw weights, drawn, order
    ([1, 1, 2], 0.0, [0, 1, 2]),
    ([1, 1, 2], 0.24, [0, 1, 2]),
    ([1, 1, 2], 0.26, [1, 2, 0]),
    ([1, 1, 2], 0.5, [2, 0, 1]),
    ([1, 1, 2], 0.999, [2, 0, 1]),
    ([0, 0, 5], 0.0, [2, 0, 1]),
    ([0, 0], 0.6, [1, 0]),
    ([-3, 1], 0.0, [1, 0]),
    ([-3, -1], 0.0, [0, 1]),
    ([4], 0.7, [0]),
]


@pytest.mark.parametrize(("raw", "drawn", "order"), STOCHASTIC)
def test_stochastic_handler(raw: list[float], drawn: float, order: list[int]) -> None:
    found = HANDLERS["StochasticHostWeightHandler"]([(1.0, raw)], len(raw), lambda: drawn)
    assert [at for at, _ in found] == order


def test_stochastic_handler_draws_by_weight() -> None:
    """Raw weights times multipliers, not normalised: here 3 to 1."""
    options = SchedulerOptions(
        scheduler_default_filters=[],
        scheduler_default_weighers=["AllocatedCapacityWeigher"],
        allocated_capacity_weight_multiplier=2.0,
        scheduler_weight_handler="cinder.scheduler.weights.StochasticHostWeightHandler",
    )
    check_names(options)
    pools = [pool("a", allocated_gb=30), pool("b", allocated_gb=10)]
    draws = [(at + 0.5) / 400 for at in range(400)]
    found = Counter(
        choose(Request(size=1, draw=lambda each=each: each), pools, options)[0].name for each in draws
    )
    assert found == {"a": 300, "b": 100}


# --- other packages' -------------------------------------------------------------------------------------


class EntryPoint:
    def __init__(self, name: str, loaded: Any) -> None:
        self.name = name
        self._loaded = loaded

    def load(self) -> Any:
        if isinstance(self._loaded, Exception):
            raise self._loaded
        return self._loaded


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[EntryPoint]]]:
    """Entry points by group; what is registered of them is forgotten afterwards."""
    found: dict[str, list[EntryPoint]] = {}
    monkeypatch.setattr(compose.metadata, "entry_points", lambda group: found.get(group, []))
    before = (dict(FILTERS), dict(WEIGHERS))
    yield found
    for known, kept in zip((FILTERS, WEIGHERS), before, strict=True):
        known.clear()
        known.update(kept)


def test_other_packages_bring_filters_and_weighers(plugins: dict[str, list[EntryPoint]]) -> None:
    plugins["lapilli.filters"] = [
        EntryPoint("QuietFilter", lambda _request, pool: "hush" if pool.name == "loud" else None),
        EntryPoint("BrokenFilter", ImportError("no such module")),
        EntryPoint("CapacityFilter", lambda _request, _pool: "ours wins"),
    ]
    plugins["lapilli.weighers"] = [EntryPoint("NameWeigher", lambda _request, pool, _options: len(pool.name))]
    options = SchedulerOptions(
        scheduler_default_filters=["CapacityFilter", "QuietFilter"],
        scheduler_default_weighers=["NameWeigher"],
    )
    compose._add_plugins("lapilli.filters", options.scheduler_default_filters, FILTERS)
    compose._add_plugins("lapilli.weighers", options.scheduler_default_weighers, WEIGHERS)
    check_names(options)
    room = {"total_capacity_gb": 9, "free_capacity_gb": 9}
    pools = [pool("a", **room), pool("loud", **room), pool("abc", **room)]
    assert [each.name for each in choose(Request(size=1), pools, options)] == ["abc", "a"]
    with pytest.raises(ConfigError, match=r"'Other': unknown; known are .*QuietFilter"):
        check_names(SchedulerOptions(scheduler_default_filters=["Other"]))
    with pytest.raises(
        ConfigError, match=r"BrokenFilter of lapilli\.filters cannot be loaded: no such module"
    ):
        compose._add_plugins("lapilli.filters", ["BrokenFilter"], FILTERS)


def test_nobody_looks_for_plugins_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose.metadata, "entry_points", lambda group: pytest.fail(f"looked for {group}"))
    compose._add_plugins("lapilli.filters", ["CapacityFilter"], FILTERS)


@pytest.mark.parametrize("name", ["RetryFilter", "OtherHandler"])
def test_names_that_are_none(name: str) -> None:
    wrong = {"scheduler_weight_handler": name} if "Handler" in name else {"scheduler_default_filters": [name]}
    with pytest.raises(ConfigError, match=f"{name}.*known are"):
        check_names(SchedulerOptions(**wrong))


def test_many_reasons_are_told_in_part() -> None:
    pools = [pool(f"h@b#{number}", total_capacity_gb=9, free_capacity_gb=0) for number in range(1000)]
    with pytest.raises(NoValidBackend) as caught:
        choose(Request(size=1), pools, SchedulerOptions())
    assert len(caught.value.reasons) == 1000
    assert caught.value.message.endswith("; and 980 more pools: see the scheduler's log")
    assert len(caught.value.message) < 2000
