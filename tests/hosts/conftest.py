"""The cloud that all tests here share: each leaves it whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import databases
from tests.hosts.cloud import Cloud
from tests.hosts.network import NoNamespaces


@pytest.fixture(scope="session")
def running_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """Hosts in network namespaces."""
    try:
        made = Cloud(tmp_path_factory.mktemp("cloud"))
    except NoNamespaces as problem:
        pytest.skip(f"network namespaces cannot be made here: {problem}")
    try:
        made.start()
        yield made
        made.check()
    except databases.NotInstalled as problem:
        pytest.skip(str(problem))
    finally:
        made.end()


@pytest.fixture
def cloud(running_cloud: Cloud) -> Iterator[Cloud]:
    """The cloud, whole before and after the test."""
    running_cloud.wait_until_whole()
    yield running_cloud
    for host in running_cloud.hosts.values():
        host.heal()
    if running_cloud.database is not None:
        running_cloud.database.heal()
    running_cloud.wait_until_whole()
