"""Idempotent calls: a POST with an `Idempotency-Key` is carried out once, and answered every time.

See docs/decisions/0010-idempotency-keys.md. A call without the header never comes here.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import msgspec

from lapilli.api import targets
from lapilli.api.fields import Look
from lapilli.api.resource import Call, Earlier, Route
from lapilli.errors import Conflict, DatabaseUnavailable, InvalidInput
from lapilli.flows.owners import owner_is_dead
from lapilli.store import keys, records
from lapilli.store.session import RIDER, Store

HEADER = "IDEMPOTENCY-KEY"
REPLAYED = "Idempotent-Replayed"
WAIT = 5.0  # seconds that a repeat waits for the first answer
STALE = timedelta(minutes=5)  # after that, a call whose process cannot be asked counts as dead

_KEY = re.compile(r"[!-~][ -~]{0,254}")
_encode = msgspec.json.Encoder(order="sorted").encode

Answer = tuple[int, bytes]
Run = Callable[[], Answer]


def once(route: Route, call: Call, values: Sequence[str], run: Run) -> Answer:
    """Status and body: of the first call with this key and request, or by `run` when this is the first.

    Raises `InvalidInput` for a key of another form, `Conflict` for one that goes with another request, or
    whose first call is still under way.
    """
    claim = _claim(call)
    patience = time.monotonic() + WAIT
    while True:
        with call.core.store.read() as connection:
            row = claim.find(connection)
            made = None if row is None else keys.made_by(connection, row)
        if row is None:
            try:
                return _first(route, call, claim, run)
            except keys.KeyTaken:
                continue
        if records.now() - row.created_at > keys.KEPT or (made is None and row.made_kind is not None):
            claim.drop(call.core.store, row.request_id)  # too old, or what it made has been deleted
            continue
        if row.fingerprint != claim.fingerprint:
            raise Conflict("The Idempotency-Key was used for another request.")
        if not call.policy.allows(
            call.context, route.rule, lambda: targets.of(call.core, call.context, route.path, values)
        ):
            route.refuse(call, values)
        if row.status is not None:
            call.response_headers.update(row.headers, **{REPLAYED: "true"})
            return row.status, row.body
        if not _is_under_way(row):
            return _again(route, call, values, claim, Earlier(row.request_id, made), run)
        if time.monotonic() > patience:
            call.response_headers["Retry-After"] = "1"
            raise Conflict("The first call with this Idempotency-Key is still under way.")
        time.sleep(0.05)


def _claim(call: Call) -> keys.Claim:
    key = call.headers[HEADER]
    if not _KEY.fullmatch(key):
        raise InvalidInput("Idempotency-Key: 1 to 255 printable ASCII characters expected.")
    told = _encode([call.method, call.path, call.version, call.body])
    return keys.Claim(
        project_id=call.context.project_id,
        user_id=call.context.user_id,
        key=key,
        fingerprint=hashlib.sha256(told).hexdigest(),
        request_id=call.context.request_id,
        owner=call.core.journal.owner,
    )


def _is_under_way(row: Any) -> bool:
    if row.owner is None or owner_is_dead(row.owner):
        return False
    return bool(records.now() - row.created_at < STALE)


def _first(route: Route, call: Call, claim: keys.Claim, run: Run) -> Answer:
    token = RIDER.set(claim)
    try:
        answer = run()
    except BaseException:
        if claim.written:
            _surely(lambda: _after_failure(call.core.store, claim))
        raise
    finally:
        RIDER.reset(token)
    if claim.written:
        try:
            _keep(route, call, claim, answer)
        except DatabaseUnavailable:
            _surely(lambda: claim.let_go(call.core.store))
            raise
    return answer


def _after_failure(store: Store, claim: keys.Claim) -> None:
    """Free the key, unless something has been made that a repeat must not make again."""
    with store.read() as connection:
        row = claim.find(connection)
        if row is None or row.request_id != claim.request_id:
            return
        made = keys.made_by(connection, row)
    if made is None:
        claim.drop(store, claim.request_id)
    else:
        claim.let_go(store)


def _surely(work: Callable[[], None]) -> None:
    """Do it now, or in the background as soon as the database answers: else repeats would be told for
    minutes that the first call is still under way."""

    def persist() -> None:
        given_up = time.monotonic() + STALE.total_seconds()
        while time.monotonic() < given_up:
            time.sleep(1)
            with contextlib.suppress(DatabaseUnavailable):
                work()
                return

    try:
        work()
    except DatabaseUnavailable:
        threading.Thread(target=persist, name="idempotency", daemon=True).start()


def _keep(route: Route, call: Call, claim: keys.Claim, answer: Answer) -> None:
    if route.secret:
        claim.let_go(call.core.store)  # made anew for each repeat, so that no secret is kept here
    else:
        claim.answered(call.core.store, answer[0], dict(call.response_headers), answer[1])


def _again(
    route: Route, call: Call, values: Sequence[str], claim: keys.Claim, earlier: Earlier, run: Run
) -> Answer:
    """The answer of a call that was carried out, but whose answer was lost, from what is there now."""
    if route.repeatable:
        answer = run()
    else:
        told = earlier.made if route.resume is None else route.resume(call, earlier, *values)
        if told is not None and not isinstance(told, dict):
            view = route.returns
            told = None if view is None else {view.key: view.render(told, Look(call))}
        answer = route.status, b"" if told is None else _encode(told)
    _keep(route, call, claim, answer)
    call.response_headers[REPLAYED] = "true"
    return answer
