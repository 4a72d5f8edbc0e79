"""MOAT's tables against the names and shapes that the published code itself creates."""

from __future__ import annotations

import json
import math

import pytest

from ckptkit.families.base import Structure, get_family
from tests.conftest import REPOSITORY

PUBLISHED = json.loads((REPOSITORY / "tests/golden/moat/moat_variables.json").read_text())
MOAT = get_family("moat")
CASES = [(variant, pos_emb) for variant in PUBLISHED for pos_emb in (True, False)]


def published(variant, pos_emb):
    return [row for row in PUBLISHED[variant]["variables"] if pos_emb or "relative_position" not in row[0]]


def test_all_nine_variants():
    assert set(MOAT.variants) == set(PUBLISHED)


@pytest.mark.parametrize(("variant", "pos_emb"), CASES)
def test_names_and_shapes_are_the_published_ones(variant, pos_emb):
    table = MOAT.table("deeplab2", variant, Structure(pos_emb))
    expected = {name: tuple(shape) for name, shape, _ in published(variant, pos_emb)}
    assert {b.external: b.external_shape for b in table.bindings} == expected
    trainable = {name for name, _, trainable in published(variant, pos_emb) if trainable}
    assert {b.external for b in table.bindings if b.trainable} == trainable


@pytest.mark.parametrize(("variant", "pos_emb"), CASES)
def test_parameter_counts_are_exact(variant, pos_emb):
    for layout in MOAT.layouts:
        with_tables = pos_emb and layout != "wd-tagger"
        key = "trainable_parameters" if with_tables else "trainable_parameters_noposemb"
        assert MOAT.table(layout, variant, Structure(pos_emb)).parameters == PUBLISHED[variant][key]


@pytest.mark.parametrize("layout", MOAT.layouts)
@pytest.mark.parametrize("variant", PUBLISHED)
def test_shapes_of_both_sides_hold_the_same_elements(variant, layout):
    for binding in MOAT.table(layout, variant, Structure()).bindings:
        assert math.prod(binding.external_shape) == math.prod(binding.canonical_shape)


@pytest.mark.parametrize("variant", PUBLISHED)
def test_without_classes_there_is_no_head(variant):
    body = MOAT.table("torch", variant, Structure(num_classes=None))
    whole = MOAT.table("torch", variant, Structure())
    assert {b.canonical for b in whole.bindings} - {b.canonical for b in body.bindings} == {
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    }
