"""What families have in common: their settings, and where each value comes from."""

from __future__ import annotations

import json

import pytest

from ckptkit.base.errors import FormatError, UsageError
from ckptkit.families.base import get_family
from ckptkit.registry.loading import load_registry

MOAT, MOGANET = get_family("moat"), get_family("moganet")
REGISTRY = load_registry()


@pytest.mark.parametrize(
    ("given", "entry", "metadata", "expected"),
    [
        ({}, None, {}, {}),
        ({}, None, {"attn_force_fp32": "true"}, {"attn_force_fp32": True}),
        ({}, "moganet-xt-224-timm", {"attn_force_fp32": "true"}, {"attn_force_fp32": False}),
        ({}, "moganet-s-224-nofp32gate", {}, {"attn_force_fp32": False}),
        ({}, "moganet-s-224", {}, {"attn_force_fp32": True}),
        ({"attn_force_fp32": True}, "moganet-xt-224-timm", {}, {"attn_force_fp32": True}),
    ],
)
def test_the_users_word_counts_before_the_entrys_before_the_files(given, entry, metadata, expected):
    owner = REGISTRY[entry] if entry else None
    assert MOGANET.known_settings(given=given, entry=owner, metadata=metadata) == expected


@pytest.mark.parametrize("entry", [e for e in REGISTRY.values() if e.family == "moganet"], ids=lambda e: e.id)
def test_every_moganet_entry_says_its_gate(entry):
    """OpenMixup's files, and mmpretrain's, need the double activation, but for one of each."""
    url = entry.sources[0].url
    plain = "no_forcefp32" in url or "mmpretrain/releases/download/moganet-in1k-weights/moganet-large" in url
    expected = not plain and ("openmixup" in url or "mmpretrain" in url)
    assert MOGANET.known_settings(entry=entry) == {"attn_force_fp32": expected}


def test_what_has_no_default_must_be_told():
    assert MOGANET.missing_settings({}) == ["attn_force_fp32"]
    with pytest.raises(UsageError, match=r"x\.pth: attn_force_fp32 is not known") as caught:
        MOGANET.resolve_settings({}, name="x.pth")
    assert "--set attn_force_fp32=true" in caught.value.hint
    assert MOGANET.resolve_settings({"attn_force_fp32": False}, name="x") == {"attn_force_fp32": False}


def test_defaults_fill_in_for_moat():
    assert MOAT.missing_settings({}) == []
    settled = MOAT.resolve_settings({"pool_size": 3}, name="x")
    assert settled == {
        "pool_size": 3,
        "window_size": None,
        "global_attention": False,
        "se_activation": "swish",
        "layer_norm_epsilon": 1e-5,
        "input_order": "rgb",
    }


def test_settings_of_another_family_are_refused():
    with pytest.raises(UsageError, match="family moganet has no setting pool_size"):
        MOGANET.known_settings(given={"pool_size": 2})


@pytest.mark.parametrize("text", ["yes", "[" * 100_000, ""])
def test_metadata_that_is_no_json_is_the_files_fault(text):
    with pytest.raises(FormatError, match="not a valid value"):
        MOGANET.known_settings(metadata={"attn_force_fp32": text}, path="f.safetensors")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        *(
            ("pool_size", text)
            for text in ('"x"', "true", "0", "4", "2.0", "[2]", "null", "9" * 5000, "NaN", "1e999")
        ),
        *(("global_attention", text) for text in ("1", "null", '"true"', "{}", "[" * 900 + "]" * 900)),
        *(
            ("window_size", text)
            for text in (
                "-1",
                "0",
                "16385",
                "true",
                '{"4": 1}',
                "[1, 2, 3]",
                "[[1, 2], [3]]",
                '{"2": {}}',
                '"a"',
            )
        ),
    ],
)
def test_a_value_that_a_setting_cannot_have(key, text):
    """It would go into config.json, and from there into a model."""
    with pytest.raises(FormatError, match=f"f.safetensors: its metadata says {key} is .* not a valid value"):
        MOAT.known_settings(metadata={key: text}, path="f.safetensors")
    if text[0] not in "9[N{":
        with pytest.raises(UsageError, match=key):
            MOAT.known_settings(given={key: json.loads(text)})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pool_size", 3),
        ("global_attention", True),
        *(("window_size", value) for value in (None, 14, [14, 7], [[14, 14], None], {"2": 14, "3": [7, 7]})),
    ],
)
def test_values_that_a_setting_can_have(key, value):
    assert MOAT.known_settings(metadata={key: json.dumps(value)}) == {key: value}
