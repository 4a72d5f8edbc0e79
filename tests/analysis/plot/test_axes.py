"""Ticks: round, within the axis, and not so near that their texts would touch."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from ckptkit.analysis.plot.axes import (
    X_MEASURES,
    Y_MEASURES,
    cost_limits,
    human,
    linear_limits,
    linear_ticks,
    log_limits,
    log_ticks,
    percent_texts,
)
from tests.support.entries import entry_of

URL = "https://a.org/x.tar.gz"


def is_round(value: float) -> bool:
    """At most two digits that are not zeros, or a quarter."""
    digits = f"{value:.6e}".partition("e")[0].replace(".", "").rstrip("0")
    return len(digits) <= 2 or digits.endswith(("25", "75"))


@pytest.mark.parametrize(
    ("low", "high", "room"),
    [
        (2.9e6, 4.9e8, 560.0),
        (2.9e6, 4.9e8, 150.0),
        (8e8, 6.5e11, 560.0),
        (2.7e7, 2.9e7, 300.0),
        (1.0, 1e15, 300.0),
    ],
)
def test_logarithmic_ticks(low: float, high: float, room: float) -> None:
    ticks = log_ticks(low, high, room)
    assert len(ticks) >= 2
    assert all(low <= tick <= high for tick in ticks)
    if high / low > 12:
        assert all(is_round(tick) for tick in ticks)
    gaps = [math.log(b / a) / math.log(high / low) * room for a, b in pairwise(ticks)]
    assert min(gaps) >= 20, "texts of ticks are about 20 points wide"


@pytest.mark.parametrize(("low", "high"), [(72.1, 89.9), (93.0, 97.6), (-2e7, 5e8), (83.2, 83.4), (0.0, 1.0)])
def test_linear_ticks(low: float, high: float) -> None:
    ticks = linear_ticks(low, high, room=260, each=26)
    assert 3 <= len(ticks) <= 11
    assert all(max(low, 0) <= tick <= high for tick in ticks)
    steps = {round(b - a, 9) for a, b in pairwise(ticks)}
    assert len(steps) == 1
    assert is_round(steps.pop())


@pytest.mark.parametrize("values", [[5.0], [3e6, 5e8], [80.0, 80.0]])
def test_every_value_lies_well_within_the_limits(values: list[float]) -> None:
    for limits in (log_limits(values), linear_limits(values), cost_limits(values)):
        low, high = limits
        assert low < min(values)
        assert max(values) < high


def test_ticks_are_written_alike() -> None:
    assert percent_texts([72.5, 75.0]) == ["72.5", "75.0"]
    assert percent_texts([72.0, 74.0]) == ["72", "74"]
    assert percent_texts([]) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(2_970_000, "2.97M"), (483_200_000, "483.2M"), (648.5e9, "648.5B"), (999, "999"), (1000, "1K")],
)
def test_human(value: float, text: str) -> None:
    assert human(value) == text


def test_figures_of_an_entry() -> None:
    entry = entry_of(URL, published_params="27.8M", published_flops="0.80G", published_top1=83.0)
    assert [one.value(entry) for one in X_MEASURES.values()] == [27.8e6, 0.8e9]
    assert [one.text(entry) for one in X_MEASURES.values()] == ["27.8M", "0.80G"]
    assert [one.value(entry) for one in Y_MEASURES.values()] == [83.0, None]
    assert [one.text(entry) for one in Y_MEASURES.values()] == ["83%", None]


def test_an_exact_count_stands_in_for_a_published_one() -> None:
    entry = entry_of(URL, exact_parameters=27846892)
    assert (X_MEASURES["params"].value(entry), X_MEASURES["params"].text(entry)) == (27846892.0, "27.85M")
    assert X_MEASURES["flops"].text(entry) is None
