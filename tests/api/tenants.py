"""What a call needs to name things of another project: recipes for paths, queries and bodies.

Cases are made of the routes that the API declares. A route, a path variable, a query parameter or an action
without a recipe is an error, so that whatever is added is tried too.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from lapilli.api.resource import Route, scan
from lapilli.api.versions import MAXIMUM
from lapilli.facades.v2 import RESOURCES as OLD_RESOURCES

CONNECTOR = {"initiator": "iqn.1994-05.org.example:tenants", "ip": "127.0.0.1", "host": "tenants"}
MASK = "(the id)"

# what a word in a recipe stands for; each of these belongs to a project
OWNED = frozenset(
    """volume snapshot attachment transfer message type operation credential user project image request
    server name type_name""".split()
)

VARIABLES = {
    "volume_id": "<volume>",
    "snapshot_id": "<snapshot>",
    "attachment_id": "<attachment>",
    "transfer_id": "<transfer>",
    "message_id": "<message>",
    "type_id": "<type>",
    "operation_id": "<operation>",
    "credential_id": "<credential>",
    "user_id": "<user>",
    "project_id": "<project>",
    "target": "<project>",
    "id": "<image>",
    # of nobody's project
    "specs_id": "<specs>",
    "host": "<host>",
    "name": "default",
    "key": "k",
    "encryption_id": "any",
    "alias": "backups",
    "domain_id": "default",
}

QUERIES = {
    "volume_id": "<volume>",
    "resource_uuid": "<volume>",
    "resource_id": "<volume>",
    "request_id": "<request>",
    "instance_id": "<server>",
    "project_id": "<project>",
    "tenant_id": "<project>",
    "vol_type_id": "<type>",
    "volume_type": "<type_name>",
    "name": "<name>",
    "id": "<specs>",
}
PLAIN_QUERIES = frozenset(
    """limit offset sort sort_key sort_dir with_count all_tenants detail status metadata consumes_quota
    attach_status nocatalog domain_id force bootable migration_status availability_zone group_id size
    created_at updated_at cascade zone resource_type event_id message_level state kind binary resource
    consumer usage is_public extra_specs host cluster is_up disabled num_hosts num_down_hosts""".split()
)
MARKERS = {
    "volumes": "<volume>",
    "snapshots": "<snapshot>",
    "attachments": "<attachment>",
    "volume-transfers": "<transfer>",
    "os-volume-transfer": "<transfer>",
    "messages": "<message>",
    "types": "<type>",
    "operations": "<operation>",
    "qos-specs": "<specs>",
    "manageable_volumes": "<volume>",
    "os-volume-manage": "<volume>",
    "manageable_snapshots": "<snapshot>",
    "os-snapshot-manage": "<snapshot>",
    "os-services": "",
    "clusters": "",
    "default-types": "",
}
# what a list is asked beside what it declares
LIST_QUERIES = {
    "project_id": "<project>",
    "user_id": "<user>",
    "id": "<volume>",
    "metadata": "{'k':'<name>'}",
}

_NAMES = {"name": "new", "description": "new"}
_SPECS = {"extra_specs": {"k": "v"}}
_ENCRYPTION = {"encryption": {"provider": "luks", "control_location": "front-end"}}
_HOST = {"host": "<host>"}
_MANAGED = {"volume": {"host": "<host>#filepool", "ref": "nothing", "volume_type": "<type>"}}
_MANAGED_SNAPSHOT = {"snapshot": {"volume_id": "<volume>", "ref": "nothing"}}
_QUOTA = {"quota_set": {"volumes": 11}}

BODIES: dict[str, Any] = {
    "POST /attachments": {"attachment": {"volume_uuid": "<volume>", "instance_uuid": "<server>"}},
    "PUT /attachments/{attachment_id}": {"attachment": {"connector": CONNECTOR}},
    "POST /attachments/{attachment_id}/action os-complete": None,
    "PUT /default-types/{target}": {"default_type": {"volume_type": "<type>"}},
    "PUT /os-hosts/{host}": {"status": "enable"},
    "POST /v3/users/{user_id}/application_credentials": {"application_credential": {"name": "robot"}},
    "PUT /os-services/set-log": {"level": "INFO"},
    "PUT /os-services/get-log": {},
    "POST /manageable_volumes": _MANAGED,
    "POST /os-volume-manage": _MANAGED,
    "POST /manageable_snapshots": _MANAGED_SNAPSHOT,
    "POST /os-snapshot-manage": _MANAGED_SNAPSHOT,
    "POST /operations/{operation_id}/action retry": None,
    "POST /operations/{operation_id}/action abandon": None,
    "PUT /os-services/enable": {**_HOST, "binary": "cinder-volume"},
    "PUT /os-services/disable": {**_HOST, "binary": "cinder-volume"},
    "PUT /os-services/disable-log-reason": {**_HOST, "binary": "cinder-volume", "disabled_reason": "r"},
    "PUT /os-services/drain": _HOST,
    "PUT /os-services/freeze": _HOST,
    "PUT /os-services/thaw": _HOST,
    "PUT /os-services/failover_host": _HOST,
    "PUT /os-services/failover": _HOST,
    "PUT /clusters/enable": {"name": "<host>"},
    "PUT /clusters/disable": {"name": "<host>"},
    "POST /workers/cleanup": {"resource_id": "<volume>", "resource_type": "Volume"},
    "POST /qos-specs": {"qos_specs": {"name": "some"}},
    "PUT /qos-specs/{specs_id}": {"qos_specs": {"k": "v"}},
    "PUT /qos-specs/{specs_id}/delete_keys": {"keys": ["k"]},
    "PUT /os-quota-sets/{target}": _QUOTA,
    "PUT /os-quota-class-sets/{name}": {"quota_class_set": {"volumes": 10}},
    "POST /scheduler/explain": {"volume": {"size": 1, "source_volid": "<volume>"}},
    "POST /snapshots": {"snapshot": {"volume_id": "<volume>"}},
    "PUT /snapshots/{snapshot_id}": {"snapshot": _NAMES},
    "POST /snapshots/{snapshot_id}/metadata": {"metadata": {"k": "w"}},
    "PUT /snapshots/{snapshot_id}/metadata": {"metadata": {"k": "w"}},
    "PUT /snapshots/{snapshot_id}/metadata/{key}": {"meta": {"k": "w"}},
    "POST /snapshots/{snapshot_id}/action os-reset_status": {"status": "available"},
    "POST /snapshots/{snapshot_id}/action os-force_delete": None,
    "POST /snapshots/{snapshot_id}/action os-update_snapshot_status": {"status": "error"},
    "POST /snapshots/{snapshot_id}/action os-unmanage": None,
    "POST /os-volume-transfer": {"transfer": {"volume_id": "<volume>"}},
    "POST /volume-transfers": {"transfer": {"volume_id": "<volume>"}},
    "POST /volume-transfers/{transfer_id}/accept": {"accept": {"auth_key": "0000000000000000"}},
    "POST /os-volume-transfer/{transfer_id}/accept": {"accept": {"auth_key": "0000000000000000"}},
    "POST /volumes/{volume_id}/action os-reserve": None,
    "POST /volumes/{volume_id}/action os-unreserve": None,
    "POST /volumes/{volume_id}/action os-begin_detaching": None,
    "POST /volumes/{volume_id}/action os-roll_detaching": None,
    "POST /volumes/{volume_id}/action os-attach": {"instance_uuid": "<server>", "mountpoint": "/dev/vdb"},
    "POST /volumes/{volume_id}/action os-detach": {"attachment_id": "<attachment>"},
    "POST /volumes/{volume_id}/action os-force_detach": {"attachment_id": "<attachment>"},
    "POST /volumes/{volume_id}/action os-initialize_connection": {"connector": CONNECTOR},
    "POST /volumes/{volume_id}/action os-terminate_connection": {"connector": CONNECTOR},
    "POST /volumes/{volume_id}/action os-extend": {"new_size": 2},
    "POST /volumes/{volume_id}/action os-extend_volume_completion": {"error": False},
    "POST /volumes/{volume_id}/action os-set_bootable": {"bootable": True},
    "POST /volumes/{volume_id}/action os-update_readonly_flag": {"readonly": False},
    "POST /volumes/{volume_id}/action os-reset_status": {"status": "available"},
    "POST /volumes/{volume_id}/action os-force_delete": None,
    "POST /volumes/{volume_id}/action os-unmanage": None,
    "POST /volumes/{volume_id}/action os-retype": {"new_type": "<type>"},
    "POST /volumes/{volume_id}/action revert": {"snapshot_id": "<snapshot>"},
    "POST /volumes/{volume_id}/action os-reimage": {"image_id": "<image>"},
    "POST /volumes/{volume_id}/action os-volume_upload_image": {"image_name": "some"},
    "POST /volumes/{volume_id}/action os-set_image_metadata": {"metadata": {"k": "v"}},
    "POST /volumes/{volume_id}/action os-show_image_metadata": None,
    "POST /volumes/{volume_id}/action os-unset_image_metadata": {"key": "k"},
    "POST /types": {"volume_type": {"name": "some"}},
    "PUT /types/{type_id}": {"volume_type": {"description": "new"}},
    "POST /types/{type_id}/extra_specs": _SPECS,
    "PUT /types/{type_id}/extra_specs/{key}": {"k": "v"},
    "POST /types/{type_id}/encryption": _ENCRYPTION,
    "PUT /types/{type_id}/encryption/{encryption_id}": _ENCRYPTION,
    "POST /types/{type_id}/action addProjectAccess": {"project": "<project>"},
    "POST /types/{type_id}/action removeProjectAccess": {"project": "<project>"},
    "POST /volumes": {"volume": {"size": 1}},
    "PUT /volumes/{volume_id}": {"volume": _NAMES},
    "POST /volumes/{volume_id}/metadata": {"metadata": {"k": "w"}},
    "PUT /volumes/{volume_id}/metadata": {"metadata": {"k": "w"}},
    "PUT /volumes/{volume_id}/metadata/{key}": {"meta": {"k": "w"}},
}
# further bodies of a call; what they name beside their last word is the caller's own
FURTHER: dict[str, list[Any]] = {
    "POST /volumes": [
        {"volume": {"size": 1, "source_volid": "<volume>"}},
        {"volume": {"size": 1, "snapshot_id": "<snapshot>"}},
        {"volume": {"size": 1, "imageRef": "<image>"}},
        {"volume": {"size": 1, "volume_type": "<type>"}},
        {"volume": {"size": 1, "volume_type": "<type_name>"}},
        {"volume": {"size": 1, "source_volid": "<volume>", "volume_type": "<type>"}},
    ],
    "POST /volumes/{volume_id}/action os-retype": [{"new_type": "<type_name>"}],
}

# Words that a body holds, but that lead to nothing of the service's: they are recorded as they are.
RECORDED = {"server"}
# What a call answers, other than 404, that names what the caller may not see: by route and kind.
STATUSES = {
    ("POST /volumes", "image"): {400},
    ("POST /volumes/{volume_id}/action os-reimage", "image"): {400},
    ("POST /volumes/{volume_id}/action revert", "snapshot"): {400},  # it is not the newest one
    ("POST /volumes/{volume_id}/action os-detach", "attachment"): {202},  # nothing is left to detach
}
# A transfer is met by who has its id and its key: with a wrong key the answer is 400 (section 9).
WRONG_KEY = re.compile("POST /(volume-transfers|os-volume-transfer)/{transfer_id}/accept")


class NoRecipe(Exception):
    """The API has something that nobody has said how to try."""


def key_of(route: Route) -> str:
    """The name under which recipes know a call: without its root, and the types of its variables."""
    path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
    return f"{route.method} {path}" + (f" {route.action}" if route.action else "")


@dataclass(frozen=True)
class Case:
    """One call with one word that names something of another project."""

    route: Route
    slot: str  # the kind of what is named, "" for a call that names nothing
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    listed: bool = False  # it is asked as a filter: what is not there is left out, and not missing

    @property
    def version(self) -> str | None:
        """The newest version of the route's window."""
        return f"3.{min(self.route.until, MAXIMUM)}" if self.route.root == "/v3" else None

    @property
    def is_old(self) -> bool:
        """Whether versions 1 and 2 have the call."""
        word = self.route.path.split("/")[1]
        return self.route.root == "/v3" and self.route.since == 0 and word in OLD_RESOURCES

    def request(self, own: Mapping[str, str], named: str) -> dict[str, Any]:
        """Path behind the root and the project, and body, when the word stands for `named`."""
        words = {**own, self.slot: named}
        path = filled(self.path, words, quoted=True)
        if self.query:
            path += "?" + urlencode({key: filled(text, words) for key, text in self.query.items()})
        return {"path": path, "json": filled(self.body, words)}


