"""Read a safetensors file; several with an index are read by `ckptkit.formats.shards`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ckptkit.base.errors import NotFoundError
from ckptkit.base.tensors import Array, RawTensor, TensorSpec
from ckptkit.formats.mapped_file import MappedFile, MappedReader, whole_bytes
from ckptkit.formats.safetensors_header import read_header
from ckptkit.formats.safetensors_writer import SafetensorsWriter

__all__ = ["SafetensorsReader", "SafetensorsWriter"]


class SafetensorsReader(MappedReader):
    """A safetensors file."""

    format = "safetensors"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.notes: Sequence[str] = ()
        self._file = MappedFile(self.path)
        self._files = [self._file]
        try:
            header = read_header(self._file)
        except BaseException:
            self.close()
            raise
        self._offsets = header.offsets
        self.specs: Mapping[str, TensorSpec] = header.specs
        self.metadata: Mapping[str, str] = header.metadata

    def _read(self, name: str) -> Array:
        spec = self._spec(name)
        return self._file.view(self._offsets[name], whole_bytes(self.path, spec), spec.shape)

    def _raw(self, name: str) -> RawTensor:
        spec = self._spec(name)
        return RawTensor(spec.shape, self._file.raw(self._offsets[name], spec.nbytes))

    def check(self, name: str, known: int | None = None) -> bool:
        """False: the format stores no checksum."""
        self._spec(name)
        return False

    def release(self, name: str) -> None:
        """Give back the memory pages of one tensor."""
        spec = self._spec(name)
        self._file.release(self._offsets[name], spec.nbytes)

    def _spec(self, name: str) -> TensorSpec:
        if name not in self.specs:
            raise NotFoundError(f"{self.path}: no tensor {name!r}")
        return self.specs[name]
