"""From entries to a file: a picture by matplotlib, or a page that needs nothing but a browser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ckptkit.analysis.plot.figure import FORMATS, FigureOptions, render, require_matplotlib
from ckptkit.analysis.plot.points import X_MEASURES, Y_MEASURES, collect, missing_note
from ckptkit.base.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from ckptkit.analysis.plot.points import Measure
    from ckptkit.registry import Entry

_PAGES = ("html", "htm")


@dataclass(frozen=True)
class Saved:
    """What was written, or would be."""

    path: Path
    points: int  # places with a marker
    entries: int  # entries at these places
    missing: str  # which entries are not shown, and why
    unlabelled: int = 0  # points for whose label there was no room


def save_plot(
    entries: Sequence[Entry],
    output: Path,
    *,
    x: str = "params",
    y: str = "top1",
    options: FigureOptions | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> Saved:
    """Draw accuracy against cost; the ending of ``output`` says how."""
    from ckptkit.base.files import StagedFile, refuse_existing

    options = options or FigureOptions()
    form = form_of(output)
    across, up = measure(x, X_MEASURES), measure(y, Y_MEASURES)
    if form in FORMATS:
        require_matplotlib()
    points = collect(entries, across, up)
    if not entries:
        raise NotFoundError(
            "no entry to draw", hint="'ckptkit list' with the same filters says what there is"
        )
    if not points.points:
        raise UsageError(
            f"nothing to draw: none of {len(entries)} entries has published {across.short} and {up.short}",
            hint="choose other entries, --x or --y",
        )
    drawn = sum(len(point.entries) for point in points.points)
    saved = Saved(output, len(points.points), drawn, missing_note(points, across, up))
    if dry_run:
        return saved
    refuse_existing(output, force=force)
    if form in FORMATS:
        data, unlabelled = render(points, across, up, options, form)
        saved = Saved(output, saved.points, drawn, saved.missing, unlabelled)
    else:
        from ckptkit.analysis.plot.page import plot_page

        data = plot_page(entries, x=across.name, y=up.name, options=options).encode()
    with StagedFile(output, force=force) as file:
        file.append(data)
        file.commit()
    return saved


def form_of(output: Path) -> str:
    """Return what the ending of a name asks for: png, svg, pdf or html."""
    ending = output.suffix.lower().removeprefix(".")
    if ending not in (*FORMATS, *_PAGES):
        raise UsageError(
            f"cannot tell the picture format from {str(output)!r}",
            hint="name it .png, .svg, .pdf or .html",
        )
    return "html" if ending in _PAGES else ending


def measure(name: str, measures: dict[str, Measure]) -> Measure:
    """Return what an axis shows."""
    if name not in measures:
        raise UsageError(f"unknown axis {name!r}", hint=f"choose from {', '.join(measures)}")
    return measures[name]
