"""MOAT in PyTorch: the reference forward pass of the converted side.

Parameters carry the names of the canonical layout, so a converted file loads as it is. Inputs are NCHW. The
model is for inference: stochastic depth, which changes nothing there, is left out. The published model leaves
padding and the resizing of tables to TensorFlow's defaults; they are spelled out here.

Source of the architecture: arXiv:2210.01820 and the published code of google-research/deeplab2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ckptkit.base.parse import Size, parse_num_classes, parse_size
from ckptkit.families.base import TableSizes
from ckptkit.families.moat import MOAT
from ckptkit.families.moat.config import (
    BATCH_NORM_EPSILON,
    FIRST_ATTENTION_STAGE,
    HEAD_SIZE,
    LAYER_NORM_EPSILON,
    MoatConfig,
    moat_config,
    moat_sites,
)
from ckptkit.families.moat.windows import WindowSize, parse_window_size, require_whole_windows
from ckptkit.families.torch_backend import StagedModel
from ckptkit.rules.language import Site


def same_padding(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad a map with zeros so that an unpadded operation does what TensorFlow's SAME does.

    Operating on the result gives ``ceil(size / stride)`` places; an odd amount of padding has its extra row
    or column at the end, which PyTorch's own symmetric padding cannot express.

    >>> import torch
    >>> same_padding(torch.ones(1, 1, 4, 5), kernel=3, stride=2).shape
    torch.Size([1, 1, 5, 7])
    """
    height, width = (_same_total(size, kernel, stride) for size in x.shape[-2:])
    if not height and not width:
        return x
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


