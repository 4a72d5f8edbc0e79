"""The main job on a built-in example: synthetic weights, served under the published URL, fetched for real.

A loopback HTTP server answers for the published host (a mirror rule leads there), with the checksum
headers that the real host sends, so that fetch, verify, convert and parity run exactly as they do on a
published file. Only the weights are synthetic, and every step says so.
"""

from __future__ import annotations

import base64
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from ckptkit.base.checksums import hash_file
from ckptkit.models.synth import synthetic_for, write_checkpoint
from ckptkit.registry.schema import Entry
from ckptkit.workspace import Workspace

DEMO_ENTRY = "tiny-moat0-256"


@dataclass(frozen=True)
class Served:
    """A file being served in place of a published one."""

    published: str
    mirror: str  # the FROM=TO rule that leads to it
    file: Path


@contextmanager
def serve_synthetic(entry: Entry, folder: Path) -> Iterator[Served]:
    """Write an entry's synthetic file and serve it on loopback under the published path."""
    published = next(source.url for source in entry.sources if not source.manual)
    parts = urlsplit(published)
    file = write_checkpoint(synthetic_for(entry), folder / Path(parts.path).name)
    with serve_file(file, parts.path) as port:
        yield Served(published, f"{parts.scheme}://{parts.netloc}=http://127.0.0.1:{port}", file)


@contextmanager
def serve_file(file: Path, path: str) -> Iterator[int]:
    """Serve one file on loopback, with Google Cloud Storage's checksum headers; yields the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(file, path))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(file: Path, path: str) -> type[BaseHTTPRequestHandler]:
    """Request handler for one file: GET and HEAD, whole or from an offset on."""
    digests = hash_file(file)
    size = file.stat().st_size
    headers = {
        "Content-Type": "application/octet-stream",
        "Accept-Ranges": "bytes",
        "ETag": f'"{digests.md5}"',
        "x-goog-generation": "1",
        "x-goog-hash": f"crc32c={_base64(digests.crc32c)},md5={_base64(digests.md5)}",
    }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            if urlsplit(self.path).path != path:
                self.send_error(404)
                return
            start = self._first_byte()
            self.send_response(206 if start else 200)
            ranged = {"Content-Range": f"bytes {start}-{size - 1}/{size}"} if start else {}
            for name, value in {**headers, **ranged, "Content-Length": str(size - start)}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                with file.open("rb") as content:
                    content.seek(start)
                    shutil.copyfileobj(content, self.wfile)

        def _first_byte(self) -> int:
            """Offset asked for by ``Range: bytes=N-``; 0 when the whole file is wanted."""
            asked = self.headers.get("Range", "").removeprefix("bytes=")
            fits = asked.endswith("-") and asked[:-1].isdigit() and int(asked[:-1]) < size
            same = self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]
            return int(asked[:-1]) if fits and same else 0

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing: the demo tells what happens."""

    return Handler


def _base64(hexadecimal: str) -> str:
    return base64.b64encode(bytes.fromhex(hexadecimal)).decode()


def demo_workspace(folder: Path, served: Served, base: Workspace) -> Workspace:
    """Return a workspace with a cache and a lock file of its own and the loopback server's mirror rule."""
    from dataclasses import replace

    from ckptkit.store.cache import Home
    from ckptkit.store.lockfile import LockFile

    home, trust = Home(folder / "home"), LockFile(folder / "ckptkit.lock")
    return replace(base, home=home, trust=trust, mirrors=(served.mirror,), registries=(), offline=False)
