"""What QoS specs mean for the host that attaches a volume and for its back end."""

from __future__ import annotations

import pytest

from lapilli.domain.model import QosSpecs
from lapilli.domain.qos import at_back, in_front
from lapilli.store import records


def specs(consumer: str, **told: str) -> QosSpecs:
    return QosSpecs(id="q", name="q", consumer=consumer, specs=told, created_at=records.now())


@pytest.mark.parametrize(
    ("consumer", "front", "back"), [("front-end", 1, 0), ("back-end", 0, 1), ("both", 1, 1)]
)
def test_each_keeps_its_own(consumer: str, front: int, back: int) -> None:
    told = specs(consumer, read_iops_sec="100")
    assert in_front(told, 1) == ({"read_iops_sec": "100"} if front else None)
    assert at_back(told, 1) == ({"read_iops_sec": 100} if back else {})


@pytest.mark.parametrize(
    ("told", "limits"),
    [
        ({"total_bytes_sec": "10", "total_bytes_sec_max": "50"},
         {"total_bytes_sec": 10, "total_bytes_sec_max": 50}),
        ({"total_iops_sec_per_gb": "30", "total_iops_sec_per_gb_min": "50"}, {"total_iops_sec": 300}),
        ({"total_iops_sec_per_gb": "3", "total_iops_sec_per_gb_min": "50"}, {"total_iops_sec": 50}),
        ({"read_bytes_sec_per_gb": "10", "read_bytes_sec_max": "40"}, {"read_bytes_sec": 40}),
        ({"compression": "on", "write_iops_sec": "many"}, {}),
        ({"write_iops_sec": "0"}, {}),
    ],
)  # fmt: skip
def test_limits_of_a_back_end(told: dict[str, str], limits: dict[str, int]) -> None:
    assert at_back(specs("back-end", **told), 10) == limits


def test_without_specs() -> None:
    assert in_front(None, 1) is None
    assert at_back(None, 1) == {}
