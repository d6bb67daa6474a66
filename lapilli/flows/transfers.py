"""Transfers: a project offers a volume, and another one that knows the key takes it.

Each call is one transaction. Of a key only a salted hash is kept, so it is told once.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import Counter
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa

from lapilli import events
from lapilli.context import Context
from lapilli.domain import quotas as quota_rules
from lapilli.domain.model import Snapshot, Transfer, Volume, VolumeType
from lapilli.domain.states import transition
from lapilli.errors import InvalidInput, InvalidState, NotFound
from lapilli.flows import encryption
from lapilli.flows.core import Core
from lapilli.flows.volumes import IDLE, NOT_CONNECTED, NOT_IN_GROUP, NOT_MIGRATING
from lapilli.store import quotas, records, tables
from lapilli.store.session import rerun_when_contended

OFFER = transition("volume", "transfer")
ACCEPT = transition("volume", "accept_transfer")
CANCEL = transition("volume", "cancel_transfer")

_snapshot = tables.snapshots.c


@dataclass(frozen=True)
class Offer:
    """A transfer with its key, which nobody is told again."""

    transfer: Transfer
    auth_key: str


def _hash(salt: str, key: str) -> str:
    return hmac.new(salt.encode(), key.encode(), hashlib.sha256).hexdigest()


def _fresh_key(core: Core) -> tuple[str, dict[str, str]]:
    """A new key, and what is kept of it."""
    length, salted = core.options.volume_transfer_key_length, core.options.volume_transfer_salt_length
    key, salt = secrets.token_hex(length)[:length], secrets.token_hex(salted)[:salted]
    return key, {"salt": salt, "key_hash": _hash(salt, key)}


@rerun_when_contended
def create(
    core: Core, volume: Volume, *, name: str | None, no_snapshots: bool, allow_encrypted: bool
) -> Offer:
    """Offer a volume, with its snapshots unless `no_snapshots`. Raises `InvalidState`."""
    _may_encrypted(volume, no_snapshots=no_snapshots, allowed=allow_encrypted)
    key, kept = _fresh_key(core)
    made = Transfer(
        id=records.new_id(),
        volume_id=volume.id,
        project_id=volume.project_id,
        name=name,
        no_snapshots=no_snapshots,
        created_at=records.now(),
        **kept,  # type: ignore[arg-type]
    )
    with core.store.write(durable=True) as connection:
        records.get(connection, Volume, volume.id, project_id=volume.project_id, lock="update")
        if core.notices is not None:
            core.notices.volume(connection, volume.id, "transfer.create.start")
        records.enter(connection, OFFER, volume.id, NOT_MIGRATING, NOT_CONNECTED, IDLE)
        if not no_snapshots:
            _along(connection, volume)
        records.insert(connection, made)
        if core.notices is not None:
            core.notices.volume(connection, volume.id, "transfer.create.end")
    _tell(OFFER.event, made)
    return Offer(made, key)


def _may_encrypted(volume: Volume, *, no_snapshots: bool, allowed: bool) -> None:
    if volume.encryption_key_id is None:
        return
    if not allowed:
        raise InvalidState("Invalid volume: an encrypted one is transferred from version 3.70 on only.")
    if no_snapshots:
        raise InvalidState("Invalid volume: an encrypted one is transferred with its snapshots only.")


def _along(connection: sa.Connection, volume: Volume) -> list[Snapshot]:
    """The snapshots that go with a volume: those of its own project. Raises `InvalidState`."""
    found = records.all_of(
        connection, Snapshot, _snapshot.volume_id == volume.id, _snapshot.project_id == volume.project_id
    )
    for each in found:
        if each.status != "available":
            raise InvalidState(
                f"Invalid snapshot: what is transferred must be available, but {each.id} is {each.status}."
            )
    return found


@rerun_when_contended
def renew_key(core: Core, transfer: Transfer) -> Offer:
    """The same offer with another key: for who never got the answer with the first. Raises `NotFound`."""
    key, kept = _fresh_key(core)
    with core.store.write(durable=True) as connection:
        if not records.update(connection, Transfer, transfer.id, **kept):
            raise NotFound.of("transfer", transfer.id)
    return Offer(msgspec.structs.replace(transfer, **kept), key)


@rerun_when_contended
def delete(core: Core, transfer: Transfer) -> None:
    """Take an offer back. Raises `NotFound`."""
    with core.store.write(durable=True) as connection:
        volume = records.find(connection, Volume, transfer.volume_id, lock="update")
        if core.notices is not None:
            core.notices.volume(connection, transfer.volume_id, "transfer.delete.start")
        if not records.delete(connection, Transfer, transfer.id):
            raise NotFound.of("transfer", transfer.id)
        # an administrator may have reset it: then its status has nothing to do with the offer any more
        if volume is not None and volume.status == OFFER.done:
            records.enter(connection, CANCEL, volume.id)
        if core.notices is not None:
            core.notices.volume(connection, transfer.volume_id, "transfer.delete.end")
    _tell(CANCEL.event, transfer)


def accept(core: Core, context: Context, transfer: Transfer, key: str) -> None:
    """Give the volume to the caller's project: rows and both quotas in one transaction.

    Raises `InvalidInput` for a wrong key, `InvalidState`, `OverQuota`, `NotFound`: then nothing has happened.
    """
    with core.store.read() as connection:
        volume = records.get(connection, Volume, transfer.volume_id)
        _check_key(records.get(connection, Transfer, transfer.id), key)
    with encryption.handed_over(core, volume, context.project_id) as key_id:
        _accept(core, context, transfer, key, key_id)


def _check_key(present: Transfer, key: str) -> None:
    if not hmac.compare_digest(_hash(present.salt, key), present.key_hash):
        raise InvalidInput(f"Attempt to transfer {present.id} with an invalid auth key.")


@rerun_when_contended
def _accept(core: Core, context: Context, transfer: Transfer, key: str, key_id: str | None) -> None:
    with core.store.write(durable=True) as connection:
        volume = records.get(connection, Volume, transfer.volume_id, lock="update")
        present = records.get(connection, Transfer, transfer.id)
        _check_key(present, key)
        owner = {"project_id": context.project_id, "user_id": context.user_id, "encryption_key_id": key_id}
        if core.notices is not None:
            core.notices.volume(connection, volume.id, "transfer.accept.start")
        records.enter(connection, ACCEPT, volume.id, NOT_IN_GROUP, NOT_CONNECTED, IDLE, **owner)
        moved = [] if present.no_snapshots else _along(connection, volume)
        for each in moved:
            records.update(connection, Snapshot, each.id, **owner)
        if context.project_id != volume.project_id:
            _move_quota(core, connection, volume, moved, context.project_id)
        records.delete(connection, Transfer, transfer.id)
        if core.notices is not None:
            core.notices.volume(connection, volume.id, "transfer.accept.end")
    _tell(ACCEPT.event, transfer, destination_project_id=context.project_id)


def _move_quota(
    core: Core, connection: sa.Connection, volume: Volume, moved: list[Snapshot], to: str
) -> None:
    """Charge the receiver, and give back to the donor. Raises `OverQuota`."""
    cost: Counter[str] = Counter()
    if volume.consumes_quota:
        quota_rules.check_volume_size(volume.size, quotas.in_force(connection, core.quota, to))
        name = records.get(connection, VolumeType, volume.volume_type_id, lock="share").name
        cost.update(quota_rules.volume_deltas(volume.size, name))
    for each in moved:
        if each.consumes_quota:
            name = records.get(connection, VolumeType, each.volume_type_id, lock="share").name
            cost.update(quota_rules.snapshot_deltas(each.size, name, core.quota))
    # in one order, whoever gives and whoever takes
    changes = {to: dict(cost), volume.project_id: {name: -each for name, each in cost.items()}}
    for project in sorted(changes):
        quotas.charge(connection, core.quota, project, changes[project])


def _tell(event: str, transfer: Transfer, **more: str) -> None:
    events.emit(
        f"{event}.end",
        resource_id=transfer.volume_id,
        project_id=transfer.project_id,
        transfer_id=transfer.id,
        **more,
    )
