"""What every container offers: a `Reader` of named tensors, a `Writer` of named tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol

from ckptkit.base.tensors import Array, RawTensor, TensorSpec

if TYPE_CHECKING:
    from typing_extensions import Self


Copy = Literal["ema", "raw"]
"""A copy of the weights: their moving averages, or the weights being trained."""

Weights = Literal["auto", "ema", "raw"]
"""Which copy is wanted; ``auto`` leaves the choice to what is there."""

AVERAGING_COUNTERS = ("n_averaged", "steps")
"""What averaged models of torch.optim.swa_utils and of mmengine count with, beside the names ``module.…``."""

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
        Every tensor that can be carried, in file order; those of an opaque type too.
    metadata : Mapping of str to str
        What the container says about itself; empty where it says nothing.
    notes : Sequence of str
        What is unusual, one plain sentence each.
    left_out : Mapping of str to str
        Tensors that cannot be carried at all, and why not. Nobody may pass over them in silence.
    also : Mapping of str to str
        What else is in the file and is no tensor of the model, by name, each in a few words: the optimizer's
        state, hyperparameters, an epoch, texts.
    extras : Mapping of str to str
        The same in detail.
    state_dicts, state_dict
        Which state dicts there are, and which one is read; ``()`` and None outside of PyTorch files.
    weights : "ema", "raw" or None
        Which copy is read, where the file has both in state dicts of their own.
    same : Mapping of str to str
        Tensors that are the very same as an earlier one, and which that is.
    overlapping : Sequence of str
        Tensors whose bytes touch those of one before them.
    optimizer : Collection of str
        Tensors that belong to an optimizer, as far as the file itself says so.
    namesakes : Mapping of str to str
        Tensors listed under another name than their own, because another one has it too, and that name.
    """

    path: Path
    format: str
    specs: Mapping[str, TensorSpec]
    metadata: Mapping[str, str]
    notes: Sequence[str]
    left_out: Mapping[str, str]
    state_dicts: tuple[str, ...]
    state_dict: str | None
    weights: Copy | None
    optimizer: Collection[str]
    namesakes: Mapping[str, str]

    @property
    def also(self) -> Mapping[str, str]:
        """What else is in the file, in a few words."""
        ...

    @property
    def extras(self) -> Mapping[str, str]:
        """What else is in the file, in detail."""
        ...

    @property
    def same(self) -> Mapping[str, str]:
        """Tensors that are the very same as an earlier one."""
        ...

    @property
    def overlapping(self) -> Sequence[str]:
        """Tensors whose bytes touch those of one before them."""
        ...

    def read(self, name: str) -> Array:
        """Read-only view of one tensor, zero-copy from a memory map where its bytes are contiguous.

        A checksum that the container keeps of them has been compared, once. Elements of an opaque type come
        as ml_dtypes has them, else as numpy void; FormatError where they are not whole bytes.
        """
        ...

    def raw(self, name: str) -> RawTensor | None:
        """The bytes of one tensor without numpy; None where they do not lie in C order in one piece.

        Checked as by `read`. Never None for elements that are not whole bytes.
        """
        ...

    def check(self, name: str, known: int | None = None) -> bool:
        """Compare one tensor with the checksum the container stores for it.

        ``known`` is the crc32c of its bytes, where somebody has walked over them already: a container that
        stores a crc32c need not do it again, others have no use for it. Returns True when it matches, False
        when the container stores none; a difference raises FormatError.
        """
        ...

    def check_rest(self) -> None:
        """Check what else the container keeps checksums for; FormatError where it is damaged."""
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


def bytes_of(reader: Reader, name: str) -> RawTensor:
    """The bytes of one tensor in C order: as they lie in the file, or a copy where they do not lie so."""
    raw = reader.raw(name)
    if raw is not None:
        return raw
    import numpy

    array = reader.read(name)
    if array.dtype.names:  # numpy would copy a record's fields, and not what lies between them
        array = array.view(f"V{array.itemsize}")
    copied: Array = numpy.array(array, order="C").reshape(-1).view(numpy.uint8)
    return RawTensor(reader.specs[name].shape, copied.data)


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
