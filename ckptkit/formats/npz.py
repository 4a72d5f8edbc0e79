"""npz archives, numpy's own container: read and write, and never unpickle."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ckptkit.checksums import crc32
from ckptkit.errors import FormatError, NotFoundError, UsageError
from ckptkit.formats.base import Check
from ckptkit.formats.mapped_file import MappedFile, MappedReader
from ckptkit.formats.npy_header import MAX_HEADER_BYTES, NpyHeader, descr, header_bytes, parse_header
from ckptkit.formats.staging import StagedFile
from ckptkit.formats.tensor_writer import PlacedWriter, metadata_json
from ckptkit.formats.zip_directory import DEFLATED, STORED, ZipEntry, read_directory
from ckptkit.formats.zip_writer import ZipWriter
from ckptkit.tensors import Array, Piece, RawTensor, TensorSpec

_EXTENSION = ".npy"
_COMMENT_PREFIX = b"ckptkit:"
_MAX_COMMENT = 0xFFFF
MAX_INFLATED = 4 << 30
"""A compressed array has to be unpacked into memory; larger ones are refused."""

_HEAD_BYTES = MAX_HEADER_BYTES + 12
_MAX_DEFLATE_RATIO = 1032
"""What zlib can reach at best; an entry that promises more lies."""


class NpzReader(MappedReader):
    """An npz archive. Stored arrays are mapped, compressed ones unpacked when read.

    Parameters
    ----------
    path : str or Path
        The file.

    Raises
    ------
    FormatError
        Damaged or hostile.
    NotFoundError
        No such file.
    """

    format = "npz"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = MappedFile(self.path)
        self._files = [self._file]
        self._members: dict[str, tuple[ZipEntry, NpyHeader]] = {}
        specs: dict[str, TensorSpec] = {}
        left_out: dict[str, str] = {}
        also: dict[str, str] = {}
        try:
            directory = read_directory(self._file)
            for entry in directory.entries.values():
                if not entry.name.endswith(_EXTENSION):
                    also[entry.name] = f"a file of {entry.size:,} bytes"
                    continue
                name = entry.name.removesuffix(_EXTENSION)
                header = self._header(entry)
                if header.is_text:
                    also[name] = f"texts {list(header.shape)}"
                    continue
                if header.dtype is None:
                    left_out[name] = _unreadable(header)
                    continue
                specs[name] = TensorSpec(name, header.dtype, header.shape)
                self._members[name] = (entry, header)
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

    def read(self, name: str) -> Array:
        """Read-only array: a view of the file, or a copy where it is compressed or big-endian.

        Raises
        ------
        FormatError
            A compressed array whose bytes are damaged.
        NotFoundError
            No array of that name.
        """
        import numpy

        entry, header = self._member(name)
        assert header.dtype is not None
        shape = header.shape[::-1] if header.fortran else header.shape
        if entry.method == STORED:
            array = self._file.view(entry.offset + header.start, header.dtype, shape)
        else:
            flat = numpy.frombuffer(self._inflate(entry), header.dtype.numpy, offset=header.start)
            array = flat.reshape(shape)
        if header.big_endian:
            array = array.byteswap()
        array.flags.writeable = False
        return array.T if header.fortran else array

    def raw(self, name: str) -> RawTensor | None:
        """The bytes of an array, without numpy; None where they do not lie as they should be written."""
        entry, header = self._member(name)
        turned = header.fortran and sum(size != 1 for size in header.shape) > 1
        if entry.method != STORED or header.big_endian or turned:
            return None
        nbytes = self.specs[name].nbytes
        return RawTensor(header.shape, self._file.raw(entry.offset + header.start, nbytes))

    def check(self, name: str, known: int | None = None) -> bool:
        """Compare an array with the CRC-32 of its zip entry; True, or FormatError."""
        entry, _ = self._member(name)
        if entry.method == STORED:
            found = self._file.crc32(entry.offset, entry.packed)
            if found != entry.crc32:
                raise self._error(entry, f"CRC-32 is {found:08x}, the archive says {entry.crc32:08x}")
        else:
            self._inflate(entry)
        return True

    def release(self, name: str) -> None:
        """Give back the memory pages of one array."""
        entry, _ = self._member(name)
        self._file.release(entry.offset, entry.packed)

    def _member(self, name: str) -> tuple[ZipEntry, NpyHeader]:
        if name not in self._members:
            raise NotFoundError(f"{self.path}: no tensor {name!r}")
        return self._members[name]

    def _error(self, entry: ZipEntry, reason: str) -> FormatError:
        hint = "the file is damaged: fetch it again"
        return FormatError(self.path, f"{entry.name}: {reason}", offset=entry.offset, hint=hint)

    def _header(self, entry: ZipEntry) -> NpyHeader:
        if entry.method == STORED:
            raw = self._file.data[entry.offset : entry.offset + min(entry.size, _HEAD_BYTES)]
        elif entry.method == DEFLATED:
            if entry.size > _MAX_DEFLATE_RATIO * entry.packed + _HEAD_BYTES or entry.size > MAX_INFLATED:
                raise self._error(entry, f"{entry.packed} bytes that claim to unpack to {entry.size}")
            packed = self._file.data[entry.offset : entry.offset + min(entry.packed, 2 * _HEAD_BYTES)]
            raw = self._unpacked(entry, packed, _HEAD_BYTES)
        else:
            raise self._error(entry, f"packed by method {entry.method}, which numpy does not use")
        try:
            header = parse_header(raw)
        except ValueError as error:
            raise self._error(entry, str(error)) from error
        if header.dtype is not None and header.nbytes != entry.size:
            raise self._error(entry, f"an array of {header.nbytes} bytes in an entry of {entry.size}")
        return header

    def _unpacked(self, entry: ZipEntry, packed: bytes, limit: int) -> bytes:
        try:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, limit)
        except zlib.error as error:
            raise self._error(entry, f"damaged compressed data ({error})") from error

    def _inflate(self, entry: ZipEntry) -> bytes:
        """Unpack a whole entry, no further than its promised size, and compare its CRC-32."""
        data = self._unpacked(
            entry, self._file.data[entry.offset : entry.offset + entry.packed], entry.size + 1
        )
        if len(data) != entry.size:
            raise self._error(entry, f"unpacks to other than {entry.size} bytes")
        found = crc32(data)
        if found != entry.crc32:
            raise self._error(entry, f"CRC-32 is {found:08x}, the archive says {entry.crc32:08x}")
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
    """An npz archive being written, uncompressed; see `ckptkit.formats.base.Writer`.

    Parameters
    ----------
    path : Path
        The file.
    specs : iterable of TensorSpec
        Every array.
    metadata : Mapping of str to str
        Kept in the archive's comment, where numpy does not see it.
    force : bool
        Whether an existing file may be replaced.

    Raises
    ------
    UsageError
        The file exists and ``force`` is false; bfloat16 or float8, which numpy has no name for; or metadata
        longer than a zip comment (65535 bytes).
    ConversionError
        Two arrays of one name.
    StorageError
        The disk refuses.
    """

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
        length = len(_COMMENT_PREFIX + metadata_json(self._metadata))
        if length > _MAX_COMMENT:
            raise UsageError(f"{self.path}: metadata of {length} bytes, npz holds {_MAX_COMMENT}")
        self._file = StagedFile(self.path, force=force)
        self._zip = ZipWriter(self._file)
        self._arrays = {
            name: self._zip.reserve(name + _EXTENSION, len(header_bytes(spec)) + spec.nbytes)
            for name, spec in self._specs.items()
        }

    def _put(self, spec: TensorSpec, pieces: Iterable[Piece]) -> int:
        return self._zip.fill(self._arrays[spec.name], pieces, head=header_bytes(spec))

    def _commit(self, check: Check | None) -> list[Path]:
        self._zip.close(_COMMENT_PREFIX + metadata_json(self._metadata))
        return [self._file.commit_checked(check)]

    def discard(self) -> None:
        """Remove the temporary file; harmless after `finish`."""
        self._file.discard()
