"""A small identity API (the part of Keystone's v3 that clients of block storage call).

Served only where the service's own users are in force. Not part of the Block Storage API, and without
microversions.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from lapilli.api.answers import OBJECT, STRING, list_of, listed, shape
from lapilli.api.fields import PRINTABLE_DESCRIPTION, REQUIRED_NAME, Property, body, timestamp
from lapilli.api.resource import Call, Routes
from lapilli.domain.identity import Account, Project
from lapilli.domain.model import ApplicationCredential
from lapilli.errors import Forbidden, NotFound, Unauthorized
from lapilli.flows import identity as flows
from lapilli.flows.identity import DOMAIN, Login

route = Routes(root="/identity")

_TOKEN = shape(token=shape(user=OBJECT, project=OBJECT, roles=list_of(OBJECT), expires_at=STRING))
_CREDENTIAL = shape(application_credential=shape(id=STRING, name=STRING, project_id=STRING))
_SUBJECT = "X-SUBJECT-TOKEN"
_UPDATED = "2026-11-21T00:00:00Z"


def _time(value: datetime) -> str:
    return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# --- versions --------------------------------------------------------------------------------------------


@route.get("/", public=True, answers=OBJECT)
def versions(call: Call) -> dict[str, Any]:
    """The versions that there are: one."""
    return {"versions": {"values": [_version(call)]}}


@route.get("/v3", public=True, answers=shape(version=OBJECT))
@route.get("/v3/", public=True, answers=shape(version=OBJECT))
def version(call: Call) -> dict[str, Any]:
    """The version document."""
    return {"version": _version(call)}


def _version(call: Call) -> dict[str, Any]:
    media = {"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}
    return {
        "id": "v3.14",
        "status": "stable",
        "updated": _UPDATED,
        "links": [{"rel": "self", "href": f"{call.base_url}/identity/v3/"}],
        "media-types": [media],
    }


# --- tokens ----------------------------------------------------------------------------------------------

_OBJECT = Property({"type": "object"})
_AUTH = body("auth", identity=_OBJECT, scope=Property({"type": ["object", "string"]}), closed=False)


@route.post(
    "/v3/auth/tokens",
    public=True,
    status=201,
    accepts=_AUTH,
    query=("nocatalog",),
    secret=True,
    answers=_TOKEN,
)
def log_in(call: Call, wanted: dict[str, Any]) -> dict[str, Any]:
    """Make a token, by password, application credential or another token."""
    made = flows.log_in(call.core, wanted, call.client)
    call.response_headers["X-Subject-Token"] = flows.identity_of(call.core).seal(made.token)
    call.response_headers["Vary"] = "X-Auth-Token"
    return _token(call, made)


@route.get("/v3/auth/tokens", query=("nocatalog",), answers=_TOKEN)
def show_token(call: Call) -> dict[str, Any]:
    """Show the token that X-Subject-Token holds: one's own, or any to an administrator."""
    call.response_headers["X-Subject-Token"] = call.headers.get(_SUBJECT, "")
    return _token(call, _subject(call))


@route.delete("/v3/auth/tokens", status=204)
def revoke_token(call: Call) -> None:
    """End the token that X-Subject-Token holds."""
    flows.revoke(call.core, _subject(call).token)


def _subject(call: Call) -> Login:
    text = call.headers.get(_SUBJECT, "")
    try:
        found = flows.opened(call.core, text)
    except Unauthorized:
        raise NotFound("The token could not be found.") from None
    if call.core.revocations.hold(found.token.audit_id, found.token.credential_id):
        raise NotFound("The token could not be found.")
    if found.account.id != call.context.user_id and not call.context.is_admin:
        raise Forbidden("identity:validate_token")
    return found


def _token(call: Call, login: Login) -> dict[str, Any]:
    token = login.token
    told: dict[str, Any] = {
        "methods": list(token.methods),
        "user": {
            "id": login.account.id,
            "name": login.account.name,
            "domain": DOMAIN,
            "password_expires_at": None,
        },
        "audit_ids": [token.audit_id],
        "issued_at": _time(token.issued_at),
        "expires_at": _time(token.expires_at),
        "project": {"id": login.project.id, "name": login.project.name, "domain": DOMAIN},
        "is_domain": False,
        "roles": [{"id": role, "name": role} for role in sorted(login.roles)],
    }
    if token.credential_id is not None:
        used = flows.credential_of(call.core, login.account.id, token.credential_id)
        told["application_credential"] = {
            "id": used.id,
            "name": used.name,
            "restricted": not used.unrestricted,
        }
    if "nocatalog" not in call.params:
        told["catalog"] = _catalog(call, login.project.id)
    return {"token": told}


