"""From one source to a complete, hashed temporary file: resuming, retrying, refusing what is not the file."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ckptkit.base.errors import IntegrityError, StorageError
from ckptkit.store.coding import decoded
from ckptkit.store.integrity import StreamHasher, compare
from ckptkit.store.partial import Partial, require_space
from ckptkit.store.ranges import Segments, may_be_split
from ckptkit.store.remote import STORES, is_remote, open_remote
from ckptkit.store.transport import (
    BusyError,
    Failures,
    Identity,
    Opener,
    PassingError,
    Policy,
    RangeError,
    RefusedError,
    Response,
    SourceError,
    is_local,
    open_file,
    without_secrets,
)

Advance = Callable[[int], None]
Progress = Callable[[str, "int | None"], AbstractContextManager[Advance]]
"""Shows how far a download is: given a description and the bytes in all, yields a function to advance it."""
Notes = Callable[[str], None]

_WEB_PAGE = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\b|!--|\?xml\b|(?:html|head|body|script|error)\b)", re.IGNORECASE
)
_LOOK_EVERY = 16 << 20
"""Bytes of unknown number after which it is asked what they are, and how much of the disk is free."""
_SOON = 10.0
"""Seconds within which any byte is progress."""
_LFS_POINTER = b"version https://git-lfs"


def silent(_note: str) -> None:
    """Say nothing."""


@dataclass
class Download:
    """One source being downloaded.

    Parameters
    ----------
    url : str
        Where the bytes come from, after mirror rules.
    partial : Partial
        Where they go.
    opener : callable
        Makes one request; see `open_url`.
    policy : Policy
    expected_size : int, optional
        The pinned size.
    progress : Progress, optional
    notes : callable
    is_tied : bool
        Whether a checksum known before decides in the end. Parts are then joined whatever marks their answers
        carry: nodes of one server may give the same file different ETags.
    may_begin : callable
        Whether the file can begin with some bytes; asked of many whose number nobody says.
    """

    url: str
    partial: Partial
    opener: Opener
    policy: Policy
    expected_size: int | None = None
    progress: Progress | None = None
    notes: Notes = silent
    is_tied: bool = False
    may_begin: Callable[[bytes], bool] = lambda _head: True
    _crowded: bool = field(default=False, init=False)

    def run(self) -> None:
        """Download until the part is complete.

        Raises
        ------
        SourceGoneError, SourceError
            When this source does not give the file.
        IntegrityError
            When it gives another file than the pinned size allows, or the coded bytes are not those promised.
        StorageError
            When the disk refuses.
        """
        with contextlib.ExitStack() as stack:
            shown = _Shown(self.progress, self.partial.name, stack)
            self.partial.pick_up()
            failures, restarts = Failures(self.policy), Failures(self.policy)
            began_anew = False
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
                    said = f"{error}; beginning again"
                    wait = restarts.wait_for(RangeError(said), progress=False)
                    self._wait(wait if began_anew else 0.0, said)
                    began_anew = True
                except PassingError as error:
                    if self.partial.size and not self._can_resume():
                        self.partial.discard()
                    progress = self._is_progress(self.partial.size - before, time.monotonic() - began)
                    self._wait(failures.wait_for(error, progress=progress), str(error))
            raise BusyError(f"still not complete after {self.policy.max_attempts} requests")

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
        """Whether so many bytes in so many seconds are worth going on for."""
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
            partial.begin(response.identity, () if response.coding else response.promises)
        else:
            partial.joined = True
            partial.promises = partial.promises or response.promises
        if response.coding:
            self.notes(f"{host_of(self.url)}: lays {response.coding} on top of the file, though asked not to")
        if response.length is not None and not response.coding:
            require_space(partial.folder, response.length, partial.name)
        if not response.ends_marked and self.expected_size is None and not response.promises:
            raise SourceError("the server gives neither length nor checksum, so a cut could not be noticed")
        shown.start(response.identity.size, partial.size)
        wire = StreamHasher()
        try:
            self._store(_counted(response, wire, self._account_of(response)), response, shown)
        finally:
            partial.flush()
        if response.coding:
            compare(partial.name, wire.digests(), response.promises, hint="run the same command again")
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
            raise SourceError(f"sends more than {most:,} bytes without having said how many there are")
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
        said = "" if is_local(self.url) else "answered with "
        if _WEB_PAGE.match(head):
            self.partial.discard()
            raise BusyError(f"{said}a web page instead of the file (a login, a quota or an error page)")
        if head.startswith(_LFS_POINTER):
            self.partial.discard()
            raise SourceError(f"{said}a Git LFS pointer instead of the file")


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
    for piece in response.pieces():
        received += len(piece)
        if response.coding:
            wire.update(bytes(piece))
        yield piece
        if account:
            account(len(piece))
    if response.length is not None and received != response.length:
        raise PassingError(f"the connection closed after {received:,} of {response.length:,} bytes")


LATER = "try again later, or give a --mirror"


def what_helps(errors: Iterable[Exception]) -> str:
    """What to do where no source gave a file: waiting helps only against some faults."""
    return (
        LATER if any(isinstance(error, (BusyError, RefusedError)) for error in errors) else "give a --mirror"
    )


@contextlib.contextmanager
def url_opener(policy: Policy, notes: Notes = silent) -> Iterator[Opener]:
    """Yield a function that opens any supported URL; the HTTP client is made when the first one needs it."""
    from ckptkit.store.http import HttpClient

    with contextlib.ExitStack() as stack:
        clients: list[HttpClient] = []

        making = threading.Lock()  # several connections may want the client at once

        def open_url(
            url: str, start: int, known: Identity | None, stop: int | None = None
        ) -> AbstractContextManager[Response]:
            if is_local(url):
                return open_file(url)
            if is_remote(url):
                return open_remote(url, start, known, stop)
            if urlsplit(url).scheme.lower() not in ("http", "https"):
                known_schemes = ", ".join(("http", "https", "file", *STORES))
                raise SourceError(f"no URL that can be fetched; it begins with one of {known_schemes}")
            with making:
                if not clients:
                    clients.append(HttpClient(policy, notes))
                    stack.callback(clients[0].close)
            return clients[0].open(url, start, known, stop)

        yield open_url


def host_of(url: str) -> str:
    """Name of the place a URL points to, for messages.

    Examples
    --------
    >>> host_of("https://me:secret@a.org:8443/m.pth"), host_of("file:///srv/m.pth")
    ('a.org:8443', 'file:///srv/m.pth')
    """
    return without_secrets(url) if is_local(url) else urlsplit(url).netloc.rpartition("@")[2]


def explain(failures: Sequence[tuple[str, Exception]]) -> str:
    """One line on why no source gave the file.

    Examples
    --------
    >>> from ckptkit.store.transport import SourceGoneError
    >>> explain([("https://a.org/m.pth", SourceGoneError("404 Not Found"))])
    'https://a.org/m.pth: 404 Not Found'
    """
    return "; ".join(f"{without_secrets(url)}: {error}" for url, error in failures)
