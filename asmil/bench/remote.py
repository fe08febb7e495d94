"""How many requests a remote store takes: a store served over HTTP on loopback by a server that counts."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from asmil.data.store import BagStore

__all__ = ["remote_rows"]


def remote_rows(folder: Path) -> list[dict[str, Any]]:
    """Requests that opening a store and reading each of its bags once take.

    Args:
        folder: The store's directory.

    Returns:
        One row: `layout` `remote`, `bags`, `requests_to_open`, `requests_per_bag`, and `bytes_ratio` (bytes sent per
        byte of the bags).
    """
    with _serving(folder) as server:
        store = BagStore.open(f"http://127.0.0.1:{server.server_address[1]}")
        to_open = server.num_requests
        server.num_requests = server.num_bytes = 0
        wanted = 0
        for slide_id in store.slide_ids:
            store.read(slide_id)
            row = store.index.row(slide_id)
            wanted += row.feat_nbytes + row.coord_nbytes + row.label_nbytes
        num_bags = len(store.slide_ids)
        return [
            {
                "layout": "remote",
                "description": "the store over HTTP on loopback; every bag read once",
                "bags": num_bags,
                "requests_to_open": to_open,
                "requests_per_bag": round(server.num_requests / num_bags, 3),
                "bytes_ratio": round(server.num_bytes / wanted, 4),
            }
        ]


@contextlib.contextmanager
def _serving(folder: Path) -> Iterator[_Server]:
    with _Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class _Server(ThreadingHTTPServer):
    """Counts requests and the bytes of the answers."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.files = {f"/{path.relative_to(folder)}": path for path in folder.rglob("*") if path.is_file()}
        self.num_requests = 0
        self.num_bytes = 0
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    """Answers requests for a range of a file; any other kind is an error."""

    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        first, last = (int(end) for end in re.findall(r"\d+", self.headers["Range"]))
        with self.server.files[self.path].open("rb") as file:
            file.seek(first)
            content = file.read(last + 1 - first)
        self.server.num_requests += 1
        self.server.num_bytes += len(content)
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
