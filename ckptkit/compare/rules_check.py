"""What of two checkpoints a file of rules fits, and what not; nothing is converted and no values are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ckptkit.base.shown import Column, Piece, Shown, Table, sections
from ckptkit.base.tensors import TensorSpec
from ckptkit.base.text import counted, shape_text
from ckptkit.compare.built_models import is_factory, outline_of_factory
from ckptkit.compare.outlines import Outline, outline_of
from ckptkit.convert.by_rules import Fault, assign, prefixes_of
from ckptkit.convert.planning import Filling
from ckptkit.rules.mapping import NameRule, RuleFile
from ckptkit.workspace import Named, Workspace


@dataclass(frozen=True)
class OtherShape:
    """A tensor that the rules make in another shape than the target has."""

    name: str
    made: tuple[int, ...]
    wanted: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class RulesCheck(Shown):
    """What fits a file of rules, and what does not."""

    rules: str
    source: str
    target: str | None
    direction: str
    tensors: int  # of the source
    made: int  # tensors that the rules make, constants among them
    left_out: Mapping[str, str]
    filled: Mapping[str, str]
    faults: tuple[Fault, ...]
    sure: Mapping[str, int] = field(default_factory=dict)  # how many rules are proven, forced, guessed …
    missing: tuple[TensorSpec, ...] = ()  # tensors of the target that no rule makes
    unexpected: tuple[TensorSpec, ...] = ()  # tensors that the rules make and the target has not
    other_shape: tuple[OtherShape, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything fits."""
        return not (self.faults or self.missing or self.unexpected or self.other_shape)

    @property
    def verdict(self) -> str:
        """All of it in one line."""
        made = f"{counted(self.tensors, 'tensor')} → {counted(self.made, 'tensor')}"
        if self.ok:
            left = f"; {len(self.left_out):,} left out" if self.left_out else ""
            filled = f"; {len(self.filled):,} filled in" if self.filled else ""
            return f"fits: {made}{left}{filled}"
        counts = [
            f"{counted(len(self.faults), 'fault')} of the rules" if self.faults else "",
            f"{len(self.missing):,} missing" if self.missing else "",
            f"{len(self.unexpected):,} unexpected" if self.unexpected else "",
            f"{len(self.other_shape):,} of another shape" if self.other_shape else "",
        ]
        return f"does not fit: {'; '.join(filter(None, counts))}"

    @property
    def headline(self) -> str:
        """The result in one line."""
        return f"{self.rules}: {self.verdict}"

    def pieces(self, *, everything: bool = False) -> Iterator[Piece]:
        """The verdict, then what does not fit."""
        yield self.verdict
        yield from (f"{heading:<10}{text}" for heading, text in self._lines())
        yield from sections(self._sections(), everything=everything)

    def _lines(self) -> Iterator[tuple[str, str]]:
        yield "source", f"{self.source}, {counted(self.tensors, 'tensor')}"
        if self.target is not None:
            yield "target", self.target
        if self.direction == "reverse":
            yield "direction", "from the target to the source"
        if self.sure:
            yield "rules", ", ".join(f"{count:,} {sure}" for sure, count in self.sure.items())
        for why, count in Counter(self.left_out.values()).items():
            yield "left out", f"{count:,}, {why}"
        for value, count in Counter(self.filled.values()).items():
            yield "filled", f"{count:,} with {value}"

    def _sections(self) -> Iterator[tuple[str, Table]]:
        tensor = [Column("tensor"), Column("shape")]
        line = [Column("line", numeric=True), Column("fault")]
        yield "faults", Table(line, [[str(one.line or ""), one.what] for one in self.faults])
        yield "missing", Table(tensor, [[one.name, shape_text(one.shape)] for one in self.missing])
        yield "unexpected", Table(tensor, [[one.name, shape_text(one.shape)] for one in self.unexpected])
        yield (
            "of another shape",
            Table(
                [Column("tensor"), Column("made"), Column("in the target")],
                [[one.name, shape_text(one.made), shape_text(one.wanted)] for one in self.other_shape],
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes."""
        return {
            "ok": self.ok,
            "verdict": self.verdict,
            "rules": self.rules,
            "source": self.source,
            "target": self.target,
            "direction": self.direction,
            "tensors": self.tensors,
            "made": self.made,
            "sure": dict(self.sure),
            "left_out": dict(self.left_out),
            "filled": dict(self.filled),
            "faults": [asdict(one) for one in self.faults],
            "missing": [_as_json(one) for one in self.missing],
            "unexpected": [_as_json(one) for one in self.unexpected],
            "other_shape": [asdict(one) for one in self.other_shape],
        }


def _as_json(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype.name}


def check_files(
    workspace: Workspace,
    rules: RuleFile,
    source: Named,
    target: Named | None = None,
    *,
    state_dict: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
) -> RulesCheck:
    """Check a file of rules on what the user named; ``target`` may be a function that builds a model."""
    have = outline_of(workspace, source, state_dict=state_dict, strip_prefix=strip_prefix)
    if target is None:
        return check_rules(rules, have)
    is_built = is_factory(target)
    want = outline_of_factory(workspace, str(target)) if is_built else outline_of(workspace, target)
    return check_rules(rules, have, want)


def check_rules(rules: RuleFile, source: Outline, target: Outline | None = None) -> RulesCheck:
    """Set a file of rules against the tensors of a source, and what it makes against those of a target."""
    prefixes = prefixes_of(rules, source.metadata, target.specs if target is not None else ())
    found = assign(source.path, source.specs, rules, left_out=source.left_out, prefixes=prefixes)
    made = {move.target.name: move.target for move in found.moves}
    wanted = target.specs if target is not None else made
    return RulesCheck(
        rules=str(rules.path),
        source=source.name,
        target=target.name if target is not None else None,
        direction=rules.direction,
        tensors=len(source.specs) + len(source.left_out),
        made=len(made),
        left_out={one.name: one.why for one in found.ignored},
        filled={move.target.name: move.value for move in found.moves if isinstance(move, Filling)},
        faults=(*_open_questions(rules.rules), *found.faults),
        sure=_how_sure(rules.rules),
        missing=tuple(spec for name, spec in wanted.items() if name not in made),
        unexpected=tuple(spec for name, spec in made.items() if name not in wanted),
        other_shape=tuple(
            OtherShape(name, spec.shape, wanted[name].shape)
            for name, spec in made.items()
            if name in wanted and wanted[name].shape != spec.shape
        ),
    )


def _open_questions(rules: Sequence[NameRule]) -> Iterator[Fault]:
    for rule in rules:
        if rule.sure == "ambiguous":
            yield Fault(f"the rule for {rule.source.text!r} is ambiguous", rule.line)


def _how_sure(rules: Sequence[NameRule]) -> dict[str, int]:
    """How many rules there are of each sort, where the file says it."""
    if not any(rule.sure for rule in rules):
        return {}
    counts: Counter[str] = Counter(rule.sure or "written by hand" for rule in rules)
    order = ("proven", "forced", "guessed", "ambiguous", "written by hand")
    return {sure: counts[sure] for sure in order if counts[sure]}
