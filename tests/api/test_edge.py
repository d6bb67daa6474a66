"""The edge itself: discovery, versions, URLs, media types, errors, and the description."""

from __future__ import annotations

import base64
import http.client
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.steps import a_volume
from tests.service import Api, Service

REQUEST_ID = re.compile(r"req-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.fixture
def volume(api: Any) -> Iterator[dict[str, Any]]:
    """An available volume of the member's project."""
    with a_volume(api) as made:
        yield made


def fault(answer: httpx.Response, status: int, key: str) -> str:
    """The message of a fault of the given status and key."""
    assert answer.status_code == status, answer.text
    told = answer.json()
    assert list(told) == [key]
    assert told[key]["code"] == status
    assert isinstance(told[key]["message"], str)
    return str(told[key]["message"])


# --- discovery -------------------------------------------------------------------------------------------


def test_root_lists_versions_without_credentials(api: Any) -> None:
    answer = httpx.get(f"{api.service.url}/")
    assert answer.status_code == 300
    version = answer.json()["versions"][-1]
    assert version["id"] == "v3.0"
    assert version["status"] == "CURRENT"
    assert (version["min_version"], version["version"]) == ("3.0", "3.71")
    assert version["updated"] == "2023-08-31T00:00:00Z"
    own = [link["href"] for link in version["links"] if link["rel"] == "self"]
    assert own == [f"{api.service.url}/v3/"]
    assert version["media-types"] == [
        {"base": "application/json", "type": "application/vnd.openstack.volume+json;version=3"}
    ]


def test_v3_redirects_to_its_document(api: Any) -> None:
    answer = httpx.get(f"{api.service.url}/v3", follow_redirects=False)
    assert answer.status_code == 302
    assert answer.headers["location"] == f"{api.service.url}/v3/"
    assert api.get("/v3/").json()["versions"][0]["version"] == "3.71"


@pytest.mark.parametrize("path", ["/v3/", "/v3/volumes", "/v3/nonsense"])
def test_v3_wants_credentials(api: Any, path: str) -> None:
    answer = httpx.get(api.service.url + path)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == 401
    assert answer.json()["error"]["title"] == "Unauthorized"
    assert answer.headers["www-authenticate"]


def test_healthcheck_is_open(api: Any) -> None:
    answer = httpx.get(f"{api.service.url}/healthcheck")
    assert (answer.status_code, answer.text) == (200, "OK")


# --- microversions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "granted"),
    [
        (None, "3.0"),
        ("volume 3.0", "3.0"),
        ("volume 3.71", "3.71"),
        ("volume latest", "3.71"),
        ("compute 2.1, volume 3.27", "3.27"),
    ],
)
def test_version_is_negotiated(api: Any, header: str | None, granted: str) -> None:
    headers = {"OpenStack-API-Version": header} if header else {}
    answer = api.get("/v3/volumes", version=None, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["openstack-api-version"] == f"volume {granted}"
    assert answer.headers["vary"] == "OpenStack-API-Version"


@pytest.mark.parametrize(
    "header", ["compute 2.1", "volume", "volume x", "volume 3", "volume 3.x", "volume 3.1 2", "volume 3.01"]
)
def test_malformed_version_is_refused(api: Any, header: str) -> None:
    answer = api.get("/v3/volumes", version=None, headers={"OpenStack-API-Version": header})
    fault(answer, 400, "badRequest")


@pytest.mark.parametrize("version", ["3.72", "2.0", "4.0", "3.999999"])
def test_version_out_of_range(api: Any, version: str) -> None:
    message = fault(api.get("/v3/volumes", version=version), 406, "computeFault")
    assert "3.71" in message


def test_call_that_the_version_lacks(api: Any) -> None:
    fault(api.get("/v3/attachments", version="3.26"), 404, "itemNotFound")
    assert api.get("/v3/attachments", version="3.27").status_code == 200


# --- request ids -----------------------------------------------------------------------------------------


def test_answers_carry_a_request_id(api: Any) -> None:
    for path in ("/v3/volumes", "/v3/volumes/unknown", "/nowhere", "/"):
        answer = api.get(path)
        assert REQUEST_ID.fullmatch(answer.headers["x-openstack-request-id"])
        assert answer.headers["x-compute-request-id"] == answer.headers["x-openstack-request-id"]


# --- URLs ------------------------------------------------------------------------------------------------


def test_project_segment_is_optional_at_every_version(api: Any) -> None:
    for version in ("3.0", "3.66", "3.67", "3.71"):
        assert api.get("/v3/volumes", version=version).status_code == 200
        assert api.get(f"/v3/{api.project_id}/volumes", version=version).status_code == 200


def test_project_segment_appears_in_links(api: Any, volume: dict[str, Any]) -> None:
    path = f"volumes/{volume['id']}"
    with_it = api.get(f"/v3/{api.project_id}/{path}").json()["volume"]["links"]
    assert with_it == [
        {"rel": "self", "href": f"{api.service.url}/v3/{api.project_id}/{path}"},
        {"rel": "bookmark", "href": f"{api.service.url}/{api.project_id}/{path}"},
    ]
    without = api.get(f"/v3/{path}").json()["volume"]["links"]
    assert [link["href"] for link in without] == [f"{api.service.url}/v3/{path}", f"{api.service.url}/{path}"]


@pytest.mark.parametrize("as_", ["member", "admin"])
def test_other_project_in_url_is_refused(api: Any, as_: str) -> None:
    other = uuid.uuid4().hex
    fault(api.get(f"/v3/{other}/volumes", as_=as_), 400, "badRequest")


def test_json_suffix_is_tolerated(api: Any, volume: dict[str, Any]) -> None:
    assert "volumes" in api.get("/v3/volumes.json").json()
    assert "volumes" in api.get("/v3/volumes/detail.json").json()
    assert api.get(f"/v3/volumes/{volume['id']}.json").json()["volume"]["id"] == volume["id"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nowhere"),
        ("GET", "/v3/nowhere"),
        ("GET", "/v3/volumes/"),
        ("GET", "/v3/volumes/x/y/z"),
        ("PATCH", "/v3/volumes"),
        ("PUT", "/v3/volumes"),
        ("POST", "/v3/volumes/x"),
        ("GET", "/v3/volumes/x/action"),
        ("DELETE", "/v3/volumes"),
        ("POST", "/healthcheck"),
    ],
)
def test_unknown_route_or_verb_is_a_plain_404(api: Any, method: str, path: str) -> None:
    answer = api.request(method, path)
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/plain")


