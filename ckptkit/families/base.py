"""What a family is: its variants, its layouts, its two reference models — and how a file is recognised.

To add a family, write a folder beside `moat` whose ``__init__`` offers a `Family`, and add one line to
`_FAMILIES`.
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from typing import Any, TypeAlias

from ckptkit.base.errors import (
    ConversionError,
    MissingDependencyError,
    NotFoundError,
    UnknownModelError,
    UsageError,
    command,
)
from ckptkit.base.parse import shown
from ckptkit.base.tensors import Array, TensorSpec
from ckptkit.registry.query import FamilyFacts
from ckptkit.rules.language import Definition, Layout, Site, Table, expand

CANONICAL = "torch"
"""The layout every other layout is rules to and from: the names of the PyTorch model's state_dict."""

_HOLD_ANY_NAMES = ("safetensors", "npz")
_FAMILIES = {"moat": "ckptkit.families.moat:MOAT", "moganet": "ckptkit.families.moganet:MOGANET"}


class _MustBeTold(Enum):
    MUST_BE_TOLD = "must be told"


MUST_BE_TOLD = _MustBeTold.MUST_BE_TOLD
"""A behaviour setting without a default: both values are in use, and nothing in the tensors tells which."""


TableSizes: TypeAlias = tuple[tuple[int, int], ...]
"""Rows and columns of the position tables of each stage that has attention."""


@dataclass(frozen=True)
class Structure:
    """What a variant's name leaves open about its tensors.

    Parameters
    ----------
    pos_emb : bool
        Whether attention has relative position tables; False in families that never have them.
    num_classes : int or None
        Outputs of the head, None for a headless file.
    table_sizes : tuple or None
        Sizes of position tables that were resized for another input; None where they are as published.
    """

    pos_emb: bool = True
    num_classes: int | None = 1000
    table_sizes: TableSizes | None = None


class Family(ABC):
    """One architecture family: everything that knows its tensors and builds its models."""

    name: str
    definitions: Sequence[Definition]
    layouts: Mapping[str, Layout]
    published_layouts: Sequence[str]
    """Layouts that published files have, the usual one first."""
    containers: Mapping[str, Sequence[str]]
    """Formats that each layout comes in, as the registry calls it; besides those that hold any names."""
    default_layout: Mapping[str, str]
    """Layout that a conversion to each format gets when none is asked for."""
    behaviour: Mapping[str, Any]
    """Settings that change the output but no shape, with the value a classifier has, or `MUST_BE_TOLD`:
    see `ckptkit.families.behaviour`."""
    keras_layout: str = "keras"
    has_pos_emb: bool = True
    """Whether the family has variants with a position embedding."""

    @property
    @abstractmethod
    def variants(self) -> Sequence[str]:
        """Names of the variants, as the registry spells them."""

    @abstractmethod
    def sites(self, variant: str, structure: Structure) -> Mapping[str, Sequence[Site]]:
        """Places of a variant where tensors stand."""

    @abstractmethod
    def default_resolution(self, variant: str) -> int:
        """Input side in pixels that the published checkpoints of a variant were trained at."""

    @abstractmethod
    def normalization(self, variant: str) -> str:
        """Which input normalization the published checkpoints of a variant want: ``imagenet`` or ``half``."""

    def registry_facts(self) -> FamilyFacts:
        """What an entry of the registry may say."""
        formats = {layout: (*own, *_HOLD_ANY_NAMES) for layout, own in self.containers.items()}
        return FamilyFacts(self.variants, formats)

    def check_setting(self, key: str, value: object) -> None:
        """Refuse a value that a behaviour setting cannot have; by default each is true or false.

        Raises
        ------
        UsageError
            It cannot have it; names the setting, and in the hint what it can have.
        """
        if not isinstance(value, bool):
            raise UsageError(f"{key} is {shown(value)}", hint="it is true or false")

    def unread_at_small_inputs(self, structure: Structure) -> str:
        """Which values a pass at a small resolution does not read, to go after "small"; empty for none."""
        return ""

    def table_sizes_at(self, resolution: tuple[int, int], settings: Mapping[str, Any]) -> TableSizes:
        """Sizes that position tables are resized to at an input resolution.

        Raises
        ------
        UsageError
            When the family has no such tables, or their sizes do not follow from the resolution.
        """
        raise UsageError(
            f"family {self.name} has no position tables to resize", hint="leave --resolution out"
        )

    def resized_table(self, table: Array, size: tuple[int, int]) -> Array:
        """Resize position tables (heads, rows, columns), as the models do it at run time."""
        raise UsageError(f"family {self.name} has no position tables to resize")

    def read_table_sizes(
        self, layout: str, variant: str, specs: Mapping[str, TensorSpec]
    ) -> TableSizes | None:
        """Sizes of a file's position tables where they were resized; None where they are as published."""
        return None

    def table(self, layout: str, variant: str, structure: Structure) -> Table:
        """Expand one layout of one variant to its exact list of tensors."""
        return _table(self, layout, variant, structure)

    def torch_module(self) -> Any:
        """Import the PyTorch model's module.

        Raises
        ------
        MissingDependencyError
            When torch is not installed.
        """
        return _import_model(f"ckptkit.families.{self.name}.torch_model", ("torch",), "the PyTorch model")

    def fast_torch_module(self) -> Any:
        """Import the module whose ``optimised`` rewrites a PyTorch model for inference.

        Raises
        ------
        MissingDependencyError
            When torch is not installed.
        """
        return _import_model(
            f"ckptkit.families.{self.name}.torch_fast", ("torch",), "the optimised PyTorch model"
        )

    def keras_module(self) -> Any:
        """Import the Keras model's module.

        Raises
        ------
        MissingDependencyError
            When tensorflow is not installed.
        """
        return _import_model(
            f"ckptkit.families.{self.name}.keras_model",
            ("ckptkit.families.keras_backend", "tensorflow"),
            "the Keras model",
        )


