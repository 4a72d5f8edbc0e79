"""One picture from a URL into memory, by the store's rules for the network.

Certificates are verified, redirects followed only to where it is safe, faults that may pass borne a few
times. Nothing enters the cache: a picture has no checksum to hold it against.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ckptkit.base.errors import FormatError, NetworkError, NotFoundError
from ckptkit.base.net import (
    BusyError,
    Failures,
    MissingFileError,
    PassingError,
    Policy,
    SourceError,
    SourceGoneError,
)
from ckptkit.base.urls import is_local
from ckptkit.store.openers import Opener, Response
from ckptkit.store.transfer import decoded, url_opener

if TYPE_CHECKING:
    from ckptkit.base.progress import Progress

_BY_HAND = "download it yourself and give the file"
MOST_BYTES = 50_000_000
"""Largest picture that is taken from the network or a pipe."""

PATIENCE = Policy(read_timeout=30.0, retries=2)


def download_picture(
    url: str,
    *,
    name: str,
    policy: Policy = PATIENCE,
    most_bytes: int = MOST_BYTES,
    progress: Progress | None = None,
) -> bytes:
    """Fetch a picture."""
    with url_opener(policy) as opener:
        failures = Failures(policy)
        while True:
            try:
                return _receive(opener, url, name, most_bytes, progress)
            except SourceGoneError as error:
                kind = (
                    NotFoundError if is_local(url) or str(error).startswith(("404", "410")) else NetworkError
                )
                raise kind(f"{name}: {error}", hint="check the URL") from error
            except MissingFileError as error:
                raise NotFoundError(f"{name}: {error}", hint="check the path") from error
            except SourceError as error:
                if is_local(url):
                    raise FormatError(name, str(error)) from error
                hint = "try again later" if isinstance(error, BusyError) else _BY_HAND
                raise NetworkError(f"{name}: {error}", hint=hint) from error
            except PassingError as error:
                try:
                    policy.sleep(failures.wait_for(error, progress=False))
                except SourceError as last:
                    hint = "try again later" if isinstance(last, BusyError) else _BY_HAND
                    raise NetworkError(f"{name}: {error}", hint=hint) from error


def _receive(opener: Opener, url: str, name: str, most_bytes: int, progress: Progress | None) -> bytes:
    """Make one request and read its answer whole."""
    with ExitStack() as stack:
        response = stack.enter_context(opener(url, 0, None))
        if response.length is not None and response.length > most_bytes:
            raise _too_large(name, most_bytes)
        advance = stack.enter_context(progress(f"fetching {name}", response.length)) if progress else None
        content = bytearray()
        for piece in _uncoded(response, urlsplit(url).path):
            content += piece
            if advance is not None:
                advance(len(piece))
            if len(content) > most_bytes:
                raise _too_large(name, most_bytes)
        if response.length is not None and not response.coding and len(content) != response.length:
            raise PassingError(f"the connection broke after {len(content):,} of {response.length:,} bytes")
        return bytes(content)


def _uncoded(response: Response, path: str) -> Iterator[bytes | memoryview]:
    return decoded(response.body, path) if response.coding else response.body


def _too_large(name: str, most_bytes: int) -> FormatError:
    return FormatError(name, f"more than {most_bytes:,} bytes, too large for a picture")
