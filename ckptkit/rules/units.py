"""Layers that are paired as one: those that a pattern of names has in common."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from ckptkit.base.tensors import TensorSpec
from ckptkit.rules.naming import Layer, axis_order, layers_of, words
from ckptkit.rules.turning import AxisOrder

_MOST_OPEN = 5
"""Numbers of a name of which each may be left open."""


@dataclass(frozen=True)
class Unit:
    """Layers that are paired as one: those of a pattern, in the order of their numbers."""

    layers: tuple[Layer, ...]
    closed: tuple[int, ...]  # numbers of the pattern that are the same for all of them
    pattern: str

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


@dataclass
class Side:
    """One of the two models."""

    specs: Mapping[str, TensorSpec]
    layers: list[Layer]
    weight: dict[str, float] = field(default_factory=dict)  # how much a word tells here
    order: AxisOrder | None = None

    @classmethod
    def of(cls, specs: Mapping[str, TensorSpec], called: Mapping[str, str]) -> Side:
        """Take a model's names apart; ``called`` are better ones for some tensors."""
        layers = layers_of(specs, called)
        patterns = {layer.pieces for layer in layers}
        seen = Counter(word for pieces in patterns for word in set(words("/".join(pieces))))
        weight = {word: max(0.05, math.log((1 + len(patterns)) / count)) for word, count in seen.items()}
        return cls(specs, layers, weight, axis_order(specs))

    def take_apart(self, is_open: set[int]) -> None:
        """See vectors that were taken for a norm one by one: the other side may have no such norm."""
        for layer in list(self.layers):
            if id(layer) not in is_open or layer.role not in ("norm", "other"):
                continue
            is_open.discard(id(layer))
            for kind, spec in layer.parts.items():
                leaf = spec.name.replace(".", "/").rpartition("/")[2]
                one = Layer(f"{layer.path}/{leaf}", {kind: spec}, layer.place, len(self.layers))
                self.layers.append(one)
                is_open.add(id(one))


Key = tuple[str, tuple[int, ...]]


def units_of(layers: Sequence[Layer]) -> dict[Key, list[Unit]]:
    """Every way to take layers together that share a pattern, by what they are and their sizes."""
    by_pattern: defaultdict[tuple[str, tuple[str, ...]], list[Layer]] = defaultdict(list)
    for layer in layers:
        by_pattern[layer.role, layer.pieces].append(layer)
    found: defaultdict[Key, list[Unit]] = defaultdict(list)
    for (role, pieces), members in by_pattern.items():
        members.sort(key=lambda layer: layer.numbers)
        varying = [at for at in range(len(pieces) - 1) if len({layer.numbers[at] for layer in members}) > 1]
        if len(varying) > _MOST_OPEN:
            varying = varying[-_MOST_OPEN:]
        seen: set[tuple[int, ...]] = set()
        for count in range(len(varying) + 1):
            for closed in combinations(varying, count):
                groups: defaultdict[tuple[int, ...], list[Layer]] = defaultdict(list)
                for layer in members:
                    groups[tuple(layer.numbers[at] for at in closed)].append(layer)
                for group in (*groups.values(), *_by_size(groups.values())):
                    identity = tuple(id(layer) for layer in group)
                    if identity in seen:
                        continue
                    seen.add(identity)
                    unit = Unit(tuple(group), closed, _pattern(group))
                    found[role, tuple(layer.size for layer in group)].append(unit)
    return found


def _by_size(groups: Iterable[list[Layer]]) -> Iterator[list[Layer]]:
    """Parts of groups in which all layers have one size: one stage of those that are numbered through."""
    for group in groups:
        sizes = dict.fromkeys(layer.size for layer in group)
        if 1 < len(sizes) < len(group):
            yield from ([layer for layer in group if layer.size == size] for size in sizes)


def _pattern(layers: Sequence[Layer]) -> str:
    """The path of some layers, with a star for each number in which they differ."""
    first = layers[0]
    text = first.pieces[0]
    for at, piece in enumerate(first.pieces[1:]):
        numbers = {layer.numbers[at] for layer in layers}
        text += ("*" if len(numbers) > 1 else str(first.numbers[at])) + piece
    return text
