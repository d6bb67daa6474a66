"""User messages: their owners may throw them away."""

from __future__ import annotations

from datetime import timedelta

from lapilli.context import Context
from lapilli.domain.model import Message
from lapilli.errors import NotFound
from lapilli.flows.core import Core
from lapilli.store import records


def write(
    core: Core, context: Context, resource_type: str, resource_id: str, action_id: str, detail_id: str
) -> None:
    """Write a message about a refusal, which others than the caller may want to know of."""
    created = records.now()
    made = Message(
        id=records.new_id(),
        project_id=context.project_id,
        request_id=context.request_id,
        resource_type=resource_type,
        resource_id=resource_id,
        action_id=action_id,
        detail_id=detail_id,
        created_at=created,
        expires_at=created + timedelta(seconds=core.options.message_ttl),
    )
    with core.store.write() as connection:
        records.insert(connection, made)


def delete(core: Core, message: Message) -> None:
    """Remove a message. Raises `NotFound` when it is gone already."""
    with core.store.write(durable=True) as connection:
        if not records.delete(connection, Message, message.id):
            raise NotFound.of("message", message.id)
