"""A service of one scenario whose work is done step by step, by the test that asked for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from lapilli.domain.model import Attachment, Operation, Pool, Volume
from lapilli.errors import LapilliError
from lapilli.flows import attachments, volumes
from lapilli.runtime.doctor import Doctor
from lapilli.store import records
from tests.recovery.house import CONTEXT, SERVER, House
from tests.service import until


class Idle(House):
    """A service whose roles do not run by themselves."""

    def work(self) -> int:
        """Work off what can be claimed; how many legs that were."""
        hosts = [backend.host for backend in self.backends]
        backends = {backend.host: backend for backend in self.backends}
        legs = 0
        while True:
            rows = [
                row for role in ("scheduler", "volume") for row in self.core.journal.claim(role, hosts, 1)
            ]
            if not rows:
                return legs
            for row in rows:
                legs += 1
                self.core.journal.run(self.core, row, backends.get(row.host or ""))

    def settle(self) -> None:
        self.work()

    def one(self, kind: Any) -> Any:
        (found,) = self.all(kind)
        return found

    def failed(self) -> list[str]:
        """Kinds of the operations that failed."""
        return [each.kind for each in self.all(Operation) if each.state != "done"]

    def nothing_is_wrong(self) -> None:
        assert [each.text for each in Doctor(self.core, self.backends).examine()] == []

    def nothing_is_left(self) -> None:
        self.nothing_is_wrong()
        report = self.report()
        assert report["usages"] == [0, 0, 0]
        for key in ("volumes", "snapshots", "attachments", "exports", "holders", "rubbish"):
            assert not report[key], key
        assert all((pool.allocated_gb, pool.volumes) == (0, 0) for pool in self.all_pools())

    def all_pools(self) -> list[Pool]:
        with self.core.store.read() as connection:
            return records.all_of(connection, Pool)

    def set_status(self, volume: Volume, status: str) -> None:
        with self.core.store.write() as connection:
            records.update(connection, Volume, volume.id, status=status)

    def reset(self, volume: Volume, status: str) -> None:
        volumes.reset_status(
            self.core, CONTEXT, volume, status=status, attach_status=None, migration_status=None
        )

    def reserve(self, volume: Volume) -> Attachment:
        return attachments.create(self.core, CONTEXT, volume, instance_id=SERVER, connector=None, mode=None)

    def waited_for(self, call: Callable[[], Any]) -> Any:
        """The result, or the error, of a call that waits for its operation, which is worked on meanwhile."""
        found: list[Any] = []

        def make() -> None:
            try:
                found.append(call())
            except LapilliError as error:
                found.append(error)

        thread = threading.Thread(target=make)
        thread.start()
        until(lambda: bool(found) or self.work() > 0)
        thread.join()
        return found[0]
