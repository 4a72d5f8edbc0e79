"""TensorFlow V2 checkpoints (``prefix.index`` and ``prefix.data-NNNNN-of-MMMMM``) without TensorFlow.

Read: plain names, object-based checkpoints and SavedModels, several shards, partitioned variables, from a
prefix, a folder or a tar archive. Write: plain names, one shard. Source of the format:
tensorflow/core/util/tensor_bundle/.
"""

from __future__ import annotations

import contextlib
import glob
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ckptkit.base.budget import Budget
from ckptkit.base.checksums import crc32c
from ckptkit.base.errors import FormatError, NotFoundError
from ckptkit.base.files import translated
from ckptkit.base.tensors import DTYPES, Array, DType, RawTensor, TensorSpec
from ckptkit.formats.leveldb_table import mask
from ckptkit.formats.mapped_file import MappedFile, MappedReader, refuse_odd_bools, whole_bytes
from ckptkit.formats.protobuf_wire import WireError
from ckptkit.formats.tf_bundle_index import (
    Part,
    StoredTensor,
    index_path,
    load_index,
    no_tensors,
    shard_path,
)
from ckptkit.formats.tf_bundle_writer import TfBundleWriter
from ckptkit.formats.tf_locate import locate
from ckptkit.formats.tf_object_graph import (
    GRAPH_KEY,
    MAX_GRAPH_BYTES,
    Names,
    decode_string_scalar,
    string_checksum,
    variable_names,
)

__all__ = ["TfBundleReader", "TfBundleWriter"]

_CHECK_BYTES = 4 << 20
"""How much is checksummed before its pages are given back."""
_KEEP_BYTES = 16 << 20
"""A tensor up to this size stays resident after its checksum: whoever checks it is about to read it."""
_FAULT_AROUND = 64 << 10
"""Linux maps this much around a page that is touched: also what lies before and after a tensor."""


