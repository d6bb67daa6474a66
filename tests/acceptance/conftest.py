"""Fixtures of the acceptance tests: a pool with reflinks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance import disks
from tests.acceptance.disks import GIB


@pytest.fixture(scope="module")
def reflink_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An XFS of 3 GiB on a loop device."""
    with disks.mounted(tmp_path_factory.mktemp("reflink"), "xfs", 3 * GIB) as mount:
        yield mount
