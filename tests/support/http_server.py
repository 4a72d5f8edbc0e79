"""A real HTTP server on a real socket that serves files properly, except where a test scripts a fault.

Every answer begins as the one a good server would give (ranges, ``If-Range``, checksums and all). A fault is
a function that changes that answer; each request for a path takes the next fault scripted for it.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import google_crc32c


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    target: str
    headers: dict[str, str]

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def stop(self) -> int | None:
        """Byte after the last of the range asked for; None up to the end of the file."""
        last = self.headers.get("range", "").partition("-")[2]
        return int(last) + 1 if last else None

    @property
    def start(self) -> int | None:
        """First byte of the range asked for."""
        value = self.headers.get("range", "")
        return int(value.removeprefix("bytes=").partition("-")[0]) if value else None


@dataclass(frozen=True)
class Answer:
    """What goes back.

    ``cut`` sends only so many bytes of the body and closes; ``reset`` closes with RST; ``stall`` holds the
    connection open after ``cut`` bytes until the server stops. ``raw`` is sent in place of status, headers
    and body, as it is.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    cut: int | None = None
    reset: bool = False
    stall: bool = False
    pause: float = 0.0
    pause_every: int = 1 << 16
    raw: bytes | None = None

    def with_header(self, name: str, value: str) -> Answer:
        """Replace a header."""
        kept = tuple((n, v) for n, v in self.headers if n.lower() != name.lower())
        return replace(self, headers=(*kept, (name, value)))

    def without(self, *names: str) -> Answer:
        """Leave headers out."""
        lowered = [name.lower() for name in names]
        return replace(self, headers=tuple((n, v) for n, v in self.headers if n.lower() not in lowered))


Fault = Callable[[Request, Answer], Answer]


@dataclass
class Served:
    """A file a good server has."""

    body: bytes
    etag: str | None = '"v1"'
    headers: tuple[tuple[str, str], ...] = ()
    ranges: bool = True


def goog_hash(body: bytes) -> tuple[tuple[str, str], ...]:
    """Headers as Google Cloud Storage sends them, one line a checksum."""
    crc = base64.b64encode(struct.pack(">I", google_crc32c.value(body))).decode()
    md5 = base64.b64encode(hashlib.md5(body).digest()).decode()
    return (
        ("x-goog-hash", f"crc32c={crc}"),
        ("x-goog-hash", f"md5={md5}"),
        ("x-goog-generation", "1665000000000001"),
    )


def md5_of(body: bytes) -> str:
    """md5 as headers have it: base64."""
    return base64.b64encode(hashlib.md5(body).digest()).decode()


