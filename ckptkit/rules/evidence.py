"""What speaks for a pair of layers besides their sizes: words, company, order; and the best assignment."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

from ckptkit.rules.fusing import Bundle
from ckptkit.rules.naming import OPPOSED, Layer, opened, words
from ckptkit.rules.units import Side, Unit

ENOUGH = 0.06
"""By how much an assignment must be better than any other to be called a guess."""
_COMPANY, _KIN, _ORDER, _IN_FAMILY, _CONTENT = 0.5, 0.4, 0.2, 0.25, 0.05
"""What counts besides words, whose agreement is a number from 0 to 1."""
CONTRADICTED = 0.3
"""By how much, where names say one thing and the order of both files another."""
AGAINST = 0.4
"""What counts against a pair: axes that would be turned otherwise than usual."""
_TIE = 1e-4
"""What the order in the files counts where nothing else does: too little for a guess."""
NEVER = -9.0
"""The score of what cannot be a pair."""
_POSSIBLE = -5.0


class Scores:
    """How much speaks for a pair of units: words, company, order."""

    def __init__(
        self,
        source: Side,
        target: Side,
        pairs: Sequence[tuple[Layer, Layer]],
        is_odd: Callable[[Layer, Layer], bool],
        order: Mapping[int, Mapping[int, float]],
    ) -> None:
        self._source, self._target = source, target
        self._company = _Company(pairs) if pairs else None
        self._order = order
        self._odd = is_odd
        self._words: dict[tuple[str, str], float] = {}
        self._layers: dict[tuple[int, int], float] = {}

    def of(self, left: Unit, right: Unit) -> float:
        """The sum."""
        score = self.of_names(left, right)
        if self._company is not None:
            score += _COMPANY * self._company.of(left.layers[0], right.layers[0])
            score += _KIN * self._company.kin(left.layers[0], right.layers[0])
        if set(left.layers[0].parts) == set(right.layers[0].parts):
            score += _CONTENT
        odd = any(self._odd(a, b) for a, b in zip(left.layers, right.layers, strict=True))
        return score - AGAINST * odd

    def of_names(self, left: Unit, right: Unit) -> float:
        """Words and order alone."""
        ordered = sum(
            self._order.get(a.number, {}).get(b.number, 0.0)
            for a, b in zip(left.layers, right.layers, strict=True)
        )
        return self._of_words(left.pattern, right.pattern) + ordered / len(left.layers)

    def enough(self, left: Unit, right: Unit) -> float:
        """By how much a pair must be better than any exchange.

        More where the order of both files objects. Of vectors by themselves, such as scales, the place in
        the model tells nothing: several are in one block, so it takes a name that both have.
        """
        if left.layers[0].role == "vector" and not _named_alike(left.pattern, right.pattern):
            return math.inf
        places = [self._order.get(one.number, {}) for one in left.layers]
        objects = any(
            other.number not in place and any(place.values())
            for place, other in zip(places, right.layers, strict=True)
        )
        return CONTRADICTED if objects else ENOUGH

    def of_bundle(self, bundle: Bundle, unit: Unit, *, forward: bool) -> float:
        """The same for layers that are one on the other side."""
        many, one = next(iter(bundle.layers)), unit.layers[0]
        names, layers = ((bundle.pattern, unit.pattern), (many, one))
        if not forward:
            names, layers = names[::-1], layers[::-1]
        company = self._company.of(*layers) if self._company is not None else 0.0
        return self._of_words(*names) + _COMPANY * company

    def _of_words(self, left: str, right: str) -> float:
        key = left, right
        if key not in self._words:
            self._words[key] = _alike(words(left), words(right), self._source.weight, self._target.weight)
        return self._words[key]

    def holds(self, rivals: list[tuple[Layer, Layer, list[Layer], list[Layer]]]) -> bool:
        """Whether no exchange with layers outside of a pair of units would be as good."""
        for one, other, others, theirs in rivals:
            here = self._of_layers(one, other)
            if others and theirs:
                least = min(
                    here + self._of_layers(a, b) - self._of_layers(one, b) - self._of_layers(a, other)
                    for a in others
                    for b in theirs
                )
            else:
                alone = [here - self._of_layers(a, other) for a in others]
                least = min([*alone, *(here - self._of_layers(one, b) for b in theirs)], default=math.inf)
            if least < ENOUGH:
                return False
        return True

    def _of_layers(self, one: Layer, other: Layer) -> float:
        key = one.number, other.number
        if key not in self._layers:
            score = self._of_words("*".join(one.pieces), "*".join(other.pieces))
            score += self._order.get(one.number, {}).get(other.number, 0.0)
            if self._company is not None:
                score += _COMPANY * self._company.of(one, other) + _KIN * self._company.kin(one, other)
            self._layers[key] = score - AGAINST * self._odd(one, other)
        return self._layers[key]

    def table(
        self, lefts: list[Unit], rights: list[Unit], fits: Callable[[Unit, Unit], bool]
    ) -> list[list[float]]:
        """Scores of all pairs; those of one pattern on both sides are paired in their order."""
        scores = [[self.of(a, b) if fits(a, b) else NEVER for b in rights] for a in lefts]
        left, right = _ranks(lefts), _ranks(rights)
        for at, (place, rank) in enumerate(left):
            for to, (other, its) in enumerate(right):
                if rank is not None and rank == its:
                    scores[at][to] += _IN_FAMILY
                scores[at][to] -= _TIE * abs(place - other)
        return scores


def _ranks(units: list[Unit]) -> list[tuple[int, tuple[int, int] | None]]:
    """Of each unit its place in the file, and that among those of the same pattern with their number."""
    placed = sorted(units, key=lambda one: one.layers[0].place)
    places = {id(unit): place for place, unit in enumerate(placed)}
    families: defaultdict[tuple[object, ...], list[Unit]] = defaultdict(list)
    for unit in units:
        families[unit.layers[0].pieces, unit.closed].append(unit)
    ranks: dict[int, tuple[int, int]] = {}
    for family in families.values():
        if len(family) > 1:
            family.sort(key=lambda one: one.layers[0].numbers)
            ranks |= {id(unit): (at, len(family)) for at, unit in enumerate(family)}
    return [(places[id(unit)], ranks.get(id(unit))) for unit in units]


def _alike(
    left: Sequence[str], right: Sequence[str], weigh: Mapping[str, float], weigh_right: Mapping[str, float]
) -> float:
    """How far two names say the same, from 0 to 1, a rare word counting more than a common one."""
    rest = Counter(right)
    common = 0.0
    for word in left:
        if rest[word]:
            rest[word] -= 1
            common += weigh.get(word, 1.0) + weigh_right.get(word, 1.0)
            continue
        near = next((one for one, n in rest.items() if n and _near(word, one)), None)
        if near is not None:
            rest[near] -= 1
            common += 0.7 * (weigh.get(word, 1.0) + weigh_right.get(near, 1.0))
    whole = sum(weigh.get(word, 1.0) for word in left) + sum(weigh_right.get(word, 1.0) for word in right)
    score = common / whole if whole else 0.0
    return 0.0 if _opposed(set(left), set(right)) else score


def _opposed(left: set[str], right: set[str]) -> bool:
    """Whether one name says the opposite of the other: pre and post, up and down."""
    return any(
        (one in left) != (one in right)
        and any(
            other in (right if one in left else left) and other not in (left if one in left else right)
            for other in others
        )
        for one, others in OPPOSED.items()
    )


def _named_alike(left: str, right: str) -> bool:
    """Whether what two patterns call the thing itself, their last word, is the same."""
    one, other = (words(pattern)[-1:] for pattern in (left, right))
    return bool(one and other) and (one == other or _near(one[0], other[0]))


def _near(one: str, other: str) -> bool:
    short, long = sorted((one, other), key=len)
    return len(short) >= 3 and long.startswith(short)


class _Company:
    """Which parts of one model go with which of the other, as far as layers are paired."""

    def __init__(self, pairs: Sequence[tuple[Layer, Layer]]) -> None:
        self._together: Counter[tuple[tuple[str, ...], tuple[str, ...]]] = Counter()
        self._left: Counter[tuple[str, ...]] = Counter()
        self._right: Counter[tuple[str, ...]] = Counter()
        self._near: tuple[defaultdict[tuple[str, ...], list[Layer]], ...] = (
            defaultdict(list),
            defaultdict(list),
        )
        for one, other in pairs:
            for side, (own, partner) in enumerate(((one, other), (other, one))):
                tokens = _tokens(own.path)
                for count in range(1, len(tokens) + 1):
                    if len(near := self._near[side][tokens[:count]]) < _MOST_NEAR:
                        near.append(partner)
            left, right = _parents(one), _parents(other)
            self._left.update(left)
            self._right.update(right)
            self._together.update((a, b) for a in left for b in right)

    def kin(self, one: Layer, other: Layer) -> float:
        """From 0 to 1: how near one is to what the nearest of the other's neighbours is paired with."""
        return (self._kin(one, other, 0) + self._kin(other, one, 1)) / 2

    def _kin(self, one: Layer, other: Layer, side: int) -> float:
        tokens, there = _tokens(one.path), _tokens(other.path)
        for count in range(len(there), 0, -1):
            if near := self._near[1 - side].get(there[:count]):
                return max(_common(tokens, _tokens(partner.path)) for partner in near) / len(tokens)
        return 0.0

    def of(self, one: Layer, other: Layer) -> float:
        """From 0 to 1: how far what is around one is paired with what is around the other."""
        best = []
        right = _parents(other)
        for parent in _parents(one):
            if not self._left[parent]:
                continue
            shares = [
                self._together[parent, b] / (self._left[parent] + self._right[b] - self._together[parent, b])
                for b in right
                if self._together[parent, b]
            ]
            best.append(max(shares, default=0.0))
        return sum(best) / len(best) if best else 0.0


