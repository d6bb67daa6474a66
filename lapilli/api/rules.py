"""The rules in force: the default of each, or what the operator's policy file says instead.

A default is judged by a look at the caller's roles. A rule that the file changes, itself or through one that
it refers to, is judged by oslo.policy's checks, which are parsed once. A file that has changed is read again;
when it cannot be used any more, the rules stay as they were. oslo.policy is only loaded for a file.
"""

from __future__ import annotations

import difflib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lapilli.api import access
from lapilli.api.access import ADMIN, ANYONE, IS_ADMIN, MEMBER, READER, Rule
from lapilli.api.options import PolicyOptions
from lapilli.api.upstream_rules import DEFAULTS, EARLIER
from lapilli.config import Config
from lapilli.context import Context
from lapilli.errors import ConfigError

_log = logging.getLogger("lapilli.policy")

# what other rules refer to, by upstream's names
BASE = {
    "context_is_admin": "role:admin",
    "admin_api": "is_admin:True or (role:admin and is_admin_project:True)",
    "admin_or_owner": "is_admin:True or (role:admin and is_admin_project:True) or project_id:%(project_id)s",
    "system_or_domain_or_project_admin": (
        "(role:admin and system_scope:all) or (role:admin and domain_id:%(domain_id)s) or "
        "(role:admin and project_id:%(project_id)s)"
    ),
    "xena_system_admin_or_project_member": "role:admin or (role:member and project_id:%(project_id)s)",
    "xena_system_admin_or_project_reader": "role:admin or (role:reader and project_id:%(project_id)s)",
}
_CHECKS = {
    ADMIN: "rule:admin_api",
    MEMBER: "rule:xena_system_admin_or_project_member",
    READER: "rule:xena_system_admin_or_project_reader",
    ANYONE: "",
}
_OWN_KEYS = {"project_id", "domain_id"}  # of a target: the same whatever the caller may find

Target = Callable[[], Mapping[str, Any]]
Stamp = tuple[int, int, int, int] | None  # of a file: another one is another content


def defaults() -> dict[str, str]:
    """Every rule that is known, with oslo.policy's text of its default."""
    roles = {**DEFAULTS, **{each.name: each.role for each in access.DECLARED.values()}}
    return {**BASE, **{name: _CHECKS[role] for name, role in sorted(roles.items()) if name not in BASE}}


@dataclass(frozen=True)
class _Changed:
    """What a file makes of a rule."""

    check: Any
    looks_at_resource: bool


@dataclass
class _File:
    """A policy file that has been read: oslo.policy's enforcer, and the rules that it changes."""

    enforcer: Any = None
    texts: dict[str, str] = field(default_factory=dict)
    changed: dict[str, _Changed] = field(default_factory=dict)


class Policy:
    """Judges callers by the rules in force."""

    def __init__(self, config: Config) -> None:
        """Raises `ConfigError` for a file that cannot be used."""
        self._config = config
        self.path, expected = _place(config)
        self._lock = threading.Lock()
        self._stamp = _stamp(self.path)
        if self._stamp is None and expected:
            raise ConfigError(f"[oslo_policy] policy_file = {self.path!r}: there is no such file.")
        self._file = _File() if self._stamp is None else _read(config, self.path)

    def begin(self, context: Context) -> bool | None:
        """At a request: see whether the file has changed; whether it makes the caller an administrator.

        None when it says nothing about that.
        """
        try:
            found = os.stat(self.path)
        except OSError:
            stamp = None
        else:
            stamp = found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns
        if stamp != self._stamp:
            self._again(stamp)
        return self.allows(context, IS_ADMIN) if IS_ADMIN.name in self._file.changed else None

    def _again(self, stamp: Stamp) -> None:
        with self._lock:
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                if stamp is None:
                    raise ConfigError(f"{self.path}: it is gone.")
                self._file = _read(self._config, self.path)
                _log.info("the policy file was read again")
            except ConfigError as problem:
                _log.error("the rules stay as they were: %s", problem)

    def allows(self, context: Context, wanted: Rule, target: Target | None = None) -> bool:
        """Whether a caller passes; `target` tells of the resource, for rules that look at it."""
        changed = self._file.changed.get(wanted.name)
        if changed is None:
            role, roles = wanted.role, context.roles
            return role in roles or ADMIN in roles or role == ANYONE or (role == ADMIN and context.is_admin)
        seen = target() if target is not None and changed.looks_at_resource else own_project(context)
        return bool(changed.check(seen, _credentials(context), self._file.enforcer, wanted.name))

    def rules(self) -> Iterator[tuple[str, str, str]]:
        """(name, text, where the text comes from) of every rule."""
        texts = self._file.texts
        for name, text in {**defaults(), **texts}.items():
            yield (
                name,
                text,
                "file" if name in texts else "default" if _is_used(name) else "default; no call yet",
            )

    def judge(self, name: str, context: Context, target: Mapping[str, Any]) -> bool:
        """Whether a caller passes a rule for a resource that is told of. Raises `ConfigError`."""
        known = defaults()
        if name not in known and name not in self._file.texts:
            raise ConfigError(_unknown(name, known))
        file = self._file
        if file.enforcer is None:
            file = self._file = _File(_parse(self._config, {}, self.path))
        admin = file.enforcer.rules["context_is_admin"](target, _credentials(context), file.enforcer)
        told = {**_credentials(context), "is_admin": bool(admin)}
        return bool(file.enforcer.rules[name](target, told, file.enforcer, name))


