"""``rules suggest``: a file of rules from one model to another, with how sure each rule is.

Where both sides are checkpoints that hold the same weights, the values say which tensors belong together; all
else is decided by names and shapes, and never called proven.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ckptkit._version import __version__
from ckptkit.base.errors import ConversionError, UsageError, command, listed
from ckptkit.base.files import StagedFile
from ckptkit.base.progress import Progress, no_progress
from ckptkit.base.shown import Column, Gap, Note, Piece, Shown, Table, sections
from ckptkit.base.tensors import TensorSpec
from ckptkit.base.text import counted, shape_text
from ckptkit.compare.built_models import is_factory, outline_of_factory
from ckptkit.compare.outlines import Outline, is_json, outline_in, outline_of
from ckptkit.families.layouts import training_rule
from ckptkit.formats.far_path import FarPath
from ckptkit.rules.drafting import Draft, Drafted, DraftIgnore, drafts_of
from ckptkit.rules.naming import opened
from ckptkit.rules.structure import SURE, Match, Question, Structure, Sure
from ckptkit.rules.values import Values, same_up_to_rounding, same_values

if TYPE_CHECKING:
    from ckptkit.formats.base import Reader
    from ckptkit.workspace import Named, Workspace

_COUNTERS = "num_batches_tracked"


@dataclass(frozen=True)
class SuggestRequest:
    """What of the two sides is meant."""

    state_dict: str | None = None  # of the source
    strip_prefix: str | Sequence[str] | None = None
    state_dict_target: str | None = None
    strip_prefix_target: str | Sequence[str] | None = None
    values: bool = True  # False: names and shapes alone, even where values are there


@dataclass(frozen=True, repr=False)
class Suggestion(Shown):
    """A draft of a file of rules, and what is known of it."""

    source: str
    target: str
    by: Literal["values", "names and shapes"]
    text: str  # the file
    drafts: tuple[Draft, ...]
    ignores: tuple[DraftIgnore, ...]
    questions: tuple[Question, ...]
    uncovered: tuple[TensorSpec, ...]  # tensors of the target that no rule makes
    unused: tuple[TensorSpec, ...]  # tensors of the source that no rule takes and no ignore names
    notes: tuple[str, ...] = ()
    models: _Models | None = None  # to draft again from other pairs

    @property
    def matches(self) -> tuple[Match, ...]:
        """The pairs of tensors that it was drafted from."""
        return tuple(match for draft in self.drafts for match in draft.matches)

    @property
    def source_path(self) -> Path | None:
        """Where the source's values are; None where it is a function that builds a model."""
        return self.models.have.path if self.models is not None else None

    @property
    def source_specs(self) -> Mapping[str, TensorSpec]:
        """The source's tensors."""
        return self.models.have.specs if self.models is not None else {}

    def redrafted(self, matches: Sequence[Match], notes: Sequence[str] = ()) -> Suggestion:
        """The draft that other pairs of the same tensors make."""
        assert self.models is not None
        return self.models.suggestion(matches, notes)

    @property
    def ok(self) -> bool:
        """Whether the rules are whole: nothing ambiguous, nothing left over on either side."""
        return not (self.tensors["ambiguous"] or self.uncovered or self.unused)

    @property
    def tensors(self) -> dict[Sure, int]:
        """How many tensors of the target there are rules for, by how sure these are."""
        found: Counter[Sure] = Counter()
        for draft in self.drafts:
            found[draft.sure] += len(draft.targets)
        return {sure: found[sure] for sure in SURE}

    @property
    def rules(self) -> dict[Sure, int]:
        """How many rules there are, by how sure they are."""
        found = Counter(draft.sure for draft in self.drafts)
        return {sure: found[sure] for sure in SURE}

    @property
    def verdict(self) -> str:
        """All of it in one line."""
        made = ", ".join(f"{count:,} {sure}" for sure, count in self.tensors.items() if count)
        rest = [
            f"{len(self.uncovered):,} of the target not covered" if self.uncovered else "",
            f"{len(self.unused):,} of the source not used" if self.unused else "",
        ]
        tensors = counted(sum(self.tensors.values()), "tensor")
        return "; ".join(filter(None, [f"{counted(len(self.drafts), 'rule')} for {tensors}: {made}", *rest]))

    @property
    def headline(self) -> str:
        """The result in one line."""
        return f"{self.source} → {self.target}: {self.verdict}"

    def pieces(self, *, everything: bool = False) -> Iterator[Piece]:
        """The verdict, then what is left to decide."""
        yield self.verdict
        yield f"{'by':<10}{self.by}"
        yield f"{'source':<10}{self.source}"
        yield f"{'target':<10}{self.target}"
        yield ""
        columns = [Column("sure"), Column("rules", numeric=True), Column("tensors", numeric=True)]
        rows = [
            [sure, f"{self.rules[sure]:,}", f"{count:,}"] for sure, count in self.tensors.items() if count
        ]
        yield Table(columns, rows)
        yield Gap()
        yield from sections(self._sections(), everything=everything)
        yield from (Note(f"note: {note}") for note in self.notes)

    def _sections(self) -> Iterator[tuple[str, Table]]:
        asked = [[one.text, ", ".join(one.sources[:4]), ", ".join(one.targets[:4])] for one in self.questions]
        yield (
            "questions",
            Table([Column("question"), Column("of the source"), Column("of the target")], asked),
        )
        tensor = [Column("tensor"), Column("shape")]
        yield "not covered", Table(tensor, [[one.name, shape_text(one.shape)] for one in self.uncovered])
        yield "not used", Table(tensor, [[one.name, shape_text(one.shape)] for one in self.unused])

    def to_json(self) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes."""
        return {
            "ok": self.ok,
            "verdict": self.verdict,
            "source": self.source,
            "target": self.target,
            "by": self.by,
            "tensors": dict(self.tensors),
            "rules": [
                {
                    **draft.keys,
                    "sure": draft.sure,
                    "tensors": len(draft.targets),
                    "question": draft.question,
                    "rounded": draft.rounded,
                }
                for draft in self.drafts
            ],
            "ignore": [
                {"name": one.name, "pattern": one.pattern, "reason": one.reason, "tensors": len(one.tensors)}
                for one in self.ignores
            ],
            "questions": [
                {"question": one.text, "sources": list(one.sources), "targets": list(one.targets)}
                for one in self.questions
            ],
            "not_covered": [_as_json(one) for one in self.uncovered],
            "not_used": [_as_json(one) for one in self.unused],
            "notes": list(self.notes),
        }

    def write(self, path: Path, *, force: bool = False) -> Path:
        """Write the file of rules; it is there whole or not at all."""
        with StagedFile(path, force=force) as file:
            file.append(self.text.encode())
            return file.commit()


def _as_json(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype.name}


def suggest_rules(
    workspace: Workspace,
    source: Named,
    target: Named,
    request: SuggestRequest = SuggestRequest(),
    progress: Progress = no_progress,
) -> Suggestion:
    """Draft the rules that lead from one model to another."""
    with ExitStack() as stack:
        have, reader = _side(workspace, source, request.state_dict, request.strip_prefix, stack)
        want, other = _side(workspace, target, request.state_dict_target, request.strip_prefix_target, stack)
        values = None
        if request.values and reader is not None and other is not None:
            values = _values(reader, other, (have.same, want.same), progress)
        proven: list[Match] = []
        if values is not None and reader is not None and other is not None:
            proven = same_values(reader, other, *values)
            more, *rounded = same_up_to_rounding(reader, other, *values, found=proven)
            proven, values = [*proven, *more], (rounded[0], rounded[1])
    found = _suggestion(have, want, proven, values)
    far = [one.name for one in (have, want) if isinstance(one.path, FarPath)]
    if far and request.values:
        return replace(found, notes=(*found.notes, f"the values of {' and '.join(far)} were not read"))
    return found


def _side(
    workspace: Workspace,
    what: Named,
    state_dict: str | None,
    strip_prefix: str | Sequence[str] | None,
    stack: ExitStack,
) -> tuple[Outline, Reader | None]:
    """One side's names and shapes, and its reader where there are values."""
    if is_factory(what):
        return outline_of_factory(workspace, str(what)), None
    if isinstance(what, str | Path) and is_json(Path(what)):
        return outline_of(workspace, what), None
    located = workspace.locate(what, fetch=False, state_dict=state_dict, strip_prefix=strip_prefix, far=True)
    reader = stack.enter_context(located.open(unwrap=False))
    outline = outline_in(reader, located.name, located.path)
    return outline, None if isinstance(located.path, FarPath) else reader


