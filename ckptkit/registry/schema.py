"""What an entry of the registry is: its fields, their types, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, zip_longest
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    create_model,
    field_validator,
)

from ckptkit.base import packages
from ckptkit.base.checksums import ExpectedChecksum
from ckptkit.base.parse import parse_count
from ckptkit.base.shown import Piece, Shown
from ckptkit.base.text import counted, human_bytes, in_words, spelled
from ckptkit.base.urls import Url, full_url

SOURCE_SCHEMES = ("https", "http", "file", "s3", "gs", "az", "hf")

_CONFIG = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


def _checked_url(url: str) -> str:
    if " " in url or not url.isprintable():
        raise ValueError("a URL has no blanks or control characters")
    parts = urlsplit(url)
    if parts.scheme not in SOURCE_SCHEMES:
        raise ValueError(f"a URL begins with one of {', '.join(f'{name}://' for name in SOURCE_SCHEMES)}")
    if parts.scheme != "file" and not parts.hostname:
        raise ValueError("the URL names no host")
    return Url(url)


def _checked_time(text: str) -> str:
    from datetime import datetime

    # Python 3.10 does not read the Z that everybody writes for UTC.
    if datetime.fromisoformat(text.replace("Z", "+00:00")).tzinfo is None:
        raise ValueError("a time needs its zone, like 2026-01-31T12:00:00Z")
    return text


BUILT_IN_FORMATS = (
    "tf",
    "torch",
    "safetensors",
    "keras",
    "keras2",
    "npz",
    "dcp",
    "deepspeed",
    "tf1",
    "orbax",
    "paddle",
    "flax",
    "onnx",
    "graphdef",
    "gguf",
)
"""Names of containers: `ckptkit.formats`, which knows them, is above this room; a test compares the two."""


def _formats() -> tuple[str, ...]:
    return (*BUILT_IN_FORMATS, *packages.plugins("ckptkit.formats"))


def _checked_format(name: Any) -> str:
    if isinstance(name, str) and (name in BUILT_IN_FORMATS or name in _formats()):
        return name
    *others, last = map(repr, _formats())
    raise ValueError(f"input should be {', '.join(others)} or {last}")


ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")

Text = Annotated[str, Field(min_length=1)]
# An id also names a folder of the cache, so it ends in no dot.
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]*[a-z0-9_-])?$", max_length=100)]
Address = Annotated[str, AfterValidator(_checked_url)]
Figure = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?[KMBGT]?$", max_length=20)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
RelativePath = Annotated[
    str,
    Field(
        pattern=r"^(\.\./)*([A-Za-z0-9_][A-Za-z0-9._+=@-]*/)*[A-Za-z0-9_]([A-Za-z0-9._+=@-]*[A-Za-z0-9_+=@-])?$",
        max_length=200,
    ),
]
Percent = Annotated[float, Field(ge=0, le=100)]
Positive = Annotated[int, Field(ge=1, lt=2**63)]
Pixels = Annotated[int, Field(ge=1, le=16384)]
MetricName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.@-]*$", max_length=40)]

CLASSIFICATION = "image-classification"
TASKS = (
    CLASSIFICATION,
    "object-detection",
    "instance-segmentation",
    "semantic-segmentation",
    "pose-estimation",
    "multi-label-tagging",
)
"""The tasks of the built-in registry; a registry of your own may name others."""


class Source(BaseModel):
    """One place from which an entry's file can be had."""

    model_config = _CONFIG

    url: Address = Field(description="Where the file is.")
    note: str = Field("", description="What to know about this source.")
    bn_statistics: bool | None = Field(
        None, description="Whether the file holds the BatchNorm moving statistics; null: not known."
    )
    manual: bool = Field(False, description="A person must download it, then run 'ckptkit import ID FILE'.")


class Companion(BaseModel):
    """A further file of a checkpoint that is published as several: a shard, or the data of an index."""

    model_config = _CONFIG

    path: RelativePath = Field(
        description="Where it is, as seen from the file at the sources' URLs: model-00001-of-00002.bin."
    )
    sha256: Sha256 | None = Field(None, description="As of the entry.")
    md5: Md5 | None = Field(None, description="As of the entry.")
    size: Positive | None = Field(None, description="As of the entry.")

    @property
    def name(self) -> str:
        """Its name in the cache."""
        return PurePosixPath(self.path).name

    def url(self, main: str) -> str:
        """Where it is, if the main file is at this URL; a query is kept.

        >>> Companion(path="../tags.csv").url("hf://org/name@v1/variables/variables.index")
        'hf://org/name@v1/tags.csv'
        """
        parts = urlsplit(full_url(main))
        folders = parts.path.split("/")[:-1]
        for folder in (steps := self.path.split("/"))[:-1]:
            folders = folders[:-1] or [""] if folder == ".." else [*folders, folder]
        return Url(urlunsplit(parts._replace(path="/".join([*folders, steps[-1]]))))


