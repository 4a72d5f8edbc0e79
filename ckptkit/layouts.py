"""The rule algebra: how the same tensors are named and ordered in different layouts.

A layout is data: one `Rule` per tensor of the architecture, saying its external name and the `Op` that
changes its axes. Expanded over an architecture's sites (its blocks, its head …) it becomes one exact table
of `Binding` rows, canonical ↔ external, with both shapes. Nothing is guessed from a shape, because square
kernels would hide a wrong transpose.

Axis patterns
-------------
An op is written as two axis patterns, one for each side: ``"h w i o"`` against ``"o i h w"``. A letter is
an axis, ``(h d)`` two axes merged into one, ``1`` an axis of length one. Both sides name the same axes, so
the inverse of an op is the same op read the other way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from ckptkit.tensors import Array

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

    Parameters
    ----------
    name : str
        Named after what it does.
    external, canonical : str
        Axis patterns of the two sides; both empty for the identity.

    Examples
    --------
    >>> import numpy
    >>> conv = Op("conv", "h w i o", "o i h w")
    >>> conv.to_canonical(numpy.zeros((3, 3, 8, 16)), (16, 8, 3, 3)).shape
    (16, 8, 3, 3)
    >>> conv.inverse.to_canonical(numpy.zeros((16, 8, 3, 3)), (3, 3, 8, 16)).shape
    (3, 3, 8, 16)
    """

    name: str
    external: str = ""
    canonical: str = ""

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
        return self if self.is_identity else Op(f"{self.name}⁻¹", self.canonical, self.external)

    def external_shape(self, canonical: Shape, sizes: Site) -> Shape:
        """Shape on the external side of a tensor whose canonical shape is known.

        Parameters
        ----------
        canonical : tuple of int
        sizes : mapping of str to int
            Lengths of the axes that a merged axis must be split into, by letter.

        Raises
        ------
        ValueError
            When the shape does not fit the pattern.
        """
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
        known: dict[str, int] = {}
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


@dataclass(frozen=True)
class Definition:
    """One tensor of an architecture, in canonical terms.

    Parameters
    ----------
    name : str
        Canonical name with the site's indices in braces: ``stages.{stage}.{block}.expand_conv.weight``.
    shape : tuple
        Canonical shape: numbers, or keys of the site.
    sites : str
        The set of sites it stands at.
    trainable : bool
        Whether it is counted as a parameter (BatchNorm statistics are not).
    part : str
        ``head`` for what a headless conversion drops, ``bn_statistics`` for what the first MOAT uploads
        lack, ``position`` for position embeddings, ``counter`` for BatchNorm's integer count of training
        steps, which travels along where it is there and is never missed, ``body`` otherwise.
    """

    name: str
    shape: tuple[int | str, ...]
    sites: str
    trainable: bool = True
    part: str = "body"


@dataclass(frozen=True)
class Rule:
    """How a layout names and orders one tensor.

    Parameters
    ----------
    canonical : str
        The `Definition`'s name.
    external : str
        The layout's name, with the site's indices in braces.
    op : str
        Key of `OPS`.
    aliases : tuple of str
        Other external names that are read but never written.
    """

    canonical: str
    external: str
    op: str = "identity"
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ignore:
    """Tensors of a source file that a conversion leaves out, by name and with a reason.

    Parameters
    ----------
    name : str
        What they are, in a word.
    pattern : str
        Regular expression for the whole tensor name. A group ``variable`` must be a name of the layout.
    reason : str
        Why leaving them out loses nothing.
    """

    name: str
    pattern: str
    reason: str

    def matches(self, tensor: str, variables: Mapping[str, object]) -> bool:
        """Whether the rule covers ``tensor``; ``variables`` are the layout's own names."""
        found = re.fullmatch(self.pattern, tensor)
        if found is None:
            return False
        variable = found.groupdict().get("variable")
        return variable is None or variable in variables