_MOST_NEAR = 6


@lru_cache(1 << 16)
def _tokens(path: str) -> tuple[str, ...]:
    """Words and numbers of a path."""
    return tuple(re.findall(r"[0-9]+|[A-Z]+(?![a-z])|[A-Z]?[a-z]+", path)) or ("",)


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many words two paths begin with alike."""
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _parents(layer: Layer) -> list[tuple[str, ...]]:
    """What a layer is in: the beginnings of its name, without numbers."""
    names = _split_path(layer.path)
    return [tuple(names[:count]) for count in range(len(names))]


def _split_path(path: str) -> list[str]:
    pieces, _ = opened(path)
    return [word for piece in pieces for word in _split_words(piece)]


def _split_words(piece: str) -> list[str]:
    return [word for word in piece.replace(".", "/").replace("_", "/").split("/") if word] or ["#"]


def order_of(left: Sequence[Layer], right: Sequence[Layer]) -> dict[int, dict[int, float]]:
    """Layers in corresponding places when both models are read from the front, and how much that tells."""
    found: dict[int, dict[int, float]] = {}
    for role in ("kernel", "norm", "batch norm", "vector"):
        (a, told), (b, too) = (_in_order([one for one in side if one.role == role]) for side in (left, right))
        if len(a) * len(b) > 2_000_000:
            continue
        sizes = [x.size for x in a], [x.size for x in b]
        whole = len(a) > 2 and sizes[0] == sizes[1]
        tells = _ORDER if whole and len(set(sizes[0])) > 2 else min(told, too)
        for i, j in _certain(*sizes):
            found[a[i].number] = {b[j].number: tells}
    return found


def _certain(left: Sequence[int], right: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Places that belong together in every longest common subsequence of two lists.

    >>> list(_certain([1, 2, 1, 3], [1, 2, 9, 3])), list(_certain([1, 1], [1, 2]))
    ([(0, 0), (1, 1), (3, 3)], [])
    """
    start = 0
    while start < min(len(left), len(right)) and left[start] == right[start]:
        start += 1
    if start == len(left) == len(right):
        if len(set(left)) > 1:
            yield from zip(range(start), range(start), strict=True)
        return
    ahead, behind = _lengths(left, right), _lengths(left[::-1], right[::-1])
    best = ahead[-1][-1]
    m, n = len(left), len(right)
    places: defaultdict[int, list[int]] = defaultdict(list)
    for j, size in enumerate(right):
        places[size].append(j)
    for i, size in enumerate(left):
        if any(ahead[i][j] + behind[m - i - 1][n - j] == best for j in range(n + 1)):
            continue  # there is a longest one without it
        there = [j for j in places[size] if ahead[i][j] + 1 + behind[m - i - 1][n - j - 1] == best]
        if len(there) == 1:
            yield i, there[0]


