"""The things the service keeps, as frozen records: a field per column, no behaviour that needs I/O.

Sizes are GiB unless a name says bytes. Times are UTC, naive, with microseconds.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all records."""


class Volume(Record, frozen=True, kw_only=True):
    """A block volume. `host` is `host@backend#pool`, None until it has been placed."""

    id: str
    project_id: str
    user_id: str
    name: str | None = None
    description: str | None = None
    size: int
    status: str
    previous_status: str | None = None
    attach_status: str = "detached"
    migration_status: str | None = None
    replication_status: str | None = None
    availability_zone: str | None = None
    host: str | None = None
    volume_type_id: str
    snapshot_id: str | None = None
    source_volid: str | None = None
    image_id: str | None = None
    group_id: str | None = None
    bootable: bool = False
    multiattach: bool = False
    encryption_key_id: str | None = None
    overhead: int = 0  # bytes that it holds beyond its size: the header of an encrypted one
    consumes_quota: bool = True
    shared_targets: bool = False
    service_uuid: str | None = None
    provider_id: str | None = None
    cluster_name: str | None = None
    name_id: str | None = None
    fault: str | None = None
    metadata: dict[str, str] = {}
    admin_metadata: dict[str, str] = {}
    image_metadata: dict[str, str] = {}
    created_at: datetime
    updated_at: datetime | None = None
    launched_at: datetime | None = None

    @property
    def readonly(self) -> bool:
        """Whether os-update_readonly_flag has made it read-only."""
        return self.admin_metadata.get("readonly") == "True"


class Snapshot(Record, frozen=True, kw_only=True):
    """A point in time of a volume; lives on the volume's pool."""

    id: str
    volume_id: str
    project_id: str
    user_id: str
    name: str | None = None
    description: str | None = None
    size: int
    status: str
    progress: str = "0%"
    volume_type_id: str
    group_snapshot_id: str | None = None
    encryption_key_id: str | None = None
    consumes_quota: bool = True
    metadata: dict[str, str] = {}
    image_metadata: dict[str, str] = {}
    bootable: bool = False
    created_at: datetime
    updated_at: datetime | None = None


class Attachment(Record, frozen=True, kw_only=True):
    """One user of a volume: a server, or a host. `connection_info` is flat, as the API shows it."""

    id: str
    volume_id: str
    project_id: str
    instance_id: str | None = None
    attached_host: str | None = None
    mountpoint: str | None = None
    attach_mode: str | None = None
    attach_status: str
    connector: dict[str, Any] | None = None
    connection_info: dict[str, Any] | None = None
    attached_at: datetime | None = None
    detached_at: datetime | None = None
    created_at: datetime
    updated_at: datetime | None = None


class Transfer(Record, frozen=True, kw_only=True):
    """A volume on offer to whoever has the key, of which only a salted hash is kept.

    `project_id` is the donor's. The row goes when the offer is accepted or taken back.
    """

    id: str
    volume_id: str
    project_id: str
    name: str | None = None
    no_snapshots: bool = False
    salt: str
    key_hash: str
    created_at: datetime
    updated_at: datetime | None = None


class Export(Record, frozen=True, kw_only=True):
    """What a target serves for a volume. `data` is public; `secret` never leaves the store and the target."""

    volume_id: str
    backend: str
    target: str
    data: dict[str, Any]
    secret: dict[str, str]
    created_at: datetime


class Connection(Record, frozen=True, kw_only=True):
    """One holder of an export: an attachment id, or `connector:<name>` for the calls without attachments."""

    volume_id: str
    holder: str
    connector: dict[str, Any]
    info: dict[str, Any] | None = None
    created_at: datetime


class VolumeType(Record, frozen=True, kw_only=True):
    """A volume type with its extra specs. `encryption`, where its volumes are encrypted, says how:

    encryption_id, provider, control_location, cipher, key_size (bits), created_at, updated_at.
    """

    id: str
    name: str
    description: str | None = None
    is_public: bool = True
    qos_specs_id: str | None = None
    extra_specs: dict[str, str | None] = {}
    encryption: dict[str, Any] | None = None
    created_at: datetime
    updated_at: datetime | None = None


class QosSpecs(Record, frozen=True, kw_only=True):
    """Limits that volume types are bound to. `consumer` says who keeps them: front-end, back-end or both."""

    id: str
    name: str
    consumer: str = "back-end"
    specs: dict[str, str] = {}
    created_at: datetime
    updated_at: datetime | None = None


class DefaultType(Record, frozen=True, kw_only=True):
    """The type of a project's volumes that are created without one."""

    project_id: str
    volume_type_id: str
    created_at: datetime
    updated_at: datetime | None = None


