"""Synthetic checkpoints as the two PyTorch releases of MogaNet write theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ckptkit.base.tensors import TensorSpec
from ckptkit.formats.torch_writer import Namespace, TorchWriter
from ckptkit.models.synth.checkpoint import STATE_DICT, STATE_DICT_EMA, Synthetic

NOTE = "synthetic weights: random numbers by a fixed recipe, trained on nothing"


def write_torch(synthetic: Synthetic, path: Path, *, force: bool = False) -> Path:
    """Write a synthetic PyTorch checkpoint, shaped as the release of its layout.

    ``openmixup`` has ``meta`` and ``state_dict``; the timm style ``epoch``, ``arch``, ``state_dict``,
    ``args`` (an `argparse.Namespace`, for which ``torch.load(weights_only=True)`` refuses such files) and
    ``state_dict_ema`` where there are both copies.
    """
    tensors = list(synthetic.tensors())
    # Two state dicts may hold tensors of one name; in the writer's list each has a name of its own.
    specs = [
        TensorSpec(f"{one.state_dict}/{one.spec.name}", one.spec.dtype, one.spec.shape) for one in tensors
    ]
    makers = {spec.name: one.make for spec, one in zip(specs, tensors, strict=True)}
    dicts: dict[str, dict[str, TensorSpec]] = {STATE_DICT: {}}
    for spec, one in zip(specs, tensors, strict=True):
        dicts.setdefault(one.state_dict, {})[one.spec.name] = spec
    with TorchWriter(path, specs, {}, force=force, tree=_tree(synthetic, dicts)) as writer:
        for name in writer.order:
            writer.write(name, makers[name]())
        (written,) = writer.finish()
    return written


def _tree(synthetic: Synthetic, dicts: dict[str, dict[str, TensorSpec]]) -> dict[str, Any]:
    if synthetic.table.layout.name == "openmixup":
        return {"meta": {"note": NOTE, "epoch": 0, "iter": 0, "CLASSES": None}, **dicts}
    arch = synthetic.variant.replace("-", "_")
    averages = {STATE_DICT_EMA: dicts[STATE_DICT_EMA]} if STATE_DICT_EMA in dicts else {}
    return {
        "epoch": 0,
        "arch": arch,
        STATE_DICT: dicts[STATE_DICT],
        "version": 2,
        "args": Namespace({"model": arch, "note": NOTE}),
        **averages,
    }
