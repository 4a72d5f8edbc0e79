"""From one shape to another: the changes of axis order, merges and splits that lead there.

By shape alone several may fit: a square kernel is transposed or not. Which one it is follows from values, or
from what the axes of a kernel mean in either framework; the latter is never more than a guess.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import Literal

from ckptkit.base.axes import Op, Shape

AxisOrder = Literal["input first", "output first"]
_MOST_AXES = 6


@dataclass(frozen=True)
class Turn:
    """How the axes of one tensor become those of another, as two patterns of `base.axes.Op`."""

    source: str = ""
    target: str = ""
    lengths: tuple[tuple[str, int], ...] = ()  # of every axis

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        return self.source == self.target

    @property
    def inverse(self) -> Turn:
        """The way back."""
        return Turn(self.target, self.source, self.lengths)

    @property
    def op(self) -> Op:
        """What does it to an array."""
        return Op("identity" if self.is_identity else "turn", self.source, self.target, dict(self.lengths))

    @property
    def axes(self) -> str:
        """As a file of rules has it."""
        return f"{self.source} -> {self.target}"


IDENTITY = Turn()


@lru_cache(1 << 12)
def turns(source: Shape, target: Shape) -> tuple[Turn, ...]:
    """Every turn between two shapes; the identity first where it is one.

    >>> [turn.axes for turn in turns((3, 3, 8, 16), (16, 8, 3, 3))]
    ['a b c d -> d c a b', 'a b c d -> d c b a']
    >>> [turn.axes for turn in turns((8, 2, 4), (8, 8))]
    ['a b c -> a (b c)', 'a b c -> (b c) a', 'a b c -> a (c b)', 'a b c -> (c b) a']
    """
    if math.prod(source) != math.prod(target) or 0 in source:
        return (IDENTITY,) if source == target else ()
    found = list(_turns(source, target))
    if source == target:
        found = [IDENTITY, *(turn for turn in found if not turn.is_identity and _moves(turn))]
    return tuple(dict.fromkeys(found))


def _moves(turn: Turn) -> bool:
    """Whether it changes more than the places of unit axes."""
    return turn.source.replace("1", "").split() != turn.target.replace("1", "").split()


def _turns(source: Shape, target: Shape) -> Iterator[Turn]:
    many = [i for i, n in enumerate(source) if n != 1]
    few = [i for i, n in enumerate(target) if n != 1]
    if len(many) < len(few):
        yield from (turn.inverse for turn in _turns(target, source))
        return
    if len(many) > _MOST_AXES:
        if [source[i] for i in many] == [target[i] for i in few]:
            yield _turn(source, target, [[i] for i in many])
        return
    orders = permutations(many)
    found = []
    for order in orders:
        groups = _runs([source[i] for i in order], [target[i] for i in few])
        if groups is not None:
            merged = [[order[at] for at in group] for group in groups]
            broken = sum(group != sorted(group) for group in merged)  # axes merged in another order
            found.append((broken, merged))
    found.sort(key=lambda one: one[0])
    yield from (_turn(source, target, merged) for _, merged in found)


def _runs(sizes: Sequence[int], wanted: Sequence[int]) -> list[list[int]] | None:
    """Consecutive sizes whose products are the ones wanted."""
    groups: list[list[int]] = []
    at = 0
    for size in wanted:
        group, product = [], 1
        while product < size and at < len(sizes):
            product *= sizes[at]
            group.append(at)
            at += 1
        if product != size:
            return None
        groups.append(group)
    return groups if at == len(sizes) else None


def _turn(source: Shape, target: Shape, groups: list[list[int]]) -> Turn:
    letters = _letters(source)
    left = " ".join("1" if n == 1 else letters[i] for i, n in enumerate(source))
    rest = iter(groups)
    right = []
    for n in target:
        if n == 1:
            right.append("1")
        else:
            inside = [letters[i] for i in next(rest)]
            right.append(inside[0] if len(inside) == 1 else f"({' '.join(inside)})")
    lengths = tuple((letters[i], n) for i, n in enumerate(source) if n != 1)
    return Turn(left, " ".join(right), lengths)


def _letters(shape: Shape) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[: len(shape)]


def usual(source: Shape, target: Shape, orders: tuple[AxisOrder | None, AxisOrder | None]) -> Turn | None:
    """The turn of a kernel between frameworks, by what its axes mean there.

    >>> usual((3, 3, 8, 16), (16, 8, 3, 3), ("input first", "output first")).axes
    'a b c d -> d c a b'
    >>> usual((8, 8), (8, 8), ("input first", "output first")).axes
    'a b -> b a'
    >>> usual((8, 2, 4), (8, 8), ("input first", "output first")).axes
    'a b c -> (b c) a'
    """
    left, right = orders
    if left is None or right is None:
        return None
    fitting = turns(source, target)
    if min(sum(n != 1 for n in shape) for shape in (source, target)) < 2:
        return next(iter(fitting), None)
    if left == right and len(source) == len(target):
        return IDENTITY if source == target else None
    if left == right:
        return next((turn for turn in fitting if _in_order(turn)), None)
    if len(source) == len(target):
        ways = [_exchanged(len(source), left)]
        if 1 in (source[-1:] if left == "input first" else source[1:2]):
            ways.append(_depthwise(len(source), left))
        for meant in ways:
            if tuple(source[i] for i in meant) == target:
                return _turn(source, target, [[i] for i in meant if source[i] != 1])
    return next((turn for turn in fitting if _turned_round(turn)), None)


def _exchanged(rank: int, left: AxisOrder) -> list[int]:
    """Where each axis of the target comes from: ``h w i o`` is ``o i h w`` on the other side."""
    if left == "input first":
        return [rank - 1, rank - 2, *range(rank - 2)] if rank > 1 else [0]
    return [*range(2, rank), 1, 0] if rank > 1 else [0]


def _depthwise(rank: int, left: AxisOrder) -> list[int]:
    """The same where one axis is the channels: ``h w c 1`` is ``c 1 h w``."""
    if left == "input first":
        return [rank - 2, rank - 1, *range(rank - 2)] if rank > 2 else [0]
    return [*range(2, rank), 0, 1] if rank > 2 else [0]


def _in_order(turn: Turn) -> bool:
    return turn.is_identity or _axes(turn.source) == _axes(turn.target)


def _turned_round(turn: Turn) -> bool:
    """Whether two groups of axes change places, and each keeps its own order."""
    left, right = _axes(turn.source), _axes(turn.target)
    cuts = range(1, len(left))
    if len(left) == 1:
        return True
    sides = [side for side in (turn.source, turn.target) if len(_groups(side)) == 2]
    return bool(sides) and any(left[cut:] + left[:cut] == right for cut in cuts)


def _axes(pattern: str) -> list[str]:
    return [letter for letter in pattern if letter.isalpha()]


def _groups(pattern: str) -> list[str]:
    groups, inside = [], False
    for word in pattern.replace("(", "( ").replace(")", " )").split():
        if word == "(":
            inside = True
            groups.append("")
        elif word == ")":
            inside = False
        elif word != "1":
            groups.append(word) if not inside else groups.__setitem__(-1, groups[-1] + word)
    return groups


def named(turn: Turn) -> Turn:
    """The same turn with the letters that are usual for its axes.

    >>> named(Turn("a b c d", "d c a b")).axes
    'h w i o -> o i h w'
    """
    usual_letters = _USUAL.get((turn.source, turn.target))
    if usual_letters is None:
        return turn
    table = str.maketrans(dict(zip("abcdef", usual_letters, strict=False)))
    lengths = tuple((name.translate(table), n) for name, n in turn.lengths)
    return Turn(turn.source.translate(table), turn.target.translate(table), lengths)


_USUAL = {
    ("a b", "b a"): "io",
    ("a b c", "c b a"): "kio",
    ("a b c d", "d c a b"): "hwio",
    ("a b c d", "c d b a"): "oihw",
    ("a b c 1", "c 1 a b"): "hwc",
    ("1 1 c d", "d c"): "..io",
    ("a b c", "(b c) a"): "ihd",
    ("a b c", "c (a b)"): "hdo",
    ("a b", "(a b)"): "hd",
}

Certainty = Literal["forced", "guessed", "ambiguous"]


@dataclass(frozen=True)
class Choice:
    """One turn of those that fit two shapes, and how sure it is."""

    turn: Turn
    sure: Certainty
    others: tuple[Turn, ...] = ()  # what the shapes allow besides
    usual: bool = True  # whether it is what axes mean on both sides, as far as that is known


def chosen(
    source: Shape, target: Shape, orders: tuple[AxisOrder | None, AxisOrder | None], *, table: bool = False
) -> Choice | None:
    """The turn that fits best; None where none does.

    >>> both = ("input first", "output first")
    >>> [chosen(*shapes, both).sure for shapes in (((4, 8), (8, 4)), ((8, 8), (8, 8)))]
    ['forced', 'guessed']
    >>> chosen((8, 8), (8, 8), (None, None)).sure
    'ambiguous'
    """
    fitting = turns(source, target)
    if not fitting:
        return None
    same: tuple[AxisOrder | None, AxisOrder | None] = ("input first", "input first")
    meant = usual(source, target, same if table else orders)
    if len(fitting) == 1:
        return Choice(fitting[0], "forced", usual=meant is not None)
    if min(sum(n != 1 for n in shape) for shape in (source, target)) < 2:
        return Choice(fitting[0], "guessed", fitting[1:])
    if meant is None:
        return Choice(fitting[0], "ambiguous", fitting[1:], usual=False)
    left = "input first" if table else orders[0]
    spatial = range(len(source) - 2) if left == "input first" else range(2, len(source))
    in_order = [turn for turn in fitting if _keeps(turn, spatial)]
    others = tuple(turn for turn in fitting if turn != meant)
    return Choice(meant, "forced" if in_order == [meant] else "guessed", others)


def _keeps(turn: Turn, places: range) -> bool:
    """Whether some axes of the source are in their order in the target."""
    if turn.is_identity:
        return True
    source, target = turn.source.split(), _axes(turn.target)
    if "(" in turn.source:
        return True
    kept = [source[i] for i in places if source[i] != "1"]
    found = [letter for letter in target if letter in kept]
    return found == kept


def full(turn: Turn, source: Shape, target: Shape) -> Turn:
    """The same turn with letters for axes of length one too, where it is one of the usual exchanges.

    >>> full(Turn("1 1 c d", "d c 1 1", (("c", 8), ("d", 4))), (1, 1, 8, 4), (4, 8, 1, 1)).axes
    'a b c d -> d c a b'
    """
    rank = len(source)
    if rank != len(target) or rank < 2 or "(" in turn.source + turn.target:
        return turn
    letters = _letters(source)
    for order in (_exchanged(rank, "input first"), _exchanged(rank, "output first")):
        moved = [letters[i] for i in order if source[i] != 1]
        if tuple(source[i] for i in order) == target and moved == _axes(turn.target):
            lengths = tuple((letters[i], n) for i, n in enumerate(source))
            return Turn(" ".join(letters), " ".join(letters[i] for i in order), lengths)
    return turn
