"""MogaNet in Keras 3 with the TensorFlow backend, written from arXiv:2211.03295 and the measured facts.

Channels-last, float32. Layers are called as the paper calls them, variables as in the ``keras`` layout.
Stochastic depth and dropout, which act in training only, are not part of the model. What decides the numbers
(activations, padding, the gate, the means) is one small function each, looked up when a layer is called, so
that a test can put a wrong one in its place and see parity fail.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from ckptkit.families.keras_backend import (
    StagedModel,
    build_chain,
    built,
    conv,
    depthwise_conv,
    gelu,
    keras,
    tf,
    track,
)
from ckptkit.families.moganet import MOGANET
from ckptkit.families.moganet.config import BATCH_NORM_EPSILON, moganet_config, value_split

STAGES = ("stage1", "stage2", "stage3", "stage4")
"""The four feature maps, normalized, at strides 4, 8, 16 and 32."""

Tensor = Any


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


def batch_norm(name: str) -> Any:
    """Make a batch normalization over channels."""
    return keras.layers.BatchNormalization(axis=-1, epsilon=BATCH_NORM_EPSILON, name=name, dtype="float32")


class StemEmbed(keras.layers.Layer):
    """Patch embedding of stage 1: two 3×3 convolutions of stride 2, GELU between them alone."""

    def __init__(self, width: int, name: str) -> None:
        super().__init__(name=name, dtype="float32")
        self.conv_0 = conv("conv_0", width // 2, 3, 2, padding="valid")
        self.norm_0 = batch_norm("norm_0")
        self.conv_1 = conv("conv_1", width, 3, 2, padding="valid")
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
        self.projection = conv("projection", width, 3, 2, padding="valid")
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


@keras.saving.register_keras_serializable(package="ckptkit")
class MogaNetModel(StagedModel):
    """One variant.

    Calling it with images (N, H, W, 3) gives the logits (N, classes), or the list of the four feature maps
    (N, H/4, W/4, C1) … (N, H/32, W/32, C4), rounded up, when it is headless or ``features_only``.
    """

    def __init__(
        self,
        variant: str,
        *,
        attn_force_fp32: bool,
        resolution: int | tuple[int, int] | None = None,
        num_classes: int | None = 1000,
        features_only: bool = False,
    ) -> None:
        config = moganet_config(variant)
        MOGANET.check_setting("attn_force_fp32", attn_force_fp32)
        super().__init__(
            "moganet",
            variant,
            num_features=config.widths[-1],
            usual=config.resolution,
            resolution=resolution,
            num_classes=num_classes,
            features_only=features_only,
        )
        self.attn_force_fp32 = attn_force_fp32

        self.patch_embeds: list[Any] = [StemEmbed(config.widths[0], "patch_embed1")]
        for stage, (channels, width) in enumerate(zip(config.widths, config.widths[1:], strict=False), 2):
            self.patch_embeds.append(PatchEmbed(channels, width, f"patch_embed{stage}"))
        # One flat list: Keras saves the layers of a list, and does not look for lists in it.
        self.blocks = [
            MogaBlock(width, ratio * width, f"blocks{stage}_{block}", attn_force_fp32=attn_force_fp32)
            for stage, (width, depth, ratio) in enumerate(
                zip(config.widths, config.depths, config.expansions, strict=True), 1
            )
            for block in range(depth)
        ]
        self.norms = [batch_norm(f"norm{stage}") for stage in range(1, len(config.widths) + 1)]
        track(self, (*self.patch_embeds, *self.blocks, *self.norms))
        self.add_head()

    def add_head(self) -> None:
        """Make the classifier."""
        self.head = None
        if self.num_classes is not None:
            self.head = keras.layers.Dense(
                self.num_classes, kernel_initializer="zeros", name="head", dtype="float32"
            )

    def build_head(self) -> None:
        """Create its variables."""
        if self.head is not None:
            self.head.build((None, self.num_features))

    def _stages(self) -> Iterator[tuple[Any, Sequence[MogaBlock], Any]]:
        """Patch embedding, blocks and last norm of each stage."""
        depths = moganet_config(self.variant).depths
        for depth, end, embed, norm in zip(
            depths, accumulate(depths), self.patch_embeds, self.norms, strict=True
        ):
            yield embed, self.blocks[end - depth : end], norm

    def build(self, input_shape: Any) -> None:
        """Create every variable from the channels alone, without computing a map."""
        channels = 3
        for width, (embed, blocks, norm) in zip(
            moganet_config(self.variant).widths, self._stages(), strict=True
        ):
            build_chain((embed,), channels)
            build_chain((*blocks, norm), width)
            channels = width
        self.build_head()

    def forward_stages(self, inputs: Any, *, head: bool = True) -> dict[str, Tensor]:
        """Run the model and keep what each stage gives."""
        self.check_input(inputs)
        x = keras.ops.convert_to_tensor(inputs, dtype="float32")
        outputs = {}
        for name, (embed, blocks, norm) in zip(STAGES, self._stages(), strict=True):
            x = embed(x)
            for block in blocks:
                x = block(x)
            outputs[name] = x = norm(x)
        if head and self.head is not None:
            pooled = keras.ops.squeeze(spatial_mean(x), axis=(1, 2))
            outputs["logits"] = self.head(pooled)
        return outputs

    def get_config(self) -> dict[str, Any]:
        """Return the parameters, for ``model.save``."""
        return {**super().get_config(), "attn_force_fp32": self.attn_force_fp32}


def build(variant: str, *, attn_force_fp32: bool, **options: Any) -> MogaNetModel:
    """Make a variant with all its variables, zero until they are loaded; options as for `MogaNetModel`."""
    model: MogaNetModel = built(MogaNetModel(variant, attn_force_fp32=attn_force_fp32, **options))
    return model
