"""What writers of one-pass containers share: the order of tensors, their streaming, cleaning up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ckptkit.checksums import crc32c
from ckptkit.errors import ConversionError
from ckptkit.formats.base import Check
from ckptkit.tensors import Array, TensorSpec, byte_pieces

if TYPE_CHECKING:
    from typing_extensions import Self


class TensorWriter(ABC):
    """A checkpoint being written: what all writers of one container share.

    Parameters
    ----------
    path : Path
        Where the checkpoint will stand.
    specs : iterable of TensorSpec
        Every tensor.

    Attributes
    ----------
    order : sequence of str
        Names in the order `write` wants them.

    Raises
    ------
    ConversionError
        Two specs of one name, or a name that is no valid Unicode.
    """

    order: Sequence[str]
    concurrent: bool

    def __init__(self, path: Path, specs: Iterable[TensorSpec]) -> None:
        self.path = path
        self._specs: dict[str, TensorSpec] = {}
        for spec in specs:
            if spec.name in self._specs:
                raise ConversionError(f"{path}: two tensors have the name {spec.name!r}")
            if not is_unicode(spec.name):
                raise ConversionError(f"{path}: the tensor name {spec.name!r} is no valid Unicode")
            self._specs[spec.name] = spec
        self.order = list(self._specs)
        self._written = 0

    def finish(self, check: Check | None = None) -> list[Path]:
        """Sync, check and rename; returns the files that now exist.

        Parameters
        ----------
        check : callable, optional
            See `ckptkit.formats.base.Writer.finish`.

        Raises
        ------
        ValueError
            A tensor was never written.
        StorageError
            The disk refuses.
        """
        missing = len(self.order) - self._written
        if missing:
            raise ValueError(f"{missing} tensors of {self.path} were never written")
        return self._commit(check)

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


class SequentialWriter(TensorWriter):
    """A checkpoint into which tensors go one after the other, chunk by chunk."""

    concurrent = False
    _broken = False

    def write(self, name: str, array: Array) -> int:
        """Write one tensor, cast to its spec's dtype.

        Parameters
        ----------
        name : str
            The next one of `order`.
        array : numpy.ndarray
            Of the spec's shape, with any strides.

        Returns
        -------
        int
            crc32c (not masked) of the bytes written.

        Raises
        ------
        ValueError
            It is not this tensor's turn, or its shape is not its spec's.
        StorageError
            The disk refuses.
        """
        if self._broken or self._written >= len(self.order) or name != self.order[self._written]:
            raise ValueError(f"{name!r} is not the next tensor of {self.path}")
        spec = self._specs[name]
        if array.shape != spec.shape:
            raise ValueError(f"{name!r} has shape {array.shape}, announced was {spec.shape}")
        self._broken = True  # until this tensor is whole, there is no way on
        self._begin(spec)
        crc = 0
        for piece in byte_pieces(array, spec.dtype):
            self._feed(piece)
            crc = crc32c(piece, crc)
        self._end(spec)
        self._written += 1
        self._broken = False
        return crc

    @abstractmethod
    def _begin(self, spec: TensorSpec) -> None:
        """Get ready for the bytes of a tensor."""

    @abstractmethod
    def _feed(self, piece: Array) -> None:
        """Take the next bytes (uint8) of the tensor begun."""

    @abstractmethod
    def _end(self, spec: TensorSpec) -> None:
        """Note that all bytes of a tensor have come."""


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