def _lengths(left: Sequence[int], right: Sequence[int]) -> list[list[int]]:
    """Length of the longest common subsequence of every two beginnings."""
    table = [[0] * (len(right) + 1)]
    for one in left:
        above, row, last = table[-1], [0], 0
        for j, other in enumerate(right):
            last = above[j] + 1 if one == other else max(last, above[j + 1])
            row.append(last)
        table.append(row)
    return table


def _in_order(layers: Sequence[Layer]) -> tuple[list[Layer], float]:
    """Layers as the file has them; where it is sorted by name, by their numbers, which tells nothing."""
    paths = [layer.parts[layer.core].name for layer in layers]
    if len({layer.pieces for layer in layers}) == 1:
        return sorted(layers, key=lambda one: one.numbers), _ORDER
    if len(paths) > 2 and paths == sorted(paths):
        return sorted(layers, key=lambda one: (one.pieces, one.numbers)), 0.0
    return list(layers), _ORDER


# -- the best assignment ---------------------------------------------------------------------------------


def assignment(scores: list[list[float]]) -> list[tuple[int, int]]:
    """Pairs of rows and columns with the largest sum (the Hungarian method)."""
    rows, columns = len(scores), len(scores[0])
    if rows > columns:
        turned = [[scores[i][j] for i in range(rows)] for j in range(columns)]
        return [(i, j) for j, i in assignment(turned)]
    up, across = [0.0] * (rows + 1), [0.0] * (columns + 1)
    match = [0] * (columns + 1)
    for row in range(1, rows + 1):
        match[0] = row
        column, way = _path(scores, up, across, match)
        while column:
            match[column] = match[way[column]]
            column = way[column]
    pairs = [(match[j] - 1, j - 1) for j in range(1, columns + 1) if match[j]]
    return [(i, j) for i, j in pairs if scores[i][j] > _POSSIBLE]


