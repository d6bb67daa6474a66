"""Two tenants never meet: every call, with the id of everything that another project has.

Whoever names what is another project's is told the same as whoever names what is not there. The cases are
made of the routes that the API declares (`tenants.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from lapilli.api.access import ADMIN, ANYONE, MEMBER, READER
from lapilli.api.resource import Route
from tests.api import tenants
from tests.api.steps import fresh, good
from tests.api.tenants import Case, key_of, nobody
from tests.service import Api, Service, until

ROUTES = list(tenants.routes())
RANK = {ANYONE: 0, READER: 1, MEMBER: 2, ADMIN: 3}
MINE, THEIRS = "member", "other"


@dataclass
class World:
    """A service with two projects that have one of everything."""

    api: Api
    own: dict[str, str]
    theirs: dict[str, str]
    untouched: list[str] = field(default_factory=list)

    def look(self) -> list[str]:
        """All that the other project sees of its own."""
        paths = [f"/v3/{each}/detail" for each in ("volumes", "snapshots", "attachments", "volume-transfers")]
        user = f"/identity/v3/users/{self.theirs['user']}/application_credentials"
        quota = f"/v3/os-quota-sets/{self.theirs['project']}?usage=True"
        paths += ["/v3/messages", "/v3/types", "/image/v2/images", user, quota]
        return [self.api.get(path, as_=THEIRS).text for path in paths]

    def call(self, case: Case, named: str, as_: str, root: str) -> httpx.Response:
        """One call, below `root`."""
        made = case.request(self.own, named)
        return self.api.request(
            case.route.method, root + made["path"], json=made["json"], version=case.version, as_=as_
        )

    def roots(self, case: Case, as_: str) -> list[str]:
        """Where a call is served: without the project, with it, and by old versions (tried as a member)."""
        if case.route.root != "/v3":
            return [case.route.root]
        project = self.api.project_id
        old = [f"/v1/{project}", f"/v2/{project}"] if case.is_old and as_ == MINE else []
        return ["/v3", f"/v3/{project}", *old]

    def told_of_others(self, text: str, *, but: str = "") -> list[str]:
        """What an answer tells of the other project, beside the word that the call named."""
        return [kind for kind, word in self.theirs.items() if word in text and word != but]


FILTERS = "AvailabilityZoneFilter,CapacityFilter,CapabilitiesFilter,SameBackendFilter,DifferentBackendFilter"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    options = {"scheduler_default_filters": FILTERS, "quota_volumes": 100}
    service = Service(tmp_path_factory.mktemp("tenants") / "state", {"DEFAULT": options})
    service.start()
    try:
        yield from _world(Api(service))
    finally:
        service.end()


def _world(api: Api) -> Iterator[World]:
    shared = {"host": _host(api), "specs": _specs(api)}
    made = World(api, {**_everything(api, MINE), **shared}, _everything(api, THEIRS))
    made.untouched = made.look()
    yield made
    if made.untouched:
        assert made.look() == made.untouched
    for each in good(api.get("/v3/volumes?all_tenants=1", as_="admin"))["volumes"]:
        _remove(api, each["id"])


def _remove(api: Api, volume_id: str) -> None:
    path = f"/v3/volumes/{volume_id}"
    rest = {"status": "available", "attach_status": "detached", "migration_status": "none"}
    api.post(f"{path}/action", {"os-reset_status": rest}, as_="admin")
    api.delete(f"{path}?cascade=True&force=True", as_="admin")


def _host(api: Api) -> str:
    def running() -> list[dict[str, Any]]:
        services = good(api.get("/v3/os-services?binary=cinder-volume", as_="admin"))["services"]
        return list(services)

    until(running)  # it answers calls before its roles have told of themselves
    (found,) = running()
    return str(found["host"])


def _specs(api: Api) -> str:
    told = {"qos_specs": {"name": fresh("specs"), "k": "v"}}
    return str(good(api.post("/v3/qos-specs", told, as_="admin"))["qos_specs"]["id"])


def _everything(api: Api, as_: str) -> dict[str, str]:
    """One of each kind that belongs to a project, by kind."""
    project = api.project_id if as_ == MINE else api.other_project_id
    name = fresh(f"{as_}s")
    found = {"name": name, "project": project, "server": nobody("server")}
    found["volume"] = _volume(api, as_, name=name, description=name, metadata={"k": name})
    told = {"snapshot": {"volume_id": found["volume"], "name": name, "metadata": {"k": name}}}
    found["snapshot"] = good(api.post("/v3/snapshots", told, as_=as_), 202)["snapshot"]["id"]
    api.wait(f"/v3/snapshots/{found['snapshot']}", "snapshot")
    attached = {"attachment": {"volume_uuid": _volume(api, as_, name=name), "instance_uuid": found["server"]}}
    found["attachment"] = good(api.post("/v3/attachments", attached, as_=as_))["attachment"]["id"]
    offered = {"transfer": {"volume_id": _volume(api, as_, name=name), "name": name}}
    found["transfer"] = good(api.post("/v3/volume-transfers", offered, as_=as_), 202)["transfer"]["id"]
    found["image"] = _image(api, as_, found["volume"], name)
    return {**found, **_failed(api, as_, project), **_identity(api, as_, name)}


def _volume(api: Api, as_: str, **body: Any) -> str:
    made = good(api.post("/v3/volumes", {"volume": {"size": 1, **body}}, as_=as_), 202)["volume"]
    api.wait(f"/v3/volumes/{made['id']}", "volume")
    return str(made["id"])


def _image(api: Api, as_: str, volume_id: str, name: str) -> str:
    path = f"/v3/volumes/{volume_id}"
    told = good(
        api.post(
            f"{path}/action",
            {"os-volume_upload_image": {"image_name": name, "disk_format": "qcow2"}},
            as_=as_,
        ),
        202,
    )
    api.wait(path, "volume", seconds=60)
    properties = {"os-set_image_metadata": {"metadata": {"k": name}}}
    good(api.post(f"{path}/action", properties, as_=as_))
    return str(told["os-volume_upload_image"]["image_id"])


def _failed(api: Api, as_: str, project: str) -> dict[str, str]:
    """A private type without back end, and what is left of the attempt to make a volume of it."""
    name = fresh(f"{as_}s-type")
    told = {
        "name": name,
        "os-volume-type-access:is_public": False,
        "extra_specs": {"volume_backend_name": "nowhere"},
    }
    kind = good(api.post("/v3/types", {"volume_type": told}, as_="admin"))["volume_type"]["id"]
    good(api.post(f"/v3/types/{kind}/action", {"addProjectAccess": {"project": project}}, as_="admin"), 202)
    answer = api.post("/v3/volumes", {"volume": {"size": 1, "volume_type": name, "name": name}}, as_=as_)
    volume = good(answer, 202)["volume"]["id"]
    api.wait(f"/v3/volumes/{volume}", "volume", "error")
    until(lambda: bool(good(api.get(f"/v3/messages?resource_uuid={volume}", as_=as_))["messages"]))
    (message,) = good(api.get(f"/v3/messages?resource_uuid={volume}", as_=as_))["messages"]
    (operation,) = good(api.get(f"/v3/operations?resource_id={volume}", as_="admin"))["operations"]
    found = {"type": kind, "type_name": name, "failed": volume, "request": message["request_id"]}
    return {**found, "message": message["id"], "operation": operation["id"]}


def _identity(api: Api, as_: str, name: str) -> dict[str, str]:
    (user,) = good(api.get("/identity/v3/users", as_=as_))["users"]
    path = f"/identity/v3/users/{user['id']}/application_credentials"
    made = good(api.post(path, {"application_credential": {"name": name}}, as_=as_), 201)
    return {"user": user["id"], "credential": made["application_credential"]["id"]}


# --- every call ------------------------------------------------------------------------------------------


def test_everything_has_a_recipe() -> None:
    for route in ROUTES:
        assert tenants.cases_of(route)
    assert {slot for route in ROUTES for case in tenants.cases_of(route) if (slot := case.slot)} == (
        tenants.OWNED - tenants.RECORDED | {"server"}
    )


@pytest.mark.parametrize("as_", ["reader", "member"])
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{key_of(route)} {route.since}")
def test_what_is_anothers_is_not_there(world: World, route: Route, as_: str) -> None:
    cases = tenants.cases_of(route)
    for root in world.roots(cases[0], as_):
        for case in cases:
            if case.slot:
                _alike(world, case, as_, root)
        if route.method == "GET" or RANK[route.rule.role] > RANK[as_]:
            _tells_nothing(world, cases[0], as_, root)


def _alike(world: World, case: Case, as_: str, root: str) -> None:
    """The answer is the one for what does not exist, and tells nothing else."""
    theirs, none = world.theirs[case.slot], nobody(case.slot)
    answer, otherwise = (world.call(case, named, as_, root) for named in (theirs, none))
    told = f"{root}{case.path} {case.slot} {case.query} as {as_}: {answer.status_code} {answer.text}"
    assert not world.told_of_others(answer.text, but=theirs), told
    if tenants.WRONG_KEY.match(key_of(case.route)) and as_ == "member":
        assert (answer.status_code, otherwise.status_code) == (400, 404), told
        return
    masked = [each.text.replace(word, tenants.MASK) for each, word in ((answer, theirs), (otherwise, none))]
    assert masked[0] == masked[1], told
    assert answer.status_code == otherwise.status_code, told
    headers = [each.headers.keys() - {"connection"} for each in (answer, otherwise)]
    assert headers[0] == headers[1], told
    assert answer.status_code in _expected(case, as_, root), told


def _expected(case: Case, as_: str, root: str) -> set[int]:
    """What a call may answer that names what the caller must not see."""
    key = key_of(case.route)
    if RANK[case.route.rule.role] > RANK[as_]:
        return {403, 404}
    if "{user_id}" in key and (case.slot == "user" or as_ == "reader"):  # the user named is the member
        return {403, 404}
    if case.query:
        if case.listed:
            return {200, 400}  # 400: nobody but administrators may ask for it
        old = root.startswith("/v1") or "os-volume-transfer" in key  # whose lists have no markers
        return {200, 404} if old else {404}
    if key.startswith("GET /os-quota-sets/"):
        return {403}  # whose it is stands in the path, so that nothing is looked up
    return tenants.STATUSES.get((key, case.slot), {404})


def _tells_nothing(world: World, case: Case, as_: str, root: str) -> None:
    """A call that names only the caller's own tells nothing of others."""
    answer = world.call(case, world.own.get(case.slot, ""), as_, root)
    told = f"{root}{case.path} as {as_}: {answer.status_code} {answer.text}"
    assert answer.status_code < 500, told
    assert not world.told_of_others(answer.text), told
    if RANK[case.route.rule.role] > RANK[as_]:
        assert answer.status_code in {403, 404}, told


