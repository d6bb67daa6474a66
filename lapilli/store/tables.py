"""Tables and indexes: one column per field of `domain.model` (a test keeps them equal).

Lists are served by the indexes on (project_id, created_at, id): keyset paging in constant memory. JSON
columns hold small maps that are always read with their row. There is no soft delete. Texts compare and sort
by their bytes on every database.
"""

from __future__ import annotations

import sqlalchemy as sa

from lapilli.store.types import COUNTER, HELD, MARIADB, ONE_PER_LANE, TIME, UNFINISHED, text

METADATA = sa.MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s"}
)

_ID = text(36)
_NAME = text(255)
_RESOURCE = text(300)  # "gigabytes_" and a type's name


def _time(name: str, *, nullable: bool = True, index: bool = False) -> sa.Column[object]:
    return sa.Column(name, TIME, nullable=nullable, index=index)


def _map(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.JSON, nullable=False, default=dict)


volumes = sa.Table(
    "volumes",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("project_id", _NAME, nullable=False),
    sa.Column("user_id", _NAME, nullable=False),
    sa.Column("name", _NAME),
    sa.Column("description", _NAME),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("status", text(32), nullable=False),
    sa.Column("previous_status", text(32)),
    sa.Column("attach_status", text(32), nullable=False),
    sa.Column("migration_status", _NAME),
    sa.Column("replication_status", text(32)),
    sa.Column("availability_zone", _NAME),
    sa.Column("host", _NAME, index=True),
    sa.Column("volume_type_id", _ID, nullable=False, index=True),
    sa.Column("snapshot_id", _ID),
    sa.Column("source_volid", _ID),
    sa.Column("image_id", _ID),
    sa.Column("group_id", _ID, index=True),
    sa.Column("bootable", sa.Boolean, nullable=False),
    sa.Column("multiattach", sa.Boolean, nullable=False),
    sa.Column("encryption_key_id", _ID),
    sa.Column("overhead", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("consumes_quota", sa.Boolean, nullable=False),
    sa.Column("shared_targets", sa.Boolean, nullable=False),
    sa.Column("service_uuid", _ID),
    sa.Column("provider_id", _NAME),
    sa.Column("cluster_name", _NAME),
    sa.Column("name_id", _ID),
    sa.Column("fault", sa.Text),
    _map("metadata"),
    _map("admin_metadata"),
    _map("image_metadata"),
    _time("created_at", nullable=False),
    _time("updated_at"),
    _time("launched_at"),
    sa.Index(None, "project_id", "created_at", "id"),
    sa.Index(None, "created_at", "id"),
)

snapshots = sa.Table(
    "snapshots",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("volume_id", _ID, nullable=False, index=True),
    sa.Column("project_id", _NAME, nullable=False),
    sa.Column("user_id", _NAME, nullable=False),
    sa.Column("name", _NAME),
    sa.Column("description", _NAME),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("status", text(32), nullable=False),
    sa.Column("progress", text(8), nullable=False),
    sa.Column("volume_type_id", _ID, nullable=False),
    sa.Column("group_snapshot_id", _ID),
    sa.Column("encryption_key_id", _ID),
    sa.Column("consumes_quota", sa.Boolean, nullable=False),
    _map("metadata"),
    _map("image_metadata"),
    sa.Column("bootable", sa.Boolean, nullable=False),
    _time("created_at", nullable=False),
    _time("updated_at"),
    sa.Index(None, "project_id", "created_at", "id"),
    sa.Index(None, "created_at", "id"),
)

attachments = sa.Table(
    "attachments",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("volume_id", _ID, nullable=False, index=True),
    sa.Column("project_id", _NAME, nullable=False),
    sa.Column("instance_id", _ID),
    sa.Column("attached_host", _NAME),
    sa.Column("mountpoint", _NAME),
    sa.Column("attach_mode", text(8)),
    sa.Column("attach_status", text(32), nullable=False),
    sa.Column("connector", sa.JSON),
    sa.Column("connection_info", sa.JSON),
    _time("attached_at"),
    _time("detached_at"),
    _time("created_at", nullable=False),
    _time("updated_at"),
    sa.Index(None, "project_id", "created_at", "id"),
)

transfers = sa.Table(
    "transfers",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("volume_id", _ID, nullable=False, index=True),
    sa.Column("project_id", _NAME, nullable=False),
    sa.Column("name", _NAME),
    sa.Column("no_snapshots", sa.Boolean, nullable=False),
    sa.Column("salt", text(64), nullable=False),
    sa.Column("key_hash", text(64), nullable=False),
    _time("created_at", nullable=False),
    _time("updated_at"),
    sa.Index(None, "project_id", "created_at", "id"),
)

exports = sa.Table(
    "exports",
    METADATA,
    sa.Column("volume_id", _ID, primary_key=True),
    sa.Column("backend", _NAME, nullable=False, index=True),
    sa.Column("target", text(32), nullable=False),
    _map("data"),
    _map("secret"),
    _time("created_at", nullable=False),
)

connections = sa.Table(
    "connections",
    METADATA,
    sa.Column("volume_id", _ID, primary_key=True),
    sa.Column("holder", _NAME, primary_key=True),
    _map("connector"),
    sa.Column("info", sa.JSON),
    _time("created_at", nullable=False),
)

volume_types = sa.Table(
    "volume_types",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("name", _NAME, nullable=False, unique=True),
    sa.Column("description", _NAME),
    sa.Column("is_public", sa.Boolean, nullable=False),
    sa.Column("qos_specs_id", _ID),
    _map("extra_specs"),
    sa.Column("encryption", sa.JSON(none_as_null=True)),
    _time("created_at", nullable=False),
    _time("updated_at"),
    sa.Index(None, "qos_specs_id"),
)

qos_specs = sa.Table(
    "qos_specs",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("name", _NAME, nullable=False, unique=True),
    sa.Column("consumer", text(16), nullable=False),
    _map("specs"),
    _time("created_at", nullable=False),
    _time("updated_at"),
)

default_types = sa.Table(
    "default_types",
    METADATA,
    sa.Column("project_id", _NAME, primary_key=True),
    sa.Column("volume_type_id", _ID, nullable=False, index=True),
    _time("created_at", nullable=False),
    _time("updated_at"),
)

volume_type_access = sa.Table(
    "volume_type_access",
    METADATA,
    sa.Column("volume_type_id", _ID, primary_key=True),
    sa.Column("project_id", _NAME, primary_key=True),
)

quota_limits = sa.Table(
    "quota_limits",
    METADATA,
    sa.Column("project_id", _NAME, primary_key=True),
    sa.Column("resource", _RESOURCE, primary_key=True),
    sa.Column("hard_limit", sa.Integer, nullable=False),
)

quota_class_limits = sa.Table(
    "quota_class_limits",
    METADATA,
    sa.Column("class_name", _NAME, primary_key=True),
    sa.Column("resource", _RESOURCE, primary_key=True),
    sa.Column("hard_limit", sa.Integer, nullable=False),
)

quota_usages = sa.Table(
    "quota_usages",
    METADATA,
    sa.Column("project_id", _NAME, primary_key=True),
    sa.Column("resource", _RESOURCE, primary_key=True),
    sa.Column("in_use", sa.BigInteger, nullable=False),
    sa.Column("reserved", sa.BigInteger, nullable=False),
)

services = sa.Table(
    "services",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("host", _NAME, nullable=False),
    sa.Column("binary", text(32), nullable=False),
    sa.Column("availability_zone", _NAME, nullable=False),
    sa.Column("disabled", sa.Boolean, nullable=False),
    sa.Column("disabled_reason", _NAME),
    sa.Column("frozen", sa.Boolean, nullable=False),
    sa.Column("replication_status", text(32)),
    sa.Column("active_backend_id", _NAME),
    sa.Column("backend_state", text(8)),
    sa.Column("cluster_name", _NAME),
    _time("heartbeat_at"),
    _time("created_at", nullable=False),
    _time("updated_at"),
    sa.UniqueConstraint("host", "binary", name="uq_services_host_binary"),
)

application_credentials = sa.Table(
    "application_credentials",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("user_id", _NAME, nullable=False),
    sa.Column("project_id", _NAME, nullable=False),
    sa.Column("name", _NAME, nullable=False),
    sa.Column("description", _NAME),
    sa.Column("secret_hash", text(128), nullable=False),
    sa.Column("roles", sa.JSON, nullable=False),
    sa.Column("unrestricted", sa.Boolean, nullable=False),
    _time("expires_at"),
    _time("created_at", nullable=False),
    sa.UniqueConstraint("user_id", "name", name="uq_application_credentials_user_id_name"),
)

revoked_tokens = sa.Table(
    "revoked_tokens",
    METADATA,
    sa.Column("id", text(64), primary_key=True),
    _time("expires_at", nullable=False, index=True),
)

log_levels = sa.Table(
    "log_levels",
    METADATA,
    sa.Column("id", text(600), primary_key=True),
    sa.Column("binary", text(32), nullable=False),
    sa.Column("server", _NAME, nullable=False),
    sa.Column("logger", _NAME, nullable=False),
    sa.Column("level", text(16), nullable=False),
    _time("set_at", nullable=False),
)

pools = sa.Table(
    "pools",
    METADATA,
    sa.Column("name", _NAME, primary_key=True),
    sa.Column("backend", _NAME, nullable=False, index=True),
    sa.Column("availability_zone", _NAME, nullable=False),
    _map("capabilities"),
    sa.Column("allocated_gb", sa.BigInteger, nullable=False),
    sa.Column("reported_allocated_gb", sa.BigInteger, nullable=False),
    sa.Column("volumes", sa.Integer, nullable=False),
    _time("reported_at"),
)

cached_images = sa.Table(
    "cached_images",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("backend", _NAME, nullable=False, index=True),
    sa.Column("pool", _NAME, nullable=False),
    sa.Column("image_id", _ID, nullable=False),
    sa.Column("content", _NAME, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("state", text(16), nullable=False),
    sa.Column("operation_id", _ID),
    _time("created_at", nullable=False),
    _time("last_used_at", nullable=False),
)

messages = sa.Table(
    "messages",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("project_id", _NAME, nullable=False),
    sa.Column("request_id", text(64), nullable=False),
    sa.Column("resource_type", text(32), nullable=False),
    sa.Column("resource_id", _ID, nullable=False),
    sa.Column("action_id", text(8), nullable=False),
    sa.Column("detail_id", text(8), nullable=False),
    sa.Column("level", text(16), nullable=False),
    _time("created_at", nullable=False),
    _time("expires_at", nullable=False),
    sa.Index(None, "project_id", "created_at", "id"),
)

operations = sa.Table(
    "operations",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("kind", text(64), nullable=False),
    sa.Column("steps_version", sa.Integer, nullable=False),
    sa.Column("resource_id", _ID, nullable=False, index=True),
    sa.Column("lane", text(64), nullable=False),
    sa.Column("project_id", _NAME, nullable=False),
    sa.Column("user_id", _NAME, nullable=False),
    sa.Column("request_id", text(64), nullable=False),
    sa.Column("role", text(16), nullable=False),
    sa.Column("host", _NAME),
    sa.Column("state", text(16), nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("owner", _NAME),
    sa.Column("claim", sa.Integer, nullable=False),
    _time("lease_until"),
    sa.Column("attempts", sa.Integer, nullable=False),
    _map("args"),
    _map("results"),
    sa.Column("timings", sa.JSON, nullable=False, default=list),
    sa.Column("error", sa.JSON),
    sa.Column("bytes_done", sa.BigInteger, nullable=False),
    sa.Column("bytes_total", sa.BigInteger, nullable=False),
    sa.Column("bytes_rate", sa.BigInteger, nullable=False),
    _time("deadline_at"),
    _time("created_at", nullable=False),
    _time("updated_at"),
    _time("finished_at"),
    sa.Index("ix_operations_queue", "state", "role", "host", "created_at"),
    sa.Index("ix_operations_lane", "lane", "state"),
)
# what a worker asks for: unfinished work of its role and host, oldest first; a long queue is not sorted at
# every claim (MariaDB, without partial indexes, sorts)
sa.Index(
    "ix_operations_waiting",
    operations.c.role,
    operations.c.host,
    operations.c.created_at,
    operations.c.id,
    sqlite_where=sa.text(UNFINISHED),
    postgresql_where=sa.text(UNFINISHED),
).ddl_if(dialect=("sqlite", "postgresql"))  # type: ignore[arg-type]
# one operation of a lane at a time, whoever claims (MariaDB, without partial indexes: ONE_PER_LANE)
sa.Index(
    "uq_operations_held",
    operations.c.lane,
    unique=True,
    sqlite_where=sa.text(HELD),
    postgresql_where=sa.text(HELD),
).ddl_if(dialect=("sqlite", "postgresql"))  # type: ignore[arg-type]
sa.event.listen(operations, "after_create", sa.DDL(ONE_PER_LANE).execute_if(dialect="mariadb"))  # type: ignore[no-untyped-call]


idempotency_keys = sa.Table(
    "idempotency_keys",
    METADATA,
    sa.Column("project_id", _NAME, primary_key=True),
    sa.Column("user_id", _NAME, primary_key=True),
    sa.Column("key", _NAME, primary_key=True),
    sa.Column("fingerprint", text(64), nullable=False),
    sa.Column("request_id", text(64), nullable=False),
    sa.Column("owner", _NAME),  # the process that is still answering, None after the answer
    sa.Column("made_kind", text(32)),
    sa.Column("made_id", _ID),
    sa.Column("status", sa.Integer),
    sa.Column("headers", sa.JSON),
    sa.Column("body", sa.LargeBinary(2**24 - 1)),
    _time("created_at", nullable=False),
    sa.Index(None, "created_at"),
)

process_metrics = sa.Table(
    "process_metrics",
    METADATA,
    sa.Column("owner", _NAME, primary_key=True),
    sa.Column("totals", sa.JSON, nullable=False),
    _time("reported_at", nullable=False),
)

# what a process serves; `claiming`: it takes new operations there
members = sa.Table(
    "members",
    METADATA,
    sa.Column("owner", _NAME, primary_key=True),
    sa.Column("backend", _NAME, primary_key=True),
    sa.Column("host", _NAME, nullable=False),
    sa.Column("claiming", sa.Boolean, nullable=False),
    _time("heartbeat_at", nullable=False),
)

drains = sa.Table(
    "drains",
    METADATA,
    sa.Column("host", _NAME, primary_key=True),
    sa.Column("backend", _NAME, primary_key=True),
    sa.Column("disabled", sa.Boolean, nullable=False),  # the service, by this drain
    _time("requested_at", nullable=False),
)

# notices on their way out, in order; an id is never used again, so that what is removed is what was sent
outbox = sa.Table(
    "outbox",
    METADATA,
    sa.Column("id", COUNTER, primary_key=True, autoincrement=True),
    sa.Column("message_id", _ID, nullable=False),
    sa.Column("publisher", text(300), nullable=False),
    sa.Column("event", text(96), nullable=False),
    sa.Column("priority", text(16), nullable=False),
    sa.Column("payload", sa.JSON, nullable=False),
    sa.Column("context", sa.JSON, nullable=False),
    _time("created_at", nullable=False),
    sqlite_autoincrement=True,
)

# what one process does for all, and who that is
leases = sa.Table(
    "leases",
    METADATA,
    sa.Column("name", text(32), primary_key=True),
    sa.Column("owner", _NAME, nullable=False),
    _time("lease_until", nullable=False),
)

# what drivers must remember of their objects, and cannot ask the back end (ports/driver.py: Notes)
driver_notes = sa.Table(
    "driver_notes",
    METADATA,
    sa.Column("backend", _NAME, primary_key=True),  # host@backend
    sa.Column("kind", text(16), primary_key=True),
    sa.Column("id", _ID, primary_key=True),
    sa.Column("data", sa.JSON, nullable=False),
)

for _table in METADATA.tables.values():
    _table.dialect_options["mariadb"].update(MARIADB)
