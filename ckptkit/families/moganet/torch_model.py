"""MogaNet in PyTorch: the reference forward pass of the published side.

Parameters and statistics carry the names of the canonical layout, that of the timm-style release, whose files
load as they are. Inputs are NCHW. The model is for inference: stochastic depth and dropout, which change
nothing there, are left out.

Source of the architecture: arXiv:2211.03295 and the published code of Westlake-AI/MogaNet and OpenMixup.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from ckptkit.base.parse import Size, parse_num_classes, parse_size
from ckptkit.families.moganet import MOGANET
from ckptkit.families.moganet.config import BATCH_NORM_EPSILON, MogaNetConfig, moganet_config, value_split
from ckptkit.families.torch_backend import StagedModel

INITIAL_SCALE = 1e-5
"""What a fresh model's element and layer scales are: blocks begin close to the identity."""


def _conv(inside: int, out: int, kernel: int, *, stride: int = 1) -> nn.Conv2d:
    """Convolution with a bias and half a kernel of zeros on every side, whatever the stride."""
    return nn.Conv2d(inside, out, kernel, stride, kernel // 2)


def _depthwise_conv(width: int, kernel: int, *, dilation: int = 1) -> nn.Conv2d:
    """Convolution of each channel by itself that keeps the size."""
    return nn.Conv2d(width, width, kernel, 1, dilation * (kernel // 2), dilation, groups=width)


def _batch_norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=BATCH_NORM_EPSILON)


def _channel_scale(width: int) -> nn.Parameter:
    return nn.Parameter(torch.full((1, width, 1, 1), INITIAL_SCALE))


class GELU(nn.Module):
    """The exact GELU, by the error function."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        return gelu(x)


class StemEmbedding(nn.Module):
    """Patch embedding of stage 1: two 3×3 convolutions with stride 2, no activation after the second."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.projection = nn.Sequential(
            _conv(3, half, 3, stride=2),
            _batch_norm(half),
            GELU(),
            _conv(half, width, 3, stride=2),
            _batch_norm(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 3, H, W)`` to ``(N, width, ceil(H / 4), ceil(W / 4))``."""
        return self.projection(x)


class PatchEmbedding(nn.Module):
    """Patch embedding of stages 2 to 4: a 3×3 convolution with stride 2, no activation after it."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.projection = _conv(inside, out, 3, stride=2)
        self.norm = _batch_norm(out)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C', ceil(H / 2), ceil(W / 2))``."""
        return self.norm(self.projection(x))


class ElementScale(nn.Module):
    """What a map has beyond its common part, added once more with a learnt weight a channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = _channel_scale(width)

    def forward(self, x: Tensor, common: Tensor) -> Tensor:
        """``(N, C, H, W)`` and anything that broadcasts to it, to ``(N, C, H, W)``."""
        return x + self.scale * (x - common)


class MultiOrderDWConv(nn.Module):
    """The value of the gated aggregation: depthwise convolutions of three reaches, on shares of the channels.

    The first one sees all channels; the other two go on from their shares of its output.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.split = value_split(width)
        _, middle, high = self.split
        self.DW_conv0 = _depthwise_conv(width, 5)
        self.DW_conv1 = _depthwise_conv(middle, 5, dilation=2)
        self.DW_conv2 = _depthwise_conv(high, 7, dilation=3)
        self.PW_conv = _conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape."""
        low, middle, high = self.DW_conv0(x).split(self.split, dim=1)
        return self.PW_conv(torch.cat((low, self.DW_conv1(middle), self.DW_conv2(high)), dim=1))


class MultiOrderGatedAggregation(nn.Module):
    """Spatial aggregation: what is special about each place, seen in several orders and gated."""

    def __init__(self, width: int, *, attn_force_fp32: bool) -> None:
        super().__init__()
        self.attn_force_fp32 = attn_force_fp32
        self.proj_1 = _conv(width, width, 1)
        self.gate = _conv(width, width, 1)
        self.value = MultiOrderDWConv(width)
        self.proj_2 = _conv(width, width, 1)
        self.sigma = ElementScale(width)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape; the shortcut around it starts here, after the block's norm."""
        decomposed = self.proj_1(x)
        decomposed = silu(self.sigma(decomposed, decomposed.mean(dim=(2, 3), keepdim=True)))
        return self._gated(self.gate(decomposed), self.value(decomposed)) + x

    def _gated(self, gate: Tensor, value: Tensor) -> Tensor:
        """``proj_2`` of the activated gate times the activated value."""
        if not self.attn_force_fp32:
            return self.proj_2(silu(gate) * silu(value))
        with without_autocast(gate):
            wide = torch.promote_types(gate.dtype, torch.float32)  # a float64 model is not narrowed
            product = silu(silu(gate.to(wide))) * silu(silu(value.to(wide)))
            return self.proj_2(product.to(self.proj_2.weight.dtype))


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Switch autocast off where ``x`` is, if there is any."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device):  # "meta" has none to switch off
        return nullcontext()
    disabled: AbstractContextManager[object] = torch.autocast(device, enabled=False)
    return disabled


class ChannelAggregationFFN(nn.Module):
    """Feed-forward part with channel aggregation: every channel set against one made of all of them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = _conv(width, hidden, 1)
        self.dwconv = _depthwise_conv(hidden, 3)
        self.fc2 = _conv(hidden, width, 1)
        self.decompose = _conv(hidden, 1, 1)
        self.sigma = ElementScale(hidden)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape."""
        hidden = gelu(self.dwconv(self.fc1(x)))
        return self.fc2(self.sigma(hidden, gelu(self.decompose(hidden))))


class MogaBlock(nn.Module):
    """Spatial aggregation, then channel aggregation, each on a normalized map, scaled, around a shortcut."""

    def __init__(self, width: int, hidden: int, *, attn_force_fp32: bool) -> None:
        super().__init__()
        self.layer_scale_1 = _channel_scale(width)
        self.layer_scale_2 = _channel_scale(width)
        self.norm1 = _batch_norm(width)
        self.attn = MultiOrderGatedAggregation(width, attn_force_fp32=attn_force_fp32)
        self.norm2 = _batch_norm(width)
        self.mlp = ChannelAggregationFFN(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape."""
        x = x + self.layer_scale_1 * self.attn(self.norm1(x))
        return x + self.layer_scale_2 * self.mlp(self.norm2(x))


class MogaNetModel(StagedModel):
    """MogaNet with or without its head; `build` makes one by name."""

    def __init__(
        self,
        config: MogaNetConfig,
        *,
        attn_force_fp32: bool,
        resolution: Size,
        num_classes: int | None,
        features_only: bool,
    ) -> None:
        super().__init__(
            config.name,
            num_features=config.widths[-1],
            resolution=resolution,
            num_classes=num_classes,
            features_only=features_only,
        )
        self.stages = len(config.widths)
        self.attn_force_fp32 = attn_force_fp32
        inside = 0
        for stage, (width, depth, expansion) in enumerate(
            zip(config.widths, config.depths, config.expansions, strict=True), start=1
        ):
            embedding = StemEmbedding(width) if stage == 1 else PatchEmbedding(inside, width)
            blocks = [
                MogaBlock(width, expansion * width, attn_force_fp32=attn_force_fp32) for _ in range(depth)
            ]
            self.add_module(f"patch_embed{stage}", embedding)
            self.add_module(f"blocks{stage}", nn.ModuleList(blocks))
            self.add_module(f"norm{stage}", _batch_norm(width))
            inside = width
        self.head = None if num_classes is None else nn.Linear(inside, num_classes)

    def stage_outputs(self, x: Tensor) -> list[Tensor]:
        """The normalized map of each stage, from which the next one goes on."""
        outputs: list[Tensor] = []
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"patch_embed{stage}")(x)
            for block in self.get_submodule(f"blocks{stage}"):
                x = block(x)
            x = self.get_submodule(f"norm{stage}")(x)
            outputs.append(x)
        return outputs

    def pooled(self, x: Tensor) -> Tensor:
        """Mean over the map."""
        return x.mean(dim=(2, 3))


def build(
    variant: str,
    *,
    attn_force_fp32: bool,
    resolution: int | Size | None = None,
    num_classes: int | None = 1000,
    features_only: bool = False,
) -> MogaNetModel:
    """Build a MogaNet in evaluation mode, in float32, with random weights.

    Under ``torch.device("meta")`` it takes no memory; `load_state` then gives it some.

    >>> model = build("moganet-xt", attn_force_fp32=True, num_classes=10)
    >>> with torch.inference_mode():
    ...     model(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 10])
    """
    config = moganet_config(variant)
    MOGANET.check_setting("attn_force_fp32", attn_force_fp32)
    model = MogaNetModel(
        config,
        attn_force_fp32=attn_force_fp32,
        resolution=parse_size(config.resolution if resolution is None else resolution, "resolution"),
        num_classes=parse_num_classes(num_classes),
        features_only=features_only,
    )
    model.float().eval()
    return model
