"""The Pareto front: what nothing else beats at no greater cost."""

from __future__ import annotations

from collections.abc import Iterable

XY = tuple[float, float]


def pareto_front(points: Iterable[XY]) -> list[XY]:
    """Return the points that no other reaches with less cost and as much accuracy, or more for as much.

    >>> pareto_front([(5, 80.0), (3, 76.0), (5, 79.0), (9, 80.0), (9, 83.0)])
    [(3, 76.0), (5, 80.0), (9, 83.0)]
    """
    front: list[XY] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front
