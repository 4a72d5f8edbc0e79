"""Headless weights as the published dense-prediction code loads them, and what its config must say."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ckptkit.base.errors import IntegrityError, MissingDependencyError, UsageError
from ckptkit.export import backbone as module
from ckptkit.export.backbone import NOTES, consumer_of
from ckptkit.export.backbone import export_backbone as export
from ckptkit.export.backbone import require_backbone as require
from ckptkit.export.targets import ExportRequest
from ckptkit.families.base import Backbone, get_family
from ckptkit.families.moat.config import MOAT_CONFIGS
from ckptkit.families.moat.published import deeplab2_name
from ckptkit.families.moganet.config import MOGANET_CONFIGS
from ckptkit.registry.loading import load_registry
from tests.support.commands import pip_install
from tests.support.exporting import MOAT, MOGANET, noting, source_of, trained, write_safetensors

REGISTRY = load_registry()
IDS = {MOAT: "tiny-moat0-256", MOGANET: "moganet-xt-224"}
HEADS = ("final_layer_norm", "logits_head")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("trained")
    return {
        name: source_of(write_safetensors(folder / f"{name}.safetensors", trained(name)), REGISTRY[IDS[name]])
        for name in IDS
    }


def test_moat_is_what_deeplab2s_loader_asks_for(sources, tmp_path):
    """Its loader takes every trainable variable of the backbone by name, and its shape."""
    tensorflow = pytest.importorskip("tensorflow")
    from tests.support.moat_reference import variable_shapes

    done = export(sources[MOAT], tmp_path / "out", ExportRequest())
    assert done.ok
    reader = tensorflow.train.load_checkpoint(str(tmp_path / "out" / "backbone.ckpt"))
    has = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    published = {
        name: tuple(shape)
        for name, shape in variable_shapes(MOAT).items()
        if not name.removeprefix("moat/").startswith(HEADS)
    }
    assert has == published
    wanted = trained(MOAT)["stages.0.0.expand_conv.weight"]
    found = reader.get_tensor("moat/block_00_00/expand_conv/kernel")
    np.testing.assert_array_equal(found, wanted.transpose(2, 3, 1, 0))
    assert found.dtype == np.float32


def test_moganet_loads_into_the_backbone_of_its_repository(sources, tmp_path):
    """`MogaNet_feat` hands the whole mapping to `load_state_dict`, without taking a prefix off."""
    import torch

    export(sources[MOGANET], tmp_path / "out", ExportRequest())
    loaded = torch.load(tmp_path / "out" / "backbone.pth", weights_only=True, map_location="cpu")
    assert "state_dict" not in loaded
    assert "model" not in loaded
    wanted = {name: array for name, array in trained(MOGANET).items() if not name.startswith("head.")}
    assert loaded.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(loaded[name].numpy(), array)


def test_the_backbone_of_a_detector(tmp_path):
    pytest.importorskip("torch")
    body = {n: array for n, array in trained(MOGANET).items() if not n.startswith("head.")}
    whole = {f"backbone.{n}": array for n, array in body.items()} | {
        "neck.convs.0.weight": np.ones(3, np.float32)
    }
    source = source_of(
        write_safetensors(tmp_path / "det.safetensors", whole), settings={"attn_force_fp32": False}
    )
    said: list[str] = []
    done = export(noting(source, said), tmp_path / "out", ExportRequest())
    assert done.ok
    assert f"{source.name}: left out by rule: neck 1" in said
    assert done.details["left_out"] == {"neck.convs.0.weight": "neck: part of a dense-prediction model"}
    import torch

    loaded = torch.load(tmp_path / "out" / "backbone.pth", weights_only=True)
    assert loaded.keys() == body.keys()


def test_deeplab2s_config(sources, tmp_path):
    done = export(sources[MOAT], tmp_path / 'a "b"', ExportRequest())
    said = (tmp_path / 'a "b"' / NOTES).read_text(encoding="utf-8")
    assert done.details["config"] in said
    assert '    name: "kmax_tiny_moat0_pretrain_256_1k"\n' in said
    path = re.search(r'pretrained_weights: "(.*)"\n', said)[1]
    assert Path(ast.literal_eval(f'"{path}"')) == tmp_path / 'a "b"' / "backbone.ckpt"
    assert Path(f'{tmp_path}/a "b"/backbone.ckpt.index').is_file()
    assert "trained with pool_size 2; deeplab2 builds backbones with 3" in said
    assert "ImageNet mean" in said
    assert "position bias" in said


def test_mmdetections_config(sources, tmp_path):
    done = export(sources[MOGANET], tmp_path / "it's", ExportRequest())
    said = (tmp_path / "it's" / NOTES).read_text(encoding="utf-8")
    assert done.details["config"] in said
    names: dict = {}
    exec(done.details["config"], {"dict": dict}, names)
    assert names["model"]["backbone"] == {
        "type": "MogaNet_feat",
        "arch": "x-tiny",
        "attn_force_fp32": True,
        "init_cfg": {"type": "Pretrained", "checkpoint": str(tmp_path / "it's" / "backbone.pth")},
    }
    assert "[32, 64, 96, 192]" in said
    assert "configs leave it at False" in said


def test_a_gate_as_the_configs_have_it_needs_no_line():
    plain = Backbone(MOGANET, False, {"attn_force_fp32": False}, "imagenet", Path("/w.pth"))
    consumer = consumer_of(get_family("moganet"))
    assert "attn_force_fp32" not in consumer.config(plain)
    assert not any("attn_force_fp32" in remark for remark in consumer.remarks(plain))


def test_remarks_only_where_something_differs():
    settings = {
        "pool_size": 3,
        "se_activation": "swish",
        "layer_norm_epsilon": 1e-5,
        "input_order": "rgb",
    }
    like_deeplab2 = Backbone("moat2", False, settings, "half", Path("/w.ckpt"))
    remarks = consumer_of(get_family("moat")).remarks(like_deeplab2)
    assert len(remarks) == 1
    assert "BatchNorm statistics" in remarks[0]


DEEPLAB2_NAMES = {
    "moat0_pretrain_224_1k", "moat0_pretrain_224_no_pe_1k", "moat1_pretrain_224_1k",
    "moat1_pretrain_224_no_pe_1k", "moat2_finetune_384_22k", "moat2_finetune_384_no_pe_22k",
    "moat3_finetune_512_22k", "moat3_finetune_512_no_pe_22k", "moat4_finetune_512_22k",
    "moat4_finetune_512_no_pe_22k", "tiny_moat0_pretrain_256_1k", "tiny_moat0_pretrain_256_no_pe_1k",
    "tiny_moat1_pretrain_256_1k", "tiny_moat1_pretrain_256_no_pe_1k", "tiny_moat2_pretrain_256_1k",
    "tiny_moat2_pretrain_256_no_pe_1k", "tiny_moat3_pretrain_256_1k", "tiny_moat3_pretrain_256_no_pe_1k",
}  # fmt: skip
"""What deeplab2's get_model accepts (model/pixel_encoder/moat.py)."""


