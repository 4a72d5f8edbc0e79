"""The built-in registry says what is known of the published checkpoints: all of it, and nothing else."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from ckptkit.families.base import registry_families
from ckptkit.registry.loading import built_in_path, load_registry, load_texts, read_text
from ckptkit.registry.query import Registry


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry(families=registry_families)


def test_every_field_of_every_row_is_as_the_facts_have_it(registry: Registry, shared_folder: Path) -> None:
    facts = json.loads((shared_folder / "facts" / "checkpoints.json").read_text())
    assert list(registry) == [row["id"] for row in facts]
    for row in facts:
        loaded = registry[row["id"]].model_dump()
        sources = loaded.pop("sources")
        expected = row.pop("sources")
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
    assert len(registry) == 42
    assert Counter(entry.family for entry in registry.values()) == {"moat": 18, "moganet": 24}
    assert sum(entry.required for entry in registry.values()) == 33


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
    """Nobody publishes one; whoever pins an entry of the built-in file adds here what was observed."""
    observed: dict[str, str] = {}
    assert {entry.id: entry.sha256 for entry in registry.values() if entry.sha256 is not None} == observed
    assert "Nobody has published a checksum" in built_in_path().read_text(encoding="utf-8")


def test_moat_sources_are_the_reupload_first_then_the_upload_without_statistics(registry: Registry) -> None:
    for entry in registry.find(family="moat"):
        new, old = entry.sources
        assert (new.bn_statistics, old.bn_statistics) == (True, False)
        assert new.url.replace("_wo_", "_w_").endswith("_w_position_embedding.tar.gz")
        assert ("_wo_" in new.url) == (entry.pos_emb is False)
        assert old.url == new.url.replace("_wo_", "_without_").replace("_w_", "_with_")


def test_figures_round_from_the_exact_counts_except_the_known_deviations(registry: Registry) -> None:
    off = []
    for entry in registry.values():
        digits = len(entry.published_params.partition(".")[2]) - 1
        if f"{entry.exact_parameters / 1e6:.{digits}f}M" != entry.published_params:
            off.append(entry.id)
        assert (entry.known_deviation("params") is not None) == (entry.id in off), entry.id
    assert {registry[id].variant for id in off} == {"moganet-xt", "moganet-b", "moganet-xl"}


def test_the_known_deviations_of_flops(registry: Registry) -> None:
    off = [entry for entry in registry.values() if entry.known_deviation("flops")]
    assert [(entry.id, entry.published_flops) for entry in off] == [
        ("tiny-moat2-256", "3.0B"),
        ("moganet-xl-224", "34.5G"),
        ("moganet-xl-224-timm", "34.5G"),
    ]


def test_every_file_name_is_its_own(registry: Registry) -> None:
    names = [entry.file_name for entry in registry.values()]
    assert len(set(names)) == 42
    assert registry["moat0-224"].file_name == "moat0_imagenet_1k_224_w_position_embedding.tar.gz"
    assert [entry.family for entry in registry.values() if entry.is_archive] == ["moat"] * 18


def test_the_published_rows_fit_their_families() -> None:
    registry = load_texts([(built_in_path(), read_text(built_in_path()))], registry_families())
    assert registry.counts == (len(registry),)