@dataclass(frozen=True)
class Twin:
    """How a layout calls the second copy of a tensor that stands beside the first.

    Parameters
    ----------
    holds : {"ema", "raw"}
        What the second copy is: the moving average, or the weights being trained. The plain name has the
        other one.
    prefix, suffix : str
        What its name adds to the plain name.
    separator : str
        What stands in its name for each dot of the plain one.

    Examples
    --------
    >>> Twin("raw", prefix="ema_", separator="_").of("backbone.norm1.weight")
    'ema_backbone_norm1_weight'
    """

    holds: Literal["ema", "raw"]
    prefix: str = ""
    suffix: str = ""
    separator: str = "."

    def of(self, name: str) -> str:
        """Name of a tensor's second copy."""
        return self.prefix + name.replace(".", self.separator) + self.suffix


@dataclass(frozen=True)
class Layout:
    """Names and axis order of one way to store an architecture.

    Parameters
    ----------
    name : str
        ``torch``, ``deeplab2``, ``keras`` …
    rules : tuple of Rule
        One per `Definition`.
    ignores : tuple of Ignore
        What else such files hold.
    twin : Twin or None
        How files call a second copy of the weights.
    headless : str or None
        Layout whose names a file without head has, where that is another one: code for dense prediction
        builds the backbone alone.
    """

    name: str
    rules: tuple[Rule, ...]
    ignores: tuple[Ignore, ...] = ()
    twin: Twin | None = None
    headless: str | None = None

    @cached_property
    def by_canonical(self) -> dict[str, Rule]:
        """Rules by the name of what they map."""
        return {rule.canonical: rule for rule in self.rules}


@dataclass(frozen=True)
class Binding:
    """One row of an expanded table: the same tensor on both sides.

    Shapes are tuples of int; ``op`` leads from the external side to the canonical one.
    """

    canonical: str
    canonical_shape: Shape
    external: str
    external_shape: Shape
    op: Op
    trainable: bool
    part: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A layout expanded over one architecture: the exact list of its tensors."""

    layout: Layout
    bindings: tuple[Binding, ...]
    by_canonical: Mapping[str, Binding] = field(init=False, repr=False, compare=False)
    by_external: Mapping[str, Binding] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = {b.canonical: b for b in self.bindings}
        external = {name: b for b in self.bindings for name in (*b.aliases, b.external)}
        if len(names) != len(self.bindings) or len({b.external for b in self.bindings}) != len(names):
            raise ValueError(f"layout {self.layout.name}: two tensors share a name")
        object.__setattr__(self, "by_canonical", names)
        object.__setattr__(self, "by_external", external)

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(math.prod(b.canonical_shape) for b in self.bindings if b.trainable)


def expand(layout: Layout, definitions: Iterable[Definition], sites: Mapping[str, Sequence[Site]]) -> Table:
    """Expand a layout over an architecture.

    Parameters
    ----------
    layout : Layout
    definitions : iterable of Definition
        The architecture's tensors.
    sites : mapping of str to sequence of Site
        For each set of sites its places; an empty set drops its tensors.

    Raises
    ------
    KeyError
        When the layout has no rule for a definition: the layout is incomplete.
    ValueError
        When a shape does not fit an op, or two tensors get one name.

    Examples
    --------
    >>> layout = Layout("tf", (Rule("fc{n}.weight", "dense_{n}/kernel", "linear"),))
    >>> fc = Definition("fc{n}.weight", ("out", 8), "fc")
    >>> (row,) = expand(layout, [fc], {"fc": [{"n": 1, "out": 4}]}).bindings
    >>> row.canonical, row.canonical_shape, row.external, row.external_shape
    ('fc1.weight', (4, 8), 'dense_1/kernel', (8, 4))
    """
    bindings = []
    for definition in definitions:
        rule = layout.by_canonical[definition.name]
        op = OPS[rule.op]
        for site in sites.get(definition.sites, ()):
            shape = tuple(size if isinstance(size, int) else site[size] for size in definition.shape)
            bindings.append(
                Binding(
                    canonical=definition.name.format(**site),
                    canonical_shape=shape,
                    external=rule.external.format(**site),
                    external_shape=op.external_shape(shape, {k: v for k, v in site.items() if len(k) == 1}),
                    op=op,
                    trainable=definition.trainable,
                    part=definition.part,
                    aliases=tuple(alias.format(**site) for alias in rule.aliases),
                )
            )
    return Table(layout, tuple(bindings))
