"""What readers are built on: one mapped file, or other readers, as one checkpoint or under other names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ckptkit.base.budget import LIMITS
from ckptkit.base.errors import FormatError, NotFoundError
from ckptkit.base.tensors import Array, DType, RawTensor, TensorSpec, array_dtype, byte_pieces
from ckptkit.formats.base import Reader
from ckptkit.formats.far_path import as_path
from ckptkit.formats.mapped_file import MAX_DIMS, MappedFile


class MappedReader(Reader):
    """A reader of mapped files: `read` and `raw` hand out nothing before the checksum that covers it held."""

    _files: list[MappedFile]
    _also: Mapping[str, str] = MappingProxyType({})

    def __init__(self, path: str | Path, file: Path | None = None) -> None:
        self.path = as_path(path)
        self._file = MappedFile(file or self.path)
        self._files = [self._file]
        try:
            self._open()
        except BaseException:  # Ctrl+C too
            self.close()
            raise

    def _open(self) -> None:
        """Read the file's description of its tensors."""
        raise NotImplementedError

    @property
    def extras(self) -> Mapping[str, str]:
        """What else is in the file, in detail."""
        return self._also

    def read(self, name: str) -> Array:
        """Read-only array of one tensor."""
        self._hold(name)
        return self._read(name)

    def raw(self, name: str) -> RawTensor | None:
        """The bytes of one tensor, without numpy; None where they are not in C order."""
        self._hold(name)
        return self._raw(name)

    def _read(self, name: str) -> Array:
        raise NotImplementedError

    def _place(self, _name: str) -> tuple[int, int] | None:
        """Offset and length of a tensor's bytes in the file; None where they are not in one piece."""
        return None

    def _is_plain(self, _name: str) -> bool:
        """Whether the bytes at its place are those of the tensor in C order, little-endian."""
        return True

    def _raw(self, name: str) -> RawTensor | None:
        place = self._place(name)
        if place is None or not self._is_plain(name):
            return None
        return RawTensor(self.specs[name].shape, self._file.raw(*place))

    def check(self, name: str, known: int | None = None) -> bool:
        """False: no checksum is stored."""
        self._require(name)
        return False

    def release(self, name: str) -> None:
        """Give back the memory pages of one tensor."""
        self._require(name)
        if place := self._place(name):
            self._file.release(*place)

    def _check_bytes(self, name: str) -> None:
        """Compare the stored checksum of a tensor's bytes, where reading them does not do it."""

    def _require(self, name: str) -> None:
        if name not in self.specs:
            raise NotFoundError(f"{self.path}: no tensor {name!r}")

    @cached_property
    def _held(self) -> set[str]:
        return set()

    def _hold(self, name: str) -> None:
        """Check a tensor before it is handed out for the first time."""
        if name in self._held:
            return
        self._require(name)
        self._check_bytes(name)
        if self.specs[name].dtype.kind == "bool":
            refuse_odd_bools(self.path, name, self._raw(name) or self._read(name))
        self._held.add(name)

    def close(self) -> None:
        """Unmap and close; views handed out must not be used after."""
        for file in self._files:
            file.close()


def refuse_odd_bools(path: Path, name: str, stored: Array | RawTensor) -> None:
    """Raise FormatError for a byte other than 0 and 1, which is true for some programs and 2 for others."""
    for piece in byte_pieces(stored):
        if odd := bytes(piece).translate(None, b"\0\1"):
            raise FormatError(
                path,
                f"bool tensor {name!r} holds byte {odd[0]:#04x}, which is neither false nor true",
                hint="write it again with bools of 0 and 1",
            )


def whole_bytes(path: Path, spec: TensorSpec) -> DType:
    """Element type of the array that a tensor is read as; FormatError where it can be none."""
    dtype = array_dtype(spec)
    if dtype is None:
        raise FormatError(
            path,
            f"tensor {spec.name!r}: no array can hold it, its elements ({spec.dtype}) are not whole bytes",
        )
    return dtype


