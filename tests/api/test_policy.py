"""A policy file over the wire, and oslo.policy's own tools over ours."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service import Api, Service

BIN = Path(sys.executable).parent
SAMPLE = Path(__file__).parents[2] / "etc" / "policy.yaml.sample"
RULES = """\
"volume:get_all": "role:admin"
"volume:delete": "rule:admin_api or user_id:%(user_id)s"
"volume_extension:volume_host_attribute": "rule:xena_system_admin_or_project_reader"
"volume_extension:volume_tenant_attribute": "!"
"volume:multiattach": "role:admin"
"volume:create_snapshot": "!"
"""


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a policy file beside its configuration."""
    made = Service(tmp_path_factory.mktemp("ruled"))
    made.config = {"filepool": {"target_helper": "local"}}
    (made.state_dir / "policy.yaml").write_text(RULES)
    made.start()
    yield made
    made.end()


def test_a_file_hides_calls_and_shows_fields(ruled: Service) -> None:
    api = Api(ruled)
    volume = api.volume()
    assert api.get("/v3/volumes").status_code == 403
    assert api.get("/v3/volumes", as_="admin").status_code == 200
    refused = api.post("/v3/snapshots", {"snapshot": {"volume_id": volume["id"]}})
    assert (refused.status_code, "volume:create_snapshot" in refused.text) == (403, True)
    shown = api.get(f"/v3/volumes/{volume['id']}").json()["volume"]
    assert "os-vol-host-attr:host" in shown
    assert "os-vol-tenant-attr:tenant_id" not in shown


def test_a_rule_about_the_owner_is_judged_by_the_resource(ruled: Service) -> None:
    api = Api(ruled)
    ruled.add_user(f"second-{api.mark}", api.project_id, "member")
    path = f"/v3/volumes/{api.volume()['id']}"
    assert api.delete(path, as_="second").status_code == 403
    assert api.delete(path, as_="other").status_code == 404
    assert api.delete(path).status_code == 202


def test_several_servers_on_a_volume_are_a_matter_of_policy(ruled: Service) -> None:
    api = Api(ruled)
    kind = {"name": f"shared-{api.mark}", "extra_specs": {"multiattach": "<is> True"}}
    assert api.post("/v3/types", {"volume_type": kind}, as_="admin").status_code == 200
    body = {"volume": {"size": 1, "volume_type": kind["name"]}}
    refused = api.post("/v3/volumes", body)
    assert (refused.status_code, "volume:multiattach" in refused.text) == (403, True)
    assert api.post("/v3/volumes", body, as_="admin").status_code == 202


def test_a_refusal_tells_nothing_about_other_projects(api: Api) -> None:
    """403 for what the caller can find, 404 for what is not there or is another project's."""
    path = f"/v3/volumes/{api.volume()['id']}"
    assert api.delete(path, as_="reader").status_code == 403
    assert api.delete(path, as_="other").status_code == 404
    assert api.delete(f"/v3/volumes/{uuid.uuid4()}", as_="reader").status_code == 404
    api.service.add_user(f"looker-{api.mark}", api.other_project_id, "reader")
    assert api.delete(path, as_="looker").status_code == 404
    reset = {"os-reset_status": {"status": "error"}}
    assert api.post(f"{path}/action", reset).status_code == 403
    assert api.post(f"{path}/action", reset, as_="other").status_code == 404


def test_a_broken_file_stops_the_start(own_service: Service) -> None:
    own_service.state_dir.mkdir(parents=True)
    (own_service.state_dir / "policy.yaml").write_text('"volume:creat": "role:member"\n')
    done = subprocess.run(
        [*own_service.command("serve"), "--listen", f"127.0.0.1:{own_service.port}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("lapilli: ")
    assert "perhaps 'volume:create' is meant" in done.stderr
    assert done.stderr.count("\n") == 1


def told(service: Service, *words: str) -> subprocess.CompletedProcess[str]:
    """What `lapilli policy` says."""
    return subprocess.run(service.command("policy", *words), capture_output=True, text=True, timeout=60)


def test_the_command_tells_who_passes_which_rule(ruled: Service) -> None:
    listed = told(ruled, "list").stdout
    assert "volume:get_all  role:admin  (file)" in listed
    assert "volume:get  rule:xena_system_admin_or_project_reader  (default)" in listed
    assert "backup:create  rule:xena_system_admin_or_project_member  (default; no call yet)" in listed
    passed = told(ruled, "check", "volume:delete", "--roles", "member", "--user", "ann")
    assert (passed.returncode, passed.stdout[:7]) == (0, "allowed")
    others = told(ruled, "check", "volume:delete", "--roles", "member", "--target", "user_id=bob")
    assert (others.returncode, others.stdout[:7]) == (1, "refused")
    assert told(ruled, "check", "volume:force_delete", "--roles", "Admin", "--system").returncode == 0
    wrong = told(ruled, "check", "volume:dele")
    assert (wrong.returncode, "volume:delete" in wrong.stderr) == (1, True)
    every = told(ruled, "check", "--roles", "reader").stdout
    assert "allowed  volume:get  " in every
    assert "refused  volume:create  " in every


def test_oslo_policys_tools_find_the_sample_in_order(tmp_path: Path) -> None:
    text = SAMPLE.read_text()
    rules = "".join(line[1:] + "\n" for line in text.splitlines() if line.startswith('#"'))
    assert rules.count("\n") > 161
    path = tmp_path / "policy.yaml"
    path.write_text(rules)
    (tmp_path / "lapilli.conf").write_text(f"[oslo_policy]\npolicy_file = {path}\n")
    words = ("--namespace", "lapilli", "--config-file", str(tmp_path / "lapilli.conf"))
    valid = subprocess.run([BIN / "oslopolicy-validator", *words], capture_output=True, text=True, timeout=60)
    assert (valid.returncode, valid.stdout) == (0, ""), valid.stdout + valid.stderr
    member = {"id": "u", "name": "u", "domain": {"id": "d"}}
    access = {
        "token": {"roles": [{"name": "member"}, {"name": "reader"}], "user": member, "project": {"id": "p"}}
    }
    (tmp_path / "access.json").write_text(json.dumps(access))
    words = ("--policy", str(path), "--access", str(tmp_path / "access.json"))
    checked = subprocess.run([BIN / "oslopolicy-checker", *words], capture_output=True, text=True, timeout=60)
    lines = checked.stdout.splitlines()
    assert checked.returncode == 0
    assert {"passed: volume:create", "passed: volume:get", "failed: volume:force_delete"} <= set(lines)
    assert not [line for line in lines if line.startswith("exception")]
