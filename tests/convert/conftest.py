"""Small synthetic checkpoints that the conversion tests share."""

from __future__ import annotations

import pytest

from ckptkit.models.synth import Synthetic, write_bundle


@pytest.fixture(scope="package")
def bundles(tmp_path_factory):
    """Prefixes of tiny-moat0 checkpoints: plain, with twins (no position embedding), without statistics."""
    folder = tmp_path_factory.mktemp("bundles")
    kinds = {
        "plain": Synthetic("tiny-moat0"),
        "twins": Synthetic("tiny-moat0", pos_emb=False, twins=True),
        "no-bn": Synthetic("tiny-moat0", bn_statistics=False),
    }
    for name, synthetic in kinds.items():
        write_bundle(synthetic, folder / name / "model.ckpt")
    return {name: folder / name / "model.ckpt" for name in kinds}
