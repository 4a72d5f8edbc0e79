"""The built-in registry says what is known of the published checkpoints: all of it, and nothing else."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from ckptkit.families.base import registry_families
from ckptkit.registry.loading import built_in_path, load_registry, load_texts, read_text
from ckptkit.registry.query import Registry

SINCE = json.loads((Path(__file__).parent / "facts/published_since.json").read_text())
"""What was found of later publications; `_about` says where."""


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry(families=registry_families)


def test_every_field_of_every_row_is_as_the_facts_have_it(registry: Registry, shared_folder: Path) -> None:
    facts = json.loads((shared_folder / "facts" / "checkpoints.json").read_text())
    assert list(registry)[: len(facts)] == [row["id"] for row in facts]
    for row in facts:
        loaded = registry[row["id"]].model_dump()
        sources = loaded.pop("sources")
        expected = row.pop("sources")
        if row["id"] in SINCE["rsb_a3_top5"]:  # not known yet when these facts were gathered
            row["published_top5"] = SINCE["rsb_a3_top5"][row["id"]]
        if "known deviation" in (row.get("note") or ""):  # a field of its own here
            row.pop("note")
            assert loaded["known_deviations"][0]["figure"] == "params"
        assert {key: loaded[key] for key in row} == row
        assert {type(loaded[key]) for key in ("published_params", "published_flops")} == {str}
        assert [
            {key: source[key] for key in wanted} for source, wanted in zip(sources, expected, strict=True)
        ] == expected
        # What the facts do not say of a source is not known, or false.
        for source, wanted in zip(sources, expected, strict=True):
            assert source["bn_statistics"] is wanted.get("bn_statistics")
            assert source["manual"] is wanted.get("manual", False)


def test_the_published_rows_are_all_there(registry: Registry) -> None:
    assert Counter((entry.family, entry.task) for entry in registry.values()) == {
        ("moat", "image-classification"): 18,
        ("moat", "multi-label-tagging"): 1,
        ("moganet", "image-classification"): 24 + 6 + 6 + 3,
        ("moganet", "object-detection"): 5,
        ("moganet", "instance-segmentation"): 12,
        ("moganet", "semantic-segmentation"): 10,
        ("moganet", "pose-estimation"): 8,
    }
    assert sum(entry.required for entry in registry.values()) == 33


def test_every_dense_prediction_row_is_as_the_readmes_have_it(registry: Registry) -> None:
    facts = SINCE["dense"]
    assert [entry.id for entry in registry.values() if entry.serves == "backbone"] == [
        row["suggested_id"] for row in facts
    ]
    words = {"object detection and instance segmentation": "instance-segmentation"}
    for row in facts:
        entry = registry[row["suggested_id"]]
        task = words.get(row["task"], row["task"].removeprefix("2D human ").replace(" ", "-"))
        assert (entry.task, entry.variant, entry.setting) == (task, row["variant"], row["schedule"])
        assert [source.url for source in entry.sources] == [row["url"]]
        assert (entry.config_url, entry.log_url) == (row["config_url"], row["log_url"])
        assert (entry.published_params, entry.published_flops) == (
            row["published_params"],
            row["published_flops"],
        )
        assert entry.exact_parameters == row["exact_params_by_class_definitions"]
        assert entry.flops_input == tuple(row["flops_input_hw"])
        assert (entry.metrics, list(entry.metrics)) == (row["metrics"], list(row["metrics"]))
        assert (entry.dataset, entry.num_classes) == (row["eval_data"], row.get("num_classes"))
        assert (entry.pretrain_data, entry.license) == (row["pretrain_data"], row["license"])
        assert (entry.settings["attn_force_fp32"], entry.normalization) == (False, row["normalization"])
        assert sorted(known.figure for known in entry.known_deviations) == row["deviations"]
        assert entry.published_top1 is entry.weights is entry.sha256 is entry.md5 is entry.size is None


def test_the_other_figures_found_since(registry: Registry) -> None:
    assert {id: registry[id].published_top5 for id in SINCE["rsb_a3_top5"]} == SINCE["rsb_a3_top5"]
    for id, url in SINCE["second_link"].items():
        assert url in [source.url for source in registry[id].sources]
    for row in SINCE["mmpretrain"]:
        entry = registry[f"{row['variant']}-mmpretrain"]
        assert entry.sources[0].url == row["url"] and len(entry.sources) == 1
        assert entry.published_params == row["published_params"].split()[0]
        assert entry.published_flops == row["published_flops"].split()[0]
        assert (entry.published_top1, entry.published_top5) == (row["published_top1"], row["published_top5"])
        double = row["variant"] != "moganet-l"  # as configs/moganet/moganet-large_8xb128_in1k.py says
        assert (entry.layout, entry.settings["attn_force_fp32"]) == ("openmixup", double)
        tested = (entry.test_resolution, entry.test_resize, entry.interpolation, entry.normalization)
        assert tested == (224, 248, "bicubic", "imagenet")  # the test pipelines of all six configs
        assert ("each other's column" in (entry.note or "")) == ("printed under" in row["published_params"])


def test_rows_of_other_publishers(registry: Registry) -> None:
    for row in SINCE["kecam"]:
        entry = registry[f"{row['variant']}-{row['test_resolution']}-kecam"]
        assert [source.url for source in entry.sources] == [row["url"]]
        assert (entry.md5, entry.sha256, entry.license) == (row["md5"], None, None)
        assert (entry.published_params, entry.published_flops, entry.published_top1) == (
            row["published_params"],
            row["published_flops"],
            row["published_top1"],
        )
        assert (entry.layout, entry.format, entry.num_classes) == ("kecam", "keras2", None)
        assert entry.settings == {"attn_force_fp32": False}
    by_url = {entry.sources[0].url: entry for entry in registry.values() if entry.layout == "birder"}
    assert len(by_url) == len(SINCE["birder"])
    for row in SINCE["birder"]:
        entry = by_url[row["url"]]
        assert (entry.variant, entry.sha256, entry.test_resolution) == (
            row["variant"],
            row["sha256"],
            row["test_resolution"],
        )
        assert entry.num_classes == (row["num_classes"] or 371)
        assert ("inferred" in (entry.note or "")) == (row["num_classes"] is None)
        assert entry.is_published_checksum and entry.published_top1 is None
    tagger, facts = registry["moat2-448-wd-tagger-v2"], SINCE["wd_tagger"]
    assert (tagger.num_classes, tagger.metrics) == (facts["num_classes"], {"F1": facts["F1"]})
    assert tagger.settings == facts["settings"]
    assert (
        tagger.is_published_checksum and tagger.is_pinned and tagger.checksum_page.endswith(facts["revision"])
    )
    found = {
        one.sources[0].url.split(f"/resolve/{facts['revision']}/")[1]: (one.size, one.sha256)
        for one in tagger.files
    }
    assert found == {one["path"]: (one["size"], one["sha256"]) for one in facts["files"]}


def test_a_figure_of_another_model_is_not_what_an_entry_is_sorted_by(registry: Registry) -> None:
    slip = registry["moganet-l-coco-maskrcnn-ms3x"]
    assert (slip.published_params, slip.params) == ("63.4M", 102_048_346)
    assert registry["moganet-xt-224"].params == 2_970_000  # the published one, though it does not round


@pytest.mark.parametrize(
    ("id", "field", "value"),
    [
        ("moat0-224", "published_params", "27.8M"),
        ("moat0-224", "exact_parameters", 27846892),
        ("moat2-384-noposemb", "published_flops", "53.8B"),
        ("moat4-512", "published_top1", 89.1),
        ("moat4-512", "normalization", "half"),
        ("tiny-moat3-256", "note", "a later edition of the published table says 83.3"),
        ("tiny-moat0-256", "pool_size", 2),
        ("moganet-xt-224", "published_flops", "0.80G"),
        ("moganet-xt-224", "attn_force_fp32", True),
        ("moganet-xt-224-timm", "attn_force_fp32", False),
        ("moganet-xt-224-timm", "layout", "torch"),
        ("moganet-s-160-rsba3", "train_resolution", 160),
        ("moganet-s-160-rsba3", "test_resolution", 224),
        ("moganet-s-224-nofp32gate", "published_top1", None),
        ("moganet-xl-224", "weights", "ema"),
    ],
)
def test_spot_values(registry: Registry, id: str, field: str, value: object) -> None:
    assert getattr(registry[id], field) == value


def test_no_checksum_is_made_up(registry: Registry) -> None:
    """The authors publish none; whoever pins an entry of the built-in file adds here what was observed."""
    observed: dict[str, str] = {}
    pinned = {entry.id: entry.sha256 for entry in registry.values() if entry.hash_provenance is not None}
    assert pinned == observed
    stated = {one.sha256 for entry in registry.values() if entry.is_published_checksum for one in entry.files}
    assert stated == {row["sha256"] for row in (*SINCE["birder"], *SINCE["wd_tagger"]["files"])}
    assert "Nobody has published a checksum" in built_in_path().read_text(encoding="utf-8")


def test_moat_sources_are_the_reupload_first_then_the_upload_without_statistics(registry: Registry) -> None:
    for entry in (one for one in registry.find(family="moat") if one.layout == "deeplab2"):
        new, old = entry.sources
        assert (new.bn_statistics, old.bn_statistics) == (True, False)
        assert new.url.replace("_wo_", "_w_").endswith("_w_position_embedding.tar.gz")
        assert ("_wo_" in new.url) == (entry.pos_emb is False)
        assert old.url == new.url.replace("_wo_", "_without_").replace("_w_", "_with_")


def test_figures_round_from_the_exact_counts_except_the_known_deviations(registry: Registry) -> None:
    off = []
    for entry in registry.values():
        if entry.id in {"moganet-xt-256-birder-il", "moat2-448-wd-tagger-v2"}:  # no figure is published
            assert entry.published_params is None
            continue
        assert entry.published_params is not None and entry.exact_parameters is not None
        digits = len(entry.published_params.partition(".")[2]) - 1
        if f"{entry.exact_parameters / 1e6:.{digits}f}M" != entry.published_params:
            off.append(entry.id)
        assert (entry.known_deviation("params") is not None) == (entry.id in off), entry.id
    whole = [id for id in off if registry[id].serves == "whole"]
    assert {registry[id].variant for id in whole} == {"moganet-xt", "moganet-b", "moganet-xl", "moganet-s"}
    assert [id for id in whole if registry[id].variant == "moganet-s"] == ["moganet-s-mmpretrain"]
    assert len(off) - len(whole) == 6


def test_the_known_deviations_of_flops(registry: Registry) -> None:
    off = [entry for entry in registry.values() if entry.known_deviation("flops")]
    assert [(entry.id, entry.published_flops) for entry in off] == [
        ("tiny-moat2-256", "3.0B"),
        ("moganet-xl-224", "34.5G"),
        ("moganet-xl-224-timm", "34.5G"),
        ("moganet-l-coco-maskrcnn-ms3x", "373.1G"),
        *((f"{row['variant']}-mmpretrain", row["published_flops"].split()[0]) for row in SINCE["mmpretrain"]),
    ]


def test_every_file_name_is_its_own(registry: Registry) -> None:
    names = [entry.file_name for entry in registry.values()]
    assert len(set(names)) == len(registry)
    assert registry["moat0-224"].file_name == "moat0_imagenet_1k_224_w_position_embedding.tar.gz"
    assert [entry.family for entry in registry.values() if entry.is_archive] == ["moat"] * 18


def test_the_published_rows_fit_their_families() -> None:
    registry = load_texts([(built_in_path(), read_text(built_in_path()))], registry_families())
    assert registry.counts == (len(registry),)
