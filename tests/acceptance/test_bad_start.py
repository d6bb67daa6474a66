"""What stops the start of each command: names that are not known, and a database of another version."""

from __future__ import annotations

import os
import subprocess

import pytest
import sqlalchemy as sa

from lapilli import cli, compose
from lapilli.store import schema
from tests.service import Service


def refused(service: Service, *words: str) -> str:
    """The one line that a command ends with."""
    service.state_dir.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(service.command(*words), capture_output=True, text=True, timeout=30)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("command", ["volume", "roles", "doctor"])
def test_an_unknown_back_end(own_service: Service, command: str) -> None:
    own_service.state_dir.mkdir(parents=True)
    path = own_service.state_dir / "own.conf"
    path.write_text("[DEFAULT]\nenabled_backends = fast, slwo\n[fast]\n[slow]\n[database]\n")
    own_service.write_config = lambda: path  # type: ignore[method-assign]
    told = refused(own_service, command)
    assert told == "lapilli: [DEFAULT] enabled_backends = 'slwo': unknown; sections are fast, filepool, slow."
    path.write_text("[DEFAULT]\nenabled_backends = fast, fast\n[fast]\n")
    assert refused(own_service, command) == "lapilli: [DEFAULT] enabled_backends = 'fast': named twice."


@pytest.mark.parametrize("command", ["scheduler", "volume", "doctor"])
@pytest.mark.parametrize(
    ("option", "known"),
    [("scheduler_default_filters", "CapacityFilter"), ("scheduler_default_weighers", "CapacityWeigher")],
)
def test_an_unknown_filter_or_weigher(own_service: Service, command: str, option: str, known: str) -> None:
    own_service.config = {"DEFAULT": {option: "Fancy"}}
    told = refused(own_service, command)
    assert told.startswith(f"lapilli: [DEFAULT] {option} = 'Fancy': unknown; known are ")
    assert known in told


def set_version(service: Service, version: str) -> None:
    """Make a database, and let it say that it is of another version."""
    service.state_dir.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(service.command("operation", "list"), capture_output=True, timeout=30)
    assert made.returncode == 0
    with service.records() as database:
        database.execute(sa.text("UPDATE alembic_version SET version_num = :version"), {"version": version})


@pytest.mark.parametrize("words", ["serve", "scheduler", "volume", "doctor", "operation list"])
def test_a_newer_database(own_service: Service, words: str) -> None:
    set_version(own_service, "9999")
    more = ["--listen", f"127.0.0.1:{own_service.port}"] if words == "serve" else []
    told = refused(own_service, *words.split(), *more)
    assert told == "lapilli: The database is at 9999, which this code does not know: upgrade Lapilli itself."


@pytest.mark.parametrize("words", ["serve", "scheduler", "volume", "doctor", "operation list"])
def test_an_older_database(
    own_service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    """In this process, since the first version has none before it: one is made up."""
    set_version(own_service, "0000")
    monkeypatch.setattr(schema, "KNOWN", ("0000", *schema.KNOWN))
    monkeypatch.setattr(compose, "start_logging", lambda _config: None)
    monkeypatch.setattr("os.umask", lambda _mask: 0)
    more = ["--listen", f"127.0.0.1:{own_service.port}"] if words == "serve" else []
    arguments = own_service.command(*words.split(), *more)
    assert cli.main(arguments[arguments.index("lapilli.cli") + 1 :]) == 1
    told = "lapilli: The database is at 0000, older than the code; run: lapilli db upgrade\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("target", ["lio", "nvmet"])
def test_a_kernel_without_the_target(own_service: Service, target: str) -> None:
    """What is missing is named, with the package that brings it."""
    own_service.config = {
        "filepool": {"target_helper": target, "filepool_path": own_service.state_dir / "pool"}
    }
    module = {"lio": "target_core_mod", "nvmet": "nvmet"}[target]
    has_it = subprocess.run(["modinfo", module], capture_output=True).returncode == 0
    if has_it or os.path.isdir(f"/sys/module/{module}"):
        pytest.skip(f"this kernel has {module}")
    told = refused(own_service, "volume")
    assert f"target_helper = {target}: this kernel ({os.uname().release}) has no module " in told
    assert "Debian's package linux-image-" in told
