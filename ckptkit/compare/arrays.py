"""Figures over tensors: what differs between two, and the extremes and statistics of one.

A tensor is walked over piece by piece, so memory stays bounded by a piece and not by a float64 copy of the
largest tensor. Two are first compared bit by bit; figures are computed only where bits differ.

Between tensors of one type every bit counts: 0.0 and −0.0 differ, NaN of other bits differ. Between types
the values count, widened to float64 (complex numbers to complex128; integers among themselves are exact):
0.0 equals −0.0, NaN equals NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from ckptkit.base.tensors import Array, contiguous_chunks

Number = float | int | complex

_BITS_BYTES = 4 << 20
"""Piece of the comparison of bits, which makes no copy of contiguous tensors."""
_FIGURES_BYTES = 1 << 20
"""Piece of the comparison of values: several float64 copies of it are made."""
_REST_BYTES = 32 << 20
"""How much is walked over before memory pages are given back."""


@dataclass(frozen=True)
class Tolerance:
    """How far values may be apart."""

    absolute: float = 0.0  # largest absolute difference allowed
    relative: float = 0.0  # as a share of the first tensor's largest absolute value; either one suffices
    ignore_dtype: bool = False  # another element type alone is not a difference

    @property
    def is_exact(self) -> bool:
        """Whether nothing but the same bits will do."""
        return self.absolute == 0 and self.relative == 0


@dataclass(frozen=True)
class ValueDifference:
    """How the elements of two tensors of one shape differ."""

    elements: int
    differing: int = 0  # for whatever reason
    max_abs: float = 0.0  # largest absolute difference of two finite elements; of complex ones, the modulus
    scale: float = 0.0  # largest absolute value of a finite element of the first tensor
    at: tuple[int, ...] | None = None  # index of the largest difference
    values: tuple[Number, Number] | None = None  # the two elements there
    nan_only_a: int = 0
    nan_only_b: int = 0
    infinities: int = 0  # infinite in one tensor and something else, but not NaN, in the other
    nan_bits: int = 0  # NaN in both, of other bits
    zero_signs: int = 0  # 0.0 in one tensor and −0.0 in the other
    in_bytes: bool = False  # `elements` and `differing` count bytes: the type has no numbers to compare

    @property
    def same(self) -> bool:
        """Whether no element differs."""
        return not self.differing

    @property
    def relative(self) -> float | None:
        """``max_abs`` as a share of ``scale``; None where the first tensor is nothing but zeros."""
        if not self.max_abs:
            return 0.0
        return self.max_abs / self.scale if self.scale else None

    @property
    def not_comparable(self) -> int:
        """Elements that no tolerance covers: NaN or infinite on one side only, and bytes."""
        return self.differing * self.in_bytes + self.nan_only_a + self.nan_only_b + self.infinities

    def joined(self, other: ValueDifference, start: int) -> ValueDifference:
        """Figures of this piece and of the next one, which begins at ``start`` of the flat tensor."""
        summed = ("elements", "differing", "nan_only_a", "nan_only_b", "infinities", "nan_bits", "zero_signs")
        counts = {name: getattr(self, name) + getattr(other, name) for name in summed}
        if other.max_abs > self.max_abs and other.at:
            counts |= {"max_abs": other.max_abs, "at": (start + other.at[0],), "values": other.values}
        return replace(self, **counts, scale=max(self.scale, other.scale))

    def within(self, tolerance: Tolerance) -> bool:
        """Whether a tolerance covers the difference."""
        if self.same:
            return True
        if tolerance.is_exact or self.not_comparable:
            return False
        return self.max_abs <= max(tolerance.absolute, tolerance.relative * self.scale)

    @property
    def remark(self) -> str:
        """Describe what the figures leave out.

        Examples
        --------
        >>> ValueDifference(elements=9, differing=3, nan_only_b=2, zero_signs=1).remark
        '2 NaN in B only, 1 other sign of zero'
        """
        counts = (
            (self.nan_only_a, "NaN in A only"),
            (self.nan_only_b, "NaN in B only"),
            (self.infinities, "infinite on one side, or of other sign"),
            (self.nan_bits, "NaN of other bits"),
            (self.zero_signs, "other sign of zero"),
        )
        if self.in_bytes:
            return "counted in bytes"
        return ", ".join(f"{count:,} {what}" for count, what in counts if count)

    def to_json(self) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes; what float64 cannot hold is null."""
        plain = asdict(self)
        plain |= {"max_abs": _finite(self.max_abs), "relative": _finite(self.relative)}
        plain["values"] = self.values and [str(v) if isinstance(v, complex) else v for v in self.values]
        return plain


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def compare_arrays(a: Array, b: Array, *, rest: Callable[[], None] | None = None) -> ValueDifference:
    """Compare two tensors of one shape, of any strides and types; ``rest`` may give memory pages back.

    Examples
    --------
    >>> import numpy
    >>> a = numpy.array([[1.0, -4.0], [0.0, 2.0]], "float32")
    >>> b = numpy.array([[1.0, -4.0], [0.5, 2.25]], "float32")
    >>> found = compare_arrays(a, b)
    >>> found.differing, found.max_abs, found.relative, found.at, found.values
    (2, 0.5, 0.125, (1, 0), (0.0, 0.5))
    """
    if a.shape != b.shape:
        raise ValueError(f"shapes {list(a.shape)} and {list(b.shape)} differ")
    pause = rest or (lambda: None)
    if a.dtype == b.dtype and _same_bits(a, b, pause):
        return ValueDifference(a.size)
    import numpy

    figures = _integers if {a.dtype.kind, b.dtype.kind} <= set("iub") else _numbers
    found = ValueDifference(0)
    with numpy.errstate(all="ignore"):
        for start, left, right in _side_by_side(a, b, _FIGURES_BYTES, pause):
            found = found.joined(figures(left, right), start)
    at = found.at and tuple(int(axis) for axis in numpy.unravel_index(found.at[0], a.shape))
    return replace(found, at=at)


