"""The tree of modules: every number once, children that add up."""

from __future__ import annotations

from fractions import Fraction

import pytest

from ckptkit.analysis.counting import Count, Tally
from ckptkit.analysis.modules import REST, module_tree
from ckptkit.analysis.profile import profile, subject_of
from ckptkit.families.base import family_of_variant


@pytest.fixture
def toy():
    """Two lists of layers in a list, a layer beside them, and a parameter of the model itself."""
    from torch import nn

    model = nn.Module()
    model.scale = nn.Parameter(nn.init.ones_(nn.Linear(5, 1).weight.detach()))
    model.stages = nn.ModuleList(
        [nn.ModuleList([nn.Linear(2, 3), nn.Linear(3, 2)]), nn.ModuleList([nn.Linear(2, 2)])]
    )
    model.norm = nn.BatchNorm2d(4)
    return model


def count(multiply_adds, products=0):
    return Count(1, Fraction(products), Fraction(multiply_adds))


def test_a_toy_model(toy):
    tally = Tally(
        {
            ("stages.0.0", "addmm"): count(8, 6),
            ("stages.0.0", "gelu"): count(3),
            ("stages.0.1", "addmm"): count(7, 6),
            ("norm", "native_batch_norm"): count(Fraction(1, 2)),
            ("", "mean"): count(4),
        },
        {},
    )
    rows = [
        (level, row.name, row.type, row.parameters, row.products, row.multiply_adds)
        for level, row in module_tree(toy, tally).rows(9)
    ]
    assert rows == [
        (0, "", "Module", 5 + 9 + 8 + 6 + 8, 12, Fraction(45, 2)),
        (1, "stages.0", "2 × Linear", 17, 12, 18),
        (2, "stages.0.0", "Linear", 9, 6, 11),
        (2, "stages.0.1", "Linear", 8, 6, 7),
        (1, "stages.1", "1 × Linear", 6, 0, 0),
        (2, "stages.1.0", "Linear", 6, 0, 0),
        (1, "norm", "BatchNorm2d", 8, 0, Fraction(1, 2)),  # its statistics are no parameters
        (1, REST, "", 5, 0, 4),
    ]


def test_depth_cuts_rows_and_json_alike(toy):
    tree = module_tree(toy, Tally({}, {}))
    assert [row.name for _, row in tree.rows(0)] == [""]
    assert [row.name for _, row in tree.rows(1)] == ["", "stages.0", "stages.1", "norm", REST]
    assert "modules" not in tree.to_json(0)
    assert [module["name"] for module in tree.to_json(1)["modules"]] == ["stages.0", "stages.1", "norm", REST]
    assert all("modules" not in module for module in tree.to_json(1)["modules"])
    assert len(tree.to_json()["modules"][0]["modules"]) == 2


def leaves(module, depth):
    """Rows that nothing below them is shown of."""
    if depth == 0 or not module.children:
        return [module]
    return [leaf for child in module.children for leaf in leaves(child, depth - 1)]


@pytest.mark.parametrize("variant", ["tiny-moat0", "moganet-xt"])
def test_the_rows_of_a_real_model_add_up_at_every_depth(variant):
    found = profile(subject_of(variant, family_of_variant(variant), resolution=(64, 96)))
    for depth in range(6):
        shown = leaves(found.root, depth)
        assert sum(row.parameters for row in shown) == found.parameters
        assert sum(row.multiply_adds for row in shown) == found.multiply_adds
        assert sum(row.products for row in shown) == found.products
    assert sum(one.multiply_adds for one in found.operations.values()) == found.multiply_adds
