"""Synthetic weights: random numbers by a fixed recipe, the same on every machine.

For a tensor whose key is *n* and whose shape is *s*, all in float32::

    z = Generator(Philox(key=crc32(n))).standard_normal(s)

The key and the shape are the canonical ones, unless a family has a recipe of its own::

    BatchNorm scale                   1 + 0.1 z        running variance          exp(0.2 z)
    shift, running mean               0.1 z            other bias                0.05 z
    layer and element scales          0.2 z            step counter              1000, an int64
    convolution and linear weight     z / √(product of the shape but its first)

A ``raw`` copy takes *n* + ``#raw`` for its key.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

from ckptkit.base.tensors import Array
from ckptkit.rules.language import Binding, Table

NOTE = "synthetic weights: random numbers by a fixed recipe, trained on nothing"

Make = Callable[[], Array]
"""Makes one tensor."""

_STEPS = 1000
_COUNTER = "num_batches_tracked"


def standard_normal(key: str, shape: tuple[int, ...]) -> Array:
    """The random numbers of a key."""
    import numpy

    generator = numpy.random.Generator(numpy.random.Philox(key=zlib.crc32(key.encode())))
    drawn: Array = generator.standard_normal(shape, dtype=numpy.float32)
    return drawn


def canonical_tensor(name: str, shape: tuple[int, ...], *, is_norm: bool, key: str | None = None) -> Array:
    """One tensor by the recipe, of its canonical name and shape.

    >>> canonical_tensor("norm1.weight", (32,), is_norm=True)[:2].round(4).tolist()
    [0.9458000063896179, 0.9781000018119812]
    """
    import numpy

    kind = name.rsplit(".", 1)[-1]
    if kind == _COUNTER:
        return numpy.array(_STEPS, numpy.int64)
    z = standard_normal(key or name, shape)
    if kind == "running_var":
        return numpy.exp(numpy.float32(0.2) * z)
    if is_norm:
        return 1 + numpy.float32(0.1) * z if kind == "weight" else numpy.float32(0.1) * z
    if kind == "bias":
        return numpy.float32(0.05) * z
    if kind != "weight":
        return numpy.float32(0.2) * z
    return z / numpy.float32(math.sqrt(math.prod(shape[1:])))


def is_counter(name: str) -> bool:
    """Whether a tensor counts training steps, by its name in PyTorch."""
    return name.rpartition(".")[2] == _COUNTER


def is_statistic(name: str) -> bool:
    """Whether a tensor is a BatchNorm's and not trained, by its name in PyTorch."""
    return is_counter(name) or name.endswith((".running_mean", ".running_var"))


def canonical_recipe(table: Table, *, raw: bool) -> dict[str, Make]:
    """Name in the published layout → function that makes the tensor, in the architecture's order."""
    norms = {_module(row) for row in table.bindings if row.part == "bn_statistics"}
    return {
        row.external: partial(
            _in_published_order,
            row,
            is_norm=_module(row) in norms,
            key=row.canonical + ("#raw" if raw else ""),
        )
        for row in table.bindings
    }


def _in_published_order(row: Binding, **how: Any) -> Array:
    return row.op.to_external(canonical_tensor(row.canonical, row.canonical_shape, **how), row.external_shape)


def _module(row: Binding) -> str:
    return row.canonical.rpartition(".")[0]
