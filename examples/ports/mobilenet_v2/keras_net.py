"""MobileNetV2 of keras.applications; ``python keras_net.py FILE.weights.h5`` writes random weights."""

import sys

import keras
import numpy as np


def build() -> keras.Model:
    """The model without its softmax."""
    return keras.applications.MobileNetV2(
        (64, 64, 3), alpha=0.35, weights=None, classes=10, classifier_activation=None
    )


def random(variable: keras.Variable, generator: np.random.Generator) -> np.ndarray:
    """Values of a size that keeps activations in range: scales and variances around 1, all else around 0."""
    if len(variable.shape) == 1:
        around = 1.0 if variable.name in ("gamma", "moving_variance") else 0.0
        return around + generator.normal(0, 0.1, variable.shape)
    return generator.normal(0, np.prod(variable.shape[:-1]) ** -0.5, variable.shape)


if __name__ == "__main__":
    model, seeded = build(), np.random.default_rng(0)
    model.set_weights([random(variable, seeded) for variable in model.weights])
    model.save_weights(sys.argv[1])
