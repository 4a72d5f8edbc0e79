"""``--to onnx`` and ``--to saved-model``, whole: from a source to what stands on the disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from ckptkit.base.errors import UsageError
from ckptkit.base.files import TEMPORARY
from ckptkit.export import graphs
from ckptkit.export.targets import ExportRequest, get_target
from ckptkit.parity.backends import Backend, Pass, Ran
from ckptkit.parity.report import Side
from tests.support.exporting import noting, source_of
from tests.support.toys import MOAT, MOGANET, SETTINGS, SIDE, STAGES, toy_file, toy_variants


@pytest.fixture(autouse=True, scope="module")
def _toys() -> Iterator[None]:
    with toy_variants():
        yield


def toy_source(folder: Path, variant: str, **options: Any) -> Any:
    """A toy's file, taken for trained weights."""
    path = toy_file(folder, variant)
    opened = source_of(path, settings=SETTINGS[variant], resolution=SIDE, **options)
    return replace(opened, synthetic=False)


def need(target: str) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript") if target == "onnx" else ("tensorflow",):
        pytest.importorskip(package)


def left(folder: Path) -> set[str]:
    """What stands in a folder, but for the source."""
    return {path.name for path in folder.iterdir() if not path.name.startswith("toy-")}


def test_an_onnx_file_appears_when_it_was_found_to_agree(tmp_path: Path):
    need("onnx")
    import onnx

    source = toy_source(tmp_path, MOGANET)
    said: list[str] = []
    output = tmp_path / "out" / "m.onnx"
    done = get_target("onnx").export(noting(source, said), output, ExportRequest())
    assert done.ok
    assert (done.path, left(output.parent)) == (output, {"m.onnx"})
    assert [(file.name, file.nbytes) for file in done.files] == [("m.onnx", output.stat().st_size)]
    assert "agrees with PyTorch on 3 random inputs at 64x64" in done.verdict
    assert "stage1, stage2, stage3, stage4, logits" in done.verdict
    for which in ("batch", "alone"):
        assert [stage["name"] for stage in done.details["check"][which]] == [*STAGES[MOGANET], "logits"]
        assert all(stage["verdict"] == "agrees" for stage in done.details["check"][which])
    assert (done.details["opset"], done.details["resolution"], done.details["outputs"]) == (
        18,
        [64, 64],
        ["logits"],
    )
    assert "writing the graph for 64x64, operator set 18" in " ".join(said)
    json.dumps(done.details)
    metadata = {entry.key: entry.value for entry in onnx.load(output).metadata_props}
    assert metadata["source_sha256"] == hashlib.sha256(source.located.path.read_bytes()).hexdigest()
    assert (metadata["family"], metadata["variant"], metadata["attn_force_fp32"]) == (
        "moganet",
        MOGANET,
        "true",
    )
    assert (metadata["resolution"], metadata["normalization"]) == ("64", "imagenet")
    assert json.loads(metadata["preprocessing"])["size"] == [64, 64]
    assert "ckptkit_version" in metadata
    assert not {"layout", "format"} & metadata.keys(), "a graph has none"


def test_a_saved_model_appears_when_it_was_found_to_agree(tmp_path: Path):
    need("saved-model")
    source = toy_source(tmp_path, MOAT)
    output = tmp_path / "saved"
    output.mkdir()
    (output / "saved_model.pb").write_text("an older one")
    with pytest.raises(UsageError, match="exists already"):
        get_target("saved-model").export(source, output, ExportRequest())
    done = get_target("saved-model").export(source, output, ExportRequest(force=True, features=True))
    assert done.ok
    assert "tensorflow 2." in done.verdict
    assert done.details["outputs"] == list(STAGES[MOAT])
    assert [stage["name"] for stage in done.details["check"]["alone"]] == list(STAGES[MOAT])
    assert left(tmp_path) == {"saved"}
    assert {file.name: file.nbytes for file in done.files} == {
        path.relative_to(output).as_posix(): path.stat().st_size
        for path in output.rglob("*")
        if path.is_file()
    }
    facts = json.loads((output / "assets.extra" / "ckptkit.json").read_text())
    planned = get_target("saved-model").export(source, tmp_path / "x", ExportRequest(dry_run=True)).files
    assert {file.name for file in planned} == {file.name for file in done.files}
    assert (facts["model_type"], facts["variant"]) == ("moat", MOAT)
    assert facts["settings"] == {
        "pool_size": 2,
        "window_size": None,
        "global_attention": False,
        "se_activation": "swish",
        "layer_norm_epsilon": 1e-5,
        "input_order": "rgb",
    }
    assert facts["preprocessing"]["size"] == [64, 64]
    assert "source_index_sha256" in facts["provenance"]


