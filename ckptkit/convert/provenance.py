"""What identifies the source of a conversion, worked out while the conversion goes on."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ckptkit.base.files import PIECE_BYTES, translated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

    from ckptkit.workspace import Located

_SMALL_BYTES = 4 << 20
"""Hashed in a few milliseconds, when it is asked for."""
_UNKNOWN = "0" * 64


class Provenance:
    """What identifies a source: sha256 of the published file, of a single file, or of a bundle's index.

    A TensorFlow checkpoint is several files; its index holds the crc32c of every tensor, so the index's
    own sha256 identifies the whole. A large file is hashed by a thread, which lets go of the interpreter
    lock, while the ``with`` block runs.
    """

    def __init__(self, located: Located) -> None:
        self._key, self._file = _identifying_file(located.path)
        self._known = located.sha256
        if self._known:
            self._key = "source_sha256"
        self._stop = threading.Event()
        self._pool: ThreadPoolExecutor | None = None
        self._hashing: Future[str] | None = None

    @property
    def placeholder(self) -> Mapping[str, str]:
        """The right keys, with zeros where a value is not known yet."""
        return {self._key: self._known or _UNKNOWN} if self._key else {}

    def wait(self) -> Mapping[str, str]:
        """Return the true values."""
        if self._known is None and self._file is not None:
            self._known = self._hashing.result() if self._hashing else self._hash(self._file)
        return {self._key: self._known} if self._key and self._known else {}

    def _hash(self, path: Path) -> str:
        buffer = bytearray(PIECE_BYTES)
        view, digest = memoryview(buffer), hashlib.sha256()
        with translated(path), path.open("rb", buffering=0) as file:
            while not self._stop.is_set() and (count := file.readinto(buffer)):
                digest.update(view[:count])
        return digest.hexdigest()

    def __enter__(self) -> Self:
        if self._known is None and self._file is not None and self._file.stat().st_size > _SMALL_BYTES:
            self._pool = ThreadPoolExecutor(1)
            self._hashing = self._pool.submit(self._hash, self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._pool is not None:
            self._pool.shutdown()


def _identifying_file(path: Path) -> tuple[str, Path | None]:
    """Key in the metadata, and the file whose sha256 identifies the source; a folder has none."""
    if path.is_file() and path.suffix != ".index" and not path.name.endswith(".index.json"):
        return "source_sha256", path
    for index in (path, path.with_name(path.name + ".index")):
        if index.suffix == ".index" and index.is_file():
            return "source_index_sha256", index
    return "", None
