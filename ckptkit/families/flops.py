"""What a multiply-add is: each publication counts in its own way, and here each way is a table.

All agree on products: a convolution, a linear layer or an attention product costs one multiply-add for each
pair of numbers multiplied. They differ in what they add for everything else. A table has the operations that
cost something and the ones that are free by the convention; copies and changes of shape are free everywhere.
An operation that is in no table is reported by name and never passed over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One call of a tensor operation, as far as its cost depends on it."""

    operation: str  # pyTorch's name of it without overload and in-place mark: ``convolution``, ``add``
    inputs: tuple[Shape | None, ...]  # shape of each positional argument, None for one that is not a tensor
    arguments: tuple[Any, ...]  # the positional arguments that are no tensors, None for one that is
    output: Shape  # shape of the (first) result

    def input(self, position: int) -> Shape:
        """Shape of a positional argument that must be a tensor."""
        shape = self.inputs[position]
        if shape is None:
            raise TypeError(f"{self.operation}: argument {position} is not a tensor")
        return shape

    def has_input(self, position: int) -> bool:
        """Whether a positional argument is given and is a tensor, as an optional bias is."""
        return position < len(self.inputs) and self.inputs[position] is not None

    @property
    def elements(self) -> int:
        """Elements of the result."""
        return math.prod(self.output)


Cost = Callable[[Call], int | Fraction]


def per_element(operations: int) -> Cost:
    """So many operations for each element of the result."""
    return lambda call: operations * call.elements


def biased(call: Call) -> int:
    """One addition for each element of the result of a convolution or linear layer, where it has a bias."""
    return call.elements if call.has_input(2) else 0


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
"""Multiply-adds of the operations whose cost is not disputed."""

FREE = frozenset(
    {
        *("_to_copy", "_unsafe_view", "alias", "as_strided", "cat", "clone", "constant_pad_nd", "copy"),
        *("detach", "empty", "expand", "flip", "full", "new_ones", "ones", "permute", "promote_types"),
        *("select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unsqueeze", "view"),
    }
)
"""Operations that only move, copy or rename elements, or make constants."""


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


BATCH_NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training")
"""What PyTorch's versions call BatchNorm with given statistics."""