def _values(
    one: Reader, other: Reader, same: tuple[Mapping[str, str], Mapping[str, str]], progress: Progress
) -> tuple[Values, Values]:
    total = sum(spec.nbytes for reader in (one, other) for spec in reader.specs.values())
    with progress("comparing values", total) as advance:
        return Values.of(one, advance, same[0]), Values.of(other, advance, same[1])


def _suggestion(
    have: Outline, want: Outline, proven: list[Match], values: tuple[Values, Values] | None
) -> Suggestion:
    if not have.specs or not want.specs:
        raise UsageError(f"{(have if not have.specs else want).name}: no tensors in it")
    trained = _trained(have.specs, want.specs)
    source = {name: spec for name, spec in have.specs.items() if name not in trained}
    once = {name: spec for name, spec in source.items() if name not in have.same}
    wanted = {name: spec for name, spec in want.specs.items() if name not in want.same}
    called = have.called, want.called
    structure = Structure(once, wanted, proven, _same(proven, values, once, wanted), called)
    models = _Models(have, want, source, trained, tuple(structure.questions), values, bool(proven))
    return models.suggestion(structure.matches)


@dataclass(frozen=True)
class _Models:
    """Both sides of a suggestion, and what is known of them."""

    have: Outline
    want: Outline
    source: Mapping[str, TensorSpec]  # without what training alone needs
    trained: Mapping[str, tuple[str, str]]
    questions: tuple[Question, ...]
    values: tuple[Values, Values] | None
    by_values: bool

    def suggestion(self, matches: Sequence[Match], notes: Sequence[str] = ()) -> Suggestion:
        """The draft that some pairs of tensors make."""
        have, want = self.have, self.want
        matches = [*matches, *_tied(matches, have.same, want.same)]
        if any(match.rounded for match in matches):
            matches = [self._cast(match) for match in matches]
        drafts = drafts_of(matches, self.source, want.specs)
        drafts += _second_names(drafts, want.same)
        made = {name for draft in drafts for name in draft.targets}
        missing = [want.specs[name] for name in want.specs if name not in made]
        drafts += _constants(drafts, missing, self.values)
        made |= {name for draft in drafts for name in draft.targets}
        used = {name for draft in drafts for name in draft.sources}
        if not used:
            raise ConversionError(
                f"{have.name} and {want.name} have no layers in common, by values, names or shapes",
                hint=command("inspect", have.name),
            )
        places = {name: at for at, name in enumerate(want.specs)}
        drafts.sort(key=lambda draft: places[draft.targets[0]])
        left = {name: spec for name, spec in have.specs.items() if name not in used}
        twins = {name: have.same[name] for name in left if have.same.get(name) in used}
        ignores = [
            *_ignores({name: spec for name, spec in left.items() if name not in twins}, used, self.trained),
            *(DraftIgnore("tied weights", re.escape(a), f"the same as {b}", (a,)) for a, b in twins.items()),
        ]
        ignored = {name for ignore in ignores for name in ignore.tensors}
        questions, drafts = _asked(self.questions, drafts)
        result = Suggestion(
            have.name,
            want.name,
            "values" if self.by_values else "names and shapes",
            "",
            tuple(drafts),
            tuple(ignores),
            tuple(questions),
            tuple(spec for name, spec in want.specs.items() if name not in made),
            tuple(spec for name, spec in left.items() if name not in ignored),
            (*self._notes(made, matches), *notes),
            self,
        )
        heading = [
            f"From {have.name} to {want.name}, drafted by ckptkit {__version__} from {result.by}:",
            result.verdict,
            *notes,
            "Check it with 'ckptkit rules check', use it with 'ckptkit convert --rules'.",
        ]
        file = Drafted(
            result.drafts,
            result.ignores,
            result.questions,
            result.uncovered,
            result.unused,
            tuple(heading),
        )
        return replace(result, text=file.text)

    def _notes(self, made: Collection[str], matches: Sequence[Match]) -> Iterator[str]:
        """What else is to be known."""
        if self.values is not None and not self.by_values:
            yield "the two files have no values in common; decided by names and shapes"
        for narrow, count in Counter(match.rounded for match in matches for _ in match.targets).items():
            if narrow is not None:
                yield f"{counted(count, 'tensor')} up to rounding to {narrow}: the other file's are wider"
        if ties := [name for name in self.want.same if name in made]:
            are = "is another" if len(ties) == 1 else "are others"
            yield f"{counted(len(ties), 'tensor')} of the target {are} under a second name: {listed(ties, 4)}"
        for side in (self.have, self.want):
            if side.left_out:
                yield f"{side.name}: {counted(len(side.left_out), 'tensor')} cannot be read and is in no rule"

    def _cast(self, match: Match) -> Match:
        """A pair of tensors with the narrower of two types of floats, where values differ by that alone."""
        one, other = self.source[match.sources[0]].dtype, self.want.specs[match.targets[0]].dtype
        if one == other or match.rounded or not one.kind == other.kind == "float":
            return match
        return replace(match, rounded=min((one, other), key=lambda dtype: dtype.itemsize).name)


