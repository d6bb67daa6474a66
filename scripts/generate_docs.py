#!/usr/bin/env python3
"""Writes the pages of docs/ that follow from the code: options, calls, versions, states, errors, commands.

    python scripts/generate_docs.py                     write them (`make docs`)
    python scripts/generate_docs.py --check             only tell which are out of date
    python scripts/generate_docs.py --openapi FILE      write the OpenAPI document instead

A test holds the committed pages and this program together.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, get_type_hints

sys.path.insert(0, str(Path(__file__).resolve().parent))
import states_picture

import lapilli
from lapilli import cli, errors
from lapilli.api import openapi, rules, versions
from lapilli.api.access import ANYONE, DECLARED
from lapilli.api.resource import NEWEST, Route, scan
from lapilli.domain import messages, states
from lapilli.domain.states import Transition

DOCS = Path(__file__).resolve().parents[1] / "docs"
_HEAD = "<!-- Made from the code by `make docs`: do not edit. -->\n\n"
_BACK_END = "NAME OF A BACK END"
_DRIVERS = f"[{_BACK_END}]"


def pages() -> dict[Path, str]:
    """Every generated page with its text."""
    reference = DOCS / "reference"
    made = {
        reference / "configuration.md": configuration(),
        reference / "api.md": api_calls(),
        reference / "microversions.md": microversions(),
        reference / "states.md": state_table(),
        reference / "errors.md": error_table(),
        reference / "commands.md": commands(),
        reference / "policy.md": policy_rules(),
        reference / "backends.md": back_ends(),
    }
    text = {path: _HEAD + page.rstrip() + "\n" for path, page in made.items()}
    text[DOCS.parent / "etc" / "policy.yaml.sample"] = policy_sample()
    for resource in ("volume", "snapshot", "attachment"):
        picture = states_picture.draw([row for row in states.TABLE if row.resource == resource], resource)
        text[DOCS / "explanation" / f"states-{resource}.svg"] = picture
    return text


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ").strip()


def _table(titles: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    lines += [f"| {' | '.join(_cell(each) for each in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _sentence(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")


# --- back ends -------------------------------------------------------------------------------------------

_CONTRACTS = DOCS.parent / "tests" / "contract"


def back_ends() -> str:
    """The page of what each storage driver and target passes, as its last run has written down."""
    return f"""# What each back end passes

One suite per contract runs unchanged on everything that fulfils it: on files here, on LVM and the kernel's
targets in a virtual machine, on Ceph in a cluster of one node. A run writes its results down when
`LAPILLI_WRITE_BACKENDS=1` is set.

## Storage drivers

`tests/contract/drivers/test_contract.py`. Volumes are read and written as files and block devices, or else
through QEMU.

{_passed("drivers")}
## Targets

`tests/contract/targets/test_contract.py`. Exported volumes are read and written by a real initiator: QEMU's
for iSCSI and NBD, the kernel's for NVMe.

