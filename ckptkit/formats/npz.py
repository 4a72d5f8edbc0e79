"""npz archives, numpy's own container: read and write, and never unpickle."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from ckptkit.base.budget import Budget
from ckptkit.base.errors import ConversionError, FormatError, UsageError
from ckptkit.base.tensors import Array, Piece, RawTensor, TensorSpec
from ckptkit.formats.base import Check
from ckptkit.formats.mapped_file import MappedFile, MappedReader
from ckptkit.formats.member_names import unsafe_name
from ckptkit.formats.npy_header import MAGIC, MAX_HEADER_BYTES, NpyHeader, descr, header_bytes, parse_header
from ckptkit.formats.replacing import commit_checkpoint, staged_checkpoint
from ckptkit.formats.tensor_writer import PlacedWriter, metadata_json
from ckptkit.formats.zip_directory import (
    DEFLATED,
    STORED,
    CheckedMembers,
    ZipEntry,
    damaged,
    plain_name,
    read_directory,
)
from ckptkit.formats.zip_writer import ZipWriter

_EXTENSION = ".npy"
_COMMENT_PREFIX = b"ckptkit:"
_MAX_COMMENT = 0xFFFF
_HEAD_BYTES = MAX_HEADER_BYTES + 12


class NpzReader(MappedReader):
    """An npz archive. Stored arrays are mapped, compressed ones unpacked when read."""

    format = "npz"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = MappedFile(self.path)
        self._files = [self._file]
        self._budget = Budget(self._file.size, partial(FormatError, self.path))
        self._arrays: dict[str, tuple[ZipEntry, NpyHeader]] = {}
        specs: dict[str, TensorSpec] = {}
        left_out: dict[str, str] = {}
        also: dict[str, str] = {}
        try:
            directory = read_directory(self._file)
            self._members = CheckedMembers(self._file, directory)
            for entry in directory.entries.values():
                if not entry.name.endswith(_EXTENSION) and not self._begins_as_array(entry):
                    also[entry.name] = f"a file of {entry.size:,} bytes"
                    continue
                name = entry.name.removesuffix(_EXTENSION)
                if not entry.is_utf8:
                    raise FormatError(
                        self.path, f"zip entry {entry.name!r} does not say how its name is coded"
                    )
                if name != entry.name and name in directory.entries:
                    raise FormatError(self.path, f"zip entries {entry.name!r} and {name!r} are one to numpy")
                header = self._header(entry)
                if header.is_text:
                    also[name] = f"texts {list(header.shape)}"
                    continue
                if header.dtype is None:
                    left_out[name] = _unreadable(header)
                    continue
                specs[name] = TensorSpec(name, header.dtype, header.shape)
                self._arrays[name] = (entry, header)
            self.metadata: Mapping[str, str] = self._metadata(directory.comment)
        except BaseException:
            self.close()
            raise
        self.specs: Mapping[str, TensorSpec] = specs
        self.notes: Sequence[str] = ()
        self.left_out: Mapping[str, str] = left_out
        self._also = also

    @property
    def extras(self) -> Mapping[str, str]:
        """Members that are no arrays, and arrays of texts."""
        return self._also

    def _read(self, name: str) -> Array:
        """A view of the file, or a copy where it is compressed or big-endian."""
        entry, header = self._arrays[name]
        assert header.dtype is not None
        shape = header.shape[::-1] if header.fortran else header.shape
        if entry.method == STORED:
            array = self._file.view(entry.offset + header.start, header.dtype, shape)
        else:
            array = self._inflated(entry)[header.start :].view(header.dtype.numpy).reshape(shape)
        if header.big_endian:
            array = array.byteswap(inplace=entry.method != STORED)
        array.flags.writeable = False
        return array.T if header.fortran else array

    def _raw(self, name: str) -> RawTensor | None:
        entry, header = self._arrays[name]
        turned = header.fortran and sum(size != 1 for size in header.shape) > 1
        if entry.method != STORED or header.big_endian or turned:
            return None
        nbytes = self.specs[name].nbytes
        return RawTensor(header.shape, self._file.raw(entry.offset + header.start, nbytes))

    def check(self, name: str, known: int | None = None) -> bool:
        """Compare an array with the CRC-32 of its zip entry, once; True, or FormatError."""
        self._require(name)
        return self._members.require(self._arrays[name][0])

    def check_rest(self) -> None:
        """Check every member that has not been checked."""
        self._members.require_all()

    def _check_bytes(self, name: str) -> None:
        entry, _ = self._arrays[name]
        if entry.method == STORED:  # unpacking compares by itself
            self._members.require(entry)

    def release(self, name: str) -> None:
        """Give back the memory pages of one array."""
        self._require(name)
        entry, _ = self._arrays[name]
        self._file.release(entry.offset, entry.packed)

    def _begins_as_array(self, entry: ZipEntry) -> bool:
        """Whether numpy takes a member for an array, whatever it is called."""
        start = self._file.data[entry.offset : entry.offset + min(entry.packed, 64)]
        if entry.method == DEFLATED:
            with contextlib.suppress(zlib.error):
                start = zlib.decompressobj(-zlib.MAX_WBITS).decompress(start, len(MAGIC))
        return start.startswith(MAGIC)

    def _header(self, entry: ZipEntry) -> NpyHeader:
        if entry.method == STORED:
            raw = self._file.data[entry.offset : entry.offset + min(entry.size, _HEAD_BYTES)]
        elif entry.method == DEFLATED:
            self._budget.spend(nbytes=entry.size)
            packed = self._file.data[entry.offset : entry.offset + min(entry.packed, 2 * _HEAD_BYTES)]
            try:
                raw = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, _HEAD_BYTES)
            except zlib.error as error:
                raise damaged(self._file, entry, f"damaged compressed data ({error})") from error
        else:
            raise damaged(self._file, entry, f"packed by method {entry.method}, which numpy does not use")
        try:
            header = parse_header(raw)
        except ValueError as error:
            raise damaged(self._file, entry, str(error)) from error
        self._budget.spend(nodes=1, steps=header.steps)
        if header.dtype is not None and header.nbytes != entry.size:
            reason = f"an array of {header.nbytes} bytes in an entry of {entry.size}"
            raise damaged(self._file, entry, reason)
        return header

    def _inflated(self, entry: ZipEntry) -> Array:
        """The bytes of a whole entry, unpacked piece by piece into their place."""
        import numpy

        data = numpy.empty(entry.size, numpy.uint8)
        position = 0
        for piece in self._members.inflated(entry):
            data[position : position + len(piece)] = numpy.frombuffer(piece, numpy.uint8)
            position += len(piece)
        return data

    def _metadata(self, comment: bytes) -> dict[str, str]:
        if not comment.startswith(_COMMENT_PREFIX):
            return {}
        try:
            found = json.loads(comment.removeprefix(_COMMENT_PREFIX))
        except (ValueError, RecursionError) as error:
            raise FormatError(self.path, "ckptkit's metadata is not valid JSON") from error
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise FormatError(self.path, "ckptkit's metadata is no table of texts")
        return found


def _unreadable(header: NpyHeader) -> str:
    if "O" in header.code:
        return "Python objects, which ckptkit never unpickles"
    return f"elements of type {header.code[:40]!r}, which is not known here"


class NpzWriter(PlacedWriter):
    """An npz archive being written, uncompressed; see `ckptkit.formats.base.Writer`."""

    most = 150_000

    def __init__(
        self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str], *, force: bool = False
    ) -> None:
        super().__init__(Path(path), specs, metadata)
        for spec in self._specs.values():
            if descr(spec.dtype) is None:
                raise UsageError(
                    f"{self.path}: npz cannot hold {spec.name!r} as {spec.dtype}: numpy has no name for it",
                    hint="choose --dtype float32 or float16, or --to safetensors"
                    if spec.dtype.is_float
                    else None,
                )
        self._refuse_names()
        length = len(_COMMENT_PREFIX + metadata_json(self._metadata))
        if length > _MAX_COMMENT:
            raise UsageError(f"{self.path}: metadata of {length} bytes, npz holds {_MAX_COMMENT}")
        self._file = staged_checkpoint(self.path, force=force)
        self._zip = ZipWriter(self._file)
        self._arrays = {
            name: self._zip.reserve(name + _EXTENSION, len(header_bytes(spec)) + spec.nbytes)
            for name, spec in self._specs.items()
        }

    def _refuse_names(self) -> None:
        """A member's name is a tensor's, and programs that unpack archives make paths of them."""
        seen: dict[str, str] = {}
        for name in self._specs:
            other = seen.setdefault(plain_name(name), name)
            why = unsafe_name(name) or (f"is the path of {other!r} too" if other != name else None)
            if why is not None:
                raise ConversionError(
                    f"{self.path}: npz cannot hold a tensor called {name[:200]!r}: as a member it {why}",
                    hint="choose --to safetensors",
                )

    def _put(self, spec: TensorSpec, pieces: Iterable[Piece]) -> int:
        return self._zip.fill(self._arrays[spec.name], pieces, head=header_bytes(spec))

    def _commit(self, check: Check | None) -> list[Path]:
        self._zip.close(_COMMENT_PREFIX + metadata_json(self._metadata))
        return commit_checkpoint(self._file, check)

    def discard(self) -> None:
        """Remove the temporary file; harmless after `finish`."""
        self._file.discard()