@lru_cache(maxsize=64)
def _table(family: Family, layout: str, variant: str, structure: Structure) -> Table:
    if variant not in family.variants:
        raise NotFoundError(f"family {family.name} has no variant {variant!r}", hint=_one_of(family.variants))
    if layout not in family.layouts:
        raise NotFoundError(f"family {family.name} has no layout {layout!r}", hint=_one_of(family.layouts))
    return expand(family.layouts[layout], family.definitions, family.sites(variant, structure))


def _one_of(names: Sequence[str] | Mapping[str, Any]) -> str:
    return "one of " + ", ".join(names)


def _import_model(module: str, needs: Sequence[str], purpose: str) -> Any:
    try:
        for need in needs:
            importlib.import_module(need)
    except ImportError as error:
        raise MissingDependencyError(purpose, needs[-1]) from error
    return importlib.import_module(module)


def families() -> Sequence[str]:
    """Names of the families there are models for."""
    return tuple(_FAMILIES)


def get_family(name: str) -> Family:
    """Return a family by name.

    Raises
    ------
    NotFoundError
        When there is no model code for it.

    Examples
    --------
    >>> get_family("moat").variants[0]
    'moat0'
    """
    if name not in _FAMILIES:
        raise NotFoundError(f"no model code for family {name!r}", hint=_one_of(_FAMILIES))
    module, attribute = _FAMILIES[name].split(":")
    found = getattr(importlib.import_module(module), attribute)
    if not isinstance(found, Family):
        raise TypeError(f"{_FAMILIES[name]} is not a Family")
    return found


def family_of_variant(variant: str) -> Family:
    """Return the family that has a variant of this name.

    Raises
    ------
    NotFoundError
        When none has.
    """
    for name in _FAMILIES:
        family = get_family(name)
        if variant in family.variants:
            return family
    known = [variant for name in _FAMILIES for variant in get_family(name).variants]
    raise NotFoundError(f"no variant {variant!r}", hint=_one_of(known))


@dataclass(frozen=True)
class Recognition:
    """What a file turned out to be.

    Parameters
    ----------
    family : Family
    variant : str
    structure : Structure
    table : Table
        The layout's exact list of tensors for this variant.
    """

    family: Family
    variant: str
    structure: Structure
    table: Table

    @property
    def layout(self) -> str:
        """Name of the layout."""
        return self.table.layout.name


