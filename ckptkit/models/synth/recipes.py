"""The numbers of synthetic checkpoints: for each family a fixed recipe, the same on every machine.

For a tensor whose key is *n* and whose shape is *s*, all in float32::

    z = Generator(Philox(key=crc32(n))).standard_normal(s)

MOAT; the key is the published (deeplab2) name, and so is the shape::

    BatchNorm/LayerNorm scale         1 + 0.1 z        moving variance           exp(0.2 z)
    shift, moving mean                0.1 z            bias, anything of rank ≤ 1  0.05 z
    relative position table           0.5 z            convolution kernel        z / √(kh·kw·in)
    depthwise kernel                  z / √(kh·kw)     attention q, k, v         z / √C
    attention o                       z / √(heads·32)

MogaNet; the key is the canonical (timm-style) name::

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

from ckptkit.base.tensors import Array
from ckptkit.families.base import Family
from ckptkit.rules.language import Binding, Table

_STEPS = 1000
_COUNTER = "num_batches_tracked"


def _normal(key: str, shape: tuple[int, ...]) -> Array:
    import numpy

    generator = numpy.random.Generator(numpy.random.Philox(key=zlib.crc32(key.encode())))
    drawn: Array = generator.standard_normal(shape, dtype=numpy.float32)
    return drawn


def synthetic_tensor(name: str, shape: tuple[int, ...], *, key: str | None = None) -> Array:
    """One tensor of MOAT by the recipe.

    >>> synthetic_tensor("moat/stem/norm_0/gamma", (32,))[:2].round(4).tolist()
    [1.1377999782562256, 1.0569000244140625]
    """
    import numpy

    z = _normal(key or name, shape)
    kind = name.rsplit("/", 1)[-1]
    if kind == "gamma":
        return 1 + numpy.float32(0.1) * z
    if kind in ("beta", "moving_mean"):
        return numpy.float32(0.1) * z
    if kind == "moving_variance":
        return numpy.exp(numpy.float32(0.2) * z)
    if kind == "bias" or len(shape) <= 1:
        return numpy.float32(0.05) * z
    if kind == "relative_position_embedding":
        return numpy.float32(0.5) * z
    return z / numpy.float32(math.sqrt(_fan_in(name, shape)))


def _fan_in(name: str, shape: tuple[int, ...]) -> int:
    kind = name.rsplit("/", 1)[-1]
    if kind == "depthwise_kernel":
        return math.prod(shape[:2])
    if name.endswith("/o/weight"):
        return math.prod(shape[:2])
    if kind == "weight":
        return shape[0]
    return math.prod(shape[:-1])


def moganet_tensor(name: str, shape: tuple[int, ...], *, is_norm: bool, key: str | None = None) -> Array:
    """One tensor of MogaNet by the recipe.

    >>> moganet_tensor("norm1.weight", (32,), is_norm=True)[:2].round(4).tolist()
    [0.9458000063896179, 0.9781000018119812]
    """
    import numpy

    kind = name.rsplit(".", 1)[-1]
    if kind == _COUNTER:
        return numpy.array(_STEPS, numpy.int64)
    z = _normal(key or name, shape)
    if kind == "running_var":
        return numpy.exp(numpy.float32(0.2) * z)
    if is_norm:
        return 1 + numpy.float32(0.1) * z if kind == "weight" else numpy.float32(0.1) * z
    if kind == "bias":
        return numpy.float32(0.05) * z
    if kind != "weight":
        return numpy.float32(0.2) * z
    return z / numpy.float32(math.sqrt(math.prod(shape[1:])))


Make = Callable[[], Array]
"""Makes one tensor."""


def makers(family: Family, table: Table, *, raw: bool) -> dict[str, Make]:
    """Name in the published layout → function that makes the tensor, in the architecture's order."""
    end = "#raw" if raw else ""
    if family.name == "moat":
        return {
            row.external: partial(
                synthetic_tensor, row.external, row.external_shape, key=f"{row.external}{end}"
            )
            for row in table.bindings
        }
    norms = {_module(row) for row in table.bindings if row.part == "bn_statistics"}
    return {
        row.external: partial(
            moganet_tensor,
            row.canonical,
            row.canonical_shape,
            is_norm=_module(row) in norms,
            key=f"{row.canonical}{end}",
        )
        for row in table.bindings
    }


def _module(row: Binding) -> str:
    return row.canonical.rpartition(".")[0]
