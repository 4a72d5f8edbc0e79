"""Pictures of a training log: loss, accuracy and learning rate against the epoch, one above the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptkit.analysis.drawing import drawing, figure_bytes, require_matplotlib
from ckptkit.analysis.logs.readers import OF_DENSE_TASKS, TrainingLog, finite
from ckptkit.base.text import counted, escaped

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


def draw_log(log: TrainingLog, form: str = "png", *, metric: str | None = None) -> bytes:
    """Draw a log; the same log gives the same bytes."""
    require_matplotlib(PURPOSE)
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = _panels(log, metric)
    with drawing():
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
        return figure_bytes(figure, form)


def _title(log: TrainingLog) -> str:
    name = escaped(log.name, "figure")
    name = name if len(name) <= _LONGEST_NAME else "…" + name[-_LONGEST_NAME:]
    return f"{name}: training log, {counted(len(log.epochs), 'epoch')}"


def _panels(log: TrainingLog, metric: str | None) -> list[tuple[str, tuple[str, ...]]]:
    """What is drawn: the usual figures the log has, and what decides if it is not one of them."""
    metric = metric or log.metric
    panels = [(label, tuple(name for name in names if log.has(name))) for label, names in _PANELS]
    if metric is not None and metric not in _LABELS:
        panels.insert(2, (metric, (metric,)))
    drawn = [(label, names) for label, names in panels if names]
    return drawn or [(name, (name,)) for name in log.figures()[:_MOST_PANELS]]


def _draw_panel(ax: Any, log: TrainingLog, label: str, names: tuple[str, ...]) -> None:
    for name in names:
        text, colour = _LABELS.get(name, (escaped(name, "figure"), _BLUE))
        values = {epoch.number: finite(epoch.figure(name)) for epoch in log.epochs}
        known = {number: value for number, value in values.items() if value is not None}  # no gaps in a line
        marker = "." if len(known) < 40 else ""
        ax.plot(list(known), list(known.values()), color=colour, label=text, linewidth=1.4, marker=marker)
    for name, text in (("top1", "top-1"), ("top5", "top-5"), *((one, one) for one in OF_DENSE_TASKS)):
        published = log.published(name)
        if published is not None and {name, f"ema_{name}"}.intersection(names):
            ax.axhline(published, color=_GREY, linewidth=1, linestyle=":" if name == "top5" else "--")
            ax.annotate(
                f"published {text} {published:g}{'' if name in OF_DENSE_TASKS else '%'}",
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
