"""The Keras MogaNet with the recipe's weights, put under Keras' names without ckptkit's layout rules."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import numpy as np

from ckptkit.families.filling import load_state
from ckptkit.families.moganet import keras_model
from tests.support.moganet_weights import Array, recipe_state

GOLDEN_TOLERANCE = 5e-6
"""Of the logits' absolute maximum. 2e-5 is asked for; at a quarter of it every known mistake shows."""

_STEM_LAYERS = {"0": "conv_0", "1": "norm_0", "3": "conv_1", "4": "norm_1"}

_BATCH_NORM_LEAVES = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


def keras_name(canonical: str, *, is_batch_norm: bool) -> str:
    """Return what Keras calls a tensor of the timm-style release."""
    *layers, leaf = canonical.split(".")
    if layers[0].startswith("blocks"):
        layers[:2] = [f"{layers[0]}_{layers[1]}"]
    elif layers[0] == "patch_embed1":
        layers[1:] = [_STEM_LAYERS[layers[2]]]
    if "value" in layers:
        layers[-1] = layers[-1].lower()
    if is_batch_norm:
        leaf = _BATCH_NORM_LEAVES[leaf]
    elif leaf == "weight":
        leaf = "kernel"
    return "/".join(["moganet", *layers, leaf])


def keras_value(canonical: str, array: Array) -> Array:
    """Return a tensor of the timm-style release with Keras' axes."""
    if canonical == "head.weight":
        return array.T
    if re.search(r"(DW_conv\d|dwconv)\.weight$", canonical):  # (channels, 1, h, w) to (h, w, channels, 1)
        return np.moveaxis(array, (2, 3), (0, 1))
    if array.ndim == 4 and canonical.endswith("weight"):  # (out, in, h, w) to (h, w, in, out)
        return np.einsum("oihw->hwio", array)
    return array.ravel() if array.ndim == 4 else array


def keras_state(variant: str, *, num_classes: int | None = 1000) -> dict[str, Array]:
    """Return the recipe's weights under the names of the ``keras`` layout, without step counters."""
    state = recipe_state(variant, num_classes=num_classes)
    norms = {name.rpartition(".")[0] for name in state if name.endswith(".running_var")}
    return {
        keras_name(name, is_batch_norm=name.rpartition(".")[0] in norms): keras_value(name, array)
        for name, array in state.items()
        if not name.endswith(".num_batches_tracked")
    }


def loaded(
    variant: str, *, attn_force_fp32: bool = False, num_classes: int | None = 1000, **settings: Any
) -> keras_model.MogaNetModel:
    """Return a new model that holds the recipe's weights."""
    model = keras_model.build(variant, attn_force_fp32=attn_force_fp32, num_classes=num_classes, **settings)
    load_state(model, keras_state(variant, num_classes=num_classes))
    return model


@lru_cache(maxsize=2)
def shared_model(attn_force_fp32: bool = False) -> keras_model.MogaNetModel:
    """Return moganet-xt with the recipe's weights, made once: leave it as it is."""
    return loaded("moganet-xt", attn_force_fp32=attn_force_fp32)


def departure(found: Any, recorded: Array) -> float:
    """Return the largest difference, in parts of the recorded absolute maximum."""
    return float(np.abs(np.asarray(found) - recorded).max() / np.abs(recorded).max())
