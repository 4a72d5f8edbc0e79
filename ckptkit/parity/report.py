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

from ckptkit.base.errors import UsageError
from ckptkit.base.files import open_regular
from ckptkit.base.shown import Column, Piece, Shown, Table
from ckptkit.base.text import counted, escaped, shape_text
from ckptkit.parity.compare import INPUT, StageComparison, TopAgreement, finite_or_none, is_logits
from ckptkit.parity.inputs import Inputs

Framework = Literal["keras", "torch", "onnxruntime", "saved-model", "recorded"]
BackendName = Literal["keras", "onnxruntime", "recorded"]
"""What PyTorch is compared with."""

FRAMEWORK_NAMES: Mapping[Framework, str] = {
    "keras": "Keras",
    "torch": "PyTorch",
    "onnxruntime": "ONNX",
    "saved-model": "SavedModel",
    "recorded": "Recorded",
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


@dataclass(frozen=True, repr=False)
class ParityReport(Shown):
    """Both models' outputs compared."""

    name: str  # registry id, path, or variant
    family: str
    variant: str
    pos_emb: bool | None
    num_classes: int | None  # None for a headless file, which is compared on its stages only
    source: str  # path of the checkpoint
    synthetic: bool  # whether the weights are made by recipe
    weights: str | None  # "ema" or "raw" where the source holds both
    reference: Framework  # the side that reads the source; figures are relative to its outputs
    sides: tuple[Side, Side]  # Keras', then PyTorch's; or PyTorch's, then the other's
    inputs: Inputs
    precision: str  # what the conversion rounded the weights to; "float32" where it only moved bytes
    stages: tuple[StageComparison, ...]  # in order, before them "input" where a picture was prepared
    top: TopAgreement | None  # None without a head
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
    def verdict(self) -> str:
        """The result in one line."""
        of = f"{self.title} ({'synthetic weights, ' if self.synthetic else ''}{self._precision_in_words})"
        departed = next((stage for stage in self.stages if not stage.ok), None)
        if departed is not None:
            alone = is_logits(departed.name) or departed.name == INPUT
            where = f"on the {departed.name}" if alone else f"from {departed.name} on"
            return f"DISAGREE {where}: {of}: {departed.reason}"
        outputs = [stage for stage in self.stages if stage.name != INPUT]
        worst = max(outputs, key=lambda stage: stage.relative)
        prepared = " and the picture's preparation" if len(outputs) < len(self.stages) else ""
        return (
            f"agree: {of}: all {counted(len(outputs), 'output')}{prepared} within tolerance, "
            f"largest relative difference {worst.relative:.1e} ({worst.name})"
        )

    @property
    def headline(self) -> str:
        """The result in one line."""
        return self.verdict

    def pieces(self) -> Iterator[Piece]:
        """The verdict, what was compared, the table, the notes."""
        position = (
            "" if self.pos_emb is None else f" {'with' if self.pos_emb else 'without'} position embedding"
        )
        yield self.verdict
        yield f"{self.title}: {self.variant}{position}"
        yield f"  settings  {', '.join(f'{key} {_plain(value)}' for key, value in self.settings.items())}"
        yield f"  inputs    {self.inputs}"
        for side in self.sides:
            yield f"  {FRAMEWORK_NAMES[side.framework]:<9} {_reads(side)}"
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
            for stage in self.stages
        ]
        yield Table(_COLUMNS, rows, [None if stage.ok else "red" for stage in self.stages])
        if self.top:
            yield f"same answers: {self.top}"
        yield from (f"note: {note}" for note in self.notes)

    @property
    def _precision_in_words(self) -> str:
        return "float32" if self.precision == "float32" else f"rounded to {self.precision}"

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
            "stages": [stage.to_json() for stage in self.stages],
            "top": vars(self.top).copy() if self.top else None,
            "notes": list(self.notes),
            "seconds": finite_or_none(round(self.seconds, 3)),
        }


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


def junit_document(results: Sequence[ParityReport | Failure]) -> str:
    """Write results as one JUnit XML document.

    A disagreement is a failure of its test case, a target that could not be compared an error.
    """
    root = ElementTree.Element("testsuites")
    suites = [_suite(result) if isinstance(result, ParityReport) else _error(result) for result in results]
    for count in ("tests", "failures", "errors"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in suites)))
    root.set("time", f"{sum(float(suite.get('time', '0')) for suite in suites):.3f}")
    root.set("name", "ckptkit parity")
    root.extend(suites)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(report: ParityReport) -> ElementTree.Element:
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
    for name, value in _facts(report).items():
        properties.append(_element("property", name=name, value=value))
    # The forward passes give all outputs at once: their time belongs to the first case.
    times = [report.seconds, *[0.0] * len(report.stages)]
    for stage, seconds in zip(report.stages, times, strict=False):
        suite.append(_case(report, stage, seconds))
    output = ElementTree.SubElement(suite, "system-out")
    answers = [f"same answers: {report.top}"] if report.top else []
    output.text = "\n".join(escaped(text, "xml") for text in (report.verdict, *answers, *report.notes))
    return suite


def _facts(report: ParityReport) -> dict[str, str]:
    facts = {
        "variant": report.variant,
        "source": report.source,
        "synthetic": str(report.synthetic).lower(),
        "weights": report.weights or "the only copy",
        "precision": report.precision,
        "inputs": str(report.inputs),
        "settings": json.dumps(dict(report.settings)),
    }
    for side in report.sides:
        facts[side.framework] = f"{side.versions}; reads {side.reads}"
    return facts


def _case(report: ParityReport, stage: StageComparison, seconds: float) -> ElementTree.Element:
    case = _element("testcase", classname=_class_name(report.title), name=stage.name, time=f"{seconds:.3f}")
    figures = (
        f"shape {list(stage.shape)}\nmax abs {stage.max_abs:.6e}\nmean abs {stage.mean_abs:.6e}\n"
        f"relative {stage.relative:.6e}\nscale {stage.scale:.6e}\ncosine {stage.cosine:.9f}\n"
        f"tolerance {stage.limit}\nreference {FRAMEWORK_NAMES[report.reference]}"
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
