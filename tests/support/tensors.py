"""Arrays for writers: every element type, strides and shapes that trip people up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies

from ckptkit.base.tensors import DTYPES, TensorSpec, dtype_of

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


def raw_safetensors(path: Path, tensors: Mapping[str, tuple[str, Sequence[int], bytes]]) -> Path:
    """A safetensors file of any element types: code, shape and bytes by name."""
    table, data = {}, b""
    for name, (code, shape, raw) in tensors.items():
        offsets = [len(data), len(data) + len(raw)]
        table[name] = {"dtype": code, "shape": list(shape), "data_offsets": offsets}
        data += raw
    head = json.dumps(table).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)
    return path


OPAQUE = {
    "w": ("F32", [2], bytes(8)),
    "scale": ("F8_E8M0", [3], b"abc"),
    "pairs": ("F4", [2, 6], b"123456"),
    "six": ("F6_E2M3", [4], b"xyz"),
    "unheard": ("Q7_X", [3], b"12345"),
}
"""For `raw_safetensors`: one plain tensor, and four of which only the bytes are known."""
