"""ONNX files made by onnx' own helpers, opened and run by ckptkit; and files that are none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from ckptkit.base.errors import FormatError, NotFoundError, UsageError  # noqa: E402
from ckptkit.models.graphs.onnx_graph import open_onnx  # noqa: E402

IMAGES = np.random.default_rng(0).standard_normal((2, 8, 4, 3), dtype=np.float32)
KERNEL = np.random.default_rng(1).standard_normal((5, 3, 1, 1)).astype(np.float32)


OPEN = {"logits": ("n", "c"), **dict.fromkeys(("stage1", "stage2", "pooled"), ("n", "c", "h", "w"))}


def chain(
    path: Path,
    outputs: Sequence[str] = ("logits",),
    *,
    shape: Sequence[int | str] = ("batch", 3, 8, 4),
    second: str = "Neg",
) -> Path:
    """Write a graph: stage1 by a 1×1 convolution, stage2 its negative, logits its mean over the map."""
    nodes = [
        helper.make_node("Conv", ["images", "kernel"], ["stage1"]),
        helper.make_node(second, ["stage1"], ["stage2"]),
        helper.make_node("GlobalAveragePool", ["stage2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, OPEN[name]) for name in outputs],
        [numpy_helper.from_array(KERNEL, "kernel")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"entry": "a-toy"})
    onnx.save(model, path)
    return path


def test_stages_inside_are_found_in_order_and_channels_last(tmp_path: Path):
    graph = open_onnx(chain(tmp_path / "m.onnx"))
    assert graph.outputs == ("stage1", "stage2", "logits")
    assert (graph.opset, graph.batch, graph.size, graph.metadata) == (18, None, (8, 4), {"entry": "a-toy"})
    assert graph.versions.startswith("onnxruntime 1.")
    outputs = graph.run(IMAGES)
    wanted = IMAGES @ KERNEL[:, :, 0, 0].T
    np.testing.assert_allclose(outputs["stage1"], wanted, atol=1e-5)
    np.testing.assert_allclose(outputs["stage2"], -wanted, atol=1e-5)
    np.testing.assert_allclose(outputs["logits"], -wanted.mean(axis=(1, 2)), atol=1e-5)


def test_the_file_itself_is_not_changed(tmp_path: Path):
    path = chain(tmp_path / "m.onnx")
    before = path.read_bytes()
    open_onnx(path).run(IMAGES)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_outputs_of_the_graph_are_taken_once(tmp_path: Path):
    graph = open_onnx(chain(tmp_path / "m.onnx", ("stage2", "stage1")))
    assert graph.outputs == ("stage1", "stage2")
    assert list(graph.run(IMAGES)) == ["stage1", "stage2"]


@pytest.mark.parametrize(
    ("shape", "batch", "size"),
    [
        ((2, 3, 8, 4), 2, (8, 4)),
        (("n", 3, "h", "w"), None, None),
    ],
)
def test_what_a_graph_is_fixed_to_is_known(
    shape: Sequence[int | str], batch: int, size: object, tmp_path: Path
):
    graph = open_onnx(chain(tmp_path / "m.onnx", shape=shape))
    assert (graph.batch, graph.size) == (batch, size)
    assert graph.run(IMAGES)["logits"].shape == (2, 5)


@pytest.mark.parametrize(
    ("shape", "images", "says"),
    [
        (("n", 3, 8, 4), IMAGES[:, :4], "takes batches of any number, images of 8x4, not 2 of 4x4"),
        ((1, 3, 8, 4), IMAGES, "takes batches of 1, images of 8x4, not 2 of 8x4"),
        ((1, 3, "h", "w"), IMAGES, "takes batches of 1, images of any size, not 2 of 8x4"),
    ],
)
def test_other_inputs_are_refused_in_words(
    shape: Sequence[int | str], images: np.ndarray, says: str, tmp_path: Path
):
    graph = open_onnx(chain(tmp_path / "m.onnx", shape=shape))
    with pytest.raises(UsageError, match=says):
        graph.run(images)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><title>404</title>")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def unknown_operator(path: Path) -> None:
    chain(path, second="Unheard")


def no_logits(path: Path) -> None:
    chain(path, ("pooled",))


def other_input(path: Path) -> None:
    chain(path, shape=("n", 3, 32))


def two_inputs(path: Path) -> None:
    model = onnx.load(chain(path))
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, (1,)))
    onnx.save(model, path)


def weights_gone(path: Path) -> None:
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    (path.parent / "m.data").unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, "not a valid ONNX file"),
        (page, "not a valid ONNX file"),
        (empty, "not a valid ONNX file"),
        (unknown_operator, "not a valid ONNX file"),
        (no_logits, "gives pooled, neither logits nor stages"),
        (other_input, ""),
        (two_inputs, "does not take one batch of images"),
        (weights_gone, r"not a valid ONNX file.*m\.data"),
    ],
)
def test_what_is_no_graph_of_ours_is_refused(damage: Callable[[Path], None], says: str, tmp_path: Path):
    damage(chain(tmp_path / "m.onnx"))
    with pytest.raises(FormatError, match=rf"m\.onnx: .*{says}"):
        open_onnx(tmp_path / "m.onnx")


def test_a_missing_file_is_not_found(tmp_path: Path):
    with pytest.raises(NotFoundError, match="no such file"):
        open_onnx(tmp_path / "absent.onnx")


def test_importing_the_module_loads_nothing_heavy():
    code = (
        "import sys, ckptkit.models.graphs.onnx_graph, ckptkit.models.graphs.saved_model; "
        "print(sorted({'onnx', 'onnxruntime', 'torch', 'tensorflow', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
