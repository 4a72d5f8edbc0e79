"""The rule algebra: how the same tensors are named and ordered in different layouts.

A layout is data: one `Rule` per tensor of the architecture, saying its external name and the `Op` that
changes its axes. Expanded over an architecture's sites (its blocks, its head …) it becomes one exact table
of `Binding` rows, canonical ↔ external, with both shapes. Nothing is guessed from a shape, because square
kernels would hide a wrong transpose.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from ckptkit.base.axes import IDENTITY, OPS, Op, Shape, Site

__all__ = [
    "IDENTITY",
    "OPS",
    "Binding",
    "CopyNaming",
    "Definition",
    "Ignore",
    "Layout",
    "Op",
    "Rule",
    "Shape",
    "Site",
    "Table",
    "expand",
]


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
        What they are, in a word; groups of the pattern in braces.
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

    def name_of(self, tensor: str) -> str:
        """What a tensor that the rule covers is.

        Examples
        --------
        >>> Ignore("{part}", "(?P<part>neck|bbox_head)[.].+", "part of a detector").name_of("neck.fpn.weight")
        'neck'
        """
        found = re.fullmatch(self.pattern, tensor)
        return self.name if found is None else self.name.format(**found.groupdict())


@dataclass(frozen=True)
class CopyNaming:
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
    >>> CopyNaming("raw", prefix="ema_", separator="_").of("backbone.norm1.weight")
    'ema_backbone_norm1_weight'
    """

    holds: Literal["ema", "raw"]
    prefix: str = ""
    suffix: str = ""
    separator: str = "."

    @property
    def plain(self) -> Literal["ema", "raw"]:
        """Which copy the plain names hold: the other one."""
        return "raw" if self.holds == "ema" else "ema"

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
        One per `Definition`, but for the parts it lacks.
    ignores : tuple of Ignore
        What else such files hold.
    around : tuple of Ignore
        What files hold around a backbone: left out where there is no head, or it is not wanted.
    second_copy : CopyNaming or None
        How files call a second copy of the weights.
    headless : str or None
        Layout whose names a file without head has, where that is another one: code for dense prediction
        builds the backbone alone.
    lacks : mapping of str to Ignore
        Parts (see `Definition`) for which it has no names, and what to say of such tensors when they are left
        out.
    renames : tuple of (str, str)
        Pieces of expanded names and what stands there instead, applied one after the other: for names that
        do not follow from indices alone.
    """

    name: str
    rules: tuple[Rule, ...]
    ignores: tuple[Ignore, ...] = ()
    around: tuple[Ignore, ...] = ()
    second_copy: CopyNaming | None = None
    headless: str | None = None
    lacks: Mapping[str, Ignore] = field(default_factory=dict, hash=False)
    renames: tuple[tuple[str, str], ...] = ()

    @cached_property
    def by_canonical(self) -> dict[str, Rule]:
        """Rules by the name of what they map."""
        return {rule.canonical: rule for rule in self.rules}

    def name_at(self, pattern: str, site: Site) -> str:
        """External name at one place.

        Examples
        --------
        >>> layout = Layout("file", (), renames=(("block_0/", "block/"),))
        >>> [layout.name_at("block_{n}/bias", {"n": n}) for n in (0, 1, 10)]
        ['block/bias', 'block_1/bias', 'block_10/bias']
        """
        name = pattern.format(**site)
        for old, new in self.renames:
            name = name.replace(old, new)
        return name


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
        if definition.part in layout.lacks:
            continue
        rule = layout.by_canonical[definition.name]
        op = OPS[rule.op]
        for site in sites.get(definition.sites, ()):
            shape = tuple(size if isinstance(size, int) else site[size] for size in definition.shape)
            bindings.append(
                Binding(
                    canonical=definition.name.format(**site),
                    canonical_shape=shape,
                    external=layout.name_at(rule.external, site),
                    external_shape=op.external_shape(shape, {k: v for k, v in site.items() if len(k) == 1}),
                    op=op,
                    trainable=definition.trainable,
                    part=definition.part,
                    aliases=tuple(layout.name_at(alias, site) for alias in rule.aliases),
                )
            )
    return Table(layout, tuple(bindings))
