"""Image files, decoded to upright RGB; whatever is damaged gets one kind of error.

One rule for each kind of picture, the same for every command:

* turned as its EXIF data says; of an animation the first frame;
* palettes and grey become RGB; what is transparent lies on white, as a browser shows it (``convert("RGB")``
  would show the colours that somebody meant to hide);
* 16 bits of grey are scaled to 8, where Pillow's conversion would cut everything above 255 to white; integers
  beyond 16 bits and floating-point numbers say of no value that it is white, and are refused;
* CMYK becomes RGB by Pillow's formula; colour profiles are not applied, as in the published evaluations.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ckptkit.errors import CkptkitError, FormatError, MissingDependencyError, NotFoundError

if TYPE_CHECKING:
    from PIL.Image import Image

_WHITE = 2**16 - 1
_SAVE_AS = "save it with 8 or 16 bits a channel"


def open_image(source: Path | bytes, name: str | None = None) -> Image:
    """Decode an image to RGB, the right way up.

    Parameters
    ----------
    source : Path or bytes
        Any file that Pillow opens, or what is in one.
    name : str, optional
        What to call it in messages; default the path.

    Returns
    -------
    PIL.Image.Image
        Of mode RGB, turned as its EXIF data says.

    Raises
    ------
    MissingDependencyError
        When Pillow is not installed.
    NotFoundError, FormatError
        When there is no such file; when it is no image, damaged, or of absurd size.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingDependencyError("reading an image", "pillow") from error

    called = name or (str(source) if isinstance(source, Path) else "image")
    with _faults_in_words(called):
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
                if picture.width * picture.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                    raise _too_large(called)  # Pillow itself only warns up to twice as many
                return _upright_rgb(picture, called)
        except FileNotFoundError as error:
            raise NotFoundError(f"{called}: no such image", hint="check the path") from error
        except UnidentifiedImageError as error:
            raise FormatError(called, "not an image that Pillow knows") from error


def upright_rgb(picture: Image, called: str) -> Image:
    """Turn a picture upright and give it three channels of 8 bits, by the rules above.

    Parameters
    ----------
    picture : PIL.Image.Image
        Of any mode, perhaps not read yet; stays as it is.
    called : str
        Its name in messages.

    Raises
    ------
    FormatError
        When its file is damaged, or its values do not say what is white.
    """
    with _faults_in_words(called):
        return _upright_rgb(picture, called)


@contextmanager
def _faults_in_words(called: str) -> Iterator[None]:
    """Turn whatever Pillow raises into one kind of error; several threads may decode at once."""
    from PIL import Image

    try:
        yield
    except CkptkitError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(called) from error
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:  # the system's, not a decoder's
            raise FormatError(called, f"cannot be read ({error.strerror})") from error
        # Pillow's decoders raise whatever a damaged file makes them raise (OSError, SyntaxError, ValueError,
        # struct.error, IndexError, zlib.error …); to the user all of them are one thing.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormatError(called, f"damaged image ({reason})") from error


def _too_large(called: str) -> FormatError:
    return FormatError(called, "too many pixels for an input image", hint="give a smaller image")


def _upright_rgb(picture: Image, called: str) -> Image:
    from PIL import Image, ImageOps

    upright: Image.Image = ImageOps.exif_transpose(picture)
    if upright.mode == "F" or upright.mode.startswith("I"):
        return _grey_of_16_bits(upright, called).convert("RGB")
    if "transparency" in upright.info or upright.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        seen = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return upright.convert("RGB")


def _grey_of_16_bits(picture: Image, called: str) -> Image:
    import numpy
    from PIL import Image

    levels = numpy.asarray(picture)
    if picture.mode == "F" or levels.min() < 0 or levels.max() > _WHITE:
        what = "floating-point numbers" if picture.mode == "F" else "integers beyond 16 bits"
        raise FormatError(called, f"its pixels are {what}, which do not say what is white", hint=_SAVE_AS)
    return Image.fromarray(numpy.round(levels / (_WHITE / 255)).astype(numpy.uint8))
