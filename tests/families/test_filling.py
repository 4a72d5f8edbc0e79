"""Filling models from arrays: all of it fits, or nothing changes and the message says what is wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckptkit.base.errors import ConversionError
from ckptkit.families.filling import load_state, tensors_of
from tests.support.moat_reference import philox_normal


@dataclass(frozen=True)
class Side:
    """A framework's model of one linear layer, and how its tensors are called."""

    make: Callable[[], Any]
    kernel: str
    bias: str
    kernel_shape: tuple[int, int]
    counter: str
    called: str

    @property
    def state(self) -> dict[str, np.ndarray]:
        return {self.kernel: philox_normal(1, self.kernel_shape), self.bias: philox_normal(2, (4,))}


def _torch_model() -> Any:
    torch = pytest.importorskip("torch")
    return torch.nn.Sequential(torch.nn.Linear(3, 4))


def _keras_model() -> Any:
    pytest.importorskip("tensorflow")
    from ckptkit.families.keras_backend import keras

    net = keras.Sequential([keras.layers.Dense(4, name="first")], name="net")
    net.build((None, 3))
    return net


SIDES = {
    "torch": Side(_torch_model, "0.weight", "0.bias", (4, 3), "0.num_batches_tracked", "the model"),
    "keras": Side(
        _keras_model, "net/first/kernel", "net/first/bias", (3, 4), "net/first/num_batches_tracked", "net"
    ),
}


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> Side:
    return SIDES[request.param]


def values(model: Any) -> dict[str, np.ndarray]:
    return {name: np.array(tensor.numpy()) for name, tensor in tensors_of(model).items()}


def test_values_arrive(side):
    model = side.make()
    load_state(model, side.state)
    image = philox_normal(3, (2, 3))
    kernel = side.state[side.kernel]
    expected = image @ (kernel if kernel.shape == (3, 4) else kernel.T) + side.state[side.bias]
    if side.called == "the model":
        import torch

        with torch.no_grad():
            found = model(torch.from_numpy(image))
    else:
        found = model(image)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_values_arrive_as_copies(side):
    model, state = side.make(), side.state
    load_state(model, state)
    state[side.bias][:] = 99
    np.testing.assert_array_equal(values(model)[side.bias], side.state[side.bias])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, np.dtype(">f4")])
def test_other_float_types_become_the_models_own(side, dtype):
    model = side.make()
    narrow = {name: array.astype(dtype) for name, array in side.state.items()}
    load_state(model, narrow)
    for name, value in values(model).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, narrow[name].astype(np.float32))


def test_read_only_and_strided_arrays_give_no_warning(side):
    model = side.make()
    state = {name: np.asfortranarray(array) for name, array in side.state.items()}
    wide = np.zeros((2, 4), np.float32)
    wide[0] = side.state[side.bias]
    state[side.bias] = wide.T[:, 0]
    for array in state.values():
        array.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_state(model, state)
    for name, value in values(model).items():
        np.testing.assert_array_equal(value, side.state[name])


@pytest.mark.parametrize(
    ("leaf", "array", "message"),
    [
        ("bias", None, "tensors do not fit {called}: 1 missing ({bias})"),
        ("x", np.ones(4), "tensors do not fit {called}: 1 unexpected (x)"),
        ("bias", np.ones(5), "1 of the wrong shape ({bias} [5] instead of [4])"),
        ("kernel", np.ones((4, 4)), "1 of the wrong shape ({kernel} [4, 4] instead of {kernel_shape})"),
        ("kernel", "turned", "1 of the wrong shape ({kernel} {turned} instead of {kernel_shape})"),
        ("bias", np.ones((1, 4)), "1 of the wrong shape ({bias} [1, 4] instead of [4])"),
        ("bias", np.ones(4, np.int32), "1 not floating-point ({bias} int32)"),
        ("bias", np.zeros(4, bool), "1 not floating-point ({bias} bool)"),
        ("bias", np.zeros(4, np.complex64), "1 not floating-point ({bias} complex64)"),
        ("bias", np.array(list("abcd")), "1 not floating-point ({bias} <U1)"),
    ],
)
def test_a_misfit_is_refused_and_changes_nothing(side, leaf, array, message):
    name = getattr(side, leaf, leaf)
    state = side.state
    if array is None:
        del state[name]
    else:
        state[name] = state[name].T if isinstance(array, str) else array
    model = side.make()
    before = values(model)
    with pytest.raises(ConversionError) as caught:
        load_state(model, state)
    words = {**vars(side), "kernel_shape": [*side.kernel_shape], "turned": [*side.kernel_shape[::-1]]}
    assert message.format(**words) in str(caught.value)
    assert "\n" not in str(caught.value)
    for name, value in values(model).items():
        np.testing.assert_array_equal(value, before[name])


