"""Single layers of the Keras MogaNet against their definitions in plain numpy, in double precision."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from ckptkit.families.keras_backend import keras, tf
from ckptkit.families.moganet import keras_model
from tests.support.moganet_weights import philox_normal

NEAR = {"rtol": 0, "atol": 2e-5}


def built(layer, channels, *, key=100):
    """Build a layer, give each of its variables random values, and return these by path below the layer."""
    layer.build((None, None, None, channels))
    values = {}
    for number, variable in enumerate(layer.weights):
        value = philox_normal(key + number, tuple(variable.shape))
        if variable.path.endswith("moving_variance"):
            value = np.exp(value)
        if variable.path.endswith("kernel"):
            value /= math.sqrt(math.prod(value.shape[:2]) * (value.shape[2] if value.shape[3] != 1 else 1))
        variable.assign(value)
        values[variable.path.removeprefix(layer.path + "/")] = value.astype(np.float64)
    return values


def padded(image, before, after):
    sides = (before, after)
    return np.pad(image.astype(np.float64), ((0, 0), sides, sides, (0, 0)))


def gelu(x):
    return np.vectorize(lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))))(x)


def silu(x):
    return x / (1 + np.exp(-x))


def pointwise(values, name, x):
    return x @ values[f"{name}/kernel"][0, 0] + values[f"{name}/bias"]


def depthwise(values, name, x, dilation=1):
    """Sum over a dilated window by its definition; zeros beyond the map's edges."""
    kernel, bias = values[f"{name}/kernel"][..., 0], values[f"{name}/bias"]
    reach = dilation * (len(kernel) // 2)
    wide = padded(x, reach, reach)
    height, width = x.shape[1:3]
    total = np.zeros_like(wide[:, :height, :width])
    for i, j in itertools.product(range(len(kernel)), repeat=2):
        top, left = i * dilation, j * dilation
        total += wide[:, top : top + height, left : left + width] * kernel[i, j]
    return total + bias


def strided(values, name, x):
    """Every second 3×3 window, from one row and column of zeros before the map on."""
    kernel = values[f"{name}/kernel"]
    wide = padded(x, 1, 1)
    rows, columns = ((side + 1) // 2 for side in x.shape[1:3])
    out = np.empty((len(x), rows, columns, kernel.shape[-1]))
    for y, z in itertools.product(range(rows), range(columns)):
        out[:, y, z] = np.einsum("nijc,ijco->no", wide[:, 2 * y : 2 * y + 3, 2 * z : 2 * z + 3], kernel)
    return out + values[f"{name}/bias"]


def normalized(values, name, x):
    scale = values[f"{name}/gamma"] / np.sqrt(values[f"{name}/moving_variance"] + 1e-5)
    return (x - values[f"{name}/moving_mean"]) * scale + values[f"{name}/beta"]


def aggregated(values, h, *, twice):
    """Attention of a map that is normalized already."""
    p = pointwise(values, "proj_1", h)
    p = silu(p + values["sigma/scale"] * (p - p.mean(axis=(1, 2), keepdims=True)))
    gate, value = pointwise(values, "gate", p), multi_order(below(values, "value"), p)
    for _ in range(2 if twice else 1):
        gate, value = silu(gate), silu(value)
    return pointwise(values, "proj_2", gate * value) + h


def multi_order(values, x):
    x = depthwise(values, "dw_conv0", x)
    eighth = x.shape[-1] // 8
    low, middle, high = x[..., :eighth], x[..., eighth : 4 * eighth], x[..., 4 * eighth :]
    wider = (low, depthwise(values, "dw_conv1", middle, 2), depthwise(values, "dw_conv2", high, 3))
    return pointwise(values, "pw_conv", np.concatenate(wider, axis=-1))


def channel_aggregated(values, x):
    y = gelu(depthwise(values, "dwconv", pointwise(values, "fc1", x)))
    y = y + values["sigma/scale"] * (y - gelu(pointwise(values, "decompose", y)))
    return pointwise(values, "fc2", y)


def below(values, layer):
    return {n.removeprefix(f"{layer}/"): v for n, v in values.items() if n.startswith(f"{layer}/")}


# --- small functions ----------------------------------------------------------------------------------------


def test_activations_are_the_exact_ones():
    x = np.linspace(-6, 6, 97, dtype=np.float32)
    np.testing.assert_allclose(keras_model.gelu(x).numpy(), gelu(x.astype(np.float64)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(keras_model.silu(x).numpy(), silu(x.astype(np.float64)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("twice", "at_one"), [(False, 0.7310586), (True, 0.4934920)])
def test_a_branch_is_activated_once_or_twice(twice, at_one):
    """The figures are σ(1) and σ(1) · σ(σ(1)), computed with decimal numbers."""
    found = keras_model.activate_branch(tf.constant([1.0]), twice=twice).numpy()
    np.testing.assert_allclose(found, [at_one], rtol=1e-6)


def test_spatial_mean():
    image = philox_normal(1, (2, 3, 5, 4))
    expected = np.array([[[[image[n, :, :, c].mean() for c in range(4)]]] for n in range(2)])
    np.testing.assert_allclose(keras_model.spatial_mean(image).numpy(), expected, rtol=0, atol=1e-6)


def test_epsilon():
    assert keras_model.batch_norm("norm").epsilon == 1e-5


# --- patch embeddings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", [(8, 8), (7, 7), (6, 5), (1, 2), (1, 1)])
def test_patch_embed_pads_one_zero_on_each_side(sides):
    layer = keras_model.PatchEmbed(3, 4, "patch_embed2")
    values = built(layer, 3)
    image = philox_normal(2, (2, *sides, 3))
    expected = normalized(values, "norm", strided(values, "projection", image))
    np.testing.assert_allclose(layer(image).numpy(), expected, **NEAR)


@pytest.mark.parametrize("sides", [(16, 16), (13, 10), (1, 3)])
def test_stem_is_two_strided_convolutions_with_one_gelu(sides):
    layer = keras_model.StemEmbed(8, "patch_embed1")
    values = built(layer, 3)
    image = philox_normal(3, (2, *sides, 3))
    x = gelu(normalized(values, "norm_0", strided(values, "conv_0", image)))
    expected = normalized(values, "norm_1", strided(values, "conv_1", x))
    np.testing.assert_allclose(layer(image).numpy(), expected, **NEAR)


# --- a block and its parts ----------------------------------------------------------------------------------

MAPS = [(14, 14), (7, 7), (5, 5), (9, 4), (1, 1), (3, 23)]
"""Most are smaller than the reach of the dilated convolutions, 9 pixels to each side."""


@pytest.mark.parametrize("sides", MAPS)
def test_value_is_of_three_orders(sides):
    layer = keras_model.MultiOrderDWConv(16)
    values = built(layer, 16)
    image = philox_normal(4, (2, *sides, 16))
    np.testing.assert_allclose(layer(image).numpy(), multi_order(values, image), **NEAR)


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("sides", MAPS[:3])
def test_attention(sides, twice):
    layer = keras_model.MultiOrderGatedAggregation(16, attn_force_fp32=twice)
    values = built(layer, 16)
    image = philox_normal(5, (2, *sides, 16))
    np.testing.assert_allclose(layer(image).numpy(), aggregated(values, image, twice=twice), **NEAR)


@pytest.mark.parametrize("sides", MAPS)
def test_channel_aggregation(sides):
    layer = keras_model.ChannelAggregation(8, 32)
    values = built(layer, 8)
    image = philox_normal(6, (2, *sides, 8))
    np.testing.assert_allclose(layer(image).numpy(), channel_aggregated(values, image), **NEAR)


def test_block_scales_both_parts_and_adds_them():
    layer = keras_model.MogaBlock(16, 64, "blocks1_0", attn_force_fp32=True)
    values = built(layer, 16)
    image = philox_normal(7, (2, 6, 9, 16))
    attn = aggregated(below(values, "attn"), normalized(values, "norm1", image), twice=True)
    x = image + values["layer_scale_1"] * attn
    mlp = channel_aggregated(below(values, "mlp"), normalized(values, "norm2", x))
    expected = x + values["layer_scale_2"] * mlp
    np.testing.assert_allclose(layer(image).numpy(), expected, rtol=0, atol=1e-4)


def test_a_built_block_has_every_variable_once():
    layer = keras_model.MogaBlock(16, 64, "blocks1_0", attn_force_fp32=False)
    values = built(layer, 16)
    convs = (
        "proj_1",
        "gate",
        "proj_2",
        "value/dw_conv0",
        "value/dw_conv1",
        "value/dw_conv2",
        "value/pw_conv",
    )
    expected = {f"attn/{name}/{leaf}" for name in convs for leaf in ("kernel", "bias")}
    expected |= {
        f"mlp/{n}/{leaf}" for n in ("fc1", "dwconv", "decompose", "fc2") for leaf in ("kernel", "bias")
    }
    norm_leaves = ("gamma", "beta", "moving_mean", "moving_variance")
    expected |= {f"{norm}/{leaf}" for norm in ("norm1", "norm2") for leaf in norm_leaves}
    expected |= {"layer_scale_1", "layer_scale_2", "attn/sigma/scale", "mlp/sigma/scale"}
    assert set(values) == expected
    assert len(layer.weights) == len(expected)


def test_layers_stay_float32_under_another_policy():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layer = keras_model.MogaBlock(16, 64, "blocks1_0", attn_force_fp32=False)
        layer.build(None)
        output = layer(philox_normal(9, (1, 4, 4, 16)))
    finally:
        keras.config.set_dtype_policy(policy)
    assert {v.dtype for v in layer.weights} == {"float32"}
    assert output.dtype == tf.float32
