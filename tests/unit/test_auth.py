"""Who asks: the user file, passwords, what roles imply; and the open door on loopback."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from hypothesis import given, strategies as st

from lapilli.adapters.auth import users as user_file
from lapilli.adapters.auth.none import NoAuthenticator
from lapilli.adapters.auth.users import (
    BasicAuthenticator,
    UserFile,
    _credentials,
    expand,
    line_for,
    project_id_of,
)
from lapilli.context import ReadyAnswer
from lapilli.errors import ConfigError, Unauthorized


def hashed(password: str, cost: int = 4) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()


def header(name: str, password: str, kind: str = "Basic") -> dict[str, str]:
    return {"AUTHORIZATION": f"{kind} {base64.b64encode(f'{name}:{password}'.encode()).decode()}"}


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "htpasswd"
    path.write_text(f"ann:{hashed('secret')}:p1:admin\nbob:{hashed('words')}:p2:member\n")
    return path


@pytest.fixture
def door(users: Path) -> BasicAuthenticator:
    return BasicAuthenticator(UserFile(str(users)))


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Hashes that passwords were really checked against."""
    made: list[bytes] = []
    check: Callable[[bytes, bytes], bool] = bcrypt.checkpw

    def counted(password: bytes, hash_: bytes) -> bool:
        made.append(hash_)
        return check(password, hash_)

    monkeypatch.setattr(user_file.bcrypt, "checkpw", counted)
    return made


def test_right_password(door: BasicAuthenticator) -> None:
    ann, bob = door.authenticate(header("ann", "secret")), door.authenticate(header("bob", "words", "basic"))
    assert (ann.project_id, ann.roles, ann.is_admin) == ("p1", {"admin", "member", "reader"}, True)
    assert (bob.project_id, bob.roles, bob.is_admin) == ("p2", {"member", "reader"}, False)
    assert ann.user_id != bob.user_id
    assert door.authenticate(header("ann", "secret")) == ann


def test_user_ids_are_stable(users: Path, door: BasicAuthenticator) -> None:
    before = door.authenticate(header("ann", "secret")).user_id
    users.write_text(f"ann:{hashed('other')}:p9:reader\n")
    after = BasicAuthenticator(UserFile(str(users))).authenticate(header("ann", "other"))
    assert after.user_id == before
    assert len(before) == 32
    assert before.isalnum()


@pytest.mark.parametrize(("name", "password"), [
    ("ann", "wrong"), ("ann", ""), ("ann", "Secret"), ("ann", "secret "), ("ann", "words"), ("", ""),
    ("nobody", "secret"), ("ANN", "secret"), ("ann", "s\0ecret"), ("ann", "x" * 5000),
])  # fmt: skip
def test_wrong_password(door: BasicAuthenticator, name: str, password: str) -> None:
    for _ in range(2):
        with pytest.raises(Unauthorized, match="user name or the password is wrong"):
            door.authenticate(header(name, password))


BROKEN: list[dict[str, str]] = [
    {},
    {"AUTHORIZATION": ""},
    {"AUTHORIZATION": "Basic"},
    {"AUTHORIZATION": "Basic "},
    {"AUTHORIZATION": "Bearer abc"},
    {"AUTHORIZATION": "Basic !!!!"},
    {"AUTHORIZATION": "Basic YW5u"},  # "ann", no colon
    {"AUTHORIZATION": "Basic YW5uOnNlY3JldA"},  # padding missing
    {"AUTHORIZATION": "Basic " + base64.b64encode(b"ann:\xff\xfe").decode()},
    {"AUTHORIZATION": "Basic \xe4\xf6"},
]


@pytest.mark.parametrize("headers", BROKEN, ids=lambda each: repr(each.get("AUTHORIZATION")))
def test_broken_header(door: BasicAuthenticator, headers: dict[str, str]) -> None:
    with pytest.raises(Unauthorized):
        door.authenticate(headers)
    assert door.challenge.startswith("Basic realm=")


latin = st.text(st.characters(max_codepoint=255), max_size=40)  # what a WSGI server hands over


