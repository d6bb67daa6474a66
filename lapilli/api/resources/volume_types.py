"""Volume types: the types, their extra specs, and which projects may see private ones."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from lapilli.api.access import ADMIN, MEMBER, READER, rule
from lapilli.api.answers import OBJECT, STRING, TEXT, listed, map_of, shape
from lapilli.api.fields import (
    MAX_INT,
    METADATA_KEY,
    NULLABLE_BOOL,
    NULLABLE_STR255,
    PRINTABLE_DESCRIPTION,
    REQUIRED_NAME,
    STR255,
    Look,
    Property,
    body,
    field,
    required,
    strict_bool,
    view,
)
from lapilli.api.listing import Condition, Filter, listing, literal, maps
from lapilli.api.resource import Call, Routes
from lapilli.domain.model import VolumeType
from lapilli.errors import InvalidInput, NotFound
from lapilli.flows import volume_types as flows
from lapilli.store import volume_types as store

route = Routes()

GET = rule("volume_extension:type_get", READER)
GET_ALL = rule("volume_extension:type_get_all", READER)
SEE_SPECS = rule("volume_extension:access_types_extra_specs", READER)
SEE_QOS = rule("volume_extension:access_types_qos_specs_id", ADMIN)
SEE_ACCESS = rule("volume_extension:volume_type_access", MEMBER)
SENSITIVE = rule("volume_extension:types_extra_specs:read_sensitive", ADMIN)
SPECS_INDEX = rule("volume_extension:types_extra_specs:index", READER)
SPECS_SHOW = rule("volume_extension:types_extra_specs:show", READER)

# Extra specs that tell users what a type can do; the others speak of the operator's back ends.
USER_VISIBLE = frozenset({"RESKEY:availability_zones", "multiattach", "replication_enabled"})

_TEXT = {"type": ["string", "null"]}
_BOOLEAN = {"type": "boolean"}
_SPECS = {"type": "object", "additionalProperties": _TEXT}


def _open_specs(item: VolumeType, _look: Look | None = None) -> dict[str, str | None]:
    return {key: value for key, value in item.extra_specs.items() if key in USER_VISIBLE}


_BASE = (
    field("id", schema={"type": "string"}),
    field("name", schema={"type": "string"}),
    field("description", schema=_TEXT),
    field("is_public", schema=_BOOLEAN),
    # the later field takes the earlier one's place for those whom its rule allows
    field("extra_specs", _open_specs, _SPECS, rule=SEE_SPECS),
    field("extra_specs", schema=_SPECS, rule=SENSITIVE),
)
_QOS = field("qos_specs_id", schema=_TEXT, rule=SEE_QOS)
_ACCESS = field("os-volume-type-access:is_public", "is_public", _BOOLEAN, rule=SEE_ACCESS)

TYPE = view("volume_type", *_BASE, _QOS, _ACCESS)
NEW_TYPE = view("volume_type", *_BASE, _ACCESS)
DEFAULT_TYPE = view("volume_type", *_BASE, _QOS)
CHANGED_TYPE = view("volume_type", *_BASE)


# --- types -----------------------------------------------------------------------------------------------

_BY_SPECS = maps("extra_specs", "extra_specs")


def _by_open_specs(table: sa.Table, text: str, version: int) -> Condition | bool:
    """As administrators filter, but a key that the caller may not see finds nothing."""
    wanted = literal(text)
    if not isinstance(wanted, dict) or not USER_VISIBLE.issuperset(wanted):
        return False
    return _BY_SPECS.build(table, text, version)


def _list(specs: Filter) -> Any:
    return listing(
        VolumeType,
        "volume_types",
        resource="volume_type",
        links="volume_type_links",
        filters=(specs,),
        handled=("is_public",),
        project=None,
        like=None,
    )


ADMIN_LIST = _list(_BY_SPECS)
USER_LIST = _list(Filter("extra_specs", _by_open_specs, since=52))


@route.get("/types", rule=GET_ALL, query=("is_public", "extra_specs"), lists=("volume_types", TYPE))
def index(call: Call) -> dict[str, Any]:
    """List the types that the caller may see."""
    if call.context.is_admin:
        kept, conditions = ADMIN_LIST, _publicity(call.params.get("is_public"))
    else:
        kept, conditions = USER_LIST, [store.visible_to(call.context.project_id)]
    with call.core.store.read() as connection:
        page = kept.page(call, connection, *conditions)
    shown: dict[str, Any] = page.answer(TYPE.render_all(page.items, Look(call)))
    return shown


def _publicity(text: str | None) -> list[Condition]:
    """What an administrator's `is_public` asks for: `none` is both kinds, nothing is the public ones."""
    if text is not None and text.strip().lower() == "none":
        return []
    return [store.is_public(True if text is None else strict_bool(text, "is_public"))]


@route.get("/types/default", rule=GET, returns=DEFAULT_TYPE)
def show_default(call: Call) -> VolumeType:
    """Show the type of volumes that are created without one."""
    with call.core.store.read() as connection:
        return flows.default(connection, call.core.types, call.context.project_id)


