"""The authors' dense-prediction files: a backbone, and what is around it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import ckptkit
from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.families.base import Structure, get_family, registry_families
from ckptkit.formats.detect import open_reader, writer_for
from ckptkit.models.synth import synthetic_for, write_checkpoint
from ckptkit.registry.loading import load_registry
from ckptkit.registry.schema import Entry
from ckptkit.workspace import Located
from tests.support.moganet_weights import tensor_rows
from tests.support.tensors import specs_of, write_all

FAMILY = get_family("moganet")
REGISTRY = load_registry(families=registry_families)
DENSE = [entry for entry in REGISTRY.values() if entry.serves == "backbone"]
SMALLEST = REGISTRY["moganet-xt-coco-pose-256x192"]

AROUND = {
    "RetinaNet": {"neck": 16, "bbox_head": 20},
    "Mask R-CNN": {"neck": 16, "rpn_head": 6, "roi_head": 20},
    "MS 3x": {"neck": 16, "rpn_head": 6, "roi_head": 3 * (8 + 12)},
    "GIOU+MS 3x": {"neck": 16, "rpn_head": 6, "roi_head": 3 * (4 * 6 + 6 + 12)},
    "Semantic FPN": {"neck": 16, "decode_head": 7 * 6 + 2},
    "UperNet": {"decode_head": 12 * 6 + 2, "auxiliary_head": 8},
    "Top-Down heatmap": {"keypoint_head": 3 * 6 + 2},
}
"""Tensors by their first step, counted on the classes' own modules."""


@pytest.mark.parametrize("entry", DENSE, ids=lambda entry: entry.id)
def test_the_whole_has_the_parameters_of_its_class_definitions(entry: Entry) -> None:
    around = FAMILY.parts_around(entry)
    backbone = FAMILY.table("torch", entry.variant, Structure(False, None)).parameters
    trained = {name: shape for name, shape in around.items() if ".running_" not in name}
    assert backbone + sum(map(math.prod, trained.values())) - _counters(trained) == entry.exact_parameters
    parts: dict[str, int] = {}
    for name in around:
        parts[name.split(".")[0]] = parts.get(name.split(".")[0], 0) + 1
    assert parts == AROUND[entry.setting if entry.method == "Cascade Mask R-CNN" else entry.method]


def _counters(names: object) -> int:
    """A product of no sizes is 1."""
    return sum(name.endswith("num_batches_tracked") for name in names)


def test_an_unknown_method_has_no_known_parts() -> None:
    other = SMALLEST.model_copy(update={"method": "YOLO"})
    assert FAMILY.parts_around(other) == {}
    with pytest.raises(UsageError, match="only its backbone is known here"):
        synthetic_for(other)


@pytest.fixture(scope="module")
def pose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(synthetic_for(SMALLEST), tmp_path_factory.mktemp("dense") / "pose.pth")


def verified(path: Path) -> ckptkit.VerifyReport:
    from ckptkit.compare.verify import VerifyRequest, verify_checkpoint

    return verify_checkpoint(Located(path, SMALLEST), VerifyRequest())


def test_a_file_as_the_training_code_writes_it(pose: Path) -> None:
    torch = pytest.importorskip("torch")
    tree = torch.load(pose, weights_only=True)
    assert list(tree) == ["meta", "state_dict"]
    shapes = {name: tuple(tensor.shape) for name, tensor in tree["state_dict"].items()}
    rows = tensor_rows("moganet-xt", num_classes=None)
    assert {*[*shapes][: len(rows)]} == {f"backbone.{row.name}" for row in rows}
    assert shapes["keypoint_head.deconv_layers.0.weight"] == (192, 256, 4, 4)
    assert shapes["keypoint_head.final_layer.bias"] == (17,)
    assert len(shapes) == len(rows) + 20


def test_verify_knows_the_whole(pose: Path) -> None:
    report = verified(pose)
    assert report.ok
    details = {check.name: check.detail for check in report.checks}
    assert "and all 20 tensors of keypoint_head" in details["names and shapes"]
    assert "5,652,555 trainable parameters, as the published code has" in details["parameter count"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("keypoint_head.final_layer.bias"), "missing: keypoint_head.final_layer.bias"),
        (
            lambda t: t.update({"keypoint_head.extra.weight": np.ones((3, 3), np.float32)}),
            "unexpected: keypoint_head.extra.weight [3, 3]",
        ),
        (
            lambda t: t.update({"keypoint_head.final_layer.bias": np.ones(133, np.float32)}),
            "wrong shape: keypoint_head.final_layer.bias is [133] instead of [17]",
        ),
        (
            lambda t: t.update({"keypoint_head.final_layer.bias": np.full(17, np.nan, np.float32)}),
            "keypoint_head.final_layer.bias",
        ),
    ],
    ids=["missing", "unexpected", "another shape", "not a number"],
)
def test_faults_around_the_backbone_are_found(pose: Path, tmp_path: Path, change, said: str) -> None:
    with open_reader(pose) as reader:
        tensors = {name: np.array(reader.read(name)) for name in reader.specs}
    change(tensors)
    damaged = tmp_path / "damaged.pth"
    write_all(writer_for("torch")(damaged, specs_of(tensors), {}), tensors)
    report = verified(damaged)
    assert not report.ok
    assert any(said in item for check in report.failed for item in check.items)


def test_convert_the_whole_or_the_backbone(pose: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="a pose model's checkpoint: backbone moganet-xt with keypoint"):
        ckptkit.convert(pose, output=tmp_path / "a.safetensors")
    whole = ckptkit.convert(pose, output=tmp_path / "whole.safetensors", layout="as-is")
    backbone = ckptkit.convert(pose, output=tmp_path / "backbone.safetensors", head=False)
    everything = ckptkit.load(pose, layout="as-is")
    kept = ckptkit.load(whole, layout="as-is")
    assert kept.keys() == everything.keys()
    assert all(np.array_equal(kept[name], everything[name]) for name in everything)
    alone = ckptkit.load(backbone, layout="as-is")
    assert {f"backbone.{name}" for name in alone} == {n for n in everything if n.startswith("backbone.")}
    assert all(np.array_equal(alone[name], everything[f"backbone.{name}"]) for name in alone)