class HashProvenance(BaseModel):
    """When and from where sha256 was observed, where it is not the publisher's word."""

    model_config = _CONFIG

    observed_at: Annotated[str, AfterValidator(_checked_time)] = Field(
        description="When the file was fetched, ISO 8601 with its zone."
    )
    url: Address = Field(description="From where the file was fetched.")
    note: str | None = Field(None, description="Anything else to know about it.")


class KnownDeviation(BaseModel):
    """A published figure that what is counted does not round to, and why that is accepted.

    It excuses one figure as it was published, so another published figure needs another entry; an audit
    fails when the figure does round after all.
    """

    model_config = _CONFIG

    figure: Literal["params", "flops"] = Field(description="Which figure: published_params, published_flops.")
    published: Figure = Field(description="The figure exactly as published.")
    reason: Text = Field(description="What is known of the difference.")


class Entry(Shown, BaseModel):
    """One published checkpoint.

    A field that is None is not known. `params`, `flops`, `file_name` and `is_archive` follow from the fields.
    Settings of models are further fields, which `entry_model` adds.
    """

    model_config = _CONFIG

    id: Name = Field(description="What the command line calls it; never changes once released.")
    family: Name = Field(description="Architecture family.")
    variant: Name = Field(description="Architecture of the family.")
    display_name: Text = Field(description="Name in the published table.")
    group: Text | None = Field(None, description="The published table, or part of one, that lists it.")
    task: Name = Field(CLASSIFICATION, description=f"What the model is for: {', '.join(TASKS)}, or another.")
    method: Text | None = Field(
        None, description="The detector, segmenter or head around the backbone, as published: Mask R-CNN."
    )
    serves: Literal["whole", "backbone", "container"] = Field(
        "whole",
        description="What ckptkit knows of the file: the whole model; its backbone, with the rest as it is; "
        "or the container only.",
    )
    required: bool = Field(False, description="One of the rows of the published pages ckptkit is built for.")
    pretrain_data: Text | None = Field(None, description="Training data, as published.")
    setting: Text | None = Field(None, description="Training recipe or schedule, as published.")
    train_resolution: Pixels | None = Field(None, description="Input height and width in training, pixels.")
    test_resolution: Pixels | None = Field(None, description="Input height and width of the figures, pixels.")
    pos_emb: bool | None = Field(None, description="Whether attention has a relative position embedding.")
    published_params: Figure | None = Field(None, description="Parameters exactly as published: 27.8M.")
    published_flops: Figure | None = Field(None, description="Multiply-adds exactly as published: 0.80G.")
    flops_input: Annotated[tuple[Pixels, Pixels], Field(strict=False)] | None = Field(
        None,
        description="Input height and width of published_flops, pixels, where it is not the test resolution.",
    )
    published_top1: Percent | None = Field(None, description="ImageNet-1K top-1 accuracy, percent.")
    published_top5: Percent | None = Field(None, description="ImageNet-1K top-5 accuracy, percent.")
    metrics: dict[MetricName, float] = Field(
        default_factory=dict, description="Further published metrics by name, as published: box_mAP: 39.7."
    )
    dataset: Text | None = Field(None, description="Evaluation data that the metrics belong to.")
    num_classes: Positive | None = Field(
        None, description="Classes or tags that the model tells apart; null: not said, 1000 for ImageNet-1K."
    )
    exact_parameters: Positive | None = Field(
        None, description="Trainable parameters of the whole published model, counted on the published code."
    )
    known_deviations: Annotated[tuple[KnownDeviation, ...], Field(strict=False)] = Field(
        (), description="Published figures that are known not to round from what is counted."
    )
    license: Text | None = Field(None, description="SPDX identifier.")
    paper: Text | None = Field(None, description="arXiv:NNNN.NNNNN")
    layout: Name = Field(description="Names and axis order of the tensors.")
    format: Annotated[
        str,
        PlainValidator(_checked_format),
        WithJsonSchema({"enum": list(BUILT_IN_FORMATS), "type": "string"}),
    ] = Field(description="The container.")
    weights: Literal["ema", "raw"] | None = Field(
        None, description="The copy that the accuracy belongs to, where a file holds several."
    )
    normalization: Literal["imagenet", "half", "birds"] | None = Field(
        None,
        description="imagenet: the ImageNet mean and std; half: mean 0.5, std 0.5; birds: those of "
        "bird photographs (all for RGB in [0, 1]).",
    )
    test_resize: Pixels | None = Field(None, description="Shorter side before the centre crop, pixels.")
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = Field(
        None, description="How test images are resized."
    )
    # Strict mode would refuse YAML's lists for a tuple; what is inside stays strict.
    sources: Annotated[tuple[Source, ...], Field(min_length=1, strict=False)] = Field(
        description="Where the file can be had, best first."
    )
    companions: Annotated[tuple[Companion, ...], Field(strict=False)] = Field(
        (),
        description="Further files of the checkpoint, beside the one at the sources' URLs, which is the one "
        "to open: the index of shards, or of a TensorFlow checkpoint.",
    )
    sha256: Sha256 | None = Field(
        None, description="Checksum of the file as published, 64 lower-case hex digits; null: not pinned."
    )
    md5: Md5 | None = Field(
        None,
        description="MD5 that the publisher states, 32 lower-case hex digits; it shows damage, and does not "
        "protect against a forged file.",
    )
    size: Positive | None = Field(None, description="Bytes of the file as published.")
    checksum_page: Address | None = Field(
        None,
        description="The publisher's page that states md5, and sha256 where it has no hash_provenance.",
        validate_default=True,
    )
    hash_provenance: HashProvenance | None = Field(
        None,
        description="When and from where sha256 was observed, where no publisher states it.",
        validate_default=True,
    )
    config_url: Address | None = Field(None, description="The training configuration.")
    log_url: Address | None = Field(None, description="The training log.")
    note: str | None = Field(None, description="A note about the entry.")

    def pieces(self) -> Iterator[Piece]:
        """Every fact, and the sources."""
        return described(self)

    @property
    def headline(self) -> str:
        """The entry in one line."""
        return f"{self.id}: {self.display_name}"

    @property
    def settings(self) -> dict[str, Any]:
        """What is known of the settings of its model: its fields besides those that every entry has."""
        fields = {**self.__dict__, **(self.model_extra or {})}
        return {
            name: value
            for name, value in fields.items()
            if name not in Entry.model_fields and value is not None
        }

    @property
    def published_metrics(self) -> dict[str, float]:
        """Every published metric by name, ``top1`` and ``top5`` first."""
        accuracy = {"top1": self.published_top1, "top5": self.published_top5}
        return {**{name: value for name, value in accuracy.items() if value is not None}, **self.metrics}

    def metric(self, name: str) -> float | None:
        """A published metric by its name in any spelling: ``box_mAP``, ``box-map``, ``Top-1``."""
        wanted = spelled(name)
        return next((value for key, value in self.published_metrics.items() if spelled(key) == wanted), None)

    @property
    def is_published_checksum(self) -> bool:
        """Whether sha256 is the publisher's word, rather than what somebody observed."""
        return self.sha256 is not None and self.hash_provenance is None

    @property
    def expected(self) -> tuple[ExpectedChecksum, ...]:
        """What the file must have, and whose word it is; sha256 first."""
        whose = "the publisher" if self.is_published_checksum else "the registry"
        stated = (("sha256", self.sha256, whose), ("md5", self.md5, "the publisher"))
        return tuple(ExpectedChecksum(kind, value, origin) for kind, value, origin in stated if value)

    def of_companion(self, name: str) -> Entry | None:
        """One of its companions as an entry of that file alone; None of any other name."""
        found = next((one for one in self.companions if one.name == name), None)
        if found is None:
            return None
        sources = tuple(
            source if source.manual else source.model_copy(update={"url": found.url(source.url)})
            for source in self.sources
        )
        own = {"sha256": found.sha256, "md5": found.md5, "size": found.size}
        return self.model_copy(update={**own, "sources": sources, "companions": ()})

    @property
    def files(self) -> tuple[Entry, ...]:
        """Each file that it is published as, as an entry of that file alone; the main one first."""
        beside = (self.of_companion(one.name) for one in self.companions)
        return (self.model_copy(update={"companions": ()}), *filter(None, beside))

    @property
    def total_size(self) -> int | None:
        """Bytes of all its files as published; None where one is not known."""
        sizes = [self.size, *(one.size for one in self.companions)]
        return None if None in sizes else sum(filter(None, sizes))

    @property
    def is_pinned(self) -> bool:
        """Whether the sha256 of every file is known."""
        return self.sha256 is not None and all(one.sha256 is not None for one in self.companions)

    def known_deviation(self, figure: str) -> KnownDeviation | None:
        """The known deviation of one figure, ``params`` or ``flops``; None where there is none."""
        return next((known for known in self.known_deviations if known.figure == figure), None)

    @property
    def params(self) -> float | None:
        """Parameters: as published, or exactly where there is no figure or it is another model's."""
        exact = None if self.exact_parameters is None else float(self.exact_parameters)
        if self.published_params is None:
            return exact
        published = parse_count(self.published_params)
        return published if exact is None or abs(published - exact) <= _SLIP * exact else exact

    @property
    def flops(self) -> float | None:
        """Multiply-adds of one image, as published."""
        return None if self.published_flops is None else parse_count(self.published_flops)

    @property
    def file_name(self) -> str:
        """Name of the published file: the last part of the first URL that needs no hand."""
        for source in sorted(self.sources, key=lambda source: source.manual):
            name = _last_part(source.url)
            if not source.manual and name not in {"", ".", ".."}:
                return name
        return self.id

    @property
    def is_archive(self) -> bool:
        """Whether the published file must be unpacked (``.pth.tar`` is a plain PyTorch file)."""
        return self.file_name.lower().endswith(ARCHIVE_SUFFIXES)

    @field_validator("known_deviations", mode="after")
    @classmethod
    def _are_of_this_entry(
        cls, value: tuple[KnownDeviation, ...], info: ValidationInfo
    ) -> tuple[KnownDeviation, ...]:
        for known in value:
            field = f"published_{known.figure}"
            if field in info.data and info.data[field] != known.published:
                raise ValueError(f"{known.published} is not the {field} of this entry, {info.data[field]}")
        if len({known.figure for known in value}) < len(value):
            raise ValueError("a figure has more than one known deviation")
        return value

    @field_validator("metrics", mode="after")
    @classmethod
    def _have_no_field_of_their_own(cls, value: dict[str, float]) -> dict[str, float]:
        seen: dict[str, str] = {"top1": "published_top1", "top5": "published_top5"}
        for name in value:
            if (other := seen.setdefault(spelled(name), name)) != name:
                raise ValueError(f"{name} is the same as {other}")
        return value

    @field_validator("companions", mode="after")
    @classmethod
    def _have_names_of_their_own(
        cls, value: tuple[Companion, ...], info: ValidationInfo
    ) -> tuple[Companion, ...]:
        names = [one.name for one in value]
        mains = {_last_part(source.url) for source in info.data.get("sources", ())}
        # Beside each file of the cache is its record, whose name ends in .json.
        taken = [*mains, *(f"{name}.json" for name in (*mains, *names))]
        if again := next((name for n, name in enumerate(names) if name in (*taken, *names[:n])), None):
            raise ValueError(f"{again} is the name of another of its files, or of that file's record")
        return value

    @field_validator("checksum_page", mode="after")
    @classmethod
    def _states_something(cls, value: str | None, info: ValidationInfo) -> str | None:
        stated = [_is_stated(info, name) for name in ("sha256", "md5", "size")]
        if value is None and stated[1]:
            raise ValueError("md5 is given without checksum_page: say which page of the publisher states it")
        if value is not None and not any(stated) and {"sha256", "md5", "size"} <= info.data.keys():
            raise ValueError("checksum_page is given without sha256, md5 or size")
        return value

    @field_validator("hash_provenance", mode="after")
    @classmethod
    def _belongs_to_a_hash(cls, value: HashProvenance | None, info: ValidationInfo) -> HashProvenance | None:
        if not {"sha256", "checksum_page"} <= info.data.keys():
            return value  # it has a fault of its own
        pinned = _is_stated(info, "sha256")
        if pinned and value is None and info.data["checksum_page"] is None:
            raise ValueError(
                "sha256 is given without hash_provenance: say when and from where it was observed, or with "
                "checksum_page which page of the publisher states it"
            )
        if value is not None and not pinned:
            raise ValueError("hash_provenance is given without a sha256")
        return value


