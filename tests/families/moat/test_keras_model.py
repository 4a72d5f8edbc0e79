"""The Keras MOAT against the recorded outputs of the published code, and everything it can be asked for."""

from __future__ import annotations

import itertools
import json
import math
import tarfile

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from ckptkit.base.errors import ConversionError, NotFoundError, UsageError
from ckptkit.families.base import Structure, get_family
from ckptkit.families.filling import tensors_of
from ckptkit.families.keras_backend import keras, tf
from ckptkit.families.moat import keras_model
from tests.support.moat_keras import GOLDEN_TOLERANCE, departure, loaded, logits_departure, shared_model
from tests.support.moat_reference import (
    GOLDEN_CASES,
    load_golden,
    load_units,
    moat_variables,
    parameter_count,
    philox_normal,
    recipe_tensor,
    recipe_weights,
    variable_shapes,
)
from tests.support.toys import MOAT, toy_model, toy_variants

STAGE_TOLERANCE = 1e-5
"""Of the stage's standard deviation; 1.4e-6 was measured."""


# --- against the recorded outputs ---------------------------------------------------------------------------
@pytest.fixture(
    scope="module",
    params=[
        case if variant == "tiny-moat0" else pytest.param(case, marks=pytest.mark.slow)
        for case, (variant, *_) in GOLDEN_CASES.items()
    ],
)
def recorded(request):
    """Return a recorded case and what the model gives for its input."""
    case = load_golden(request.param)
    model = shared_model(case.pos_emb) if case.variant == "tiny-moat0" else loaded(case.variant)
    outputs = model.forward_stages(case.input)
    return case, {name: np.asarray(output) for name, output in outputs.items()}


def test_logits_are_the_recorded_ones(recorded):
    case, outputs = recorded
    assert list(outputs) == ["stage1", "stage2", "stage3", "stage4", "stage5", "logits"]
    assert departure(outputs["logits"], case.logits) <= GOLDEN_TOLERANCE


@pytest.mark.parametrize("stage", keras_model.STAGES)
def test_stage_is_the_recorded_one(recorded, stage):
    case, outputs = recorded
    want = {key.removeprefix(f"{stage}_"): value for key, value in case.arrays.items()}
    output = outputs[stage].astype(np.float64)
    tolerance = STAGE_TOLERANCE * float(want["std"])
    assert output.shape == tuple(want["shape"])
    assert output.mean() == pytest.approx(float(want["mean"]), abs=tolerance)
    assert output.std() == pytest.approx(float(want["std"]), abs=tolerance)
    np.testing.assert_allclose(output.mean(axis=(1, 2)), want["channel_mean"], rtol=0, atol=tolerance)
    row = output[:, 0, :8, 0]
    np.testing.assert_allclose(row, want["row0_ch0"], rtol=0, atol=tolerance)
    activated = [[0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in image] for image in row]
    recorded_row = case.arrays[f"res{stage[-1]}_row0_ch0"]
    np.testing.assert_allclose(activated, recorded_row, rtol=0, atol=2 * tolerance)
    if stage in case.arrays:
        np.testing.assert_allclose(output, case.arrays[stage], rtol=0, atol=tolerance)


def align_corners(table, rows, columns):
    """Resize as TensorFlow 1's ``align_corners=True`` does."""

    def along(length, wanted):
        places = np.linspace(0, length - 1, wanted)
        return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(length))).astype(np.float32)

    return tf.einsum("ya,hab,xb->hyx", along(table.shape[1], rows), table, along(table.shape[2], columns))


def symmetric_padding(layer, x):
    """Pad one pixel on every side, as PyTorch's ``padding=1`` does."""
    layer.padding = "valid"
    return layer(tf.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))


right_bias, right_norm = keras_model.position_bias, keras_model.layer_norm


MISTAKES = {
    "LayerNorm epsilon 1e-6": ("layer_norm", lambda name, _: right_norm(name, 1e-6), 5e-5),
    "LayerNorm epsilon 1e-3": ("layer_norm", lambda name, _: right_norm(name, 1e-3), 6e-3),
    "BatchNorm epsilon 1e-5": ("BATCH_NORM_EPSILON", 1e-5, 1e-2),
    "tanh GELU": ("gelu", lambda x: keras.ops.gelu(x, approximate=True), 9e-4),
    "resize with aligned corners": ("resize_table", align_corners, 2e-4),
    "query and key swapped": (
        "position_bias",
        lambda table, h, w: tf.transpose(right_bias(table, h, w), (0, 2, 1)),
        1e-2,
    ),
    "symmetric padding": ("spatial_conv", symmetric_padding, 0.2),
}
"""Attribute of keras_model, what it becomes, and by how much facts/moat.md says logits move."""