{_passed("targets")}"""


def _passed(contract: str) -> str:
    """A table of tests and what runs them, and below it the reasons of each no."""
    folder = _CONTRACTS / contract
    ran = json.loads((folder / "results.json").read_text())
    suite = ast.parse((folder / "test_contract.py").read_text())
    names = [each.name for each in suite.body if getattr(each, "name", "").startswith("test_")]
    reasons: list[str] = []

    def outcome(tests: dict[str, str], name: str) -> str:
        told = tests.get(name, "not run")
        if not told.startswith("cannot: "):
            return told
        if (reason := told.removeprefix("cannot: ")) not in reasons:
            reasons.append(reason)
        return f"no ({reasons.index(reason) + 1})"

    rows = [(_said(name), *(outcome(each["tests"], name) for each in ran.values())) for name in names]
    table = _table(("Test", *(each["title"] for each in ran.values())), rows)
    notes = "\n".join(f"{number}. {reason}." for number, reason in enumerate(reasons, 1))
    return f"{table}\nWhere it says no:\n\n{notes}\n" if notes else table


def _said(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ").capitalize()


# --- configuration ---------------------------------------------------------------------------------------

# Where each section class is read from: in the order of the page.
_SECTIONS = {
    "ServiceOptions": "DEFAULT",
    "BusOptions": "DEFAULT",
    "AuthOptions": "DEFAULT",
    "ApiOptions": "DEFAULT",
    "VolumeOptions": "DEFAULT",
    "TypeOptions": "DEFAULT",
    "ImageOptions": "DEFAULT",
    "QuotaOptions": "DEFAULT",
    "SchedulerOptions": "DEFAULT",
    "WorkerOptions": "DEFAULT",
    "GlanceOptions": "DEFAULT",
    "MessagingOptions": "DEFAULT",
    "NotificationOptions": "oslo_messaging_notifications",
    "ServiceUserOptions": "service_user",
    "DatabaseOptions": "database",
    "BasicOptions": "http_basic",
    "IdentityOptions": "identity",
    "KeyOptions": "key_manager",
    "BarbicanOptions": "barbican",
    "BodyOptions": "oslo_middleware",
    "PolicyOptions": "oslo_policy",
    "BackendOptions": _BACK_END,
    "FunctionOptions": _BACK_END,
    "ImageCacheOptions": _BACK_END,
    "FilePoolOptions": _BACK_END,
    "CephOptions": _BACK_END,
    "LvmOptions": _BACK_END,
    "RbdOptions": _BACK_END,
    "RbdTargetOptions": _BACK_END,
    "CinderOptions": _BACK_END,
    "SimOptions": _BACK_END,
    "SimTargetOptions": _BACK_END,
    "TgtOptions": _BACK_END,
    "LioOptions": _BACK_END,
    "LocalOptions": _BACK_END,
    "NbdOptions": _BACK_END,
    "NvmetOptions": _BACK_END,
}


def _modules() -> Iterator[Any]:
    for found in pkgutil.walk_packages(lapilli.__path__, "lapilli."):
        if not found.name.startswith("lapilli.migrations"):
            yield importlib.import_module(found.name)


def section_classes() -> dict[str, type]:
    """Every dataclass of the package whose fields are options."""
    found = {}
    for module in _modules():
        for name, value in vars(module).items():
            if not dataclasses.is_dataclass(value) or getattr(value, "__module__", "") != module.__name__:
                continue
            if name.endswith("Options"):
                found[name] = value
    return found


def configuration() -> str:
    """The page of options."""
    classes = section_classes()
    if classes.keys() != _SECTIONS.keys():
        sys.exit(f"_SECTIONS and the code differ: {sorted(classes.keys() ^ _SECTIONS.keys())}")
    parts = [
        "# Configuration options\n",
        "No file at all is a working service: every option has a default. How a file is written and given to "
        "the service is told in [the how-to](../how-to/configuration.md).\n",
        f"Options of {_DRIVERS} stand in the section of a back end (named by `enabled_backends`), or in "
        "`[backend_defaults]` for all back ends.\n",
    ]
    for section, names in groupby(_SECTIONS, _SECTIONS.__getitem__):
        parts.append(f"## [{section}]\n")
        for name in names:
            rows = list(_options(classes[name]))
            if rows:
                told = _sentence(classes[name])
                parts += [] if told == f"Section [{section}]." else [told + "\n"]
                parts.append(_table(("option", "kind", "default", "meaning"), rows))
    return "\n".join(parts)


def _options(section: type) -> Iterator[tuple[str, str, str, str]]:
    hints = get_type_hints(section)
    for entry in dataclasses.fields(section):
        inherited = entry.name not in section.__annotations__
        if inherited or entry.metadata.get("whole"):
            continue
        default = entry.default
        if entry.default_factory is not dataclasses.MISSING:
            default = ", ".join(entry.default_factory())
        shown = (
            "" if default is None else f"`{str(default).lower() if default in (True, False) else default}`"
        )
        if isinstance(default, int) and not isinstance(default, bool):
            shown = f"`{default}`"
        yield f"`{entry.name}`", _kind(hints[entry.name], entry.metadata), shown, entry.metadata["help"]


def _kind(hint: Any, meta: Any) -> str:
    if meta["choices"]:
        return "one of " + ", ".join(f"`{each}`" for each in meta["choices"])
    plain = [each for each in getattr(hint, "__args__", (hint,)) if each is not type(None)]
    words = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    kind = "list" if hint == list[str] else words[plain[0]]
    low, high = meta["minimum"], meta["maximum"]
    if low is not None and high is not None:
        return f"{kind}, {low} to {high}"
    if low is not None:
        return f"{kind}, at least {low}"
    return f"{kind}, at most {high}" if high is not None else kind


# --- API -------------------------------------------------------------------------------------------------


def api_calls() -> str:
    """The page of calls."""
    parts = [
        "# API calls\n",
        "What this version of Lapilli answers, as its declarations have it. Paths below `/v3` are also "
        "served with the project's id after it: `/v3/{project_id}/...`. A running service gives the whole of "
        "it, with the schemas of bodies and answers, as an OpenAPI 3.1 document at `/openapi.json` "
        "(`?version=3.N` for another microversion than the newest).\n",
        "*Versions*: the microversions that have the call. *Needs*: the role, and the name of its policy "
        "rule; without one, any user may. A word in braces is an action: the call's body is one object with "
        "that key.\n",
        "Without credentials: `GET /` (the versions), `GET /healthcheck` and `GET /openapi.json`.\n",
    ]
    for module, routes in groupby(scan(), lambda route: route.handler.__module__):
        parts.append(f"## {module.rpartition('.')[2].replace('_', ' ').capitalize()}\n")
        parts.append(_sentence(importlib.import_module(module)) + "\n")
        rows = [_call(route) for route in routes]
        parts.append(_table(("call", "versions", "answer", "needs", "what it does"), rows))
    return "\n".join(parts)


def _call(route: Route) -> tuple[str, str, int, str, str]:
    path = route.root + re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
    action = f" `{{{route.action}}}`" if route.action else ""
    window = f"3.{route.since}" + ("+" if route.until == NEWEST else f" to 3.{route.until}")
    if route.root != "/v3":
        window = ""
    needs = "" if route.rule.role == ANYONE else f"{route.rule.role} (`{route.rule.name}`)"
    return f"`{route.method} {path}`{action}", window, route.status, needs, _sentence(route.handler)


_WHERE = {"declared": "yes", "edge": "yes", "none": "yes (nothing to do)", "later": "not built yet"}


def microversions() -> str:
    """The page of microversions."""
    rows = [(f"3.{row.minor}", row.name, row.sentence, _WHERE[row.where]) for row in versions.TABLE.values()]
    return (
        "# Microversions\n\n"
        "A request names one in the header `OpenStack-API-Version: volume 3.N`; without it, it is "
        f"3.0. The newest is 3.{versions.MAXIMUM}. What is not built yet belongs to resources that this "
        "version does not have.\n\n" + _table(("version", "name", "what it brought", "here"), rows)
    )


# --- policy ----------------------------------------------------------------------------------------------


def _calls_by_rule() -> dict[str, list[str]]:
    """Calls that a rule opens, by its name."""
    found: dict[str, list[str]] = {}
    for route in scan():
        path = route.root + re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
        told = f"{route.method} {path}" + (f" ({route.action})" if route.action else "")
        calls = found.setdefault(route.rule.name, [])
        if told not in calls:
            calls.append(told)
    return found


def _use(name: str, calls: list[str]) -> str:
    if name in rules.BASE:
        return "for other rules to refer to"
    if calls:
        return "; ".join(calls)
    return "within calls: a field, a filter or an option of theirs" if name in DECLARED else "no call yet"


def policy_rules() -> str:
    """The page of policy rules."""
    calls = _calls_by_rule()
    rows = [
        (f"`{name}`", f"`{text}`" if text else "everybody", _use(name, calls.get(name, [])))
        for name, text in rules.defaults().items()
    ]
    return (
        "# Policy rules\n\n"
        "Who may do what unless [a policy file](../how-to/policy.md) says otherwise. The names are Cinder's, "
        "and those that only Lapilli has. *No call yet*: the rule is known, so a policy file may hold it, "
        "but what it opens is not built.\n\n" + _table(("rule", "default", "what it opens"), rows)
    )


def policy_sample() -> str:
    """A policy file in which every rule is a comment."""
    calls = _calls_by_rule()
    parts = ["# Every rule with its default; a policy.yaml holds what differs. Made by `make docs`.\n"]
    for name, text in rules.defaults().items():
        told = "".join(f"# {each}\n" for each in calls.get(name, [_use(name, [])]))
        parts.append(f'{told}#"{name}": "{text}"\n')
    return "\n".join(parts)


# --- states and errors -----------------------------------------------------------------------------------


def state_table() -> str:
    """The page of states."""
    parts = [
        "# States\n",
        "Every way a status changes. *While* is the status during an operation that takes time; rows without "
        "one are a single transaction. The only change beside this table is an administrator's reset.\n",
        f"`{states.NEW}`: there was no row before. `{states.ANY}`: whatever the status. `{states.BACK}`: the "
        f"status held before. `{states.GONE}`: the row is removed. `{states.RECOMPUTED}`: follows from the "
        "attachments that remain.\n",
        "After a crash every operation carries on where it was.\n",
    ]
    for resource, rows in groupby(states.TABLE, lambda row: row.resource):
        parts.append(f"## {resource.capitalize()}\n")
        parts.append(f"![The states of a {resource}](../explanation/states-{resource}.svg)\n")
        titles = ("action", "from", "while", "done", "failed", "event")
        parts.append(_table(titles, [_transition(row) for row in rows]))
    return "\n".join(parts)


def _transition(row: Transition) -> tuple[str, ...]:
    sources = ", ".join(sorted(row.sources))
    return row.action, sources, row.during or "", row.done, row.failed, f"`{row.event}`"


def error_table() -> str:
    """The page of errors."""
    found = [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, errors.LapilliError)
    ]
    rows = [(f"`{each.code}`", each.status, _sentence(each)) for each in found[1:]]
    shown = "\n".join(
        f"### {title}\n\n{_table(('id', 'text'), list(words.items()))}"
        for title, words in (("What was tried", messages.ACTIONS), ("What went wrong", messages.DETAILS))
    )
    return (
        "# Errors\n\n"
        "A refused request is answered with one object whose only key names the fault, such as "
        '`{"badRequest": {"code": 400, "message": "..."}}`. What fails after a request was accepted leaves '
        "the resource in an error status and a user message (`openstack volume message list`).\n\n"
        "## Kinds\n\n"
        "The code stands in logs and in the rows of operations.\n\n"
        + _table(("code", "HTTP status", "meaning"), rows)
        + "\n## User messages\n\n"
        + shown
    )


# --- commands --------------------------------------------------------------------------------------------


def commands() -> str:
    """The page of the command's subcommands."""
    parts = [
        "# The lapilli command\n",
        "Every command takes `--state-dir DIR` (default `./var`) and `--config FILE` (default: none).\n",
    ]
    parts += _commands(cli._parser(), "lapilli", "")
    return "\n".join(parts)