def _is_stated(info: ValidationInfo, name: str) -> bool:
    """Whether a field of the main file is given, or of a companion."""
    beside = (getattr(one, name) for one in info.data.get("companions", ()))
    return any(value is not None for value in (info.data.get(name), *beside))


def _last_part(url: str) -> str:
    return unquote(urlsplit(url).path).replace("\\", "/").rpartition("/")[2]


_SLIP = 0.05
"""Part of the exact count by which a published one may be off; beyond it, it is another model's."""


SettingField = tuple[str, Any, str | None, str]
"""Name, type as in a pydantic model, title and description."""


@dataclass(frozen=True)
class FamilyFacts:
    """What an entry of a family may say, handed in from above: this room knows no architecture."""

    variants: Sequence[str]
    formats: Mapping[str, Sequence[str]]  # containers that each layout comes in
    settings: tuple[SettingField, ...] = ()  # fields of its entries besides those that every entry has

    def known(self, field: str) -> Sequence[str]:
        """Values of ``variant`` or ``layout``."""
        return self.variants if field == "variant" else tuple(self.formats)


Families = Mapping[str, FamilyFacts]


def entry_model(families: Families) -> type[Entry]:
    """The model of an entry of these families, with their layouts and with their settings as fields."""
    layouts = chain(*zip_longest(*(facts.formats for facts in families.values())))
    settings = chain(*(facts.settings for facts in families.values()))
    return _entry_model(tuple(dict.fromkeys(filter(None, layouts))), tuple(settings))


