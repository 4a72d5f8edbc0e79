"""The index of a TensorFlow checkpoint: which tensors there are and where their bytes lie, all checked."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ckptkit.base.budget import Budget
from ckptkit.base.errors import FormatError, NotFoundError, storage_error
from ckptkit.base.tensors import KNOWN, DType
from ckptkit.formats.leveldb_table import read_table
from ckptkit.formats.protobuf_wire import WireError
from ckptkit.formats.tf_bundle_proto import (
    BUNDLE_VERSION,
    FULL,
    BundleEntry,
    BundleHeader,
    Slice,
    decode_entry,
    decode_header,
    slice_key,
    sliced_name,
)

MAX_INDEX_BYTES = 64 << 20
"""An index has about 100 bytes a tensor; this is room for more than any checkpoint has."""
MAX_RANK = 32
"""What numpy 1 can hold."""
MAX_SHARDS = 100_000
"""Data files are numbered with five digits."""
_ENTRY_NODES, _PART_NODES = 3, 3
_BOX_STEPS, _PAIR_STEPS = 8, 4
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_REFERENCE = 100  # DT_FLOAT_REF = DT_FLOAT + 100 and so on: how TF1 typed mutable variables
_BY_NUMBER = {dtype.tf: dtype for dtype in KNOWN if dtype.tf is not None}
_NO_NUMBERS = {7: "strings", 20: "a resource", 21: "a variant"}
"""Types whose elements are of any length: no tensor of a model is made of them."""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a tensor, or of one box of a partitioned one, in a data file."""

    shard: int  # data file and place in it, in bytes
    offset: int  # data file and place in it, in bytes
    size: int  # data file and place in it, in bytes
    crc32c: int | None  # masked checksum, where the index has one
    start: tuple[int, ...]  # the box: where it begins in the tensor, and how large it is
    shape: tuple[int, ...]  # the box: where it begins in the tensor, and how large it is


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as the index describes it."""

    key: str  # its key in the index
    dtype: DType | None  # none for strings, variants and resources; ``type_name`` says what it is then
    type_name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    gap: str = ""  # what of a partitioned variable is not in the checkpoint; empty where all of it is

    @property
    def place(self) -> tuple[int, int]:
        """Shard and offset of the first part, to sort by."""
        return min(((part.shard, part.offset) for part in self.parts), default=(0, 0))

    @property
    def fingerprint(self) -> Hashable:
        """What tensors of the same type, shape and bytes have in common; None without checksums."""
        parts = tuple((part.start, part.shape, part.crc32c) for part in self.parts)
        known = not self.gap and all(part.crc32c is not None for part in self.parts)
        return (self.type_name, self.shape, parts) if known else None


@dataclass(frozen=True)
class BundleIndex:
    """Header and tensors of a checkpoint by key; by name, how many stored parts no tensor lists."""

    header: BundleHeader
    tensors: Mapping[str, StoredTensor]
    unused_parts: Mapping[str, int]

    def notes(self) -> list[str]:
        """What is unusual, one sentence each."""
        return [
            f"{count} stored parts of {name!r} are not listed among its parts"
            for name, count in self.unused_parts.items()
            if name in self.tensors
        ]


def index_path(prefix: Path) -> Path:
    """``<prefix>.index``."""
    return prefix.with_name(prefix.name + ".index")


def shard_path(prefix: Path, shard: int, num_shards: int) -> Path:
    """``<prefix>.data-NNNNN-of-MMMMM``.

    Examples
    --------
    >>> shard_path(Path("model.ckpt"), 0, 1).name
    'model.ckpt.data-00000-of-00001'
    """
    return prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{num_shards:05d}")


def load_index(prefix: Path, budget: Budget) -> BundleIndex:
    """Read ``<prefix>.index`` within a budget and check it against the data files beside it."""
    path = index_path(prefix)
    header, decoded = _decoded(path, budget)
    assembled: set[bytes] = set()
    tensors = {}
    for key, entry in decoded.items():
        if not _is_part_key(key):
            stored = _stored(path, key, entry, decoded, assembled, budget=budget)
            tensors[stored.key] = stored
    spans = [
        (entry.shard, entry.offset, entry.size, key) for key, entry in decoded.items() if not entry.slices
    ]
    _check_spans(prefix, header, spans)
    unused = Counter(
        _name(path, sliced_name(key)) for key in decoded if _is_part_key(key) and key not in assembled
    )
    return BundleIndex(header, tensors, unused)


def count_of_data_files(index: Path) -> int:
    """How many data files an index says that there are."""
    data = _read_bounded(index)
    budget = Budget(len(data), lambda reason: FormatError(index, reason))
    key, value = next(read_table(index, data, budget), (b"?", b""))
    return _header(index, key, value, budget).num_shards


def _decoded(path: Path, budget: Budget) -> tuple[BundleHeader, dict[bytes, BundleEntry]]:
    table = read_table(path, _read_bounded(path), budget)
    key, value = next(table, (b"?", b""))
    header = _header(path, key, value, budget)
    return header, {key: _entry(path, key, value, budget) for key, value in table}


def _read_bounded(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_INDEX_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{path}: no such file", hint="a TensorFlow checkpoint needs its .index"
        ) from error
    except OSError as error:
        raise storage_error(error, path) from error
    if len(data) > MAX_INDEX_BYTES:
        raise FormatError(path, f"larger than {MAX_INDEX_BYTES} bytes: no index of a checkpoint")
    return data


def _header(path: Path, key: bytes, value: bytes, budget: Budget) -> BundleHeader:
    """What the first entry, which has the empty key, says of all."""
    if key:
        raise FormatError(path, "has no header entry: a table, but not of a checkpoint")
    try:
        header = decode_header(value, budget)
    except WireError as error:
        raise FormatError(path, f"damaged header: {error}") from error
    if header.big_endian:
        raise FormatError(
            path,
            "written on a big-endian machine, which is not supported",
            hint="load and save it with TensorFlow on a little-endian machine",
        )
    if header.min_consumer > BUNDLE_VERSION:
        raise FormatError(
            path, f"asks for checkpoint version {header.min_consumer}, {BUNDLE_VERSION} is known"
        )
    if not 0 < header.num_shards <= MAX_SHARDS:
        raise FormatError(path, f"claims {header.num_shards} data files")
    return header


def _entry(path: Path, key: bytes, value: bytes, budget: Budget) -> BundleEntry:
    budget.spend(nodes=_ENTRY_NODES)
    try:
        entry = decode_entry(value, budget)
    except WireError as error:
        raise FormatError(path, f"entry {_shown(key)}: {error}") from error
    dtype = _dtype(entry.dtype % _REFERENCE)
    if not 0 < entry.dtype < 2 * _REFERENCE or entry.dtype == _REFERENCE:
        raise FormatError(path, f"entry {_shown(key)}: no element type has the number {entry.dtype}")
    itemsize = dtype.itemsize if dtype else 0
    if len(entry.shape) > MAX_RANK:
        raise FormatError(
            path, f"entry {_shown(key)}: {len(entry.shape)} axes, at most {MAX_RANK} are supported"
        )
    # zero sizes left out, as numpy does: an empty tensor's other axes must be addressable too
    if min(entry.shape, default=0) < 0 or math.prod(filter(None, entry.shape)) * max(itemsize, 1) >= 1 << 62:
        raise FormatError(path, f"entry {_shown(key)}: impossible shape {list(entry.shape)}")
    expected = math.prod(entry.shape) * itemsize
    if not entry.slices and itemsize and entry.size != expected:
        raise FormatError(
            path,
            f"entry {_shown(key)}: {entry.size} bytes, {dtype} of shape {list(entry.shape)} takes {expected}",
        )
    return entry


def _dtype(number: int) -> DType | None:
    """The type of a number; opaque and of unknown size where it is not known here."""
    if number in _NO_NUMBERS:
        return None
    return _BY_NUMBER.get(number) or DType(f"DataType {number}", 0, "opaque", tf=number)


def _stored(
    path: Path,
    key: bytes,
    entry: BundleEntry,
    entries: Mapping[bytes, BundleEntry],
    assembled: set[bytes],
    *,
    budget: Budget,
) -> StoredTensor:
    name = _name(path, key)
    number = entry.dtype % _REFERENCE
    dtype = _dtype(number)
    type_name = dtype.name if dtype else _NO_NUMBERS[number]
    if not entry.slices:
        whole = Part(
            entry.shard, entry.offset, entry.size, entry.crc32c, (0,) * len(entry.shape), entry.shape
        )
        return StoredTensor(name, dtype, type_name, entry.shape, (whole,))
    parts = []
    room = math.prod(entry.shape)
    for piece in entry.slices:
        budget.spend(steps=_BOX_STEPS, nodes=_PART_NODES, names=len(key))
        part_key = slice_key(key, piece)
        box = _box(path, name, piece, entry.shape)
        room -= math.prod(box[1])
        if room < 0:  # whether they are there or not
            raise FormatError(path, f"partitioned variable {name!r}: its parts overlap")
        stored = entries.get(part_key)
        if stored is None:
            continue
        if stored.slices or stored.dtype % _REFERENCE != number or stored.shape != box[1]:
            raise FormatError(
                path, f"partitioned variable {name!r}: its part {_bounds(piece)} does not fit in"
            )
        parts.append(Part(stored.shard, stored.offset, stored.size, stored.crc32c, *box))
        assembled.add(part_key)
    gap = _gap(path, name, entry.shape, parts, budget)
    return StoredTensor(name, dtype, type_name, entry.shape, tuple(parts), gap)


def _box(
    path: Path, name: str, piece: Slice, shape: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Start and shape of a part inside its tensor."""
    if len(piece) != len(shape):
        raise FormatError(
            path, f"partitioned variable {name!r}: a part has {len(piece)} axes, not {len(shape)}"
        )
    start = tuple(begin for begin, _ in piece)
    size = tuple(axis if length == FULL else length for (_, length), axis in zip(piece, shape, strict=True))
    if any(begin + length > axis for begin, length, axis in zip(start, size, shape, strict=True)):
        raise FormatError(
            path, f"partitioned variable {name!r}: a part {_bounds(piece)} leaves {list(shape)}"
        )
    return start, size


