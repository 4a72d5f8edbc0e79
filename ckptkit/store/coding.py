"""A gzip content coding that a server lays on top of a file although asked not to."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator

from ckptkit.store.transport import PassingError, SourceError

_GZIP_MAGIC = b"\x1f\x8b"
_STEP = 1 << 20
_RATIO = 100
_RATIO_FROM = 64 << 20  # weights hardly shrink at all; a small file of zeros is harmless


def decoded(pieces: Iterator[bytes | memoryview], name: str) -> Iterator[bytes | memoryview]:
    """Take the coding off.

    Some servers send ``Content-Encoding: gzip`` for a plain ``.tar.gz`` and mean the file itself. For such a
    name the coding is taken off only if what comes out is gzip again.

    Parameters
    ----------
    pieces : iterator of bytes or memoryview
        The body as it came.
    name : str
        The file's name.

    Raises
    ------
    PassingError
        When the coded stream is damaged or ends early.
    SourceError
        When it expands beyond all measure.
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
    """Return the first bytes that come out, None where ``head`` is no gzip stream."""
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
