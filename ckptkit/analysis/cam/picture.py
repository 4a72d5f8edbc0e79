"""Heat maps as data and as pictures: colour tables, overlays, sheets with a caption, files.

Lightness of the colour tables rises evenly with the value, so that no step is seen where none is. Each is
computed from a few control points in CIELAB (D65 white): lightness is a straight line, a* and b* are
interpolated between the points. Colour blind people and grey prints keep the order of the values.
"""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from ckptkit._version import __version__
from ckptkit.analysis.cam.methods import METHODS
from ckptkit.analysis.drawing import picture_kind, write_picture
from ckptkit.base.errors import UsageError, choose_from, one_of
from ckptkit.base.tensors import Array
from ckptkit.base.text import escaped
from ckptkit.models.images.classes import ImageClass

if TYPE_CHECKING:
    from PIL.Image import Image

_ROWS = ("top", "middle", "bottom")
_COLUMNS = ("left", "centre", "right")


@dataclass(frozen=True)
class Spot:
    """A place in the picture as the model saw it."""

    x: float  # pixels from the left edge
    y: float  # pixels from the top edge
    width: int  # size of the picture, pixels
    height: int

    @property
    def words(self) -> str:
        """Which ninth of the picture it is in.

        >>> Spot(200, 20, 224, 224).words
        'top right'
        """
        row = _ROWS[min(int(3 * self.y / self.height), 2)]
        column = _COLUMNS[min(int(3 * self.x / self.width), 2)]
        return "centre" if (row, column) == ("middle", "centre") else f"{row} {column}"

    def to_json(self) -> dict[str, Any]:
        """``x``, ``y`` in pixels, and a description."""
        return {"x": round(self.x, 2), "y": round(self.y, 2), "words": self.words}


@dataclass(frozen=True, eq=False, repr=False)
class Heatmap:
    """Where in a picture one method finds the evidence for a class, at one stage."""

    name: str  # the entry's id, or the file: whose weights
    picture: Image  # the picture as the model saw it: resized and cut, before normalization
    # ``(h, w)`` float32 at the stage's resolution, 0 (no evidence, or evidence against) to 1 (most)
    heat: Array
    # The largest value before the map was scaled to 1, in units of the class's logit (of the map itself for
    # ``eigencam``)
    strength: float
    index: int  # the class, by its place among the logits
    image_class: ImageClass | None  # the same with its names
    probability: float  # the model's, of this class
    predicted: bool  # whether it is the class the model finds most probable
    method: str  # ``gradcam`` …
    stage: str  # ``stage1`` …
    synthetic: bool = False  # whether the weights are random numbers: the heat means nothing then
    preprocessing: str = field(default="", repr=False)

    @property
    def is_empty(self) -> bool:
        """Whether the heat is zero everywhere: nothing in the picture speaks for the class."""
        return self.strength <= 0

    @property
    def short_name(self) -> str:
        """The id, or the file without its folders: what a picture that is passed on may tell."""
        return PurePath(self.name).name

    @property
    def class_name(self) -> str:
        """Name of the class, or ``class 7`` where it has none."""
        return self.image_class.name if self.image_class else f"class {self.index}"

    @property
    def method_title(self) -> str:
        """The method as its authors call it."""
        return METHODS[self.method].title

    @property
    def peak(self) -> Spot | None:
        """Where the heat is highest: the middle of that cell; None without heat."""
        if self.is_empty:
            return None
        row, column = divmod(int(self.heat.argmax()), self.heat.shape[1])
        return self._spot(row, column)

    @property
    def centroid(self) -> Spot | None:
        """Mean place, weighted by the heat; None without heat."""
        if self.is_empty:
            return None
        import numpy

        heat = self.heat.astype(numpy.float64)
        total = heat.sum()
        rows, columns = numpy.arange(heat.shape[0]), numpy.arange(heat.shape[1])
        return self._spot(heat.sum(axis=1) @ rows / total, heat.sum(axis=0) @ columns / total)

    def _spot(self, row: float, column: float) -> Spot:
        width, height = self.picture.size
        x = (float(column) + 0.5) * width / self.heat.shape[1]
        y = (float(row) + 0.5) * height / self.heat.shape[0]
        return Spot(x, y, width, height)

    def upsampled(self) -> Array:
        """The heat at the picture's resolution, (H, W) float32: bilinear, half-pixel centres, edges clamped.

        Bicubic interpolation would overshoot and leave rings around every peak.
        """
        import numpy
        from PIL import Image

        drawn = Image.fromarray(self.heat).resize(self.picture.size, Image.Resampling.BILINEAR)
        larger: Array = numpy.asarray(drawn, dtype=numpy.float32)
        return larger

    def __repr__(self) -> str:
        where = f"most heat {self.peak.words}" if self.peak else "no heat"
        return (
            f"<Heatmap {escaped(self.short_name)}: {self.class_name} {self.probability:.2%}, "
            f"{self.method_title} at {self.stage}, {where}>"
        )

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.overlay().save(file, "PNG")
        return file.getvalue()

    def overlay(self, alpha: float = 0.5, colormap: str = "ember") -> Image:
        """Lay the heat over the picture."""
        return overlay(self, Style(alpha=alpha, colormap=colormap))

    def save(
        self,
        path: str | Path,
        *,
        layout: str = "overlay",
        alpha: float = 0.5,
        colormap: str = "ember",
        force: bool = False,
    ) -> Path:
        """Write a picture of it: PNG, JPEG or WebP by the name's ending."""
        picture_kind(Path(path), ENDINGS)
        style = Style(layout=layout, alpha=alpha, colormap=colormap)
        return save_picture(compose([self], style), [self], Path(path), force=force)

    def to_json(self) -> dict[str, Any]:
        """Everything but the maps, as JSON has it."""
        known = self.image_class
        return {
            "name": self.name,
            "synthetic": self.synthetic,
            "class": {
                "index": self.index,
                "wnid": known.wnid if known else None,
                "name": known.name if known else None,
            },
            "probability": self.probability,
            "predicted": self.predicted,
            "method": self.method,
            "stage": self.stage,
            "grid": list(self.heat.shape),
            "input": [self.picture.height, self.picture.width],
            "preprocessing": self.preprocessing,
            "strength": self.strength,
            "peak": self.peak.to_json() if self.peak else None,
            "centroid": self.centroid.to_json() if self.centroid else None,
        }


