"""Image files, decoded to upright RGB; whatever is damaged gets one kind of error.

One rule for each kind of picture, the same for every command:

* turned as its EXIF data says; of an animation the first frame;
* palettes and grey become RGB; what is transparent is put on white, as a browser shows it (``convert("RGB")``
  would show the colours that somebody meant to hide);
* 16 bits of grey are scaled to 8, where Pillow's conversion would cut everything above 255 to white; integers
  beyond 16 bits and floating-point numbers say of no value that it is white, and are refused;
* CMYK becomes RGB by Pillow's formula; colour profiles are not applied, as in the published evaluations.

What a file asks for is bounded before it is decoded. A picture's size is in its first bytes, and so is what a
decoder will do with it: a few kilobytes can ask for gigabytes of pixels, of tables of metadata that point at
the same bytes again and again, or for thousands of passes. `check_outline` refuses what a parser should not
obey; `cost` says what decoding takes. Only `FORMATS` are opened, whatever a file is called: for others Pillow
starts programs, for PostScript Ghostscript. A JPEG too large for the memory there is for one picture is
decoded at half its size, which libjpeg does without the whole one. That changes pixels by the rounding of one
more resizing, so it is warned of (`ReducedPictureWarning`); ordinary pictures stay as they are.
"""

from __future__ import annotations

import io
import math
import re
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ckptkit.base.errors import CkptkitError, FormatError, MissingDependencyError, NotFoundError
from ckptkit.base.text import counted, escaped

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
"""Those of `ckptkit.models.images.gathering.ENDINGS`, as Pillow calls them: none of them starts a program."""

MOST_MEMORY = 208 << 20
"""Bytes that decoding a picture may take: 50 million pixels of a photograph. All threads share it."""

MOST_OPENED = 64 << 20
"""Bytes that may be read before a picture's size is known; those that are read whole are as large."""

A_READ = 64
"""What each read counts for beside its bytes."""

_LONGEST_SIDE = 1 << 17
_METADATA = 16 << 20
_PIECES = 1 << 18
_SCANS = 100
_WHOLE = MOST_OPENED - A_READ * 16
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SIZES |= dict.fromkeys((16, 17, 18), 8)  # of BigTIFF
_SHORTER = frozenset({1, 3, 6, 8})
_ENTRIES = 1 << 16
_DECODERS = {"WEBP": 12, "AVIF": 16, "JPEG2000": 28, "GIF": 4}
_ORIENTATION = 0x0112
_STRIPS = frozenset({273, 279, 324, 325})
_TILE = (322, 323)
_PIXEL = 8  # bytes, at 4 x 16 bits
_JUNK = 256  # what a byte between two segments counts for
_TIFF_HEADS = re.compile(rb"II[*+]\0|MM\0[*+]")
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")


class CostlyError(Exception):
    """A picture asks for more than it may; says what."""


def check_outline(file: BinaryIO) -> bool:
    """Look through what Pillow obeys while it opens a file; tells whether it is a JPEG of several scans."""
    file.seek(0)
    head = file.read(16)
    several = False
    if head.startswith(b"\xff\xd8"):
        several = _check_jpeg(file)
    elif _TIFF_HEADS.match(head):
        _check_directory(file)
    elif head[4:8] in (b"ftyp", b"jP  ") or head[:4] == b"RIFF":
        file.seek(0)
        content = file.read(_WHOLE + 1)
        if len(content) > _WHOLE:
            raise CostlyError(f"more than {_WHOLE:,} bytes")
        for found in _TIFF_HEADS.finditer(content):  # wherever an Exif block may be
            check_exif(content[found.start() :])
    file.seek(0)
    return several


def check_exif(block: bytes) -> None:
    """Refuse a block of Exif data whose entries share bytes until they are many."""
    block = block.removeprefix(b"Exif\0\0")
    if _TIFF_HEADS.match(block):
        _check_directory(io.BytesIO(block))


def _check_directory(file: BinaryIO) -> None:
    """Count what the entries of a TIFF directory hold: Pillow gives each its own copy."""
    tile = {}
    total = 0
    for tag, kind, count, value in _entries(file):
        total += count * _SIZES.get(kind, 0)
        if total > _METADATA:
            raise CostlyError(f"more than {_METADATA:,} bytes of metadata")
        if tag in _STRIPS and count > _PIECES:
            raise CostlyError(f"{count:,} strips or tiles")
        if tag in _TILE:
            tile[tag] = value
    if tile and math.prod(tile.values()) * _PIXEL > MOST_MEMORY:
        raise CostlyError("tiles of " + "x".join(f"{tile[tag]:,}" for tag in sorted(tile)) + " pixels")


