"""THE transition table: every way a status changes, as data.

`records.enter` and `records.leave` are driven by these rows; error texts, the recovery of a crashed
operation, the diagram in the documentation and the events are derived from them. The administrator's
reset is the only write beside the table.
"""

from __future__ import annotations

from dataclasses import dataclass

NEW = "(new)"  # the row did not exist before
ANY = "(any)"  # from whatever status
BACK = "(back)"  # return to the status held before
GONE = "(gone)"  # the row is removed
RECOMPUTED = "(recomputed)"  # follows from the attachments that remain (`attachment_summary`)


@dataclass(frozen=True)
class Transition:
    """One row. `during` is None for a change that takes no time (a single transaction)."""

    resource: str
    action: str
    sources: frozenset[str]
    during: str | None
    done: str
    failed: str
    after_crash: str  # "resume": carry on with the unfinished task; "revert": undo
    event: str

    def ends_as(self, outcome: str) -> str:
        """The status word for an outcome: `done`, `failed`, or `refused` (back to where it was)."""
        return {"done": self.done, "failed": self.failed, "refused": BACK}[outcome]


def _row(
    resource: str, action: str, sources: str, during: str | None, done: str, failed: str, event: str
) -> Transition:
    return Transition(resource, action, frozenset(sources.split()), during, done, failed, "resume", event)


TABLE: tuple[Transition, ...] = (
    #    resource      action            from                                        while          done         failed           event
    _row("volume", "create", NEW, "creating", "available", "error", "volume.create"),
    _row("volume", "download", "creating downloading", "downloading", "available", "error", "volume.create"),
    _row(
        "volume",
        "delete",
        "available error error_restoring error_extending error_managing",
        "deleting",
        GONE,
        "error_deleting",
        "volume.delete",
    ),
    _row("volume", "force_delete", ANY, "deleting", GONE, "error_deleting", "volume.delete"),
    _row("volume", "extend", "available", "extending", BACK, "error_extending", "volume.resize"),
    _row("volume", "extend_attached", "in-use", "extending", BACK, "error_extending", "volume.resize"),
    _row("volume", "upload", "available", "uploading", RECOMPUTED, RECOMPUTED, "volume.upload"),
    _row(
        "volume", "upload_attached", "available in-use", "uploading", RECOMPUTED, RECOMPUTED, "volume.upload"
    ),
    _row("volume", "reserve", "available", None, "attaching", BACK, "volume.reserve"),
    _row("volume", "reserve_shared", "available in-use", None, "attaching", BACK, "volume.reserve"),
    _row("volume", "unreserve", "attaching", None, RECOMPUTED, BACK, "volume.unreserve"),
    _row("volume", "attach", "available attaching in-use reserved", None, "in-use", BACK, "volume.attach"),
    _row("volume", "begin_detaching", "in-use", None, "detaching", BACK, "volume.begin_detaching"),
    _row("volume", "roll_detaching", "detaching", None, "in-use", BACK, "volume.roll_detaching"),
    _row("volume", "detach", ANY, None, RECOMPUTED, BACK, "volume.detach"),
    _row("volume", "hold", "available downloading", None, "reserved", BACK, "volume.reserve"),
    _row(
        "volume",
        "hold_shared",
        "available downloading in-use reserved",
        None,
        "reserved",
        BACK,
        "volume.reserve",
    ),
    _row(
        "volume", "connect", "available reserved attaching detaching in-use", None, "attaching", BACK, "volume.connect"
    ),
    _row("volume", "complete", "attaching reserved in-use", None, "in-use", BACK, "volume.attach"),
    _row("snapshot", "create", NEW, "creating", "available", "error", "snapshot.create"),
    _row("snapshot", "delete", "available error", "deleting", GONE, "error_deleting", "snapshot.delete"),
    _row("snapshot", "delete_refused", "deleting", "deleting", GONE, "available", "snapshot.delete"),
    _row("snapshot", "force_delete", ANY, "deleting", GONE, "error_deleting", "snapshot.delete"),
    _row("snapshot", "report_creating", "creating", None, "creating", BACK, "snapshot.update"),
    _row("snapshot", "report_available", "creating", None, "available", BACK, "snapshot.update"),
    _row("snapshot", "report_error", "creating", None, "error", BACK, "snapshot.update"),
    _row("snapshot", "report_deleting", "deleting", None, "deleting", BACK, "snapshot.update"),
    _row("snapshot", "report_error_deleting", "deleting", None, "error_deleting", BACK, "snapshot.update"),
    _row("attachment", "reserve", NEW, None, "reserved", BACK, "attachment.reserve"),
    _row("attachment", "connect", ANY, None, "attaching", "error_attaching", "attachment.connect"),
    _row(
        "attachment", "complete", "attaching reserved attached", None, "attached", BACK, "attachment.complete"
    ),
    _row("attachment", "delete", ANY, None, GONE, BACK, "attachment.delete"),
)

_BY_ACTION = {(row.resource, row.action): row for row in TABLE}

# Statuses the administrator's reset accepts (behaviour.md section 1); `deleting` passes the schema and is refused.
VOLUME_RESET = (  # as words, to be read like the table
    "creating available deleting error error_deleting error_managing managing attaching in-use detaching "
    "maintenance restoring-backup error_restoring reserved awaiting-transfer backing-up error_backing-up "
    "error_extending downloading uploading retyping extending"
).split()
ATTACH_RESET = ("attached", "detached")
MIGRATION_RESET = ("migrating", "error", "success", "completing", "none", "starting")
SNAPSHOT_STATUSES = (
    "creating available deleting deleted error error_deleting updating unmanaging backing-up restoring"
).split()

# migration_status values that let other operations begin ("not migrating").
NOT_MIGRATING = (None, "deleting", "error", "success")

_STRENGTH = ("attached", "attaching", "detaching", "reserved")


def transition(resource: str, action: str) -> Transition:
    """The table's row for an action. Raises KeyError for one that does not exist."""
    return _BY_ACTION[resource, action]


def while_states(resource: str) -> frozenset[str]:
    """Statuses that an operation must be holding."""
    return frozenset(row.during for row in TABLE if row.resource == resource and row.during)


def attachment_summary(statuses: list[str]) -> tuple[str, str]:
    """(volume status, attach_status) that follow from the attachments left (behaviour.md section 1)."""
    live = [status for status in statuses if not status.startswith("error_")]
    for word in _STRENGTH:
        if word in live:
            return ("in-use" if word == "attached" else word), word
    return "available", "detached"
