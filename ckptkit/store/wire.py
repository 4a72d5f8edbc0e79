"""HTTP as it comes over the wire: one adapter under all that asks a server, with bounds in bytes and time.

http.client waits for each byte anew, reads interim answers and trailers without end, and takes only some
framings apart. So heads are read against a clock and a number of bytes here, and bodies by their framing: a
length, chunks, or the end of the connection. A body that nearly stands still is given up.
"""

from __future__ import annotations

import http.client
import io
import math
import re
import socket
import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from requests.adapters import HTTPAdapter

from ckptkit.store.transport import FramingError, PassingError, Policy, SlowError, SourceError

if TYPE_CHECKING:
    import requests

_MOST_INTERIM = 8
_MOST_HEAD = 256 << 10
_MOST_TRAILERS = 32 << 10
_LONGEST_CHUNK_LINE = 4096
_FRAMING = 1 << 20
_FRAMING_RATIO = 64
"""Bytes of the file for each of framing, beyond the first `_FRAMING`: chunks of a few hundred bytes."""
_ENOUGH = 1 << 16
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
_HIDDEN = re.compile(
    r"^[ \t]*(?:transfer-encoding|content-(?:length|encoding|range)|location)\b", re.IGNORECASE | re.MULTILINE
)


class LimitError(OSError):
    """A server did something without end, or something that cannot be understood.

    Parameters
    ----------
    error : SourceError or PassingError
        What it means for the source.
    """

    def __init__(self, error: SourceError | PassingError) -> None:
        super().__init__(str(error))
        self.error = error


def limit_in(error: BaseException) -> SourceError | PassingError | None:
    """The `LimitError` that libraries have wrapped in errors of their own, as what it means."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop()
        if isinstance(one, LimitError):
            return one.error
        if id(one) not in seen:
            seen.add(id(one))
            inner = (one.__cause__, one.__context__, getattr(one, "reason", None), *one.args)
            waiting += [other for other in inner if isinstance(other, BaseException)]
    return None


class BoundedAdapter(HTTPAdapter):
    """Makes connections, direct ones and through proxies, whose answers are `_Answer`."""

    def __init__(self, policy: Policy) -> None:
        self._answer = partial(_Answer, policy)
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Make the pools of direct connections."""
        super().init_poolmanager(*arguments, **options)
        self._bound(self.poolmanager)

    def proxy_manager_for(self, proxy: Any, **options: Any) -> Any:
        """Return the pools of connections through a proxy."""
        known = proxy in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **options)
        if not known:
            self._bound(manager)
        return manager

    def _bound(self, manager: Any) -> None:
        manager.pool_classes_by_scheme = {
            scheme: _with_answers(pool, self._answer)
            for scheme, pool in manager.pool_classes_by_scheme.items()
        }


def _with_answers(pool: Any, answer: Any) -> Any:
    """A class of pools whose connections read answers by a class of ours."""
    connection = type(pool.ConnectionCls.__name__, (pool.ConnectionCls,), {"response_class": answer})
    return type(pool.__name__, (pool,), {"ConnectionCls": connection})


def mount(session: requests.Session, policy: Policy) -> None:
    """Have a session ask through a `BoundedAdapter`."""
    for prefix in ("http://", "https://"):
        session.mount(prefix, BoundedAdapter(policy))


