"""`make conformance`: Tempest's volume tests against Lapilli in a cloud, with four workers.

The last line is `passed=N failed=N skipped=N`; before it stands why tests were skipped. The exit status is 1
for any failure, and for a skip that is neither for want of compute nor of a part that is still to come.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from tests.clouds import cloud
from tests.clouds.cloud import Cloud
from tests.clouds.tempest import GOOD, SKIPPED, Outcome, Tempest
from tests.service import Service

BACKENDS = ("first", "second")
ALL = r"^tempest\.api\.volume\."
# parts of the service that are still to come; Tempest has no switch for these
TO_COME = {
    r"\.(test_groups|test_group_types|test_group_type_specs|test_group_snapshots)\.": "groups",
    r"\.VolumeRetypeWithMigrationTest\.": "migration",
}
# what a skip may be for, by the words of Tempest
ALLOWED = {
    r"Nova|compute|multi-attach": "compute is not here",
    r"backup": "backups",
}


def main(words: list[str]) -> int:
    """Run it; the exit status."""
    signal.signal(signal.SIGTERM, _end)
    regex = words[0] if words else ALL
    began = time.monotonic()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lapilli-conformance-")))
        made = stack.enter_context(cloud.running(directory / "cloud"))
        service = serving(made, directory / "lapilli")
        stack.callback(service.end)
        tempest = Tempest(
            made, directory / "tempest", image_id=an_image(made, directory), features=features()
        )
        tests = tempest.tests(regex)
        print(f"{len(tests)} tests; the cloud was ready after {time.monotonic() - began:.0f} s", flush=True)
        outcomes = list(left_out(tests))
        outcomes += of_each(tempest.run([each for each in tests if to_come(each) is None], workers=4), tests)
        keep(directory, service, outcomes)
    missing = set(tests) - {each.id for each in outcomes}
    status = report(outcomes, missing)
    print(f"all of it took {time.monotonic() - began:.0f} s")
    print(counted(outcomes, missing), flush=True)
    return status


def serving(made: Cloud, directory: Path) -> Service:
    """Lapilli, started, with two back ends, Keystone and Glance."""
    config: dict[str, dict[str, Any]] = {
        "DEFAULT": {
            "enabled_backends": ",".join(BACKENDS),
            "auth_strategy": "keystone",
            "image_source": "glance",
        },
        "keystone_authtoken": {**made.authentication(), "interface": "public"},
    }
    for name in BACKENDS:
        config[name] = {"volume_backend_name": name}
    service = Service(directory, config=config, port=made.volume_port)
    service.start()
    return service


def an_image(made: Cloud, directory: Path) -> str:
    """A public image of 16 MiB."""
    path = directory / "disk.raw"
    path.write_bytes(os.urandom(1 << 20) + bytes(15 << 20))
    with made.connect() as connection:
        image = connection.image.create_image(
            "conformance",
            filename=str(path),
            disk_format="raw",
            container_format="bare",
            visibility="public",
            wait=True,
        )
        return str(image.id)


def features() -> dict[str, dict[str, Any]]:
    """What the service can do, in Tempest's words."""
    return {
        "volume": {
            "backend_names": ",".join(BACKENDS),
            "vendor_name": "Lapilli",
            "storage_protocol": "iSCSI",
            "manage_volume_ref": "source-name,unmanaged-%s.raw",
            "manage_snapshot_ref": "source-name,unmanaged-%s.raw",
        },
        "volume-feature-enabled": {
            "multi_backend": True,
            "backup": False,
            "manage_volume": True,
            "manage_snapshot": True,
        },
        "compute-feature-enabled": {"volume_multiattach": True},  # two tests of types ask, and no server
    }


def to_come(test: str) -> str | None:
    """The part still to come that a test is about, if any."""
    for pattern, part in TO_COME.items():
        if re.search(pattern, test):
            return part
    return None


def left_out(tests: list[str]) -> Iterator[Outcome]:
    """Skips for what is still to come."""
    for test in tests:
        part = to_come(test)
        if part is not None:
            yield Outcome(test, SKIPPED, 0, f"{part}: still to come")


def of_each(outcomes: list[Outcome], tests: list[str]) -> Iterator[Outcome]:
    """Outcomes of single tests: what befell a class as a whole befell each of its tests."""
    done = {each.id for each in outcomes}
    for outcome in outcomes:
        whole = re.match(r"(?:setUpClass|tearDownClass) \((.+)\)", outcome.id)
        if whole is None:
            yield outcome
        elif outcome.status == SKIPPED:
            mine = (each for each in tests if each.startswith(f"{whole.group(1)}.") and each not in done)
            yield from (dataclasses.replace(outcome, id=each) for each in mine)
        else:
            yield outcome  # a failure beside those of the tests


def report(outcomes: list[Outcome], missing: set[str]) -> int:
    """Tell skips and failures; the exit status."""
    reasons = collections.Counter(each.why for each in outcomes if each.status == SKIPPED)
    status = 1 if missing or not outcomes else 0
    print("\nSkipped:")
    for why, number in reasons.most_common():
        known = why.endswith(": still to come") or any(re.search(each, why) for each in ALLOWED)
        print(f"{number:5}  {why}{'' if known else '  -- NOT EXPECTED'}")
        status |= not known
    failed = [each for each in outcomes if each.status not in GOOD and each.status != SKIPPED]
    for each in sorted(failed, key=lambda each: each.id):
        print(f"\nFAILED {each.id}\n{each.why}")
    for test in sorted(missing):
        print(f"\nDID NOT RUN {test}")
    return int(bool(status or failed))


def counted(outcomes: list[Outcome], missing: set[str]) -> str:
    """The line that CI looks at."""
    passed = sum(each.status in GOOD for each in outcomes)
    skipped = sum(each.status == SKIPPED for each in outcomes)
    return f"passed={passed} failed={len(outcomes) - passed - skipped + len(missing)} skipped={skipped}"


def keep(directory: Path, service: Service, outcomes: list[Outcome]) -> None:
    """Leave the logs where a person can look for the cause of a failure."""
    kept = Path("build/conformance")
    kept.mkdir(parents=True, exist_ok=True)
    logs = [service.log, directory / "tempest/logs/tempest.log", *(directory / "cloud").glob("*.log")]
    for log in logs:
        if log.exists():
            subprocess.run(["cp", log, kept], check=False)
    rows = (f"{each.status}\t{each.seconds:.1f}\t{each.id}\t{each.why[:200]!r}\n" for each in outcomes)
    (kept / "outcomes.tsv").write_text("".join(sorted(rows)))


def _end(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
