"""Every variant, with and without position embedding, through the whole way: synth, convert, both models."""

from __future__ import annotations

import pytest

from ckptkit.families.base import get_family
from ckptkit.parity import run_parity, synthetic_checkpoint
from ckptkit.synth import Synthetic

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("pos_emb", [True, False], ids=["pe", "nope"])
@pytest.mark.parametrize("variant", get_family("moat").variants)
def test_both_frameworks_agree(variant, pos_emb):
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    with synthetic_checkpoint(Synthetic(variant, pos_emb=pos_emb)) as located:
        report = run_parity(located, resolution=128, synthetic=True)
    assert report.ok, report.verdict
