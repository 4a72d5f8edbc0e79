"""Which synthetic checkpoint stands in for a variant or a registry entry, and what is in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.families.base import (
    Family,
    PublishedFile,
    Recognition,
    Structure,
    families,
    family_of_variant,
    get_family,
)
from ckptkit.families.synthetic import Make
from ckptkit.formats.base import Reader
from ckptkit.registry.query import EntryFacts
from ckptkit.rules.language import Table

if TYPE_CHECKING:
    from ckptkit.registry import Entry, Registry
    from ckptkit.workspace import Named

STATE_DICT, STATE_DICT_EMA = "state_dict", "state_dict_ema"


@dataclass(frozen=True)
class SyntheticTensor:
    """One tensor of a synthetic checkpoint."""

    spec: TensorSpec  # name, type and shape in the file
    make: Make  # gives its values
    state_dict: str = STATE_DICT  # which state dict of a PyTorch file it stands in


@dataclass(frozen=True)
class Synthetic:
    """Which synthetic checkpoint."""

    variant: str
    pos_emb: bool = True  # with relative position tables
    twins: bool = False  # both copies of the weights, where the published code puts them
    # False leaves the BatchNorm moving statistics out, as MOAT's first uploads did
    bn_statistics: bool = True
    layout: str | None = None  # published layout, default the family's first: ``deeplab2`` for MOAT

    @cached_property
    def family(self) -> Family:
        """The variant's family."""
        return family_of_variant(self.variant)

    @property
    def published_file(self) -> PublishedFile:
        """The kind of file that it is published in."""
        return self.family.published_files[self.table.layout.name]

    @cached_property
    def table(self) -> Table:
        """The published layout's tensors."""
        layout = self.layout or next(iter(self.family.published_files))
        return self.family.table(layout, self.variant, Structure(self.pos_emb and self.family.has_pos_emb))

    def tensors(self) -> Iterator[SyntheticTensor]:
        """Everything in the file, in its order."""
        recipe = self.family.synthetic_recipe(self.table, raw=False)
        if not self.twins:
            yield from self._copy(recipe)
            return
        raw = self.family.synthetic_recipe(self.table, raw=True)
        twin = self.table.layout.second_copy
        if twin is None:  # the timm style keeps the copies apart, statistics and all
            yield from self._copy(raw)
            yield from self._copy(recipe, STATE_DICT_EMA)
            return
        plain, second = (raw, recipe) if twin.holds == "ema" else (recipe, raw)
        trainable = {row.external for row in self.table.bindings if row.trainable}
        for one in self._copy(recipe):
            name = one.spec.name
            if name not in trainable:
                yield one
                continue
            yield SyntheticTensor(one.spec, plain[name])
            yield SyntheticTensor(TensorSpec(twin.of(name), one.spec.dtype, one.spec.shape), second[name])

    def _copy(self, recipe: Mapping[str, Make], state_dict: str = STATE_DICT) -> Iterator[SyntheticTensor]:
        for row in self.table.bindings:
            if row.part == "bn_statistics" and not self.bn_statistics:
                continue
            dtype = DTYPES["int64" if row.part == "counter" else "float32"]
            spec = TensorSpec(row.external, dtype, row.external_shape)
            yield SyntheticTensor(spec, recipe[row.external], state_dict)


_ROUNDING = 2.0**-7
"""Relative difference that bfloat16 leaves between a number and itself."""


def is_synthetic(reader: Reader, found: Recognition) -> bool:
    """Whether the first bias of a recognised file has the values of the recipe.

    A synthetic file does not tell: it is shaped as the published ones are, and `write_checkpoint` makes them
    for mirrors, too. What is said of its predictions must say it all the same.
    """
    import numpy

    stand_in = Synthetic(found.variant)
    first = next(
        row for row in stand_in.table.bindings if row.canonical.endswith(".bias") and row.part == "body"
    )
    held = next(row for row in found.table.bindings if row.canonical == first.canonical)
    name = next((one for one in (held.external, *held.aliases) if one in reader.specs), None)
    if name is None or reader.specs[name].shape != first.external_shape:
        return False
    values = numpy.asarray(reader.read(name), dtype=numpy.float32)
    return any(
        numpy.allclose(values, recipe[first.external](), rtol=_ROUNDING, atol=0)
        for recipe in (stand_in.family.synthetic_recipe(stand_in.table, raw=raw) for raw in (False, True))
    )


def synthetic_stand_in(name: Named, registry: Registry) -> tuple[Entry | None, Synthetic]:
    """What stands in for a variant or an entry of that name, or for an entry itself."""
    if isinstance(name, EntryFacts):
        return name, synthetic_for(name)
    name = str(name)
    if any(name in get_family(family).variants for family in families()):
        return None, Synthetic(name)
    entry = registry[name]
    return entry, synthetic_for(entry)


def synthetic_for(entry: Entry) -> Synthetic:
    """The synthetic stand-in of a registry entry."""
    family = get_family(entry.family)
    layout = entry.layout if entry.layout in family.published_files else None
    return Synthetic(entry.variant, pos_emb=bool(entry.pos_emb), layout=layout)
