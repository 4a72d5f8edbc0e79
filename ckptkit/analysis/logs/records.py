"""What a training log says, epoch by epoch, whichever program wrote it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ckptkit.base.errors import UsageError

Framework = Literal["mmcv", "timm"]

FIGURES = ("train_loss", "val_loss", "top1", "top5", "ema_val_loss", "ema_top1", "ema_top5", "lr", "seconds")
"""Figures that every kind of log calls the same here."""


@dataclass(frozen=True)
class Epoch:
    """One epoch. A figure that the log does not have is None; one that was not a number is a NaN."""

    number: int  # as the log counts: mmcv from 1, timm from 0
    train_loss: float | None = None  # mean over what the log has of the epoch
    val_loss: float | None = None  # on the validation images
    top1: float | None = None
    top5: float | None = None
    ema_val_loss: float | None = None  # the same of the averaged weights, where the log has both
    ema_top1: float | None = None
    ema_top5: float | None = None
    lr: float | None = None  # learning rate at the end of the epoch, of the first group of parameters
    seconds: float | None = None  # what the training iterations that were logged took
    others: Mapping[str, float] = field(default_factory=dict)  # every other figure, under the log's own name

    def figure(self, name: str) -> float | None:
        """One figure by its name here, or by the log's own.

        >>> epoch = Epoch(3, top1=71.5, others={"head1_top1": 70.0})
        >>> epoch.figure("top1"), epoch.figure("head1_top1"), epoch.figure("lr")
        (71.5, 70.0, None)
        """
        value: float | None = getattr(self, name) if name in FIGURES else self.others.get(name)
        return value

    def to_json(self) -> dict[str, Any]:
        """Plain values that every JSON parser takes: what is no number is null."""
        figures = {name: finite(self.figure(name)) for name in FIGURES}
        return {
            "epoch": self.number,
            **figures,
            "others": {name: finite(value) for name, value in self.others.items()},
        }


@dataclass(frozen=True)
class TrainingLog:
    """A training log."""

    name: str  # the entry's id, or the path
    path: Path  # where it lies on this machine
    framework: Framework  # whose form it has
    epochs: tuple[Epoch, ...]  # in the order of their numbers, at least one
    # What to know about the file: that training was resumed, that it is cut off
    remarks: tuple[str, ...] = ()
    url: str | None = None  # where it is published
    published_top1: float | None = None  # what the registry has of the entry, in percent
    published_top5: float | None = None
    weights: str | None = None  # which copy these figures belong to, where there are two: ``ema`` or ``raw``

    @property
    def last(self) -> Epoch:
        """The epoch with the greatest number."""
        return self.epochs[-1]

    @property
    def metric(self) -> str | None:
        """The figure that tells which epoch is best when nobody names one.

        The top-1 accuracy of the copy that the published figure belongs to, else what comes nearest to it;
        None where the log has neither an accuracy nor a loss that is known here.
        """
        order = ["ema_top1", "top1", "ema_val_loss", "val_loss", "train_loss"]
        if self.weights == "raw":
            order = ["top1", "ema_top1", "val_loss", "ema_val_loss", "train_loss"]
        return next((name for name in order if self.has(name)), None)

    def has(self, name: str) -> bool:
        """Whether some epoch has this figure."""
        return any(epoch.figure(name) is not None for epoch in self.epochs)

    def figures(self) -> list[str]:
        """Names of the figures that some epoch has: those of `FIGURES` first, then the log's own."""
        own = dict.fromkeys(name for epoch in self.epochs for name in epoch.others)
        return [*(name for name in FIGURES if self.has(name)), *own]

    def best(self, metric: str | None = None) -> Epoch | None:
        """The epoch with the best value of a figure, the earliest of equals; None where there is none."""
        name = metric or self.metric
        if name is None:
            return None
        if not self.has(name):
            raise UsageError(f"the log has no figure {name!r}", hint="it has " + ", ".join(self.figures()))
        sign = -1.0 if is_better_low(name) else 1.0
        found = [
            (sign * value, epoch)
            for epoch in self.epochs
            if (value := finite(epoch.figure(name))) is not None
        ]
        return max(found, key=lambda pair: pair[0])[1] if found else None

    @property
    def diverged(self) -> tuple[int, ...]:
        """Numbers of the epochs whose loss is not a number or infinite."""
        losses = ("train_loss", "val_loss", "ema_val_loss")
        return tuple(
            epoch.number
            for epoch in self.epochs
            if any(not math.isfinite(value) for name in losses if (value := epoch.figure(name)) is not None)
        )

    def published(self, name: str) -> float | None:
        """The published figure that one of the log's is to be set beside; None where there is none."""
        return {
            "top1": self.published_top1,
            "ema_top1": self.published_top1,
            "top5": self.published_top5,
            "ema_top5": self.published_top5,
        }.get(name)

    def to_json(self, metric: str | None = None) -> dict[str, Any]:
        """Plain values: the summary, then every epoch."""
        best = self.best(metric)
        name = metric or self.metric
        found = best.figure(name) if best and name else None
        published = self.published(name) if name else None
        return {
            "name": self.name,
            "path": str(self.path),
            "url": self.url,
            "framework": self.framework,
            "remarks": list(self.remarks),
            "metric": name,
            "best": best.to_json() if best else None,
            "last": self.last.to_json(),
            "published": {"top1": self.published_top1, "top5": self.published_top5},
            "difference": None if found is None or published is None else round(found - published, 6),
            "not_finite": list(self.diverged),
            "epochs": [epoch.to_json() for epoch in self.epochs],
        }


def is_better_low(name: str) -> bool:
    """Whether the least value of a figure is the best.

    >>> is_better_low("val_loss"), is_better_low("head0_top1")
    (True, False)
    """
    return "loss" in name or name in ("lr", "seconds")


def finite(value: float | None) -> float | None:
    """The value, or None where it is no finite number."""
    return value if value is not None and math.isfinite(value) else None