def recognise(
    specs: Mapping[str, TensorSpec], *, variant: str | None = None, layout: str | None = None
) -> Recognition | None:
    """Tell family, variant and layout of a file from its tensors' names and shapes.

    Parameters
    ----------
    specs : mapping of str to TensorSpec
        The file's tensors.
    variant, layout : str, optional
        Consider these only (what ``--variant`` says).

    Returns
    -------
    Recognition or None
        None when fewer than half of the tensors that tell variants apart are there.
    """
    candidates = [
        (family, layout_name, candidate)
        for family in map(get_family, _FAMILIES)
        for layout_name in family.layouts
        for candidate in family.variants
        if layout in (None, layout_name) and variant in (None, candidate)
    ]
    # The first tensor alone leaves two or three candidates; where it is the one that is damaged, all count.
    likely = [c for c in candidates if _has_first_tensor(*c, specs)] or candidates
    best: tuple[float, Family, str, str, Structure] | None = None
    for family, layout_name, candidate in likely:
        score, structure = _resemblance(family, layout_name, candidate, specs)
        if best is None or score > best[0]:
            best = (score, family, layout_name, candidate, structure)
    if best is None or best[0] <= 0:
        return None
    _, family, layout_name, candidate, structure = best
    if structure.pos_emb:
        structure = replace(structure, table_sizes=family.read_table_sizes(layout_name, candidate, specs))
    return Recognition(family, candidate, structure, family.table(layout_name, candidate, structure))


def resembles_a_model(specs: Mapping[str, TensorSpec]) -> bool:
    """Whether the first tensor of any model known here is there, by name and shape: a quick look."""
    return any(
        _has_first_tensor(family, layout, variant, specs)
        for family in map(get_family, _FAMILIES)
        for layout in family.layouts
        for variant in family.variants
    )


def _has_first_tensor(family: Family, layout: str, variant: str, specs: Mapping[str, TensorSpec]) -> bool:
    """Whether the architecture's first tensor is there, with the variant's shape."""
    first = family.definitions[:1]
    (binding,) = expand(family.layouts[layout], first, family.sites(variant, Structure())).bindings
    return any(
        name in specs and specs[name].shape == binding.external_shape
        for name in (binding.external, *binding.aliases)
    )


def _resemblance(
    family: Family, layout: str, variant: str, specs: Mapping[str, TensorSpec]
) -> tuple[float, Structure]:
    """Share of a variant's telling tensors that the file has, less the share it lacks.

    One tensor of rank two or more for each set of sites and op, at every site, is enough to tell all
    variants and layouts apart, and several times cheaper than the whole table.
    """
    rules = family.layouts[layout]
    telling: dict[tuple[str, str], Definition] = {}
    for definition in family.definitions:
        if len(definition.shape) > 1:
            telling.setdefault((definition.sites, rules.by_canonical[definition.name].op), definition)
    table = expand(rules, telling.values(), family.sites(variant, Structure()))
    pos_emb = False
    found = missing = 0
    for binding in table.bindings:
        spec = next((specs[n] for n in (binding.external, *binding.aliases) if n in specs), None)
        if binding.part == "position":
            pos_emb = pos_emb or spec is not None
        elif spec is not None and spec.shape == binding.external_shape:
            found += 1
        elif binding.part != "head":
            missing += 1
    structure = Structure(pos_emb=pos_emb, num_classes=_num_classes(family, rules, specs))
    return (found - missing) / max(1, found + missing) + found * 1e-6, structure


def _num_classes(family: Family, layout: Layout, specs: Mapping[str, TensorSpec]) -> int | None:
    """Outputs of the head in the file: the length of the head's bias, None where there is none."""
    external = layout.by_canonical["head.bias"].external
    if external not in specs:
        return None
    return math.prod(specs[external].shape)


def require_recognition(
    path: object, specs: Mapping[str, TensorSpec], *, variant: str | None = None, layout: str | None = None
) -> Recognition:
    """Recognise a file or say that it is none of ours.

    Raises
    ------
    ConversionError
        When the names fit no family, or the variant asked for is unlike the file.
    NotFoundError
        When ``variant`` is unknown.
    """
    if variant is not None:
        family_of_variant(variant)
    found = recognise(specs, variant=variant, layout=layout)
    if found is None:
        sample = ", ".join(list(specs)[:3]) or "none"
        asked = f"unlike {variant}" if variant else "of no family known here"
        raise (ConversionError if variant else UnknownModelError)(
            f"{path}: {len(specs)} tensors ({sample} …) are {asked}",
            hint=f"'ckptkit list' shows what is supported. {command('inspect', path)}",
        )
    return found
