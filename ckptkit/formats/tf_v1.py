"""TensorFlow V1 checkpoints: one sorted table that holds the elements too, or several such shards.

The value of the empty key lists the tensors: shape, type, and the slices that are in the file, each of which
is an entry of its own. One of numbers of a fixed size, in a block that is not packed, is a view of the file.
Source: tensorflow/core/util/{saved_tensor_slice.proto,tensor_slice_writer.cc,tensor_slice_reader.cc}.
"""

from __future__ import annotations

import bisect
import contextlib
import glob
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptkit.base.budget import Budget
from ckptkit.base.errors import FormatError
from ckptkit.base.tensors import Array, RawTensor, TensorSpec
from ckptkit.base.text import counted
from ckptkit.formats.base import Sample
from ckptkit.formats.far_path import DOWNLOAD, as_path
from ckptkit.formats.mapped_file import MappedFile
from ckptkit.formats.protobuf_wire import (
    INT,
    LENGTH_DELIMITED,
    TEXT,
    WireError,
    many,
    message,
    places,
    read_varint,
)
from ckptkit.formats.readers import MappedReader
from ckptkit.formats.tf_index import (
    CONTROL,
    MAX_SHARDS,
    NO_NUMBERS,
    SHAPE,
    SLICE,
    VERSION,
    Box,
    Slice,
    Table,
    box_of,
    overlap,
    refuse_impossible,
    slice_key,
    sliced_name,
    type_of,
)
from ckptkit.formats.tf_tensor import Elements, elements_of, tensor_message

_MAX_BLOCK_BYTES = 1 << 31
"""A slice is one entry, and TensorFlow writes none beyond this."""
_KEEP_BYTES = 4 << 20
_SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})", re.DOTALL)
_SHOWN = 200


@dataclass(frozen=True)
class _Listed:
    """SavedSliceMeta: what a file says of one tensor."""

    name: str = ""
    shape: tuple[int, ...] = ()
    number: int = 0
    slices: Sequence[Slice] = ()


_LISTED = {1: ("name", TEXT), 2: ("shape", SHAPE), 3: ("number", INT), 4: ("slices", many(SLICE, nodes=1))}
_LIST = message(
    lambda tensors=(), versions=0: tensors,
    {1: ("tensors", many(message(_Listed, _LISTED), nodes=3)), 2: ("versions", VERSION)},
)
_META = message(lambda meta=(): meta, {1: ("meta", _LIST)})


def is_v1(sample: Sample) -> bool:
    """Whether a sorted table is a whole checkpoint, not the index of one: by what its empty key has.

    A damaged one goes by its name, as those of an index do.
    """
    file = MappedFile(sample.path)
    try:
        budget = Budget(file.size, file.fault)
        table = Table(file.path, file.data, budget, max_block_bytes=_MAX_BLOCK_BYTES)
        offset, size = next(((offset, size) for _, offset, size in table.blocks()), (0, 0))
        is_inside = size > 0 and offset + size < file.size
        if is_inside and not file.data[offset + size]:  # not packed: its first bytes tell, however large
            begin = file.data[offset : offset + 20]
            return begin[:2] == b"\0\0" and begin[read_varint(begin, 2)[1] :][:1] == b"\x0a"
        key, value = next(table.entries(offset, size), (b"?", b""))
        return key == b"" and value[:1] == b"\x0a"
    except (FormatError, WireError):
        return not sample.path.name.endswith(".index")
    finally:
        file.close()


def shards_of(path: Path) -> list[Path]:
    """The files of a checkpoint: the one at the path, or all of those that it is one of or the prefix of."""
    first = path
    if not path.is_file():
        found = sorted(path.parent.glob(f"{glob.escape(path.name)}-00000-of-?????"))
        if len(found) != 1:
            raise FormatError(path, f"{counted(len(found), 'checkpoint')} of this prefix")
        first = found[0]
    name = _SHARD.fullmatch(first.name)
    if name is None or not 1 <= int(name[2]) <= MAX_SHARDS:
        return [first]
    files = []
    for number in range(int(name[2])):
        files.append(first.with_name(f"{name[1]}-{number:05d}-of-{name[2]}"))
        if not files[-1].is_file():
            hint = "put it beside the others, or fetch it again"
            raise FormatError(path, f"its shard {files[-1].name} is missing", hint=hint)
    return files


@dataclass(frozen=True)
class _Block:
    """A block that has been checked and unpacked, and where the values of its keys are in it."""

    number: int
    data: bytes
    places: Mapping[bytes, tuple[int, int]]


