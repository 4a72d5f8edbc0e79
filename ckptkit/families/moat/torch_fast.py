"""MOAT in PyTorch, rewritten for inference: the same function in fewer and larger steps.

=====================  ======================================================================================
``stem.norm_0``        folded into ``stem.conv_0`` before it; conv → BN is exact whatever the padding
``pre_norm``           folded into ``expand_conv`` after it, a 1×1 convolution, which reads no padding; the
                       shortcut takes the block's input before the norm and is not touched
``expand_norm``        folded into ``expand_conv`` before it
``depthwise_norm``     folded into ``depthwise_conv`` before it
``attention_norm``     a LayerNorm: its statistics are of the input, so it stays
``norm`` of the head   likewise
=====================  ======================================================================================

No BatchNorm is left over. Besides:

* maps lie in memory with their channels last, so that attention and LayerNorm see them without a copy;
* attention is PyTorch's fused one, with query, key and value from one matrix product and the position bias
  computed once, for the windows at the model's resolution;
* stride-2 convolutions pad by themselves: see `SameStride2Conv2d`;
* activations and sums overwrite what nobody reads any more.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ckptkit.base.parse import Size
from ckptkit.families.moat.config import HEAD_SIZE
from ckptkit.families.moat.torch_model import (
    Attention,
    MBConvBlock,
    MoatBlock,
    MoatModel,
    SameConv2d,
    SqueezeExcite,
    Stem,
)
from ckptkit.families.moat.torch_ops import position_bias
from ckptkit.families.moat.windows import join_windows, split_windows
from ckptkit.families.torch_folding import (
    Kernel,
    affine_of,
    constant,
    exact,
    gelu_,
    inference_conv,
    inference_layer_norm,
    inference_linear,
)
from ckptkit.families.torch_inference import InferenceModel

__all__ = ["FastMoatModel", "optimised"]

KEPT_BIAS_BYTES = 512 << 20
"""Position biases are kept while all of them together take no more than this; else each call computes them.

They grow with the fourth power of the resolution: 13 MB for MOAT-0 at 224, 2.4 GB for MOAT-3 at 512.
"""


def average_pool(x: Tensor, kernel: int) -> Tensor:
    """Average pool of stride 2 with TensorFlow's SAME padding, in one step.

    Windows that reach over the end are cut (``ceil_mode``) and divided by the real pixels under them. A
    window of 3 begins one pixel early where the size is odd.

    Examples
    --------
    >>> average_pool(torch.tensor([[[[2.0, 4.0, 6.0]]]]), kernel=2)
    tensor([[[[3., 6.]]]])
    """
    padding = [side % 2 if kernel == 3 else 0 for side in x.shape[-2:]]
    return F.avg_pool2d(x, kernel, 2, padding, ceil_mode=True, count_include_pad=False)


class SameStride2Conv2d(nn.Module):
    """3×3 convolution of stride 2 with TensorFlow's SAME padding, without a padded copy of the map.

    SAME pads an axis of odd size on both sides, which PyTorch can do, and one of even size at the end alone,
    which it cannot. A row of zeros before the kernel makes both symmetric: the 4-row kernel with one row of
    padding on both sides begins where SAME does on even sizes, its last 3 rows alone do so on odd ones.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.groups = conv.groups
        weight = F.pad(conv.weight.detach(), (1, 0, 1, 0))
        self.weight = constant(weight, conv.weight, memory_format=torch.channels_last)
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C', ceil(H / 2), ceil(W / 2))``."""
        height, width = x.shape[-2:]
        weight = self.weight[:, :, height % 2 :, width % 2 :]
        return F.conv2d(x, weight, self.bias, 2, 1, 1, self.groups)


