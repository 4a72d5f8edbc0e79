"""Safetensors files: the header's length and JSON, then the tensors; read, and written in one file or shards.

Source: the format description of the safetensors project and the checks of its reference library: tensors
follow each other without gap or overlap and fill the file to its end. Several files with an index are read by
`ckptkit.formats.shards`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from ckptkit.base.budget import Budget
from ckptkit.base.errors import ConversionError, FormatError
from ckptkit.base.files import StagedFile
from ckptkit.base.tensors import KNOWN, Array, DType, TensorSpec
from ckptkit.base.text import counted
from ckptkit.formats.json_text import JsonError, JsonWalk, is_count, utf8
from ckptkit.formats.mapped_file import MAX_DIMS, MappedFile
from ckptkit.formats.readers import MappedReader, whole_bytes
from ckptkit.formats.sharded_writing import ShardedWriter, Share, cut
from ckptkit.formats.shards import EXTENSION, INDEX_SUFFIX

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
"""The reference library's own limit."""

MAX_NAME = 10_000
"""Characters of a tensor's name: ours, so that one name does not fill a terminal."""
METADATA_KEY = "__metadata__"
_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
"""What a type that is not known here may be called."""
BY_CODE: Mapping[str, DType] = {d.safetensors: d for d in KNOWN if d.safetensors}


@dataclass(frozen=True)
class Header:
    """What a header says: specs and file offsets of the tensors, and metadata."""

    specs: Mapping[str, TensorSpec]
    offsets: Mapping[str, int]
    metadata: Mapping[str, str]


def read_header(file: MappedFile) -> Header:
    """Read and check the header of a safetensors file."""
    path = file.path
    length = int.from_bytes(file.data[:LENGTH_BYTES], "little")
    if file.size < LENGTH_BYTES or length > file.size - LENGTH_BYTES:
        raise FormatError(
            path,
            f"header of {length} bytes in a file of {file.size}",
            offset=0,
            hint="it is truncated or not a safetensors file: fetch it again",
        )
    if length > MAX_HEADER_BYTES:
        raise FormatError(path, f"header of {length} bytes, more than {MAX_HEADER_BYTES}", offset=0)
    budget = Budget(file.size, lambda reason: FormatError(path, reason))
    walk = JsonWalk(utf8(file, LENGTH_BYTES, length), budget)
    try:
        return _Checked(path, LENGTH_BYTES + length, file.size, budget).header(walk)
    except JsonError as error:
        raise FormatError(path, str(error)) from error


