"""Asking: figures, filters, ids."""

from __future__ import annotations

import pytest

from ckptkit.base.errors import NotFoundError
from ckptkit.registry.loading import load_registry
from ckptkit.registry.query import Registry
from tests.support.entries import entry_of


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


MOAT_UNDER_30M = {
    *("moat0-224", "moat0-224-noposemb"),
    *(f"tiny-moat{size}-256{end}" for size in range(4) for end in ("", "-noposemb")),
}


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"family": "moat", "max_params": 30e6}, MOAT_UNDER_30M),
        ({"family": "MOAT", "max_params": "30M"}, MOAT_UNDER_30M),
        # Bounds are included: the table says 27.8M although the exact count is a little more.
        (
            {"variant": "moat0", "min_params": "27.8M", "max_params": "27.8M"},
            {"moat0-224", "moat0-224-noposemb"},
        ),
        ({"min_top1": 88.9}, {"moat4-512", "moat4-512-noposemb"}),
        ({"min_top1": 88.4, "max_top1": 88.9}, {"moat3-512", "moat4-512-noposemb"}),
        ({"max_top1": 72.8}, {"moganet-xt-160-rsba3"}),
        ({"resolution": 384}, {"moat2-384", "moat2-384-noposemb", "moganet-s-384-birder-eu"}),
        (
            {"resolution": 160},
            {f"moganet-{size}-160-rsba3" for size in ("xt", "t", "s", "b", "l")},
        ),
        ({"variant": "moat2", "pos_emb": True}, {"moat2-384"}),
        ({"variant": "moat2", "pos_emb": False}, {"moat2-384-noposemb", "moat2-448-wd-tagger-v2"}),
        ({"family": "moganet", "pos_emb": False}, set()),
        ({"pretrain_data": "*22k*", "resolution": 384, "pos_emb": True}, {"moat2-384"}),
        ({"setting": "deit iii"}, {"moganet-xt-256-deit3", "moganet-t-256-deit3"}),
        ({"ids": "moat?-224", "group": "strong"}, {"moat0-224", "moat1-224"}),
        ({"ids": ["moat3-512", "*-xl-224"]}, {"moat3-512", "moganet-xl-224"}),
        ({"min_flops": "600G", "family": "moat"}, {"moat4-512", "moat4-512-noposemb"}),
        (
            {"max_flops": 0.8e9, "setting": "*"},
            {"moganet-xt-224", "moganet-xt-160-rsba3", "moganet-xt-224-timm"},
        ),
        (
            {"task": "pose-*", "variant": "moganet-b", "metric": ["ap", "AR"], "max_flops": "11G"},
            {"moganet-b-coco-pose-256x192"},
        ),
        ({"method": "cascade*", "metric": "mask_mAP", "setting": "MS 3x"}, {"moganet-s-coco-cascade-ms3x"}),
        ({"family": "no such"}, set()),
    ],
)
def test_find(registry: Registry, conditions: dict[str, object], expected: set[str]) -> None:
    found = registry.find(**conditions)
    assert {entry.id for entry in found} == expected
    assert [entry.id for entry in found] == [id for id in registry if id in expected]


def test_no_condition_finds_all(registry: Registry) -> None:
    assert registry.find() == list(registry.values())


def test_an_unknown_figure_meets_no_bound(registry: Registry) -> None:
    id = "moganet-s-224-nofp32gate"
    assert registry[id].published_top1 is None
    assert not registry.find(ids=id, min_top1=0)
    assert not registry.find(ids=id, max_top1=100)


@pytest.mark.parametrize(
    ("wanted", "suggested"),
    [
        ("moat2-384-nopos", "moat2-384-noposemb"),
        ("MOAT0-224", "moat0-224"),
        ("moganet-x-224", "moganet-xl-224"),
        ("tiny-moat2", "tiny-moat2-256"),
    ],
)
def test_a_wrong_id_gets_the_nearest(registry: Registry, wanted: str, suggested: str) -> None:
    with pytest.raises(NotFoundError, match="did you mean .*" + suggested) as caught:
        registry[wanted]
    assert repr(wanted) in str(caught.value)


def test_an_id_like_none_points_to_the_list(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match="no entry 'resnet50' in the registry; see 'ckptkit list'"):
        registry["resnet50"]


def test_it_is_a_mapping(registry: Registry) -> None:
    assert "moat0-224" in registry and "moat9" not in registry and 3 not in registry
    assert registry.get("moat9") is None
    assert registry.get("moat0-224") is registry["moat0-224"]
    assert next(iter(registry)) == "moat0-224"
    assert dict(registry)["moat4-512"].id == "moat4-512"


def test_select_keeps_the_order_and_names_each_once(registry: Registry) -> None:
    chosen = registry.select(["moganet-t-256", "moat1-*", "moat1-224"])
    assert [entry.id for entry in chosen] == ["moat1-224", "moat1-224-noposemb", "moganet-t-256"]
    with pytest.raises(NotFoundError, match="no id matches 'resnet\\*'"):
        registry.select(["moat0-224", "resnet*"])
    with pytest.raises(NotFoundError, match="did you mean"):
        registry.select(["moat0-22"])


@pytest.mark.parametrize(
    ("urls", "name", "archive"),
    [
        (["https://a.org/x/m.tar.gz"], "m.tar.gz", True),
        (["https://a.org/m.pth.tar?x=/y.tgz"], "m.pth.tar", False),
        (["https://a.org/a%20b.TGZ"], "a b.TGZ", True),
        (["https://a.org/a%2Fb.pth"], "b.pth", False),
        (["https://a.org/..%5C..%5Cb.pth"], "b.pth", False),
        (["https://a.org/"], "test-entry", False),
        (["https://a.org/x/.."], "test-entry", False),
        ([{"url": "https://pan.org/s/1?k", "manual": True}, "file:///srv/m.pth"], "m.pth", False),
        ([{"url": "https://pan.org/s/1?k", "manual": True}], "test-entry", False),
    ],
)
def test_the_file_name_is_one_plain_part(urls: list[object], name: str, archive: bool) -> None:
    entry = entry_of(*urls)
    assert (entry.file_name, entry.is_archive) == (name, archive)


def test_parameters_fall_back_on_the_exact_count() -> None:
    assert entry_of("https://a.org/m", exact_parameters=123).params == 123
    assert entry_of("https://a.org/m").params is None
    assert entry_of("https://a.org/m", published_params="5.20M", exact_parameters=5_197_332).params == 5.2e6
    # A figure that is far off is another model's.
    assert entry_of("https://a.org/m", published_params="5.20M", exact_parameters=9_000_000).params == 9e6
