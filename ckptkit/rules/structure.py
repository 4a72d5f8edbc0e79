"""Which tensors of two models belong together, by names and shapes alone.

Layers that repeat are paired as one: `block_{i}/conv` as a whole with `blocks.{i}.conv`, where the sizes
agree at every place. What the sizes leave open, words decide, then the company that layers keep (what is
paired already around them) and their order. What none of these decides is ambiguous: the best assignment is
kept with all that could be exchanged in it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ckptkit.base.tensors import TensorSpec
from ckptkit.rules.evidence import AGAINST, ENOUGH, NEVER, Scores, assignment, margin_of, nearest_of, order_of
from ckptkit.rules.fusing import Bundle, Cut, cut_of, joined, placed, stacked, stacked_joined
from ckptkit.rules.naming import Kind, Layer
from ckptkit.rules.turning import IDENTITY, AxisOrder, Turn, chosen, turns, usual
from ckptkit.rules.units import Side, Unit, units_of

Sure = Literal["proven", "forced", "guessed", "ambiguous"]
SURE: tuple[Sure, ...] = ("proven", "forced", "guessed", "ambiguous")
"""How sure a rule is, the surest first."""

Operation = Literal["one", "concat", "split", "stack", "unstack"]


@dataclass(frozen=True)
class Match:
    """Some tensors of the source, and what becomes of them."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    turn: Turn = IDENTITY  # of each part
    operation: Operation = "one"
    axis: int | None = None  # of the fused tensor
    over: str | None = None  # the axis of the pattern that counts the parts
    each: int = 1  # tensors of one number of a stack, which follow each other
    along: int | None = None  # on this axis of the fused tensor
    rounded: str | None = None  # element type of one side, to which the other's values are rounded
    sure: Sure = "guessed"
    question: int | None = None  # index of the question that it leaves open
    others: tuple[Turn, ...] = ()  # turns that the shapes allow besides


@dataclass(frozen=True)
class Question:
    """What neither names nor shapes decide: which of some layers is which, or how an axis is turned."""

    text: str
    sources: tuple[str, ...] = ()  # patterns that could be exchanged
    targets: tuple[str, ...] = ()
    units: tuple[Mapping[tuple[int, str], TensorSpec], ...] = field(default=(), compare=False, repr=False)
    """The tensors of each pattern of the source, by layer and kind."""


def _tensors(unit: Unit) -> dict[tuple[int, str], TensorSpec]:
    return {(n, kind): spec for n, layer in enumerate(unit.layers) for kind, spec in layer.parts.items()}


def worst(*sure: Sure) -> Sure:
    """The least sure."""
    return max(sure, key=SURE.index)


@dataclass(frozen=True)
class _Bundled:
    """Layers that are one on the other side."""

    row: tuple[Layer, ...]
    whole: Layer
    how: Literal["join", "stack"]
    forward: bool  # whether the whole is the target's
    sure: Sure
    question: int | None = None
    each: int = 1

    @property
    def operation(self) -> Operation:
        """What the rule does."""
        if self.how == "join":
            return "concat" if self.forward else "split"
        return "stack" if self.forward else "unstack"


@dataclass(frozen=True)
class _Paired:
    """Two layers that belong together."""

    one: Layer
    other: Layer
    sure: Sure
    question: int | None = None