_LIGHTNESS = (12.0, 96.0)
"""L* of the values 0 and 1: enough below white and above black to show on either."""

_CONTROL_POINTS: dict[str, tuple[tuple[float, float], ...]] = {
    "ember": ((10, -22), (38, -34), (58, -4), (60, 34), (42, 60), (14, 62), (-4, 26)),
    "lagoon": ((8, -24), (4, -34), (-14, -22), (-30, 4), (-38, 34), (-28, 58), (-8, 44)),
    "grey": ((0, 0), (0, 0)),
}
"""a* and b* of each table at even distances."""

COLORMAPS = tuple(_CONTROL_POINTS)
_D65 = (0.95047, 1.0, 1.08883)
_XYZ_TO_RGB = (
    (3.2404542, -1.5371385, -0.4985314),
    (-0.9692660, 1.8760108, 0.0415560),
    (0.0556434, -0.2040259, 1.0572252),
)
"""Linear sRGB from CIE XYZ (IEC 61966-2-1)."""


@cache
def colour_table(name: str) -> Array:
    """256 colours from no heat to most, (256, 3) uint8 sRGB.

    >>> colour_table("grey")[[0, 255]].tolist()
    [[31, 31, 31], [243, 243, 243]]
    """
    import numpy

    points = numpy.array(_CONTROL_POINTS[one_of("colormap", name, COLORMAPS)], dtype=numpy.float64)
    values = numpy.linspace(0, 1, 256)
    at = numpy.linspace(0, 1, len(points))
    a, b = (numpy.interp(values, at, points[:, axis]) for axis in (0, 1))
    lightness = _LIGHTNESS[0] + (_LIGHTNESS[1] - _LIGHTNESS[0]) * values
    rgb = _lab_to_srgb(numpy.stack([lightness, a, b], axis=1))
    table: Array = numpy.rint(rgb * 255).astype(numpy.uint8)
    table.flags.writeable = False
    return table


