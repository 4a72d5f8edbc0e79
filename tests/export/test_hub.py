"""The folder for the Hugging Face hub: what is in it, and that it gives back the same model."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

import ckptkit
from ckptkit.base.errors import ConversionError, NotFoundError, UsageError
from ckptkit.export.hub import export
from ckptkit.export.targets import ExportOptions
from ckptkit.models import create_model
from ckptkit.registry import load_registry
from tests.support.exporting import (
    MOAT,
    MOGANET,
    logits_of,
    source_of,
    trained,
    write_safetensors,
)

IDS = {MOAT: "tiny-moat0-256", MOGANET: "moganet-xt-224"}
TOLD = {MOAT: {}, MOGANET: {"settings": {"attn_force_fp32": True}}}
IMAGES = np.random.default_rng(7).standard_normal((2, 64, 64, 3), dtype=np.float32)


def need(framework):
    pytest.importorskip("torch" if framework == "torch" else "tensorflow")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of each family that no recipe made."""
    folder = tmp_path_factory.mktemp("trained")
    return {name: write_safetensors(folder / f"{name}.safetensors", trained(name)) for name in IDS}


@pytest.mark.parametrize("variant", IDS)
def test_the_folder_holds_the_source_under_pytorch_names(files, variant, tmp_path):
    entry = load_registry()[IDS[variant]]
    done = export(source_of(files[variant], entry), tmp_path / "out", ExportOptions())
    from safetensors.numpy import load_file

    written, wanted = load_file(tmp_path / "out" / "model.safetensors"), trained(variant)
    assert written.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(written[name], wanted[name], err_msg=name)
    assert {file.name: file.nbytes for file in done.files} == {
        path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()
    }
    assert {file.name for file in done.files} == {"model.safetensors", "config.json", "README.md"}


def test_the_config_says_what_the_model_is(files, tmp_path):
    entry = load_registry()["moganet-xt-224"]
    export(source_of(files[MOGANET], entry), tmp_path / "out", ExportOptions())
    said = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    labels, indices = said.pop("id2label"), said.pop("label2id")
    assert len(labels) == len(indices) == 1000
    assert all(indices[name] == int(index) for index, name in labels.items())
    assert labels["207"] == "golden retriever"
    assert said == {
        "library_name": "ckptkit",
        "model_type": "moganet",
        "variant": "moganet-xt",
        "entry": "moganet-xt-224",
        "num_classes": 1000,
        "pos_emb": None,
        "settings": {"attn_force_fp32": True},
        "preprocessing": {
            "size": [224, 224],
            "resize": 248,
            "interpolation": "bicubic",
            "normalization": "imagenet",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "torch_dtype": "float32",
        "synthetic": False,
        "provenance": {
            "ckptkit_version": ckptkit.__version__,
            "source_sha256": hashlib.sha256(files[MOGANET].read_bytes()).hexdigest(),
            "bn_statistics": "present",
        },
    }


def test_where_it_was_published_is_what_the_fetch_recorded(files, tmp_path):
    from ckptkit.store.cache import Home
    from tests.support.commands import cache

    record = cache("moganet-xt-224")
    entry = load_registry()["moganet-xt-224"]
    export(source_of(files[MOGANET], entry), tmp_path / "out", ExportOptions())
    said = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert said["provenance"]["source_url"] == record.url == Home.default().record("moganet-xt-224").url


@pytest.mark.parametrize("variant", IDS)
def test_it_gives_back_the_same_logits_in_both_frameworks(files, variant, tmp_path):
    need("torch")
    need("keras")
    source = source_of(files[variant], load_registry()[IDS[variant]], resolution=64)
    export(source, tmp_path / "out", ExportOptions())
    wanted = logits_of(source.model(), "torch", IMAGES)
    assert np.ptp(wanted) > 0.1
    in_torch = logits_of(create_model(str(tmp_path / "out")), "torch", IMAGES)
    np.testing.assert_array_equal(in_torch, wanted)
    in_keras = logits_of(create_model(str(tmp_path / "out"), "keras"), "keras", IMAGES)
    assert np.abs(in_keras - wanted).max() < 1e-4  # another framework adds in another order


@pytest.mark.parametrize("variant", IDS)
def test_settings_come_from_the_config_and_not_from_defaults(files, variant, tmp_path):
    need("torch")
    told = {MOAT: {"pool_size": 3}, MOGANET: {"attn_force_fp32": False}}[variant]
    source = source_of(files[variant], settings=told, resolution=64)
    export(source, tmp_path / "out", ExportOptions())
    wanted = logits_of(source.model(), "torch", IMAGES)
    np.testing.assert_array_equal(logits_of(create_model(tmp_path / "out"), "torch", IMAGES), wanted)
    config = tmp_path / "out" / "config.json"
    said = json.loads(config.read_text(encoding="utf-8"))
    other = {"pool_size": 2, "attn_force_fp32": True}
    said["settings"] |= {key: other[key] for key in told}
    config.write_text(json.dumps(said), encoding="utf-8")
    edited = logits_of(create_model(tmp_path / "out"), "torch", IMAGES)
    assert np.abs(edited - wanted).max() > 1e-3


@pytest.mark.parametrize("variant", IDS)
def test_ten_classes_are_remembered(variant, tmp_path):
    need("torch")
    state = trained(variant, num_classes=10)
    ten = source_of(write_safetensors(tmp_path / "ten.safetensors", state), **TOLD[variant])
    export(ten, tmp_path / "ten", ExportOptions())
    assert "id2label" not in json.loads((tmp_path / "ten" / "config.json").read_text())
    model = create_model(tmp_path / "ten")
    assert logits_of(model, "torch", IMAGES[:1]).shape == (1, 10)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name in state} == {
        name: array.shape for name, array in state.items()
    }
    np.testing.assert_array_equal(model.state_dict()["head.weight"].numpy(), state["head.weight"])


