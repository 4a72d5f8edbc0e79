"""Plans of conversions by a user's own rules: which rule takes which tensor, and every misfit at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ckptkit.base.budget import Budget
from ckptkit.base.errors import ConversionError, UsageError, listed, shown_faults
from ckptkit.base.tensors import DType, TensorSpec
from ckptkit.convert.planning import (
    AnyMove,
    Filling,
    Join,
    Move,
    Plan,
    plain_row,
    plan_of_any_model,
    refuse_missing_copy,
)
from ckptkit.families.binding import Ignored, Weights
from ckptkit.formats.base import Reader, bytes_of
from ckptkit.rules.language import IDENTITY, Binding, Op, Shape, shape_of
from ckptkit.rules.mapping import Prefixes, Tie

if TYPE_CHECKING:
    from ckptkit.registry.schema import Entry
    from ckptkit.rules.mapping import IgnoreRule, NamePattern, NameRule, RuleFile

BY_RULES = "rules"
"""In place of a layout's name."""

_SHOWN_FAULTS = 20

_OF_RULES = ("rules", "rules_direction", "rules_sha256", "rules_guessed", "rules_filled", "rules_stripped")
"""Metadata that tell of the rules of this conversion, and not of an earlier one."""

Require = Literal["proven"]


def plan_by_rules(
    reader: Reader,
    rules: RuleFile,
    *,
    weights: Weights = "auto",
    entry: Entry | None = None,
    require: Require | None = None,
    named: Iterable[str] = (),
) -> Plan:
    """Plan a conversion by a user's rules; refuses all that does not fit them at once.

    ``named`` are names that the result is compared with, if any.
    """
    refuse_unsure(rules, require)
    refuse_missing_copy(reader, weights)
    prefixes = prefixes_of(rules, reader.metadata, named)
    found = assign(reader.path, reader.specs, rules, left_out=reader.left_out, prefixes=prefixes)
    if not found.faults:
        found.misfits += _untied(reader, found)
    if faults := [fault.what for fault in found.faults]:
        raise ConversionError(
            f"{reader.path}: does not fit {rules.path}",
            details=shown_faults(faults),
            hint="each tensor needs one rule or one ignore, each rule a tensor (or 'optional: true')",
        )
    plan = plan_of_any_model(reader, BY_RULES, entry)
    plan = replace(
        plan,
        metadata={key: value for key, value in plan.metadata.items() if key not in _OF_RULES},
        moves=tuple(found.moves),
        ignored=tuple(found.ignored),
        shared=_shared(reader.same, found.moves) | found.tied,
    )
    guessed = [rule for rule in rules.rules if rule.sure == "guessed"]
    known = {"rules": rules.path.name, "rules_direction": rules.direction, "rules_sha256": rules.sha256}
    if guessed:
        known["rules_guessed"] = json.dumps([rule.source.text for rule in guessed])
    if plan.filled:
        known["rules_filled"] = json.dumps(plan.filled)
    if rules.strip and rules.direction == "forward":
        known["rules_stripped"] = Prefixes.of(
            {name: rules.stripped(name) for move in found.moves for name in move.sources}
        ).text
    notes = (*_unsure_in_words(guessed), *_filled_in_words(plan.filled))
    if rules.direction == "reverse" and not named:
        notes += tuple(_prefixes_in_words(rules, prefixes, reader))
    return replace(plan.with_metadata(known), notes=(*plan.notes, *notes))


def prefixes_of(rules: RuleFile, metadata: Mapping[str, str], named: Iterable[str] = ()) -> Prefixes | None:
    """What belongs before names that rules read backwards make; None where nothing tells."""
    if rules.direction == "forward" or not rules.strip:
        return Prefixes()
    if wanted := {name: rules.reversed.stripped(name) for name in named}:
        return Prefixes.of(wanted)
    if metadata.get("rules_direction") == "forward":
        told = Prefixes.read(metadata.get("rules_stripped", ""), rules.strip)
        if told is not None:
            return told
    return Prefixes(rules.strip[0]) if len(rules.strip) == 1 else None


