"""Strict filling of a PyTorch model."""

from __future__ import annotations

import warnings

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ckptkit.base.errors import ConversionError  # noqa: E402
from ckptkit.families.filling import load_state  # noqa: E402


def _model():
    return torch.nn.Sequential(torch.nn.Conv2d(2, 4, 1), torch.nn.BatchNorm2d(4))


def _state() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {
        "0.weight": (4, 2, 1, 1),
        "0.bias": (4,),
        **{f"1.{name}": (4,) for name in ("weight", "bias", "running_mean", "running_var")},
    }
    return {name: rng.random(shape, dtype=np.float32) for name, shape in shapes.items()}


def _values(model) -> dict[str, np.ndarray]:
    return {
        name: tensor.numpy().copy()
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def test_values_arrive_as_copies():
    model, state = _model(), _state()
    load_state(model, state)
    kept = {name: array.copy() for name, array in state.items()}
    state["0.bias"][:] = 99
    for name, value in _values(model).items():
        np.testing.assert_array_equal(value, kept[name])


def test_read_only_and_strided_arrays_give_no_warning():
    model, state = _model(), _state()
    expected = {name: array.copy() for name, array in state.items()}
    for array in state.values():
        array.setflags(write=False)
    wide = np.zeros((2, 4), np.float32)
    wide[0] = state["0.bias"]
    state["0.bias"] = wide.T[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_state(model, state)
    for name, value in _values(model).items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, np.dtype(">f4")])
def test_other_floating_point_types_become_the_parameters_own(dtype):
    model = _model()
    state = {name: array.astype(dtype) for name, array in _state().items()}
    load_state(model, state)
    for name, value in _values(model).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, state[name].astype(np.float32))


def test_a_float64_model_keeps_float64_values():
    model = _model().double()
    state = {name: array.astype(np.float64) / 3 for name, array in _state().items()}
    load_state(model, state)
    np.testing.assert_array_equal(model.state_dict()["0.weight"].numpy(), state["0.weight"])


def test_a_meta_model_gets_memory():
    with torch.device("meta"):
        model = _model()
    state = _state()
    load_state(model, state)
    np.testing.assert_array_equal(model.state_dict()["1.running_var"].numpy(), state["1.running_var"])
    assert model.state_dict()["1.num_batches_tracked"].item() == 0


def test_the_counter_of_training_steps_is_ignored():
    model = _model()
    load_state(model, {**_state(), "1.num_batches_tracked": np.array(7, np.int64)})
    assert model.state_dict()["1.num_batches_tracked"].item() == 0


def test_everything_wrong_is_said_at_once_and_nothing_is_copied():
    model, state = _model(), _state()
    before = _values(model)
    for name in ("1.weight", "1.bias", "1.running_mean", "1.running_var"):
        del state[name]
    state["0.weight"] = state["0.weight"].reshape(2, 4, 1, 1)
    state["0.bias"] = np.zeros(4, np.int32)
    state["head.weight"] = np.zeros((2, 2), np.float32)
    with pytest.raises(ConversionError) as caught:
        load_state(model, state)
    message = str(caught.value)
    assert "4 missing (1.weight, 1.bias, 1.running_mean and 1 more)" in message
    assert "1 unexpected (head.weight)" in message
    assert "1 of the wrong shape (0.weight [2, 4, 1, 1] instead of [4, 2, 1, 1])" in message
    assert "1 not floating-point (0.bias int32)" in message
    assert "\n" not in message
    for name, value in _values(model).items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("array", [np.array(["a"] * 4), np.zeros(4, np.complex64), np.zeros(4, bool)])
def test_what_is_no_number_is_refused(array):
    with pytest.raises(ConversionError, match=r"1 not floating-point \(0\.bias"):
        load_state(_model(), {**_state(), "0.bias": array})
