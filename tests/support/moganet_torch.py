"""The PyTorch MogaNet with the deterministic weights, for tests that need torch anyway."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ckptkit.families.filling import load_state
from ckptkit.families.moganet import torch_model
from tests.support.moganet_weights import Array, GoldenCase, TensorRow, recipe_state

SMALLEST = "moganet-xt"

LOGITS_TOLERANCE = 2e-6
"""Of the recorded logits' absolute maximum: 5.1e-7 is measured, and the issue allows 2e-5."""

FEATURE_TOLERANCE = 1e-5
"""Of the recorded standard deviation, for every single value of a feature map; 3.2e-6 is measured."""


@lru_cache(maxsize=2)
def weights(variant: str) -> Mapping[str, Array]:
    """Return the recipe weights, made once."""
    return recipe_state(variant)


def recipe_model(variant: str = SMALLEST, *, attn_force_fp32: bool = False, **settings: Any) -> Any:
    """Build a model and give it the recipe weights."""
    with torch.device("meta"):
        model = torch_model.build(variant, attn_force_fp32=attn_force_fp32, **settings)
    load_state(model, weights(variant))
    return model


def rows_of(model: Any) -> tuple[TensorRow, ...]:
    """Return the model's ``state_dict`` as a table, in its own order."""
    parameters = {name for name, _ in model.named_parameters()}
    return tuple(
        TensorRow(
            name,
            tuple(tensor.shape),
            str(tensor.dtype).removeprefix("torch."),
            "parameter" if name in parameters else "buffer",
        )
        for name, tensor in model.state_dict().items()
    )


def nchw(array: Array) -> Any:
    """Channels-last array to a PyTorch input."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def logits_error(logits: Any, golden: GoldenCase) -> float:
    """Return the largest difference, relative to the largest recorded logit."""
    return float(np.abs(logits.numpy() - golden.logits).max() / np.abs(golden.logits).max())
