"""What both models see: seeded random numbers, one image prepared as its checkpoint wants it, or a recording.

Every model sees what Pillow prepared (`models.images.preprocessing`). The preparation is set against two
others as well, written from the same description without it, by PyTorch alone and by TensorFlow alone, so
that a wrong filter, crop, order of channels or normalization of any of the three shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ckptkit.base.errors import FormatError, UsageError, choose_from
from ckptkit.base.parse import MAX_SIDE
from ckptkit.base.tensors import Array
from ckptkit.base.text import counted
from ckptkit.families.base import Family
from ckptkit.formats.base import Reader
from ckptkit.formats.detect import open_reader
from ckptkit.models.images.decoding import open_image
from ckptkit.models.images.preprocessing import (
    DEFAULT_INTERPOLATION,
    NORMALIZATIONS,
    NoEquivalentError,
    Preprocessing,
)
from ckptkit.parity.compare import INPUT, Limit, StageComparison, compare_output

if TYPE_CHECKING:
    from PIL.Image import Image

    from ckptkit.registry.schema import Entry

DEFAULT_SEED = 20260101
"""Seed of the inputs that the reference outputs of the published code were recorded with."""

DEFAULT_BATCH = 2

SIDES = (32, 4096)
"""Smallest and largest input side: the models' stride, and what no classifier exceeds."""

IMAGES = "images"
"""Name of the inputs in a recording that has them: (N, H, W, 3)."""

_LARGEST_SEED = 2**128 - 1


@dataclass(frozen=True)
class Inputs:
    """A batch of images and where it came from."""

    batch: int
    height: int
    width: int
    seed: int | None = None
    image: Path | None = None
    normalization: str | None = None
    resize: int | None = None
    interpolation: str | None = None
    recorded: Path | None = None  # the file that holds them

    def array(self) -> Array:
        """Make the batch: (batch, height, width, 3) float32."""
        if self.image is not None:
            prepared: Array = self.preprocessing()(open_image(self.image))[None]
            return prepared
        import numpy

        if self.recorded is not None:
            with open_reader(self.recorded) as reader:
                return numpy.asarray(reader.read(IMAGES), dtype=numpy.float32)
        generator = numpy.random.Generator(numpy.random.Philox(key=self.seed or 0))
        return generator.standard_normal((self.batch, self.height, self.width, 3), dtype=numpy.float32)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in vars(self).items()}

    def preprocessing(self) -> Preprocessing:
        """How an image is prepared for this batch."""
        return Preprocessing(
            (self.height, self.width),
            self.normalization or "imagenet",
            self.resize,
            self.interpolation or DEFAULT_INTERPOLATION,
        )

    def __str__(self) -> str:
        size = f"{self.height}x{self.width}"
        if self.image is not None:
            return f"image {self.image} at {size}, normalization {self.normalization}"
        if self.recorded is not None:
            return f"{counted(self.batch, 'input')} of {self.recorded} at {size}"
        return f"{counted(self.batch, 'random input')} at {size}, seed {self.seed}"


def random_inputs(batch: int | None, size: tuple[int, int], seed: int | None) -> Inputs:
    """Describe standard normal inputs, the same on every machine.

    >>> random_inputs(None, (64, 32), None).array().shape
    (2, 64, 32, 3)
    """
    batch = DEFAULT_BATCH if batch is None else batch
    seed = DEFAULT_SEED if seed is None else seed
    if batch < 1:
        raise UsageError(f"invalid batch {batch}", hint="use 1 or more")
    if not 0 <= seed <= _LARGEST_SEED:
        raise UsageError(f"invalid seed {seed}", hint="use a number from 0 to 2**128 - 1")
    return Inputs(batch, *size, seed=seed)


def image_inputs(
    image: Path,
    batch: int | None,
    size: tuple[int, int],
    normalization: str,
    *,
    resize: int | None = None,
    interpolation: str | None = None,
) -> Inputs:
    """Describe one image: resized so that it covers ``size``, cut to its centre, normalized."""
    if batch not in (None, 1):
        raise UsageError(f"one image is a batch of 1, not of {batch}", hint="leave --batch out")
    if normalization not in NORMALIZATIONS:
        raise UsageError(f"unknown normalization {normalization!r}", hint=choose_from(NORMALIZATIONS))
    return Inputs(
        1,
        *size,
        image=image,
        normalization=normalization,
        resize=resize,
        interpolation=interpolation or DEFAULT_INTERPOLATION,
    )


