"""Configuration: files, fallbacks, conversions, and errors that name section, option and value."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from lapilli import compose
from lapilli.adapters.auth.users import BasicOptions
from lapilli.adapters.drivers.filepool import FilePoolOptions
from lapilli.adapters.drivers.sim import SimOptions
from lapilli.adapters.targets.sim import SimTargetOptions
from lapilli.adapters.targets.tgt import TgtOptions
from lapilli.config import Config, ServiceOptions, option
from lapilli.domain.placement import SchedulerOptions
from lapilli.domain.quotas import QuotaOptions
from lapilli.errors import ConfigError
from lapilli.flows.definitions import Backend
from lapilli.flows.options import TypeOptions, VolumeOptions
from lapilli.runtime.service import WorkerOptions
from lapilli.store.session import DatabaseOptions


@dataclass(frozen=True)
class Options:
    """One of every kind."""

    word: str = option("a", "A word.")
    maybe: str | None = option(None, "A word, or none.")
    count: int = option(3, "A number.", minimum=1, maximum=9)
    share: float = option(0.5, "A share.", minimum=0.0)
    flag: bool = option(False, "A flag.")
    names: list[str] = option(["x"], "Names.")
    kind: str = option("warm", "One of two.", choices=("warm", "cold"))
    key: int = option(1, "A secret number.", secret=True)


def config(**values: str) -> Config:
    return Config({"DEFAULT": values})


def test_nothing_configured() -> None:
    found = Config().read(Options)
    assert found == Options()
    assert found.names is not Options().names, "a default list is not shared"


READ = [
    ("word", "b c", "b c"),
    ("word", "", ""),
    ("maybe", "x", "x"),
    ("count", "9", 9),
    ("count", "1", 1),
    ("share", "0.25", 0.25),
    ("share", "2", 2.0),
    *[("flag", text, True) for text in ("true", "True", "1", "yes", "on", "ON")],
    *[("flag", text, False) for text in ("false", "False", "0", "no", "off")],
    ("names", "a,b", ["a", "b"]),
    ("names", " a , ,b ", ["a", "b"]),
    ("names", "", []),
    ("kind", "cold", "cold"),
]


@pytest.mark.parametrize(("name", "text", "value"), READ)
def test_read(name: str, text: str, value: Any) -> None:
    found = getattr(config(**{name: text}).read(Options), name)
    assert found == value
    assert type(found) is type(value)


REFUSED = [
    ("count", "many", "a whole number expected"),
    ("count", "1.5", "a whole number expected"),
    ("count", "", "a whole number expected"),
    ("count", "0", "at least 1 expected"),
    ("count", "10", "at most 9 expected"),
    ("share", "half", "a number expected"),
    ("share", "-0.1", "at least 0.0 expected"),
    ("share", "nan", "a number expected"),
    ("share", "inf", "a number expected"),
    ("flag", "maybe", "true or false expected"),
    ("flag", "", "true or false expected"),
    ("kind", "hot", "one of warm, cold expected"),
]


@pytest.mark.parametrize(("name", "text", "reason"), REFUSED)
@pytest.mark.parametrize("section", ["DEFAULT", "files"])
def test_refused(section: str, name: str, text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config({section: {name: text}}).read(Options, section)
    assert caught.value.message == f"[{section}] {name} = {text!r}: {reason}."


def test_a_secret_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        config(key="hunter2").read(Options)
    assert caught.value.message == "[DEFAULT] key = (secret): a whole number expected."


def test_fallback() -> None:
    values = {"backend_defaults": {"word": "common", "count": "4"}, "files": {"count": "5"}, "other": {}}
    both = Config(values)
    assert both.read(Options, "files", fallback="backend_defaults") == Options(word="common", count=5)
    assert both.read(Options, "other", fallback="backend_defaults") == Options(word="common", count=4)
    assert both.read(Options, "missing", fallback="backend_defaults") == Options(word="common", count=4)
    assert both.read(Options, "files") == Options(count=5)
    assert both.read(Options) == Options()


def test_a_wrong_fallback_is_blamed_itself() -> None:
    values = Config({"backend_defaults": {"count": "x"}, "files": {"word": "b"}})
    with pytest.raises(ConfigError, match=r"^\[backend_defaults\] count = 'x': a whole number expected"):
        values.read(Options, "files", fallback="backend_defaults")


def test_read_once() -> None:
    values = config(word="b")
    assert values.read(Options) is values.read(Options)


def test_unknown_options_are_for_others() -> None:
    """An operator may point the service at the settings that they have."""
    assert config(transport_url="rabbit://", word="b").read(Options) == Options(word="b")


# --- files -----------------------------------------------------------------------------------------------


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "lapilli.conf"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_load(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '# a comment\nword = first\n[files]\nword="quoted"\ncount: 7\nnames = a,\n  b\n'
        "[DEFAULT]\nflag = yes\n; another\nmaybe = 50%\n",
    )
    found = Config.load(path, state_dir=str(tmp_path))
    assert found.read(Options) == Options(word="first", flag=True, maybe="50%")
    assert found.read(Options, "files") == Options(word="quoted", count=7, names=["a", "b"])
    assert sorted(found.sections()) == ["DEFAULT", "files"]


@pytest.mark.parametrize("text", ["word\n", "[files\nword = a\n", "= 3\n", "  indented = 1\n", "[]\n"])
def test_load_refuses(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        Config.load(path)
    assert path in caught.value.message


def test_load_what_is_not_there(tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing.conf")
    with pytest.raises(ConfigError, match=missing):
        Config.load(missing)
    with pytest.raises(ConfigError, match=str(tmp_path)):
        Config.load(str(tmp_path))


def test_load_what_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "lapilli.conf"
    path.write_bytes(b"word = \xff\xfe\n")
    with pytest.raises(ConfigError, match=str(path)):
        Config.load(str(path))


def test_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, f"state_path = {tmp_path}/told\n")
    assert Config.load(None).state_dir == os.path.join(tmp_path, "var")
    assert Config.load(path).state_dir == os.path.join(tmp_path, "told")
    assert Config.load(path, state_dir="mine").state_dir == os.path.join(tmp_path, "mine")


# --- the options that the service has --------------------------------------------------------------------

SECTIONS = [
    ServiceOptions,
    SchedulerOptions,
    QuotaOptions,
    VolumeOptions,
    TypeOptions,
    WorkerOptions,
    DatabaseOptions,
    BasicOptions,
    FilePoolOptions,
    SimOptions,
    SimTargetOptions,
    TgtOptions,
    compose.AuthOptions,
    compose.BackendOptions,
    compose.ImageOptions,
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda each: each.__name__)
def test_every_option_explains_itself_and_keeps_its_own_limits(section: Any) -> None:
    for entry in fields(section):
        meta = entry.metadata
        assert meta["help"].endswith("."), entry.name
        value = getattr(section(), entry.name)
        if meta["minimum"] is not None:
            assert value >= meta["minimum"], entry.name
        if meta["maximum"] is not None:
            assert value <= meta["maximum"], entry.name
        if meta["choices"]:
            assert value in meta["choices"], entry.name


UPSTREAM = {
    QuotaOptions: {
        "quota_volumes": 10, "quota_snapshots": 10, "quota_gigabytes": 1000, "quota_backups": 10,
        "quota_backup_gigabytes": 1000, "quota_groups": 10, "per_volume_size_limit": -1,
        "no_snapshot_gb_quota": False,
    },
    ServiceOptions: {
        "storage_availability_zone": "nova", "report_interval": 10, "service_down_time": 60,
        "backend_stats_polling_interval": 60,
    },
    SchedulerOptions: {
        "scheduler_default_weighers": ["CapacityWeigher"], "scheduler_max_attempts": 3,
        "scheduler_driver_init_wait_time": 60, "max_over_subscription_ratio": "20.0",
        "capacity_weight_multiplier": 1.0, "allocated_capacity_weight_multiplier": -1.0,
    },
    VolumeOptions: {
        "default_availability_zone": None, "allow_availability_zone_fallback": False,
        "cloned_volume_same_az": True, "snapshot_same_host": True, "enable_force_upload": False,
        "message_ttl": 2592000, "report_discard_supported": False,
    },
    TypeOptions: {"default_volume_type": "__DEFAULT__"},
    compose.BackendOptions: {"reserved_percentage": 0, "extra_capabilities": "{}"},
}  # fmt: skip


@pytest.mark.parametrize("section", UPSTREAM, ids=lambda each: each.__name__)
def test_upstream_names_and_defaults(section: Any) -> None:
    """Behaviour.md section 16: an operator's settings carry over."""
    found = section()
    assert {name: getattr(found, name) for name in UPSTREAM[section]} == UPSTREAM[section]


