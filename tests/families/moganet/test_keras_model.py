"""The Keras MogaNet: its variables, and everything it can be asked for."""

from __future__ import annotations

import itertools
import math
import zlib
from unittest.mock import patch

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from ckptkit.base.errors import ConversionError, NotFoundError, UsageError
from ckptkit.families.base import Structure, get_family
from ckptkit.families.filling import load_state, tensors_of
from ckptkit.families.keras_backend import keras, tf
from ckptkit.families.moganet import keras_model
from ckptkit.families.moganet.config import MOGANET_CONFIGS, MogaNetConfig
from tests.support.moganet_keras import GOLDEN_TOLERANCE, departure, keras_state
from tests.support.moganet_weights import PARAMETER_COUNTS, philox_normal, recipe_state

XT = "moganet-xt"


def table(variant=XT, num_classes=1000):
    return get_family("moganet").table("keras", variant, Structure(pos_emb=False, num_classes=num_classes))


SMALL = MogaNetConfig("moganet-small-for-tests", (8, 16, 24, 32), (1, 2, 1, 1))


def make_small(*, attn_force_fp32=True, **settings):
    """Make a small model with random weights, for what does not depend on the variant."""
    model = keras_model.build(SMALL.name, attn_force_fp32=attn_force_fp32, **settings)
    for name, variable in tensors_of(model).items():
        value = philox_normal(zlib.crc32(name.encode()), tuple(variable.shape)) / 8
        is_factor = name.endswith(("moving_variance", "gamma"))
        variable.assign(np.exp(value) if is_factor else value)
    return model


@pytest.fixture(scope="module", autouse=True)
def _known():
    """Have the family know the small variant."""
    with patch.dict(MOGANET_CONFIGS, {SMALL.name: SMALL}):
        yield


@pytest.fixture(scope="module")
def small():
    """The small model as it is by default, made once: leave it as it is."""
    return make_small()


# --- names, shapes and counts -------------------------------------------------------------------------------
@pytest.fixture(
    scope="module",
    params=[
        variant if variant in (XT, "moganet-s") else pytest.param(variant, marks=pytest.mark.slow)
        for variant in PARAMETER_COUNTS
    ],
)
def bare(request):
    """Return a variant's name and its model, without memory for the variables: XL would take 0.7 GB."""
    with keras.StatelessScope(initialize_variables=False):
        model = keras_model.build(request.param, attn_force_fp32=False)
    keras.backend.clear_session()
    return request.param, model


def test_variables_are_those_of_the_keras_layout(bare):
    variant, model = bare
    found = {v.path: (tuple(v.shape), v.trainable) for v in model.variables}
    assert len(found) == len(model.variables)
    assert found == {
        b.external: (b.external_shape, b.trainable) for b in table(variant).bindings if b.part != "counter"
    }


def test_number_of_parameters(bare):
    variant, model = bare
    assert sum(math.prod(v.shape) for v in model.trainable_variables) == PARAMETER_COUNTS[variant]


@pytest.mark.parametrize(
    "num_classes", [1000, None, *(pytest.param(one, marks=pytest.mark.slow) for one in (7, 0))]
)
def test_variables_follow_the_number_of_classes(num_classes):
    model = keras_model.build(XT, attn_force_fp32=True, num_classes=num_classes)
    found = {name: tuple(v.shape) for name, v in tensors_of(model).items()}
    expected = {name: array.shape for name, array in keras_state(XT, num_classes=num_classes or None).items()}
    assert found == expected
    assert [n for n in found if "/head/" in n] == (
        ["moganet/head/kernel", "moganet/head/bias"] if num_classes else []
    )


def test_a_built_model_is_ready_without_a_forward_pass():
    model = keras_model.build(XT, attn_force_fp32=False)
    assert model.built
    assert {v.dtype for v in model.variables} == {"float32"}
    statistics = [v for v in model.variables if v.path.endswith(("moving_mean", "moving_variance"))]
    assert not any(v.trainable for v in statistics)
    assert len(statistics) == 2 * (2 + 3 + 2 * 18 + 4)  # stem, patch embeddings, blocks, ends of stages


def test_names_do_not_depend_on_the_scope_a_model_is_made_in(small):
    with keras.name_scope("outer"):
        model = keras_model.build(SMALL.name, attn_force_fp32=True)
    assert set(tensors_of(model)) == set(tensors_of(small))


# --- loading ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("variant", [XT, "moganet-s"])
def test_the_layout_rules_give_the_arrays_that_the_tests_load(variant):
    canonical, expected = recipe_state(variant), keras_state(variant)
    bindings = [b for b in table(variant).bindings if b.part != "counter"]
    assert {b.external for b in bindings} == set(expected)
    for binding in bindings:
        array = binding.op.to_external(canonical[binding.canonical], binding.external_shape)
        np.testing.assert_array_equal(array, expected[binding.external], err_msg=binding.external)


