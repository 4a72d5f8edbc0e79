"""ONNX files that ask for more than they are, made by onnx' own helpers, checked and run apart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from ckptkit.base.errors import FormatError, NotFoundError  # noqa: E402
from ckptkit.models.graphs.onnx_apart import open_foreign_onnx  # noqa: E402
from ckptkit.models.graphs.onnx_graph import open_onnx  # noqa: E402
from tests.models.graphs.test_onnx_graph import IMAGES, chain  # noqa: E402

LIKE = {"logits": np.zeros((2, 5), np.float32)}
OPEN = ["a", "b", "c", "d"]
IN = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 8, 4])
OUT = helper.make_tensor_value_info("logits", TensorProto.FLOAT, OPEN)
RELU = helper.make_node("Relu", ["images"], ["logits"])


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def value(name: str, *numbers: int) -> Any:
    return numpy_helper.from_array(np.array(numbers, np.int64), name)


def graph(*nodes: Any, ins: Any = IN, outs: Any = (OUT,), inits: Any = (), ops: Any = (), **more: Any) -> Any:
    whole = helper.make_graph(nodes, "g", [ins], list(outs), list(inits))
    sets = [helper.make_opsetid("", 18), *ops]
    return helper.make_model(whole, opset_imports=sets, ir_version=8, **more)


def added(*nodes: Any, inits: Any = ()) -> Any:
    """The images plus one number, the largest of ``x``: of any size, as logits."""
    rest = (node("ReduceMax", "x", "r", keepdims=0), node("Add", "images r", "logits"))
    return graph(*nodes, *rest, inits=inits)


def body(*nodes: Any, inputs: Any = (), output: str = "y") -> Any:
    info = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(nodes, "b", list(inputs), [info])


def loop() -> Any:
    inside = helper.make_graph(
        [node("Identity", "c", "c2"), node("Add", "x x", "y")],
        "b",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    rounds = numpy_helper.from_array(np.int64(2**62), "n")
    return graph(node("Loop", "n t images", "logits", body=inside), inits=[rounds, truth()])


def truth() -> Any:
    return numpy_helper.from_array(np.bool_(True), "t")


def hidden_loop() -> Any:
    """In a branch of a branch."""
    inside = loop().graph.node[0]
    inside.output[0] = "y"
    branch = body(inside)
    for _ in range(2):
        branch = body(node("If", "t", "y", then_branch=branch, else_branch=body(node("Relu", "images", "y"))))
    top = node("If", "t", "logits", then_branch=branch, else_branch=branch)
    return graph(top, inits=[numpy_helper.from_array(np.int64(2**62), "n"), truth()])


def deep() -> Any:
    branch = body(node("Relu", "images", "y"))
    for _ in range(12):
        branch = body(node("If", "t", "y", then_branch=branch, else_branch=body(node("Relu", "images", "y"))))
    return graph(node("If", "t", "logits", then_branch=branch, else_branch=branch), inits=[truth()])


def functions() -> Any:
    own = helper.make_opsetid("d", 1)
    sets = [helper.make_opsetid("", 18), own]
    doubling = [
        helper.make_function(
            "d",
            f"F{i}",
            ["x"],
            ["y"],
            [node(f"F{i + 1}", "x", "a", domain="d"), node(f"F{i + 1}", "a", "y", domain="d")],
            sets,
        )
        for i in range(28)
    ]
    last = helper.make_function("d", "F28", ["x"], ["y"], [node("Relu", "x", "y")], sets[:1])
    return graph(node("F0", "images", "logits", domain="d"), ops=[own], functions=[*doubling, last])


def many_outputs() -> Any:
    infos = [helper.make_tensor_value_info(f"o{i}", TensorProto.FLOAT, OPEN) for i in range(5000)]
    return graph(RELU, *(node("Relu", "images", f"o{i}") for i in range(5000)), outs=(OUT, *infos))


def sparse() -> Any:
    one = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    where = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    tensor = helper.make_sparse_tensor(one, where, [2_000_000_000])
    return added(node("Constant", "", "x", sparse_value=tensor))


def sized(*shape: int) -> Any:
    return helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)


def given(name: str, *shape: int) -> Any:
    return graph(
        node("Relu", "images", name), outs=[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
    )


SEQUENCE = helper.make_tensor_sequence_value_info("logits", TensorProto.FLOAT, OPEN)
MICROSOFT = helper.make_opsetid("com.microsoft", 1)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (
            graph(node("SequenceConstruct", "images images", "logits"), outs=[SEQUENCE]),
            "uses SequenceConstruct",
        ),
        (graph(RELU, ins=sized(2**40, 3, 64, 64)), "images of 1099511627776x3x64x64 is too large"),
        (graph(RELU, ins=sized(1, 3, 2**20, 2**20)), "is too large"),
        (given("logits", 2**40, 2**20), "logits of .* is too large"),
        (given("logits", *[1] * 500), "logits of 1x1x1x1 is too large"),
        (given("q" * 100_000, 1, 5), "its graph gives q{40}, neither"),
        (given("log\x1b[2J\u202e", 1, 5), r"its graph gives log\\x1b\[2J\\u202e, neither"),
        (loop(), "uses Loop"),
        (hidden_loop(), "uses Loop"),
        (deep(), "branches more than 8 deep"),
        (functions(), "has 29 local functions"),
        (many_outputs(), "has 5,001 outputs"),
        (sparse(), "has sparse tensors"),
        (
            graph(node("Gelu", "images", "logits", domain="com.microsoft"), ops=[MICROSOFT]),
            "com.microsoft.Gelu",
        ),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
@pytest.mark.usefixtures("onnx_preloaded")
def test_what_no_graph_of_a_model_has_is_refused_unread(model: Any, says: str, tmp_path: Path):
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(FormatError, match=rf"x\.onnx: .*{says}") as refused:
        open_foreign_onnx(tmp_path / "x.onnx")
    assert len(str(refused.value)) < 300 + len(str(tmp_path))


SIZE = value("s", 600_000_000)


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not limit memory")
@pytest.mark.parametrize(
    "model",
    [
        added(node("ConstantOfShape", "s", "x"), inits=[SIZE]),
        added(
            node("Expand", "images s", "x"),
            inits=[value("s", 4_000_000, 1, 1, 1, 1)],
        ),
        added(node("Tile", "images s", "x"), inits=[value("s", 10, 10, 100, 100)]),
        added(node("Pad", "images s", "x"), inits=[value("s", 0, 0, 20_000, 20_000, 0, 0, 0, 0)]),
        added(
            node("Shape", "images", "a"),
            node("ReduceProd", "a", "b", keepdims=1),
            node("Mul", "b s", "c"),
            node("ConstantOfShape", "c", "x"),
            inits=[value("s", 10_000_000)],
        ),
        graph(node("Tile", "images s", "logits"), inits=[value("s", 1, 10, 500, 500)]),
    ],
    ids=["constant", "expand", "tile", "pad", "computed shape", "output"],
)
@pytest.mark.usefixtures("onnx_preloaded")
def test_memory_is_limited(model: Any, tmp_path: Path):
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(FormatError, match=r"x\.onnx: takes more than \d+ MB of memory to (load|run)$"):
        open_foreign_onnx(tmp_path / "x.onnx").run(IMAGES, LIKE, 0.1)


@pytest.mark.usefixtures("onnx_preloaded")
def test_outputs_are_limited(tmp_path: Path):
    onnx.save(
        graph(node("Tile", "images s", "logits"), inits=[value("s", 1, 10, 100, 100)]), tmp_path / "x.onnx"
    )
    with pytest.raises(FormatError, match=r"x\.onnx: its outputs have more than 64 MB"):
        open_foreign_onnx(tmp_path / "x.onnx").run(IMAGES, LIKE, 0.1)


def slow() -> Any:
    """Products of constants, computed while the graph is loaded: minutes, in little memory."""
    chained = (node("Gemm", f"a b x{i}", f"x{i + 1}") for i in range(2000))
    constants = [node("ConstantOfShape", f"{name}_shape", name) for name in ("a", "b", "x0")]
    shapes = [value("a_shape", 300, 30000), value("b_shape", 30000, 300), value("x0_shape", 300, 300)]
    return added(*constants, *chained, node("Identity", "x2000", "x"), inits=shapes)


@pytest.mark.skipif(not hasattr(signal, "SIGXCPU"), reason="the system does not limit time")
def test_time_is_limited(tmp_path: Path):
    onnx.save(slow(), tmp_path / "x.onnx")
    with pytest.raises(FormatError, match=r"x\.onnx: takes more than 3 s of processor time to load"):
        open_foreign_onnx(tmp_path / "x.onnx")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_process_ends_with_ours(tmp_path: Path):
    """Killed, ours cannot end it; it works on the worst graph then."""
    onnx.save(slow(), tmp_path / "x.onnx")
    code = (
        "import sys; from pathlib import Path\n"
        "from ckptkit.models.graphs.onnx_apart import open_foreign_onnx\n"
        "open_foreign_onnx(Path(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x.onnx")])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 60
    while not (found := children.read_text().split()):
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(0.5)
    process.kill()
    process.wait()
    while Path(f"/proc/{found[0]}/cmdline").exists() and Path(f"/proc/{found[0]}/cmdline").read_bytes():
        assert time.monotonic() < until, "it lives on"
        time.sleep(0.05)


@pytest.mark.usefixtures("onnx_preloaded")
def test_what_is_sound_gives_what_it_gives_in_this_process(tmp_path: Path):
    path = chain(tmp_path / "m.onnx", ("stage2", "logits"))
    apart, here = open_foreign_onnx(path), open_onnx(path)
    assert (apart.opset, apart.outputs, apart.batch, apart.size, apart.metadata, apart.versions) == (
        here.opset,
        here.outputs,
        here.batch,
        here.size,
        here.metadata,
        here.versions,
    )
    for images in (IMAGES, IMAGES[:1], np.repeat(IMAGES, 50, axis=0)):
        outputs, wanted = apart.run(images, LIKE, 0.1), here.run(images)
        assert list(outputs) == list(wanted)
        for name, array in wanted.items():
            np.testing.assert_array_equal(outputs[name], array)


def test_nothing_of_the_current_folder_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = chain(tmp_path / "m.onnx")
    for name in ("numpy", "onnx", "onnxruntime", "json", "ckptkit"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert open_foreign_onnx(path).run(IMAGES, LIKE, 0.1)["logits"].shape == (2, 5)
    assert not (tmp_path / "RAN").exists()


@pytest.mark.usefixtures("onnx_preloaded")
def test_outputs_of_other_types_and_files_that_are_none(tmp_path: Path):
    path = tmp_path / "x.onnx"
    info = helper.make_tensor_value_info("logits", TensorProto.INT64, OPEN)
    onnx.save(graph(node("Cast", "images", "logits", to=TensorProto.INT64), outs=[info]), path)
    with pytest.raises(FormatError, match="logits is not a float32 tensor"):
        open_foreign_onnx(path).run(IMAGES, LIKE, 0.1)
    path.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(FormatError, match="not a valid ONNX file"):
        open_foreign_onnx(path)
    with pytest.raises(NotFoundError, match="no such file"):
        open_foreign_onnx(tmp_path / "absent.onnx")
    if hasattr(os, "truncate"):
        os.truncate(path, 3 << 30)
        with pytest.raises(FormatError, match="more than 2,147,483,647 bytes"):
            open_foreign_onnx(path)
