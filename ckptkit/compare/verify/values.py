"""Values: whether these numbers could be those of a trained model.

A tensor's extremes answer every question asked here (a NaN among the numbers makes both of them NaN), so a
whole checkpoint is read once, piece by piece, and the rest is counted only where something is wrong.

What fails, and why
-------------------
* NaN or infinity anywhere: every prediction would be NaN.
* A variance that is not positive: no activation has one, and its square root is divided by.
* A kernel, table or matrix (two or more axes longer than one) of nothing but zeros: training starts such
  tensors at random and does not bring every element to exactly zero; it was never filled. Biases count as
  vectors however the layout folds them.

What is only remarked on: a vector of zeros. A bias or shift that starts at zero stays there when no gradient
reaches it; attention's key bias never gets one, because softmax cancels what is the same for all keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ckptkit.base.tensors import Array, TensorSpec, contiguous_chunks
from ckptkit.compare.verify.report import VALUES, Check, counted
from ckptkit.rules.language import Binding

_VARIANCE = re.compile(r"(?:.*[./])?(?:running_var|moving_variance)")
_BIAS = re.compile(r"(?:.*[./])?(?:bias|beta)")


@dataclass(frozen=True)
class ValueRange:
    """Extremes of one tensor.

    Parameters
    ----------
    lowest, highest : float
        Over the finite elements; both NaN when there are none.
    nans, infinities : int
        How many elements are not finite.
    not_positive : int
        How many elements are zero or less.
    """

    lowest: float
    highest: float
    nans: int = 0
    infinities: int = 0
    not_positive: int = 0

    def is_constant(self, value: float) -> bool:
        """Whether every element is ``value``."""
        return not (self.nans or self.infinities) and self.lowest == self.highest == value


def value_range(array: Array) -> ValueRange:
    """Extremes of a tensor of any strides; of a complex one, of its real and imaginary parts together.

    Parameters
    ----------
    array : numpy.ndarray
        Floating or complex elements.

    Examples
    --------
    >>> import numpy
    >>> value_range(numpy.array([[1.0, -2.0], [numpy.nan, 0.0]], "float32"))
    ValueRange(lowest=-2.0, highest=1.0, nans=1, infinities=0, not_positive=2)
    """
    import numpy

    lowest, highest = math.inf, -math.inf
    nans = infinities = not_positive = 0
    with numpy.errstate(all="ignore"):
        for chunk in contiguous_chunks(array):
            numbers = as_numbers(chunk)
            low, high = float(numbers.min()), float(numbers.max())
            if not (math.isfinite(low) and math.isfinite(high)):
                nans += int(numpy.isnan(numbers).sum())
                infinities += int(numpy.isinf(numbers).sum())
                numbers = numbers[numpy.isfinite(numbers)]
                if not numbers.size:
                    continue
                low, high = float(numbers.min()), float(numbers.max())
            if low <= 0:
                not_positive += int((numbers <= 0).sum())
            lowest, highest = min(lowest, low), max(highest, high)
    if lowest > highest:
        lowest = highest = math.nan
    return ValueRange(lowest, highest, nans, infinities, not_positive)


def as_numbers(chunk: Array) -> Array:
    """View or cast a 1-d piece to something numpy computes with natively: float32 or float64."""
    if chunk.dtype.kind == "c":
        return chunk.view(chunk.real.dtype)
    return chunk if chunk.dtype.kind == "f" and chunk.dtype.itemsize >= 4 else chunk.astype("float32")


def has_values(spec: TensorSpec) -> bool:
    """Whether there is anything to look at: floating or complex elements."""
    return spec.dtype.kind in ("float", "complex") and spec.size > 0


def check_values(
    ranges: Mapping[str, ValueRange],
    specs: Mapping[str, TensorSpec],
    roles: Mapping[str, Binding],
    *,
    left_out: Mapping[str, int],
) -> Check:
    """Judge the extremes of every tensor looked at.

    Parameters
    ----------
    ranges : mapping of str to ValueRange
        By name in the file.
    specs : mapping of str to TensorSpec
    roles : mapping of str to Binding
        What a tensor is in the architecture, where that is known.
    left_out : mapping of str to int
        Why other tensors were not looked at, and how many.
    """
    faults: list[str] = []
    remarks: list[str] = []
    for name, found in ranges.items():
        faults += (f"{name}: {fault}" for fault in _faults(found, name, roles.get(name)))
        if found.is_constant(0.0):
            if _is_matrix(specs[name], roles.get(name)):
                faults.append(f"{name}: all of its {counted(specs[name].size, 'element')} are zero")
            else:
                remarks.append(f"remark: {name}: all zero, which an untouched bias or shift may be")
    looked_at = counted(len(ranges), "tensor")
    apart = "; ".join(f"{count:,} {why}" for why, count in left_out.items() if count)
    apart = f"; not looked at: {apart}" if apart else ""
    if faults:
        return Check(
            VALUES, "failed", f"{counted(len(faults), 'fault')} in {looked_at}{apart}", (*faults, *remarks)
        )
    if not ranges:
        return Check(VALUES, "skipped", f"no floating-point tensor to look at{apart}")
    also = f"; {counted(len(remarks), 'vector')} all zero" if remarks else ""
    return Check(
        VALUES,
        "ok",
        f"{looked_at} finite, no kernel all zero, every variance positive{also}{apart}",
        tuple(remarks),
    )


def _faults(found: ValueRange, name: str, role: Binding | None) -> Iterable[str]:
    if found.nans:
        yield f"{found.nans:,} NaN"
    if found.infinities:
        yield f"{found.infinities:,} infinite"
    if found.not_positive and _VARIANCE.fullmatch(role.canonical if role else name):
        yield (f"{counted(found.not_positive, 'variance')} not positive (the lowest is {found.lowest:.6g})")


def _is_matrix(spec: TensorSpec, role: Binding | None) -> bool:
    """Whether a tensor is more than a vector; in canonical terms, where every bias has one axis."""
    if role is None and _BIAS.fullmatch(spec.name):
        return False
    shape = role.canonical_shape if role else spec.shape
    return sum(axis > 1 for axis in shape) >= 2
