"""What MOAT's PyTorch model needs beyond PyTorch: the operations that TensorFlow does differently.

The published model leaves padding and the resizing of tables to TensorFlow's defaults; they are spelled out
here.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


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