def test_usual_verb_that_a_resource_lacks(api: Any) -> None:
    fault(api.put("/v3/messages/x", {}, version="3.71"), 404, "itemNotFound")


# --- bodies ----------------------------------------------------------------------------------------------

_CREATE = b'{"volume": {"size": 1, "snapshot_id": "00000000-0000-4000-8000-000000000000"}}'


def test_vendor_media_type_is_accepted(api: Any) -> None:
    kind = "application/vnd.openstack.volume+json; charset=utf-8"
    answer = api.post("/v3/volumes", content=_CREATE, headers={"Content-Type": kind})
    fault(answer, 404, "itemNotFound")  # it has been read: the snapshot is what is missing


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "application/x-www-form-urlencoded"])
def test_other_media_types_are_refused(api: Any, kind: str) -> None:
    answer = api.post("/v3/volumes", content=_CREATE, headers={"Content-Type": kind})
    fault(answer, 415, "badMediaType")


def test_body_without_content_type_is_no_body(api: Any) -> None:
    message = fault(api.post("/v3/volumes", content=_CREATE), 400, "badRequest")
    assert "body" in message


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"not json",
        b'{"volume": NaN}',
        b"\xff\xfe",
        b'{"volume": {"size": 1}} x',
        b"[]",
        b"null",
        b'"text"',
        b"[" * 100000,
        b'{"volume": {"size": %s}}' % (b"9" * 5000),
        b'{"volume": {"size": 1e400}}',
        b'{"volume": {"size": "%s"}}' % (b"9" * 5000),
        b'{"volume": {"size": 1, "name": "\\ud800"}}',
        b'{"volume": {"size": 1, "name": "a\\u0000b"}}',
    ],
)
def test_bad_bodies_are_refused(api: Any, raw: bytes) -> None:
    answer = api.post("/v3/volumes", content=raw, headers={"Content-Type": "application/json"})
    fault(answer, 400, "badRequest")


def test_empty_body_where_one_is_needed(api: Any) -> None:
    fault(api.post("/v3/volumes"), 400, "badRequest")


