"""Whole MOAT checkpoints for tests, with faults planted in them; written without ckptkit's own writers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.moat_reference import recipe_tensor, recipe_weights, variable_shapes
from tests.support.tf_files import write_checkpoint

Tensors = dict[str, Any]
AVERAGE = "/ExponentialMovingAverage"


def tiny_tensors(*, pos_emb: bool = True, twins: bool = False) -> Tensors:
    """Writable tensors of tiny-moat0 by published name, by the recipe of facts/moat.md, with global_step."""
    tensors: Tensors = {name: array.copy() for name, array in recipe_weights("tiny-moat0", pos_emb).items()}
    if twins:
        for name, shape in variable_shapes("tiny-moat0", pos_emb).items():
            if not name.endswith(("moving_mean", "moving_variance")):
                tensors[name + AVERAGE] = tensors[name]
                tensors[name] = recipe_tensor(name, shape, key_suffix="#raw")
    tensors["global_step"] = np.zeros((), np.int64)
    return tensors


def write_tiny(prefix: Path, plant: Callable[[Tensors], object] | None = None, **options: bool) -> Path:
    """Write tiny-moat0 as a TensorFlow checkpoint after ``plant`` changed its tensors; gives the prefix."""
    tensors = tiny_tensors(**options)
    if plant:
        plant(tensors)
    write_checkpoint(prefix, tensors)
    return prefix


def flip_byte(path: Path, offset: int, mask: int = 0x01) -> None:
    """Change one byte of a file in place."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def data_offset(prefix: Path, name: str, **options: bool) -> int:
    """Where a tensor's bytes begin in the one data file of `write_tiny`, which sorts by name."""
    tensors = tiny_tensors(**options)
    before = [other for other in sorted(tensors, key=str.encode) if other.encode() < name.encode()]
    return sum(tensors[other].nbytes for other in before)