# --- the catalog -----------------------------------------------------------------------------------------


def _catalog(call: Call, project_id: str) -> list[dict[str, Any]]:
    base = call.base_url
    services = [
        ("identity", "keystone", f"{base}/identity"),
        ("block-storage", "cinder", f"{base}/v3/{project_id}"),
        ("volumev3", "cinderv3", f"{base}/v3/{project_id}"),
        ("image", "glance", f"{base}/image"),
    ]
    if call.options.enable_v2_api:
        services.append(("volumev2", "cinderv2", f"{base}/v2/{project_id}"))
    if call.options.enable_v1_api:
        services.append(("volume", "cinderv1", f"{base}/v1/{project_id}"))
    told = []
    for kind, name, url in services:
        endpoints = [
            {
                "id": f"{kind}-{interface}",
                "interface": interface,
                "region": call.core.identity_options.region_name,
                "region_id": call.core.identity_options.region_name,
                "url": url,
            }
            for interface in ("public", "internal", "admin")
        ]
        told.append({"id": kind, "type": kind, "name": name, "endpoints": endpoints})
    return told


@route.get("/v3/auth/catalog", answers=shape(catalog=list_of(OBJECT)))
def catalog(call: Call) -> dict[str, Any]:
    """The catalog of the caller's token."""
    return {
        "catalog": _catalog(call, call.context.project_id),
        "links": {"self": f"{call.base_url}/identity/v3/auth/catalog", "previous": None, "next": None},
    }


# --- users and projects ----------------------------------------------------------------------------------


