"""Pictures of heat maps: overlays, and sheets of several panels with a caption."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptkit.analysis.cam.colours import COLORMAPS, colour_table
from ckptkit.base.errors import UsageError
from ckptkit.base.tensors import Array
from ckptkit.base.text import escaped

if TYPE_CHECKING:
    from PIL.Image import Image

    from ckptkit.analysis.cam.heatmap import Heatmap

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
                raise UsageError(f"no {what} {value!r}", hint="one of " + ", ".join(known))
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha {self.alpha}", hint="a share from 0 to 1")


@dataclass(frozen=True)
class _Panel:
    """One picture of a sheet: what is written under it, or the colours' scale."""

    picture: Image
    label: str = ""
    scale: Array | None = None


def overlay(heatmap: Heatmap, style: Style) -> Image:
    """Mix the picture with the heat's colours, dark where there is no evidence; RGB, as large as it."""
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
    said = [(_class_said(one), one.method_title, _stage_said(one)) for one in heatmaps]
    differing = [len(set(values)) > 1 for values in zip(*said, strict=True)]
    labels = []
    for one, values in zip(heatmaps, said, strict=True):
        words = [value for value, differs in zip(values, differing, strict=True) if differs]
        labels.append(", ".join([*words, *(["no evidence"] if one.is_empty else [])]))
    shared = [None if differs else value for value, differs in zip(said[0], differing, strict=True)]
    whom, *how = shared
    caption = [
        ": ".join(part for part in (heatmaps[0].short_name, whom) if part),
        " at ".join(part for part in how if part),
    ]
    if heatmaps[0].synthetic:
        caption.append("synthetic weights: neither the class nor the heat means anything")
    return [line for line in caption if line], labels


def _class_said(heatmap: Heatmap) -> str:
    name = heatmap.class_name if heatmap.image_class is None else f"{heatmap.class_name} ({heatmap.index})"
    return f"{name} {heatmap.probability:.1%}" + (", predicted" if heatmap.predicted else "")


def _stage_said(heatmap: Heatmap) -> str:
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