@cache  # entries of two registries are compared, so their class must be one
def _entry_model(
    layouts: tuple[str, ...], settings: tuple[tuple[str, Any, str | None, str], ...]
) -> type[Entry]:
    if not layouts:
        return create_model("Entry", __base__=Entry, __cls_kwargs__={"extra": "allow"})
    fields: dict[str, Any] = {"layout": (Literal[layouts], Entry.model_fields["layout"])}
    for name, kind, title, description in settings:
        fields[name] = (kind | None, Field(None, title=title, description=description))
    return create_model("Entry", __base__=Entry, **fields)


def json_schema(families: Families) -> dict[str, Any]:
    """JSON Schema of a registry file, for editors.

    Of an entry only ``id`` is required there, because the ``families`` head, or an earlier file that has the
    id, may give the rest; ``ckptkit registry validate`` sees the whole.
    """
    entry = entry_model(families).model_json_schema()
    definitions = entry.pop("$defs")
    fields = entry["properties"]
    fields["format"]["enum"] = list(_formats())
    shared = {name: rule for name, rule in fields.items() if name not in NOT_SHARED}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ckptkit registry",
        "type": "object",
        "additionalProperties": False,
        "required": ["entries"],
        "properties": {
            "notes": {
                "description": "Sentences written once, for YAML anchors.",
                "type": "object",
                "additionalProperties": {"type": "string"},
            },
            "families": {
                "description": "Per family, the fields that its entries in this file share.",
                "type": "object",
                "additionalProperties": {"$ref": "#/$defs/Family"},
            },
            "entries": {"type": "array", "items": {"$ref": "#/$defs/Entry"}},
        },
        "$defs": {
            **definitions,
            "Family": {"type": "object", "additionalProperties": False, "properties": shared},
            "Entry": {
                "type": "object",
                "additionalProperties": False,
                "properties": fields,
                "required": ["id"],
            },
        },
    }