def _prefixes_in_words(rules: RuleFile, prefixes: Prefixes | None, reader: Reader) -> Iterator[str]:
    listed_here = listed([repr(one) for one in rules.strip])
    if prefixes is None:
        yield (
            f"names are without the prefixes that 'strip' lists ({listed_here}): "
            f"{reader.path} does not say which they had"
        )
    elif rules.strip and "rules_stripped" not in reader.metadata:
        yield f"every name begins with {listed_here}, the prefix that 'strip' lists"


def refuse_unsure(rules: RuleFile, require: Require | None = None) -> None:
    """Refuse rules that leave a question open, or, where proof is asked for, any that is not proven."""
    unsure = [rule for rule in rules.rules if rule.sure == "ambiguous"]
    if unsure:
        are = "rule is" if len(unsure) == 1 else "rules are"
        raise UsageError(
            f"{rules.path}: {len(unsure)} {are} ambiguous: {_lines(unsure)}",
            hint="answer the question beside each, then delete its 'sure: ambiguous'",
        )
    if require == "proven" and (unsure := [rule for rule in rules.rules if rule.sure != "proven"]):
        are = "rule is" if len(unsure) == 1 else "rules are"
        raise UsageError(
            f"{rules.path}: {len(unsure)} {are} not proven: {_lines(unsure)}",
            hint="leave --require out, or use rules that are marked 'sure: proven'",
        )


def _lines(rules: Sequence[NameRule]) -> str:
    return listed([f"line {rule.line} ({_name_of(rule)})" for rule in rules], _SHOWN_FAULTS)


def _unsure_in_words(guessed: Sequence[NameRule]) -> Iterator[str]:
    if guessed:
        are = "rule is" if len(guessed) == 1 else "rules are"
        yield f"{len(guessed)} {are} guessed: {listed([_describe_rule(rule) for rule in guessed])}"


def _filled_in_words(filled: Mapping[str, str]) -> Iterator[str]:
    for value in dict.fromkeys(filled.values()):
        yield f"filled with {value} by the rules: {listed([n for n, v in filled.items() if v == value])}"


# -- which rule takes which tensor ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """One thing that does not fit, and the line of its rule where it has one."""

    what: str
    line: int | None = None


@dataclass
class Assignment:
    """What the rules make of a file's tensors."""

    moves: list[AnyMove] = field(default_factory=list)
    rules: list[NameRule] = field(default_factory=list)  # the rule of each move
    names: list[NamePattern] = field(default_factory=list)  # and the pattern that its target's name is of
    ignored: list[Ignored] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    idle: list[NameRule] = field(default_factory=list)  # rules that fit nothing and are not optional
    misfits: list[Fault] = field(default_factory=list)
    tied: dict[str, str] = field(default_factory=dict)  # targets that are others under a second name
    untied: list[tuple[str, str, NameRule]] = field(default_factory=list)  # read backwards: what they tied
    prefixes: Prefixes = field(default_factory=Prefixes)  # put before the names that are made

    @property
    def faults(self) -> list[Fault]:
        """Everything that does not fit."""
        faults = list(self.misfits)
        if self.unmatched:
            fit = "tensor fits" if len(self.unmatched) == 1 else "tensors fit"
            shown = listed(self.unmatched, _SHOWN_FAULTS)
            faults.append(Fault(f"{len(self.unmatched)} {fit} no rule: {shown}"))
        if self.idle:
            shown = listed([_describe_rule(rule) for rule in self.idle], _SHOWN_FAULTS)
            faults.append(Fault(f"{len(self.idle)} fit nothing: {shown}"))
        return faults

    def add(self, move: AnyMove, rule: NameRule, place: int = 0) -> None:
        """Add a move by a rule, and which of the rule's targets it is."""
        self.moves.append(move)
        self.rules.append(rule)
        self.names.append(rule.targets[place])


