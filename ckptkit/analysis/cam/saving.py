"""Writing a picture of heat maps, with what it shows in its metadata."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit._version import __version__
from ckptkit.base.errors import UsageError
from ckptkit.base.files import StagedFile

if TYPE_CHECKING:
    from PIL.Image import Image

    from ckptkit.analysis.cam.heatmap import Heatmap

ENDINGS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Kinds of picture by the ending of the name, as Pillow calls them."""

_DESCRIPTION, _SOFTWARE = 0x010E, 0x0131
"""EXIF (TIFF) tags ImageDescription and Software."""


def require_ending(path: Path) -> str:
    """Which kind of picture a name asks for.

    >>> require_ending(Path("out.JPG"))
    'JPEG'
    """
    kind = ENDINGS.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"{path}: no picture ends so", hint="end it with " + ", ".join(ENDINGS))
    return kind


def describe(heatmaps: Sequence[Heatmap]) -> dict[str, str]:
    """What the metadata says of a picture; several values of one kind are separated by semicolons."""

    def each(values: Sequence[str]) -> str:
        return "; ".join(dict.fromkeys(values))

    said = {
        "entry": heatmaps[0].short_name,
        "class": each([f"{one.index} {one.class_name}" for one in heatmaps]),
        "method": each([one.method for one in heatmaps]),
        "stage": each([one.stage for one in heatmaps]),
        "preprocessing": heatmaps[0].preprocessing,
    }
    if heatmaps[0].synthetic:
        said["weights"] = "synthetic"
    return {**said, "Software": f"ckptkit {__version__}"}


def save_picture(picture: Image, heatmaps: Sequence[Heatmap], path: Path, *, force: bool = False) -> Path:
    """Write a picture whole or not at all; PNG, JPEG or WebP by the name's ending."""
    kind = require_ending(path)
    with StagedFile(path, force=force) as staged:
        staged.append(encoded(picture, describe(heatmaps), kind))
        return staged.commit()


def encoded(picture: Image, said: dict[str, str], kind: str) -> bytes:
    """A picture's bytes in one of `ENDINGS`' kinds, with its metadata."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    options: dict[str, Any]
    if kind == "PNG":
        chunks = PngInfo()
        for key, value in said.items():
            chunks.add_text(key, value)
        options = {"pnginfo": chunks, "optimize": True}
    else:
        exif = Image.Exif()
        exif[_SOFTWARE] = said["Software"]
        exif[_DESCRIPTION] = ", ".join(f"{key} {value}" for key, value in said.items() if key != "Software")
        options = {"exif": exif.tobytes(), "quality": 92}
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
