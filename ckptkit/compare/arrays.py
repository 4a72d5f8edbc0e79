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
from dataclasses import asdict, dataclass
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
    tally = _Tally(same_type=a.dtype == b.dtype)
    for start, left, right in _side_by_side(a, b, _FIGURES_BYTES, pause):
        tally.add(start, left, right)
    return tally.result(a.shape)


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


class _Tally:
    """Figures over pairs of pieces, gathered one pair at a time."""

    def __init__(self, *, same_type: bool) -> None:
        self._same_type = same_type
        self._elements = self._differing = 0
        self._nan_only_a = self._nan_only_b = self._infinities = self._nan_bits = self._zero_signs = 0
        self._max_abs: float = 0.0
        self._scale: float = 0.0
        self._at: int | None = None
        self._values: tuple[Number, Number] | None = None

    def add(self, start: int, a: Array, b: Array) -> None:
        """Take two contiguous pieces of one length; ``start`` is the index of their first element."""
        import numpy

        self._elements += a.size
        with numpy.errstate(all="ignore"):
            if {a.dtype.kind, b.dtype.kind} <= set("iub"):
                self._add_integers(start, a, b)
            else:
                self._add_numbers(start, a, b)

    def _add_integers(self, start: int, a: Array, b: Array) -> None:
        """Exactly, by int64 where that holds every difference, by Python's integers where it does not."""
        import numpy

        enough = "int64" if max(a.itemsize, b.itemsize) <= 4 else "object"
        gaps = numpy.abs(a.astype(enough) - b.astype(enough))
        self._differing += int(numpy.count_nonzero(gaps))
        self._scale = max(self._scale, abs(int(a.max())), abs(int(a.min())))
        index = int(numpy.argmax(gaps))
        self._keep(int(gaps[index]), start + index, (int(a[index]), int(b[index])))

    def _add_numbers(self, start: int, a: Array, b: Array) -> None:
        import numpy

        wide = "complex128" if "c" in (a.dtype.kind, b.dtype.kind) else "float64"
        x, y = a.astype(wide), b.astype(wide)
        gaps, sizes = numpy.abs(x - y), numpy.abs(x)
        differs = _other_bits(a, b) if self._same_type else ~((x == y) | (numpy.isnan(x) & numpy.isnan(y)))
        self._differing += int(numpy.count_nonzero(differs))
        if not math.isfinite(float(gaps.max())):
            finite = numpy.isfinite(x) & numpy.isfinite(y)
            self._add_special(x, y, differs & ~finite)
            sizes[~numpy.isfinite(x)] = 0  # what is left of scale and largest difference: finite elements
            gaps[~finite] = 0
        if self._same_type:
            self._zero_signs += int(numpy.count_nonzero(differs & (x == y)))
        self._scale = max(self._scale, float(sizes.max()))
        index = int(numpy.argmax(gaps))
        if gaps[index]:
            self._keep(float(gaps[index]), start + index, (x[index].item(), y[index].item()))

    def _add_special(self, x: Array, y: Array, differs: Array) -> None:
        """Count the differing elements that are not finite on both sides."""
        import numpy

        x, y = x[differs], y[differs]
        nan_x, nan_y = numpy.isnan(x), numpy.isnan(y)
        self._nan_only_a += int(numpy.count_nonzero(nan_x & ~nan_y))
        self._nan_only_b += int(numpy.count_nonzero(nan_y & ~nan_x))
        self._nan_bits += int(numpy.count_nonzero(nan_x & nan_y))
        self._infinities += int(numpy.count_nonzero(~nan_x & ~nan_y))

    def _keep(self, gap: float, index: int, values: tuple[Number, Number]) -> None:
        if gap > self._max_abs:
            self._max_abs, self._at, self._values = gap, index, values

    def result(self, shape: tuple[int, ...]) -> ValueDifference:
        import numpy

        at = None if self._at is None else tuple(int(axis) for axis in numpy.unravel_index(self._at, shape))
        return ValueDifference(
            elements=self._elements,
            differing=self._differing,
            max_abs=self._max_abs,
            scale=self._scale,
            at=at,
            values=self._values,
            nan_only_a=self._nan_only_a,
            nan_only_b=self._nan_only_b,
            infinities=self._infinities,
            nan_bits=self._nan_bits,
            zero_signs=self._zero_signs,
        )


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
