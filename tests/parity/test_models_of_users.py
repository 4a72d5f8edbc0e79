"""What a side takes: several inputs, kinds of outputs, and the files of each framework, each strictly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.parity.any_model import prove_case
from ckptkit.parity.child import called
from ckptkit.parity.recorder import tensors_in
from tests.support.cases import side, sides_run_here, write_case

TWO = "{mask: {shape: [2, 6]}, ids: {shape: [2, 6], dtype: int64, max: 50}}"

TORCH = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.shared, self.head = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, ids, mask):
        x = self.words(ids) * mask[..., None]
        for _ in range(2):
            x = self.shared(x).tanh()
        return {"hidden": x, "logits": self.head(x)}


class Tied(Net):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(8, 50, bias=False)
        self.out.weight = self.words.weight
"""
KERAS = """
import keras
from keras import layers, ops


def functional(by_name=False):
    ids, mask = keras.Input((6,), dtype="int32", name="ids"), keras.Input((6,), name="mask")
    shared = layers.Dense(8, activation="tanh", name="shared")
    x = layers.Embedding(50, 8, name="words")(ids) * ops.expand_dims(mask, -1)
    x = shared(shared(x))
    inputs = {"ids": ids, "mask": mask} if by_name else [ids, mask]
    return keras.Model(inputs, {"hidden": x, "logits": layers.Dense(5, name="head")(x)})


def by_name():
    return functional(True)


class Parts(keras.Model):
    def __init__(self):
        super().__init__()
        self.words, self.head = layers.Embedding(50, 8, name="words"), layers.Dense(5, name="head")
        self.shared = layers.Dense(8, activation="tanh", name="shared")

    def call(self, ids, mask):
        x = self.words(ids) * ops.expand_dims(mask, -1)
        x = self.shared(self.shared(x))
        return {"hidden": x, "logits": self.head(x)}


class Unpacked(Parts):
    def call(self, inputs, training=False):
        mask, ids = inputs
        return super().call(ids, mask)


class Named(Parts):
    def call(self, inputs, training=False):
        return super().call(inputs["ids"], inputs["mask"])


def line(*more, bias=True):
    first = [keras.Input((6,), dtype="int32"), layers.Embedding(50, 8, name="words")]
    return keras.Sequential([*first, layers.Dense(5, name="head", use_bias=bias), *more])


def longer():
    return line(layers.Dense(4, name="more"))


def no_bias():
    return line(bias=False)
"""
TENSORFLOW = """
import tensorflow as tf


class Dense(tf.Module):
    def __init__(self, i, o, name):
        super().__init__(name=name)
        with self.name_scope:
            self.w = tf.Variable(tf.zeros([i, o]), name="w")
            self.b = tf.Variable(tf.zeros([o]), name="b")

    def __call__(self, x):
        return x @ self.w + self.b


class Net(tf.Module):
    def __init__(self):
        super().__init__(name="net")
        with self.name_scope:
            self.words = tf.Variable(tf.zeros([50, 8]), name="words")
            self.shared, self.head = Dense(8, 8, "shared"), Dense(8, 5, "head")

    @tf.function(input_signature=[tf.TensorSpec([None, 6], tf.int32), tf.TensorSpec([None, 6])])
    def __call__(self, ids, mask):
        x = tf.gather(self.words, ids) * mask[..., None]
        for _ in range(2):
            x = tf.tanh(self.shared(x))
        return {"hidden": x, "logits": self.head(x)}


def function():
    net = Net()
    return lambda mask, ids: net(tf.cast(ids, tf.int32), mask)


class Lazy(tf.Module):
    net = None

    def __call__(self, ids, mask):
        self.net = self.net or Net()
        return self.net(tf.cast(ids, tf.int32), mask)
"""
TO_KERAS = """\
version: 2
rules:
  - {source: "words.weight", target: "words/embeddings"}
  - {source: "shared.weight", target: "shared/kernel", axes: "o i -> i o"}
  - {source: "shared.bias", target: "shared/bias"}
  - {source: "head.weight", target: "head/kernel", axes: "o i -> i o"}
  - {source: "head.bias", target: "head/bias"}
"""
TO_TENSORFLOW = """\
version: 2
rules:
  - {source: "words.weight", target: "net/words"}
  - {source: "{l...}.weight", target: "net/{l...}/w", axes: "o i -> i o"}
  - {source: "{l...}.bias", target: "net/{l...}/b"}
"""
REFERENCE = side("torch", "port:Net", checkpoint="net.pth")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    torch = pytest.importorskip("torch")
    (tmp_path / "port.py").write_text(TORCH)
    (tmp_path / "rules.yaml").write_text(TO_KERAS)
    torch.manual_seed(0)
    torch.save(module(TORCH)["Net"]().state_dict(), tmp_path / "net.pth")
    with sides_run_here():
        yield tmp_path