def _gap(path: Path, name: str, shape: tuple[int, ...], parts: list[Part], budget: Budget) -> str:
    """What the parts do not cover: nothing, where they are disjoint and together as large as the tensor."""
    boxes = [(part.start, part.shape) for part in parts if math.prod(part.shape)]
    if _overlap(boxes, len(shape), budget):
        raise FormatError(path, f"partitioned variable {name!r}: its parts overlap")
    total = sum(math.prod(size) for _, size in boxes)
    whole = math.prod(shape)
    return f"parts are missing: {total:,} of {whole:,} elements are there" if total < whole else ""


_Box = tuple[tuple[int, ...], tuple[int, ...]]


def _overlap(boxes: list[_Box], axes: int, budget: Budget) -> bool:
    """Whether boxes meet: of those that begin before one of them ends along the axis most cut, each pair."""
    budget.spend(steps=axes * len(boxes))
    cut = max(range(axes), key=lambda axis: len({start[axis] for start, _ in boxes}), default=0)
    boxes = sorted(boxes, key=lambda box: box[0][cut : cut + 1])
    for number, (start, size) in enumerate(boxes):
        end = sum(start[cut : cut + 1]) + sum(size[cut : cut + 1])
        for behind in range(number + 1, len(boxes)):
            budget.spend(steps=_PAIR_STEPS + axes)
            if boxes[behind][0][cut : cut + 1] >= (end,):
                break
            if _meet((start, size), boxes[behind]):
                return True
    return False