class TfBundleReader(MappedReader):
    """An open TensorFlow V2 checkpoint; see `ckptkit.formats.base.Reader`."""

    format = "tf"

    def __init__(self, path: Path, *, verify: bool = False) -> None:
        self.path = Path(path)
        self._verify = verify
        self._files: list[MappedFile] = []
        self._shards: dict[int, MappedFile] = {}
        self._checked: set[str] = set()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        with translated(self.path):
            self.prefix, self._temporary = locate(self.path)
        try:
            with self._named():
                self._open(Budget(self._size(), lambda reason: FormatError(index_path(self.prefix), reason)))
        except BaseException:  # Ctrl+C too: the temporary folder must go
            self.close()
            raise

    def _size(self) -> int:
        """Bytes of the checkpoint as it came: of the archive, or of the files of its prefix."""
        if self._temporary is not None:
            return self.path.stat().st_size
        pattern = f"{glob.escape(self.prefix.name)}.data-*"
        with translated(self.prefix):
            files = [index_path(self.prefix), *self.prefix.parent.glob(pattern)]
            return sum(file.stat().st_size for file in files if file.is_file())

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Name the archive, and not the folder it is in for now, in what is said of its files."""
        try:
            yield
        except FormatError as error:
            if self._temporary is None:
                raise
            inside = Path(error.path).name
            raise FormatError(self.path, f"{inside} in it: {error.reason}", hint=error.hint) from error

    def _open(self, budget: Budget) -> None:
        index = load_index(self.prefix, budget)
        self._num_shards = index.header.num_shards
        self.metadata: Mapping[str, str] = dict(index.header.metadata)
        readable = {key: tensor for key, tensor in index.tensors.items() if tensor.dtype is not None}
        names = self._names(index.tensors, list(readable), budget)
        self._tensors: dict[str, StoredTensor] = {}
        specs: dict[str, TensorSpec] = {}
        unlisted = "parts of a variable that the index does not list"
        left_out = {name: unlisted for name in index.unused_parts if name not in index.tensors}
        for key, tensor in sorted(readable.items(), key=lambda item: item[1].place):
            if tensor.dtype is None or key in names.twins:
                continue
            name = names.by_key[key]
            if tensor.gap:
                left_out[name] = tensor.gap
            elif tensor.dtype.itemsize or len(tensor.parts) == 1:
                stored = None if tensor.dtype.itemsize else tensor.parts[0].size
                specs[name] = TensorSpec(name, tensor.dtype, tensor.shape, stored)
                self._tensors[name] = tensor
            else:
                left_out[name] = f"in {len(tensor.parts)} parts, of a type of unknown size ({tensor.dtype})"
        self.specs: Mapping[str, TensorSpec] = specs
        self.left_out: Mapping[str, str] = left_out
        self.keys: Mapping[str, str] = {name: tensor.key for name, tensor in self._tensors.items()}
        self.notes: Sequence[str] = [*index.notes(), *names.notes()]
        self._also = no_tensors(index, read=frozenset({GRAPH_KEY}))
        self.optimizer = names.optimizer
        self.namesakes = names.namesakes

    @property
    def extras(self) -> Mapping[str, str]:
        """Strings, variants and resources, by key."""
        return self._also

    def _names(self, tensors: Mapping[str, StoredTensor], keys: list[str], budget: Budget) -> Names:
        graph = tensors.get(GRAPH_KEY)
        if graph is None:
            return Names({key: key for key in keys})
        path = index_path(self.prefix)
        if graph.type_name != "strings" or graph.shape or graph.gap or graph.parts[0].size > MAX_GRAPH_BYTES:
            raise FormatError(path, f"{GRAPH_KEY} is not one string of at most {MAX_GRAPH_BYTES} bytes")
        part = graph.parts[0]
        try:
            text = decode_string_scalar(self._bytes(part).tobytes())
            if part.crc32c is not None and string_checksum(text) != part.crc32c:
                raise WireError("its checksum (crc32c) differs")
            return variable_names(keys, text, budget, lambda key: tensors[key].fingerprint)
        except WireError as error:
            raise FormatError(path, f"damaged object graph {GRAPH_KEY}: {error}") from error

    def read(self, name: str) -> Array:
        """One tensor, read-only; a view of the mapped file, or a copy for a partitioned variable."""
        tensor = self._verified(name)
        spec = self.specs[name]
        dtype = whole_bytes(self.path, spec)
        if len(tensor.parts) == 1:
            return self._view(tensor.parts[0], dtype, spec.shape)
        import numpy

        whole = numpy.empty(spec.shape, dtype.numpy)
        for part in tensor.parts:
            box = tuple(
                slice(begin, begin + size) for begin, size in zip(part.start, part.shape, strict=True)
            )
            whole[box] = self._view(part, dtype, part.shape)
        whole.flags.writeable = False
        return whole

    def raw(self, name: str) -> RawTensor | None:
        """The bytes of one tensor, without numpy; None for a partitioned variable."""
        tensor = self._verified(name)
        if len(tensor.parts) != 1:
            return None
        (part,) = tensor.parts
        data = self._shard(part).raw(part.offset, part.size) if part.size else memoryview(b"")
        return RawTensor(tensor.shape, data)

    def check(self, name: str, known: int | None = None) -> bool:
        """Compare a tensor with its stored crc32c: True when it holds, False when none is stored."""
        tensor = self._tensor(name)
        for part in tensor.parts:
            whole = known if len(tensor.parts) == 1 else None
            found = self._crc32c(part) if whole is None else whole
            if part.crc32c is not None and mask(found) != part.crc32c:
                raise FormatError(
                    self._shard_path(part),
                    f"tensor {name!r}: checksum (crc32c) differs: damaged",
                    offset=part.offset,
                    hint="fetch it again",
                )
            if self.specs[name].dtype.kind == "bool":
                refuse_odd_bools(self.path, name, self._bytes(part))
        self._checked.add(name)
        return all(part.crc32c is not None for part in tensor.parts)

    def release(self, name: str) -> None:
        """Give a tensor's pages back; views stay valid, and read from the file again when touched."""
        for part in self._tensor(name).parts:
            self._release(part, part.offset, part.size)

    def close(self) -> None:
        """Unmap, and remove what was unpacked; views handed out must not be used after."""
        super().close()
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def _verified(self, name: str) -> StoredTensor:
        tensor = self._tensor(name)
        if self._verify and name not in self._checked:
            self.check(name)
        return tensor

    def _tensor(self, name: str) -> StoredTensor:
        if name not in self._tensors:
            raise NotFoundError(f"{self.path}: no tensor {name!r}")
        return self._tensors[name]

    def _view(self, part: Part, dtype: DType, shape: tuple[int, ...]) -> Array:
        if part.size == 0:
            import numpy

            empty = numpy.empty(shape, dtype.numpy)
            empty.flags.writeable = False
            return empty
        return self._shard(part).view(part.offset, dtype, shape)

    def _bytes(self, part: Part) -> Array:
        return self._view(part, DTYPES["uint8"], (part.size,))

    def _crc32c(self, part: Part) -> int:
        data = self._bytes(part)
        crc = 0
        for start in range(0, part.size, _CHECK_BYTES):
            piece = data[start : start + _CHECK_BYTES]
            crc = crc32c(piece, crc)
            if part.size > _KEEP_BYTES:
                self._release(part, part.offset + start, piece.size)
        return crc

    def _release(self, part: Part, offset: int, size: int) -> None:
        if size:
            start = offset - offset % _FAULT_AROUND
            self._shard(part).release(start, -(-(offset + size - start) // _FAULT_AROUND) * _FAULT_AROUND)

    def _shard_path(self, part: Part) -> Path:
        return shard_path(self.prefix, part.shard, self._num_shards)

    def _shard(self, part: Part) -> MappedFile:
        """The data file, mapped on first use: there may be more of them than one process may open."""
        if part.shard not in self._shards:
            file = MappedFile(self._shard_path(part))
            self._files.append(file)
            self._shards[part.shard] = file
        file = self._shards[part.shard]
        if part.offset + part.size > file.size:
            raise FormatError(file.path, "became shorter while it was open")
        return file