def _commands(parser: argparse.ArgumentParser, name: str, told: str) -> Iterator[str]:
    below = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    if parser.get_default("run"):
        yield f"## {name}\n"
        yield told + "\n"
        rows = [
            _argument(each) for each in parser._actions if each.dest not in ("help", "state_dir", "config")
        ]
        if rows:
            yield _table(("argument", "meaning"), rows)
    for group in below:
        helps = {each.dest: each.help or "" for each in group._choices_actions}
        for word, each in group.choices.items():
            yield from _commands(each, f"{name} {word}", helps.get(word, ""))


def _argument(action: argparse.Action) -> tuple[str, str]:
    word = action.option_strings[-1] if action.option_strings else ""
    value = "" if action.nargs == 0 else action.metavar or action.dest.upper()
    more = "..." if action.nargs in ("+", "*") else ""
    told = action.help or ""
    if action.option_strings and action.nargs != 0 and action.default is not None and "default" not in told:
        told = f"{told}; default: {action.default}".removeprefix("; ")
    return f"`{f'{word} {value}'.strip()}{more}`", told


def main() -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--openapi", type=Path, metavar="FILE")
    asked = parser.parse_args()
    if asked.openapi:
        asked.openapi.parent.mkdir(parents=True, exist_ok=True)
        asked.openapi.write_bytes(openapi.document(scan(), versions.MAXIMUM))
        return 0
    stale = 0
    for path, text in pages().items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        sys.stdout.write(f"{path.relative_to(DOCS.parent)}\n")
        if not asked.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 1 if asked.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
