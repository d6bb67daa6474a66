"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from lapilli.store.types import HELD, ONE_PER_LANE, TABLE_OPTIONS, TIME, text

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make every table."""

    op.create_table(
        "attachments",
        sa.Column("id", text(36), nullable=False),
        sa.Column("volume_id", text(36), nullable=False),
        sa.Column("project_id", text(255), nullable=False),
        sa.Column("instance_id", text(36), nullable=True),
        sa.Column("attached_host", text(255), nullable=True),
        sa.Column("mountpoint", text(255), nullable=True),
        sa.Column("attach_mode", text(8), nullable=True),
        sa.Column("attach_status", text(32), nullable=False),
        sa.Column("connector", sa.JSON(), nullable=True),
        sa.Column("connection_info", sa.JSON(), nullable=True),
        sa.Column("attached_at", TIME, nullable=True),
        sa.Column("detached_at", TIME, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attachments")),
        **TABLE_OPTIONS,
    )
    op.create_index(
        op.f("ix_attachments_project_id_created_at_id"),
        "attachments",
        ["project_id", "created_at", "id"],
        unique=False,
    )
    op.create_index(op.f("ix_attachments_volume_id"), "attachments", ["volume_id"], unique=False)
    op.create_table(
        "connections",
        sa.Column("volume_id", text(36), nullable=False),
        sa.Column("holder", text(255), nullable=False),
        sa.Column("connector", sa.JSON(), nullable=False),
        sa.Column("info", sa.JSON(), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("volume_id", "holder", name=op.f("pk_connections")),
        **TABLE_OPTIONS,
    )
    op.create_table(
        "exports",
        sa.Column("volume_id", text(36), nullable=False),
        sa.Column("backend", text(255), nullable=False),
        sa.Column("target", text(32), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("secret", sa.JSON(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("volume_id", name=op.f("pk_exports")),
        **TABLE_OPTIONS,
    )
    op.create_index(op.f("ix_exports_backend"), "exports", ["backend"], unique=False)
    op.create_table(
        "idempotency_keys",
        sa.Column("project_id", text(255), nullable=False),
        sa.Column("user_id", text(255), nullable=False),
        sa.Column("key", text(255), nullable=False),
        sa.Column("fingerprint", text(64), nullable=False),
        sa.Column("request_id", text(64), nullable=False),
        sa.Column("owner", text(255), nullable=True),
        sa.Column("made_kind", text(32), nullable=True),
        sa.Column("made_id", text(36), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("headers", sa.JSON(), nullable=True),
        sa.Column("body", sa.LargeBinary(length=16777215), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("project_id", "user_id", "key", name=op.f("pk_idempotency_keys")),
        **TABLE_OPTIONS,
    )
    op.create_index(op.f("ix_idempotency_keys_created_at"), "idempotency_keys", ["created_at"], unique=False)
    op.create_table(
        "messages",
        sa.Column("id", text(36), nullable=False),
        sa.Column("project_id", text(255), nullable=False),
        sa.Column("request_id", text(64), nullable=False),
        sa.Column("resource_type", text(32), nullable=False),
        sa.Column("resource_id", text(36), nullable=False),
        sa.Column("action_id", text(8), nullable=False),
        sa.Column("detail_id", text(8), nullable=False),
        sa.Column("level", text(16), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_messages")),
        **TABLE_OPTIONS,
    )
    op.create_index(
        op.f("ix_messages_project_id_created_at_id"),
        "messages",
        ["project_id", "created_at", "id"],
        unique=False,
    )
    op.create_table(
        "operations",
        sa.Column("id", text(36), nullable=False),
        sa.Column("kind", text(64), nullable=False),
        sa.Column("steps_version", sa.Integer(), nullable=False),
        sa.Column("resource_id", text(36), nullable=False),
        sa.Column("lane", text(64), nullable=False),
        sa.Column("project_id", text(255), nullable=False),
        sa.Column("user_id", text(255), nullable=False),
        sa.Column("request_id", text(64), nullable=False),
        sa.Column("role", text(16), nullable=False),
        sa.Column("host", text(255), nullable=True),
        sa.Column("state", text(16), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("owner", text(255), nullable=True),
        sa.Column("claim", sa.Integer(), nullable=False),
        sa.Column("lease_until", TIME, nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("args", sa.JSON(), nullable=False),
        sa.Column("results", sa.JSON(), nullable=False),
        sa.Column("timings", sa.JSON(), nullable=False),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("bytes_done", sa.BigInteger(), nullable=False),
        sa.Column("bytes_total", sa.BigInteger(), nullable=False),
        sa.Column("bytes_rate", sa.BigInteger(), nullable=False),
        sa.Column("deadline_at", TIME, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=True),
        sa.Column("finished_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operations")),
        **TABLE_OPTIONS,
    )
    op.create_index("ix_operations_lane", "operations", ["lane", "state"], unique=False)
    if op.get_bind().dialect.name == "mariadb":
        op.execute(ONE_PER_LANE)
    else:
        held = sa.text(HELD)
        op.create_index(
            "uq_operations_held",
            "operations",
            ["lane"],
            unique=True,
            sqlite_where=held,
            postgresql_where=held,
        )
    op.create_index(
        "ix_operations_queue", "operations", ["state", "role", "host", "created_at"], unique=False
    )
    op.create_index(op.f("ix_operations_resource_id"), "operations", ["resource_id"], unique=False)
    op.create_table(
        "pools",
        sa.Column("name", text(255), nullable=False),
        sa.Column("backend", text(255), nullable=False),
        sa.Column("availability_zone", text(255), nullable=False),
        sa.Column("capabilities", sa.JSON(), nullable=False),
        sa.Column("allocated_gb", sa.BigInteger(), nullable=False),
        sa.Column("reported_allocated_gb", sa.BigInteger(), nullable=False),
        sa.Column("volumes", sa.Integer(), nullable=False),
        sa.Column("reported_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_pools")),
        **TABLE_OPTIONS,
    )
    op.create_index(op.f("ix_pools_backend"), "pools", ["backend"], unique=False)
    op.create_table(
        "process_metrics",
        sa.Column("owner", text(255), nullable=False),
        sa.Column("totals", sa.JSON(), nullable=False),
        sa.Column("reported_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_process_metrics")),
        **TABLE_OPTIONS,
    )
    op.create_table(
        "quota_class_limits",
        sa.Column("class_name", text(255), nullable=False),
        sa.Column("resource", text(300), nullable=False),
        sa.Column("hard_limit", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("class_name", "resource", name=op.f("pk_quota_class_limits")),
        **TABLE_OPTIONS,
    )
    op.create_table(
        "quota_limits",
        sa.Column("project_id", text(255), nullable=False),
        sa.Column("resource", text(300), nullable=False),
        sa.Column("hard_limit", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "resource", name=op.f("pk_quota_limits")),
        **TABLE_OPTIONS,
    )
    op.create_table(
        "quota_usages",
        sa.Column("project_id", text(255), nullable=False),
        sa.Column("resource", text(300), nullable=False),
        sa.Column("in_use", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "resource", name=op.f("pk_quota_usages")),
        **TABLE_OPTIONS,
    )
    op.create_table(
        "services",
        sa.Column("id", text(36), nullable=False),
        sa.Column("host", text(255), nullable=False),
        sa.Column("binary", text(32), nullable=False),
        sa.Column("availability_zone", text(255), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("disabled_reason", text(255), nullable=True),
        sa.Column("frozen", sa.Boolean(), nullable=False),
        sa.Column("replication_status", text(32), nullable=True),
        sa.Column("active_backend_id", text(255), nullable=True),
        sa.Column("backend_state", text(8), nullable=True),
        sa.Column("heartbeat_at", TIME, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_services")),
        sa.UniqueConstraint("host", "binary", name="uq_services_host_binary"),
        **TABLE_OPTIONS,
    )
    op.create_table(
        "snapshots",
        sa.Column("id", text(36), nullable=False),
        sa.Column("volume_id", text(36), nullable=False),
        sa.Column("project_id", text(255), nullable=False),
        sa.Column("user_id", text(255), nullable=False),
        sa.Column("name", text(255), nullable=True),
        sa.Column("description", text(255), nullable=True),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("status", text(32), nullable=False),
        sa.Column("progress", text(8), nullable=False),
        sa.Column("volume_type_id", text(36), nullable=False),
        sa.Column("group_snapshot_id", text(36), nullable=True),
        sa.Column("encryption_key_id", text(36), nullable=True),
        sa.Column("consumes_quota", sa.Boolean(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("image_metadata", sa.JSON(), nullable=False),
        sa.Column("bootable", sa.Boolean(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_snapshots")),
        **TABLE_OPTIONS,
    )
    op.create_index(op.f("ix_snapshots_created_at_id"), "snapshots", ["created_at", "id"], unique=False)
    op.create_index(
        op.f("ix_snapshots_project_id_created_at_id"),
        "snapshots",
        ["project_id", "created_at", "id"],
        unique=False,
    )
    op.create_index(op.f("ix_snapshots_volume_id"), "snapshots", ["volume_id"], unique=False)
    op.create_table(
        "volume_type_access",
        sa.Column("volume_type_id", text(36), nullable=False),
        sa.Column("project_id", text(255), nullable=False),
        sa.PrimaryKeyConstraint("volume_type_id", "project_id", name=op.f("pk_volume_type_access")),
        **TABLE_OPTIONS,
    )
    op.create_table(
        "volume_types",
        sa.Column("id", text(36), nullable=False),
        sa.Column("name", text(255), nullable=False),
        sa.Column("description", text(255), nullable=True),
        sa.Column("is_public", sa.Boolean(), nullable=False),
        sa.Column("qos_specs_id", text(36), nullable=True),
        sa.Column("extra_specs", sa.JSON(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volume_types")),
        sa.UniqueConstraint("name"),
        **TABLE_OPTIONS,
    )
    op.create_table(
        "volumes",
        sa.Column("id", text(36), nullable=False),
        sa.Column("project_id", text(255), nullable=False),
        sa.Column("user_id", text(255), nullable=False),
        sa.Column("name", text(255), nullable=True),
        sa.Column("description", text(255), nullable=True),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("status", text(32), nullable=False),
        sa.Column("previous_status", text(32), nullable=True),
        sa.Column("attach_status", text(32), nullable=False),
        sa.Column("migration_status", text(255), nullable=True),
        sa.Column("replication_status", text(32), nullable=True),
        sa.Column("availability_zone", text(255), nullable=True),
        sa.Column("host", text(255), nullable=True),
        sa.Column("volume_type_id", text(36), nullable=False),
        sa.Column("snapshot_id", text(36), nullable=True),
        sa.Column("source_volid", text(36), nullable=True),
        sa.Column("image_id", text(36), nullable=True),
        sa.Column("group_id", text(36), nullable=True),
        sa.Column("bootable", sa.Boolean(), nullable=False),
        sa.Column("multiattach", sa.Boolean(), nullable=False),
        sa.Column("encryption_key_id", text(36), nullable=True),
        sa.Column("consumes_quota", sa.Boolean(), nullable=False),
        sa.Column("shared_targets", sa.Boolean(), nullable=False),
        sa.Column("service_uuid", text(36), nullable=True),
        sa.Column("provider_id", text(255), nullable=True),
        sa.Column("cluster_name", text(255), nullable=True),
        sa.Column("name_id", text(36), nullable=True),
        sa.Column("fault", sa.Text(), nullable=True),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("admin_metadata", sa.JSON(), nullable=False),
        sa.Column("image_metadata", sa.JSON(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=True),
        sa.Column("launched_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volumes")),
        **TABLE_OPTIONS,
    )
    op.create_index(op.f("ix_volumes_created_at_id"), "volumes", ["created_at", "id"], unique=False)
    op.create_index(op.f("ix_volumes_group_id"), "volumes", ["group_id"], unique=False)
    op.create_index(op.f("ix_volumes_host"), "volumes", ["host"], unique=False)
    op.create_index(
        op.f("ix_volumes_project_id_created_at_id"),
        "volumes",
        ["project_id", "created_at", "id"],
        unique=False,
    )
    op.create_index(op.f("ix_volumes_volume_type_id"), "volumes", ["volume_type_id"], unique=False)
