"""Volume types: instant changes by administrators, and how a request's type is found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from msgspec.structs import replace

from lapilli import events
from lapilli.context import Context
from lapilli.domain.model import DefaultType, VolumeType
from lapilli.errors import ConfigError, Conflict, InvalidInput, NotFound
from lapilli.flows.core import Core
from lapilli.flows.notices import refusals_told
from lapilli.flows.options import BUILT_IN, TypeOptions
from lapilli.store import limits, records, volume_types as store
from lapilli.store.session import rerun_when_contended

_YES = "<is> True"


def ensure_default(core: Core) -> None:
    """Make sure that the type `__DEFAULT__` exists; many processes may call this at once."""
    with core.store.read() as connection:
        if store.find(connection, BUILT_IN) is not None:
            return
    try:
        with core.store.write(durable=True) as connection:
            if store.find(connection, BUILT_IN) is None:
                records.insert(connection, _fresh(BUILT_IN, "For volumes that are created without a type"))
    except sa.exc.IntegrityError:
        pass  # another process was faster


def resolve(
    connection: sa.Connection, context: Context, reference: str | None, options: TypeOptions
) -> VolumeType:
    """The type that a request means by an id or a name, or the default one when it names none.

    Raises `NotFound` also for a type hidden from the caller, `ConfigError` when the default is missing.
    """
    if reference is None:
        return default(connection, options, context.project_id)
    found = store.find(connection, reference)
    if found is None or not (context.is_admin or store.is_visible(connection, found, context.project_id)):
        raise NotFound.of("volume type", reference)
    return found


def default(connection: sa.Connection, options: TypeOptions, project_id: str) -> VolumeType:
    """The type of a project's volumes created without one. Raises `ConfigError` when it is missing."""
    found = store.find_default(connection, project_id, options.default_volume_type)
    if found is None:
        raise ConfigError(
            f"[DEFAULT] default_volume_type = {options.default_volume_type!r}: there is no such volume type."
        )
    return found


def get(connection: sa.Connection, context: Context, identifier: str) -> VolumeType:
    """A type by id. Raises `NotFound` also for one hidden from the caller."""
    found = records.get(connection, VolumeType, identifier)
    if not (context.is_admin or store.is_visible(connection, found, context.project_id)):
        raise NotFound.of("volume type", identifier)
    return found


@refusals_told("volumeType", "volume_type.create")
def create(
    core: Core,
    *,
    name: str,
    description: str | None,
    is_public: bool,
    extra_specs: Mapping[str, str | None],
) -> VolumeType:
    """Add a type. Raises `Conflict` for a name that is taken."""
    _check_specs(extra_specs)
    made = _fresh(name, description, is_public=is_public, extra_specs=dict(extra_specs))
    try:
        with core.store.write(durable=True) as connection:
            records.insert(connection, made)
            if core.notices is not None:
                core.notices.volume_type(connection, "volume_type.create", made)
    except sa.exc.IntegrityError:
        raise _taken(name) from None
    events.emit("volume_type.create", volume_type_id=made.id, type_name=name)
    return made


@refusals_told("volumeType", "volume_type.update")
@rerun_when_contended
def update(core: Core, volume_type: VolumeType, changes: dict[str, Any]) -> VolumeType:
    """Change name, description or is_public; per-type quotas follow the name."""
    name = changes.get("name", volume_type.name)
    if name != volume_type.name and _is_default(core, volume_type):
        raise InvalidInput(
            f"Volume type {volume_type.name} is what volumes get by default: it cannot be renamed."
        )
    try:
        with core.store.write(durable=True) as connection:
            before = _locked(connection, volume_type.id)
            records.update(connection, VolumeType, before.id, **changes)
            if name != before.name:
                limits.rename_type(connection, before.name, name)
            after = records.get(connection, VolumeType, before.id)
            if core.notices is not None:
                core.notices.volume_type(connection, "volume_type.update", after)
    except sa.exc.IntegrityError:
        raise _taken(name) from None
    events.emit("volume_type.update", volume_type_id=after.id, type_name=after.name)
    return after


