"""MOAT in Keras 3 with the TensorFlow backend, written from arXiv:2210.01820 and the measured facts.

Channels-last, float32. Layers and variables are called as in deeplab2's checkpoints (the ``keras`` layout).
Stochastic depth, which acts in training only, is not part of the model. What decides the numbers (GELU,
padding, pooling, the position bias) is one small function each, looked up when a layer is called, so that a
test can put a wrong one in its place and see parity fail.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ckptkit.base.parse import Size, parse_size
from ckptkit.base.tensors import Array
from ckptkit.families.filling import load_state, refuse, tensors_of
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
from ckptkit.families.moat import MOAT
from ckptkit.families.moat.config import (
    BATCH_NORM_EPSILON,
    EXPANSION,
    FIRST_ATTENTION_STAGE,
    HEAD_SIZE,
    LAYER_NORM_EPSILON,
    POSITION_TABLE_SIZE,
    PUBLISHED_TABLE_SIZES,
    SE_RATIO,
    moat_config,
)
from ckptkit.families.moat.windows import WindowSize, parse_window_size, require_whole_windows

STAGES = ("stage1", "stage2", "stage3", "stage4", "stage5")
"""The five feature maps: the stem's, then one for each stage of blocks, at strides 2, 4, 8, 16 and 32."""

Tensor = Any
Window = tuple[int, int] | None
"""Height and width of an attention window; None is the whole map."""


def spatial_conv(layer: keras.layers.Layer, x: Tensor) -> Tensor:
    """Apply a convolution that looks beyond a pixel; its TensorFlow SAME padding is the layer's own."""
    return layer(x)


def average_pool(x: Tensor, size: int) -> Tensor:
    """Halve a map by averages over ``size`` × ``size`` real pixels; SAME padding is not counted."""
    return keras.ops.average_pool(x, size, strides=2, padding="same", data_format="channels_last")


def resize_table(table: Tensor, rows: int | Tensor, columns: int | Tensor) -> Tensor:
    """Resize a position table [heads, h, w] bilinearly: half-pixel centres, edges clamped, no antialias."""
    image = tf.transpose(table, (1, 2, 0))[tf.newaxis]
    resized = tf.image.resize(image, (rows, columns), method="bilinear", antialias=False)
    return tf.transpose(resized[0], (2, 0, 1))


