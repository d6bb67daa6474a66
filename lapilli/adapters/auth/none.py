"""No authentication: the token `user:project` is believed, and everybody is an administrator.

Only for a loopback address; `compose` sees to that.
"""

from __future__ import annotations

from collections.abc import Mapping

from lapilli.adapters.auth.users import expand
from lapilli.context import Context, ReadyAnswer

ROLES = expand({"admin"})


class NoAuthenticator:
    """See `context.Authenticator`."""

    challenge = "Noauth"

    def knows_project(self, _context: Context, _project_id: str, /) -> bool:
        """Every project that somebody names is one."""
        return True

    def authenticate(self, headers: Mapping[str, str], *_request: str) -> Context:
        """Raises `ReadyAnswer` for a request without a token: it is answered with the token to use."""
        token = headers.get("X-AUTH-TOKEN")
        if token is None:
            user = headers.get("X-AUTH-USER", "admin")
            project = headers.get("X-AUTH-PROJECT-ID", "admin")
            raise ReadyAnswer(204, {"X-Auth-Token": f"{user}:{project}", "X-Server-Management-Url": ""})
        user, _, project = token.partition(":")
        return Context(user_id=user, project_id=project or user, roles=ROLES)
