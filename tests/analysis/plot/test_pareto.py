"""The Pareto front against its definition."""

from __future__ import annotations

import random

from ckptkit.analysis.plot.pareto import pareto_front


def dominated(point: tuple[float, float], others: list[tuple[float, float]]) -> bool:
    """By definition: another is as good in both and better in one."""
    return any(other != point and other[0] <= point[0] and other[1] >= point[1] for other in others)


def test_the_front_is_what_nothing_dominates() -> None:
    random.seed(7)
    for _ in range(200):
        points = [(float(random.randint(1, 8)), float(random.randint(70, 78))) for _ in range(12)]
        expected = sorted({point for point in points if not dominated(point, points)})
        assert pareto_front(points) == expected


def test_of_nothing_there_is_none() -> None:
    assert pareto_front([]) == []
