"""Logging in at the service's own identity: tokens, and application credentials.

Errors tell a caller who fails nothing of what exists: an unknown user, a wrong password and a project
without a role are all the same 401.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from lapilli.context import Context
from lapilli.domain.identity import Account, Project, Token
from lapilli.domain.model import ApplicationCredential, RevokedToken
from lapilli.errors import Conflict, Forbidden, InvalidInput, NotFound, Unauthorized
from lapilli.flows.core import Core
from lapilli.ports.identity import Identity
from lapilli.store import records, revocations, tables

DOMAIN = {"id": "default", "name": "Default"}
_credentials = tables.application_credentials.c


class Login(msgspec.Struct, frozen=True):
    """A token with whom it stands for."""

    token: Token
    account: Account
    project: Project
    roles: frozenset[str]


def identity_of(core: Core) -> Identity:
    """The identity. Only called where there is one."""
    assert core.identity is not None  # noqa: S101 - its routes are only there with it
    return core.identity


def log_in(core: Core, request: Mapping[str, Any], client: str) -> Login:
    """The token for `{"identity": ..., "scope": ...}`. Raises `InvalidInput`, `Unauthorized`,
    `TooManyRequests`; `client` is the address that guesses are counted by."""
    asked = _object(request, "identity")
    methods = asked.get("methods")
    if not isinstance(methods, list) or not methods or not all(isinstance(each, str) for each in methods):
        raise InvalidInput("auth.identity.methods must be a list of names.")
    now = datetime.now(UTC)
    until = now + timedelta(seconds=core.identity_options.token_expiration)
    credential: ApplicationCredential | None = None
    account: Account | None = None
    project_id: str | None = None
    for method in dict.fromkeys(methods):
        given = _object(asked, method)
        if method == "password":
            found = _by_password(core, _object(given, "user"), client)
        elif method == "application_credential":
            found, credential = _by_credential(core, given, client)
            project_id = credential.project_id
            if credential.expires_at is not None:
                until = min(until, credential.expires_at.replace(tzinfo=UTC))
        elif method == "token":
            earlier = opened(core, str(given.get("id", "")))
            if earlier.token.credential_id is not None:
                raise Unauthorized  # it would become more than the credential allows
            found, until = earlier.account, min(until, earlier.token.expires_at)
        else:
            raise Unauthorized(f"The authentication method {method[:64]!r} is not supported.")
        if account is not None and found.id != account.id:
            raise Unauthorized
        account = found
    assert account is not None  # noqa: S101 - there is a method
    project = _scope(account, request.get("scope"), project_id)
    token = Token(
        audit_id=secrets.token_urlsafe(16),
        user_id=account.id,
        project_id=project.id,
        methods=tuple(dict.fromkeys(methods)),
        issued_at=now,
        expires_at=until,
        stamp=account.stamp,
        credential_id=credential.id if credential else None,
        roles=frozenset(credential.roles) if credential else None,
    )
    return _login(core, token)


def opened(core: Core, text: str) -> Login:
    """What the text of a token stands for. Raises `Unauthorized`."""
    return _login(core, identity_of(core).open(text))


def _login(core: Core, token: Token) -> Login:
    account = identity_of(core).find(user_id=token.user_id)
    roles = account.roles_in(token.project_id) if account else None
    if account is None or roles is None:
        raise Unauthorized
    if token.roles is not None:
        roles &= token.roles
    project = next(project for project, _ in account.memberships if project.id == token.project_id)
    return Login(token, account, project, roles)


def revoke(core: Core, token: Token) -> None:
    """Let a token hold no longer; processes know within two seconds."""
    _revoke(core, token.audit_id, token.expires_at)


def _revoke(core: Core, identifier: str, until: datetime) -> None:
    expires = until.astimezone(UTC).replace(tzinfo=None)
    with core.store.write(durable=True) as connection:
        revocations.add(connection, RevokedToken(id=identifier, expires_at=expires))
    core.revocations.forget()


def _by_password(core: Core, user: Mapping[str, Any], client: str) -> Account:
    identity = identity_of(core)
    password, name = user.get("password"), user.get("name")
    if not isinstance(password, str):
        raise InvalidInput("auth.identity.password.user.password must be a text.")
    account = _account(identity, user)
    identity.check_password(account, str(name or user.get("id")), password, client)
    assert account is not None  # noqa: S101 - the check refuses None
    return account


def _by_credential(
    core: Core, given: Mapping[str, Any], client: str
) -> tuple[Account, ApplicationCredential]:
    identity = identity_of(core)
    identifier, secret = given.get("id"), given.get("secret")
    if not isinstance(secret, str):
        raise InvalidInput("auth.identity.application_credential.secret must be a text.")
    with core.store.read() as connection:
        if identifier is not None:
            found = records.find(connection, ApplicationCredential, str(identifier))
        else:
            account = _account(identity, _object(given, "user"))
            owner, name = account.id if account else "", str(given.get("name"))
            wanted = (_credentials.user_id == owner, _credentials.name == name)
            found = next(iter(records.all_of(connection, ApplicationCredential, *wanted)), None)
    key = f"credential:{identifier or given.get('name')}"
    identity.check_secret(found.secret_hash if found else "", key, secret, client)
    assert found is not None  # noqa: S101 - the check refuses an empty hash
    account = identity.find(user_id=found.user_id)
    expired = found.expires_at is not None and found.expires_at <= records.now()
    if account is None or expired:
        raise Unauthorized
    return account, found


def _account(identity: Identity, user: Mapping[str, Any]) -> Account | None:
    """The user that is meant, by id, or by name and domain."""
    if isinstance(user.get("id"), str):
        return identity.find(user_id=user["id"])
    if not isinstance(user.get("name"), str):
        raise InvalidInput("A user is named by an id, or by a name and a domain.")
    return identity.find(name=user["name"]) if _is_ours(user.get("domain")) else None


def _is_ours(domain: Any) -> bool:
    """Whether a domain is the only one that there is."""
    if not isinstance(domain, Mapping):
        return False
    return domain.get("id") == DOMAIN["id"] or str(domain.get("name", "")).lower() == DOMAIN["id"]


def _scope(account: Account, scope: Any, project_id: str | None) -> Project:
    """The project that a token is for. Raises `Unauthorized` for one without a role there."""
    if not account.memberships:
        raise Unauthorized
    projects = [project for project, _ in account.memberships]
    if project_id is not None:  # an application credential's; it may not ask for another
        wanted = [project for project in projects if project.id == project_id]
        scope = scope if isinstance(scope, Mapping) and "project" in scope else None
        if scope is not None and _scope(account, scope, None).id != project_id:
            wanted = []
    elif scope is None or scope == "unscoped" or (isinstance(scope, Mapping) and "unscoped" in scope):
        return projects[0]
    elif not isinstance(scope, Mapping):
        raise InvalidInput("auth.scope must be an object.")
    elif "project" in scope:
        asked = _object(scope, "project")
        if "id" in asked:
            wanted = [project for project in projects if project.id == asked["id"]]
        elif _is_ours(asked.get("domain")):
            wanted = [project for project in projects if project.name == asked.get("name")]
        else:
            wanted = []
    elif "system" in scope or "domain" in scope:
        raise Unauthorized("Only scopes of projects are known here.")
    else:
        raise InvalidInput("auth.scope must name a project.")
    if not wanted:
        raise Unauthorized
    return wanted[0]


def _object(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = document.get(key)
    if not isinstance(found, Mapping):
        raise InvalidInput(f"{key} must be an object.")
    return found


# --- application credentials -----------------------------------------------------------------------------


def create_credential(
    core: Core, login: Login, wanted: Mapping[str, Any]
) -> tuple[ApplicationCredential, str]:
    """A new application credential with its secret, which nobody can see again.

    Raises `Forbidden` for a caller who is a restricted one, `InvalidInput`, `Conflict` for a name in use.
    """
    _may_manage(core, login)
    secret = wanted.get("secret") or secrets.token_urlsafe(48)
    roles = {str(each.get("name") or each.get("id")) for each in wanted.get("roles") or []}
    if not roles <= login.roles:
        raise InvalidInput("An application credential cannot have roles that its user has not.")
    made = ApplicationCredential(
        id=secrets.token_hex(16),
        user_id=login.account.id,
        project_id=login.project.id,
        name=wanted["name"],
        description=wanted.get("description"),
        secret_hash=identity_of(core).hash_secret(secret),
        roles=sorted(roles or login.roles),
        unrestricted=bool(wanted.get("unrestricted")),
        expires_at=_moment(wanted.get("expires_at")),
        created_at=records.now(),
    )
    try:
        with core.store.write(durable=True) as connection:
            records.insert(connection, made)
    except sa.exc.IntegrityError:
        raise Conflict(f"You have an application credential {made.name!r} already.") from None
    return made, secret


def credentials_of(core: Core, user_id: str) -> list[ApplicationCredential]:
    """A user's application credentials, oldest first."""
    with core.store.read() as connection:
        return records.all_of(
            connection, ApplicationCredential, _credentials.user_id == user_id, order=_credentials.created_at
        )