def test_every_variant_has_deeplab2s_name():
    named = {deeplab2_name(variant, pos_emb=pe) for variant in MOAT_CONFIGS for pe in (True, False)}
    assert named == DEEPLAB2_NAMES


def test_every_variant_has_an_arch():
    archs = {}
    for variant in MOGANET_CONFIGS:
        backbone = Backbone(variant, False, {"attn_force_fp32": False}, "imagenet", Path("/w.pth"))
        archs[variant] = re.search(r"arch='(.*)'", consumer_of(get_family("moganet")).config(backbone))[1]
    assert archs == {
        "moganet-xt": "x-tiny",
        "moganet-t": "tiny",
        "moganet-s": "small",
        "moganet-b": "base",
        "moganet-l": "large",
        "moganet-xl": "x-large",
    }


def test_a_family_without_known_code():
    with pytest.raises(UsageError, match=r"no dense-prediction code is known for family resnet"):
        consumer_of(SimpleNamespace(name="resnet", consumer=None))


def test_a_dry_run_names_the_files_and_writes_nothing(sources, tmp_path):
    said = export(sources[MOAT], tmp_path / "out", ExportRequest(dry_run=True)).files
    assert not (tmp_path / "out").exists()
    done = export(sources[MOAT], tmp_path / "out", ExportRequest()).files
    assert {file.name for file in said} == {file.name for file in done}
    assert {file.name: file.nbytes for file in done} == {
        path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()
    }


def test_half_precision_where_its_user_casts(sources, tmp_path):
    done = export(sources[MOGANET], tmp_path / "out", ExportRequest(dtype="float16"))
    assert done.ok
    assert max(stage["relative"] for stage in done.details["stages"]) > 0
    with pytest.raises(UsageError, match=r"deeplab2 \(kMaX-DeepLab\) takes float32 alone"):
        export(sources[MOAT], tmp_path / "moat", ExportRequest(dtype="float16"))
    assert not (tmp_path / "moat").exists()


def test_resized_position_tables_are_not_for_deeplab2(sources, tmp_path):
    import ckptkit

    resized = ckptkit.convert(sources[MOAT].located.path, "npz", tmp_path / "m.npz", resolution=64)
    with pytest.raises(UsageError, match=r"its position tables were resized, and deeplab2"):
        export(source_of(resized), tmp_path / "out", ExportRequest())
    assert not (tmp_path / "out").exists()


def test_features_that_differ_leave_nothing(sources, tmp_path, monkeypatch):
    """A sound file of other values, as a wrong rule would write it: one kernel is transposed."""
    import torch

    write = module.PlannedWeights.write

    def wrong(self, path):
        converted = write(self, path)
        state = torch.load(path, weights_only=True)
        kernel = state["blocks2.0.attn.proj_1.weight"]
        state["blocks2.0.attn.proj_1.weight"] = kernel.transpose(0, 1).contiguous()
        torch.save(state, path)
        return converted

    monkeypatch.setattr(module.PlannedWeights, "write", wrong)
    done = export(sources[MOGANET], tmp_path / "out", ExportRequest())
    assert not done.ok
    assert "but stage2 at 64 pixels differs from the source's: " in done.verdict
    assert list(tmp_path.iterdir()) == []


def test_other_names_than_the_architectures_leave_nothing(sources, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    write = module.PlannedWeights.write

    def renaming(self, path):
        converted = write(self, path)
        names = {"blocks1.0.norm1.weight": "blocks1.0.normX.weight"}
        saved = torch.load(path, weights_only=True)
        table = saved.get("state_dict", saved)
        assert names.keys() <= table.keys()
        for name in [*table]:
            table[names.get(name, name)] = table.pop(name)
        torch.save(saved, path)
        return converted

    monkeypatch.setattr(module.PlannedWeights, "write", renaming)
    with pytest.raises(
        IntegrityError, match=r"2 tensors do not belong to moganet-xt without head: blocks1\.0"
    ):
        export(sources[MOGANET], tmp_path / "out", ExportRequest())
    assert list(tmp_path.iterdir()) == []


def test_torch_is_asked_for_before_any_work(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=f"needs torch; {pip_install('torch')}"):
        require(ExportRequest())
    require(ExportRequest(dry_run=True))
