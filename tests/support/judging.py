"""A suggestion judged by what it makes of random values, computed here with numpy."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ckptkit.base.tensors import TensorSpec, dtype_of
from ckptkit.rules.structure import Match
from ckptkit.rules.turning import Turn
from tests.support.ported import Array, Port


def specs_of(arrays: Mapping[str, Array]) -> dict[str, TensorSpec]:
    """Names, types and shapes."""
    return {name: TensorSpec(name, dtype_of(array), array.shape) for name, array in arrays.items()}


class Arrays:
    """Arrays as a reader."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = arrays
        self.specs = specs_of(arrays)

    def read(self, name: str) -> Array:
        """One of them."""
        return self.arrays[name]

    def check(self, _name: str) -> bool:
        """Nothing to check."""
        return False

    def release(self, _name: str) -> None:
        """Nothing to release."""


def turned(array: Array, turn: Turn) -> Array:
    """What a turn does to an array: split, transposed, merged."""
    if turn.is_identity:
        return array
    lengths = dict(turn.lengths)

    def axes(pattern: str) -> list[list[str]]:
        return [
            [name for name in group.strip("()").split() if name != "1"]
            for group in re.findall(r"\([^)]*\)|\S+", pattern)
        ]

    source, target = axes(turn.source), axes(turn.target)
    letters = [name for group in source for name in group]
    lengths |= {group[0]: n for group, n in zip(source, array.shape, strict=True) if len(group) == 1}
    whole = array.reshape([lengths[name] for name in letters])
    moved = whole.transpose([letters.index(name) for group in target for name in group])
    return moved.reshape([math.prod(lengths[name] for name in group) for group in target])


def made_by(match: Match, source: Mapping[str, Array]) -> dict[str, Array]:
    """The target's tensors that a match makes."""
    parts = [source[name] for name in match.sources]
    axis = match.axis or 0
    assert match.over is None
    if match.operation == "one":
        return {match.targets[0]: turned(parts[0], match.turn)}
    if match.operation == "concat":
        return {match.targets[0]: np.concatenate([turned(one, match.turn) for one in parts], axis)}
    if match.each > 1:
        return _made_of_rows(match, parts)
    if match.operation == "stack":
        return {match.targets[0]: np.stack([turned(one, match.turn) for one in parts], axis)}
    if match.operation == "split":
        pieces: Iterable[Array] = np.split(parts[0], len(match.targets), axis)
    else:
        pieces = [np.take(parts[0], at, axis) for at in range(len(match.targets))]
    return {name: turned(one, match.turn) for name, one in zip(match.targets, pieces, strict=True)}


def _made_of_rows(match: Match, parts: list[Array]) -> dict[str, Array]:
    """What a stack makes, or is made, of which several tensors have one number."""
    axis, each = match.axis or 0, match.each
    assert match.along is not None
    joined_on = match.along - (axis < match.along)
    if match.operation == "stack":
        rows = [
            np.concatenate([turned(one, match.turn) for one in parts[start : start + each]], joined_on)
            for start in range(0, len(parts), each)
        ]
        return {match.targets[0]: np.stack(rows, axis)}
    count = len(match.targets) // each
    pieces = [
        piece for at in range(count) for piece in np.split(np.take(parts[0], at, axis), each, joined_on)
    ]
    return {name: turned(one, match.turn) for name, one in zip(match.targets, pieces, strict=True)}


@dataclass
class Judged:
    """How many tensors of each label are right, and which are wrong."""

    tensors: int
    right: dict[str, int] = field(default_factory=dict)
    wrong: dict[str, list[str]] = field(default_factory=dict)

    def count(self, sure: str) -> int:
        """Tensors with this label."""
        return self.right.get(sure, 0) + len(self.wrong.get(sure, []))


def judged(port: Port, matches: Iterable[Match]) -> Judged:
    """Compare what some matches make with what it should be; constants of the target are not asked for."""
    found = Judged(sum(bool(sources) for sources in port.made_of.values()))
    for match in matches:
        for name, array in made_by(match, port.source).items():
            wanted = port.target[name]
            if array.shape == wanted.shape and np.array_equal(array, wanted):
                found.right[match.sure] = found.right.get(match.sure, 0) + 1
            else:
                found.wrong.setdefault(match.sure, []).append(name)
    return found
