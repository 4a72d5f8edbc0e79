"""A case file run: any two models, or one of them recorded."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ckptkit.base.errors import ConversionError, UsageError, listed, one_of
from ckptkit.base.files import StagedFile, refuse_existing, translated
from ckptkit.base.progress import Say, say_nothing
from ckptkit.base.tensors import Array
from ckptkit.parity import recorder
from ckptkit.parity.align import Form, Outputs, Pair, best, pairs
from ckptkit.parity.backends import Backend, Ran
from ckptkit.parity.case import Case, Compared
from ckptkit.parity.case_file import SIDES, CaseFile, Which, load_case
from ckptkit.parity.compare import LOGITS, StageComparison, top_agreement
from ckptkit.parity.report import CaseReport, Cause
from ckptkit.parity.sides import (
    CaseInputs,
    CaseRan,
    RecordedSide,
    SideProcess,
    read_recording,
    require_packages,
)

_STAGES_BACK = 3
"""Where a cause is looked for: a fault may be too small to see in the stage that has it."""
_CLOSER = 4
"""How many times closer a cause brings a stage: a change of no account is none, however close both are."""
_FLAT = 100
"""How many times smaller than a missing bias what remains without it is."""

GUESSED = "the stages were paired by shape and order of execution: name them under stages: to be sure"


def prove_case(path: Path | str, say: Say = say_nothing) -> CaseReport:
    """Run a case file."""
    began = time.perf_counter()
    with open_case_file(load_case(path), say) as case:
        report = case.run(say)
        assert isinstance(report, CaseReport)
        return replace(report, seconds=time.perf_counter() - began)


@contextmanager
def open_case_file(file: CaseFile, say: Say = say_nothing) -> Iterator[UserCase]:
    """Both sides of a case file while the block lasts; their processes end with it, whatever happens."""
    for text in (file.text.left, file.text.right):
        require_packages(text)
    arrays, layouts = _inputs(file)
    with ExitStack() as opened:
        scratch = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="ckptkit-case-")))
        say("starting both sides")
        left, right = (_side(which, file, scratch, opened) for which in SIDES)
        yield UserCase(
            name=str(file.path),
            reference=left,
            candidate=right,
            tolerance=file.tolerance,
            file=file,
            inputs=_written(arrays, layouts, scratch),
        )


def _side(which: Which, file: CaseFile, scratch: Path, opened: ExitStack) -> Backend[CaseInputs]:
    if file.is_recorded(which):
        return RecordedSide(which, file)
    side = SideProcess(which, file, scratch)
    opened.callback(side.end)
    return side


def _inputs(file: CaseFile) -> tuple[dict[str, Array], dict[str, str | None]]:
    """The inputs and their layouts, as the file describes them or as they were recorded."""
    if file.text.inputs is not None:
        return file.arrays(), file.layouts
    path = next(file.place(file.side(which).recording) for which in SIDES if file.is_recorded(which))
    recording = read_recording(path)
    if not recording.inputs:
        raise UsageError(
            f"{path} does not hold the inputs that it was recorded of", hint="add inputs: to the case"
        )
    layouts = {name: recording.layout if one.ndim == 4 else None for name, one in recording.inputs.items()}
    return recording.inputs, layouts


def _written(arrays: dict[str, Array], layouts: dict[str, str | None], scratch: Path) -> CaseInputs:
    made = recorder.Recorder()
    for name, array in arrays.items():
        made.input(name, array)
    path = scratch / "inputs.npz"
    with translated(path):
        made.save(path)
    return CaseInputs(arrays, layouts, path)


@dataclass(frozen=True, kw_only=True)
class UserCase(Case[CaseInputs]):
    """Two models of a case file."""

    file: CaseFile
    inputs: CaseInputs

    @property
    def given(self) -> CaseInputs:
        """The inputs."""
        return self.inputs

    def in_common(self, reference: Ran, candidate: Ran) -> PairedOutputs:
        """The stages of the file, or those that look alike; then the results."""
        left, right = self._outputs(reference), self._outputs(candidate)
        found = pairs(left, right, self.file.stages)
        if not found:
            raise ConversionError(
                f"{self.file.path}: nothing to compare: left gives {_shapes(left)}, "
                f"right gives {_shapes(right)}"
            )
        forms: dict[str, tuple[Form, Form]] = {}
        for pair in found:
            both = best(left, pair.left, right, pair.right)
            forms[pair.name] = both or (
                left.forms(pair.left)[0],
                right.forms(pair.right)[0],
            )
        results = frozenset(pair.name for pair in found if pair.is_output)
        tolerance = replace(self.tolerance, outputs=results)
        return PairedOutputs(
            {name: both[0].array for name, both in forms.items()},
            {name: both[1].array for name, both in forms.items()},
            tolerance,
            SIDES,
            {pair.name: pair for pair in found},
            forms,
            (left, right),
        )

    def _outputs(self, ran: Ran) -> Outputs:
        assert isinstance(ran, CaseRan)
        axes = frozenset(len(layout) for layout in self.inputs.layouts.values() if layout)
        return Outputs(ran.outputs, ran.told, ran.layout, axes, ran.seen)

    def report(
        self, reference: Ran, candidate: Ran, compared: Compared, stages: Sequence[StageComparison]
    ) -> CaseReport:
        """The report of both runs, with the cause where it can be told."""
        assert isinstance(compared, PairedOutputs)
        found, notes = judged(compared, stages)
        cause, tried = self._cause(compared, found)
        guessed = self.file.stages is None
        rans = [ran for ran in (reference, candidate) if isinstance(ran, CaseRan)]
        if guessed and any(pair.guessed for pair in compared.pairs.values()):
            notes = [GUESSED, *notes]
        return CaseReport(
            name=self.name,
            reference=reference.side.framework,
            sides=(reference.side, candidate.side),
            stages=tuple(found),
            top=top_agreement(compared.ours, compared.theirs, [one for one in found if one.name == LOGITS]),
            notes=(*self.notes, *(note for ran in rans for note in ran.notes), *notes),
            inputs=str(self.file),
            outputs=compared.tolerance.outputs,
            names={pair.name: (pair.left, pair.right) for pair in compared.pairs.values()},
            guessed=guessed,
            cause=cause,
            tried=tried,
        )

    def _cause(self, compared: PairedOutputs, stages: Sequence[StageComparison]) -> tuple[Cause | None, int]:
        """Try changes of either side between the last stage that agrees and the first that departs."""
        place = next((place for place, stage in enumerate(stages) if not stage.ok), None)
        if place is None or not math.isfinite(stages[place].max_abs):  # another shape, or NaN
            return None, 0
        departed = stages[place]
        exchanged = _exchanged(compared, stages[place:])
        if exchanged is not None:
            return exchanged, 0
        pair = compared.pairs[departed.name]
        bias = _constant_difference(compared, departed, pair)
        tried = 0
        for first in dict.fromkeys((place, max(place - _STAGES_BACK, 0))):
            before = compared.pairs[stages[first - 1].name] if first else None
            for which in ("right", "left"):  # the port is on the right as a rule
                answer = self._explained(which, compared, departed, before)
                tried += answer["tried"]
                if answer["found"]:
                    closest = answer["found"][0]
                    return Cause(which, closest["kind"], closest["what"], closest["figure"]), tried
            if bias is not None:
                break
        return bias, tried

    def _explained(
        self, which: Which, compared: PairedOutputs, departed: StageComparison, before: Pair | None
    ) -> dict[str, Any]:
        """The changes of one side that make a stage agree; a side that was recorded has none."""
        side = self.reference if which == "left" else self.candidate
        if not isinstance(side, SideProcess):
            return {"tried": 0, "found": []}
        pair, limit = compared.pairs[departed.name], departed.limit
        until, after = pair.of(which), before.of(which) if before else None
        now = departed.relative if limit.relative else departed.max_abs
        allowed = min(limit.value, now / _CLOSER)
        return side.explain(after, until, compared.expected_by(which, pair), allowed, relative=limit.relative)


@dataclass(frozen=True)
class PairedOutputs(Compared):
    """Outputs under the names of their pairs."""

    pairs: dict[str, Pair]
    forms: dict[str, tuple[Form, Form]]
    outputs: tuple[Outputs, Outputs]

    def expected_by(self, which: Which, pair: Pair) -> Array:
        """What the other side gave, in the order of axes of one side."""
        place = SIDES.index(which)
        own, other = self.forms[pair.name][place], self.forms[pair.name][1 - place]
        return own.back(other.array, self.outputs[place].arrays[pair.of(which)].shape)


def judged(
    compared: PairedOutputs, stages: Sequence[StageComparison]
) -> tuple[list[StageComparison], list[str]]:
    """What counts: not a guessed pair before one that agrees. A stage may be the same for all inputs."""
    found = [
        replace(stage, verdict="agrees", reason="")
        if stage.verdict == "degenerate" and stage.name not in compared.tolerance.outputs
        else stage
        for stage in stages
    ]
    agreeing = [place for place, stage in enumerate(found) if stage.ok]
    last = agreeing[-1] if agreeing else -1
    apart = {
        stage.name
        for place, stage in enumerate(found)
        if not stage.ok and compared.pairs[stage.name].guessed and place < last
    }
    notes = (
        [f"pairs that differ where what follows agrees do not count: {listed(sorted(apart))}"]
        if apart
        else []
    )
    return [stage for stage in found if stage.name not in apart], notes


def _exchanged(compared: PairedOutputs, stages: Sequence[StageComparison]) -> Cause | None:
    """A later stage that gives on each side what the first one of these gives on the other."""
    import numpy

    def apart(one: Array, other: Array) -> float:
        return float(numpy.abs(one.astype(numpy.float64) - other).max())

    first = stages[0]
    for later in stages[1:]:
        if later.ok or later.shape != first.shape or not math.isfinite(later.max_abs):
            continue
        crossed = ((first, later), (later, first))
        differences = [
            apart(compared.ours[one.name], compared.theirs[other.name])
            / ((one.scale or 1.0) if one.limit.relative else 1.0)
            for one, other in crossed
        ]
        if all(found <= one.limit.value for found, (one, _) in zip(differences, crossed, strict=True)):
            names = [compared.pairs[one.name].right for one in (first, later)]
            return Cause(
                "right", "swapped", f"the outputs of {names[0]} and {names[1]} swapped", max(differences)
            )
    return None


def _constant_difference(compared: PairedOutputs, stage: StageComparison, pair: Pair) -> Cause | None:
    """A bias that one side lacks: the difference is one number for each channel."""
    import numpy

    ours, theirs = compared.ours[pair.name], compared.theirs[pair.name]
    if ours.ndim < 2 or ours.shape[0] * ours.shape[1] < 4:
        return None
    difference = (theirs.astype(numpy.float64) - ours).reshape(-1, ours.shape[-1])
    by_channel = difference.mean(axis=0)
    largest, rest = (float(numpy.abs(one).max()) for one in (by_channel, difference - by_channel))
    figure = rest / (stage.scale or 1.0) if stage.limit.relative else rest
    if len(difference) < 2 or figure > stage.limit.value or rest * _FLAT > largest:
        return None
    return Cause("left", "bias", "a constant added to each channel (a bias that one side lacks)", figure)


def _shapes(side: Outputs) -> str:
    return listed(f"{name} {list(array.shape)}" for name, array in side.arrays.items())


# -- recording -----------------------------------------------------------------------------------------------


def record_case(
    path: Path | str, side: str, output: Path, *, force: bool = False, say: Say = say_nothing
) -> Path:
    """Run one side of a case file and write what came out."""
    which = cast(Which, one_of("side", side, SIDES))
    file = load_case(path)
    text = file.side(which)
    if file.is_recorded(which):
        raise UsageError(f"the {side} side is a recording already: {text.recording}")
    require_packages(text)
    refuse_existing(output, force=force)
    with StagedFile(output, force=force) as staged, ExitStack() as opened:
        scratch = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="ckptkit-case-")))
        process = SideProcess(which, file, scratch)
        opened.callback(process.end)
        say(f"running the {side} side")
        process.record(_written(*_inputs(file), scratch))
        _append(staged, process.outputs)
        return staged.commit()


def emit_recorder(output: Path, *, force: bool = False) -> Path:
    """Write the recorder as a file of its own."""
    with StagedFile(output, force=force) as staged:
        _append(staged, Path(recorder.__file__))
        return staged.commit()


def _append(staged: StagedFile, path: Path) -> None:
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            staged.append(piece)
