"""A T5-style encoder in TensorFlow, its variables named as in T5's checkpoints.

``python tensorflow_net.py PREFIX`` writes a checkpoint of random weights.
"""

import sys
from typing import Any

import numpy as np
import tensorflow as tf
from sizes import BLOCKS, BUCKETS, HEADS, INNER, SIZE, VOCABULARY, WIDTH, buckets


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the encoder's variables, as T5's checkpoints have them."""
    found: dict[str, tuple[int, ...]] = {"shared/embedding": (VOCABULARY, WIDTH)}
    for block in range(BLOCKS):
        first, second = (f"encoder/block_{block:03d}/layer_{layer:03d}" for layer in range(2))
        found |= {f"{first}/SelfAttention/{part}": (WIDTH, HEADS * SIZE) for part in "qkv"}
        found |= {f"{first}/SelfAttention/o": (HEADS * SIZE, WIDTH), f"{first}/layer_norm/scale": (WIDTH,)}
        if block == 0:
            found[f"{first}/SelfAttention/relative_attention_bias"] = (HEADS, BUCKETS)
        found |= {
            f"{second}/DenseReluDense/wi/kernel": (WIDTH, INNER),
            f"{second}/layer_norm/scale": (WIDTH,),
        }
        found |= {f"{second}/DenseReluDense/wo/kernel": (INNER, WIDTH)}
    return found | {"encoder/final_layer_norm/scale": (WIDTH,)}


class Encoder(tf.Module):
    """Token ids in, every block's output out."""

    def __init__(self) -> None:
        super().__init__()
        self.named = {name: tf.Variable(tf.zeros(shape), name=name) for name, shape in shapes().items()}

    def norm(self, x: Any, name: str) -> Any:
        """Divide by the root of the mean square."""
        mean = tf.reduce_mean(tf.square(x), -1, keepdims=True)
        return x * tf.math.rsqrt(mean + 1e-6) * self.named[f"{name}/scale"]

    def attention(self, x: Any, name: str, bias: Any) -> Any:
        """Self-attention; T5 does not scale it."""
        named, size = self.named, x.shape[:2]
        q, k, v = (tf.reshape(x @ named[f"{name}/{part}"], (*size, HEADS, SIZE)) for part in "qkv")
        weights = tf.nn.softmax(tf.einsum("bqhd,bkhd->bhqk", q, k) + bias)
        mixed = tf.reshape(tf.einsum("bhqk,bkhd->bqhd", weights, v), (*size, HEADS * SIZE))
        return mixed @ named[f"{name}/o"]

    def __call__(self, ids: Any) -> dict[str, Any]:
        """Run it."""
        named, outputs = self.named, {}
        x = tf.gather(named["shared/embedding"], ids)
        table = named["encoder/block_000/layer_000/SelfAttention/relative_attention_bias"]
        bias = tf.gather(table, buckets(ids.shape[1]), axis=1)
        for block in range(BLOCKS):
            first, second = (f"encoder/block_{block:03d}/layer_{layer:03d}" for layer in range(2))
            x = x + self.attention(self.norm(x, f"{first}/layer_norm"), f"{first}/SelfAttention", bias)
            dense = f"{second}/DenseReluDense"
            y = tf.nn.relu(self.norm(x, f"{second}/layer_norm") @ named[f"{dense}/wi/kernel"])
            x = x + y @ named[f"{dense}/wo/kernel"]
            outputs[f"block_{block}"] = x
        return outputs | {"encoded": self.norm(x, "encoder/final_layer_norm")}


if __name__ == "__main__":
    seeded = np.random.default_rng(0)
    tensors = {
        name: (seeded.normal(0, 0.2, shape) + name.endswith("scale")).astype("float32")
        for name, shape in shapes().items()
    }
    tf.raw_ops.SaveV2(
        prefix=sys.argv[1],
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=list(tensors.values()),
    )
