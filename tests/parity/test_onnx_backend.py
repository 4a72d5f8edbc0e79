"""PyTorch against ONNX Runtime, on toys: what agrees, and faults of the graph that must be caught."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from ckptkit.base.errors import ConversionError, FormatError, UsageError  # noqa: E402
from ckptkit.models.graphs.onnx_graph import write_onnx  # noqa: E402
from ckptkit.parity.report import junit_document  # noqa: E402
from ckptkit.parity.run import run_parity  # noqa: E402
from ckptkit.workspace import Located  # noqa: E402
from tests.support.toys import (  # noqa: E402
    MOAT,
    MOGANET,
    SETTINGS,
    SIDE,
    STAGES,
    toy_file,
    toy_model,
    toy_variants,
)


@pytest.fixture(autouse=True, scope="module")
def _toys() -> Iterator[None]:
    with toy_variants():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both toys as published, and a graph of MogaNet's with the float32 gate, as ``toy.onnx``."""
    folder = tmp_path_factory.mktemp("toys")
    for variant in (MOAT, MOGANET):
        toy_file(folder, variant)
    model = toy_model(folder, MOGANET)
    write_onnx(model, folder / "toy.onnx", size=(SIDE, SIDE), metadata={"attn_force_fp32": "true"})
    return folder


@pytest.fixture
def moganet(folder: Path) -> Located:
    return Located(folder / f"{MOGANET}.ckpt")


def test_a_fresh_graph_agrees_stage_by_stage(folder: Path):
    said: list[str] = []
    report = run_parity(
        Located(folder / f"{MOAT}.ckpt"), backend="onnxruntime", name="toy", batch=3, note=said.append
    )
    assert report.ok, report.verdict
    assert [stage.name for stage in report.stages] == [*STAGES[MOAT], "logits"]
    assert [stage.shape[0] for stage in report.stages] == [3] * 6
    assert all(0 < stage.relative < 5e-6 for stage in report.stages), "two implementations, not one"
    assert report.verdict.startswith("agree: toy with onnxruntime (synthetic weights, float32)")
    torch, graph = report.sides
    assert (torch.framework, torch.reads, torch.format, torch.layout) == (
        "torch",
        "the original",
        "tf",
        "deeplab2",
    )
    assert (graph.framework, graph.reads, graph.format) == ("onnxruntime", "a fresh export", "onnx")
    assert graph.versions.startswith("onnxruntime ")
    assert any("exporting to onnx" in sentence for sentence in said)
    found = report.to_json()
    assert (found["with"], found["reference"], list(found["sides"])) == (
        "onnxruntime",
        "torch",
        ["torch", "onnxruntime"],
    )
    root = ElementTree.fromstring(junit_document([report]))
    assert [suite.get("name") for suite in root] == ["parity toy with onnxruntime"]
    assert {case.get("classname") for case in root.iter("testcase")} == {
        "ckptkit.parity.toy_with_onnxruntime"
    }


@pytest.mark.slow
def test_a_setting_that_nobody_said_is_compared_both_ways(moganet: Located):
    report = run_parity(moganet, backend="onnxruntime")
    assert report.ok, report.verdict
    names = [*STAGES[MOGANET], "logits"]
    assert [stage.name for stage in report.stages] == [
        f"{name} (attn_force_fp32 {value})" for value in ("false", "true") for name in names
    ]
    assert report.sides[1].settings == {"attn_force_fp32": "both"}
    assert any("both functions it may stand for were compared" in note for note in report.notes)


def test_a_given_graph_agrees_and_says_what_it_is_fixed_to(moganet: Located, folder: Path):
    report = run_parity(moganet, backend="onnxruntime", converted=folder / "toy.onnx")
    assert report.ok, report.verdict
    assert (report.inputs.height, report.inputs.width, report.inputs.batch) == (SIDE, SIDE, 2)
    assert [stage.name for stage in report.stages] == [*STAGES[MOGANET], "logits"]
    assert report.sides[1].reads == str(folder / "toy.onnx")
    note = f"attn_force_fp32 is not known of the source: both ran as {folder / 'toy.onnx'} says, True"
    assert note in report.notes
    assert not any("both functions" in note for note in report.notes)


def test_another_resolution_than_the_graphs_is_refused(moganet: Located, folder: Path):
    with pytest.raises(UsageError, match="images of 64x64, not 2 of 96x96"):
        run_parity(moganet, backend="onnxruntime", converted=folder / "toy.onnx", resolution=96)


