"""Pictures that say where something is: noise, and noise in one corner."""

from __future__ import annotations

from typing import Any

import numpy
import pytest


def noise(width: int, height: int, seed: int = 7) -> Any:
    """A picture of independent random pixels, of mode RGB."""
    values = numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    return pytest.importorskip("PIL.Image").fromarray(values)


def corner_of_noise(side: int, share: float, row: int, column: int) -> Any:
    """A grey square with noise in one corner; ``row`` and ``column`` are 0 or 1."""
    picture = pytest.importorskip("PIL.Image").new("RGB", (side, side), (124, 116, 104))
    patch = round(side * share)
    picture.paste(noise(patch, patch), (column * (side - patch), row * (side - patch)))
    return picture
