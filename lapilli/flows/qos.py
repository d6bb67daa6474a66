"""QoS specs: instant changes by administrators, and which volume types are bound to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from lapilli import events
from lapilli.domain import qos as rules
from lapilli.domain.model import QosSpecs, VolumeType
from lapilli.errors import Conflict, InvalidInput, NotFound
from lapilli.flows.core import Core
from lapilli.flows.notices import refusals_told
from lapilli.store import records, volume_types as store
from lapilli.store.session import rerun_when_contended


@refusals_told("QoSSpecs", "qos_specs.create")
def create(core: Core, *, name: str, consumer: str, specs: Mapping[str, str]) -> QosSpecs:
    """Add QoS specs. Raises `Conflict` for a name that is taken."""
    made = QosSpecs(
        id=records.new_id(), name=name, consumer=consumer, specs=dict(specs), created_at=records.now()
    )
    try:
        with core.store.write(durable=True) as connection:
            records.insert(connection, made)
            if core.notices is not None:
                core.notices.qos(connection, "create", name=name, specs=made.specs)
    except sa.exc.IntegrityError:
        raise Conflict(f"QoS specs {name} already exist.") from None
    events.emit("qos_specs.create", qos_specs_id=made.id, qos_name=name)
    return made


@refusals_told("QoSSpecs", "qos_specs.update")
@rerun_when_contended
def update(core: Core, identifier: str, specs: Mapping[str, str], consumer: str | None) -> None:
    """Add or change keys, and the consumer. Raises `NotFound`."""
    with core.store.write(durable=True) as connection:
        present = records.get(connection, QosSpecs, identifier, lock="update")
        changes: dict[str, Any] = {"specs": {**present.specs, **specs}}
        if consumer is not None:
            changes["consumer"] = consumer
        records.update(connection, QosSpecs, identifier, **changes)
        if core.notices is not None:
            core.notices.qos(connection, "update", id=identifier, specs=dict(specs))
    events.emit("qos_specs.update", qos_specs_id=identifier, keys=sorted(specs))


@refusals_told("QoSSpecs", "qos_specs.delete_keys")
@rerun_when_contended
def delete_keys(core: Core, identifier: str, keys: Sequence[str]) -> None:
    """Remove keys, one after the other. Raises `NotFound` at one that is missing; earlier ones are gone."""
    missing = None
    with core.store.write(durable=True) as connection:
        left = dict(records.get(connection, QosSpecs, identifier, lock="update").specs)
        for key in keys:
            if key not in left:
                missing = key
                break
            del left[key]
        records.update(connection, QosSpecs, identifier, specs=left)
        if core.notices is not None and missing is None:
            core.notices.qos(connection, "delete_keys", id=identifier)
    if missing is not None:
        raise NotFound(f"QoS specs {identifier} have no key {missing}.")
    events.emit("qos_specs.delete_keys", qos_specs_id=identifier, keys=sorted(keys))


@refusals_told("QoSSpecs", "qos_specs.delete")
@rerun_when_contended
def delete(core: Core, identifier: str, *, force: bool) -> None:
    """Remove QoS specs. Raises `InvalidInput` while types are bound to them, unless `force` unbinds those."""
    with core.store.write(durable=True) as connection:
        records.get(connection, QosSpecs, identifier, lock="update")
        bound = store.bound_to(connection, identifier)
        if bound and not force:
            names = ", ".join(each.name for each in bound)
            raise InvalidInput(f"QoS specs {identifier} are in use by volume types: {names}.")
        store.unbind_all(connection, identifier)
        records.delete(connection, QosSpecs, identifier)
        if core.notices is not None:
            core.notices.qos(connection, "delete", id=identifier)
    events.emit("qos_specs.delete", qos_specs_id=identifier)


@refusals_told("QoSSpecs", "qos_specs.associate")
@rerun_when_contended
def associate(core: Core, identifier: str, type_id: str) -> None:
    """Bind a volume type. Raises `NotFound`, or `InvalidInput` for one that is bound to other specs."""
    with core.store.write(durable=True) as connection:
        records.get(connection, QosSpecs, identifier, lock="update")
        kind = records.get(connection, VolumeType, type_id, lock="update")
        if kind.qos_specs_id not in (None, identifier):
            raise InvalidInput(f"Volume type {kind.name} is bound to QoS specs {kind.qos_specs_id} already.")
        records.update(connection, VolumeType, type_id, qos_specs_id=identifier)
        if core.notices is not None:
            core.notices.qos(connection, "associate", id=identifier, type_id=type_id)
    events.emit("qos_specs.associate", qos_specs_id=identifier, volume_type_id=type_id)


@refusals_told("QoSSpecs", "qos_specs.disassociate")
@rerun_when_contended
def disassociate(core: Core, identifier: str, type_id: str) -> None:
    """Unbind a volume type; nothing happens to one that is not bound. Raises `NotFound`."""
    with core.store.write(durable=True) as connection:
        records.get(connection, QosSpecs, identifier)
        kind = records.get(connection, VolumeType, type_id, lock="update")
        if kind.qos_specs_id == identifier:
            records.update(connection, VolumeType, type_id, qos_specs_id=None)
        if core.notices is not None:
            core.notices.qos(connection, "disassociate", id=identifier, type_id=type_id)
    events.emit("qos_specs.disassociate", qos_specs_id=identifier, volume_type_id=type_id)


@refusals_told("QoSSpecs", "qos_specs.disassociate_all")
@rerun_when_contended
def disassociate_all(core: Core, identifier: str) -> None:
    """Unbind all volume types. Raises `NotFound`."""
    with core.store.write(durable=True) as connection:
        records.get(connection, QosSpecs, identifier, lock="update")
        store.unbind_all(connection, identifier)
        if core.notices is not None:
            core.notices.qos(connection, "disassociate_all", id=identifier)
    events.emit("qos_specs.disassociate_all", qos_specs_id=identifier)


def at_back_end(connection: sa.Connection, type_id: str, size: int) -> dict[str, int]:
    """The limits that the back end keeps for a volume of a type."""
    kind = records.find(connection, VolumeType, type_id)
    return {} if kind is None else rules.at_back(of_type(connection, kind), size)


def of_type(connection: sa.Connection, kind: VolumeType) -> QosSpecs | None:
    """The specs that a volume type is bound to."""
    return records.find(connection, QosSpecs, kind.qos_specs_id) if kind.qos_specs_id else None