def _same(
    proven: Sequence[Match],
    values: tuple[Values, Values] | None,
    source: Mapping[str, TensorSpec],
    target: Mapping[str, TensorSpec],
) -> Any:
    """Whether two tensors may be the same, where both files hold the same weights."""
    made = sum(len(match.targets) for match in proven)
    if values is None or made * 2 < min(len(source), len(target)):
        return None
    left, right = values

    def same(a: str, b: str) -> bool:
        one, other = left.prints.get(a), right.prints.get(b)
        narrow, wide = target[b].dtype.name, source[a].dtype.name
        return one == other or (
            left.rounded.get((a, narrow), one) == right.rounded.get((b, wide), other)
            and ((a, narrow) in left.rounded or (b, wide) in right.rounded)
        )

    return same


def _asked(questions: Sequence[Question], drafts: list[Draft]) -> tuple[list[Question], list[Draft]]:
    """The questions that rules are left with, each once."""
    places: dict[Question, int] = {}
    kept: list[Question] = []
    asked = []
    for draft in drafts:
        if draft.question is None or draft.sure != "ambiguous":
            asked.append(replace(draft, question=None))
            continue
        question = questions[draft.question]
        if len(question.sources) == len(question.targets) == 1:  # of one tensor: of the whole rule then
            question = replace(question, sources=(_name(draft, "source"),), targets=(_name(draft, "target"),))
        if question not in places:
            places[question] = len(kept)
            kept.append(question)
        asked.append(replace(draft, question=places[question]))
    return kept, asked