def _is_used(name: str) -> bool:
    return name in BASE or name in access.DECLARED


def _place(config: Config) -> tuple[str, bool]:
    """(path, whether it must be there)."""
    name = config.read(PolicyOptions, "oslo_policy").policy_file
    directory = os.path.dirname(config.path) if config.path else config.state_dir
    return os.path.join(directory, name), config.holds("oslo_policy", "policy_file")


def _stamp(path: str) -> Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns


def own_project(context: Context) -> dict[str, Any]:
    """The target of a call that is about the caller's own project."""
    return {
        "project_id": context.project_id or None,
        "user_id": context.user_id,
        "domain_id": context.domain_id,
    }


def _credentials(context: Context) -> dict[str, Any]:
    """What checks look at, by oslo.context's names."""
    return {
        "user_id": context.user_id,
        "user_domain_id": context.user_domain_id,
        "project_id": context.project_id or None,
        "project_domain_id": context.project_domain_id,
        "domain_id": context.domain_id,
        "system_scope": context.system_scope,
        "roles": list(context.roles),
        "is_admin": context.is_admin,
        "is_admin_project": context.is_admin_project,
        "service_user_id": context.service_user_id,
        "service_project_id": context.service_project_id,
        "service_roles": list(context.service_roles),
    }


# --- reading a file --------------------------------------------------------------------------------------


def _read(config: Config, path: str) -> _File:
    """Raises `ConfigError`."""
    from oslo_policy import policy as oslo  # noqa: PLC0415 - loaded for a file only

    try:
        with open(path, encoding="utf-8") as file:
            told: Any = oslo.parse_file_contents(file.read())
    except (OSError, ValueError) as problem:
        raise ConfigError(f"{path}: it cannot be read: {' '.join(str(problem).split())}") from problem
    if not isinstance(told, dict) or not all(
        isinstance(name, str) and isinstance(text, (str, list)) for name, text in told.items()
    ):
        raise ConfigError(f"{path}: a table of rule names and their texts expected.")
    for earlier, names in EARLIER.items():
        if earlier in told:
            told = {**dict.fromkeys(names, f"rule:{earlier}"), **told}
    enforcer = _parse(config, told, path)
    return _File(enforcer, {name: str(text) for name, text in told.items()}, _changed(enforcer.rules, told))


def _parse(config: Config, told: Mapping[str, Any], path: str) -> Any:
    """An enforcer with all rules: those of a file, and the defaults of the others. Raises `ConfigError`."""
    from oslo_config import cfg  # noqa: PLC0415 - loaded for a file only
    from oslo_policy import policy as oslo  # noqa: PLC0415

    known = defaults()
    rules = {}
    for name, text in {**known, **told}.items():
        rules[name] = oslo.RuleDefault(name, text).check
        if str(rules[name]) == "!" and text != "!":
            raise ConfigError(f"{path}: {name}: {text!r} cannot be understood.")
    used = {each.match for check in rules.values() for each in _leaves(check) if _refers(each)}
    for name in told:
        if name not in known and name not in EARLIER and name not in used and name != "default":
            raise ConfigError(f"{path}: {_unknown(name, known)}")
    options = cfg.ConfigOpts()
    options([], project="lapilli", default_config_files=[config.path] if config.path else [])
    enforcer = oslo.Enforcer(options, use_conf=False)
    enforcer.set_rules(rules, overwrite=True, use_conf=False)
    for name, check in rules.items():
        missing = [each.match for each in _leaves(check) if _refers(each) and each.match not in rules]
        if missing:
            raise ConfigError(f"{path}: {name} refers to {missing[0]!r}, which is no rule.")
    try:
        enforcer.check_rules(raise_on_violation=True)
    except oslo.InvalidDefinitionError as problem:
        raise ConfigError(f"{path}: rules that refer to themselves: {problem}") from problem
    return enforcer


def _unknown(name: str, known: Mapping[str, str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"{name!r} is no rule" + (f"; perhaps {near[0]!r} is meant." if near else ".")


def _leaves(check: Any) -> Iterator[Any]:
    """The checks that a check is made of."""
    inner = getattr(check, "rules", None)
    if inner is None:
        inner = [check.rule] if hasattr(check, "rule") else None
    if inner is None:
        yield check
        return
    for each in inner:
        yield from _leaves(each)


def _refers(leaf: Any) -> bool:
    return getattr(leaf, "kind", None) == "rule"


def _changed(rules: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, _Changed]:
    """The rules whose judgement a file changes, directly or through those that they refer to."""
    found = {}
    for name, check in rules.items():
        reached, leaves, waiting = {name}, [], [check]
        while waiting:
            for leaf in _leaves(waiting.pop()):
                leaves.append(leaf)
                if _refers(leaf) and leaf.match not in reached:
                    reached.add(leaf.match)
                    waiting.append(rules[leaf.match])
        if not reached.isdisjoint(told):
            found[name] = _Changed(check, any(_looks_at_resource(leaf) for leaf in leaves))
    return found


def _looks_at_resource(leaf: Any) -> bool:
    """Whether a check needs to know more of the resource than that the caller may find it."""
    if getattr(leaf, "kind", "") in ("http", "https"):
        return True
    words = str(leaf).split("%(")[1:]
    return any(word.partition(")")[0] not in _OWN_KEYS for word in words)