def compare_bytes(a: memoryview, b: memoryview) -> ValueDifference:
    """Compare two tensors of one opaque type and one size, byte by byte.

    Examples
    --------
    >>> found = compare_bytes(memoryview(b"abcd"), memoryview(b"abxy"))
    >>> found.differing, found.elements, found.remark
    (2, 4, 'counted in bytes')
    """
    import numpy

    differing = 0
    for start in range(0, a.nbytes, _BITS_BYTES):
        left, right = (numpy.frombuffer(side[start : start + _BITS_BYTES], numpy.uint8) for side in (a, b))
        differing += int(numpy.count_nonzero(left != right))
    return ValueDifference(a.nbytes, differing, in_bytes=True)


def _side_by_side(
    a: Array, b: Array, chunk_bytes: int, pause: Callable[[], None]
) -> Iterator[tuple[int, Array, Array]]:
    """Walk over both tensors at once: index of the first element, and two pieces of one length.

    Tensors of other strides or types are cut at other places; the shorter of two pieces sets the step.
    """
    if not a.size:
        return
    pieces_a, pieces_b = (contiguous_chunks(array, chunk_bytes=chunk_bytes) for array in (a, b))
    left, right = next(pieces_a), next(pieces_b)
    start = walked = 0
    while start < a.size:
        count = min(left.size, right.size)
        yield start, left[:count], right[:count]
        start += count
        walked += left[:count].nbytes
        left, right = left[count:], right[count:]
        left = left if left.size else next(pieces_a, left)
        right = right if right.size else next(pieces_b, right)
        if walked >= _REST_BYTES:
            pause()
            walked = 0


def _same_bits(a: Array, b: Array, pause: Callable[[], None]) -> bool:
    import numpy

    for _, left, right in _side_by_side(a, b, _BITS_BYTES, pause):
        word = f"u{8 if left.nbytes % 8 == 0 else left.itemsize}"
        if not numpy.array_equal(left.view(word), right.view(word)):
            return False
    return True


def _integers(a: Array, b: Array) -> ValueDifference:
    """Compare exactly, by int64 where that holds every difference, by Python's integers where it does not."""
    import numpy

    enough = "int64" if max(a.itemsize, b.itemsize) <= 4 else "object"
    gaps = numpy.abs(a.astype(enough) - b.astype(enough))
    index = int(numpy.argmax(gaps))
    return ValueDifference(
        a.size,
        int(numpy.count_nonzero(gaps)),
        max_abs=int(gaps[index]),
        scale=max(abs(int(a.max())), abs(int(a.min()))),
        at=(index,),
        values=(int(a[index]), int(b[index])),
    )


