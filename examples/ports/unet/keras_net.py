"""The UNet's port to Keras; BatchNorm's epsilon is PyTorch's."""

from typing import Any

import keras
from keras import layers


def double(x: Any, outputs: int, name: str) -> Any:
    """Two convolutions, each with its norm and ReLU."""
    for place in (1, 2):
        x = layers.Conv2D(outputs, 3, padding="same", name=f"{name}_conv{place}")(x)
        x = layers.BatchNormalization(epsilon=1e-5, name=f"{name}_bn{place}")(x)
        x = layers.ReLU(name=f"{name}_relu{place}")(x)
    return x


def build() -> keras.Model:
    """The whole model."""
    images = keras.Input((32, 32, 3))
    one = double(images, 8, "down1")
    two = double(layers.MaxPool2D(name="pool1")(one), 16, "down2")
    x = double(layers.MaxPool2D(name="pool2")(two), 32, "middle")
    x = layers.Conv2DTranspose(16, 2, 2, name="up2")(x)
    x = double(layers.Concatenate(name="join2")([two, x]), 16, "merge2")
    x = layers.Conv2DTranspose(8, 2, 2, name="up1")(x)
    x = double(layers.Concatenate(name="join1")([one, x]), 8, "merge1")
    return keras.Model(images, layers.Conv2D(2, 1, name="head")(x))
