"""One request for one URL, over HTTP(S) or from ``file://``: identity, length, promises, and bytes.

Nothing here retries or writes; `ckptkit.store.download` does. A further scheme is one more `open_…` function
that returns a `Response`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from ckptkit.base.files import open_regular
from ckptkit.base.urls import public_url
from ckptkit.store.credentials import Credentials
from ckptkit.store.integrity import Promise
from ckptkit.store.throttle import Throttle

PIECE = 1 << 19
"""Bytes asked for at a time; what has arrived is handed over at once, however little it is."""
KEPT = 16
"""How many further pieces a piece stays unchanged for; more than `ckptkit.store.behind.OUTSTANDING`."""


@dataclass(frozen=True)
class Policy:
    """How patient a download is, and how much it takes. Times in seconds; tests inject clock and chance.

    Parameters
    ----------
    connect_timeout, read_timeout : float
        How long to wait for a connection, and for the next bytes.
    retries : int
        How many failures in a row, with no new byte between them, are borne before a source is given up;
        also how often a file is begun again from the first byte because a part did not fit.
    max_attempts : int
        How many requests are made to one source in all.
    backoff, max_backoff : float
        The first wait, doubled each time, and its bound. The wait is shortened by chance by up to a half, so
        that many clients do not come back together.
    max_retry_after : float
        How long waits that a server asks for (``Retry-After``) may take in all; it is given up for more.
    head_seconds : float
        How long a server may take to send the head of an answer, redirects and all twice as long.
    slow_seconds, slowest : float, int
        A body that comes with fewer than ``slowest`` bytes a second over so many seconds is given up, too.
    slow_retries : int
        How often an answer that was given up for being slow is asked for again.
    most_unknown : int
        The largest file that is taken where neither the server nor the registry says how large it is.
    max_redirects : int
        How many redirects in a row are followed.
    connections : int
        How many ranges of one large file are asked for at once.
    split_from, segment : int
        Bytes from which a file is worth that, and bytes a range has: seconds on a slow line, and few requests
        on a quick one.
    throttle : Throttle, optional
        Bounds the bandwidth of all downloads that share it.
    credentials : Credentials
        What may be sent to which host.
    stopped : callable
        Asked again and again whether to stop; what has arrived then stays for a later run.
    """

    connect_timeout: float = 15.0
    read_timeout: float = 60.0
    retries: int = 4
    max_attempts: int = 100
    backoff: float = 1.0
    max_backoff: float = 60.0
    max_retry_after: float = 300.0
    head_seconds: float = 30.0
    slow_seconds: float = 60.0
    slowest: int = 1000
    slow_retries: int = 1
    most_unknown: int = 2 << 30
    max_redirects: int = 10
    sleep: Callable[[float], object] = time.sleep
    chance: Callable[[], float] = random.random
    clock: Callable[[], float] = time.time
    connections: int = 1
    split_from: int = 64_000_000
    segment: int = 8 << 20
    throttle: Throttle | None = None
    credentials: Credentials = field(default_factory=Credentials)
    stopped: Callable[[], bool] = lambda: False

    def wait(self, failures: int) -> float:
        """Seconds to wait after the given number of failures in a row (1 or more)."""
        longest: float = min(self.backoff * 2 ** min(failures - 1, 32), self.max_backoff)
        return longest * (1 - self.chance() / 2)

    def account(self, count: int) -> None:
        """Say that bytes came: waits where they come too quickly, and ends a download that is to stop.

        Raises
        ------
        StoppedError
            When `stopped` says so.
        """
        if self.throttle is not None:
            self.throttle.take(count)
        if self.stopped():
            raise StoppedError("stopped")


@dataclass(frozen=True)
class Identity:
    """What the server says that makes this copy of the file this one.

    Attributes
    ----------
    etag, generation, last_modified : str or None
        ``ETag``, ``x-goog-generation``, ``Last-Modified``.
    size : int or None
        Bytes of the whole file.
    """

    etag: str | None = None
    generation: str | None = None
    last_modified: str | None = None
    size: int | None = None

    @property
    def if_range(self) -> str | None:
        """Value for ``If-Range``: a strong validator only (RFC 9110, 13.1.5)."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return None if self.etag else self.last_modified

    @property
    def is_strong(self) -> bool:
        """Whether parts that came at the same time can be tied together: a date tells seconds only."""
        strong = self.generation or (self.etag and not self.etag.startswith("W/"))
        return self.size is not None and bool(strong)

    def change(self, found: Identity) -> str:
        """What changed between two answers, as far as both say it; empty where nothing did.

        An ETag alone proves no other file: the nodes of a server may each give it their own.
        """
        changed = {
            name
            for name in ("etag", "generation", "last_modified", "size")
            if None not in (pair := (getattr(self, name), getattr(found, name))) and pair[0] != pair[1]
        }
        if changed == {"etag"}:
            return "the file's ETag on the server has changed"
        return "the file on the server has changed" if changed else ""

    @property
    def unmarked(self) -> Identity:
        """What every node of a server must say of the same file, whatever mark each gives it."""
        return Identity(size=self.size)

    @property
    def can_resume(self) -> bool:
        """Whether a later request can be tied to the same bytes."""
        return self.size is not None and bool(self.if_range or self.generation)


