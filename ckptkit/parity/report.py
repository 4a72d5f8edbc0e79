"""What a parity run found: for people, as JSON, and as JUnit XML, which CI systems show.

Of JUnit there is no standard, only what readers accept; this keeps to what Jenkins' published schema
(junit-10.xsd) and GitLab's and GitHub's readers have in common: one suite a target, one test case an output.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast
from xml.etree import ElementTree

from ckptkit.base.errors import WHOLE_LISTS, UsageError
from ckptkit.base.files import open_regular
from ckptkit.base.shown import Column, Piece, Shown, Table
from ckptkit.base.text import counted, escaped, shape_text
from ckptkit.parity.compare import INPUT, StageComparison, TopAgreement, finite_or_none, is_logits
from ckptkit.parity.inputs import Inputs

Framework = Literal["keras", "torch", "onnxruntime", "saved-model", "recorded", "tensorflow", "jax"]
BackendName = Literal["keras", "onnxruntime", "recorded"]
"""What PyTorch is compared with."""

FRAMEWORK_NAMES: Mapping[Framework, str] = {
    "keras": "Keras",
    "torch": "PyTorch",
    "onnxruntime": "ONNX",
    "saved-model": "SavedModel",
    "recorded": "Recorded",
    "tensorflow": "TensorFlow",
    "jax": "JAX",
}


@dataclass(frozen=True)
class Side:
    """One framework's part."""

    framework: Framework
    versions: str  # "tensorflow 2.21.0, keras 3.15.0"
    reads: str  # what the model was filled from, in words
    format: str  # of that file, as layout and dtype
    layout: str
    dtype: str
    settings: Mapping[str, Any]  # that the model was built with
    seconds: float  # building, loading and the forward pass

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "settings": dict(self.settings), "seconds": round(self.seconds, 3)}


