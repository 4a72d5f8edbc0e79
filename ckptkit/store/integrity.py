"""Checksums: computed in one pass over the bytes, and compared with what was promised.

Servers promise in several dialects. Google Cloud Storage sends ``x-goog-hash`` (base64 of crc32c and md5),
Azure and older servers ``Content-MD5``, Hugging Face ``X-Linked-Etag`` (the sha256 of a large file, on the
redirect that leads to it), and RFC 9530 defines ``Repr-Digest``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptkit.base.checksums import crc32c
from ckptkit.base.errors import IntegrityError
from ckptkit.base.files import open_regular, translated

_PIECE = 1 << 20
_DIGEST_BYTES = {"sha256": 32, "md5": 16, "crc32c": 4}
_REPR_DIGEST_NAMES = {"sha-256": "sha256", "md5": "md5", "crc32c": "crc32c"}
_REPR_DIGEST = re.compile(r"(?<![A-Za-z0-9*_.-])([A-Za-z0-9*_.-]+)\s*=\s*:([A-Za-z0-9+/=]*):")


@dataclass(frozen=True)
class Digests:
    """Size in bytes and checksums (lower-case hex) of one file or stream."""

    size: int
    sha256: str
    md5: str
    crc32c: str

    def of(self, algorithm: str) -> str:
        """Checksum by name: ``sha256``, ``md5`` or ``crc32c``."""
        return {"sha256": self.sha256, "md5": self.md5, "crc32c": self.crc32c}[algorithm]


@dataclass(frozen=True)
class Promise:
    """One checksum somebody promised.

    Parameters
    ----------
    algorithm : str
        ``sha256``, ``md5`` or ``crc32c``.
    value : str
        Lower-case hex.
    origin : str
        Who says so, for messages: ``x-goog-hash``, ``the registry``.
    """

    algorithm: str
    value: str
    origin: str


class StreamHasher:
    """sha256, md5 and crc32c of bytes as they pass by.

    Examples
    --------
    >>> hasher = StreamHasher()
    >>> hasher.update(b"1234")
    >>> hasher.update(b"56789")
    >>> hasher.digests().crc32c, hasher.size
    ('e3069283', 9)
    """

    def __init__(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._crc32c = 0

    def update(self, data: bytes) -> None:
        """Add bytes."""
        self.size += len(data)
        self._sha256.update(data)
        self._md5.update(data)
        self._crc32c = crc32c(data, self._crc32c)

    def digests(self) -> Digests:
        """Checksums of everything so far."""
        return Digests(self.size, self._sha256.hexdigest(), self._md5.hexdigest(), f"{self._crc32c:08x}")


def hash_file(path: Path, *, advance: Callable[[int], None] | None = None) -> Digests:
    """Checksums of a file.

    Parameters
    ----------
    path : Path
        The file.
    advance : callable, optional
        Called with the number of bytes after each piece.

    Raises
    ------
    StorageError
        When it cannot be read.
    """
    hasher = StreamHasher()
    with translated(path), open_regular(path) as stream:
        while piece := stream.read(_PIECE):
            hasher.update(piece)
            if advance:
                advance(len(piece))
    return hasher.digests()


def server_promises(headers: Iterable[tuple[str, str]], *, partial: bool = False) -> tuple[Promise, ...]:
    """Checksums of the whole file that a response's headers promise.

    Parameters
    ----------
    headers : iterable of (str, str)
        Header lines; a name may occur several times.
    partial : bool
        Whether the response is a range (206): its ``Content-MD5`` then covers the range only and is left out.

    Examples
    --------
    >>> server_promises([("X-Goog-Hash", "crc32c=4waSgw==")])
    (Promise(algorithm='crc32c', value='e3069283', origin='x-goog-hash'),)
    """
    found: list[Promise] = []
    for name, value in headers:
        found += [
            Promise(algorithm, digest, name.lower())
            for algorithm, digest in _parse_header(name.lower(), value, partial)
        ]
    return tuple(dict.fromkeys(found))


def redirect_promises(headers: Iterable[tuple[str, str]]) -> tuple[Promise, ...]:
    """Checksums that a redirect promises of the file it leads to (only ``X-Linked-Etag`` speaks of that)."""
    return tuple(p for p in server_promises(headers) if p.origin == "x-linked-etag")


def _parse_header(name: str, value: str, partial: bool) -> list[tuple[str, str]]:
    if name == "x-goog-hash":
        pairs = (item.strip().partition("=")[::2] for item in value.split(","))
        return _decoded((algorithm.strip().lower(), text) for algorithm, text in pairs)
    if name == "x-ms-blob-content-md5" or (name == "content-md5" and not partial):
        return _decoded([("md5", value)])
    if name == "repr-digest":
        return _decoded(
            (_REPR_DIGEST_NAMES.get(algorithm.lower(), ""), text)
            for algorithm, text in _REPR_DIGEST.findall(value)
        )
    if name == "x-linked-etag":
        digest = value.strip().removeprefix("W/").strip('"').lower()
        return [("sha256", digest)] if re.fullmatch(r"[0-9a-f]{64}", digest) else []
    return []


def _decoded(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Base64 to hex, leaving out what is no checksum of a known kind: it promises nothing."""
    result = []
    for algorithm, text in pairs:
        try:
            digest = base64.b64decode(text.strip(), validate=True)
        except (binascii.Error, ValueError):
            continue
        if len(digest) == _DIGEST_BYTES.get(algorithm):
            result.append((algorithm, digest.hex()))
    return result


def compare(name: str, found: Digests, promises: Sequence[Promise], *, hint: str) -> None:
    """Compare checksums with every promise.

    Raises
    ------
    IntegrityError
        Naming the file, the checksum promised and by whom, and the one found.

    Examples
    --------
    >>> found = Digests(1, "ab", "cd", "ef")
    >>> compare("a.pth", found, [Promise("md5", "00", "x-goog-hash")], hint="fetch again")
    Traceback (most recent call last):
        ...
    ckptkit.base.errors.IntegrityError: a.pth: md5 is cd, but x-goog-hash says 00; fetch again
    """
    for promise in promises:
        actual = found.of(promise.algorithm)
        if actual != promise.value:
            raise IntegrityError(
                f"{name}: {promise.algorithm} is {actual}, but {promise.origin} says {promise.value}",
                hint=hint,
            )


def as_mapping(promises: Sequence[Promise]) -> Mapping[str, str]:
    """Promises as algorithm → hex, for a record."""
    return {promise.algorithm: promise.value for promise in promises}