class _Shard:
    """One file: its blocks, each unpacked when something of it is asked for."""

    def __init__(self, file: MappedFile, budget: Budget) -> None:
        self.file = file
        self._data: Any = file.data
        with contextlib.suppress(TypeError):  # a file that cannot be mapped
            self._data = memoryview(file.data)  # type: ignore[arg-type]
        self._blocks = list(self._table(budget).blocks())
        self._limits = [limit for limit, _, _ in self._blocks]
        if any(limit >= after for limit, after in itertools.pairwise(self._limits)):
            raise file.fault("keys of its index are out of order")
        self._held: _Block | None = None

    def _table(self, budget: Budget | None = None) -> Table:
        """The table; what reading it costs is for each block by itself, for any may be asked for again."""
        file = self.file
        budget = budget or Budget(file.size, file.fault)
        return Table(file.path, self._data, budget, max_block_bytes=_MAX_BLOCK_BYTES)

    def find(self, key: bytes) -> tuple[bytes, int, int] | None:
        """The block that has a key, and where its value is in it."""
        number = bisect.bisect_left(self._limits, key)
        if number == len(self._blocks):
            return None
        if self._held is None or self._held.number != number:
            self._held = None
            self._held = self._block(number)
        place = self._held.places.get(key)
        return None if place is None else (self._held.data, *place)

    def _block(self, number: int) -> _Block:
        _, offset, size = self._blocks[number]
        table = self._table()
        data = table.block(offset, size)
        self.file.release(offset, size)
        found = list(table.places(data, offset))
        if any(one[0] >= after[0] for one, after in itertools.pairwise(found)):
            raise self.file.fault("keys are out of order", offset)
        return _Block(number, data, {key: (start, stop) for key, start, stop in found})

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every entry, as the file has them."""
        return self._table().items()

    def release(self, key: bytes) -> None:
        """Give back the pages of the block that has a key; a small one has others, that come next."""
        number = bisect.bisect_left(self._limits, key)
        if number < len(self._blocks):
            _, offset, size = self._blocks[number]
            self.file.release(offset, size)
            if self._held and self._held.number == number and len(self._held.data) > _KEEP_BYTES:
                self._held = None

    def close(self) -> None:
        """Let go of the file."""
        self._held, self._data = None, b""


@dataclass
class _Stored:
    """A tensor: its type's number, its shape, and the slices of it in each shard."""

    number: int
    shape: tuple[int, ...]
    parts: list[tuple[_Shard, Slice]] = field(default_factory=list)