WHEN_CALLED = {"gelu", "resize_table", "position_bias"}
"""Functions that a built model calls; the others make a layer, or change it."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_shows(mistake, monkeypatch):
    case = load_golden("tiny_moat0_pe_256_pool2")
    attribute, wrong, documented = MISTAKES[mistake]
    monkeypatch.setattr(keras_model, attribute, wrong)
    model = shared_model() if attribute in WHEN_CALLED else loaded("tiny-moat0")
    moved = np.abs(model(case.input).numpy() - case.logits).max()
    assert moved / np.abs(case.logits).max() > GOLDEN_TOLERANCE
    assert documented / 1.6 < moved < documented * 1.6


@pytest.mark.parametrize("settings", [{"pool_size": 3}, {"window_size": {2: 8}}, {"window_size": {3: 4}}])
def test_a_setting_of_dense_prediction_shows(settings):
    case = load_golden("tiny_moat0_pe_256_pool2")
    assert logits_departure(loaded("tiny-moat0", **settings), case) > 100 * GOLDEN_TOLERANCE


# --- names, shapes and counts -------------------------------------------------------------------------------
QUICK = {("tiny-moat0", True), ("tiny-moat0", False), ("moat1", True)}


@pytest.mark.parametrize(
    ("variant", "pos_emb"),
    [
        pytest.param(
            variant,
            pos_emb,
            id=f"{variant}-{'pe' if pos_emb else 'nope'}",
            marks=() if (variant, pos_emb) in QUICK else pytest.mark.slow,
        )
        for variant in moat_variables()
        for pos_emb in (True, False)
    ],
)
def test_variables_and_parameter_count(variant, pos_emb):
    with keras.StatelessScope(initialize_variables=False):  # names and shapes, and not 2 GB of zeros
        model = keras_model.build(variant, pos_emb=pos_emb)
    keras.backend.clear_session()
    found = {v.path: (tuple(v.shape), v.trainable) for v in model.variables}
    trainable = {name: flag for name, _shape, flag in moat_variables()[variant]["variables"]}
    facts = variable_shapes(variant, pos_emb)
    assert found == {
        name.replace("depthwise_kernel", "kernel"): (shape, trainable[name]) for name, shape in facts.items()
    }
    assert sum(math.prod(v.shape) for v in model.trainable_variables) == parameter_count(variant, pos_emb)


@pytest.mark.parametrize(
    ("num_classes", "pos_emb"),
    [
        *((1000, True), (7, False), (None, True), (0, False)),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in ((1000, False), (7, True), (None, False))),
    ],
)
def test_variables_are_those_of_the_keras_layout(num_classes, pos_emb):
    model = keras_model.build("tiny-moat0", num_classes=num_classes, pos_emb=pos_emb)
    table = get_family("moat").table("keras", "tiny-moat0", Structure(pos_emb, num_classes or None))
    found = {name: (tuple(v.shape), v.trainable) for name, v in tensors_of(model).items()}
    assert found == {b.external: (b.external_shape, b.trainable) for b in table.bindings}


def test_a_built_model_is_ready_without_a_forward_pass():
    model = keras_model.build("tiny-moat0")
    assert model.built
    assert {v.dtype for v in model.variables} == {"float32"}
    statistics = [v for v in model.variables if v.path.endswith(("moving_mean", "moving_variance"))]
    assert not any(v.trainable for v in statistics)
    assert len(statistics) == 2 * (1 + 3 * 14)  # the stem's, and three norms in each of 14 blocks


# --- what can be asked for ----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A model of one block a stage, whose graph is traced in a moment: leave it as it is."""
    with toy_variants():
        yield toy_model(tmp_path_factory.mktemp("toy"), MOAT, "keras")