class _Checked:
    """Turns the table into specs, row by row."""

    def __init__(self, path: Path, start: int, size: int, budget: Budget) -> None:
        self._path = path
        self._budget = budget
        self._start = start
        self._room = size - start
        self._dtypes = dict(BY_CODE)

    def header(self, walk: JsonWalk) -> Header:
        metadata: dict[str, str] | None = None
        begins: dict[str, int] = {}
        specs: dict[str, TensorSpec] = {}
        for name in walk.names():
            if name == METADATA_KEY:
                self._refuse_twice(name, metadata is not None)
                metadata = self._metadata(walk)
                continue
            if len(name) > MAX_NAME:
                raise self._error(f"a tensor has a name of {counted(len(name), 'character')}: {name[:80]!r}…")
            self._refuse_twice(name, name in specs)
            self._budget.spend(nodes=1)
            begin, end, shape, code = self._row(name, walk.value())
            begins[name] = begin
            dtype = self._dtypes.get(code)
            if dtype is None:
                if not _CODE.fullmatch(code):
                    raise self._error(f"tensor {name!r} has the dtype {code[:80]!r}")
                dtype = self._dtypes[code] = DType(code, 0, "opaque", safetensors=code)
            stored = None if dtype.itemsize or dtype.bits else end - begin
            specs[name] = spec = TensorSpec(name, dtype, shape, stored)
            whole_bytes = spec.size * dtype.bits % 8 == 0 if dtype.bits else True
            if spec.nbytes != end - begin or not whole_bytes:
                raise self._error(f"tensor {name!r} of {spec.nbytes} bytes has a range of {end - begin}")
        walk.end()
        ordered = self._in_order(specs, begins)
        for name in begins:
            begins[name] += self._start
        return Header(ordered, begins, metadata or {})

    def _error(self, reason: str) -> FormatError:
        return FormatError(self._path, reason, hint="the file is damaged or truncated: fetch it again")

    def _refuse_twice(self, name: str, twice: bool) -> None:
        if twice:
            raise self._error(f"bad JSON: the key {name[:80]!r} occurs twice")

    def _metadata(self, walk: JsonWalk) -> dict[str, str]:
        table: dict[str, str] = {}
        if walk.null():
            return table
        for key in walk.names():
            self._refuse_twice(key, key in table)
            table[key] = text = walk.string()
            self._budget.spend(nodes=1, names=len(key) + len(text))
        return table

    def _row(self, name: str, row: object) -> tuple[int, int, tuple[int, ...], str]:
        if not isinstance(row, dict) or not row.keys() >= {"dtype", "shape", "data_offsets"}:
            raise self._error(f"tensor {name!r} lacks dtype, shape or data_offsets")
        code, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
        if not isinstance(code, str):
            raise self._error(f"tensor {name!r} has a dtype that is not a string")
        if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(map(is_count, shape)):
            raise self._error(f"tensor {name!r} has a shape that is not a list of sizes")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_count, offsets)):
            raise self._error(f"tensor {name!r} has data_offsets that are not a pair of positions")
        begin, end = offsets
        if not begin <= end <= self._room:
            raise self._error(f"tensor {name!r} is at {begin}..{end} of {self._room} bytes of data")
        return begin, end, tuple(shape), code

    def _in_order(self, specs: dict[str, TensorSpec], begins: Mapping[str, int]) -> dict[str, TensorSpec]:
        """The tensors in the order of their bytes, which belong to one each."""
        ordered = specs
        if any(one > other for one, other in pairwise(begins.values())):
            ends = {name: (begins[name], begins[name] + spec.nbytes, name) for name, spec in specs.items()}
            ordered = {name: specs[name] for name in sorted(specs, key=ends.__getitem__)}
        position = 0
        for name, spec in ordered.items():
            if begins[name] != position:
                what = "overlaps the one before it" if begins[name] < position else "leaves a hole before it"
                raise self._error(f"tensor {name!r} at {begins[name]} {what}")
            position += spec.nbytes
        if position != self._room:
            raise self._error(f"{self._room - position} bytes after the last tensor belong to none")
        return ordered


# ----------------------------------------------------------------------------------------------------
# Reading.

_SHARDING = "DCP_SHARDING_INFO"
_RANK_FILE = re.compile(r"shard-0*1-")
_WITHIN = re.compile(r'"saved_offsets": \[[0, ]*[1-9]')


class SafetensorsReader(MappedReader):
    """A safetensors file."""

    format = "safetensors"

    def _open(self) -> None:
        header = read_header(self._file)
        self._offsets = header.offsets
        self.specs = header.specs
        self.metadata = header.metadata
        if self._is_part(header.metadata.get(_SHARDING, "")):
            raise FormatError(
                self.path,
                "holds one rank's parts of tensors, as torch.distributed saves them",
                hint="save them with HuggingFaceStorageWriter(…, enable_consolidation=True)",
            )

    def _is_part(self, sharding: str) -> bool:
        """Whether some begin within a whole tensor, or another rank's file is beside it."""
        first = _RANK_FILE.match(self.path.name)
        others = any(self.path.parent.glob("shard-*2-*.safetensors")) if first and sharding else False
        return others or bool(_WITHIN.search(sharding))

    def _read(self, name: str) -> Array:
        spec = self.specs[name]
        return self._file.view(self._offsets[name], whole_bytes(self.path, spec), spec.shape)

    def _place(self, name: str) -> tuple[int, int]:
        return self._offsets[name], self.specs[name].nbytes


