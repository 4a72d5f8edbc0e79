"""Changes of axis order: how the same tensor is stored in different layouts.

An op is written as two axis patterns, one for each side: ``"h w i o"`` against ``"o i h w"``. A letter is
an axis, ``(h d)`` two axes merged into one, ``1`` an axis of length one. Both sides name the same axes, so
the inverse of an op is the same op read the other way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ckptkit.base.tensors import Array

Site = Mapping[str, int]
"""One place of an architecture: its indices (``stage``, ``block``) and the sizes of its axes."""

Shape = tuple[int, ...]

_TOKEN = re.compile(r"\(([a-z ]+)\)|([a-z])|(1)")


def _parse(pattern: str) -> tuple[tuple[str, ...], ...]:
    """Split an axis pattern into one group of letters per axis; a unit axis is an empty group."""
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
    def _external(self) -> tuple[tuple[str, ...], ...]:
        return _parse(self.external)

    @cached_property
    def _canonical(self) -> tuple[tuple[str, ...], ...]:
        return _parse(self.canonical)

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

    def to_canonical(self, array: Array, shape: Shape) -> Array:
        """View of an external array in canonical axis order, ``shape`` being its canonical shape."""
        return self._rearrange(array, self._external, self._canonical, shape)

    def to_external(self, array: Array, shape: Shape) -> Array:
        """View of a canonical array in external axis order, ``shape`` being its external shape."""
        return self._rearrange(array, self._canonical, self._external, shape)

    def _rearrange(
        self,
        array: Array,
        source: tuple[tuple[str, ...], ...],
        target: tuple[tuple[str, ...], ...],
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


def _axis_lengths(
    pattern: tuple[tuple[str, ...], ...], shape: Shape, known: dict[str, int]
) -> dict[str, int]:
    """Length of every letter of ``pattern``, one unknown per merged axis at most."""
    if len(pattern) != len(shape):
        raise ValueError(f"{len(pattern)} axes expected, shape {list(shape)} has {len(shape)}")
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
        Op("channels", "c", "1 c 1 1"),
    )
}
"""Every op there is, external → canonical. HWIO kernels become OIHW, attention projections matrices."""