def _name(draft: Draft, key: str) -> str:
    value = draft.keys[key]
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


# -- tied weights --------------------------------------------------------------------------------------------


def _tied(matches: Sequence[Match], have: Mapping[str, str], want: Mapping[str, str]) -> Iterator[Match]:
    """Pairs of second names, where both sides have some of the same tensor: those of one name first."""
    left, right = _by_first(have), _by_first(want)
    for match in matches:
        if match.operation != "one":
            continue
        names, others = left.get(match.sources[0], []), right.get(match.targets[0], [])
        both = [name for name in names if name in others]
        rest = zip(
            [name for name in names if name not in both],
            [name for name in others if name not in both],
            strict=False,
        )
        for a, b in (*((name, name) for name in both), *rest):
            yield replace(match, sources=(a,), targets=(b,))


def _by_first(same: Mapping[str, str]) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name, first in same.items():
        found[first].append(name)
    return dict(found)


def _second_names(drafts: Sequence[Draft], same: Mapping[str, str]) -> list[Draft]:
    """Rules for tensors of the target that are others under a second name."""
    made = {name: draft.sure for draft in drafts for name in draft.targets}
    return [
        Draft(
            {"target": _escaped(name), "tied": _escaped(first)},
            "guessed" if made[first] == "ambiguous" else made[first],
            (),
            None,
            (name,),
        )
        for name, first in same.items()
        if name not in made and first in made
    ]