def _numbers(a: Array, b: Array) -> ValueDifference:
    import numpy

    wide = "complex128" if "c" in (a.dtype.kind, b.dtype.kind) else "float64"
    x, y = a.astype(wide), b.astype(wide)
    gaps, sizes = numpy.abs(x - y), numpy.abs(x)
    same_type = a.dtype == b.dtype
    differs = _other_bits(a, b) if same_type else ~((x == y) | (numpy.isnan(x) & numpy.isnan(y)))
    special: dict[str, Any] = {}
    if not math.isfinite(float(gaps.max())):
        finite = numpy.isfinite(x) & numpy.isfinite(y)
        special = _not_finite(x, y, differs & ~finite)
        sizes[~numpy.isfinite(x)] = 0  # what is left of scale and largest difference: finite elements
        gaps[~finite] = 0
    index = int(numpy.argmax(gaps))
    return ValueDifference(
        a.size,
        int(numpy.count_nonzero(differs)),
        max_abs=float(gaps[index]),
        scale=float(sizes.max()),
        at=(index,),
        values=(x[index].item(), y[index].item()),
        zero_signs=int(numpy.count_nonzero(differs & (x == y))) if same_type else 0,
        **special,
    )


def _not_finite(x: Array, y: Array, differs: Array) -> dict[str, int]:
    """Count the differing elements that are not finite on both sides."""
    import numpy

    nan_x, nan_y = numpy.isnan(x[differs]), numpy.isnan(y[differs])
    kinds = {
        "nan_only_a": nan_x & ~nan_y,
        "nan_only_b": nan_y & ~nan_x,
        "nan_bits": nan_x & nan_y,
        "infinities": ~nan_x & ~nan_y,
    }
    return {kind: int(numpy.count_nonzero(found)) for kind, found in kinds.items()}


def _other_bits(a: Array, b: Array) -> Array:
    """Which elements of two pieces of one type differ in any bit."""
    import numpy

    word = f"u{min(a.itemsize, 8)}"
    words = numpy.not_equal(a.view(word).reshape(a.size, -1), b.view(word).reshape(a.size, -1))
    differs: Array = words.any(axis=1)
    return differs


# -- one tensor ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ValueRange:
    """Extremes of one tensor."""

    lowest: float  # over the finite elements, as is `highest`; NaN when there are none
    highest: float
    nans: int = 0
    infinities: int = 0
    not_positive: int = 0

    def is_constant(self, value: float) -> bool:
        """Whether every element is ``value``."""
        return not (self.nans or self.infinities) and self.lowest == self.highest == value


def value_range(array: Array) -> ValueRange:
    """Extremes of a tensor of any strides; of a complex one, of its real and imaginary parts together.

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


@dataclass(frozen=True)
class Statistics:
    """Figures over one tensor's finite elements, computed in float64."""

    minimum: float | None  # as the next three, None when no element is finite, or the value exceeds float64
    maximum: float | None
    mean: float | None
    std: float | None  # divides by the number of elements
    zeros: int
    nans: int
    infinities: int


def statistics(array: Array) -> Statistics | None:
    """Figures over a tensor; None for complex numbers.

    Mean and squared deviations of the pieces are merged pairwise (Chan, Golub and LeVeque, 1983), which
    keeps the digits that a plain sum of squares would lose.

    Examples
    --------
    >>> import numpy
    >>> statistics(numpy.array([0.0, 3.0, numpy.nan, 6.0], "float32"))
    Statistics(minimum=0.0, maximum=6.0, mean=3.0, std=2.449489742783178, zeros=1, nans=1, infinities=0)
    """
    import numpy

    if array.dtype.kind == "c":
        return None
    low, high, mean, squares = math.inf, -math.inf, 0.0, 0.0
    count = zeros = nans = infinities = 0
    with numpy.errstate(all="ignore"):
        for chunk in contiguous_chunks(array):
            numbers = chunk.astype("float64")
            finite = numbers[numpy.isfinite(numbers)]
            nans += int(numpy.isnan(numbers).sum())
            infinities += int(numpy.isinf(numbers).sum())
            if not finite.size:
                continue
            zeros += int(finite.size - numpy.count_nonzero(finite))
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
            piece_mean = float(finite.mean())
            gap = piece_mean - mean
            total = count + finite.size
            squares += (
                float(numpy.square(finite - piece_mean).sum()) + gap * gap * count * finite.size / total
            )
            mean += gap * finite.size / total
            count = total
    if not count:
        return Statistics(None, None, None, None, 0, nans, infinities)
    std = math.sqrt(squares / count) if math.isfinite(squares) else None  # float64's own range can be left
    return Statistics(low, high, mean if math.isfinite(mean) else None, std, zeros, nans, infinities)
