"""ONNX files, read by onnx and run by ONNX Runtime without ckptkit's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from ckptkit.base.errors import ConversionError, FormatError, NotFoundError, StorageError, UsageError  # noqa: E402  # noqa: E402
from ckptkit.models.graphs.onnx_graph import (  # noqa: E402
    OPSETS,
    data_path,
    open_onnx,
    require_opset,
    write_onnx,
)
from tests.support.toys import MOAT, MOGANET, SIDE, toy_model  # noqa: E402

SAID = {"entry": "a-toy", "note": "größer als 1"}
TOLERANCE = 1e-5
"""Absolute, on outputs of magnitude 1 to 15; about 1e-6 is measured."""


class Written(NamedTuple):
    """An exported toy with its model."""

    variant: str
    model: Any
    path: Path


@pytest.fixture(scope="module", params=[MOAT, pytest.param(MOGANET, marks=pytest.mark.slow)])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("onnx")
    model = toy_model(folder, request.param)
    path = folder / "toy.onnx"
    files = write_onnx(model, path, size=(SIDE, SIDE), metadata=SAID)
    assert (files.graph, files.data, files.outputs) == (path, None, ("logits",))
    return Written(request.param, model, path)


def session_of(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def images_of(batch: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 3, side, side), dtype=np.float32)


def stages_of(model: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        return {name: output.numpy() for name, output in model.forward_stages(torch.tensor(images)).items()}


def test_one_file_takes_batches_of_any_number(written: Written):
    session = session_of(written.path)
    for batch in (1, 2, 5):
        images = images_of(batch)
        (logits,) = session.run(["logits"], {"images": images})
        assert logits.shape == (batch, 1000)
        np.testing.assert_allclose(logits, stages_of(written.model, images)["logits"], atol=TOLERANCE, rtol=0)


def test_the_graph_says_what_it_takes_and_gives(written: Written):
    model = onnx.load(written.path)
    onnx.checker.check_model(model, full_check=True)
    (given,), (gives,) = model.graph.input, model.graph.output
    extents = [extent.dim_param or extent.dim_value for extent in given.type.tensor_type.shape.dim]
    assert (given.name, extents) == ("images", ["batch", 3, SIDE, SIDE])
    assert gives.name == "logits"
    assert [extent.dim_param or extent.dim_value for extent in gives.type.tensor_type.shape.dim] == [
        "batch",
        1000,
    ]
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert {entry.key: entry.value for entry in model.metadata_props} == SAID
    assert model.producer_name == "ckptkit"


def test_another_resolution_is_refused_by_the_graph(written: Written):
    with pytest.raises(Exception, match=r"(?i)invalid dimensions"):
        session_of(written.path).run(None, {"images": images_of(1, 96)})


UNTOUCHED = {
    MOAT: ("stem.conv_1.weight", "stages.2.0.shrink_conv.weight", "head.weight"),
    MOGANET: ("blocks1.0.attn.gate.weight", "blocks4.0.mlp.fc2.weight", "head.weight"),
}
"""Weights that no BatchNorm follows, into which it could be folded."""


def test_weights_keep_their_names_and_where_nothing_is_folded_their_values(written: Written):
    state = written.model.state_dict()
    found = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(written.path).graph.initializer
    }
    convolutions = [name for name, tensor in state.items() if tensor.ndim == 4 and tensor.shape[-1] == 3]
    assert len(convolutions) > 3
    assert found.keys() >= set(convolutions)
    for name in UNTOUCHED[written.variant]:
        np.testing.assert_array_equal(found[name], state[name].numpy(), err_msg=name)


def test_nothing_of_this_machine_is_in_the_file(written: Written):
    data = written.path.read_bytes()
    for trace in (
        str(Path(torch.__file__).parent),
        str(Path.cwd()),
        str(written.path.parent),
        "torch_model.py",
    ):
        assert trace.encode() not in data
    model = onnx.load(written.path)
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer]
    noted = [
        part for part in (*model.graph.node, *values, model.graph) if part.metadata_props or part.doc_string
    ]
    assert noted == []


class Small(torch.nn.Module):
    """Exported in a moment; as the families' models it names its outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 40, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(40)
        self.head = torch.nn.Linear(40, 7)
        self.eval()

    def forward_stages(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        first = self.conv(x)
        second = torch.nn.functional.gelu(self.norm(first))
        return {"stage1": first, "stage2": second, "logits": self.head(second.mean(dim=(2, 3)))}


def test_the_same_model_gives_the_same_bytes(tmp_path: Path):
    paths = [tmp_path / "a.onnx", tmp_path / "elsewhere" / "b.onnx"]
    paths[1].parent.mkdir()
    for path in paths:
        write_onnx(Small(), path, size=(32, 48), metadata=SAID)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_large_weights_stand_beside_the_graph(tmp_path: Path):
    model, path = Small(), tmp_path / "small.onnx"
    weights = sum(tensor.nbytes for tensor in (model.conv.weight, model.head.weight))
    files = write_onnx(model, path, size=(16, 16), single_file_bytes=weights // 2)
    assert files.data == data_path(path) == tmp_path / "small.onnx.data"
    assert files.paths == (files.data, path)
    assert files.data.stat().st_size >= weights
    assert model.conv.weight.detach().numpy().tobytes() not in path.read_bytes()
    (logits,) = session_of(path).run(["logits"], {"images": images_of(3, 16)})
    np.testing.assert_allclose(logits, stages_of(model, images_of(3, 16))["logits"], atol=TOLERANCE, rtol=0)
    alone = tmp_path / "alone.onnx"
    assert write_onnx(model, alone, size=(16, 16), single_file_bytes=4 * weights).data is None


def test_stages_can_be_had_instead_of_logits(tmp_path: Path):
    model, path = Small(), tmp_path / "small.onnx"
    assert write_onnx(model, path, size=(16, 16), features=True).outputs == ("stage1", "stage2")
    outputs = session_of(path).run(["stage1", "stage2"], {"images": images_of(3, 16)})
    wanted = stages_of(model, images_of(3, 16))
    for name, output in zip(("stage1", "stage2"), outputs, strict=True):
        np.testing.assert_allclose(output, wanted[name], atol=TOLERANCE, rtol=0, err_msg=name)
    names = [tensor.name for tensor in onnx.load(path).graph.initializer]
    assert not any(name.startswith("head") for name in names), "nobody needs the head's weights"


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, OPSETS[1]])
@pytest.mark.parametrize("variant", [MOAT, MOGANET])
def test_other_operator_sets(variant: str, opset: int, tmp_path: Path):
    model = toy_model(tmp_path, variant)
    write_onnx(model, tmp_path / "toy.onnx", size=(SIDE, SIDE), opset=opset)
    onnx.checker.check_model(str(tmp_path / "toy.onnx"), full_check=True)
    assert onnx.load(tmp_path / "toy.onnx").opset_import[0].version == opset
    (logits,) = session_of(tmp_path / "toy.onnx").run(None, {"images": images_of(3)})
    np.testing.assert_allclose(logits, stages_of(model, images_of(3))["logits"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("opset", [OPSETS[0] - 1, OPSETS[1] + 1, 0])
def test_an_operator_set_nothing_is_known_of_is_refused_before_any_work(opset: int, tmp_path: Path):
    with pytest.raises(UsageError, match=f"operator set {opset}; from 18 to 25"):
        require_opset(opset)
    with pytest.raises(UsageError):
        write_onnx(None, tmp_path / "m.onnx", size=(32, 32), opset=opset)


def test_an_exporter_that_made_another_operator_set_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = SimpleNamespace(model=SimpleNamespace(opset_imports={"": 18}))
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: made)
    with pytest.raises(UsageError, match="exports to ONNX operator set 18, not 20"):
        write_onnx(Small(), tmp_path / "m.onnx", size=(32, 32), opset=20)
    assert not list(tmp_path.iterdir())


def test_an_exporter_that_fails_says_why_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    def fail(*_: Any, **__: Any) -> None:
        print("[torch.onnx] Obtain model graph ...")
        raise torch.onnx.errors.OnnxExporterError("\nno decomposition of aten::unheard_of\nmany more lines")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(
        ConversionError, match=r"as ONNX: no decomposition of aten::unheard_of; try"
    ) as caught:
        write_onnx(Small(), tmp_path / "m.onnx", size=(32, 32))
    assert "many more" not in str(caught.value)
    assert capfd.readouterr().out == ""
    with pytest.raises(ConversionError):
        write_onnx(Small(), tmp_path / "m.onnx", size=(32, 32), verbose=True)
    assert "Obtain model graph" in capfd.readouterr().out


def test_a_disk_that_refuses_is_named(tmp_path: Path):
    with pytest.raises(StorageError, match="absent"):
        write_onnx(Small(), tmp_path / "absent" / "m.onnx", size=(32, 32))


def test_metadata_are_text(written: Written):
    """ONNX Runtime hands them out as they were given."""
    assert json.dumps(
        session_of(written.path).get_modelmeta().custom_metadata_map, sort_keys=True
    ) == json.dumps(SAID, sort_keys=True)


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
