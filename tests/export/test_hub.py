"""Folders for the Hugging Face hub, and their model cards."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

import ckptkit
from ckptkit._version import REPOSITORY
from ckptkit.base.errors import ConversionError, NotFoundError, UsageError
from ckptkit.base.text import arxiv_id
from ckptkit.export.hub import bibtex, model_card
from ckptkit.export.hub import export_hf as export
from ckptkit.export.targets import ExportRequest
from ckptkit.families.base import families, get_family
from ckptkit.families.model_config import ModelConfig
from ckptkit.models import create_model
from ckptkit.registry.loading import load_registry
from tests.support.exporting import (
    MOAT,
    MOGANET,
    logits_of,
    source_of,
    trained,
    write_safetensors,
)

REGISTRY = load_registry()
IDS = [entry.id for entry in REGISTRY.values() if entry.serves == "whole"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_safetensors(tmp_path_factory.mktemp("card") / "m.safetensors", trained("moganet-xt"))


PREPROCESSING = {
    **{"size": [224, 224], "resize": None, "interpolation": "bicubic", "normalization": "imagenet"},
    **{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}


def config_of(entry, /, **fields) -> ModelConfig:
    """What an export of this entry's own file would say, without having the file."""
    family = get_family(entry.family)
    side = entry.test_resolution or family.default_resolution(entry.variant)
    said = {
        "library_name": "ckptkit",
        "model_type": entry.family,
        "variant": entry.variant,
        "entry": entry.id,
        "num_classes": 1000,
        "pos_emb": entry.pos_emb,
        "settings": {key: entry.settings.get(key) for key in family.settings},
        "preprocessing": {
            "size": [side, side],
            "resize": entry.test_resize,
            "interpolation": "bicubic",
            "normalization": entry.normalization or family.normalization(entry.variant),
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
        "torch_dtype": "float32",
        "provenance": {"ckptkit_version": "1.2.3", "source_sha256": "ab" * 32},
        **fields,
    }
    return ModelConfig.model_validate(said)


def card_of(file, id, *, synthetic=False, registry_fields=None, **fields) -> str:
    entry = REGISTRY[id].model_copy(update=registry_fields or {})
    source = source_of(file, REGISTRY["moganet-xt-224"])
    source = replace(source, located=replace(source.located, entry=entry), synthetic=synthetic)
    return model_card(source, config_of(entry, synthetic=synthetic, **fields))


def front(card: str) -> dict:
    head, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert body.startswith("\n# ")
    return yaml.safe_load(head)


@pytest.mark.parametrize("id", IDS)
def test_the_hub_reads_the_published_figures_of_every_entry(file, id):
    hub = pytest.importorskip("huggingface_hub")
    entry, card = REGISTRY[id], hub.ModelCard(card_of(file, id))  # raises for a malformed model-index
    data = card.data
    assert (data.library_name, data.pipeline_tag, data.license) == (
        "ckptkit",
        "image-classification",
        None if entry.layout == "kecam" else "apache-2.0",
    )
    assert entry.family in data.tags
    figures = {"Top-1": entry.published_top1, "Top-5": entry.published_top5}
    assert {
        result.metric_name.partition(" ")[0]: result.metric_value for result in data.eval_results or ()
    } == {name: value for name, value in figures.items() if value is not None}
    for result in data.eval_results or ():
        assert isinstance(result, hub.EvalResult)
        assert (result.task_type, result.dataset_type, result.dataset_split, result.metric_type) == (
            "image-classification",
            "imagenet-1k",
            "validation",
            "accuracy",
        )
        assert result.metric_name.endswith("in percent, as published")
        pages = {
            "deeplab2": "https://github.com/google-research/deeplab2/blob/main/g3doc/projects/"
            "moat_imagenet_pretrained_checkpoints.md",
            "openmixup": "https://github.com/Westlake-AI/openmixup/tree/main/configs/classification/imagenet/moganet",
            "torch": "https://github.com/Westlake-AI/MogaNet",
            "mmpretrain": "https://github.com/open-mmlab/mmpretrain/pull/1691",
            "kecam": "https://github.com/leondgarse/keras_cv_attention_models/tree/main/"
            "keras_cv_attention_models/moganet",
        }
        assert result.source_url == pages.get(entry.group, pages[entry.layout])
        assert not result.verified
    if entry.published_top1 is None:
        assert data.eval_results is None
        return
    assert data.model_name == id
    index = yaml.safe_load(str(card.data))["model-index"]
    assert hub.repocard_data.model_index_to_eval_results(index)[0] == id


def test_a_detectors_figures_are_not_those_of_its_backbone(file):
    id = "moganet-xt-coco-retinanet-1x"
    text = card_of(file, id, num_classes=None, preprocessing=PREPROCESSING)
    assert front(text).get("model-index") is None
    assert "39.7" not in text and "12.1M" not in text and "167.2G" not in text


def test_metrics_of_other_data_are_called_by_their_names(file):
    fields = {"metrics": {"F1": 0.6911}, "dataset": "tags", "num_classes": 20, "published_top1": None}
    fields |= {"published_top5": None}
    text = card_of(file, "moganet-xt-224", registry_fields=fields, num_classes=20)
    assert "| F1, tags | 0.6911 |" in text and "model-index" not in text


def test_every_published_figure_stands_in_the_text_and_is_called_so(file):
    text = card_of(file, "moganet-xt-224").partition("\n---\n")[2]
    section = text.partition("## Published figures")[2].partition("\n## ")[0]
    assert "ckptkit measured none of them" in section
    assert "[Westlake-AI/openmixup](https://github.com/Westlake-AI/openmixup/" in section
    rows = dict(line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| "))
    assert rows == {
        "figure": "published",
        "ImageNet-1K top-1": "76.5%",
        "ImageNet-1K top-5": "93.4%",
        "parameters": "2.97M",
        "multiply-adds": "0.80G",
        "training data": "ImageNet-1K",
        "training recipe": "DeiT",
        "evaluated at": "224 pixels",
    }


@pytest.mark.parametrize(
    ("id", "datasets"),
    [("moat2-384-noposemb", ["imagenet-22k", "imagenet-1k"]), ("moat0-224", ["imagenet-1k"])],
)
def test_training_data_by_the_hubs_names(file, id, datasets):
    assert front(card_of(file, id))["datasets"] == datasets


WITHOUT = {
    "another number of classes": {"num_classes": 10},
    "no head": {"num_classes": None},
    "another copy of the weights": {
        "registry_fields": {"weights": "ema"},
        "provenance": {"ckptkit_version": "1", "weights": "raw"},
    },
    "another resolution": {
        "preprocessing": {
            **config_of(REGISTRY["moganet-xt-224"]).preprocessing.model_dump(mode="json"),
            "size": [256, 256],
        }
    },
    "synthetic weights": {"synthetic": True},
}


@pytest.mark.parametrize("case", WITHOUT)
def test_no_figure_is_claimed_of(file, case):
    card = card_of(file, "moganet-xt-224", **WITHOUT[case])
    head = front(card)
    assert "model-index" not in head
    assert "metrics" not in head
    assert "76.5" not in card
    assert "Published figures" not in card


def test_the_evaluated_copy_has_its_figures(file):
    card = card_of(
        file,
        "moganet-xt-224",
        registry_fields={"weights": "ema"},
        provenance={"ckptkit_version": "1", "weights": "ema"},
    )
    assert front(card)["model-index"][0]["results"][0]["metrics"][0]["value"] == 76.5


def test_synthetic_weights_are_said_loudly(file):
    card = card_of(file, "moganet-xt-224", synthetic=True, entry=None)
    assert front(card) == {
        "library_name": "ckptkit",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "moganet", "synthetic-weights"],
    }
    body = card.partition("\n---\n")[2]
    assert body.splitlines()[1] == "# Synthetic weights for moganet-xt"
    assert body.splitlines()[3].startswith("> **Synthetic weights.** These weights are random numbers")


def test_a_file_of_ones_own_claims_no_licence_and_no_figures(file):
    source = source_of(file, settings={"attn_force_fp32": True})
    entry = REGISTRY["moganet-xt-224"]
    card = model_card(source, config_of(entry, entry=None))
    assert front(card).keys() == {"library_name", "pipeline_tag", "tags"}
    assert "moganet-xt-224" not in card
    assert "arXiv:2211.03295" in card  # of the architecture


def test_a_checkpoint_from_elsewhere_names_no_page(file):
    elsewhere = REGISTRY["moganet-xt-224"].sources[0].model_copy(update={"url": "https://example.org/m.pth"})
    card = card_of(file, "moganet-xt-224", registry_fields={"sources": (elsewhere,)})
    assert "source" not in front(card)["model-index"][0]["results"][0]
    assert "As the authors published them for this checkpoint; ckptkit" in card


def test_what_was_not_published_of_the_pictures_is_said(file):
    assert "bicubic (not published; what ckptkit does)" in card_of(file, "moat0-224")
    assert "not published" not in card_of(file, "moganet-xt-224")


def test_another_licence_is_named_as_the_hub_wants_it(file):
    head = front(card_of(file, "moat0-224", registry_fields={"license": "LicenseRef-Mine"}))
    assert (head["license"], head["license_name"]) == ("other", "licenseref-mine")


def test_the_code_of_the_card_names_the_repository(file):
    entry = REGISTRY["moganet-xt-224"]
    card = model_card(source_of(file, entry), config_of(entry), repository="me/moga")
    assert 'snapshot_download("me/moga")' in card
    assert f"`pip install 'ckptkit-cli[torch] @ git+{REPOSITORY}'`" in card
    assert 'snapshot_download("ORG/NAME")' in card_of(file, "moganet-xt-224")


def test_every_family_says_what_it_is_and_how_to_cite_it(file):
    for name in families():
        entry = next(entry for entry in REGISTRY.values() if entry.family == name)
        card = card_of(file, entry.id)
        assert f"from the family {name}: " in card
        assert f"  eprint = {{{arxiv_id(entry.paper)}}}" in card
        assert get_family(name).papers[arxiv_id(entry.paper)].title in card


def test_a_paper_not_known_here_is_cited_by_its_id_alone():
    assert (
        bibtex("9999.00001", "other", None)
        == "@misc{other,\n  eprint = {9999.00001},\n  archivePrefix = {arXiv}\n}"
    )
    assert arxiv_id("doi:10.1/2") is None
    assert arxiv_id(None) is None


def test_settings_and_input_are_tables_that_markdown_draws(file):
    text = card_of(file, "moat2-384-noposemb")
    section = text.partition("## Input and settings")[2].partition("\n## ")[0]
    assert "| input | 384×384, RGB |" in section
    assert "| `pool_size` | 2 |" in section
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {3}


ENTRIES = {MOAT: "tiny-moat0-256", MOGANET: "moganet-xt-224"}
TOLD = {MOAT: {}, MOGANET: {"settings": {"attn_force_fp32": True}}}
IMAGES = np.random.default_rng(7).standard_normal((2, 64, 64, 3), dtype=np.float32)


def need(framework):
    pytest.importorskip("torch" if framework == "torch" else "tensorflow")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of each family that no recipe made."""
    folder = tmp_path_factory.mktemp("trained")
    return {name: write_safetensors(folder / f"{name}.safetensors", trained(name)) for name in ENTRIES}


@pytest.mark.parametrize("variant", ENTRIES)
def test_the_folder_holds_the_source_under_pytorch_names(files, variant, tmp_path):
    entry = load_registry()[ENTRIES[variant]]
    done = export(source_of(files[variant], entry), tmp_path / "out", ExportRequest())
    from safetensors.numpy import load_file

    written, wanted = load_file(tmp_path / "out" / "model.safetensors"), trained(variant)
    assert written.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(written[name], wanted[name], err_msg=name)
    assert {file.name: file.nbytes for file in done.files} == {
        path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()
    }
    family = {MOAT: "moat", MOGANET: "moganet"}[variant]
    assert {file.name for file in done.files} == {
        "model.safetensors",
        "config.json",
        "README.md",
        "preprocessor_config.json",
        f"configuration_{family}.py",
        f"modeling_{family}.py",
        f"image_processing_{family}.py",
    }


def test_the_config_says_what_the_model_is(files, tmp_path):
    entry = load_registry()["moganet-xt-224"]
    export(source_of(files[MOGANET], entry), tmp_path / "out", ExportRequest())
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
        "architectures": ["MogaNetForImageClassification"],
        "auto_map": {
            "AutoConfig": "configuration_moganet.MogaNetHubConfig",
            "AutoModelForImageClassification": "modeling_moganet.MogaNetForImageClassification",
            "AutoModel": "modeling_moganet.MogaNetBackbone",
            "AutoBackbone": "modeling_moganet.MogaNetBackbone",
            "AutoImageProcessor": "image_processing_moganet.MogaNetImageProcessor",
        },
    }


def test_the_card_says_that_the_folder_holds_code(files, tmp_path):
    export(source_of(files[MOAT], load_registry()["tiny-moat0-256"]), tmp_path / "out", ExportRequest())
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert front(card)["library_name"] == "transformers"
    assert 'pipeline("image-classification", model="ORG/NAME", trust_remote_code=True)' in card
    assert "**This repository contains code**" in card
    for path in (tmp_path / "out").glob("*.py"):
        assert f"`{path.name}`" in card


def test_another_familys_folder_is_replaced_with_force(files, tmp_path):
    for variant in (MOAT, MOGANET):
        source = source_of(files[variant], load_registry()[ENTRIES[variant]])
        export(source, tmp_path / "out", ExportRequest(force=True))
    assert {path.name for path in (tmp_path / "out").glob("*.py")} == {
        f"{kind}_moganet.py" for kind in ("configuration", "modeling", "image_processing")
    }


def test_where_it_was_published_is_what_the_fetch_recorded(files, tmp_path):
    from ckptkit.store.cache import Home
    from tests.support.commands import cache

    record = cache("moganet-xt-224")
    entry = load_registry()["moganet-xt-224"]
    export(source_of(files[MOGANET], entry), tmp_path / "out", ExportRequest())
    said = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert said["provenance"]["source_url"] == record.url == Home.default().record("moganet-xt-224").url


@pytest.mark.parametrize("variant", ENTRIES)
def test_it_gives_back_the_same_logits_in_both_frameworks(files, variant, tmp_path):
    need("torch")
    need("keras")
    source = source_of(files[variant], load_registry()[ENTRIES[variant]], resolution=64)
    export(source, tmp_path / "out", ExportRequest())
    wanted = logits_of(source.model(), "torch", IMAGES)
    assert np.ptp(wanted) > 0.1
    in_torch = logits_of(create_model(str(tmp_path / "out")), "torch", IMAGES)
    np.testing.assert_array_equal(in_torch, wanted)
    in_keras = logits_of(create_model(str(tmp_path / "out"), "keras"), "keras", IMAGES)
    assert np.abs(in_keras - wanted).max() < 1e-4  # another framework adds in another order


@pytest.mark.parametrize("variant", ENTRIES)
def test_settings_come_from_the_config_and_not_from_defaults(files, variant, tmp_path):
    need("torch")
    told = {MOAT: {"pool_size": 3}, MOGANET: {"attn_force_fp32": False}}[variant]
    source = source_of(files[variant], settings=told, resolution=64)
    export(source, tmp_path / "out", ExportRequest())
    wanted = logits_of(source.model(), "torch", IMAGES)
    np.testing.assert_array_equal(logits_of(create_model(tmp_path / "out"), "torch", IMAGES), wanted)
    config = tmp_path / "out" / "config.json"
    said = json.loads(config.read_text(encoding="utf-8"))
    other = {"pool_size": 2, "attn_force_fp32": True}
    said["settings"] |= {key: other[key] for key in told}
    config.write_text(json.dumps(said), encoding="utf-8")
    edited = logits_of(create_model(tmp_path / "out"), "torch", IMAGES)
    assert np.abs(edited - wanted).max() > 1e-3


@pytest.mark.parametrize("variant", ENTRIES)
def test_ten_classes_are_remembered(variant, tmp_path):
    need("torch")
    state = trained(variant, num_classes=10)
    ten = source_of(write_safetensors(tmp_path / "ten.safetensors", state), **TOLD[variant])
    export(ten, tmp_path / "ten", ExportRequest())
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
    export(headless, tmp_path / "none", ExportRequest())
    assert json.loads((tmp_path / "none" / "config.json").read_text())["num_classes"] is None
    model = create_model(tmp_path / "none", framework, features_only=True)
    if framework == "keras":
        features = [np.asarray(stage) for stage in model(IMAGES)]
        assert [stage.shape[3] for stage in features] == [32, 32, 64, 128, 256]
    else:
        held = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        assert held.keys() == state.keys()
        assert all(np.array_equal(held[name], state[name]) for name in state if "num_batches" not in name)


@pytest.mark.parametrize("variant", ENTRIES)
def test_a_resolution_of_ones_own_is_remembered(files, variant, tmp_path):
    source = source_of(files[variant], load_registry()[ENTRIES[variant]], resolution=(96, 64))
    export(source, tmp_path / "out", ExportRequest())
    said = json.loads((tmp_path / "out" / "config.json").read_text())["preprocessing"]
    assert said["size"] == [96, 64]
    assert said["resize"] == {MOAT: None, MOGANET: round(248 * 64 / 224)}[variant]
    # what predict and its like find when they are given the folder
    assert source_of(tmp_path / "out").preprocessing == source.preprocessing


def test_half_precision_is_written_and_loaded(files, tmp_path):
    need("torch")
    source = source_of(files[MOAT], load_registry()["tiny-moat0-256"], resolution=64)
    export(source, tmp_path / "out", ExportRequest(dtype="bfloat16"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    whole = logits_of(source.model(), "torch", IMAGES)
    half = logits_of(create_model(tmp_path / "out"), "torch", IMAGES)
    assert 0 < np.abs(half - whole).max() < 0.1 * np.ptp(whole)


def test_recalibrated_statistics_are_said_everywhere(tmp_path):
    said = {"entry": "tiny-moat0-256", "bn_statistics": "recalibrated", "bn_images": "2048"}
    file = write_safetensors(tmp_path / "m.safetensors", trained(MOAT), **said)
    export(source_of(file), tmp_path / "out", ExportRequest())
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
        export(source_of(files[MOGANET]), tmp_path / "out", ExportRequest())
    assert not (tmp_path / "out").exists()


def test_a_file_without_statistics_is_refused(tmp_path):
    state = {name: array for name, array in trained(MOAT).items() if "running" not in name}
    source = source_of(write_safetensors(tmp_path / "first.safetensors", state))
    with pytest.raises(ConversionError, match="no BatchNorm moving statistics"):
        export(source, tmp_path / "out", ExportRequest())
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_the_sizes_and_writes_nothing(files, tmp_path):
    source = source_of(files[MOAT], load_registry()["tiny-moat0-256"])
    said = export(source, tmp_path / "dry", ExportRequest(dry_run=True)).files
    assert not (tmp_path / "dry").exists()
    assert export(source, tmp_path / "wet", ExportRequest()).files == said
    assert {file.name: file.nbytes for file in said} == {
        path.name: path.stat().st_size for path in (tmp_path / "wet").iterdir()
    }


def test_the_same_source_gives_the_same_bytes(files, tmp_path):
    source = source_of(files[MOAT], load_registry()["tiny-moat0-256"])
    for name in ("one", "two"):
        export(source, tmp_path / name, ExportRequest())
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_folder_that_is_none_is_said(tmp_path):
    with pytest.raises(NotFoundError, match=r"nowhere: no such folder"):
        create_model(str(tmp_path / "nowhere"))
