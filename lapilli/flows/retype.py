"""Another type for a volume where it is: what the API asks for, and the tasks that carry it out.

Where the back end cannot do it in place, the volume would have to be moved, which is refused here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from lapilli.context import Context
from lapilli.domain import placement, quotas as quota_rules
from lapilli.domain.encryption import same
from lapilli.domain.model import Export, Snapshot, Volume, VolumeType
from lapilli.domain.states import transition
from lapilli.errors import InvalidInput, NoValidBackend, StorageError
from lapilli.flows import qos
from lapilli.flows.claims import Work
from lapilli.flows.core import Core
from lapilli.flows.definitions import RecordTask, Task, operation
from lapilli.flows.exports import export_spec
from lapilli.flows.scheduling import place
from lapilli.flows.volume_tasks import backend_host, complain, has_code, load, reference
from lapilli.flows.volumes import NOT_IN_GROUP, NOT_MIGRATING, check_type_size
from lapilli.ports.driver import Retyping
from lapilli.ports.target import Throttling
from lapilli.store import quotas, records, tables
from lapilli.store.session import rerun_when_contended

RETYPE = transition("volume", "retype")

_volume = tables.volumes.c
_YES = "<is> True"
_MULTIATTACH = "multiattach"
_MOVE = "It would have to be moved for that, which is not built yet."


def turns_multiattach_on(volume: Volume, kind: VolumeType) -> bool:
    """Whether the volume could be attached several times only with the type."""
    return kind.extra_specs.get(_MULTIATTACH) == _YES and not volume.multiattach


@rerun_when_contended
def retype(core: Core, context: Context, volume: Volume, kind: VolumeType, *, on_demand: bool) -> None:
    """Begin to give a volume another type; `on_demand` allows moving it.

    Raises `InvalidInput`, `InvalidState`, `OverQuota`.
    """
    guards = [
        NOT_MIGRATING,
        NOT_IN_GROUP,
        (_volume.volume_type_id == volume.volume_type_id, "it has another"),
    ]
    if (kind.extra_specs.get(_MULTIATTACH) == _YES) != volume.multiattach:
        guards.append((_volume.status == "available", "only an available one turns multiattach on or off"))
    with core.store.write(durable=True) as connection:
        old = records.get(connection, VolumeType, volume.volume_type_id)
        _may_become(connection, volume, old, kind)
        records.enter(connection, RETYPE, volume.id, *guards)
        new = records.get(connection, VolumeType, kind.id, lock="share")
        cost = _cost(core, connection, volume)
        for project, deltas in sorted(_named(cost, new.name).items()):
            quotas.charge(connection, core.quota, project, deltas, reserve=True)
        args = {"old_type": old.id, "new_type": new.id, "on_demand": on_demand, "reserved": cost}
        submitted = core.journal.submit(
            connection, "volume.retype", context, volume.id, role="scheduler", args=args
        )
    core.journal.announce(submitted)


def _may_become(connection: sa.Connection, volume: Volume, old: VolumeType, new: VolumeType) -> None:
    if old.id == new.id:
        raise InvalidInput(f"The volume is of type {new.name} already.")
    check_type_size(new, volume.size)
    if not same(old.encryption, new.encryption):
        raise InvalidInput(f"Types {old.name} and {new.name} differ in encryption. {_MOVE}")
    if volume.attach_status == "attached" and old.qos_specs_id != new.qos_specs_id:
        specs = [qos.of_type(connection, each) for each in (old, new)]
        if any(each is not None and each.consumer != "back-end" for each in specs):
            raise InvalidInput(
                "Types whose QoS specs speak to the host cannot be changed while it is attached."
            )


# --- what it costs ---------------------------------------------------------------------------------------


def _cost(core: Core, connection: sa.Connection, volume: Volume) -> dict[str, dict[str, int]]:
    """What the new type's counters will be charged with, by project: the volume and its snapshots."""
    cost: dict[str, Counter[str]] = {}
    for project, _, deltas in _counted(core.quota, volume, _snapshots(connection, volume.id)):
        cost.setdefault(project, Counter()).update(deltas)
    return {project: dict(deltas) for project, deltas in cost.items()}


