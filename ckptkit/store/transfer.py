"""From one source to a complete, hashed part of a file: resuming, retrying, refusing what is not the file."""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ckptkit.base.checksums import StreamHasher, compare
from ckptkit.base.errors import CkptkitError, IntegrityError, StorageError
from ckptkit.base.net import (
    BusyError,
    Failures,
    PassingError,
    Policy,
    RangeError,
    RefusedError,
    Session,
    SourceError,
    StoppedError,
)
from ckptkit.base.progress import Advance, Progress, Say, say_nothing
from ckptkit.base.text import counted
from ckptkit.base.urls import host_of, is_local, without_secrets
from ckptkit.store.openers import Identity, Opener, Response, open_file, open_http
from ckptkit.store.partial import Partial, require_space
from ckptkit.store.remote import STORES, is_remote, open_remote

_WEB_PAGE = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\b|!--|\?xml\b|(?:html|head|body|script|error)\b)", re.IGNORECASE
)
_LOOK_EVERY = 16 << 20
"""Bytes of unknown number after which it is asked what they are, and how much of the disk is free."""
_SOON = 10.0
"""Seconds within which any byte is progress."""
_LFS_POINTER = b"version https://git-lfs"


@dataclass
class Transfer:
    """One source being downloaded."""

    url: str  # where the bytes come from, after mirror rules
    partial: Partial  # where they go
    opener: Opener  # makes one request; see `url_opener`
    policy: Policy
    expected_size: int | None = None  # the pinned size
    progress: Progress | None = None
    notes: Say = say_nothing
    # Whether a checksum known before decides in the end. Parts are then joined whatever marks their answers
    # carry: nodes of one server may give the same file different ETags
    is_tied: bool = False
    # Whether the file can begin with some bytes; asked where the server does not state how many there are
    may_begin: Callable[[bytes], bool] = lambda _head: True
    # Told once how many bytes the file has, when the part is there and the first of them are to come
    begun: Callable[[int | None], None] = lambda _size: None
    name: str | None = None  # what progress is of, by default the file
    _has_begun: bool = field(default=False, init=False)
    _crowded: bool = field(default=False, init=False)

    def run(self) -> None:
        """Download until the part is complete."""
        with contextlib.ExitStack() as stack:
            shown = _Shown(self.progress, self.name or self.partial.name, stack)
            self.partial.resume()
            failures, restarts = Failures(self.policy), Failures(self.policy)
            restarted = False
            in_parallel = may_be_split(self.url, self.policy)
            for _ in range(self.policy.max_attempts):
                self.policy.account(0)
                before, began = self.partial.size, time.monotonic()
                try:
                    if in_parallel:
                        if self._receive_in_parallel(shown):
                            return
                        in_parallel = False
                        continue
                    with self.opener(self.url, before, self._known()) as response:
                        self._receive(response, shown)
                    return
                except RefusedError as error:
                    if not self._crowded:
                        raise
                    # the server may still count the other connections
                    self._wait(failures.wait_for(error, progress=False), str(error))
                except RangeError as error:
                    self.partial.discard()
                    reason = f"{error}; beginning again"
                    wait = restarts.wait_for(RangeError(reason), progress=False)
                    self._wait(wait if restarted else 0.0, reason)
                    restarted = True
                except PassingError as error:
                    if self.partial.size and not self._can_resume():
                        self.partial.discard()
                    progress = self._is_progress(self.partial.size - before, time.monotonic() - began)
                    self._wait(failures.wait_for(error, progress=progress), str(error))
            raise BusyError(f"still not complete after {counted(self.policy.max_attempts, 'request')}")

    def _receive_in_parallel(self, shown: _Shown) -> bool:
        """Receive over several connections where that is sound; returns whether the file is complete.

        A small first range is the question whether the server has ranges. One that has none answers with the
        whole file, which is taken as it comes.
        """
        try:
            if not self.partial.size:
                with self.opener(self.url, 0, None, self.policy.segment) as response:
                    if response.partial and not self._ties(response.identity):
                        return False  # nothing would tie further parts to this one
                    self._receive(response, shown)
            identity = self._known()
            if self._is_complete() or identity is None or not self._ties(identity):
                return self._is_complete()
            if (identity.size or 0) <= self.policy.split_from:
                return False
            self._receive_segments(identity, shown)
        except (RangeError, PassingError, SourceError) as error:
            if not (self.partial.size or isinstance(error, (RangeError, RefusedError))):
                raise
            self._crowded = self.partial.size > 0
            self.notes(f"{host_of(self.url)}: {error}; going on with one connection")
            return False
        return True

    def _receive_segments(self, identity: Identity, shown: _Shown) -> None:
        at, size = self.partial.size, identity.size or 0
        segments = Segments(self.url, self.opener, self.policy, identity, at)
        with contextlib.closing(segments):
            rest = Response(
                self.url,
                identity,
                segments.pieces(),
                offset=at,
                length=size - at,
                partial=True,
                accounted=True,
            )
            self._receive(rest, shown)

    def _known(self) -> Identity | None:
        """What further answers must say of the file."""
        identity = self.partial.identity
        return identity.unmarked if identity and self._decides(identity) else identity

    def _decides(self, identity: Identity) -> bool:
        """Whether the checksum alone ties the parts; in an object store the store's own marks do."""
        return self.is_tied and identity.size is not None and not is_remote(self.url)

    def _ties(self, identity: Identity) -> bool:
        """Whether parts that come at the same time can be tied together."""
        return identity.is_strong or self._decides(identity)

    def _can_resume(self) -> bool:
        identity = self.partial.identity
        return identity is not None and (identity.can_resume or self._decides(identity))

    def _is_complete(self) -> bool:
        size = self.partial.identity.size if self.partial.identity else None
        return self.partial.size > 0 and (size is None or self.partial.size >= size)

    def _is_progress(self, count: int, seconds: float) -> bool:
        """Whether this rate is worth continuing for."""
        return count > 0 and (seconds < _SOON or count >= self.policy.slowest * seconds)

    def _wait(self, seconds: float, reason: str) -> None:
        kept = f", {self.partial.size:,} bytes kept" if self.partial.size else ""
        when = f"in {max(seconds, 1):.0f} s" if seconds else "now"
        self.notes(f"{host_of(self.url)}: {reason}{kept}; trying again {when}")
        if seconds:
            self.policy.sleep(seconds)

    def _receive(self, response: Response, shown: _Shown) -> None:
        partial = self.partial
        if response.offset == 0:
            if partial.size:
                change = (partial.identity or Identity()).change(response.identity)
                why = change or "the server answered the range request with the whole file"
                self.notes(f"{host_of(self.url)}: {why}, so it is sent from the beginning again")
            self._refuse_size(response.identity.size)
            partial.begin(response.identity, () if response.coding else response.expected)
        else:
            partial.joined = True
            partial.expected = partial.expected or response.expected
        if response.coding:
            self.notes(f"{host_of(self.url)}: applies {response.coding} to the file, though asked not to")
        if response.length is not None and not response.coding:
            require_space(partial.folder, response.length, partial.name)
        if not response.ends_marked and self.expected_size is None and not response.expected:
            raise SourceError("the server gives neither length nor checksum, so a cut could not be noticed")
        if not self._has_begun:
            self._has_begun = True
            self.begun(response.identity.size)
        shown.start(response.identity.size, partial.size)
        wire = StreamHasher()
        try:
            self._store(_counted(response, wire, self._account_of(response)), response, shown)
        finally:
            partial.flush()
        if response.coding:
            compare(partial.name, wire.digests(), response.expected, hint="run the same command again")
        if not partial.size:
            raise SourceError("the file is empty")
        if self._is_complete():
            self._refuse_size(partial.size)

    def _account_of(self, response: Response) -> Callable[[int], None] | None:
        """What to tell of bytes that come: nothing of local files, and not twice."""
        return None if response.accounted or is_local(self.url) else self.policy.account

    def _store(self, pieces: Iterator[bytes | memoryview], response: Response, shown: _Shown) -> None:
        seen, looked = 0, self.partial.size
        is_known = self.expected_size is not None or (response.length is not None and not response.coding)
        for piece in decoded(pieces, self.partial.name) if response.coding else pieces:
            self.partial.append(piece)
            shown.advance(len(piece))
            if len(self.partial.head) > seen:
                seen = len(self.partial.head)
                self._refuse_page(self.partial.head)
            if self.expected_size is not None and self.partial.size > self.expected_size:
                self._refuse_size(self.partial.size)
            if not is_known and self.partial.size - looked >= _LOOK_EVERY:
                looked = self.partial.size
                self._refuse_endless(coded=bool(response.coding))

    def _refuse_endless(self, *, coded: bool) -> None:
        """Refuse a file of unknown size that grows beyond all measure, or that would leave the disk full."""
        if self.partial.size > self.policy.most_unknown:
            most = self.policy.most_unknown
            self.partial.discard()
            raise SourceError(f"sends more than {most:,} bytes without announcing how many there are")
        if not coded and not self.may_begin(self.partial.head):
            self.partial.discard()
            raise SourceError("sends something that is not the file, and does not say how much of it")
        try:
            require_space(self.partial.folder, _LOOK_EVERY, self.partial.name, keep=True)
        except StorageError:
            self.partial.discard()
            raise

    def _refuse_size(self, size: int | None) -> None:
        if self.expected_size is not None and size is not None and size != self.expected_size:
            raise IntegrityError(
                f"{self.partial.name}: {size:,} bytes from {host_of(self.url)}, "
                f"but the registry says {self.expected_size:,}",
                hint="the published file has changed or the registry is wrong; nothing was kept",
            )

    def _refuse_page(self, head: bytes) -> None:
        answered = "" if is_local(self.url) else "answered with "
        if _WEB_PAGE.match(head):
            self.partial.discard()
            raise BusyError(f"{answered}a web page instead of the file (a login, a quota or an error page)")
        if head.startswith(_LFS_POINTER):
            self.partial.discard()
            raise SourceError(f"{answered}a Git LFS pointer instead of the file")


