"""Small pictures between the lines, on terminals that can show them.

Which terminal it is, the environment says; nothing is asked of the terminal itself, whose answer might arrive
in the middle of something else.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from PIL.Image import Image

Renderer = Callable[["Image"], str]

_COLUMNS, _ROWS = 36, 14
"""Largest thumbnail, in cells of the terminal; a cell is about twice as high as wide."""

_PIXELS_PER_COLUMN = 10
"""Resolution of what a terminal gets that draws real pictures."""

_KITTY_CHUNK = 4096

_CUBE = (0, 95, 135, 175, 215, 255)
"""Levels of the 6×6×6 colours that xterm has from 16 on; from 232 on it has 24 greys, 8, 18 … 238."""


def choose_renderer(stream: TextIO, environment: Mapping[str, str], columns: int) -> Renderer | None:
    """How to show a picture on a stream; None where it cannot be, or is not wanted.

    Parameters
    ----------
    stream : TextIO
        Where the text will go: nothing is shown in a pipe.
    environment : mapping of str to str
        ``NO_COLOR``, ``TERM`` and what terminals say of themselves.
    columns : int
        Width of the terminal.

    Returns
    -------
    callable or None
        Makes of a picture the text to print, without the last line break.

    Notes
    -----
    Inside tmux and screen, which pass no pictures on, half blocks are drawn. kitty's protocol:
    https://sw.kovidgoyal.net/kitty/graphics-protocol/ (Ghostty speaks it too); iTerm2's:
    https://iterm2.com/documentation-images.html (WezTerm speaks it too).
    """
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    width = min(_COLUMNS, columns - 1)
    if not stream.isatty() or environment.get("NO_COLOR") or term == "dumb" or width < 1:
        return None
    if not _is_multiplexed(environment):
        if (
            "KITTY_WINDOW_ID" in environment
            or term in ("xterm-kitty", "xterm-ghostty")
            or program == "ghostty"
        ):
            return partial(kitty, columns=width)
        if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
            return partial(iterm, columns=width)
    if not (stream.encoding or "").lower().replace("-", "").startswith("utf8"):
        return None
    if environment.get("COLORTERM") in ("truecolor", "24bit") or "WT_SESSION" in environment:
        return partial(half_blocks, columns=width, colour=_true_colour)
    return partial(half_blocks, columns=width, colour=_of_256) if "256color" in term else None


def _is_multiplexed(environment: Mapping[str, str]) -> bool:
    inside = environment.get("TMUX") or environment.get("STY")
    return bool(inside) or environment.get("TERM", "").startswith(("screen", "tmux"))


def fitted(width: int, height: int, columns: int, rows: int = _ROWS) -> tuple[int, int]:
    """Columns and half rows that a picture takes, in its proportions; one of each at least.

    Examples
    --------
    >>> fitted(640, 480, 36), fitted(480, 640, 36), fitted(10_000, 1, 36)
    ((36, 27), (21, 28), (36, 1))
    """
    scale = min(columns / width, 2 * rows / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def half_blocks(picture: Image, *, columns: int, colour: Callable[[tuple[int, int, int]], str]) -> str:
    """Draw with ``▀``: the upper pixel in its foreground, the lower one in its background."""
    from PIL import Image

    width, height = fitted(picture.width, picture.height, columns)
    small = picture.resize((width, height), Image.Resampling.BOX).convert("RGB")
    pixels = [[small.getpixel((x, y)) for x in range(width)] for y in range(height)]
    lines = []
    for top in range(0, height, 2):
        lower = pixels[top + 1] if top + 1 < height else [None] * width
        cells = (
            f"\x1b[38;{colour(over)}{f';48;{colour(under)}' if under else ''}m▀"
            for over, under in zip(pixels[top], lower, strict=True)
        )
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def _true_colour(rgb: tuple[int, int, int]) -> str:
    return "2;" + ";".join(map(str, rgb))


def _of_256(rgb: tuple[int, int, int]) -> str:
    """The nearest of xterm's fixed colours: of the cube or of the greys."""
    places = [min(range(6), key=lambda i: abs(_CUBE[i] - level)) for level in rgb]
    grey = min(range(24), key=lambda i: abs(8 + 10 * i - sum(rgb) / 3))
    in_cube = sum((_CUBE[place] - level) ** 2 for place, level in zip(places, rgb, strict=True))
    in_greys = sum((8 + 10 * grey - level) ** 2 for level in rgb)
    if in_greys < in_cube:
        return f"5;{232 + grey}"
    return f"5;{16 + 36 * places[0] + 6 * places[1] + places[2]}"


def kitty(picture: Image, *, columns: int) -> str:
    """Transmit a PNG by kitty's protocol, in pieces of 4,096 characters; the terminal answers nothing."""
    width, half_rows = fitted(picture.width, picture.height, columns)
    content = base64.b64encode(_png(picture, width, half_rows)).decode()
    pieces = [content[start : start + _KITTY_CHUNK] for start in range(0, len(content), _KITTY_CHUNK)]
    controls = [f"a=T,f=100,q=2,c={width},r={_rows(half_rows)},"] + [""] * (len(pieces) - 1)
    return "".join(
        f"\x1b_G{control}m={int(number < len(pieces))};{piece}\x1b\\"
        for number, (control, piece) in enumerate(zip(controls, pieces, strict=True), start=1)
    )


def iterm(picture: Image, *, columns: int) -> str:
    """Transmit a PNG by iTerm2's protocol."""
    width, half_rows = fitted(picture.width, picture.height, columns)
    png = _png(picture, width, half_rows)
    facts = f"inline=1;size={len(png)};width={width};height={_rows(half_rows)};preserveAspectRatio=1"
    return f"\x1b]1337;File={facts}:{base64.b64encode(png).decode()}\x07"


def _rows(half_rows: int) -> int:
    return -(-half_rows // 2)


def _png(picture: Image, width: int, half_rows: int) -> bytes:
    box = (width * _PIXELS_PER_COLUMN, half_rows * _PIXELS_PER_COLUMN)
    if picture.width > box[0] or picture.height > box[1]:
        from PIL import ImageOps

        picture = ImageOps.contain(picture, box)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
