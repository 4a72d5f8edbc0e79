"""Files in object stores: ``s3://``, ``gs://``, ``az://`` and ``hf://``, through fsspec and its packages.

Reading is one more opener like those of `ckptkit.store.openers`: identity and checksums from what the store
says of the object, ranges to resume, errors translated. Writing is one call for each object: in all of these
stores an object appears whole or not at all, so no temporary name is needed (an upload in parts that breaks
off leaves parts that only the store's owner sees; set a rule there that removes them).
"""

from __future__ import annotations

import base64
import contextlib
import errno
import importlib
import inspect
import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ckptkit.base.checksums import ExpectedChecksum, compare, hash_file
from ckptkit.base.errors import (
    CkptkitError,
    IntegrityError,
    MissingDependencyError,
    NetworkError,
    UsageError,
)
from ckptkit.base.net import (
    PassingError,
    RangeError,
    SlowError,
    SourceError,
    SourceGoneError,
)
from ckptkit.base.urls import without_secrets
from ckptkit.store.expected import server_checksums
from ckptkit.store.openers import Identity, Response

_PIECE = 8 << 20  # each is one request to the store; a fault loses at most this
_FIRST_PIECE = 64 << 10  # a store that sends next to nothing is noticed after so much
_ANSWER_SECONDS = 60.0
_SLOWEST = 1000
"""Seconds for an answer of a store, and bytes a second at least; its package has no such bounds."""
_QUICK = 5.0


@dataclass(frozen=True)
class Store:
    """How a scheme is reached: fsspec's name for it, and the package that knows it."""

    protocol: str
    package: str


_SILENT = logging.NullHandler()

STORES: dict[str, Store] = {
    "s3": Store("s3", "s3fs"),
    "gs": Store("gs", "gcsfs"),
    "az": Store("az", "adlfs"),
    "hf": Store("hf", "huggingface_hub"),
}
"""The stores by the scheme of their URLs."""


def is_remote(url: str) -> bool:
    """Whether a URL names an object in a store.

    >>> is_remote("s3://bucket/m.safetensors"), is_remote("https://a.org/m"), is_remote("m.safetensors")
    (True, False, False)
    """
    scheme, separator, _ = url.partition("://")
    return bool(separator) and scheme.lower() in STORES


@contextlib.contextmanager
def open_remote(
    url: str, start: int = 0, known: Identity | None = None, stop: int | None = None
) -> Generator[Response]:
    """Open an object, from byte ``start`` on (up to ``stop``) if it is still the ``known`` one."""
    files, path = _connect(url)
    with _translated():
        info = _in_time(partial(_info, files, path), _ANSWER_SECONDS)
        identity = _identity(info)
        size = identity.size
        if size is None or info.get("type") != "file":
            raise SourceGoneError("a folder, not an object")
        ranged = bool(start) or stop is not None
        end = size if stop is None else stop
        if ranged and (identity != known or not start < end <= size):
            raise RangeError("the object in the store has changed")
        stream = _in_time(
            partial(files.open, path, "rb", block_size=_PIECE, cache_type="none"), _ANSWER_SECONDS
        )

    def pieces() -> Iterator[bytes]:
        with _translated():
            stream.seek(start)
            left, step = end - start, _FIRST_PIECE
            while left:
                began, asked = time.monotonic(), min(step, left)
                piece = _in_time(partial(stream.read, asked), _ANSWER_SECONDS + asked / _SLOWEST)
                if not piece or len(piece) > asked:
                    break
                left -= len(piece)
                yield piece
                step = min(2 * step, _PIECE) if time.monotonic() - began < _QUICK else step
            if _identity(_in_time(partial(_info, files, path), _ANSWER_SECONDS)) != identity:
                raise RangeError("the object in the store changed while it was read")

    with stream:
        yield Response(
            url,
            identity,
            pieces(),
            offset=start,
            length=end - start,
            expected=_checksums(info),
            partial=ranged,
        )


def exists(url: str) -> bool:
    """Whether an object of this URL is there."""
    files, path = _connect(url)
    try:
        with _translated():
            _info(files, path)
    except SourceGoneError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return False
        raise _unwritable(url, error) from error
    except (SourceError, PassingError, RangeError) as error:
        raise _unwritable(url, error) from error
    return True


def refuse_existing_object(url: str, *, force: bool) -> None:
    """Raise UsageError when the object exists and ``force`` is false."""
    if not force and exists(url):
        raise UsageError(
            f"{without_secrets(url)} exists already", hint="give --force to replace it, or another --output"
        )


