"""The report, its JSON and its JUnit XML, on made-up figures."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from ckptkit.parity.compare import Limit, StageComparison, TopAgreement
from ckptkit.parity.inputs import Inputs
from ckptkit.parity.report import Failure, ParityReport, Side, junit_document

STAGE = Limit(5e-5, relative=True)


def stage(name: str, relative: float = 1e-6, verdict: Any = "agrees") -> StageComparison:
    reason = "" if verdict == "agrees" else f"difference {relative:.1e} where {STAGE} is allowed"
    return StageComparison(
        name, (2, 8, 8, 4), 4.0, 4 * relative, relative, relative, 0.999, STAGE, verdict, reason
    )


def report(*stages: StageComparison, **fields: Any) -> ParityReport:
    keras = Side(
        "keras", "tensorflow 2.21.0, keras 3.15.0", "the original", "tf", "deeplab2", "float32", {}, 1.0
    )
    torch = replace(keras, framework="torch", versions="torch 2.13.0", format="safetensors", layout="torch")
    values: dict[str, Any] = {
        "name": "tiny-moat0-256",
        "family": "moat",
        "variant": "tiny-moat0",
        "pos_emb": True,
        "num_classes": 1000,
        "source": "folder/model.ckpt",
        "synthetic": False,
        "weights": None,
        "reference": "keras",
        "sides": (replace(keras, settings={"pool_size": 2, "window_size": None}), torch),
        "inputs": Inputs(2, 64, 64, seed=20260101),
        "precision": "float32",
        "stages": stages or (stage("stage1"), stage("stage2", 2e-6), stage("logits")),
        "top": TopAgreement(2, 2, 2, 5, one_answer=False),
        "notes": ("something to know",),
        "seconds": 3.5,
    }
    return ParityReport(**{**values, **fields})


AGREEING = report()
DEPARTED = report(stage("stage1"), stage("stage2", 1e-2, "differs"), stage("logits", 1e-1, "differs"))


def test_agreement_is_said_in_one_line():
    assert AGREEING.ok
    assert AGREEING.first_departure is None
    assert AGREEING.verdict == (
        "agree: tiny-moat0-256 (float32): all 3 outputs within tolerance, "
        "largest relative difference 2.0e-06 (stage2)"
    )


def test_the_first_departure_is_named():
    assert not DEPARTED.ok
    assert DEPARTED.first_departure == "stage2"
    assert DEPARTED.verdict.startswith(
        "DISAGREE from stage2 on: tiny-moat0-256 (float32): difference 1.0e-02"
    )


def test_a_departure_of_the_logits_alone():
    departed = report(stage("stage1"), stage("logits", 1e-1, "differs"))
    assert departed.first_departure == "logits"
    assert departed.verdict.startswith("DISAGREE on the logits:")


def test_a_report_without_any_output_is_no_agreement():
    assert not replace(AGREEING, stages=()).ok


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"synthetic": True}, "synthetic weights, float32"),
        ({"precision": "bfloat16"}, "rounded to bfloat16"),
    ],
)
def test_what_qualifies_the_verdict_stands_in_it(fields: dict[str, Any], words: str):
    assert words in report(**fields).verdict


def test_json_holds_everything_and_no_nan():
    spoiled = replace(stage("stage1"), max_abs=math.nan, relative=math.inf, verdict="not finite")
    found = json.loads(json.dumps(report(spoiled, stage("logits")).to_json(), allow_nan=False))
    assert found["ok"] is False
    assert found["first_departure"] == "stage1"
    assert found["stages"][0]["max_abs"] is None
    assert found["stages"][0]["relative"] is None
    assert found["stages"][1] == {
        "name": "logits",
        "shape": [2, 8, 8, 4],
        "scale": 4.0,
        "max_abs": 4e-6,
        "mean_abs": 1e-6,
        "relative": 1e-6,
        "cosine": 0.999,
        "tolerance": 5e-5,
        "tolerance_is": "relative",
        "verdict": "agrees",
        "reason": "",
    }
    assert found["settings"] == {"pool_size": 2, "window_size": None}
    assert found["sides"]["torch"]["format"] == "safetensors"
    assert found["inputs"]["seed"] == 20260101
    assert found["top"] == {"batch": 2, "top1": 2, "top5": 2, "classes": 5, "one_answer": False}


# What CI systems read, after Jenkins' junit-10.xsd: tag -> (required attributes, others, children in order).
SCHEMA: dict[str, tuple[set[str], set[str], list[str]]] = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors", "disabled"}, ["testsuite"]),
    "testsuite": (
        {"name", "tests"},
        {"failures", "errors", "time", "disabled", "skipped", "timestamp", "hostname", "id", "package"},
        ["properties", "testcase", "system-out", "system-err"],
    ),
    "properties": (set(), set(), ["property"]),
    "property": ({"name", "value"}, set(), []),
    "testcase": (
        {"name", "classname"},
        {"time", "assertions", "status"},
        ["skipped", "error", "failure", "system-out", "system-err"],
    ),
    "failure": (set(), {"message", "type"}, []),
    "error": (set(), {"message", "type"}, []),
    "system-out": (set(), set(), []),
}


def assert_fits_schema(element: ElementTree.Element) -> None:
    required, optional, children = SCHEMA[element.tag]
    assert required <= set(element.keys()) <= required | optional, element.tag
    order = [children.index(child.tag) for child in element]
    assert order == sorted(order), f"children of {element.tag} out of order"
    for child in element:
        assert_fits_schema(child)


def test_junit_has_one_case_per_output_and_figures_in_failures():
    root = ElementTree.fromstring(junit_document([DEPARTED]).encode())
    assert_fits_schema(root)
    assert root.attrib == {
        "name": "ckptkit parity",
        "tests": "3",
        "failures": "2",
        "errors": "0",
        "time": "3.500",
    }
    (suite,) = root
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == ["stage1", "stage2", "logits"]
    assert {case.get("classname") for case in cases} == {"ckptkit.parity.tiny-moat0-256"}
    assert [case.find("failure") is not None for case in cases] == [False, True, True]
    failure = cases[1].find("failure")
    assert failure is not None
    assert failure.get("message") == DEPARTED.stages[1].reason
    assert "max abs 4.000000e-02" in (failure.text or "")
    assert "tolerance 5.0e-05 relative" in (failure.text or "")
    assert sum(float(case.get("time", "0")) for case in cases) == pytest.approx(3.5)


def test_junit_counts_are_true_for_several_targets():
    results = [AGREEING, DEPARTED, Failure("broken.ckpt", "broken.ckpt: bad table magic", "FormatError")]
    root = ElementTree.fromstring(junit_document(results).encode())
    assert_fits_schema(root)
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("7", "2", "1")
    for suite in root:
        cases = suite.findall("testcase")
        assert suite.get("tests") == str(len(cases))
        for tag in ("failure", "error"):
            count = sum(case.find(tag) is not None for case in cases)
            assert suite.get(tag + "s") == str(count)
    error = root[2].find("testcase/error")
    assert error is not None
    assert (error.get("type"), error.get("message")) == ("FormatError", "broken.ckpt: bad table magic")


@pytest.mark.parametrize(
    "name", ['a<b>&"c".ckpt', "bell\x07and\x00null", "lone \udcff surrogate", "日本/模型.ckpt"]
)
def test_any_file_name_gives_well_formed_xml(name: str):
    document = junit_document([report(name=name, source=name), Failure(name, name, "NotFoundError")])
    root = ElementTree.fromstring(document.encode())
    assert_fits_schema(root)
    assert all("/" not in (case.get("classname") or "/") for case in root.iter("testcase"))