@route.get("/types/{type_id}", rule=GET, returns=TYPE)
def show(call: Call, type_id: str) -> VolumeType:
    """Show a type."""
    return _get(call, type_id)


@route.post(
    "/types",
    rule=rule("volume_extension:type_create", ADMIN),
    returns=NEW_TYPE,
    accepts=body(
        "volume_type",
        {"os-volume-type-access:is_public": NULLABLE_BOOL},
        name=REQUIRED_NAME,
        description=PRINTABLE_DESCRIPTION,
        extra_specs=Property(
            {
                "type": ["object", "null"],
                "propertyNames": {"type": "string", "pattern": METADATA_KEY},
                "additionalProperties": NULLABLE_STR255,
            }
        ),
    ),
)
def create(call: Call, wanted: dict[str, Any]) -> VolumeType:
    """Create a type."""
    public = wanted.get("os-volume-type-access:is_public")
    return flows.create(
        call.core,
        name=wanted["name"],
        description=wanted.get("description"),
        is_public=True if public is None else public,
        extra_specs=wanted.get("extra_specs") or {},
    )


@route.put(
    "/types/{type_id}",
    rule=rule("volume_extension:type_update", ADMIN),
    returns=CHANGED_TYPE,
    accepts=body(
        "volume_type",
        name=Property({"type": ["string", "null"], "minLength": 1, "maxLength": 255}, trim=True),
        description=PRINTABLE_DESCRIPTION,
        is_public=NULLABLE_BOOL,
    ),
)
def update(call: Call, type_id: str, wanted: dict[str, Any]) -> VolumeType:
    """Change a type's name, description or publicity; null leaves one as it is."""
    changes = {key: value for key, value in wanted.items() if value is not None}
    if not changes:
        raise InvalidInput("At least one of name, description and is_public must be given.")
    return flows.update(call.core, _get(call, type_id), changes)


@route.delete("/types/{type_id}", rule=rule("volume_extension:type_delete", ADMIN), status=202)
def delete(call: Call, type_id: str) -> None:
    """Delete a type."""
    flows.delete(call.core, _get(call, type_id))


# --- extra specs -----------------------------------------------------------------------------------------

_SPEC_KEYS = {
    "type": "object",
    "propertyNames": {"type": "string", "pattern": r"^[a-zA-Z0-9\-_:.]{1,255}$"},
    "additionalProperties": STR255,
}
_ONE_SPEC = body(None, extra=STR255, rules={**_SPEC_KEYS, "minProperties": 1, "maxProperties": 1})


@route.get("/types/{type_id}/extra_specs", rule=SPECS_INDEX, answers=shape(extra_specs=map_of(TEXT)))
def index_specs(call: Call, type_id: str) -> dict[str, Any]:
    """List a type's extra specs, as far as the caller may see them."""
    return {"extra_specs": _specs(call, type_id)}


@route.post(
    "/types/{type_id}/extra_specs",
    rule=rule("volume_extension:types_extra_specs:create", ADMIN),
    accepts=body("extra_specs", extra=STR255, rules=_SPEC_KEYS),
    repeatable=True,
    answers=shape(extra_specs=map_of(TEXT)),
)
def create_specs(call: Call, type_id: str, specs: dict[str, str]) -> dict[str, Any]:
    """Add or change extra specs."""
    flows.set_specs(call.core, _get(call, type_id), specs)
    return {"extra_specs": specs}


@route.get("/types/{type_id}/extra_specs/{key}", rule=SPECS_SHOW, answers=map_of(TEXT))
def show_spec(call: Call, type_id: str, key: str) -> dict[str, Any]:
    """Show one extra spec; one that the caller may not see is not found."""
    specs = _specs(call, type_id)
    if key not in specs:
        raise NotFound(f"Volume type {type_id} has no extra spec {key}.")
    return {key: specs[key]}


@route.put(
    "/types/{type_id}/extra_specs/{key}",
    rule=rule("volume_extension:types_extra_specs:update", ADMIN),
    accepts=_ONE_SPEC,
    answers=map_of(TEXT),
)
def update_spec(call: Call, type_id: str, key: str, specs: dict[str, str]) -> dict[str, Any]:
    """Set one extra spec."""
    if key not in specs:
        raise InvalidInput(f"The body must hold the key of the URL, {key}.")
    flows.set_specs(call.core, _get(call, type_id), specs, key=key)
    return specs


@route.delete(
    "/types/{type_id}/extra_specs/{key}",
    rule=rule("volume_extension:types_extra_specs:delete", ADMIN),
    status=202,
)
def delete_spec(call: Call, type_id: str, key: str) -> None:
    """Remove one extra spec."""
    flows.delete_spec(call.core, _get(call, type_id), key)


# --- encryption ------------------------------------------------------------------------------------------

_ENCRYPTION = "/types/{type_id}/encryption"
_LOCATION = Property({"type": "string", "enum": ["front-end", "back-end"]})
_PROVIDER = Property({"type": "string", "minLength": 1, "maxLength": 255})
_CIPHER = Property({"type": ["string", "null"], "minLength": 1, "maxLength": 255})
_KEY_SIZE = Property(
    {
        "anyOf": [
            {"type": "integer", "minimum": 0, "maximum": MAX_INT},
            {"type": "string", "pattern": "^[0-9]{1,9}$"},
            {"type": "null"},
        ]
    },
    convert=int,
)