def test_step_counters_may_ride_along(small):
    model = keras_model.build(SMALL.name, attn_force_fp32=True)
    bindings = table(SMALL.name).bindings
    counters = {b.external: np.array(1000, np.int64) for b in bindings if b.part == "counter"}
    assert len(counters) == 2 + 3 + 2 * 5 + 4
    state = {name: variable.numpy() for name, variable in tensors_of(small).items()}
    load_state(model, state | counters)
    for name, expected in state.items():
        np.testing.assert_array_equal(tensors_of(model)[name].numpy(), expected)


def test_the_weights_of_another_variant_are_refused():
    model = keras_model.build(XT, attn_force_fp32=False)
    with pytest.raises(
        ConversionError, match=r"fit moganet-xt: 68 unexpected .*; \d+ of the wrong shape"
    ) as caught:
        load_state(model, keras_state("moganet-t"))
    assert "\n" not in str(caught.value)


# --- what can be asked for ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("size", "sides"),
    [
        ((250, 190), [(63, 48), (32, 24), (16, 12), (8, 6)]),
        ((97, 33), [(25, 9), (13, 5), (7, 3), (4, 2)]),
        ((5, 1), [(2, 1), (1, 1), (1, 1), (1, 1)]),
    ],
)
def test_odd_sizes_run(size, sides, small):
    outputs = small.forward_stages(philox_normal(1, (1, *size, 3)))
    expected = [(1, *side, width) for side, width in zip(sides, SMALL.widths, strict=True)]
    assert [tuple(outputs[stage].shape) for stage in keras_model.STAGES] == expected
    assert outputs["logits"].shape == (1, 1000)
    assert np.isfinite(outputs["logits"].numpy()).all()


def test_a_graph_of_any_size_gives_what_eager_mode_gives(small):
    model = small
    graph = tf.function(model, input_signature=[tf.TensorSpec((None, None, None, 3))])
    for shape in ((1, 125, 94, 3), (3, 64, 96, 3)):
        image = philox_normal(2, shape)
        assert departure(graph(image), model(image).numpy()) < GOLDEN_TOLERANCE


def test_images_of_a_batch_do_not_see_each_other(small):
    model = small
    image = philox_normal(3, (3, 64, 64, 3))
    together = model(image).numpy()
    assert departure(together[:1], together[1:2]) > 0.1  # the images do matter
    alone = np.concatenate([model(image[n : n + 1]).numpy() for n in range(3)])
    assert departure(alone, together) < GOLDEN_TOLERANCE


@pytest.mark.parametrize("side", [64, None])
def test_a_symbolic_input_makes_a_functional_model(side, small):
    model = small
    image = philox_normal(4, (2, 64, 64, 3))
    inputs = keras.Input((side, side, 3))
    outputs = model(inputs)
    assert outputs.shape == (None, 1000)
    functional = keras.Model(inputs, outputs)
    assert departure(functional(image), model(image).numpy()) < GOLDEN_TOLERANCE


def test_symbolic_features():
    model = make_small(features_only=True)
    shapes = [tuple(f.shape) for f in model(keras.Input((224, 160, 3)))]
    sides = [(56, 40), (28, 20), (14, 10), (7, 5)]
    assert shapes == [(None, *side, width) for side, width in zip(sides, SMALL.widths, strict=True)]


def test_predict(small):
    model = small
    image = philox_normal(5, (2, 32, 32, 3))
    predicted = model.predict(image, verbose=0)
    assert departure(predicted, model(image).numpy()) < GOLDEN_TOLERANCE


def test_features_only_gives_four_maps_and_keeps_the_head(small):
    image = philox_normal(6, (2, 64, 64, 3))
    model = make_small(features_only=True)
    features = model(image)
    expected = small.forward_stages(image)
    for found, stage in zip(features, keras_model.STAGES, strict=True):
        np.testing.assert_array_equal(found.numpy(), expected[stage].numpy())
    np.testing.assert_array_equal(model.forward_stages(image)["logits"], expected["logits"])
    assert list(model.forward_stages(image[:, :32, :32], head=False)) == list(keras_model.STAGES)


@pytest.mark.parametrize("num_classes", [None, 0])
def test_a_headless_model_gives_four_maps(num_classes, small):
    image = philox_normal(6, (1, 64, 64, 3))
    model = make_small(num_classes=num_classes)
    expected = small.forward_stages(image)
    for found, stage in zip(model(image), keras_model.STAGES, strict=True):
        np.testing.assert_array_equal(found.numpy(), expected[stage].numpy())
    assert list(model.forward_stages(image)) == list(keras_model.STAGES)