# ----------------------------------------------------------------------------------------------------
# Writing.

_ALIGNMENT = 8


class SafetensorsWriter(ShardedWriter):
    """Writes ``model.safetensors``, or several files and an index where it exceeds ``max_shard_size``.

    These are ``model-00001-of-00003.safetensors``, … and ``model.safetensors.index.json``; a tensor larger
    than the limit gets a shard of its own. In a shard the order is by falling element size, then by name, as
    in the reference library: every tensor is aligned to its element size.
    """

    ending, index_ending = EXTENSION, INDEX_SUFFIX
    most = 580_000

    def __init__(
        self,
        path: Path,
        specs: Iterable[TensorSpec],
        metadata: Mapping[str, str],
        *,
        force: bool = False,
        max_shard_size: int | None = None,
        share: Share | None = None,
    ) -> None:
        super().__init__(Path(path), specs, {"format": "pt", **metadata})
        for spec in self.specs.values():
            if len(spec.name) > MAX_NAME:
                raise ConversionError(
                    f"{self.path}: a name of {counted(len(spec.name), 'character')}: {spec.name[:80]!r}…"
                )
            if spec.dtype.safetensors is None or spec.name == METADATA_KEY:
                known = spec.dtype.safetensors is not None
                what = "another use for that name" if known else f"no name for {spec.dtype}"
                raise ConversionError(f"{self.path}: {spec.name!r}: safetensors has {what}")
        shards = _shards(self.specs.values(), max_shard_size)
        self.stage_shards(shards, max_shard_size, force=force, share=share)

    def index_path(self) -> Path:
        """Where the index will be."""
        return self.path.with_name(_stem(self.path) + INDEX_SUFFIX)

    def shard_path(self, number: int, count: int) -> Path:
        """Where a shard will be."""
        return self.path.with_name(f"{_stem(self.path)}-{number + 1:05d}-of-{count:05d}{EXTENSION}")

    def begin(self, file: StagedFile, number: int) -> Mapping[str, int]:
        """Where the tensors go: behind the header, whose length is known."""
        shard = self.shards[number]
        start = len(header_bytes(self.path, shard, self.metadata))
        offsets = accumulate((spec.nbytes for spec in shard), initial=start)
        return {spec.name: at for spec, at in zip(shard, offsets, strict=False)}

    def end(self, file: StagedFile, number: int) -> None:
        """Write the header."""
        file.write_at(header_bytes(self.path, self.shards[number], self.metadata), 0)


def header_bytes(path: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON of a header, padded with spaces so that the data starts at a multiple of 8."""
    table: dict[str, object] = {METADATA_KEY: dict(sorted(metadata.items()))}
    position = 0
    for spec in specs:
        stop = position + spec.nbytes
        table[spec.name] = {
            "dtype": spec.dtype.safetensors,
            "shape": list(spec.shape),
            "data_offsets": [position, stop],
        }
        position = stop
    raw = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % _ALIGNMENT)
    if len(raw) > MAX_HEADER_BYTES:
        raise ConversionError(f"{path}: a header of {len(raw)} bytes is more than safetensors readers accept")
    return len(raw).to_bytes(LENGTH_BYTES, "little") + raw


def file_bytes(path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> int:
    """How large the single file of these tensors will be."""
    (shard,) = _shards(specs, None)
    header = header_bytes(path, shard, {"format": "pt", **metadata})
    return len(header) + sum(spec.nbytes for spec in shard)


def _stem(path: Path) -> str:
    return path.name.removesuffix(EXTENSION)


def _shards(specs: Iterable[TensorSpec], limit: int | None) -> list[list[TensorSpec]]:
    """The shards, each in the order that the format wants."""
    shards = cut(([spec] for spec in specs), limit)
    return [sorted(shard, key=lambda spec: (-spec.dtype.itemsize, spec.name)) for shard in shards]
