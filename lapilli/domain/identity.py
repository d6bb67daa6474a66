"""Users, projects and tokens of the service's own identity."""

from __future__ import annotations

from datetime import datetime

import msgspec


class Project(msgspec.Struct, frozen=True):
    """A project of the user file."""

    id: str
    name: str


class Account(msgspec.Struct, frozen=True):
    """A user with the projects it may work in, the first of them by default, and its roles there."""

    id: str
    name: str
    memberships: tuple[tuple[Project, frozenset[str]], ...]
    stamp: str  # changes with the password

    def roles_in(self, project_id: str) -> frozenset[str] | None:
        """Roles in a project, or None for one that it does not belong to."""
        return next((roles for project, roles in self.memberships if project.id == project_id), None)

    @property
    def is_admin(self) -> bool:
        """Whether it is an administrator anywhere."""
        return any("admin" in roles for _, roles in self.memberships)


class Token(msgspec.Struct, frozen=True, array_like=True):
    """What a token says. It is no secret, but only the holder of the key can make one that opens."""

    audit_id: str
    user_id: str
    project_id: str
    methods: tuple[str, ...]
    issued_at: datetime
    expires_at: datetime
    stamp: str  # the account's, when it was issued
    credential_id: str | None = None  # of the application credential that it was issued for
    roles: frozenset[str] | None = None  # what that credential is limited to