def parse_resolution(value: int | tuple[int, int], *, what: str = "resolution") -> tuple[int, int]:
    """Read a resolution, a side or (height, width), and refuse what no input can have.

    >>> parse_resolution(224), parse_resolution((192, 256))
    ((224, 224), (192, 256))
    """
    height, width = (value, value) if isinstance(value, int) else value
    if not all(SIDES[0] <= side <= SIDES[1] for side in (height, width)):
        raise UsageError(
            f"{what} {height}x{width}", hint=f"both sides must be from {SIDES[0]} to {SIDES[1]} pixels"
        )
    return height, width


def resolution_in(metadata: Mapping[str, str], path: Path) -> int | tuple[int, int] | None:
    """Input side, or height and width, that the metadata of a file give; None where they say nothing."""
    text = metadata.get("resolution")
    if text is None:
        return None
    found = re.fullmatch("([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", text)
    sides = [int(side) for side in found.groups() if side] if found else []
    if not sides or max(sides) > MAX_SIDE:
        raise FormatError(
            path,
            f"its metadata says resolution is {text[:40]!r}, which is not an input size",
            hint=f"at most {MAX_SIDE} pixels a side",
        )
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def normalization_in(metadata: Mapping[str, str], path: Path) -> str | None:
    """Input normalization that the metadata of a file give; None where they say nothing."""
    text = metadata.get("normalization")
    if text is not None and text not in NORMALIZATIONS:
        raise FormatError(
            path,
            f"its metadata says normalization is {text[:40]!r}, which is not known",
            hint=choose_from(NORMALIZATIONS),
        )
    return text


def inputs_for(
    family: Family,
    variant: str,
    entry: Entry | None,
    reader: Reader,
    *,
    batch: int | None,
    resolution: int | tuple[int, int] | None,
    seed: int | None,
    image: Path | None,
) -> Inputs:
    """What both models will see: as asked, else as the entry, the file or the variant has it."""
    usual = (entry.test_resolution if entry else None) or resolution_in(reader.metadata, reader.path)
    size = parse_resolution(resolution or usual or family.default_resolution(variant))
    if image is None:
        return random_inputs(batch, size, seed)
    normalization = (
        (entry.normalization if entry else None)
        or normalization_in(reader.metadata, reader.path)
        or family.normalization(variant)
    )
    return image_inputs(
        image,
        batch,
        size,
        normalization,
        resize=entry.test_resize if entry else None,
        interpolation=entry.interpolation if entry else None,
    )


# -- preparations of a picture compared ----------------------------------------------------------------------

PreparedBy = Literal["torch", "keras"]

LEVELS = 2
"""How far apart two preparations may be anywhere, in levels of 255.

A resized picture has whole levels again after either pass, across and down. In the first, where exact
arithmetic gives a half, one library goes up and another down: 1 level. The second weighs such pixels by
weights whose magnitudes add up to 1.25 at most for bicubic (1 for bilinear, 1.54 for Lanczos), and what is
less than 2 levels apart is at most 2 apart after rounding.
"""

MEAN_LEVELS = 0.25
"""How far apart they may be on average: most pixels are not halfway between two levels.

Measured on 60 pictures of noise, of black and white, and of waves, from 1 to 700 pixels a side, with either
normalization: at most 0.05 (enlarging puts more values on a half), and 2 levels at few pixels. A shift by
half a pixel moves a gradient of one level a pixel by 0.5 on average.
"""

_SLACK = 1 + 1e-3
"""For float32: normalized values near 2 are known to a part in ten million, a level is a hundredth."""

_CALLED: Mapping[PreparedBy, str] = {"torch": "PyTorch", "keras": "TensorFlow"}


