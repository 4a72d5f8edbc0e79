"""What the Keras models of all families have in common; channels-last, float32."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ckptkit.base.errors import UsageError
from ckptkit.base.parse import parse_num_classes, parse_size
from ckptkit.families.keras_backend import keras


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


class StagedModel(keras.Model):
    """A model whose layers give the outputs of its stages one after the other, the logits last."""

    def __init__(
        self,
        name: str,
        variant: str,
        *,
        usual: int,
        resolution: int | tuple[int, int] | None,
        num_classes: int | None,
        features_only: bool,
    ) -> None:
        classes = parse_num_classes(num_classes)
        size = parse_size(usual if resolution is None else resolution, "resolution")
        super().__init__(name=name, dtype="float32")
        self.variant = variant
        self.num_classes = classes
        self.features_only = features_only
        self.resolution = size
        self.resolution_is_given = resolution is not None

    def check_input(self, inputs: Any) -> None:
        """Refuse an input of a shape that the model cannot take, where an error can still be one line."""
        require_images(inputs)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Check the input's shape, then run the model."""
        self.check_input(inputs)
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs: Any) -> Any:
        """Logits (N, classes), or the list of the stages' maps."""
        outputs = self.forward_stages(inputs, head=not self.features_only)
        return outputs["logits"] if "logits" in outputs else list(outputs.values())

    def forward_stages(self, inputs: Any, *, head: bool = True) -> dict[str, Any]:
        """Outputs by name, in order, (N, h, w, C); then ``logits`` (N, classes), where there is a head."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Return the parameters, for ``model.save``."""
        return {
            "variant": self.variant,
            "resolution": list(self.resolution) if self.resolution_is_given else None,
            "num_classes": self.num_classes,
            "features_only": self.features_only,
        }


def built(model: Any) -> Any:
    """A model with all its variables, zero until they are loaded."""
    model.build((None, *model.resolution, 3))
    return model
