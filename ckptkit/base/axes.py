"""Changes of axis order: how the same tensor is stored in different layouts.

An op is written as two axis patterns, one for each side: ``"h w i o"`` against ``"o i h w"``. A letter or a
word is an axis, ``(h d)`` two axes merged into one, ``1`` an axis of length one. Both sides name the same
axes, so the inverse of an op is the same op read the other way. Where one tensor is made of several, a
`Fusion` says which part of it each of them is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from ckptkit.base.tensors import Array
from ckptkit.base.text import counted

Site = Mapping[str, int]
"""One place of an architecture: its indices (``stage``, ``block``) and the sizes of its axes."""

Shape = tuple[int, ...]

Groups = tuple[tuple[str, ...], ...]
"""An axis pattern: the names in each axis, none in one of length one."""

_TOKEN = re.compile(r"\(([A-Za-z0-9_ ]+)\)|([A-Za-z_][A-Za-z0-9_]*)|(1)")


def parse_axes(pattern: str) -> Groups:
    """Split an axis pattern into one group of names per axis; a unit axis is an empty group.

    >>> parse_axes("(heads d) i 1")
    (('heads', 'd'), ('i',), ())
    """
    groups = []
    for merged, letter, unit in _TOKEN.findall(pattern):
        groups.append(() if unit else tuple((merged or letter).split()))
    return tuple(groups)


@dataclass(frozen=True)
class Op:
    """A change of axis order between a layout and the canonical one, with its inverse.

    >>> import numpy
    >>> conv = Op("conv", "h w i o", "o i h w")
    >>> conv.to_canonical(numpy.zeros((3, 3, 8, 16)), (16, 8, 3, 3)).shape
    (16, 8, 3, 3)
    >>> conv.inverse.to_canonical(numpy.zeros((16, 8, 3, 3)), (3, 3, 8, 16)).shape
    (3, 3, 8, 16)
    """

    name: str
    external: str = ""  # axis patterns of the two sides; both empty for the identity
    canonical: str = ""
    sizes: Site = field(default_factory=dict, hash=False)  # lengths of axes that are merged on both sides

    @cached_property
    def _external(self) -> Groups:
        return parse_axes(self.external)

    @cached_property
    def _canonical(self) -> Groups:
        return parse_axes(self.canonical)

    @property
    def is_identity(self) -> bool:
        """Whether it leaves axes alone."""
        return self.external == self.canonical

    @property
    def inverse(self) -> Op:
        """The same op read the other way."""
        return self if self.is_identity else Op(f"{self.name}⁻¹", self.canonical, self.external, self.sizes)

    def external_shape(self, canonical: Shape, sizes: Site) -> Shape:
        """Shape on the external side of a tensor whose canonical shape is known."""
        if self.is_identity:
            return canonical
        lengths = _axis_lengths(self._canonical, canonical, dict(sizes))
        return tuple(math.prod(lengths[letter] for letter in group) for group in self._external)

    def canonical_shape(self, external: Shape) -> Shape:
        """Shape on the canonical side of a tensor whose external shape is known."""
        if self.external and len(self._external) != len(external):
            raise ValueError(
                f"{counted(len(self._external), 'axis')} expected, shape {list(external)} has {len(external)}"
            )
        return self.inverse.external_shape(external, self.sizes)

    def to_canonical(self, array: Array, shape: Shape) -> Array:
        """View of an external array in canonical axis order, ``shape`` being its canonical shape."""
        return self._rearrange(array, self._external, self._canonical, shape)

    def to_external(self, array: Array, shape: Shape) -> Array:
        """View of a canonical array in external axis order, ``shape`` being its external shape."""
        return self._rearrange(array, self._canonical, self._external, shape)

    def _rearrange(
        self,
        array: Array,
        source: Groups,
        target: Groups,
        shape: Shape,
    ) -> Array:
        if self.is_identity:
            return array
        known = dict(self.sizes)
        # A merged axis of one side is open on that side alone; the other side has its letters one by one.
        for group, dim in zip(target, shape, strict=True):
            if len(group) == 1:
                known[group[0]] = dim
        lengths = _axis_lengths(source, array.shape, known)
        if tuple(math.prod(lengths[letter] for letter in group) for group in target) != tuple(shape):
            raise ValueError(f"axes of shape {list(array.shape)} do not make {list(shape)}")
        source_letters = [letter for group in source for letter in group]
        target_letters = [letter for group in target for letter in group]
        split = array.reshape([lengths[letter] for letter in source_letters])
        turned = split.transpose([source_letters.index(letter) for letter in target_letters])
        return turned.reshape(shape)


def _axis_lengths(pattern: Groups, shape: Shape, known: dict[str, int]) -> dict[str, int]:
    """Length of every letter of ``pattern``, one unknown per merged axis at most."""
    if len(pattern) != len(shape):
        raise ValueError(f"{counted(len(pattern), 'axis')} expected, shape {list(shape)} has {len(shape)}")
    lengths = dict(known)
    for group, dim in zip(pattern, shape, strict=True):
        open_letters = [letter for letter in group if letter not in lengths]
        rest = math.prod(lengths[letter] for letter in group if letter in lengths)
        if len(open_letters) > 1 or (open_letters and (rest == 0 or dim % rest)):
            raise ValueError(f"axis of length {dim} cannot be split into {' × '.join(group)}")
        if open_letters:
            lengths[open_letters[0]] = dim // rest
        elif rest != dim:
            raise ValueError(f"axis of length {dim} found where {rest} was expected in shape {list(shape)}")
    return lengths


# -- tensors that are parts of one ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Region:
    """A part of a tensor: a run of one axis, or one index of it.

    >>> import numpy
    >>> fused = numpy.arange(12).reshape(2, 6)
    >>> Region((2, 6), 1, 4, 2).of(fused).tolist()
    [[4, 5], [10, 11]]
    >>> Region((2, 2, 3), 1, 1).of(fused).tolist()
    [[3, 4, 5], [9, 10, 11]]
    >>> Region((2, 2, 3), 1, 1, within=Region((2, 3), 0, 1, 1)).of(fused).tolist()
    [[9, 10, 11]]
    """

    whole: Shape  # what the tensor is seen as: axes may be taken apart, never merged, so this is a view
    axis: int
    start: int
    length: int | None = None  # None: one index, and the axis is gone
    within: Region | None = None  # what is taken of that

    @property
    def shape(self) -> Shape:
        """Shape of the part."""
        if self.within is not None:
            return self.within.shape
        length = () if self.length is None else (self.length,)
        return (*self.whole[: self.axis], *length, *self.whole[self.axis + 1 :])

    def of(self, array: Array) -> Array:
        """View of the part; writable where the array is contiguous and writable."""
        at = self.start if self.length is None else slice(self.start, self.start + self.length)
        view: Array = array.reshape(self.whole)[(*(slice(None),) * self.axis, at, ...)]  # 0-d too
        return view if self.within is None else self.within.of(view)


@dataclass(frozen=True)
class Fusion:
    """How several tensors are parts of one: each a run of an axis, an index of an axis of its own, or both.

    >>> whole, regions, _ = Fusion(axis=0).joined(Op("", "i o", "o i"), [(8, 4)] * 3)
    >>> whole, [region.start for region in regions]
    ((12, 8), [0, 4, 8])
    >>> interleaved = Op("", "(h three d) i", "i (h d)", {"h": 2})
    >>> [shape for _, _, shape in Fusion(over="three").cut(interleaved, (12, 8), 3)]
    [(8, 4), (8, 4), (8, 4)]
    >>> Fusion(axis=1, over="e").joined(IDENTITY, [(6, 4)] * 10, 2)[0]
    (5, 12, 4)
    """

    axis: int | None = None  # of the whole, on which each part is a run; negative: from the last
    over: str = ""  # the axis of that name is the whole's alone, and part n is its index n
    lengths: tuple[int, ...] = ()  # of the runs; empty: all the same

    def cut(self, op: Op, whole: Shape, count: int | None = None) -> Iterator[tuple[Region, Op, Shape]]:
        """Each part of a whole: where it is, the op that turns it, and the shape that it gets.

        ``op`` leads from the whole's axes to a part's; ``count`` is the number of runs, or without runs that
        of indices, where it is known. Of parts that are both, the runs of one index follow each other.
        """
        if not self.over:
            yield from self._runs(op, whole, self._axis(len(whole)), count or 1)
            return
        fused, part = self._patterns(op.external, op.canonical, len(whole) - 1)
        if len(fused) != len(whole):
            raise ValueError(f"{counted(len(fused), 'axis')} expected, shape {list(whole)} has {len(whole)}")
        known = {**op.sizes, **({self.over: count} if count is not None and self.axis is None else {})}
        at, group, rest = self._opened(fused)
        lengths = _axis_lengths((fused[group],), (whole[group],), known)
        split = (*whole[:group], *(lengths[name] for name in fused[group]), *whole[group + 1 :])
        inner = Op(op.name, _text(rest), _text(part), op.sizes)
        for index in range(lengths[self.over]):
            region = Region(split, at, index)
            if self.axis is None:
                yield region, inner, inner.canonical_shape(region.shape)
                continue
            for run, turned, shape in self._runs(inner, region.shape, self._axis_in(fused), count or 1):
                yield replace(region, within=run), turned, shape

    def joined(self, op: Op, parts: Sequence[Shape], each: int = 1) -> tuple[Shape, list[Region], Op]:
        """Shape of the whole, the place of each part in it, and the op that turns the parts.

        ``op`` leads from a part's axes to the whole's; ``each`` is the number of runs of an index.
        """
        if not self.over:
            shapes = [op.canonical_shape(shape) for shape in parts]
            return *self._joined_runs(shapes, self._axis(len(shapes[0]))), op
        each = 1 if self.axis is None else each
        rows = [tuple(parts[start : start + each]) for start in range(0, len(parts), each)]
        if other := next((row for row in rows if row != rows[0]), None):
            here, there = next((a, b) for a, b in zip(rows[0], other, strict=True) if a != b)
            raise ValueError(f"parts of shapes {list(here)} and {list(there)}")
        fused, part = self._patterns(op.canonical, op.external, len(parts[0]))
        at, group, rest = self._opened(fused)
        inner = Op(op.name, _text(part), _text(rest), op.sizes)
        shape = inner.canonical_shape(parts[0])
        runs: Sequence[Region | None] = (None,)
        if self.axis is not None:
            shapes = [inner.canonical_shape(shape) for shape in rows[0]]
            shape, runs = self._joined_runs(shapes, self._axis_in(fused))
        split = (*shape[:at], len(rows), *shape[at:])
        end = group + len(fused[group])
        whole = (*split[:group], math.prod(split[group:end]), *split[end:])
        return whole, [Region(split, at, n, within=run) for n in range(len(rows)) for run in runs], inner

    def _runs(self, op: Op, whole: Shape, axis: int, count: int) -> Iterator[tuple[Region, Op, Shape]]:
        start = 0
        for length in self._lengths_of(whole[axis], count):
            region = Region(whole, axis, start, length)
            yield region, op, op.canonical_shape(region.shape)
            start += length

    def _joined_runs(self, shapes: Sequence[Shape], axis: int) -> tuple[Shape, list[Region]]:
        across = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
        if len(across) > 1 or any(len(shape) != len(shapes[0]) for shape in shapes):
            named = " and ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
            raise ValueError(f"parts of shapes {named} cannot be joined along axis {self.axis}")
        found = tuple(shape[axis] for shape in shapes)
        if self.lengths and found != self.lengths:
            raise ValueError(f"parts of lengths {list(found)} instead of {list(self.lengths)}")
        if not self.lengths and len(set(found)) > 1:
            raise ValueError(
                f"parts of different lengths: write 'parts: {list(found)}', so that the way back is known"
            )
        whole = (*shapes[0][:axis], sum(found), *shapes[0][axis + 1 :])
        starts = [sum(found[:n]) for n in range(len(found))]
        return whole, [Region(whole, axis, *place) for place in zip(starts, found, strict=True)]

    def _axis(self, rank: int) -> int:
        given = self.axis or 0
        axis = given + rank if given < 0 else given
        if not 0 <= axis < rank:
            raise ValueError(f"axis {given} of a tensor of {counted(rank, 'axis')}")
        return axis

    def _axis_in(self, fused: Groups) -> int:
        """The axis of the runs in what one index of `over` is seen as."""
        axis, (_, group, _) = self._axis(len(fused)), self._opened(fused)
        if axis == group:
            raise ValueError(f"axis {self.axis} is that of {self.over!r}: 'axis' is another one")
        return axis if axis < group else axis + len(fused[group]) - 2

    def _lengths_of(self, whole: int, count: int) -> tuple[int, ...]:
        if self.lengths:
            if sum(self.lengths) != whole:
                named = f"{list(self.lengths)} make {sum(self.lengths)}"
                raise ValueError(f"axis {self.axis} has length {whole}, 'parts' {named}")
            return self.lengths
        if whole % count:
            raise ValueError(
                f"axis {self.axis} of length {whole} is not {counted(count, 'equal part')}: give 'parts'"
            )
        return (whole // count,) * count

    def _patterns(self, fused: str, part: str, rank: int) -> tuple[Groups, Groups]:
        """Both patterns; without any the axis `over` is the first of the whole."""
        if fused or part:
            return parse_axes(fused), parse_axes(part)
        others = tuple((f"_{n}",) for n in range(rank))
        return ((self.over,), *others), others

    def _opened(self, fused: Groups) -> tuple[int, int, Groups]:
        """Where `over` is when its axis is taken apart, which axis of the whole that is, and the rest."""
        group = next(n for n, names in enumerate(fused) if self.over in names)
        atoms = fused[group]
        place = atoms.index(self.over)
        apart = tuple((name,) for name in atoms if name != self.over)
        return group + place, group, (*fused[:group], *apart, *fused[group + 1 :])


def _text(groups: Groups) -> str:
    """A pattern as it is written."""
    return " ".join(
        "1" if not group else group[0] if len(group) == 1 else f"({' '.join(group)})" for group in groups
    )


IDENTITY = Op("identity")

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        IDENTITY,
        Op("conv", "h w i o", "o i h w"),
        Op("depthwise", "h w c 1", "c 1 h w"),
        Op("heads_in", "c h d", "(h d) c"),
        Op("heads_out", "h d c", "c (h d)"),
        Op("flatten", "h d", "(h d)"),
        Op("conv1x1_to_linear", "1 1 i o", "o i"),
        Op("linear", "i o", "o i"),
        Op("linear_to_conv1x1", "i o", "o i 1 1"),
        Op("channels", "c", "1 c 1 1"),
    )
}
"""Every op there is, external → canonical. HWIO kernels become OIHW, attention projections matrices."""
