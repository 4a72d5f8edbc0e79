"""Read safetensors: one file, or shards with an index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ckptkit.errors import FormatError, NotFoundError
from ckptkit.formats.mapped_file import MappedFile, MappedReader, whole_bytes
from ckptkit.formats.safetensors_header import Header, read_header
from ckptkit.formats.safetensors_writer import SafetensorsWriter
from ckptkit.formats.shards import read_index
from ckptkit.tensors import Array, RawTensor, TensorSpec

__all__ = ["SafetensorsReader", "SafetensorsWriter"]

_MAX_SHARDS = 1000


class SafetensorsReader(MappedReader):
    """A safetensors checkpoint: a file, or an ``….safetensors.index.json``.

    Parameters
    ----------
    path : str or Path
        The file or index.

    Raises
    ------
    FormatError
        Damaged, hostile, or incomplete.
    NotFoundError
        No such file.
    """

    format = "safetensors"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.notes: Sequence[str] = ()
        self._files: list[MappedFile] = []
        self._home: dict[str, tuple[MappedFile, int]] = {}
        try:
            if self.path.name.endswith(".json"):
                self._open_shards(self.path)
            else:
                header = self._open(self.path)
                self.specs: Mapping[str, TensorSpec] = header.specs
                self.metadata: Mapping[str, str] = header.metadata
        except BaseException:
            self.close()
            raise

    def read(self, name: str) -> Array:
        """Read-only view of one tensor.

        Raises
        ------
        NotFoundError
            No tensor of that name.
        FormatError
            Its elements are not whole bytes.
        """
        spec, (file, offset) = self._tensor(name)
        return file.view(offset, whole_bytes(self.path, spec), spec.shape)

    def raw(self, name: str) -> RawTensor:
        """The bytes of one tensor, without numpy."""
        spec, (file, offset) = self._tensor(name)
        return RawTensor(spec.shape, file.raw(offset, spec.nbytes))

    def check(self, name: str, known: int | None = None) -> bool:
        """False: the format stores no checksum."""
        self._tensor(name)
        return False

    def release(self, name: str) -> None:
        """Give back the memory pages of one tensor."""
        spec, (file, offset) = self._tensor(name)
        file.release(offset, spec.nbytes)

    def _tensor(self, name: str) -> tuple[TensorSpec, tuple[MappedFile, int]]:
        if name not in self.specs:
            raise NotFoundError(f"{self.path}: no tensor {name!r}")
        return self.specs[name], self._home[name]

    def _open(self, path: Path) -> Header:
        file = MappedFile(path)
        self._files.append(file)
        header = read_header(file)
        for name in header.specs:
            self._home[name] = (file, header.offsets[name])
        return header

    def _open_shards(self, index: Path) -> None:
        homes = read_index(index)
        shards: dict[str, set[str]] = {}
        for name, shard in homes.items():
            shards.setdefault(shard, set()).add(name)
        if len(shards) > _MAX_SHARDS:
            raise FormatError(index, f"{len(shards)} shards, more than {_MAX_SHARDS}")
        specs: dict[str, TensorSpec] = {}
        metadata: dict[str, str] = {}
        for shard, placed in shards.items():
            if not (index.parent / shard).is_file():
                raise FormatError(index, f"its shard {shard} is missing", hint="fetch the missing file")
            header = self._open(index.parent / shard)
            self._compare(index, shard, placed, header)
            metadata = {**header.metadata, **metadata}
            specs |= header.specs
        self.specs, self.metadata = specs, metadata

    @staticmethod
    def _compare(index: Path, shard: str, placed: set[str], header: Header) -> None:
        """A shard must hold exactly the tensors that the index places there."""
        for name in placed ^ header.offsets.keys():
            reason = "lacks" if name in placed else "also holds"
            raise FormatError(
                index, f"{shard} {reason} the tensor {name!r}", hint="its shards do not belong together"
            )
