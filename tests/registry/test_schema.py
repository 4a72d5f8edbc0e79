"""What an entry refuses."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ckptkit.cli.entries import _CLASSIFICATION
from ckptkit.families.base import get_family, registry_families
from ckptkit.registry.schema import CLASSIFICATION, TASKS, Entry, json_schema
from tests.support.entries import entry_of

URL = "https://a.org/m.pth"
SHA = "0f" * 32
SLIP = {"figure": "params", "published": "2.97M", "reason": "a slip"}
MD5 = "0e" * 16
PAGE = "https://a.org/checksums"
WHEN = {"observed_at": "2026-01-02T03:04:05Z", "url": URL}


@pytest.mark.parametrize(
    ("fields", "at", "message"),
    [
        ({"id": "Moat"}, "id", "match pattern"),
        ({"id": "../x"}, "id", "match pattern"),
        ({"id": "a/b"}, "id", "match pattern"),
        ({"id": "a."}, "id", "match pattern"),
        ({"id": "a\n"}, "id", "match pattern"),
        ({"id": "a" * 101}, "id", "at most 100"),
        ({"display_name": ""}, "display_name", "at least 1"),
        ({"layout": "timn"}, "layout", "'deeplab2', 'openmixup'"),
        ({"format": "h5"}, "format", "'tf', 'torch'"),
        ({"weights": "both"}, "weights", "'ema' or 'raw'"),
        ({"published_params": 27.8}, "published_params", "valid string"),
        ({"published_params": "27.8 M"}, "published_params", "match pattern"),
        ({"published_params": "about 3M"}, "published_params", "match pattern"),
        ({"published_top1": 101}, "published_top1", "less than or equal to 100"),
        ({"published_top1": "83.3"}, "published_top1", "valid number"),
        ({"published_top1": float("nan")}, "published_top1", "finite number"),
        ({"published_top1": True}, "published_top1", "valid number"),
        ({"pos_emb": "yes"}, "pos_emb", "valid boolean"),
        ({"pos_emb": 1}, "pos_emb", "valid boolean"),
        ({"train_resolution": 0}, "train_resolution", "greater than or equal to 1"),
        ({"train_resolution": 224.0}, "train_resolution", "valid integer"),
        ({"exact_parameters": -1}, "exact_parameters", "greater than or equal to 1"),
        ({"size": 0, "sha256": None}, "size", "greater than or equal to 1"),
        ({"known_deviations": [{**SLIP, "figure": "top1"}]}, "figure", "'params' or 'flops'"),
        ({"known_deviations": [{**SLIP, "reason": ""}]}, "reason", "at least 1"),
        ({"known_deviations": [SLIP]}, "known_deviations", "2.97M is not the published_params of this entry"),
        (
            {"known_deviations": [SLIP], "published_params": "2.96M"},
            "known_deviations",
            "2.97M is not the published_params of this entry, 2.96M",
        ),
        (
            {"known_deviations": [SLIP, SLIP], "published_params": "2.97M"},
            "known_deviations",
            "more than one known deviation",
        ),
        ({"sha256": SHA.upper(), "hash_provenance": WHEN}, "sha256", "match pattern"),
        ({"sha256": SHA[:-1], "hash_provenance": WHEN}, "sha256", "match pattern"),
        ({"sha256": SHA, "hash_provenance": None}, "hash_provenance", "without hash_provenance"),
        ({"hash_provenance": WHEN}, "hash_provenance", "without a sha256"),
        (
            {"sha256": SHA, "hash_provenance": {**WHEN, "observed_at": "yesterday"}},
            "observed_at",
            "Invalid isoformat",
        ),
        (
            {"sha256": SHA, "hash_provenance": {**WHEN, "observed_at": "2026-01-02T03:04:05"}},
            "observed_at",
            "needs its zone",
        ),
        ({"sha256": SHA, "hash_provenance": {"url": URL}}, "observed_at", "Field required"),
        (
            {"sha256": SHA, "hash_provenance": None, "checksum_page": "x"},
            "checksum_page",
            "begins with one of",
        ),
        ({"md5": MD5}, "checksum_page", "md5 is given without checksum_page"),
        ({"md5": MD5.upper(), "checksum_page": PAGE}, "md5", "match pattern"),
        ({"md5": SHA, "checksum_page": PAGE}, "md5", "match pattern"),
        ({"checksum_page": PAGE}, "checksum_page", "without sha256, md5 or size"),
        ({"task": "object detection"}, "task", "match pattern"),
        ({"serves": "head"}, "serves", "'whole', 'backbone' or 'container'"),
        ({"metrics": {"box_mAP": "39.7"}}, "box_mAP", "valid number"),
        ({"metrics": {"box_mAP": float("nan")}}, "box_mAP", "finite number"),
        ({"metrics": {"box mAP": 39.7}}, "[key]", "match pattern"),
        ({"metrics": {"Top-1": 39.7}}, "metrics", "Top-1 is the same as published_top1"),
        ({"metrics": {"box_mAP": 39.7, "box-map": 40.0}}, "metrics", "box-map is the same as box_mAP"),
        ({"metrics": [39.7]}, "metrics", "valid dictionary"),
        ({"flops_input": [1280]}, 1, "Field required"),
        ({"flops_input": [1280, 0]}, 1, "greater than or equal to 1"),
        ({"num_classes": 0}, "num_classes", "greater than or equal to 1"),
        ({"sources": []}, "sources", "at least 1"),
        ({"sources": None}, "sources", "valid tuple"),
        ({"sources": [URL]}, 0, "valid dictionary"),
        ({"sources": [{"note": "x"}]}, "url", "Field required"),
        ({"sources": [{"url": "ftp://a.org/x"}]}, "url", "begins with one of https://"),
        ({"sources": [{"url": "/srv/x"}]}, "url", "begins with one of https://"),
        ({"sources": [{"url": "https:///x"}]}, "url", "names no host"),
        ({"sources": [{"url": "https://a.org/a b"}]}, "url", "no blanks"),
        ({"sources": [{"url": "https://[::1/x"}]}, "url", "Invalid IPv6"),
        ({"config_url": "javascript:alert(1)"}, "config_url", "begins with one of"),
        ({"colour": "red"}, "colour", "not permitted"),
        ({"interpolation": "bicubik"}, "interpolation", "'bicubic'"),
        *(
            ({"companions": [{"path": path}]}, "path", "match pattern")
            for path in (
                "",
                "/etc/passwd",
                "a/../b",
                "..",
                "a b",
                ".metadata",
                "a\\b",
                "https://a.org/x",
                "a?b",
                "a.",
            )
        ),
        (
            {"companions": [{"path": "a"}, {"path": "../a"}]},
            "companions",
            "a is the name of another of its files",
        ),
        ({"companions": [{"path": "x/m.pth"}]}, "companions", "m.pth is the name of another"),
        ({"companions": [{"path": "m.pth.json"}]}, "companions", "or of that file's record"),
        ({"companions": [{"path": "a.json"}, {"path": "a"}]}, "companions", "or of that file's record"),
        ({"companions": [{"path": "a", "sha256": SHA}]}, "hash_provenance", "sha256 is given without"),
        ({"companions": [{"path": "a", "md5": MD5}]}, "checksum_page", "md5 is given without"),
    ],
)
def test_refused(fields: dict[str, Any], at: str | int, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        entry_of(URL, **fields)
    found = {error["loc"][-1]: error["msg"] for error in caught.value.errors()}
    assert message in found[at]


@pytest.mark.parametrize(
    "fields",
    [
        {"sha256": SHA, "hash_provenance": WHEN, "size": 10},
        {"size": 10},
        {"sources": [{"url": "file:///srv/m.pth"}, {"url": "http://127.0.0.1:8000/m.pth"}]},
        {"published_top1": 83},
        {"sha256": SHA, "hash_provenance": WHEN, "checksum_page": PAGE, "size": 10},
        {"md5": MD5, "checksum_page": PAGE},
        {"size": 10, "checksum_page": PAGE},
        {
            "companions": [{"path": "../b/a-1_of=2", "sha256": SHA, "size": 3, "md5": None}],
            "checksum_page": PAGE,
        },
        {"md5": MD5, "checksum_page": PAGE, "sha256": SHA, "hash_provenance": WHEN},
        {"task": "depth-estimation", "serves": "container", "family": "other", "variant": "any"},
        {"task": "object-detection", "metrics": {"box_mAP": 39.7, "AP50": 60}, "dataset": "COCO 2017 val"},
        {"flops_input": [1280, 800], "num_classes": 80, "method": "RetinaNet", "serves": "backbone"},
        {"published_params": "3"},
        {"published_params": "2.97M", "known_deviations": [SLIP]},
        {"sha256": SHA, "hash_provenance": {**WHEN, "observed_at": "2026-01-02T03:04:05.678+02:00"}},
    ],
)
def test_accepted(fields: dict[str, Any]) -> None:
    entry = entry_of(URL, **fields)
    for name, value in fields.items():
        held = entry.model_dump()[name]
        assert held == (
            tuple({"note": "", "bn_statistics": None, "manual": False, **source} for source in value)
            if name == "sources"
            else tuple(value)
            if name in ("known_deviations", "flops_input", "companions")
            else {**value, "note": None}
            if name == "hash_provenance"
            else value
        )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, []),
        ({"sha256": SHA}, [("sha256", SHA, "the registry")]),
        ({"sha256": SHA, "hash_provenance": None, "checksum_page": PAGE}, [("sha256", SHA, "the publisher")]),
        ({"md5": MD5, "checksum_page": PAGE}, [("md5", MD5, "the publisher")]),
        (
            {"md5": MD5, "checksum_page": PAGE, "sha256": SHA},
            [("sha256", SHA, "the registry"), ("md5", MD5, "the publisher")],
        ),
    ],
)
def test_whose_word_a_checksum_is(fields: dict[str, Any], words: list[tuple[str, str, str]]) -> None:
    expected = entry_of(URL, **fields).expected
    assert [(one.algorithm, one.value, one.origin) for one in expected] == words


def test_metrics_are_found_in_any_spelling() -> None:
    entry = entry_of(URL, published_top1=83.3, metrics={"box_mAP": 39.7, "AR": 82.0})
    assert entry.published_metrics == {"top1": 83.3, "box_mAP": 39.7, "AR": 82.0}
    assert [entry.metric(name) for name in ("box-map", "BOX_MAP", "Top-1", "ar", "mask_mAP", "top5")] == [
        39.7, 39.7, 83.3, 82.0, None, None,
    ]  # fmt: skip


SHOWN_CHECKSUMS = {
    "observed": (
        {"sha256": SHA},
        [f"sha256              {SHA}", "observed 2026-01-02T03:04:05Z from https://a.org/x"],
    ),
    "published": (
        {"sha256": SHA, "hash_provenance": None, "checksum_page": PAGE},
        [f"sha256              {SHA}", f"stated by the publisher at {PAGE}"],
    ),
    "md5": (
        {"md5": MD5, "checksum_page": PAGE},
        [
            "sha256              not pinned: no sha256 of this file is published",
            f"md5                 {MD5}",
            f"stated by the publisher at {PAGE}",
            "shows damage; does not protect against a forged file",
        ],
    ),
}


@pytest.mark.parametrize("case", SHOWN_CHECKSUMS)
def test_an_entry_says_whose_word_its_checksums_are(case: str) -> None:
    fields, lines = SHOWN_CHECKSUMS[case]
    shown = [str(line).strip() for line in entry_of(URL, **fields).pieces()]
    at = shown.index(lines[0])
    assert shown[at : at + len(lines)] == lines


def test_a_detector_says_what_it_is_for_and_how_good_it_is() -> None:
    entry = entry_of(
        URL,
        task="object-detection",
        method="RetinaNet",
        serves="backbone",
        num_classes=80,
        setting="1x",
        published_flops="167.2G",
        flops_input=[1280, 800],
        metrics={"box_mAP": 39.7},
        dataset="COCO 2017 val",
    )
    text = "\n".join(map(str, entry.pieces()))
    assert "object detection, RetinaNet, 80 classes, the backbone is known here" in text
    assert "167.2G as published, multiply-adds of one image of 1280×800" in text
    assert "box_mAP 39.7, as published, COCO 2017 val" in text
    assert "accuracy" not in text


def test_a_task_that_is_not_given_is_the_one_that_lists_take_for_usual() -> None:
    assert entry_of(URL).task == CLASSIFICATION == _CLASSIFICATION == TASKS[0]


def test_an_entry_cannot_be_changed() -> None:
    entry = entry_of(URL)
    with pytest.raises(ValidationError, match="frozen"):
        entry.id = "other"
    with pytest.raises(ValidationError, match="frozen"):
        entry.sources[0].url = "https://b.org"


def test_the_json_schema_describes_a_file() -> None:
    schema = json_schema(registry_families())
    assert set(schema["properties"]) == {"notes", "families", "entries"}
    entry, family = schema["$defs"]["Entry"], schema["$defs"]["Family"]
    assert entry["required"] == ["id"]
    assert entry["additionalProperties"] is family["additionalProperties"] is False
    settings = (setting for family in ("moat", "moganet") for setting in get_family(family).settings)
    fields = {*Entry.model_fields, *settings}
    assert {"pool_size", "window_size", "attn_force_fp32"} < fields
    assert set(entry["properties"]) == fields
    assert set(family["properties"]) == fields - {"id", "family", "sources", "companions"}
    assert all("description" in rule for rule in entry["properties"].values())
    # Every reference leads somewhere.
    wanted = {name.rpartition("/")[2] for name in _references(schema)}
    assert wanted <= set(schema["$defs"])


def _references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if "$ref" in value else set()
        return own.union(*(_references(child) for child in value.values()))
    return set().union(*(_references(child) for child in value)) if isinstance(value, list) else set()
