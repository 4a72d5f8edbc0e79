"""Case files run: faults planted in a port, each caught at the stage where it begins, with its cause."""

from __future__ import annotations

import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.base.errors import ConversionError, FormatError, NotFoundError, UsageError
from ckptkit.parity.align import Outputs, best, find, pairs
from ckptkit.parity.any_model import prove_case, record_case
from ckptkit.parity.recorder import Recorder
from tests.conftest import REPOSITORY
from tests.support.cases import side, sides_run_here, write_case

EXAMPLE = REPOSITORY / "examples" / "case"
KERAS = side("recorded", "keras.npz")

Weights = dict[str, Any]


def torch_side(model: str = "nets:build_torch", checkpoint: str = "net.pth") -> str:
    return side("torch", model, checkpoint=checkpoint)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's folder, its weights, and what its Keras model gives, recorded once."""
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    folder = tmp_path_factory.mktemp("example") / "case"
    shutil.copytree(EXAMPLE, folder)
    runpy.run_path(str(folder / "nets.py"), run_name="__main__")
    with sides_run_here():
        record_case(folder / "case.yaml", "right", folder / "keras.npz")
    return folder


@pytest.fixture
def folder(example: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it for one test, which runs its sides in this process."""
    with sides_run_here():
        yield Path(shutil.copytree(example, tmp_path / "case"))


def transposed(name: str, *axes: int) -> Callable[[Weights], None]:
    def change(state: Weights) -> None:
        state[name] = state[name].transpose(*axes).contiguous()

    return change


def swapped(one: str, other: str) -> Callable[[Weights], None]:
    def change(state: Weights) -> None:
        for part in ("weight", "bias"):
            a, b = f"attention.{one}.{part}", f"attention.{other}.{part}"
            state[a], state[b] = state[b], state[a]

    return change


Replaced = tuple[tuple[str, str], ...]
FAULTS: dict[str, tuple[Replaced | Callable[[Weights], None], str, str, str]] = {
    "square kernel transposed": (
        transposed("attention.out.weight", 0, 1),
        *("attention", "transpose", "attention.out.weight transposed on the right"),
    ),
    "square convolution, in and out swapped": (
        transposed("mix.weight", 0, 1),
        *("mix", "transpose", "mix.weight with in and out channels swapped on the right"),
    ),
    "convolution, height and width swapped": (
        transposed("stem.weight", 2, 3),
        *("stem", "transpose", "stem.weight with height and width swapped on the right"),
    ),
    "queries and keys swapped": (
        swapped("query", "key"),
        *("attention", "swapped", "attention.query.weight and attention.key.weight swapped on the right"),
    ),
    "epsilon": (
        (("eps=1e-3", "eps=1e-5"),),
        *("norm", "epsilon", "epsilon 1e-3 instead of 1e-5 in norm.weight on the right"),
    ),
    "tanh GELU": (
        (("F.gelu(", "nn.GELU('tanh')("),),
        *("mix", "activation", "the exact GELU (erf) instead of the tanh approximation of GELU"),
    ),
    "symmetric padding by hand": (
        (("F.pad(images, (0, 1, 0, 1))", "F.pad(images, (1, 0, 1, 0))"),),
        *("stem", "padding", "SAME padding (more after than before) instead of before only"),
    ),
    "symmetric padding of the convolution": (
        (("F.pad(images, (0, 1, 0, 1))", "images"), ("stride=2", "stride=2, padding=1")),
        *("stem", "padding", "SAME padding (more after than before) instead of symmetric in stem.weight"),
    ),
    "BatchNorm in training mode": (
        (("nn.BatchNorm2d(", "TrainingNorm("),),
        *(
            "norm",
            "batch norm",
            "moving statistics instead of those of the batch in norm.weight on the right",
        ),
    ),
    "bias missing": (
        (("nn.Conv2d(16, 16", "NoBias(16, 16"),),
        *("mix", "bias", "a constant added to each channel (a bias that one side lacks)"),
    ),
}
LAYERS = """
    class TrainingNorm(nn.BatchNorm2d):
        def forward(self, x):
            statistics = self.running_mean, self.running_var
            return F.batch_norm(x, *statistics, self.weight, self.bias, True, 0.1, self.eps)

    class NoBias(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight, padding=1)

    class Net("""


def plant(folder: Path, fault: Replaced | Callable[[Weights], None]) -> str:
    """Write a port with a fault, in its code or in its checkpoint; gives the side."""
    import torch

    if callable(fault):
        state = torch.load(folder / "net.pth", weights_only=True)
        before = {name: tensor.clone() for name, tensor in state.items()}
        fault(state)
        assert any(not torch.equal(before[name], tensor) for name, tensor in state.items())
        torch.save(state, folder / "port.pth")
        return torch_side(checkpoint="port.pth")
    text = (folder / "nets.py").read_text().replace("\n    class Net(", LAYERS, 1)
    for old, new in fault:
        assert old in text
        text = text.replace(old, new, 1)
    (folder / "port.py").write_text(text)
    return torch_side("port:build_torch")


@pytest.mark.parametrize(("fault", "stage", "kind", "words"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_of_a_port_is_caught_where_it_begins_and_its_cause_is_named(
    fault: Any, stage: str, kind: str, words: str, folder: Path
):
    report = prove_case(write_case(folder, KERAS, plant(folder, fault)))
    assert not report.ok
    assert report.first_departure == stage, report.verdict
    assert report.cause is not None, f"none of {report.tried}"
    assert report.cause.kind == kind
    assert report.cause.figure < 5e-5
    assert words in str(report)
    assert report.to_json()["cause"]["kind"] == kind


def test_two_faults_at_once_are_found_but_no_cause_is_named(folder: Path):
    fault = (
        ("eps=1e-3", "eps=1e-5"),
        ("nn.BatchNorm2d(16", "TrainingNorm(16"),
        ("x, *statistics", "2 * x, *statistics"),
    )
    report = prove_case(write_case(folder, KERAS, plant(folder, fault)))
    assert report.first_departure == "norm"
    assert report.cause is None
    assert f"cause not found: none of {report.tried} single changes makes the stage agree" in str(report)
    assert report.tried >= 4


IN_KERAS: dict[str, tuple[Replaced, str, str, str]] = {
    "epsilon": (
        (("BatchNormalization(", "BatchNormalization(epsilon=1e-5, "),),
        *("norm", "epsilon", "epsilon 1e-3 instead of 1e-5 in norm"),
    ),
    "tanh GELU": (
        (("approximate=False", "approximate=True"),),
        *("mix", "activation", "the other GELU"),
    ),
    "BatchNorm in training mode": (
        (('name="norm")(x)', 'name="norm")(x, training=True)'),),
        *("norm", "batch norm", "moving statistics instead of those of the batch in norm"),
    ),
    "symmetric padding": (
        (
            ('strides=2, padding="same", name="stem")(images)', 'strides=2, name="stem")(PAD(images))'),
            ("PAD", "layers.ZeroPadding2D(1)"),
        ),
        *("stem", "padding", "SAME padding (more after than before) instead of symmetric in zero_padding2d"),
    ),
    "square kernel transposed": (
        (('"attention/out/kernel", axes: "o i -> i o"', '"attention/out/kernel", op: identity'),),
        *("attention", "transpose", "the kernel of attention/out transposed"),
    ),
    "queries and keys swapped": (
        (("/query/", "/q/"), ("/key/", "/query/"), ("/q/", "/key/")),
        *("attention", "swapped", "attention/query and attention/key swapped"),
    ),
}


@pytest.mark.parametrize(("replaced", "stage", "kind", "words"), IN_KERAS.values(), ids=IN_KERAS.keys())
def test_a_fault_of_a_keras_port_is_caught_as_well(
    replaced: Replaced, stage: str, kind: str, words: str, folder: Path
):
    record_case(folder / "case.yaml", "left", folder / "torch.npz")
    code, rules = ((folder / name).read_text() for name in ("nets.py", "to_keras.yaml"))
    for old, new in replaced:
        assert old in code or old in rules
        code, rules = code.replace(old, new, 1), rules.replace(old, new)
    (folder / "port.py").write_text(code)
    (folder / "to_keras.yaml").write_text(rules)
    keras = side("keras", "port:build_keras", checkpoint="net.pth", rules="to_keras.yaml")
    report = prove_case(write_case(folder, side("recorded", "torch.npz"), keras))
    assert report.first_departure == stage, report.verdict
    assert report.cause is not None, f"none of {report.tried}"
    assert (report.cause.side, report.cause.kind) == ("right", kind)
    assert words in report.cause.what


# -- alignment -----------------------------------------------------------------------------------------------


def test_without_stages_those_of_equal_shape_are_paired_and_the_report_says_so(folder: Path):
    record_case(write_case(folder, torch_side(), torch_side(), stages=None), "left", folder / "all.npz")
    agreeing = prove_case(write_case(folder, side("recorded", "all.npz"), torch_side(), stages=None))
    assert agreeing.ok and agreeing.guessed
    assert "paired by shape and order of execution" in str(agreeing)
    assert agreeing.to_json()["stages_guessed"] is True

    fault = (("eps=1e-3", "eps=1e-5"),)
    report = prove_case(write_case(folder, side("recorded", "all.npz"), plant(folder, fault), stages=None))
    assert report.first_departure == "norm"
    assert report.cause is not None and report.cause.kind == "epsilon"


def outputs(layout: str | None = None, **arrays: Any) -> Outputs:
    return Outputs(
        {name.replace("_", "."): array for name, array in arrays.items()}, (), layout, frozenset({4})
    )


def test_a_guess_prefers_pairs_whose_values_are_alike():
    random = np.random.default_rng(1)
    a, b, c, d = (random.normal(size=(2, 5)).astype("f4") for _ in range(4))
    left = outputs(one=a, two=b, three=c, output=d)
    right = outputs(extra=random.normal(size=(2, 5)).astype("f4"), two=b, other=a[:, :3], three=c, output=d)
    found = [(pair.left, pair.right) for pair in pairs(left, right, None)]
    assert found == [("one", "extra"), ("two", "two"), ("three", "three"), ("output", "output")]


def test_maps_are_turned_but_attention_is_not():
    maps = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype("f4")
    attention = np.random.default_rng(2).normal(size=(2, 4, 4, 4)).astype("f4")
    left, right = (
        outputs("NCHW", a=maps, b=attention),
        outputs("NHWC", a=maps.transpose(0, 2, 3, 1), b=attention),
    )
    for name in ("a", "b"):
        both = best(left, name, right, name)
        assert both is not None
        np.testing.assert_array_equal(both[0].array, both[1].array)


@pytest.mark.parametrize(
    ("name", "found"),
    [("block", "net/block"), ("net/block", "net/block"), ("logits", "output.logits"), ("output", "output")],
)
def test_a_stage_is_found_by_its_name_its_end_or_a_key_of_the_result(name: str, found: str):
    assert find(name, ["net/block", "output.logits", "output"], "left") == found


def test_a_stage_that_did_not_run_is_named_with_those_that_did(folder: Path):
    with pytest.raises(NotFoundError, match=r"right: no stage 'mixx' ran; it has mix"):
        prove_case(write_case(folder, KERAS, torch_side(), stages={"mix": "mixx"}))


# -- inputs --------------------------------------------------------------------------------------------------

TOKENS = """
import torch
from torch import nn


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embedding = nn.Embedding(100, 4)

    def forward(self, ids, mask):
        return {"hidden": self.embedding(ids) * mask[..., None]}


class Turned(Words):
    def forward(self, mask, ids):
        return {"hidden": self.embedding(ids) * mask[..., None]}


class Renamed(Words):
    def forward(self, words, weights):
        return {"hidden": self.embedding(words) * weights[..., None]}
"""


@pytest.mark.parametrize("right", ["Words", "Turned", "Renamed"])
def test_several_inputs_go_by_name_and_otherwise_in_order(right: str, folder: Path):
    (folder / "port.py").write_text(TOKENS)
    np.save(folder / "mask.npy", np.arange(32, dtype="f4").reshape(2, 16))
    inputs = "{ids: {shape: [2, 16], dtype: int64, max: 100}, mask: {file: mask.npy}}"
    case = write_case(
        folder, side("torch", "port:Words"), side("torch", f"port:{right}"), stages=None, inputs=inputs
    )
    report = prove_case(case)
    assert report.ok, report.verdict
    assert [stage.name for stage in report.stages if stage.name in report.outputs] == ["output.hidden"]


def test_without_inputs_those_of_the_recording_are_taken(folder: Path):
    keras = side("recorded", None, checkpoint="keras.npz")
    path = write_case(folder, keras, torch_side())
    text = path.read_text()
    path.write_text("".join(line for line in text.splitlines(True) if not line.startswith("inputs")))
    report = prove_case(path)
    assert report.ok, report.verdict
    assert len(report.stages) == 5 and report.inputs == "those of the recording"


def test_a_recording_of_other_inputs_is_refused(folder: Path):
    other = "{shape: [2, 16, 16, 3], layout: NHWC, seed: 8}"
    with pytest.raises(UsageError, match=r"keras\.npz was recorded of another input than the case has"):
        prove_case(write_case(folder, KERAS, torch_side(), inputs=other))


# -- loading -------------------------------------------------------------------------------------------------


def change_checkpoint(folder: Path, change: Callable[[Weights], None], nested: bool = False) -> None:
    import torch

    state = torch.load(folder / "net.pth", weights_only=True)
    change(state)
    torch.save({"epoch": 3, "model": state} if nested else state, folder / "port.pth")


MISFITS: dict[str, tuple[Callable[[Weights], Any], str]] = {
    "missing": (lambda state: state.pop("mix.bias"), "1 missing: mix.bias"),
    "unexpected": (lambda state: state.update(extra=state["mix.bias"]), "1 unexpected: extra"),
    "shape": (
        lambda state: state.update({"head.bias": state["mix.bias"]}),
        r"1 of another shape: head.bias \[16\] instead of \[10\]",
    ),
}


@pytest.mark.parametrize(("change", "words"), MISFITS.values(), ids=MISFITS.keys())
def test_tensors_that_do_not_fit_are_named(change: Callable[[Weights], Any], words: str, folder: Path):
    change_checkpoint(folder, change)
    with pytest.raises(ConversionError, match=words):
        prove_case(write_case(folder, KERAS, torch_side(checkpoint="port.pth")))


def test_a_state_dict_below_a_key_is_found_and_another_can_be_named(folder: Path):
    change_checkpoint(folder, lambda _state: None, nested=True)
    assert prove_case(write_case(folder, KERAS, torch_side(checkpoint="port.pth"))).ok
    named = side("torch", "nets:build_torch", checkpoint="port.pth", state_dict="weights")
    with pytest.raises(UsageError, match="no state dict weights"):
        prove_case(write_case(folder, KERAS, named))


def test_a_pickle_that_would_run_code_is_not_run(folder: Path):
    import torch

    class Harm:
        def __reduce__(self) -> Any:
            return (exec, (f"open({str(folder / 'ran')!r}, 'w')",))

    torch.save({"a": Harm()}, folder / "port.pth")
    with pytest.raises(FormatError, match="weights_only"):
        prove_case(write_case(folder, KERAS, torch_side(checkpoint="port.pth")))
    assert not (folder / "ran").exists()


def test_keras_loads_its_own_files_and_what_is_too_much_is_a_fault(folder: Path):
    import keras

    sys.path.insert(0, str(folder))
    import nets

    model = nets.build_keras()
    model.save_weights(folder / "other.weights.h5")
    keras_side = side("keras", "nets:build_keras", checkpoint="other.weights.h5")
    same = write_case(folder, keras_side, keras_side)
    assert prove_case(same).ok
    more = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(2)])
    more.save_weights(folder / "other.weights.h5")
    with pytest.raises(ConversionError, match=r"missing: .*unexpected: "):
        prove_case(same)


TF_MODEL = """
import tensorflow as tf


class Scale(tf.Module):
    def __init__(self, name):
        super().__init__(name=name)
        self.w = tf.Variable(tf.zeros([3]), name=f"{name}/w")

    def __call__(self, x):
        return x * self.w


class Net(tf.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Scale("first"), Scale("second")

    def __call__(self, x):
        return {"sum": self.second(self.first(x)) + 1.0}
"""


@pytest.mark.parametrize("kind", ["objects", "names", "saved-model"])
def test_a_tensorflow_module_is_filled_by_objects_or_names(kind: str, folder: Path):
    import tensorflow as tf

    (folder / "port.py").write_text(TF_MODEL)
    sys.path.insert(0, str(folder))
    import port

    net = port.Net()
    net.first.w.assign([1.0, 2.0, 3.0])
    net.second.w.assign([4.0, 5.0, 6.0])
    x = np.random.default_rng(5).normal(size=(2, 3)).astype("f4")
    np.save(folder / "x.npy", x)
    with Recorder(folder / "wanted.npz") as wanted:
        wanted.record("first", x * [1, 2, 3])
        wanted.output((x * [4, 10, 18] + 1).astype("f4"))
    left, inputs = side("recorded", "wanted.npz"), "{file: x.npy}"
    stages: Any = ["first"]
    if kind == "saved-model":
        signature = tf.function(net.__call__, input_signature=[tf.TensorSpec([None, 3])])
        tf.saved_model.save(net, str(folder / "saved"), signatures=signature)
        right, stages = side("tensorflow", "saved"), None
    else:
        if kind == "objects":
            tf.train.Checkpoint(net).write(str(folder / "net"))
        else:
            saver = {variable.name.split(":")[0]: variable for variable in net.variables}
            tf.raw_ops.SaveV2(
                prefix=str(folder / "net"),
                tensor_names=list(saver),
                shape_and_slices=[""] * len(saver),
                tensors=[variable.value() for variable in saver.values()],
            )
        right = side("tensorflow", "port:Net", checkpoint="net")
    case = write_case(folder, left, right, stages=stages, inputs=inputs)
    report = prove_case(case)
    assert report.ok, report.verdict
    assert len(report.stages) == (1 if kind == "saved-model" else 2)
    if kind == "objects":
        tf.train.Checkpoint(first=net.first).write(str(folder / "net"))
        with pytest.raises(ConversionError, match="does not fit port:Net"):
            prove_case(case)


def test_a_graph_of_onnx_is_a_side_and_its_values_are_stages(folder: Path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["net/relu"]), helper.make_node("Neg", ["net/relu"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, [2, 3])],
        [value("y", TensorProto.FLOAT, [2, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "net.onnx")
    x = np.random.default_rng(5).normal(size=(2, 3)).astype("f4")
    np.save(folder / "x.npy", x)
    with Recorder(folder / "wanted.npz") as wanted:
        wanted.record("relu", np.maximum(x, 0))
        wanted.output(-np.maximum(x, 0))
    case = write_case(
        folder, side("recorded", "wanted.npz"), side("onnx", "net.onnx"), stages=None, inputs="{file: x.npy}"
    )
    report = prove_case(case)
    assert report.ok, report.verdict
    assert [stage.name for stage in report.stages] == ["relu ↔ net/relu", "output ↔ output.y"]
