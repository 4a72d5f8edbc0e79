"""The report: verdicts, and JSON that another program can read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ckptkit.compare.verify import Check, VerifyReport
from ckptkit.compare.verify.report import counted


def report_of(*checks: Check) -> VerifyReport:
    return VerifyReport(
        "m", Path("m.npz"), None, "npz", "moat", "moat0", "torch", None, False, checks, ("odd",)
    )


OK, BAD, LEFT = (
    Check("values", "ok", "all finite"),
    Check("parameter count", "failed", "1 too many", ("a", "b")),
    Check("checksum", "skipped", "no entry"),
)


@pytest.mark.parametrize(
    ("checks", "ok", "damaged", "verdict"),
    [
        ((OK,), True, False, "m: holds, by 1 check"),
        ((OK, LEFT), True, False, "m: no fault in 1 of 2 checks; not checked: checksum"),
        ((OK, BAD), False, False, "m: does not hold: parameter count"),
        ((Check("container", "failed", ""), BAD, LEFT), False, True, None),
    ],
)
def test_verdict(checks, ok, damaged, verdict):
    report = report_of(*checks)
    assert (report.ok, report.damaged) == (ok, damaged)
    assert report.verdict == (
        verdict or "m: does not hold: container, parameter count; not checked: checksum"
    )


def test_json_holds_every_check_and_item():
    values = json.loads(json.dumps(report_of(OK, BAD).to_json()))
    assert values["ok"] is False
    assert values["path"] == "m.npz"
    assert values["notes"] == ["odd"]
    assert values["checks"][1] == {
        "name": "parameter count",
        "status": "failed",
        "detail": "1 too many",
        "items": ["a", "b"],
    }


@pytest.mark.parametrize(("count", "line"), [(0, "0 faults"), (1, "1 fault"), (1234, "1,234 faults")])
def test_counted(count, line):
    assert counted(count, "fault") == line
