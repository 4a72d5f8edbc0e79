"""``plot`` and ``logs``: published accuracy as a picture or a page, and how a checkpoint was trained."""

from __future__ import annotations

import math
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ckptkit.base.parse import parse_inches
from ckptkit.base.shown import Column
from ckptkit.base.text import counted, csv_text
from ckptkit.cli.completion import complete_logs, complete_metrics
from ckptkit.cli.options import (
    EntryFilter,
    Form,
    PatternsArgument,
    file_to_write,
    state_of,
)
from ckptkit.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ckptkit.analysis.logs.readers import Epoch, TrainingLog


class Cost(str, Enum):
    """What the horizontal axis shows."""

    PARAMS = "params"
    FLOPS = "flops"


def register(app: typer.Typer) -> None:
    """Add this command to the root."""
    app.command(short_help="Draw accuracy against parameters or FLOPs.")(plot)
    app.command(short_help="Show how a checkpoint was trained.")(logs)


def plot(
    context: typer.Context,
    output: Annotated[
        Path, file_to_write("--output", "-o", help="FILE.png, .svg, .pdf, or .html for an interactive plot.")
    ],
    patterns: PatternsArgument = None,
    where: EntryFilter = EntryFilter(),
    x: Annotated[Cost, typer.Option("--x", help="What the horizontal axis shows.")] = Cost.PARAMS,
    y: Annotated[
        str,
        typer.Option(
            "--y",
            metavar="METRIC",
            help="What the vertical axis shows: top1, top5 or a published metric such as box_mAP.",
            autocompletion=complete_metrics,
        ),
    ] = "top1",
    linear: Annotated[bool, typer.Option("--linear", help="Use linear axes.")] = False,
    no_labels: Annotated[bool, typer.Option("--no-labels", help="Do not label the points.")] = False,
    no_pareto: Annotated[bool, typer.Option("--no-pareto", help="Do not draw the Pareto front.")] = False,
    dark: Annotated[bool, typer.Option("--dark", help="Use a dark background.")] = False,
    size: Annotated[
        str, typer.Option(metavar="WxH", help="Width and height of a picture in inches.")
    ] = "9x5.6",
    dpi: Annotated[int, typer.Option(help="Pixels per inch of a PNG.")] = 200,
    title: Annotated[str | None, typer.Option(help="Title of the plot; an empty one omits it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be drawn.")] = False,
) -> None:
    """Draw accuracy, or another published metric, against parameters or FLOPs, for any choice of entries.

    The figures are the published ones. Entries at the same place share one marker. Pictures need matplotlib.
    An .html is one file that loads nothing and needs nothing but a browser.

    Examples: ckptkit plot -o accuracy.png · ckptkit plot --family moganet --x flops -o moganet.svg
    · ckptkit plot -o accuracy.html · ckptkit plot --y box_mAP -o detectors.png
    """
    from ckptkit.analysis.plot.figure import save_plot
    from ckptkit.analysis.plot.points import FigureOptions

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
    items = where.of(state.registry(), patterns)
    rows = [item.row for item in items]
    saved = save_plot(rows, output, x=x.value, y=y, options=options, force=force, dry_run=dry_run)
    shown = f"{counted(saved.entries, 'entry')} at {counted(saved.points, 'point')}"
    if saved.missing:
        state.output.note(saved.missing)
    if saved.unlabelled:
        state.output.note(
            f"{counted(saved.unlabelled, 'point')} left without a name: no room; try a larger "
            "--size, or fewer entries"
        )
    state.output.note(f"would draw {shown} into {saved.path}" if dry_run else shown)
    state.output.result(
        {"path": str(saved.path), "dry_run": dry_run, "entries": saved.entries, "points": saved.points},
        *([] if dry_run else [str(saved.path)]),
    )


_HEADINGS = {
    "train_loss": "training loss",
    "val_loss": "validation loss",
    "top1": "top-1",
    "top5": "top-5",
    "ema_val_loss": "validation loss (ema)",
    "ema_top1": "top-1 (ema)",
    "ema_top5": "top-5 (ema)",
    "lr": "learning rate",
    "seconds": "time",
}


