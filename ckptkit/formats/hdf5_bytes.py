"""The bytes of an HDF5 file, handed out in pieces that are known to lie inside it.

HDF5 is read here without libhdf5: its version 1.14.6, which h5py brings, ends the process with a segmentation
fault on some damaged files (of 3000 random ones, on one), which no Python code can turn into an error. Source
of every structure: the HDF5 File Format Specification, version 3.0.
"""

from __future__ import annotations

from ckptkit.errors import FormatError
from ckptkit.formats.mapped_file import MappedFile

UNDEFINED = (1 << 64) - 1
"""An address that stands for "nowhere"."""

MAX_DEPTH, MAX_NAME = 64, 1024
"""Groups inside each other, and characters of a whole path: no file of weights comes near."""

_DAMAGED = "the file is damaged: fetch or write it again"


class Hdf5Bytes:
    """An HDF5 file, or a part of a file that is one.

    Each structure of a sound file is read once, or nearly so, and all of them together are no longer than the
    file: structures that lie over each other, or that lead back to themselves, use that allowance up.

    Parameters
    ----------
    file : MappedFile
    start, size : int
        The part, in bytes; by default all of the file.
    """

    def __init__(self, file: MappedFile, start: int = 0, size: int | None = None) -> None:
        self.file = file
        self.start = start
        self.size = file.size - start if size is None else size
        self._allowance = 2 * self.size

    def piece(self, address: int, length: int, what: str) -> Piece:
        """A range that holds a structure, named ``what`` in errors.

        Raises
        ------
        FormatError
            It reaches outside the file, or more has been read than a sound file holds.
        """
        self.require(address, length, what)
        self._spend(address, length)
        first = self.start + address
        return Piece(self, address, self.file.data[first : first + length])

    def text(self, address: int, limit: int) -> bytes:
        """Bytes up to the next zero, which must come before ``limit`` (an address)."""
        first, stop = self.start + address, self.start + min(limit, address + MAX_NAME + 1, self.size)
        end = self.file.data.find(b"\0", first, stop) if first < stop else -1
        if end < 0:
            raise self.error("a name without an end, or longer than any layer's", address)
        self._spend(address, end - first)
        return self.file.data[first:end]

    def _spend(self, address: int, length: int) -> None:
        self._allowance -= length
        if self._allowance < 0:
            raise self.error("structures that lie over each other", address)

    def require(self, address: int, length: int, what: str) -> None:
        """Raise FormatError unless a range lies inside the file."""
        if address > self.size or length > self.size - address:
            raise self.error(f"{what} of {length} bytes reaches outside the file", min(address, self.size))

    def error(self, reason: str, address: int | None = None, hint: str = _DAMAGED) -> FormatError:
        """Make the error that names the file and the place."""
        offset = None if address is None else self.start + address
        return FormatError(self.file.path, reason, offset=offset, hint=hint)


class Piece:
    """Some bytes of the file, read from their beginning to their end and not beyond.

    Parameters
    ----------
    source : Hdf5Bytes
    address : int
        Where they stand.
    raw : bytes
    """

    def __init__(self, source: Hdf5Bytes, address: int, raw: bytes) -> None:
        self._source = source
        self._address = address
        self._raw = raw
        self._position = 0

    @property
    def left(self) -> int:
        """Number of bytes not yet read."""
        return len(self._raw) - self._position

    @property
    def address(self) -> int:
        """Where the next byte stands in the file."""
        return self._address + self._position

    def raw(self, length: int) -> bytes:
        """Read the next bytes."""
        if length > self.left:
            raise self.error("a structure is shorter than what it should hold")
        self._position += length
        return self._raw[self._position - length : self._position]

    def number(self, width: int) -> int:
        """Read an unsigned number of ``width`` bytes."""
        return int.from_bytes(self.raw(width), "little")

    def part(self, length: int) -> Piece:
        """Read the next bytes as a piece of their own."""
        address = self.address
        return Piece(self._source, address, self.raw(length))

    def anew(self) -> Piece:
        """The same bytes, to be read from their beginning."""
        return Piece(self._source, self._address, self._raw)

    def expect(self, magic: bytes, what: str) -> None:
        """Read the mark of a structure.

        Raises
        ------
        FormatError
            Something else stands there.
        """
        address = self.address
        if self.raw(len(magic)) != magic:
            raise self._source.error(f"no {what} where one should be", address)

    def error(self, reason: str) -> FormatError:
        """Make the error that names the file and this place."""
        return self._source.error(reason, self.address)
