"""Transfers of volumes between projects, under both of their paths.

The older path knows no snapshots: it leaves them with the donor. Links point at it in either case.
"""

from __future__ import annotations

from typing import Any

from lapilli.api.access import MEMBER, READER, rule
from lapilli.api.fields import (
    BOOL,
    UUID,
    Look,
    Property,
    View,
    body,
    field,
    required,
    since,
    time_field,
    view,
)
from lapilli.api.listing import Listing, listing
from lapilli.api.resource import Call, Earlier, Routes
from lapilli.domain.model import Transfer, Volume
from lapilli.flows import transfers as flows
from lapilli.store import records

route = Routes()

OLD, NEW = "/os-volume-transfer", "/volume-transfers"

GET = rule("volume:get_transfer", READER)
GET_ALL = rule("volume:get_all_transfers", READER)
CREATE = rule("volume:create_transfer", MEMBER)
ACCEPT = rule("volume:accept_transfer", MEMBER)
DELETE = rule("volume:delete_transfer", MEMBER)

_STRING = {"type": "string"}
_TEXT = {"type": ["string", "null"]}

_SUMMARY = (
    field("id", schema=_STRING),
    field("volume_id", schema=_STRING),
    field("name", schema=_TEXT),
    field("links", lambda item, look: look.call.links(OLD[1:], item.id), {"type": "array"}),
)
SUMMARY = view("transfer", *_SUMMARY)
TRANSFER = view(
    "transfer",
    *_SUMMARY,
    time_field("created_at"),
    field("no_snapshots", schema={"type": "boolean"}, since="3.55"),
    # a transfer that is accepted is gone, so these tell of open ones
    field("source_project_id", "project_id", _STRING, since="3.57"),
    field("destination_project_id", lambda _item, _look: None, _TEXT, since="3.57"),
    field("accepted", lambda _item, _look: False, {"type": "boolean"}, since="3.57"),
)
OFFER = view("transfer", *TRANSFER.fields, field("auth_key", schema=_STRING))

# two collections of one kind: the newer path's has pages
_WAYS: dict[str, Any] = {
    "kind": Transfer,
    "key": "transfers",
    "hidden": ("salt", "key_hash"),
    "all_tenants": "truthy",
}
LIST: Listing[Transfer] = listing(**_WAYS, paged="3.59", like=None)
OLD_LIST: Listing[Transfer] = listing(**_WAYS, paged="never", like=None)
_QUERY = ("all_tenants", "name", "volume_id", "limit", "offset")
_PAGES = (*_QUERY, "marker", "sort", "sort_key", "sort_dir")

_NAME = Property({"type": ["string", "null"], "minLength": 1, "maxLength": 255}, trim=True)
_VOLUME = required(UUID)
_ACCEPT = body(
    "accept", auth_key=required(Property({"type": ["string", "integer"], "maxLength": 255}, convert=str))
)


def _get(call: Call, transfer_id: str, scope: str | None) -> Transfer:
    with call.core.store.read() as connection:
        return records.get(connection, Transfer, transfer_id, project_id=scope)


# --- lists -----------------------------------------------------------------------------------------------


def _index(call: Call, collection: Listing[Transfer], shown: View) -> dict[str, Any]:
    with call.core.store.read() as connection:
        page = collection.page(call, connection)
    return page.answer(shown.render_all(page.items, Look(call)))


@route.get(NEW, rule=GET_ALL, query=_PAGES, lists=("transfers", SUMMARY))
def index(call: Call) -> dict[str, Any]:
    """List open transfers."""
    return _index(call, LIST, SUMMARY)


@route.get(f"{NEW}/detail", rule=GET_ALL, query=_PAGES, lists=("transfers", TRANSFER))
def detail(call: Call) -> dict[str, Any]:
    """List open transfers with all their keys."""
    return _index(call, LIST, TRANSFER)


@route.get(OLD, rule=GET_ALL, query=_QUERY, lists=("transfers", SUMMARY))
def index_old(call: Call) -> dict[str, Any]:
    """List open transfers."""
    return _index(call, OLD_LIST, SUMMARY)