# --- what is made, counted and sorted --------------------------------------------------------------------


@pytest.mark.parametrize("as_", ["reader", "member"])
@pytest.mark.parametrize(
    "collection", ["volumes", "snapshots", "attachments", "volume-transfers", "messages"]
)
def test_lists_and_counts_are_ones_own(world: World, collection: str, as_: str) -> None:
    key = collection.rpartition("-")[2]
    counted = {"with_count": "true"} if collection in ("volumes", "snapshots") else {}
    own = good(world.api.get(f"/v3/{collection}", params=counted, as_=as_))
    every = good(world.api.get(f"/v3/{collection}", params={**counted, "all_tenants": "1"}, as_=as_))
    assert own == every
    assert own[key]
    assert own.get("count", len(own[key])) == len(own[key])


def test_totals_are_ones_own(world: World) -> None:
    number = len(good(world.api.get("/v3/volumes"))["volumes"])
    for query in ("", "?all_tenants=1"):
        told = good(world.api.get(f"/v3/volumes/summary{query}"))["volume-summary"]
        assert told["total_count"] == number
        assert set(told["metadata"]) == {"k"}
    for query in ("", f"?project_id={world.theirs['project']}"):
        absolute = good(world.api.get(f"/v3/limits{query}"))["limits"]["absolute"]
        assert absolute["totalVolumesUsed"] == number