# --- what compose makes of them --------------------------------------------------------------------------

BACKENDS = [
    ({"volume_driver": "floppy"},
     f"[files] volume_driver = 'floppy': unknown; known are {', '.join(sorted(compose._KNOWN['drivers']))}."),
    ({"target_helper": "pigeon"},
     f"[files] target_helper = 'pigeon': unknown; known are {', '.join(sorted(compose._KNOWN['targets']))}."),
    ({"volume_driver": "rbd", "target_helper": "tgt"},
     "[files] target_helper = 'tgt': volume_driver = rbd has volumes of the kind rbd; this target "
     "serves file and block."),
    ({"volume_driver": "filepool", "target_helper": "rbd"},
     "[files] target_helper = 'rbd': volume_driver = filepool has volumes of the kind file; this target "
     "serves rbd."),
    ({"volume_driver": "rbd", "rbd_store_chunk_size": "3"},
     "[files] rbd_store_chunk_size = 3: a power of two expected."),
    ({"volume_driver": "rbd", "rbd_pool": "a/b"}, "[files] rbd_pool = 'a/b': the name of a pool expected."),
    ({"volume_driver": "rbd", "rbd_client": "telnet"},
     "[files] rbd_client = 'telnet': one of auto, library, program expected."),
    ({"reserved_percentage": "101"}, "[files] reserved_percentage = '101': at most 100 expected."),
    ({"extra_capabilities": "{"}, "[files] extra_capabilities: a JSON object expected."),
    ({"extra_capabilities": "[1]"}, "[files] extra_capabilities: a JSON object expected."),
    ({"extra_capabilities": "7"}, "[files] extra_capabilities: a JSON object expected."),
    ({"extra_capabilities": '[["a", 1]]'}, "[files] extra_capabilities: a JSON object expected."),
    ({"max_over_subscription_ratio": "lots"},
     "[files] max_over_subscription_ratio = 'lots': a number of at least 0, or auto, expected."),
    ({"sim_capacity_gb": "none"}, "[files] sim_capacity_gb = 'none': a whole number expected."),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), BACKENDS)