def _lab_to_srgb(lab: Array) -> Array:
    """CIELAB (n, 3) to sRGB in [0, 1]; values outside the gamut are clipped."""
    import numpy

    middle = (lab[:, 0] + 16) / 116
    roots = numpy.stack([middle + lab[:, 1] / 500, middle, middle - lab[:, 2] / 200], axis=1)
    linear_part = 3 * (6 / 29) ** 2 * (roots - 4 / 29)
    xyz = numpy.where(roots > 6 / 29, roots**3, linear_part) * _D65
    linear = (xyz @ numpy.array(_XYZ_TO_RGB).T).clip(0, 1)
    curved = 1.055 * linear ** (1 / 2.4) - 0.055
    encoded: Array = numpy.where(linear <= 0.0031308, 12.92 * linear, curved)
    return encoded


LAYOUTS = ("overlay", "side-by-side", "heat")

_PAPER, _INK, _PALE = (255, 255, 255), (32, 32, 36), (110, 110, 118)
_MARGIN, _GAP, _BAR = 10, 8, 8
_SMALLEST_PANEL = 160
"""Width in pixels below which the panels of a sheet are enlarged: a caption has no room under less."""
_PANELS_A_ROW = 4
_TEXT_SIZES = (13, 20)
"""Smallest and largest size of the text, pixels."""


@dataclass(frozen=True)
class Style:
    """How heat is shown."""

    layout: str = "overlay"
    alpha: float = 0.5  # share of the heat's colours in an overlay, 0 to 1
    colormap: str = COLORMAPS[0]  # one of `COLORMAPS`

    def __post_init__(self) -> None:
        for what, value, known in (
            ("layout", self.layout, LAYOUTS),
            ("colormap", self.colormap, COLORMAPS),
        ):
            if value not in known:
                raise UsageError(f"unknown {what} {value!r}", hint=choose_from(known))
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"invalid alpha {self.alpha}", hint="use a number from 0 to 1")


@dataclass(frozen=True)
class _Panel:
    """One picture of a sheet: what is written under it, or the colours' scale."""

    picture: Image
    label: str = ""
    scale: Array | None = None


def overlay(heatmap: Heatmap, style: Style) -> Image:
    """Mix the picture with the heat's colours, dark without evidence; RGB, of its size."""
    import numpy
    from PIL import Image

    picture = numpy.asarray(heatmap.picture.convert("RGB"), dtype=numpy.float32)
    mixed = picture * (1 - style.alpha) + _coloured(heatmap.upsampled(), style) * style.alpha
    return Image.fromarray(numpy.rint(mixed).astype(numpy.uint8))


def heat_picture(heatmap: Heatmap, style: Style) -> Image:
    """The heat alone, in colours; RGB, of the picture's size."""
    from PIL import Image

    return Image.fromarray(_coloured(heatmap.upsampled(), style))


def _coloured(heat: Array, style: Style) -> Array:
    import numpy

    table = colour_table(style.colormap)
    coloured: Array = table[numpy.rint(heat * (len(table) - 1)).astype(numpy.intp)]
    return coloured


def compose(heatmaps: Sequence[Heatmap], style: Style) -> Image:
    """Make one picture of heat maps of one picture.

    A single overlay, or the heat alone, stays as it is, at the size of the model's input. Everything else
    becomes a sheet with a caption: what all maps have in common below, what tells them apart under each.
    """
    if len(heatmaps) == 1 and style.layout != "side-by-side":
        return _drawn(heatmaps[0], style)
    common, labels = caption_of(heatmaps)
    if style.layout == "side-by-side":
        table = colour_table(style.colormap)
        rows = [
            [
                _Panel(heatmap.picture),
                _Panel(heat_picture(heatmap, style), scale=table),
                _Panel(overlay(heatmap, style), label),
            ]
            for heatmap, label in zip(heatmaps, labels, strict=True)
        ]
    else:
        panels = [
            _Panel(_drawn(heatmap, style), label) for heatmap, label in zip(heatmaps, labels, strict=True)
        ]
        columns = math.ceil(len(panels) / math.ceil(len(panels) / _PANELS_A_ROW))
        rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    return _sheet(rows, common)