class Structure:
    """Pairs two models; `matches` and `questions` are the result."""

    def __init__(
        self,
        source: Mapping[str, TensorSpec],
        target: Mapping[str, TensorSpec],
        proven: Iterable[Match] = (),
        same: Callable[[str, str], bool] | None = None,
        called: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
    ) -> None:
        self.source, self.target = Side.of(source, called[0]), Side.of(target, called[1])
        self.matches: list[Match] = list(proven)
        self.questions: list[Question] = []
        self._same = same or (lambda _a, _b: True)
        self._relaxed = False  # whether layers of other values are paired
        self._pairs: list[tuple[Layer, Layer]] = []  # layers that belong together
        self._open = ({id(one) for one in self.source.layers}, {id(one) for one in self.target.layers})
        self._pending: list[_Paired] = []
        self._counted: tuple[int, tuple[AxisOrder | None, AxisOrder | None]] = (-1, (None, None))
        self._in_order: tuple[int, dict[int, dict[int, float]]] = (-1, {})
        self._unsure: set[int] = set()  # layers that are to be decided together, and cannot yet
        self._pending_bundles: list[_Bundled] = []
        self._take_proven()
        self._run()
        if same is not None:  # layers that were trained further on one side, such as a head
            self._same, self._relaxed = (lambda _a, _b: True), True
            self._run()
        self._turn_all()

    # -- what is proven ----------------------------------------------------------------------------------

    def _take_proven(self) -> None:
        """Pair the layers whose tensors are paired, and what else such layers have."""
        left = {spec.name: layer for layer in self.source.layers for spec in layer.parts.values()}
        right = {spec.name: layer for layer in self.target.layers for spec in layer.parts.values()}
        used = self._proven = {name for match in self.matches for name in (*match.sources, *match.targets)}
        between: dict[tuple[int, int], tuple[Layer, Layer]] = {}
        for match in self.matches:
            for a in match.sources:
                for b in match.targets:
                    between[id(left[a]), id(right[b])] = (left[a], right[b])
        self._bundle_proven(left, right)
        partners = Counter(key[0] for key in between), Counter(key[1] for key in between)
        for (first, second), (one, other) in between.items():
            self._pairs.append((one, other))
            self._open[0].discard(first)
            self._open[1].discard(second)
            if partners[0][first] == partners[1][second] == 1:
                for mine, theirs in _shared(one, other):
                    if not used.intersection((mine.name, theirs.name)):
                        sure: Sure = "forced" if self._same(mine.name, theirs.name) else "guessed"
                        self._match_parts(_Paired(one, other, sure), mine, theirs, self._orders())

    def _bundle_proven(self, left: Mapping[str, Layer], right: Mapping[str, Layer]) -> None:
        """Have the rest of layers that are proven to be parts of one decided by what is proven of them."""
        bundled: dict[int, _Bundled] = {}
        for match in self.matches:
            if match.operation == "one" or match.over is not None:
                continue
            forward = match.operation in ("concat", "stack")
            many, one = (left, right) if forward else (right, left)
            row = tuple(many[name] for name in (match.sources if forward else match.targets))
            whole = one[(match.targets if forward else match.sources)[0]]
            how: Literal["join", "stack"] = "join" if match.operation in ("concat", "split") else "stack"
            bundled.setdefault(id(whole), _Bundled(row, whole, how, forward, "forced", each=match.each))
        self._pending_bundles += bundled.values()

    # -- pairing layers ----------------------------------------------------------------------------------

    def _run(self) -> None:
        self._pair_namesakes()
        while True:
            self._rounds()
            if not self._fused_and_stacked():
                break
        self._fused_and_stacked(final=True)
        self._rounds(final=True)
        for side, is_open in zip((self.source, self.target), self._open, strict=True):
            side.take_apart(is_open)
        self._rounds(final=True)

    def _pair_namesakes(self) -> None:
        """Layers whose tensors have the same full names and shapes on both sides are the same, axes too."""
        there = {_namesake(layer): layer for layer in self.target.layers if id(layer) in self._open[1]}
        for one in self.source.layers:
            other = there.get(_namesake(one))
            if other is None or id(one) not in self._open[0]:
                continue
            if all(self._same(spec.name, spec.name) for spec in one.parts.values()):
                self._open[0].discard(id(one))
                self._open[1].discard(id(other))
                self._pairs.append((one, other))
                self.matches += [
                    Match((spec.name,), (spec.name,), sure="guessed")
                    for spec in one.parts.values()
                    if spec.name not in self._proven
                ]

    def _rounds(self, *, final: bool = False) -> None:
        """Accept what is sure enough, until that helps nothing else: kernels first, which norms follow."""
        for roles in (("kernel",), None):
            while self._round(company=bool(self._pairs), final=False, roles=roles):
                pass
        if final:
            for roles in (("kernel",), None):
                while self._round(company=True, final=True, roles=roles):
                    pass

    def _round(self, *, company: bool, final: bool, roles: tuple[str, ...] | None) -> bool:
        classes = self._classes()
        scorer = Scores(self.source, self.target, self._pairs if company else (), self.is_odd, self._order())
        accepted = False
        self._unsure = set()
        for key in sorted(classes, key=lambda one: (-len(one[1]), one[0])):
            if roles is not None and key[0] not in roles:
                continue
            lefts, rights = (self._whole(units, side) for side, units in enumerate(classes[key]))
            if lefts and rights and self._assign(lefts, rights, scorer, final=final):
                accepted = True
            if accepted and final:
                return True
        return accepted

    def _order(self) -> dict[int, dict[int, float]]:
        """Layers in corresponding places, counted again when layers are taken apart."""
        count = len(self.source.layers) + len(self.target.layers)
        if self._in_order[0] != count:
            self._in_order = count, order_of(self.source.layers, self.target.layers)
        return self._in_order[1]

    def _classes(self) -> dict[tuple[str, tuple[int, ...]], tuple[list[Unit], list[Unit]]]:
        """Units of both sides by what they are and their sizes, where both sides have some."""
        left, right = (
            units_of([layer for layer in side.layers if id(layer) in is_open])
            for side, is_open in zip((self.source, self.target), self._open, strict=True)
        )
        return {key: (left[key], right[key]) for key in left if key in right}

    def _whole(self, units: list[Unit], side: int) -> list[Unit]:
        """Those that can still be paired as they are."""
        free = self._open[side] - self._unsure
        return [unit for unit in units if all(id(layer) in free for layer in unit.layers)]

    def _assign(self, lefts: list[Unit], rights: list[Unit], scorer: Scores, *, final: bool) -> bool:
        """Pair the units of one class as well as can be; whether some were paired."""
        if len(lefts) * len(rights) > _MOST_SCORED:
            if final:
                self._ask(
                    lefts, rights, [one for one in zip(lefts, rights, strict=False) if self._fits(*one)]
                )
            return final
        scores = scorer.table(lefts, rights, self._fits)
        pairs = assignment(scores)
        own = {id(layer) for i, j in pairs for unit in (lefts[i], rights[j]) for layer in unit.layers}
        accepted = False
        unsure: list[tuple[Unit, Unit]] = []
        doubtful: list[tuple[Unit, Unit]] = []  # layers outside of the class might change places with these
        for i, j in sorted(pairs, key=lambda one: -scores[one[0]][one[1]]):
            left, right = lefts[i], rights[j]
            margin = margin_of(scores, pairs, i, j)
            if not self._still(left, right):
                continue
            sure = self._sureness(left, right, alone=margin is None, score=scorer.of_names(left, right))
            if sure is None or (margin is not None and margin < scorer.enough(left, right)):
                unsure.append((left, right))
            elif not self._only_ones(left, right) and not scorer.holds(self._rivals(left, right, own)):
                doubtful.append((left, right))
            else:
                self._accept(left, right, sure, None)
                accepted = True
        unsure = [pair for pair in unsure if self._still(*pair)]
        self._unsure.update(id(layer) for pair in unsure for unit in pair for layer in unit.layers)
        if accepted or not final:
            return accepted
        unsure += [pair for pair in doubtful if self._still(*pair)]
        self._ask(lefts, rights, unsure)
        return bool(unsure)

    def _fits(self, left: Unit, right: Unit) -> bool:
        """Whether every tensor of one can become the other's."""
        return all(
            bool(turns(a.parts[a.core].shape, b.parts[b.core].shape))
            and self._same(a.parts[a.core].name, b.parts[b.core].name)
            for a, b in zip(left.layers, right.layers, strict=True)
        )

    def _still(self, left: Unit, right: Unit) -> bool:
        return all(id(layer) in self._open[0] for layer in left.layers) and all(
            id(layer) in self._open[1] for layer in right.layers
        )

    def _sureness(self, left: Unit, right: Unit, *, alone: bool, score: float) -> Sure | None:
        """Forced where nothing else on either side has these sizes; a guess where names speak for it."""
        if alone and self._only_ones(left, right):
            return "forced" if score > 0.1 or self._alike() else "guessed"
        return "guessed" if score > 0.1 else None

    def is_odd(self, one: Layer, other: Layer) -> bool:
        """Whether a kernel would be turned otherwise than kernels are between these two models."""
        if one.role != "kernel" or other.role != "kernel" or one.is_table or other.is_table:
            return False
        a, b = one.parts["kernel"].shape, other.parts["kernel"].shape
        orders = self._orders()
        return None not in orders and usual(a, b, orders) is None

    def _rivals(
        self, left: Unit, right: Unit, own: set[int]
    ) -> list[tuple[Layer, Layer, list[Layer], list[Layer]]]:
        """For some places of a pair: the open layers of the same size, without those of its class."""
        found = []
        for at in sorted({0, len(left.layers) // 2, len(left.layers) - 1}):
            one, other = left.layers[at], right.layers[at]
            rivals = [
                nearest_of(
                    here,
                    [
                        layer
                        for layer in side.layers
                        if layer.size == one.size
                        and layer.role == one.role
                        and id(layer) in is_open
                        and id(layer) not in own
                    ],
                )
                for side, is_open, here in zip(
                    (self.source, self.target), self._open, (one, other), strict=True
                )
            ]
            found.append((one, other, rivals[0], rivals[1]))
        return found

    def _only_ones(self, left: Unit, right: Unit) -> bool:
        sizes = {layer.size for layer in left.layers}
        role = left.layers[0].role
        of_source = sum(one.role == role and one.size in sizes for one in self.source.layers)
        of_target = sum(one.role == role and one.size in sizes for one in self.target.layers)
        return of_source == len(left.layers) and of_target == len(right.layers)

    def _alike(self) -> bool:
        """Whether both models have the same layers altogether."""
        left, right = (
            Counter((layer.role, layer.size) for layer in side.layers) for side in (self.source, self.target)
        )
        return left == right

    def _accept(self, left: Unit, right: Unit, sure: Sure, question: int | None) -> None:
        counted = left.layers[0].is_counted + right.layers[0].is_counted
        if counted:
            sure = worst(sure, "guessed")
        doubtful = _twins(left) if counted == 2 and len(left.layers) > 1 else frozenset()
        if doubtful:
            self.questions.append(
                Question("are these numbered in the same order?", (left.pattern,), (right.pattern,))
            )
        if self._relaxed:
            sure = worst(sure, "guessed")
        for one, other in zip(left.layers, right.layers, strict=True):
            self._open[0].discard(id(one))
            self._open[1].discard(id(other))
            self._pairs.append((one, other))
            if one.number in doubtful:
                self._pending.append(_Paired(one, other, "ambiguous", len(self.questions) - 1))
            else:
                self._pending.append(_Paired(one, other, sure, question))

    def _ask(self, lefts: list[Unit], rights: list[Unit], unsure: list[tuple[Unit, Unit]]) -> None:
        """Pair what nothing decides as it comes, with the question that is left."""
        if not unsure:
            return
        sides = []
        for place, units in enumerate((lefts, rights)):
            first = [pair[place] for pair in unsure]
            rest = [unit for unit in units if unit not in first and self._open_unit(unit, place)]
            sides.append((*first, *rest))
        names = [tuple(unit.pattern for unit in units) for units in sides]
        self.questions.append(
            Question("which of these is which?", names[0], names[1], tuple(map(_tensors, sides[0])))
        )
        for left, right in unsure:
            if self._still(left, right):
                self._accept(left, right, "ambiguous", len(self.questions) - 1)

    def _open_unit(self, unit: Unit, side: int) -> bool:
        return all(id(layer) in self._open[side] for layer in unit.layers)

    # -- layers that are one on the other side -----------------------------------------------------------

    def _fused_and_stacked(self, *, final: bool = False) -> bool:
        """Pair layers of one side that are one on the other."""
        accepted = False
        scorer = Scores(self.source, self.target, self._pairs, self.is_odd, self._order())
        for forward in (True, False):
            many, one = (self.source, self.target) if forward else (self.target, self.source)
            is_many, is_one = self._open if forward else self._open[::-1]
            parts = [layer for layer in many.layers if id(layer) in is_many]
            wholes = units_of([layer for layer in one.layers if id(layer) in is_one])
            by_sizes: defaultdict[tuple[int, ...], list[Unit]] = defaultdict(list)
            for (_, sizes), units in wholes.items():
                by_sizes[sizes] += units
            classes: defaultdict[tuple[int, ...], list[Bundle]] = defaultdict(list)
            for bundle in (*joined(parts), *stacked(parts), *stacked_joined(parts)):
                if bundle.sizes in by_sizes:
                    classes[bundle.sizes].append(bundle)
            for sizes, bundles in sorted(classes.items(), key=lambda one: -len(one[0])):
                if self._bundle(bundles, by_sizes[sizes], scorer, forward=forward, final=final):
                    accepted = True
        return accepted

    def _bundle(
        self, bundles: list[Bundle], units: list[Unit], scorer: Scores, *, forward: bool, final: bool
    ) -> bool:
        """Pair the bundles of one class with the layers that they may be; whether some were paired."""
        orders = self._orders()
        cuts = [[cut_of(bundle, unit, orders, forward=forward) for unit in units] for bundle in bundles]
        scores = [
            [
                scorer.of_bundle(bundle, unit, forward=forward) - AGAINST * cut.odd if cut else NEVER
                for unit, cut in zip(units, row, strict=True)
            ]
            for bundle, row in zip(bundles, cuts, strict=True)
        ]
        accepted = False
        pairs = assignment(scores)
        is_many, is_one = self._open if forward else self._open[::-1]
        for i, j in pairs:
            bundle, unit, cut = bundles[i], units[j], cuts[i][j]
            margin = margin_of(scores, pairs, i, j)
            clear = margin is None or margin >= ENOUGH
            whole = all(id(layer) in is_many for layer in bundle.layers)
            whole = whole and all(id(layer) in is_one for layer in unit.layers)
            if cut is not None and whole and (clear or final):
                question = self._question_of(bundle, unit, cut, clear=clear)
                self._accept_bundle(bundle, unit, cut, question, forward=forward)
                accepted = True
        return accepted

    def _question_of(self, bundle: Bundle, unit: Unit, cut: Cut, *, clear: bool) -> int | None:
        """What is to be asked of a bundle, if anything."""
        if clear and cut.ordered:
            return None
        if cut.ordered:
            asked = Question("which of these is which?", (bundle.pattern,), (unit.pattern,))
        else:
            asked = Question("in which order are the parts?", tuple(bundle.parts), (unit.pattern,))
        self.questions.append(asked)
        return len(self.questions) - 1

    def _accept_bundle(
        self, bundle: Bundle, unit: Unit, cut: Cut, question: int | None, *, forward: bool
    ) -> None:
        is_many, is_one = self._open if forward else self._open[::-1]
        sure: Sure = "guessed" if question is None else "ambiguous"
        for row, whole in zip(bundle.rows, unit.layers, strict=True):
            is_one.discard(id(whole))
            for layer in row:
                is_many.discard(id(layer))
                self._pairs.append((layer, whole) if forward else (whole, layer))
            parts = tuple(row[n] for n in cut.order)
            bundled = _Bundled(parts, whole, bundle.how, forward, sure, question, bundle.each)
            self._pending_bundles.append(bundled)

    def _bundle_parts(self, bundled: _Bundled, orders: tuple[AxisOrder | None, AxisOrder | None]) -> None:
        """Decide axes and the place of the parts for each tensor of fused or stacked layers."""
        row, whole, forward = bundled.row, bundled.whole, bundled.forward
        kinds: list[tuple[Kind, Kind]] = [(row[0].core, whole.core)]
        kinds += [(kind, kind) for kind in row[0].parts if kind != row[0].core and kind in whole.parts]
        for kind, its in kinds:
            specs = [layer.parts[kind] for layer in row if kind in layer.parts]
            names, one = tuple(spec.name for spec in specs), (whole.parts[its].name,)
            if len(specs) < len(row) or self._proven.intersection((*names, *one)):
                continue
            its_place = placed(
                specs, whole.parts[its], bundled.how, orders, each=bundled.each, forward=forward
            )
            if its_place is not None:
                choice = its_place.choice
                self.matches.append(
                    Match(
                        names if forward else one,
                        one if forward else names,
                        choice.turn,
                        bundled.operation,
                        its_place.axis,
                        each=bundled.each,
                        along=its_place.along,
                        sure=worst(bundled.sure, choice.sure),
                        question=bundled.question,
                        others=choice.others,
                    )
                )

    # -- axes --------------------------------------------------------------------------------------------

    def _turn_all(self) -> None:
        """Decide the axes of every tensor of the paired layers, when all that is sure can be asked."""
        orders = self._orders()
        for pair in self._pending:
            for a, b in _shared(pair.one, pair.other):
                self._match_parts(pair, a, b, orders)
        for bundled in self._pending_bundles:
            self._bundle_parts(bundled, orders)

    def _orders(self) -> tuple[AxisOrder | None, AxisOrder | None]:
        """The same, counted again when more layers are paired."""
        if self._counted[0] != len(self._pairs):
            self._counted = len(self._pairs), self._count_orders()
        return self._counted[1]

    def _count_orders(self) -> tuple[AxisOrder | None, AxisOrder | None]:
        """How both sides order the axes of kernels: as matrices that are not square tell, else by names."""
        swapped = kept = 0
        for one, other in self._pairs:
            if one.role == other.role == "kernel" and not one.is_table and not other.is_table:
                a = [n for n in one.parts["kernel"].shape if n != 1]
                b = [n for n in other.parts["kernel"].shape if n != 1]
                if len(a) == len(b) == 2 and a[0] != a[1]:
                    swapped += a == b[::-1]
                    kept += a == b
        left, right = self.source.order, self.target.order
        if swapped and not kept:
            first = left or ("input first" if right != "input first" else "output first")
            return first, "output first" if first == "input first" else "input first"
        if kept and not swapped:
            known = left or right or "input first"
            return known, known
        return left, right

    def _match_parts(
        self,
        pair: _Paired,
        a: TensorSpec,
        b: TensorSpec,
        orders: tuple[AxisOrder | None, AxisOrder | None],
    ) -> None:
        """Decide the axes of one tensor of a pair of layers."""
        table = pair.one.is_table or pair.other.is_table
        choice = chosen(a.shape, b.shape, orders, table=table)
        if choice is None:
            return
        question = pair.question
        if choice.sure == "ambiguous" and question is None:
            self.questions.append(Question("how are the axes ordered?", (a.name,), (b.name,)))
            question = len(self.questions) - 1
        sure = worst(pair.sure, choice.sure)
        self.matches.append(
            Match((a.name,), (b.name,), choice.turn, sure=sure, question=question, others=choice.others)
        )


_NEIGHBOURHOOD = 40
_MOST_SCORED = 40_000
"""Pairs of one class: so many layers of one size without a pattern are not told apart by their names."""


def _twins(unit: Unit) -> frozenset[int]:
    """Layers for which there is another one of the same shape not far away, as in a parallel branch."""
    shapes = [layer.parts[layer.core].shape for layer in unit.layers]
    return frozenset(
        layer.number
        for at, layer in enumerate(unit.layers)
        if shapes[at] in shapes[max(0, at - _NEIGHBOURHOOD) : at]
        or shapes[at] in shapes[at + 1 : at + _NEIGHBOURHOOD]
    )


def _namesake(layer: Layer) -> frozenset[tuple[str, tuple[int, ...]]]:
    return frozenset((spec.name, spec.shape) for spec in layer.parts.values())


def _shared(one: Layer, other: Layer) -> list[tuple[TensorSpec, TensorSpec]]:
    """The tensors that two layers both have."""
    mine, theirs = one.core, other.core
    if mine != theirs and (mine in other.parts or theirs in one.parts):  # one lacks what the other has
        return [(one.parts[kind], other.parts[kind]) for kind in one.parts if kind in other.parts]
    pairs = [(one.parts[mine], other.parts[theirs])]
    for kind, spec in one.parts.items():
        partner = other.parts.get(kind)
        if partner is not None and kind not in (mine, theirs) and spec.size == partner.size:
            pairs.append((spec, partner))
    return pairs