def test_odd_sizes_run_in_eager_mode_and_in_a_graph(toy):
    model = toy
    image = philox_normal(1, (1, 250, 190, 3))
    outputs = model.forward_stages(image)
    sides = [(125, 95), (63, 48), (32, 24), (16, 12), (8, 6)]
    assert [tuple(outputs[stage].shape[1:3]) for stage in keras_model.STAGES] == sides
    graph = tf.function(model, input_signature=[tf.TensorSpec((None, None, None, 3))])
    assert departure(graph(image), outputs["logits"].numpy()) < GOLDEN_TOLERANCE
    assert graph(philox_normal(2, (3, 64, 96, 3))).shape == (3, 1000)


def test_a_table_loaded_after_tracing_counts(tmp_path):
    image = philox_normal(1, (2, 128, 128, 3))
    with toy_variants():
        model = toy_model(tmp_path, MOAT, "keras")
    graph = tf.function(model)
    before = graph(image).numpy()
    assert departure(before, model(image).numpy()) <= GOLDEN_TOLERANCE
    tables = {n: v for n, v in tensors_of(model).items() if n.endswith("relative_position_embedding")}
    for variable in tables.values():
        variable.assign(tf.zeros_like(variable))
    after = graph(image).numpy()
    assert tables and departure(after, model(image).numpy()) <= GOLDEN_TOLERANCE
    assert departure(after, before) > 100 * GOLDEN_TOLERANCE


def test_features_only_gives_five_maps():
    case = load_golden("tiny_moat0_pe_256_pool2")
    model = loaded("tiny-moat0", features_only=True)
    features = model(case.input)
    shapes = [tuple(case.arrays[f"stage{k}_shape"]) for k in range(1, 6)]
    assert [tuple(f.shape) for f in features] == shapes
    assert departure(features[-1], case.arrays["stage5"]) < STAGE_TOLERANCE
    assert departure(model.forward_stages(case.input)["logits"], case.logits) <= GOLDEN_TOLERANCE


@pytest.mark.parametrize("num_classes", [None, pytest.param(0, marks=pytest.mark.slow)])
def test_a_headless_model_gives_five_maps(num_classes):
    case = load_golden("tiny_moat0_pe_256_pool2")
    model = loaded("tiny-moat0", num_classes=num_classes)
    features = model(case.input)
    assert len(features) == 5
    assert departure(features[-1], case.arrays["stage5"]) < STAGE_TOLERANCE
    assert list(model.forward_stages(case.input[:, :64, :64])) == list(keras_model.STAGES)


def test_windows_of_the_whole_map_change_nothing():
    case = load_golden("tiny_moat0_pe_256_pool2")
    model = loaded("tiny-moat0", resolution=256, window_size={2: (16, 16), 3: 8})
    assert logits_departure(model, case) <= GOLDEN_TOLERANCE


@pytest.mark.parametrize("window_size", [4, (4, 4), {2: 4, 3: (4, 4)}, {"2": 4, "3": 4}])
def test_windows_can_be_given_in_several_ways(window_size):
    assert keras_model.MoatModel("tiny-moat0", window_size=window_size).windows == {2: (4, 4), 3: (4, 4)}


def test_global_attention_lets_the_last_block_of_a_stage_see_the_whole_map():
    image = philox_normal(3, (1, 128, 128, 3))
    model = loaded("tiny-moat0", window_size=4, global_attention=True)
    windowed = loaded("tiny-moat0", window_size=4)
    whole = {block.name: block for block in shared_model().blocks}
    x = windowed.stem(image)
    for block in windowed.blocks:
        last = block.name in ("block_02_06", "block_03_01")
        x = (whole[block.name] if last else block)(x)
    assert departure(model.forward_stages(image)["stage5"], x.numpy()) < STAGE_TOLERANCE
    assert departure(windowed.forward_stages(image)["stage5"], x.numpy()) > 1e-3


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"variant": "moat9"}, NotFoundError, "moat9"),
        ({"num_classes": -1}, UsageError, "num_classes"),
        ({"num_classes": 2.5}, UsageError, "num_classes"),
        ({"pool_size": 4}, UsageError, "pool_size is 4"),
        ({"window_size": 0}, UsageError, "window_size"),
        ({"window_size": "whole"}, UsageError, "window_size"),
        ({"window_size": {1: 7}}, UsageError, "stage 1"),
        ({"resolution": 0}, UsageError, "resolution"),
        ({"resolution": (224,)}, UsageError, "resolution"),
        ({"resolution": 224, "window_size": 16}, UsageError, "map of 14x14 cannot be cut"),
    ],
)
def test_nonsense_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        keras_model.build(**{"variant": "tiny-moat0", **settings})


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (64, 64, 3), (1, 64, 64, 4), (1, 0, 64, 3)])
def test_an_input_of_another_shape_is_refused_in_one_line(shape):
    with pytest.raises(UsageError, match="channels last") as caught:
        shared_model()(np.zeros(shape, np.float32))
    assert "\n" not in str(caught.value)