def _entries(file: BinaryIO) -> Iterator[tuple[int, int, int, int]]:
    """Tag, type, count and value (or offset) of each entry of the first directory that is there."""
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    offset, number = ("Q", "Q") if b"+" in head[2:4] else ("L", "H")
    try:
        (start,) = struct.unpack_from(order + offset, head, struct.calcsize(order + offset))
        file.seek(start)
        (count,) = struct.unpack(order + number, file.read(struct.calcsize(order + number)))
    except (struct.error, OverflowError, ValueError, OSError):
        return
    if count > _ENTRIES:
        raise CostlyError(f"{counted(count, 'entry')} of metadata")
    size = struct.calcsize(order + "HH" + 2 * offset)
    for entry in struct.iter_unpack(order + "HH" + 2 * offset, _whole(file.read(count * size), size)):
        tag, kind, many, value = entry
        if kind in _SHORTER and order == ">":  # a short value is in the first bytes of its place
            value >>= 8 * (struct.calcsize(order + offset) - _SIZES[kind])
        elif kind in _SHORTER:
            value &= (1 << 8 * _SIZES[kind]) - 1
        yield tag, kind, many, value


def _whole(table: bytes, size: int) -> bytes:
    return table[: len(table) // size * size]


def _check_jpeg(file: BinaryIO) -> bool:
    """Walk over a JPEG file's segments, and where it has several scans, over their data."""
    exif, components = b"", -1
    for marker, segment in _segments(file):
        if marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            exif += segment[6:]
        elif marker == 0xE2 and segment.startswith(b"MPF\0"):
            check_exif(segment[4:])
        elif marker in (0xC0, 0xC1):
            components = int.from_bytes(segment[5:6], "big")
        elif marker == 0xDA and segment[:1] == components.to_bytes(1, "big", signed=components < 0):
            check_exif(exif)
            return False
    check_exif(exif)
    scans, piece = 1, b""
    while block := file.read(1 << 20):
        piece = piece[-1:] + block
        scans += sum(found[1] == b"\xda" for found in _MARKER.finditer(piece))
        if scans > _SCANS:
            raise CostlyError(f"more than {_SCANS} scans")
    return True


def _segments(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment up to the first scan's."""
    total = 0
    file.seek(2)
    while byte := file.read(1):
        total += _JUNK
        if byte != b"\xff":
            continue
        while byte == b"\xff":
            byte = file.read(1)
        marker = byte[0] if byte else 0
        if marker in (0, 1) or 0xD0 <= marker <= 0xD9:
            continue
        segment = file.read(max(int.from_bytes(file.read(2), "big") - 2, 0))
        total += len(segment)
        if total > _METADATA:
            raise CostlyError(f"more than {_METADATA:,} bytes of metadata")
        yield marker, segment
        if marker == 0xDA:
            return


def cost(picture: Any, *, several_scans: bool = False, full: tuple[int, int] | None = None) -> int:
    """Bytes that decoding an opened picture and making it upright RGB will take, at the most.

    ``full`` is its size in the file, where it is decoded reduced.
    """
    stored = bytes_of(picture.mode)
    transparent = "transparency" in picture.info or "A" in picture.mode.upper()
    made = 0 if picture.mode == "RGB" and not transparent else 4
    turned = stored if picture.format != "PNG" and is_turned(picture) else 0
    pixels: int = math.prod(picture.size)
    decoder = _by_the_decoder(picture, math.prod(full or picture.size), several_scans=several_scans)
    longest: int = max(picture.size)
    return pixels * stored + max(pixels * made, pixels * turned, decoder) + 32 * longest


def bytes_of(mode: str) -> int:
    """Bytes that Pillow keeps of a pixel."""
    return {"1": 1, "L": 1, "P": 1}.get(mode, 2 if mode.startswith("I;16") else 4)


def is_turned(picture: Any) -> bool:
    """Whether its Exif data have a picture turned; of a PNG they may come last, so it is decoded for them."""
    return picture.getexif().get(_ORIENTATION, 1) in range(2, 9)


def _by_the_decoder(picture: Any, pixels: int, *, several_scans: bool) -> int:
    """Bytes that a decoder needs beside the picture; measured, rounded up."""
    if picture.format in ("JPEG", "MPO"):
        widest = max((h * v for _, h, v, _ in picture.layer), default=1)
        blocks = sum(h * v / widest for _, h, v, _ in picture.layer)
        return int(2 * blocks * pixels) if several_scans else 0
    if picture.format == "TIFF" and picture.info.get("compression") != "raw":
        tags = picture.tag_v2
        bits = tags.get(258, (8,))
        rows = min(tags.get(278, picture.height), picture.height)
        piece: int = tags.get(322, picture.width) * tags.get(323, rows)
        return piece * sum(bits if isinstance(bits, tuple) else (bits,)) // 8
    return pixels * _DECODERS.get(picture.format, 0)


def is_long(picture: Any) -> bool:
    """Whether a side is longer than any picture's: decoders hold several rows."""
    return bool(max(picture.size) > _LONGEST_SIDE)


@dataclass
class Room:
    """Memory that all threads share; a picture waits until there is room, and the largest fits alone."""

    nbytes: int
    _free: threading.Condition = field(default_factory=threading.Condition)
    _taken: int = 0

    @contextmanager
    def taken(self, nbytes: int) -> Iterator[None]:
        """Wait for room, and give it back in the end."""
        nbytes = min(nbytes, self.nbytes)
        with self._free:
            self._free.wait_for(lambda: self._taken + nbytes <= self.nbytes)
            self._taken += nbytes
        try:
            yield
        finally:
            with self._free:
                self._taken -= nbytes
                self._free.notify_all()


ROOM = Room(MOST_MEMORY)


_WHITE = 2**16 - 1
_SAVE_AS = "save it with 8 or 16 bits a channel"
_SHRINK = f"shrink it to at most {MOST_MEMORY // 10 // 10**6} million pixels"
_PROGRAMS = ("EPS", "WMF")
_FROM_A_PIPE = 50_000_000
_STRIP = 1 << 20  # pixels


class ReducedPictureWarning(UserWarning):
    """A picture is too large to be decoded whole, and was decoded at half its size."""


def open_image(source: Path | bytes | BinaryIO, name: str | None = None) -> Image:
    """Decode an image to RGB, the right way up."""
    with opened_image(source, name) as picture:
        return picture


@contextmanager
def opened_image(source: Path | bytes | BinaryIO, name: str | None = None) -> Iterator[Image]:
    """Decode an image as `open_image` does; threads that use this have their pictures share the memory."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingDependencyError("reading an image", "pillow") from error

    called = name or (str(source) if isinstance(source, Path) else "image")
    with ExitStack() as held:
        with _faults_in_words(called):
            try:
                file = held.enter_context(_as_file(source))
                several = check_outline(file)
                metered: Any = _Metered(file)
                picture = held.enter_context(Image.open(metered, formats=FORMATS))
                metered.left = None
                held.enter_context(ROOM.taken(_fitted(picture, called, several_scans=several)))
                decoded = _upright_rgb(picture, called, own=True)
            except FileNotFoundError as error:
                raise NotFoundError(f"{called}: no such image", hint="check the path") from error
            except UnidentifiedImageError as error:
                raise FormatError(
                    called,
                    "not an image of a format that is read",
                    hint="supported formats are " + ", ".join(FORMATS),
                ) from error
        yield decoded


@contextmanager
def _as_file(source: Path | bytes | BinaryIO) -> Iterator[BinaryIO]:
    """A file that can be read twice: of a pipe, all that it gives."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif isinstance(source, Path):
        with source.open("rb") as file:
            yield file if file.seekable() else io.BytesIO(file.read(_FROM_A_PIPE))
    else:
        yield source


class _Metered:
    """A file of which no more is read than there is left; ``None`` for no limit."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.left: int | None = MOST_OPENED

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        if self.left is not None:
            self.left -= len(content) + A_READ
            if self.left < 0:
                raise CostlyError(f"more than {MOST_OPENED:,} bytes of metadata")
        return content


def _fitted(picture: Any, called: str, *, several_scans: bool = False, may_reduce: bool = True) -> int:
    """Bytes that decoding takes, of a large JPEG at half its size; see the top of this file."""
    from PIL import Image

    check_exif(picture.info.get("exif") or b"")
    check_exif(_raw_profile(picture.info.get("Raw profile type exif") or ""))
    full = picture.size
    if math.prod(full) > (Image.MAX_IMAGE_PIXELS or math.inf) or is_long(picture):
        raise _too_large(called, picture, full)
    needed = cost(picture, several_scans=several_scans)
    if needed > MOST_MEMORY and picture.format in ("JPEG", "MPO") and may_reduce:
        picture.draft(None, (full[0] // 2, full[1] // 2))
        needed = cost(picture, several_scans=several_scans, full=full)
    if needed > MOST_MEMORY:
        raise _too_large(called, picture, full)
    if picture.size != full:
        whole, half = (f"{width}x{height}" for width, height in (full, picture.size))
        what = f"{whole} pixels are too many to decode whole; decoded at {half}, which rounds once more"
        warnings.warn(escaped(f"{called}: {what}"), ReducedPictureWarning, stacklevel=2)
    return needed


def _raw_profile(text: str) -> bytes:
    """Exif data as ImageMagick writes them into a PNG's text; none where Pillow cannot read them either."""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return b""


def upright_rgb(picture: Image, called: str) -> Image:
    """Turn a picture upright and give it three channels of 8 bits, by the rules above."""
    with _faults_in_words(called):
        if getattr(picture, "tile", None):  # opened by somebody, and not decoded yet
            if getattr(picture, "format", None) in _PROGRAMS:
                raise FormatError(called, f"is {picture.format}, which another program would have to draw")
            _fitted(picture, called, may_reduce=False)
        return _upright_rgb(picture, called, own=False)


@contextmanager
def _faults_in_words(called: str) -> Iterator[None]:
    """Turn whatever Pillow raises into one kind of error; several threads may decode at once."""
    from PIL import Image

    try:
        yield
    except CkptkitError:
        raise
    except Image.DecompressionBombError as error:
        raise FormatError(called, f"too large ({error})", hint=_SHRINK) from error
    except CostlyError as error:
        raise FormatError(called, f"asks for {error}", hint="save it again with another program") from error
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:  # the system's, not a decoder's
            raise FormatError(called, f"cannot be read ({error.strerror})") from error
        # Pillow's decoders raise whatever a damaged file makes them raise (OSError, SyntaxError, ValueError,
        # struct.error, IndexError, zlib.error …); to the user all of them are one thing.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormatError(called, f"damaged image ({reason})") from error


def _too_large(called: str, picture: Any, size: tuple[int, int]) -> FormatError:
    width, height = size
    what = f"{width}x{height} pixels ({picture.mode} {picture.format}) are too many for an input image"
    return FormatError(called, what, hint=_SHRINK)


def _upright_rgb(picture: Any, called: str, *, own: bool) -> Image:
    """Turn and convert a picture in strips, so that there are never more than two whole ones."""
    from PIL import ImageOps

    picture.load()
    check_exif(picture.info.get("exif") or b"")  # of a PNG it may come last
    if is_turned(picture):
        if 2 * math.prod(picture.size) * bytes_of(picture.mode) > MOST_MEMORY and own:
            raise _too_large(called, picture, picture.size)
        picture = ImageOps.exif_transpose(picture, in_place=own) or picture
    if picture.mode == "F" or picture.mode.startswith("I"):
        return _in_strips(picture, "L", lambda strip: _grey_of_16_bits(strip, called)).convert("RGB")
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return _in_strips(picture, "RGB", _on_white)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _in_strips(picture: Image, mode: str, convert: Callable[[Image], Image]) -> Image:
    from PIL import Image

    made = Image.new(mode, picture.size)
    rows = max(1, _STRIP // max(picture.width, 1))
    for top in range(0, picture.height, rows):
        box = (0, top, picture.width, min(top + rows, picture.height))
        made.paste(convert(picture.crop(box)), box)
    return made


def _on_white(picture: Image) -> Image:
    from PIL import Image

    seen = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")


def _grey_of_16_bits(picture: Image, called: str) -> Image:
    import numpy
    from PIL import Image

    levels = numpy.asarray(picture)
    if picture.mode == "F" or levels.min() < 0 or levels.max() > _WHITE:
        what = "floating-point numbers" if picture.mode == "F" else "integers beyond 16 bits"
        raise FormatError(called, f"its pixels are {what}, which do not say what is white", hint=_SAVE_AS)
    return Image.fromarray(numpy.round(levels / (_WHITE / 255)).astype(numpy.uint8))