def test_nobody_sorts_by_what_he_may_not_see(world: World) -> None:
    for key in ("host", "provider_id", "cluster_name"):
        assert world.api.get(f"/v3/volumes?sort={key}:asc").status_code == 400
        assert world.api.get(f"/v3/volumes?sort_key={key}").status_code == 400
        good(world.api.get(f"/v3/volumes?sort={key}:asc", as_="admin"))
    assert world.api.get("/v3/attachments?sort=attached_host").status_code == 400
    assert world.api.get("/v3/volume-transfers?sort=key_hash", as_="admin").status_code == 400


@pytest.mark.parametrize("hint", ["same_host", "different_host"])
def test_hints_do_not_tell_where_anothers_volume_lives(world: World, hint: str) -> None:
    ends = []
    for named in (world.theirs["volume"], nobody("volume")):
        told = {"volume": {"size": 1}, "OS-SCH-HNT:scheduler_hints": {hint: [named]}}
        path = f"/v3/volumes/{good(world.api.post('/v3/volumes', told), 202)['volume']['id']}"
        until(lambda path=path: good(world.api.get(path))["volume"]["status"] in ("available", "error"))
        shown = good(world.api.get(path, headers={"Lapilli-Extensions": "fault"}))["volume"]
        why = str(shown["fault"]).replace(named, tenants.MASK)
        query = f"/v3/messages?resource_uuid={shown['id']}"
        messages = [each["user_message"] for each in good(world.api.get(query))["messages"]]
        ends.append((shown["status"], why, messages))
        _remove(world.api, shown["id"])
    assert ends[0] == ends[1]
    assert ends[0][0] == ("error" if hint == "same_host" else "available")


