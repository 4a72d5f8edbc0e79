"""Pictures of a training log: loss, accuracy and learning rate against the epoch, one above the other."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.analysis.logs.readers import TrainingLog
from ckptkit.analysis.plot.figure import require_matplotlib
from ckptkit.base.errors import UsageError
from ckptkit.base.text import escaped

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMATS = ("png", "svg", "pdf")
PURPOSE = "drawing a training log"
_SIZE = (8.0, 9.0)
_DPI = 120
_LONGEST_NAME = 60
_MOST_PANELS = 4
# Okabe and Ito's palette, which people who do not see all colours can tell apart too.
_BLUE, _ORANGE, _GREEN, _PURPLE, _GREY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#666666"
_LABELS: Mapping[str, tuple[str, str]] = {
    "train_loss": ("training", _BLUE),
    "val_loss": ("validation", _ORANGE),
    "ema_val_loss": ("validation, averaged weights", _PURPLE),
    "top1": ("top-1", _BLUE),
    "top5": ("top-5", _GREEN),
    "ema_top1": ("top-1, averaged weights", _PURPLE),
    "ema_top5": ("top-5, averaged weights", _ORANGE),
    "lr": ("learning rate", _BLUE),
}
_PANELS = (
    ("loss", ("train_loss", "val_loss", "ema_val_loss")),
    ("accuracy, %", ("top1", "top5", "ema_top1", "ema_top5")),
    ("learning rate", ("lr",)),
)


def picture_format(path: Path) -> str:
    """Which kind of picture a file's name asks for.

    >>> picture_format(Path("log.SVG"))
    'svg'
    """
    ending = path.suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise UsageError(
            f"cannot tell the picture format from {str(path)!r}", hint="end the name in .png, .svg or .pdf"
        )
    return ending


def draw_log(log: TrainingLog, form: str = "png", *, metric: str | None = None) -> bytes:
    """Draw a log; the same log gives the same bytes."""
    require_matplotlib(PURPOSE)
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = _panels(log, metric)
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_SETTINGS}):
        height = _SIZE[1] * (0.1 + 0.3 * len(panels))
        figure = Figure(figsize=(_SIZE[0], height), dpi=_DPI, layout="constrained")
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        figure.suptitle(_title(log), weight="bold", fontsize=11)
        for ax, (label, names) in zip(axes, panels, strict=True):
            _draw_panel(ax, log, label, names)
        _mark_best(axes, log, panels, metric)
        axes[-1].set_xlabel("epoch")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        figure.align_ylabels(axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, metadata=_UNDATED[form])
    return buffer.getvalue()


_UNDATED: Mapping[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""Fields of each format left out, so that the bytes depend on the log only."""


_SETTINGS: Mapping[str, Any] = {
    "svg.hashsalt": "ckptkit",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "text.parse_math": False,  # a dollar in a file's name begins no formula
}


def _title(log: TrainingLog) -> str:
    name = escaped(log.name, "figure")
    name = name if len(name) <= _LONGEST_NAME else "…" + name[-_LONGEST_NAME:]
    return f"{name}: training log, {len(log.epochs)} epoch{'s' if len(log.epochs) != 1 else ''}"


def _panels(log: TrainingLog, metric: str | None) -> list[tuple[str, tuple[str, ...]]]:
    """What is drawn: the usual figures the log has, and the one asked for if it is none of them."""
    panels = [(label, tuple(name for name in names if log.has(name))) for label, names in _PANELS]
    if metric is not None and metric not in _LABELS:
        panels.insert(2, (metric, (metric,)))
    drawn = [(label, names) for label, names in panels if names]
    return drawn or [(name, (name,)) for name in log.figures()[:_MOST_PANELS]]


def _draw_panel(ax: Any, log: TrainingLog, label: str, names: tuple[str, ...]) -> None:
    numbers = [epoch.number for epoch in log.epochs]
    for name in names:
        text, colour = _LABELS.get(name, (escaped(name, "figure"), _BLUE))
        values = [value if value is not None else math.nan for value in map(_figure(name), log.epochs)]
        marker = "." if sum(not math.isnan(value) for value in values) < 40 else ""
        ax.plot(*_without_gaps(numbers, values), color=colour, label=text, linewidth=1.4, marker=marker)
    for name, published, text in (
        ("top1", log.published_top1, "published top-1"),
        ("top5", log.published_top5, "published top-5"),
    ):
        if published is not None and {name, f"ema_{name}"}.intersection(names):
            ax.axhline(published, color=_GREY, linewidth=1, linestyle="--" if name == "top1" else ":")
            ax.annotate(
                f"{text} {published:g}%",
                (0.005, published),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                fontsize=8,
                color=_GREY,
            )
    ax.set_ylabel(escaped(label, "figure"))
    ax.margins(y=0.09)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    if len(names) > 1:
        ax.legend(loc="upper right" if "loss" in label else "lower right", fontsize=8, framealpha=0.9)


def _figure(name: str) -> Any:
    return lambda epoch: epoch.figure(name)


def _without_gaps(numbers: list[int], values: list[float]) -> tuple[list[int], list[float]]:
    """Leave out epochs without a figure, so that those before and after are joined by a line."""
    kept = [(number, value) for number, value in zip(numbers, values, strict=True) if math.isfinite(value)]
    return [number for number, _ in kept], [value for _, value in kept]


def _mark_best(
    axes: Any, log: TrainingLog, panels: list[tuple[str, tuple[str, ...]]], metric: str | None
) -> None:
    best, name = log.best(metric), metric or log.metric
    if best is None or name is None:
        return
    for ax, (_, names) in zip(axes, panels, strict=True):
        ax.axvline(best.number, color=_GREY, linewidth=0.8, alpha=0.6)
        if name not in names:
            continue
        value = best.figure(name) or 0.0
        ax.plot([best.number], [value], "o", color=_LABELS.get(name, ("", _BLUE))[1], markersize=7, zorder=5)
        low, high = ax.get_xlim()
        left = best.number > (low + high) / 2
        ax.annotate(
            f"best: {f'{value:.2f}%' if 'top' in name else f'{value:.4g}'} at epoch {best.number}",
            (best.number, value),
            xytext=(-8 if left else 8, -14),
            textcoords="offset points",
            ha="right" if left else "left",
            fontsize=9,
            fontweight="bold",
        )
