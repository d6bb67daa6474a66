"""Fixtures that start the real service."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import databases
from tests.ceph import cluster
from tests.ceph.cluster import Cluster
from tests.clouds.cloud import Cloud, running
from tests.service import Api, Service


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--database KIND`: what every service and store of the run keeps its records in; `--ceph`."""
    parser.addoption("--database", choices=databases.KINDS, default="sqlite")
    parser.addoption("--ceph", action="store_true", help="the tests that need a Ceph, and no others")


def pytest_configure(config: pytest.Config) -> None:
    """Choose the database."""
    databases.chosen = config.getoption("--database")
    config.addinivalue_line("markers", "only_on(*kinds, because): a test of these databases only, and why")
    config.addinivalue_line("markers", "ceph: a test that asks for the fixture `ceph` while it runs")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is about other databases, and what needs a Ceph, or all else."""
    others = []
    for item in items:
        needs_ceph = (
            "ceph" in getattr(item, "fixturenames", ()) or item.get_closest_marker("ceph") is not None
        )
        if needs_ceph != config.getoption("--ceph"):
            others.append(item)
            continue
        mark = item.get_closest_marker("only_on")
        if mark is None:
            continue
        if not mark.kwargs.get("because"):
            raise pytest.UsageError(f"{item.nodeid} is left out without a reason")
        if databases.chosen not in mark.args:
            others.append(item)
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


@pytest.fixture(scope="session")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An XFS with reflinks on a loop device."""
    yield from _mounted(tmp_path_factory.mktemp("xfs"), "mkfs.xfs", "-q", "-m", "reflink=1")


@pytest.fixture(scope="session")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An ext4, which has no reflinks, on a loop device."""
    yield from _mounted(tmp_path_factory.mktemp("ext4"), "mkfs.ext4", "-q")


def _mounted(base: Path, *command: str) -> Iterator[Path]:
    image, mount = base / "disk", base / "mount"
    mount.mkdir()
    subprocess.run(["truncate", "-s", "1G", image], check=True)
    try:
        subprocess.run([*command, image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, mount], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip(f"{command[0]} is not installed")
    except subprocess.CalledProcessError as problem:
        pytest.skip(f"a loop device cannot be mounted here: {problem.stderr}")
    yield mount
    subprocess.run(["umount", mount], check=True)
    image.unlink()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all tests that do not harm it."""
    made = Service(tmp_path_factory.mktemp("service"))
    made.start()
    made.wait_for_backends()
    yield made
    made.end()


@pytest.fixture
def api(service: Service) -> Api:
    """A client with users and a project of its own."""
    return Api(service)


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[Service]:
    """A service for one test, not started yet."""
    made = Service(tmp_path / "state")
    yield made
    made.end()


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """A Keystone and a Glance for all tests of the run; 40 s, and root on Debian."""
    with running(tmp_path_factory.mktemp("cloud")) as made:
        yield made


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Ceph of one node for all tests of the run; 15 s, and root on Debian."""
    with cluster.running(tmp_path_factory.mktemp("ceph")) as made:
        yield made
