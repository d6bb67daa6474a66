"""A stand-in for a network service, which has no networks.

Tempest leaves out whole classes of volume tests where no network service is in the catalog, though their
tests need none: it only looks for security groups to remove. This answers those looks with empty lists.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Nothing(BaseHTTPRequestHandler):
    """Every collection is empty."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """An empty list under the collection's name, or the versions."""
        last = urlsplit(self.path).path.rstrip("/").rpartition("/")[2]
        if last in ("", "v2.0"):
            told = {"versions": [{"id": "v2.0", "status": "CURRENT", "links": []}]}
        else:
            told = {last.replace("-", "_"): []}
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Nothing).serve_forever()
