"""One request for one file, over HTTP(S) or from ``file://``: its identity, length, checksums and bytes.

Nothing here retries or writes; `ckptkit.store.transfer` does. A further scheme is one more ``open_…``
function that gives a `Response`, as `ckptkit.store.remote` has it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from ckptkit.base.checksums import ExpectedChecksum
from ckptkit.base.files import open_regular
from ckptkit.base.net import (
    PIECE,
    Answer,
    MissingFileError,
    PassingError,
    Policy,
    RangeError,
    Session,
    SourceError,
)
from ckptkit.store.expected import redirect_checksums, server_checksums

_EXPIRED = (400, 401, 403)
"""What storage services answer to a signed address whose time is over: 403 most, 400 and 401 some."""
_PACKED = frozenset(
    {"br", "zstd", "deflate", "compress", "x-compress", "bzip2", "xz", "lzma", "pack200-gzip"}
)
_CONTENT_RANGE = re.compile(r"bytes\s+(\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


@dataclass(frozen=True)
class Identity:
    """What the server says that makes this copy of the file this one."""

    etag: str | None = None  # ``ETag``, ``x-goog-generation``, ``Last-Modified``
    generation: str | None = None
    last_modified: str | None = None
    size: int | None = None  # bytes of the whole file

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


@dataclass
class Response:
    """An answer whose body has not been read yet."""

    url: str  # where it came from in the end, after redirects
    identity: Identity
    body: Iterator[bytes | memoryview]  # as it comes over the wire, not decoded
    offset: int = 0  # the byte of the file that the body starts with
    length: int | None = None  # bytes of the body; None where the server does not say
    expected: tuple[ExpectedChecksum, ...] = ()  # of the whole file
    coding: str = ""  # on top of the file: empty or ``gzip``
    ends_marked: bool = True  # whether the end of the body differs from a broken connection
    partial: bool = False  # whether the server sent the range that was asked for (206), not the whole file
    accounted: bool = False  # whether `Policy.account` has counted the bytes already


class Opener(Protocol):
    """Makes one request: for a file from byte ``start`` on (up to ``stop``), if it is still the known one."""

    def __call__(
        self, url: str, start: int, known: Identity | None, stop: int | None = None
    ) -> AbstractContextManager[Response]:
        """Open the URL."""


@contextlib.contextmanager
def open_file(url: str) -> Generator[Response]:
    """Open a ``file://`` URL."""
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


@contextlib.contextmanager
def open_http(
    session: Session, url: str, start: int = 0, known: Identity | None = None, stop: int | None = None
) -> Generator[Response]:
    """GET a URL, from byte ``start`` on (up to ``stop``) if the file is still the ``known`` one."""
    headers = {}
    if start or stop is not None:
        headers["Range"] = f"bytes={start}-{stop - 1 if stop is not None else ''}"
        if known and known.if_range:
            headers["If-Range"] = known.if_range
    with session.get(url, headers) as answer:
        if start and answer.redirects and answer.status in _EXPIRED:
            raise PassingError(f"the address it redirects to has expired ({answer.status_line})")
        session.refuse_status(answer, url, plain=not (answer.redirects or headers))
        yield _response(answer, (start, stop), known, session.policy)


def _response(
    answer: Answer, asked: tuple[int, int | None], known: Identity | None, policy: Policy
) -> Response:
    headers, length = answer.headers, answer.length
    partial = answer.status == 206
    coding = _coding(headers.get("Content-Encoding", ""))
    size = length if not coding else None
    offset = 0
    if partial:
        if asked == (0, None) or coding:
            raise RangeError("the server sent a part that was not asked for")
        offset, size = _checked_range(headers.get("Content-Range", ""), *asked, length)
    identity = Identity(
        headers.get("ETag") or None,
        headers.get("x-goog-generation") or None,
        headers.get("Last-Modified") or None,
        size,
    )
    if partial and known and not _same(identity, known):
        raise RangeError(known.change(identity) or "the server does not say which file the part is of")
    stated = [one for lines in answer.redirects for one in redirect_checksums(lines)]
    stated += server_checksums(answer.header_lines, partial=partial)
    return Response(
        answer.url,
        identity,
        answer.pieces(policy.throttle.piece if policy.throttle else PIECE),
        offset=offset,
        length=None if answer.is_chunked else length,
        expected=tuple(dict.fromkeys(stated)),
        coding=coding,
        ends_marked=answer.is_chunked or length is not None,
        partial=partial,
    )


def _checked_range(value: str, start: int, stop: int | None, length: int | None) -> tuple[int, int | None]:
    """Check ``Content-Range`` against what was asked for: from ``start`` to ``stop`` or the file's end."""
    match = _CONTENT_RANGE.fullmatch(value.strip())
    if not match:
        raise RangeError(f"the server sent a part without saying which (Content-Range: {value!r})")
    first, last = int(match[1]), int(match[2])
    total = None if match[3] == "*" else int(match[3])
    if stop is None:
        ends = total is None or last == total - 1
    else:
        ends = total is not None and last == min(stop, total) - 1
    fits = first == start <= last and ends
    if not fits or (length is not None and length != last - first + 1):
        raise RangeError(
            f"the server sent another part than asked for (Content-Range: {value!r}, from {start})"
        )
    return first, total


def _same(found: Identity, known: Identity) -> bool:
    """Whether a part belongs to the known file: nothing that both state differs, and something ties them.

    With ``If-Range`` the 206 itself is the tie; without it the generation must be stated and be the same.
    Where a checksum decides in the end, nothing is known but the size (see `Identity.unmarked`).
    """
    pairs = (
        (found.etag, known.etag),
        (found.generation, known.generation),
        (found.last_modified, known.last_modified if not known.etag else None),
        (found.size, known.size),
    )
    tied = known.if_range is not None or found.generation is not None or known == known.unmarked
    return tied and all(a is None or b is None or a == b for a, b in pairs)


def _coding(value: str) -> str:
    """What is to be taken off: nothing, or ``gzip``.

    Many stores hand on whatever somebody put into this header: ``aws-chunked``, which was taken off before it
    was stored, or ``utf-8``, ``binary`` and ``none``, which pack nothing.
    """
    codings = [name for name in re.split(r"[\s,;]+", value.lower()) if name]
    packed = [name for name in codings if name in _PACKED or "gzip" in name]
    if not packed:
        return ""
    if len(packed) == 1 and packed[0] in ("gzip", "x-gzip"):
        return "gzip"
    raise SourceError(f"the server compresses the file with {', '.join(packed)!r}, although asked not to")
