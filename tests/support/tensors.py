"""Arrays for writers: every element type, strides and shapes that trip people up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies

from ckptkit.tensors import DTYPES, TensorSpec, dtype_of

Array = Any


def arrays(*, without: frozenset[str] = frozenset()) -> dict[str, Array]:
    """Arrays of every element type and awkward layouts, by name."""
    source = np.random.default_rng(3)
    made: dict[str, Array] = {
        "transposed": source.standard_normal((5, 7), dtype=np.float32).T,
        "hwio": source.standard_normal((3, 3, 4, 8), dtype=np.float32).transpose(3, 2, 0, 1),
        "every other": source.standard_normal((9, 9), dtype=np.float32)[::2, 1::3],
        "reversed": np.arange(12, dtype=np.int32)[::-1],
        "broadcast": np.broadcast_to(np.float32(1.5), (4, 3)),
        "fortran": np.asfortranarray(source.standard_normal((6, 5))),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "empty in the middle": np.zeros((2, 0, 3), np.int64),
        "odd bytes": np.array([1, 2, 3], np.uint8),
        "ünïcode/名前": np.arange(3, dtype=np.float32),
        "big": source.standard_normal((600, 700), dtype=np.float32).T,
    }
    for name, dtype in DTYPES.items():
        made[f"of {name}"] = (source.standard_normal((2, 3, 4)) * 3).astype(dtype.numpy).transpose(2, 0, 1)
    return {name: array for name, array in made.items() if dtype_of(array).name not in without}


def specs_of(held: Mapping[str, Array]) -> list[TensorSpec]:
    return [TensorSpec(name, dtype_of(array), array.shape) for name, array in held.items()]


def write_all(writer: Any, held: Mapping[str, Array]) -> tuple[list[Path], dict[str, int]]:
    """Write every array in the writer's own order; the files, and what `write` returned."""
    with writer:
        sums = {name: writer.write(name, held[name]) for name in writer.order}
        return writer.finish(), sums


def same_bits(ours: Array, wanted: Array) -> bool:
    return bool(
        ours.dtype.name == wanted.dtype.name
        and ours.shape == wanted.shape
        and ours.tobytes() == wanted.tobytes()
    )


def some_arrays(*, without: frozenset[str] = frozenset()) -> strategies.SearchStrategy[dict[str, Array]]:
    """Small tables of arrays of random types, shapes and axis orders."""

    @strategies.composite
    def table(draw: Any) -> dict[str, Array]:
        names = draw(
            strategies.lists(
                strategies.text(
                    strategies.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8
                ),
                max_size=4,
                unique=True,
            )
        )
        made = {}
        for name in names:
            dtype = DTYPES[draw(strategies.sampled_from([n for n in DTYPES if n not in without]))]
            shape = tuple(draw(strategies.lists(strategies.integers(0, 4), max_size=4)))
            axes = draw(strategies.permutations(range(len(shape))))
            seed = draw(strategies.integers(0, 2**32 - 1))
            array = (np.random.default_rng(seed).standard_normal(shape) * 9).astype(dtype.numpy)
            made[name] = np.asarray(array).transpose(axes)
        return made

    return table()
