"""QoS specs, and the volume types that are bound to them."""

from __future__ import annotations

from typing import Any

from lapilli.api.access import ADMIN, rule
from lapilli.api.answers import OBJECT, STRING, STRINGS, list_of, listed, shape
from lapilli.api.fields import REQUIRED_NAME, STR255, Look, Property, body, field, required, view
from lapilli.api.listing import flag_param, listing
from lapilli.api.resource import Call, Routes
from lapilli.domain.model import QosSpecs
from lapilli.domain.qos import CONSUMERS
from lapilli.errors import InvalidInput
from lapilli.flows import qos as flows
from lapilli.store import records, volume_types as store

route = Routes()

GET = rule("volume_extension:qos_specs_manage:get", ADMIN)
GET_ALL = rule("volume_extension:qos_specs_manage:get_all", ADMIN)
CREATE = rule("volume_extension:qos_specs_manage:create", ADMIN)
UPDATE = rule("volume_extension:qos_specs_manage:update", ADMIN)
DELETE = rule("volume_extension:qos_specs_manage:delete", ADMIN)

SPECS = view(
    "qos_specs",
    field("id", schema={"type": "string"}),
    field("name", schema={"type": "string"}),
    field("consumer", schema={"type": "string", "enum": list(CONSUMERS)}),
    field("specs", schema={"type": "object", "additionalProperties": {"type": "string"}}),
)
_SHOWN = shape(qos_specs=SPECS.schema(0), links=list_of(OBJECT))
LIST = listing(QosSpecs, "qos_specs", resource=None, project=None, like=None)

_CONSUMER = Property({"type": "string", "enum": list(CONSUMERS)})
_KEYS = {"type": "object", "propertyNames": {"type": "string", "pattern": r"^[a-zA-Z0-9\-_:. ]{1,255}$"}}


@route.get("/qos-specs", rule=GET_ALL, query=("id", "name", "consumer"), lists=("qos_specs", SPECS))
def index(call: Call) -> dict[str, Any]:
    """List QoS specs."""
    with call.core.store.read() as connection:
        page = LIST.page(call, connection)
    shown: dict[str, Any] = page.answer(SPECS.render_all(page.items, Look(call)))
    return shown


@route.get("/qos-specs/{specs_id}", rule=GET, answers=_SHOWN)
def show(call: Call, specs_id: str) -> dict[str, Any]:
    """Show QoS specs."""
    return _shown(call, _get(call, specs_id))


@route.post(
    "/qos-specs",
    rule=CREATE,
    accepts=body("qos_specs", name=REQUIRED_NAME, consumer=_CONSUMER, extra=STR255, rules=_KEYS),
    resume=lambda call, earlier: None if earlier.made is None else _shown(call, earlier.made),
    answers=_SHOWN,
)
def create(call: Call, wanted: dict[str, Any]) -> dict[str, Any]:
    """Create QoS specs: every key beside name and consumer is a limit."""
    name, consumer = wanted.pop("name"), wanted.pop("consumer", "back-end")
    return _shown(call, flows.create(call.core, name=name, consumer=consumer, specs=wanted))


@route.put(
    "/qos-specs/{specs_id}",
    rule=UPDATE,
    accepts=body("qos_specs", consumer=_CONSUMER, extra=STR255, rules=_KEYS, least=1),
    answers=shape(qos_specs=STRINGS),
)
def update(call: Call, specs_id: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Add or change keys, or the consumer."""
    specs = {key: value for key, value in wanted.items() if key != "consumer"}
    flows.update(call.core, specs_id, specs, wanted.get("consumer"))
    return {"qos_specs": wanted}


@route.delete("/qos-specs/{specs_id}", rule=DELETE, status=202, query=("force",))
def delete(call: Call, specs_id: str) -> None:
    """Delete QoS specs; `force` also those that types are bound to."""
    flows.delete(call.core, specs_id, force=flag_param(call, "force"))


_NAMES = {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 255}, "uniqueItems": True}


@route.put(
    "/qos-specs/{specs_id}/delete_keys",
    rule=DELETE,
    status=202,
    accepts=body(None, keys=required(Property(_NAMES))),
)
def delete_keys(call: Call, specs_id: str, wanted: dict[str, Any]) -> None:
    """Remove keys."""
    flows.delete_keys(call.core, specs_id, wanted["keys"])


@route.get(
    "/qos-specs/{specs_id}/associations",
    rule=GET_ALL,
    answers=listed("qos_associations", association_type=STRING, name=STRING, id=STRING),
)
def index_associations(call: Call, specs_id: str) -> dict[str, Any]:
    """List the volume types that are bound to QoS specs."""
    _get(call, specs_id)
    with call.core.store.read() as connection:
        bound = store.bound_to(connection, specs_id)
    told = [{"association_type": "volume_type", "name": kind.name, "id": kind.id} for kind in bound]
    return {"qos_associations": told}


@route.get("/qos-specs/{specs_id}/associate", rule=UPDATE, status=202, query=("vol_type_id",))
def associate(call: Call, specs_id: str) -> None:
    """Bind a volume type (a GET on this wire, though it changes something)."""
    flows.associate(call.core, specs_id, _type_id(call))


@route.get("/qos-specs/{specs_id}/disassociate", rule=UPDATE, status=202, query=("vol_type_id",))
def disassociate(call: Call, specs_id: str) -> None:
    """Unbind a volume type."""
    flows.disassociate(call.core, specs_id, _type_id(call))


@route.get("/qos-specs/{specs_id}/disassociate_all", rule=UPDATE, status=202)
def disassociate_all(call: Call, specs_id: str) -> None:
    """Unbind all volume types."""
    flows.disassociate_all(call.core, specs_id)


def _get(call: Call, specs_id: str) -> QosSpecs:
    with call.core.store.read() as connection:
        return records.get(connection, QosSpecs, specs_id)


def _shown(call: Call, specs: QosSpecs) -> dict[str, Any]:
    return {"qos_specs": SPECS.render(specs, Look(call)), "links": call.links("qos-specs", specs.id)}


def _type_id(call: Call) -> str:
    named = call.params.get("vol_type_id")
    if not named:
        raise InvalidInput("The query parameter vol_type_id, a volume type's id, is required.")
    return named
