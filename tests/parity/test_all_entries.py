"""Every entry of the registry through the whole way: synth as published, convert, both models."""

from __future__ import annotations

import pytest

from ckptkit.models.synth import synthetic_checkpoint, synthetic_for
from ckptkit.registry.loading import load_registry
from tests.support.parity_cases import run_parity

REGISTRY = load_registry()
QUICK = (
    "tiny-moat0-256-noposemb",
    "moganet-xt-256-deit3",
    "moganet-xt-224-kecam",
    "moganet-xt-256-birder-il",
    "moganet-xt-coco-pose-256x192",
)
"""One of each kind of file; the tagger has a big network only."""

SIDE, SIDE_OF_WINDOWS = 128, 224


@pytest.mark.parametrize(
    "id",
    [
        pytest.param(id, marks=() if id in QUICK else pytest.mark.slow)
        for id, entry in REGISTRY.items()
        if entry.serves != "container"
    ],
)
def test_both_frameworks_agree(id):
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    entry = REGISTRY[id]
    with synthetic_checkpoint(synthetic_for(entry), entry) as located:
        side = SIDE_OF_WINDOWS if entry.settings.get("window_size") else SIDE
        report = run_parity(located, resolution=side, synthetic=True)
    assert report.ok, report.verdict
    assert (report.variant, report.pos_emb) == (entry.variant, entry.pos_emb)
    # The model of the published family reads the file as it is published.
    published = "keras" if entry.layout == "deeplab2" else "torch"
    assert report.reference == published
    sides = {side.framework: side for side in report.sides}
    assert (sides[published].format, sides[published].layout) == (entry.format, entry.layout)
    assert entry.settings.items() <= report.settings.items()
    outputs = [stage.name for stage in report.stages]
    assert ("logits" in outputs) == (entry.serves == "whole") and "stage4" in outputs