def _snapshots(connection: sa.Connection, volume_id: str) -> list[Snapshot]:
    return records.all_of(connection, Snapshot, tables.snapshots.c.volume_id == volume_id)


def _counted(
    options: quota_rules.QuotaOptions, volume: Volume, snapshots: Iterable[Snapshot]
) -> Iterable[tuple[str, str, dict[str, int]]]:
    """(project, type, counts without the type's name) of everything that counts in a type's quota."""
    if volume.consumes_quota:
        yield volume.project_id, volume.volume_type_id, {"volumes": 1, "gigabytes": volume.size}
    for each in snapshots:
        if each.consumes_quota:
            size = {} if options.no_snapshot_gb_quota else {"gigabytes": each.size}
            yield each.project_id, each.volume_type_id, {"snapshots": 1, **size}


def _named(cost: Mapping[str, Mapping[str, int]], type_name: str) -> dict[str, dict[str, int]]:
    """The same with a type's name, which is asked for each time, since it may be renamed meanwhile."""
    return {
        project: {f"{counter}_{type_name}": delta for counter, delta in deltas.items()}
        for project, deltas in cost.items()
    }


def reserved_of(args: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """What an operation has reserved, by project; `names` are those of types, by id."""
    name = names.get(args["new_type"])
    return {} if name is None else _named(args["reserved"], name)


def _release(work: Work, connection: sa.Connection) -> None:
    for project, deltas in sorted(reserved_of(work.args, records.type_names(connection)).items()):
        quotas.settle(connection, project, deltas, commit=False)


# --- tasks -----------------------------------------------------------------------------------------------


def _type(connection: sa.Connection, identifier: str) -> VolumeType:
    """Raises `StorageError` for a type that was deleted meanwhile."""
    found = records.find(connection, VolumeType, identifier, lock="share")
    if found is None:
        raise StorageError("The volume type was deleted meanwhile.", retry=False)
    return found


class ScheduleRetypeVolume(RecordTask):
    """See whether the type may live where the volume is."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """Raises `NoValidBackend`."""
        volume = records.get(connection, Volume, work.resource_id, lock="update")
        kind = _type(connection, work.args["new_type"])
        listed = kind.extra_specs.get("RESKEY:availability_zones") or ""
        specs = qos.of_type(connection, kind)
        request = placement.Request(
            size=0,
            zones=tuple(part.strip() for part in listed.split(",") if part.strip()),
            extra_specs=kind.extra_specs,
            pool=volume.host,
            pinned_why="the volume lives elsewhere",
            present=volume.host,
            volume=msgspec.structs.asdict(volume),
            qos=specs.specs if specs else {},
            over_subscription=work.core.scheduler.max_over_subscription_ratio,
        )
        try:
            place(work, connection, request)
        except NoValidBackend as refused:
            if work.args["on_demand"]:
                raise NoValidBackend([*refused.reasons, _MOVE]) from None
            raise
        work.next_host = backend_host(volume.host or "")


class RetypeVolume(Task):
    """Let the back end change what differs between the types."""

    def execute(self, work: Work) -> None:
        """Raises `StorageError`."""
        changes = self._changes(work, "old_type", "new_type")
        driver = work.storage.driver
        if changes and not (isinstance(driver, Retyping) and driver.retype(reference(load(work)), changes)):
            raise StorageError(f"The back end cannot change the type in place. {_MOVE}", retry=False)
        self._throttle(work, "new_type")

    def revert(self, work: Work) -> None:
        """Change it back."""
        changes, driver = self._changes(work, "new_type", "old_type"), work.storage.driver
        with work.core.store.read() as connection:
            volume = records.find(connection, Volume, work.resource_id)
        if changes and volume is not None and isinstance(driver, Retyping):
            driver.retype(reference(volume), changes)
        self._throttle(work, "old_type")

    @staticmethod
    def _throttle(work: Work, which: str) -> None:
        """Let the target keep the limits of a type, where the volume is served."""
        backend = work.storage
        if not isinstance(backend.target, Throttling):
            return
        with work.core.store.read() as connection:
            volume = records.find(connection, Volume, work.resource_id)
            export = records.find(connection, Export, work.resource_id)
            if volume is None or export is None:
                return
            spec = export_spec(connection, backend, volume, export)
            limits = qos.at_back_end(connection, work.args[which], volume.size)
        backend.target.throttle(msgspec.structs.replace(spec, limits=limits))

    @staticmethod
    def _changes(work: Work, before: str, after: str) -> dict[str, tuple[str | None, str | None]]:
        with work.core.store.read() as connection:
            found = [records.find(connection, VolumeType, work.args[each]) for each in (before, after)]
            specs = [_specs(connection, each) for each in found]
        old, new = specs
        differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        return {key: (old.get(key), new.get(key)) for key in differing}


def _specs(connection: sa.Connection, kind: VolumeType | None) -> dict[str, str | None]:
    """A type's extra specs, and `qos:` before the keys of its QoS specs and before `consumer`."""
    if kind is None:
        return {}
    found = qos.of_type(connection, kind)
    if found is None:
        return dict(kind.extra_specs)
    limits = {"consumer": found.consumer, **found.specs}
    return {**kind.extra_specs, **{f"qos:{key}": value for key, value in limits.items()}}


class RetypeVolumeOnFinish(RecordTask):
    """Write the new type of the volume and its snapshots, and move what the types count."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """One transaction. Raises `StorageError` for a type that was deleted meanwhile."""
        volume = records.find(connection, Volume, work.resource_id, lock="update")
        new = _type(connection, work.args["new_type"])
        _release(work, connection)
        if volume is None:
            return
        found = _snapshots(connection, volume.id)
        self._move_counts(work, connection, volume, found, new.name)
        for each in found:
            records.update(connection, Snapshot, each.id, volume_type_id=new.id)
        multiattach = new.extra_specs.get(_MULTIATTACH) == _YES
        changes: dict[str, Any] = {"volume_type_id": new.id, "multiattach": multiattach, "fault": None}
        # whatever its status is meanwhile (deleted by force, or reset): it is of that type
        if not records.leave(connection, RETYPE, volume.id, "done", **changes):
            records.update(connection, Volume, volume.id, **changes)

    @staticmethod
    def _move_counts(
        work: Work, connection: sa.Connection, volume: Volume, found: list[Snapshot], name: str
    ) -> None:
        names = records.type_names(connection)
        moved: dict[str, Counter[str]] = {}
        for project, kind, counts in _counted(work.core.quota, volume, found):
            for counter, delta in counts.items():
                changes = {f"{counter}_{name}": delta, f"{counter}_{names[kind]}": -delta}
                moved.setdefault(project, Counter()).update(changes)
        for project in sorted(moved):
            quotas.shift(connection, project, moved[project])


def retype_failed(work: Work, connection: sa.Connection, error: Exception) -> None:
    """As it was, with a message; what was reserved goes back."""
    _release(work, connection)
    if records.find(connection, Volume, work.resource_id, lock="update") is None:
        return
    unplaced = has_code(error, NoValidBackend)
    fault = complain(work, connection, "VOLUME", "101", error, usual="003" if unplaced else "001")
    records.leave(connection, RETYPE, work.resource_id, "failed", fault=fault)


operation(
    "volume.retype",
    on=("volume", "retype"),
    scheduler=[ScheduleRetypeVolume()],
    volume=[RetypeVolume(), RetypeVolumeOnFinish()],
    failed=retype_failed,
)