@dataclass(frozen=True, repr=False, kw_only=True)
class Report(Shown):
    """Both models' outputs compared."""

    name: str
    reference: Framework  # figures are relative to its outputs
    sides: tuple[Side, Side]
    stages: tuple[StageComparison, ...]  # in order
    top: TopAgreement | None  # None without logits
    notes: tuple[str, ...] = ()  # what a reader must know to judge the result
    seconds: float = field(default=0.0, compare=False)  # of the whole run

    @property
    def ok(self) -> bool:
        """Whether every output agrees."""
        return bool(self.stages) and all(stage.ok for stage in self.stages)

    @property
    def first_departure(self) -> str | None:
        """Name of the first output that does not agree; None when all do."""
        return next((stage.name for stage in self.stages if not stage.ok), None)

    @property
    def title(self) -> str:
        """Its name among several reports."""
        return self.name

    @property
    def about(self) -> str:
        """What was compared, in the verdict."""
        return self.title

    def is_alone(self, stage: StageComparison) -> bool:
        """Whether nothing runs after an output that could depart with it."""
        return is_logits(stage.name) or stage.name == INPUT

    @property
    def verdict(self) -> str:
        """The result in one line."""
        departed = next((stage for stage in self.stages if not stage.ok), None)
        if departed is not None:
            where = f"on the {departed.name}" if self.is_alone(departed) else f"from {departed.name} on"
            return f"DISAGREE {where}: {self.about}: {departed.reason}"
        outputs = [stage for stage in self.stages if stage.name != INPUT]
        worst = max(outputs, key=lambda stage: stage.relative)
        prepared = " and the picture's preparation" if len(outputs) < len(self.stages) else ""
        every = f"all {counted(len(outputs), 'output')}" if len(outputs) > 1 else "the output"
        return (
            f"agree: {self.about}: {every}{prepared} within tolerance, "
            f"largest relative difference {worst.relative:.1e} ({worst.name})"
        )

    @property
    def headline(self) -> str:
        """The result in one line."""
        return self.verdict

    def compared(self) -> Iterator[str]:
        """What was compared, a line each."""
        raise NotImplementedError

    def shown_stages(self) -> Sequence[StageComparison]:
        """The rows of the table."""
        return self.stages

    def pieces(self) -> Iterator[Piece]:
        """The verdict, what was compared, the table, the notes."""
        yield self.verdict
        yield from self.compared()
        stages = self.shown_stages()
        rows = [
            [
                stage.name,
                shape_text(stage.shape),
                f"{stage.max_abs:.2e}",
                f"{stage.mean_abs:.2e}",
                f"{stage.relative:.2e}",
                f"{stage.cosine:.9f}",
                str(stage.limit),
                stage.verdict,
            ]
            for stage in stages
        ]
        yield Table(_COLUMNS, rows, [None if stage.ok else "red" for stage in stages])
        if self.top:
            yield f"same answers: {self.top}"
        yield from (f"note: {note}" for note in self.notes)

    def facts(self) -> dict[str, str]:
        """What a JUnit report says of the comparison besides its outputs."""
        raise NotImplementedError

    @property
    def reference_name(self) -> str:
        """The side that figures are relative to, in words."""
        return FRAMEWORK_NAMES[self.reference]

    def results_to_json(self) -> dict[str, Any]:
        """The part of the JSON that every comparison has, without NaN or infinity."""
        return {
            "stages": [stage.to_json() for stage in self.stages],
            "top": vars(self.top).copy() if self.top else None,
            "notes": list(self.notes),
            "seconds": finite_or_none(round(self.seconds, 3)),
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False, kw_only=True)
class ParityReport(Report):
    """A checkpoint of a known family, and what was made of it."""

    # the name is the registry's id, a path, or a variant; the sides are Keras', then PyTorch's, or PyTorch's,
    # then the other's; before the stages is "input" where a picture was prepared
    family: str
    variant: str
    pos_emb: bool | None
    num_classes: int | None  # None for a headless file, which is compared on its stages only
    source: str  # path of the checkpoint
    synthetic: bool  # whether the weights are made by recipe
    weights: str | None  # "ema" or "raw" where the source holds both
    inputs: Inputs
    precision: str  # what the conversion rounded the weights to; "float32" where it only moved bytes

    @property
    def settings(self) -> Mapping[str, Any]:
        """Behaviour settings of the reference."""
        return next(side for side in self.sides if side.framework == self.reference).settings

    @property
    def backend(self) -> BackendName:
        """What PyTorch was compared with."""
        return next(cast(BackendName, side.framework) for side in self.sides if side.framework != "torch")

    @property
    def title(self) -> str:
        """Its name among several reports: one checkpoint may have one with each backend."""
        return self.name if self.backend == "keras" else f"{self.name} with {self.backend}"

    @property
    def about(self) -> str:
        """What was compared, in the verdict."""
        rounded = "float32" if self.precision == "float32" else f"rounded to {self.precision}"
        return f"{self.title} ({'synthetic weights, ' if self.synthetic else ''}{rounded})"

    def compared(self) -> Iterator[str]:
        """What was compared, a line each."""
        position = (
            "" if self.pos_emb is None else f" {'with' if self.pos_emb else 'without'} position embedding"
        )
        yield f"{self.title}: {self.variant}{position}"
        yield f"  settings  {', '.join(f'{key} {_plain(value)}' for key, value in self.settings.items())}"
        yield f"  inputs    {self.inputs}"
        for side in self.sides:
            yield f"  {FRAMEWORK_NAMES[side.framework]:<9} {_reads(side)}"

    def facts(self) -> dict[str, str]:
        """What a JUnit report says of the comparison besides its outputs."""
        facts = {
            "variant": self.variant,
            "source": self.source,
            "synthetic": str(self.synthetic).lower(),
            "weights": self.weights or "the only copy",
            "precision": self.precision,
            "inputs": str(self.inputs),
            "settings": json.dumps(dict(self.settings)),
        }
        for side in self.sides:
            facts[side.framework] = f"{side.versions}; reads {side.reads}"
        return facts

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without NaN or infinity."""
        return {
            "name": self.name,
            "with": self.backend,
            "ok": self.ok,
            "verdict": self.verdict,
            "first_departure": self.first_departure,
            "family": self.family,
            "variant": self.variant,
            "pos_emb": self.pos_emb,
            "num_classes": self.num_classes,
            "source": self.source,
            "synthetic": self.synthetic,
            "weights": self.weights,
            "reference": self.reference,
            "sides": {side.framework: side.to_json() for side in self.sides},
            "settings": dict(self.settings),
            "inputs": self.inputs.to_json(),
            "precision": self.precision,
            **self.results_to_json(),
        }


@dataclass(frozen=True)
class Cause:
    """A change of one side with which the first stage that departs agrees."""

    side: Literal["left", "right"]
    kind: str  # epsilon, activation, batch norm, padding, transpose, bias, swapped
    what: str  # in words
    figure: float  # how far apart the stage is with it

    def __str__(self) -> str:
        return f"with {self.what} on the {self.side} side it agrees ({self.figure:.1e})"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return vars(self).copy()


_MANY = 60
"""Rows of a table; of a longer one those around the departure are shown, without ``--verbose``."""
_AROUND = 8


@dataclass(frozen=True, repr=False, kw_only=True)
class CaseReport(Report):
    """Two models of a case file."""

    inputs: str  # in words
    outputs: frozenset[str]  # which of the stages are the models' results
    names: Mapping[str, tuple[str, str]]  # of each stage on the left and on the right side
    guessed: bool  # whether the stages were paired by shape and order, not by the file
    cause: Cause | None = None
    tried: int = 0  # changes that were looked at for a cause

    def is_alone(self, stage: StageComparison) -> bool:
        """Whether it is a result."""
        return stage.name in self.outputs

    def compared(self) -> Iterator[str]:
        """What was compared, and why it does not agree."""
        if self.cause is not None:
            yield f"likely cause: {self.cause}"
        elif self.tried and not self.ok:
            yield f"cause not found: none of {counted(self.tried, 'single change')} makes the stage agree"
        yield f"  inputs  {self.inputs}"
        for name, side in zip(("left", "right"), self.sides, strict=True):
            yield f"  {name:<7} {FRAMEWORK_NAMES[side.framework]}: {side.reads}; {side.versions}"

    def shown_stages(self) -> Sequence[StageComparison]:
        """All stages; of many, those around the departure and the results."""
        if WHOLE_LISTS.get() or len(self.stages) <= _MANY:
            return self.stages
        departed = next((place for place, stage in enumerate(self.stages) if not stage.ok), 0)
        return [
            stage
            for place, stage in enumerate(self.stages)
            if abs(place - departed) <= _AROUND or stage.name in self.outputs
        ]

    def pieces(self) -> Iterator[Piece]:
        """The verdict, the cause, what was compared, the table, the notes."""
        yield from super().pieces()
        if left_out := len(self.stages) - len(self.shown_stages()):
            yield f"{counted(left_out, 'more stage')}{_VERBOSE}"

    def facts(self) -> dict[str, str]:
        """What a JUnit report says of the comparison besides its outputs."""
        facts = {"inputs": self.inputs, "stages": "guessed" if self.guessed else "given"}
        for name, side in zip(("left", "right"), self.sides, strict=True):
            facts[name] = f"{side.framework}: {side.reads}; {side.versions}"
        return facts | ({"cause": str(self.cause)} if self.cause else {})

    @property
    def reference_name(self) -> str:
        """The left side."""
        return "left"

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without NaN or infinity."""
        return {
            "case": self.name,
            "ok": self.ok,
            "verdict": self.verdict,
            "first_departure": self.first_departure,
            "cause": self.cause.to_json() if self.cause else None,
            "tried": self.tried,
            "inputs": self.inputs,
            "stages_guessed": self.guessed,
            "sides": {name: side.to_json() for name, side in zip(("left", "right"), self.sides, strict=True)},
            **self.results_to_json(),
            "stages": [
                {
                    **stage.to_json(),
                    "left": self.names[stage.name][0],
                    "right": self.names[stage.name][1],
                    "is_output": stage.name in self.outputs,
                }
                for stage in self.stages
            ],
        }


