"""The Keras MogaNet against the recorded outputs of the published code, and what that comparison can see."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from ckptkit.families.filling import tensors_of
from ckptkit.families.keras_backend import keras, tf
from ckptkit.families.moganet import keras_model
from tests.support.moganet_keras import GOLDEN_TOLERANCE, departure, loaded, shared_model
from tests.support.moganet_weights import GOLDEN_CASES, load_golden

STAGE_TOLERANCE = 1e-5
"""Of the map's standard deviation, for single values; 4.3e-6 was measured."""

STATISTICS_TOLERANCE = 1e-6
"""Of the map's standard deviation, for its mean and standard deviation; 2.1e-7 was measured."""


@pytest.fixture(
    scope="module",
    params=[
        case if variant == "moganet-xt" else pytest.param(case, marks=pytest.mark.slow)
        for case, (variant, *_) in GOLDEN_CASES.items()
    ],
)
def recorded(request):
    """Return a recorded case, the model and what it gives for the case's input."""
    case = load_golden(request.param)
    if case.variant == "moganet-xt":
        model = shared_model(case.attn_force_fp32)
    else:
        model = loaded(case.variant, attn_force_fp32=case.attn_force_fp32)
    outputs = model.forward_stages(case.input)
    return case, model, {name: np.asarray(output) for name, output in outputs.items()}


def assert_recorded(output, case, name):
    """Compare a channels-last map with the statistics and first values recorded of it, which are NCHW."""
    wide, std = output.astype(np.float64), float(case.arrays[f"{name}_std"])
    assert wide.mean() == pytest.approx(float(case.arrays[f"{name}_mean"]), abs=STATISTICS_TOLERANCE * std)
    assert wide.std() == pytest.approx(std, rel=STATISTICS_TOLERANCE)
    first = case.arrays[f"{name}_first8"]
    assert len(first) == min(8, output.shape[2])
    np.testing.assert_allclose(wide[0, 0, :8, 0], first, rtol=0, atol=STAGE_TOLERANCE * std)


def test_input_is_the_recorded_one(recorded):
    case, _, _ = recorded
    np.testing.assert_array_equal(case.input[0, 0, :8, 0], case.arrays["x_first8"])
    assert case.input.astype(np.float64).std() == pytest.approx(float(case.arrays["x_std"]), rel=1e-6)


def test_logits_are_the_recorded_ones(recorded):
    case, _, outputs = recorded
    assert list(outputs) == ["stage1", "stage2", "stage3", "stage4", "logits"]
    assert outputs["logits"].shape == case.logits.shape
    assert departure(outputs["logits"], case.logits) <= GOLDEN_TOLERANCE
    if "logits_f64" in case.arrays:
        assert departure(outputs["logits"], case.arrays["logits_f64"]) <= GOLDEN_TOLERANCE


@pytest.mark.parametrize("stage", keras_model.STAGES)
def test_stage_is_the_recorded_one(recorded, stage):
    case, _, outputs = recorded
    batch, channels, height, width = case.arrays[f"{stage}_shape"]
    output = outputs[stage]
    assert output.shape == (batch, height, width, channels)
    assert_recorded(output, case, stage)
    channel_means = output.astype(np.float64).mean(axis=(0, 1, 2))
    atol = STAGE_TOLERANCE * float(case.arrays[f"{stage}_std"])
    np.testing.assert_allclose(channel_means, case.arrays[f"{stage}_chan_mean"], rtol=0, atol=atol)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_patch_embedding_is_the_recorded_one(recorded, number):
    case, model, outputs = recorded
    before = outputs[f"stage{number - 1}"] if number > 1 else case.input
    assert_recorded(model.patch_embeds[number - 1](before).numpy(), case, f"patch{number}")


def test_pooled_is_the_recorded_one(recorded):
    case, _, outputs = recorded
    pooled = keras_model.spatial_mean(outputs["stage4"]).numpy()[:, 0, 0]
    assert departure(pooled, case.arrays["pooled"]) <= GOLDEN_TOLERANCE


# --- what the comparison can see ----------------------------------------------------------------------------


def tensorflow_padding(layer, x):
    """Pad as TensorFlow's SAME does at stride 2: an even side gets its one zero at the end."""
    pads = [(1, 1) if side % 2 else (0, 1) for side in x.shape[1:3]]
    return layer(tf.pad(x, ((0, 0), *pads, (0, 0))))


def split_before_the_first_convolution(self, x):
    low, middle, high = tf.split(x, self.orders, axis=-1)
    low = tf.split(self.dw_conv0(x), self.orders, axis=-1)[0]
    return self.pw_conv(tf.concat((low, self.dw_conv1(middle), self.dw_conv2(high)), axis=-1))


def low_order_last(self, x):
    _, middle, high = self.orders
    middle, high, low = tf.split(self.dw_conv0(x), (middle, high, self.orders[0]), axis=-1)
    return self.pw_conv(tf.concat((low, self.dw_conv1(middle), self.dw_conv2(high)), axis=-1))


def not_dilated(name, kernel, dilation=1):
    return right_depthwise(name, kernel)


