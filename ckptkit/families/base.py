"""What a family is.

A family in another package is found through its entry point (group ``ckptkit.families``); a built-in one is a
line in `_FAMILIES`.
"""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from ckptkit.base import packages
from ckptkit.base.errors import FormatError, MissingDependencyError, NotFoundError, UsageError, choose_from
from ckptkit.base.parse import shown
from ckptkit.base.tensors import Array, TensorSpec
from ckptkit.families.flops import Convention
from ckptkit.families.synthetic import Make, canonical_recipe
from ckptkit.formats.builtin import BUILT_IN, format_of
from ckptkit.rules.language import Definition, Layout, Shape, Site, Table, expand

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ckptkit.registry.schema import Entry, Families, FamilyFacts

CANONICAL = "torch"
"""The layout every other layout is rules to and from: the names of the PyTorch model's state_dict."""

_FAMILIES = {"moat": "ckptkit.families.moat:MOAT", "moganet": "ckptkit.families.moganet:MOGANET"}


TableSizes: TypeAlias = tuple[tuple[int, int], ...]
"""Rows and columns of the position tables of each stage that has attention."""


REQUIRED = object()
"""Default of a setting that must not be guessed: several values are in use, and no tensor shows which."""


@dataclass(frozen=True)
class Setting:
    """A setting: its type, and its default if there is one.

    The pydantic model of a family's settings follows from these. They do without pydantic, whose import
    takes as long as a small conversion.
    """

    type: Any  # as in a pydantic model; ranges from `annotated_types`: ``Annotated[int, Ge(2), Le(3)]``
    description: str
    default: Any = REQUIRED
    takes: str = "another value"  # what it can be, in a phrase for messages
    check: Callable[[Any], object] | None = None  # raises ValueError for what the type cannot rule out
    title: str | None = None

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is REQUIRED

    @property
    def is_switch(self) -> bool:
        """Whether it is true or false."""
        return self.type is bool

    @property
    def accepts(self) -> str:
        """What it can be, in a phrase."""
        return "true or false" if self.is_switch else self.takes

    @property
    def kind(self) -> Any:
        """Its type with its check, as pydantic takes it."""
        from pydantic import AfterValidator

        return Annotated[self.type, AfterValidator(self._checked)] if self.check else self.type

    def _checked(self, value: Any) -> Any:
        assert self.check is not None
        self.check(value)
        return value


def settings_model(name: str, settings: Mapping[str, Setting]) -> type[BaseModel]:
    """The pydantic model of some settings, strict and closed."""
    from pydantic import ConfigDict, Field, create_model

    fields: dict[str, Any] = {}
    for key, setting in settings.items():
        default = ... if setting.required else setting.default
        fields[key] = (setting.kind, Field(default, title=setting.title, description=setting.description))
    config = ConfigDict(extra="forbid", strict=True, validate_assignment=True)
    return create_model(name, __config__=config, **fields)


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
    """What a builder of a larger model must know about a headless one."""

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
        family has one); the model ``forward_stages(images)``, a dict of the stages' outputs in order, the
        last one ``logits`` where there is a head. That of Keras offers
        ``load_published(model, names, read, *, suffix)`` too, where the published files have names of their
        own.
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

    def parts_around(self, entry: Entry) -> Mapping[str, Shape]:
        """Name and shape of what an entry's file has around its backbone; empty where that is not known."""
        return {}

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
    def required_settings(self) -> tuple[str, ...]:
        """Settings without a default, which are never guessed."""
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
            hint = f"it can be {self.settings[key].accepts}"
            raise UsageError(f"{key} is {shown(value)}", hint=hint) from error

    def setting_of_file(self, key: str, text: str, path: str | Path) -> Any:
        """A setting that a file's metadata give as JSON."""
        try:
            value = json.loads(text)
            self.check_setting(key, value)
        except (ValueError, RecursionError, UsageError) as error:
            raise FormatError(
                path, f"its metadata says {key} is {text[:40]!r}, which is not a valid value"
            ) from error
        return value

    def known_settings(
        self,
        *,
        given: Mapping[str, Any] | None = None,
        entry: Entry | None = None,
        metadata: Mapping[str, str] | None = None,
        path: str | Path = "the file",
        layout: str | None = None,
    ) -> dict[str, Any]:
        """What is known of a checkpoint's settings, without any default.

        In order of precedence: the user (``given``), the registry entry, the file's own ``metadata``, each
        setting as JSON, and what all code does that has the names of its ``layout``. A value that a setting
        cannot have is a UsageError, or a FormatError where the file has it.
        """
        of_layout = self.layouts[layout].settings if layout is not None and layout in self.layouts else {}
        given, metadata, by_entry = given or {}, metadata or {}, entry.settings if entry else {}
        for key in given:
            if key not in self.settings:
                raise UsageError(
                    f"family {self.name} has no setting {key}",
                    hint=choose_from(self.settings),
                )
        known = {}
        for key in self.settings:
            if key in given or by_entry.get(key) is not None:
                known[key] = given.get(key, by_entry.get(key))
                self.check_setting(key, known[key])
            elif key in metadata:
                known[key] = self.setting_of_file(key, metadata[key], path)
            elif key in of_layout:
                known[key] = of_layout[key]
        return known

    def missing_settings(self, known: Mapping[str, Any]) -> list[str]:
        """Settings that have no default and are not known."""
        return [key for key in self.required_settings if key not in known]

    def resolve_settings(self, known: Mapping[str, Any], *, name: object) -> dict[str, Any]:
        """Every setting of a model to build: as known, else the default; ``name`` is what the model is of."""
        for key in self.missing_settings(known):
            raise UsageError(
                f"{name}: {key} is not known, and it changes what the model computes",
                hint=f"name the registry entry, or give {self.set_option(key)}; "
                "'ckptkit show ID' tells what each file needs",
            )
        return {**self.default_settings, **known}

    def set_option(self, key: str) -> str:
        """How a setting is given on the command line: ``--set key=true or =false``."""
        return f"--set {key}={'true or =false' if self.settings[key].is_switch else 'VALUE'}"

    def layout_for(self, format: str) -> str:
        """Layout of a conversion to a format if none is given."""
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
        raise NotFoundError(f"unknown {family.name} variant {variant!r}", hint=choose_from(family.variants))
    if layout not in family.layouts:
        raise NotFoundError(f"unknown {family.name} layout {layout!r}", hint=choose_from(family.layouts))
    return expand(family.layouts[layout], family.definitions, family.sites(variant, structure))


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
    raise NotFoundError(f"no model code for family {name!r}", hint=choose_from(families()))


def family_groups() -> Iterator[Iterable[Family]]:
    """The built-in families, then those of plug-ins, which are not looked for before they are asked for."""
    yield map(get_family, _FAMILIES)
    yield _plugins().values()


def family_of_variant(variant: str) -> Family:
    """Return the family that has a variant of this name."""
    known: list[str] = []
    for family in chain.from_iterable(family_groups()):
        if variant in family.variants:
            return family
        known += family.variants
    raise NotFoundError(f"unknown variant {variant!r}", hint=choose_from(known))


def is_variant(name: str) -> bool:
    """Whether a family has a variant of this name."""
    return any(name in family.variants for family in chain.from_iterable(family_groups()))


def registry_families(plugins: bool = True) -> Families:
    """What entries of the registry are checked against, with the families of plug-ins or without."""
    return {name: get_family(name).registry_facts() for name in families(plugins)}