def test_a_map_that_windows_do_not_divide_is_refused_in_one_line():
    model = keras_model.build("tiny-moat0", window_size={2: 12})
    with pytest.raises(UsageError, match="map of 16x14 cannot be cut into windows of 12x12") as caught:
        model(np.zeros((1, 256, 224, 3), np.float32))
    assert "\n" not in str(caught.value)


def test_other_input_types_are_taken_as_float32():
    image = np.round(philox_normal(4, (1, 64, 64, 3)) * 20)
    expected = shared_model()(image).numpy()
    np.testing.assert_array_equal(shared_model()(image.astype(np.int32)).numpy(), expected)
    np.testing.assert_array_equal(shared_model()(image.astype(np.float64)).numpy(), expected)


def test_weights_file_round_trip(tmp_path):
    image = philox_normal(5, (1, 64, 64, 3))
    expected = shared_model()(image).numpy()
    shared_model().save_weights(tmp_path / "x.weights.h5")
    other = keras_model.build("tiny-moat0")
    assert not np.array_equal(other(image).numpy(), expected)
    other.load_weights(tmp_path / "x.weights.h5")
    np.testing.assert_array_equal(other(image).numpy(), expected)


def test_whole_model_round_trip(tmp_path):
    image = philox_normal(6, (1, 128, 96, 3))
    settings = {"window_size": {2: (4, 3)}, "global_attention": True, "pool_size": 3, "features_only": True}
    model = loaded("tiny-moat0", **settings)
    model.save(tmp_path / "x.keras")
    again = keras.saving.load_model(tmp_path / "x.keras")
    for expected, found in zip(model(image), again(image), strict=True):
        np.testing.assert_array_equal(found.numpy(), expected.numpy())


UNITS = load_units()
ATTENTION_UNITS = [name for name, case in UNITS.items() if case.attention is not None]
UNIT_TOLERANCE = 1e-5
"""Of the output's standard deviation; 3.4e-6 was measured."""


@pytest.fixture(scope="module")
def models():
    return {"full": shared_model(), "win12": loaded("tiny-moat0", pool_size=3, window_size={2: 12, 3: 6})}


@pytest.fixture
def unit(request, models):
    """Return a recorded case and the block that should reproduce it."""
    case = UNITS[request.param]
    name = f"block_{case.stage:02d}_{case.block:02d}"
    (block,) = (b for b in models[request.param.split("_")[0]].blocks if b.name == name)
    return case, block


@pytest.mark.parametrize("unit", UNITS, indirect=True)
def test_block_gives_what_was_recorded(unit):
    case, block = unit
    output = block(case.input).numpy()
    assert output.shape == case.output_shape
    assert output.std() == pytest.approx(case.out_std, rel=UNIT_TOLERANCE)
    part = output[:, :: case.step[0], :: case.step[1]]
    np.testing.assert_allclose(part, case.slice, rtol=0, atol=UNIT_TOLERANCE * case.out_std)


@pytest.mark.parametrize("unit", ATTENTION_UNITS, indirect=True)
def test_attention_gives_what_was_recorded(unit):
    case, block = unit
    output = block.attention(case.attention_input).numpy()
    assert output.shape == case.attention_input.shape
    batch, height, width, channels = output.shape
    places = output.reshape(batch, height * width, channels)[:, ::7]
    np.testing.assert_allclose(places, case.attention, rtol=0, atol=UNIT_TOLERANCE * case.attention.std())