encoded = st.binary(max_size=40).map(lambda text: f"Basic {base64.b64encode(text).decode()}")


@given(value=st.one_of(latin, latin.map("Basic {}".format), encoded))
def test_any_header_can_be_judged(value: str) -> None:
    try:
        name, password = _credentials(value)
    except Unauthorized:
        return
    assert base64.b64decode(value.partition(" ")[2]).decode() == f"{name}:{password}"


def test_a_password_with_colons_and_umlauts(tmp_path: Path) -> None:
    path = tmp_path / "htpasswd"
    path.write_text(f"ann:{hashed('a:b:ü')}:p1:member\n", encoding="utf-8")
    assert BasicAuthenticator(UserFile(str(path))).authenticate(header("ann", "a:b:ü")).project_id == "p1"


# --- cost ------------------------------------------------------------------------------------------------


def test_a_right_password_is_checked_once(door: BasicAuthenticator, checks: list[bytes]) -> None:
    for _ in range(5):
        door.authenticate(header("ann", "secret"))
    assert len(checks) == 1


def test_a_wrong_password_is_never_remembered(door: BasicAuthenticator, checks: list[bytes]) -> None:
    for _ in range(3):
        with pytest.raises(Unauthorized):
            door.authenticate(header("ann", "wrong"))
    assert len(checks) == 3


