"""The three names of every MogaNet tensor, against the published state_dicts."""

from __future__ import annotations

import numpy as np
import pytest

from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.families.base import Structure, get_family
from ckptkit.families.recognition import recognise
from tests.support.moganet_weights import tensor_rows

FAMILY = get_family("moganet")
WHOLE = Structure(pos_emb=False)


def shapes(variant):
    """Canonical name → shape, as the published code has them."""
    return {row.name: row.shape for row in tensor_rows(variant)}


@pytest.mark.parametrize("variant", FAMILY.variants)
def test_the_torch_layout_is_the_timm_style_state_dict(variant):
    table = FAMILY.table("torch", variant, WHOLE)
    assert {row.external: row.external_shape for row in table.bindings} == shapes(variant)


@pytest.mark.parametrize("variant", FAMILY.variants)
def test_the_openmixup_layout_wraps_the_backbone(variant):
    table = FAMILY.table("openmixup", variant, WHOLE)
    expected = {}
    for name, shape in shapes(variant).items():
        head = {"head.weight": "head.fc.weight", "head.bias": "head.fc.bias"}
        expected[head.get(name, f"backbone.{name}")] = shape
    assert {row.external: row.external_shape for row in table.bindings} == expected


def keras_shape(name, shape):
    """Shape that Keras gives to the variable of a PyTorch tensor."""
    if name == "head.weight":
        return shape[::-1]
    if len(shape) != 4:
        return shape
    out, inside, height, width = shape
    if out == 1 and (height, width) == (1, 1) and "decompose" not in name:
        return (inside,)  # scales
    depthwise = "DW_conv" in name or "dwconv" in name
    return (height, width, out, 1) if depthwise else (height, width, inside, out)


@pytest.mark.parametrize("variant", FAMILY.variants)
def test_the_keras_layout_is_a_bijection_with_keras_shapes(variant):
    table = FAMILY.table("keras", variant, WHOLE)
    assert len({row.external for row in table.bindings}) == len(table.bindings) == len(shapes(variant))
    for row in table.bindings:
        assert row.external.startswith("moganet/")
        assert row.external_shape == keras_shape(row.canonical, row.canonical_shape), row.canonical


@pytest.mark.parametrize("layout", FAMILY.layouts)
def test_there_and_back_is_the_identity(layout):
    rng = np.random.default_rng(1)
    for row in FAMILY.table(layout, "moganet-xt", WHOLE).bindings:
        array = rng.standard_normal(row.canonical_shape)
        external = row.op.to_external(array, row.external_shape)
        assert external.shape == row.external_shape
        np.testing.assert_array_equal(row.op.to_canonical(external, row.canonical_shape), array)


@pytest.mark.parametrize("num_classes", [1000, 10, None])
@pytest.mark.parametrize("layout", FAMILY.layouts)
@pytest.mark.parametrize("variant", FAMILY.variants)
def test_every_variant_and_layout_is_recognised(variant, layout, num_classes):
    structure = Structure(False, num_classes)
    table = FAMILY.table(layout, variant, structure)
    specs = {
        row.external: TensorSpec(row.external, DTYPES["float32"], row.external_shape)
        for row in table.bindings
    }
    found = recognise(specs)
    assert found is not None
    assert (found.family.name, found.variant, found.layout) == ("moganet", variant, layout)
    assert found.structure == structure


def test_trained_averages_are_named_as_buffers_are():
    twin = FAMILY.layouts["openmixup"].second_copy
    assert twin.holds == "raw"
    assert (
        twin.of("backbone.blocks1.0.attn.value.DW_conv0.weight")
        == "ema_backbone_blocks1_0_attn_value_DW_conv0_weight"
    )