def _same_conv(kernel: Kernel, like: SameConv2d) -> nn.Module:
    """Make a layer that pads as `SameConv2d` does."""
    conv = inference_conv(kernel, like)
    if conv.stride == (1, 1):
        conv.padding = (conv.kernel_size[0] // 2,) * 2
        return conv
    return SameStride2Conv2d(conv)


class FastStem(nn.Module):
    """Two 3×3 convolutions, the first with stride 2 and its norm folded in."""

    def __init__(self, stem: Stem) -> None:
        super().__init__()
        self.conv_0 = _same_conv(Kernel.of(stem.conv_0).then(affine_of(stem.norm_0)), stem.conv_0)
        self.conv_1 = _same_conv(Kernel.of(stem.conv_1), stem.conv_1)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 3, H, W)`` to ``(N, width, H / 2, W / 2)``."""
        return self.conv_1(gelu_(self.conv_0(x)))


class FastSqueezeExcite(nn.Module):
    """Channels gated by a bottleneck on their mean, in matrix products; overwrites its input."""

    def __init__(self, se: SqueezeExcite) -> None:
        super().__init__()
        reduce, expand = Kernel.of(se.reduce), Kernel.of(se.expand)
        self.reduce = inference_linear(reduce.weight.flatten(1), reduce.bias, se.reduce.weight)
        self.expand = inference_linear(expand.weight.flatten(1), expand.bias, se.expand.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same tensor."""
        gate = self.expand(F.silu(self.reduce(x.mean(dim=(2, 3))))).sigmoid()
        return x.mul_(gate[..., None, None])


class FastAttention(nn.Module):
    """Fused multi-head self-attention inside windows.

    Parameters
    ----------
    attention : Attention
        With its weights: the bias is made of its table here, so a table loaded later would not be seen.
    bias_window : tuple of int or None
        Window (height, width) to keep the position bias for; for other windows each call makes it anew. None
        keeps none.
    """

    def __init__(self, attention: Attention, bias_window: Size | None) -> None:
        super().__init__()
        self.heads = attention.heads
        self.bias_window = bias_window
        projections = (attention.q, attention.k, attention.v)
        like = attention.q.weight
        self.qkv = inference_linear(
            torch.cat([exact(p.weight) for p in projections]),
            torch.cat([exact(p.bias) for p in projections]),
            like,
        )
        self.o = inference_linear(exact(attention.o.weight), exact(attention.o.bias), like)
        table = attention.relative_position_embedding
        self.register_buffer("table", None if table is None else table.detach().clone())
        bias = None
        if table is not None and bias_window is not None:
            bias = position_bias(table.detach(), *bias_window)[None].to(like.dtype)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Attend inside each window; ``(windows, h, w, C)`` to the same shape."""
        height, width = x.shape[1:3]
        # (windows, places, 3 C) to three times (windows, heads, places, 32)
        parts = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, self.heads, HEAD_SIZE)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        bias = self._bias(height, width)
        mask = None if bias is None else bias.to(query.dtype)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.o(attended.transpose(1, 2).flatten(2)).unflatten(1, (height, width))

    def _bias(self, height: int, width: int) -> Tensor | None:
        """``(1, heads, places, places)``: the kept one where the window is the one it was made for."""
        if self.table is None:
            return None
        if self.bias is not None and (height, width) == self.bias_window:
            return self.bias
        return position_bias(self.table, height, width)[None]


class FastBlock(nn.Module):
    """MBConv block, or the MBConv part of a MOAT block, with every norm folded in."""

    def __init__(self, block: MBConvBlock | MoatBlock) -> None:
        super().__init__()
        self.pool_size = block.pool_size if block.stride > 1 else None
        shortcut, expand, depthwise = block.shortcut_conv, block.expand_conv, block.depthwise_conv
        self.shortcut_conv = None if shortcut is None else _same_conv(Kernel.of(shortcut), shortcut)
        self.expand_conv = _same_conv(
            Kernel.of(expand).then(affine_of(block.expand_norm)).after(affine_of(block.pre_norm)), expand
        )
        self.depthwise_conv = _same_conv(
            Kernel.of(depthwise).then(affine_of(block.depthwise_norm)), depthwise
        )
        self.se = None if block.se is None else FastSqueezeExcite(block.se)
        self.shrink_conv = _same_conv(Kernel.of(block.shrink_conv), block.shrink_conv)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C', ceil(H / stride), ceil(W / stride))``, never the input itself."""
        residual = gelu_(self.depthwise_conv(gelu_(self.expand_conv(x))))
        if self.se is not None:
            residual = self.se(residual)
        shortcut = x if self.pool_size is None else average_pool(x, self.pool_size)
        if self.shortcut_conv is not None:
            shortcut = self.shortcut_conv(shortcut)
        return self.shrink_conv(residual).add_(shortcut)


