"""Make the pictures of README and documentation again, from what the commands really print and draw.

Run it in an environment with ckptkit's extra ``all``: ``python docs/pictures/make.py [NAME…]``. Nothing is
downloaded: ``parity`` and ``cam`` use synthetic weights, and the pictures say so.
"""

from __future__ import annotations

import io
import os
import pty
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, SVG_EXPORT_THEME
from rich.text import Text

HERE = Path(__file__).resolve().parent

TERMINALS = {
    "list": ("ckptkit list --family moat --min-top1 82", 104),
    "parity": ("ckptkit parity tiny-moat0-256 --synthetic --quiet", 100),
}
"""Picture → the command it shows and the width of its terminal."""

THEMES = {"": DEFAULT_TERMINAL_THEME, "-dark": SVG_EXPORT_THEME}
"""What a picture's name ends with → its colours; a page shows the one that suits it."""

SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: "Fira Code", "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
  <rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""rich's own frame without its web fonts: a picture in a README loads nothing."""


def printed_on_a_terminal(command: str, width: int) -> str:
    """Run a command on a terminal of this width; returns what it printed there, colours and all."""
    ours, theirs = pty.openpty()
    with tempfile.TemporaryDirectory() as home:
        environment = {
            **os.environ,
            "CKPTKIT_HOME": home,
            "COLUMNS": str(width),
            "LINES": "60",
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
        }
        program = [sys.executable, "-m", "ckptkit.cli.app", *shlex.split(command)[1:]]
        child = subprocess.Popen(program, stdout=theirs, stderr=subprocess.DEVNULL, env=environment)
        os.close(theirs)
        read = _everything(ours)
        if child.wait() != 0:
            raise SystemExit(f"{command} returned {child.returncode}")
    return read.decode().replace("\r\n", "\n").strip("\n")


def _everything(descriptor: int) -> bytes:
    pieces = []
    while True:
        try:
            piece = os.read(descriptor, 1 << 16)
        except OSError:  # how Linux says that the other end is closed
            piece = b""
        if not piece:
            os.close(descriptor)
            return b"".join(pieces)
        pieces.append(piece)


def terminal_pictures(command: str, width: int) -> dict[str, str]:
    """Draw a terminal in which a command was run, in each theme, as wide as its longest line."""
    printed = Text.from_ansi(printed_on_a_terminal(command, width))
    lines = [Text(f"$ {command}", style="bold"), *printed.split(allow_blank=True)]
    console = Console(
        record=True,
        width=max(line.cell_len for line in lines) + 1,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
    )
    for line in lines:
        console.print(line, soft_wrap=True)
    return {
        end: console.export_svg(title="", theme=theme, code_format=SVG, unique_id="ckptkit", clear=False)
        for end, theme in THEMES.items()
    }


def accuracy_picture(target: Path) -> None:
    """Draw the accuracy of everything published against its parameters."""
    _run(f"ckptkit plot -o {target} --force {'--dark' if target.stem.endswith('-dark') else ''}")


def heat_map(target: Path) -> None:
    """Draw where a model, of which only the head is fitted, finds a traffic light in a drawing."""
    sys.path.insert(0, str(HERE))
    import drawings

    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "drawn.png"
        drawings.shown().save(drawn)
        model = drawings.write_model(Path(folder))
        _run(
            f"ckptkit cam {model} {drawn} --set attn_force_fp32=true --target 'traffic light' "
            f"--layout side-by-side -o {target} --force"
        )


def _run(command: str) -> None:
    program = [sys.executable, "-m", "ckptkit.cli.app", "--quiet", *shlex.split(command)[1:]]
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL)


DRAWINGS: dict[str, Callable[[Path], None]] = {
    "accuracy.svg": accuracy_picture,
    "accuracy-dark.svg": accuracy_picture,
    "heat-map.png": heat_map,
}


def main(names: list[str]) -> None:
    """Make the pictures of these names, or all."""
    for name, (command, width) in TERMINALS.items():
        if not names or name in names:
            for end, picture in terminal_pictures(command, width).items():
                (HERE / f"{name}{end}.svg").write_text(picture, encoding="utf-8")
                print(HERE / f"{name}{end}.svg")
    for name, draw in DRAWINGS.items():
        if not names or name in names:
            draw(HERE / name)
            print(HERE / name)


if __name__ == "__main__":
    main(sys.argv[1:])
