"""The PyTorch MOAT with the deterministic weights, for tests that need torch anyway."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ckptkit.families.base import Structure, get_family
from ckptkit.families.filling import load_state
from ckptkit.families.moat import torch_model
from tests.support.moat_reference import UNITS_VARIANT, GoldenCase, recipe_weights

LOGITS_TOLERANCE = 5e-6
"""Of the recorded logits' absolute maximum: 5e-7 is measured, a LayerNorm epsilon of 1e-6 would be 1.3e-5."""

FEATURE_TOLERANCE = 2e-5
"""Of the recorded standard deviation, for every single value of a feature map; 4e-6 is measured."""


def canonical_weights(variant: str, pos_emb: bool = True) -> dict[str, np.ndarray]:
    """Return the recipe weights under canonical names, by the deeplab2 layout."""
    weights = recipe_weights(variant, pos_emb)
    table = get_family("moat").table("deeplab2", variant, Structure(pos_emb, 1000))
    return {b.canonical: b.op.to_canonical(weights[b.external], b.canonical_shape) for b in table.bindings}


def recipe_model(variant: str = UNITS_VARIANT, *, pos_emb: bool = True, **settings: Any) -> Any:
    """Build a model and give it the recipe weights."""
    with torch.device("meta"):
        model = torch_model.build(variant, pos_emb=pos_emb, **settings)
    load_state(model, canonical_weights(variant, pos_emb))
    return model


def nchw(array: np.ndarray) -> Any:
    """Channels-last array to a PyTorch input."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def nhwc(tensor: Any) -> np.ndarray:
    """PyTorch map to the channels-last array that was recorded."""
    return tensor.numpy().transpose(0, 2, 3, 1)


def logits_error(logits: Any, golden: GoldenCase) -> float:
    """Return the largest difference, relative to the largest recorded logit."""
    return float(np.abs(logits.numpy() - golden.logits).max() / np.abs(golden.logits).max())