@pytest.mark.parametrize("unit", ATTENTION_UNITS, indirect=True)
def test_position_bias_is_what_was_recorded(unit):
    case, block = unit
    _, height, width, _ = case.attention_input.shape
    table = tf.convert_to_tensor(block.attention.relative_position_embedding)
    bias = keras_model.position_bias(table, height, width).numpy()
    np.testing.assert_allclose(bias[0, 0], case.bias_head0_row0, rtol=0, atol=1e-6)
    middle = height * width // 2
    np.testing.assert_allclose(bias[-1, middle], case.bias_lasthead_row_mid, rtol=0, atol=1e-6)


def bilinear(image, height, width):
    """Resize [heads, h, w] by definition: half-pixel centres, edges clamped, in double precision."""

    def weights(length, wanted):
        matrix = np.zeros((wanted, length))
        for place in range(wanted):
            centre = (place + 0.5) * length / wanted - 0.5
            below = math.floor(centre)
            for source, share in ((below, 1 - (centre - below)), (below + 1, centre - below)):
                matrix[place, min(max(source, 0), length - 1)] += share
        return matrix

    rows, columns = weights(image.shape[1], height), weights(image.shape[2], width)
    return np.einsum("ya,hab,xb->hyx", rows, image.astype(np.float64), columns)


@pytest.mark.parametrize("size", [(31, 31), (15, 15), (9, 41), (1, 3), (27, 14)])
def test_table_is_resized_between_pixel_centres(size):
    table = philox_normal(1, (3, 27, 27))
    resized = keras_model.resize_table(tf.constant(table), *size).numpy()
    np.testing.assert_allclose(resized, bilinear(table, *size), rtol=0, atol=1e-5)


def test_table_of_the_right_size_is_left_alone():
    table = philox_normal(2, (2, 13, 13))
    np.testing.assert_array_equal(keras_model.resize_table(tf.constant(table), 13, 13).numpy(), table)


@pytest.mark.parametrize(("height", "width"), [(7, 7), (8, 6), (1, 1), (3, 10)])
def test_position_bias_looks_up_key_minus_query(height, width):
    table = philox_normal(3, (2, 13, 13))
    offsets = bilinear(table, 2 * height - 1, 2 * width - 1)
    places = list(itertools.product(range(height), range(width)))
    expected = [
        [[head[y_k - y_q + height - 1, x_k - x_q + width - 1] for y_k, x_k in places] for y_q, x_q in places]
        for head in offsets
    ]
    bias = keras_model.position_bias(tf.constant(table), height, width).numpy()
    np.testing.assert_allclose(bias, expected, rtol=0, atol=1e-5)


def test_windows_stand_in_raster_order_and_come_back_in_place():
    image = philox_normal(4, (2, 6, 8, 3))
    seen = []

    def centre(windows):
        seen.append(windows.numpy())
        return windows - tf.reduce_mean(windows, axis=(1, 2), keepdims=True)

    output = keras_model.in_windows(centre, tf.constant(image), (3, 4)).numpy()
    corners = [(n, top, left) for n in range(2) for top in (0, 3) for left in (0, 4)]
    cut = [image[n, top : top + 3, left : left + 4] for n, top, left in corners]
    np.testing.assert_array_equal(seen[0], np.stack(cut))
    for (n, top, left), window in zip(corners, cut, strict=True):
        expected = window - window.mean(axis=(0, 1))
        np.testing.assert_allclose(output[n, top : top + 3, left : left + 4], expected, atol=1e-6)