def module(text: str) -> dict[str, Any]:
    """What code defines."""
    space: dict[str, Any] = {"__name__": "made"}
    exec(compile(text, "made.py", "exec"), space)
    return space


def agree(folder: Path, right: str, *, inputs: str = TWO, left: str = REFERENCE) -> None:
    """Run a case of two sides that compute the same."""
    report = prove_case(write_case(folder, left, right, stages=None, inputs=inputs))
    assert report.ok, report.verdict
    names = " ".join(stage.name for stage in report.stages)
    assert "hidden" in names and "logits" in names


# -- inputs and outputs --------------------------------------------------------------------------------------


def one(ids: Any) -> Any:
    return ids


def two(ids: Any, mask: Any, more: Any = None) -> Any:
    return ids, mask, more


def any_name(ids: Any, **more: Any) -> Any:
    return ids, more


def keyword(ids: Any = None, *, embedded: Any = None) -> Any:
    return ids, embedded


@pytest.mark.parametrize(
    ("function", "values", "result"),
    [
        (one, {"x": 1}, 1),
        (one, {"mask": 2, "ids": 1}, {"mask": 2, "ids": 1}),  # a single argument takes all
        (two, {"mask": 2, "ids": 1}, (1, 2, None)),
        (two, {"mask": 2, "words": 1}, (1, 2, None)),  # what has a name goes by it
        (two, {"words": 1, "weights": 2}, (1, 2, None)),
        (two, {"more": 3, "words": 1, "weights": 2}, (1, 2, 3)),
        (any_name, {"b": 2, "ids": 1}, (1, {"b": 2})),
        (keyword, {"embedded": 2}, (None, 2)),
        (lambda *a: a, {"x": 1, "y": 2}, (1, 2)),
    ],
)
def test_inputs_go_where_the_parameters_want_them(function: Any, values: dict[str, int], result: Any):
    assert called(function, function, values) == result


def test_more_inputs_than_parameters_are_refused():
    with pytest.raises(UsageError, match=r"the model takes ids, mask, more, the case gives a, b, c, d"):
        called(two, two, dict.fromkeys("abcd", 1))


@dataclass
class Output:
    logits: Any
    more: Any = None


class Pair(NamedTuple):
    logits: Any
    hidden: Any


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (Output(np.ones(2)), ["output.logits"]),
        (Pair(np.ones(2), (np.ones(3), np.ones(4))), ["output.logits", "output.hidden.0", "output.hidden.1"]),
        ({"a": Output(np.ones(2), [np.ones(3)])}, ["output.a.logits", "output.a.more"]),
    ],
)
def test_outputs_are_named_by_the_fields_of_what_a_model_gives(value: Any, names: list[str]):
    assert [name for name, _ in tensors_in(value, "output")] == names


# -- PyTorch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_file_holds_tied_tensors_once(folder: Path, ending: str):
    torch = pytest.importorskip("torch")
    state = {name: tensor.bfloat16() for name, tensor in torch.load(folder / "net.pth").items()}
    torch.save(state, folder / "half.pth")
    pytest.importorskip("safetensors.torch").save_file(state, folder / "half.safetensors")
    tied = side("torch", "port:Tied", checkpoint=f"half.{ending}")
    agree(folder, tied, left=side("torch", "port:Net", checkpoint="half.pth"))