def filled(recipe: Any, words: Mapping[str, str], *, quoted: bool = False) -> Any:
    """A recipe with its words replaced."""
    if isinstance(recipe, dict):
        return {key: filled(value, words) for key, value in recipe.items()}
    if isinstance(recipe, list):
        return [filled(value, words) for value in recipe]
    if not isinstance(recipe, str):
        return recipe
    return re.sub(
        r"<(\w+)>", lambda found: quote(words[found[1]], safe="") if quoted else words[found[1]], recipe
    )


def _slots(recipe: Any) -> set[str]:
    """The words of projects in a recipe."""
    return set(re.findall(r"<(\w+)>", str(recipe))) & OWNED


def _path(route: Route) -> str:
    def word(found: re.Match[str]) -> str:
        if found[1] not in VARIABLES:
            raise NoRecipe(f"{key_of(route)}: nobody has said what {{{found[1]}}} is")
        return VARIABLES[found[1]]

    return re.sub(r"\{(\w+)(?::\w+)?\}", word, route.path)


def _bodies(route: Route) -> list[Any]:
    if route.accepts is None and route.action is None:
        return [None]
    if (key := key_of(route)) not in BODIES:
        raise NoRecipe(f"{key}: nobody has said what its body names")
    found = [BODIES[key], *FURTHER.get(key, ())]
    return found if route.action is None else [{route.action: each} for each in found]


