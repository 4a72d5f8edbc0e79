"""A file as one read-only memory map, from which tensors are handed out as views."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

from ckptkit.checksums import crc32
from ckptkit.errors import FormatError, NotFoundError, storage_error
from ckptkit.formats.base import Copy
from ckptkit.tensors import Array, DType, RawTensor, TensorSpec, array_dtype

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_DIMS = 32
"""numpy 1.x holds no more axes; no published model comes near."""

_CRC_WINDOW = 4 << 20


class MappedFile:
    """A regular file, mapped read-only.

    Parameters
    ----------
    path : Path
        The file.

    Attributes
    ----------
    data : mmap.mmap
        The bytes; slices of it are ``bytes``.
    size : int
        Length in bytes.

    Raises
    ------
    NotFoundError
        No such file.
    FormatError
        Not a regular file, or an empty one.
    StorageError
        The system will not let us read it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole: Array | None = None
        try:
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size == 0:
                    raise FormatError(path, "empty file", hint="fetch or write it again")
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise NotFoundError(f"{path}: no such file") from error
        except IsADirectoryError as error:
            raise FormatError(path, "a folder where a file is needed") from error
        except OSError as error:
            raise storage_error(error, path) from error

    def view(
        self, offset: int, dtype: DType, shape: Sequence[int], strides: Sequence[int] | None = None
    ) -> Array:
        """Read-only array over the map; the caller has checked that it lies inside the file.

        Parameters
        ----------
        offset : int
            Byte where element (0, …, 0) starts.
        dtype : DType
            Element type, little-endian.
        shape : sequence of int
            Axis lengths.
        strides : sequence of int, optional
            Bytes from one element to the next along each axis; C order by default.

        Raises
        ------
        FormatError
            An empty tensor whose other axes are too long for numpy.
        """
        import numpy

        if 0 in shape:  # numpy refuses an offset at the very end of a buffer, where empty tensors may lie
            try:
                empty = numpy.empty(tuple(shape), dtype.numpy)
            except ValueError as error:  # numpy multiplies the other axes all the same
                raise FormatError(self.path, f"an empty tensor of shape {list(shape)}: {error}") from error
            empty.flags.writeable = False
            return empty
        if self._whole is None:
            # frombuffer's array holds the map open for as long as views of it live. ndarray(buffer=map) would
            # not: after close() it would point nowhere, and reading it would kill the process.
            self._whole = numpy.frombuffer(self.data, numpy.uint8)
        steps = None if strides is None else tuple(strides)
        return numpy.ndarray(tuple(shape), dtype.numpy, buffer=self._whole, offset=offset, strides=steps)

    def raw(self, offset: int, nbytes: int) -> memoryview:
        """The bytes of a range; the caller has checked that it lies inside the file."""
        return memoryview(self.data)[offset : offset + nbytes]

    def crc32(self, offset: int, nbytes: int) -> int:
        """CRC-32 of a range, computed window by window with the pages given back behind it."""
        crc = 0
        with memoryview(self.data) as view:
            for start in range(offset, offset + nbytes, _CRC_WINDOW):
                stop = min(start + _CRC_WINDOW, offset + nbytes)
                with view[start:stop] as window:
                    crc = crc32(window, crc)
                self.release(start, stop - start)
        return crc

    def release(self, offset: int, nbytes: int) -> None:
        """Tell the kernel that the whole pages inside a range are not needed for now."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (offset + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self.data.madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        """Unmap, as soon as the last view handed out is gone."""
        self._whole = None
        with contextlib.suppress(BufferError):  # views live: the map goes when they do
            self.data.close()


class MappedReader:
    """What readers of mapped files share: what most containers lack, closing by hand or by ``with``."""

    left_out: Mapping[str, str] = MappingProxyType({})
    state_dicts: tuple[str, ...] = ()
    state_dict: str | None = None
    weights: Copy | None = None
    optimizer: Collection[str] = frozenset()
    namesakes: Mapping[str, str] = MappingProxyType({})
    _files: list[MappedFile]

    @property
    def extras(self) -> Mapping[str, str]:
        """What else is in the file, in detail."""
        return {}

    @property
    def also(self) -> Mapping[str, str]:
        """What else is in the file, in a few words."""
        return self.extras

    @property
    def same(self) -> Mapping[str, str]:
        """Tensors that are the very same as an earlier one."""
        return {}

    @property
    def overlapping(self) -> Sequence[str]:
        """Tensors whose bytes touch those of one before them."""
        return ()

    def raw(self, name: str) -> RawTensor | None:
        """None: the bytes are to be had by `read` only."""
        return None

    def close(self) -> None:
        """Unmap and close; views handed out must not be used after."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def whole_bytes(path: Path, spec: TensorSpec) -> DType:
    """Element type of the array that a tensor is read as; FormatError where it can be none."""
    dtype = array_dtype(spec)
    if dtype is None:
        raise FormatError(
            path,
            f"tensor {spec.name!r}: no array can hold it, its elements ({spec.dtype}) are not whole bytes",
        )
    return dtype