def test_the_other_gate_is_caught(moganet: Located, folder: Path):
    report = run_parity(
        moganet, backend="onnxruntime", converted=folder / "toy.onnx", settings={"attn_force_fp32": False}
    )
    assert not report.ok
    assert report.first_departure == "stage1"
    note = f"{folder / 'toy.onnx'} says attn_force_fp32 is True, the source False: each ran with its own"
    assert note in report.notes


Model = "onnx.ModelProto"


def perturb(name: str) -> Callable[[Model], None]:
    """Change one value of a weight by as much as the largest."""

    def plant(model: Model) -> None:
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        values = onnx.numpy_helper.to_array(tensor).copy()
        values.flat[values.size // 2] += np.abs(values).max()
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))

    return plant


def another_pad(model: Model) -> None:
    """Swap the padding of the widest convolution for a shift by one."""
    (node,) = (
        node
        for node in model.graph.node
        if node.op_type == "Conv" and any("blocks1.0.attn.value.DW_conv2" in name for name in node.input)
    )
    (pads,) = (attribute for attribute in node.attribute if attribute.name == "pads")
    pads.ints[:] = [pads.ints[0] + 1, pads.ints[1], pads.ints[2] - 1, pads.ints[3]]


@pytest.mark.parametrize(
    ("plant", "departs"),
    [
        (perturb("blocks3.0.attn.gate.weight"), "stage3"),
        (perturb("patch_embed4.projection.weight"), "stage4"),
        (perturb("head.weight"), "logits"),
        (another_pad, "stage1"),
    ],
    ids=["gate of stage 3", "embedding of stage 4", "head", "padding"],
)
def test_a_fault_planted_in_the_graph_is_caught_where_it_begins(
    plant: Callable[[Model], None], departs: str, moganet: Located, folder: Path, tmp_path: Path
):
    model = onnx.load(folder / "toy.onnx")
    plant(model)
    onnx.save(model, tmp_path / "faulty.onnx")
    report = run_parity(moganet, backend="onnxruntime", converted=tmp_path / "faulty.onnx")
    assert not report.ok
    assert report.first_departure == departs, report.verdict
    assert report.stages[-1].verdict == "differs"
    assert "DISAGREE" in report.verdict


def test_a_graph_whose_stages_have_no_names_is_compared_on_its_logits(
    moganet: Located, folder: Path, tmp_path: Path
):
    model = onnx.load(folder / "toy.onnx")
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [name.replace("stage", "value") for name in names]
    onnx.save(model, tmp_path / "bare.onnx")
    report = run_parity(moganet, backend="onnxruntime", converted=tmp_path / "bare.onnx")
    assert report.ok, report.verdict
    assert [stage.name for stage in report.stages] == ["logits"]
    assert (
        f"{tmp_path / 'bare.onnx'} has no stage1, stage2, stage3, stage4 by name: not compared"
        in report.notes
    )


def test_a_graph_of_another_model_is_refused(moganet: Located, folder: Path, tmp_path: Path):
    """One with five stages, as MOAT has them."""
    model = onnx.load(folder / "toy.onnx")
    model.graph.node.append(onnx.helper.make_node("Identity", ["stage4"], ["stage5"]))
    onnx.save(model, tmp_path / "five.onnx")
    with pytest.raises(ConversionError, match=r"stage4, stage5, logits, .*ckpt gives .*stage4, logits"):
        run_parity(moganet, backend="onnxruntime", converted=tmp_path / "five.onnx")


def test_a_graph_that_does_not_say_its_gate_needs_to_be_told(moganet: Located, folder: Path, tmp_path: Path):
    model = onnx.load(folder / "toy.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "silent.onnx")
    with pytest.raises(UsageError, match=r"computes one function.*--set attn_force_fp32=true"):
        run_parity(moganet, backend="onnxruntime", converted=tmp_path / "silent.onnx")
    told = run_parity(
        moganet, backend="onnxruntime", converted=tmp_path / "silent.onnx", settings=SETTINGS[MOGANET]
    )
    assert told.ok, told.verdict


def test_metadata_that_are_no_setting_are_refused(moganet: Located, folder: Path, tmp_path: Path):
    shutil.copy(folder / "toy.onnx", tmp_path / "odd.onnx")
    model = onnx.load(tmp_path / "odd.onnx")
    onnx.helper.set_model_props(model, {"attn_force_fp32": "perhaps"})
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(FormatError, match="metadata says attn_force_fp32 is 'perhaps'"):
        run_parity(moganet, backend="onnxruntime", converted=tmp_path / "odd.onnx")