# -- tensors that are runs of bytes --------------------------------------------------------------------------


class Span(NamedTuple):
    """Some bytes of a file."""

    file: MappedFile
    offset: int
    nbytes: int


class SpanReader(MappedReader):
    """A reader whose tensors are in C order and little-endian, each in one run of bytes or in several.

    A subclass calls `add` for every tensor when it opens the file. One that must be decoded has no run, and
    is made by `_decoded`.
    """

    def __init__(self, path: str | Path) -> None:
        self.specs: dict[str, TensorSpec] = {}
        self.left_out: dict[str, str] = {}
        self._also: dict[str, str] = {}
        self._spans: dict[str, tuple[Span, ...]] = {}
        self._walked = self._claimed = 0
        super().__init__(path)

    def add(self, name: str, dtype: DType, shape: Sequence[int], spans: Sequence[Span] | None) -> None:
        """Take a tensor, whose runs of bytes have been found to be in their files; None where it has none."""
        self.refuse_twice(name)
        if len(shape) > MAX_DIMS or not all(0 <= size < 1 << 62 for size in shape):
            raise self._file.fault(f"tensor {name[:200]!r} has the shape {list(shape)[:40]}")
        held = None if spans is None else sum(span.nbytes for span in spans)
        stored = held if not (dtype.itemsize or dtype.bits) else None
        spec = TensorSpec(name, dtype, tuple(shape), stored)
        if held is not None and spec.nbytes != held:
            shown = f"{dtype} {list(shape)}"
            raise self._file.fault(f"tensor {name[:200]!r} of {shown} needs {spec.nbytes} bytes, not {held}")
        self.specs[name] = spec
        if spans is not None:
            self._spans[name] = tuple(span for span in spans if span.nbytes)
            self._refuse_expansion(spec.nbytes)
            self._let_go(
                max((span.offset + span.nbytes for span in spans if span.file is self._file), default=0)
            )

    def _refuse_expansion(self, nbytes: int) -> None:
        """Refuse tensors that lie over each other and claim far more than the files have."""
        self._claimed += nbytes
        if self._claimed > LIMITS["nbytes"].floor:
            real = sum(file.size for file in self._files)
            if self._claimed > LIMITS["nbytes"].of(real):
                claim = f"its tensors claim {self._claimed} bytes or more"
                raise self._file.fault(f"{claim}, but share {real} bytes of data")

    def _let_go(self, stop: int) -> None:
        """Give back the pages gone over so far: a look at one may have mapped 2 MB around it."""
        if stop > self._walked:
            self._file.release(self._walked, stop - self._walked)
            self._walked = stop

    def refuse_twice(self, name: str) -> None:
        """Refuse a name that a tensor has already."""
        if name in self.specs or name in self.left_out:
            raise self._file.fault(f"two tensors are called {name[:200]!r}")

    def _decoded(self, name: str) -> Array:
        """A tensor without a run of bytes."""
        raise NotImplementedError

    def _read(self, name: str) -> Array:
        spec = self.specs[name]
        dtype = whole_bytes(self.path, spec)
        spans = self._spans.get(name)
        if spans is None:
            array = self._decoded(name)
            array.flags.writeable = False
            return array
        if len(spans) <= 1:
            file, offset, _ = spans[0] if spans else Span(self._file, 0, 0)
            return file.view(offset, dtype, spec.shape)
        import numpy

        joined = numpy.empty(spec.nbytes, numpy.uint8)
        at = 0
        for file, offset, nbytes in spans:
            with file.raw(offset, nbytes) as run:
                joined[at : at + nbytes] = run
            file.release(offset, nbytes)
            at += nbytes
        joined.flags.writeable = False
        return joined.view(dtype.numpy).reshape(spec.shape)

    def _raw(self, name: str) -> RawTensor | None:
        spans = self._spans.get(name)
        if spans is None or len(spans) > 1:
            return None
        file, offset, nbytes = spans[0] if spans else Span(self._file, 0, 0)
        return RawTensor(self.specs[name].shape, file.raw(offset, nbytes))

    def release(self, name: str) -> None:
        """Give back the memory pages of one tensor."""
        self._require(name)
        for file, offset, nbytes in self._spans.get(name, ()):
            file.release(offset, nbytes)


