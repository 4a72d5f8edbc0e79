"""Checkpoints to export that nobody can take for synthetic ones, and what models compute of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ckptkit.analysis.model_source import ModelSource, SourceRequest, open_source
from ckptkit.base.tensors import Array
from ckptkit.families.base import Structure, get_family
from ckptkit.registry.schema import Entry
from ckptkit.workspace import Located, Workspace
from tests.support.moat_reference import recipe_weights
from tests.support.moganet_weights import recipe_state

MOAT, MOGANET = "tiny-moat0", "moganet-xt"


def trained(variant: str, *, num_classes: int | None = 1000, scale: float = 0.97) -> dict[str, Array]:
    """Weights under canonical names that are no recipe's: every one of it times ``scale``."""
    if variant == MOGANET:
        state = recipe_state(variant, num_classes=num_classes, key_suffix="#another")
    else:
        weights = recipe_weights(variant)
        table = get_family("moat").table("deeplab2", variant, Structure())
        state = {
            b.canonical: b.op.to_canonical(weights[b.external], b.canonical_shape) for b in table.bindings
        }
        for row in table.bindings:
            if row.part == "head" and num_classes is None:
                del state[row.canonical]
        if num_classes is not None:
            state |= {name: state[name][:num_classes] for name in ("head.weight", "head.bias")}
    return {
        name: array if array.dtype.kind == "i" else np.ascontiguousarray(array * np.float32(scale))
        for name, array in state.items()
    }


def write_safetensors(path: Path, state: Mapping[str, Array], **metadata: str) -> Path:
    """Write tensors with the reference library."""
    from safetensors.numpy import save_file

    plain = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in state.items()}
    save_file(plain, path, metadata or None)
    return path


def source_of(path: Path, entry: Entry | None = None, **options: Any) -> ModelSource:
    """Open a file as a command would that found it for an entry."""
    workspace = Workspace(note=lambda _: None, warn=lambda _: None)
    return open_source(Located(path, entry), workspace, SourceRequest(path, **options))


def noting(source: ModelSource, notes: list[str]) -> ModelSource:
    """The same source; its notes are kept."""
    return replace(source, workspace=replace(source.workspace, note=notes.append))


def logits_of(model: Any, framework: str, images: Array) -> Array:
    """Run a model on NHWC images."""
    if framework == "keras":
        return np.asarray(model(images))
    import torch

    with torch.inference_mode():
        return model(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))).numpy()