#: Fields that belong to one file alone, so a family head may not give them.
NOT_SHARED = frozenset({"id", "family", "sources", "companions"})
#: Fields that a family head may only state as not known.
NULL_WHEN_SHARED = frozenset({"sha256", "md5", "size", "checksum_page", "hash_provenance"})


# -- an entry in words ---------------------------------------------------------------------------------------

NOT_KNOWN = "not known"
NOT_PINNED = "not pinned: no checksum of this file is published"
NOT_PUBLISHED = "not pinned: no sha256 of this file is published"
_SERVES = {
    "backbone": "the backbone is known here, the rest is carried as it is",
    "container": "only the container is known here",
}

_LABEL_WIDTH = 20


def described(row: Entry, here: Sequence[tuple[str, str]] = ()) -> Iterator[str]:
    """Every fact of an entry, what is known of its file ``here``, and its sources."""
    yield f"{row.id}: {row.display_name}"
    for label, text in [*_facts(row), *_file(row), *here, *_links(row)]:
        yield f"  {label:<{_LABEL_WIDTH}}{text}"
    yield from ("", "Sources, best first", *_sources(row))


def _facts(row: Entry) -> list[tuple[str, str]]:
    exact = None if row.exact_parameters is None else f"{row.exact_parameters:,} exactly"
    accuracy = [
        f"top-{rank} {value}%"
        for rank, value in ((1, row.published_top1), (5, row.published_top5))
        if value is not None
    ]
    metrics = [f"{name} {value}" for name, value in row.metrics.items()]
    published = (
        []
        if metrics and not accuracy
        else [
            ("accuracy", _joined(*accuracy, "as published" if accuracy else None)),
        ]
    )
    published += [("metrics", _joined(*metrics, "as published", row.dataset))] if metrics else []
    classes = row.num_classes and counted(row.num_classes, "class")
    work = [("task", _joined(in_words(row.task), row.method, classes, _SERVES.get(row.serves)))]
    given = [f"{name} {_word(value)}" for name, value in row.settings.items()]
    embedding = [] if row.pos_emb is None else [("position embedding", _word(row.pos_emb))]
    deviations = [
        ("known deviation", f"{known.figure} {known.published}: {known.reason}")
        for known in row.known_deviations
    ]
    notes = [("note", " ".join(row.note.split()))] if row.note else []
    return [
        ("architecture", f"{row.variant} ({_joined(row.family, row.group)})"),
        *(work if row.task != CLASSIFICATION or row.serves != "whole" or classes else []),
        ("training", _joined(row.pretrain_data, row.setting, _pixels(row.train_resolution))),
        ("test", _test(row)),
        *embedding,
        ("parameters", _joined(_published(row.published_params), exact)),
        ("FLOPs", _joined(_published(row.published_flops), row.published_flops and _image(row))),
        *deviations,
        *published,
        ("behaviour", _joined(*given) if given else "no setting that changes the output"),
        ("licence, paper", _joined(row.license, row.paper)),
        *notes,
    ]


