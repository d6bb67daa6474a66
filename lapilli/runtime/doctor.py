"""Compares what the database says with quota, pools, back ends and targets, in plain words.

The database is read as it was at one moment. Resources that an operation is working on are left out: their
operation answers for them; and those that have changed since.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa

from lapilli.domain import quotas as rules, states
from lapilli.domain.model import (
    Attachment,
    CachedImage,
    Connection,
    Export,
    Operation,
    Pool,
    Record,
    Snapshot,
    Transfer,
    Volume,
    VolumeType,
)
from lapilli.errors import KeyStoreError, LapilliError
from lapilli.flows import image_cache
from lapilli.flows.claims import UNFINISHED
from lapilli.flows.core import Core
from lapilli.flows.definitions import Backend
from lapilli.flows.exports import export_spec
from lapilli.flows.retype import reserved_of
from lapilli.flows.scheduling import EVICTING, FILLING
from lapilli.flows.volume_tasks import backend_host, growth_of
from lapilli.ports.driver import SnapshotRef, VolumeRef
from lapilli.ports.keys import Key
from lapilli.store import outbox, records, tables

# a volume in these may have nothing at its back end: a delete may have failed after its work was done
EMPTY = frozenset(
    ("creating", "downloading", "error", "error_deleting", "error_managing", "error_unmanaging")
)


UNSENT = 60  # seconds that a notification may wait


def _notifications(count: int) -> str:
    return "1 notification waits" if count == 1 else f"{count} notifications wait"


@dataclass(frozen=True)
class Difference:
    """One thing that is not as the database says; `mend` puts it right, where that is safe."""

    text: str
    mend: Callable[[], object] | None = None


class Doctor:
    """Looks at everything once."""

    def __init__(self, core: Core, backends: Sequence[Backend]) -> None:
        self.core = core
        self.backends = backends
        with core.store.snapshot() as connection:
            self.volumes = {each.id: each for each in records.all_of(connection, Volume)}
            self.snapshots = {each.id: each for each in records.all_of(connection, Snapshot)}
            self.attachments = {each.id: each for each in records.all_of(connection, Attachment)}
            self.exports = {each.volume_id: each for each in records.all_of(connection, Export)}
            self.connections = records.all_of(connection, Connection)
            self.pools = records.all_of(connection, Pool)
            every = {each.id: each for each in records.all_of(connection, CachedImage)}
            self.transfers = records.all_of(connection, Transfer)
            self.types = {each.id: each.name for each in records.all_of(connection, VolumeType)}
            condition = tables.operations.c.state.in_(UNFINISHED)
            self.operations = records.all_of(connection, Operation, condition)
            self.usages = connection.execute(sa.select(tables.quota_usages)).all()
            self.notices = outbox.waiting(connection)
        self.images = {key: each for key, each in every.items() if each.state != EVICTING}
        self.evicted = {key: each for key, each in every.items() if each.state == EVICTING}
        self.busy = {each.lane for each in self.operations} | {each.resource_id for each in self.operations}

    def examine(self) -> list[Difference]:
        """Every difference."""
        found = [*self._stuck(), *self._quotas(), *self._pools(), *self._connections(), *self._offers()]
        found += self._unsent()
        for backend in self.backends:
            found += [*self._stored(backend), *self._served(backend), *self._cached(backend)]
        return [*found, *self._keys()]

    def remarks(self) -> list[str]:
        """What is no difference, and worth knowing."""
        waiting, since = self.notices
        if since is None or self.core.notices is None:
            return []
        age = (records.now() - since).total_seconds()
        return [f"{_notifications(waiting)} for the broker, the oldest one for {age:.0f} s."]

    def _unsent(self) -> Iterable[Difference]:
        waiting, since = self.notices
        age = 0.0 if since is None else (records.now() - since).total_seconds()
        if waiting and self.core.notices is None:
            yield Difference(f"{_notifications(waiting)} to be sent, but no driver of them is configured")
        elif age >= UNSENT:
            yield Difference(
                f"a notification has waited for {age:.0f} s: is the broker away, or does no scheduler or "
                "volume service run?"
            )

    def _stuck(self) -> Iterable[Difference]:
        held = self.busy | {each.id for each in self.snapshots.values() if each.volume_id in self.busy}
        for kind, resources in (("volume", self.volumes), ("snapshot", self.snapshots)):
            for each in resources.values():
                if each.status in states.while_states(kind) and each.id not in held:
                    yield Difference(f"{kind} {each.id} is {each.status}, but no operation is working on it")

    def _quotas(self) -> Iterable[Difference]:
        wanted: dict[str, Counter[str]] = {}
        for volume in self.volumes.values():
            if volume.consumes_quota:
                cost = rules.volume_deltas(volume.size, self.types[volume.volume_type_id])
                wanted.setdefault(volume.project_id, Counter()).update(cost)
        for snapshot in self.snapshots.values():
            if snapshot.consumes_quota:
                name = self.types[snapshot.volume_type_id]
                cost = rules.snapshot_deltas(snapshot.size, name, self.core.quota)
                wanted.setdefault(snapshot.project_id, Counter()).update(cost)
        kept: dict[str, Counter[str]] = {}
        for operation in self.operations:
            if operation.kind == "volume.extend":
                cost = growth_of(operation.args, self.types[operation.args["volume_type_id"]])
                kept.setdefault(operation.args["project_id"], Counter()).update(cost)
            elif operation.kind == "volume.retype":
                for project, cost in reserved_of(operation.args, self.types).items():
                    kept.setdefault(project, Counter()).update(cost)
        held = {(row.project_id, row.resource): (row.in_use, row.reserved) for row in self.usages}
        names = {(project, name) for found in (wanted, kept) for project in found for name in found[project]}
        for project, name in sorted(held.keys() | names):
            right = wanted.get(project, Counter())[name], kept.get(project, Counter())[name]
            told = held.get((project, name), (0, 0))
            if told != right:
                yield Difference(
                    f"quota {name} of project {project}: {told[0]} in use and {told[1]} reserved counted, "
                    f"it is {right[0]} and {right[1]}",
                    partial(self._set_usage, project, name, right),
                )

    def _set_usage(self, project: str, name: str, right: tuple[int, int]) -> None:
        table = tables.quota_usages
        values = {"in_use": right[0], "reserved": right[1]}
        with self.core.store.write(durable=True) as connection:
            where = (table.c.project_id == project, table.c.resource == name)
            if connection.execute(table.update().where(*where).values(**values)).rowcount == 0:
                connection.execute(table.insert(), {"project_id": project, "resource": name, **values})

    def _pools(self) -> Iterable[Difference]:
        for pool in self.pools:
            here = [volume for volume in self.volumes.values() if volume.host == pool.name]
            growing = sum(
                operation.results.get("claimed", 0)
                for operation in self.operations
                if operation.resource_id in {volume.id for volume in here}
            )
            kept = sum(each.size for each in self.images.values() if each.pool == pool.name)
            right = sum(volume.size for volume in here) + growing + kept, len(here)
            if (pool.allocated_gb, pool.volumes) != right:
                yield Difference(
                    f"pool {pool.name}: {pool.allocated_gb} GiB in {pool.volumes} volumes are counted, "
                    f"but it is {right[0]} in {right[1]}"
                    + (f", {kept} GiB of it for cached images" if kept else ""),
                    partial(self._set_pool, pool.name, right),
                )

    def _set_pool(self, name: str, right: tuple[int, int]) -> None:
        with self.core.store.write(durable=True) as connection:
            records.update(connection, Pool, name, allocated_gb=right[0], volumes=right[1])

    def _connections(self) -> Iterable[Difference]:
        for each in self.connections:
            if each.volume_id in self.busy:
                continue
            if each.volume_id not in self.volumes:
                yield Difference(
                    f"a connection of volume {each.volume_id} is recorded, but the volume is gone"
                )
            elif not each.holder.startswith("connector:") and each.holder not in self.attachments:
                yield Difference(f"a connection of attachment {each.holder} is recorded, but that is gone")

    def _offers(self) -> Iterable[Difference]:
        offered = {each.volume_id for each in self.transfers}
        for each in self.volumes.values():
            if each.status == "awaiting-transfer" and each.id not in offered:
                yield Difference(f"volume {each.id} is awaiting-transfer, but nobody is offered it")
        for transfer in self.transfers:
            volume = self.volumes.get(transfer.volume_id)
            if volume is None or volume.status != "awaiting-transfer":
                state = "gone" if volume is None else volume.status
                yield Difference(
                    f"transfer {transfer.id} offers volume {transfer.volume_id}, which is {state}",
                    partial(self._withdraw, transfer.id),
                )

    def _withdraw(self, transfer_id: str) -> None:
        with self.core.store.write(durable=True) as connection:
            records.delete(connection, Transfer, transfer_id)

    def _keys(self) -> Iterable[Difference]:
        if self.core.keys is None:
            return
        try:
            kept = self.core.keys.keys({each.project_id for each in self.volumes.values()})
        except KeyStoreError as problem:
            yield Difference(f"the keys of encrypted volumes cannot be looked at: {problem.message}")
            return
        for key in kept:
            kind, _, identifier = key.owner.partition("-")
            if identifier in self.busy:
                continue
            if self._was_left(key):
                yield Difference(
                    f"project {key.project_id} still has a key of volume {identifier}, which is another's",
                    partial(self._drop_left, key),
                )
            if self._has_owner(kind, identifier):
                continue
            yield Difference(
                f"the key store holds key {key.id} of {kind} {identifier}, which is gone",
                partial(self.core.keys.delete, key.owner, key.id, key.project_id),
            )
        ids = {key.id for key in kept}
        served = {backend.host for backend in self.backends}
        for each in self.volumes.values():
            if each.id in self.busy or each.status in EMPTY or each.encryption_key_id is None:
                continue
            if backend_host(each.host or "") not in served:
                continue  # its key may be where it is served
            if not self._has_key(each, ids):
                yield Difference(f"volume {each.id} is encrypted, but its key is gone")

    def _was_left(self, key: Key) -> bool:
        """Whether a transfer that was cut off has left it, in a project that does not have the volume."""
        volume = self.volumes.get(key.owner.removeprefix("volume-"))
        if volume is None or volume.status == "awaiting-transfer":  # somebody may be accepting it
            return False
        return key.project_id not in ("", volume.project_id) and not self._moved(Volume, volume.id)

    def _drop_left(self, key: Key) -> None:
        if self.core.keys is not None and self._was_left(key):
            self.core.keys.delete(key.owner, key.id, key.project_id)

    def _has_owner(self, kind: str, identifier: str) -> bool:
        """Whether a key's owner is there, or may be: what cannot be found out counts as being there."""
        if kind == "volume":
            return identifier in self.volumes or self._moved(Volume, identifier)
        if kind != "image" or any(each.args.get("image_id") == identifier for each in self.operations):
            return True
        try:
            return self.core.images.exists(identifier)
        except LapilliError:
            return True

    def _has_key(self, volume: Volume, kept: Container[str]) -> bool:
        if self.core.keys is None or volume.encryption_key_id in kept or self._moved(Volume, volume.id):
            return True
        try:
            self.core.keys.get(volume.encryption_key_id or "", volume.project_id)
        except KeyStoreError:
            return False
        return True

    def _stored(self, backend: Backend) -> Iterable[Difference]:
        here = {
            volume.id: volume
            for volume in self.volumes.values()
            if volume.host and backend_host(volume.host) == backend.host
        }
        stored = set(backend.driver.volumes())
        for identifier in here.keys() - stored - self.busy:
            if here[identifier].status not in EMPTY and not self._moved(Volume, identifier):
                yield Difference(f"volume {identifier} has nothing at back end {backend.host}")
        for identifier in stored - here.keys() - self.busy - self.images.keys() - self.evicted.keys():
            if self._moved(Volume, identifier) or self._moved(CachedImage, identifier):
                continue
            yield Difference(
                f"back end {backend.host} holds volume {identifier}, unknown to the database there",
                partial(backend.driver.delete, VolumeRef(identifier, 0, "")),
            )
        snapshots = {each.id: each for each in self.snapshots.values() if each.volume_id in here}
        frozen = set(backend.driver.snapshots())
        for identifier in snapshots.keys() - frozen - self.busy:
            if snapshots[identifier].status in ("creating", "error", "error_deleting"):
                continue
            if not self._moved(Snapshot, identifier):
                yield Difference(f"snapshot {identifier} has nothing at back end {backend.host}")
        for identifier in frozen - snapshots.keys() - self.busy:
            if self._moved(Snapshot, identifier):
                continue
            yield Difference(
                f"back end {backend.host} holds snapshot {identifier}, unknown to the database there",
                partial(backend.driver.delete_snapshot, SnapshotRef(identifier, "", 0, "")),
            )

    def _cached(self, backend: Backend) -> Iterable[Difference]:
        """Cached images that are not there, or of which something is left."""
        at_work = {each.id for each in self.operations}
        stored = set(backend.driver.volumes())
        for each in [*self.images.values(), *self.evicted.values()]:
            if each.backend != backend.host or each.operation_id in at_work:
                continue
            what = f"the copy of image {each.image_id} that pool {each.pool} keeps"
            if each.state == EVICTING:
                text = f"{what} was given up, but is not removed yet"
            elif each.state == FILLING:
                text = f"{what} is not whole, and no operation is filling it"
            elif each.id not in stored:
                text = f"{what} has nothing at its back end"
            else:
                continue
            if not self._moved(CachedImage, each.id):
                yield Difference(text, partial(image_cache.sweep, self.core, backend, [each]))

    def _moved(self, kind: type[Record], identifier: str) -> bool:
        """Whether a resource is not as it was when the database was read: work has gone on since."""
        known: dict[str, Record] = {**self.images, **self.evicted, **self.volumes, **self.snapshots}
        with self.core.store.read() as connection:
            return records.find(connection, kind, identifier) != known.get(identifier)

    def _served(self, backend: Backend) -> Iterable[Difference]:
        wanted = {each.volume_id: each for each in self.exports.values() if each.backend == backend.host}
        served = set(backend.target.exports())
        for identifier in served - wanted.keys() - self.busy:
            if self._moved(Volume, identifier):
                continue
            yield Difference(
                f"target {backend.target.name} serves volume {identifier}, which nobody is connected to",
                partial(backend.target.unexport, identifier, {}),
            )
        if not backend.target.serves:
            return  # the export is only a record
        for identifier in wanted.keys() - served - self.busy:
            if self._moved(Volume, identifier):
                continue
            volume, export = self.volumes.get(identifier), wanted[identifier]
            if volume is None:
                yield Difference(f"an export of volume {identifier} is recorded, but the volume is gone")
                continue
            with self.core.store.read() as connection:
                spec = export_spec(connection, backend, volume, export)
            yield Difference(
                f"target {backend.target.name} does not serve volume {identifier}, which is connected",
                partial(backend.target.export, spec),
            )