class _Shown:
    """The progress display of one file, opened when its size is known and kept over all requests."""

    def __init__(self, progress: Progress | None, name: str, stack: contextlib.ExitStack) -> None:
        self._progress = progress
        self._name = name
        self._stack = stack
        self._advance: Advance | None = None
        self._at = 0

    def start(self, total: int | None, position: int) -> None:
        if self._advance is None and self._progress is not None:
            self._advance = self._stack.enter_context(self._progress(self._name, total))
        self.advance(position - self._at)

    def advance(self, step: int) -> None:
        self._at += step
        if self._advance and step:
            self._advance(step)


def _counted(
    response: Response, wire: StreamHasher, account: Callable[[int], None] | None
) -> Iterator[bytes | memoryview]:
    """Yield the body, checking that as much came as was announced."""
    received = 0
    for piece in response.body:
        received += len(piece)
        if response.coding:
            wire.update(bytes(piece))
        yield piece
        if account:
            account(len(piece))
    if response.length is not None and received != response.length:
        raise PassingError(f"the connection closed after {received:,} of {response.length:,} bytes")


# -- several ranges at once ----------------------------------------------------------------------------------
#
# Each connection asks for a segment (8 MiB) into memory, with retries of its own; the segments are then
# appended to the part as if they had come over one connection. So the part on the disk is always a sound
# beginning of the file, whatever is killed when: nothing needs preallocation or a list of what is complete,
# bytes are hashed in order as they pass, and only the segments in memory can be lost (at most as many as
# there are connections, and two more). Every answer is checked against the file's strong validator, its size
# and the range asked for. The first that does not fit ends it, and the rest is left to one connection.

