"""What a family is, and how a file is recognised as one's.

A family in another package is found through its entry point (group ``ckptkit.families``); a built-in one is a
line in `_FAMILIES`.
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ckptkit.base import packages
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
from ckptkit.families.flops import Convention
from ckptkit.families.settings import Setting, settings_model, takes
from ckptkit.families.synthetic import Make, canonical_recipe
from ckptkit.formats.builtin import BUILT_IN, format_of
from ckptkit.rules.language import Definition, Layout, Site, Table, expand

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ckptkit.registry.schema import FamilyFacts

CANONICAL = "torch"
"""The layout every other layout is rules to and from: the names of the PyTorch model's state_dict."""

_FAMILIES = {"moat": "ckptkit.families.moat:MOAT", "moganet": "ckptkit.families.moganet:MOGANET"}


TableSizes: TypeAlias = tuple[tuple[int, int], ...]
"""Rows and columns of the position tables of each stage that has attention."""


@dataclass(frozen=True)
class Structure:
    """What a variant's name leaves open about its tensors."""

    pos_emb: bool = True  # with relative position tables; False in families that never have them
    num_classes: int | None = 1000  # outputs of the head, None for a headless file
    table_sizes: TableSizes | None = None  # of position tables that were resized, None where as published


@dataclass(frozen=True)
class Paper:
    """A paper on arXiv, as it wants to be cited."""

    title: str
    authors: tuple[str, ...]
    year: int


@dataclass(frozen=True)
class Page:
    """A page whose table has the figures of published checkpoints."""

    name: str
    url: str


@dataclass(frozen=True)
class Backbone:
    """A headless model, as far as whoever builds on it must know it."""

    variant: str
    pos_emb: bool
    settings: Mapping[str, Any]
    normalization: str
    weights: Path  # what the config has to name: a file, or the prefix of a TensorFlow checkpoint


@dataclass(frozen=True)
class Consumer:
    """Code for dense prediction that loads a family's backbones."""

    name: str  # what people call it
    to: str  # format of its weights
    layout: str
    file: str  # what the weights are called here
    files: tuple[str, ...]  # every file that is written under that name
    dtype: str | None  # the one floating type it takes; None: any, it casts
    config: Callable[[Backbone], str]  # the lines of a config that name a backbone
    remarks: Callable[[Backbone], list[str]]  # what else its user must know, a sentence each


@dataclass(frozen=True)
class PublishedFile:
    """The kind of file in which a layout is published; ``synth`` writes such files."""

    format: str
    ending: str
    #: What a PyTorch file holds, made of the variant and its state dicts by name; by default these alone.
    tree: Callable[[str, Mapping[str, Any]], Mapping[str, Any]] = lambda variant, dicts: dicts