@refusals_told("volumeType", "volume_type.delete")
@rerun_when_contended
def delete(core: Core, volume_type: VolumeType) -> None:
    """Remove a type that is neither used, nor the default, nor the last one."""
    if _is_default(core, volume_type):
        raise InvalidInput(f"Volume type {volume_type.name} is a default type: it cannot be deleted.")
    with core.store.write(durable=True) as connection:
        present = _locked(connection, volume_type.id)
        if records.count(connection, VolumeType, ()) == 1:
            raise InvalidInput(f"Volume type {present.name} is the last one: it cannot be deleted.")
        _check_unused(connection, present, "be deleted")
        projects = store.projects_with_default(connection, present.id)
        if projects:
            raise InvalidInput(
                f"Volume type {present.name} is the default of projects, {projects[0]} among them:"
                " it cannot be deleted."
            )
        store.revoke(connection, present.id)
        limits.forget_type(connection, present.name)
        records.delete(connection, VolumeType, present.id)
        if core.notices is not None:
            core.notices.volume_type(connection, "volume_type.delete", present)
    events.emit("volume_type.delete", volume_type_id=volume_type.id, type_name=volume_type.name)


@rerun_when_contended
def set_specs(
    core: Core, volume_type: VolumeType, specs: Mapping[str, str], *, key: str | None = None
) -> None:
    """Add or change extra specs of a type that no volume uses; `key` is the one that the call names."""
    with core.store.write(durable=True) as connection:
        present = _locked(connection, volume_type.id)
        _check_unused(connection, present, "change its extra specs")
        wanted = {**present.extra_specs, **specs}
        _check_specs(wanted)
        if present.encryption is not None and wanted.get("multiattach") == _YES:
            raise InvalidInput("A volume type cannot be both encrypted and multiattach.")
        records.update(connection, VolumeType, present.id, extra_specs=wanted)
        if core.notices is not None:
            suffix, told = ("create", {"specs": dict(specs)}) if key is None else ("update", {"id": key})
            core.notices.extra_specs(connection, present.id, suffix, **told)
    events.emit("volume_type_extra_specs.update", volume_type_id=volume_type.id, keys=sorted(specs))


@rerun_when_contended
def delete_spec(core: Core, volume_type: VolumeType, key: str) -> None:
    """Remove one extra spec of a type that no volume uses. Raises `NotFound` for an unknown key."""
    with core.store.write(durable=True) as connection:
        present = _locked(connection, volume_type.id)
        if key not in present.extra_specs:
            raise NotFound(f"Volume type {present.id} has no extra spec {key}.")
        _check_unused(connection, present, "change its extra specs")
        left = {name: value for name, value in present.extra_specs.items() if name != key}
        records.update(connection, VolumeType, present.id, extra_specs=left)
        if core.notices is not None:
            core.notices.extra_specs(connection, present.id, "delete", id=key, deleted_at=None)
    events.emit("volume_type_extra_specs.delete", volume_type_id=volume_type.id, keys=[key])