def test_another_number_of_classes():
    image = philox_normal(7, (2, 64, 64, 3))
    model = make_small(num_classes=10)
    outputs = model.forward_stages(image)
    head = {name.rpartition("/")[2]: v.numpy() for name, v in tensors_of(model).items() if "/head/" in name}
    pooled = outputs["stage4"].numpy().astype(np.float64).mean(axis=(1, 2))
    expected = pooled @ head["kernel"].astype(np.float64) + head["bias"]
    assert model(image).shape == (2, 10)
    assert departure(outputs["logits"], expected) < GOLDEN_TOLERANCE


def test_statistics_stay_when_the_model_is_called(small):
    model = small
    before = [v.numpy().copy() for v in model.variables]
    model(philox_normal(8, (1, 32, 32, 3)))
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), old)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"variant": "moganet-xxl"}, NotFoundError, "moganet-xxl'; choose from moganet-xt, "),
        ({"variant": "tiny-moat0"}, NotFoundError, "tiny-moat0"),
        ({"attn_force_fp32": None}, UsageError, "attn_force_fp32 is None; it can be true or false"),
        ({"attn_force_fp32": "false"}, UsageError, "attn_force_fp32 is 'false'"),
        ({"attn_force_fp32": 1}, UsageError, "attn_force_fp32 is 1"),
        ({"num_classes": -1}, UsageError, "num_classes is -1"),
        ({"num_classes": 2.5}, UsageError, "num_classes is 2.5"),
        ({"resolution": 0}, UsageError, "resolution is 0"),
        ({"resolution": (224,)}, UsageError, "resolution is"),
    ],
)
def test_nonsense_is_refused_in_one_line(settings, error, message):
    with pytest.raises(error) as caught:
        keras_model.build(**{"variant": XT, "attn_force_fp32": False, **settings})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_there_is_no_default_for_the_gate_mode():
    with pytest.raises(TypeError, match="attn_force_fp32"):
        keras_model.build(XT)
    with pytest.raises(TypeError, match="attn_force_fp32"):
        keras_model.MogaNetModel(XT)


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (64, 64, 3), (1, 64, 64, 4), (1, 0, 64, 3), ()])
def test_an_input_of_another_shape_is_refused_in_one_line(shape, small):
    for call in (small, small.forward_stages):
        with pytest.raises(UsageError, match="channels last") as caught:
            call(np.zeros(shape, np.float32))
        assert "\n" not in str(caught.value)


def test_other_input_types_are_taken_as_float32(small):
    model = small
    image = np.round(philox_normal(9, (1, 64, 64, 3)) * 20)
    expected = model(image).numpy()
    np.testing.assert_array_equal(model(image.astype(np.int32)).numpy(), expected)
    np.testing.assert_array_equal(model(image.astype(np.float64)).numpy(), expected)


def test_the_model_stays_float32_under_another_policy(small):
    image = philox_normal(10, (1, 64, 64, 3))
    expected = small(image).numpy()
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        logits = make_small()(image)
    finally:
        keras.config.set_dtype_policy(policy)
    assert logits.dtype == tf.float32
    np.testing.assert_array_equal(logits.numpy(), expected)


# --- files --------------------------------------------------------------------------------------------------
def test_weights_file_round_trip(small, tmp_path):
    image = philox_normal(11, (1, 64, 64, 3))
    expected = small(image).numpy()
    small.save_weights(tmp_path / "x.weights.h5")
    other = keras_model.build(SMALL.name, attn_force_fp32=True)
    assert not np.array_equal(other(image).numpy(), expected)
    other.load_weights(tmp_path / "x.weights.h5")
    np.testing.assert_array_equal(other(image).numpy(), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"attn_force_fp32": True},
        {"attn_force_fp32": False, "features_only": True, "resolution": (128, 96), "num_classes": 10},
        {"attn_force_fp32": True, "num_classes": None, "resolution": 256},
    ],
)
def test_whole_model_round_trip(settings, tmp_path):
    image = philox_normal(12, (1, 128, 96, 3))
    model = make_small(**settings)
    model.save(tmp_path / "x.keras")
    again = keras.saving.load_model(tmp_path / "x.keras")
    assert isinstance(again, keras_model.MogaNetModel)
    assert again.get_config() == model.get_config()
    assert again.resolution == model.resolution
    for expected, found in zip(_listed(model(image)), _listed(again(image)), strict=True):
        np.testing.assert_array_equal(found.numpy(), expected.numpy())


def _listed(outputs):
    return outputs if isinstance(outputs, list) else [outputs]


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