@dataclass
class FaultServer:
    """The server; use as a context manager.

    Attributes
    ----------
    requests : list of Request
        Everything asked so far, in order.
    """

    files: dict[str, Served] = field(default_factory=dict)
    script: dict[str, list[Fault]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    certificate: Path | None = None
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        self._listener = socket.create_server((self.host, 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        if self.certificate:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(self.certificate)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> FaultServer:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        # wakes the accepting thread up
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=1):
            pass
        self._listener.close()
        for thread in list(self._threads):
            thread.join(timeout=5)

    @property
    def base(self) -> str:
        return f"{'https' if self.certificate else 'http'}://{self.host}:{self.port}"

    def url(self, path: str) -> str:
        return self.base + path

    def serve(self, path: str, body: bytes, **options: object) -> str:
        """Have a file; returns its URL."""
        self.files[path] = Served(body, **options)  # type: ignore[arg-type]
        return self.url(path)

    def fail(self, path: str, *faults: Fault) -> None:
        """Script faults for the next requests of a path."""
        self.script.setdefault(path, []).extend(faults)

    def ranges(self, path: str) -> list[int | None]:
        """First byte each request for a path asked for (None: no range)."""
        return [request.start for request in self.requests if request.path == path]

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._converse, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _converse(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.settimeout(10)
            if self._context:
                connection = self._context.wrap_socket(connection, server_side=True)
            request = _read_request(connection)
            if request is None:
                return
            with self._lock:
                self.requests.append(request)
                faults = self.script.get(request.path, [])
                fault = faults.pop(0) if faults else None
            answer = self._good_answer(request)
            if fault:
                answer = fault(request, answer)
            self._send(connection, answer)

    def _good_answer(self, request: Request) -> Answer:
        served = self.files.get(request.path)
        if served is None:
            return Answer(404, body=b"not here")
        headers = (*served.headers, *((("ETag", served.etag),) if served.etag else ()))
        size, start = len(served.body), request.start
        condition = request.headers.get("if-range")
        if start is None or not served.ranges or (condition is not None and condition != served.etag):
            return Answer(200, headers, served.body)
        if start >= size:
            return Answer(416, (("Content-Range", f"bytes */{size}"),))
        stop = min(request.stop or size, size)
        headers += (("Content-Range", f"bytes {start}-{stop - 1}/{size}"),)
        return Answer(206, headers, served.body[start:stop])

    def _send(self, connection: socket.socket, answer: Answer) -> None:
        if answer.raw is not None:
            connection.sendall(answer.raw)
            if answer.stall:
                self._stopped.wait(30)
            return
        lines = [f"HTTP/1.1 {answer.status} Scripted", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in answer.headers]
        if not any(name.lower() in ("content-length", "transfer-encoding") for name, _ in answer.headers):
            lines.append(f"Content-Length: {len(answer.body)}")
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        body = answer.body if answer.cut is None else answer.body[: answer.cut]
        step = answer.pause_every if answer.pause else max(len(body), 1)
        for begin in range(0, len(body), step):
            connection.sendall(body[begin : begin + step])
            if answer.pause and self._stopped.wait(answer.pause):
                return
        if answer.stall:
            self._stopped.wait(30)
        if answer.reset:
            # a linger time of zero makes close() send RST; the client must have read what was sent
            self._stopped.wait(0.1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _read_request(connection: socket.socket) -> Request | None:
    text = b""
    while b"\r\n\r\n" not in text:
        piece = connection.recv(4096)
        if not piece:
            return None
        text += piece
    first, *lines = text.decode("latin-1").split("\r\n\r\n")[0].split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = dict(line.split(": ", 1) for line in lines)
    return Request(method, target, {name.lower(): value for name, value in headers.items()})


# Faults, ready made.


def cut(after: int) -> Fault:
    """Close after so many bytes of the body."""
    return lambda _request, answer: replace(answer, cut=after)


def reset(after: int) -> Fault:
    """RST after so many bytes of the body."""
    return lambda _request, answer: replace(answer, cut=after, reset=True)


def stall(after: int) -> Fault:
    """Send so many bytes, and nothing more, without closing."""
    return lambda _request, answer: replace(answer, cut=after, stall=True)


def slowly(pause: float, every: int = 1 << 16) -> Fault:
    """Wait after each piece."""
    return lambda _request, answer: replace(answer, pause=pause, pause_every=every)


def status(code: int, *headers: tuple[str, str]) -> Fault:
    """Answer with a status alone."""
    return lambda _request, _answer: Answer(code, headers, b"scripted")


def redirect(location: str, code: int = 302, *headers: tuple[str, str]) -> Fault:
    """Send elsewhere."""
    return lambda _request, _answer: Answer(code, (("Location", location), *headers))


def header(name: str, value: str) -> Fault:
    """Replace a header of the good answer."""
    return lambda _request, answer: answer.with_header(name, value)


def whole(body: bytes, *headers: tuple[str, str]) -> Fault:
    """Answer 200 with another body."""
    return lambda _request, _answer: Answer(200, headers, body)


def raw(answer: bytes, *, stall: bool = False) -> Fault:
    """Send these bytes and nothing of HTTP's own; then close, or hold the connection open."""
    return lambda _request, _answer: Answer(200, raw=answer, stall=stall)


def without_length(_request: Request, answer: Answer) -> Answer:
    """Close-delimited, so that a cut looks like an end."""
    return replace(answer, headers=(*answer.headers, ("Transfer-Encoding", "identity")))


def chunked(*, ends: bool) -> Fault:
    """Send in chunks, with the end mark or broken before it."""

    def fault(_request: Request, answer: Answer) -> Answer:
        pieces = [answer.body[i : i + 50_000] for i in range(0, len(answer.body), 50_000)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        headers = (*answer.headers, ("Transfer-Encoding", "chunked"))
        return replace(answer, headers=headers, body=body + b"0\r\n\r\n" if ends else body[:-40_000])

    return fault


def gzipped(_request: Request, answer: Answer) -> Answer:
    """Lay a gzip coding on top of the file."""
    packed = gzip.compress(answer.body)
    return replace(answer, body=packed).with_header("Content-Encoding", "gzip").without("x-goog-hash")
