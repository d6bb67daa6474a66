"""One `emit` for everything worth telling: a log line now, and whatever sinks `compose` adds.

Names follow upstream notifications (`volume.create.end`). Fields never hold a secret.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

Sink = Callable[[str, dict[str, Any]], None]

_log = logging.getLogger("lapilli.events")
_sinks: list[Sink] = []
_local = threading.local()
_LIBRARIES = (
    "amqp",
    "oslo.messaging",
    "oslo_messaging",
    "keystonemiddleware",
    "keystoneauth",
    "keystoneclient",
    "oslo_policy",
)

# What is counted and timed: (family, label values..., seconds). Appending is atomic and costs next to
# nothing; `store/metrics.py` adds it up a little later. When nobody does, the oldest are forgotten.
samples: deque[tuple[str | float, ...]] = deque(maxlen=200_000)
note = samples.append


def emit(name: str, **fields: Any) -> None:
    """Tell that `name` happened, with plain JSON fields."""
    _log.info(name, extra={"fields": fields})
    for sink in _sinks:
        sink(name, fields)


def add_sink(sink: Sink) -> None:
    """Called by `compose` only, before any thread starts."""
    _sinks.append(sink)


def set_request_id(request_id: str | None) -> None:
    """Mark this thread's following log lines with a request id; None ends it."""
    _local.request_id = request_id


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request id, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id = getattr(_local, "request_id", None)
        if request_id:
            line["request_id"] = request_id
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to(path: str | None, level: str = "INFO") -> None:
    """Send structured logs to a file, or to standard error when `path` is None."""
    handler: logging.Handler = logging.FileHandler(path) if path else logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    # of libraries only what went wrong: their finer levels may hold more than a log should
    for name, lowest in (("lapilli", level), *((name, "WARNING") for name in _LIBRARIES)):
        logger = logging.getLogger(name)
        for old in list(logger.handlers):
            logger.removeHandler(old)
        logger.addHandler(handler)
        logger.setLevel(lowest)
        logger.propagate = False
