"""Calls made of the API's own description by schemathesis, and what is wrong with the answers."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.fuzz.house import House

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
_present: list[House] = []  # whose ids the bodies name; strategies of formats know nothing else


def _identifiers() -> st.SearchStrategy[str]:
    def known(number: int) -> str:
        words = [word for kind in ("volume", "snapshot") for word in _present[-1].words.get(kind, [])]
        return words[number % len(words)] if words else "3f7b5a2c-1d9e-4c86-8a40-6a9e5b0d7c21"

    return st.one_of(st.integers(0, 40).map(known), st.uuids().map(str))


schemathesis.openapi.format("lapilli-uuid", _identifiers())
schemathesis.openapi.format("lapilli-size", st.integers(1, 40).map(str))
schemathesis.openapi.format("lapilli-printable", st.text("printable words 0", max_size=20))


class Caller:
    """Calls every operation of one microversion."""

    def __init__(self, house: House, version: str) -> None:
        self.house, self.version = house, version
        _present[:] = [house]
        told = house.api.get(f"/openapi.json?version={version}", as_=None).json()
        self.schema = schemathesis.openapi.from_dict(told)
        self.operations = [each.ok() for each in self.schema.get_all_operations()]
        self.answers: Counter[int] = Counter()
        self.problems: dict[str, str] = {}

    def run(self, examples: int, seed: int) -> None:
        """Call each operation so many times with what fits its schema, and as often with what does not."""
        for operation in self.operations:
            for mode in MODES:
                self._try(operation, mode, examples, seed)
            if operation.method != "get":
                self.house.mend()

    def _try(self, operation: Any, mode: GenerationMode, examples: int, seed: int) -> None:
        @hypothesis.seed(seed)
        @settings(
            max_examples=examples,
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode), number=st.integers(0, 50))
        def call(case: Any, number: int) -> None:
            self._call(case, number)

        try:
            call()
        except hypothesis.errors.Unsatisfiable:
            return  # nothing can be wrong about what is sent: there is nothing in it

    def _call(self, case: Any, number: int) -> None:
        for name in case.path_parameters or {}:
            word = self.house.word(name, number)
            if word is not None and number:
                case.path_parameters[name] = word.replace("#", "%23")
        for name in ("X-Auth-Token", "Authorization", "Content-Length", "Transfer-Encoding"):
            case.headers.pop(name, None)
        case.headers["OpenStack-API-Version"] = f"volume {self.version}"
        answer = case.call(base_url=self.house.service.url, auth=self.house.auth, timeout=60)
        self.answers[answer.status_code] += 1
        try:
            case.validate_response(answer, checks=CHECKS)
        except (FailureGroup, AssertionError) as failure:
            for each in getattr(failure, "exceptions", [failure]):
                self._keep(case, answer, each)

    def _keep(self, case: Any, answer: Any, failure: BaseException) -> None:
        """One of each kind is enough."""
        wrong = str(failure).split("\n\n")[0].replace("\n", " ")
        key = f"3.{self.version.partition('.')[2]} {case.operation.label}: {type(failure).__name__}: "
        key += f"{answer.status_code} {wrong[:200]}"
        sent = json.dumps(case.body, default=str)[:500]
        self.problems.setdefault(
            key, f"{case.formatted_path} {case.query} {sent} -> {answer.content[:500]!r}"
        )

    def told(self) -> str:
        """All problems, as text."""
        return "\n".join(f"{key}\n    {value}" for key, value in sorted(self.problems.items()))
