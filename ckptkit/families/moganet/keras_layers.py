"""The layers of MogaNet in Keras 3 with the TensorFlow backend, channels-last.

What decides the numbers (activations, padding, the gate, the means) is one small function each, looked up
when a layer is called, so that a test can put a wrong one in its place and see parity fail. Layers are called
as the paper (arXiv:2211.03295) calls them, variables as in the ``keras`` layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ckptkit.families.keras_backend import keras, tf
from ckptkit.families.keras_models import build_chain
from ckptkit.families.moganet.config import BATCH_NORM_EPSILON, value_split

Tensor = Any


def gelu(x: Tensor) -> Tensor:
    """Exact GELU, by the error function."""
    return keras.ops.gelu(x, approximate=False)


def silu(x: Tensor) -> Tensor:
    """``x`` times its sigmoid."""
    return keras.ops.silu(x)


def activate_branch(x: Tensor, *, twice: bool) -> Tensor:
    """Activate the gate or the value: once, or ``twice`` as the published code does in its float32 mode."""
    x = silu(x)
    return silu(x) if twice else x


def strided_conv(layer: keras.layers.Layer, x: Tensor) -> Tensor:
    """Apply a 3×3 convolution of stride 2 to a map with one zero on each of its four sides.

    TensorFlow's own SAME padding has no zero before an even side.
    """
    return layer(tf.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))


def spatial_mean(x: Tensor) -> Tensor:
    """Mean over the map: (N, H, W, C) to (N, 1, 1, C)."""
    return keras.ops.mean(x, axis=(1, 2), keepdims=True)


def conv(name: str, filters: int, kernel: int = 1, strides: int = 1) -> Any:
    """Make a convolution without padding of its own, its kernel zero until it is loaded."""
    return keras.layers.Conv2D(
        filters,
        kernel,
        strides=strides,
        padding="valid",
        data_format="channels_last",
        kernel_initializer="zeros",
        name=name,
        dtype="float32",
    )


def depthwise_conv(name: str, kernel: int, dilation: int = 1) -> Any:
    """Make a depthwise convolution that keeps the map's size, its kernel zero until it is loaded.

    At stride 1 and with an odd kernel SAME padding is symmetric: dilation · (kernel − 1) / 2 on each side.
    """
    return keras.layers.DepthwiseConv2D(
        kernel,
        padding="same",
        dilation_rate=dilation,
        data_format="channels_last",
        depthwise_initializer="zeros",
        name=name,
        dtype="float32",
    )


def batch_norm(name: str) -> Any:
    """Make a batch normalization over channels."""
    return keras.layers.BatchNormalization(axis=-1, epsilon=BATCH_NORM_EPSILON, name=name, dtype="float32")


class StemEmbed(keras.layers.Layer):
    """Patch embedding of stage 1: two 3×3 convolutions of stride 2, GELU between them alone."""

    def __init__(self, width: int, name: str) -> None:
        super().__init__(name=name, dtype="float32")
        self.conv_0 = conv("conv_0", width // 2, 3, 2)
        self.norm_0 = batch_norm("norm_0")
        self.conv_1 = conv("conv_1", width, 3, 2)
        self.norm_1 = batch_norm("norm_1")

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the variables for (N, H, W, 3)."""
        build_chain((self.conv_0, self.norm_0, self.conv_1, self.norm_1), input_shape[-1] or 3)

    def call(self, x: Tensor) -> Tensor:
        """(N, H, W, 3) to (N, ⌈H/4⌉, ⌈W/4⌉, width)."""
        x = gelu(self.norm_0(strided_conv(self.conv_0, x)))
        return self.norm_1(strided_conv(self.conv_1, x))