class TfV1Reader(MappedReader):
    """A V1 checkpoint: its file, one of its shards, or the prefix of these."""

    format = "tf1"

    def __init__(self, path: str | Path) -> None:
        self._shards: list[_Shard] = []
        self._more = shards_of(as_path(path))
        super().__init__(path, self._more.pop(0))

    def _open(self) -> None:
        if self._file.is_far:
            what = "a TensorFlow V1 checkpoint, whose tensors cannot be read by ranges"
            raise self._file.fault(what, hint=DOWNLOAD)
        self._files += [MappedFile(path) for path in self._more]
        budget = Budget(sum(file.size for file in self._files), self._file.fault)
        self._stored: dict[str, _Stored] = {}
        for file in self._files:
            shard = _Shard(file, budget)
            self._shards.append(shard)
            for tensor in self._listed(shard, budget):
                self._take(shard, tensor, budget)
        specs: dict[str, TensorSpec] = {}
        self.left_out = left_out = {}
        self._also = also = {}
        for name, stored in self._stored.items():
            dtype, shape = type_of(stored.number), stored.shape
            gap = self._gap(name, stored, budget)
            if dtype is None:
                also[name] = f"{NO_NUMBERS[stored.number % 100]} {list(shape)}"
            elif gap or not dtype.itemsize:
                left_out[name] = gap or f"elements of a type that is not known here ({dtype})"
            else:
                specs[name] = TensorSpec(name, dtype, shape)
        self.specs = specs

    # -- what there is ---------------------------------------------------------------------------------------

    def _listed(self, shard: _Shard, budget: Budget) -> list[_Listed]:
        found = shard.find(b"")
        if found is None:
            raise shard.file.fault("has no list of its tensors")
        block, start, stop = found
        try:
            listed: list[_Listed] = _META.read(bytes(block[start:stop]), budget)
        except WireError as error:
            raise shard.file.fault(f"damaged list of tensors: {error}") from error
        return listed

    def _take(self, shard: _Shard, tensor: _Listed, budget: Budget) -> None:
        """Add what a shard has of a tensor to what others have of it."""
        shown = repr(tensor.name[:_SHOWN])
        budget.spend(nodes=3, names=len(tensor.name))
        if CONTROL.search(tensor.name):
            raise shard.file.fault(f"a tensor's name has control characters: {shown}")
        dtype = type_of(tensor.number)
        try:
            refuse_impossible(tensor.number, tensor.shape, dtype.itemsize if dtype else 0)
        except WireError as error:
            raise shard.file.fault(f"tensor {shown}: {error}") from error
        stored = self._stored.setdefault(tensor.name, _Stored(tensor.number, tensor.shape))
        if any(one is shard for one, _ in stored.parts):
            raise shard.file.fault(f"two tensors are called {shown}")
        if (stored.number, stored.shape) != (tensor.number, tensor.shape):
            raise shard.file.fault(f"tensor {shown} has another type or shape in another shard")
        stored.parts += [(shard, piece) for piece in tensor.slices]

    def _gap(self, name: str, stored: _Stored, budget: Budget) -> str:
        """What is not there of a tensor; FormatError where its parts do not fit."""
        try:
            boxes = [box_of(piece, stored.shape) for _, piece in stored.parts]
            boxes = [box for box in boxes if math.prod(box[1])]
            budget.spend(steps=8 * len(boxes), nodes=3 * len(boxes))
            if overlap(boxes, len(stored.shape), budget):
                raise WireError("its parts overlap")
        except WireError as error:
            raise self._file.fault(f"partitioned variable {name[:_SHOWN]!r}: {error}") from error
        total, size = sum(math.prod(shape) for _, shape in boxes), math.prod(stored.shape)
        return f"parts are missing: {total:,} of {counted(size, 'element')} are there" if total < size else ""

    # -- elements --------------------------------------------------------------------------------------------

    def _parts(self, name: str) -> Iterator[tuple[Box, bytes, Elements]]:
        """Each part of a tensor: its box, and where its elements are in a block."""
        stored, spec = self._stored[name], self.specs[name]
        for shard, piece in stored.parts:
            box = box_of(piece, stored.shape)
            found = shard.find(slice_key(name.encode(), piece))
            if found is None:
                raise shard.file.fault(f"tensor {name[:_SHOWN]!r} is listed, and not there")
            block, start, stop = found
            try:
                budget = Budget(shard.file.size, WireError)
                for number in (2, 3):  # SavedTensorSlices.data, SavedSlice.data
                    start, stop = _message(block, start, stop, number, budget)
                held = tensor_message(block, start, stop, budget)
                if held.number and type_of(held.number) != spec.dtype:
                    raise WireError(f"a part of it is {held.dtype}, not {spec.dtype}")
                elements = elements_of(held, spec.dtype)
                count = math.prod(box[1])
                if not (count <= elements.at_most if elements.packed else count == elements.at_most):
                    raise WireError(f"a part of {counted(count, 'element')} has others")
            except WireError as error:
                raise shard.file.fault(f"tensor {name[:_SHOWN]!r}: {error}") from error
            yield box, block, elements

    def _array(self, name: str, box: Box, block: bytes, elements: Elements) -> Array:
        count = math.prod(box[1])
        try:
            found = elements.array(block, count)
            if len(found) != count:
                raise WireError(f"a part of {counted(count, 'element')} has {len(found)}")
        except WireError as error:
            raise self._file.fault(f"tensor {name[:_SHOWN]!r}: {error}") from error
        array: Array = found.reshape(box[1])
        return array

    def _read(self, name: str) -> Array:
        spec = self.specs[name]
        whole: Array | None = None
        for box, block, elements in self._parts(name):
            array = self._array(name, box, block, elements)
            if box[1] == spec.shape and whole is None:
                whole = array
                continue
            import numpy

            if whole is None:
                whole = numpy.empty(spec.shape, spec.dtype.numpy)
            ends = zip(*box, strict=True)
            whole[tuple(slice(start, start + size) for start, size in ends)] = array
        if whole is None:  # nothing is written of a tensor without elements
            import numpy

            whole = numpy.empty(spec.shape, spec.dtype.numpy)
        whole.flags.writeable = False
        return whole

    def _raw(self, name: str) -> RawTensor | None:
        if len(self._stored[name].parts) == 1:
            for box, block, elements in self._parts(name):
                if not elements.packed and box[1] == self.specs[name].shape:
                    return RawTensor(box[1], memoryview(block)[elements.start : elements.stop])
        return None

    def check(self, name: str, known: int | None = None) -> bool:
        """Compare the checksums of the blocks that have a tensor, which reading it does too."""
        self._hold(name)
        for _ in self._parts(name):
            pass
        return True

    def check_rest(self) -> None:
        """Compare the checksums of all blocks, and refuse what no list has."""
        listed = {
            (id(shard), slice_key(name.encode(), piece))
            for name, stored in self._stored.items()
            for shard, piece in stored.parts
        }
        for shard in self._shards:
            for key, _ in shard.items():
                if key and (id(shard), key) not in listed:
                    shown = sliced_name(key).decode("utf-8", "replace")[:_SHOWN]
                    raise shard.file.fault(f"has a part of {shown!r} that its list of tensors has not")

    def release(self, name: str) -> None:
        """Give back the pages of a tensor's blocks."""
        self._require(name)
        for shard, piece in self._stored[name].parts:
            shard.release(slice_key(name.encode(), piece))

    def close(self) -> None:
        """Unmap and close; views handed out must not be used after."""
        for shard in self._shards:
            shard.close()
        super().close()


def _message(block: bytes, start: int, stop: int, wanted: int, budget: Budget) -> tuple[int, int]:
    """Where the one message of some number is in another."""
    found = [
        (at, end)
        for number, wire, at, end in places(block, start, stop, budget)
        if number == wanted and wire == LENGTH_DELIMITED
    ]
    if len(found) != 1:
        raise WireError("an entry that is not a part of a tensor")
    return found[0]
