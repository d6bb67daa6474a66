"""Quota limits: set and cleared by administrators, and never below what is used."""

from __future__ import annotations

from collections.abc import Mapping

from lapilli.domain.quotas import Usage
from lapilli.errors import InvalidInput
from lapilli.flows.core import Core
from lapilli.store import limits as rows, quotas
from lapilli.store.session import rerun_when_contended


@rerun_when_contended
def update(core: Core, project_id: str, changes: Mapping[str, int]) -> dict[str, int]:
    """Give a project limits of its own; returns all its limits. Raises `InvalidInput` below current use."""
    options = core.quota
    _check_name("project id", project_id)
    with core.store.write(durable=True) as connection:
        _check_known(changes, quotas.limits(connection, options, project_id))
        held = quotas.usages(connection, project_id, hold=changes)
        for name, limit in changes.items():
            usage = held.get(name, Usage())
            taken = usage.in_use + usage.reserved
            if 0 <= limit < taken:
                raise InvalidInput(f"Quota limit {limit} for {name} is below current use: {taken} are taken.")
        rows.set_project(connection, project_id, changes)
        return quotas.limits(connection, options, project_id)


@rerun_when_contended
def delete(core: Core, project_id: str) -> None:
    """Put a project back to the default limits."""
    with core.store.write(durable=True) as connection:
        rows.clear_project(connection, project_id)


@rerun_when_contended
def update_class(core: Core, name: str, changes: Mapping[str, int]) -> dict[str, int]:
    """Give a quota class limits (`default` is what every project has); returns all of them."""
    options = core.quota
    _check_name("quota class", name)
    with core.store.write(durable=True) as connection:
        _check_known(changes, quotas.class_limits(connection, options, name))
        rows.set_class(connection, name, changes)
        return quotas.class_limits(connection, options, name)


def _check_name(what: str, name: str) -> None:
    if len(name) > 255:
        raise InvalidInput(f"A {what} has at most 255 characters.")


def _check_known(changes: Mapping[str, int], known: Mapping[str, int]) -> None:
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise InvalidInput(f"Unknown quota resources: {', '.join(unknown)}.")
