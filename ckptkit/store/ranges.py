"""Several ranges of one large file at once, handed on in the file's order.

Each connection asks for a segment (8 MiB) into memory, with retries of its own; the segments are then
appended to the part as if they had come over one connection. So the part on the disk is always a sound
beginning of the file, whatever is killed when: nothing needs preallocation or a list of what is complete,
bytes are hashed in order as they pass, and only the segments in memory can be lost (at most as many as there
are connections, and two more).

Every answer is checked against the file's strong validator, its size and the range asked for. The first that
does not fit ends it, and the rest is left to one connection.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from ckptkit.store.transport import (
    KEPT,
    Failures,
    Identity,
    Opener,
    PassingError,
    Policy,
    RangeError,
    Response,
    StoppedError,
)

MOST = 8
"""Connections at once to one server: more is what servers take for an attack."""

_HANDED_OVER = 1 << 20
_NAP = 0.5
_FAREWELL = 1.0


@dataclass
class _Segment:
    """One segment: its buffer, which is used again later, its length, and how much of it is there."""

    buffer: bytearray
    start: int
    length: int
    filled: int = 0


class Segments:
    """The rest of a file, fetched over several connections.

    Parameters
    ----------
    url : str
    opener : Opener
        Safe to call from several threads.
    policy : Policy
        How many connections, how patient each.
    identity : Identity
        Of the file; strong (`Identity.is_strong`), or parts could not be tied together.
    start : int
        First byte wanted.
    """

    def __init__(self, url: str, opener: Opener, policy: Policy, identity: Identity, start: int) -> None:
        assert identity.size is not None
        self._url = url
        self._opener = opener
        self._policy = policy
        self._identity = identity
        self._starts = range(start, identity.size, policy.segment)
        self._size = identity.size
        self._done: dict[int, _Segment] = {}
        self._unused: list[bytearray] = []
        self._next = 0
        self._front = 0
        self._error: BaseException | None = None
        self._closed = False
        self._waited = 0.0
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    def pieces(self) -> Iterator[memoryview]:
        """Yield the bytes in order.

        Raises
        ------
        RangeError
            When an answer does not fit.
        SourceError
            When a segment failed too often in a row.
        PassingError, StoppedError
            As they came.
        """
        count = min(self._policy.connections, MOST, len(self._starts))
        for number in range(count):
            thread = threading.Thread(target=self._work, name=f"ckptkit-range-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()
        handed_over: collections.deque[bytearray] = collections.deque()
        for index in range(len(self._starts)):
            segment = self._await(index)
            view = memoryview(segment.buffer)[: segment.length]
            for begin in range(0, len(view), _HANDED_OVER):
                yield view[begin : begin + _HANDED_OVER]
            handed_over.append(segment.buffer)
            if (
                len(handed_over) * -(-len(view) // _HANDED_OVER) > KEPT
            ):  # hashed by now: fresh memory costs more
                self._unused.append(handed_over.popleft())

    def close(self) -> None:
        """Have the threads end; one that waits for its server may take its time, and harms nobody."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_FAREWELL / len(self._threads))

    def _await(self, index: int) -> _Segment:
        with self._changed:
            while index not in self._done:
                if self._error is not None:
                    raise self._error
                self._changed.wait(_NAP)  # wakes up by itself: a signal must find the main thread awake
            self._front = index + 1
            self._changed.notify_all()
            return self._done.pop(index)

    def _take_next(self) -> int | None:
        """Return the next segment to fetch, once it is near enough to the front; None when all is over."""
        with self._changed:
            while not self._over() and self._next >= self._front + self._policy.connections + 2:
                self._changed.wait()
            if self._over():
                return None
            self._next += 1
            return self._next - 1

    def _over(self) -> bool:
        return self._closed or self._error is not None or self._next >= len(self._starts)

    def _work(self) -> None:
        try:
            while (index := self._take_next()) is not None:
                segment = self._fetch(self._starts[index])
                with self._changed:
                    self._done[index] = segment
                    self._changed.notify_all()
        except BaseException as error:  # raised again in the thread that waits for the bytes
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _fetch(self, start: int) -> _Segment:
        try:
            buffer = self._unused.pop()
        except IndexError:
            buffer = bytearray(self._policy.segment)
        segment = _Segment(buffer, start, min(len(buffer), self._size - start))
        failures = Failures(self._policy)
        while True:
            before = segment.filled
            begin, stop = start + segment.filled, start + segment.length
            try:
                with self._opener(self._url, begin, self._identity, stop) as response:
                    self._fill(segment, response)
                if segment.filled == segment.length:
                    return segment
                missing = segment.length - segment.filled
                raise PassingError(f"the connection closed {missing:,} bytes before the end of a range")
            except PassingError as error:
                wait = failures.wait_for(error, progress=segment.filled > before)
                with self._changed:
                    self._waited += error.retry_after or 0.0
                    if self._waited > self._policy.max_retry_after * self._policy.connections:
                        raise
                self._sleep(wait)

    def _fill(self, segment: _Segment, response: Response) -> None:
        """Copy a body into its place as it arrives, so that a fault loses nothing."""
        if not response.partial:
            raise RangeError("the server answered a range request with the whole file")
        for piece in response.pieces():
            end = segment.filled + len(piece)
            if end > segment.length:
                raise RangeError("the server sent more than the range asked for")
            segment.buffer[segment.filled : end] = piece
            segment.filled = end
            self._policy.account(len(piece))
            self._refuse_closed()

    def _sleep(self, seconds: float) -> None:
        while seconds > 0:
            self._refuse_closed()
            self._policy.sleep(min(seconds, _NAP))
            seconds -= _NAP

    def _refuse_closed(self) -> None:
        if self._closed or self._policy.stopped():
            raise StoppedError("stopped")


def may_be_split(url: str, policy: Policy) -> bool:
    """Whether several connections are wanted, to a server that could have ranges at all."""
    return policy.connections > 1 and urlsplit(url).scheme.lower() in ("http", "https")
