"""Exports that the target has lost, or keeps for nobody, while one volume has a fault: no other suffers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.recovery.several import CONNECTOR, Several, several
from tests.service import Api, until

__all__ = ["several"]


class Attached:
    """Four attached volumes, two of which will have a fault; and an export that nobody holds."""

    def __init__(self, api: Api, house: Several) -> None:
        self.api, self.house = api, house
        self.broken, self.unclear, *self.good = (self._attached() for _ in range(4))
        self.stray = str(uuid.uuid4())

    def _attached(self) -> str:
        identifier = str(self.api.volume()["id"])
        body = {"attachment": {"volume_uuid": identifier, "connector": CONNECTOR}}
        answer = self.api.post("/v3/attachments", body)
        assert answer.status_code == 200, answer.text
        return identifier

    def lose(self) -> None:
        """What a restart of the target does, with a fault of one volume's device, and of another's array."""
        self.house.strike({"call": "address", "for": self.unclear, "error": "The array does not answer."})
        self._strike({"call": "export", "for": self.broken, "error": "The disk is on fire."})
        self._export(self.stray).write_text("")
        for each in (self.broken, *self.good):
            self._export(each).unlink()

    def keep_stray(self) -> None:
        """Let the stray not be removed, besides."""
        self._strike(
            {"call": "export", "for": self.broken, "error": "The disk is on fire."},
            {"call": "unexport", "for": self.stray, "error": "The daemon does not end."},
        )

    def _strike(self, *faults: dict[str, Any]) -> None:
        self.house.strike(*faults, target=True)

    def _export(self, volume: str) -> Path:
        return self.house.service.state_dir / "sim-target-sim" / "exports" / volume

    def served(self) -> set[str]:
        return {each.name for each in self._export("x").parent.iterdir()}

    def all(self) -> set[str]:
        return {self.broken, self.unclear, *self.good}


@pytest.fixture
def attached(several: Several) -> Attached:
    return Attached(several.start_all("volume"), several)


def warnings(house: Several) -> list[str]:
    return [line for line in house.service.log.read_text().splitlines() if "WARNING" in line.upper()]


def test_one_volumes_fault_keeps_no_other_from_its_guest(attached: Attached, several: Several) -> None:
    attached.lose()
    until(lambda: attached.served() == {attached.unclear, *attached.good})
    attached._export(attached.good[0]).unlink()  # once more: it is not over after the first fault
    until(lambda: attached.good[0] in attached.served())
    for identifier, words in (
        (attached.broken, "cannot serve it: The disk is on fire."),
        (attached.unclear, "cannot be told where"),
    ):
        told = [line for line in warnings(several) if identifier in line and words in line]
        assert len(told) == 1, "told once, and not at every look"
    several.heal()
    until(lambda: attached.served() == attached.all())
    several.is_well()


def test_the_service_starts_beside_exports_that_cannot_be_mended(
    attached: Attached, several: Several
) -> None:
    several.processes["volume"].kill()
    several.processes["volume"].wait(10)
    attached.lose()
    attached.keep_stray()
    several.start("again", "volume")
    until(lambda: set(attached.good) <= attached.served())
    assert attached.api.volume()["status"] == "available", "the back end has started"
    assert attached.served() == {attached.stray, attached.unclear, *attached.good}
    assert "could not be served: The disk is on fire." in several.service.log.read_text()
    several.heal()
    until(lambda: attached.served() == attached.all())
    several.is_well()


@pytest.fixture(params=["cluster", "backend_host"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Several]:
    """A back end that several hosts serve together, by either option."""
    made = Several(tmp_path)
    section = "DEFAULT" if request.param == "cluster" else "sim"
    made.service.config[section][request.param] = "east"
    yield made
    made.end()


def test_a_host_that_joins_leaves_alone_what_the_others_do_meanwhile(cluster: Several) -> None:
    """While it looks at what is served, which takes time on an array, a volume is attached by another."""
    api = cluster.start_all("one")
    attached = Attached(api, cluster)
    attached._export(attached.good[0]).unlink()  # and what was lost is served again
    delay = 3.0
    slow = [{"call": "ensure", "for": attached.broken}, {"call": "restore"}]
    cluster.strike(*({**each, "delay": delay, "times": 1} for each in slow), target=True)
    cluster.start("two", "volume")
    until(lambda: cluster.service.struck("target-sim") > 0)
    fresh = attached._attached()
    over = time.monotonic() + delay + 2
    while time.monotonic() < over:
        assert fresh in attached.served(), "its guest was cut off"
        time.sleep(0.02)
    until(lambda: attached.served() == {fresh, *attached.all()})
    attached._export(attached.stray).write_text("")
    until(lambda: attached.stray not in attached.served())
    cluster.is_well()
