"""MogaNet in PyTorch, rewritten for inference: the same function in fewer steps.

Where each BatchNorm goes, exactly:

======================  ====================================================================================
``patch_embed1``        both norms into the convolution before each
``patch_embed{2,3,4}``  ``norm`` into ``projection`` before it: conv → BN is exact whatever the padding
``norm1`` of a block    twice, because its output h is a shortcut too: into ``proj_1`` after it (1×1, reads no
                        padding); and as the shortcut, where ``x + l (proj_2(…) + h)`` with the layer scale l
                        and ``h = s x + t`` is ``(1 + l s) x + (l proj_2(…) + l t)``: one gain a channel on
                        x, the rest in ``proj_2``
``norm2`` of a block    into ``fc1`` after it (1×1); the shortcut takes x before the norm
``norm{1,2,3,4}``       not into the next convolution, for its padding is zeros *behind* the norm, and the
                        stage's output is behind the norm too: into ``fc2`` and the shortcut of the stage's
                        last block, where ``s (x + l fc2(…)) + t`` is ``s x + (s l fc2(…) + t)``
======================  ====================================================================================

No BatchNorm is left over. The layer scales go into ``proj_2`` and ``fc2`` in the same way, and so does the
scale σ of the feed-forward part: ``fc2(y + σ (y - d))`` with a map d of one channel is
``(fc2 (1 + σ)) y - (fc2 σ) d``, so that the widest map of the block is not written once more. Values are
rounded in another order than the plain model's, none is approximated. Maps lie in memory with their channels
last, and activations and sums overwrite what nobody reads any more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ckptkit.families.moganet.torch_model import (
    ChannelAggregationFFN,
    MogaBlock,
    MogaNetModel,
    MultiOrderDWConv,
    MultiOrderGatedAggregation,
    PatchEmbedding,
    StemEmbedding,
    without_autocast,
)
from ckptkit.families.torch_folding import (
    Affine,
    Kernel,
    affine_of,
    constant,
    exact,
    gelu_,
    inference_conv,
    inference_linear,
)
from ckptkit.families.torch_inference import InferenceModel

__all__ = ["FastMogaNetModel", "optimised"]


def _channels(value: Tensor, like: Tensor) -> nn.Parameter:
    """Make a value a channel one that multiplies maps."""
    return constant(value[None, :, None, None], like)


class FastMultiOrderDWConv(nn.Module):
    """The value of the gated aggregation: see the plain model."""

    def __init__(self, value: MultiOrderDWConv) -> None:
        super().__init__()
        self.split = value.split
        for name in ("DW_conv0", "DW_conv1", "DW_conv2", "PW_conv"):
            conv = value.get_submodule(name)
            self.add_module(name, inference_conv(Kernel.of(conv), conv))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape."""
        low, middle, high = self.DW_conv0(x).split(self.split, dim=1)
        return self.PW_conv(torch.cat((low, self.DW_conv1(middle), self.DW_conv2(high)), dim=1))