@dataclass(frozen=True)
class PairComparison:
    """Two preparations of one picture, compared."""

    sides: tuple[str, str]
    figures: StageComparison
    level: float

    @property
    def max_levels(self) -> float:
        """Largest difference, in levels."""
        return self.figures.max_abs / self.level

    @property
    def mean_levels(self) -> float:
        """Mean difference, in levels."""
        return self.figures.mean_abs / self.level

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"sides": list(self.sides), **self.figures.to_json()}


@dataclass(frozen=True)
class PreparationReport:
    """One picture, prepared by several libraries."""

    pairs: tuple[PairComparison, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all that could be compared agrees."""
        return all(pair.figures.ok for pair in self.pairs)

    @property
    def worst(self) -> StageComparison | None:
        """The pair furthest apart, one that does not agree before all others; None without pairs."""
        by_distance = sorted(self.pairs, key=lambda pair: (pair.figures.ok, -pair.figures.max_abs))
        return by_distance[0].figures if by_distance else None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "ok": self.ok,
            "pairs": [pair.to_json() for pair in self.pairs],
            "notes": list(self.notes),
        }


def compare_preparations(
    picture: Image,
    wanted: Preprocessing,
    frameworks: Sequence[PreparedBy] = ("torch", "keras"),
    prepare: Callable[[PreparedBy], Array] | None = None,
) -> PreparationReport:
    """Prepare a picture with Pillow and, here or by ``prepare``, each framework alone; compare each pair."""
    import numpy

    prepared = {"Pillow": wanted(picture)}
    notes = []
    pixels = numpy.asarray(picture)
    for framework in frameworks:
        try:
            by = prepare(framework) if prepare else pipeline(framework)(pixels, wanted)
            prepared[_CALLED[framework]] = by
        except NoEquivalentError as error:
            notes.append(f"the preparation of the picture was not compared with one by {error}")
    pairs = [
        _compare((one, other), prepared[one], prepared[other], wanted)
        for one, other in combinations(prepared, 2)
    ]
    return PreparationReport(tuple(pairs), tuple(notes))


@dataclass(frozen=True)
class Batch:
    """Inputs as they are: made, and the preparation of a picture compared."""

    inputs: Inputs
    images: Array  # (N, H, W, 3) float32
    prepared: tuple[StageComparison, ...] = ()  # one row, where there is a picture
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        inputs: Inputs,
        frameworks: Sequence[PreparedBy],
        prepare: Callable[[Path, Preprocessing, PreparedBy], Array] | None = None,
    ) -> Batch:
        """Make them."""
        if inputs.image is None:
            return cls(inputs, inputs.array())
        wanted = inputs.preprocessing()
        elsewhere = partial(prepare, inputs.image, wanted) if prepare else None
        report = compare_preparations(open_image(inputs.image), wanted, frameworks, elsewhere)
        return cls(inputs, inputs.array(), (report.worst,) if report.worst else (), report.notes)


def pipeline(framework: PreparedBy) -> Callable[[Array, Preprocessing], Array]:
    """A preparation by one framework alone, which is imported."""
    if framework == "torch":
        from ckptkit.models.images.torch_pipeline import prepare
    else:
        from ckptkit.models.images.tensorflow_pipeline import prepare
    return prepare


def _compare(sides: tuple[str, str], one: Array, other: Array, wanted: Preprocessing) -> PairComparison:
    level = 1 / (255 * min(NORMALIZATIONS[wanted.normalization][1]))
    limit = Limit(LEVELS * level * _SLACK, relative=False)
    figures = compare_output(INPUT, one[None], other[None], limit, sides=sides)
    if figures.verdict == "differs":
        reason = f"{' and '.join(sides)} prepare the picture differently: {figures.reason}"
        figures = replace(figures, reason=reason)
    elif figures.ok and figures.mean_abs > MEAN_LEVELS * level:
        reason = (
            f"{' and '.join(sides)} prepare the picture differently: on average by "
            f"{figures.mean_abs / level:.2f} levels where {MEAN_LEVELS} are allowed"
        )
        figures = replace(figures, verdict="differs", reason=reason)
    return PairComparison(sides, figures, level)
