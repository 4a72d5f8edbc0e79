"""One small model, written twice: what `ckptkit parity --case case.yaml` compares.

`python nets.py` writes random weights for it.
"""

from pathlib import Path


def build_torch():
    """A convolution, BatchNorm, GELU, attention over the places of the map, a classifier."""
    import torch.nn.functional as F
    from torch import nn

    class Attention(nn.Module):
        def __init__(self, channels, heads):
            super().__init__()
            self.heads = heads
            self.query = nn.Linear(channels, channels)
            self.key = nn.Linear(channels, channels)
            self.value = nn.Linear(channels, channels)
            self.out = nn.Linear(channels, channels)

        def forward(self, x):
            q, k, v = (
                layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for layer in (self.query, self.key, self.value)
            )
            return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 3, stride=2)
            self.norm = nn.BatchNorm2d(16, eps=1e-3)  # Keras' default, not PyTorch's
            self.mix = nn.Conv2d(16, 16, 3, padding=1)
            self.attention = Attention(16, heads=2)
            self.head = nn.Linear(16, 10)

        def forward(self, images):
            x = F.gelu(self.norm(self.stem(F.pad(images, (0, 1, 0, 1)))))  # SAME: more after than before
            tokens = self.mix(x).flatten(2).transpose(1, 2)
            return self.head((tokens + self.attention(tokens)).mean(1))

    return Net()


def build_keras():
    """The same in Keras."""
    import keras
    from keras import layers, ops

    class Attention(layers.Layer):
        def __init__(self, channels, heads, name):
            super().__init__(name=name)
            self.heads = heads
            self.query = layers.Dense(channels, name="query")
            self.key = layers.Dense(channels, name="key")
            self.value = layers.Dense(channels, name="value")
            self.out = layers.Dense(channels, name="out")

        def call(self, x):
            q, k, v = (
                ops.reshape(layer(x), (-1, x.shape[1], self.heads, x.shape[2] // self.heads))
                for layer in (self.query, self.key, self.value)
            )
            weights = ops.softmax(ops.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5)
            return self.out(ops.reshape(ops.einsum("bhqk,bkhd->bqhd", weights, v), (-1, *x.shape[1:])))

    images = keras.Input((16, 16, 3))
    x = layers.Conv2D(16, 3, strides=2, padding="same", name="stem")(images)
    x = layers.BatchNormalization(name="norm")(x)
    x = ops.gelu(x, approximate=False)
    x = layers.Conv2D(16, 3, padding="same", name="mix")(x)
    x = layers.Reshape((64, 16), name="tokens")(x)
    x = layers.Add()([x, Attention(16, 2, "attention")(x)])
    return keras.Model(images, layers.Dense(10, name="head")(layers.GlobalAveragePooling1D()(x)))


if __name__ == "__main__":
    import torch

    torch.manual_seed(1)
    net = build_torch()
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.01, 0.1)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.3)
    torch.save(net.state_dict(), Path(__file__).with_name("net.pth"))