def position_bias(table: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
    """Attention bias [heads, h·w, h·w] of every pair of places in a window, from the table of offsets."""
    offsets = resize_table(table, 2 * height - 1, 2 * width - 1)
    by_row = tf.gather(offsets, _key_minus_query(height), axis=1)
    by_row_and_column = tf.gather(by_row, _key_minus_query(width), axis=3)
    pairs = tf.transpose(by_row_and_column, (0, 1, 3, 2, 4))
    return tf.reshape(pairs, (-1, height * width, height * width))


def _key_minus_query(length: int | Tensor) -> Tensor:
    """Index into 2·length − 1 offsets for each query (row) and key (column) along one axis."""
    places = tf.range(length)
    return places[tf.newaxis, :] - places[:, tf.newaxis] + length - 1


def _map_size(x: Tensor) -> tuple[int | Tensor, int | Tensor]:
    """Height and width of a map: numbers where they are known, else tensors of the graph."""
    dynamic = tf.shape(x)
    return x.shape[1] or dynamic[1], x.shape[2] or dynamic[2]


def batch_norm(name: str) -> Any:
    """Make a batch normalization over channels."""
    return keras.layers.BatchNormalization(axis=-1, epsilon=BATCH_NORM_EPSILON, name=name, dtype="float32")


def layer_norm(name: str, epsilon: float) -> Any:
    """Make a layer normalization over channels."""
    return keras.layers.LayerNormalization(axis=-1, epsilon=epsilon, name=name, dtype="float32")


def squeezed_activation(x: Tensor, kind: str) -> Tensor:
    """Activate what squeeze-and-excitation has squeezed."""
    return gelu(x) if kind == "gelu" else keras.ops.silu(x)


def in_order(images: Tensor, order: str) -> Tensor:
    """Images with their channels as the weights want them; they come as RGB."""
    return tf.reverse(images, [-1]) if order == "bgr" else images


class Stem(keras.layers.Layer):
    """Two 3×3 convolutions, the first with stride 2."""

    def __init__(self, width: int, name: str = "stem") -> None:
        super().__init__(name=name, dtype="float32")
        self.conv_0 = conv("conv_0", width, 3, 2)
        self.norm_0 = batch_norm("norm_0")
        self.conv_1 = conv("conv_1", width, 3)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the variables for (N, H, W, 3)."""
        build_chain((self.conv_0, self.norm_0, self.conv_1), input_shape[-1] or 3)

    def call(self, x: Tensor) -> Tensor:
        """(N, H, W, 3) to (N, ⌈H/2⌉, ⌈W/2⌉, width)."""
        x = gelu(self.norm_0(spatial_conv(self.conv_0, x)))
        return spatial_conv(self.conv_1, x)


class SqueezeExcite(keras.layers.Layer):
    """Scale each channel by what the mean of all channels says of it."""

    def __init__(self, squeezed: int, width: int, activation: str = "swish", name: str = "se") -> None:
        super().__init__(name=name, dtype="float32")
        self.activation = activation
        self.reduce_conv2d = conv("reduce_conv2d", squeezed)
        self.expand_conv2d = conv("expand_conv2d", width)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the variables for (N, H, W, width)."""
        build_chain((self.reduce_conv2d, self.expand_conv2d), self.expand_conv2d.filters)

    def call(self, x: Tensor) -> Tensor:
        """(N, H, W, width) to the same shape."""
        squeezed = self.reduce_conv2d(keras.ops.mean(x, axis=(1, 2), keepdims=True))
        squeezed = squeezed_activation(squeezed, self.activation)
        return x * keras.ops.sigmoid(self.expand_conv2d(squeezed))


class Projection(keras.layers.Layer):
    """An einsum with a bias: channels to heads, or heads back to channels."""

    def __init__(self, equation: str, weight: tuple[int, ...], bias: tuple[int, ...], name: str) -> None:
        super().__init__(name=name, dtype="float32")
        self.equation = equation
        self.weight_shape = weight
        self.bias_shape = bias

    def build(self, input_shape: Sequence[int | None] | None = None) -> None:
        """Create the two variables; their shapes need no input."""
        self.weight = self.add_weight(name="weight", shape=self.weight_shape, initializer="zeros")
        self.bias = self.add_weight(name="bias", shape=self.bias_shape, initializer="zeros")

    def call(self, x: Tensor) -> Tensor:
        """Project ``x`` as the equation says."""
        return tf.einsum(self.equation, x, self.weight) + self.bias


class Attention(keras.layers.Layer):
    """Multi-head self-attention over a window, with a bias by relative position."""

    def __init__(self, width: int, table_size: int | Size | None, name: str = "attention") -> None:
        super().__init__(name=name, dtype="float32")
        heads = width // HEAD_SIZE
        self.table_shape = (
            None if table_size is None else (heads, *parse_size(table_size, "size of the position table"))
        )
        into = ("nlc,chd->nlhd", (width, heads, HEAD_SIZE), (heads, HEAD_SIZE))
        self.q = Projection(*into, name="q")
        self.k = Projection(*into, name="k")
        self.v = Projection(*into, name="v")
        self.o = Projection("nlhd,hdc->nlc", (heads, HEAD_SIZE, width), (width,), name="o")
        self.relative_position_embedding = None

    def build(self, input_shape: Sequence[int | None] | None = None) -> None:
        """Create the variables; their shapes need no input."""
        if self.table_shape is not None:
            self.relative_position_embedding = self.add_weight(
                name="relative_position_embedding", shape=self.table_shape, initializer="zeros"
            )
        for projection in (self.q, self.k, self.v, self.o):
            projection.build(None)

    def call(self, x: Tensor) -> Tensor:
        """(N, h, w, width) to the same shape, every place seeing all h · w."""
        height, width = _map_size(x)
        places = tf.reshape(x, (-1, height * width, x.shape[-1]))
        query = self.q(places) * HEAD_SIZE**-0.5
        scores = tf.einsum("nqhd,nkhd->nhqk", query, self.k(places))
        if self.relative_position_embedding is not None:
            table = tf.convert_to_tensor(self.relative_position_embedding)
            scores += position_bias(table, height, width)
        mixed = tf.einsum("nhqk,nkhd->nqhd", tf.nn.softmax(scores, axis=-1), self.v(places))
        return tf.reshape(self.o(mixed), (-1, height, width, x.shape[-1]))


def in_windows(function: Callable[[Tensor], Tensor], x: Tensor, window: Window) -> Tensor:
    """Apply a function to each window of a map; windows do not overlap and are in raster order."""
    if window is None:
        return function(x)
    height, width = _map_size(x)
    (rows, columns), channels = window, x.shape[-1]
    down, across = height // rows, width // columns
    split = tf.transpose(tf.reshape(x, (-1, down, rows, across, columns, channels)), (0, 1, 3, 2, 4, 5))
    done = function(tf.reshape(split, (-1, rows, columns, channels)))
    joined = tf.transpose(tf.reshape(done, (-1, down, across, rows, columns, channels)), (0, 1, 3, 2, 4, 5))
    return tf.reshape(joined, (-1, height, width, channels))


class MBConvBlock(keras.layers.Layer):
    """Inverted bottleneck with squeeze-and-excitation, normalized before its convolutions."""

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int,
        pool_size: int,
        name: str,
        *,
        se_activation: str | None,
    ) -> None:
        super().__init__(name=name, dtype="float32")
        self.channels, self.stride, self.pool_size = channels, stride, pool_size
        hidden = EXPANSION * width
        self.shortcut_conv = conv("shortcut_conv", width) if channels != width else None
        self.pre_norm = batch_norm("pre_norm")
        self.expand_conv = conv("expand_conv", hidden, bias=False)
        self.expand_norm = batch_norm("expand_norm")
        self.depthwise_conv = depthwise_conv("depthwise_conv", 3, strides=stride, bias=False)
        self.depthwise_norm = batch_norm("depthwise_norm")
        squeezed = int(SE_RATIO * width)
        self.se = SqueezeExcite(squeezed, hidden, se_activation) if se_activation else None
        self.shrink_conv = conv("shrink_conv", width)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the variables for (N, H, W, channels)."""
        if self.shortcut_conv is not None:
            build_chain((self.shortcut_conv,), self.channels)
        build_chain((self.pre_norm, self.expand_conv), self.channels)
        inner = (self.expand_norm, self.depthwise_conv, self.depthwise_norm, self.se, self.shrink_conv)
        build_chain([layer for layer in inner if layer is not None], self.expand_conv.filters)

    def call(self, x: Tensor) -> Tensor:
        """(N, H, W, channels) to (N, ⌈H/stride⌉, ⌈W/stride⌉, width)."""
        return self.shortcut(x) + self.residual(x)

    def shortcut(self, x: Tensor) -> Tensor:
        """What the residual is added to."""
        if self.stride == 2:
            x = average_pool(x, self.pool_size)
        return x if self.shortcut_conv is None else self.shortcut_conv(x)

    def residual(self, x: Tensor) -> Tensor:
        """Widen, look around, narrow again."""
        x = gelu(self.expand_norm(self.expand_conv(self.pre_norm(x))))
        x = gelu(self.depthwise_norm(spatial_conv(self.depthwise_conv, x)))
        return self.shrink_conv(x if self.se is None else self.se(x))


class MoatBlock(MBConvBlock):
    """Inverted bottleneck without squeeze-and-excitation, then self-attention."""

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int,
        pool_size: int,
        name: str,
        *,
        table_size: Size | None,
        window: Window,
        epsilon: float,
    ) -> None:
        super().__init__(channels, width, stride, pool_size, name, se_activation=None)
        self.window = window
        self.attention_norm = layer_norm("attention_norm", epsilon)
        self.attention = Attention(width, table_size)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the variables for (N, H, W, channels)."""
        super().build(input_shape)
        build_chain((self.attention_norm, self.attention), self.shrink_conv.filters)

    def call(self, x: Tensor) -> Tensor:
        """(N, H, W, channels) to (N, ⌈H/stride⌉, ⌈W/stride⌉, width)."""
        x = super().call(x)
        return x + in_windows(self.attention, self.attention_norm(x), self.window)


