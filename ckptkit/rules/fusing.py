"""Layers of one model that are one layer of the other: fused q/k/v, experts, layers that are scanned over."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ckptkit.base.axes import Shape
from ckptkit.base.tensors import TensorSpec
from ckptkit.rules.naming import Layer, opened
from ckptkit.rules.turning import AxisOrder, Choice, chosen
from ckptkit.rules.units import Unit

_FUSED = {"in": "qkv", "attn": "qkv", "wqkv": "qkv", "inproj": "qkv"}
"""Words of names that mean a fused tensor without saying of what: ``in_proj``, ``c_attn``."""
_LETTER = {"query": "q", "key": "k", "value": "v", "wq": "q", "wk": "k", "wv": "v"}
_TOGETHER = (("q", "k", "v"), ("k", "v"), ("q", "k"), ("gate", "up"))
_MOST_PARTS = 1024


@dataclass(frozen=True)
class Bundle:
    """Layers of one side that may be one on the other, at every place of a pattern."""

    rows: tuple[tuple[Layer, ...], ...]  # for each layer of the other side its parts, in their order
    pattern: str
    how: Literal["join", "stack"]
    parts: tuple[str, ...] = ()  # what tells the parts apart
    layers_a_row: int = 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each whole."""
        return tuple(sum(layer.size for layer in row) for row in self.rows)

    @property
    def layers(self) -> Iterator[Layer]:
        """All of them."""
        return (layer for row in self.rows for layer in row)


def raw_words(path: str) -> tuple[str, ...]:
    """The words of a path as they are written, numbers as a hash.

    >>> raw_words("layer_3/SelfAttention/to_q")
    ('layer', '#', 'self', 'attention', 'to', 'q')
    """
    text = "#".join(opened(path)[0])
    return tuple(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[#*]", text))


def joined(layers: Sequence[Layer]) -> Iterator[Bundle]:
    """Layers that differ in one word, such as q, k and v."""
    frames: defaultdict[tuple[str, ...], dict[str, dict[tuple[int, ...], Layer]]] = defaultdict(dict)
    for layer in layers:
        names = raw_words(layer.path)
        for at, word in enumerate(names):
            part = _LETTER.get(word, word)
            if part in ("q", "k", "v", "gate", "up"):
                frame = (*names[:at], "?", *names[at + 1 :])
                frames[frame].setdefault(part, {})[layer.numbers] = layer
    for frame, parts in frames.items():
        for wanted in _TOGETHER:
            if not set(wanted) <= set(parts):
                continue
            found = [parts[part] for part in wanted]
            places = sorted(found[0])
            if any(sorted(one) != places for one in found[1:]):
                continue
            rows = tuple(tuple(one[place] for one in found) for place in places)
            yield Bundle(rows, " ".join(word for word in frame if word not in "?#"), "join", wanted)


def order_in(path: str, parts: Sequence[str]) -> tuple[str, ...] | None:
    """The order in which a fused tensor has its parts, where its name tells.

    >>> order_in("blocks.0.attn.qkv", ("q", "k", "v")), order_in("to_kv", ("k", "v"))
    (('q', 'k', 'v'), ('k', 'v'))
    >>> order_in("attn.fused", ("k", "v"))
    """
    names = raw_words(path)
    spelled = [_LETTER.get(word, word) for word in names]
    if len(parts) == 3 and "query" in names and "key" in names:
        return None  # some have the parts of each head together
    for word in reversed(names):
        letters = _FUSED.get(word, word).removeprefix("w")
        if sorted(letters) == sorted(parts):
            return tuple(letters)
    if all(part in spelled for part in parts):
        return tuple(sorted(parts, key=spelled.index))
    return None


def stacked(layers: Sequence[Layer]) -> Iterator[Bundle]:
    """Layers that differ in one number, which counts from 0."""
    by_pattern: defaultdict[tuple[str, ...], list[Layer]] = defaultdict(list)
    for layer in layers:
        by_pattern[layer.pieces].append(layer)
    for pieces, members in by_pattern.items():
        for at in range(len(pieces) - 1):
            groups: defaultdict[tuple[int, ...], list[Layer]] = defaultdict(list)
            for layer in members:
                groups[(*layer.numbers[:at], *layer.numbers[at + 1 :])].append(layer)
            rows = []
            for place in sorted(groups):
                row = sorted(groups[place], key=lambda layer: layer.numbers[at])
                counted = [layer.numbers[at] for layer in row] == list(range(len(row)))
                if (
                    len(row) < 2
                    or len(row) > _MOST_PARTS
                    or not counted
                    or len({one.size for one in row}) > 1
                ):
                    break
                rows.append(tuple(row))
            else:
                yield Bundle(tuple(rows), _without_numbers(pieces), "stack")


def _without_numbers(pieces: Sequence[str]) -> str:
    return "*".join(pieces)


def part_shape(whole: Shape, axis: int, size: int) -> Shape | None:
    """Shape of a part of a fused tensor that has so many elements; None where none has."""
    rest = 1
    for at, n in enumerate(whole):
        rest *= n if at != axis else 1
    length, left = divmod(size, rest) if rest else (0, 1)
    return None if left or not length else (*whole[:axis], length, *whole[axis + 1 :])


@dataclass(frozen=True)
class Cut:
    """How parts are ordered in a whole."""

    order: tuple[int, ...]
    ordered: bool  # whether the name tells
    odd: bool  # whether kernels would be turned otherwise than usual


def cut_of(
    bundle: Bundle, unit: Unit, orders: tuple[AxisOrder | None, AxisOrder | None], *, forward: bool
) -> Cut | None:
    """The order of the parts; None where they do not fit."""
    odd = False
    for row, whole in zip(bundle.rows, unit.layers, strict=True):
        specs = [layer.parts[layer.core] for layer in row]
        found = placed(specs, whole.parts[whole.core], bundle.how, orders, forward=forward)
        if found is None:
            return None
        odd = odd or (row[0].core == "kernel" and not found[1].usual and None not in orders)
    if bundle.how == "stack":
        return Cut(tuple(range(len(bundle.rows[0]))), ordered=True, odd=odd)
    told = order_in(unit.layers[0].path, bundle.parts)
    order = tuple(bundle.parts.index(part) for part in told or bundle.parts)
    return Cut(order, ordered=told is not None, odd=odd)


def placed(
    specs: Sequence[TensorSpec],
    whole: TensorSpec,
    how: str,
    orders: tuple[AxisOrder | None, AxisOrder | None],
    *,
    forward: bool,
) -> tuple[int, Choice] | None:
    """The axis of the whole on which the parts follow each other, and how each is turned."""
    shape = whole.shape
    order = orders[1] if forward else orders[0]
    places = list(range(len(shape)))
    if how == "join" and len(shape) > 1 and order == "input first":
        places.reverse()
    found: list[tuple[int, Choice]] = []
    for axis in places:
        if how == "stack":
            if shape[axis] != len(specs):
                continue
            parts: list[tuple[int, ...] | None] = [(*shape[:axis], *shape[axis + 1 :])] * len(specs)
        else:
            parts = [part_shape(shape, axis, spec.size) for spec in specs]
        choices: list[Choice] = []
        for spec, part in zip(specs, parts, strict=True):
            if part is None:
                break
            choice = chosen(spec.shape, part, orders) if forward else chosen(part, spec.shape, orders)
            if choice is None:
                break
            choices.append(choice)
        if len(choices) == len(specs):
            found.append((axis, choices[0]))
    found.sort(key=lambda one: one[1].sure == "ambiguous")
    return found[0] if found else None
