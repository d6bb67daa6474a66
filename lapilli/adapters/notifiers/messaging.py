"""Notices over oslo.messaging, in upstream's envelope.

oslo.messaging's own Notifier keeps what goes wrong to itself: a notice that was not sent looks like one that
was. So the transport is used here as its driver `messagingv2` uses it: that raises, and with RabbitMQ returns
when the broker has confirmed.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

from oslo_config import cfg

from lapilli.config import Config
from lapilli.errors import ConfigError
from lapilli.ports.notifier import Notice, NotSent

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # one of its dependencies complains about another
    import oslo_messaging

_log = logging.getLogger("lapilli.notifications")

FORMATS = {"messaging": 1.0, "messagingv2": 2.0}
SECTION = "oslo_messaging_notifications"


class MessagingNotifier:
    """See `ports.notifier`. Options of the connection are oslo.messaging's own, of the same file."""

    def __init__(
        self, config: Config, url: str | None, *, drivers: list[str], exchange: str, topics: list[str]
    ) -> None:
        """Nothing is connected yet. Raises `ConfigError`, without the URL: that holds a password."""
        self._formats = [FORMATS[name] for name in drivers]
        self._exchange, self._topics = exchange, topics
        options = cfg.ConfigOpts()
        files = [config.path] if config.path else []
        try:
            options([], project="lapilli", default_config_files=files, default_config_dirs=[])
            self._transport = oslo_messaging.get_notification_transport(options, url=url)
        except (cfg.Error, oslo_messaging.InvalidTransportURL, oslo_messaging.DriverLoadFailure) as problem:
            raise ConfigError(
                f"[{SECTION}] transport_url: not one that oslo.messaging takes ({type(problem).__name__})."
            ) from None

    def send(self, notice: Notice) -> None:
        """Raises `NotSent`."""
        message: dict[str, Any] = {
            "message_id": notice.message_id,
            "publisher_id": notice.publisher,
            "event_type": notice.event,
            "priority": notice.priority,
            "payload": notice.payload,
            "timestamp": notice.created_at.isoformat(" ", "microseconds"),
        }
        for version in self._formats:
            for topic in self._topics:
                target = oslo_messaging.Target(
                    exchange=self._exchange, topic=f"{topic}.{notice.priority.lower()}"
                )
                try:
                    self._transport._send_notification(
                        target, dict(notice.context), dict(message), version=version, retry=0
                    )
                except Exception as problem:
                    raise NotSent(type(problem).__name__) from problem

    def close(self) -> None:
        """Drop the connections."""
        try:
            self._transport.cleanup()
        except Exception as problem:
            _log.debug("closing failed: %s", type(problem).__name__)
