"""User messages: their owners may throw them away."""

from __future__ import annotations

from lapilli.domain.model import Message
from lapilli.errors import NotFound
from lapilli.flows.core import Core
from lapilli.store import records


def delete(core: Core, message: Message) -> None:
    """Remove a message. Raises `NotFound` when it is gone already."""
    with core.store.write(durable=True) as connection:
        if not records.delete(connection, Message, message.id):
            raise NotFound.of("message", message.id)