class Response:
    """An answer whose body has not been read yet.

    Attributes
    ----------
    url : str
        Where it came from in the end, after redirects.
    identity : Identity
    offset : int
        The byte of the file the body starts with.
    length : int or None
        Bytes of the body; None when the server does not say.
    promises : tuple of Promise
        Checksums of the whole file.
    coding : str
        Content coding on top of the file: empty or ``gzip``.
    ends_marked : bool
        Whether the end of the body can be told from a broken connection.
    partial : bool
        Whether the server sent the range that was asked for (206), not the whole file.
    accounted : bool
        Whether `Policy.account` was told of the bytes already.
    """

    def __init__(
        self,
        url: str,
        identity: Identity,
        pieces: Iterator[bytes | memoryview],
        *,
        offset: int = 0,
        length: int | None = None,
        promises: tuple[Promise, ...] = (),
        coding: str = "",
        ends_marked: bool = True,
        partial: bool = False,
        accounted: bool = False,
    ) -> None:
        self.url = url
        self.identity = identity
        self.offset = offset
        self.length = length
        self.promises = promises
        self.coding = coding
        self.ends_marked = ends_marked
        self.partial = partial
        self.accounted = accounted
        self._pieces = pieces

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Yield the body, as it comes over the wire (not decoded); a piece stays for `KEPT` further ones."""
        return self._pieces


class SourceError(Exception):
    """A source will not give the file; another may."""


class BusyError(SourceError):
    """A source did not give the file this time; it may do so later."""


class SourceGoneError(SourceError):
    """The source answered for good: no such file (404, 410), or not for the public (401, 403)."""


class MissingFileError(SourceError):
    """No such file on this machine; its disk may not be mounted."""


class RefusedError(SourceError):
    """401 or 403 to more than the plain request for the file, which says nothing of the file itself.

    Parameters
    ----------
    reason : str
        What was answered.
    login : str
        In words the credentials that were refused first, if any were sent.
    """

    def __init__(self, reason: str, login: str = "") -> None:
        super().__init__(reason)
        self.login = login


class PassingError(Exception):
    """A fault that may pass: connection lost, 5xx, too many requests.

    Parameters
    ----------
    reason : str
        What happened.
    retry_after : float, optional
        Seconds the server asks to wait.
    """

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class FramingError(PassingError):
    """An answer that breaks HTTP: something on the way may have done it once, but waiting helps nobody."""


class SlowError(PassingError):
    """An answer that nearly stands still: waiting for it again and again helps nobody."""


class RangeError(Exception):
    """The rest of a file was asked for and the answer does not fit: begin again from the first byte."""


class StoppedError(Exception):
    """Somebody asked the download to stop."""


class Failures:
    """What went wrong with one source so far, and whether it is worth another try.

    Parameters
    ----------
    policy : Policy
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._in_a_row = 0
        self._slow = 0
        self._waited = 0.0

    def wait_for(self, error: Exception, *, progress: bool) -> float:
        """Seconds to wait before the next try; ``progress`` says whether this one brought anything.

        Raises
        ------
        SourceError
            When there should be none.
        """
        self._in_a_row = 1 if progress else self._in_a_row + 1
        self._slow += isinstance(error, SlowError)
        if self._in_a_row > self._policy.retries or self._slow > self._policy.slow_retries:
            lasting = isinstance(error, (FramingError, RangeError))
            kind = SourceError if lasting else BusyError
            raise kind(f"{error} ({max(self._in_a_row, self._slow)} times)") from error
        asked = error.retry_after if isinstance(error, PassingError) else None
        if asked is None:
            return self._policy.wait(self._in_a_row)
        self._waited += asked
        if self._waited > self._policy.max_retry_after:
            raise BusyError(f"{error}: the server asks to wait {self._waited:.0f} s in all") from error
        return asked


class Opener(Protocol):
    """Makes one request: for a file from byte ``start`` on (up to ``stop``), if it is still the known one."""

    def __call__(
        self, url: str, start: int, known: Identity | None, stop: int | None = None
    ) -> AbstractContextManager[Response]:
        """Open the URL."""


@contextlib.contextmanager
def open_file(url: str) -> Generator[Response]:
    """Open a ``file://`` URL.

    Raises
    ------
    SourceError
        When there is no such file (its disk may not be mounted), or it is not a regular one, is elsewhere, or
        cannot be read.
    """
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(open_regular(file_path(url), buffering=0))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingFileError("no such file") from error
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EISDIR):
                raise SourceError("not a regular file") from error
            raise SourceError(f"cannot be read: {error.strerror}") from error
        size = os.fstat(stream.fileno()).st_size
        yield Response(url, Identity(size=size), _file_pieces(stream.read), length=size)


def _file_pieces(read: Callable[[int], bytes | None]) -> Iterator[bytes]:
    while True:
        try:
            piece = read(1 << 20)
        except OSError as error:
            raise SourceError(f"cannot be read: {error.strerror}") from error
        if not piece:
            return
        yield piece


def file_path(url: str) -> Path:
    """Local path of a ``file://`` URL.

    Raises
    ------
    SourceError
        When it names another host or no absolute path.

    Examples
    --------
    >>> file_path("file:///srv/a%20b.pth").as_posix()
    '/srv/a b.pth'
    """
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise SourceError(f"a file:// URL with a host ({parts.netloc}) cannot be read; write file:///path")
    if os.name == "nt":
        path = Path(url2pathname(parts.path))
    else:
        path = Path(os.fsdecode(unquote_to_bytes(os.fsencode(parts.path))))  # a name may be no UTF-8
    if "\0" in str(path) or not path.is_absolute():
        raise SourceError("a file:// URL needs an absolute path")
    return path


def is_local(url: str) -> bool:
    """Whether a URL needs no network."""
    return urlsplit(url).scheme.lower() == "file"


def without_secrets(url: str) -> str:
    """URL without user name, password and query: fit for a record, a message or a log.

    Examples
    --------
    >>> without_secrets("https://me:secret@a.org:8443/m.pth?X-Amz-Signature=1")
    'https://a.org:8443/m.pth'
    """
    return public_url(url).partition("#")[0].partition("?")[0]
