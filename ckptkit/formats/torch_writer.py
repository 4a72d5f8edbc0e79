"""Write a PyTorch checkpoint without torch: a zip archive that ``torch.load`` opens and maps."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ckptkit.base.errors import ConversionError
from ckptkit.base.files import StagedFile
from ckptkit.base.tensors import Piece, TensorSpec
from ckptkit.formats.sharded_writing import ShardedWriter, Share, cut
from ckptkit.formats.shards import TORCH_ENDINGS
from ckptkit.formats.torch_reader import METADATA_RECORD
from ckptkit.formats.writing import metadata_json
from ckptkit.formats.zip import Member, ZipWriter

_ROOT = "archive"
_BATCH = 1000
_VERSION_3_ONLY = frozenset({"uint16", "uint32", "uint64"})
"""Types whose storage class torch no longer has: like those that never had one, they are kept as bytes."""


class TorchWriter(ShardedWriter):
    """Writes ``pytorch_model.bin``, or several files and an index where it exceeds ``max_shard_size``.

    A file holds one ``OrderedDict`` of tensors, each in a storage of its own, and opens with
    ``torch.load(weights_only=True, mmap=True)``. Shards are ``pytorch_model-00001-of-00003.bin``, … and
    ``pytorch_model.bin.index.json``; a tensor under a second name is in the shard of the first.
    """

    most = 80_000

    def __init__(
        self,
        path: Path,
        specs: Iterable[TensorSpec],
        metadata: Mapping[str, str],
        *,
        force: bool = False,
        max_shard_size: int | None = None,
        share: Share | None = None,
        shared: Mapping[str, str] | None = None,
        tree: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(Path(path), specs, metadata)
        for spec in self.specs.values():
            if not holds(spec):
                raise ConversionError(f"{self.path}: {spec.name!r}: torch has no {spec.dtype}")
        name = self.path.name
        self.ending = next((ending for ending in TORCH_ENDINGS if name.endswith(ending)), TORCH_ENDINGS[0])
        self.index_ending = f"{self.ending}.index.json"
        self._shared, self._tree = dict(shared or {}), tree
        self._archives: dict[int, tuple[ZipWriter, Member]] = {}
        self._storages: dict[str, tuple[ZipWriter, Member]] = {}
        self.stage_shards(self._cut(max_shard_size), max_shard_size, force=force, share=share)

    def _cut(self, limit: int | None) -> list[list[TensorSpec]]:
        """The shards, each in the order of the whole."""
        own = (spec for name, spec in self.specs.items() if name not in self._shared)
        homes = {
            spec.name: number
            for number, shard in enumerate(cut(([spec] for spec in own), limit))
            for spec in shard
        }
        shards: list[list[TensorSpec]] = [[] for _ in {0, *homes.values()}]
        for name, spec in self.specs.items():
            shards[homes[self._shared.get(name, name)]].append(spec)
        return shards

    def own_names(self, shard: Sequence[TensorSpec]) -> list[str]:
        """The tensors of a shard that have a storage of their own."""
        return [spec.name for spec in shard if spec.name not in self._shared]

    def _stem(self) -> str:
        return self.path.name.removesuffix(self.ending)

    def index_path(self) -> Path:
        """Where the index will be."""
        return self.path.with_name(self._stem() + self.index_ending)

    def shard_path(self, number: int, count: int) -> Path:
        """Where a shard will be."""
        return self.path.with_name(f"{self._stem()}-{number + 1:05d}-of-{count:05d}{self.ending}")

    def begin(self, file: StagedFile, number: int) -> Mapping[str, int]:
        """Write the pickle, and give every storage its place in the archive."""
        shard, archive = self.shards[number], ZipWriter(file)
        archive.add(f"{_ROOT}/data.pkl", checkpoint_pickle(shard, self._tree, self._shared))
        # No .format_version record: it would promise the exact spacing of torch's own writer, from which
        # torch may then compute where storages are instead of looking it up.
        archive.add(f"{_ROOT}/byteorder", b"little")
        record = archive.reserve(f"{_ROOT}/{METADATA_RECORD}", len(metadata_json(self.metadata)))
        self._archives[number] = archive, record
        for index, name in enumerate(self.own_names(shard)):
            storage = archive.reserve(f"{_ROOT}/data/{index}", self.specs[name].nbytes)
            self._storages[name] = archive, storage
        return {}

    def put(self, spec: TensorSpec, pieces: Iterable[Piece]) -> int:
        """Write a tensor at its place."""
        archive, storage = self._storages[spec.name]
        return archive.fill(storage, pieces)

    def end(self, file: StagedFile, number: int) -> None:
        """Write what is not the tensors."""
        archive, record = self._archives[number]
        archive.fill(record, [metadata_json(self.metadata)])
        archive.add(f"{_ROOT}/version", b"3\n")
        archive.close()


@dataclass(frozen=True)
class Namespace:
    """Stands for an `argparse.Namespace` in a file being written; holds its attributes."""

    values: Mapping[str, Any]


def checkpoint_pickle(
    specs: Sequence[TensorSpec],
    tree: Mapping[str, Any] | TensorSpec | None = None,
    shared: Mapping[str, str] | None = None,
) -> bytes:
    """Pickle (protocol 2) of an OrderedDict of tensors, tensor i in storage ``"i"``; or of a tree of them.

    Tensors in ``shared`` have another one's storage and are not counted. Names that come again and again are
    written once and recalled from the memo.

    Examples
    --------
    >>> import pickletools
    >>> from ckptkit.base.tensors import DTYPES
    >>> raw = checkpoint_pickle([TensorSpec("w", DTYPES["float32"], (2, 3))])
    >>> [arg for op, arg, _ in pickletools.genops(raw) if op.name == "GLOBAL"]
    ['collections OrderedDict', 'torch._utils _rebuild_tensor_v2', 'torch FloatStorage']
    """
    shared = shared or {}
    own = [spec.name for spec in specs if spec.name not in shared]
    storages = {name: index for index, name in enumerate(own)}
    pickler = _Pickler({spec.name: storages[shared.get(spec.name, spec.name)] for spec in specs})
    state_dict = {spec.name: spec for spec in specs}
    written = pickler.state_dict(state_dict) if tree is None else pickler.value(tree)
    return b"".join([b"\x80\x02", *written, b"."])


class _Pickler:
    """Writes plain values, and specs as tensors."""

    def __init__(self, storages: Mapping[str, int]) -> None:
        self._storages = storages
        self._memo: dict[bytes, int] = {}

    def value(self, value: Any) -> Iterator[bytes]:
        """Write one value of a tree."""
        if isinstance(value, TensorSpec):
            yield from self._tensor(value)
        elif isinstance(value, Mapping) and any(isinstance(v, TensorSpec) for v in value.values()):
            yield from self.state_dict(value)
        elif isinstance(value, Mapping):
            yield b"}"
            yield from self._items(value)
        elif isinstance(value, Namespace):
            yield global_opcodes("argparse", "Namespace") + b")\x81"
            yield from self.value(value.values)
            yield b"b"
        elif value is None or isinstance(value, bool):
            yield {None: b"N", True: b"\x88", False: b"\x89"}[value]
        else:
            yield integer_opcodes(value) if isinstance(value, int) else text_opcodes(value)

    def state_dict(self, tensors: Mapping[str, TensorSpec]) -> Iterator[bytes]:
        """Write an OrderedDict of tensors."""
        yield self._once(global_opcodes("collections", "OrderedDict"))
        yield b")R"
        yield from self._items(tensors)

    def _items(self, mapping: Mapping[str, Any]) -> Iterator[bytes]:
        items = iter(mapping.items())
        while batch := list(islice(items, _BATCH)):
            yield b"("
            for key, value in batch:
                yield text_opcodes(key)
                yield from self.value(value)
            yield b"u"

    def _tensor(self, spec: TensorSpec) -> Iterator[bytes]:
        """``_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)``; v3 adds a dtype."""
        untyped = spec.dtype.torch_storage is None or spec.dtype.name in _VERSION_3_ONLY
        shape = torch_shape(spec)
        yield self._once(global_opcodes("torch._utils", f"_rebuild_tensor_v{3 if untyped else 2}"))
        yield b"(("
        yield self._once(text_opcodes("storage"))
        storage = ("torch.storage", "UntypedStorage") if untyped else ("torch", str(spec.dtype.torch_storage))
        yield self._once(global_opcodes(*storage))
        yield text_opcodes(str(self._storages[spec.name]))
        yield self._once(text_opcodes("cpu"))
        yield integer_opcodes(spec.nbytes if untyped else spec.size) + b"tQ"
        yield integer_opcodes(0)
        yield integers_opcodes(shape)
        yield integers_opcodes(_c_strides(shape))
        yield b"\x89"
        yield self._once(global_opcodes("collections", "OrderedDict")) + b")R"
        if untyped:
            yield self._once(global_opcodes("torch", str(spec.dtype.torch)))
        yield b"tR"

    def _once(self, written: bytes) -> bytes:
        """Write a value and remember it, or recall it where it has been written before."""
        if written in self._memo:
            return b"h" + bytes([self._memo[written]])
        self._memo[written] = len(self._memo)  # a few dozen different ones at most: one byte is enough
        return written + b"q" + bytes([self._memo[written]])


def holds(spec: TensorSpec) -> bool:
    """Whether torch has an element type, in this shape: packed pairs need a last axis of even length."""
    packed = spec.dtype.bits is not None
    return spec.dtype.torch is not None and not (packed and (not spec.shape or spec.shape[-1] % 2))


def torch_shape(spec: TensorSpec) -> tuple[int, ...]:
    """Shape as torch counts it: of packed elements, in bytes."""
    return spec.shape if spec.dtype.bits is None else (*spec.shape[:-1], spec.shape[-1] // 2)


def global_opcodes(module: str, name: str) -> bytes:
    """Push a global, by its module and name."""
    return f"c{module}\n{name}\n".encode()


def text_opcodes(text: str) -> bytes:
    """Push a text."""
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer_opcodes(value: int) -> bytes:
    """Push an integer that is not negative."""
    if value < 1 << 8:
        return b"K" + bytes([value])
    if value < 1 << 16:
        return b"M" + struct.pack("<H", value)
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes([len(raw)]) + raw


def integers_opcodes(values: tuple[int, ...]) -> bytes:
    """Push a tuple of them."""
    written = b"".join(map(integer_opcodes, values))
    short = {0: b")", 1: written + b"\x85", 2: written + b"\x86", 3: written + b"\x87"}
    return short.get(len(values), b"(" + written + b"t")


def _c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Elements from one index to the next along each axis, as torch counts them for contiguous tensors."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