def test_a_key_of_another_project_is_free(world: World) -> None:
    """An Idempotency-Key leads to nothing that somebody else has made with it."""
    told = {"volume": {"size": 1, "name": fresh("key")}}
    key = {"Idempotency-Key": fresh("key")}
    theirs, own = (world.api.post("/v3/volumes", told, as_=as_, headers=key) for as_ in (THEIRS, MINE))
    made = [good(each, 202)["volume"]["id"] for each in (theirs, own)]
    assert made[0] != made[1]
    assert "Idempotent-Replayed" not in own.headers
    for each in made:
        world.api.wait(f"/v3/volumes/{each}", "volume")
        _remove(world.api, each)
        world.api.wait_gone(f"/v3/volumes/{each}")


def test_a_log_in_for_another_project_is_refused_like_any(world: World) -> None:
    user = {"name": f"member-{world.api.mark}", "password": "secret", "domain": {"id": "default"}}
    told = []
    for project in (world.theirs["project"], nobody("project")):
        identity = {"methods": ["password"], "password": {"user": user}}
        auth = {"identity": identity, "scope": {"project": {"id": project}}}
        answer = world.api.post("/identity/v3/auth/tokens", {"auth": auth}, as_=None)
        told.append((answer.status_code, answer.text))
    assert told[0] == told[1]
    assert told[0][0] == 401


# --- paths and administrators ----------------------------------------------------------------------------


def test_a_project_in_the_path_is_the_callers(world: World) -> None:
    """Another one is refused before anything is looked up, also to an administrator."""
    for route in ROUTES:
        if route.root != "/v3":
            continue
        case = tenants.cases_of(route)[0]
        for as_ in ("member", "admin"):
            named = world.theirs.get(case.slot, "")
            theirs, none = (
                world.call(case, named, as_, f"/v3/{project}")
                for project in (world.api.other_project_id, nobody("project"))
            )
            assert (theirs.status_code, theirs.text) == (400, none.text), key_of(route)
            assert not world.told_of_others(theirs.text)


def test_an_administrator_may_see_all(world: World) -> None:
    """Whatever is read; that is what upstream's rules say."""
    seen = set()
    for route in ROUTES:
        for case in tenants.cases_of(route):
            if route.method == "GET" and case.slot and not case.query and route.root == "/v3":
                answer = world.call(case, world.theirs[case.slot], "admin", "/v3")
                # nobody has set any
                empty = any(word in route.path for word in ("default-types", "encryption", "extra_specs/"))
                assert answer.status_code in {200, 404 if empty else 200}, f"{key_of(route)}: {answer.text}"
                seen.add(case.slot)
    assert seen >= {"volume", "snapshot", "attachment", "transfer", "message", "type", "operation"}


def test_an_administrator_may_not_break_it(world: World) -> None:
    """Whatever is changed, the answer is one of the API's. After this the other project is not as it was."""
    assert world.look() == world.untouched
    world.untouched = []
    last = ("DELETE", "os-force_delete", "os-unmanage", "abandon", "accept")
    for route in sorted(ROUTES, key=lambda each: any(word in key_of(each) for word in last)):
        for case in tenants.cases_of(route):
            if case.slot and route.method != "GET":
                answer = world.call(case, world.theirs[case.slot], "admin", route.root)
                assert answer.status_code in {200, 201, 202, 204, 400, 403, 404, 409}, (
                    f"{key_of(route)} {case.slot}: {answer.status_code} {answer.text}"
                )