def padded_same(image, kernel):
    """Pad [N, H, W, C] with NaN as TensorFlow's SAME does at stride 2: the odd pixel goes after."""
    before_after = []
    for side in image.shape[1:3]:
        total = max((math.ceil(side / 2) - 1) * 2 + kernel - side, 0)
        before_after.append((total // 2, total - total // 2))
    return np.pad(image.astype(np.float64), ((0, 0), *before_after, (0, 0)), constant_values=np.nan)


@pytest.mark.parametrize("sides", [(8, 8), (7, 7), (6, 5), (1, 2)])
@pytest.mark.parametrize("size", [2, 3])
def test_average_pool_divides_by_real_pixels(sides, size):
    image = philox_normal(5, (2, *sides, 4))
    padded = padded_same(image, size)
    rows, columns = (math.ceil(side / 2) for side in sides)
    expected = np.empty((2, rows, columns, 4))
    for y, x in itertools.product(range(rows), range(columns)):
        window = padded[:, 2 * y : 2 * y + size, 2 * x : 2 * x + size]
        expected[:, y, x] = np.nanmean(window, axis=(1, 2))
    output = keras_model.average_pool(tf.constant(image), size).numpy()
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sides", [(8, 8), (7, 7), (6, 5)])
def test_strided_convolution_pads_as_tensorflow_does(sides):
    image, kernel = philox_normal(6, (1, *sides, 2)), philox_normal(7, (3, 3, 2, 4))
    layer = keras_model.conv("c", 4, 3, 2, bias=False)
    layer.build((None, None, None, 2))
    layer.kernel.assign(kernel)
    padded = np.nan_to_num(padded_same(image, 3))
    rows, columns = (math.ceil(side / 2) for side in sides)
    expected = np.empty((1, rows, columns, 4))
    for y, x in itertools.product(range(rows), range(columns)):
        window = padded[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
        expected[:, y, x] = np.einsum("nijc,ijco->no", window, kernel.astype(np.float64))
    output = keras_model.spatial_conv(layer, tf.constant(image)).numpy()
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)


def test_gelu_is_the_exact_one():
    x = np.linspace(-6, 6, 97, dtype=np.float32)
    expected = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.astype(np.float64)]
    np.testing.assert_allclose(keras_model.gelu(x).numpy(), expected, rtol=0, atol=1e-6)


def test_squeeze_excite_by_definition():
    layer = keras_model.SqueezeExcite(3, 8)
    layer.build((None, None, None, 8))
    values = [philox_normal(10 + i, tuple(v.shape)) for i, v in enumerate(layer.weights)]
    layer.set_weights(values)
    image = philox_normal(8, (2, 5, 4, 8))
    by_name = {v.path.removeprefix("se/"): w for v, w in zip(layer.weights, values, strict=True)}
    inner = image.mean(axis=(1, 2)) @ by_name["reduce_conv2d/kernel"][0, 0] + by_name["reduce_conv2d/bias"]
    inner = inner / (1 + np.exp(-inner))
    outer = inner @ by_name["expand_conv2d/kernel"][0, 0] + by_name["expand_conv2d/bias"]
    expected = image / (1 + np.exp(-outer))[:, None, None]
    np.testing.assert_allclose(layer(image).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_epsilons():
    model = keras_model.MoatModel("tiny-moat0")
    assert model.blocks[0].pre_norm.epsilon == 1e-3
    assert model.blocks[-1].attention_norm.epsilon == model.final_layer_norm.epsilon == 1e-5


def test_layers_stay_float32_under_another_policy():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layer = keras_model.Attention(64, 13)
        layer.build(None)
        output = layer(philox_normal(9, (1, 4, 4, 64)))
    finally:
        keras.config.set_dtype_policy(policy)
    assert {v.dtype for v in layer.weights} == {"float32"}
    assert output.dtype == tf.float32


EMA = "/ExponentialMovingAverage"


def test_stem_names_without_scope_are_taken():
    case = load_golden("tiny_moat0_nope_256_pool2")
    weights = {n.removeprefix("moat/stem/"): w for n, w in recipe_weights("tiny-moat0", False).items()}
    assert "conv_0/kernel" in weights
    model = keras_model.build("tiny-moat0", pos_emb=False)
    keras_model.load_published(model, weights.keys(), weights.__getitem__)
    assert logits_departure(model, case) <= GOLDEN_TOLERANCE


def with_twins(pos_emb=False):
    """Return a checkpoint whose plain parameters are doubled and whose twins are the recipe's."""
    trainable = {name: flag for name, _shape, flag in moat_variables()["tiny-moat0"]["variables"]}
    weights = recipe_weights("tiny-moat0", pos_emb)
    twins = {n + EMA: w for n, w in weights.items() if trainable[n]}
    return (
        {n: 2 * w if trainable[n] else w for n, w in weights.items()} | twins | {"global_step": np.int64(3)}
    )


def test_suffix_takes_the_moving_averages():
    case = load_golden("tiny_moat0_nope_256_pool2")
    checkpoint = with_twins()
    model = keras_model.build("tiny-moat0", pos_emb=False)
    keras_model.load_published(model, checkpoint.keys(), checkpoint.__getitem__, suffix=EMA)
    assert logits_departure(model, case) <= GOLDEN_TOLERANCE
    keras_model.load_published(model, checkpoint.keys(), checkpoint.__getitem__)
    assert logits_departure(model, case) > 0.1


def test_a_parameter_without_its_twin_is_missing():
    checkpoint = with_twins()
    del checkpoint["moat/block_02_03/attention/q/weight" + EMA]
    model = keras_model.build("tiny-moat0", pos_emb=False)
    with pytest.raises(ConversionError, match=r"1 missing \(moat/block_02_03/attention/q/weight/Exp"):
        keras_model.load_published(model, checkpoint.keys(), checkpoint.__getitem__, suffix=EMA)


def test_missing_variables_are_counted_and_named_before_anything_is_read():
    names = [n for n in recipe_weights("tiny-moat0") if "moving_" not in n and "depthwise_kernel" not in n]
    model = keras_model.build("tiny-moat0")

    def read(name):
        raise AssertionError(f"{name} was read")

    with pytest.raises(ConversionError) as caught:
        keras_model.load_published(model, names, read)
    message = str(caught.value)
    assert (
        f"{2 * 43 + 14} missing (moat/stem/norm_0/moving_mean, moat/stem/norm_0/moving_variance, " in message
    )
    assert "\n" not in message


def test_a_wrong_shape_is_named():
    weights = dict(recipe_weights("tiny-moat0"))
    weights["moat/stem/conv_1/kernel"] = weights["moat/stem/conv_1/kernel"][..., :31]
    model = keras_model.build("tiny-moat0")
    with pytest.raises(
        ConversionError, match=r"1 of the wrong shape \(moat/stem/conv_1/kernel \[3, 3, 32, 31\]"
    ):
        keras_model.load_published(model, weights.keys(), weights.__getitem__)


def unpack(shared_folder, name, folder):
    """Unpack a checkpoint written by TensorFlow, and open it with TensorFlow's own reader."""
    with tarfile.open(shared_folder / "checkpoints" / f"{name}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    (index,) = folder.rglob("*.index")
    reader = tf.train.load_checkpoint(str(index.with_suffix("")))
    return reader, list(reader.get_variable_to_shape_map())


@pytest.mark.parametrize(
    ("name", "case", "suffix"),
    [
        ("tiny_moat0_pe", "tiny_moat0_pe_256_pool2", ""),
        ("tiny_moat0_nope_ema", "tiny_moat0_nope_256_pool2", EMA),
    ],
)
def test_checkpoints_of_the_published_code(name, case, suffix, shared_folder, tmp_path):
    reader, names = unpack(shared_folder, name, tmp_path)
    model = keras_model.build("tiny-moat0", pos_emb=load_golden(case).pos_emb)
    keras_model.load_published(model, names, reader.get_tensor, suffix=suffix)
    assert logits_departure(model, load_golden(case)) <= GOLDEN_TOLERANCE


def test_raw_weights_beside_moving_averages(shared_folder, tmp_path):
    reader, names = unpack(shared_folder, "tiny_moat0_nope_ema", tmp_path)
    model = keras_model.build("tiny-moat0", pos_emb=False)
    keras_model.load_published(model, names, reader.get_tensor)
    variables = tensors_of(model)
    for name, shape in variable_shapes("tiny-moat0", False).items():
        variable = variables[name.replace("depthwise_kernel", "kernel")]
        expected = recipe_tensor(name, shape, key_suffix="#raw" if variable.trainable else "")
        np.testing.assert_array_equal(variable.numpy(), expected, err_msg=name)


def test_object_based_checkpoint_of_the_published_code(shared_folder, tmp_path):
    reader, names = unpack(shared_folder, "tiny_moat0_pe_tf2", tmp_path)
    facts = json.loads((shared_folder / "facts" / "moat_tf2_keys.json").read_text(encoding="utf-8"))
    paths = {facts[path]: path for path in names if facts.get(path)}
    model = keras_model.build("tiny-moat0")
    keras_model.load_published(model, paths, lambda variable: reader.get_tensor(paths[variable]))
    assert logits_departure(model, load_golden("tiny_moat0_pe_256_pool2")) <= GOLDEN_TOLERANCE