class Family(ABC):
    """One architecture family: everything that ckptkit knows of it.

    A family is one object of a subclass, built in (`_FAMILIES`) or found through the entry point group
    ``ckptkit.families``. What has no default must be given; ``docs/extending.md`` shows a small one whole.

    Attributes
    ----------
    name, title : str
        As commands and registries call it, and as its authors write it.
    summary : str
        The architecture in a phrase, for model cards.
    definitions : sequence of Definition
        Every tensor of the architecture, in canonical terms: the PyTorch model's names.
    layouts : mapping of str to Layout
        Names and axis order of the tensors in files, among them `CANONICAL`, whose rules change nothing.
    layout_titles : mapping of str to str
        What people call files of a layout, where that is not its name.
    containers : mapping of str to sequence of str
        Formats that each layout comes in, as a registry calls it, besides those that hold any names.
    published_files : mapping of str to PublishedFile
        How each layout is published that published files have, the usual one first.
    default_layout : mapping of str to str
        Layout that a conversion to a format gets when none is asked for, where the format says another.
    keras_layout : str
        Layout of the Keras model's variables.
    settings : mapping of str to Setting
        What changes the output but no tensor's shape: fields of a registry, options of ``--set``, columns of
        ``list`` and arguments of `ckptkit.create_model` and of the models' ``build``.
    has_pos_emb : bool
        Whether the family has variants with a position embedding.
    models : mapping of str to str
        Module of the reference model for each framework, ``torch`` and ``keras``. It offers
        ``build(variant, *, resolution, num_classes, features_only, **settings)`` (with ``pos_emb`` where the
        family has one) and ``load_state(model, arrays)``; the model ``forward_stages(images)``, a dict of the
        stages' outputs in order, the last one ``logits`` where there is a head. That of Keras offers
        ``variables_by_name(model)`` too, and ``load_published(model, names, read, *, suffix)`` where the
        published files have names of their own.
    flops : Convention or None
        How the publication counts multiply-adds; None where that is not known.
    papers : mapping of str to Paper
        By arXiv id.
    pages : mapping of str to Page
        By how the addresses of the checkpoints begin whose figures are there.
    consumer : Consumer or None
        The published code for dense prediction that loads backbones of the family.
    missing_statistics : str
        What is known of published files that lack BatchNorm's statistics, and of better ones; may be empty.
    markers : mapping of tuple to str
        How ``plot`` fills the marker of a subgroup, by (group, position embedding, setting, layout).

    Examples
    --------
    >>> get_family("moat").required_settings, get_family("moganet").required_settings
    ((), ('attn_force_fp32',))
    """

    name: str
    title: str
    definitions: Sequence[Definition]
    layouts: Mapping[str, Layout]
    published_files: Mapping[str, PublishedFile]
    models: Mapping[str, str]
    containers: Mapping[str, Sequence[str]] = {}
    default_layout: Mapping[str, str] = {}
    layout_titles: Mapping[str, str] = {}
    keras_layout: str = "keras"
    settings: Mapping[str, Setting] = {}
    has_pos_emb: bool = False
    summary: str = ""
    flops: Convention | None = None
    papers: Mapping[str, Paper] = {}
    pages: Mapping[str, Page] = {}
    consumer: Consumer | None = None
    missing_statistics: str = ""
    markers: Mapping[tuple[str | None, bool | None, str | None, str], str] = {}

    @property
    @abstractmethod
    def variants(self) -> Sequence[str]:
        """Names of the variants, as the registry spells them."""

    @abstractmethod
    def sites(self, variant: str, structure: Structure) -> Mapping[str, Sequence[Site]]:
        """Every place of a variant where a tensor is, by the group of sites that a definition names."""

    @abstractmethod
    def default_resolution(self, variant: str) -> int:
        """Input side in pixels that the published checkpoints of a variant were trained at."""

    @abstractmethod
    def normalization(self, variant: str) -> str:
        """Which input normalization the published checkpoints of a variant want: ``imagenet`` or ``half``."""

    def synthetic_recipe(self, table: Table, *, raw: bool) -> Mapping[str, Make]:
        """Functions that make each tensor of a published layout of random numbers, by its name there.

        With ``raw`` other numbers: those of raw weights beside their moving averages.
        """
        return canonical_recipe(table, raw=raw)

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

    # -- what follows from the above -------------------------------------------------------------------------

    @property
    def setting_names(self) -> tuple[str, ...]:
        """Names of the settings."""
        return tuple(self.settings)

    @property
    def required_settings(self) -> tuple[str, ...]:
        """Settings that nobody may guess."""
        return tuple(key for key, setting in self.settings.items() if setting.required)

    @property
    def default_settings(self) -> dict[str, Any]:
        """Value of each setting that has a default: what a classifier has."""
        return {key: setting.default for key, setting in self.settings.items() if not setting.required}

    @cached_property
    def settings_model(self) -> type[BaseModel]:
        """The pydantic model of the settings, by which values are checked."""
        return settings_model(f"{self.title}Settings", self.settings)

    def check_setting(self, key: str, value: object) -> None:
        """Refuse a value that a setting cannot have, with a UsageError that says what it can have."""
        from pydantic import ValidationError

        try:
            model = self.settings_model
            model.__pydantic_validator__.validate_assignment(model.model_construct(), key, value)
        except ValidationError as error:
            raise UsageError(f"{key} is {shown(value)}", hint=f"it can be {takes(self, key)}") from error

    def layout_for(self, format: str) -> str:
        """Layout that a conversion to a format gets when none is asked for."""
        return self.default_layout.get(format) or format_of(format).layout

    def registry_facts(self) -> FamilyFacts:
        """What an entry of the registry may say."""
        from ckptkit.registry.schema import FamilyFacts

        any_names = [format.name for format in BUILT_IN.values() if format.any_names]
        formats = {layout: (*own, *any_names) for layout, own in self.containers.items()}
        settings = tuple((key, one.kind, one.title, one.description) for key, one in self.settings.items())
        return FamilyFacts(self.variants, formats, settings)

    def table(self, layout: str, variant: str, structure: Structure) -> Table:
        """Expand one layout of one variant to its exact list of tensors."""
        return _table(self, layout, variant, structure)

    def model_module(self, framework: str) -> Any:
        """Import the module of the reference model, where its framework is installed."""
        if framework not in self.models:
            raise UsageError(
                f"family {self.name} has no {framework} model",
                hint="it has one for " + ", ".join(self.models),
            )
        needs, called = _FRAMEWORKS[framework]
        try:
            for need in needs:
                importlib.import_module(need)
        except ImportError as error:
            raise MissingDependencyError(f"the {called} model", needs[-1]) from error
        return importlib.import_module(self.models[framework])

    def torch_module(self) -> Any:
        """Import the PyTorch model's module."""
        return self.model_module("torch")

    def keras_module(self) -> Any:
        """Import the Keras model's module."""
        return self.model_module("keras")


