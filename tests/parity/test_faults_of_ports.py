"""A port with one fault at a time: it is caught, the first wrong stage is named, and never a wrong cause.

The port is written three times: for PyTorch, for Keras, and for ONNX as PyTorch's graph of it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.parity.any_model import prove_case, record_case
from ckptkit.parity.report import CaseReport
from tests.support.cases import side, sides_run_here, write_case
from tests.support.commands import runner

TORCH = """
import math

import torch
import torch.nn.functional as F
from torch import nn


class Stem(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 5, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (1, 2, 1, 2)))


def rotated(x, base=10000.0):
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * base ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)


class NoBias(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight)


class Attention(nn.Module):
    def __init__(self, heads=2):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        scores = rotated(q) @ rotated(k).transpose(2, 3) / math.sqrt(q.shape[-1])
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = Stem()
        self.norm = nn.BatchNorm2d(16, eps=1e-3)
        self.act = nn.LeakyReLU(0.2)
        self.context = nn.Linear(64, 16)
        self.mix = nn.Linear(16, 16)
        self.ln = nn.LayerNorm(16, eps=1e-3)
        self.attention = Attention()
        self.mlp = Mlp()
        self.head = nn.Linear(16, 10)

    def forward(self, images):
        x = self.act(self.norm(self.stem(images)))
        context = self.context(F.avg_pool2d(x, 4).permute(0, 2, 3, 1).flatten(1))
        x = self.mix(x.flatten(2).transpose(1, 2)) + context[:, None]
        x = x + self.attention(self.ln(x))
        x = x + self.mlp(x)
        return self.head(x.mean(1))


class Part(Net):
    def forward(self, images):
        return self.norm(self.stem(images)).relu()
"""
KERAS = """
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops


def rotated(x, base=10000.0):
    half = x.shape[-1] // 2
    places, steps = ops.arange(x.shape[1], dtype="float32"), ops.arange(half, dtype="float32")
    angles = places[:, None, None] * base ** (-steps / half)
    a, b = x[..., :half], x[..., half:]
    sin, cos = ops.sin(angles), ops.cos(angles)
    return ops.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


