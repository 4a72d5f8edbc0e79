"""What PyTorch is compared with: which backend is meant, what it takes, and graphs and recordings of toys."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from ckptkit.base.errors import ConversionError, FormatError, MissingDependencyError, UsageError
from ckptkit.base.packages import is_installed
from ckptkit.formats.npz import NpzReader
from ckptkit.models.graphs.onnx_graph import write_onnx
from ckptkit.models.synth import Synthetic, synthetic_checkpoint
from ckptkit.parity.backends import ModelFile, run_torch
from ckptkit.parity.report import ParityReport, junit_document
from ckptkit.parity.run import ParityRequest
from ckptkit.workspace import Located
from tests.support.commands import pip_install
from tests.support.parity_cases import run_parity
from tests.support.toys import (
    MOAT,
    MOGANET,
    SETTINGS,
    SIDE,
    STAGES,
    toy_file,
    toy_model,
    toy_variants,
)

GOLDENS = Path(__file__).resolve().parent.parent / "golden"
onnx: Any = importlib.import_module("onnx") if is_installed("onnx") else None
EVERYTHING = ("torch", "tensorflow", "PIL")
pytestmark = pytest.mark.usefixtures("onnx_preloaded")


@pytest.mark.parametrize(
    ("asked", "given", "chosen"),
    [
        ([], {}, ("keras",)),
        (["onnxruntime"], {}, ("onnxruntime",)),
        (["onnxruntime", "keras", "onnxruntime"], {}, ("onnxruntime", "keras")),
        ([], {"converted": Path("m.ONNX")}, ("onnxruntime",)),
        ([], {"converted": Path("m.safetensors"), "dtype": None}, ("keras",)),
        (["keras"], {"dtype": "float16"}, ("keras",)),
        ([], {"converted": Path("m.npz")}, ("keras",)),
        (["recorded"], {"converted": Path("m.npz")}, ("recorded",)),
    ],
)
def test_what_is_meant(asked: list[Any], given: dict[str, Any], chosen: tuple[str, ...]):
    assert tuple(request.backend for request in ParityRequest(**given).with_each(asked)) == chosen


@pytest.mark.parametrize(
    ("asked", "given", "says"),
    [
        (["onnxruntime"], {"dtype": "float16"}, "leave --dtype out"),
        (["keras", "onnxruntime"], {"dtype": "float16"}, "leave --dtype out"),
        (
            ["keras"],
            {"converted": Path("m.onnx")},
            "for --with onnxruntime, which takes files ending in .onnx",
        ),
        (["onnxruntime"], {"converted": Path("m.pth")}, "for --with keras, which takes checkpoints"),
        (["recorded"], {}, "name it: --converted outputs.npz"),
        (["recorded"], {"converted": Path("m.onnx")}, "for --with onnxruntime, which takes files"),
        (["recorded"], {"converted": Path("m.npz"), "dtype": "float16"}, "leave --dtype out"),
    ],
)
def test_what_contradicts_itself(asked: list[Any], given: dict[str, Any], says: str):
    with pytest.raises(UsageError, match=says):
        ParityRequest(**given).with_each(asked)


class Pretend(MetaPathFinder):
    """Answers for the optional packages: some are there, the others are not."""

    def __init__(self, hidden: Sequence[str]) -> None:
        self.hidden = hidden

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in self.hidden:
            raise ModuleNotFoundError(name)
        return ModuleSpec(name, None) if name in EVERYTHING else None


@pytest.mark.parametrize(
    ("hidden", "image", "says"),
    [
        (["torch"], False, f"needs torch; {pip_install('torch')}"),
        (["tensorflow"], False, f"needs tensorflow; {pip_install('tensorflow')}"),
        (
            ["torch", "tensorflow"],
            False,
            f"needs torch and tensorflow; {pip_install('torch', 'tensorflow')}",
        ),
        (["PIL"], True, f"needs pillow; {pip_install('pillow')}"),
        (["tensorflow", "PIL"], True, f"needs tensorflow and pillow; {pip_install('tensorflow', 'pillow')}"),
        (["PIL"], False, None),
        ([], True, None),
    ],
)
def test_what_is_missing_is_named_with_one_install_line(
    hidden: list[str], image: bool, says: str | None, monkeypatch: pytest.MonkeyPatch
):
    for package in EVERYTHING:
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Pretend(hidden), *sys.meta_path])
    if says is None:
        ParityRequest(image=Path("cat.png") if image else None).require()
        return
    with pytest.raises(MissingDependencyError) as caught:
        ParityRequest(image=Path("cat.png") if image else None).require()
    assert str(caught.value).endswith(says)


def test_a_package_blocked_by_none_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match="torch"):
        ParityRequest().require()


# -- PyTorch against ONNX Runtime ---------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def _toys() -> Iterator[None]:
    with toy_variants():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both toys as published, and a graph of MogaNet's with the float32 gate, as ``toy.onnx``."""
    for package in ("torch", "onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("toys")
    for variant in (MOAT, MOGANET):
        toy_file(folder, variant)
    model = toy_model(folder, MOGANET)
    write_onnx(model, folder / "toy.onnx", size=(SIDE, SIDE), metadata={"attn_force_fp32": "true"})
    return folder


@pytest.fixture
def moganet(folder: Path) -> Located:
    return Located(folder / f"{MOGANET}.ckpt")


@pytest.mark.slow
def test_a_fresh_graph_agrees_stage_by_stage(folder: Path, monkeypatch: pytest.MonkeyPatch):
    notes: list[str] = []
    fill, filled = ModelFile.filled_torch, []
    monkeypatch.setattr(ModelFile, "filled_torch", lambda *given: filled.append(given) or fill(*given))
    report = run_parity(
        Located(folder / f"{MOAT}.ckpt"), backend="onnxruntime", name="toy", batch=3, note=notes.append
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
    assert any("exporting to onnx" in sentence for sentence in notes)
    assert len(filled) == 1, "the graph is exported from the model that ran"
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


def test_a_graph_without_its_gate_needs_the_option(moganet: Located, folder: Path, tmp_path: Path):
    model = onnx.load(folder / "toy.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "silent.onnx")
    with pytest.raises(UsageError, match=r"computes one function.*--set attn_force_fp32=true"):
        run_parity(moganet, backend="onnxruntime", converted=tmp_path / "silent.onnx")
    found = run_parity(
        moganet, backend="onnxruntime", converted=tmp_path / "silent.onnx", settings=SETTINGS[MOGANET]
    )
    assert found.ok, found.verdict


def test_metadata_that_are_not_a_setting_are_refused(moganet: Located, folder: Path, tmp_path: Path):
    shutil.copy(folder / "toy.onnx", tmp_path / "odd.onnx")
    model = onnx.load(tmp_path / "odd.onnx")
    onnx.helper.set_model_props(model, {"attn_force_fp32": "perhaps"})
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(FormatError, match="metadata says attn_force_fp32 is 'perhaps'"):
        run_parity(moganet, backend="onnxruntime", converted=tmp_path / "odd.onnx")


# -- recorded outputs ----------------------------------------------------------------------------------------


@pytest.fixture
def recording(moganet: Located, tmp_path: Path) -> Path:
    """What PyTorch gives for the toy, recorded with its inputs."""
    images = np.random.default_rng(3).standard_normal((3, 96, SIDE, 3), dtype=np.float32)
    model = toy_model(moganet.path.parent, MOGANET)
    path = tmp_path / "outputs.npz"
    np.savez(path, images=images, note="made elsewhere", **run_torch(model, images))
    return path


def recorded_run(source: Located, path: Path, **options: Any) -> ParityReport:
    return run_parity(source, backend="recorded", converted=path, settings=SETTINGS[MOGANET], **options)


def test_a_recording_with_its_inputs_agrees(moganet: Located, recording: Path):
    report = recorded_run(moganet, recording)
    assert report.ok, report.verdict
    assert [stage.name for stage in report.stages] == [*STAGES[MOGANET], "logits"]
    assert str(report.inputs) == f"3 inputs of {recording} at 96x64"
    assert (report.backend, report.reference, report.sides[1].reads) == ("recorded", "torch", str(recording))
    assert report.to_json()["inputs"]["recorded"] == str(recording)


def test_a_fault_in_a_recording_is_caught(moganet: Located, recording: Path):
    arrays = dict(np.load(recording))
    arrays["stage3"][0, 0, 0, 0] += 0.01 * np.abs(arrays["stage3"]).max()
    np.savez(recording, **arrays)
    assert recorded_run(moganet, recording).first_departure == "stage3"
    arrays = dict(np.load(recording))
    arrays["images"] = arrays["images"][:, ::-1]
    np.savez(recording, **arrays)
    assert recorded_run(moganet, recording).first_departure == "stage1"


def test_a_recording_of_other_inputs_has_another_shape(moganet: Located, recording: Path):
    arrays = dict(np.load(recording))
    del arrays["images"]
    np.savez(recording, **arrays)
    report = recorded_run(moganet, recording, resolution=SIDE)
    assert report.inputs.batch == 3, "as many as were recorded"
    assert report.first_departure == "stage1"
    assert "shape" in report.stages[0].reason


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"weight": np.zeros(3, np.float32)}, "not a recording"),
        ({"logits": np.zeros((), np.float32)}, "not a recording"),
        ({"logits": np.zeros((2, 3), np.int64)}, "not a recording"),
        (
            {"logits": np.zeros((2, 3), np.float32), "images": np.zeros((2, 3, 64, 64), np.float32)},
            r"images are \[2, 3, 64, 64\] of float32, not",
        ),
        (
            {"logits": np.zeros((2, 3), np.float32), "images": np.zeros((2, 64, 64, 3), np.uint8)},
            r"images are \[2, 64, 64, 3\] of uint8, not",
        ),
        ({"logits": np.zeros((30_000, 1), np.float32)}, "recorded of 30,000 inputs, which is too many"),
    ],
)
def test_what_is_not_a_recording_is_refused(
    arrays: dict[str, Any], says: str, moganet: Located, tmp_path: Path
):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(FormatError, match=says):
        recorded_run(moganet, tmp_path / "x.npz")


