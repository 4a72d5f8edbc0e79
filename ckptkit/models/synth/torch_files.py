"""Synthetic checkpoints as releases for PyTorch write theirs."""

from __future__ import annotations

from pathlib import Path

from ckptkit.base.tensors import TensorSpec
from ckptkit.formats.torch_writer import TorchWriter
from ckptkit.models.synth.checkpoint import STATE_DICT, Synthetic


def write_torch(synthetic: Synthetic, path: Path, *, force: bool = False) -> Path:
    """Write a synthetic PyTorch checkpoint, shaped as the release of its layout."""
    tensors = list(synthetic.tensors())
    # Two state dicts may hold tensors of one name; in the writer's list each has a name of its own.
    specs = [
        TensorSpec(f"{one.state_dict}/{one.spec.name}", one.spec.dtype, one.spec.shape) for one in tensors
    ]
    makers = {spec.name: one.make for spec, one in zip(specs, tensors, strict=True)}
    dicts: dict[str, dict[str, TensorSpec]] = {STATE_DICT: {}}
    for spec, one in zip(specs, tensors, strict=True):
        dicts.setdefault(one.state_dict, {})[one.spec.name] = spec
    with TorchWriter(
        path, specs, {}, force=force, tree=synthetic.published_file.tree(synthetic.variant, dicts)
    ) as writer:
        for name in writer.order:
            writer.write(name, makers[name]())
        (written,) = writer.finish()
    return written
