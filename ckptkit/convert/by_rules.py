"""Conversions by a user's own file of rules: every tensor by exactly one rule, or left out by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from ckptkit.base.budget import Budget
from ckptkit.base.errors import ConversionError, UsageError, faults_in_words, listed
from ckptkit.base.tensors import TensorSpec
from ckptkit.convert.planning import (
    Move,
    Plan,
    carried_metadata,
    carried_notes,
    plain_row,
    refuse_missing_copy,
)
from ckptkit.families.binding import Ignored, Weights
from ckptkit.formats.base import Reader
from ckptkit.registry.document import short
from ckptkit.rules.file import IgnoreRule, NameRule, RuleFile, shape_of
from ckptkit.rules.language import IDENTITY, Binding
from ckptkit.rules.user_patterns import TooMuchError, fitting

if TYPE_CHECKING:
    from ckptkit.registry.schema import Entry

LAYOUT = "rules"
"""In place of a layout's name."""

_SHOWN = 20


def plan_by_rules(
    reader: Reader,
    rules: RuleFile,
    *,
    weights: Weights = "auto",
    entry: Entry | None = None,
) -> Plan:
    """Plan a conversion by a user's rules; refuses all that does not fit them at once."""
    refuse_missing_copy(reader, weights)
    assigned = _assign(reader, rules)
    _refuse_faults(reader, rules, assigned)
    moves = tuple(
        Move(
            row.external,
            TensorSpec(row.canonical, spec.dtype, row.canonical_shape, spec.stored),
            row,
            end,
        )
        for row in assigned.rows
        for spec in (reader.specs[row.external],)
        for end in (plain_row(row.canonical, row.canonical_shape),)
    )
    return Plan(
        source=reader.path,
        source_format=reader.format,
        layout=LAYOUT,
        weights=reader.weights,
        moves=moves,
        ignored=tuple(assigned.ignored),
        metadata={
            **carried_metadata(reader, LAYOUT, entry),
            "rules": rules.path.name,
            "rules_direction": rules.direction,
            "rules_sha256": rules.sha256,
        },
        notes=tuple(carried_notes(reader)),
        shared=_shared(reader.same, assigned.rows),
        overlapping=len(reader.overlapping),
        also=reader.also,
    )


@dataclass
class _Assigned:
    """What the rules make of a file's tensors."""

    rows: list[Binding] = field(default_factory=list)
    ignored: list[Ignored] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    used: set[int] = field(default_factory=set)


def _assign(reader: Reader, rules: RuleFile) -> _Assigned:
    """Find the rule or ignore of every tensor; faults are collected."""
    assigned = _Assigned()
    budget = Budget(sum(spec.nbytes for spec in reader.specs.values()), partial(_refusal, reader, rules))
    lookup = _Lookup(rules.rules, budget)
    ignored = _ignored([*reader.specs, *reader.left_out], reader, rules, budget)
    for name in (*reader.specs, *reader.left_out):
        spec = reader.specs.get(name)
        matches, ignores = lookup.matches(name), ignored.get(name, [])
        assigned.used |= {id(rule) for rule, _ in matches}
        if len(matches) + len(ignores) > 1:
            named = [_describe_rule(rule) for rule, _ in matches] + [_describe_ignore(i) for i in ignores]
            assigned.faults.append(f"{name!r} fits {len(named)}: {listed(named)}")
        elif ignores:
            assigned.ignored.append(Ignored(name, ignores[0].name, ignores[0].reason))
        elif spec is None:
            assigned.faults.append(
                f"{name!r} cannot be read ({reader.left_out[name]}): 'ignore' leaves it out"
            )
        elif not matches:
            assigned.unmatched.append(name)
        else:
            rule, digits = matches[0]
            target = rule.target.fill(digits)
            budget.spend(names=len(target))
            _bind(assigned, rule, target, spec)
    return assigned


def _ignored(
    names: Sequence[str], reader: Reader, rules: RuleFile, budget: Budget
) -> dict[str, list[IgnoreRule]]:
    """The ignores that each name fits, of names that fit one."""
    budget.spend(steps=len(names) * len(rules.ignores))
    try:
        found = fitting([ignore.pattern for ignore in rules.ignores], names)
    except TooMuchError as error:
        ignore = rules.ignores[error.place]
        raise UsageError(
            f"{rules.path}: line {ignore.line}: the pattern {short(ignore.pattern)} takes too long on the "
            f"names of {reader.path}",
            hint="write it without repetitions inside each other",
        ) from error
    ignored: dict[str, list[IgnoreRule]] = {}
    for ignore, places in zip(rules.ignores, found, strict=True):
        for place in places:
            ignored.setdefault(names[place], []).append(ignore)
    return ignored


