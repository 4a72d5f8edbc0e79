"""Every entry of the registry through the whole way: synth as published, convert, both models."""

from __future__ import annotations

import pytest

from ckptkit.models.synth import synthetic_checkpoint, synthetic_for
from ckptkit.registry.loading import load_registry
from tests.support.parity_cases import run_parity

REGISTRY = load_registry()
QUICK = ("tiny-moat0-256-noposemb", "moganet-xt-256-deit3")
SIDE = 128


@pytest.mark.parametrize(
    "id",
    [
        pytest.param(id, marks=() if id in QUICK else pytest.mark.slow)
        for id, entry in REGISTRY.items()
        if entry.serves == "whole"
    ],
)
def test_both_frameworks_agree(id):
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    entry = REGISTRY[id]
    with synthetic_checkpoint(synthetic_for(entry), entry) as located:
        report = run_parity(located, resolution=SIDE, synthetic=True)
    assert report.ok, report.verdict
    assert (report.variant, report.pos_emb) == (entry.variant, entry.pos_emb)
    # The model of the published family reads the file as it is published.
    published = "keras" if entry.family == "moat" else "torch"
    assert report.reference == published
    sides = {side.framework: side for side in report.sides}
    assert (sides[published].format, sides[published].layout) == (entry.format, entry.layout)
    if entry.family == "moganet":
        assert report.settings == {"attn_force_fp32": entry.attn_force_fp32}
