"""Verdicts on one figure."""

from __future__ import annotations

import pytest

from ckptkit.analysis.figures import check_figure
from ckptkit.registry import KnownDeviation


def known(published):
    return KnownDeviation(figure="flops", published=published, reason="the table is cut off")


@pytest.mark.parametrize(
    ("counted", "published", "listed", "verdict", "ok"),
    [
        (34_450_000_000, "34.5G", False, "exact", True),
        (34_550_000_000, "34.5G", False, "exact", True),
        (34_550_000_001, "34.5G", False, "close", True),
        (34_554_167_892, "34.5G", True, "known", True),
        (34_500_000_000, "34.5G", True, "stale", False),
        (35_190_000_000, "34.5G", False, "close", True),
        (33_810_000_000, "34.5G", False, "close", True),
        (35_190_000_001, "34.5G", False, "off", False),
        (33_809_999_999, "34.5G", False, "off", False),
        (40_000_000_000, "34.5G", True, "known", True),
        # It rounds, so it agrees, although one decimal leaves room for 2.4%.
        (1_638_000_000.5, "1.6B", False, "exact", True),
    ],
)
def test_verdicts(counted, published, listed, verdict, ok):
    check = check_figure("flops", counted, published, known(published) if listed else None)
    assert (check.verdict, check.ok) == (verdict, ok)
    assert check.to_json()["ok"] is ok


def test_what_is_said_of_them():
    assert check_figure("flops", 36e9, "34.5G").reason == "+4.3% off, and no known deviation"
    assert check_figure("flops", 34.56e9, "34.5G", known("34.5G")).reason == "the table is cut off"
    assert "rounds to the published 34.5G" in check_figure("flops", 34.5e9, "34.5G", known("34.5G")).reason
    assert check_figure("flops", 30e9, "40G").deviation == -0.25