def test_what_has_another_shape_is_not_read(moganet: Located, recording: Path, monkeypatch: Any):
    """A few bytes of zeros, compressed, can be an output of any size."""
    arrays = dict(np.load(recording))
    arrays["stage2"] = np.zeros((3, 400, 400, 32), np.float32)
    np.savez_compressed(recording, **arrays)
    read, names = NpzReader.read, []
    monkeypatch.setattr(NpzReader, "read", lambda self, name: names.append(name) or read(self, name))
    report = recorded_run(moganet, recording)
    assert report.first_departure == "stage2"
    assert "shape [3, 400, 400, 32] on the Recorded side" in report.stages[1].reason
    assert "stage2" not in names and "stage1" in names


@pytest.mark.parametrize("option", [{"seed": 1}, {"batch": 2}, {"resolution": 64}, {"image": Path("a.png")}])
def test_a_recording_has_its_own_inputs(option: dict[str, Any], moganet: Located, recording: Path):
    pytest.importorskip("PIL")
    with pytest.raises(UsageError, match="has its own inputs"):
        recorded_run(moganet, recording, **option)


def test_a_recording_computes_one_function(moganet: Located, recording: Path):
    with pytest.raises(UsageError, match=r"computes one function.*--set attn_force_fp32=true"):
        run_parity(moganet, backend="recorded", converted=recording)


