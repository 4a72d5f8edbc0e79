"""An MLP-Mixer in numpy: names and axes of google-research/vision_transformer's .npz files.

No framework is needed here, nor ckptkit: ``recorder.py`` beside it, written by ``ckptkit record --emit
recorder.py``, keeps what is computed. ``python numpy_net.py FOLDER`` writes mixer.npz, random weights, and
outputs.npz.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from sizes import BLOCKS, CHANNELS, CLASSES, PATCH, SEQUENCE, SIDE, TOKENS, WIDTH


def random_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights as the .npz file names them."""
    shapes = {"stem/kernel": (PATCH, PATCH, 3, WIDTH), "stem/bias": (WIDTH,)}
    for block in range(BLOCKS):
        for norm in range(2):
            shapes |= {f"MixerBlock_{block}/LayerNorm_{norm}/{leaf}": (WIDTH,) for leaf in ("scale", "bias")}
        for mixing, outer, inner in (("token", SEQUENCE, TOKENS), ("channel", WIDTH, CHANNELS)):
            for dense, (rows, columns) in enumerate([(outer, inner), (inner, outer)]):
                name = f"MixerBlock_{block}/{mixing}_mixing/Dense_{dense}"
                shapes |= {f"{name}/kernel": (rows, columns), f"{name}/bias": (columns,)}
    shapes |= {f"pre_head_layer_norm/{leaf}": (WIDTH,) for leaf in ("scale", "bias")}
    shapes |= {"head/kernel": (WIDTH, CLASSES), "head/bias": (CLASSES,)}
    random = np.random.default_rng(seed)
    return {
        name: (random.normal(0, 0.2, shape) + name.endswith("scale")).astype("float32")
        for name, shape in shapes.items()
    }


def run_numpy(weights: dict[str, np.ndarray], images: np.ndarray, record: Any) -> np.ndarray:
    """Run the model on NHWC images; each stage's output goes to ``record``, the logits are returned."""

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * weights[f"{name}/scale"] + weights[f"{name}/bias"]

    def mlp(x: np.ndarray, name: str) -> np.ndarray:
        x = dense(x, f"{name}/Dense_0")
        x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        return dense(x, f"{name}/Dense_1")

    count, side = len(images), SIDE // PATCH
    patches = images.reshape(count, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    kernel = weights["stem/kernel"].reshape(-1, WIDTH)
    x = patches.reshape(count, SEQUENCE, -1) @ kernel + weights["stem/bias"]
    record("stem", x)
    for block in range(BLOCKS):
        name = f"MixerBlock_{block}"
        x = x + mlp(norm(x, f"{name}/LayerNorm_0").swapaxes(1, 2), f"{name}/token_mixing").swapaxes(1, 2)
        x = x + mlp(norm(x, f"{name}/LayerNorm_1"), f"{name}/channel_mixing")
        record(name, x)
    return dense(norm(x, "pre_head_layer_norm").mean(1), "head")


if __name__ == "__main__":
    import recorder

    folder, weights = Path(sys.argv[1]), random_weights()
    np.savez(folder / "mixer.npz", **weights)
    images = np.random.default_rng(7).normal(size=(2, SIDE, SIDE, 3)).astype("float32")
    recording = recorder.Recorder(layout="NHWC")
    recording.input("images", images)
    recording.output(run_numpy(weights, images, recording.record))
    recording.save(str(folder / "outputs.npz"))