def _same_total(size: int, kernel: int, stride: int) -> int:
    """Rows that SAME adds along an axis, before and after together."""
    places = -(-size // stride)
    return max((places - 1) * stride + kernel - size, 0)


def same_average_pool(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Average pool with SAME padding: each place is divided by the number of real pixels under it.

    >>> import torch
    >>> same_average_pool(torch.tensor([[[[2.0, 4.0, 6.0]]]]), kernel=2, stride=2)
    tensor([[[[3., 6.]]]])
    """
    pixels = same_padding(x.new_ones(1, 1, *x.shape[-2:]), kernel, stride)
    sums = F.avg_pool2d(same_padding(x, kernel, stride), kernel, stride, divisor_override=1)
    return sums / F.avg_pool2d(pixels, kernel, stride, divisor_override=1)


def gelu(x: Tensor) -> Tensor:
    """Gaussian error linear unit in its exact form, with the error function."""
    return F.gelu(x, approximate="none")


def position_bias(table: Tensor, height: int, width: int) -> Tensor:
    """Position bias between all places of a window.

    A table of another size than the window needs is resized bilinearly (half-pixel centres, no antialias,
    edges clamped), in float32 whatever the table's type.

    >>> import torch
    >>> position_bias(torch.tensor([[[1.0, 2.0, 3.0]]]), 1, 2)  # left of the query 1, at it 2, right 3
    tensor([[[2., 3.],
             [1., 2.]]])
    """
    size = (2 * height - 1, 2 * width - 1)
    table = table.float()
    if table.shape[1:] != size:
        table = F.interpolate(table[None], size, mode="bilinear", align_corners=False, antialias=False)[0]
    # Query y sees the keys at table rows height-1-y …: the sliding windows stand in reverse order of queries.
    by_displacement = table.unfold(1, height, 1).unfold(2, width, 1)
    places = height * width
    return by_displacement.flip(1, 2).reshape(-1, places, places)


def split_windows(x: Tensor, window: Size) -> Tensor:
    """Cut a channels-last map (N, H, W, C) into windows (N * H/h * W/w, h, w, C), in raster order."""
    batch, height, width, channels = x.shape
    require_whole_windows((height, width), window)
    rows, columns = height // window[0], width // window[1]
    tiles = x.reshape(batch, rows, window[0], columns, window[1], channels)
    return tiles.transpose(2, 3).reshape(-1, *window, channels)


def join_windows(windows: Tensor, size: Size) -> Tensor:
    """Put windows back together: the inverse of `split_windows` for a map of ``size`` (H, W)."""
    _, height, width, channels = windows.shape
    tiles = windows.reshape(-1, size[0] // height, size[1] // width, height, width, channels)
    return tiles.transpose(2, 3).reshape(-1, *size, channels)


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding, whatever the stride."""

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C', ceil(H / stride), ceil(W / stride))``."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:  # symmetric for an odd kernel, and the convolution pads without a copy
            return F.conv2d(x, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
        padded = same_padding(x, kernel, stride)
        return F.conv2d(padded, self.weight, self.bias, stride, 0, 1, self.groups)


def _batch_norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=BATCH_NORM_EPSILON)


def _layer_norm(width: int, epsilon: float) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=epsilon)


class Stem(nn.Module):
    """Two 3×3 convolutions, the first with stride 2; no activation after the second."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_0 = SameConv2d(3, width, 3, stride=2)
        self.norm_0 = _batch_norm(width)
        self.conv_1 = SameConv2d(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 3, H, W)`` to ``(N, width, H / 2, W / 2)``."""
        return self.conv_1(gelu(self.norm_0(self.conv_0(x))))


class SqueezeExcite(nn.Module):
    """Channels gated by a bottleneck on their mean."""

    def __init__(self, width: int, squeezed: int, activation: str = "swish") -> None:
        super().__init__()
        self.activation = activation
        self.reduce = SameConv2d(width, squeezed, 1)
        self.expand = SameConv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape."""
        squeezed = self.reduce(x.mean(dim=(2, 3), keepdim=True))
        squeezed = gelu(squeezed) if self.activation == "gelu" else F.silu(squeezed)
        return x * self.expand(squeezed).sigmoid()


class Attention(nn.Module):
    """Multi-head self-attention inside windows, with a relative position bias."""

    def __init__(self, width: int, table_size: Size | None) -> None:
        super().__init__()
        self.heads = width // HEAD_SIZE
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.o = nn.Linear(width, width)
        self.relative_position_embedding: nn.Parameter | None = None
        if table_size is not None:
            table = torch.empty(self.heads, *table_size)
            self.relative_position_embedding = nn.Parameter(nn.init.normal_(table, std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """Attend inside each window; ``(windows, h, w, C)`` to the same shape."""
        height, width = x.shape[1:3]
        flat = x.flatten(1, 2)
        query, key, value = (self._split(projection(flat)) for projection in (self.q, self.k, self.v))
        logits = (query * HEAD_SIZE**-0.5) @ key.transpose(-2, -1)
        if self.relative_position_embedding is not None:
            # Always from the current table: a bias kept from an earlier call would outlive new weights.
            logits = logits + position_bias(self.relative_position_embedding, height, width)
        weights = logits.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
        attended = (weights @ value).transpose(1, 2).flatten(2)
        return self.o(attended).unflatten(1, (height, width))

    def _split(self, x: Tensor) -> Tensor:
        """``(windows, places, C)`` to ``(windows, heads, places, 32)``."""
        return x.unflatten(-1, (self.heads, HEAD_SIZE)).transpose(1, 2)


class _Block(nn.Module):
    """What both kinds of block share: the shortcut and the inverted bottleneck."""

    def __init__(self, site: Site, *, pool_size: int, squeeze: str | None) -> None:
        super().__init__()
        inside, out, hidden = site["in"], site["out"], site["hidden"]
        self.stride = 2 if site["block"] == 0 else 1
        self.pool_size = pool_size
        self.shortcut_conv = SameConv2d(inside, out, 1) if inside != out else None
        self.pre_norm = _batch_norm(inside)
        self.expand_conv = SameConv2d(inside, hidden, 1, bias=False)
        self.expand_norm = _batch_norm(hidden)
        self.depthwise_conv = SameConv2d(hidden, hidden, 3, stride=self.stride, groups=hidden, bias=False)
        self.depthwise_norm = _batch_norm(hidden)
        self.se = SqueezeExcite(hidden, site["squeezed"], squeeze) if squeeze else None
        self.shrink_conv = SameConv2d(hidden, out, 1)

    def shortcut(self, x: Tensor) -> Tensor:
        """The input, brought to the output's size and channels."""
        if self.stride > 1:
            x = same_average_pool(x, self.pool_size, self.stride)
        return x if self.shortcut_conv is None else self.shortcut_conv(x)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C', ceil(H / stride), ceil(W / stride))``."""
        residual = gelu(self.expand_norm(self.expand_conv(self.pre_norm(x))))
        residual = gelu(self.depthwise_norm(self.depthwise_conv(residual)))
        if self.se is not None:
            residual = self.se(residual)
        return self.shortcut(x) + self.shrink_conv(residual)


class MBConvBlock(_Block):
    """Inverted bottleneck with squeeze-and-excite: stages 0 and 1."""

    def __init__(self, site: Site, *, pool_size: int, se_activation: str) -> None:
        super().__init__(site, pool_size=pool_size, squeeze=se_activation)


class MoatBlock(_Block):
    """Inverted bottleneck, then windowed attention: stages 2 and 3."""

    def __init__(
        self, site: Site, *, pool_size: int, pos_emb: bool, window: Size | None, epsilon: float
    ) -> None:
        super().__init__(site, pool_size=pool_size, squeeze=None)
        self.window = window
        self.attention_norm = _layer_norm(site["out"], epsilon)
        self.attention = Attention(
            site["out"], (site["table_rows"], site["table_columns"]) if pos_emb else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C', ceil(H / stride), ceil(W / stride))``."""
        x = super().forward(x)
        size = (x.shape[2], x.shape[3])
        windows = split_windows(self.attention_norm(x.permute(0, 2, 3, 1)), self.window or size)
        return x + join_windows(self.attention(windows), size).permute(0, 3, 1, 2)


class MoatModel(StagedModel):
    """MOAT with or without its head; `build` makes one by name."""

    def __init__(
        self,
        config: MoatConfig,
        *,
        resolution: Size,
        num_classes: int | None,
        features_only: bool,
        pos_emb: bool,
        pool_size: int,
        windows: Mapping[int, Size | None],
        global_attention: bool,
        se_activation: str,
        layer_norm_epsilon: float,
        input_order: str,
        table_sizes: TableSizes | None = None,
    ) -> None:
        super().__init__(
            config.name,
            num_features=config.widths[-1],
            resolution=resolution,
            num_classes=num_classes,
            features_only=features_only,
        )
        self.layer_norm_epsilon = layer_norm_epsilon
        self.input_order = input_order
        self.stem = Stem(config.stem)
        self.stages = nn.ModuleList(nn.ModuleList() for _ in config.depths)
        sites = moat_sites(config, pos_emb=pos_emb, num_classes=num_classes, table_sizes=table_sizes)
        for site in sites["block"]:
            stage, block = site["stage"], site["block"]
            if stage < FIRST_ATTENTION_STAGE:
                mbconv = MBConvBlock(site, pool_size=pool_size, se_activation=se_activation)
                self.stages[stage].append(mbconv)
                continue
            last = block == config.depths[stage] - 1
            window = None if global_attention and last else windows[stage]
            self.stages[stage].append(
                MoatBlock(
                    site, pool_size=pool_size, pos_emb=pos_emb, window=window, epsilon=layer_norm_epsilon
                )
            )
        self.norm: nn.Module | None = None
        if num_classes is not None:
            self.norm = _layer_norm(config.widths[-1], layer_norm_epsilon)
        self.head = None if num_classes is None else nn.Linear(config.widths[-1], num_classes)

    def reset_classifier(self, num_classes: int | None) -> None:
        """As for every model; one that had no head gets the norm before it, too."""
        super().reset_classifier(num_classes)
        if self.head is not None and self.norm is None:
            norm = _layer_norm(self.num_features, self.layer_norm_epsilon)
            self.norm = norm.to(next(self.head.parameters()))

    def stage_outputs(self, x: Tensor) -> list[Tensor]:
        """The stem's map, then that of each stage of blocks."""
        outputs = [self.stem(x.flip(1) if self.input_order == "bgr" else x)]
        for stage in self.stages:
            x = outputs[-1]
            for block in stage:
                x = block(x)
            outputs.append(x)
        return outputs

    def pooled(self, x: Tensor) -> Tensor:
        """Mean over the map, normalized."""
        assert self.norm is not None  # it comes with the head
        return self.norm(x.mean(dim=(2, 3)))


def build(
    variant: str,
    *,
    resolution: int | Size | None = None,
    num_classes: int | None = 1000,
    features_only: bool = False,
    pos_emb: bool = True,
    pool_size: int = 2,
    window_size: WindowSize = None,
    global_attention: bool = False,
    se_activation: str = "swish",
    layer_norm_epsilon: float = LAYER_NORM_EPSILON,
    input_order: str = "rgb",
    table_sizes: TableSizes | None = None,
) -> MoatModel:
    """Build a MOAT in evaluation mode, in float32, with random weights.

    Under ``torch.device("meta")`` it takes no memory; `load_state` then gives it some.

    >>> model = build("tiny-moat0", num_classes=10)
    >>> with torch.inference_mode():
    ...     model(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 10])
    """
    config = moat_config(variant)
    MOAT.check_setting("pool_size", pool_size)
    MOAT.check_setting("se_activation", se_activation)
    MOAT.check_setting("layer_norm_epsilon", layer_norm_epsilon)
    MOAT.check_setting("input_order", input_order)
    size = parse_size(config.resolution if resolution is None else resolution, "resolution")
    windows = parse_window_size(window_size)
    if resolution is not None:
        _check_windows(size, windows)
    model = MoatModel(
        config,
        resolution=size,
        num_classes=parse_num_classes(num_classes),
        features_only=features_only,
        pos_emb=pos_emb,
        pool_size=pool_size,
        windows=windows,
        global_attention=global_attention,
        se_activation=se_activation,
        layer_norm_epsilon=layer_norm_epsilon,
        input_order=input_order,
        table_sizes=table_sizes,
    )
    model.float().eval()
    return model


def _check_windows(resolution: Size, windows: Mapping[int, Size | None]) -> None:
    for stage, window in windows.items():
        stride = 4 * 2**stage  # of the stage's output: the stem halves once, each stage up to it once more
        if window is not None:
            require_whole_windows((-(-resolution[0] // stride), -(-resolution[1] // stride)), window)
