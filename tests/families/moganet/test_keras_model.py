"""The Keras MogaNet: its variables, and everything it can be asked for."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from ckptkit.base.errors import ConversionError, NotFoundError, UsageError
from ckptkit.families.base import Structure, get_family
from ckptkit.families.filling import load_state, tensors_of
from ckptkit.families.keras_backend import keras, tf
from ckptkit.families.moganet import keras_model
from ckptkit.families.moganet.config import MOGANET_CONFIGS, MogaNetConfig
from tests.support.moganet_keras import GOLDEN_TOLERANCE, departure, keras_state, loaded, shared_model
from tests.support.moganet_weights import PARAMETER_COUNTS, load_golden, philox_normal, recipe_state

XT = "moganet-xt"
WIDTHS = (32, 64, 96, 192)


def table(variant=XT, num_classes=1000):
    return get_family("moganet").table("keras", variant, Structure(pos_emb=False, num_classes=num_classes))


# --- names, shapes and counts -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=PARAMETER_COUNTS)
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


@pytest.mark.parametrize("num_classes", [1000, 7, None, 0])
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


def test_names_do_not_depend_on_the_scope_a_model_is_made_in():
    with keras.name_scope("outer"):
        model = keras_model.build(XT, attn_force_fp32=False)
    assert set(tensors_of(model)) == set(keras_state(XT))


# --- loading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [XT, "moganet-s"])
def test_the_layout_rules_give_the_arrays_that_the_tests_load(variant):
    canonical, expected = recipe_state(variant), keras_state(variant)
    bindings = [b for b in table(variant).bindings if b.part != "counter"]
    assert {b.external for b in bindings} == set(expected)
    for binding in bindings:
        array = binding.op.to_external(canonical[binding.canonical], binding.external_shape)
        np.testing.assert_array_equal(array, expected[binding.external], err_msg=binding.external)


def test_step_counters_may_ride_along():
    model = keras_model.build(XT, attn_force_fp32=False)
    counters = {b.external: np.array(1000, np.int64) for b in table().bindings if b.part == "counter"}
    assert len(counters) == 2 + 3 + 2 * 18 + 4
    load_state(model, keras_state(XT) | counters)
    for name, expected in keras_state(XT).items():
        np.testing.assert_array_equal(tensors_of(model)[name].numpy(), expected)


def test_the_weights_of_another_variant_are_refused():
    model = keras_model.build(XT, attn_force_fp32=False)
    with pytest.raises(
        ConversionError, match=r"fit moganet-xt: 68 unexpected .*; \d+ of the wrong shape"
    ) as caught:
        load_state(model, keras_state("moganet-t"))
    assert "\n" not in str(caught.value)


# --- what can be asked for ----------------------------------------------------------------------------------

SMALL = MogaNetConfig("moganet-small-for-tests", (8, 16, 24, 32), (1, 2, 1, 1))


@pytest.fixture
def small(monkeypatch):
    """Return a maker of a small model with random weights, for what does not depend on the variant."""
    monkeypatch.setitem(MOGANET_CONFIGS, SMALL.name, SMALL)

    def make(*, attn_force_fp32=True, **settings):
        model = keras_model.build(SMALL.name, attn_force_fp32=attn_force_fp32, **settings)
        for name, variable in tensors_of(model).items():
            value = philox_normal(zlib.crc32(name.encode()), tuple(variable.shape)) / 8
            is_factor = name.endswith(("moving_variance", "gamma"))
            variable.assign(np.exp(value) if is_factor else value)
        return model

    return make


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        ((250, 190), [(63, 48), (32, 24), (16, 12), (8, 6)]),
        ((97, 33), [(25, 9), (13, 5), (7, 3), (4, 2)]),
        ((5, 1), [(2, 1), (1, 1), (1, 1), (1, 1)]),
    ],
)
def test_odd_sizes_run(size, sides):
    outputs = shared_model().forward_stages(philox_normal(1, (1, *size, 3)))
    expected = [(1, *side, width) for side, width in zip(sides, WIDTHS, strict=True)]
    assert [tuple(outputs[stage].shape) for stage in keras_model.STAGES] == expected
    assert outputs["logits"].shape == (1, 1000)
    assert np.isfinite(outputs["logits"].numpy()).all()


def test_a_graph_of_any_size_gives_what_eager_mode_gives(small):
    model = small()
    graph = tf.function(model, input_signature=[tf.TensorSpec((None, None, None, 3))])
    for shape in ((1, 125, 94, 3), (3, 64, 96, 3)):
        image = philox_normal(2, shape)
        assert departure(graph(image), model(image).numpy()) < GOLDEN_TOLERANCE


def test_images_of_a_batch_do_not_see_each_other(small):
    model = small()
    image = philox_normal(3, (3, 64, 64, 3))
    together = model(image).numpy()
    assert departure(together[:1], together[1:2]) > 0.1  # the images do matter
    alone = np.concatenate([model(image[n : n + 1]).numpy() for n in range(3)])
    assert departure(alone, together) < GOLDEN_TOLERANCE


@pytest.mark.parametrize("side", [64, None])
def test_a_symbolic_input_makes_a_functional_model(side, small):
    model = small()
    image = philox_normal(4, (2, 64, 64, 3))
    inputs = keras.Input((side, side, 3))
    outputs = model(inputs)
    assert outputs.shape == (None, 1000)
    functional = keras.Model(inputs, outputs)
    assert departure(functional(image), model(image).numpy()) < GOLDEN_TOLERANCE


def test_symbolic_features(small):
    model = small(features_only=True)
    shapes = [tuple(f.shape) for f in model(keras.Input((224, 160, 3)))]
    sides = [(56, 40), (28, 20), (14, 10), (7, 5)]
    assert shapes == [(None, *side, width) for side, width in zip(sides, SMALL.widths, strict=True)]


def test_predict(small):
    model = small()
    image = philox_normal(5, (2, 32, 32, 3))
    predicted = model.predict(image, verbose=0)
    assert departure(predicted, model(image).numpy()) < GOLDEN_TOLERANCE


def test_features_only_gives_four_maps_and_keeps_the_head():
    case = load_golden("xtiny_224_plain")
    model = loaded(XT, features_only=True)
    features = model(case.input)
    expected = shared_model().forward_stages(case.input)
    for found, stage in zip(features, keras_model.STAGES, strict=True):
        np.testing.assert_array_equal(found.numpy(), expected[stage].numpy())
    assert departure(model.forward_stages(case.input)["logits"], case.logits) <= GOLDEN_TOLERANCE
    assert list(model.forward_stages(case.input[:, :32, :32], head=False)) == list(keras_model.STAGES)


@pytest.mark.parametrize("num_classes", [None, 0])
def test_a_headless_model_gives_four_maps(num_classes):
    image = philox_normal(6, (1, 64, 64, 3))
    model = keras_model.build(XT, attn_force_fp32=False, num_classes=num_classes)
    load_state(model, keras_state(XT, num_classes=None))
    expected = shared_model().forward_stages(image)
    for found, stage in zip(model(image), keras_model.STAGES, strict=True):
        np.testing.assert_array_equal(found.numpy(), expected[stage].numpy())
    assert list(model.forward_stages(image)) == list(keras_model.STAGES)


def test_another_number_of_classes():
    image = philox_normal(7, (2, 64, 64, 3))
    model = loaded(XT, num_classes=10)
    outputs = model.forward_stages(image)
    head = recipe_state(XT, num_classes=10)
    pooled = outputs["stage4"].numpy().astype(np.float64).mean(axis=(1, 2))
    expected = pooled @ head["head.weight"].T + head["head.bias"]
    assert model(image).shape == (2, 10)
    assert departure(outputs["logits"], expected) < GOLDEN_TOLERANCE


def test_statistics_stay_when_the_model_is_called(small):
    model = small()
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
def test_an_input_of_another_shape_is_refused_in_one_line(shape):
    for call in (shared_model(), shared_model().forward_stages):
        with pytest.raises(UsageError, match="channels last") as caught:
            call(np.zeros(shape, np.float32))
        assert "\n" not in str(caught.value)


def test_other_input_types_are_taken_as_float32(small):
    model = small()
    image = np.round(philox_normal(9, (1, 64, 64, 3)) * 20)
    expected = model(image).numpy()
    np.testing.assert_array_equal(model(image.astype(np.int32)).numpy(), expected)
    np.testing.assert_array_equal(model(image.astype(np.float64)).numpy(), expected)


def test_the_model_stays_float32_under_another_policy(small):
    image = philox_normal(10, (1, 64, 64, 3))
    expected = small()(image).numpy()
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        logits = small()(image)
    finally:
        keras.config.set_dtype_policy(policy)
    assert logits.dtype == tf.float32
    np.testing.assert_array_equal(logits.numpy(), expected)


# --- files --------------------------------------------------------------------------------------------------


def test_weights_file_round_trip(small, tmp_path):
    image = philox_normal(11, (1, 64, 64, 3))
    model = small()
    expected = model(image).numpy()
    model.save_weights(tmp_path / "x.weights.h5")
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
def test_whole_model_round_trip(settings, small, tmp_path):
    image = philox_normal(12, (1, 128, 96, 3))
    model = small(**settings)
    model.save(tmp_path / "x.keras")
    again = keras.saving.load_model(tmp_path / "x.keras")
    assert isinstance(again, keras_model.MogaNetModel)
    assert again.get_config() == model.get_config()
    assert again.resolution == model.resolution
    for expected, found in zip(_listed(model(image)), _listed(again(image)), strict=True):
        np.testing.assert_array_equal(found.numpy(), expected.numpy())


def _listed(outputs):
    return outputs if isinstance(outputs, list) else [outputs]
