"""The rule algebra, against plain numpy written out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ckptkit.rules.language import OPS, Definition, Ignore, Layout, Op, Rule, expand

RNG = np.random.default_rng(3)

# op → (external shape, canonical shape, the same change written with plain numpy)
CASES = {
    "identity": ((5, 7), (5, 7), lambda a: a),
    "conv": ((3, 5, 8, 16), (16, 8, 3, 5), lambda a: np.einsum("hwio->oihw", a)),
    "depthwise": ((3, 5, 8, 1), (8, 1, 3, 5), lambda a: np.einsum("hwcm->cmhw", a)),
    "heads_in": ((12, 4, 3), (12, 12), lambda a: np.stack([a[:, h, d] for h in range(4) for d in range(3)])),
    "heads_out": (
        (4, 3, 12),
        (12, 12),
        lambda a: np.stack([a[h, d] for h in range(4) for d in range(3)], axis=1),
    ),
    "flatten": ((4, 3), (12,), lambda a: np.concatenate(list(a))),
    "conv1x1_to_linear": ((1, 1, 6, 10), (10, 6), lambda a: a[0, 0].T),
    "linear": ((6, 10), (10, 6), lambda a: a.T),
    "linear_to_conv1x1": ((6, 10), (10, 6, 1, 1), lambda a: a.T[:, :, None, None]),
    "channels": ((6,), (1, 6, 1, 1), lambda a: a[None, :, None, None]),
}


def test_every_op_has_a_case():
    assert CASES.keys() == OPS.keys()


@pytest.mark.parametrize("name", OPS)
def test_op_is_what_numpy_does_and_its_inverse_undoes_it(name):
    op = OPS[name]
    external, canonical, expected = CASES[name]
    array = RNG.standard_normal(external).astype(np.float32)
    turned = op.to_canonical(array, canonical)
    np.testing.assert_array_equal(turned, expected(array))
    assert np.shares_memory(turned, array), "ops are views; copying is the writer's business"
    back = op.to_external(turned, external)
    np.testing.assert_array_equal(back, array)
    assert np.shares_memory(back, array)
    np.testing.assert_array_equal(op.inverse.to_canonical(np.ascontiguousarray(turned), external), array)
    assert op.external_shape(canonical, {"d": 3}) == external


@pytest.mark.parametrize(
    ("op", "array_shape", "shape"),
    [
        ("conv", (3, 3, 8), (16, 8, 3, 3)),
        ("conv", (3, 3, 8, 16), (8, 16, 3, 3)),
        ("depthwise", (3, 3, 8, 2), (8, 1, 3, 3)),
        ("heads_in", (12, 4, 3), (11, 12)),
        ("conv1x1_to_linear", (3, 3, 6, 10), (10, 6)),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(op, array_shape, shape):
    with pytest.raises(ValueError, match=r"axis|axes|reshape|argument"):
        OPS[op].to_canonical(np.zeros(array_shape, np.float32), shape)


def test_external_shape_needs_a_divisor():
    with pytest.raises(ValueError, match="cannot be split"):
        OPS["heads_in"].external_shape((10, 8), {"d": 3})


LAYOUT = Layout(
    "tf",
    (
        Rule("b.{n}.w", "block_{n:02d}/kernel", "linear", aliases=("old_{n}/kernel",)),
        Rule("b.{n}.g", "block_{n:02d}/gamma"),
    ),
    ignores=(
        Ignore("slots", r"(?P<variable>.+)/Adam", "optimizer"),
        Ignore("step", r"global_step", "counter"),
    ),
)
DEFINITIONS = (
    Definition("b.{n}.w", ("out", "in"), "block"),
    Definition("b.{n}.g", ("out",), "block", trainable=False, part="bn_statistics"),
)
SITES = {"block": [{"n": n, "in": 4 + n, "out": 8} for n in range(3)]}


def test_expansion_names_shapes_and_counts():
    table = expand(LAYOUT, DEFINITIONS, SITES)
    assert {b.external: b.external_shape for b in table.bindings} == {
        "block_00/kernel": (4, 8),
        "block_01/kernel": (5, 8),
        "block_02/kernel": (6, 8),
        "block_00/gamma": (8,),
        "block_01/gamma": (8,),
        "block_02/gamma": (8,),
    }
    assert table.parameters == (4 + 5 + 6) * 8
    assert table.by_external["old_1/kernel"] is table.by_canonical["b.1.w"]


def test_an_empty_set_of_sites_drops_its_tensors():
    assert expand(LAYOUT, DEFINITIONS, {"block": []}).bindings == ()


def test_a_definition_without_a_rule_is_an_error():
    with pytest.raises(KeyError):
        expand(LAYOUT, [Definition("c.{n}", (1,), "block")], SITES)


def test_a_layout_has_no_names_for_what_it_lacks():
    lacking = Layout("lacking", LAYOUT.rules[:1], lacks={"bn_statistics": Ignore("statistics", "", "none")})
    table = expand(lacking, DEFINITIONS, SITES)
    assert [row.canonical for row in table.bindings] == ["b.0.w", "b.1.w", "b.2.w"]


def test_renames_come_after_expansion_one_after_the_other():
    renamed = Layout(
        "renamed",
        (Rule("b.{n}.w", "block_{n}/w", "linear", aliases=("old_block_{n}/w",)), Rule("b.{n}.g", "g{n}")),
        renames=(("block_", "item_"), ("item_0/", "item/"), ("item_2/", "last/")),
    )
    table = expand(renamed, DEFINITIONS, SITES)
    assert [row.external for row in table.bindings if row.op == OPS["linear"]] == [
        "item/w",
        "item_1/w",
        "last/w",
    ]
    assert table.by_external["old_item/w"] is table.by_canonical["b.0.w"]


def test_two_tensors_with_one_name_are_an_error():
    clash = Layout("clash", (Rule("b.{n}.w", "same/{n}"), Rule("b.{n}.g", "same/{n}")))
    with pytest.raises(ValueError, match="share a name"):
        expand(clash, DEFINITIONS, SITES)


@pytest.mark.parametrize(
    ("tensor", "rule"),
    [
        ("global_step", "step"),
        ("block_00/kernel/Adam", "slots"),
        ("block_07/kernel/Adam", None),
        ("global_step_2", None),
        ("block_00/kernel", None),
    ],
)
def test_ignore_rules_cover_known_variables_only(tensor, rule):
    table = expand(LAYOUT, DEFINITIONS, SITES)
    found = next((i.name for i in LAYOUT.ignores if i.matches(tensor, table.by_external)), None)
    assert found == rule


def test_ops_with_the_same_patterns_are_equal():
    assert Op("conv", "h w i o", "o i h w") == OPS["conv"]
    assert OPS["conv"].inverse.inverse.external == OPS["conv"].external