# -- Keras ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["functional", "by_name", "Parts", "Unpacked", "Named"])
def test_a_keras_model_takes_several_inputs(folder: Path, model: str):
    pytest.importorskip("tensorflow")
    (folder / "nets.py").write_text(KERAS)
    agree(folder, side("keras", f"nets:{model}", checkpoint="net.pth", rules="rules.yaml"))


ONE = "{shape: [2, 6], dtype: int32, max: 50}"


@pytest.mark.parametrize("name", ["line.keras", "line.h5", "line.weights.h5", "old.h5"])
def test_each_file_of_keras_is_read_and_names_what_does_not_fit(folder: Path, name: str):
    pytest.importorskip("tensorflow")
    h5py = pytest.importorskip("h5py")
    (folder / "nets.py").write_text(KERAS)
    line = module(KERAS)["line"]()
    for ending in ("keras", "h5"):
        line.save(folder / f"line.{ending}")
    line.save_weights(folder / "line.weights.h5")
    with h5py.File(folder / "line.h5") as whole, h5py.File(folder / "old.h5", "w") as old:
        for layer in whole["model_weights"]:
            whole.copy(whole["model_weights"][layer], old)
        old.attrs.update(whole["model_weights"].attrs)
    left = side("keras", "line.keras")
    case = write_case(folder, left, side("keras", "nets:line", checkpoint=name), stages=None, inputs=ONE)
    report = prove_case(case)
    assert report.ok and report.stages[-1].max_abs == 0
    for model, words in (
        ("longer", "2 missing: .*(dense|more)"),
        ("no_bias", "1 unexpected: .*(dense|head)"),
    ):
        case = write_case(
            folder, left, side("keras", f"nets:{model}", checkpoint=name), stages=None, inputs=ONE
        )
        with pytest.raises(ConversionError, match=words):
            prove_case(case)


def test_a_model_is_an_h5_file_of_keras(folder: Path):
    pytest.importorskip("tensorflow")
    module(KERAS)["line"]().save(folder / "line.h5")
    sides = side("keras", "line.h5"), side("keras", "line.h5")
    assert prove_case(write_case(folder, *sides, stages=None, inputs=ONE)).ok


# -- TensorFlow ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", ["module", "lazy", "saved", "objects", "below a key", "objects of a saved model"]
)
def test_a_module_of_tensorflow_is_filled(folder: Path, how: str):
    tf = pytest.importorskip("tensorflow")
    (folder / "nets.py").write_text(TENSORFLOW)
    (folder / "rules.yaml").write_text(TO_TENSORFLOW)
    net = module(TENSORFLOW)["Net"]()
    if "saved" in how:
        tf.saved_model.save(net, str(folder / "saved"), signatures=net.__call__)
    by_rules = {"checkpoint": "net.pth", "rules": "rules.yaml"}
    fill(folder, net)
    tf.train.Checkpoint(net).write(str(folder / "objects"))
    tf.train.Checkpoint(ema=tf.train.Checkpoint(net=net), optimizer=tf.Variable(1)).save(
        str(folder / "below")
    )
    agree(
        folder,
        {
            "module": side("tensorflow", "nets:Net", **by_rules),
            "lazy": side("tensorflow", "nets:Lazy", **by_rules),
            "saved": side("tensorflow", "saved", **by_rules),
            "objects": side("tensorflow", "nets:Net", checkpoint="objects"),
            "below a key": side("tensorflow", "nets:Net", checkpoint="below-1"),
            "objects of a saved model": side("tensorflow", "saved", checkpoint="objects.index"),
        }[how],
        inputs=TWO if how == "lazy" or "saved" in how else TWO.replace("int64", "int32"),
    )


