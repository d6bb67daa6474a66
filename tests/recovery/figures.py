"""What a run of the recovery suite has covered and found: written to build/recovery-DATABASE.json."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import databases

_EFFECTS = ("commit", "link", "rename", "unlink", "driver.", "target.", "images.", "convert.")
_REVERTING = (".revert", ".unrecord", "the failed end")
_EXECUTING = (".execute", ".record")


def moments(points: Sequence[str]) -> list[int]:
    """Of each point, how many effects lie before it: points with equally many are the same moment outside."""
    found, effects = [], 0
    for name in points:
        effects += name.startswith("after ") and name[6:].startswith(_EFFECTS)
        found.append(effects)
    return found


def _in_revert(points: Sequence[str]) -> list[bool]:
    found, reverting = [], False
    for name in points:
        if name.startswith("before "):
            reverting = name.endswith(_REVERTING) or (reverting and not name.endswith(_EXECUTING))
        found.append(reverting)
    return found


class Figures:
    """Sums over the scenarios that were run."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.told: dict[str, Any] = dict.fromkeys(
            (
                "scenarios",
                "points",
                "points_covered",
                "commit_points",
                "commit_points_covered",
                "kills",
                "kills_in_revert",
                "random_kills",
                "operations_interrupted",
                "stuck",
                "quota_drift",
                "leaks",
                "other_problems",
            ),
            0,
        )
        self.kinds: set[str] = set()

    def add(self, kind: str, points: Sequence[str], killed_at: Sequence[int]) -> None:
        """A scenario was killed at these points (counted from 1)."""
        moment, reverting = moments(points), _in_revert(points)
        reached = {moment[at - 1] for at in killed_at}
        commits = [number for number, name in enumerate(points) if name.endswith(" commit")]
        self.kinds.add(kind)
        for name, value in {
            "scenarios": 1,
            "points": len(points),
            "points_covered": sum(each in reached for each in moment),
            "commit_points": len(commits),
            "commit_points_covered": sum(moment[number] in reached for number in commits),
            "kills": len(killed_at),
            "kills_in_revert": sum(reverting[at - 1] for at in killed_at),
        }.items():
            self.told[name] += value

    def blame(self, problems: Sequence[str]) -> None:
        """Count what was found wrong after a kill."""
        for problem in problems:
            if "fresh worker failed" in problem or "no operation is working on it" in problem:
                self.told["stuck"] += 1
            elif "quota " in problem or "usages " in problem or "GiB in " in problem:
                self.told["quota_drift"] += 1
            elif "rubbish" in problem or "holds " in problem or "serves " in problem:
                self.told["leaks"] += 1
            else:
                self.told["other_problems"] += 1

    def write(self, folder: Path, every_point: bool) -> str:
        """Keep them in a file, and in one line."""
        seconds = round(time.monotonic() - self.began)
        head = {"database": databases.chosen, "every_point": every_point, "operation_kinds": len(self.kinds)}
        whole = {**head, **self.told, "seconds": seconds}
        folder.mkdir(exist_ok=True)
        (folder / f"recovery-{databases.chosen}.json").write_text(json.dumps(whole, indent=2) + "\n")
        return ", ".join(f"{name} {value}" for name, value in whole.items())


FIGURES = Figures()
