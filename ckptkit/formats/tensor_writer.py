"""What writers of containers share: the order of tensors, their way to their places, cleaning up."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ckptkit.base.checksums import crc32c
from ckptkit.base.errors import ConversionError
from ckptkit.base.files import StagedFile, sync_checked
from ckptkit.base.tensors import Array, Piece, RawTensor, TensorSpec, byte_pieces
from ckptkit.formats.base import Check
from ckptkit.formats.replacing import put_in_place, refuse_existing_checkpoint

if TYPE_CHECKING:
    from typing_extensions import Self


class TensorWriter(ABC):
    """A checkpoint in which every tensor's place is known beforehand: any order, any number of threads."""

    order: Sequence[str]
    concurrent = True
    most = 1 << 62
    """Tensors of one file that ckptkit's own reader takes within its budget."""

    def __init__(self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> None:
        self.path = path
        self._metadata = dict(metadata)
        self._specs: dict[str, TensorSpec] = {}
        for spec in specs:
            if spec.name in self._specs:
                raise ConversionError(f"{path}: two tensors have the name {spec.name!r}")
            if not is_unicode(spec.name):
                raise ConversionError(f"{path}: the tensor name {spec.name!r} is not valid Unicode")
            self._specs[spec.name] = spec
        if len(self._specs) > self.most:
            raise ConversionError(
                f"{path}: {len(self._specs):,} tensors; such a file is read with {self.most:,} at most",
                hint="choose safetensors",
            )
        self.order = list(self._specs)
        self._begun: set[str] = set()
        self._written = 0
        self._lock = threading.Lock()

    def write(self, name: str, array: Array | RawTensor) -> int:
        """Write one tensor at its place, cast to its spec's dtype; returns the crc32c of its bytes."""
        with self._lock:
            if name not in self._specs or name in self._begun:
                raise ValueError(f"{name!r} is not to be written to {self.path}, or was before")
            spec = self._specs[name]
            if array.shape != spec.shape:
                raise ValueError(f"{name!r} has shape {array.shape}, announced was {spec.shape}")
            self._begun.add(name)
        crc = self._put(spec, byte_pieces(array, spec.dtype))
        with self._lock:
            self._written += 1
        return crc

    def finish(self, check: Check | None = None, late: Mapping[str, str] | None = None) -> list[Path]:
        """Sync, check and rename; see `ckptkit.formats.base.Writer.finish`."""
        missing = len(self.order) - self._written
        if missing:
            raise ValueError(f"{missing} tensors of {self.path} were never written")
        if late and not late.items() <= self._metadata.items():
            self._settle(late)
        return self._commit(check)

    def _settle(self, late: Mapping[str, str]) -> None:
        """Put late values into the metadata; containers that write it at the end need no more."""
        settled = {**self._metadata, **late}
        if len(metadata_json(settled)) != len(metadata_json(self._metadata)):
            raise ValueError(f"late metadata of {self.path} must take the places of values of their length")
        self._metadata = settled

    @abstractmethod
    def _put(self, spec: TensorSpec, pieces: Iterable[Piece]) -> int:
        """Write a tensor's bytes (uint8) at their place; returns their crc32c."""

    @abstractmethod
    def _commit(self, check: Check | None) -> list[Path]:
        """Bring everything to its final name."""

    @abstractmethod
    def discard(self) -> None:
        """Remove every temporary file; harmless after `finish`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


class SingleFileWriter(TensorWriter):
    """A checkpoint of one file, which has a temporary name until it is whole."""

    _file: StagedFile

    def _stage(self, *, force: bool) -> None:
        refuse_existing_checkpoint(self.path, force=force)
        self._file = StagedFile(self.path, force=force)

    @abstractmethod
    def _end(self) -> None:
        """Write what comes before and after the tensors."""

    def _commit(self, check: Check | None) -> list[Path]:
        self._end()
        sync_checked([self._file], check, self._file.temporary)
        return put_in_place([self._file], self._file.final)

    def discard(self) -> None:
        """Remove the temporary file; harmless after `finish`."""
        self._file.discard()


def put_at(file: StagedFile, pieces: Iterable[Piece], offset: int) -> int:
    """Write pieces one after the other from ``offset`` on; returns crc32c of all of them."""
    crc = 0
    for piece in pieces:
        crc = crc32c(piece, crc)
        file.write_at(piece, offset)
        offset += piece.nbytes
    return crc


def metadata_json(metadata: Mapping[str, str]) -> bytes:
    """Metadata as JSON that is the same for the same content."""
    import json

    return json.dumps(dict(sorted(metadata.items())), ensure_ascii=False, separators=(",", ":")).encode()


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded (lone surrogates cannot)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
