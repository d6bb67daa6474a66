"""Who asks: the identity behind a request, and the contract of what establishes it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Protocol

import msgspec

_REQUEST_ID = re.compile(r"req-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Token:
    """The caller's own token, for what is asked of other services while the caller waits.

    It lives in memory only: it has no text form, and no encoder takes it.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The token itself, for a header."""
        return self._text


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """The caller of one request.

    `project_id` is empty for credentials that are for a domain or for the whole system.
    """

    user_id: str
    project_id: str
    roles: frozenset[str] = frozenset()
    request_id: str = ""
    global_request_id: str | None = None
    user_domain_id: str | None = None
    project_domain_id: str | None = None
    domain_id: str | None = None  # of credentials for a domain, which are for no project
    system_scope: str | None = None  # "all" in credentials for the whole installation
    is_admin_project: bool = True
    service_user_id: str | None = None  # the service that passes a user's request on
    service_project_id: str | None = None
    service_roles: frozenset[str] = frozenset()
    token: Token | None = None
    admin: bool | None = None  # what a policy file says; None: it says nothing
    is_service: bool = False  # a service passed it on, and has proved that it is one

    @property
    def is_admin(self) -> bool:
        """Upstream's `context_is_admin`: the role admin, unless a policy file says otherwise."""
        return "admin" in self.roles if self.admin is None else self.admin


# who asks for what this thread is doing, once that is known
CALLER: ContextVar[Context | None] = ContextVar("caller", default=None)


class ReadyAnswer(Exception):
    """What an authenticator raises to answer a request itself (the token request of `auth = none`)."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers
        self.body = body


class Authenticator(Protocol):
    """Turns request headers into a `Context`. May be called from many threads at once."""

    def authenticate(self, headers: Mapping[str, str], method: str = "GET", path: str = "/", /) -> Context:
        """Return the caller; header names are upper case. Raises `Unauthorized` or `ReadyAnswer`.

        Method and path matter to credentials that are good for some calls only.
        """

    def knows_project(self, context: Context, project_id: str, /) -> bool:
        """Whether there is such a project, as far as can be told: True when it cannot."""

    @property
    def challenge(self) -> str:
        """Value of the `WWW-Authenticate` header that goes with a 401."""


def new_request_id() -> str:
    """A fresh `req-<uuid>`."""
    return f"req-{uuid.uuid4()}"


def global_request_id(value: str | None) -> str | None:
    """The caller's own request id when it has the form `req-<uuid>`, else None."""
    return value if value and _REQUEST_ID.fullmatch(value) else None