def _list(call: Call, key: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    name = call.params.get("name")
    shown = [each for each in items if name is None or each["name"] == name]
    address = f"{call.base_url}/identity{call.path}"
    return {key: shown, "links": {"self": address, "previous": None, "next": None}}


def _project(call: Call, project: Project) -> dict[str, Any]:
    return {
        "id": project.id,
        "name": project.name,
        "domain_id": DOMAIN["id"],
        "parent_id": DOMAIN["id"],
        "description": "",
        "enabled": True,
        "is_domain": False,
        "tags": [],
        "options": {},
        "links": {"self": f"{call.base_url}/identity/v3/projects/{project.id}"},
    }


def _user(call: Call, account: Account) -> dict[str, Any]:
    return {
        "id": account.id,
        "name": account.name,
        "domain_id": DOMAIN["id"],
        "enabled": True,
        "password_expires_at": None,
        "options": {},
        "default_project_id": account.memberships[0][0].id if account.memberships else None,
        "links": {"self": f"{call.base_url}/identity/v3/users/{account.id}"},
    }


def _visible(call: Call) -> list[Account]:
    """All users to an administrator, the caller to anybody else."""
    every = flows.identity_of(call.core).accounts()
    return [each for each in every if call.context.is_admin or each.id == call.context.user_id]


def _projects(accounts: list[Account]) -> list[Project]:
    found = {project.id: project for account in accounts for project, _ in account.memberships}
    return sorted(found.values(), key=lambda each: each.name)


@route.get(
    "/v3/projects",
    query=("name", "domain_id"),
    answers=listed("projects", id=STRING, name=STRING, domain_id=STRING),
)
def index_projects(call: Call) -> dict[str, Any]:
    """List one's own projects, or all to an administrator."""
    return _list(call, "projects", [_project(call, each) for each in _projects(_visible(call))])


@route.get(
    "/v3/auth/projects", query=("name",), answers=listed("projects", id=STRING, name=STRING, domain_id=STRING)
)
def index_own_projects(call: Call) -> dict[str, Any]:
    """List the projects that the caller may log in to."""
    return _list(call, "projects", [_project(call, each) for each in _projects([_own(call)])])


@route.get(
    "/v3/users/{user_id}/projects",
    query=("name",),
    answers=listed("projects", id=STRING, name=STRING, domain_id=STRING),
)
def index_projects_of(call: Call, user_id: str) -> dict[str, Any]:
    """List a user's projects."""
    found = [each for each in _visible(call) if each.id == user_id]
    if not found:
        raise NotFound.of("user", user_id)
    return _list(call, "projects", [_project(call, each) for each in _projects(found)])


@route.get(
    "/v3/projects/{project_id}", answers=shape(project=shape(id=STRING, name=STRING, domain_id=STRING))
)
def show_project(call: Call, project_id: str) -> dict[str, Any]:
    """Show a project."""
    found = next((each for each in _projects(_visible(call)) if each.id == project_id), None)
    if found is None:
        raise NotFound.of("project", project_id)
    return {"project": _project(call, found)}


@route.get(
    "/v3/users",
    query=("name", "domain_id"),
    answers=listed("users", id=STRING, name=STRING, domain_id=STRING),
)
def index_users(call: Call) -> dict[str, Any]:
    """List all users to an administrator, and the caller to anybody else."""
    return _list(call, "users", [_user(call, each) for each in _visible(call)])


@route.get("/v3/users/{user_id}", answers=shape(user=shape(id=STRING, name=STRING, domain_id=STRING)))
def show_user(call: Call, user_id: str) -> dict[str, Any]:
    """Show a user."""
    found = next((each for each in _visible(call) if each.id == user_id), None)
    if found is None:
        raise NotFound.of("user", user_id)
    return {"user": _user(call, found)}


def _domain(call: Call) -> dict[str, Any]:
    address = f"{call.base_url}/identity/v3/domains/default"
    return {**DOMAIN, "description": "", "enabled": True, "tags": [], "links": {"self": address}}


@route.get("/v3/domains", query=("name",), answers=listed("domains", id=STRING, name=STRING))
@route.get("/v3/auth/domains", query=("name",), answers=listed("domains", id=STRING, name=STRING))
def index_domains(call: Call) -> dict[str, Any]:
    """List the domains: there is one."""
    return _list(call, "domains", [_domain(call)])


@route.get("/v3/domains/{domain_id}", answers=shape(domain=shape(id=STRING, name=STRING)))
def show_domain(call: Call, domain_id: str) -> dict[str, Any]:
    """Show the domain."""
    if domain_id != DOMAIN["id"]:
        raise NotFound.of("domain", domain_id)
    return {"domain": _domain(call)}


# --- application credentials -----------------------------------------------------------------------------

_PATH = "/v3/users/{user_id}/application_credentials"
_ROLES = {"type": "array", "items": {"type": "object"}}


@route.get(_PATH, query=("name",), answers=listed("application_credentials", id=STRING, name=STRING))
def index_credentials(call: Call, user_id: str) -> dict[str, Any]:
    """List one's application credentials."""
    _check_own(call, user_id)
    found = [_credential(call, each) for each in flows.credentials_of(call.core, user_id)]
    return _list(call, "application_credentials", found)


@route.get(_PATH + "/{credential_id}", answers=_CREDENTIAL)
def show_credential(call: Call, user_id: str, credential_id: str) -> dict[str, Any]:
    """Show one of one's application credentials."""
    _check_own(call, user_id)
    found = flows.credential_of(call.core, user_id, credential_id)
    return {"application_credential": _credential(call, found)}


@route.post(
    _PATH,
    status=201,
    secret=True,
    accepts=body(
        "application_credential",
        name=REQUIRED_NAME,
        description=PRINTABLE_DESCRIPTION,
        secret=Property({"type": ["string", "null"], "minLength": 1, "maxLength": 72}),
        roles=Property({"anyOf": [_ROLES, {"type": "null"}]}),
        unrestricted=Property({"type": ["boolean", "null"]}),
        expires_at=Property({"type": ["string", "null"]}),
        closed=False,
    ),
    answers=_CREDENTIAL,
)
def create_credential(call: Call, user_id: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Create an application credential; its secret is shown this once."""
    _check_own(call, user_id)
    login = flows.caller(call.core, call.context, call.headers)
    made, secret = flows.create_credential(call.core, login, wanted)
    return {"application_credential": {**_credential(call, made), "secret": secret}}


@route.delete(_PATH + "/{credential_id}", status=204)
def delete_credential(call: Call, user_id: str, credential_id: str) -> None:
    """Delete an application credential; its tokens end."""
    _check_own(call, user_id)
    login = flows.caller(call.core, call.context, call.headers)
    flows.delete_credential(call.core, login, credential_id)


def _credential(call: Call, found: ApplicationCredential) -> dict[str, Any]:
    address = f"{call.base_url}/identity/v3/users/{found.user_id}/application_credentials/{found.id}"
    return {
        "id": found.id,
        "name": found.name,
        "description": found.description,
        "user_id": found.user_id,
        "project_id": found.project_id,
        "roles": [{"id": role, "name": role} for role in found.roles],
        "unrestricted": found.unrestricted,
        "expires_at": timestamp(found.expires_at),
        "links": {"self": address},
    }


def _own(call: Call) -> Account:
    return next(each for each in _visible(call) if each.id == call.context.user_id)


def _check_own(call: Call, user_id: str) -> None:
    if user_id != call.context.user_id:
        raise Forbidden("identity:list_application_credentials")
