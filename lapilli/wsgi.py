"""`application` for uwsgi, gunicorn, Granian or any WSGI server.

LAPILLI_STATE_DIR and LAPILLI_CONFIG name the state directory and the configuration file. The application is
built at the first request of a process: a server may load this module and fork afterwards.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from lapilli import compose
from lapilli.config import Config

_lock = threading.Lock()
_built: dict[int, Any] = {}


def _build() -> Any:
    with _lock:
        pid = os.getpid()
        if pid not in _built:
            config = Config.load(
                os.environ.get("LAPILLI_CONFIG"), state_dir=os.environ.get("LAPILLI_STATE_DIR")
            )
            compose.start_logging(config)
            _built.clear()
            _built[pid] = compose.make_application(config)
            gc.collect()
            gc.freeze()  # what is there now stays: no collection has to look at it again
        return _built[pid]


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """PEP 3333."""
    app = _built.get(os.getpid()) or _build()
    answer: Iterable[bytes] = app(environ, start_response)
    return answer