@keras.saving.register_keras_serializable(package="ckptkit")
class MoatModel(StagedModel):
    """One variant.

    Calling it with images (N, H, W, 3) gives the logits (N, classes), or the list of the five feature maps
    (N, H/2, W/2, stem) … (N, H/32, W/32, width), rounded up, when it is headless or ``features_only``.
    """

    head_layer = "logits_head"

    def __init__(
        self,
        variant: str,
        *,
        resolution: int | tuple[int, int] | None = None,
        num_classes: int | None = 1000,
        features_only: bool = False,
        pos_emb: bool = True,
        pool_size: int = 2,
        window_size: WindowSize = None,
        global_attention: bool = False,
        se_activation: str = "swish",
        layer_norm_epsilon: float = LAYER_NORM_EPSILON,
        input_order: str = "rgb",
        table_sizes: Sequence[Sequence[int]] | None = None,
    ) -> None:
        config = moat_config(variant)
        MOAT.check_setting("pool_size", pool_size)
        MOAT.check_setting("se_activation", se_activation)
        MOAT.check_setting("layer_norm_epsilon", layer_norm_epsilon)
        MOAT.check_setting("input_order", input_order)
        super().__init__(
            "moat",
            variant,
            num_features=config.widths[-1],
            usual=config.resolution,
            resolution=resolution,
            num_classes=num_classes,
            features_only=features_only,
        )
        self.pos_emb = pos_emb
        self.pool_size = pool_size
        self.global_attention = global_attention
        self.se_activation = se_activation
        self.layer_norm_epsilon = layer_norm_epsilon
        self.input_order = input_order
        sizes = [(rows, columns) for rows, columns in table_sizes or PUBLISHED_TABLE_SIZES]
        self.table_sizes = dict(zip(POSITION_TABLE_SIZE, sizes, strict=True))
        self.windows = parse_window_size(window_size)
        if self.resolution_is_given:
            self._check_windows(*self.resolution)

        self.stem = Stem(config.stem)
        self.blocks: list[MBConvBlock] = []
        channels = config.stem
        for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            for block in range(depth):
                self.blocks.append(self._block(stage, block, channels, width, last=block == depth - 1))
                channels = width
        track(self, self.blocks)
        self.stage_ends = [sum(config.depths[: stage + 1]) for stage in range(len(config.depths))]
        self.final_layer_norm = None
        self.add_head()

    def add_head(self) -> None:
        """Make the classifier, and the norm before it."""
        self.logits_head = None
        if self.num_classes is not None:
            norm = self.final_layer_norm or layer_norm("final_layer_norm", self.layer_norm_epsilon)
            self.final_layer_norm = norm
            self.logits_head = conv("logits_head", self.num_classes)

    def build_head(self) -> None:
        """Create the variables of both; a norm that is there stays."""
        if self.logits_head is not None:
            new = [layer for layer in (self.final_layer_norm, self.logits_head) if layer and not layer.built]
            build_chain(new, self.num_features)

    def _block(self, stage: int, block: int, channels: int, width: int, *, last: bool) -> MBConvBlock:
        name = f"block_{stage:02d}_{block:02d}"
        stride = 2 if block == 0 else 1
        if stage < FIRST_ATTENTION_STAGE:
            return MBConvBlock(
                channels, width, stride, self.pool_size, name, se_activation=self.se_activation
            )
        return MoatBlock(
            channels,
            width,
            stride,
            self.pool_size,
            name,
            table_size=self.table_sizes[stage] if self.pos_emb else None,
            window=None if last and self.global_attention else self.windows[stage],
            epsilon=self.layer_norm_epsilon,
        )

    def build(self, input_shape: Any) -> None:
        """Create every variable from the channels alone, without computing a map."""
        build_chain((self.stem,), 3)
        for block in self.blocks:
            build_chain((block,), block.channels)
        self.build_head()

    def forward_stages(self, inputs: Any, *, head: bool = True) -> dict[str, Tensor]:
        """Run the model and keep what each stage gives."""
        self.check_input(inputs)
        x = self.stem(in_order(keras.ops.convert_to_tensor(inputs, dtype="float32"), self.input_order))
        outputs = {STAGES[0]: x}
        for count, block in enumerate(self.blocks, start=1):
            x = block(x)
            if count in self.stage_ends:
                outputs[STAGES[len(outputs)]] = x
        if head and self.final_layer_norm is not None and self.logits_head is not None:
            pooled = self.final_layer_norm(keras.ops.mean(x, axis=(1, 2), keepdims=True))
            outputs["logits"] = keras.ops.squeeze(self.logits_head(pooled), axis=(1, 2))
        return outputs

    def check_input(self, inputs: Any) -> None:
        """Refuse what is not a batch of images, or has maps that the windows do not divide."""
        super().check_input(inputs)
        shape = tuple(inputs.shape)
        self._check_windows(shape[1], shape[2])

    def _check_windows(self, *image: int | None) -> None:
        """Refuse an image whose maps the windows do not divide; a side unknown yet (None) may be any."""
        for stage, window in self.windows.items():
            if window is not None:
                stride = 2 ** (stage + 2)
                rows, columns = (0 if side is None else math.ceil(side / stride) for side in image)
                require_whole_windows((rows, columns), window)

    def get_config(self) -> dict[str, Any]:
        """Return the parameters, for ``model.save``."""
        return {
            **super().get_config(),
            "pos_emb": self.pos_emb,
            "pool_size": self.pool_size,
            "window_size": {str(stage): window for stage, window in self.windows.items()},
            "global_attention": self.global_attention,
            "se_activation": self.se_activation,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "input_order": self.input_order,
            "table_sizes": [list(size) for size in self.table_sizes.values()],
        }