def _image(row: Entry) -> str:
    size = row.flops_input
    return "multiply-adds of one image" + (f" of {size[0]}×{size[1]}" if size else "")


def _test(row: Entry) -> str:
    resize = None if row.test_resize is None else f"resize {row.test_resize}"
    return _joined(
        _pixels(row.test_resolution),
        resize,
        row.interpolation,
        row.normalization and f"{row.normalization} normalization",
    )


def _file(row: Entry) -> list[tuple[str, str]]:
    weights = row.weights and f"{row.weights} weights"
    facts = [("file", _joined(row.file_name, f"format {row.format}", f"layout {row.layout}", weights))]
    facts += _bytes_of(row, row, is_last=not row.companions)
    for number, one in enumerate(row.companions, 1):
        facts += [("and file", one.path), *_bytes_of(one, row, is_last=number == len(row.companions))]
    return facts


def _bytes_of(one: Entry | Companion, row: Entry, *, is_last: bool) -> Iterator[tuple[str, str]]:
    """Size and checksums of one file, and after the last file whose word they are."""
    yield "size", NOT_KNOWN if one.size is None else f"{human_bytes(one.size)} ({one.size:,} bytes)"
    yield "sha256", one.sha256 or (NOT_PINNED if one.md5 is None else NOT_PUBLISHED)
    each = "each " * bool(row.companions)
    if is_last and row.hash_provenance:
        provenance = row.hash_provenance
        yield "", f"{each}observed {provenance.observed_at} from {provenance.url}"
    elif is_last and _is_any(row, "sha256"):
        yield "", f"{each}stated by the publisher at {row.checksum_page}"
    if one.md5:
        yield "md5", one.md5
    if is_last and _is_any(row, "md5"):
        yield "", f"{each}stated by the publisher at {row.checksum_page}"
        yield "", "shows damage; does not protect against a forged file"


def _is_any(row: Entry, name: str) -> bool:
    return any(getattr(one, name) for one in (row, *row.companions))


def _links(row: Entry) -> list[tuple[str, str]]:
    links = [("config", row.config_url), ("log", row.log_url)]
    return [(name, url) for name, url in links if url]


def _sources(row: Entry) -> list[str]:
    lines = []
    for number, source in enumerate(row.sources, 1):
        lines.append(f"  {number}. {source.url}")
        statistics = {True: "has BatchNorm statistics", False: "lacks BatchNorm statistics", None: None}
        marks = [statistics[source.bn_statistics], "by hand only" if source.manual else None]
        remarks = "; ".join(text for text in [*marks, source.note] if text)
        if remarks:
            lines.append(f"     {remarks}")
    return lines


def _published(figure: str | None) -> str | None:
    return figure and f"{figure} as published"


def _pixels(size: int | None) -> str | None:
    return None if size is None else f"{size}×{size}"


def _word(value: bool | int) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _joined(*parts: Any) -> str:
    """Join what is known with commas."""
    return ", ".join(str(part) for part in parts if part) or NOT_KNOWN
