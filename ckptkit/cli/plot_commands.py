"""``plot``: accuracy against parameters or FLOPs, as a picture or a page."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ckptkit.base.parse import parse_inches
from ckptkit.cli.filters import (
    AtLeastOption,
    AtMostOption,
    CachedOption,
    FamilyOption,
    LeastTop1Option,
    MostTop1Option,
    PatternsArgument,
    PixelsOption,
    PosEmbOption,
    PretrainOption,
    SettingOption,
    VariantsOption,
    found_entries,
)
from ckptkit.cli.state import state_of


class Cost(str, Enum):
    """What the horizontal axis shows."""

    PARAMS = "params"
    FLOPS = "flops"


class Accuracy(str, Enum):
    """What the vertical axis shows."""

    TOP1 = "top1"
    TOP5 = "top5"


def register(app: typer.Typer) -> None:
    """Add this command to the root."""
    app.command(short_help="Draw accuracy against parameters or FLOPs.")(plot)


def plot(
    context: typer.Context,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="FILE.png, .svg, .pdf, or .html to look into.")
    ],
    patterns: PatternsArgument = None,
    family: FamilyOption = None,
    variant: VariantsOption = None,
    setting: SettingOption = None,
    pretrain: PretrainOption = None,
    min_params: AtLeastOption = None,
    max_params: AtMostOption = None,
    min_flops: AtLeastOption = None,
    max_flops: AtMostOption = None,
    min_top1: LeastTop1Option = None,
    max_top1: MostTop1Option = None,
    resolution: PixelsOption = None,
    pos_emb: PosEmbOption = None,
    cached: CachedOption = None,
    x: Annotated[Cost, typer.Option("--x", help="What the horizontal axis shows.")] = Cost.PARAMS,
    y: Annotated[Accuracy, typer.Option("--y", help="What the vertical axis shows.")] = Accuracy.TOP1,
    linear: Annotated[bool, typer.Option("--linear", help="No logarithmic axis.")] = False,
    no_labels: Annotated[bool, typer.Option("--no-labels", help="No names at the points.")] = False,
    no_pareto: Annotated[bool, typer.Option("--no-pareto", help="No Pareto front.")] = False,
    dark: Annotated[bool, typer.Option("--dark", help="Light on dark.")] = False,
    size: Annotated[
        str, typer.Option(metavar="WxH", help="Width and height of a picture in inches.")
    ] = "9x5.6",
    dpi: Annotated[int, typer.Option(help="Pixels per inch of a PNG.")] = 200,
    title: Annotated[
        str | None, typer.Option(help="Another title; an empty one leaves it out of a picture.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be drawn.")] = False,
) -> None:
    """Draw accuracy against parameters or FLOPs, for any choice of entries.

    The figures are the published ones. Entries at the same place share one marker. Pictures need matplotlib.
    An .html is one file that loads nothing and needs nothing but a browser.

    Examples: ckptkit plot -o accuracy.png · ckptkit plot --family moganet --x flops -o moganet.svg
    · ckptkit plot -o accuracy.html
    """
    from ckptkit.analysis.plot import FigureOptions, save_plot

    state = state_of(context)
    options = FigureOptions(
        log=not linear,
        labels=not no_labels,
        pareto=not no_pareto,
        dark=dark,
        size=parse_inches(size),
        dpi=dpi,
        title=title,
    )
    items = found_entries(
        state.rows(),
        patterns,
        cached=cached,
        family=family,
        variant=variant,
        setting=setting,
        pretrain_data=pretrain,
        min_params=min_params,
        max_params=max_params,
        min_flops=min_flops,
        max_flops=max_flops,
        min_top1=min_top1,
        max_top1=max_top1,
        resolution=resolution,
        pos_emb=pos_emb,
    )
    rows = [item.row for item in items]
    saved = save_plot(rows, output, x=x.value, y=y.value, options=options, force=force, dry_run=dry_run)
    shown = f"{saved.entries} entries at {saved.points} points"
    if saved.missing:
        state.output.note(saved.missing)
    if saved.unlabelled:
        state.output.note(
            f"{saved.unlabelled} points have no label for want of room; try a larger --size, or fewer entries"
        )
    state.output.note(f"would draw {shown} into {saved.path}" if dry_run else shown)
    state.output.result(
        {"path": str(saved.path), "dry_run": dry_run, "entries": saved.entries, "points": saved.points},
        *([] if dry_run else [str(saved.path)]),
    )
