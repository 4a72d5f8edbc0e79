"""``rules suggest --prove``: outputs decide what values, shapes and names leave open.

The right side of a case is filled from the source by the drafted rules and run, again for every answer to a
question that is open, until both sides agree. An answer becomes proven where it agrees and no other does.
Where no answer agrees, a guess is wrong: then layers of one size that were guessed are exchanged as well.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, permutations
from math import perm
from pathlib import Path
from typing import TypeAlias

from ckptkit.base.errors import CkptkitError, UsageError
from ckptkit.base.progress import Say, say_nothing
from ckptkit.base.tensors import TensorSpec
from ckptkit.base.text import counted
from ckptkit.compare.outlines import is_json
from ckptkit.compare.suggesting import Suggestion, SuggestRequest
from ckptkit.parity.any_model import UserCase, judged, open_case_file
from ckptkit.parity.backends import Ran
from ckptkit.parity.case_file import load_case
from ckptkit.parity.compare import StageComparison, compare
from ckptkit.parity.sensitivity import Tested, tested
from ckptkit.parity.sides import SideProcess
from ckptkit.rules.drafting import Draft
from ckptkit.rules.structure import Match, Question

_Tensors: TypeAlias = "dict[tuple[int, str], TensorSpec]"
Answer: TypeAlias = "tuple[int, ...]"
"""To which is which: for each of the target the place of its counterpart. To an order of axes: its number."""

_MOST_RUNS = 2_000
_ALL_ORDERS = 24
"""So many answers to one question are all tried; of more, those that exchange two of the present one."""


@dataclass(frozen=True)
class Choice:
    """An open question, and what can be answered."""

    question: Question
    drafts: tuple[Draft, ...]

    @property
    def matches(self) -> tuple[Match, ...]:
        """The pairs of tensors that it is about."""
        return tuple(match for draft in self.drafts for match in draft.matches)

    @property
    def start(self) -> Answer:
        """The answer of the draft."""
        return tuple(range(self._size)) if self._is_order else (0,)

    @property
    def _is_order(self) -> bool:
        return bool(self.question.units) or self.matches[0].operation in ("concat", "split")

    @property
    def _size(self) -> int:
        """How many of the target are to have a counterpart, or how many parts there are."""
        if self.question.units:
            return min(len(self.question.sources), len(self.question.targets))
        match = self.matches[0]
        return max(len(match.sources), len(match.targets))

    @property
    def _candidates(self) -> int:
        return len(self.question.units) or self._size

    def others(self, answer: Answer) -> Iterator[Answer]:
        """What to try instead of an answer."""
        if not self._is_order:
            yield from ((n,) for n in range(len(self.matches[0].others) + 1) if (n,) != answer)
        elif perm(self._candidates, self._size) <= _ALL_ORDERS:
            yield from (one for one in permutations(range(self._candidates), self._size) if one != answer)
        else:
            unused = [n for n in range(self._candidates) if n not in answer]
            for a, b in combinations(range(self._size), 2):
                swapped = list(answer)
                swapped[a], swapped[b] = answer[b], answer[a]
                yield tuple(swapped)
            yield from ((*answer[:a], n, *answer[a + 1 :]) for a in range(self._size) for n in unused)

    def matches_of(self, answer: Answer) -> tuple[Match, ...] | None:
        """The pairs of tensors that an answer makes; None where sizes do not allow it."""
        if answer == self.start:
            return self.matches
        changed = [self._changed(match, answer) for match in self.matches]
        whole = tuple(match for match in changed if match is not None)
        return whole if len(whole) == len(changed) else None

    def _changed(self, match: Match, answer: Answer) -> Match | None:
        if self.question.units:
            return self._exchanged(match, answer)
        if match.operation == "concat":
            return replace(match, sources=tuple(match.sources[n] for n in answer))
        if match.operation == "split":
            return replace(match, targets=tuple(match.targets[n] for n in answer))
        turns = (match.turn, *match.others)
        return replace(match, turn=turns[answer[0]]) if answer[0] < len(turns) else None

    def _exchanged(self, match: Match, answer: Answer) -> Match | None:
        """The same tensor of the target, from another layer of the source."""
        for place, unit in enumerate(self.question.units[: len(answer)]):
            for key, spec in unit.items():
                if (spec.name,) == match.sources:
                    other = self.question.units[answer[place]].get(key)
                    fits = other is not None and other.shape == spec.shape
                    return replace(match, sources=(other.name,)) if other is not None and fits else None
        return match


@dataclass
class _Trials:
    """Runs of the right side, each with other answers; the same answers run once."""

    suggestion: Suggestion
    choices: list[Choice]
    case: UserCase
    source: Path
    state_dict: str | None
    rules: Path
    say: Say
    reference: Ran
    runs: int = 0
    known: dict[tuple[Answer, ...], Outcome] = field(default_factory=dict)

    def outcome(self, answers: tuple[Answer, ...]) -> Outcome:
        """What comes out with these answers."""
        if answers not in self.known:
            self.known[answers] = self._run(answers)
        return self.known[answers]

    @property
    def spent(self) -> bool:
        """Whether there have been as many runs as there may be."""
        return self.runs >= _MOST_RUNS

    def _run(self, answers: tuple[Answer, ...]) -> Outcome:
        made = matches_with(self.suggestion, self.choices, answers)
        if made is None or self.spent:
            return Outcome(())
        self.runs += 1
        plain = [replace(match, sure="guessed", question=None) for match in made]
        self.rules.write_text(self.suggestion.redrafted(plain).text, encoding="utf-8")
        side = self.case.candidate
        assert isinstance(side, SideProcess)
        try:
            side.fill(self.source, self.rules, self.state_dict)
            return Outcome(self._stages(side))
        except CkptkitError:
            if (
                self.runs == 1 or side.ended
            ):  # not for this answer: the rules, the case or the code are at fault
                raise
            return Outcome(())

    def _stages(self, side: SideProcess) -> tuple[StageComparison, ...]:
        candidate = side.run(self.case.given, reference=self.reference)
        compared = self.case.in_common(self.reference, candidate)
        stages = compare(compared.ours, compared.theirs, compared.tolerance, sides=compared.called)
        return tuple(judged(compared, stages)[0])

    def tested(self, answers: tuple[Answer, ...], made: Sequence[Match]) -> Tested:
        """Test every guess with these answers, with which all outputs agree."""
        side = self.case.candidate
        assert isinstance(side, SideProcess)
        self._run(answers)
        self.say("testing every guess by a change")
        return tested(made, lambda change: self._stages(side) if side.change(change) else None)


@dataclass(frozen=True)
class Outcome:
    """The stages of one run, in order; none where the right side could not be filled so."""

    stages: tuple[StageComparison, ...]

    @property
    def agreeing(self) -> int:
        """How many stages agree before one that does not."""
        return next((n for n, stage in enumerate(self.stages) if not stage.ok), len(self.stages))

    @property
    def ok(self) -> bool:
        """Whether all do."""
        return bool(self.stages) and self.agreeing == len(self.stages)


def choices_of(suggestion: Suggestion) -> list[Choice]:
    """The open questions."""
    found = [
        Choice(question, tuple(draft for draft in suggestion.drafts if draft.question == place))
        for place, question in enumerate(suggestion.questions)
    ]
    return [choice for choice in found if choice.matches]


def guesses_of(suggestion: Suggestion) -> list[Choice]:
    """Guessed layers of one size: which of them is which is a question then."""
    layers: defaultdict[tuple[tuple[str, ...], tuple[str, ...]], list[Draft]] = defaultdict(list)
    for draft in suggestion.drafts:
        if draft.sure == "guessed" and draft.matches and all(one.operation == "one" for one in draft.matches):
            key = tuple(map(_layer, draft.sources)), tuple(map(_layer, draft.targets))
            layers[key].append(draft)
    classes: defaultdict[frozenset[object], list[tuple[tuple[str, str], _Tensors, list[Draft]]]] = (
        defaultdict(list)
    )
    for (sources, targets), drafts in layers.items():
        tensors = {
            (n, _leaf(name)): suggestion.source_specs[name]
            for draft in drafts
            for n, name in enumerate(draft.sources)
        }
        alike = frozenset((*key, spec.shape) for key, spec in tensors.items())
        classes[alike].append(((sources[0], targets[0]), tensors, drafts))
    return [
        Choice(
            Question(
                "which of these is which?",
                tuple(names[0] for names, _, _ in members),
                tuple(names[1] for names, _, _ in members),
                tuple(tensors for _, tensors, _ in members),
            ),
            tuple(draft for _, _, drafts in members for draft in drafts),
        )
        for members in classes.values()
        if len(members) > 1
    ]


def _layer(name: str) -> str:
    return re.split("[./](?=[^./]*$)", name)[0]


def _leaf(name: str) -> str:
    return re.split("[./]", name)[-1]


def matches_with(
    suggestion: Suggestion, choices: Sequence[Choice], answers: Sequence[Answer], settled: Sequence[bool] = ()
) -> list[Match] | None:
    """All pairs of tensors with some answers; those of settled questions are proven."""
    own = {id(draft) for choice in choices for draft in choice.drafts}
    found = [match for draft in suggestion.drafts if id(draft) not in own for match in draft.matches]
    for n, (choice, answer) in enumerate(zip(choices, answers, strict=True)):
        made = choice.matches_of(answer)
        if made is None:
            return None
        if settled and settled[n]:
            made = tuple(replace(match, sure="proven", question=None, others=()) for match in made)
        found += made
    return found


def settle(
    suggestion: Suggestion,
    case_path: Path | str,
    request: SuggestRequest | None = None,
    say: Say = say_nothing,
) -> Suggestion:
    """Run a case with every answer that may be right; the right side is the port, filled from the source."""
    request = request or SuggestRequest()
    source = suggestion.source_path
    if source is None or is_json(source):
        raise UsageError(
            f"{suggestion.source} has no values to fill a model with",
            hint="--prove needs a checkpoint as SOURCE",
        )
    if request.strip_prefix is not None:
        raise UsageError(
            "--prove cannot be used with --strip-prefix", hint="put the prefix into the file: strip: [PREFIX]"
        )
    choices = choices_of(suggestion)
    file = load_case(case_path, empty="right")
    if file.is_recorded("right") or file.text.right.framework == "onnx":
        raise UsageError(
            f"{file.path}: the right side is filled by the rules, which a "
            f"{file.text.right.framework} side cannot be",
            hint="make the port the right side",
        )
    with open_case_file(file, say) as case:
        reference = case.reference.run(case.given, say)
        assert isinstance(case.candidate, SideProcess)
        rules = case.inputs.path.with_name("rules.yaml")
        trials = _Trials(
            suggestion, choices, case, source.absolute(), request.state_dict, rules, say, reference
        )
        best = _search(trials, tuple(choice.start for choice in choices))
        guessed = [] if trials.outcome(best).ok else guesses_of(suggestion)
        if guessed:
            choices += guessed
            best = _search(trials, (*best, *(choice.start for choice in guessed)))
        settled = [_is_settled(trials, best, n) for n in range(len(choices))]
        outcome = trials.outcome(best)
        made = matches_with(suggestion, choices, best, settled)
        assert made is not None
        notes = [_in_words(str(case_path), outcome, settled, trials.runs)]
        if outcome.ok and any(match.sure == "guessed" for match in made):
            found = trials.tested(best, made)
            made = [replace(one, sure="proven") if _is_proven(one, found) else one for one in made]
            notes += found.in_words
    return suggestion.redrafted(made, notes)


def _is_proven(match: Match, found: Tested) -> bool:
    return match.sure == "guessed" and bool(match.targets) and found.proven.issuperset(match.targets)


def _search(trials: _Trials, best: tuple[Answer, ...]) -> tuple[Answer, ...]:
    """Change one answer at a time, then two, while more stages agree."""
    while not trials.outcome(best).ok and not trials.spent:
        better = next(
            (one for one in _near(trials.choices, best) if _gains(trials, one, best)),
            None,
        )
        if better is None:
            break
        best = better
        found = trials.outcome(best)
        trials.say(f"attempt {trials.runs}: {found.agreeing} of {counted(len(found.stages), 'stage')} agree")
    return best


def _gains(trials: _Trials, answers: tuple[Answer, ...], best: tuple[Answer, ...]) -> bool:
    return trials.outcome(answers).agreeing > trials.outcome(best).agreeing


def _near(choices: Sequence[Choice], answers: tuple[Answer, ...]) -> Iterator[tuple[Answer, ...]]:
    """These answers with one changed, then with two, or one twice: a stage may have two layers."""
    for n, choice in enumerate(choices):
        yield from ((*answers[:n], other, *answers[n + 1 :]) for other in choice.others(answers[n]))
    for n, choice in enumerate(choices):
        twice = (two for one in choice.others(answers[n]) for two in choice.others(one))
        yield from ((*answers[:n], other, *answers[n + 1 :]) for other in dict.fromkeys(twice))
    for a, b in combinations(range(len(choices)), 2):
        for one in choices[a].others(answers[a]):
            for other in choices[b].others(answers[b]):
                yield (*answers[:a], one, *answers[a + 1 : b], other, *answers[b + 1 :])


def _is_settled(trials: _Trials, best: tuple[Answer, ...], n: int) -> bool:
    """Whether all outputs agree with this answer to a question, and with no other."""
    others = [(*best[:n], other, *best[n + 1 :]) for other in trials.choices[n].others(best[n])]
    alone = trials.outcome(best).ok and not any(trials.outcome(one).ok for one in others)
    return alone and not trials.spent


def _in_words(name: str, outcome: Outcome, settled: Sequence[bool], runs: int) -> str:
    times = counted(runs, "attempt")
    asked = counted(len(settled), "question")
    if not outcome.ok:
        stage = outcome.stages[outcome.agreeing].name if outcome.stages else "the first stage"
        return f"{name}: no answer makes {stage} agree; {sum(settled)} of {asked} settled in {times}"
    largest = max(stage.relative for stage in outcome.stages)
    both = f"all {counted(len(outcome.stages), 'output')} agree, largest relative difference {largest:.1e}"
    return f"{name}: {both}; {sum(settled)} of {asked} settled in {times}"
