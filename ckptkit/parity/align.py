"""Which output of one side is compared with which of the other.

Pairs that a case names are taken as they are. Without any, the two sequences of outputs are aligned in the
order of execution, as two texts are: a pair has equal shapes, and one whose values are alike counts for more.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ckptkit.base.errors import NotFoundError, listed
from ckptkit.base.tensors import Array
from ckptkit.base.text import counted
from ckptkit.parity.compare import LOGITS

OUTPUT = "output"
"""What a model's result is called in a recording; with a dot and a key where it has several parts."""

_ALIKE, _SAME_SHAPE = 10_000, 1
"""What a pair counts for."""
_CLOSE = 1e-3
_MOST_PAIRS = 4_000_000
"""Pairs of outputs that are looked at; more than that are left alone."""


@dataclass(frozen=True)
class Pair:
    """Two outputs to compare."""

    left: str
    right: str
    is_output: bool = False
    guessed: bool = False

    @property
    def name(self) -> str:
        """What the report calls it."""
        return self.left if self.left == self.right else f"{self.left} ↔ {self.right}"

    def of(self, which: Literal["left", "right"]) -> str:
        """What one side calls it."""
        return self.left if which == "left" else self.right


def is_output(name: str, told: Sequence[str]) -> bool:
    """Whether a recorded array is a model's result: as the recording says, or by its name."""
    return name in told or name in (OUTPUT, LOGITS) or (not told and name.startswith(f"{OUTPUT}."))


def find(name: str, names: Sequence[str], side: str, seen: Sequence[str] = ()) -> str:
    """The recorded output that a case's file names: by its whole name, its end, or a key of the result.

    >>> find("block1", ["stem", "net/block1", "output"], "left")
    'net/block1'
    """
    if name in names:
        return name
    ends = [one for one in names if one.endswith(f"/{name}") or one == f"{OUTPUT}.{name}"]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise NotFoundError(
            f"{side}: {counted(len(ends), 'stage')} end in {name!r}", hint=f"choose from {listed(ends)}"
        )
    every = list(seen or names)
    close = difflib.get_close_matches(name, every, 3, 0.4) or every
    raise NotFoundError(f"{side}: no stage {name!r} ran", hint=f"it has {listed(close)}")


@dataclass(frozen=True)
class Form:
    """An output in one order of its axes."""

    array: Array
    moved: bool = False  # whether the channels, which were first, are last

    def back(self, array: Array, shape: tuple[int, ...]) -> Array:
        """An array of this order in the side's own, and of the shape that the side gave."""
        import numpy

        return (numpy.moveaxis(array, -1, 1) if self.moved else array).reshape(shape)


@dataclass(frozen=True)
class Outputs:
    """What one side gave."""

    arrays: Mapping[str, Array]
    told: Sequence[str]  # names of its results
    layout: str | None  # NCHW or NHWC
    axes: frozenset[int]  # of the maps to turn
    seen: Sequence[str] = ()  # all stages that ran, where not all were recorded

    def results(self) -> list[str]:
        """Names of the model's results."""
        return [name for name in self.arrays if is_output(name, self.told)]

    def forms(self, name: str) -> list[Form]:
        """An output as its layout says, and as it is."""
        import numpy

        array = numpy.atleast_1d(self.arrays[name])
        if self.layout == "NCHW" and array.ndim in self.axes:
            return [Form(numpy.moveaxis(array, 1, -1), moved=True), Form(array)]
        return [Form(array)]


def pairs(left: Outputs, right: Outputs, stages: Mapping[str, str] | None) -> list[Pair]:
    """What to compare: the stages, then the results."""
    if stages is None:
        found = guessed(left, right)
    else:
        found = [
            Pair(
                find(one, list(left.arrays), "left", left.seen),
                find(other, list(right.arrays), "right", right.seen),
            )
            for one, other in stages.items()
        ]
    ours = [name for name in left.results() if name not in {pair.left for pair in found}]
    theirs = [name for name in right.results() if name not in {pair.right for pair in found}]
    return [*found, *_results(left, right, ours, theirs)]