def _queries(route: Route) -> dict[str, str]:
    collection = route.path.split("/")[1]
    found = {}
    for name in route.query:
        if name == "marker":
            if collection not in MARKERS:
                raise NoRecipe(f"{key_of(route)}: nobody has said whose ids are its markers")
            found[name] = MARKERS[collection]
        elif name in QUERIES:
            found[name] = QUERIES[name]
        elif name not in PLAIN_QUERIES:
            raise NoRecipe(f"{key_of(route)}: nobody has said what the parameter {name} names")
    if route.lists is not None and route.method == "GET":
        if collection not in MARKERS:
            raise NoRecipe(f"{key_of(route)}: nobody has said whose ids are its markers")
        found = {**LIST_QUERIES, "marker": MARKERS[collection], **found}
    return {name: text for name, text in found.items() if text}


def cases_of(route: Route) -> list[Case]:
    """Each way to name something of another project in a call. Raises `NoRecipe`."""
    path = _path(route)
    found = []
    for number, body in enumerate(_bodies(route)):
        in_path = _slots(path) if not number else set()
        for slot in sorted((in_path | _slots(body)) - RECORDED):
            found.append(Case(route, slot, path, body=body))
    for name, text in _queries(route).items():
        for slot in sorted(_slots(text)):
            found.append(Case(route, slot, path, {name: text}, _bodies(route)[0], listed=name != "marker"))
    return found or [Case(route, "", path, body=_bodies(route)[0])]


def routes() -> Iterator[Route]:
    """Every call that needs credentials."""
    return (each for each in scan() if not each.public)


def nobody(kind: str) -> str:
    """A word of a kind that stands for nothing."""
    if kind == "project":
        return uuid.uuid4().hex
    if kind == "request":
        return f"req-{uuid.uuid4()}"
    return str(uuid.uuid4())
