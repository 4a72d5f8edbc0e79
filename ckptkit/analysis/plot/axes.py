"""What the two axes show of an entry, and where their ticks stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptkit.registry import Entry

_TICK_ROOM = 28.0
"""Points that a tick's text takes, with some air."""


@dataclass(frozen=True)
class Measure:
    """A figure that an axis can show."""

    name: str  # what options call it
    short: str  # in a sentence
    title: str  # of the axis, with its unit
    value: Callable[[Entry], float | None]  # the figure of an entry
    text: Callable[[Entry], str | None]  # the same as published


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:g}%"


X_MEASURES = {
    "params": Measure(
        "params",
        "parameters",
        "Parameters",
        lambda entry: entry.params,
        lambda entry: entry.published_params or (entry.params and human(entry.params)) or None,
    ),
    "flops": Measure(
        "flops",
        "FLOPs",
        "FLOPs of one image (multiply-adds)",
        lambda entry: entry.flops,
        lambda entry: entry.published_flops,
    ),
}
Y_MEASURES = {
    "top1": Measure(
        "top1",
        "top-1 accuracy",
        "ImageNet-1K top-1 accuracy (%)",
        lambda entry: entry.published_top1,
        lambda entry: _percent(entry.published_top1),
    ),
    "top5": Measure(
        "top5",
        "top-5 accuracy",
        "ImageNet-1K top-5 accuracy (%)",
        lambda entry: entry.published_top5,
        lambda entry: _percent(entry.published_top5),
    ),
}


def human(value: float) -> str:
    """Write a count as people do.

    >>> [human(value) for value in (0, 800, 2_500_000, 5e6, 1e9, 2e12)]
    ['0', '800', '2.5M', '5M', '1B', '2T']
    """
    for power, sign in ((12, "T"), (9, "B"), (6, "M"), (3, "K")):
        if abs(value) >= 10**power:
            return f"{value / 10**power:.4g}{sign}"
    return f"{value:.4g}"


def log_limits(values: list[float]) -> tuple[float, float]:
    """Return the ends of a logarithmic axis: room at both sides for markers and labels."""
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max((high - low) * 0.08, 0.15)
    return 10 ** (low - room), 10 ** (high + room)


def linear_limits(values: list[float]) -> tuple[float, float]:
    """Return the ends of a linear axis: room at both sides for markers and labels."""
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or abs(high) * 0.02 or 1.0
    return low - room, high + room


def cost_limits(values: list[float]) -> tuple[float, float]:
    """Return the ends of a linear axis of costs, which begins just below nothing."""
    high = max(values)
    return -0.03 * high, 1.08 * high


def log_ticks(low: float, high: float, room: float = 500.0) -> list[float]:
    """Return round numbers within two bounds: 1, 2 and 5 of each decade, fewer or more as it fits.

    >>> [human(tick) for tick in log_ticks(2.5e6, 6e8)]
    ['5M', '10M', '20M', '50M', '100M', '200M', '500M']
    >>> [human(tick) for tick in log_ticks(2.5e6, 6e8, room=150)]
    ['3M', '10M', '30M', '100M', '300M']
    >>> [human(tick) for tick in log_ticks(2.7e7, 2.9e7, room=200)]
    ['27M', '27.5M', '28M', '28.5M', '29M']
    """
    decade = room / math.log10(high / low)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = _within_decades(low, high, steps)
        wrapped = [*steps, 10]
        nearest = min(math.log10(b / a) for a, b in pairwise(wrapped))
        if len(ticks) >= 3 and nearest * decade >= _TICK_ROOM:
            return ticks
    return (
        _within_decades(low, high, (1,)) if high / low > 12 else linear_ticks(low, high, room=room, each=45.0)
    )


def _within_decades(low: float, high: float, steps: Sequence[float]) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def linear_ticks(low: float, high: float, room: float = 250.0, each: float = _TICK_ROOM) -> list[float]:
    """Return evenly spaced round numbers within two bounds, none negative.

    >>> linear_ticks(72.1, 89.9, room=260, each=26)
    [74.0, 76.0, 78.0, 80.0, 82.0, 84.0, 86.0, 88.0]
    """
    rough = (high - low) / max(room / each, 1.0)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(max(low, 0.0) / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def percent_texts(ticks: Sequence[float]) -> list[str]:
    """Write ticks with as many decimals as the one that needs most.

    >>> percent_texts([97.0, 97.5])
    ['97.0', '97.5']
    """
    decimals = max((len(f"{tick:g}".partition(".")[2]) for tick in ticks), default=0)
    return [f"{tick:.{decimals}f}" for tick in ticks]
