"""Opening one side of a comparison: which copy is taken where one of two is not whole."""

from __future__ import annotations

import pytest

from ckptkit.compare.diff import compare_files
from ckptkit.formats.torch_writer import TorchWriter
from ckptkit.models.synth import Synthetic
from ckptkit.registry import load_registry
from ckptkit.workspace import Located


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_whole_copy_is_compared_where_the_usual_one_is_not_whole(tmp_path, weights):
    """OpenMixup's plain names hold the averages, so they are what is left when a raw buffer is gone."""
    tensors = {t.spec.name: t for t in Synthetic("moganet-xt", twins=True).tensors()}
    del tensors["ema_backbone_blocks1_0_attn_gate_weight"]
    path = tmp_path / "m.pth"
    with TorchWriter(path, [t.spec for t in tensors.values()], {}) as writer:
        for name in writer.order:
            writer.write(name, tensors[name].make())
        writer.finish()
    entry = load_registry()["moganet-xt-224"].model_copy(update={"weights": weights})
    found = compare_files(Located(path, entry), Located(path, entry))
    assert found.same
    assert (found.a.weights, found.b.weights) == ("ema", "ema")
