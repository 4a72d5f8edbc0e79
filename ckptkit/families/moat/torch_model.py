"""MOAT in PyTorch: the reference forward pass of the converted side.

Parameters carry the names of the canonical layout, so a converted file loads as it is. Inputs are NCHW. The
model is for inference: stochastic depth, which changes nothing there, is left out.

Source of the architecture: arXiv:2210.01820 and the published code of google-research/deeplab2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ckptkit.base.errors import NotFoundError, UsageError
from ckptkit.base.parse import Size, parse_size
from ckptkit.families.base import TableSizes
from ckptkit.families.moat.config import (
    BATCH_NORM_EPSILON,
    FIRST_ATTENTION_STAGE,
    HEAD_SIZE,
    LAYER_NORM_EPSILON,
    MOAT_CONFIGS,
    POOL_SIZES,
    MoatConfig,
    moat_sites,
)
from ckptkit.families.moat.torch_ops import gelu, position_bias, same_average_pool, same_padding
from ckptkit.families.moat.windows import (
    WindowSize,
    join_windows,
    parse_window_size,
    require_whole_windows,
    split_windows,
)
from ckptkit.families.torch_state import load_state
from ckptkit.rules.language import Site

__all__ = ["MoatModel", "build", "load_state"]


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


def _layer_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)


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

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = SameConv2d(width, squeezed, 1)
        self.expand = SameConv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape."""
        gate = self.expand(F.silu(self.reduce(x.mean(dim=(2, 3), keepdim=True))))
        return x * gate.sigmoid()


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

    def __init__(self, site: Site, *, pool_size: int, squeeze: bool) -> None:
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
        self.se = SqueezeExcite(hidden, site["squeezed"]) if squeeze else None
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

    def __init__(self, site: Site, *, pool_size: int) -> None:
        super().__init__(site, pool_size=pool_size, squeeze=True)


class MoatBlock(_Block):
    """Inverted bottleneck, then windowed attention: stages 2 and 3."""

    def __init__(self, site: Site, *, pool_size: int, pos_emb: bool, window: Size | None) -> None:
        super().__init__(site, pool_size=pool_size, squeeze=False)
        self.window = window
        self.attention_norm = _layer_norm(site["out"])
        self.attention = Attention(
            site["out"], (site["table_rows"], site["table_columns"]) if pos_emb else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C', ceil(H / stride), ceil(W / stride))``."""
        x = super().forward(x)
        size = (x.shape[2], x.shape[3])
        windows = split_windows(self.attention_norm(x.permute(0, 2, 3, 1)), self.window or size)
        return x + join_windows(self.attention(windows), size).permute(0, 3, 1, 2)


class MoatModel(nn.Module):
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
        table_sizes: TableSizes | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.resolution = resolution
        self.features_only = features_only or num_classes is None
        self.stem = Stem(config.stem)
        self.stages = nn.ModuleList(nn.ModuleList() for _ in config.depths)
        sites = moat_sites(config, pos_emb=pos_emb, num_classes=num_classes, table_sizes=table_sizes)
        for site in sites["block"]:
            stage, block = site["stage"], site["block"]
            if stage < FIRST_ATTENTION_STAGE:
                self.stages[stage].append(MBConvBlock(site, pool_size=pool_size))
                continue
            last = block == config.depths[stage] - 1
            window = None if global_attention and last else windows[stage]
            self.stages[stage].append(MoatBlock(site, pool_size=pool_size, pos_emb=pos_emb, window=window))
        self.norm = None if num_classes is None else _layer_norm(config.widths[-1])
        self.head = None if num_classes is None else nn.Linear(config.widths[-1], num_classes)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Run everything but the head."""
        if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape:
            raise UsageError(f"input of shape {list(x.shape)}", hint="the model takes (N, 3, H, W)")
        outputs = [self.stem(x)]
        for stage in self.stages:
            x = outputs[-1]
            for block in stage:
                x = block(x)
            outputs.append(x)
        return outputs

    def forward_head(self, features: Tensor) -> Tensor:
        """``(N, C, h, w)`` of the last stage to logits ``(N, classes)``; only where there is a head."""
        if self.norm is None or self.head is None:
            raise UsageError("this model has no head", hint="build it with num_classes")
        return self.head(self.norm(features.mean(dim=(2, 3))))

    def forward_stages(self, x: Tensor) -> dict[str, Tensor]:
        """Outputs by name, in order: ``stage1`` (the stem) … ``stage5``, ``logits`` if there is a head."""
        outputs = {f"stage{n}": output for n, output in enumerate(self.forward_features(x), start=1)}
        if self.head is not None:
            outputs["logits"] = self.forward_head(outputs["stage5"])
        return outputs

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(N, 3, H, W)`` to logits ``(N, classes)``, or to the five stage outputs."""
        features = self.forward_features(x)
        return features if self.features_only else self.forward_head(features[-1])


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
    table_sizes: TableSizes | None = None,
) -> MoatModel:
    """Build a MOAT in evaluation mode, in float32, with random weights.

    Under ``torch.device("meta")`` it takes no memory; `load_state` then gives it some.

    >>> model = build("tiny-moat0", num_classes=10)
    >>> with torch.inference_mode():
    ...     model(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 10])
    """
    if variant not in MOAT_CONFIGS:
        raise NotFoundError(f"unknown MOAT variant {variant!r}", hint="one of " + ", ".join(MOAT_CONFIGS))
    if pool_size not in POOL_SIZES:
        raise UsageError(f"pool_size is {pool_size!r}", hint="MOAT has 2 or 3")
    if num_classes is not None and num_classes < 0:
        raise UsageError(f"num_classes is {num_classes}", hint="give a positive number, or None for no head")
    config = MOAT_CONFIGS[variant]
    size = parse_size(config.resolution if resolution is None else resolution, "resolution")
    windows = parse_window_size(window_size)
    if resolution is not None:
        _check_windows(size, windows)
    model = MoatModel(
        config,
        resolution=size,
        num_classes=num_classes or None,
        features_only=features_only,
        pos_emb=pos_emb,
        pool_size=pool_size,
        windows=windows,
        global_attention=global_attention,
        table_sizes=table_sizes,
    )
    model.float().eval()
    return model


def _check_windows(resolution: Size, windows: Mapping[int, Size | None]) -> None:
    for stage, window in windows.items():
        stride = 4 * 2**stage  # of the stage's output: the stem halves once, each stage up to it once more
        if window is not None:
            require_whole_windows((-(-resolution[0] // stride), -(-resolution[1] // stride)), window)
