"""Tests that run in a virtual machine, by `make test-vm`, and nowhere else."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("LAPILLI_IN_VM") else ["test_*.py"]
