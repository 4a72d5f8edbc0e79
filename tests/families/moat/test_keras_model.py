"""The Keras MOAT against the recorded outputs of the published code, and everything it can be asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from ckptkit.base.errors import NotFoundError, UsageError
from ckptkit.families.base import Structure, get_family
from ckptkit.families.filling import tensors_of
from ckptkit.families.keras_backend import keras, tf
from ckptkit.families.moat import keras_model
from tests.support.moat_keras import GOLDEN_TOLERANCE, departure, loaded, logits_departure, shared_model
from tests.support.moat_reference import (
    GOLDEN_CASES,
    load_golden,
    moat_variables,
    parameter_count,
    philox_normal,
    variable_shapes,
)

STAGE_TOLERANCE = 1e-5
"""Of the stage's standard deviation; 1.4e-6 was measured."""


# --- against the recorded outputs ---------------------------------------------------------------------------


@pytest.fixture(scope="module", params=GOLDEN_CASES)
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


right_bias = keras_model.position_bias

MISTAKES = {
    "LayerNorm epsilon 1e-6": ("LAYER_NORM_EPSILON", 1e-6, 5e-5),
    "LayerNorm epsilon 1e-3": ("LAYER_NORM_EPSILON", 1e-3, 6e-3),
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


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_shows(mistake, monkeypatch):
    case = load_golden("tiny_moat0_pe_256_pool2")
    attribute, wrong, documented = MISTAKES[mistake]
    monkeypatch.setattr(keras_model, attribute, wrong)
    model = loaded("tiny-moat0")
    moved = np.abs(model(case.input).numpy() - case.logits).max()
    assert moved / np.abs(case.logits).max() > GOLDEN_TOLERANCE
    assert documented / 1.6 < moved < documented * 1.6


@pytest.mark.parametrize("settings", [{"pool_size": 3}, {"window_size": {2: 8}}, {"window_size": {3: 4}}])
def test_a_setting_of_dense_prediction_shows(settings):
    case = load_golden("tiny_moat0_pe_256_pool2")
    assert logits_departure(loaded("tiny-moat0", **settings), case) > 100 * GOLDEN_TOLERANCE


# --- names, shapes and counts -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=list(moat_variables()))
def variant(request):
    return request.param


@pytest.mark.parametrize("pos_emb", [True, False], ids=["pe", "nope"])
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


@pytest.mark.parametrize("num_classes", [1000, 7, None, 0])
@pytest.mark.parametrize("pos_emb", [True, False], ids=["pe", "nope"])
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


def test_odd_sizes_run_in_eager_mode_and_in_a_graph():
    model = shared_model()
    image = philox_normal(1, (1, 250, 190, 3))
    outputs = model.forward_stages(image)
    sides = [(125, 95), (63, 48), (32, 24), (16, 12), (8, 6)]
    assert [tuple(outputs[stage].shape[1:3]) for stage in keras_model.STAGES] == sides
    graph = tf.function(model, input_signature=[tf.TensorSpec((None, None, None, 3))])
    assert departure(graph(image), outputs["logits"].numpy()) < GOLDEN_TOLERANCE
    assert graph(philox_normal(2, (3, 64, 96, 3))).shape == (3, 1000)


def test_a_table_loaded_after_tracing_counts():
    model = loaded("tiny-moat0")
    case = load_golden("tiny_moat0_pe_256_pool2")
    graph = tf.function(model)
    before = graph(case.input).numpy()
    for name, variable in tensors_of(model).items():
        if name.endswith("relative_position_embedding"):
            variable.assign(tf.zeros_like(variable))
    after = graph(case.input).numpy()
    assert departure(before, case.logits) <= GOLDEN_TOLERANCE
    without = load_golden("tiny_moat0_nope_256_pool2").logits
    assert departure(after, without) <= GOLDEN_TOLERANCE
    assert departure(after, case.logits) > 100 * GOLDEN_TOLERANCE


def test_features_only_gives_five_maps():
    case = load_golden("tiny_moat0_pe_256_pool2")
    model = loaded("tiny-moat0", features_only=True)
    features = model(case.input)
    shapes = [tuple(case.arrays[f"stage{k}_shape"]) for k in range(1, 6)]
    assert [tuple(f.shape) for f in features] == shapes
    assert departure(features[-1], case.arrays["stage5"]) < STAGE_TOLERANCE
    assert departure(model.forward_stages(case.input)["logits"], case.logits) <= GOLDEN_TOLERANCE


@pytest.mark.parametrize("num_classes", [None, 0])
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
    assert keras_model.build("tiny-moat0", window_size=window_size).windows == {2: (4, 4), 3: (4, 4)}


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