class _Answer(http.client.HTTPResponse):
    """An answer whose head has a deadline and a size, and whose body must keep coming."""

    def __init__(self, policy: Policy, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self._interim = 0
        self._watched = _Watched(self.fp.detach(), sock, policy)
        self.fp = io.BufferedReader(self._watched)

    def begin(self) -> None:
        if self.headers is not None:
            return
        super().begin()
        framing = self.headers.get_all("Transfer-Encoding", [])
        if framing and self.version == 10:
            raise LimitError(SourceError("the server frames an HTTP/1.0 answer, which has no framing"))
        if any("\n" in value for value in framing):
            raise LimitError(SourceError("the server frames the file in a header of several lines"))
        rest = self.msg.get_payload() if self.msg.defects else ""
        if isinstance(rest, str) and _HIDDEN.search(rest):
            raise LimitError(SourceError("the server sends headers that cannot be understood"))
        self._watched.head_is_over()

    def _read_status(self) -> tuple[str, int, str]:
        """Read the status line of the answer itself, behind those of interim ones."""
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if not 100 <= status < 200 or status == 101:
                return version, status, reason
            self._interim += 1
            if self._interim > _MOST_INTERIM:
                raise LimitError(SourceError(f"the server sends more than {_MOST_INTERIM} interim answers"))
            while self.fp.readline(_MOST_HEAD) not in (b"\r\n", b"\n", b""):
                pass


class _Watched(io.RawIOBase):
    """Bytes from a socket: those of a head by a deadline, those of a body at some rate."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, policy: Policy) -> None:
        self._raw = raw
        self._sock = sock
        self._patience = sock.gettimeout()
        self._policy = policy
        self._ends: float | None = time.monotonic() + policy.head_seconds
        self._count = 0
        self._waited = 0.0

    def readable(self) -> bool:
        return True

    def head_is_over(self) -> None:
        """From now on it is the body."""
        self._ends, self._count, self._waited = None, 0, 0.0

    def readinto(self, buffer: Any, /) -> int:
        count = self._receive(buffer)
        self._count += count
        if self._ends is not None and self._count > _MOST_HEAD:
            raise LimitError(SourceError(f"the server sends more than {_MOST_HEAD:,} bytes of headers"))
        return count

    def _receive(self, buffer: Any) -> int:
        """Wait for bytes as long as the read timeout, the head's deadline and the rate allow."""
        began = time.monotonic()
        stalls_at = math.inf if self._patience is None else began + self._patience
        while True:
            most = self._left(began)
            bounded = began + most < stalls_at
            self._sock.settimeout(max(most if bounded else stalls_at - began, 0.001))
            try:
                return self._sock.recv_into(buffer)
            except TimeoutError:
                if not bounded:
                    raise
            finally:
                now = time.monotonic()
                self._waited, began = self._waited + now - began, now

    def _left(self, now: float) -> float:
        """Seconds until the head must be here, or until the rate of the body is looked at again."""
        if self._ends is not None:
            left = self._ends - now
            if left <= 0:
                raise self._too_slow()
            return left
        if self._waited >= self._policy.slow_seconds:
            if self._count < self._policy.slowest * self._waited:
                raise self._too_slow()
            self._count, self._waited = 0, 0.0
        return self._policy.slow_seconds - self._waited

    def _too_slow(self) -> LimitError:
        policy = self._policy
        if self._ends is not None:
            return LimitError(SlowError(f"no whole answer within {policy.head_seconds:g} s"))
        return LimitError(
            SlowError(
                f"{self._count:,} bytes in {policy.slow_seconds:g} s, less than {policy.slowest:,} a second"
            )
        )

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


# -- bodies --------------------------------------------------------------------------------------------------


def body(
    stream: io.BufferedReader, length: int | None, chunked: bool, step: int, kept: int
) -> Iterator[memoryview]:
    """Yield a body from the socket, past urllib3, which copies each piece twice.

    The buffers are used again, in turn: fresh memory for each piece took as long as receiving it.

    Parameters
    ----------
    stream : io.BufferedReader
        Behind the head.
    length : int or None
        Bytes to come; None up to the end of the connection.
    chunked : bool
        Whether they come in chunks.
    step : int
        Bytes to ask for at a time.
    kept : int
        How many further pieces a piece stays unchanged for.

    Raises
    ------
    LimitError
        When chunks are not framed as they must be, or of next to nothing.
    """
    buffers = _buffers(step if length is None else min(step, length), kept)
    if chunked:
        yield from _dechunked(stream, buffers)
        return
    left = length
    while left is None or left > 0:
        buffer = next(buffers)
        count = stream.readinto1(buffer if left is None else buffer[:left])
        if not count:
            return  # whoever counts says that it ended early
        left = None if left is None else left - count
        yield buffer[:count]


def _buffers(size: int, kept: int) -> Iterator[memoryview]:
    buffers: list[memoryview] = []
    while len(buffers) < kept + 2:
        buffers.append(memoryview(bytearray(size)))
        yield buffers[-1]
    while True:
        yield from buffers


def _dechunked(stream: io.BufferedReader, buffers: Iterator[memoryview]) -> Iterator[memoryview]:
    """Yield what is in chunks, several small ones together; what came before a fault is not lost."""
    buffer, at = next(buffers), 0
    enough = min(len(buffer), _ENOUGH)
    received = framing = 0
    try:
        while True:
            line = stream.readline(_LONGEST_CHUNK_LINE)
            left = _chunk_size(line)
            if not left:
                break
            received += left
            framing += len(line) + 2
            if framing > _FRAMING + received // _FRAMING_RATIO:
                raise LimitError(SourceError("the server sends chunks of a few bytes each"))
            while left:
                count = stream.readinto1(buffer[at : at + left])
                if not count:
                    raise _broken()
                at += count
                left -= count
                if at >= enough:
                    yield buffer[:at]
                    buffer, at = next(buffers), 0
            if (end := stream.readline(2)) not in (b"\r\n", b"\n"):
                raise _broken() if not end else _misframed()
        _skip_trailers(stream)
    except OSError:
        if at:
            yield buffer[:at]
        raise
    if at:
        yield buffer[:at]


def _chunk_size(line: bytes) -> int:
    found = _CHUNK_LINE.fullmatch(line)
    if found is None:
        raise _broken() if not line.endswith(b"\n") and len(line) < _LONGEST_CHUNK_LINE else _misframed()
    return int(found[1], 16)


def _skip_trailers(stream: io.BufferedReader) -> None:
    left = _MOST_TRAILERS
    while (line := stream.readline(left)) not in (b"\r\n", b"\n"):
        left -= len(line)
        if not line:
            raise _broken()
        if left <= 0:
            raise LimitError(SourceError(f"the server sends more than {_MOST_TRAILERS:,} bytes of trailers"))


def _broken() -> LimitError:
    return LimitError(PassingError("the connection broke: the body ended early"))


def _misframed() -> LimitError:
    return LimitError(FramingError("the server sends chunks that are not framed as HTTP says"))