Values = dict[str, str]


@dataclass
class _Group:
    """The tensors that one rule takes together."""

    rule: NameRule
    values: Values  # of the placeholders that all of them share
    prefixes: Prefixes
    parts: dict[int, TensorSpec] = field(default_factory=dict)  # by number, then by place in the rule's list


def assign(
    path: Path,
    specs: Mapping[str, TensorSpec],
    rules: RuleFile,
    *,
    left_out: Mapping[str, str] | None = None,
    prefixes: Prefixes | None = None,
) -> Assignment:
    """Find the rule or ignore of every tensor, and what each rule makes; faults are collected.

    ``left_out`` are tensors that cannot be read, and why not; ``path`` is what messages call the file;
    ``prefixes`` are put before the names that are made.
    """
    found = Assignment(prefixes=prefixes or Prefixes())
    unread = left_out or {}
    budget = Budget(sum(spec.nbytes for spec in specs.values()), partial(_refusal, path, rules))
    names = {name: rules.stripped(name) for name in (*specs, *unread)}
    lookup = _Lookup(rules.rules, budget)
    ignored = _ignored(list(names.values()), path, rules, budget)
    beside = set(names.values())
    groups: dict[tuple[object, ...], _Group] = {}
    used: set[int] = set()
    for name, short in names.items():
        ignores = ignored.get(short, [])
        matches = lookup.matches(short, beside, among_rest=not ignores)
        used |= {id(match.rule) for match in matches}
        if len(matches) + len(ignores) > 1:
            named = [_describe_rule(match.rule, match.place) for match in matches]
            named += [_describe_ignore(ignore) for ignore in ignores]
            found.misfits.append(Fault(f"{name!r} fits {len(named)}: {listed(named)}"))
        elif ignores:
            found.ignored.append(Ignored(name, ignores[0].name, ignores[0].reason))
        elif name in unread:
            found.misfits.append(Fault(f"{name!r} cannot be read ({unread[name]}): 'ignore' leaves it out"))
        elif not matches:
            found.unmatched.append(name)
        elif (constant := matches[0].rule.constant) is not None:
            tie = isinstance(constant, Tie)
            found.ignored.append(Ignored(name, "tied" if tie else "constant", constant.reason))
            if isinstance(constant, Tie):
                found.untied.append((name, constant.beside.fill(matches[0].values), matches[0].rule))
        else:
            _collect(groups, matches[0], specs[name], found)
    for group in groups.values():
        _make(group, found, budget)
    _fill(rules, found, budget)
    found.idle = [
        rule for rule in rules.rules if id(rule) not in used and not rule.optional and rule.constant is None
    ]
    found.misfits += _collisions(found)
    if not found.misfits and any(pattern.crossing for pattern in found.names):
        found.misfits += _lost_ways_back(found, path, rules, budget)
    return found


def _lost_ways_back(found: Assignment, path: Path, rules: RuleFile, budget: Budget) -> Iterator[Fault]:
    """Names that rules with a placeholder for anything make, and that others would take on the way back."""
    back = rules.reversed
    names = [back.stripped(move.target.name) for move in found.moves]
    lookup, held = _Lookup(back.rules, budget), set(names)
    ignored = _ignored(names, path, rules, budget)
    same = {id(other): rule for other, rule in zip(back.rules, rules.rules, strict=True)}
    for name, move, rule, pattern in zip(names, found.moves, found.rules, found.names, strict=True):
        if not pattern.crossing:
            continue
        ignores = ignored.get(name, [])
        matches = lookup.matches(name, held, among_rest=not ignores)
        others = [_describe_rule(one.rule, one.place) for one in matches if same[id(one.rule)] is not rule]
        others += [_describe_ignore(ignore) for ignore in ignores]
        if others:
            called = f"{listed([repr(name) for name in move.sources])} would be called {move.target.name!r}"
            yield Fault(f"{called}, which {others[0]} takes on the way back", rule.line)