_FRAMEWORKS = {
    "torch": (("torch",), "PyTorch"),
    "keras": (("ckptkit.families.keras_backend", "tensorflow"), "Keras"),
}
"""What must import before a model does, and what people call the framework."""


@lru_cache(maxsize=64)
def _table(family: Family, layout: str, variant: str, structure: Structure) -> Table:
    if variant not in family.variants:
        raise NotFoundError(f"family {family.name} has no variant {variant!r}", hint=_one_of(family.variants))
    if layout not in family.layouts:
        raise NotFoundError(f"family {family.name} has no layout {layout!r}", hint=_one_of(family.layouts))
    return expand(family.layouts[layout], family.definitions, family.sites(variant, structure))


def _one_of(names: Sequence[str] | Mapping[str, Any]) -> str:
    return "one of " + ", ".join(names)


def families(plugins: bool = True) -> Sequence[str]:
    """Names of the families there are models for, those of plug-ins last."""
    return (*_FAMILIES, *(_plugins() if plugins else ()))


def _plugins() -> dict[str, Family]:
    return packages.plugins("ckptkit.families", Family, tuple(_FAMILIES))


def get_family(name: str) -> Family:
    """Return a family by name.

    >>> get_family("moat").variants[0]
    'moat0'
    """
    if name in _FAMILIES:
        module, attribute = _FAMILIES[name].split(":")
        built_in: Family = getattr(importlib.import_module(module), attribute)
        return built_in
    if (found := _plugins().get(name)) is not None:
        return found
    raise NotFoundError(f"no model code for family {name!r}", hint=_one_of(families()))


def _each_family() -> Iterator[Family]:
    """Every family, the built-in ones before any plug-in is looked for."""
    yield from map(get_family, _FAMILIES)
    yield from _plugins().values()


def family_of_variant(variant: str) -> Family:
    """Return the family that has a variant of this name."""
    for family in _each_family():
        if variant in family.variants:
            return family
    known = [variant for family in _each_family() for variant in family.variants]
    raise NotFoundError(f"no variant {variant!r}", hint=_one_of(known))


@dataclass(frozen=True)
class Recognition:
    """What a file turned out to be."""

    family: Family
    variant: str
    structure: Structure
    table: Table  # the layout's exact list of tensors for this variant

    @property
    def layout(self) -> str:
        """Name of the layout."""
        return self.table.layout.name


def recognise(
    specs: Mapping[str, TensorSpec], *, variant: str | None = None, layout: str | None = None
) -> Recognition | None:
    """Tell family, variant and layout of a file from its tensors' names and shapes.

    ``variant`` and ``layout`` narrow the search. None when fewer than half of the tensors that tell variants
    apart are there. Plug-ins are looked at where no built-in family fits.
    """
    built_in = map(get_family, _FAMILIES)
    return _best(built_in, specs, variant, layout) or _best(_plugins().values(), specs, variant, layout)


def _best(
    families: Iterable[Family], specs: Mapping[str, TensorSpec], variant: str | None, layout: str | None
) -> Recognition | None:
    candidates = [
        (family, layout_name, candidate)
        for family in families
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
        for family in _each_family()
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
    """Recognise a file, or refuse it: it belongs to no known family, or is unlike ``variant``."""
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
