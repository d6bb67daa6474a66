"""Shapes of answers that are neither one item of a view nor a list: for the OpenAPI document."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

ANYTHING: Schema = {}
OBJECT: Schema = {"type": "object"}
STRING: Schema = {"type": "string"}
TEXT: Schema = {"type": ["string", "null"]}
WHOLE: Schema = {"type": "integer"}
FLAG: Schema = {"type": "boolean"}


def map_of(values: Schema) -> Schema:
    """An object whose keys are data."""
    return {"type": "object", "additionalProperties": values}


def list_of(items: Schema) -> Schema:
    """An array."""
    return {"type": "array", "items": items}


def shape(**keys: Schema) -> Schema:
    """An object that has these keys, at least."""
    return shaped(keys)


def shaped(keys: dict[str, Schema]) -> Schema:
    """An object that has these keys, at least."""
    return {"type": "object", "properties": keys, "required": sorted(keys)}


STRINGS = map_of(STRING)
METADATA = shape(metadata=STRINGS)
META = shape(meta={**STRINGS, "minProperties": 1, "maxProperties": 1})


def listed(key: str, **keys: Schema) -> Schema:
    """A list of objects that have these keys."""
    return shaped({key: list_of(shaped(keys))})
