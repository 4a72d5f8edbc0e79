"""What `predict`, `cam`, `eval` and their like work on: a checkpoint, and how it wants its pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ckptkit.base.parse import Size, parse_size
from ckptkit.convert.pipeline import stem_of
from ckptkit.families.base import Family, family_of_variant, get_family, is_variant
from ckptkit.families.binding import Weights
from ckptkit.families.recognition import require_recognition
from ckptkit.models import Framework, create_model
from ckptkit.models.images.classes import TAGS, read_tags
from ckptkit.models.images.preprocessing import DEFAULT_INTERPOLATION, Preprocessing, normalization_by
from ckptkit.models.synth import is_synthetic
from ckptkit.parity.inputs import normalization_in, resolution_in
from ckptkit.registry.schema import Entry
from ckptkit.workspace import Located, Named, Workspace


@dataclass(frozen=True)
class ModelSource:
    """A checkpoint that was opened for use, before any framework is loaded."""

    name: str  # the id, the path, or what the user named with synthetic weights
    located: Located  # the file
    family: Family
    variant: str
    num_classes: int | None  # outputs of the file's head
    settings: Mapping[str, Any]  # behaviour settings that were given
    weights: Weights
    preprocessing: Preprocessing  # as the published evaluation has it, at the requested resolution
    workspace: Workspace = field(repr=False)
    # Whether the weights are random numbers by recipe, made for the occasion or found in the file
    synthetic: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)  # what the file says of itself
    made: bool = False  # whether the file was made for the occasion
    layout: str | None = None  # of the file's tensors

    @property
    def stem(self) -> str:
        """How files made of it are called: the entry's id, the variant, or the file's own name."""
        if self.entry is not None:
            return self.entry.id
        return self.variant if self.name == self.variant else stem_of(self.located.path)

    @property
    def origin(self) -> Entry | None:
        """The entry whose weights these are: its own file, or a conversion that names it in its metadata."""
        return self.entry or origin_of(self.metadata, self.variant, self.workspace)

    @property
    def entry(self) -> Entry | None:
        """The registry's entry, None for a file of the user's own."""
        return self.located.entry

    @property
    def has_tags(self) -> bool:
        """Whether each output is a tag by itself, rather than one of the classes of which one is right."""
        layout = self.family.layouts.get(self.layout or "")
        return self.metadata.get("outputs") == "tags" or (layout is not None and layout.tags)

    def tag_names(self) -> tuple[str, ...] | None:
        """What its tags are called, if their publisher's list is beside the file or in the entry's cache."""
        if self.num_classes is None:
            return None
        path = self.located.path
        folders = [path, *path.absolute().parents[:2]]
        record = self.workspace.home.record(self.origin.id) if self.origin else None
        if record is not None:
            folders.append(self.workspace.home.artefact(record).parent)
        found = next((folder / TAGS for folder in folders if (folder / TAGS).is_file()), None)
        return None if found is None else read_tags(found, self.num_classes)

    def known_settings(self) -> dict[str, Any]:
        """Behaviour settings that were given, or that the entry or the file states."""
        return self.family.known_settings(
            given=self.settings,
            entry=self.entry,
            metadata=self.metadata,
            path=self.located.path,
            layout=self.layout,
        )

    def model(self, framework: Framework = "torch", **options: Any) -> Any:
        """Build the model and load its weights."""
        return create_model(
            self.entry or self.variant,
            framework,
            checkpoint=self.located.path,
            state_dict=self.located.state_dict,
            strip_prefix=self.located.strip_prefix,
            workspace=self.workspace,
            **{
                "resolution": self.preprocessing.size,
                "num_classes": self.num_classes,
                "weights": self.weights,
                **self.settings,
                **options,
            },
        )


@dataclass(frozen=True)
class SourceRequest:
    """Which weights of what the user names, and how their model is built."""

    what: Named  # id or entry (fetched when it is not cached) or path; with ``synthetic`` an id or a variant
    synthetic: bool = False  # random weights from a fixed recipe, in a temporary folder
    resolution: int | Size | None = None  # input (height, width); default the checkpoint's own
    weights: Weights = "auto"  # which copy where the file holds both
    state_dict: str | None = None  # which of several: its keys, joined by dots
    strip_prefix: str | Sequence[str] | None = None  # taken off the front of every tensor's name
    variant: str | None = None  # overrides what the file is recognised as
    settings: Mapping[str, Any] | None = None  # behaviour settings that no tensor shows

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[ModelSource]:
        """Find the checkpoint and open it; synthetic weights are there while the block lasts."""
        from ckptkit.models.synth import named_checkpoint

        with named_checkpoint(
            self.what,
            workspace,
            synthetic=self.synthetic,
            state_dict=self.state_dict,
            strip_prefix=self.strip_prefix,
        ) as (located, name):
            yield open_source(located, workspace, self, name=name)


def open_source(
    located: Located, workspace: Workspace, request: SourceRequest | None = None, *, name: str | None = None
) -> ModelSource:
    """Recognise a checkpoint and find out how it wants its pictures; no framework is imported."""
    request = request or SourceRequest(located.path)
    entry, resolution = located.entry, request.resolution
    with located.open(request.weights) as reader:
        found = require_recognition(
            reader.path, reader.specs, variant=request.variant or (entry.variant if entry else None)
        )
        metadata = dict(reader.metadata)
        path, numbers = reader.path, _rgb_stats(reader.extras)
        synthetic = request.synthetic or is_synthetic(reader, found)
    if entry is None and resolution is None:
        # a conversion may be for another resolution than the entry it was made of
        resolution = resolution_in(metadata, path)
    origin = entry or origin_of(metadata, found.variant, workspace)
    preprocessing = preprocessing_of(found.family, found.variant, origin, metadata, resolution, path=path)
    if numbers is not None:
        own = normalization_by(*numbers)
        if own is None:
            mean, std = (", ".join(f"{one:g}" for one in three) for three in numbers)
            workspace.warn(
                f"{path}: its rgb_stats are mean {mean} and std {std}, which is not a known normalization; "
                f"pictures are prepared with normalization {preprocessing.normalization}"
            )
        preprocessing = replace(preprocessing, normalization=own or preprocessing.normalization)
    return ModelSource(
        name or located.name,
        located,
        found.family,
        found.variant,
        found.structure.num_classes,
        request.settings or {},
        request.weights,
        preprocessing,
        workspace,
        synthetic,
        metadata,
        request.synthetic,
        found.layout,
    )


def _rgb_stats(extras: Mapping[str, str]) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation of each channel, as a file of birder states them beside its tensors."""
    mean, std = (
        [float(one) for one in re.findall(r"\d{1,3}\.\d{1,9}", extras.get(f"rgb_stats.{key}", ""))]
        for key in ("mean", "std")
    )
    return (mean, std) if len(mean) == len(std) == 3 else None