def _drawn(heatmap: Heatmap, style: Style) -> Image:
    return overlay(heatmap, style) if style.layout != "heat" else heat_picture(heatmap, style)


def caption_of(heatmaps: Sequence[Heatmap]) -> tuple[list[str], list[str]]:
    """The caption's lines, and the label of each map: in which of class, method and stage it differs."""
    facts = [(_class_text(one), one.method_title, _stage_text(one)) for one in heatmaps]
    differing = [len(set(values)) > 1 for values in zip(*facts, strict=True)]
    labels = []
    for one, values in zip(heatmaps, facts, strict=True):
        words = [value for value, differs in zip(values, differing, strict=True) if differs]
        labels.append(", ".join([*words, *(["no evidence"] if one.is_empty else [])]))
    shared = [None if differs else value for value, differs in zip(facts[0], differing, strict=True)]
    whom, *how = shared
    caption = [
        ": ".join(part for part in (heatmaps[0].short_name, whom) if part),
        " at ".join(part for part in how if part),
    ]
    if heatmaps[0].synthetic:
        caption.append("synthetic weights: neither the class nor the heat means anything")
    return [line for line in caption if line], labels


def _class_text(heatmap: Heatmap) -> str:
    name = heatmap.class_name if heatmap.image_class is None else f"{heatmap.class_name} ({heatmap.index})"
    return f"{name} {heatmap.probability:.1%}" + (", predicted" if heatmap.predicted else "")


def _stage_text(heatmap: Heatmap) -> str:
    rows, columns = heatmap.heat.shape
    return f"{heatmap.stage} ({rows}x{columns})"