def fill(folder: Path, net: Any) -> None:
    import torch

    state = {name: tensor.numpy() for name, tensor in torch.load(folder / "net.pth").items()}
    net.words.assign(state["words.weight"])
    for name in ("shared", "head"):
        getattr(net, name).w.assign(state[f"{name}.weight"].T)
        getattr(net, name).b.assign(state[f"{name}.bias"])


def test_what_of_a_module_of_tensorflow_has_no_counterpart_is_named(folder: Path):
    tf = pytest.importorskip("tensorflow")
    (folder / "nets.py").write_text(TENSORFLOW)
    (folder / "rules.yaml").write_text(TO_TENSORFLOW)
    net = module(TENSORFLOW)["Net"]()
    net.more = net.head
    del net.head
    tf.train.Checkpoint(model=net).save(str(folder / "part"))
    right = side("tensorflow", "nets:Net", checkpoint="part-1")
    with pytest.raises(ConversionError, match="2 missing: head/b, head/w; 2 unexpected: more/b, more/w"):
        prove_case(write_case(folder, REFERENCE, right, stages=None, inputs=TWO.replace("int64", "int32")))
    right = side("tensorflow", "nets:function", checkpoint="net.pth", rules="rules.yaml")
    with pytest.raises(
        UsageError, match=r"gives function, which has no variables to fill; return the tf\.Mod"
    ):
        prove_case(write_case(folder, REFERENCE, right, stages=None, inputs=TWO))


# -- ONNX ----------------------------------------------------------------------------------------------------


def graph(path: Path) -> None:
    """A graph of two inputs and two outputs whose weights are in a file beside it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    value = helper.make_tensor_value_info
    weights = np.random.default_rng(1).normal(size=(50, 8)).astype("f4")
    nodes = [
        helper.make_node("Gather", ["w", "ids"], ["words"]),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["words", "wide"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["logits"]),
    ]
    ids, mask = value("ids", TensorProto.INT64, [2, 6]), value("mask", TensorProto.FLOAT, [2, 6])
    outputs = [value(name, TensorProto.FLOAT, [2, 6, 8]) for name in ("hidden", "logits")]
    constants = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([-1]), "last")]
    made = helper.make_graph(nodes, "g", [ids, mask], outputs, constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path, save_as_external_data=True, location="weights.data", size_threshold=64)
    np.save(path.with_name("weights.npy"), weights)


LOOKUP = """
import numpy, pathlib, torch
from torch import nn


class Lookup(nn.Module):
    def __init__(self):
        super().__init__()
        weights = numpy.load(pathlib.Path(__file__).with_name("weights.npy"))
        self.words = nn.Embedding(50, 8, _weight=torch.from_numpy(weights))

    def forward(self, ids, mask):
        hidden = self.words(ids) * mask[..., None]
        return {"hidden": hidden, "logits": hidden.relu()}
"""


@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_a_graph_has_several_inputs_and_outputs_and_its_weights_beside_it(folder: Path, dtype: str):
    pytest.importorskip("onnxruntime")
    graph(folder / "net.onnx")
    (folder / "nets.py").write_text(LOOKUP)
    assert (folder / "weights.data").exists()
    left, right = side("torch", "nets:Lookup"), side("onnx", "net.onnx")
    agree(folder, right, left=left, inputs=TWO.replace("int64", dtype))
    (folder / "weights.data").unlink()
    with pytest.raises(Exception, match=r"weights\.data"):
        agree(folder, right, left=left)


def test_a_graph_that_lacks_an_input_says_which(folder: Path):
    pytest.importorskip("onnxruntime")
    graph(folder / "net.onnx")
    (folder / "nets.py").write_text(LOOKUP.replace("ids, mask", "ids").replace("mask[..., None]", "1"))
    case = write_case(
        folder,
        side("torch", "nets:Lookup"),
        side("onnx", "net.onnx"),
        stages=None,
        inputs="{ids: {shape: [2, 6], dtype: int64, max: 50}}",
    )
    with pytest.raises(UsageError, match=r"the model takes ids, mask: the case gives no mask"):
        prove_case(case)
