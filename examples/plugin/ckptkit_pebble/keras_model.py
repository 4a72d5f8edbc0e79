"""Pebble in Keras, channels last. Variables have the names of the ``keras`` layout."""

from __future__ import annotations

from ckptkit.families.keras_backend import keras
from ckptkit_pebble.family import VARIANTS


@keras.saving.register_keras_serializable(package="ckptkit_pebble")
class Pebble(keras.Model):
    """Images (N, H, W, 3) to logits (N, classes), or to the list of the stages' maps."""

    def __init__(self, variant, negative_slope, num_classes, features_only):
        super().__init__(name="pebble")
        width, depth = VARIANTS[variant]
        self.variant = variant
        self.negative_slope = negative_slope
        self.num_classes = num_classes
        self.features_only = features_only or num_classes is None
        self.stem = keras.layers.Conv2D(width, 4, strides=4, name="stem")
        self.blocks = [keras.layers.Conv2D(width, 1, name=f"block_{number}") for number in range(depth)]
        self.head = None if num_classes is None else keras.layers.Dense(num_classes, name="head")

    def build(self, input_shape):
        """Create every variable."""
        self.stem.build((None, None, None, 3))
        for block in self.blocks:
            block.build((None, None, None, self.stem.filters))
        if self.head is not None:
            self.head.build((None, self.stem.filters))

    def forward_stages(self, images, head=True):
        """Outputs by name, in order; ckptkit compares them one by one."""
        outputs = {"stage1": self.stem(keras.ops.convert_to_tensor(images, dtype="float32"))}
        for number, block in enumerate(self.blocks, start=2):
            before = outputs[f"stage{number - 1}"]
            outputs[f"stage{number}"] = before + keras.ops.leaky_relu(block(before), self.negative_slope)
        if head and self.head is not None:
            outputs["logits"] = self.head(keras.ops.mean(list(outputs.values())[-1], axis=(1, 2)))
        return outputs

    def call(self, images):
        """Logits, or the maps."""
        outputs = self.forward_stages(images, head=not self.features_only)
        return outputs["logits"] if "logits" in outputs else list(outputs.values())

    def get_config(self):
        """The constructor's arguments: from them Keras builds the model of a ``.keras`` file."""
        names = ("variant", "negative_slope", "num_classes", "features_only")
        return {name: getattr(self, name) for name in names}


def build(variant, *, negative_slope=0.0, resolution=None, num_classes=1000, features_only=False):
    """Build a variant; the settings of the family are arguments."""
    model = Pebble(variant, negative_slope, num_classes or None, features_only)
    model.build((None, 64, 64, 3))
    return model
