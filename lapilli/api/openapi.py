"""The OpenAPI 3.1 document of the API at one microversion, made from the declarations."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from lapilli.api import versions
from lapilli.api.access import ANYONE
from lapilli.api.resource import Route

_FAULT: dict[str, Any] = {
    "type": "object",
    "description": "One key that names the fault: badRequest, forbidden, itemNotFound, overLimit ...",
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": {
        "type": "object",
        "properties": {
            "code": {"type": "integer"},
            "message": {"type": "string"},
            "retryAfter": {"type": "string"},
        },
        "required": ["code", "message"],
    },
}
_ERRORS = {
    "400": "BadRequest",
    "401": "Unauthorized",
    "403": "Forbidden",
    "404": "NotFound",
    "406": "VersionOutOfRange",
    "409": "Conflict",
    "413": "OverLimit",
    "415": "UnsupportedMediaType",
    "503": "ServiceUnavailable",
}
_PAGING = {
    "limit": {"type": "integer", "minimum": 0},
    "marker": {"type": "string"},
    "offset": {"type": "integer", "minimum": 0},
    "sort": {"type": "string"},
}


def document(routes: Iterable[Route], version: int) -> bytes:
    """The document as JSON."""
    paths: dict[str, dict[str, Any]] = {}
    for route in sorted(routes, key=lambda each: (each.root, each.path, each.method)):
        if route.serves(version):
            operations = paths.setdefault(route.root + _template(route.path), {})
            _add(operations, route, version)
    row = versions.TABLE[version]
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Block Storage API",
                "version": f"3.{version}",
                "description": f"{row.sentence} Every path is also served with the project's id "
                "after /v3, as /v3/{project_id}/...",
            },
            "security": [{"token": []}, {"basic": []}],
            "paths": paths,
            "components": _components(),
        }
    )


def _template(path: str) -> str:
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", path)


def _components() -> dict[str, Any]:
    schema = {"application/json": {"schema": {"$ref": "#/components/schemas/Fault"}}}
    responses = {name: {"description": name, "content": schema} for name in _ERRORS.values()}
    responses["TooManyRequests"] = {"description": "Too many failed log-ins.", "content": schema}
    # a path that nothing is served at is answered outside the API's own format
    responses["NotFound"]["content"] = {**schema, "text/plain": {"schema": {"type": "string"}}}
    return {
        "schemas": {"Fault": _FAULT},
        "responses": responses,
        "parameters": {
            "Version": {
                "name": "OpenStack-API-Version",
                "in": "header",
                "description": "volume 3.N, or volume latest; 3.0 without it.",
                "schema": {"type": "string"},
            }
        },
        "securitySchemes": {
            "token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"},
            "basic": {"type": "http", "scheme": "basic"},
        },
    }


def _add(operations: dict[str, Any], route: Route, version: int) -> None:
    method = route.method.lower()
    operation = operations.get(method)
    if operation is None:
        operations[method] = _operation(route, version)
    elif route.action is not None:
        _add_action(operation, route, version)


def _operation(route: Route, version: int) -> dict[str, Any]:
    told: dict[str, Any] = {
        "operationId": _identifier(route),
        "summary": (route.handler.__doc__ or route.handler.__name__).strip().splitlines()[0],
        "tags": [route.path.split("/")[1]],
        "parameters": _parameters(route, version),
        "responses": {str(route.status): _response(route, version), **_errors(route)},
    }
    if route.rule.role != ANYONE:
        told["x-rule"] = route.rule.name
        told["x-role"] = route.rule.role
    if route.action is not None:
        told["operationId"] = _identifier(route).rpartition("-")[0] or told["operationId"]
        told["summary"] = "Run one of the actions."
        told["requestBody"] = _json({"oneOf": [_action_schema(route, version)]})
    elif route.accepts is not None:
        told["requestBody"] = _json(route.accepts.schema(version), required=not route.accepts.nullable)
    return told


def _add_action(operation: dict[str, Any], route: Route, version: int) -> None:
    choices = operation["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
    choices.append(_action_schema(route, version))
    told = _response(route, version)
    shared = operation["responses"].setdefault(str(route.status), told)
    if shared.get("content") != told.get("content"):
        shared.pop("content", None)  # what is told depends on the action, and may be nothing


def _action_schema(route: Route, version: int) -> dict[str, Any]:
    name = str(route.action)
    inner = route.accepts.schema(version) if route.accepts is not None else {}
    told = {
        "type": "object",
        "title": (route.handler.__doc__ or name).strip().splitlines()[0],
        "properties": {name: inner},
        "required": [name],
        "additionalProperties": False,
    }
    if route.rule.role != ANYONE:
        told["x-rule"] = route.rule.name
        told["x-role"] = route.rule.role
    return told


def _identifier(route: Route) -> str:
    root = "" if route.root == "/v3" else route.root
    end = "index" if route.path.endswith("/") else ""
    words = re.findall(r"[\w-]+", f"{route.method.lower()} {root}{route.path}{end} {route.action or ''}")
    return "-".join(words)


def _parameters(route: Route, version: int) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = [{"$ref": "#/components/parameters/Version"}]
    for name in re.findall(r"\{(\w+)", route.path):
        told.append({"name": name, "in": "path", "required": True, "schema": {"type": "string"}})
    for name in route.query:
        schema = _PAGING.get(name, {"type": "string"})
        if name != "with_count" or version >= 45:
            told.append({"name": name, "in": "query", "schema": schema})
    return told


def _response(route: Route, version: int) -> dict[str, Any]:
    told: dict[str, Any] = {"description": "Done." if route.status != 202 else "Accepted."}
    if route.returns is not None:
        inner = route.returns.schema(version)
        schema = {"type": "object", "properties": {route.returns.key: inner}, "required": [route.returns.key]}
        told["content"] = {"application/json": {"schema": schema}}
    elif route.lists is not None:
        key, items = route.lists
        properties = {
            key: {"type": "array", "items": items.schema(version)},
            f"{key}_links": {"type": "array", "items": {"type": "object"}},
            "count": {"type": "integer"},
        }
        schema = {"type": "object", "properties": properties, "required": [key]}
        told["content"] = {"application/json": {"schema": schema}}
    elif route.answers is not None:
        told["content"] = {"application/json": {"schema": route.answers}}
    return told


def _errors(route: Route) -> dict[str, Any]:
    told: dict[str, Any] = {
        code: {"$ref": f"#/components/responses/{name}"} for code, name in _ERRORS.items()
    }
    if route.root == "/identity":
        told["429"] = {"$ref": "#/components/responses/TooManyRequests"}
    if route.method == "PUT" and route.path.startswith("/volumes/{volume_id}/metadata"):
        told["412"] = {"description": "If-Match names another state."}
    return told


def _json(schema: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    return {"required": required, "content": {"application/json": {"schema": schema}}}
