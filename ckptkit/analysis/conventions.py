"""What a multiply-add is: each publication counts in its own way, and here each way is a table.

All agree on products: a convolution, a linear layer or an attention product costs one multiply-add for each
pair of numbers multiplied. They differ in what they add for everything else. A table has the operations that
cost something and the ones that are free by the convention; copies and changes of shape are free everywhere.
An operation that stands in no table is reported by name and never passed over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from ckptkit.base.errors import NotFoundError

Shape = tuple[int, ...]

BATCH = 8
"""Images in a batch of MOAT's published figure; what is computed once a batch costs an image an eighth."""


@dataclass(frozen=True)
class Call:
    """One call of a tensor operation, as far as its cost depends on it."""

    operation: str  # pyTorch's name of it without overload and in-place mark: ``convolution``, ``add``
    inputs: tuple[Shape | None, ...]  # shape of each positional argument, None for one that is no tensor
    arguments: tuple[Any, ...]  # the positional arguments that are no tensors, None for one that is
    output: Shape  # shape of the (first) result

    def input(self, position: int) -> Shape:
        """Shape of a positional argument that must be a tensor."""
        shape = self.inputs[position]
        if shape is None:
            raise TypeError(f"{self.operation}: argument {position} is no tensor")
        return shape

    def has_input(self, position: int) -> bool:
        """Whether a positional argument is given and is a tensor, as an optional bias is."""
        return position < len(self.inputs) and self.inputs[position] is not None

    @property
    def elements(self) -> int:
        """Elements of the result."""
        return math.prod(self.output)


Cost = Callable[[Call], int | Fraction]


def _per_element(operations: int) -> Cost:
    """So many operations for each element of the result."""
    return lambda call: operations * call.elements


def _biased(call: Call) -> int:
    """One addition for each element of the result of a convolution or linear layer, where it has a bias."""
    return call.elements if call.has_input(2) else 0


# --- products ----------------------------------------------------------------------------------------------


def _convolution(call: Call) -> int:
    """As many multiplications an element as a filter has weights."""
    return call.elements * math.prod(call.input(1)[1:])


def _matrix_product(first: int) -> Cost:
    """A product of the matrices at two positions; as many multiplications an element as the rows are long."""
    return lambda call: call.elements * call.input(first)[-1]


PRODUCTS: Mapping[str, Cost] = {
    "convolution": _convolution,
    "linear": _matrix_product(0),
    "mm": _matrix_product(0),
    "bmm": _matrix_product(0),
    "addmm": _matrix_product(1),
    "baddbmm": _matrix_product(1),
}
"""Multiply-adds of the operations whose cost nobody disputes."""

FREE = frozenset(
    {
        *("_to_copy", "_unsafe_view", "alias", "as_strided", "cat", "clone", "constant_pad_nd", "copy"),
        *("detach", "empty", "expand", "flip", "full", "new_ones", "ones", "permute", "promote_types"),
        *("select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unsqueeze", "view"),
    }
)
"""Operations that only move, copy or rename elements, or make constants."""


# --- conventions -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Convention:
    """One way to count."""

    name: str
    counts: str  # what it counts, in a phrase
    weight: Fraction  # multiply-adds that one operation of the table is worth
    operations: Mapping[str, Cost]  # what an operation costs beside its products
    free: frozenset[str]  # operations that compute something but cost nothing by this convention
    # Whether the graph that was counted also activates the output of each stage, for those who want
    # features
    activates_stage_outputs: bool = False
    # Settings without default that this count does not depend on, with the value to build with
    indifferent: Mapping[str, Any] = field(default_factory=dict)

    def cost(self, call: Call) -> tuple[Fraction, Fraction] | None:
        """Multiply-adds of one call: those of products, and all. None for an operation in no table."""
        products, others = PRODUCTS.get(call.operation), self.operations.get(call.operation)
        if products is None and others is None:
            free = call.operation in FREE or call.operation in self.free
            return (Fraction(0), Fraction(0)) if free else None
        multiplied = Fraction(products(call)) if products else Fraction(0)
        return multiplied, multiplied + (self.weight * others(call) if others else 0)


_BATCH_NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training")
"""What PyTorch's versions call BatchNorm with given statistics."""


def _batch_norm_once(call: Call) -> Fraction:
    """Scale and shift each element by two numbers a channel, which take 6 operations once a batch.

    The two: 1/sqrt(variance + epsilon) · gamma (addition, root and division, multiplication) and
    beta − mean · the first (multiplication, subtraction).
    """
    return 2 * call.elements + Fraction(6 * call.output[1], BATCH)