@route.get(_ENCRYPTION, rule=rule("volume_extension:volume_type_encryption:get", ADMIN), answers=OBJECT)
def show_encryption(call: Call, type_id: str) -> dict[str, Any]:
    """Show how volumes of a type are encrypted: nothing for one that is not."""
    return _encryption(_get(call, type_id))


@route.get(
    "/types/{type_id}/encryption/{key}",
    rule=rule("volume_extension:volume_type_encryption:get", ADMIN),
    answers=OBJECT,
)
def show_encryption_key(call: Call, type_id: str, key: str) -> dict[str, Any]:
    """Show one value of a type's encryption."""
    told = _encryption(_get(call, type_id))
    if key not in told:
        raise NotFound(f"The encryption of volume type {type_id} has no {key}.")
    return {key: told[key]}


@route.post(
    _ENCRYPTION,
    rule=rule("volume_extension:volume_type_encryption:create", ADMIN),
    accepts=body(
        "encryption",
        provider=required(_PROVIDER),
        control_location=required(_LOCATION),
        cipher=_CIPHER,
        key_size=_KEY_SIZE,
    ),
    answers=shape(encryption=shape(volume_type_id=STRING, encryption_id=STRING)),
)
def create_encryption(call: Call, type_id: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Let volumes of a type be encrypted."""
    made = flows.encrypt(call.core, _get(call, type_id), wanted)
    return {
        "encryption": {**wanted, "volume_type_id": type_id, "encryption_id": made["encryption_id"]},
    }


@route.put(
    "/types/{type_id}/encryption/{encryption_id}",
    rule=rule("volume_extension:volume_type_encryption:update", ADMIN),
    accepts=body(
        "encryption", provider=_PROVIDER, control_location=_LOCATION, cipher=_CIPHER, key_size=_KEY_SIZE
    ),
    answers=shape(encryption=OBJECT),
)
def update_encryption(
    call: Call, type_id: str, _encryption_id: str, wanted: dict[str, Any]
) -> dict[str, Any]:
    """Change how volumes of a type are encrypted."""
    flows.change_encryption(call.core, _get(call, type_id), wanted)
    return {"encryption": wanted}


@route.delete(
    "/types/{type_id}/encryption/{encryption_id}",
    rule=rule("volume_extension:volume_type_encryption:delete", ADMIN),
    status=202,
)
def delete_encryption(call: Call, type_id: str, _encryption_id: str) -> None:
    """Let volumes of a type be plain again."""
    flows.change_encryption(call.core, _get(call, type_id), None)


def _encryption(found: VolumeType) -> dict[str, Any]:
    if found.encryption is None:
        return {}
    told = {key: found.encryption[key] for key in ("encryption_id", "provider", "cipher", "key_size")}
    told |= {key: found.encryption[key] for key in ("control_location", "created_at", "updated_at")}
    return {"volume_type_id": found.id, **told, "deleted": False, "deleted_at": None}


# --- access ----------------------------------------------------------------------------------------------

_PROJECT = body(None, project=required(Property({"type": "string", "minLength": 1, "maxLength": 255})))


@route.get(
    "/types/{type_id}/os-volume-type-access",
    rule=rule("volume_extension:volume_type_access:get_all_for_type", ADMIN),
    answers=listed("volume_type_access", volume_type_id=STRING, project_id=STRING),
)
def index_access(call: Call, type_id: str) -> dict[str, Any]:
    """List the projects that a private type is granted to."""
    found = _get(call, type_id)
    if found.is_public:
        raise NotFound(f"Volume type {type_id} is public: there is no list of projects.")
    with call.core.store.read() as connection:
        projects = store.granted_to(connection, type_id)
    return {"volume_type_access": [{"volume_type_id": type_id, "project_id": each} for each in projects]}


@route.action(
    "/types/{type_id}/action",
    "addProjectAccess",
    rule=rule("volume_extension:volume_type_access:addProjectAccess", ADMIN),
    status=202,
    accepts=_PROJECT,
)
def add_access(call: Call, type_id: str, wanted: dict[str, Any]) -> None:
    """Grant a private type to a project."""
    flows.add_access(call.core, _get(call, type_id), wanted["project"])


@route.action(
    "/types/{type_id}/action",
    "removeProjectAccess",
    rule=rule("volume_extension:volume_type_access:removeProjectAccess", ADMIN),
    status=202,
    accepts=_PROJECT,
)
def remove_access(call: Call, type_id: str, wanted: dict[str, Any]) -> None:
    """Take a project's grant away."""
    flows.remove_access(call.core, _get(call, type_id), wanted["project"])


def _get(call: Call, type_id: str) -> VolumeType:
    with call.core.store.read() as connection:
        return flows.get(connection, call.context, type_id)


def _specs(call: Call, type_id: str) -> dict[str, str | None]:
    found = _get(call, type_id)
    return found.extra_specs if call.allows(SENSITIVE) else _open_specs(found)