def credential_of(core: Core, user_id: str, identifier: str) -> ApplicationCredential:
    """One of a user's application credentials. Raises `NotFound`."""
    found = next((each for each in credentials_of(core, user_id) if each.id == identifier), None)
    if found is None:
        raise NotFound.of("application credential", identifier)
    return found


def delete_credential(core: Core, login: Login, identifier: str) -> None:
    """Remove an application credential, and end its tokens. Raises `NotFound`, `Forbidden`."""
    _may_manage(core, login)
    found = credential_of(core, login.account.id, identifier)
    _revoke(core, found.id, datetime.now(UTC) + timedelta(days=30))
    with core.store.write(durable=True) as connection:
        records.delete(connection, ApplicationCredential, found.id)


def _may_manage(core: Core, login: Login) -> None:
    if login.token.credential_id is None:
        return
    if not credential_of(core, login.account.id, login.token.credential_id).unrestricted:
        raise Forbidden("identity:create_application_credential")


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(f"expires_at: {text[:64]!r} is not a time.") from None
    plain = found if found.tzinfo is None else found.astimezone(UTC).replace(tzinfo=None)
    if plain <= records.now():
        raise InvalidInput("expires_at lies in the past.")
    return plain


def caller(core: Core, context: Context, headers: Mapping[str, str]) -> Login:
    """Who calls, with the token used (a fresh one for HTTP Basic). Raises `Unauthorized`."""
    text = headers.get("X-AUTH-TOKEN")
    if text is not None:
        return opened(core, text)
    account = identity_of(core).find(user_id=context.user_id)
    if account is None:
        raise Unauthorized
    now = datetime.now(UTC)
    return _login(core, Token("", account.id, context.project_id, ("password",), now, now, account.stamp))