class Service(Record, frozen=True, kw_only=True):
    """One role on one host (`host` or `host@backend`), kept alive by heartbeats."""

    id: str
    host: str
    binary: str
    availability_zone: str
    disabled: bool = False
    disabled_reason: str | None = None
    frozen: bool = False
    replication_status: str | None = None
    active_backend_id: str | None = None
    backend_state: str | None = None
    cluster_name: str | None = None
    heartbeat_at: datetime | None = None
    created_at: datetime
    updated_at: datetime | None = None

    def is_up(self, moment: datetime, down_after: float) -> bool:
        """Whether the last heartbeat is recent; one to come, as a clock that was set back leaves, is none."""
        last = self.heartbeat_at
        return last is not None and abs((moment - last).total_seconds()) <= down_after


class ApplicationCredential(Record, frozen=True, kw_only=True):
    """A secret that stands for a user in one project, with some of its roles; only its hash is kept."""

    id: str
    user_id: str
    project_id: str
    name: str
    description: str | None = None
    secret_hash: str
    roles: list[str]
    unrestricted: bool = False
    expires_at: datetime | None = None
    created_at: datetime


class RevokedToken(Record, frozen=True, kw_only=True):
    """A token that holds no longer; the row goes when the token would have expired."""

    id: str  # the token's audit id
    expires_at: datetime


class LogLevel(Record, frozen=True, kw_only=True):
    """A level set for loggers of services that run; an empty binary or server means all of them."""

    id: str  # binary/server/logger
    binary: str
    server: str
    logger: str
    level: str
    set_at: datetime


class Pool(Record, frozen=True, kw_only=True):
    """A pool with its latest statistics and with what placements have claimed of it (GiB).

    `allocated_gb` is the size of everything placed here; `reported_allocated_gb` is the same figure when
    the statistics were taken, so that the difference is what the free figure does not know yet.
    """

    name: str
    backend: str
    availability_zone: str
    capabilities: dict[str, Any]
    allocated_gb: int = 0
    reported_allocated_gb: int = 0
    volumes: int = 0
    reported_at: datetime | None = None


class CachedImage(Record, frozen=True, kw_only=True):
    """An image that a pool keeps as a volume of its own, to make volumes of; nobody else has it.

    `content` tells one content of the image from another. `state` is filling (by the operation), ready or
    evicting: then its room is free again, and what it holds is being removed.
    """

    id: str  # as which the driver knows it
    backend: str
    pool: str
    image_id: str
    content: str
    size: int
    state: str
    operation_id: str | None = None
    created_at: datetime
    last_used_at: datetime


class Message(Record, frozen=True, kw_only=True):
    """A user message about an asynchronous failure; ids as in behaviour.md section 12."""

    id: str
    project_id: str
    request_id: str
    resource_type: str
    resource_id: str
    action_id: str
    detail_id: str
    level: str = "ERROR"
    created_at: datetime
    expires_at: datetime


class Operation(Record, frozen=True, kw_only=True):
    """A durable operation: queue entry, lock and journal in one row (house.md section 5).

    `timings` holds [role, task, when it began, seconds, done|failed|reverted] per task that has ended.
    """

    id: str
    kind: str
    steps_version: int = 1
    resource_id: str
    lane: str
    project_id: str
    user_id: str
    request_id: str
    role: str
    host: str | None
    state: str
    step: int = 0
    owner: str | None = None
    claim: int = 0
    lease_until: datetime | None = None
    attempts: int = 0
    args: dict[str, Any] = {}
    results: dict[str, Any] = {}
    timings: list[list[Any]] = []
    error: dict[str, Any] | None = None
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_rate: int = 0  # bytes a second
    deadline_at: datetime | None = None  # when its present task counts as hanging, unless it shows progress
    created_at: datetime
    updated_at: datetime | None = None
    finished_at: datetime | None = None


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image as an image source describes it. Sizes in bytes; `min_disk` in GiB, `min_ram` in MiB.

    `owner` is the project that uploaded it; images without one belong to everybody. `locations` are URLs of
    where the image service keeps the content; they are for back ends, and not shown to callers.
    """

    id: str
    name: str | None = None
    status: str = "active"
    disk_format: str | None = None
    container_format: str | None = "bare"
    size: int | None = None
    virtual_size: int | None = None
    checksum: str | None = None
    min_disk: int = 0
    min_ram: int = 0
    visibility: str = "private"
    owner: str | None = None
    protected: bool = False
    properties: dict[str, str] = {}
    locations: tuple[str, ...] = ()
    created_at: str | None = None
    updated_at: str | None = None

    def listed_for(self, project_id: str | None) -> bool:
        """Whether a project meets it in lists and by its name; None is an administrator."""
        return project_id is None or self.owner in (None, project_id) or self.visibility == "public"

    def usable_by(self, project_id: str | None) -> bool:
        """Whether a project may use it by its id."""
        return self.listed_for(project_id) or self.visibility == "community"
