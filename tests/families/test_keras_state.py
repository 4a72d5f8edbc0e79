"""Filling Keras models from arrays: all of it fits, or nothing changes and the message says what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import ml_dtypes

from ckptkit.base.errors import ConversionError
from ckptkit.families.filling import load_state, tensors_of
from ckptkit.families.keras_backend import keras
from ckptkit.families.moat import keras_model
from tests.support.moat_keras import departure, keras_state, shared_model
from tests.support.moat_reference import philox_normal


@pytest.fixture
def state():
    return {"net/first/kernel": philox_normal(1, (3, 4)), "net/first/bias": philox_normal(2, (4,))}


@pytest.fixture
def model():
    net = keras.Sequential([keras.layers.Dense(4, name="first")], name="net")
    net.build((None, 3))
    return net


def test_values_arrive(model, state):
    load_state(model, state)
    image = philox_normal(3, (2, 3))
    expected = image @ state["net/first/kernel"] + state["net/first/bias"]
    np.testing.assert_allclose(model(image).numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_become_float32(model, state, dtype):
    narrow = {name: array.astype(dtype) for name, array in state.items()}
    load_state(model, narrow)
    for name, variable in tensors_of(model).items():
        assert variable.dtype == "float32"
        np.testing.assert_array_equal(variable.numpy(), narrow[name].astype(np.float32))


def test_read_only_views_are_taken(model, state):
    turned = {name: np.asfortranarray(array) for name, array in state.items()}
    for array in turned.values():
        array.setflags(write=False)
    load_state(model, turned)
    np.testing.assert_array_equal(model.layers[0].kernel.numpy(), state["net/first/kernel"])


def changed(state, **changes):
    new = {name: array for name, array in state.items() if name.rsplit("/", 1)[1] not in changes}
    return new | {f"net/first/{leaf}": array for leaf, array in changes.items() if array is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": None}, "tensors do not fit net: 1 missing (net/first/bias)"),
        ({"scale": np.ones(4)}, "tensors do not fit net: 1 unexpected (net/first/scale)"),
        ({"bias": np.ones(5)}, "1 of the wrong shape (net/first/bias [5] instead of [4])"),
        ({"kernel": np.ones((4, 3))}, "1 of the wrong shape (net/first/kernel [4, 3] instead of [3, 4])"),
        ({"bias": np.ones((1, 4))}, "1 of the wrong shape (net/first/bias [1, 4] instead of [4])"),
        ({"bias": np.ones(4, np.int32)}, "1 not floating-point (net/first/bias int32)"),
        ({"bias": np.array(list("abcd"))}, "1 not floating-point (net/first/bias <U1)"),
        ({"bias": None, "scale": np.ones(4)}, "1 missing (net/first/bias); 1 unexpected (net/first/scale)"),
    ],
)
def test_a_misfit_is_refused_and_changes_nothing(model, state, changes, message):
    before = [array.copy() for array in model.get_weights()]
    with pytest.raises(ConversionError) as caught:
        load_state(model, changed(state, **changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_many_names_are_counted_and_the_first_few_shown(model):
    with pytest.raises(ConversionError, match=r"5 unexpected \(x0, x1, x2 and 2 more\)"):
        load_state(model, {f"x{i}": np.ones(1) for i in range(5)})


def test_step_counters_are_ignored(model, state):
    load_state(model, state | {"net/first/num_batches_tracked": np.array(1000, np.int64)})
    np.testing.assert_array_equal(model.layers[0].kernel.numpy(), state["net/first/kernel"])


@pytest.mark.parametrize("name", ["num_batches_tracked", "net/first/num_batches_tracked/kernel"])
def test_what_is_no_step_counter_is_unexpected(model, state, name):
    with pytest.raises(ConversionError, match=r"1 unexpected"):
        load_state(model, state | {name: np.array(1000, np.int64)})


def test_names_do_not_depend_on_the_scope_a_model_is_made_in():
    with keras.name_scope("outer"):
        model = keras_model.build("tiny-moat0")
    assert set(tensors_of(model)) == set(keras_state("tiny-moat0"))


def test_moat_from_the_keras_layout():
    image = philox_normal(4, (1, 64, 64, 3))
    model = keras_model.build("tiny-moat0")
    load_state(model, keras_state("tiny-moat0"))
    assert departure(model(image), shared_model()(image).numpy()) == 0


def test_position_tables_are_neither_invented_nor_dropped():
    with_tables, without = keras_state("tiny-moat0"), keras_state("tiny-moat0", pos_emb=False)
    with pytest.raises(
        ConversionError, match=r"fit tiny-moat0: 9 unexpected \(moat/block_02_00/attention/rel"
    ):
        load_state(keras_model.build("tiny-moat0", pos_emb=False), with_tables)
    with pytest.raises(ConversionError, match=r"fit tiny-moat0: 9 missing \(moat/block_02_00/attention/rel"):
        load_state(keras_model.build("tiny-moat0"), without)
