"""A read-only image API (the four calls of Glance v2 that the openstack client insists on).

`openstack volume create` looks for an image service before it sends anything; a stand-alone service answers
for its own image directory. Not part of the Block Storage API, and without microversions.
"""

from __future__ import annotations

from typing import Any

from lapilli.api.access import READER, rule
from lapilli.api.answers import OBJECT, STRING, TEXT, list_of, listed, shape
from lapilli.api.resource import Call, Routes
from lapilli.domain.model import Image
from lapilli.errors import InvalidInput, LapilliError, NotFound

route = Routes(root="/image")

LIST = rule("get_images", READER)
SHOW = rule("get_image", READER)
PAGE = 1000


def _own(call: Call) -> Any:
    """The service's own images; where they have a service of their own, this is not it."""
    own = call.core.own_images
    if own is None:
        raise NotFound("Images are served by the image service, not here.")
    return own


@route.get("/", public=True, answers=shape(versions=list_of(OBJECT)))
@route.get("/v2/", public=True, answers=shape(versions=list_of(OBJECT)))
def discover(call: Call) -> dict[str, Any]:
    """The version document."""
    _own(call)
    link = {"rel": "self", "href": f"{call.base_url}/image/v2/"}
    return {"versions": [{"id": "v2.16", "status": "CURRENT", "links": [link]}]}


@route.get(
    "/v2/images", rule=LIST, answers=listed("images", id=STRING, name=TEXT, status=STRING, visibility=STRING)
)
def index(call: Call) -> dict[str, Any]:
    """The caller's images by name, a page at a time; images are never hidden."""
    hidden = call.params.get("os_hidden", "").lower() == "true"
    found = [each for each in _own(call).all() if not hidden and each.listed_for(call.project_scope)]
    name = call.params.get("name")
    if name is not None:
        found = [image for image in found if image.name == name]
    marker = call.params.get("marker")
    if marker is not None:
        places = [place for place, image in enumerate(found) if image.id == marker]
        if not places:
            raise InvalidInput(f"No image has the id {marker}.")
        found = found[places[0] + 1 :]
    asked = call.params.get("limit", str(PAGE))
    if not (asked.isascii() and asked.isdigit() and len(asked) < 10):
        raise InvalidInput("limit is a whole number.")
    shown = found[: min(int(asked), PAGE)]
    told: dict[str, Any] = {
        "images": [_view(image) for image in shown],
        "first": "/v2/images",
        "schema": "/v2/schemas/images",
    }
    if shown and len(shown) < len(found):
        told["next"] = f"/v2/images?marker={shown[-1].id}"
    return told


@route.get(
    "/v2/images/{id}", rule=SHOW, answers=shape(id=STRING, name=TEXT, status=STRING, visibility=STRING)
)
def show(call: Call, identifier: str) -> dict[str, Any]:
    """One image by id."""
    _own(call)
    try:
        image = call.core.images.get(identifier, context=call.context)
    except LapilliError:
        image = None
    if image is None or image.id != identifier:
        raise NotFound.of("image", identifier)
    return _view(image)


def _view(image: Image) -> dict[str, Any]:
    return {
        **image.properties,
        "id": image.id,
        "name": image.name,
        "status": image.status,
        "visibility": image.visibility,
        "owner": image.owner,
        "protected": image.protected,
        "os_hidden": False,
        "disk_format": image.disk_format,
        "container_format": image.container_format,
        "size": image.size,
        "virtual_size": image.virtual_size,
        "checksum": image.checksum,
        "min_disk": image.min_disk,
        "min_ram": image.min_ram,
        "tags": [],
        "created_at": image.created_at,
        "updated_at": image.updated_at,
        "file": f"/v2/images/{image.id}/file",
        "self": f"/v2/images/{image.id}",
        "schema": "/v2/schemas/image",
    }