@route.get(f"{OLD}/detail", rule=GET_ALL, query=_QUERY, lists=("transfers", TRANSFER))
def detail_old(call: Call) -> dict[str, Any]:
    """List open transfers with all their keys."""
    return _index(call, OLD_LIST, TRANSFER)


# --- one transfer ----------------------------------------------------------------------------------------


def _resume(call: Call, earlier: Earlier) -> dict[str, Any]:
    """A repeat is told another key: the first answer's is not kept, and may never have arrived."""
    return _told(call, flows.renew_key(call.core, earlier.made))


def _told(call: Call, offer: flows.Offer) -> dict[str, Any]:
    shown = TRANSFER.render(offer.transfer, Look(call))
    return {"transfer": {**shown, "auth_key": offer.auth_key}}


def _create(call: Call, wanted: dict[str, Any], *, no_snapshots: bool, encrypted: bool) -> dict[str, Any]:
    with call.core.store.read() as connection:
        volume = records.get(connection, Volume, wanted["volume_id"], project_id=call.project_scope)
    return _told(
        call,
        flows.create(
            call.core,
            volume,
            name=wanted.get("name"),
            no_snapshots=no_snapshots,
            allow_encrypted=encrypted,
        ),
    )


_DECLARED: dict[str, Any] = {
    "rule": CREATE, "status": 202, "returns": OFFER, "secret": True, "resume": _resume
}  # fmt: skip
_BODY = body("transfer", volume_id=_VOLUME, name=_NAME, no_snapshots=since("3.55", BOOL))


@route.post(OLD, accepts=body("transfer", volume_id=_VOLUME, name=_NAME), **_DECLARED)
def create_without_snapshots(call: Call, wanted: dict[str, Any]) -> dict[str, Any]:
    """Offer a volume to whoever has the key that is told now."""
    return _create(call, wanted, no_snapshots=True, encrypted=False)


@route.post(NEW, until="3.69", accepts=_BODY, **_DECLARED)
def create(call: Call, wanted: dict[str, Any]) -> dict[str, Any]:
    """Offer a volume, with its snapshots or without, to whoever has the key that is told now."""
    return _create(call, wanted, no_snapshots=wanted.get("no_snapshots", False), encrypted=False)


@route.post(NEW, since="3.70", accepts=_BODY, **_DECLARED)
def create_also_encrypted(call: Call, wanted: dict[str, Any]) -> dict[str, Any]:
    """Offer a volume, also an encrypted one, to whoever has the key that is told now."""
    return _create(call, wanted, no_snapshots=wanted.get("no_snapshots", False), encrypted=True)


@route.get(f"{OLD}/{{transfer_id}}", rule=GET, returns=TRANSFER)
@route.get(f"{NEW}/{{transfer_id}}", rule=GET, returns=TRANSFER)
def show(call: Call, transfer_id: str) -> Transfer:
    """Show an open transfer."""
    return _get(call, transfer_id, call.project_scope)


@route.post(f"{OLD}/{{transfer_id}}/accept", rule=ACCEPT, status=202, accepts=_ACCEPT, returns=SUMMARY)
@route.post(f"{NEW}/{{transfer_id}}/accept", rule=ACCEPT, status=202, accepts=_ACCEPT, returns=SUMMARY)
def accept(call: Call, transfer_id: str, wanted: dict[str, Any]) -> Transfer:
    """Take the volume into the own project: whoever knows id and key may."""
    transfer = _get(call, transfer_id, None)
    flows.accept(call.core, call.context, transfer, wanted["auth_key"])
    return transfer


@route.delete(f"{OLD}/{{transfer_id}}", rule=DELETE, status=202)
@route.delete(f"{NEW}/{{transfer_id}}", rule=DELETE, status=202)
def delete(call: Call, transfer_id: str) -> None:
    """Take an offer back."""
    flows.delete(call.core, _get(call, transfer_id, call.project_scope))