def test_wrong_back_end(tmp_path: Path, options: dict[str, str], message: str) -> None:
    values = {
        "DEFAULT": {"enabled_backends": "files"},
        "files": {"volume_driver": "sim", "target_helper": "local", **options},
    }
    with pytest.raises(ConfigError) as caught:
        compose.make_backends(Config(values, state_dir=str(tmp_path)))
    assert caught.value.message == message


def test_right_back_ends(tmp_path: Path) -> None:
    values = {
        "DEFAULT": {"enabled_backends": "a, b", "host": "box", "storage_availability_zone": "east"},
        "backend_defaults": {"target_helper": "local", "backend_host": "cluster", "reserved_percentage": "5"},
        "a": {"volume_driver": "sim", "backend_availability_zone": "west"},
        "b": {
            "backend_host": "own",
            "extra_capabilities": '{"kind": "ssd"}',
            "max_over_subscription_ratio": "auto",
        },
    }
    first, second = compose.make_backends(Config(values, state_dir=str(tmp_path)))
    assert (first.host, first.availability_zone) == ("cluster@a", "west")
    assert first.extra == {"storage_protocol": "local", "reserved_percentage": 5}
    assert (second.host, second.availability_zone) == ("own@b", "east")
    assert second.extra["kind"] == "ssd"
    assert second.extra["max_over_subscription_ratio"] == "auto"


@pytest.mark.parametrize("helper", ["tgt", "tgtadm", "nbd", None])
def test_a_cluster_takes_no_target_that_serves_from_one_host(tmp_path: Path, helper: str | None) -> None:
    section = {"volume_driver": "sim", **({"target_helper": helper} if helper else {})}
    default = {"enabled_backends": "files", "host": "box", "cluster": "east"}

    def backend(**more: str) -> Backend:
        values = {"DEFAULT": default, "files": {**section, **more}}
        (made,) = compose.make_backends(Config(values, state_dir=str(tmp_path)))
        return made

    with pytest.raises(
        ConfigError, match=r"\[files\] target_helper = '(tgt|nbd)': any host of the cluster east"
    ):
        backend()
    assert backend(target_helper="local").cluster == "east@files"
    assert backend(target_helper="sim").cluster == "east@files"
    own = backend(backend_host="box")
    assert (own.host, own.cluster) == ("box@files", None), "one that is of this host alone"


@pytest.mark.parametrize("strategy", ["none", "noauth"])
def test_open_service_only_on_loopback(strategy: str) -> None:
    open_ = config(auth_strategy=strategy)
    for address in ("127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]"):
        compose.check_exposure(open_, address)
    for address in ("0.0.0.0", "192.0.2.1", "::", "box.example", ""):  # noqa: S104 - that is the point
        with pytest.raises(ConfigError, match=r"\[DEFAULT\] auth_strategy = none .* not on"):
            compose.check_exposure(open_, address)
        compose.check_exposure(config(), address)


def test_wrong_auth_strategy() -> None:
    with pytest.raises(ConfigError, match=r"\[DEFAULT\] auth_strategy = 'magic': one of "):
        config(auth_strategy="magic").read(compose.AuthOptions)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_database_in_memory(url: str, tmp_path: Path) -> None:
    values = Config({"database": {"connection": url}}, state_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=r"\[database\] connection: SQLite needs a file"):
        compose.make_store(values)
