"""What the Keras models of all families are built with; channels-last, needs no framework to be imported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ckptkit.base.errors import UsageError


def build_chain(layers: Sequence[Any], channels: int) -> None:
    """Build layers that follow each other; only their channels matter, so no map is computed."""
    for layer in layers:
        layer.build((None, None, None, channels))
        channels = getattr(layer, "filters", channels)


def track(model: Any, layers: Iterable[Any]) -> None:
    """Tell TensorFlow of layers in a model's lists: ``tf.train.Checkpoint`` looks at attributes alone."""
    for layer in layers:
        model._track_trackable(layer, name=layer.name)


def require_images(inputs: Any) -> None:
    """Check that something is a batch of images, where an error can still say so in one line."""
    shape = tuple(getattr(inputs, "shape", ()))
    if len(shape) != 4 or shape[-1] != 3 or 0 in shape[1:3]:
        raise UsageError(
            f"input of shape {list(shape)}", hint="give images as (N, height, width, 3), channels last"
        )
