"""Image files, decoded to upright RGB; whatever is damaged gets one kind of error."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.errors import FormatError, MissingDependencyError, NotFoundError

if TYPE_CHECKING:
    from PIL.Image import Image

_TOO_LARGE = "too many pixels for a test image"


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
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise MissingDependencyError("pillow", "image", "reading an image") from error

    called = name or (str(source) if isinstance(source, Path) else "image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
                upright: Any = ImageOps.exif_transpose(picture)
                return upright.convert("RGB")
    except FileNotFoundError as error:
        raise NotFoundError(f"{called}: no such image", hint="check the path") from error
    except UnidentifiedImageError as error:
        raise FormatError(called, "not an image that Pillow knows") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise FormatError(called, _TOO_LARGE, hint="give a smaller image") from error
    except Exception as error:
        # Pillow's decoders raise whatever a damaged file makes them raise (OSError, SyntaxError, ValueError,
        # struct.error, IndexError, zlib.error …); to the user all of them are one thing.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormatError(called, f"damaged image ({reason})") from error
