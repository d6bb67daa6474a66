"""Words of the declarations: view fields, body properties, and the shared JSON-schema fragments.

A microversion is written "3.13" in declarations and is its minor number (13) inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field as _dataclass_field, replace
from datetime import datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import jsonschema_rs

from lapilli.errors import InvalidInput

if TYPE_CHECKING:
    from lapilli.api.access import Rule
    from lapilli.api.resource import Call

_EXTENSIONS = "LAPILLI-EXTENSIONS"  # header in which clients name what they know beyond the standard
OMIT: Any = object()  # what a field's `read` returns to leave its key out
Schema = dict[str, Any]
Read = Callable[[Any, "Look"], Any]


def minor(version: str | None, default: int) -> int:
    """The minor number of "3.N"."""
    return default if version is None else int(version.split(".")[1])


# --- views -----------------------------------------------------------------------------------------------


class Look:
    """What a view may look at besides the item: the call, and maps the handler has fetched for all items."""

    def __init__(self, call: Call, **maps: Any) -> None:
        self.call = call
        self.maps = maps


@dataclass(frozen=True)
class Field:
    """One key of a representation."""

    name: str
    read: Read
    schema: Schema
    since: int = 0
    until: int = 9999
    rule: Rule | None = None
    optional: bool = False
    extension: str | None = None


def field(
    name: str,
    read: str | Read | None = None,
    schema: Schema | None = None,
    *,
    since: str | None = None,
    until: str | None = None,
    rule: Rule | None = None,
    optional: bool = False,
    extension: str | None = None,
) -> Field:
    """Declare a key: read from the attribute of its name, another attribute, or `read(item, look)`.

    `rule` shows it only to callers whom the rule allows; `optional` fields may return OMIT. One of an
    `extension` is shown only to callers who ask for that in the header `Lapilli-Extensions`.
    """
    if callable(read):
        reader: Read = read
    else:
        get = attrgetter(read or name)
        reader = lambda item, _look: get(item)  # noqa: E731 - the hot path wants a plain closure
    window = (minor(since, 0), minor(until, 9999))
    return Field(name, reader, schema or {}, *window, rule, optional, extension)


class View:
    """How a record looks on the wire, by microversion and by what the caller may see."""

    def __init__(self, key: str, *fields: Field) -> None:
        self.key = key
        self.fields = fields
        self._extensions = {each.extension for each in fields if each.extension}
        self._plans: dict[Any, tuple[list[tuple[str, Read]], list[tuple[str, Read]]]] = {}

    def render(self, item: Any, look: Look) -> dict[str, Any]:
        """One item as a JSON object."""
        return self.render_all([item], look)[0]

    def render_all(self, items: Iterable[Any], look: Look) -> list[dict[str, Any]]:
        """Many items; rules are judged once for all."""
        always, perhaps = self._plan(look.call)
        shown = []
        for item in items:
            told = {name: read(item, look) for name, read in always}
            for name, read in perhaps:
                value = read(item, look)
                if value is not OMIT:
                    told[name] = value
            shown.append(told)
        return shown

    def _plan(self, call: Call) -> tuple[list[tuple[str, Read]], list[tuple[str, Read]]]:
        rules = tuple(each.rule is None or call.allows(each.rule) for each in self.fields)
        asked: frozenset[str | None] = frozenset()
        header = call.headers.get(_EXTENSIONS) if self._extensions else None
        if header:
            asked = frozenset(self._extensions.intersection(word.strip() for word in header.split(",")))
        key = (call.version, rules, asked)
        plan = self._plans.get(key)
        if plan is None:
            chosen = [
                each
                for each, allowed in zip(self.fields, rules, strict=True)
                if allowed
                and each.since <= call.version <= each.until
                and (each.extension is None or each.extension in asked)
            ]
            plan = self._plans[key] = (
                [(each.name, each.read) for each in chosen if not each.optional],
                [(each.name, each.read) for each in chosen if each.optional],
            )
        return plan

    def schema(self, version: int) -> Schema:
        """JSON schema of the representation at a microversion."""
        chosen = [each for each in self.fields if each.since <= version <= each.until]
        return {
            "type": "object",
            "properties": {each.name: each.schema for each in chosen},
            "required": sorted(
                {each.name for each in chosen if not (each.optional or each.rule or each.extension)}
            ),
        }


def view(key: str, *fields: Field) -> View:
    """Declare a representation; `key` is the singular word that wraps one item."""
    return View(key, *fields)


def timestamp(value: datetime | None) -> str | None:
    """UTC with microseconds and no zone, as every time on this wire; None stays None."""
    if value is None:
        return None
    text = value.isoformat()
    return text if len(text) == 26 else text + ".000000"


def time_field(name: str, *, since: str | None = None, unset: str | None = None) -> Field:
    """A field that shows a time; `unset` is what stands for none."""
    get = attrgetter(name)
    return field(
        name,
        lambda item, _look: timestamp(get(item)) if get(item) is not None else unset,
        {"type": ["string", "null"]},
        since=since,
    )


# --- bodies ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Property:
    """One key of a request body: its schema, window, and how its value is prepared and converted."""

    schema: Schema
    since: int = 0
    until: int = 9999
    required: bool = False
    trim: bool = False
    convert: Callable[[Any], Any] | None = None


def since(version: str, prop: Property) -> Property:
    """The property, known from a microversion on."""
    return replace(prop, since=minor(version, 0))


def required(prop: Property) -> Property:
    """The property, which must be there."""
    return replace(prop, required=True)


@dataclass(frozen=True)
class Body:
    """A request body: `{key: {properties}}`, or the bare properties when `key` is None."""

    key: str | None
    properties: Mapping[str, Property]
    closed: int = 9999  # from this minor version on, unknown keys are refused
    least: int = 0
    also: Mapping[str, Schema] = _dataclass_field(default_factory=dict)
    extra: Schema | None = None  # what an unlisted key's value must match, when unlisted keys are data
    nullable: bool = False
    rules: Schema = _dataclass_field(default_factory=dict)
    _checks: dict[int, Any] = _dataclass_field(default_factory=dict, compare=False, repr=False)

    def schema(self, version: int) -> Schema:
        """JSON schema of the whole body at a microversion."""
        chosen = {n: p for n, p in self.properties.items() if p.since <= version <= p.until}
        inner: Schema = {
            "type": ["object", "null"] if self.nullable else "object",
            "properties": {name: prop.schema for name, prop in chosen.items()},
            "required": [name for name, prop in chosen.items() if prop.required],
            **self.rules,
        }
        if self.least:
            inner["minProperties"] = self.least
        if self.extra is not None:
            inner["additionalProperties"] = self.extra
        elif version >= self.closed:
            inner["additionalProperties"] = False
        if self.key is None:
            return inner
        return {
            "type": "object",
            "properties": {self.key: inner, **self.also},
            "required": [self.key],
            "additionalProperties": False,
        }

    def accept(self, document: Any, version: int) -> Any:
        """Trim, validate and convert a decoded document; returns the inner value. Raises `InvalidInput`."""
        inner = document.get(self.key) if self.key is not None and isinstance(document, dict) else document
        if isinstance(inner, dict):
            for name, prop in self.properties.items():
                if prop.trim and isinstance(inner.get(name), str):
                    inner[name] = inner[name].strip()
        validator = self._checks.get(version)
        if validator is None:
            validator = self._checks[version] = jsonschema_rs.Draft202012Validator(
                self.schema(version), validate_formats=True, formats=FORMATS
            )
        try:
            validator.validate(document)
        except jsonschema_rs.ValidationError as problem:
            raise InvalidInput(_explain(problem)) from None
        if not isinstance(inner, dict):
            return inner
        known = {n: p for n, p in self.properties.items() if p.since <= version <= p.until}
        accepted = {n: v for n, v in inner.items() if n in known or self.extra is not None}
        for name, prop in known.items():
            if prop.convert is not None and accepted.get(name) is not None:
                accepted[name] = prop.convert(accepted[name])
        return accepted


def body(
    key: str | None,
    properties: Mapping[str, Property] | None = None,
    *,
    closed: str | bool = True,
    least: int = 0,
    also: Mapping[str, Schema] | None = None,
    extra: Schema | None = None,
    nullable: bool = False,
    rules: Schema | None = None,
    **named: Property,
) -> Body:
    """Declare a body; `closed` is True, False, or the microversion from which unknown keys are refused."""
    known = {**(properties or {}), **named}
    limit = minor(closed, 0) if isinstance(closed, str) else (0 if closed else 9999)
    return Body(key, known, limit, least, also or {}, extra, nullable, rules or {})


def _explain(problem: jsonschema_rs.ValidationError) -> str:
    path = "/".join(str(part) for part in problem.instance_path)
    text = problem.message
    if len(text) > 400:
        text = text[:200] + " ... " + text[-200:]
    return f"Invalid input for field/attribute {path}. {text}" if path else f"Invalid input. {text}"


# --- fragments -------------------------------------------------------------------------------------------

_TRUE = {"True", "TRUE", "true", "1", "ON", "On", "on", "YES", "Yes", "yes", "y", "t"}
_FALSE = {"False", "FALSE", "false", "0", "OFF", "Off", "off", "NO", "No", "no", "n", "f"}
MAX_INT = 2**31 - 1


def to_bool(value: Any) -> bool:
    """The truth of a `bool*` value (api.md section 0) that has passed its schema."""
    return value if isinstance(value, bool) else value in _TRUE


def strict_bool(text: str, name: str) -> bool:
    """A query parameter that must be a boolean word, in any case. Raises `InvalidInput`."""
    lowered = text.strip().lower()
    if lowered in {word.lower() for word in _TRUE}:
        return True
    if lowered in {word.lower() for word in _FALSE}:
        return False
    raise InvalidInput(f"Invalid value {text!r} for {name}: a boolean is expected.")


def _is_uuid(text: str) -> bool:
    plain = text.replace("urn:", "").replace("uuid:", "").strip("{}").replace("-", "").lower()
    return len(plain) == 32 and all(letter in "0123456789abcdef" for letter in plain)


def _is_size(text: str) -> bool:
    return len(text) <= 20 and text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_INT


def _is_printable(text: str) -> bool:
    return all(letter.isprintable() or letter in "\r\n\t" for letter in text)


FORMATS: dict[str, Callable[[str], bool]] = {
    "lapilli-uuid": _is_uuid,
    "lapilli-size": _is_size,
    "lapilli-printable": _is_printable,
}

STR255: Schema = {"type": "string", "maxLength": 255}
NULLABLE_STR255: Schema = {"type": ["string", "null"], "maxLength": 255}
UUID_SCHEMA: Schema = {"type": "string", "format": "lapilli-uuid"}
BOOL_SCHEMA: Schema = {"anyOf": [{"type": "boolean"}, {"type": "string", "enum": sorted(_TRUE | _FALSE)}]}
NULLABLE_BOOL_SCHEMA: Schema = {"anyOf": [*BOOL_SCHEMA["anyOf"], {"type": "null"}]}
METADATA_KEY = r"^[a-zA-Z0-9\-_:. /]{1,255}$"
METADATA_SCHEMA: Schema = {
    "type": "object",
    "propertyNames": {"type": "string", "pattern": METADATA_KEY},
    "additionalProperties": STR255,
}

NAME = Property(NULLABLE_STR255, trim=True)
DESCRIPTION = Property(NULLABLE_STR255, trim=True)
PRINTABLE_DESCRIPTION = Property({**NULLABLE_STR255, "format": "lapilli-printable"}, trim=True)
REQUIRED_NAME = Property({"type": "string", "minLength": 1, "maxLength": 255}, required=True, trim=True)
TEXT = Property(NULLABLE_STR255)
UUID = Property(UUID_SCHEMA)
NULLABLE_UUID = Property({"anyOf": [UUID_SCHEMA, {"type": "null"}]})
BOOL = Property(BOOL_SCHEMA, convert=to_bool)
NULLABLE_BOOL = Property(NULLABLE_BOOL_SCHEMA, convert=to_bool)
METADATA = Property(METADATA_SCHEMA)
NULLABLE_METADATA = Property({"anyOf": [METADATA_SCHEMA, {"type": "null"}]})
SIZE_SCHEMA: Schema = {
    "anyOf": [
        {"type": "integer", "minimum": 1, "maximum": MAX_INT},
        {"type": "string", "format": "lapilli-size"},
    ]
}
SIZE = Property(SIZE_SCHEMA, convert=int)
NULLABLE_SIZE = Property({"anyOf": [*SIZE_SCHEMA["anyOf"], {"type": "null"}]}, convert=int)
HOST_SCHEMA: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": 255,
    "pattern": r"^[a-zA-Z0-9\-._#@:/+\[\]]*$",
}
OBJECT = Property({"type": "object"})
NULLABLE_OBJECT = Property({"type": ["object", "null"]})