def upload(file: Path, url: str, *, force: bool = False) -> None:
    """Put a file into a store under a URL, in one call, and compare what the store then says of it."""
    files, path = _connect(url)
    refuse_existing_object(url, force=force)
    try:
        with _translated():
            files.put_file(str(file), path, **_exclusively(files, url, force=force))
            info = _info(files, path)
    except (SourceError, PassingError, RangeError) as error:
        if isinstance(error.__cause__, FileExistsError):
            raise UsageError(
                f"{without_secrets(url)} was just written by another process", hint="give another --output"
            ) from error
        raise _unwritable(url, error) from error
    size = file.stat().st_size
    if info.get("size") != size:
        raise IntegrityError(f"{without_secrets(url)}: {info.get('size')} bytes were stored, not {size}")
    if expected := _checksums(info):
        compare(
            without_secrets(url), hash_file(file), expected, hint="run the same command again with --force"
        )


def _exclusively(files: Any, url: str, *, force: bool) -> dict[str, Any]:
    """Options that make the store itself refuse to replace an object, where its package has them."""
    scheme = url.partition("://")[0].lower()
    if scheme == "az":
        return {"overwrite": force}
    known = inspect.signature(getattr(files, "_put_file", files.put_file)).parameters
    return {"mode": "create"} if scheme in ("s3", "gs") and not force and "mode" in known else {}


def _unwritable(url: str, error: Exception) -> NetworkError:
    return NetworkError(
        f"{without_secrets(url)}: {error}", hint="check the address, the credentials and the network"
    )


def _connect(url: str) -> tuple[Any, str]:
    """The store's file system and the object's path in it."""
    scheme, _, path = url.partition("://")
    if not path.partition("/")[2].strip("/"):
        raise UsageError(
            f"{without_secrets(url)} does not name an object", hint=f"write it like {scheme}://bucket/file"
        )
    if "@" in urlsplit(url).netloc:
        raise UsageError(
            f"{without_secrets(url)}: credentials do not belong in the address",
            hint="give them as the store's own tools take them: by variables or by their files",
        )
    store = STORES[scheme.lower()]
    logging.getLogger(store.package).addHandler(_SILENT)  # else what it logs would be shown, with tracebacks
    try:
        fsspec = importlib.import_module("fsspec")
        files = fsspec.filesystem(store.protocol)
    except ImportError as error:
        raise MissingDependencyError(f"an address of {scheme}://", store.package) from error
    return files, path


def _in_time(call: Callable[[], Any], seconds: float) -> Any:
    """What a call into a store's package gives, if it comes in time; it cannot be ended otherwise."""
    answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer.put((call(), None))
        except BaseException as error:  # raised again by who waits
            answer.put((None, error))

    threading.Thread(target=ask, name="ckptkit-store", daemon=True).start()
    try:
        value, error = answer.get(timeout=seconds)
    except queue.Empty:
        raise SlowError(f"no answer within {seconds:.0f} s") from None
    if error is not None:
        raise error
    return value


def _info(files: Any, path: str) -> Mapping[str, Any]:
    """The store's current status of an object, not that of an earlier listing."""
    with contextlib.suppress(NotImplementedError):
        files.invalidate_cache()
    found: Mapping[str, Any] = files.info(path)
    return found


def _identity(info: Mapping[str, Any]) -> Identity:
    size = info.get("size")
    return Identity(
        etag=_text(info, "ETag", "etag", "blob_id"),
        generation=_text(info, "generation", "VersionId", "version_id"),
        last_modified=_text(info, "LastModified", "last_modified", "updated", "mtime", "created"),
        size=size if isinstance(size, int) else None,
    )


def _text(info: Mapping[str, Any], *names: str) -> str | None:
    return next((str(info[name]) for name in names if info.get(name)), None)


def _checksums(info: Mapping[str, Any]) -> tuple[ExpectedChecksum, ...]:
    """Checksums that a store states of a whole object (S3's ETag depends on how it was put)."""
    lines = [("x-goog-hash", f"md5={info.get('md5Hash')}"), ("x-goog-hash", f"crc32c={info.get('crc32c')}")]
    settings, pointer = info.get("content_settings"), info.get("lfs")
    if isinstance(settings, Mapping) and isinstance(settings.get("content_md5"), (bytes, bytearray)):
        lines.append(("content-md5", base64.b64encode(settings["content_md5"]).decode()))
    if isinstance(pointer, Mapping):
        lines.append(("x-linked-etag", str(pointer.get("sha256"))))
    return tuple(replace(checksum, origin="the store") for checksum in server_checksums(lines))


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn what a store's package raises into the errors of `ckptkit.base.net`."""
    try:
        yield
    except (SourceError, PassingError, RangeError, CkptkitError):
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise SourceGoneError("no such object") from error
    except PermissionError as error:
        raise SourceGoneError(f"not permitted: {_brief(error)}") from error
    except FileExistsError as error:
        raise SourceError("exists already") from error
    except Exception as error:  # each store's client library has errors of its own, with no common base
        kind = type(error).__name__
        if kind == "FileExpired" or getattr(error, "errno", None) == errno.ESTALE:
            raise RangeError("the object in the store changed while it was read") from error
        if "Credential" in kind or "Auth" in kind or "Token" in kind:
            raise SourceError(f"credentials: {_brief(error)}") from error
        raise PassingError(f"the store failed: {_brief(error)}") from error


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