class PatchEmbed(keras.layers.Layer):
    """Patch embedding of the stages after: a 3×3 convolution of stride 2, normalized, not activated."""

    def __init__(self, channels: int, width: int, name: str) -> None:
        super().__init__(name=name, dtype="float32")
        self.channels = channels
        self.projection = conv("projection", width, 3, 2)
        self.norm = batch_norm("norm")

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the variables for (N, H, W, channels)."""
        build_chain((self.projection, self.norm), self.channels)

    def call(self, x: Tensor) -> Tensor:
        """(N, H, W, channels) to (N, ⌈H/2⌉, ⌈W/2⌉, width)."""
        return self.norm(strided_conv(self.projection, x))


class ElementScale(keras.layers.Layer):
    """A factor for each channel."""

    def __init__(self, width: int, name: str = "sigma") -> None:
        super().__init__(name=name, dtype="float32")
        self.width = width

    def build(self, input_shape: Sequence[int | None] | None = None) -> None:
        """Create the factors; their number needs no input."""
        self.scale = self.add_weight(name="scale", shape=(self.width,), initializer="zeros")

    def call(self, x: Tensor) -> Tensor:
        """(N, H, W, width) to the same shape."""
        return x * self.scale


class MultiOrderDWConv(keras.layers.Layer):
    """Depthwise convolutions of three reaches, mixed by a 1×1 convolution.

    The first sees all channels; the last three eighths and the last half of what it gives go through wider,
    dilated ones, and the first eighth stays as it is.
    """

    def __init__(self, width: int, name: str = "value") -> None:
        super().__init__(name=name, dtype="float32")
        self.width = width
        self.orders = value_split(width)
        self.dw_conv0 = depthwise_conv("dw_conv0", 5)
        self.dw_conv1 = depthwise_conv("dw_conv1", 5, dilation=2)
        self.dw_conv2 = depthwise_conv("dw_conv2", 7, dilation=3)
        self.pw_conv = conv("pw_conv", width)

    def build(self, input_shape: Sequence[int | None] | None = None) -> None:
        """Create the variables; their shapes need no input."""
        _, middle, high = self.orders
        build_chain((self.dw_conv0, self.pw_conv), self.width)
        build_chain((self.dw_conv1,), middle)
        build_chain((self.dw_conv2,), high)

    def call(self, x: Tensor) -> Tensor:
        """(N, H, W, width) to the same shape."""
        low, middle, high = tf.split(self.dw_conv0(x), self.orders, axis=-1)
        return self.pw_conv(tf.concat((low, self.dw_conv1(middle), self.dw_conv2(high)), axis=-1))


class MultiOrderGatedAggregation(keras.layers.Layer):
    """Spatial aggregation: what is not the map's mean is scaled, then a gate chooses from the value."""

    def __init__(self, width: int, name: str = "attn", *, attn_force_fp32: bool) -> None:
        super().__init__(name=name, dtype="float32")
        self.width, self.attn_force_fp32 = width, attn_force_fp32
        self.proj_1 = conv("proj_1", width)
        self.sigma = ElementScale(width)
        self.gate = conv("gate", width)
        self.value = MultiOrderDWConv(width)
        self.proj_2 = conv("proj_2", width)

    def build(self, input_shape: Sequence[int | None] | None = None) -> None:
        """Create the variables; their shapes need no input."""
        build_chain((self.proj_1, self.sigma, self.gate, self.value, self.proj_2), self.width)

    def call(self, h: Tensor) -> Tensor:
        """(N, H, W, width) to the same shape; ``h`` is normalized already, and added as such."""
        p = self.proj_1(h)
        p = silu(p + self.sigma(p - spatial_mean(p)))
        gate, value = (
            activate_branch(branch(p), twice=self.attn_force_fp32) for branch in (self.gate, self.value)
        )
        return self.proj_2(gate * value) + h


class ChannelAggregation(keras.layers.Layer):
    """Channel aggregation, the feed-forward part: what one channel cannot say for all is scaled."""

    def __init__(self, width: int, hidden: int, name: str = "mlp") -> None:
        super().__init__(name=name, dtype="float32")
        self.width = width
        self.fc1 = conv("fc1", hidden)
        self.dwconv = depthwise_conv("dwconv", 3)
        self.decompose = conv("decompose", 1)
        self.sigma = ElementScale(hidden)
        self.fc2 = conv("fc2", width)

    def build(self, input_shape: Sequence[int | None] | None = None) -> None:
        """Create the variables; their shapes need no input."""
        build_chain((self.fc1, self.dwconv, self.sigma, self.fc2), self.width)
        build_chain((self.decompose,), self.fc1.filters)

    def call(self, x: Tensor) -> Tensor:
        """(N, H, W, width) to the same shape."""
        y = gelu(self.dwconv(self.fc1(x)))
        return self.fc2(y + self.sigma(y - gelu(self.decompose(y))))


class MogaBlock(keras.layers.Layer):
    """Spatial, then channel aggregation, each normalized before and scaled after."""

    def __init__(self, width: int, hidden: int, name: str, *, attn_force_fp32: bool) -> None:
        super().__init__(name=name, dtype="float32")
        self.width = width
        self.norm1 = batch_norm("norm1")
        self.attn = MultiOrderGatedAggregation(width, attn_force_fp32=attn_force_fp32)
        self.norm2 = batch_norm("norm2")
        self.mlp = ChannelAggregation(width, hidden)

    def build(self, input_shape: Sequence[int | None] | None = None) -> None:
        """Create the variables; their shapes need no input."""
        self.layer_scale_1 = self.add_weight(name="layer_scale_1", shape=(self.width,), initializer="zeros")
        self.layer_scale_2 = self.add_weight(name="layer_scale_2", shape=(self.width,), initializer="zeros")
        build_chain((self.norm1, self.attn, self.norm2, self.mlp), self.width)

    def call(self, x: Tensor) -> Tensor:
        """(N, H, W, width) to the same shape."""
        x = x + self.layer_scale_1 * self.attn(self.norm1(x))
        return x + self.layer_scale_2 * self.mlp(self.norm2(x))
