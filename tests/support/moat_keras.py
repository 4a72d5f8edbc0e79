"""The Keras MOAT with the recipe's weights, and how far it is from what was recorded."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ckptkit.families.moat import keras_model
from tests.support.moat_reference import Array, GoldenCase, recipe_weights

GOLDEN_TOLERANCE = 5e-6
"""Of the logits' absolute maximum. 2e-5 is asked for; at a quarter of it every known mistake shows."""


def loaded(variant: str, *, pos_emb: bool = True, **settings: Any) -> keras_model.MoatModel:
    """Return a new model that holds the recipe's weights."""
    model = keras_model.build(variant, pos_emb=pos_emb, **settings)
    weights = dict(recipe_weights(variant, pos_emb))
    keras_model.load_published(model, weights, weights.__getitem__)
    return model


@lru_cache(maxsize=2)
def shared_model(pos_emb: bool = True) -> keras_model.MoatModel:
    """Return tiny-moat0 with the recipe's weights, made once: leave it as it is."""
    return loaded("tiny-moat0", pos_emb=pos_emb)


def keras_state(variant: str, *, pos_emb: bool = True) -> dict[str, Array]:
    """Return the recipe's weights under the names of the ``keras`` layout."""
    return {n.replace("depthwise_kernel", "kernel"): w for n, w in recipe_weights(variant, pos_emb).items()}


def departure(found: Any, recorded: Array) -> float:
    """Return the largest difference, in parts of the recorded absolute maximum."""
    return float(np.abs(np.asarray(found) - recorded).max() / np.abs(recorded).max())


def logits_departure(model: keras_model.MoatModel, case: GoldenCase) -> float:
    """Return how far a model's logits are from a recorded case's."""
    return departure(model(case.input), case.logits)
