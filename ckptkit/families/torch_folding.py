"""Folding normalization into convolutions: exact rewritings for inference, computed in float64.

In evaluation mode a BatchNorm is one scale and one shift a channel. Behind a convolution both can always go
into its kernel and bias. In front of one they can only where the convolution reads no padding: a padded zero
stands for a normalized value, and folding would make it stand for one that is not. A 1×1 convolution reads
none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

Affine: TypeAlias = tuple[Tensor, Tensor]
"""Scale and shift a channel, float64."""


def exact(tensor: Tensor) -> Tensor:
    """Copy a tensor to where arithmetic is exact enough: float64 on the CPU, without gradients."""
    return tensor.detach().to("cpu", torch.float64, copy=True)


def affine_of(norm: nn.BatchNorm2d) -> Affine:
    """Scale and shift that a BatchNorm is in evaluation mode.

    Examples
    --------
    >>> norm = nn.BatchNorm2d(1, eps=0.0)
    >>> with torch.no_grad():
    ...     norm.running_mean.fill_(3.0), norm.running_var.fill_(4.0)
    (tensor([3.]), tensor([4.]))
    >>> [part.item() for part in affine_of(norm)]
    [0.5, -1.5]
    """
    scale = exact(norm.weight) / (exact(norm.running_var) + norm.eps).sqrt()
    return scale, exact(norm.bias) - scale * exact(norm.running_mean)


@dataclass(frozen=True)
class Kernel:
    """A convolution's numbers, float64 on the CPU.

    Parameters
    ----------
    weight : torch.Tensor
        ``(out, in / groups, h, w)``.
    bias : torch.Tensor
        ``(out,)``.
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Kernel:
        """Take those of a layer; a layer without bias has one of zeros."""
        weight = exact(conv.weight)
        return cls(weight, weight.new_zeros(len(weight)) if conv.bias is None else exact(conv.bias))

    def then(self, affine: Affine) -> Kernel:
        """Fold what comes behind the convolution into it: exact for every convolution."""
        scale, shift = affine
        return Kernel(self.weight * scale[:, None, None, None], self.bias * scale + shift)

    def after(self, affine: Affine, *, groups: int = 1) -> Kernel:
        """Fold what comes in front of the convolution into it.

        Raises
        ------
        ValueError
            When the kernel is no plain 1×1: it may read padding, or its channels are in groups.
        """
        if self.weight.shape[2:] != (1, 1) or groups != 1:
            raise ValueError(
                f"a kernel of shape {list(self.weight.shape)} in {groups} groups is no plain 1x1"
            )
        scale, shift = affine
        return Kernel(self.weight * scale[None, :, None, None], self.bias + self.weight[..., 0, 0] @ shift)


def inference_conv(kernel: Kernel, like: nn.Conv2d) -> nn.Conv2d:
    """Make a layer of a kernel, with the stride, padding, type and device of another layer.

    Its parameters want no gradient, and lie in memory with their channels last.
    """
    layer = nn.Conv2d(
        like.in_channels,
        like.out_channels,
        kernel.weight.shape[-2:],
        like.stride,
        like.padding,
        like.dilation,
        like.groups,
        device="meta",
    )
    layer.weight = constant(kernel.weight, like.weight, memory_format=torch.channels_last)
    layer.bias = constant(kernel.bias, like.weight)
    return layer


def inference_linear(weight: Tensor, bias: Tensor, like: Tensor) -> nn.Linear:
    """Make a linear layer of float64 numbers, in the type and on the device of ``like``."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = constant(weight, like)
    layer.bias = constant(bias, like)
    return layer


def inference_layer_norm(norm: nn.LayerNorm) -> nn.LayerNorm:
    """Copy a LayerNorm: its statistics are of the input, so there is nothing to fold."""
    layer = nn.LayerNorm(norm.normalized_shape, norm.eps, device="meta")
    layer.weight = constant(exact(norm.weight), norm.weight)
    layer.bias = constant(exact(norm.bias), norm.weight)
    return layer


def constant(
    value: Tensor, like: Tensor, *, memory_format: torch.memory_format = torch.contiguous_format
) -> nn.Parameter:
    """Make a parameter without gradient, in the type and on the device of ``like``."""
    tensor = value.to(device=like.device, dtype=like.dtype).contiguous(memory_format=memory_format)
    return nn.Parameter(tensor, requires_grad=False)


def gelu_(x: Tensor) -> Tensor:
    """Exact GELU that overwrites its input: memory for a new map would cost more than the activation does."""
    result: Tensor = torch.ops.aten.gelu_(x)
    return result