def build(variant: str, **options: Any) -> MoatModel:
    """Make a variant with all its variables, zero until they are loaded; options as for `MoatModel`."""
    model: MoatModel = built(MoatModel(variant, **options))
    return model


def load_published(
    model: MoatModel, names: Collection[str], read: Callable[[str], Array], *, suffix: str = ""
) -> None:
    """Fill the model straight from a TensorFlow checkpoint, by variable names and without any layout rule."""
    available = frozenset(names)
    wanted = {
        name: _deeplab2_name(name) + (suffix if variable.trainable else "")
        for name, variable in tensors_of(model).items()
    }
    sources = {name: _source(published, available) for name, published in wanted.items()}
    refuse(model, {"missing": [wanted[name] for name, source in sources.items() if source is None]})
    load_state(model, {name: read(source) for name, source in sources.items() if source is not None})


def _deeplab2_name(name: str) -> str:
    """TensorFlow's depthwise convolution calls its kernel otherwise than Keras 3's."""
    layer, _, leaf = name.rpartition("/")
    return f"{layer}/depthwise_kernel" if layer.endswith("/depthwise_conv") and leaf == "kernel" else name


def _source(published: str, available: Collection[str]) -> str | None:
    """Name under which a checkpoint has a variable; models made in TF2 name the stem's layers bare."""
    return next((n for n in (published, published.removeprefix("moat/stem/")) if n in available), None)
