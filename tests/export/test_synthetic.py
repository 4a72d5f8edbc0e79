"""Synthetic weights are known as such in whatever file they lie by now, and trained ones are not."""

from __future__ import annotations

import json

import numpy as np
import pytest

import ckptkit
from ckptkit.export.targets import ExportRequest, run_export
from ckptkit.models.synth import Synthetic, write_bundle, write_file
from ckptkit.registry.loading import load_registry
from tests.support.exporting import MOAT, MOGANET, source_of, trained, write_safetensors

IDS = {MOAT: "tiny-moat0-256", MOGANET: "moganet-xt-224"}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    write_bundle(Synthetic(MOAT), folder / "moat.ckpt")
    return {MOAT: folder / "moat.ckpt", MOGANET: write_file(Synthetic(MOGANET), folder / "moganet.pth")}


@pytest.mark.parametrize("variant", IDS)
@pytest.mark.parametrize("way", ["published", "torch", "bfloat16", "float16", "keras", "tf"])
def test_a_synthetic_file_is_known_in_every_format(published, variant, way, tmp_path):
    path = published[variant]
    if way in ("torch", "tf", "keras"):
        path = ckptkit.convert(path, way, tmp_path / f"m.{ {'keras': 'weights.h5'}.get(way, way) }")
    elif way != "published":
        path = ckptkit.convert(path, "safetensors", tmp_path / "m.safetensors", dtype=way)
    source = source_of(path)
    assert source.synthetic and not source.made


@pytest.mark.parametrize("variant", IDS)
@pytest.mark.parametrize("scale", [1.05, 0.95])
def test_trained_weights_are_not_taken_for_synthetic_ones(variant, scale, tmp_path):
    state = trained(variant, scale=scale)
    source = source_of(write_safetensors(tmp_path / "m.safetensors", state))
    assert not source.synthetic


def test_a_fine_tuned_head_does_not_hide_the_recipe(tmp_path):
    from tests.support.moganet_weights import recipe_state

    state = recipe_state(MOGANET, num_classes=10) | {"head.bias": np.zeros(10, np.float32)}
    source = source_of(write_safetensors(tmp_path / "m.safetensors", state))
    assert source.synthetic


def test_what_is_exported_of_them_says_so(published, tmp_path):
    entry = load_registry()["moganet-xt-224"]
    request = ExportRequest("hf", tmp_path / "out")
    run_export(source_of(published[MOGANET], entry), request)
    said = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert (said["synthetic"], said["entry"]) == (True, None)
    assert said["provenance"]["stands_in_for"] == "moganet-xt-224"
    assert "model-index" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    from safetensors import safe_open

    with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        metadata = file.metadata()
    assert metadata["synthetic"] == "true"
    assert "entry" not in metadata
    assert not any("sha256" in key for key in metadata)


def test_what_is_exported_of_trained_ones_names_its_entry(tmp_path):
    for variant, id in IDS.items():
        file = write_safetensors(tmp_path / f"{variant}.safetensors", trained(variant))
        request = ExportRequest("hf", tmp_path / variant)
        run_export(source_of(file, load_registry()[id]), request)
        said = json.loads((tmp_path / variant / "config.json").read_text(encoding="utf-8"))
        assert (said["synthetic"], said["entry"]) == (False, id)
