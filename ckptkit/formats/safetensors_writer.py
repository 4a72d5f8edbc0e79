"""Write safetensors: one file, or shards with an index."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.base.files import StagedFile, refuse_existing, refuse_streams, sync_checked
from ckptkit.base.tensors import Piece, TensorSpec
from ckptkit.formats.base import Check
from ckptkit.formats.replacing import put_in_place, refuse_standing
from ckptkit.formats.safetensors_header import (
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    MAX_NAME,
    METADATA_KEY,
)
from ckptkit.formats.shards import EXTENSION, INDEX_SUFFIX
from ckptkit.formats.tensor_writer import PlacedWriter, put_at

_ALIGNMENT = 8
_MAX_SHARDS = 500
_MAX_TENSORS = 580_000
"""Of one file; more would use up the budget of `read_header`."""


class SafetensorsWriter(PlacedWriter):
    """A safetensors checkpoint being written; see `ckptkit.formats.base.Writer`."""

    def __init__(
        self,
        path: Path,
        specs: Iterable[TensorSpec],
        metadata: Mapping[str, str],
        *,
        force: bool = False,
        max_shard_size: int | None = None,
    ) -> None:
        super().__init__(Path(path), specs, {"format": "pt", **metadata})
        self._force = force
        for spec in self._specs.values():
            if len(spec.name) > MAX_NAME:
                raise ConversionError(
                    f"{self.path}: a name of {len(spec.name):,} characters: {spec.name[:80]!r}…"
                )
            if spec.dtype.safetensors is None or spec.name == METADATA_KEY:
                what = (
                    f"no name for {spec.dtype}"
                    if spec.dtype.safetensors is None
                    else "another use for that name"
                )
                raise ConversionError(f"{self.path}: {spec.name!r}: safetensors has {what}")
        self._shards = _shards(list(self._specs.values()), max_shard_size)
        if max(map(len, self._shards)) > _MAX_TENSORS:
            raise ConversionError(f"{self.path}: more than {_MAX_TENSORS:,} tensors in one safetensors file")
        self._paths = self._shard_paths(max_shard_size)
        self._index = self.path.with_name(_stem(self.path) + INDEX_SUFFIX)
        refuse_standing(self.path, force=force)
        if len(self._shards) > 1:
            refuse_streams(self.path)
            for target in [*self._paths, self._index]:
                refuse_existing(target, force=force)
        self.order: Sequence[str] = [spec.name for shard in self._shards for spec in shard]
        self._places = {
            spec.name: (number, offset)
            for number, shard in enumerate(self._shards)
            for spec, offset in _offsets(shard)
        }
        self._staged: list[StagedFile] = []
        self._data_starts: list[int] = []
        try:
            for number in range(len(self._shards)):
                self._start_shard(number)
        except BaseException:
            self.discard()
            raise

    def _shard_paths(self, limit: int | None) -> list[Path]:
        count = len(self._shards)
        if count == 1:
            return [self.path]
        if count > _MAX_SHARDS:
            raise UsageError(
                f"{self.path}: {count} shards of at most {limit} bytes, more than {_MAX_SHARDS}",
                hint="allow larger ones",
            )
        stem = _stem(self.path)
        return [self.path.with_name(f"{stem}-{i:05d}-of-{count:05d}{EXTENSION}") for i in range(1, count + 1)]

    def _start_shard(self, number: int) -> None:
        header = header_bytes(self.path, self._shards[number], self._metadata)
        # named like a shard while it is temporary, so that the whole can be opened before it is renamed
        several = len(self._shards) > 1
        file = StagedFile(self._paths[number], force=self._force, ending=EXTENSION, plain=several)
        self._staged.append(file)
        self._staged[-1].append(header)
        self._data_starts.append(len(header))

    def _put(self, spec: TensorSpec, pieces: Iterable[Piece]) -> int:
        number, offset = self._places[spec.name]
        return put_at(self._staged[number], pieces, self._data_starts[number] + offset)

    def _settle(self, late: Mapping[str, str]) -> None:
        super()._settle(late)
        for file, shard in zip(self._staged, self._shards, strict=True):
            file.write_at(header_bytes(self.path, shard, self._metadata), 0)

    def _commit(self, check: Check | None) -> list[Path]:
        """Rename every shard, then the index: a set of shards exists if and only if its index does."""
        if len(self._shards) == 1:
            sync_checked(self._staged, check, self._staged[0].temporary)
            return put_in_place(self._staged, self.path)
        self._sync_shards(check)
        index = self._stage_index([path.name for path in self._paths])
        index.sync()
        return put_in_place(self._staged, self.path)

    def _sync_shards(self, check: Check | None) -> None:
        """Sync the shards, and check the whole meanwhile, through an index of their temporary names."""
        with self._stage_index([file.temporary.name for file in self._staged]) as index:
            sync_checked(self._staged, check, index.temporary)
            self._staged.remove(index)

    def _stage_index(self, homes: Sequence[str]) -> StagedFile:
        """Write the index, with the names of the shards as given, under a temporary name."""
        index = StagedFile(self._index, force=self._force, ending=INDEX_SUFFIX, plain=True)
        self._staged.append(index)
        index.append(self._index_bytes(homes))
        return index

    def _index_bytes(self, homes: Sequence[str]) -> bytes:
        weight_map = {
            spec.name: home for shard, home in zip(self._shards, homes, strict=True) for spec in shard
        }
        total = sum(spec.nbytes for spec in self._specs.values())
        table = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        text = json.dumps(table, ensure_ascii=False, indent=2) + "\n"
        return text.encode(errors="backslashreplace")  # a file's name may be no UTF-8; JSON writes it so

    def discard(self) -> None:
        """Remove every temporary file; harmless after `finish`."""
        for file in self._staged:
            file.discard()


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
    (shard,) = _shards(list(specs), None)
    header = header_bytes(path, shard, {"format": "pt", **metadata})
    return len(header) + sum(spec.nbytes for spec in shard)


def _stem(path: Path) -> str:
    return path.name.removesuffix(EXTENSION)


def _shards(specs: Sequence[TensorSpec], limit: int | None) -> list[list[TensorSpec]]:
    """Cut the tensors, in their given order, into shards, and order each as the format wants."""
    if limit is not None and limit <= 0:
        raise UsageError(f"a shard size of {limit} bytes", hint="give a positive size")
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if limit is not None and shards[-1] and size + spec.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.nbytes
    return [sorted(shard, key=lambda spec: (-spec.dtype.itemsize, spec.name)) for shard in shards]


def _offsets(shard: Sequence[TensorSpec]) -> Iterator[tuple[TensorSpec, int]]:
    """Where each tensor of a shard begins, from the start of the data."""
    offset = 0
    for spec in shard:
        yield spec, offset
        offset += spec.nbytes
