"""Image files, decoded to upright RGB; whatever is damaged gets one kind of error.

One rule for each kind of picture, the same for every command:

* turned as its EXIF data says; of an animation the first frame;
* palettes and grey become RGB; what is transparent lies on white, as a browser shows it (``convert("RGB")``
  would show the colours that somebody meant to hide);
* 16 bits of grey are scaled to 8, where Pillow's conversion would cut everything above 255 to white; integers
  beyond 16 bits and floating-point numbers say of no value that it is white, and are refused;
* CMYK becomes RGB by Pillow's formula; colour profiles are not applied, as in the published evaluations.

What a file asks for is bounded before it is decoded (`bounds`). Only the formats named there
are opened, whatever a file is called: for others Pillow starts programs, for PostScript Ghostscript.
A JPEG too large for the memory there is for one picture is decoded at half its size, which libjpeg does
without the whole one. That changes pixels by the rounding of one more resizing, so it is warned of
(`ReducedPictureWarning`); ordinary pictures stay as they are.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ckptkit.base.errors import CkptkitError, FormatError, MissingDependencyError, NotFoundError
from ckptkit.base.text import escaped
from ckptkit.models.images import bounds

if TYPE_CHECKING:
    from PIL.Image import Image

_WHITE = 2**16 - 1
_SAVE_AS = "save it with 8 or 16 bits a channel"
_SHRINK = f"shrink it to at most {bounds.MOST_MEMORY // 10 // 10**6} million pixels"
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
                several = bounds.check_outline(file)
                metered: Any = _Metered(file)
                picture = held.enter_context(Image.open(metered, formats=bounds.FORMATS))
                metered.left = None
                held.enter_context(bounds.ROOM.taken(_fitted(picture, called, several_scans=several)))
                decoded = _upright_rgb(picture, called, own=True)
            except FileNotFoundError as error:
                raise NotFoundError(f"{called}: no such image", hint="check the path") from error
            except UnidentifiedImageError as error:
                raise FormatError(
                    called,
                    "not an image of a format that is read",
                    hint="one of " + ", ".join(bounds.FORMATS),
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
        self.left: int | None = bounds.MOST_OPENED

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        if self.left is not None:
            self.left -= len(content) + bounds.A_READ
            if self.left < 0:
                raise bounds.CostlyError(f"more than {bounds.MOST_OPENED:,} bytes of metadata")
        return content


def _fitted(picture: Any, called: str, *, several_scans: bool = False, may_reduce: bool = True) -> int:
    """Bytes that decoding takes, of a large JPEG at half its size; see the top of this file."""
    from PIL import Image

    bounds.check_exif(picture.info.get("exif") or b"")
    bounds.check_exif(_raw_profile(picture.info.get("Raw profile type exif") or ""))
    full = picture.size
    if math.prod(full) > (Image.MAX_IMAGE_PIXELS or math.inf) or bounds.is_long(picture):
        raise _too_large(called, picture, full)
    needed = bounds.cost(picture, several_scans=several_scans)
    if needed > bounds.MOST_MEMORY and picture.format in ("JPEG", "MPO") and may_reduce:
        picture.draft(None, (full[0] // 2, full[1] // 2))
        needed = bounds.cost(picture, several_scans=several_scans, full=full)
    if needed > bounds.MOST_MEMORY:
        raise _too_large(called, picture, full)
    if picture.size != full:
        whole, half = (f"{width}x{height}" for width, height in (full, picture.size))
        said = f"{whole} pixels are too many to decode whole; decoded at {half}, which rounds once more"
        warnings.warn(escaped(f"{called}: {said}"), ReducedPictureWarning, stacklevel=2)
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
    except bounds.CostlyError as error:
        raise FormatError(called, f"asks for {error}", hint="save it anew with another program") from error
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
    bounds.check_exif(picture.info.get("exif") or b"")  # of a PNG it may come last
    if bounds.is_turned(picture):
        if 2 * math.prod(picture.size) * bounds.bytes_of(picture.mode) > bounds.MOST_MEMORY and own:
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