def _ignored(
    names: Sequence[str], path: Path, rules: RuleFile, budget: Budget
) -> dict[str, list[IgnoreRule]]:
    """The ignores that each name fits, of names that fit one."""
    if not rules.ignores:
        return {}
    from ckptkit.registry.document import short
    from ckptkit.rules.file import TooMuchError, fitting

    budget.spend(steps=len(names) * len(rules.ignores))
    try:
        found = fitting([ignore.pattern for ignore in rules.ignores], names)
    except TooMuchError as error:
        ignore = rules.ignores[error.place]
        raise UsageError(
            f"{rules.path}: line {ignore.line}: the pattern {short(ignore.pattern)} takes too long on the "
            f"names of {path}",
            hint="write it without repetitions inside each other",
        ) from error
    ignored: dict[str, list[IgnoreRule]] = {}
    for ignore, places in zip(rules.ignores, found, strict=True):
        for name in dict.fromkeys(names[place] for place in places):
            ignored.setdefault(name, []).append(ignore)
    return ignored


def _refusal(path: Path, rules: RuleFile, reason: str) -> ConversionError:
    return ConversionError(f"{path}: {rules.path} has too many rules for its tensors: {reason}")


@dataclass(frozen=True)
class _Match:
    """A name that fits one of a rule's patterns."""

    rule: NameRule
    place: int  # of the pattern among the rule's sources
    values: Values

    @property
    def literal(self) -> int:
        """How much of the pattern is written out."""
        return self.rule.sources[self.place].literal


_CROSSING_STEPS = 20
"""Steps that it costs to try a pattern that matches anything."""


_AGAIN_STEPS = 50
"""Steps of each further rule that a name fits, which a message will list."""


class _Lookup:
    """Rules by name: most tables of rules written out have no placeholders, and need no search."""

    def __init__(self, rules: Sequence[NameRule], budget: Budget) -> None:
        self._budget = budget
        self._plain: dict[str, list[tuple[NameRule, int]]] = {}
        self._patterns: dict[str, list[tuple[NameRule, int]]] = {}
        self._by_start: dict[str, list[tuple[NameRule, int]]] = {}  # patterns with one that matches anything
        for rule in rules:
            for place, pattern in enumerate(rule.sources):
                if pattern.crossing:
                    self._by_start.setdefault(pattern.start, []).append((rule, place))
                elif pattern.placeholders:
                    self._patterns.setdefault(pattern.shape, []).append((rule, place))
                else:
                    self._plain.setdefault(pattern.fill({}), []).append((rule, place))
        self._starts = sorted({len(start) for start in self._by_start})

    def matches(self, name: str, names: set[str], *, among_rest: bool = True) -> list[_Match]:
        """Every rule that a name fits, with what is in place of its placeholders.

        Rules with a placeholder that matches anything take what is left: they are asked where no other rule
        fits, and ``among_rest``. The one with the longest text beside the placeholder is taken.
        """
        found = [_Match(rule, place, {}) for rule, place in self._plain.get(name, ())]
        found += self._fitting(name, self._patterns.get(shape_of(name), ()) if self._patterns else ())
        found = [match for match in found if _is_wanted(match, names)]
        if found or not among_rest or not self._starts:
            return found
        self._budget.spend(steps=len(self._starts))
        begun = (one for length in self._starts for one in self._by_start.get(name[:length], ()))
        candidates = [one for one in begun if name.endswith(one[0].sources[one[1]].end)]
        self._budget.spend(steps=_CROSSING_STEPS * len(candidates))
        found = [match for match in self._fitting(name, candidates) if _is_wanted(match, names)]
        most = max((match.literal for match in found), default=0)
        return [match for match in found if match.literal == most]

    def _fitting(self, name: str, candidates: Sequence[tuple[NameRule, int]]) -> Iterator[_Match]:
        self._budget.spend(steps=len(candidates))
        fitted = False
        for rule, place in candidates:
            values = rule.sources[place].values(name)
            if values is not None:
                if fitted:
                    self._budget.spend(steps=_AGAIN_STEPS)
                fitted = True
                yield _Match(rule, place, values)


