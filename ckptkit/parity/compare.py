"""Setting one framework's outputs against the other's, stage by stage, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ckptkit.base.tensors import Array
from ckptkit.base.text import counted

Verdict = Literal["agrees", "differs", "not finite", "degenerate"]

LOGITS = "logits"
"""Name of the last output; every other one is a stage."""

INPUT = "input"
"""Name of what a picture becomes before either model sees it; it comes before the stages."""

TOP = 5


def is_logits(output: str) -> bool:
    """Whether an output of that name is logits; a setting may be added to the name in parentheses."""
    return output.split(" (", 1)[0] == LOGITS


@dataclass(frozen=True)
class Limit:
    """How far apart two outputs may be."""

    value: float
    relative: bool  # the largest difference is divided by the reference's largest magnitude first

    def __str__(self) -> str:
        return f"{self.value:.1e} {'relative' if self.relative else 'absolute'}"


@dataclass(frozen=True)
class Tolerance:
    """What agreement means for one precision of the converted side."""

    stages: Limit
    logits: Limit
    outputs: frozenset[str] = frozenset()  # what is held to the limit of logits besides them

    def limit(self, output: str) -> Limit:
        """Limit of one output by name."""
        return self.logits if is_logits(output) or output in self.outputs else self.stages


_FLOAT16_ROUNDOFF = 2.0**-11
_BFLOAT16_ROUNDOFF = 2.0**-8
_ROUNDOFFS_ALLOWED = 10


def _rounded(roundoff: float) -> Tolerance:
    limit = Limit(_ROUNDOFFS_ALLOWED * roundoff, relative=True)
    return Tolerance(limit, limit)


TOLERANCES: dict[str, Tolerance] = {
    "float32": Tolerance(Limit(5e-5, relative=True), Limit(1e-4, relative=False)),
    "float16": _rounded(_FLOAT16_ROUNDOFF),
    "bfloat16": _rounded(_BFLOAT16_ROUNDOFF),
}
"""Tolerance by the precision that the conversion rounded to.

