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


# `while` is "-" for a change that takes no time. After a crash every operation is resumed.
_TEXT = """
resource   | action                | from                                                           | while       | done              | failed           | event
volume     | create                | (new)                                                          | creating    | available         | error            | volume.create
volume     | download              | creating downloading                                           | downloading | (recomputed)      | error            | volume.create
volume     | delete                | available error error_extending error_managing error_restoring | deleting    | (gone)            | error_deleting   | volume.delete
volume     | force_delete          | (any)                                                          | deleting    | (gone)            | error_deleting   | volume.delete
volume     | extend                | available                                                      | extending   | (back)            | error_extending  | volume.resize
volume     | extend_attached       | in-use                                                         | extending   | (back)            | error_extending  | volume.resize
volume     | revert                | available                                                      | reverting   | available         | error            | volume.revert
volume     | reimage               | available error                                                | downloading | (recomputed)      | error            | volume.reimage
volume     | reimage_reserved      | available error reserved                                       | downloading | (recomputed)      | error            | volume.reimage
volume     | manage                | (new)                                                          | managing    | available         | error_managing   | volume.manage_existing
volume     | unmanage              | available error error_extending error_managing error_restoring | unmanaging  | (gone)            | error_unmanaging | volume.unmanage
volume     | retype                | available in-use                                               | retyping    | (back)            | (back)           | volume.retype
volume     | upload                | available                                                      | uploading   | (recomputed)      | (recomputed)     | volume.upload
volume     | upload_attached       | available in-use                                               | uploading   | (recomputed)      | (recomputed)     | volume.upload
volume     | transfer              | available                                                      | -           | awaiting-transfer | (back)           | volume.transfer.create
volume     | accept_transfer       | awaiting-transfer                                              | -           | available         | (back)           | volume.transfer.accept
volume     | cancel_transfer       | awaiting-transfer                                              | -           | available         | (back)           | volume.transfer.delete
volume     | reserve               | available                                                      | -           | attaching         | (back)           | volume.reserve
volume     | reserve_shared        | available in-use                                               | -           | attaching         | (back)           | volume.reserve
volume     | unreserve             | attaching                                                      | -           | (recomputed)      | (back)           | volume.unreserve
volume     | attach                | attaching available in-use reserved                            | -           | in-use            | (back)           | volume.attach
volume     | begin_detaching       | in-use                                                         | -           | detaching         | (back)           | volume.begin_detaching
volume     | roll_detaching        | detaching                                                      | -           | in-use            | (back)           | volume.roll_detaching
volume     | detach                | (any)                                                          | -           | (recomputed)      | (back)           | volume.detach
volume     | hold                  | available                                                      | -           | reserved          | (back)           | volume.reserve
volume     | hold_shared           | available in-use                                               | -           | reserved          | (back)           | volume.reserve
volume     | connect               | attaching available detaching in-use reserved                  | -           | attaching         | (back)           | volume.connect
volume     | complete              | attaching in-use reserved                                      | -           | in-use            | (back)           | volume.attach
snapshot   | create                | (new)                                                          | creating    | available         | error            | snapshot.create
snapshot   | delete                | available error                                                | deleting    | (gone)            | error_deleting   | snapshot.delete
snapshot   | delete_refused        | deleting                                                       | deleting    | (gone)            | available        | snapshot.delete
snapshot   | force_delete          | (any)                                                          | deleting    | (gone)            | error_deleting   | snapshot.delete
snapshot   | restore               | available                                                      | restoring   | available         | available        | snapshot.revert
snapshot   | manage                | (new)                                                          | creating    | available         | error            | snapshot.manage_existing_snapshot
snapshot   | unmanage              | available error                                                | unmanaging  | (gone)            | error            | snapshot.unmanage
snapshot   | report_creating       | creating                                                       | -           | creating          | (back)           | snapshot.update
snapshot   | report_available      | creating                                                       | -           | available         | (back)           | snapshot.update
snapshot   | report_error          | creating                                                       | -           | error             | (back)           | snapshot.update
snapshot   | report_deleting       | deleting                                                       | -           | deleting          | (back)           | snapshot.update
snapshot   | report_error_deleting | deleting                                                       | -           | error_deleting    | (back)           | snapshot.update
attachment | reserve               | (new)                                                          | -           | reserved          | (back)           | attachment.reserve
attachment | connect               | (any)                                                          | -           | attaching         | error_attaching  | attachment.connect
attachment | complete              | attached attaching reserved                                    | -           | attached          | (back)           | attachment.complete
attachment | delete                | (any)                                                          | -           | (gone)            | (back)           | attachment.delete
"""


def _parse(text: str) -> tuple[Transition, ...]:
    rows = []
    for line in text.strip().splitlines()[1:]:
        resource, action, sources, during, done, failed, event = (cell.strip() for cell in line.split("|"))
        held = None if during == "-" else during
        rows.append(
            Transition(resource, action, frozenset(sources.split()), held, done, failed, "resume", event)
        )
    return tuple(rows)


TABLE = _parse(_TEXT)

_BY_ACTION = {(row.resource, row.action): row for row in TABLE}

# What the administrator's reset accepts; `deleting` passes the schema and is refused afterwards.
VOLUME_RESET = (
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

# statuses that follow from the attachments, and nothing else
FOLLOWING = frozenset(("available", "reserved", "attaching", "detaching", "in-use"))

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
