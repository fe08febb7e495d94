"""An object store on loopback: plain HTTP, as much of S3 and of Google's JSON API as reading needs, and faults."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

Fault = int | str
"""A status to answer with, or `reset` (no answer), `short` (half of the body), `stall` (half of it, then nothing), or
`garble` (one bit of the last byte is wrong)."""

_CODES = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}


class Request(NamedTuple):
    """What was asked for: method, path with query, first and last byte if a range was asked for."""

    method: str
    path: str
    first: int | None = None
    last: int | None = None


class ObjectServer:
    """Serves the files below a folder, whose directories are the buckets.

    Args:
        folder: Its files may change at any time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[Request] = []
        self.knows_ranges = True
        self.closing = threading.Event()
        self._faults: dict[str, Iterator[Fault | None]] = {}
        self._lock = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fail(self, pattern: str, faults: Iterable[Fault | None]) -> None:
        """Answer the next requests whose `METHOD path` matches with these faults, one each; None is none."""
        self._faults[pattern] = iter(faults)

    def behave(self) -> None:
        """No more faults; requests are counted anew."""
        self._faults.clear()
        self.requests.clear()

    def forget_requests(self) -> None:
        """Count anew."""
        self.requests.clear()

    def address(self, scheme: str, path: str) -> str:
        """The address of a path below the folder: `s3`, `gs` or `http`."""
        return f"{self.endpoint}/{path}" if scheme == "http" else f"{scheme}://{path}"

    def count(self, method: str, name: str = "") -> int:
        """Requests so far whose path ends so."""
        return sum(request.method == method and request.path.endswith(name) for request in self.requests)

    def note(self, request: Request) -> Fault | None:
        """Record a request; the fault it meets, if any."""
        with self._lock:
            self.requests.append(request)
            for pattern, faults in self._faults.items():
                if re.search(pattern, f"{request.method} {request.path}"):
                    return next(faults, None)
        return None

    def __enter__(self) -> ObjectServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, owner: ObjectServer) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        owner = self.server.owner
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), int(asked[2] or 2**62)) if asked else (None, None)
        fault = owner.note(Request(self.command, self.path, first, last))
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if fault == "reset":
            self.close_connection = True
        elif isinstance(fault, int):
            self._answer_error(fault)
        elif "list-type" in query:
            self._answer(200, self._s3_listing(unquote(url.path).strip("/"), query.get("prefix", "")))
        elif asked := re.fullmatch(r"/storage/v1/b/([^/]+)/o", url.path):
            self._answer(200, self._google_listing(asked[1], query.get("prefix", "")))
        else:
            path = re.sub(r"^/download/storage/v1/b/([^/]+)/o/", r"/\1/", url.path)
            self._answer_file(owner.folder / unquote(path).strip("/"), first, last, fault)

    def _answer_error(self, status: int) -> None:
        code = _CODES.get(status, "Other")
        self._answer(status, f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode())

    def _answer_file(self, path: Path, first: int | None, last: int | None, fault: Fault | None) -> None:
        if not path.is_file():
            self._answer_error(404)
            return
        content = path.read_bytes()
        if first is None or last is None or not self.server.owner.knows_ranges:
            self._answer(200, content, fault=fault)
        elif first >= len(content):
            self._answer_error(416)
        else:
            part = content[first : last + 1]
            self._answer(206, part, {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}"}, fault)

    def _answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, fault: Fault | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), "Accept-Ranges": "bytes", **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "garble":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if fault in ("short", "stall"):
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)
        self.wfile.flush()
        if fault == "stall":
            self.server.owner.closing.wait(60)

    def _s3_listing(self, bucket: str, prefix: str) -> bytes:
        """The files below a prefix that ends with the delimiter, and what folders there are."""
        entries = "".join(
            f"<Contents><Key>{escape(prefix + path.name)}</Key><Size>{path.stat().st_size}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            if path.is_file()
            else f"<CommonPrefixes><Prefix>{escape(prefix + path.name)}/</Prefix></CommonPrefixes>"
            for path in self._names(bucket, prefix)
        )
        return f"<?xml version='1.0'?><ListBucketResult><Name>{bucket}</Name>{entries}</ListBucketResult>".encode()

    def _google_listing(self, bucket: str, prefix: str) -> bytes:
        names = self._names(bucket, prefix)
        items = [
            {"name": prefix + path.name, "bucket": bucket, "size": str(path.stat().st_size)}
            for path in names
            if path.is_file()
        ]
        prefixes = [f"{prefix}{path.name}/" for path in names if path.is_dir()]
        return json.dumps({"items": items, "prefixes": prefixes}).encode()

    def _names(self, bucket: str, prefix: str) -> list[Path]:
        folder = self.server.owner.folder / bucket / prefix
        return sorted(folder.iterdir()) if folder.is_dir() else []