class FastGatedAggregation(nn.Module):
    """Spatial aggregation with the norm before it, the shortcut in it and the layer scale behind it.

    Parameters
    ----------
    attention : MultiOrderGatedAggregation
    before : Affine
        The norm in front, whose output is the shortcut too.
    layer_scale : torch.Tensor
        Float64, by channel.
    """

    def __init__(self, attention: MultiOrderGatedAggregation, before: Affine, layer_scale: Tensor) -> None:
        super().__init__()
        self.attn_force_fp32 = attention.attn_force_fp32
        scale, shift = before
        sigma = exact(attention.sigma.scale).flatten()
        like = attention.proj_1.weight
        self.proj_1 = inference_conv(Kernel.of(attention.proj_1).after(before), attention.proj_1)
        self.own = _channels(1 + sigma, like)
        self.common = _channels(-sigma, like)
        self.gate = inference_conv(Kernel.of(attention.gate), attention.gate)
        self.value = FastMultiOrderDWConv(attention.value)
        self.proj_2 = inference_conv(
            Kernel.of(attention.proj_2).then((layer_scale, layer_scale * shift)), attention.proj_2
        )
        self.shortcut = _channels(1 + layer_scale * scale, like)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` before the norm to the same shape after the block's sum."""
        projected = self.proj_1(x)
        common = projected.mean(dim=(2, 3), keepdim=True) * self.common
        decomposed = F.silu(torch.addcmul(common, projected, self.own), inplace=True)
        gated = self._gated(self.gate(decomposed), self.value(decomposed))
        return gated.addcmul_(x, self.shortcut)

    def _gated(self, gate: Tensor, value: Tensor) -> Tensor:
        """``proj_2`` of the activated gate times the activated value; both are overwritten."""
        if not self.attn_force_fp32:
            return self.proj_2(F.silu(gate, inplace=True).mul_(F.silu(value, inplace=True)))
        with without_autocast(gate):
            wide = torch.promote_types(gate.dtype, torch.float32)
            gate, value = (_silu_twice_(part.to(wide)) for part in (gate, value))
            return self.proj_2(gate.mul_(value).to(self.proj_2.weight.dtype))


def _silu_twice_(x: Tensor) -> Tensor:
    return F.silu(F.silu(x, inplace=True), inplace=True)


class FastChannelAggregation(nn.Module):
    """Feed-forward part with the norm before it, the layer scale and the shortcut behind it.

    Parameters
    ----------
    mlp : ChannelAggregationFFN
    before : Affine
        The norm in front.
    layer_scale : torch.Tensor
        Float64, by channel.
    behind : Affine or None
        The stage's norm, behind the stage's last block.
    """

    def __init__(
        self, mlp: ChannelAggregationFFN, before: Affine, layer_scale: Tensor, behind: Affine | None
    ) -> None:
        super().__init__()
        like = mlp.fc1.weight
        sigma = exact(mlp.sigma.scale).flatten()
        none = torch.zeros_like
        fc2 = Kernel.of(mlp.fc2).then((layer_scale, none(layer_scale)))
        if behind is not None:
            fc2 = fc2.then(behind)
        self.fc1 = inference_conv(Kernel.of(mlp.fc1).after(before), mlp.fc1)
        self.dwconv = inference_conv(Kernel.of(mlp.dwconv), mlp.dwconv)
        self.decompose = inference_linear(
            exact(mlp.decompose.weight).flatten(1), exact(mlp.decompose.bias), like
        )
        self.common = _channels(-(fc2.weight[..., 0, 0] @ sigma), like)
        self.fc2 = inference_conv(fc2.after((1 + sigma, none(sigma))), mlp.fc2)
        self.shortcut = None if behind is None else _channels(behind[0], like)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` before the norm to the same shape after the block's sum."""
        hidden = gelu_(self.dwconv(self.fc1(x)))
        # To one channel: a matrix product is quicker than a convolution, and its result is that map.
        common = gelu_(self.decompose(hidden.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        out = self.fc2(hidden).addcmul_(common, self.common)
        return out.add_(x) if self.shortcut is None else out.addcmul_(x, self.shortcut)


class FastMogaBlock(nn.Module):
    """Spatial aggregation, then channel aggregation.

    Parameters
    ----------
    block : MogaBlock
    behind : Affine or None
        The stage's norm, behind the stage's last block.
    """

    def __init__(self, block: MogaBlock, behind: Affine | None) -> None:
        super().__init__()
        scales = [exact(scale).flatten() for scale in (block.layer_scale_1, block.layer_scale_2)]
        self.attn = FastGatedAggregation(block.attn, affine_of(block.norm1), scales[0])
        self.mlp = FastChannelAggregation(block.mlp, affine_of(block.norm2), scales[1], behind)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape, never the input itself."""
        return self.mlp(self.attn(x))


def _fast_embedding(embedding: StemEmbedding | PatchEmbedding) -> nn.Module:
    if isinstance(embedding, PatchEmbedding):
        return inference_conv(
            Kernel.of(embedding.projection).then(affine_of(embedding.norm)), embedding.projection
        )
    first, first_norm, _, second, second_norm = embedding.projection
    return nn.Sequential(
        inference_conv(Kernel.of(first).then(affine_of(first_norm)), first),
        InPlaceGELU(),
        inference_conv(Kernel.of(second).then(affine_of(second_norm)), second),
    )


class InPlaceGELU(nn.Module):
    """Exact GELU that overwrites its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        return gelu_(x)


class FastMogaNetModel(InferenceModel):
    """MogaNet for inference; `optimised` makes one of a plain model.

    Parameters
    ----------
    model : MogaNetModel
        With its weights; it is read and not changed.
    """

    def __init__(self, model: MogaNetModel) -> None:
        super().__init__(model.config.name, resolution=model.resolution, features_only=model.features_only)
        self.attn_force_fp32 = model.attn_force_fp32
        self.stages = nn.ModuleList()
        for stage in range(1, len(model.config.widths) + 1):
            norm = affine_of(model.get_submodule(f"norm{stage}"))
            *blocks, last = model.get_submodule(f"blocks{stage}")
            self.stages.append(
                nn.Sequential(
                    _fast_embedding(model.get_submodule(f"patch_embed{stage}")),
                    *(FastMogaBlock(block, None) for block in blocks),
                    FastMogaBlock(last, norm),
                )
            )
        self.head = None
        if model.head is not None:
            self.head = inference_linear(exact(model.head.weight), exact(model.head.bias), model.head.weight)

    def _stages(self, x: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs

    def forward_head(self, features: Tensor) -> Tensor:
        """``(N, C, h, w)`` of the last stage to logits ``(N, classes)``; only where there is a head."""
        return self.require_head()(features.mean(dim=(2, 3)))


def optimised(model: MogaNetModel) -> FastMogaNetModel:
    """Rewrite a model for inference.

    Parameters
    ----------
    model : MogaNetModel
        With its weights, of any floating type and on any device; it is not changed.

    Returns
    -------
    FastMogaNetModel
        In evaluation mode, of the same type and on the same device.

    Examples
    --------
    >>> from ckptkit.families.moganet.torch_model import build
    >>> model = build("moganet-xt", attn_force_fp32=True, num_classes=10)
    >>> images = torch.ones(1, 3, 64, 64)
    >>> with torch.inference_mode():
    ...     torch.allclose(optimised(model)(images), model(images), rtol=0, atol=1e-4)
    True
    """
    fast = FastMogaNetModel(model)
    fast.eval()
    return fast