def _is_wanted(match: _Match, names: set[str]) -> bool:
    """Whether a constant, read backwards, is beside a tensor that the rules make it for."""
    constant = match.rule.constant
    return constant is None or constant.beside is None or constant.beside.fill(match.values) in names


def _collect(
    groups: dict[tuple[object, ...], _Group], match: _Match, spec: TensorSpec, found: Assignment
) -> None:
    """Put a tensor to those that its rule takes together with it."""
    rule, place = match.rule, match.place
    values = dict(match.values)
    if rule.kind == "stack":
        place += int(values.pop(rule.over)) * len(rule.sources)
    key = (id(rule), *sorted(values.items())) if rule.kind in ("concat", "stack") else (spec.name,)
    group = groups.setdefault(key, _Group(rule, values, found.prefixes))
    if place in group.parts:
        number = place // len(rule.sources) if rule.over else place
        what = f"{group.parts[place].name!r} and {spec.name!r} are both part {number}"
        found.misfits.append(Fault(f"{what} of {_describe_rule(rule)}", rule.line))
    group.parts[place] = spec


# -- what a rule makes ---------------------------------------------------------------------------------------


def _make(group: _Group, found: Assignment, budget: Budget) -> None:
    """Add what a rule makes of its tensors."""
    rule, specs = group.rule, list(group.parts.values())
    try:
        for spec in specs:
            _refuse_opaque(rule, spec)
        dtype = _dtype(rule, specs)
        if rule.kind in ("concat", "stack"):
            found.add(_join(group, dtype, budget), rule)
        elif rule.kind in ("split", "unstack"):
            for n, move in enumerate(_cut(group, specs[0], dtype, budget)):
                found.add(move, rule, n % len(rule.targets))
        else:
            found.add(_move(group, specs[0], dtype, budget), rule)
    except ValueError as error:
        named = specs[0].name if len(specs) == 1 else f"{specs[0].name}' … '{specs[-1].name}"
        turned = "" if rule.op.is_identity else f" ({rule.op.name})"
        found.misfits.append(
            Fault(f"'{named}' does not fit {_describe_rule(rule)}{turned}: {error}", rule.line)
        )
    except _MisfitError as error:
        found.misfits.append(Fault(str(error), rule.line))


class _MisfitError(Exception):
    """A whole sentence about tensors that do not fit their rule."""


def _refuse_opaque(rule: NameRule, spec: TensorSpec) -> None:
    if not spec.dtype.is_opaque or (rule.kind == "move" and rule.op.is_identity and rule.dtype is None):
        return
    cannot = (
        "turn its axes"
        if rule.kind == "move"
        else f"{'join' if rule.kind in ('concat', 'stack') else 'cut'} it"
    )
    if rule.kind == "move" and rule.op.is_identity:
        cannot = f"cast it to {rule.dtype}"
    turned = "" if rule.op.is_identity else f" ({rule.op.name})"
    raise _MisfitError(
        f"{spec.name!r} is {spec.dtype}, of which only the bytes are known: {_describe_rule(rule)}"
        f"{turned} cannot {cannot}"
    )


def _dtype(rule: NameRule, specs: Sequence[TensorSpec]) -> DType:
    """Element type in the target."""
    if other := next((spec for spec in specs if spec.dtype != specs[0].dtype), None):
        raise ValueError(f"they are {specs[0].dtype} and {other.dtype}")
    source, target = specs[0].dtype, rule.dtype
    if target is None or target == source:
        return source
    if not (source.is_float and target.is_float):
        import numpy

        if not numpy.can_cast(source.numpy, target.numpy, "safe"):
            raise ValueError(f"{source} cannot become {target} without loss")
    return target


def _named(group: _Group, place: int, budget: Budget, **more: str) -> str:
    """A target's name, its bytes spent."""
    name = group.rule.targets[place].fill({**group.values, **more})
    name = group.prefixes.before(name) + name
    budget.spend(names=len(name))
    return name