float32 conversions move bytes, so only the frameworks' order of summation differs: 5e-5 of a stage's scale,
1e-4 on logits. Half-precision ones round every weight by up to the unit roundoff u of their type (2⁻¹¹ for
float16, 2⁻⁸ for bfloat16) and are compared with the unrounded original. Measured on recipe weights of seven
variants from tiny-moat0 to moat3, with several seeds and sizes, the largest relative difference of any output
was 4.5 u (float16, moat3's stage4) and 4.1 u (bfloat16, same place), growing with depth; of moganet-xt (two
seeds) and moganet-s at 128 pixels, with either gate, 2.5 u (float16, stage2) and 2.9 u (bfloat16, stage4).
10 u are allowed.
Such a tolerance sees gross faults only: prove the rules in float32, and a half-precision file by it.
"""


@dataclass(frozen=True)
class StageComparison:
    """One output of both models, compared."""

    name: str  # "stage1" … "stage5", "logits"
    shape: tuple[int, ...]  # channels last
    scale: float  # largest magnitude of the reference
    max_abs: float  # of the difference
    mean_abs: float
    relative: float  # max_abs / scale
    cosine: float  # of the two outputs, each flattened to one vector
    limit: Limit
    verdict: Verdict
    reason: str = ""  # why it does not agree; empty when it does

    @property
    def ok(self) -> bool:
        """Whether it agrees."""
        return self.verdict == "agrees"

    def to_json(self) -> dict[str, Any]:
        """Plain values; a figure that is not a number is None."""
        figures = ("scale", "max_abs", "mean_abs", "relative", "cosine")
        return {
            "name": self.name,
            "shape": list(self.shape),
            **{key: finite_or_none(getattr(self, key)) for key in figures},
            "tolerance": self.limit.value,
            "tolerance_is": "relative" if self.limit.relative else "absolute",
            "verdict": self.verdict,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class TopAgreement:
    """How many inputs get the same answers."""

    batch: int
    top1: int  # inputs whose best class is the same
    top5: int  # inputs whose `classes` best classes are the same set
    classes: int  # 5, or the number of classes where there are fewer
    one_answer: bool  # all inputs have one and the same best class: agreement proves little

    def __str__(self) -> str:
        text = f"top-1 {self.top1}/{self.batch}, top-{self.classes} {self.top5}/{self.batch}"
        if self.one_answer and self.batch > 1:
            return f"{text} (all inputs share one top-1, so this proves little)"
        return text


def finite_or_none(figure: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return figure if math.isfinite(figure) else None


def compare(
    reference: Mapping[str, Array],
    candidate: Mapping[str, Array],
    tolerance: Tolerance,
    *,
    sides: Sequence[str] = ("reference", "candidate"),
) -> tuple[StageComparison, ...]:
    """Compare all outputs of two models.

    >>> import numpy
    >>> a = numpy.array([[1.0, -4.0]])
    >>> (found,) = compare({"logits": a}, {"logits": a + 0.5}, TOLERANCES["float32"])
    >>> found.max_abs, found.relative, found.verdict
    (0.5, 0.125, 'differs')
    """
    if list(reference) != list(candidate):
        raise ValueError(f"outputs {list(reference)} against {list(candidate)}")
    return tuple(
        compare_output(name, reference[name], candidate[name], tolerance.limit(name), sides=sides)
        for name in reference
    )


def compare_output(
    name: str, reference: Array, candidate: Array, limit: Limit, *, sides: Sequence[str]
) -> StageComparison:
    """Compare one output; a value that is not a number, or an output without values, never agrees."""
    nan = math.nan
    if reference.shape != candidate.shape:
        reason = (
            f"shape {list(candidate.shape)} on the {sides[1]} side, "
            f"{list(reference.shape)} on the {sides[0]} side"
        )
        return StageComparison(name, reference.shape, nan, nan, nan, nan, nan, limit, "differs", reason)
    bad = _not_finite(reference, candidate, sides)
    if bad:
        return StageComparison(name, reference.shape, nan, nan, nan, nan, nan, limit, "not finite", bad)
    scale, max_abs, mean_abs, cosine = _figures(reference, candidate)
    relative = max_abs / scale if scale else (math.inf if max_abs else 0.0)
    figure = relative if limit.relative else max_abs
    verdict: Verdict = "agrees"
    reason = ""
    if figure > limit.value:
        verdict, reason = "differs", f"difference {figure:.1e} where {limit} is allowed"
    elif what := _degeneracy(reference, sides[0]) or _degeneracy(candidate, sides[1]):
        verdict, reason = "degenerate", f"{what}, so agreement would prove nothing"
    return StageComparison(
        name, reference.shape, scale, max_abs, mean_abs, relative, cosine, limit, verdict, reason
    )


def _not_finite(reference: Array, candidate: Array, sides: Sequence[str]) -> str:
    import numpy

    counts = [int(array.size - numpy.isfinite(array).sum()) for array in (reference, candidate)]
    return ", ".join(
        f"{count} of {counted(array.size, 'value')} are NaN or infinite on the {side} side"
        for count, array, side in zip(counts, (reference, candidate), sides, strict=True)
        if count
    )


def _figures(reference: Array, candidate: Array) -> tuple[float, float, float, float]:
    """Scale, largest and mean difference, cosine; one input at a time, so float64 copies stay small."""
    import numpy

    scale = max_abs = total = dot = ours = theirs = 0.0
    for one, other in zip(reference, candidate, strict=True):
        a, b = one.astype(numpy.float64).ravel(), other.astype(numpy.float64).ravel()
        difference = numpy.abs(a - b)
        scale = max(scale, float(numpy.abs(a).max()))
        max_abs = max(max_abs, float(difference.max()))
        total += float(difference.sum())
        dot, ours, theirs = dot + float(a @ b), ours + float(a @ a), theirs + float(b @ b)
    length = math.sqrt(ours) * math.sqrt(theirs)
    cosine = max(-1.0, min(1.0, dot / length)) if length else math.nan
    return scale, max_abs, total / reference.size, cosine


def _degeneracy(output: Array, side: str) -> str:
    """Why an output says nothing about the model, if it does."""
    import numpy

    lowest, highest = float(output.min()), float(output.max())
    if highest - lowest <= numpy.finfo(numpy.float32).eps * max(abs(lowest), abs(highest)):
        return f"all values are {lowest:.3g} on the {side} side"
    if len(output) > 1 and all(numpy.array_equal(output[0], one) for one in output[1:]):
        return f"different inputs give the same output on the {side} side"
    return ""


def top_agreement(
    reference: Mapping[str, Array], candidate: Mapping[str, Array], stages: Sequence[StageComparison]
) -> TopAgreement | None:
    """Compare the answers; None without logits, or with logits that cannot be ranked."""
    import numpy

    found = next((stage for stage in stages if is_logits(stage.name)), None)
    if found is None or not math.isfinite(found.max_abs):
        return None
    ours, theirs = (
        numpy.argsort(-side[found.name], axis=1, kind="stable") for side in (reference, candidate)
    )
    classes = min(TOP, ours.shape[1])
    same_set = numpy.sort(ours[:, :classes], axis=1) == numpy.sort(theirs[:, :classes], axis=1)
    return TopAgreement(
        batch=len(ours),
        top1=int((ours[:, 0] == theirs[:, 0]).sum()),
        top5=int(same_set.all(axis=1).sum()),
        classes=classes,
        one_answer=len(set(ours[:, 0].tolist())) == 1,
    )
