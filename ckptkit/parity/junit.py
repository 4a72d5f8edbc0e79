"""Parity as JUnit XML, which CI systems show: one suite per target, one test case per output.

There is no standard, only what readers accept; this keeps to what Jenkins' published schema (junit-10.xsd)
and GitLab's and GitHub's readers have in common.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from ckptkit.base.errors import UsageError
from ckptkit.base.files import open_regular
from ckptkit.base.text import escaped
from ckptkit.parity.comparison import StageComparison
from ckptkit.parity.report import FRAMEWORK_NAMES, Failure, ParityReport

_HEAD_BYTES = 4096


def refuse_other_file(path: Path) -> None:
    """Refuse to replace what is no JUnit report; an older report is replaced by the next, as CI wants it.

    Raises
    ------
    UsageError
        Something else is there.
    """
    with (
        contextlib.suppress(OSError),
        open_regular(path) as file,
    ):  # nothing there, or a device: see StagedFile
        head = file.read(_HEAD_BYTES)
        if head and b"<testsuite" not in head:
            raise UsageError(f"{path} exists and is no JUnit report", hint="name another file")


def junit_document(results: Sequence[ParityReport | Failure]) -> str:
    """Write results as one JUnit XML document.

    A disagreement is a failure of its test case, a target that could not be compared an error.

    Parameters
    ----------
    results : sequence of ParityReport or Failure

    Returns
    -------
    str
        With an XML declaration; to be encoded as UTF-8.
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
