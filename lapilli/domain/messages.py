"""Words of user messages: what was tried (action) and why it failed (detail), by their numbers."""

from __future__ import annotations

from lapilli.domain.model import Message

ACTIONS = {
    "001": "choose a back end for the volume",
    "002": "attach volume",
    "003": "copy volume to image",
    "004": "update attachment",
    "005": "copy image to volume",
    "006": "unmanage volume",
    "007": "extend volume",
    "008": "create volume from storage of the back end",
    "009": "create snapshot",
    "010": "delete snapshot",
    "011": "update snapshot",
    "012": "update metadata of the snapshot",
    "013": "create backup",
    "014": "delete backup",
    "015": "restore backup",
    "016": "write an image over the volume",
    # of our own, where the standard has none
    "101": "change the type of the volume",
    "102": "revert the volume to a snapshot",
    "103": "manage storage of the back end as a volume",
    "104": "manage storage of the back end as a snapshot",
    "105": "unmanage snapshot",
}

DETAILS = {
    "001": "An unknown error occurred.",
    "002": "The driver of the back end is not ready.",
    "003": "No back end can take the request: none has the room, the zone or the abilities asked for.",
    "004": "The volume could not be uploaded to the image.",
    "005": "The volume cannot be attached in this mode.",
    "006": "A quota of images, backups or snapshots does not leave room for it.",
    "007": "The image is larger than the space there is for it.",
    "008": "An encrypted volume cannot be unmanaged.",
    "009": "The compute service could not take the volume's new size.",
    "010": "The back end could not extend the volume.",
    "011": "The image's signature could not be verified.",
    "012": "The back end could not create the volume.",
    "013": "The back end could not create the snapshot.",
    "014": "The metadata of the snapshot could not be written.",
    "015": "The snapshot is in use.",
    "016": "The back end could not delete the snapshot.",
    "017": "The backup is in a status that does not allow it.",
    "018": "The backup service is down.",
    "019": "The backup service could not get at the data to back up.",
    "020": "The backup driver could not create the backup.",
    "021": "The volume could not be attached.",
    "022": "The volume could not be detached.",
    "023": "A temporary volume or snapshot could not be removed.",
    "024": "There is no backup service.",
    "025": "The backup driver could not delete the backup.",
    "026": "The backup driver could not restore the backup.",
    "027": "The volume is in a status that does not allow it.",
    "028": "The compute service could not write the image over the volume.",
    "029": "The format of the image's disk is not acceptable.",
    "030": "An incremental backup was not possible: it became a full one.",
}

_PREFIX = "VOLUME"


def event_id(message: Message) -> str:
    """A message's stable name for machines."""
    return f"{_PREFIX}_{message.resource_type}_{message.action_id}_{message.detail_id}"


def parts(text: str) -> tuple[str, str, str] | None:
    """Resource type, action id and detail id of an event id; None for a text that is none."""
    words = text.split("_")
    if len(words) < 4 or words[0] != _PREFIX:
        return None
    return "_".join(words[1:-2]), words[-2], words[-1]


def user_message(message: Message) -> str:
    """A message's words for people."""
    action = ACTIONS.get(message.action_id, "unknown action")
    detail = DETAILS.get(message.detail_id, DETAILS["001"])
    return f"{action}:{detail}"
