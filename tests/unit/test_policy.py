"""Rules: upstream's names and defaults, what a policy file makes of them, and what it must not hold."""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import Path

import pytest

from lapilli import compose
from lapilli.api.access import DECLARED, Rule
from lapilli.api.rules import BASE, Policy, defaults
from lapilli.api.upstream_rules import DEFAULTS, EARLIER
from lapilli.config import Config
from lapilli.context import Context
from lapilli.errors import ConfigError

OWN = {"metrics:show", "scheduler:explain", "get_image", "get_images", "volume:get_fault"}  # ours only


def caller(*roles: str, user: str = "u", project: str = "p") -> Context:
    return Context(user_id=user, project_id=project, roles=frozenset(roles))


def policy_of(tmp_path: Path, text: str | None = None) -> Policy:
    if text is not None:
        (tmp_path / "policy.yaml").write_text(text)
    return compose.make_policy(Config(state_dir=str(tmp_path)))


@pytest.fixture
def plain(tmp_path: Path) -> Policy:
    return policy_of(tmp_path)


def test_all_of_upstreams_rules_are_known(plain: Policy) -> None:
    counted = [list(DEFAULTS.values()).count(role) for role in ("admin", "member", "reader")]
    assert counted == [78, 56, 27]
    assert DEFAULTS.keys() <= defaults().keys()
    assert {name for names in EARLIER.values() for name in names} <= DEFAULTS.keys()


def test_what_calls_declare_has_upstreams_default(plain: Policy) -> None:
    told = {name: each.role for name, each in DECLARED.items() if name in DEFAULTS}
    assert len(told) > 100
    assert told == {name: DEFAULTS[name] for name in told}


def test_what_is_not_upstreams_is_meant_to_be_ours(plain: Policy) -> None:
    ours = {
        name for name in DECLARED.keys() - DEFAULTS.keys() - BASE.keys() if not name.startswith("operation:")
    }
    assert ours - OWN == set(), "a rule of a name that no policy file of Cinder's has: is it spelt right?"


@pytest.mark.parametrize("most", range(5))
def test_the_quick_judgement_of_defaults_is_oslo_policys(plain: Policy, most: int) -> None:
    for roles in combinations(["admin", "member", "reader", "other"], most):
        for wanted in DECLARED.values():
            told = plain.judge(wanted.name, caller(*roles), {"project_id": "p", "user_id": "u"})
            assert plain.allows(caller(*roles), wanted) == told, (wanted.name, roles)


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    policy = policy_of(
        tmp_path, '"volume:create": "role:admin"\n"volume:force_delete": "@"\n"volume:get": "!"\n'
    )
    assert not policy.allows(caller("member"), DECLARED["volume:create"])
    assert policy.allows(caller("admin"), DECLARED["volume:create"])
    assert policy.allows(caller(), DECLARED["volume:force_delete"])
    assert not policy.allows(caller("admin"), DECLARED["volume:get"])
    assert policy.allows(caller("member"), DECLARED["volume:update"])


def test_a_file_changes_what_refers_to_what_it_names(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, '"xena_system_admin_or_project_member": "role:writer"\n')
    assert policy.allows(caller("Writer".lower()), DECLARED["volume:create"])
    assert not policy.allows(caller("member"), DECLARED["volume:create"])
    assert policy.allows(caller("reader"), DECLARED["volume:get"])


def test_a_role_of_the_operators_own(tmp_path: Path) -> None:
    text = '"team": "role:storage"\n"volume_extension:services:index": "rule:team or rule:admin_api"\n'
    policy = policy_of(tmp_path, text)
    assert policy.allows(caller("storage"), DECLARED["volume_extension:services:index"])
    assert policy.allows(caller("admin"), DECLARED["volume_extension:services:index"])
    assert not policy.allows(caller("member"), DECLARED["volume_extension:services:index"])


def test_who_is_an_administrator_is_a_rule(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, '"context_is_admin": "role:boss"\n')
    assert policy.begin(caller("boss")) is True
    assert policy.begin(caller("member")) is False
    boss = Context(user_id="u", project_id="p", roles=frozenset({"boss"}), admin=True)
    assert boss.is_admin
    assert policy.allows(boss, DECLARED["volume:force_delete"])


def test_without_a_rule_for_administrators_the_role_decides(plain: Policy) -> None:
    assert plain.begin(caller("admin")) is None
    assert caller("admin").is_admin
    assert not caller("member").is_admin


def test_names_of_earlier_releases_hold_for_what_they_were_divided_into(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, '"volume_extension:types_manage": "role:storage"\n')
    for name in EARLIER["volume_extension:types_manage"]:
        assert policy.allows(caller("storage"), DECLARED[name])
        assert not policy.allows(caller("member"), DECLARED[name])


def test_rules_of_what_is_not_built_may_be_in_a_file(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, '"backup:create": "role:admin"\n"group:create": "!"\n"default": "!"\n')
    assert ("backup:create", "role:admin", "file") in list(policy.rules())


def test_a_rule_may_look_at_the_resource(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, '"volume:delete": "user_id:%(user_id)s"\n')
    wanted = DECLARED["volume:delete"]
    assert policy.allows(caller("member"), wanted, lambda: {"user_id": "u", "project_id": "p"})
    assert not policy.allows(caller("member"), wanted, lambda: {"user_id": "v", "project_id": "p"})


def test_a_rule_that_does_not_look_at_the_resource_costs_no_look(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, '"volume:delete": "role:member and project_id:%(project_id)s"\n')

    def never() -> dict[str, str]:
        raise AssertionError("the resource was looked up")

    assert policy.allows(caller("member"), DECLARED["volume:delete"], never)
    assert policy.allows(caller("member"), Rule("volume:update", "member"), never)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[not, a, table]", "a table of rule names"),
        ("volume:get: {a: b}", "a table of rule names"),
        ('"volume:get": "role:', "cannot be read"),
        ('"volume:get": "role:member and"', "'role:member and' cannot be understood"),
        ('"volume:gett": "role:member"', "perhaps 'volume:get' is meant"),
        ('"unused": "role:member"', "'unused' is no rule"),
        ('"volume:get": "rule:nowhere"', "refers to 'nowhere'"),
        ('"a": "rule:b"\n"b": "rule:a"', "refer to themselves"),
        ("\x00", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=r"policy\.yaml") as caught:
        policy_of(tmp_path, text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, "# only words\n")
    assert policy.allows(caller("member"), DECLARED["volume:create"])


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        compose.make_policy(Config({"oslo_policy": {"policy_file": "other.yaml"}}, state_dir=str(tmp_path)))


def test_a_changed_file_is_read_again_and_a_broken_one_is_not_obeyed(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, '"volume:create": "!"\n')
    wanted, path = DECLARED["volume:create"], tmp_path / "policy.yaml"

    def after(text: str | None) -> bool:
        if text is None:
            path.unlink()
        else:
            fresh = tmp_path / "new"
            fresh.write_text(text)
            os.replace(fresh, path)
        policy.begin(caller("member"))
        return policy.allows(caller("member"), wanted)

    assert not policy.allows(caller("member"), wanted)
    assert after('"volume:create": "@"\n')
    assert after('"volume:create": "rule:nowhere"\n')
    assert after(None)
    assert not after('"volume:create": "role:admin"\n')


def test_a_file_that_comes_later_is_found(tmp_path: Path, plain: Policy) -> None:
    policy = policy_of(tmp_path)
    (tmp_path / "policy.yaml").write_text('"volume:create": "!"\n')
    policy.begin(caller("member"))
    assert not policy.allows(caller("member"), DECLARED["volume:create"])