def logs(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="ID|FILE",
            help="An entry's id, or a .log.json of mmcv or summary.csv of timm.",
            autocompletion=complete_logs,
        ),
    ],
    output: Annotated[
        Path | None,
        file_to_write("--output", "-o", metavar="PICTURE", help="Also draw it: a .png, .svg or .pdf file."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The figure that decides the best epoch; an unknown one lists them all."
        ),
    ] = None,
    all_epochs: Annotated[bool, typer.Option("--all-epochs", help="A row for every epoch.")] = False,
    every: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="A row for every N-th epoch, and the last.")
    ] = None,
    form: Annotated[Form, typer.Option("--format", help="What to print.")] = Form.TABLE,
    refresh: Annotated[bool, typer.Option("--refresh", help="Fetch the log again, even if cached.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing picture.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show which picture would be written; write none.")
    ] = False,
) -> None:
    """Show how a checkpoint was trained: its best and its last epoch beside the published accuracy.

    Reads the training log that is published beside the checkpoint (fetched once, then cached), or a log of
    your own. Drawing needs matplotlib.

    Examples: ckptkit logs moganet-xt-224 · ckptkit logs moganet-xt-224 --every 50 -o log.png
    """
    from ckptkit.analysis.drawing import picture_kind, require_matplotlib, write_picture
    from ckptkit.analysis.logs.figure import PURPOSE, draw_log
    from ckptkit.analysis.logs.log import read_log
    from ckptkit.base.files import refuse_existing

    state = state_of(context)
    if output is not None:
        kind = picture_kind(output)
        require_matplotlib(PURPOSE)
        refuse_existing(output, force=force)
    log = read_log(what, state.workspace(), refresh=refresh)
    log.best(metric)  # refuses a figure that is not there, before anything is printed
    rows = _chosen_epochs(log, every, everything=all_epochs or state.output.verbose)
    people = partial(print_log, state.output, log, rows, metric)
    if form is Form.CSV:
        people = partial(state.output.document, as_csv(log, rows or log.epochs))
    state.output.result(log.to_json(metric), people, json=form is Form.JSON)
    if output is not None and not dry_run:
        write_picture(draw_log(log, kind, metric=metric), output, force=force)
    if output is not None:
        state.output.note(f"{'would write' if dry_run else 'wrote'} {output}")


def _chosen_epochs(log: TrainingLog, every: int | None, *, everything: bool) -> list[Epoch]:
    """The epochs to print in rows of their own: none but for ``--every`` and ``--all-epochs``."""
    if every is None:
        return list(log.epochs) if everything else []
    return [epoch for epoch in log.epochs if epoch.number % every == 0 or epoch is log.last]


def print_log(output: Output, log: TrainingLog, rows: Sequence[Epoch], metric: str | None = None) -> None:
    """Print the summary of a log, after the chosen rows."""
    from ckptkit.analysis.logs.readers import OF_DENSE_TASKS

    names = [name for name in (*_HEADINGS, *OF_DENSE_TASKS) if log.has(name)]
    name = metric or log.metric
    if name is None:
        names = log.figures()
    elif name not in names:
        names.insert(0, name)
    best = log.best(metric)
    first = log.epochs[0].number
    output.text(
        f"{log.name}: {log.framework} log, {counted(len(log.epochs), 'epoch')} ({first} to {log.last.number})"
    )
    columns = [Column(""), Column("epoch", numeric=True)]
    columns += [Column(_HEADINGS.get(name, name), numeric=True) for name in names]
    table = [_epoch_row("", epoch, names) for epoch in rows]
    if best is not None:
        table.append(_epoch_row("best", best, names))
    table.append(_epoch_row("last", log.last, names))
    if any(log.published(name) is not None for name in names):
        table.append(
            ["published", "", *(_figure_cell(name, log.published(name), absent="") for name in names)]
        )
    output.table(columns, table)
    output.text(_log_verdict(log, best, name))
    for remark in log.remarks:
        output.note(f"{log.path.name}: {remark}")
    if log.diverged:
        output.warn(f"the loss is not a finite number in {_epochs(log.diverged)}")


def _log_verdict(log: TrainingLog, best: Epoch | None, name: str | None) -> str:
    """The best epoch beside the published figure."""
    from ckptkit.analysis.logs.readers import OF_DENSE_TASKS

    if name is None:
        return "no best epoch: no known loss or accuracy; choose a figure with --metric"
    heading = _HEADINGS.get(name, name)
    if best is None:
        return f"best {heading}: no epoch has a number"
    found, published = best.figure(name) or 0.0, log.published(name)
    best_of = f"best {heading} {_figure_cell(name, found)} at epoch {best.number}"
    if published is None:
        return best_of + ("" if log.url else "; no published figure to set beside it")
    if name in OF_DENSE_TASKS:
        return f"{best_of}, published {_figure_cell(name, published)}: {found - published:+.4f}"
    return f"{best_of}, published {published:g}%: {found - published:+.2f}"


def _epochs(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:5])
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return f"epoch{'s' if len(numbers) > 1 else ''} {shown}{more}"


def _epoch_row(mark: str, epoch: Epoch, names: Sequence[str]) -> list[str]:
    return [mark, str(epoch.number), *(_figure_cell(name, epoch.figure(name)) for name in names)]


def _figure_cell(name: str, value: float | None, absent: str = "–") -> str:
    if value is None:
        return absent
    if not math.isfinite(value):
        return str(value)
    if name == "seconds":
        minutes, seconds = divmod(round(value), 60)
        return (
            f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"
        )
    if name == "lr":
        return f"{value:.2e}"
    return f"{value:.2f}%" if name in ("top1", "top5", "ema_top1", "ema_top5") else f"{value:.4f}"


def as_csv(log: TrainingLog, epochs: Sequence[Epoch]) -> str:
    """Rows of every figure the log has, for a spreadsheet; a figure that is not there is empty."""
    names = log.figures()
    rows = [["epoch", *names]]
    for epoch in epochs:
        figures = (epoch.figure(name) for name in names)
        rows.append([str(epoch.number), *("" if value is None else repr(value) for value in figures)])
    return csv_text(rows)
