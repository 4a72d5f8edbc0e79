"""A file as one read-only memory map, from which ranges are handed out as views and bytes."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import overload

from ckptkit.base.errors import FormatError, NotFoundError, UsageError
from ckptkit.base.files import storage_error
from ckptkit.base.tensors import Array, DType
from ckptkit.formats.far_path import DOWNLOAD, FarFile, FarPath

MAX_DIMS = 32
"""numpy 1.x holds no more axes; no published model comes near."""

_CHECKED_BYTES = 4 << 20
_FAULT_AROUND = 64 << 10
"""Linux maps this much around a page that is touched."""
_WINDOW = 256 << 10
"""Bytes read at a time for small ranges of a file that cannot be mapped."""


Checksum = Callable[[memoryview, int], int]
"""Adds some bytes to a checksum."""


class MappedFile:
    """A regular file, mapped read-only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole: Array | None = None
        self.data: mmap.mmap | _Unmapped | _Window
        try:
            if isinstance(path, FarPath):
                far = path.far
                self.size, self.data = far.size, _Far(path, far)
                if self.size == 0:
                    raise FormatError(path, "empty file")
                return
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size == 0:
                    raise FormatError(path, "empty file", hint="fetch or write it again")
                try:
                    self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                except OSError:  # some FUSE and network file systems have no maps; or memory is limited
                    self.data = _Unmapped(path, self.size)
        except FileNotFoundError as error:
            raise NotFoundError(f"{path}: no such file") from error
        except IsADirectoryError as error:
            raise FormatError(path, "a folder where a file is needed") from error
        except OSError as error:
            raise storage_error(error, path) from error

    @property
    def is_far(self) -> bool:
        """Whether each place in it that is looked at costs a request to a server."""
        return isinstance(self.data, _Far)

    @property
    def ground(self) -> tuple[mmap.mmap | _Unmapped | _Window, int]:
        """The bytes of the whole file, for what reads them one by one, and where this part of it begins."""
        return self.data, 0

    def fault(self, reason: str, offset: int | None = None, hint: str | None = None) -> FormatError:
        """The refusal of the file."""
        return FormatError(self.path, reason, offset=offset, hint=hint)

    def view(
        self, offset: int, dtype: DType, shape: Sequence[int], strides: Sequence[int] | None = None
    ) -> Array:
        """Read-only array over the map; the caller has checked that it is inside the file."""
        import numpy

        if 0 in shape:  # numpy refuses an offset at the very end of a buffer, where empty tensors may be
            try:
                empty = numpy.empty(tuple(shape), dtype.numpy)
            except ValueError as error:  # numpy multiplies the other axes all the same
                raise FormatError(self.path, f"an empty tensor of shape {list(shape)}: {error}") from error
            empty.flags.writeable = False
            return empty
        steps = None if strides is None else tuple(strides)
        if self.is_far:
            raise UsageError(
                f"{self.path}: the values of its tensors are not read from a server",
                hint=DOWNLOAD,
            )
        if isinstance(self.data, (_Unmapped, _Window)):
            extents = zip(shape, steps or _strides(shape, dtype.itemsize), strict=True)
            nbytes = dtype.itemsize + sum((length - 1) * step for length, step in extents)
            raw = self.data[offset : offset + nbytes]
            return numpy.ndarray(tuple(shape), dtype.numpy, buffer=raw, strides=steps)
        if self._whole is None:
            # frombuffer's array holds the map open for as long as views of it live. ndarray(buffer=map) would
            # not: after close() it would point nowhere, and reading it would kill the process.
            self._whole = numpy.frombuffer(self.data, numpy.uint8)
        return numpy.ndarray(tuple(shape), dtype.numpy, buffer=self._whole, offset=offset, strides=steps)

    def raw(self, offset: int, nbytes: int) -> memoryview:
        """The bytes of a range; the caller has checked that it is inside the file."""
        if isinstance(self.data, (_Unmapped, _Window)):
            return memoryview(self.data[offset : offset + nbytes])
        return memoryview(self.data)[offset : offset + nbytes]

    def checksum(self, add: Checksum, offset: int, nbytes: int, *, keep: bool = False) -> int:
        """A checksum of a range, which is walked over in windows; their pages are given back unless kept."""
        found = 0
        for start in range(offset, offset + nbytes, _CHECKED_BYTES):
            stop = min(start + _CHECKED_BYTES, offset + nbytes)
            with self.raw(start, stop - start) as window:
                found = add(window, found)
            if not keep:
                self.release(start, stop - start)
        return found

    def inflated(self, offset: int, nbytes: int, wbits: int = zlib.MAX_WBITS) -> Iterator[bytes]:
        """Unpack a deflated range in pieces of at most 256 KB."""
        unpacker = zlib.decompressobj(wbits)
        stop, packed = offset + nbytes, b""
        while not unpacker.eof:
            if not packed:
                packed = self.data[offset : min(offset + _WINDOW, stop)]
                self.release(offset, len(packed))
                offset += len(packed)
            try:
                piece = unpacker.decompress(packed, _WINDOW)
            except zlib.error as error:
                raise ValueError(f"damaged compressed data ({error})") from error
            if piece:
                yield piece
            elif not packed:
                raise ValueError("compressed data that ends early")
            packed = unpacker.unconsumed_tail
        if offset < stop or unpacker.unused_data:
            raise ValueError("extra bytes after the compressed data")

    def release(self, offset: int, nbytes: int) -> None:
        """Tell the kernel that the whole pages inside a range are not needed for now."""
        if not hasattr(mmap, "MADV_DONTNEED") or isinstance(self.data, (_Unmapped, _Window)):
            return
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (offset + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self.data.madvise(mmap.MADV_DONTNEED, first, last - first)

    def release_around(self, offset: int, nbytes: int) -> None:
        """Release a range, and what the system mapped before and after it with a page of it."""
        start = offset - offset % _FAULT_AROUND
        self.release(start, -(-(offset + nbytes - start) // _FAULT_AROUND) * _FAULT_AROUND)

    def close(self) -> None:
        """Unmap, as soon as the last view handed out is gone."""
        self._whole = None
        with contextlib.suppress(BufferError):  # views live: the map goes when they do
            self.data.close()


class MappedPart(MappedFile):
    """A range of a mapped file that is a file of its own, such as one of several archives in a row."""

    def __init__(self, whole: MappedFile, start: int, nbytes: int) -> None:
        self.path, self.size = whole.path, nbytes
        self._file, self._start = whole, start
        self.data = _Window(whole.data, start, nbytes)

    @property
    def is_far(self) -> bool:
        """Whether each place in it that is looked at costs a request to a server."""
        return self._file.is_far

    @property
    def ground(self) -> tuple[mmap.mmap | _Unmapped | _Window, int]:
        """The bytes of the whole file, and where this part of it begins."""
        data, start = self._file.ground
        return data, start + self._start

    def fault(self, reason: str, offset: int | None = None, hint: str | None = None) -> FormatError:
        """The refusal of the file, at an offset that is counted from its own beginning."""
        return self._file.fault(reason, None if offset is None else self._start + offset, hint)

    def view(
        self, offset: int, dtype: DType, shape: Sequence[int], strides: Sequence[int] | None = None
    ) -> Array:
        """Read-only array over the map."""
        return self._file.view(self._start + offset, dtype, shape, strides)

    def raw(self, offset: int, nbytes: int) -> memoryview:
        """The bytes of a range."""
        return self._file.raw(self._start + offset, nbytes)

    def release(self, offset: int, nbytes: int) -> None:
        """Tell the kernel that the whole pages inside a range are not needed for now."""
        self._file.release(self._start + offset, nbytes)

    def close(self) -> None:
        """Nothing: the whole file is closed by whoever opened it."""


class _Window:
    """Part of a map, whose bytes are counted from its own beginning."""

    def __init__(self, data: mmap.mmap | _Unmapped | _Window, start: int, nbytes: int) -> None:
        self._data, self._start, self._size = data, start, nbytes

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, key: int) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> bytes: ...
    def __getitem__(self, key: int | slice) -> int | bytes:
        if isinstance(key, int):
            return self._data[self._start + range(self._size)[key]]
        start, stop, _ = key.indices(self._size)
        return self._data[self._start + start : self._start + max(start, stop)]

    def find(self, wanted: bytes, start: int, stop: int) -> int:
        """Return where something first begins; -1 where it does not."""
        return self._own(self._data.find(wanted, self._start + start, self._start + min(stop, self._size)))

    def rfind(self, wanted: bytes, start: int, stop: int) -> int:
        """Return where something last begins; -1 where it does not."""
        return self._own(self._data.rfind(wanted, self._start + start, self._start + min(stop, self._size)))

    def close(self) -> None:
        """Nothing: the map is closed by whoever made it."""

    def _own(self, found: int) -> int:
        return found if found < 0 else found - self._start


class _Unmapped:
    """Stands in for `mmap.mmap` where a file cannot be mapped: ranges are read on demand.

    Small ranges come out of a window, so that not every number of a header costs a system call.
    """

    closed = False

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._file = path.open("rb", buffering=0)
        self._window = (0, b"")

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, key: int) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> bytes: ...
    def __getitem__(self, key: int | slice) -> int | bytes:
        if isinstance(key, int):
            return self._read(key, key + 1)[0]
        start, stop, _ = key.indices(self._size)
        return self._read(start, max(start, stop))

    def find(self, wanted: bytes, start: int, stop: int) -> int:
        """Return where something first begins; -1 where it does not."""
        for at in range(start, stop, _WINDOW):
            found = self._read(at, min(at + _WINDOW + len(wanted) - 1, stop)).find(wanted)
            if found >= 0:
                return at + found
        return -1

    def rfind(self, wanted: bytes, start: int, stop: int) -> int:
        """Return where something last begins in a small range; -1 where it does not."""
        found = self._read(start, stop).rfind(wanted)
        return found if found < 0 else start + found

    def _read(self, start: int, stop: int) -> bytes:
        at, window = self._window
        if not at <= start <= stop <= at + len(window):
            if stop - start > _WINDOW:
                return self._read_file(start, stop)
            at, window = self._window = start, self._read_file(start, min(start + _WINDOW, self._size))
        return window[start - at : stop - at]

    def _read_file(self, start: int, stop: int) -> bytes:
        pieces = []
        try:
            while start < stop and (piece := os.pread(self._file.fileno(), stop - start, start)):
                pieces.append(piece)
                start += len(piece)
        except OSError as error:
            raise storage_error(error, self._path) from error
        if start < stop:
            raise FormatError(self._path, "the file became shorter while it was read", offset=start)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        self.closed = True
        self._window = (0, b"")
        self._file.close()


class _Far(_Unmapped):
    """A file on a server, of which ranges are transferred on demand; who serves them keeps what came."""

    def __init__(self, path: Path, far: FarFile) -> None:
        self._path, self._size, self._far = path, far.size, far

    def _read(self, start: int, stop: int) -> bytes:
        return self._far.read(start, stop) if stop > start else b""

    def close(self) -> None:
        self.closed = True


def _strides(shape: Sequence[int], itemsize: int) -> list[int]:
    """Bytes from one element to the next along each axis, in C order."""
    return [itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