def test_a_right_password_is_forgotten_in_time(
    door: BasicAuthenticator, checks: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(user_file.time, "monotonic", lambda: now)
    door.authenticate(header("ann", "secret"))
    now += 299
    door.authenticate(header("ann", "secret"))
    assert len(checks) == 1
    now += 2
    door.authenticate(header("ann", "secret"))
    assert len(checks) == 2


def test_an_unknown_name_costs_as_much_as_a_wrong_password(tmp_path: Path, checks: list[bytes]) -> None:
    """One hash of the cost that new users get; so the time tells nothing."""
    path = tmp_path / "htpasswd"
    path.write_text(line_for("ann", "secret", "p1", "member"))
    door = BasicAuthenticator(UserFile(str(path)))
    for name in ("ann", "nobody"):
        with pytest.raises(Unauthorized):
            door.authenticate(header(name, "wrong"))
    known, unknown = checks
    assert known.split(b"$")[2] == unknown.split(b"$")[2] == b"10"


def test_many_at_once(door: BasicAuthenticator) -> None:
    failed: list[BaseException] = []

    def ask(name: str, password: str, project: str) -> None:
        try:
            for _ in range(50):
                assert door.authenticate(header(name, password)).project_id == project
        except BaseException as problem:
            failed.append(problem)

    people = [("ann", "secret", "p1"), ("bob", "words", "p2")] * 4
    threads = [threading.Thread(target=ask, args=each) for each in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


# --- the file --------------------------------------------------------------------------------------------


def test_a_changed_file_forgets(users: Path, door: BasicAuthenticator) -> None:
    door.authenticate(header("ann", "secret"))
    users.write_text(f"ann:{hashed('fresh')}:p1:reader\n")
    with pytest.raises(Unauthorized):
        door.authenticate(header("ann", "secret"))
    assert door.authenticate(header("ann", "fresh")).roles == {"reader"}
    with pytest.raises(Unauthorized):
        door.authenticate(header("bob", "words"))


def test_a_replaced_file_forgets_though_it_looks_the_same(users: Path, door: BasicAuthenticator) -> None:
    """Same size and same time, as when a tool restores the time: the file is another one nevertheless."""
    door.authenticate(header("ann", "secret"))
    old = os.stat(users)
    other = users.with_name("new")
    other.write_text(f"ann:{hashed('fresh!')}:p1:admin\nbob:{hashed('words')}:p2:member\n")
    assert os.stat(other).st_size == old.st_size
    os.utime(other, ns=(old.st_atime_ns, old.st_mtime_ns))
    os.replace(other, users)
    with pytest.raises(Unauthorized):
        door.authenticate(header("ann", "secret"))


def test_a_removed_file_lets_nobody_in(users: Path, door: BasicAuthenticator) -> None:
    door.authenticate(header("ann", "secret"))
    users.unlink()
    with pytest.raises(Unauthorized, match="No user file"):
        door.authenticate(header("ann", "secret"))


def write(tmp_path: Path, text: str) -> BasicAuthenticator:
    path = tmp_path / "htpasswd"
    path.write_text(text)
    return BasicAuthenticator(UserFile(str(path)))


def test_lines(tmp_path: Path) -> None:
    door = write(
        tmp_path,
        "\n# people\n   \n"
        f"  ann:{hashed('a')}:p1: admin , auditor \n"
        f"bob:{hashed('b')}\n"
        f"ann-2:{hashed('c')}:p1:\n"
        f"dup:{hashed('old')}:p1:admin\ndup:{hashed('new')}:p1:reader\n",
    )
    assert door.authenticate(header("ann", "a")).roles == {"admin", "member", "reader", "auditor"}
    bob = door.authenticate(header("bob", "b"))
    assert (bob.project_id, bob.roles) == (project_id_of("bob"), {"member", "reader"})
    assert door.authenticate(header("ann-2", "c")).roles == frozenset()
    assert door.authenticate(header("dup", "new")).roles == {"reader"}
    with pytest.raises(Unauthorized):
        door.authenticate(header("dup", "old"))


@pytest.mark.parametrize("line", ["ann", "ann:x:p1", "ann:x:p1:member:more", "::::"])
def test_a_line_that_is_none(tmp_path: Path, line: str) -> None:
    door = write(tmp_path, f"bob:{hashed('b')}:p:member\n{line}\n")
    with pytest.raises(ConfigError, match=r"htpasswd: a line is user:hash:project:role,role, not \d fields"):
        door.authenticate(header("bob", "b"))


@pytest.mark.parametrize("hash_", ["", "secret", "$apr1$abc$def", "$2b$04$short", "{SHA}abc="])
def test_a_hash_that_is_not_bcrypt_fits_no_password(tmp_path: Path, hash_: str) -> None:
    door = write(tmp_path, f"ann:{hash_}:p1:member\n")
    for password in ("secret", "", hash_):
        with pytest.raises(Unauthorized):
            door.authenticate(header("ann", password))


def test_line_for(tmp_path: Path) -> None:
    door = write(tmp_path, line_for("ann", "secret", "p1", "member,auditor"))
    assert door.authenticate(header("ann", "secret")).roles == {"member", "reader", "auditor"}


@pytest.mark.parametrize(("roles", "implied"), [
    (set(), set()),
    ({"reader"}, {"reader"}),
    ({"member"}, {"member", "reader"}),
    ({"admin"}, {"admin", "member", "reader"}),
    ({"swift"}, {"swift"}),
    ({"member", "swift"}, {"member", "reader", "swift"}),
])  # fmt: skip
def test_implied_roles(roles: set[str], implied: set[str]) -> None:
    assert expand(roles) == implied


# --- none ------------------------------------------------------------------------------------------------


def test_none_believes_the_token() -> None:
    door = NoAuthenticator()
    found = door.authenticate({"X-AUTH-TOKEN": "ann:p1"})
    assert (found.user_id, found.project_id, found.is_admin) == ("ann", "p1", True)
    assert door.authenticate({"X-AUTH-TOKEN": "ann"}).project_id == "ann"
    assert door.authenticate({"X-AUTH-TOKEN": "ann:p:q"}).project_id == "p:q"


@pytest.mark.parametrize(("headers", "token"), [
    ({}, "admin:admin"), ({"X-AUTH-USER": "ann", "X-AUTH-PROJECT-ID": "p1"}, "ann:p1"),
])  # fmt: skip
def test_none_hands_out_a_token(headers: dict[str, Any], token: str) -> None:
    with pytest.raises(ReadyAnswer) as caught:
        NoAuthenticator().authenticate(headers)
    assert caught.value.status == 204
    assert caught.value.headers["X-Auth-Token"] == token