def _layer_norm(call: Call) -> int:
    """Mean 1, variance 1 + 2, then scale, shift and their making 5 an element; 3 a place for the root.

    Scale and shift differ from element to element here, gamma and beta by channel and the statistics by
    place, so unlike BatchNorm's they are made for each: 1 · gamma, · x, mean ·, beta −, +.
    """
    return 9 * call.elements + 3 * (call.elements // call.output[-1])


def _mean(call: Call) -> int:
    """One addition or division for each element that goes in."""
    return math.prod(call.input(0))


def _average_pool(call: Call) -> int:
    """Additions under each window; dividing by the number of real pixels is an operation of its own."""
    window: Shape = tuple(call.arguments[1])
    return call.elements * (math.prod(window) - 1)


def _lookup(call: Call) -> Fraction:
    """One step of spreading a position table over all pairs of places.

    The model takes sliding windows of the table, which costs nothing; the published code multiplies the same
    axis by a one-hot matrix: as many multiply-adds an element as the axis is long, two operations each. The
    table is the same for all images of a batch.
    """
    return Fraction(2 * call.elements * call.input(0)[call.arguments[1]], BATCH)


TENSORFLOW_GRAPH = Convention(
    name="tensorflow-graph",
    counts="products, and half a multiply-add for each elementwise operation of the whole TensorFlow graph",
    weight=Fraction(1, 2),
    operations={
        "convolution": _biased,
        "linear": _biased,
        "addmm": _per_element(1),  # the bias
        "add": _per_element(1),
        "sub": _per_element(1),
        "mul": _per_element(1),
        "div": _per_element(1),
        "gelu": _per_element(4),  # 0.5·x, x / √2, 1 + erf, and their product; erf itself is not counted
        "silu": _per_element(2),  # β·x and x · sigmoid; sigmoid itself is not counted
        "_softmax": _per_element(5),  # maximum and subtraction 2, exponential 1, sum and division 2
        "mean": _mean,
        "avg_pool2d": _average_pool,
        **dict.fromkeys(_BATCH_NORMS, _batch_norm_once),
        "native_layer_norm": _layer_norm,
        "unfold": _lookup,
    },
    # TensorFlow registers no operation count for these.
    free=frozenset({"sigmoid", "upsample_bilinear2d"}),
    activates_stage_outputs=True,
)
"""MOAT: half of what TensorFlow's profiler calls float operations, of the published graph at batch 8.

Source: the operation counts that TensorFlow registers (``profiler/internal/flops_registry.py``,
``ops/nn_ops.py``), einsum counted as the products it is, applied to the published graph, in which BatchNorm
(synchronized) and LayerNorm (its epsilon is too small for the fused kernel) are spelled out, and the output
of each stage is activated whether it is used or not. The totals that were measured on the published graph are
higher by up to 0.08%. That is, to one unit of their last digit, an eighth of a multiply-add for each weight:
what the random initializers in that graph cost, a multiplication and an addition a weight once a batch.
Initializing is no part of a forward pass, so it stays out here.
"""

MMCV = Convention(
    name="mmcv",
    counts="products, 1 for each element of a biased convolution's result, 2 for each of a BatchNorm",
    weight=Fraction(1),
    operations={
        "convolution": _biased,
        **dict.fromkeys(_BATCH_NORMS, _per_element(2)),
    },
    # It counts by kind of module. MogaNet's means are functions rather than pooling modules, its activations
    # of kinds it does not know; the bias of the linear head it leaves out.
    free=frozenset({"add", "gelu", "mean", "mul", "silu", "sub"}),
    # The second activation that the setting brings is one it does not count.
    indifferent={"attn_force_fp32": False},
)
"""MogaNet: multiply-adds as mmcv's ``get_model_complexity_info`` has them."""

CONVENTIONS: Mapping[str, Convention] = {"moat": TENSORFLOW_GRAPH, "moganet": MMCV}
"""How each family's published figures were counted."""


def convention_of(family: str) -> Convention:
    """Return how a family's publication counts.

    >>> convention_of("moganet").name
    'mmcv'
    """
    if family not in CONVENTIONS:
        raise NotFoundError(
            f"how the figures of family {family!r} were counted is not known",
            hint="known are " + ", ".join(CONVENTIONS),
        )
    return CONVENTIONS[family]