def _meet(first: _Box, second: _Box) -> bool:
    axes = zip(*first, *second, strict=True)
    return all(a < b + b_size and b < a + a_size for a, a_size, b, b_size in axes)


def _check_spans(prefix: Path, header: BundleHeader, spans: Iterable[tuple[int, int, int, bytes]]) -> None:
    """Every tensor lies inside a data file that exists, and no two share a byte."""
    path = index_path(prefix)
    lengths: dict[int, int] = {}
    previous = (-1, 0, b"")  # shard, end, key
    for shard, offset, size, key in sorted(spans):
        if not 0 <= shard < header.num_shards:
            raise FormatError(path, f"entry {_shown(key)}: data file {shard} of {header.num_shards}")
        if shard not in lengths:
            lengths[shard] = _length(path, shard_path(prefix, shard, header.num_shards))
        if offset < 0 or size < 0 or offset + size > lengths[shard]:
            file = shard_path(prefix, shard, header.num_shards)
            raise FormatError(
                file,
                f"truncated or not of this index: {_shown(key)} takes bytes {offset} to {offset + size}, "
                f"the file has {lengths[shard]}",
            )
        if size == 0:
            continue
        if shard == previous[0] and offset < previous[1]:
            raise FormatError(path, f"entries {_shown(previous[2])} and {_shown(key)} share bytes")
        previous = (shard, offset + size, key)


def _length(index: Path, shard: Path) -> int:
    try:
        return shard.stat().st_size
    except FileNotFoundError as error:
        raise FormatError(
            index, f"its data file {shard.name} is missing", hint="put it beside the index, or fetch it again"
        ) from error
    except OSError as error:
        raise storage_error(error, shard) from error


def _is_part_key(key: bytes) -> bool:
    return key.startswith(b"\0")


def _name(path: Path, key: bytes) -> str:
    try:
        name = key.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(path, f"a tensor's name is not UTF-8: {_shown(key)}") from error
    if _CONTROL.search(name):
        raise FormatError(path, f"a tensor's name has control characters: {_shown(key)}")
    return name


def _bounds(piece: Slice) -> str:
    return ",".join("all" if length == FULL else f"{start}:{start + length}" for start, length in piece)


def _shown(key: bytes) -> str:
    return repr(key[:200].decode("utf-8", "backslashreplace"))


def no_tensors(index: BundleIndex, *, read: Collection[str] = ()) -> dict[str, str]:
    """What is no tensor of numbers, by key, except the keys in ``read``."""
    others = {
        tensor.key: tensor.type_name
        for tensor in index.tensors.values()
        if tensor.dtype is None and tensor.key not in read
    }
    return {key: f"{what} {list(index.tensors[key].shape)}" for key, what in others.items()}