def test_body_size_limit(api: Any) -> None:
    filler = b'{"volume": {"size": 0, "description": "%s"}}'
    fits = filler % (b"x" * (114688 - len(filler) + 2))
    assert len(fits) == 114688
    headers = {"Content-Type": "application/json"}
    fault(api.post("/v3/volumes", content=fits, headers=headers), 400, "badRequest")
    fault(api.post("/v3/volumes", content=fits + b" ", headers=headers), 413, "overLimit")


def test_chunked_bodies(api: Any) -> None:
    headers = {"Content-Type": "application/json"}
    answer = api.post("/v3/volumes", content=iter([_CREATE[:20], _CREATE[20:]]), headers=headers)
    fault(answer, 404, "itemNotFound")
    large = iter([b'{"volume": {"size": 1, "name": "', b"x" * 114688, b'"}}'])
    fault(api.post("/v3/volumes", content=large, headers=headers), 413, "overLimit")


@pytest.mark.parametrize(
    ("path", "status"), [("/v3/volumes", 404), (f"/v3/{'0' * 32}/volumes", 400), ("/nowhere", 404)]
)
def test_a_connection_outlives_a_refusal_that_came_before_the_body(api: Any, path: str, status: int) -> None:
    host, _, port = api.service.url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    user = base64.b64encode(f"member-{api.mark}:secret".encode()).decode()
    headers = {"Authorization": f"Basic {user}", "Content-Type": "application/json"}
    connection.connect()
    connection.auto_open = 0  # another connection would hide that this one was closed
    for _ in range(2):
        connection.putrequest("POST", path)
        for name, value in {**headers, "Content-Length": str(len(_CREATE))}.items():
            connection.putheader(name, value)
        connection.endheaders()
        time.sleep(0.3)  # what could be told without the body, could be told by now
        connection.send(_CREATE)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
    connection.close()


def test_messages_of_bad_input_are_short(api: Any) -> None:
    answer = api.post("/v3/volumes", {"volume": {"size": 1, "name": "x" * 100000}})
    assert len(fault(answer, 400, "badRequest")) < 600


# --- query parameters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "limit=-1",
        "limit=x",
        "limit=",
        "limit=1.5",
        "limit=" + "9" * 5000,
        "offset=-1",
        "offset=x",
        "offset=2147483648",
        "sort=nothing",
        "sort=name:up",
        "sort=name&sort_key=name",
        "sort=name&sort_dir=asc",
        "sort_key=nothing",
        "sort_dir=up",
        "all_tenants=perhaps",
        "name=%00",
        "n%C3%A4me=x",
    ],
)
def test_bad_list_parameters(api: Any, query: str) -> None:
    fault(api.get(f"/v3/volumes?{query}", version="3.71"), 400, "badRequest")


@pytest.mark.parametrize(
    "query",
    [
        "metadata={'a%5Cx00b':'c'}",
        "metadata={'%5Cud800':'c'}",
        "metadata={'a':'%5Cud800'}",
        "metadata={'a':'%5Cx00'}",
        "name=['%5Cud800','x']",
        "metadata=" + "-" * 15000 + "1",
    ],
)
def test_filters_that_no_value_can_meet(api: Any, volume: dict[str, Any], query: str) -> None:
    answer = api.get(f"/v3/volumes?{query}", version="3.71")
    assert (answer.status_code, answer.json()) == (200, {"volumes": []})


def test_filters_of_more_conditions_than_a_database_takes(api: Any) -> None:
    times = ",".join(["gt:2020-01-01T00:00:00"] * 1500)
    fault(api.get(f"/v3/volumes?created_at={times}", version="3.71"), 400, "badRequest")
    pairs = ",".join(f"{number}:1" for number in range(1500))
    fault(api.get(f"/v3/volumes?metadata={{{pairs}}}", version="3.71"), 400, "badRequest")


def test_a_sort_key_named_again_changes_nothing(api: Any, volume: dict[str, Any]) -> None:
    keys = ",".join(["name:asc"] * 3000)
    answer = api.get(f"/v3/volumes?sort={keys}", version="3.71")
    assert [each["id"] for each in answer.json()["volumes"]] == [volume["id"]]