def _sheet(rows: Sequence[Sequence[_Panel]], caption: Sequence[str]) -> Image:
    """Panels in rows on white paper, each with its label, and the caption below."""
    from PIL import Image, ImageDraw

    width, height = _panel_size(rows[0][0].picture)
    writer = _Writer(min(max(width // 17, _TEXT_SIZES[0]), _TEXT_SIZES[1]))
    columns = max(map(len, rows))
    whole_width = 2 * _MARGIN + columns * width + (columns - 1) * _GAP
    wrapped = [[writer.wrap(panel.label, width) for panel in row] for row in rows]
    below = [
        max(max(len(lines) for lines in row) * writer.line, _scale_height(panels, writer))
        for row, panels in zip(wrapped, rows, strict=True)
    ]
    words = [line for text in caption for line in writer.wrap(text, whole_width - 2 * _MARGIN)]
    whole_height = 2 * _MARGIN + sum(height + room + _GAP for room in below) + len(words) * writer.line
    sheet = Image.new("RGB", (whole_width, whole_height), _PAPER)
    top = _MARGIN
    for panels, labels, room in zip(rows, wrapped, below, strict=True):
        for column, (panel, lines) in enumerate(zip(panels, labels, strict=True)):
            left = _MARGIN + column * (width + _GAP)
            sheet.paste(panel.picture.resize((width, height), Image.Resampling.BICUBIC), (left, top))
            _write_below(sheet, writer, panel, lines, (left, top + height + _GAP // 2, width))
        top += height + room + _GAP
    writer.write(ImageDraw.Draw(sheet), _MARGIN, top, words, _INK)
    return sheet


def _panel_size(picture: Image) -> tuple[int, int]:
    """Width and height of a picture on a sheet: its own, or a whole multiple when it is very small."""
    factor = math.ceil(_SMALLEST_PANEL / picture.width)
    return picture.width * factor, picture.height * factor


def _scale_height(panels: Sequence[_Panel], writer: _Writer) -> int:
    return _BAR + writer.line if any(panel.scale is not None for panel in panels) else 0


def _write_below(
    sheet: Image, writer: _Writer, panel: _Panel, lines: Sequence[str], place: tuple[int, int, int]
) -> None:
    """A panel's label, or the colours from no evidence to most; ``place`` is left, top and width."""
    from PIL import Image, ImageDraw

    left, top, width = place
    draw = ImageDraw.Draw(sheet)
    writer.write(draw, left, top, lines, _INK)
    if panel.scale is not None:
        bar = Image.fromarray(panel.scale[None]).resize((width, _BAR), Image.Resampling.BILINEAR)
        sheet.paste(bar, (left, top))
        right = left + width - math.ceil(writer.font.getlength("most"))
        writer.write(draw, left, top + _BAR, ["no evidence"], _PALE)
        writer.write(draw, right, top + _BAR, ["most"], _PALE)


def _in_letters_there_are(text: str) -> str:
    """Spell a text in ASCII, all that Pillow's own font has.

    >>> _in_letters_there_are("chô-chô (1×7)")
    'cho-cho (1?7)'
    """
    parts = unicodedata.normalize("NFKD", text)
    return "".join(c if c.isascii() else "?" for c in parts if not unicodedata.combining(c))


class _Writer:
    """Pillow's own font at one size."""

    def __init__(self, size: int) -> None:
        from PIL import ImageFont

        self.font: Any = ImageFont.load_default(size)
        self.line = round(size * 1.35)

    def wrap(self, text: str, width: int) -> list[str]:
        """Break a text into lines of at most this many pixels, at blanks where there are any."""
        lines: list[str] = []
        for word in _in_letters_there_are(escaped(text, "figure")).split():
            first, *rest = self._pieces(word, width)
            joined = f"{lines[-1]} {first}" if lines else first
            if lines and self.font.getlength(joined) <= width:
                lines[-1] = joined
            else:
                lines.append(first)
            lines += rest
        return lines

    def _pieces(self, word: str, width: int) -> list[str]:
        """Cut a word that is wider than a line."""
        pieces = [""]
        for letter in word:
            if pieces[-1] and self.font.getlength(pieces[-1] + letter) > width:
                pieces.append("")
            pieces[-1] += letter
        return pieces

    def write(
        self, draw: Any, left: int, top: int, lines: Sequence[str], colour: tuple[int, int, int]
    ) -> None:
        """Write lines below one another."""
        for number, line in enumerate(lines):
            draw.text((left, top + number * self.line), line, fill=colour, font=self.font)


ENDINGS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Kinds of picture by the ending of the name, as Pillow calls them."""

_DESCRIPTION, _SOFTWARE = 0x010E, 0x0131
"""EXIF (TIFF) tags ImageDescription and Software."""


def describe(heatmaps: Sequence[Heatmap]) -> dict[str, str]:
    """The metadata to write into a picture; several values of one kind are separated by semicolons."""

    def each(values: Sequence[str]) -> str:
        return "; ".join(dict.fromkeys(values))

    metadata = {
        "entry": heatmaps[0].short_name,
        "class": each([f"{one.index} {one.class_name}" for one in heatmaps]),
        "method": each([one.method for one in heatmaps]),
        "stage": each([one.stage for one in heatmaps]),
        "preprocessing": heatmaps[0].preprocessing,
    }
    if heatmaps[0].synthetic:
        metadata["weights"] = "synthetic"
    return {**metadata, "Software": f"ckptkit {__version__}"}


def save_picture(picture: Image, heatmaps: Sequence[Heatmap], path: Path, *, force: bool = False) -> Path:
    """Write a picture whole or not at all; PNG, JPEG or WebP by the name's ending."""
    data = encoded(picture, describe(heatmaps), picture_kind(path, ENDINGS))
    return write_picture(data, path, force=force)


def encoded(picture: Image, metadata: dict[str, str], kind: str) -> bytes:
    """A picture's bytes in one of `ENDINGS`' kinds, with its metadata."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    options: dict[str, Any]
    if kind == "PNG":
        chunks = PngInfo()
        for key, value in metadata.items():
            chunks.add_text(key, value)
        options = {"pnginfo": chunks, "optimize": True}
    else:
        exif = Image.Exif()
        exif[_SOFTWARE] = metadata["Software"]
        exif[_DESCRIPTION] = ", ".join(
            f"{key} {value}" for key, value in metadata.items() if key != "Software"
        )
        options = {"exif": exif.tobytes(), "quality": 92}
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