def test_everything_wrong_is_in_one_line_and_nothing_is_copied():
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 1), torch.nn.BatchNorm2d(4))
    before = values(model)
    state = {
        "0.weight": np.zeros((2, 4, 1, 1), np.float32),
        "0.bias": np.zeros(4, np.int32),
        "head.weight": np.zeros((2, 2), np.float32),
    }
    with pytest.raises(ConversionError) as caught:
        load_state(model, state)
    message = str(caught.value)
    assert "4 missing (1.weight, 1.bias, 1.running_mean and 1 more)" in message
    assert "1 unexpected (head.weight)" in message
    assert "1 of the wrong shape (0.weight [2, 4, 1, 1] instead of [4, 2, 1, 1])" in message
    assert "1 not floating-point (0.bias int32)" in message
    assert "\n" not in message
    for name, value in values(model).items():
        np.testing.assert_array_equal(value, before[name])


def test_many_names_are_counted_and_the_first_few_shown(side):
    with pytest.raises(ConversionError, match=r"5 unexpected \(x0, x1, x2 and 2 more\)"):
        load_state(side.make(), {f"x{i}": np.ones(1) for i in range(5)})


def test_step_counters_are_ignored(side):
    model = side.make()
    load_state(model, side.state | {side.counter: np.array(1000, np.int64)})
    np.testing.assert_array_equal(values(model)[side.kernel], side.state[side.kernel])


@pytest.mark.parametrize("name", ["num_batches_tracked", "net/first/num_batches_tracked/kernel"])
def test_what_is_not_a_step_counter_is_unexpected(side, name):
    with pytest.raises(ConversionError, match=r"1 unexpected"):
        load_state(side.make(), side.state | {name: np.array(1000, np.int64)})


# -- PyTorch -------------------------------------------------------------------------------------------------


def test_a_float64_model_keeps_float64_values():
    model = _torch_model().double()
    state = {name: array.astype(np.float64) / 3 for name, array in SIDES["torch"].state.items()}
    load_state(model, state)
    np.testing.assert_array_equal(model.state_dict()["0.weight"].numpy(), state["0.weight"])


def test_a_meta_model_gets_memory_and_its_counters_are_zero():
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.BatchNorm2d(4))
    names = ("weight", "bias", "running_mean", "running_var")
    state = {f"0.{name}": philox_normal(number, (4,)) for number, name in enumerate(names)}
    load_state(model, {**state, "0.num_batches_tracked": np.array(7, np.int64)})
    np.testing.assert_array_equal(model.state_dict()["0.running_var"].numpy(), state["0.running_var"])
    assert model.state_dict()["0.num_batches_tracked"].item() == 0


# -- Keras ---------------------------------------------------------------------------------------------------


@pytest.fixture
def keras_model() -> Any:
    pytest.importorskip("tensorflow")
    from ckptkit.families.moat import keras_model

    return keras_model


def test_names_do_not_depend_on_the_scope_a_model_is_made_in(keras_model):
    from ckptkit.families.keras_backend import keras
    from tests.support.moat_keras import keras_state

    with keras.name_scope("outer"):
        model = keras_model.build("tiny-moat0")
    assert set(tensors_of(model)) == set(keras_state("tiny-moat0"))


def test_moat_from_the_keras_layout(keras_model):
    from tests.support.moat_keras import departure, keras_state, shared_model

    image = philox_normal(4, (1, 64, 64, 3))
    model = keras_model.build("tiny-moat0")
    load_state(model, keras_state("tiny-moat0"))
    assert departure(model(image), shared_model()(image).numpy()) == 0


def test_position_tables_are_neither_invented_nor_dropped(keras_model):
    from tests.support.moat_keras import keras_state

    with_tables, without = keras_state("tiny-moat0"), keras_state("tiny-moat0", pos_emb=False)
    with pytest.raises(
        ConversionError, match=r"fit tiny-moat0: 9 unexpected \(moat/block_02_00/attention/rel"
    ):
        load_state(keras_model.build("tiny-moat0", pos_emb=False), with_tables)
    with pytest.raises(ConversionError, match=r"fit tiny-moat0: 9 missing \(moat/block_02_00/attention/rel"):
        load_state(keras_model.build("tiny-moat0"), without)
