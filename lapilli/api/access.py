"""Who may do what: a rule per call, declared beside it, by upstream's names; and the role that each needs.

What an operator's policy file says instead is known by `api/rules.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

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


DECLARED: dict[str, Rule] = {}


def rule(name: str, role: str) -> Rule:
    """Declare a rule. One that is declared in several places has the same default everywhere."""
    made = DECLARED.setdefault(name, Rule(name, role))
    if made.role != role:
        raise ValueError(f"The rule {name} is declared for {made.role} and for {role}.")
    return made


OPEN = Rule("", ANYONE)
IS_ADMIN = rule("context_is_admin", ADMIN)
METRICS = rule("metrics:show", ADMIN)  # of the edge itself, as its path has no resource
