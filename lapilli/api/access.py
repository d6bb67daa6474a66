"""Who may do what: a rule per call (upstream's names), judged once per request."""

from __future__ import annotations

from dataclasses import dataclass

from lapilli.context import Context
from lapilli.errors import Forbidden

ANYONE = "anyone"
READER = "reader"
MEMBER = "member"
ADMIN = "admin"


@dataclass(frozen=True)
class Rule:
    """A named rule with its default: the role that the caller needs in the resource's project.

    That the resource is the caller's is judged where it is looked up: another project's is not found.
    """

    name: str
    role: str


def rule(name: str, role: str) -> Rule:
    """Declare a rule."""
    return Rule(name, role)


OPEN = Rule("", ANYONE)


def allows(context: Context, wanted: Rule) -> bool:
    """Whether the caller passes; an administrator always does."""
    return wanted.role == ANYONE or context.is_admin or wanted.role in context.roles


def enforce(context: Context, wanted: Rule) -> None:
    """Raises `Forbidden` for a caller who does not pass."""
    if not allows(context, wanted):
        raise Forbidden(wanted.name)