@rerun_when_contended
def encrypt(core: Core, volume_type: VolumeType, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Say how volumes of an unused type are encrypted. Raises `InvalidInput` for one that says so already."""
    made = {
        "cipher": None,
        "key_size": None,
        **wanted,
        "encryption_id": records.new_id(),
        "created_at": records.now().isoformat(timespec="microseconds"),
        "updated_at": None,
    }
    with core.store.write(durable=True) as connection:
        present = _locked(connection, volume_type.id)
        if present.encryption is not None:
            raise InvalidInput(f"Volume type {present.name} is encrypted already.")
        if present.extra_specs.get("multiattach") == _YES:
            raise InvalidInput("A volume type cannot be both encrypted and multiattach.")
        _check_unused(connection, present, "be encrypted")
        records.update(connection, VolumeType, present.id, encryption=made)
        if core.notices is not None:
            core.notices.encryption(connection, present.id, "create", wanted)
    events.emit("volume_type_encryption.create", volume_type_id=volume_type.id)
    return made


@rerun_when_contended
def change_encryption(core: Core, volume_type: VolumeType, wanted: Mapping[str, Any] | None) -> None:
    """Change how volumes of an unused type are encrypted; None: they are no longer. Raises `NotFound`."""
    with core.store.write(durable=True) as connection:
        present = _locked(connection, volume_type.id)
        if present.encryption is None:
            raise NotFound(f"Volume type {present.id} is not encrypted.")
        _check_unused(connection, present, "change its encryption")
        changed = None
        if wanted is not None:
            moment = records.now().isoformat(timespec="microseconds")
            changed = {**present.encryption, **wanted, "updated_at": moment}
        records.update(connection, VolumeType, present.id, encryption=changed)
        if core.notices is not None and wanted is not None:
            core.notices.encryption(connection, present.id, "update", wanted)
    if changed is None:
        events.emit("volume_type_encryption.delete", volume_type_id=volume_type.id)
    else:
        events.emit("volume_type_encryption.update", volume_type_id=volume_type.id)


@rerun_when_contended
def set_default(core: Core, project_id: str, reference: str) -> DefaultType:
    """Give a project a default type of its own. Raises `InvalidInput` for a type that is not there."""
    with core.store.write(durable=True) as connection:
        found = store.find(connection, reference)
        if found is None or store.locked(connection, found.id) is None:
            raise InvalidInput(f"Volume type {reference} could not be found.")
        if not (found.is_public or project_id in store.granted_to(connection, found.id)):
            raise InvalidInput(
                f"Volume type {found.name} is private, and not granted to project {project_id}."
            )
        chosen = DefaultType(
            project_id=project_id, volume_type_id=found.id, created_at=records.now(), updated_at=records.now()
        )
        store.put_default(connection, chosen)
    return chosen


def unset_default(core: Core, project_id: str) -> None:
    """Let a project follow the service's default again. Raises `NotFound` when it has none of its own."""
    with core.store.write(durable=True) as connection:
        if not records.delete(connection, DefaultType, project_id):
            raise NotFound(f"Project {project_id} has no default volume type of its own.")


@rerun_when_contended
def add_access(core: Core, volume_type: VolumeType, project_id: str) -> None:
    """Grant a private type to a project. Raises `Conflict` for a second grant."""
    taken = f"Volume type {volume_type.id} is granted to project {project_id} already."
    try:
        with core.store.write(durable=True) as connection:
            _check_private(_locked(connection, volume_type.id))
            if project_id in store.granted_to(connection, volume_type.id):
                raise Conflict(taken)
            store.grant(connection, volume_type.id, project_id)
            if core.notices is not None:
                core.notices.access(connection, volume_type.id, project_id, "add")
    except sa.exc.IntegrityError:
        raise Conflict(taken) from None
    events.emit("volume_type_project.access.add", volume_type_id=volume_type.id, project_id=project_id)


@rerun_when_contended
def remove_access(core: Core, volume_type: VolumeType, project_id: str) -> None:
    """Take a project's grant away. Raises `NotFound` when there is none."""
    with core.store.write(durable=True) as connection:
        _check_private(_locked(connection, volume_type.id))
        if not store.revoke(connection, volume_type.id, project_id):
            raise NotFound(f"Volume type {volume_type.id} is not granted to project {project_id}.")
        if core.notices is not None:
            core.notices.access(connection, volume_type.id, project_id, "remove")
    events.emit("volume_type_project.access.remove", volume_type_id=volume_type.id, project_id=project_id)


def _fresh(name: str, description: str | None, **values: Any) -> VolumeType:
    created = records.now()
    return replace(
        VolumeType(id=records.new_id(), name=name, description=description, created_at=created), **values
    )


def _locked(connection: sa.Connection, identifier: str) -> VolumeType:
    found = store.locked(connection, identifier)
    if found is None:
        raise NotFound.of("volume type", identifier)
    return found


def _is_default(core: Core, volume_type: VolumeType) -> bool:
    named = core.types.default_volume_type
    return volume_type.name == BUILT_IN or named in (volume_type.id, volume_type.name)


def _check_unused(connection: sa.Connection, volume_type: VolumeType, what: str) -> None:
    if store.in_use(connection, volume_type.id):
        raise InvalidInput(f"Volumes of type {volume_type.name} exist: it cannot {what}.")


def _check_private(volume_type: VolumeType) -> None:
    if volume_type.is_public:
        raise InvalidInput(f"Volume type {volume_type.id} is public: its access cannot be changed.")


def _check_specs(specs: Mapping[str, str | None]) -> None:
    if specs.get("multiattach") == _YES and specs.get("cacheable") == _YES:
        raise InvalidInput("A volume type cannot be both multiattach and cacheable.")
    if (place := specs.get("image_service:store_id")) is not None:
        raise NotFound(f"Image store {place} is not known: the image source has no stores.")


def _taken(name: str) -> Conflict:
    return Conflict(f"Volume Type {name} already exists.")