def gate_alone_twice(self, h):
    p = self.proj_1(h)
    p = keras_model.silu(p + self.sigma(p - keras_model.spatial_mean(p)))
    gate, value = keras_model.silu(self.gate(p)), keras_model.silu(self.value(p))
    return self.proj_2((keras_model.silu(gate) if self.attn_force_fp32 else gate) * value) + h


def no_mean_taken_off(self, h):
    p = self.proj_1(h)
    p = keras_model.silu(p + self.sigma(p))
    gate, value = (
        keras_model.activate_branch(branch(p), twice=self.attn_force_fp32)
        for branch in (self.gate, self.value)
    )
    return self.proj_2(gate * value) + h


def no_inner_shortcut(self, h):
    return right_attention(self, h) - h


def shortcut_before_the_norm(self, x):
    normalized = self.norm1(x)
    x = x + self.layer_scale_1 * (self.attn(normalized) - normalized + x)
    return x + self.layer_scale_2 * self.mlp(self.norm2(x))


def decompose_not_activated(self, x):
    y = keras_model.gelu(self.dwconv(self.fc1(x)))
    return self.fc2(y + self.sigma(y - self.decompose(y)))


right_depthwise = keras_model.depthwise_conv
right_attention = keras_model.MultiOrderGatedAggregation.call

MISTAKES = {
    "BatchNorm epsilon 1e-3": ("BATCH_NORM_EPSILON", 1e-3),
    "BatchNorm epsilon 1e-6": ("BATCH_NORM_EPSILON", 1e-6),
    "tanh GELU": ("gelu", lambda x: keras.ops.gelu(x, approximate=True)),
    "TensorFlow's padding": ("strided_conv", tensorflow_padding),
    "value split before its first convolution": ("MultiOrderDWConv.call", split_before_the_first_convolution),
    "first eighth of the value taken last": ("MultiOrderDWConv.call", low_order_last),
    "dilation left out": ("depthwise_conv", not_dilated),
    "no mean taken off in attention": ("MultiOrderGatedAggregation.call", no_mean_taken_off),
    "gate alone activated twice": ("MultiOrderGatedAggregation.call", gate_alone_twice),
    "no shortcut inside attention": ("MultiOrderGatedAggregation.call", no_inner_shortcut),
    "shortcut inside attention from before the norm": ("MogaBlock.call", shortcut_before_the_norm),
    "decomposition without GELU": ("ChannelAggregation.call", decompose_not_activated),
}
"""Attribute of keras_model and what it becomes. The least of them, epsilon 1e-6, was measured to move the
logits by 4.8e-5 of their absolute maximum."""

MADE_WITH = {"BATCH_NORM_EPSILON", "depthwise_conv"}
"""What is looked up when a layer is made and not when it is called."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_shows(mistake, monkeypatch):
    case = load_golden("xtiny_224_fp32gate")
    attribute, wrong = MISTAKES[mistake]
    owner, _, name = attribute.rpartition(".")
    target = getattr(keras_model, owner) if owner else keras_model
    assert hasattr(target, name)
    monkeypatch.setattr(target, name, wrong)
    model = loaded(case.variant, attn_force_fp32=True) if attribute in MADE_WITH else shared_model(True)
    assert departure(model(case.input), case.logits) > 5 * GOLDEN_TOLERANCE


@pytest.mark.parametrize("attn_force_fp32", [False, True])
def test_the_other_gate_mode_shows_though_the_best_class_stays(attn_force_fp32):
    """The facts: logits move by about 0.1, and the largest often stays the largest."""
    case = load_golden("xtiny_224_fp32gate" if attn_force_fp32 else "xtiny_224_plain")
    found = shared_model(not attn_force_fp32)(case.input).numpy()
    assert 0.05 < np.abs(found - case.logits).max() < 0.15
    np.testing.assert_array_equal(found.argmax(axis=1), case.logits.argmax(axis=1))


SWAPPED_AXES = {
    "moganet/blocks1_0/attn/proj_1/kernel": (0, 1, 3, 2),
    "moganet/blocks3_4/attn/gate/kernel": (0, 1, 3, 2),
    "moganet/blocks4_1/attn/value/dw_conv2/kernel": (1, 0, 2, 3),
    "moganet/blocks2_0/mlp/dwconv/kernel": (1, 0, 2, 3),
    "moganet/patch_embed3/projection/kernel": (1, 0, 2, 3),
}
"""Axes of the same length, which no check of shapes can tell apart."""


@pytest.fixture(scope="module")
def model_to_change():
    return loaded("moganet-xt")


@pytest.mark.parametrize("name", SWAPPED_AXES)
def test_swapped_axes_show(name, model_to_change):
    case = load_golden("xtiny_224_plain")
    variable = tensors_of(model_to_change)[name]
    right = variable.numpy()
    variable.assign(np.transpose(right, SWAPPED_AXES[name]))
    wrong_logits = model_to_change(case.input)
    variable.assign(right)
    assert departure(wrong_logits, case.logits) > 5 * GOLDEN_TOLERANCE