class Relay(Reader):
    """The tensors of some readers, which are closed with this one; the first decides what there is one of."""

    def __init__(self, readers: list[Reader], names: Mapping[str, str]) -> None:
        self._readers = readers
        self._names = names  # name in the file -> name here; names that are not in it stay
        first = readers[0]
        self.format, self.weights = first.format, first.weights
        self.state_dicts, self.state_dict = first.state_dicts, first.state_dict
        self._homes: dict[str, tuple[Reader, str]] = {}
        specs, left_out = {}, {}
        for reader in readers:
            for own, spec in reader.specs.items():
                name = names.get(own, own)
                self._homes[name] = reader, own
                specs[name] = spec if name == own else replace(spec, name=name)
            left_out.update({names.get(own, own): why for own, why in reader.left_out.items()})
        self.specs, self.left_out = specs, left_out
        self.metadata = self._merged(reader.metadata for reader in readers)
        self.optimizer = {names.get(own, own) for reader in readers for own in reader.optimizer}
        self.namesakes = self._renamed(reader.namesakes for reader in readers)

    @staticmethod
    def _merged(tables: Iterable[Mapping[str, str]]) -> dict[str, str]:
        """Several tables as one, in which the first has the word."""
        return {key: text for table in reversed(list(tables)) for key, text in table.items()}

    def _renamed(self, tables: Iterable[Mapping[str, str]]) -> dict[str, str]:
        get = self._names.get
        return {get(one, one): get(other, other) for table in tables for one, other in table.items()}

    @property
    def extras(self) -> Mapping[str, str]:
        """What else is in the files, in detail."""
        return self._merged(reader.extras for reader in self._readers)

    @property
    def also(self) -> Mapping[str, str]:
        """What else is in the files, in a few words."""
        return self._merged(reader.also for reader in self._readers)

    @property
    def same(self) -> Mapping[str, str]:
        """Tensors that are the very same as an earlier one of their file."""
        return self._renamed(reader.same for reader in self._readers)

    @property
    def overlapping(self) -> Sequence[str]:
        """Tensors whose bytes touch those of one before them."""
        return [self._names.get(own, own) for reader in self._readers for own in reader.overlapping]

    def _home(self, name: str) -> tuple[Reader, str]:
        if name not in self._homes:
            raise NotFoundError(f"{self.path}: no tensor {name!r}")
        return self._homes[name]

    def read(self, name: str) -> Array:
        """Read-only view of one tensor."""
        reader, own = self._home(name)
        return reader.read(own)

    def raw(self, name: str) -> RawTensor | None:
        """The bytes of one tensor without numpy; None where they are not in C order in one piece."""
        reader, own = self._home(name)
        return reader.raw(own)

    def check(self, name: str, known: int | None = None) -> bool:
        """Compare one tensor with the checksum its file stores for it."""
        reader, own = self._home(name)
        return reader.check(own, known)

    def check_rest(self) -> None:
        """Check what else in the files has checksums."""
        for reader in self._readers:
            reader.check_rest()

    def release(self, name: str) -> None:
        """Give back the memory pages of one tensor."""
        reader, own = self._home(name)
        reader.release(own)

    def close(self) -> None:
        """Close every file."""
        for reader in self._readers:
            reader.close()


class Renamed(Relay):
    """One reader's tensors under other names, given for every tensor, those that are left out among them."""

    def __init__(self, reader: Reader, names: Mapping[str, str], note: str) -> None:
        super().__init__([reader], names)
        self.path = reader.path
        self.notes = [*reader.notes, note]