def _results(left: Outputs, right: Outputs, ours: Sequence[str], theirs: Sequence[str]) -> list[Pair]:
    """Results by name; those of other names in their order, where the shapes are equal."""
    if len(ours) == len(theirs) and set(ours) != set(theirs):
        return [Pair(one, other, is_output=True) for one, other in zip(ours, theirs, strict=True)]
    named = [Pair(name, name, is_output=True) for name in ours if name in theirs]
    rest = [name for name in theirs if name not in ours]
    for name in (name for name in ours if name not in theirs):
        other = next((one for one in rest if _same_shape(left, name, right, one)), None)
        if other is not None:
            rest.remove(other)
            named.append(Pair(name, other, is_output=True))
    return named


def _same_shape(left: Outputs, one: str, right: Outputs, other: str) -> bool:
    return best(left, one, right, other) is not None


def best(left: Outputs, one: str, right: Outputs, other: str) -> tuple[Form, Form] | None:
    """Two outputs in one order of axes: of those in which their shapes are equal, the one that is closest.

    None where the shapes are equal in none. A map of attention has as many axes as an image, and no channels.
    """
    import numpy

    candidates = [
        (a, b)
        for a in left.forms(one)
        for b in right.forms(other)
        if a.array.shape == b.array.shape and a.array.size
    ]
    if len(candidates) < 2:
        return candidates[0] if candidates else None

    def distance(pair: tuple[Form, Form]) -> float:
        a, b = (one.array.astype(numpy.float64) for one in pair)
        with numpy.errstate(all="ignore"):
            found = float(numpy.abs(a - b).max())
        return found if numpy.isfinite(found) else numpy.inf

    return min(candidates, key=distance)


# -- guessing ------------------------------------------------------------------------------------------------


def guessed(left: Outputs, right: Outputs) -> list[Pair]:
    """Pairs of equal shapes in the order of execution, with as many alike as there can be."""
    ours, theirs = _distinct(left), _distinct(right)
    if len(ours) * len(theirs) > _MOST_PAIRS:
        return []
    signs_left = [_signs(left, name) for name in ours]
    signs_right = [_signs(right, name) for name in theirs]
    score = [[0] * (len(theirs) + 1) for _ in range(len(ours) + 1)]
    worth = [[_worth(a, b) for b in signs_right] for a in signs_left]
    for i in range(len(ours) - 1, -1, -1):
        for j in range(len(theirs) - 1, -1, -1):
            both = score[i + 1][j + 1] + worth[i][j] if worth[i][j] else 0
            score[i][j] = max(both, score[i + 1][j], score[i][j + 1])
    found, i, j = [], 0, 0
    while i < len(ours) and j < len(theirs):
        if worth[i][j] and score[i][j] == score[i + 1][j + 1] + worth[i][j]:
            found.append(Pair(ours[i], theirs[j], guessed=True))
            i, j = i + 1, j + 1
        elif score[i][j] == score[i + 1][j]:
            i += 1
        else:
            j += 1
    return found


def _distinct(side: Outputs) -> list[str]:
    """Stages without those that hand on what the one before them gave: the outermost name stays."""
    import numpy

    names: list[str] = []
    for name, array in side.arrays.items():
        if is_output(name, side.told) or array.dtype.kind != "f" or array.ndim < 2 or not array.size:
            continue
        if names and numpy.array_equal(side.arrays[names[-1]], array):
            names[-1] = name
        else:
            names.append(name)
    return names


_Signs = list[tuple[tuple[int, ...], Any]]


def _signs(side: Outputs, name: str) -> _Signs:
    """For each order of axes, the shape and a few figures that tell whether values are alike."""
    import numpy

    found = []
    for form in side.forms(name):
        array, flat = form.array, form.array.reshape(-1)
        sample = flat[:: max(1, flat.size // 64)][:64].astype(numpy.float64)
        found.append((array.shape, sample))
    return found


def _worth(ours: _Signs, theirs: _Signs) -> int:
    import numpy

    worth = 0
    for shape, sample in ours:
        for other_shape, other in theirs:
            if shape == other_shape:
                scale = float(numpy.abs(sample).max()) or 1.0
                alike = bool((numpy.abs(sample - other) <= _CLOSE * scale).all())
                worth = max(worth, _ALIKE if alike else _SAME_SHAPE)
    return worth
