"""Slab: a mark, a line of JSON that lists the tensors, then their bytes one after the other."""

from __future__ import annotations

import json
import zlib

import numpy

from ckptkit.base.errors import FormatError
from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.formats.base import Format, Reader
from ckptkit.formats.writing import SingleFileWriter

MARK = b"SLAB"
HELD = ("float32", "float16", "int64")


class Slab(Format):
    """All that ckptkit knows of the format."""

    name, title = "slab", "Slab"
    endings = (".slab",)
    checksum = "Adler-32"

    def matches(self, sample):
        """By its first bytes."""
        return sample.head.startswith(MARK)

    def open(self, path, how):
        """Read the list of tensors."""
        return SlabReader(path)

    def holds(self, spec):
        """Which element types it has a name for."""
        return spec.dtype.name in HELD

    def writer(self, path, specs, metadata, *, force=False):
        """Start a file."""
        return SlabWriter(path, specs, metadata, force)


class SlabReader(Reader):
    """An open file."""

    format = "slab"

    def __init__(self, path):
        self.path = path
        data = path.read_bytes()
        head, _, self._data = data[len(MARK) :].partition(b"\n")
        try:
            found = json.loads(head)
            self.metadata = found["metadata"]
            self._at = {name: at for name, _, _, at, _ in found["tensors"]}
            self._sums = {name: checksum for name, *_, checksum in found["tensors"]}
            self.specs = {
                name: TensorSpec(name, DTYPES[dtype], tuple(shape))
                for name, dtype, shape, _, _ in found["tensors"]
            }
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(path, "the list of tensors is damaged", offset=len(MARK)) from error
        if any(self._at[name] + spec.nbytes > len(self._data) for name, spec in self.specs.items()):
            raise FormatError(path, "tensors are missing at its end", offset=len(data))

    def read(self, name):
        """One tensor, after its checksum held."""
        self.check(name)
        spec = self.specs[name]
        return numpy.frombuffer(self._data, spec.dtype.numpy, spec.size, self._at[name]).reshape(spec.shape)

    def check(self, name, known=None):
        """Compare a tensor with its checksum."""
        at = self._at[name]
        if zlib.adler32(self._data[at : at + self.specs[name].nbytes]) != self._sums[name]:
            raise FormatError(self.path, f"tensor {name!r}: Adler-32 differs")
        return True


class SlabWriter(SingleFileWriter):
    """A file being written: kept in memory until it is whole, for it is an example."""

    concurrent = False

    def __init__(self, path, specs, metadata, force):
        super().__init__(path, specs, metadata)
        self.stage(force=force)
        self._bytes = {}

    def put(self, spec, pieces):
        """Write a tensor at its place."""
        from ckptkit.base.checksums import crc32c

        self._bytes[spec.name] = b"".join(bytes(piece) for piece in pieces)
        return crc32c(numpy.frombuffer(self._bytes[spec.name], numpy.uint8))

    def end(self):
        """Write what is not the tensors."""
        rows, at = [], 0
        for name, raw in self._bytes.items():
            spec = self.specs[name]
            rows.append([name, spec.dtype.name, list(spec.shape), at, zlib.adler32(raw)])
            at += len(raw)
        head = json.dumps({"metadata": self.metadata, "tensors": rows}).encode()
        self.file.append(MARK + head + b"\n" + b"".join(self._bytes.values()))


SLAB = Slab()