# -- constants and what is left out --------------------------------------------------------------------------


def _constants(
    drafts: Sequence[Draft], missing: Sequence[TensorSpec], values: tuple[Values, Values] | None
) -> list[Draft]:
    """Rules for what a model counts or numbers by itself, where the source has nothing of it."""
    found: list[Draft] = []
    rest = {spec.name: spec for spec in missing if spec.dtype.kind in ("int", "uint")}
    for draft in drafts:
        text = draft.keys["target"]
        if not isinstance(text, str) or not text.endswith("running_var"):
            continue
        counters = tuple(f"{name.removesuffix('running_var')}{_COUNTERS}" for name in draft.targets)
        if not all(name in rest and rest[name].size == 1 for name in counters):
            continue
        keys: dict[str, object] = {
            "target": f"{text.removesuffix('running_var')}{_COUNTERS}",
            "fill": "zeros",
            "shape": list(rest[counters[0]].shape),
            "dtype": rest[counters[0]].dtype.name,
        }
        if "{" in text:
            keys["with"] = text
        found.append(Draft(keys, _sureness(counters, values), (), None, counters))
        for name in counters:
            del rest[name]
    for spec in rest.values():
        if spec.name.endswith("position_ids") and spec.shape and max(spec.shape) == spec.size:
            keys = {
                "target": _escaped(spec.name),
                "fill": "arange",
                "shape": list(spec.shape),
                "dtype": spec.dtype.name,
            }
            found.append(Draft(keys, "guessed", (), None, (spec.name,)))
    return found


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _sureness(names: Sequence[str], values: tuple[Values, Values] | None) -> Sure:
    """Proven where the target's own values are these zeros; a counter may start at none in any case."""
    if values is None:
        return "forced"
    prints = values[1].prints
    zeros = all(prints[name].plain == 0 and name in values[1].constant for name in names if name in prints)
    return "proven" if zeros else "guessed"


def _trained(
    source: Mapping[str, TensorSpec], target: Mapping[str, TensorSpec]
) -> dict[str, tuple[str, str]]:
    """What of a source only training needs: its name and the reason."""
    found = {}
    for name in source:
        if name in target:
            continue
        rule = training_rule(name, source)
        if rule is not None:
            found[name] = (rule.name, rule.reason)
    return found


def _ignores(
    left: Mapping[str, TensorSpec], used: set[str], trained: Mapping[str, tuple[str, str]]
) -> list[DraftIgnore]:
    """Ignores for what is known to be needed by nothing."""
    groups: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for name, spec in left.items():
        leaf = re.split(r"[./]", name)[-1]
        if name in trained:
            groups[(_pattern(name, used), *trained[name])].append(name)
        elif leaf == _COUNTERS and spec.size == 1:
            pattern = rf".+[./]{_COUNTERS}"
            if any(re.fullmatch(pattern, one) for one in used):
                pattern = _pattern(name, used)
            groups[pattern, "step counters", "count training steps"].append(name)
        elif leaf in ("position_ids", "relative_position_index") and spec.dtype.kind in ("int", "uint"):
            groups[_pattern(name, used), "positions", "numbers that the model makes itself"].append(name)
    return [
        DraftIgnore(name, pattern, reason, tuple(tensors))
        for (pattern, name, reason), tensors in groups.items()
    ]


def _pattern(name: str, used: set[str]) -> str:
    """An expression for a name and its like: with any numbers, where that fits nothing that is used."""
    pieces, _ = opened(name)
    pattern = "[0-9]+".join(re.escape(piece).replace("/", "/") for piece in pieces)
    return re.escape(name) if any(re.fullmatch(pattern, one) for one in used) else pattern
