"""The preparation of a picture set against itself: by Pillow, by PyTorch alone, by TensorFlow alone.

Every model sees what Pillow prepared (`models.images.preprocessing`). The other two are written from the
same description without it, so that a wrong filter, crop, order of channels or normalization of any of the
three shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from ckptkit.base.tensors import Array
from ckptkit.models.images.decoding import open_image
from ckptkit.models.images.preprocessing import NORMALIZATIONS, NoEquivalentError, Preprocessing
from ckptkit.parity.comparison import INPUT, Limit, StageComparison, compare_output
from ckptkit.parity.inputs import Inputs

if TYPE_CHECKING:
    from PIL.Image import Image

PreparedBy = Literal["torch", "keras"]

LEVELS = 2
"""How far two preparations may lie apart anywhere, in levels of 255.

A resized picture has whole levels again after either pass, across and down. In the first, where exact
arithmetic gives a half, one library goes up and another down: 1 level. The second weighs such pixels by
weights whose magnitudes add up to 1.25 at most for bicubic (1 for bilinear, 1.54 for Lanczos), and what is
less than 2 levels apart is at most 2 apart after rounding.
"""

MEAN_LEVELS = 0.25
"""How far they may lie apart on average: most pixels fall on no half.

Measured on 60 pictures of noise, of black and white, and of waves, from 1 to 700 pixels a side, with either
normalization: at most 0.05 (enlarging puts more values on a half), and 2 levels at few pixels. A shift by
half a pixel moves a gradient of one level a pixel by 0.5 on average.
"""

_SLACK = 1 + 1e-3
"""For float32: normalized values near 2 are known to a part in ten million, a level is a hundredth."""

_CALLED: Mapping[PreparedBy, str] = {"torch": "PyTorch", "keras": "TensorFlow"}


@dataclass(frozen=True)
class PairComparison:
    """Two preparations of one picture, compared.

    Parameters
    ----------
    sides : (str, str)
        Whose they are.
    figures : StageComparison
        In normalized units.
    level : float
        What a level of 255 is in these units: of the channel where it is largest.
    """

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
    """One picture, prepared by several libraries.

    Parameters
    ----------
    pairs : tuple of PairComparison
    notes : tuple of str
        What was not compared, and why.
    """

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
    picture: Image, wanted: Preprocessing, frameworks: Sequence[PreparedBy] = ("torch", "keras")
) -> PreparationReport:
    """Prepare a picture with Pillow and with each framework alone, and compare each pair.

    Parameters
    ----------
    picture : PIL.Image.Image
        Decoded, RGB.
    wanted : Preprocessing
    frameworks : sequence of {"torch", "keras"}
        ``keras`` stands for TensorFlow.

    Raises
    ------
    MissingDependencyError
        When a framework is not installed.
    FormatError
        When the picture is too long and narrow to be resized.
    """
    import numpy

    prepared = {"Pillow": wanted(picture)}
    notes = []
    pixels = numpy.asarray(picture)
    for framework in frameworks:
        try:
            prepared[_CALLED[framework]] = _pipeline(framework)(pixels, wanted)
        except NoEquivalentError as error:
            notes.append(f"the preparation of the picture was not compared with one by {error}")
    pairs = [
        _compare((one, other), prepared[one], prepared[other], wanted)
        for one, other in combinations(prepared, 2)
    ]
    return PreparationReport(tuple(pairs), tuple(notes))


def compare_inputs(
    inputs: Inputs, frameworks: Sequence[PreparedBy] = ("torch", "keras")
) -> tuple[tuple[StageComparison, ...], tuple[str, ...]]:
    """What a parity report says of the preparation of its picture: one row, or none, and notes.

    Parameters
    ----------
    inputs : Inputs
        Random ones are prepared by nobody: there is nothing to say.
    frameworks : sequence of {"torch", "keras"}
        Which are compared with Pillow and with each other.

    Raises
    ------
    NotFoundError, FormatError
        When the image file is not there, or is no image.
    """
    if inputs.image is None:
        return (), ()
    report = compare_preparations(open_image(inputs.image), inputs.preprocessing(), frameworks)
    return (report.worst,) if report.worst else (), report.notes


def _pipeline(framework: PreparedBy) -> Callable[[Array, Preprocessing], Array]:
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
