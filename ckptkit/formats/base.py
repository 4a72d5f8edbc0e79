"""What every container offers: a `Reader` of named tensors, a `Writer` of named tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol

from ckptkit.tensors import Array, RawTensor, TensorSpec

if TYPE_CHECKING:
    from typing_extensions import Self


Copy = Literal["ema", "raw"]
"""A copy of the weights: their moving averages, or the weights being trained."""

Weights = Literal["auto", "ema", "raw"]
"""Which copy is wanted; ``auto`` leaves the choice to what is there."""

Check = Callable[[Path], None]
"""Looks at a written checkpoint and raises when it is not what it should be."""


class Reader(Protocol):
    """An open checkpoint: names and specs at once, bytes on demand.

    Attributes
    ----------
    path : Path
        The file (or prefix, or folder) as the user named it.
    format : str
        ``tf``, ``torch``, ``safetensors``, ``keras`` or ``npz``.
    specs : Mapping of str to TensorSpec
        Every readable tensor, in file order.
    metadata : Mapping of str to str
        What the container says about itself; empty where it says nothing.
    notes : Sequence of str
        Things skipped or unusual, one plain sentence each.
    """

    path: Path
    format: str
    specs: Mapping[str, TensorSpec]
    metadata: Mapping[str, str]
    notes: Sequence[str]

    def read(self, name: str) -> Array:
        """Read-only view of one tensor, zero-copy from a memory map where its bytes are contiguous."""
        ...

    def check(self, name: str, known: int | None = None) -> bool:
        """Compare one tensor with the checksum the container stores for it.

        ``known`` is the crc32c of its bytes, where somebody has walked over them already: a container that
        stores a crc32c need not do it again, others have no use for it. Returns True when it matches, False
        when the container stores none; a difference raises FormatError.
        """
        ...

    def release(self, name: str) -> None:
        """Say that a tensor's pages are not needed for now (keeps resident memory bounded)."""
        ...

    def close(self) -> None:
        """Unmap and close; views handed out must not be used after."""
        ...

    def __enter__(self) -> Self:
        """Return self."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        ...


class Writer(Protocol):
    """A checkpoint being written: specs first, then tensors in the writer's own order, then `finish`.

    Until `finish` returns, nothing stands under the final name. Leaving the ``with`` block by an exception
    (Ctrl+C too) or without `finish` removes every temporary file.
    """

    order: Sequence[str]
    """The order in which `write` wants the tensors."""

    concurrent: bool
    """Whether `write` may be called in any order and from several threads at once."""

    def write(self, name: str, array: Array | RawTensor) -> int:
        """Write one tensor (any strides; cast to the spec's dtype). Returns crc32c of the bytes written."""
        ...

    def finish(self, check: Check | None = None, late: Mapping[str, str] | None = None) -> list[Path]:
        """Sync, check and rename; returns the files that now exist.

        ``late`` replaces values of the metadata that were not known at the start by others of their length.
        ``check`` is given a path under which the whole result can be opened: its temporary name where the
        container is one file, else the final one. What it raises discards the result.
        """
        ...

    def __enter__(self) -> Self:
        """Return self."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Discard everything unless `finish` has been called."""
        ...