def _row(source: str, shape: Shape, target: str, target_shape: Shape, op: Op) -> Binding:
    plain = IDENTITY if op.is_identity else op
    return Binding(target, target_shape, source, shape, plain, trainable=True, part="body")


def _move(group: _Group, spec: TensorSpec, dtype: DType, budget: Budget) -> Move:
    rule = group.rule
    shape = rule.op.canonical_shape(spec.shape)
    name = _named(group, 0, budget)
    target = TensorSpec(name, dtype, shape, spec.stored)
    row = _row(spec.name, spec.shape, name, shape, rule.op)
    return Move(spec.name, target, row, plain_row(name, shape), fixed_dtype=rule.dtype is not None)


_PART_STEPS = 200
"""Steps that a part costs which the file itself does not name."""


def _cut(group: _Group, spec: TensorSpec, dtype: DType, budget: Budget) -> Iterator[Move]:
    """The moves that take parts of one tensor."""
    rule = group.rule
    assert rule.fusion is not None
    each = len(rule.targets)
    count = None if rule.kind == "unstack" and each == 1 else each
    for n, (region, op, shape) in enumerate(rule.fusion.cut(rule.op, spec.shape, count)):
        budget.spend(steps=_PART_STEPS)
        number, place = divmod(n, each)
        name = _named(group, place, budget, **({rule.over: str(number)} if rule.over else {}))
        yield Move(
            spec.name,
            TensorSpec(name, dtype, shape),
            _row(spec.name, region.shape, name, shape, op),
            plain_row(name, shape),
            cut=region,
            fixed_dtype=rule.dtype is not None,
        )


def _join(group: _Group, dtype: DType, budget: Budget) -> Join:
    """The move that makes one tensor of several."""
    rule = group.rule
    assert rule.fusion is not None
    specs = _all_parts(group)
    whole, regions, op = rule.fusion.joined(rule.op, [spec.shape for spec in specs], len(rule.sources))
    name = _named(group, 0, budget)
    pieces = tuple(
        Move(
            spec.name,
            TensorSpec(name, spec.dtype, region.shape),
            _row(spec.name, spec.shape, name, region.shape, op),
            plain_row(name, region.shape),
        )
        for spec, region in zip(specs, regions, strict=True)
    )
    return Join(TensorSpec(name, dtype, whole), pieces, tuple(regions), rule.dtype is not None)


