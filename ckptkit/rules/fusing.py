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
_NUMBERED = re.compile(r"(?:^|[./_])(w1|w3|wi_0|wi_1)$")
_MEANT = {"w1": "gate", "w3": "up", "wi_0": "gate", "wi_1": "up"}
"""What Llama, Mixtral and T5 mean by names that end in a number."""
_TOGETHER = (("q", "k", "v"), ("k", "v"), ("q", "k"), ("gate", "up"))
_MOST_PARTS = 1024


@dataclass(frozen=True)
class Bundle:
    """Layers of one side that may be one on the other, at every place of a pattern."""

    rows: tuple[tuple[Layer, ...], ...]  # for each layer of the other side its parts, in their order
    pattern: str
    how: Literal["join", "stack"]
    parts: tuple[str, ...] = ()  # what tells the parts apart
    each: int = 1  # parts that a number of a stack has

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
        if (numbered := _NUMBERED.search(layer.path)) is not None:
            frame = (*raw_words(layer.path[: numbered.start()]), "?")
            frames[frame].setdefault(_MEANT[numbered[1]], {})[layer.numbers[:-1]] = layer
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


def stacked_joined(layers: Sequence[Layer]) -> Iterator[Bundle]:
    """Layers of which several have one number, such as the two projections of each expert."""
    for bundle in joined(layers):
        by_first = {id(row[0]): row for row in bundle.rows}
        for stack in stacked([row[0] for row in bundle.rows]):
            rows = tuple(tuple(one for first in row for one in by_first[id(first)]) for row in stack.rows)
            yield Bundle(rows, bundle.pattern, "stack", bundle.parts, len(bundle.parts))


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
        found = placed(specs, whole.parts[whole.core], bundle.how, orders, each=bundle.each, forward=forward)
        if found is None:
            return None
        odd = odd or (row[0].core == "kernel" and not found.choice.usual and None not in orders)
    if not bundle.parts:
        return Cut(tuple(range(len(bundle.rows[0]))), ordered=True, odd=odd)
    told = order_in(unit.layers[0].path, bundle.parts)
    order = [bundle.parts.index(part) for part in told or bundle.parts]
    starts = range(0, len(bundle.rows[0]), len(order))
    return Cut(tuple(start + n for start in starts for n in order), ordered=told is not None, odd=odd)


@dataclass(frozen=True)
class Placed:
    """Where the parts are in the whole, and how each is turned."""

    axis: int
    choice: Choice
    along: int | None = None  # of a stack: where those of one number follow each other


def placed(
    specs: Sequence[TensorSpec],
    whole: TensorSpec,
    how: str,
    orders: tuple[AxisOrder | None, AxisOrder | None],
    *,
    each: int = 1,
    forward: bool,
) -> Placed | None:
    """The axis of the whole on which the parts follow each other; None where they do not fit."""
    order = orders[1] if forward else orders[0]
    found: list[Placed] = []
    for axis, along, shape, joined_on in _places(whole.shape, how, len(specs) // each, each):
        choices: list[Choice] = []
        for spec in specs if each == 1 else specs[:each]:
            part = shape if joined_on is None else part_shape(shape, joined_on, spec.size)
            if part is None:
                break
            choice = chosen(spec.shape, part, orders) if forward else chosen(part, spec.shape, orders)
            if choice is None:
                break
            choices.append(choice)
        else:
            found.append(Placed(axis, choices[0], along))
    if (how == "join" or each > 1) and len(whole.shape) > 1 and order == "input first":
        found.reverse()
    found.sort(key=lambda one: one.choice.sure == "ambiguous")
    return found[0] if found else None


def _places(
    shape: Shape, how: str, count: int, each: int
) -> Iterator[tuple[int, int | None, Shape, int | None]]:
    """Each way to see parts in a shape: both axes, the shape without that of a stack, and where they join."""
    if how == "join":
        yield from ((axis, None, shape, axis) for axis in range(len(shape)))
        return
    for axis, length in enumerate(shape):
        if length != count:
            continue
        rest = (*shape[:axis], *shape[axis + 1 :])
        if each == 1:
            yield axis, None, rest, None
        else:
            yield from ((axis, on + (axis <= on), rest, on) for on in range(len(rest)))