_MOST = 8
"""Connections at once to one server: more is what servers take for an attack."""
_HANDED_OVER = 1 << 20
_NAP = 0.5
_FAREWELL = 1.0


@dataclass
class _Segment:
    """One segment of a file, and how much of it is there."""

    start: int
    content: bytearray
    filled: int = 0


class Segments:
    """The rest of a file, fetched over several connections."""

    def __init__(self, url: str, opener: Opener, policy: Policy, identity: Identity, start: int) -> None:
        assert identity.size is not None
        self._url = url
        self._opener = opener
        self._policy = policy
        self._identity = identity
        self._starts = range(start, identity.size, policy.segment)
        self._size = identity.size
        self._done: dict[int, _Segment] = {}
        self._next = 0
        self._front = 0
        self._error: BaseException | None = None
        self._closed = False
        self._waited = 0.0
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    def pieces(self) -> Iterator[memoryview]:
        """Yield the bytes in order."""
        count = min(self._policy.connections, _MOST, len(self._starts))
        for number in range(count):
            thread = threading.Thread(target=self._work, name=f"ckptkit-range-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()
        for index in range(len(self._starts)):
            content = memoryview(self._await(index).content)
            for begin in range(0, len(content), _HANDED_OVER):
                yield content[begin : begin + _HANDED_OVER]

    def close(self) -> None:
        """Have the threads end; one that waits for its server may take its time, and does no harm."""
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
        length = min(self._policy.segment, self._size - start)
        segment = _Segment(start, bytearray(length))
        failures = Failures(self._policy)
        while True:
            before = segment.filled
            try:
                with self._opener(self._url, start + before, self._identity, start + length) as response:
                    self._fill(segment, response)
                if segment.filled == length:
                    return segment
                missing = length - segment.filled
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
        for piece in response.body:
            end = segment.filled + len(piece)
            if end > len(segment.content):
                raise RangeError("the server sent more than the range asked for")
            segment.content[segment.filled : end] = piece
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


# -- a content coding that a server lays on top of the file, although asked not to ---------------------------

_GZIP_MAGIC = b"\x1f\x8b"
_STEP = 1 << 20
_RATIO = 100
_RATIO_FROM = 64 << 20  # weights hardly shrink at all; a small file of zeros is harmless


def decoded(pieces: Iterator[bytes | memoryview], name: str) -> Iterator[bytes | memoryview]:
    """Take the coding off.

    Some servers send ``Content-Encoding: gzip`` for a plain ``.tar.gz`` and mean the file itself. For such a
    name the coding is taken off only if what comes out is gzip again.
    """
    if not name.lower().endswith((".gz", ".tgz")):
        return _gunzip(pieces)
    head = b""
    for piece in pieces:
        head += piece
        inner = _first_bytes(head)
        if inner is None or len(inner) >= len(_GZIP_MAGIC):
            break
    whole: Iterator[bytes | memoryview] = itertools.chain([head], pieces)
    return _gunzip(whole) if (_first_bytes(head) or b"").startswith(_GZIP_MAGIC) else whole


def _first_bytes(head: bytes) -> bytes | None:
    """Return the first bytes that come out, None if ``head`` is not a gzip stream."""
    try:
        return zlib.decompressobj(31).decompress(head, len(_GZIP_MAGIC))
    except zlib.error:
        return None


def _gunzip(pieces: Iterator[bytes | memoryview]) -> Iterator[bytes]:
    stream = zlib.decompressobj(31)
    received = produced = 0
    for piece in pieces:
        received += len(piece)
        rest = piece
        while rest:
            if stream.eof:  # a gzip stream may have several members
                stream = zlib.decompressobj(31)
            try:
                plain = stream.decompress(rest, _STEP)
            except zlib.error as error:
                raise PassingError(f"the gzip coding is damaged ({error})") from error
            produced += len(plain)
            if produced > max(_RATIO_FROM, _RATIO * received):
                raise SourceError(f"the gzip coding expands more than {_RATIO} times: a decompression bomb")
            if plain:
                yield plain
            rest = stream.unused_data if stream.eof else stream.unconsumed_tail
    while not stream.eof:
        plain = stream.decompress(b"", _STEP)
        if not plain:
            raise PassingError("the gzip coding ends early")
        yield plain


# -- where the bytes come from -------------------------------------------------------------------------------


@contextlib.contextmanager
def url_opener(policy: Policy, notes: Say = say_nothing) -> Iterator[Opener]:
    """Yield a function that opens any supported URL; the session is made when the first one needs it."""
    making = threading.Lock()  # several connections may want it at once
    with contextlib.ExitStack() as stack:
        sessions: list[Session] = []

        def open_url(
            url: str, start: int, known: Identity | None, stop: int | None = None
        ) -> AbstractContextManager[Response]:
            if is_local(url):
                return open_file(url)
            if is_remote(url):
                return open_remote(url, start, known, stop)
            if urlsplit(url).scheme.lower() not in ("http", "https"):
                known_schemes = ", ".join(("http", "https", "file", *STORES))
                raise SourceError(f"not a URL that can be fetched; use one of {known_schemes}")
            with making:
                if not sessions:
                    sessions.append(Session(policy, notes))
                    stack.callback(sessions[0].close)
            return open_http(sessions[0], url, start, known, stop)

        yield open_url


def stated_size(url: str, policy: Policy) -> int | None:
    """How large a file is, as its server states; None where it does not. Nothing is downloaded.

    A GET whose body is not read: an address signed for GET refuses HEAD.
    """
    try:
        with url_opener(policy) as open_url, open_url(url, 0, None) as response:
            return response.identity.size
    except (SourceError, PassingError, CkptkitError, OSError):
        return None


def explain(failures: Sequence[tuple[str, Exception]]) -> list[str]:
    """Why no source gave the file, a line each.

    >>> from ckptkit.base.net import SourceGoneError
    >>> explain([("https://a.org/m.pth", SourceGoneError("404 Not Found"))])
    ['https://a.org/m.pth: 404 Not Found']
    """
    return [f"{without_secrets(url)}: {error}" for url, error in failures]


LATER = "try again later, or give a --mirror"


def what_helps(errors: Iterable[Exception]) -> str:
    """What to do where no source gave a file: waiting helps only against some faults."""
    return (
        LATER if any(isinstance(error, (BusyError, RefusedError)) for error in errors) else "give a --mirror"
    )
