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
from typing import Any, Literal

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
    "shape_of",
]


@dataclass(frozen=True)
class Definition:
    """One tensor of an architecture, in canonical terms."""

    name: str  # canonical, with the site's indices in braces: "stages.{stage}.{block}.expand_conv.weight"
    shape: tuple[int | str, ...]  # canonical: numbers, or keys of the site
    sites: str  # the set of sites that have it
    trainable: bool = True  # counted as a parameter, as BatchNorm statistics are not
    # "head": what a headless conversion drops; "bn_statistics"; "position": position embeddings; "counter":
    # BatchNorm's integer count of training steps, which is carried where present and never required
    part: str = "body"


@dataclass(frozen=True)
class Rule:
    """How a layout names and orders one tensor."""

    canonical: str  # the `Definition`'s name
    external: str  # the layout's name, with the site's indices in braces
    op: str = "identity"  # key of `OPS`
    aliases: tuple[str, ...] = ()  # external names that are read but never written


@dataclass(frozen=True)
class Ignore:
    """Tensors of a source file that a conversion leaves out, by name and with a reason."""

    name: str  # what they are, in a word; groups of the pattern in braces
    pattern: str  # regular expression for the whole tensor name
    reason: str  # why leaving them out loses nothing

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
    """How a layout names the second copy of a tensor, where a file holds both.

    Examples
    --------
    >>> CopyNaming("raw", prefix="ema_", separator="_").of("backbone.norm1.weight")
    'ema_backbone_norm1_weight'
    """

    holds: Literal["ema", "raw"]  # what the second copy is: the moving average, or the weights being trained
    prefix: str = ""  # added to the plain name, as is `suffix`
    suffix: str = ""
    separator: str = "."  # replaces each dot of the plain name

    @property
    def plain(self) -> Literal["ema", "raw"]:
        """Which copy the plain names hold: the other one."""
        return "raw" if self.holds == "ema" else "ema"

    def of(self, name: str) -> str:
        """Name of a tensor's second copy."""
        return self.prefix + name.replace(".", self.separator) + self.suffix


@dataclass(frozen=True)
class Layout:
    """Names and axis order of one way to store an architecture."""

    name: str
    rules: tuple[Rule, ...]  # one per `Definition`, except for the parts it lacks
    ignores: tuple[Ignore, ...] = ()  # what else such files hold
    around: tuple[Ignore, ...] = ()  # what files hold around a backbone; left out where the head is
    second_copy: CopyNaming | None = None
    headless: str | None = (
        None  # another layout whose names a file without head has, as dense prediction does
    )
    lacks: Mapping[str, Ignore] = field(default_factory=dict, hash=False)  # parts without names here, and why
    # Parts without names here that are zeros in the models of such files
    zeros: Mapping[str, Ignore] = field(default_factory=dict, hash=False)
    # What all code does that reads such files
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    renames: tuple[tuple[str, str], ...] = ()  # replacements in expanded names that indices alone do not give
    tags: bool = False  # outputs are tags, each by itself, not classes of which one is right

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
        if definition.part in layout.lacks or definition.part in layout.zeros:
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


def shape_of(name: str) -> str:
    """A name with each number in it replaced by one digit: rules of another shape need not be tried.

    >>> shape_of("block_12/conv3/w")
    'block_0/conv0/w'
    """
    return re.sub("[0-9]+", "0", name)
