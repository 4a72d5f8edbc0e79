"""Parameters and multiply-adds of a model, module by module, without weights and without memory for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from ckptkit.analysis.counting import Count, count_forward
from ckptkit.analysis.modules import ModuleProfile, module_tree, number
from ckptkit.base.errors import NotFoundError, UsageError
from ckptkit.base.parse import Size, parse_num_classes, parse_size
from ckptkit.families.base import Family, families, get_family
from ckptkit.families.flops import Convention

if TYPE_CHECKING:
    from ckptkit.registry import Entry


@dataclass(frozen=True)
class Subject:
    """What is counted: everything that the numbers of a profile depend on."""

    family: str
    variant: str
    resolution: Size  # height and width in pixels
    num_classes: int | None  # outputs of the head, None for none
    pos_emb: bool | None  # whether attention has position tables
    # The family's behaviour settings, except those the family's convention does not see
    settings: tuple[tuple[str, Any], ...]

    @property
    def convention(self) -> Convention:
        """How its family's publication counts."""
        return convention_of(get_family(self.family))


@dataclass(frozen=True)
class Profile:
    """What a model costs."""

    subject: Subject
    root: ModuleProfile  # the whole model, with its modules inside
    operations: Mapping[str, Count]  # of the whole model by PyTorch operation, those that cost something
    uncounted: Mapping[str, int]  # calls of operations that the convention says nothing about

    @property
    def parameters(self) -> int:
        """Trainable parameters, BatchNorm's statistics not among them."""
        return self.root.parameters

    @property
    def multiply_adds(self) -> Fraction:
        """For one image, by the convention."""
        return self.root.multiply_adds

    @property
    def products(self) -> Fraction:
        """Multiply-adds of convolutions, linear layers and attention products alone."""
        return self.root.products

    def rows(self, depth: int) -> Iterator[tuple[int, ModuleProfile]]:
        """Modules down to a depth with their level, the model itself being level 0."""
        return self.root.rows(depth)

    def to_json(self, depth: int | None = None) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes, modules down to ``depth`` (None: all)."""
        subject = self.subject
        return {
            "family": subject.family,
            "variant": subject.variant,
            "resolution": list(subject.resolution),
            "num_classes": subject.num_classes,
            "pos_emb": subject.pos_emb,
            "settings": dict(subject.settings),
            "convention": {"name": subject.convention.name, "counts": subject.convention.counts},
            "parameters": self.parameters,
            "multiply_adds": number(self.multiply_adds),
            "products": number(self.products),
            "operations": {
                name: {"calls": count.calls, "multiply_adds": number(count.multiply_adds)}
                for name, count in self.operations.items()
            },
            "uncounted": dict(self.uncounted),
            "modules": self.root.to_json(depth),
        }


def convention_of(family: Family) -> Convention:
    """How a family's publication counts.

    >>> convention_of(get_family("moganet")).name
    'mmcv'
    """
    if family.flops is None:
        raise NotFoundError(
            f"how the figures of family {family.name!r} were counted is not known",
            hint="known are " + ", ".join(name for name in families() if get_family(name).flops),
        )
    return family.flops


def subject_of(
    variant: str,
    family: Family,
    entry: Entry | None = None,
    *,
    resolution: int | Size | None = None,
    num_classes: int | None = 1000,
    pos_emb: bool | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Subject:
    """Put together what is to be counted: as asked, else the entry's, else a classifier's."""
    from ckptkit.families.settings import known_settings, resolve_settings

    indifferent = convention_of(family).indifferent
    said = known_settings(family, told=settings, entry=entry)
    unseen = {key: value for key, value in indifferent.items() if key in family.required_settings}
    settled = resolve_settings(family, {**unseen, **said}, name=entry.id if entry else variant)
    if resolution is None:
        resolution = (entry and entry.test_resolution) or family.default_resolution(variant)
    size = parse_size(resolution, "resolution")
    if pos_emb is not None and not family.has_pos_emb:
        raise UsageError(f"family {family.name} has no position embedding", hint="leave pos_emb out")
    if family.has_pos_emb and pos_emb is None:
        pos_emb = True if entry is None or entry.pos_emb is None else entry.pos_emb
    return Subject(
        family=family.name,
        variant=variant,
        resolution=size,
        num_classes=parse_num_classes(num_classes),
        pos_emb=pos_emb,
        settings=tuple((key, value) for key, value in settled.items() if key not in indifferent),
    )


def profile(subject: Subject) -> Profile:
    """Count one model.

    The model is built and run on PyTorch's meta device, so this takes neither weights nor memory for them.
    """
    model = _build(subject)
    tally = count_forward(model, subject.resolution, subject.convention)
    operations: dict[str, Count] = {}
    for (_, operation), count in tally.counts.items():
        operations.setdefault(operation, Count()).add(count)
    dearest = sorted(operations.items(), key=lambda item: -item[1].multiply_adds)
    root = replace(module_tree(model, tally), name=subject.variant)
    return Profile(subject, root, dict(dearest), tally.uncounted)


def _build(subject: Subject) -> Any:
    module = get_family(subject.family).torch_module()
    import torch

    position = {} if subject.pos_emb is None else {"pos_emb": subject.pos_emb}
    with torch.device("meta"):
        return module.build(
            subject.variant,
            resolution=subject.resolution,
            num_classes=subject.num_classes,
            **position,
            **{**subject.convention.indifferent, **dict(subject.settings)},
        )