def origin_of(metadata: Mapping[str, str], variant: str, workspace: Workspace) -> Entry | None:
    """The registry's entry that a file's metadata name; None where there is none of that variant."""
    named = metadata.get("entry")
    entry = workspace.registry.get(named) if named else None
    return entry if entry is not None and entry.variant == variant else None


def preprocessing_named(
    what: Named, workspace: Workspace, resolution: int | Size | None = None
) -> Preprocessing:
    """How an entry, a variant or a file wants its pictures; only a file is opened."""
    if isinstance(what, str) and is_variant(what):
        return preprocessing_of(family_of_variant(what), what, None, {}, resolution)
    if isinstance(what, str) and not workspace.is_path(what) and what in workspace.registry:
        what = workspace.registry[what]
    if isinstance(what, Entry):
        return preprocessing_of(get_family(what.family), what.variant, what, {}, resolution)
    located = workspace.locate(what, fetch=False)
    return open_source(located, workspace, SourceRequest(what, resolution=resolution)).preprocessing


def preprocessing_of(
    family: Family,
    variant: str,
    entry: Entry | None,
    metadata: Mapping[str, str],
    resolution: int | Size | None = None,
    *,
    path: Path | None = None,
) -> Preprocessing:
    """How a checkpoint wants its pictures: as its entry, its metadata or its variant says.

    At another resolution than the entry's, the shorter side before the crop keeps its ratio to the input's.

    >>> import ckptkit
    >>> from ckptkit.families.base import get_family
    >>> entry = ckptkit.registry()["moganet-xt-224"]
    >>> str(preprocessing_of(get_family("moganet"), "moganet-xt", entry, {}))
    'shorter side to 248, bicubic, centre 224x224, normalization imagenet'
    """
    usual = (entry.test_resolution if entry else None) or resolution_in(metadata, path or Path())
    usual_size = parse_size(usual or family.default_resolution(variant), "resolution")
    size = usual_size if resolution is None else parse_size(resolution, "resolution")
    resize = entry.test_resize if entry else None
    if resize is not None and size != usual_size:
        resize = max(1, round(resize * min(size) / min(usual_size)))
        parse_size(resize, "the shorter side before the crop")
    return Preprocessing(
        size,
        (entry.normalization if entry else None)
        or normalization_in(metadata, path or Path())
        or family.normalization(variant),
        resize,
        (entry.interpolation if entry else None) or DEFAULT_INTERPOLATION,
    )