def test_unknown_marker(api: Any) -> None:
    fault(api.get(f"/v3/volumes?marker={uuid.uuid4()}"), 404, "itemNotFound")


# --- the description -------------------------------------------------------------------------------------


def test_description_follows_the_version(api: Any) -> None:
    old = httpx.get(f"{api.service.url}/openapi.json?version=3.26").json()
    new = httpx.get(f"{api.service.url}/openapi.json?version=3.27").json()
    assert old["openapi"] == new["openapi"] == "3.1.0"
    assert (old["info"]["version"], new["info"]["version"]) == ("3.26", "3.27")
    assert "/v3/attachments" not in old["paths"]
    assert "post" in new["paths"]["/v3/attachments"]
    create = new["paths"]["/v3/volumes"]["post"]
    schema = create["requestBody"]["content"]["application/json"]["schema"]
    assert "group_id" in schema["properties"]["volume"]["properties"]
    assert "backup_id" not in schema["properties"]["volume"]["properties"]
    assert "202" in create["responses"]
    shown = new["paths"]["/v3/volumes/{volume_id}"]["get"]["responses"]["200"]
    assert "volume" in shown["content"]["application/json"]["schema"]["properties"]


def test_description_defaults_to_the_newest(api: Any) -> None:
    assert httpx.get(f"{api.service.url}/openapi.json").json()["info"]["version"] == "3.71"
    fault(httpx.get(f"{api.service.url}/openapi.json?version=3.72"), 406, "computeFault")
    fault(httpx.get(f"{api.service.url}/openapi.json?version=x"), 400, "badRequest")


def test_description_holds_together(api: Any) -> None:
    document = httpx.get(f"{api.service.url}/openapi.json").json()
    for path, operations in document["paths"].items():
        named = set(re.findall(r"\{(\w+)\}", path))
        for operation in operations.values():
            inside = {each["name"] for each in operation["parameters"] if each.get("in") == "path"}
            assert inside == named, path
    assert set(document["paths"]["/v3/volumes"]) == {"get", "post"}
    actions = document["paths"]["/v3/volumes/{volume_id}/action"]["post"]["requestBody"]
    choices = actions["content"]["application/json"]["schema"]["oneOf"]
    assert {"os-reserve", "os-extend"} <= {each["required"][0] for each in choices}


def test_description_names_every_operation_once(api: Any) -> None:
    paths = httpx.get(f"{api.service.url}/openapi.json").json()["paths"]
    names = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert len(names) == len(set(names))


# --- options ---------------------------------------------------------------------------------------------


def test_options_of_the_edge(own_service: Service, tmp_path: Path) -> None:
    filters = tmp_path / "filters.json"
    filters.write_text('{"volume": ["name~"]}')
    disabled = tmp_path / "disabled"
    own_service.config = {
        "DEFAULT": {
            "public_endpoint": "https://cloud.example/volume/v3/",
            "resource_query_filters_file": str(filters),
            "osapi_max_limit": 2,
            "quota_volumes": 3,
        },
        "oslo_middleware": {"max_request_body_size": 300},
        "healthcheck": {"disable_by_file_path": str(disabled)},
    }
    own_service.start()
    api = Api(own_service)
    made = [api.volume(name=f"edge-{number}") for number in range(3)]
    self_link = made[0]["links"][0]["href"]
    assert self_link == f"https://cloud.example/volume/v3/volumes/{made[0]['id']}"
    document = api.get("/v3/").json()["versions"][0]
    assert document["links"][1]["href"] == "https://cloud.example/volume/v3/"
    listed = api.get("/v3/volumes?limit=100").json()
    assert len(listed["volumes"]) == 2
    assert listed["volumes_links"][0]["href"].startswith("https://cloud.example/volume/v3/volumes?")
    assert len(api.get("/v3/volumes?name~=edge-1").json()["volumes"]) == 1
    assert len(api.get("/v3/volumes?name=edge-1").json()["volumes"]) == 1
    fault(api.get("/v3/volumes?status=available"), 400, "badRequest")
    fault(api.get("/v3/volumes?name~=edge", version="3.33"), 400, "badRequest")
    fault(api.post("/v3/volumes", {"volume": {"size": 1, "name": "x" * 300}}), 413, "overLimit")
    disabled.touch()
    assert httpx.get(f"{own_service.url}/healthcheck").status_code == 503