@pytest.mark.parametrize("older", [False, True], ids=["nothing there", "an older one"])
def test_a_graph_that_does_not_agree_leaves_what_was_there(
    older: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The graph is made of another model than the one it is compared with."""
    need("onnx")
    real = graphs.write_onnx
    monkeypatch.setattr(graphs, "write_onnx", lambda _, path, **given: real(small_model(), path, **given))
    source, output = toy_source(tmp_path, MOGANET), tmp_path / "m.onnx"
    if older:
        output.write_bytes(b"older")
    done = graphs.export_onnx(source, output, ExportRequest(force=older))
    assert not done.ok
    assert done.files == ()
    assert "DISAGREES with PyTorch at logits" in done.verdict
    assert left(tmp_path) == ({"m.onnx"} if older else set())
    assert not older or output.read_bytes() == b"older"


def small_model() -> Any:
    """A model whose logits are of the right shape, exported in a moment."""
    import torch

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(7)
            self.head = torch.nn.Linear(3, 1000)

        def forward_stages(self, x: Any) -> dict[str, Any]:
            return {"logits": self.head(x.mean(dim=(2, 3)))}

    return Module().eval()


def test_weights_that_are_too_large_stand_beside_and_replace_older_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    need("onnx")
    real, reference_of = graphs.write_onnx, graphs.reference_of
    monkeypatch.setattr(graphs, "reference_of", lambda source, _: reference_of(source, small_model()))

    def write(_: Any, path: Path, **given: Any) -> Any:
        return real(small_model(), path, **given, single_file_bytes=1000)

    monkeypatch.setattr(graphs, "write_onnx", write)
    source, output = toy_source(tmp_path, MOGANET), tmp_path / "m.onnx"
    (tmp_path / "m.onnx.data").write_bytes(b"older")
    with pytest.raises(UsageError, match=r"m\.onnx\.data exists already"):
        graphs.export_onnx(source, output, ExportRequest())
    output.write_bytes(b"older")
    with pytest.raises(UsageError, match=r"m\.onnx exists already"):
        graphs.export_onnx(source, output, ExportRequest())
    done = graphs.export_onnx(source, output, ExportRequest(force=True))
    assert done.ok, done.verdict
    assert [file.name for file in done.files] == ["m.onnx.data", "m.onnx"]
    assert left(tmp_path) == {"m.onnx", "m.onnx.data"}
    assert [file.nbytes for file in done.files] == [
        (tmp_path / name).stat().st_size for name in ("m.onnx.data", "m.onnx")
    ]
    import onnxruntime

    session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    images = np.zeros((1, 3, SIDE, SIDE), np.float32)
    (logits,) = session.run(None, {"images": images})
    np.testing.assert_allclose(logits[0], small_model().head.bias.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("target", ["onnx", "saved-model"])
def test_a_dry_run_writes_nothing_and_builds_nothing(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    need(target)
    monkeypatch.setattr(graphs, "reference_of", None)
    output = tmp_path / "absent" / "m"
    done = get_target(target).export(toy_source(tmp_path, MOGANET), output, ExportRequest(dry_run=True))
    assert done.ok
    assert "not written, not checked" in done.verdict
    assert done.files
    assert all(file.nbytes is None for file in done.files)
    assert left(tmp_path) == set()


def test_a_dry_run_knows_of_large_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    need("onnx")
    monkeypatch.setattr(graphs, "SINGLE_FILE_BYTES", 1000)
    done = graphs.export_onnx(toy_source(tmp_path, MOAT), tmp_path / "m.onnx", ExportRequest(dry_run=True))
    assert [file.name for file in done.files] == ["m.onnx.data", "m.onnx"]


@pytest.mark.parametrize("target", ["onnx", "saved-model"])
def test_an_interruption_leaves_nothing(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    need(target)

    def interrupted(*given: Any, **_: Any) -> None:
        place = next(path for path in given if isinstance(path, Path))
        (place if place.is_dir() else place.parent).joinpath("half").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(graphs, "reference_of", lambda *_: None)
    monkeypatch.setattr(graphs, f"write_{target.replace('-', '_')}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        get_target(target).export(toy_source(tmp_path, MOGANET), tmp_path / "m", ExportRequest())
    assert left(tmp_path) == set()
    assert not list(tmp_path.rglob(f"{TEMPORARY}*"))


@pytest.mark.parametrize(
    ("target", "options", "says"),
    [
        ("onnx", {"opset": 17}, "operator set 17; from 18 to 25"),
        ("onnx", {"dtype": "float16"}, "--dtype does not apply to --to onnx"),
        ("saved-model", {"opset": 18}, "--opset does not apply to --to saved-model"),
    ],
)
def test_options_that_make_no_sense(target: str, options: dict[str, Any], says: str):
    need(target)
    with pytest.raises(UsageError, match=says):
        get_target(target).require(ExportRequest(**options))


class TestTheCheck:
    """By outputs made up here."""

    REFERENCE = graphs.Reference(
        graphs.random_inputs(3, (32, 32), None),
        {
            "stage1": np.random.default_rng(0).standard_normal((3, 2, 2, 4)),
            "logits": np.random.default_rng(1).standard_normal((3, 7)),
        },
    )

    def check(self, change: Any = None, *, features: bool = False, names: Any = ("stage1", "logits")) -> Any:
        class Graph(Backend):
            framework = "onnxruntime"

            def run(_, images: np.ndarray, *_said: Any) -> Ran:
                found = {name: self.REFERENCE.outputs[name][: len(images)].copy() for name in names}
                if change:
                    change(found)
                side = Side("onnxruntime", "onnxruntime 1.0", "", "onnx", "opset 18", "float32", {}, 0.0)
                return Ran({"": Pass(found)}, side)

        return graphs.check_graph(self.REFERENCE, Graph(), features=features)

    def test_what_agrees(self):
        found = self.check()
        assert found.ok
        assert [output.shape for output in found.alone] == [(1, 2, 2, 4), (1, 7)]

    def test_logits_alone_are_enough_where_logits_are_wanted(self):
        assert [output.name for output in self.check(names=["logits"]).together] == ["logits"]

    def test_of_features_the_stages_are_compared(self):
        found = self.check(features=True, names=["stage1"])
        assert [output.name for output in found.together] == ["stage1"]

    @pytest.mark.parametrize("names", [["stage1"], []])
    def test_what_is_wanted_must_be_there(self, names: list[str]):
        with pytest.raises(ValueError, match="logits"):
            self.check(names=names)

    def test_a_fault_that_only_one_input_alone_shows_counts(self):
        def change(found: dict[str, np.ndarray]) -> None:
            if len(found["logits"]) == 1:
                found["logits"] += 1e-3

        found = self.check(change)
        assert not found.ok
        assert found.verdict.startswith(
            "onnxruntime 1.0 DISAGREES with PyTorch at logits, one input alone: difference 1.0e-03"
        )

    def test_a_fault_in_the_second_input_of_a_batch_counts(self):
        def change(found: dict[str, np.ndarray]) -> None:
            found["stage1"][1:] *= 1.001

        found = self.check(change)
        assert not found.ok
        assert "DISAGREES with PyTorch at stage1, 3 random inputs" in found.verdict