def _refusal(reader: Reader, rules: RuleFile, reason: str) -> ConversionError:
    return ConversionError(f"{reader.path}: {rules.path} has too many rules for its tensors: {reason}")


class _Lookup:
    """Rules by name: most tables of rules written out have no placeholders, and need no search."""

    def __init__(self, rules: Sequence[NameRule], budget: Budget) -> None:
        self._budget = budget
        self._plain: dict[str, list[NameRule]] = {}
        self._patterns: dict[str, list[NameRule]] = {}
        for rule in rules:
            if rule.source.placeholders:
                self._patterns.setdefault(rule.source.shape, []).append(rule)
            else:
                self._plain.setdefault(rule.source.fill({}), []).append(rule)

    def matches(self, name: str) -> list[tuple[NameRule, dict[str, str]]]:
        """Every rule that a name fits, with the digits in place of its placeholders."""
        found: list[tuple[NameRule, dict[str, str]]] = [(rule, {}) for rule in self._plain.get(name, ())]
        if not self._patterns:
            return found
        candidates = self._patterns.get(shape_of(name), ())
        self._budget.spend(steps=len(candidates))
        for rule in candidates:
            digits = rule.source.values(name)
            if digits is not None:
                found.append((rule, digits))
        return found


def _bind(assigned: _Assigned, rule: NameRule, target: str, spec: TensorSpec) -> None:
    try:
        shape = rule.target_shape(spec.shape)
    except ValueError as error:
        assigned.faults.append(f"{spec.name!r} does not fit {_describe_rule(rule)} ({rule.op.name}): {error}")
        return
    op = IDENTITY if rule.op.is_identity else rule.op
    if spec.dtype.is_opaque and op is not IDENTITY:
        assigned.faults.append(
            f"{spec.name!r} is {spec.dtype}, of which only the bytes are known: {_describe_rule(rule)} "
            f"({rule.op.name}) cannot turn its axes"
        )
        return
    assigned.rows.append(Binding(target, shape, spec.name, spec.shape, op, trainable=True, part="body"))


def _refuse_faults(reader: Reader, rules: RuleFile, assigned: _Assigned) -> None:
    faults = [*assigned.faults, *_collisions(assigned.rows)]
    if assigned.unmatched:
        count = len(assigned.unmatched)
        faults.append(
            f"{count} tensor{'s fit' if count > 1 else ' fits'} no rule: {listed(assigned.unmatched, _SHOWN)}"
        )
    idle = [rule for rule in rules.rules if id(rule) not in assigned.used and not rule.optional]
    if idle:
        faults.append(f"{len(idle)} fit nothing: {listed([_describe_rule(rule) for rule in idle], _SHOWN)}")
    if faults:
        raise ConversionError(
            f"{reader.path}: does not fit {rules.path}: {faults_in_words(faults)}",
            hint="each tensor needs one rule or one ignore, each rule a tensor (or 'optional: true')",
        )


def _collisions(rows: Iterable[Binding]) -> list[str]:
    sources: dict[str, list[str]] = {}
    for row in rows:
        sources.setdefault(row.canonical, []).append(row.external)
    return [
        f"{', '.join(map(repr, names))} would all be called {target!r}"
        for target, names in sources.items()
        if len(names) > 1
    ]


def _shared(same: Mapping[str, str], rows: Iterable[Binding]) -> dict[str, str]:
    """Target tensors that stay the same as another one: one tensor in the source, turned the same way."""
    first: dict[tuple[str, str], str] = {}
    shared = {}
    for row in rows:
        key = (same.get(row.external, row.external), f"{row.op.external} → {row.op.canonical}")
        other = first.setdefault(key, row.canonical)
        if other != row.canonical:
            shared[row.canonical] = other
    return shared


def _describe_rule(rule: NameRule) -> str:
    return f"the rule on line {rule.line} ({rule.source.text})"


def _describe_ignore(ignore: IgnoreRule) -> str:
    return f"the ignore {ignore.name!r}"
