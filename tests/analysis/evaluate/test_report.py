"""Intervals, verdicts and tests of significance."""

from __future__ import annotations

import math

import pytest

from ckptkit.analysis.evaluate.report import Score, rounding_of, sign_test, wilson_interval

Z = 1.959963984540054


@pytest.mark.parametrize(("hits", "images"), [(0, 7), (1, 7), (5, 10), (10, 10), (38_250, 50_000), (3, 1000)])
def test_the_interval_ends_where_the_score_test_rejects(hits: int, images: int):
    share = hits / images
    for bound in wilson_interval(hits, images):
        if bound in (0.0, 1.0):
            assert share == bound
            continue
        # Wilson's interval is all p with |share - p| <= z sqrt(p (1 - p) / n); at its ends both are equal
        assert abs(share - bound) == pytest.approx(Z * math.sqrt(bound * (1 - bound) / images), rel=1e-9)


def test_published_values_of_the_interval():
    """Newcombe (1998), Statistics in Medicine 17, table I, method 3: 81 of 263, 15 of 148, 0 of 20."""
    for hits, images, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)]:
        assert wilson_interval(hits, images) == pytest.approx((low, high), abs=5e-5)


def test_nothing_seen_says_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("hits", "published", "verdict"),
    [
        (38_250, 76.5, "inside"),
        (38_250, None, "not compared"),
        (38_000, 76.5, "measured below"),
        (38_500, 76.5, "measured above"),
        # 37 999 of 50 000 reach up to 76.3704 %: what rounds to 76.4 may be 76.35, what rounds to 76.5 not
        (37_999, 76.4, "inside"),
        (37_999, 76.5, "measured below"),
        (37_999, 76.41, "measured below"),
        # and down to 75.6217 %: 75.6 may be 75.65, 75.5 not
        (37_999, 75.6, "inside"),
        (37_999, 75.5, "measured above"),
    ],
)
def test_a_rounded_figure_is_inside_when_what_it_stands_for_may_be(hits, published, verdict):
    assert Score(1, hits, 50_000, published).verdict == verdict


def test_what_is_not_compared_contradicts_nothing():
    assert Score(1, 0, 50_000, 76.5, "the weights are synthetic").verdict == "not compared"


def test_rounding():
    assert [rounding_of(value) for value in (80, 80.1, 80.25)] == [0.05, 0.05, 0.005]


@pytest.mark.parametrize(("one", "other"), [(0, 0), (0, 1), (2, 9), (9, 2), (5, 5), (0, 12)])
def test_the_sign_test_counts_all_outcomes(one: int, other: int):
    cases = one + other
    as_uneven = [k for k in range(cases + 1) if abs(2 * k - cases) >= abs(one - other)]
    exact = sum(math.comb(cases, k) for k in as_uneven) / 2**cases
    assert sign_test(one, other) == pytest.approx(exact, abs=1e-11)
