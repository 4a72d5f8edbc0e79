"""Two tensors against each other: first their bits, then, where those differ, figures over the elements.

Both are walked over in the same order piece by piece, so memory stays bounded by a piece and not by a
float64 copy of the largest tensor.

What counts as a differing element
----------------------------------
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
    """How far values may be apart.

    Parameters
    ----------
    absolute : float
        Largest absolute difference allowed.
    relative : float
        The same, as a share of the largest absolute value of the first tensor. Either one suffices.
    ignore_dtype : bool
        Whether another element type alone is no difference.
    """

    absolute: float = 0.0
    relative: float = 0.0
    ignore_dtype: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether nothing but the same bits will do."""
        return self.absolute == 0 and self.relative == 0


@dataclass(frozen=True)
class ValueDifference:
    """How the elements of two tensors of one shape differ.

    Parameters
    ----------
    elements : int
        How many there are.
    differing : int
        How many differ, for whatever reason.
    max_abs : float or int
        Largest absolute difference of two finite elements; of complex ones, the modulus.
    scale : float or int
        Largest absolute value of a finite element of the first tensor.
    at : tuple of int or None
        Index of the largest difference.
    values : tuple of two numbers, or None
        The two elements there.
    nan_only_a, nan_only_b : int
        Elements that are NaN in one tensor only.
    infinities : int
        Elements that are infinite in one tensor and something else, but not NaN, in the other.
    nan_bits : int
        Elements that are NaN in both, of other bits.
    zero_signs : int
        Elements that are 0.0 in one tensor and −0.0 in the other.
    in_bytes : bool
        Whether ``elements`` and ``differing`` count bytes, of a type that has no numbers to compare.
    """

    elements: int
    differing: int = 0
    max_abs: float = 0.0
    scale: float = 0.0
    at: tuple[int, ...] | None = None
    values: tuple[Number, Number] | None = None
    nan_only_a: int = 0
    nan_only_b: int = 0
    infinities: int = 0
    nan_bits: int = 0
    zero_signs: int = 0
    in_bytes: bool = False

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
        """What the figures do not say, in words; empty where they say it all.

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
    """Compare two tensors of one shape, of any strides and element types.

    Parameters
    ----------
    a, b : numpy.ndarray
        Of one shape.
    rest : callable, optional
        Called every few tens of megabytes: the moment to give memory pages back.

    Raises
    ------
    ValueError
        When the shapes differ.

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
    pause = rest or _go_on
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


def _go_on() -> None:
    pass


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
