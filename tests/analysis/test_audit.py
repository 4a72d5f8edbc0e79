"""Published figures against counted ones."""

from __future__ import annotations

import re

import pytest

from ckptkit.analysis import audit
from ckptkit.analysis.audit import audit_registry, check_figure, profile_model
from ckptkit.base.errors import NotFoundError
from ckptkit.registry.loading import load_registry
from ckptkit.registry.schema import KnownDeviation


def known(published):
    return KnownDeviation(figure="flops", published=published, reason="the table is cut off")


@pytest.mark.parametrize(
    ("counted", "published", "listed", "verdict", "ok"),
    [
        (34_450_000_000, "34.5G", False, "exact", True),
        (34_550_000_000, "34.5G", False, "exact", True),
        (34_550_000_001, "34.5G", False, "close", True),
        (34_554_167_892, "34.5G", True, "known", True),
        (34_500_000_000, "34.5G", True, "stale", False),
        (35_190_000_000, "34.5G", False, "close", True),
        (33_810_000_000, "34.5G", False, "close", True),
        (35_190_000_001, "34.5G", False, "off", False),
        (33_809_999_999, "34.5G", False, "off", False),
        (40_000_000_000, "34.5G", True, "known", True),
        # It rounds, so it agrees, although one decimal leaves room for 2.4%.
        (1_638_000_000.5, "1.6B", False, "exact", True),
    ],
)
def test_verdicts(counted, published, listed, verdict, ok):
    check = check_figure("flops", counted, published, known(published) if listed else None)
    assert (check.verdict, check.ok) == (verdict, ok)
    assert check.to_json()["ok"] is ok


def test_what_is_said_of_them():
    assert check_figure("flops", 36e9, "34.5G").reason == "+4.3% off, and no known deviation"
    assert check_figure("flops", 34.56e9, "34.5G", known("34.5G")).reason == "the table is cut off"
    assert "rounds to the published 34.5G" in check_figure("flops", 34.5e9, "34.5G", known("34.5G")).reason
    assert check_figure("flops", 30e9, "40G").deviation == -0.25


KNOWN = [{"figure": "flops", "published": "0.80G", "reason": "a slip"}]


@pytest.fixture(scope="module")
def registry():
    return load_registry()


def changed(registry, id, **fields):
    """An entry of the registry with other fields, checked as a file's is."""
    return type(registry[id]).model_validate({**registry[id].model_dump(), **fields})


@pytest.mark.slow
def test_every_published_figure_holds_or_is_a_known_deviation(registry):
    audits = audit_registry(registry.values())
    assert len(audits) == 42
    assert [one.name for one in audits if not one.ok] == []
    known = {(one.name, check.figure) for one in audits for check in one.checks if check.verdict == "known"}
    assert known == {(e.id, each.figure) for e in registry.values() for each in e.known_deviations}
    # What a reason says was counted is what is counted.
    for one in audits:
        for check in one.checks:
            said = re.search(r"counted as ([0-9.]+)[BG]", check.reason)
            assert said is None or said[1] == f"{check.counted / 1e9:.3f}"


def test_entries_of_one_model_are_counted_once(registry, monkeypatch):
    counted = []
    real = audit.profile
    monkeypatch.setattr(audit, "profile", lambda subject: counted.append(subject) or real(subject))
    ids = ["moganet-xt-224", "moganet-xt-224-timm", "moganet-xt-160-rsba3", "moganet-xt-256"]
    steps = []
    audits = audit_registry([registry[id] for id in ids], advance=steps.append)
    assert [one.name for one in audits] == ids
    assert [subject.resolution for subject in counted] == [(224, 224), (256, 256)]
    assert steps == [1] * 4


@pytest.mark.parametrize(
    ("fields", "verdicts", "says"),
    [
        ({}, ("known", "exact"), "no buffer"),
        ({"published_flops": "0.83G"}, ("known", "off"), "-3.7% off"),
        ({"published_flops": "0.81G"}, ("known", "close"), ""),
        ({"published_flops": None}, ("known", "not compared"), "no figure is published"),
        ({"known_deviations": []}, ("close", "exact"), ""),
        ({"known_deviations": KNOWN}, ("close", "stale"), "rounds to the published 0.80G"),
        (
            {"published_params": "2.96M", "known_deviations": []},
            ("exact", "exact"),
            "",
        ),
        ({"exact_parameters": 2_956_067}, ("off", "exact"), "the published code has 2,956,067"),
        ({"exact_parameters": None}, ("known", "exact"), "no buffer"),
        ({"published_params": None, "known_deviations": []}, ("not compared", "exact"), "no figure"),
    ],
)
def test_an_entry_is_held_to_its_own_figures(registry, fields, verdicts, says):
    (found,) = audit_registry([changed(registry, "moganet-xt-224", **fields)])
    assert tuple(check.verdict for check in found.checks) == verdicts
    assert found.ok == (not {"off", "stale"} & set(verdicts))
    assert says in " ".join(check.reason for check in found.checks)


def test_a_count_that_is_not_whole_does_not_pass(registry, monkeypatch):
    from dataclasses import replace

    real = audit.profile
    monkeypatch.setattr(audit, "profile", lambda subject: replace(real(subject), uncounted={"gelu": 2}))
    (found,) = audit_registry([registry["moganet-xt-224"]])
    assert not found.ok
    assert found.to_json()["uncounted"] == {"gelu": 2}


@pytest.mark.parametrize(
    ("name", "asked", "entry", "compared"),
    [
        ("moganet-xt-256", {}, "moganet-xt-256", (True, True)),
        ("moganet-xt", {"resolution": 256}, "moganet-xt-256", (True, True)),
        ("moganet-xt", {"resolution": (224, 256)}, "moganet-xt-224", (True, False)),
        ("moganet-xt-224", {"num_classes": None}, "moganet-xt-224", (False, False)),
        ("tiny-moat0", {"pos_emb": False}, "tiny-moat0-256-noposemb", (True, True)),
        ("tiny-moat0-256", {"pos_emb": False}, "tiny-moat0-256", (False, False)),
        ("tiny-moat0", {"settings": {"pool_size": 3}}, "tiny-moat0-256", (True, False)),
    ],
)
def test_only_the_same_model_is_compared(registry, name, asked, entry, compared):
    report = profile_model(name, registry=registry, **asked)
    assert report.entry.id == entry
    assert tuple(check.verdict != "not compared" for check in report.checks) == compared
    assert all(check.reason.startswith("published ") for check in report.checks if not check.published)
    assert report.ok


def test_without_any_entry_nothing_is_compared(registry):
    report = profile_model("moganet-xt", registry=type(registry)([]))
    assert report.entry is None
    assert {check.reason for check in report.checks} == {"no entry of the registry is of this model"}
    assert report.to_json()["entry"] is None


def test_an_unknown_name_is_neither_entry_nor_variant(registry):
    with pytest.raises(NotFoundError, match=r"unknown entry or variant 'moat9'.*moat0, moat1"):
        profile_model("moat9", registry=registry)
