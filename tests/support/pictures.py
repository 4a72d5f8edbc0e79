"""Pictures that tests look at: drawn here, the same on every machine."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def drawn(width: int = 160, height: int = 120, seed: int = 1) -> Any:
    """Something like a photograph: smooth ground, noise, hard edges, thin lines; an RGB Pillow image."""
    image = pytest.importorskip("PIL.Image")
    draw = pytest.importorskip("PIL.ImageDraw")
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(width, height)
    ground = np.stack([90 + 120 * y, 140 + 60 * np.sin(3 * x + seed), 220 - 140 * y], -1)
    pixels = (ground + random.normal(0, 8, (height, width, 3))).clip(0, 255).astype(np.uint8)
    picture = image.fromarray(pixels)
    pen = draw.Draw(picture)
    for _ in range(8):
        left, top = int(random.integers(0, width)), int(random.integers(0, height))
        size = int(random.integers(4, max(5, min(width, height) // 3)))
        colour = tuple(int(level) for level in random.integers(0, 255, 3))
        pen.ellipse((left, top, left + size, top + size // 2 + 1), fill=colour)
    pen.line((0, 0, width, height), fill=(255, 255, 255))
    return picture


def encoded(picture: Any, format: str = "PNG", **options: Any) -> bytes:
    """What a file of it holds."""
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def save(picture: Any, path: Path, **options: Any) -> Path:
    """Write it where it belongs; gives the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    return path
