"""What is counted: the entry's model, with what the user asks for instead."""

from __future__ import annotations

import json

import pytest

from ckptkit.analysis.profile import profile, subject_of
from ckptkit.base.errors import UsageError
from ckptkit.families.base import family_of_variant
from ckptkit.registry import load_registry


def subject(variant, entry=None, **asked):
    return subject_of(variant, family_of_variant(variant), entry, **asked)


@pytest.mark.parametrize(
    ("id", "asked", "expected"),
    [
        ("moat2-384-noposemb", {}, {"resolution": (384, 384), "pos_emb": False, "num_classes": 1000}),
        ("moat2-384", {"pos_emb": False}, {"pos_emb": False}),
        ("moat2-384", {"resolution": (192, 256)}, {"resolution": (192, 256)}),
        ("moat2-384", {"num_classes": 0}, {"num_classes": None}),
        # Trained at 160, tested at 224: the figures are those of the test.
        ("moganet-xt-160-rsba3", {}, {"resolution": (224, 224), "pos_emb": None, "settings": ()}),
    ],
)
def test_an_entry_gives_what_is_not_asked_for(id, asked, expected):
    entry = load_registry()[id]
    found = subject(entry.variant, entry, **asked)
    assert {name: getattr(found, name) for name in expected} == expected


def test_a_variant_alone_is_a_classifier_as_published():
    found = subject("moat2")
    assert (found.resolution, found.pos_emb, found.num_classes) == ((384, 384), True, 1000)
    assert dict(found.settings) == {"pool_size": 2, "window_size": None, "global_attention": False}


def test_a_setting_that_the_count_does_not_see_makes_no_other_subject():
    twice = subject("moganet-s", settings={"attn_force_fp32": True})
    assert twice == subject("moganet-s")
    assert twice == subject("moganet-s", load_registry()["moganet-s-224-timm"])


@pytest.mark.parametrize(
    ("variant", "asked", "message"),
    [
        ("moat0", {"resolution": 0}, "resolution is 0"),
        ("moat0", {"resolution": (224, 20_000)}, "resolution is 224x20000; at most 16384"),
        ("moat0", {"settings": {"attn_force_fp32": True}}, "no setting attn_force_fp32"),
        ("moat0", {"num_classes": -1}, "num_classes is -1"),
        ("moganet-xt", {"pos_emb": True}, "family moganet has no position embedding"),
    ],
)
def test_what_makes_no_sense_is_refused(variant, asked, message):
    with pytest.raises(UsageError, match=message):
        subject(variant, **asked)


def test_a_window_that_does_not_divide_is_refused_before_counting():
    with pytest.raises(UsageError, match="14x14 cannot be cut into windows of 5x5"):
        profile(subject("moat0", settings={"window_size": 5}))


def test_the_largest_size_takes_no_memory():
    """Attention over 2^20 places would need terabytes."""
    found = profile(subject("tiny-moat0", resolution=16384))
    assert found.multiply_adds > 2**53, "beyond what floats count exactly"
    assert sum(child.multiply_adds for child in found.root.children) == found.multiply_adds


def test_json_says_what_was_counted_and_how():
    values = json.loads(
        json.dumps(profile(subject("tiny-moat0", num_classes=None, resolution=64)).to_json(1))
    )
    assert values["convention"]["name"] == "tensorflow-graph"
    assert (values["variant"], values["resolution"], values["num_classes"]) == ("tiny-moat0", [64, 64], None)
    # Without the head: a norm of 2 × 256 and 256 × 1000 weights with 1000 biases.
    assert values["parameters"] == 3_355_348 - 2 * 256 - 256 * 1000 - 1000
    assert [module["name"] for module in values["modules"]["modules"]] == [
        *("stem", "stages.0", "stages.1", "stages.2", "stages.3", "(rest)")
    ]
    assert sum(module["multiply_adds"] for module in values["modules"]["modules"]) == values["multiply_adds"]
    assert next(iter(values["operations"])) == "convolution"
    assert values["uncounted"] == {}