class Attention(layers.Layer):
    def __init__(self, heads=2, **options):
        super().__init__(**options)
        self.heads = heads
        self.q, self.k, self.v, self.out = (layers.Dense(16, name=name) for name in ("q", "k", "v", "out"))

    def call(self, x):
        q, k, v = (
            ops.reshape(layer(x), (-1, x.shape[1], self.heads, 16 // self.heads))
            for layer in (self.q, self.k, self.v)
        )
        scores = ops.einsum("bqhd,bkhd->bhqk", rotated(q), rotated(k)) / q.shape[-1] ** 0.5
        mixed = ops.einsum("bhqk,bkhd->bqhd", ops.softmax(scores, axis=-1), v)
        return self.out(ops.reshape(mixed, (-1, *x.shape[1:])))


class Mlp(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.fc1, self.fc2 = layers.Dense(32, name="fc1"), layers.Dense(16, name="fc2")

    def call(self, x):
        return self.fc2(ops.gelu(self.fc1(x), approximate=False))


def Net():
    images = keras.Input((16, 16, 3))
    x = layers.Conv2D(16, 5, strides=2, padding="same", name="stem")(images)
    x = layers.LeakyReLU(0.2, name="act")(layers.BatchNormalization(name="norm")(x))
    context = layers.Dense(16, name="context")(layers.Flatten()(layers.AveragePooling2D(4)(x)))
    x = layers.Dense(16, name="mix")(layers.Reshape((64, 16))(x)) + context[:, None]
    x = x + Attention(name="attention")(layers.LayerNormalization(epsilon=1e-3, name="ln")(x))
    x = x + Mlp(name="mlp")(x)
    return keras.Model(images, layers.Dense(10, name="head")(ops.mean(x, axis=1)))


def Part():
    images = keras.Input((16, 16, 3))
    stem = layers.Conv2D(16, 5, strides=2, padding="same", name="stem")
    norm = layers.BatchNormalization(name="norm")
    model = keras.Model(images, ops.relu(norm(stem(images))))
    weights = np.load(Path(__file__).with_name("net.npz"))
    stem.set_weights([weights["stem.conv.weight"].transpose(2, 3, 1, 0), weights["stem.conv.bias"]])
    norm.set_weights([weights[f"norm.{one}"] for one in ("weight", "bias", "running_mean", "running_var")])
    return model
"""
TENSORFLOW = """
from pathlib import Path

import numpy as np
import tensorflow as tf

weights = np.load(Path(__file__).with_name("net.npz"))


class Stem(tf.Module):
    def __call__(self, x):
        kernel = weights["stem.conv.weight"].transpose(2, 3, 1, 0)
        return tf.nn.conv2d(x, kernel, 2, "SAME") + weights["stem.conv.bias"]


class Norm(tf.Module):
    def __call__(self, x):
        order = ("running_mean", "running_var", "bias", "weight")
        return tf.nn.batch_normalization(x, *(weights[f"norm.{one}"] for one in order), 1e-3)


class Part(tf.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = Stem(name="stem"), Norm(name="norm")

    def __call__(self, x):
        return tf.nn.relu(self.norm(self.stem(x)))
"""
RULES = """\
version: 2
rules:
  - {source: "stem.conv.weight", target: "stem/kernel", axes: "o i h w -> h w i o"}
  - {source: "stem.conv.bias", target: "stem/bias"}
  - {source: "norm.running_mean", target: "norm/moving_mean"}
  - {source: "norm.running_var", target: "norm/moving_variance"}
  - {source: "norm.weight", target: "norm/gamma"}
  - {source: "norm.bias", target: "norm/beta"}
  - {source: "ln.weight", target: "ln/gamma"}
  - {source: "ln.bias", target: "ln/beta"}
"""
DENSE = (
    "context",
    "mix",
    *(f"attention.{one}" for one in ("q", "k", "v", "out")),
    "mlp.fc1",
    "mlp.fc2",
    "head",
)
for _name in DENSE:
    _target = _name.replace(".", "/")
    RULES += f'  - {{source: "{_name}.weight", target: "{_target}/kernel", axes: "o i -> i o"}}\n'
    RULES += f'  - {{source: "{_name}.bias", target: "{_target}/bias"}}\n'
RULES += """\
ignore:
  - {name: step counter, pattern: '.*\\.num_batches_tracked', reason: "counts training steps; Keras has none"}
"""
INNER = ("attention.q", "attention.k", "attention.v", "attention", "mlp.fc1", "mlp")
STAGES = ("stem", "norm", "act", "context", "mix", "ln", *INNER, "head")
REFERENCE = side("torch", "nets:Net", checkpoint="net.pth")

Replaced = tuple[tuple[str, str], ...]
Weights = dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("ports") / "case"
    folder.mkdir()
    (folder / "nets.py").write_text(TORCH)
    (folder / "keras_nets.py").write_text(KERAS)
    (folder / "to_keras.yaml").write_text(RULES)
    space: dict[str, Any] = {"__name__": "made"}
    exec(compile(TORCH, "nets.py", "exec"), space)
    torch.manual_seed(4)
    state = space["Net"]().state_dict()
    for name, tensor in state.items():
        if name.endswith("running_var"):
            tensor.uniform_(0.05, 0.5)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.25)
    torch.save(state, folder / "net.pth")
    np.savez(folder / "net.npz", **{name: tensor.numpy() for name, tensor in state.items()})
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Iterator[Path]:
    with sides_run_here():
        yield Path(shutil.copytree(made, tmp_path / "case"))


def swapped(state: Weights) -> None:
    for part in ("weight", "bias"):
        q, k = (f"attention.{one}.{part}" for one in "qk")
        state[q], state[k] = state[k], state[q]


def transposed(state: Weights) -> None:
    state["mix.weight"] = state["mix.weight"].t().contiguous()


BY_HAND = "(lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3))))("
FAULTS: dict[str, tuple[Replaced | Any, str, str | None, str]] = {
    "square kernel transposed": (transposed, "mix", "transpose", "mix.weight transposed on the right"),
    "epsilon of BatchNorm": (
        (("16, eps=1e-3)\n        self.act", "16, eps=1e-5)\n        self.act"),),
        *("norm", "epsilon", "epsilon 1e-3 instead of 1e-5 in norm.weight on the right"),
    ),
    "epsilon of LayerNorm": (
        (("nn.LayerNorm(16, eps=1e-3)", "nn.LayerNorm(16)"),),
        *("ln", "epsilon", "epsilon 1e-3 instead of 1e-5 in ln.weight on the right"),
    ),
    "tanh GELU": (
        (("F.gelu(self.fc1(x))", "F.gelu(self.fc1(x), approximate='tanh')"),),
        *("mlp", "activation", "the exact GELU (erf) instead of the tanh approximation of GELU"),
    ),
    "tanh GELU by hand": (
        (("F.gelu(", BY_HAND),),
        *("mlp", "activation", "GELU"),
    ),
    "symmetric padding": (
        (("F.pad(x, (1, 2, 1, 2))", "x"), ("stride=2", "stride=2, padding=2")),
        *(
            "stem",
            "padding",
            "SAME padding (more after than before) instead of symmetric in stem.conv.weight",
        ),
    ),
    "symmetric padding by hand": (
        (("(1, 2, 1, 2)", "(2, 2, 2, 2)"),),
        *("stem", "padding", "SAME padding (more after than before) instead of symmetric"),
    ),
    "all of the padding after": (
        (("(1, 2, 1, 2)", "(0, 3, 0, 3)"),),
        *("stem", "padding", "SAME padding (more after than before) instead of after only"),
    ),
    "weights of queries and keys swapped": (
        swapped,
        *("attention.q", "swapped", "the outputs of attention.q and attention.k swapped on the right"),
    ),
    "queries and keys swapped": (
        (("q, k, v = (", "k, q, v = ("),),
        *("attention", "swapped", "attention.q.weight and attention.k.weight swapped on the right"),
    ),
    "BatchNorm in training mode": (
        (("self.act(self.norm(", "self.act(self.norm.train()("),),
        *(
            "norm",
            "batch norm",
            "moving statistics instead of those of the batch in norm.weight on the right",
        ),
    ),
    "slope of LeakyReLU": (
        (("nn.LeakyReLU(0.2)", "nn.LeakyReLU()"),),
        *("act", "activation", "slope 0.2 instead of 0.01 in act on the right"),
    ),
    "bias missing": (
        (("self.mix = nn.Linear(16, 16)", "self.mix = NoBias(16, 16)"),),
        *("mix", "bias", "on the left side it agrees"),
    ),
    "number of heads": ((("heads=2", "heads=4"),), "attention", None, ""),
    "order of a flat map": ((("permute(0, 2, 3, 1).", ""),), "context", None, ""),
    "axis of softmax": ((("softmax(-1)", "softmax(-2)"),), "attention", None, ""),
    "base of RoPE": ((("base=10000.0", "base=500.0"),), "attention", None, ""),
}


def plant(folder: Path, fault: Replaced | Any) -> str:
    """Write a port with a fault, in its code or in its checkpoint; gives the side."""
    import torch

    if callable(fault):
        state = torch.load(folder / "net.pth", weights_only=True)
        fault(state)
        torch.save(state, folder / "port.pth")
        return side("torch", "nets:Net", checkpoint="port.pth")
    text = (folder / "nets.py").read_text()
    for old, new in fault:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "port.py").write_text(text)
    return side("torch", "port:Net", checkpoint="net.pth")


def told(report: CaseReport, stage: str, kind: str | None, words: str) -> None:
    """The fault is caught at its stage; its cause is the right one, or none."""
    assert not report.ok
    assert report.first_departure in (stage, f"{stage.replace('.', '/')} ↔ {stage}"), report.verdict
    if kind is None:
        assert report.cause is None, report.cause
    else:
        assert report.cause is not None, f"none of {report.tried}"
        assert report.cause.kind == kind, report.cause
        assert words in str(report)


@pytest.mark.parametrize(("fault", "stage", "kind", "words"), FAULTS.values(), ids=FAULTS.keys())
def test_torch_against_torch(fault: Any, stage: str, kind: str | None, words: str, folder: Path):
    case = write_case(folder, REFERENCE, plant(folder, fault), stages=STAGES)
    told(prove_case(case), stage, kind, words)


KERAS_SIDE = side("keras", "keras_nets:Net", checkpoint="net.pth", rules="to_keras.yaml")


ONE_OF_EACH_KIND = {
    *("square kernel transposed", "epsilon of LayerNorm", "tanh GELU", "symmetric padding by hand"),
    *("weights of queries and keys swapped", "BatchNorm in training mode", "bias missing"),
    "number of heads",
}
"""Of faults in the PyTorch port, whose causes are tried on its own side whatever the other side is."""


@pytest.mark.parametrize(
    ("fault", "stage", "kind", "words"),
    [
        pytest.param(*case, id=name, marks=() if name in ONE_OF_EACH_KIND else pytest.mark.slow)
        for name, case in FAULTS.items()
    ],
)
def test_keras_against_torch(fault: Any, stage: str, kind: str | None, words: str, folder: Path):
    pytest.importorskip("tensorflow")
    stages = {name.replace(".", "/"): name for name in STAGES}
    report = prove_case(write_case(folder, KERAS_SIDE, plant(folder, fault), stages=stages))
    told(report, stage, kind, words)


PADDED = 'x = layers.Conv2D(16, 5, strides=2, name="stem")(ops.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)]))'
IN_KERAS: dict[str, tuple[Replaced, str, str | None, str]] = {
    "epsilon of LayerNorm": (
        (("epsilon=1e-3", "epsilon=1e-5"),),
        *("ln", "epsilon", "epsilon 1e-3 instead of 1e-5 in ln on the right"),
    ),
    "tanh GELU": (
        (("approximate=False", "approximate=True"),),
        *("mlp", "activation", "the other GELU (exact for tanh, tanh for exact) on the right"),
    ),
    "symmetric padding by hand": (
        (
            (
                'x = layers.Conv2D(16, 5, strides=2, padding="same", name="stem")(images)\n    x',
                f"{PADDED}\n    x",
            ),
        ),
        *("stem", "padding", "symmetric padding instead of SAME in stem on the left"),
    ),
    "queries and keys swapped": (
        (("q, k, v = (", "k, q, v = ("),),
        *("attention", "swapped", "attention/q and attention/k swapped on the right"),
    ),
    "BatchNorm in training mode": (
        (('name="norm")(x))', 'name="norm")(x, training=True))'),),
        *("norm", "batch norm", "moving statistics instead of those of the batch in norm on the right"),
    ),
    "slope of LeakyReLU": (
        (("LeakyReLU(0.2", "LeakyReLU(0.3"),),
        *("act", "activation", "slope 0.2 instead of 0.3 in act on the right"),
    ),
    "number of heads": ((("heads=2", "heads=4"),), "attention", None, ""),
    "order of a flat map": (
        (
            ("layers.Flatten()(layers", "layers.Flatten()(layers.Permute((3, 1, 2))(layers"),
            ("(4)(x))", "(4)(x)))"),
        ),
        *("context", None, ""),
    ),
    "axis of softmax": ((("axis=-1)", "axis=-2)"),), "attention", None, ""),
    "base of RoPE": ((("base=10000.0", "base=500.0"),), "attention", None, ""),
}
WITHOUT_A_CAUSE = [name for name, (_, _, kind, _) in IN_KERAS.items() if kind is None]
"""All changes of the model are tried for each."""


@pytest.mark.parametrize(
    ("fault", "stage", "kind", "words"),
    [
        pytest.param(*case, id=name, marks=pytest.mark.slow if name in WITHOUT_A_CAUSE[1:] else ())
        for name, case in IN_KERAS.items()
    ],
)
def test_torch_against_keras(fault: Replaced, stage: str, kind: str | None, words: str, folder: Path):
    pytest.importorskip("tensorflow")
    text = (folder / "keras_nets.py").read_text()
    for old, new in fault:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "port.py").write_text(text)
    port = side("keras", "port:Net", checkpoint="net.pth", rules="to_keras.yaml")
    stages = {name: name.replace(".", "/") for name in STAGES}
    told(prove_case(write_case(folder, REFERENCE, port, stages=stages)), stage, kind, words)


@pytest.mark.parametrize("left", ["torch", "keras"])
@pytest.mark.parametrize("recorded", [False, True])
def test_queries_are_a_stage_and_keys_are_not(left: str, recorded: bool, folder: Path):
    pytest.importorskip("tensorflow" if left == "keras" else "torch")
    stages = {"ln": "ln", "attention.q": "attention.q"}
    reference, separator = (KERAS_SIDE, "/") if left == "keras" else (REFERENCE, ".")
    stages = {name.replace(".", separator): name for name in stages}
    port = plant(folder, swapped)
    if recorded:
        record_case(write_case(folder, reference, port, stages=stages), "right", folder / "port.npz")
        port = side("recorded", "port.npz")
    report = prove_case(write_case(folder, reference, port, stages=stages))
    told(report, "attention.q", "swapped", f"on the {'left' if recorded else 'right'} side it agrees")


# -- a port whose code cannot be changed: changes are tried on the other side -----------------------------

ON_THE_LEFT = {
    "square kernel transposed": "mix{} transposed on the left",
    "tanh GELU": "GELU",
    "symmetric padding": "symmetric padding instead of SAME in stem",
    "epsilon of LayerNorm": "epsilon 1e-5 instead of 1e-3 in ln{} on the left",
    "BatchNorm in training mode": "statistics of the batch (training mode)",
    "slope of LeakyReLU": "slope 0.01 instead of 0.2 in act on the left",
}


@pytest.mark.parametrize(
    ("left", "name", "words"),
    [
        pytest.param(left, name, words, marks=pytest.mark.slow if left == "keras" and place > 2 else ())
        for place, (name, words) in enumerate(ON_THE_LEFT.items())
        for left in ("torch", "keras")
    ],
)
def test_a_recorded_port(name: str, words: str, left: str, folder: Path):
    fault, stage, kind, _ = FAULTS[name]
    reference, stages = REFERENCE, dict(zip(STAGES, STAGES, strict=True))
    if left == "keras":
        pytest.importorskip("tensorflow")
        reference, stages = KERAS_SIDE, {one.replace(".", "/"): one for one in STAGES}
    case = write_case(folder, reference, plant(folder, fault), stages=stages)
    record_case(case, "right", folder / "port.npz")
    report = prove_case(write_case(folder, reference, side("recorded", "port.npz"), stages=stages))
    told(report, stage, kind, "on the left side it agrees")
    assert report.cause is not None
    assert words.format(".weight" if left == "torch" else "") in str(report)


def onnx_part(folder: Path, *, epsilon: float, pads: list[int]) -> str:
    """The stem and its BatchNorm as a graph."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    norm = [f"norm.{one}" for one in ("weight", "bias", "running_mean", "running_var")]
    stem = ["stem.conv.weight", "stem.conv.bias"]
    with np.load(folder / "net.npz") as weights:
        held = [numpy_helper.from_array(weights[name], name) for name in (*stem, *norm)]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", *stem], ["stem"], strides=[2, 2], pads=pads),
            helper.make_node("BatchNormalization", ["stem", *norm], ["norm"], epsilon=epsilon),
            helper.make_node("Relu", ["norm"], ["y"]),
        ],
        "part",
        [value("x", TensorProto.FLOAT, [2, 3, 16, 16])],
        [value("y", TensorProto.FLOAT, [2, 16, 8, 8])],
        held,
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), folder / "part.onnx")
    return side("onnx", "part.onnx")


def tensorflow_part(folder: Path, *, epsilon: float, pads: list[int]) -> str:
    """The same in TensorFlow."""
    pytest.importorskip("tensorflow")
    text = TENSORFLOW.replace("1e-3", str(epsilon))
    if pads == [2] * 4:
        padded = "tf.pad(x, [[0, 0], [2, 2], [2, 2], [0, 0]])"
        text = text.replace('conv2d(x, kernel, 2, "SAME")', f'conv2d({padded}, kernel, 2, "VALID")')
    # A name of its own: bytecode of a module of the same length and second would be taken for it.
    module = f"port_{len(list(folder.glob('port_*.py')))}"
    (folder / f"{module}.py").write_text(text)
    return side("tensorflow", f"{module}:Part")


LEFT = {
    "torch": side("torch", "nets:Part", checkpoint="net.pth"),
    "keras": side("keras", "keras_nets:Part"),
}


@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize("right", [onnx_part, tensorflow_part])
def test_a_graph_of_onnx_or_a_function_of_tensorflow(right: Any, left: str, folder: Path):
    pytest.importorskip("tensorflow" if left == "keras" else "torch")

    def report(epsilon: float, pads: list[int]) -> CaseReport:
        port = right(folder, epsilon=epsilon, pads=pads)
        return prove_case(write_case(folder, LEFT[left], port, stages=["stem", "norm"]))

    same = [1, 1, 2, 2]
    assert report(1e-3, same).ok
    told(report(1e-5, same), "norm", "epsilon", "epsilon 1e-5 instead of 1e-3 in norm")
    padding = report(1e-3, [2] * 4)
    told(padding, "stem", "padding", "symmetric padding instead of SAME in stem")
    assert padding.cause is not None and padding.cause.side == "left"


def test_the_exit_status_is_that_of_a_departure(folder: Path, capsys: Any):
    fault, *_ = FAULTS["tanh GELU"]
    case = write_case(folder, REFERENCE, plant(folder, fault), stages=STAGES)
    done = runner(capsys)("parity", "--case", str(case), "--json")
    assert done.code == 1
    (found,) = json.loads(done.out)
    assert found["cause"]["side"] == "right" and found["cause"]["kind"] == "activation"