class FastMoatBlock(FastBlock):
    """MBConv without squeeze-and-excite, then windowed attention.

    Parameters
    ----------
    block : MoatBlock
    bias_window : tuple of int or None
        Window to keep the position bias for; None keeps none.
    """

    def __init__(self, block: MoatBlock, bias_window: Size | None) -> None:
        super().__init__(block)
        self.window = block.window
        self.attention_norm = inference_layer_norm(block.attention_norm)
        self.attention = FastAttention(block.attention, bias_window)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C', ceil(H / stride), ceil(W / stride))``."""
        x = super().forward(x)
        size = (x.shape[2], x.shape[3])
        windows = split_windows(self.attention_norm(x.permute(0, 2, 3, 1)), self.window or size)
        # Not in place: LayerNorm keeps x for the gradient of an input, which heat maps want.
        return x + join_windows(self.attention(windows), size).permute(0, 3, 1, 2)


class FastMoatModel(InferenceModel):
    """MOAT for inference; `optimised` makes one of a plain model.

    Parameters
    ----------
    model : MoatModel
        With its weights; it is read and not changed.
    """

    def __init__(self, model: MoatModel) -> None:
        super().__init__(model.config.name, resolution=model.resolution, features_only=model.features_only)
        keeps_bias = _bias_bytes(model) <= KEPT_BIAS_BYTES
        self.stem = FastStem(model.stem)
        self.stages = nn.ModuleList(
            nn.ModuleList(
                FastMoatBlock(block, _window(model, number, block) if keeps_bias else None)
                if isinstance(block, MoatBlock)
                else FastBlock(block)
                for block in stage
            )
            for number, stage in enumerate(model.stages)
        )
        self.head = None
        self.norm = nn.Identity() if model.norm is None else inference_layer_norm(model.norm)
        if model.head is not None:
            self.head = inference_linear(exact(model.head.weight), exact(model.head.bias), model.head.weight)

    def _stages(self, x: Tensor) -> list[Tensor]:
        outputs = [self.stem(x)]
        for stage in self.stages:
            x = outputs[-1]
            for block in stage:
                x = block(x)
            outputs.append(x)
        return outputs

    def forward_head(self, features: Tensor) -> Tensor:
        """``(N, C, h, w)`` of the last stage to logits ``(N, classes)``; only where there is a head."""
        return self.require_head()(self.norm(features.mean(dim=(2, 3))))


def _window(model: MoatModel, stage: int, block: MoatBlock) -> Size:
    """Window of a block at the model's resolution: its own, or the whole map."""
    stride = 4 * 2**stage  # of the stage's output: the stem halves once, each stage up to it once more
    height, width = model.resolution
    return block.window or (-(-height // stride), -(-width // stride))


def _bias_bytes(model: MoatModel) -> int:
    """Size of all position biases at the model's resolution."""
    total = 0
    for number, stage in enumerate(model.stages):
        for block in stage:
            if isinstance(block, MoatBlock) and block.attention.relative_position_embedding is not None:
                places = math.prod(_window(model, number, block))
                total += block.attention.heads * places**2 * block.attention.q.weight.element_size()
    return total


def optimised(model: MoatModel) -> FastMoatModel:
    """Rewrite a model for inference.

    Parameters
    ----------
    model : MoatModel
        With its weights, of any floating type and on any device; it is not changed.

    Returns
    -------
    FastMoatModel
        In evaluation mode, of the same type and on the same device.

    Examples
    --------
    >>> from ckptkit.families.moat.torch_model import build
    >>> model = build("tiny-moat0", resolution=64, num_classes=10)
    >>> images = torch.ones(1, 3, 64, 64)
    >>> with torch.inference_mode():
    ...     torch.allclose(optimised(model)(images), model(images), rtol=0, atol=1e-4)
    True
    """
    fast = FastMoatModel(model)
    fast.eval()
    return fast