def _all_parts(group: _Group) -> list[TensorSpec]:
    """The parts of one tensor in their order; refuses a group that lacks one, by the name it would have."""
    rule, parts = group.rule, group.parts
    each = len(rule.sources)
    count = (max(parts) // each + 1) * each
    if len(parts) < count:
        missing = (divmod(n, each) for n in range(count) if n not in parts)
        names = [
            rule.sources[place].fill({**group.values, **({rule.over: str(number)} if rule.over else {})})
            for number, place in islice(missing, 3)
        ]
        more = count - len(parts) - len(names)
        rest = f" and {more:,} more" if more else ""
        there = next(iter(parts.values())).name
        raise _MisfitError(
            f"{', '.join(map(repr, names))}{rest} missing beside {there!r}: {_describe_rule(rule)}"
        )
    return [parts[n] for n in range(count)]


# -- constants -----------------------------------------------------------------------------------------------


def _fill(rules: RuleFile, found: Assignment, budget: Budget) -> None:
    """Add the constants and the second names that the rules read forward make."""
    constants = [rule for rule in rules.rules if rule.constant is not None and rule.targets]
    made: dict[str, list[Values]] = {}
    for move, pattern in zip(found.moves, found.names, strict=True) if constants else ():
        made.setdefault(pattern.text, []).append(pattern.values(move.target.name) or {})
    moves = {move.target.name: move for move in found.moves} if constants else {}
    for rule in constants:
        constant = rule.constant
        if isinstance(constant, Tie):
            _tie(rule, constant.beside, moves, found, budget)
            continue
        assert constant is not None
        for values in made.get(constant.beside.text, []) if constant.beside else [{}]:
            name = rule.target.fill(values)
            spec = TensorSpec(name, constant.dtype, constant.shape)
            budget.spend(names=len(name), steps=_PART_STEPS)
            if spec.nbytes > budget.nbytes:
                found.misfits.append(
                    Fault(f"{name!r} would be {spec.nbytes:,} bytes of {constant.value}", rule.line)
                )
                break
            budget.spend(nbytes=spec.nbytes)
            found.add(Filling(spec, constant.value), rule)


def _tie(
    rule: NameRule, beside: NamePattern, moves: Mapping[str, AnyMove], found: Assignment, budget: Budget
) -> None:
    """Make tensors once more, under their second names."""
    if beside.placeholders:
        budget.spend(steps=len(moves))
        fitting = ((name, beside.values(name)) for name in moves)
        pairs = [(name, values) for name, values in fitting if values is not None]
    else:
        first = beside.fill({})
        pairs = [(first, {})] if first in moves else []
    if not pairs:
        found.misfits.append(
            Fault(
                f"no rule makes {beside.text!r}, to which line {rule.line} ties {rule.target.text!r}",
                rule.line,
            )
        )
    for first, values in pairs:
        name, move = rule.target.fill(values), moves[first]
        budget.spend(names=len(name), steps=_PART_STEPS, nbytes=move.target.nbytes)
        assert not isinstance(move, Filling)
        again = replace(move, target=replace(move.target, name=name))
        if isinstance(again, Move):
            again = replace(
                again,
                inward=replace(again.inward, canonical=name),
                outward=plain_row(name, again.target.shape),
            )
        found.add(again, rule)
        found.tied[name] = first


def _untied(reader: Reader, found: Assignment) -> Iterator[Fault]:
    """Tensors that the rules tie and whose values are not the same, which would be lost."""
    for name, other, rule in found.untied:
        if reader.same.get(name, name) == reader.same.get(other, other):
            continue
        differ = f"{name!r} and {other!r} differ, which {_describe_rule(rule)} ties"
        one, two = reader.specs[name], reader.specs.get(other)
        if two is None or (one.shape, one.dtype) != (two.shape, two.dtype):
            yield Fault(differ, rule.line)
            continue
        same = bytes_of(reader, name).data == bytes_of(reader, other).data
        reader.release(name)
        reader.release(other)
        if not same:
            yield Fault(differ, rule.line)


def _collisions(found: Assignment) -> list[Fault]:
    sources: dict[str, list[str]] = {}
    for move, rule in zip(found.moves, found.rules, strict=True):
        named = listed([repr(name) for name in move.sources]) or _describe_rule(rule)
        sources.setdefault(move.target.name, []).append(named)
    return [
        Fault(f"{', '.join(names)} would all be called {target!r}")
        for target, names in sources.items()
        if len(names) > 1
    ]


def _shared(same: Mapping[str, str], moves: Iterable[AnyMove]) -> dict[str, str]:
    """Target tensors that stay the same as another one: one tensor in the source, turned the same way."""
    first: dict[tuple[str, ...], str] = {}
    shared = {}
    for move in moves:
        if not isinstance(move, Move) or move.cut is not None:
            continue
        op = move.inward.op
        key = same.get(move.source, move.source), f"{op.external} → {op.canonical}", move.target.dtype.name
        other = first.setdefault(key, move.target.name)
        if other != move.target.name:
            shared[move.target.name] = other
    return shared


def _describe_rule(rule: NameRule, place: int = 0) -> str:
    return f"the rule on line {rule.line} ({_name_of(rule, place)})"


def _name_of(rule: NameRule, place: int = 0) -> str:
    return (rule.sources or rule.targets)[place].text


def _describe_ignore(ignore: IgnoreRule) -> str:
    return f"the ignore {ignore.name!r}"