@pytest.mark.parametrize(
    ("golden", "synthetic", "settings", "outputs"),
    [
        ("moat/golden_tiny_moat0_pe_256_pool2", Synthetic("tiny-moat0"), {}, ["stage5", "logits"]),
        (
            "moat/golden_tiny_moat0_nope_256_pool2",
            Synthetic("tiny-moat0", pos_emb=False),
            {},
            ["stage5", "logits"],
        ),
        (
            "moganet/golden_xtiny_224_plain",
            Synthetic("moganet-xt"),
            {"attn_force_fp32": False},
            ["logits"],
        ),
        (
            "moganet/golden_xtiny_224_fp32gate",
            Synthetic("moganet-xt"),
            {"attn_force_fp32": True},
            ["logits"],
        ),
    ],
)
def test_what_the_published_code_gave_is_a_side(
    golden: str, synthetic: Synthetic, settings: dict[str, Any], outputs: list[str]
):
    """The recordings of tests/golden, whose inputs are the seeded ones and not in the files."""
    pytest.importorskip("torch")
    path = GOLDENS / f"{golden}.npz"
    asked = {"backend": "recorded", "converted": path, "settings": settings}
    asked["resolution"] = 256 if "256" in golden else 224
    with synthetic_checkpoint(synthetic) as source:
        report = run_parity(source, **asked)
        assert report.ok, report.verdict
        assert [stage.name for stage in report.stages] == outputs
        assert max(stage.relative for stage in report.stages) < 5e-6
        assert any("by name: not compared" in note for note in report.notes)
        assert run_parity(source, **asked, seed=1).first_departure == outputs[0]
        if settings:
            asked["settings"] = {"attn_force_fp32": not settings["attn_force_fp32"]}
            assert run_parity(source, **asked).first_departure == "logits", "of the other gate"
