"""The model card: metadata that the hub reads, and no figure that was not published."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from ckptkit._version import REPOSITORY
from ckptkit.base.text import arxiv_id
from ckptkit.export.model_card import bibtex, model_card
from ckptkit.families.base import families, get_family
from ckptkit.families.model_config import ModelConfig
from ckptkit.registry import load_registry
from tests.support.exporting import source_of, trained, write_safetensors

REGISTRY = load_registry()
IDS = [entry.id for entry in REGISTRY.values()]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_safetensors(tmp_path_factory.mktemp("card") / "m.safetensors", trained("moganet-xt"))


def config_of(entry, /, **fields) -> ModelConfig:
    """What an export of this entry's own file would say, without having the file."""
    family = get_family(entry.family)
    side = entry.test_resolution
    said = {
        "library_name": "ckptkit",
        "model_type": entry.family,
        "variant": entry.variant,
        "entry": entry.id,
        "num_classes": 1000,
        "pos_emb": entry.pos_emb,
        "settings": {key: getattr(entry, key) for key in family.setting_names},
        "preprocessing": {
            "size": [side, side],
            "resize": entry.test_resize,
            "interpolation": "bicubic",
            "normalization": entry.normalization,
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
        "apache-2.0",
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
        }
        assert result.source_url == pages[entry.layout]
        assert not result.verified
    if entry.published_top1 is None:
        assert data.eval_results is None
        return
    assert data.model_name == id
    index = yaml.safe_load(str(card.data))["model-index"]
    assert hub.repocard_data.model_index_to_eval_results(index)[0] == id


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