def _path(
    scores: list[list[float]], up: list[float], across: list[float], match: list[int]
) -> tuple[int, list[int]]:
    """The column that a row gets, and the way there over the columns that other rows leave to it."""
    columns = len(across) - 1
    least, used, way = [math.inf] * (columns + 1), [False] * (columns + 1), [0] * (columns + 1)
    column = 0
    while match[column]:
        used[column] = True
        current, step, following = match[column], math.inf, 0
        for j in range(1, columns + 1):
            if used[j]:
                continue
            cost = -scores[current - 1][j - 1] - up[current] - across[j]
            if cost < least[j]:
                least[j], way[j] = cost, column
            if least[j] < step:
                step, following = least[j], j
        for j in range(columns + 1):
            if used[j]:
                up[match[j]] += step
                across[j] -= step
            else:
                least[j] -= step
        column = following
    return column, way


def margin_of(scores: list[list[float]], pairs: list[tuple[int, int]], i: int, j: int) -> float | None:
    """By how much a pair is better than what it could be exchanged for; None where there is nothing else."""
    rivals = []
    used_rows, used_columns = {a for a, _ in pairs}, {b for _, b in pairs}
    here = scores[i][j]
    for a, b in pairs:
        if (a, b) != (i, j) and scores[i][b] > _POSSIBLE and scores[a][j] > _POSSIBLE:
            rivals.append(here + scores[a][b] - scores[i][b] - scores[a][j])
    unused = [scores[a][j] for a in range(len(scores)) if a not in used_rows]
    unused += [scores[i][b] for b in range(len(scores[0])) if b not in used_columns]
    rivals += [here - score for score in unused if score > _POSSIBLE]
    return min(rivals, default=None)


def nearest_of(layer: Layer, others: Sequence[Layer]) -> list[Layer]:
    """Of each pattern the layer whose name begins most like that of a given one."""
    tokens = _tokens(layer.path)
    best: dict[tuple[str, ...], tuple[int, Layer]] = {}
    for one in others:
        near = _common(tokens, _tokens(one.path))
        if one.pieces not in best or near > best[one.pieces][0]:
            best[one.pieces] = near, one
    return [one for _, one in best.values()]
