"""The bytes of an HDF5 file, handed out in pieces that are known to lie inside it.

HDF5 is read here without libhdf5: its version 1.14.6, which h5py brings, ends the process with a segmentation
fault on some damaged files (of 3000 random ones, on one), which no Python code can turn into an error. Source
of every structure: the HDF5 File Format Specification, version 3.0.
"""

from __future__ import annotations

import struct
from functools import partial

from ckptkit.base.budget import Budget
from ckptkit.base.errors import FormatError
from ckptkit.formats.mapped_file import MappedFile

UNDEFINED = (1 << 64) - 1
"""An address that stands for "nowhere"."""

MAX_DEPTH, MAX_NAME = 64, 1024
"""Groups inside each other, and characters of a whole path: no file of weights comes near."""

ANEW = "write it anew with Keras, or with h5py's defaults"
"""What to do with a sound file of a kind that is not read."""
_DAMAGED = "the file is damaged: fetch or write it again"
_TOO_SHORT = "a structure is shorter than what it should hold"


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
        self.budget = Budget(file.size, partial(FormatError, file.path))

    def piece(self, address: int, length: int, what: str) -> Piece:
        """A range that holds a structure, named ``what`` in errors.

        Raises
        ------
        FormatError
            It reaches outside the file, or more has been read than a sound file holds.
        """
        self.require(address, length, what)
        self._spend(address, length)
        self.budget.spend(steps=2)
        first = self.start + address
        return Piece(self, address, self.file.data[first : first + length])

    def claim(self, nbytes: int, name: str) -> None:
        """Count what a dataset becomes in memory that is not in the file as it is."""
        if nbytes > self.budget.nbytes:
            raise self.error(
                f"{name}: {nbytes:,} bytes when unpacked, too many for a file of {self.file.size:,} bytes",
                hint="write the dataset anew, in one piece",
            )
        self.budget.spend(nbytes=nbytes)

    def require_checksum(self, address: int, length: int, what: str, hole: int | None = None) -> None:
        """Compare the checksum behind a structure of so many bytes, or in a ``hole`` of it, with its bytes.

        Raises
        ------
        FormatError
            It does not hold, or it is outside of the file.
        """
        at = address + length if hole is None else address + hole
        self.require(address, max(length, at + 4 - address), what)
        self.budget.spend(steps=length // 4)
        first, place = self.start + address, self.start + at
        raw, stored = self.file.data[first : first + length], self.file.data[place : place + 4]
        if hole is not None:
            raw = raw[:hole] + bytes(4) + raw[hole + 4 :]
        if lookup3(raw) != int.from_bytes(stored, "little"):
            raise self.error(f"the checksum of {what} does not match", address)

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


def lookup3(raw: bytes) -> int:
    """Checksum of HDF5's newer structures: Bob Jenkins' hash of 2006, ``hashlittle`` with 0 to begin with.

    Examples
    --------
    >>> hex(lookup3(b"Four score and seven years ago"))  # from the source of the hash
    '0x17770551'
    """
    mask = 0xFFFFFFFF
    a = b = c = 0xDEADBEEF + len(raw) & mask
    whole = max(len(raw) - 1, 0) // 12 * 12
    x: int
    y: int
    z: int
    for x, y, z in struct.iter_unpack("<3I", raw[:whole]):  # cut to 32 bits where a value is shifted next
        a, b, c = a + x, b + y, c + z & mask
        a, c = (a - c ^ c << 4 ^ c >> 28) & mask, c + b
        b, a = (b - a ^ a << 6 ^ a >> 26) & mask, a + c
        c, b = (c - b ^ b << 8 ^ b >> 24) & mask, b + a
        a, c = (a - c ^ c << 16 ^ c >> 16) & mask, c + b
        b, a = (b - a ^ a << 19 ^ a >> 13) & mask, a + c
        c, b = (c - b ^ b << 4 ^ b >> 28) & mask, b + a
    if whole == len(raw):
        return c
    x, y, z = struct.unpack("<3I", raw[whole:].ljust(12, b"\0"))
    a, b, c = a + x & mask, b + y & mask, c + z & mask
    c = (c ^ b) - (b << 14 & mask | b >> 18) & mask
    a = (a ^ c) - (c << 11 & mask | c >> 21) & mask
    b = (b ^ a) - (a << 25 & mask | a >> 7) & mask
    c = (c ^ b) - (b << 16 & mask | b >> 16) & mask
    a = (a ^ c) - (c << 4 & mask | c >> 28) & mask
    b = (b ^ a) - (a << 14 & mask | a >> 18) & mask
    return (c ^ b) - (b << 24 & mask | b >> 8) & mask


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
        start = self._position
        end = start + length
        if end > len(self._raw):
            raise self.error(_TOO_SHORT)
        self._position = end
        return self._raw[start:end]

    def number(self, width: int) -> int:
        """Read an unsigned number of ``width`` bytes."""
        start = self._position  # as `raw`: this is what reading a file of many objects consists of
        end = start + width
        if end > len(self._raw):
            raise self.error(_TOO_SHORT)
        self._position = end
        return int.from_bytes(self._raw[start:end], "little")

    def until_zero(self) -> bytes:
        """Read the next bytes up to a zero, and the zero."""
        end = self._raw.find(b"\0", self._position)
        return self.raw(end + 1 - self._position if end >= 0 else self.left + 1)[:-1]

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

    def unsupported(self, reason: str) -> FormatError:
        """Make the error of something sound that is not read."""
        return self._source.error(reason, self.address, ANEW)
