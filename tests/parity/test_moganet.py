"""MogaNet through a parity run: every variant, both gates, and faults that must show."""

from __future__ import annotations

from itertools import product

import pytest

from ckptkit.families.base import get_family
from ckptkit.models.synth import Synthetic, synthetic_checkpoint, write_file
from ckptkit.parity.compare import TOLERANCES
from ckptkit.registry.loading import load_registry
from ckptkit.workspace import Located
from tests.support.parity_cases import (
    convert_to,
    overwrite_metadata,
    overwrite_tensor,
    require_frameworks,
    run_parity,
)
from tests.support.toys import MOGANET, toy_variants

pytestmark = pytest.mark.usefixtures("keras_built_once")
SIDE = 64
OUTPUTS = ("stage1", "stage2", "stage3", "stage4", "logits")
QUICK = {("moganet-xt", False, "openmixup"), ("moganet-xt", True, "torch")}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file of the toy, as its family publishes them."""
    with toy_variants():
        yield write_file(Synthetic(MOGANET, twins=True), tmp_path_factory.mktemp("m") / "m.pth")


@pytest.mark.parametrize(
    ("variant", "attn_force_fp32", "layout"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in product(get_family("moganet").variants, (False, True), ("openmixup", "torch"))
    ],
)
def test_both_frameworks_agree(variant, attn_force_fp32, layout):
    require_frameworks()
    with synthetic_checkpoint(Synthetic(variant, layout=layout)) as located:
        report = run_parity(located, resolution=SIDE, settings={"attn_force_fp32": attn_force_fp32})
    assert report.ok, report.verdict
    assert report.settings == {"attn_force_fp32": attn_force_fp32}
    assert report.reference == "torch", "PyTorch reads the source, Keras its conversion to TensorFlow"
    assert {side.framework: (side.format, side.layout) for side in report.sides} == {
        "torch": ("torch", layout),
        "keras": ("tf", "keras"),
    }
    assert tuple(stage.name for stage in report.stages) == OUTPUTS


def test_an_unknown_gate_is_compared_both_ways(published):
    require_frameworks()
    report = run_parity(Located(published), resolution=SIDE)
    assert report.ok, report.verdict
    gates = [f" (attn_force_fp32 {gate})" for gate in ("false", "true")]
    assert [stage.name for stage in report.stages] == [name + gate for gate in gates for name in OUTPUTS]
    assert report.settings == {"attn_force_fp32": "both"}
    scales = {stage.name: stage.scale for stage in report.stages}
    assert abs(scales["stage4" + gates[0]] - scales["stage4" + gates[1]]) > 1e-3, "two functions ran"
    logits = [stage for stage in report.stages if stage.name.startswith("logits")]
    assert all(not stage.limit.relative for stage in logits)
    assert report.top is not None
    assert any("both functions" in note for note in report.notes)


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_both_sides_take_the_copy_asked_for(published, weights):
    require_frameworks()
    report = run_parity(
        Located(published), resolution=SIDE, weights=weights, settings={"attn_force_fp32": True}
    )
    assert report.ok, report.verdict
    assert report.weights == weights
    assert any(f"both sides took {weights}" in note for note in report.notes)


def test_the_entry_says_the_gate(published):
    require_frameworks()
    entry = load_registry()["moganet-xt-224-timm"].model_copy(update={"variant": MOGANET})
    report = run_parity(Located(published, entry), resolution=SIDE)
    assert report.ok
    assert report.settings == {"attn_force_fp32": False}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_has_a_tolerance_of_its_own(published, dtype):
    require_frameworks()
    settings = {"attn_force_fp32": True}
    report = run_parity(Located(published), resolution=SIDE, dtype=dtype, settings=settings)
    assert report.ok, report.verdict
    assert report.precision == dtype
    roundoff = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    assert all(stage.limit.value == 10 * roundoff for stage in report.stages)
    assert all(stage.relative > roundoff / 20 for stage in report.stages), "the rounding shows"
    assert max(stage.relative for stage in report.stages) < 5 * roundoff, "half of the tolerance is unused"
    exact = run_parity(
        Located(published), resolution=SIDE, dtype=dtype, settings=settings, tolerance=TOLERANCES["float32"]
    )
    assert not exact.ok


class TestFaultsShow:
    """A converted file with one fault never agrees; logits alone, or top-1, would let some of these pass."""

    @pytest.fixture
    def converted(self, published, tmp_path):
        require_frameworks()
        return convert_to(
            published, tmp_path, "safetensors", layout="keras", settings={"attn_force_fp32": True}
        )

    def departure(self, published, converted):
        report = run_parity(
            Located(published), converted=converted, resolution=SIDE, settings={"attn_force_fp32": True}
        )
        return report.first_departure

    def test_without_a_fault(self, published, converted):
        assert self.departure(published, converted) is None

    def test_the_wrong_gate(self, published, converted):
        overwrite_metadata(converted, attn_force_fp32="false")
        assert self.departure(published, converted) == "stage1"

    def test_values_that_small_maps_never_reach_are_said_to_be_unread(self, published, converted):
        """A corner of a 7×7 kernel with dilation 3 looks 9 places away; stage 2 has 4×4 of them here."""
        overwrite_tensor(converted, "moganet/blocks2_0/attn/value/dw_conv2/kernel", b"\x00\x00\x40\x40")
        report = run_parity(
            Located(published), converted=converted, resolution=32, settings={"attn_force_fp32": True}
        )
        assert report.ok
        assert any("smaller than the 64 pixels" in note and "kernels" in note for note in report.notes)

    @pytest.mark.parametrize(
        ("name", "stage"),
        [
            ("moganet/patch_embed1/conv_0/kernel", "stage1"),
            ("moganet/blocks2_0/attn/value/pw_conv/kernel", "stage2"),
            ("moganet/blocks3_0/mlp/sigma/scale", "stage3"),
            ("moganet/norm4/moving_variance", "stage4"),
            ("moganet/head/bias", "logits"),
        ],
    )
    def test_one_value_of_one_tensor(self, published, converted, name, stage):
        overwrite_tensor(converted, name, b"\x00\x00\x40\x40")  # 3.0 in place of a value near 0 or 1
        assert self.departure(published, converted) == stage


class TestKerasWeights:
    """A ``.weights.h5`` goes into the Keras model by Keras' own loader."""

    @pytest.fixture
    def converted(self, published, tmp_path):
        require_frameworks()
        return convert_to(published, tmp_path, "keras", settings={"attn_force_fp32": True})

    def test_agrees(self, published, converted):
        report = run_parity(
            Located(published), converted=converted, resolution=SIDE, settings={"attn_force_fp32": True}
        )
        assert report.ok, report.verdict
        assert [(side.framework, side.layout) for side in report.sides] == [
            ("keras", "keras-h5"),
            ("torch", "openmixup"),
        ]
        back = run_parity(Located(converted), resolution=SIDE)
        assert back.ok and back.reference == "keras"

    def test_two_tensors_of_one_shape_exchanged(self, published, converted):
        h5py = pytest.importorskip("h5py")
        with h5py.File(converted, "r+") as file:
            attention = file["blocks/moga_block_1/attn"]
            one, other = attention["proj_1/vars/0"], attention["gate/vars/0"]
            one[...], other[...] = other[...], one[...]
        report = run_parity(
            Located(published), converted=converted, resolution=SIDE, settings={"attn_force_fp32": True}
        )
        assert report.first_departure == "stage2"