_VERBOSE = "; --verbose shows all"

_COLUMNS = (
    Column("output"),
    Column("shape"),
    Column("max abs", numeric=True),
    Column("mean abs", numeric=True, spare=True),
    Column("relative", numeric=True),
    Column("cosine", numeric=True, spare=True),
    Column("tolerance"),
    Column("verdict"),
)


def _reads(side: Side) -> str:
    return f"reads {side.reads} ({side.format}, layout {side.layout}, {side.dtype}); {side.versions}"


def _plain(value: Any) -> str:
    """Spell a setting as people do: None is the whole map's, not a value."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Failure:
    """A target that could not be compared."""

    name: str
    error: str  # one line
    kind: str  # class of the error

    def to_json(self) -> dict[str, Any]:
        """Return plain values, with ``ok`` false as in a report."""
        return {"name": self.name, "ok": False, "error": self.error, "kind": self.kind}


# -- JUnit ---------------------------------------------------------------------------------------------------

_HEAD_BYTES = 4096


def refuse_other_file(path: Path) -> None:
    """Refuse to replace anything but a JUnit report; the next report replaces an older one, as CI wants."""
    with (
        contextlib.suppress(OSError),
        open_regular(path) as file,
    ):  # nothing there, or a device: see StagedFile
        head = file.read(_HEAD_BYTES)
        if head and b"<testsuite" not in head:
            raise UsageError(f"{path} exists and is not a JUnit report", hint="name another file")


def junit_document(results: Sequence[Report | Failure]) -> str:
    """Write results as one JUnit XML document.

    A disagreement is a failure of its test case, a target that could not be compared an error.
    """
    root = ElementTree.Element("testsuites")
    suites = [_suite(result) if isinstance(result, Report) else _error(result) for result in results]
    for count in ("tests", "failures", "errors"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in suites)))
    root.set("time", f"{sum(float(suite.get('time', '0')) for suite in suites):.3f}")
    root.set("name", "ckptkit parity")
    root.extend(suites)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(report: Report) -> ElementTree.Element:
    failures = sum(not stage.ok for stage in report.stages)
    suite = _element(
        "testsuite",
        name=f"parity {report.title}",
        tests=str(len(report.stages)),
        failures=str(failures),
        errors="0",
        skipped="0",
        time=f"{report.seconds:.3f}",
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in report.facts().items():
        properties.append(_element("property", name=name, value=value))
    # The forward passes give all outputs at once: their time belongs to the first case.
    times = [report.seconds, *[0.0] * len(report.stages)]
    for stage, seconds in zip(report.stages, times, strict=False):
        suite.append(_case(report, stage, seconds))
    output = ElementTree.SubElement(suite, "system-out")
    answers = [f"same answers: {report.top}"] if report.top else []
    output.text = "\n".join(escaped(text, "xml") for text in (report.verdict, *answers, *report.notes))
    return suite


def _case(report: Report, stage: StageComparison, seconds: float) -> ElementTree.Element:
    case = _element("testcase", classname=_class_name(report.title), name=stage.name, time=f"{seconds:.3f}")
    figures = (
        f"shape {list(stage.shape)}\nmax abs {stage.max_abs:.6e}\nmean abs {stage.mean_abs:.6e}\n"
        f"relative {stage.relative:.6e}\nscale {stage.scale:.6e}\ncosine {stage.cosine:.9f}\n"
        f"tolerance {stage.limit}\nreference {report.reference_name}"
    )
    if not stage.ok:
        failure = _element("failure", message=stage.reason, type=stage.verdict)
        failure.text = figures
        case.append(failure)
    else:
        ElementTree.SubElement(case, "system-out").text = figures
    return case


def _error(failure: Failure) -> ElementTree.Element:
    name = f"parity {failure.name}"
    suite = _element("testsuite", name=name, tests="1", failures="0", errors="1", skipped="0", time="0.000")
    case = _element("testcase", classname=_class_name(failure.name), name="comparison", time="0.000")
    error = _element("error", message=failure.error, type=failure.kind)
    error.text = escaped(failure.error, "xml")
    case.append(error)
    suite.append(case)
    return suite


def _class_name(name: str) -> str:
    """Readers split class names at dots and slashes, so a path becomes one word."""
    return "ckptkit.parity." + (re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "checkpoint")


def _element(tag: str, **attributes: str) -> ElementTree.Element:
    return ElementTree.Element(tag, {name: escaped(value, "xml") for name, value in attributes.items()})