@pytest.mark.parametrize(("variant", "framework"), [(MOAT, "keras"), (MOGANET, "torch")])
def test_a_backbone_stays_one(variant, framework, tmp_path):
    need(framework)
    state = trained(variant, num_classes=None)
    headless = source_of(write_safetensors(tmp_path / "none.safetensors", state), **TOLD[variant])
    export(headless, tmp_path / "none", ExportOptions())
    assert json.loads((tmp_path / "none" / "config.json").read_text())["num_classes"] is None
    model = create_model(tmp_path / "none", framework, features_only=True)
    if framework == "keras":
        features = [np.asarray(stage) for stage in model(IMAGES)]
        assert [stage.shape[3] for stage in features] == [32, 32, 64, 128, 256]
    else:
        held = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        assert held.keys() == state.keys()
        assert all(np.array_equal(held[name], state[name]) for name in state if "num_batches" not in name)


@pytest.mark.parametrize("variant", IDS)
def test_a_resolution_of_ones_own_is_remembered(files, variant, tmp_path):
    source = source_of(files[variant], load_registry()[IDS[variant]], resolution=(96, 64))
    export(source, tmp_path / "out", ExportOptions())
    said = json.loads((tmp_path / "out" / "config.json").read_text())["preprocessing"]
    assert said["size"] == [96, 64]
    assert said["resize"] == {MOAT: None, MOGANET: round(248 * 64 / 224)}[variant]
    # what predict and its like find when they are given the folder
    assert source_of(tmp_path / "out").preprocessing == source.preprocessing


def test_half_precision_is_written_and_loaded(files, tmp_path):
    need("torch")
    source = source_of(files[MOAT], load_registry()["tiny-moat0-256"], resolution=64)
    export(source, tmp_path / "out", ExportOptions(dtype="bfloat16"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    whole = logits_of(source.model(), "torch", IMAGES)
    half = logits_of(create_model(tmp_path / "out"), "torch", IMAGES)
    assert 0 < np.abs(half - whole).max() < 0.1 * np.ptp(whole)


def test_recalibrated_statistics_are_said_everywhere(tmp_path):
    said = {"entry": "tiny-moat0-256", "bn_statistics": "recalibrated", "bn_images": "2048"}
    file = write_safetensors(tmp_path / "m.safetensors", trained(MOAT), **said)
    export(source_of(file), tmp_path / "out", ExportOptions())
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert (config["entry"], config["provenance"]["bn_statistics"]) == ("tiny-moat0-256", "recalibrated")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "a conversion of the published checkpoint `tiny-moat0-256`" in card
    assert "Their BatchNorm statistics are recalibrated: not those that were published." in card
    assert "model-index" not in card
    from safetensors import safe_open

    with safe_open(tmp_path / "out" / "model.safetensors", "np") as written:
        metadata = written.metadata()
    assert (metadata["bn_statistics"], metadata["bn_images"]) == ("recalibrated", "2048")


def test_a_setting_that_nobody_knows_is_asked_for(files, tmp_path):
    with pytest.raises(UsageError, match=r"attn_force_fp32 is not known.*--set attn_force_fp32=true"):
        export(source_of(files[MOGANET]), tmp_path / "out", ExportOptions())
    assert not (tmp_path / "out").exists()


def test_a_file_without_statistics_is_refused(tmp_path):
    state = {name: array for name, array in trained(MOAT).items() if "running" not in name}
    source = source_of(write_safetensors(tmp_path / "first.safetensors", state))
    with pytest.raises(ConversionError, match="no BatchNorm moving statistics"):
        export(source, tmp_path / "out", ExportOptions())
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_the_sizes_and_writes_nothing(files, tmp_path):
    source = source_of(files[MOAT], load_registry()["tiny-moat0-256"])
    said = export(source, tmp_path / "dry", ExportOptions(dry_run=True)).files
    assert not (tmp_path / "dry").exists()
    assert export(source, tmp_path / "wet", ExportOptions()).files == said
    assert {file.name: file.nbytes for file in said} == {
        path.name: path.stat().st_size for path in (tmp_path / "wet").iterdir()
    }


def test_the_same_source_gives_the_same_bytes(files, tmp_path):
    source = source_of(files[MOAT], load_registry()["tiny-moat0-256"])
    for name in ("one", "two"):
        export(source, tmp_path / name, ExportOptions())
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_folder_that_is_none_is_said(tmp_path):
    with pytest.raises(NotFoundError, match=r"nowhere: no such folder"):
        create_model(str(tmp_path / "nowhere"))
