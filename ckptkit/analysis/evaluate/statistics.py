"""BatchNorm statistics of a whole set of images: Precise BN.

As in "Rethinking 'Batch' in BatchNorm" (arXiv:2105.07576) and fvcore's ``update_bn_stats``, every layer is
normalized by the statistics of the batch at hand while the images pass through, and what each layer sees is
gathered over all of them. Gathered are the moments of the population itself, mean and variance with division
by the number of values, in float64 and batch by batch (T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating
formulae and a pairwise algorithm for computing sample variances", 1979), rather than an average of variances:
that would leave the variance between the batches' means out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy

from ckptkit.base.tensors import Array


@dataclass
class Moments:
    """Mean and variance of a growing number of values for each channel."""

    values: int = 0  # for each channel
    mean: Array = field(default_factory=lambda: numpy.zeros(1))  # (C,) float64
    # Sum of squared distances from the mean, (C,) float64
    squares: Array = field(default_factory=lambda: numpy.zeros(1))

    def add(self, values: int, mean: Array, squares: Array) -> None:
        """Take more values in."""
        total = self.values + values
        step = mean - self.mean
        self.squares = self.squares + squares + step**2 * (self.values * values / total)
        self.mean = self.mean + step * (values / total)
        self.values = total

    @property
    def variance(self) -> Array:
        """Of the population: divided by the number of values."""
        variance: Array = self.squares / self.values
        return variance


@contextmanager
def gathered_moments(model: Any) -> Iterator[dict[str, Moments]]:
    """Gather what every BatchNorm layer sees of the images that pass while the block runs."""
    import torch

    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)
    }
    found = {name: Moments() for name in layers}

    def hook(name: str) -> Any:
        def before(layer: Any, inputs: tuple[Any, ...]) -> None:
            values, mean, squares = _moments(inputs[0])
            found[name].add(values, mean.cpu().numpy(), squares.cpu().numpy())
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(squares / values)

        return before

    hooks = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield found
    finally:
        for one in hooks:
            one.remove()


def _moments(maps: Any) -> tuple[int, Any, Any]:
    """Values, mean and sum of squared distances for each channel of (N, C, H, W), in float64.

    One image at a time: a whole batch in float64 would take twice the memory of the largest map.
    """
    import torch

    each = [torch.var_mean(image.double(), dim=(1, 2), correction=0) for image in maps]
    variances = torch.stack([variance for variance, _ in each])
    means = torch.stack([mean for _, mean in each])
    area = maps.shape[2] * maps.shape[3]
    mean = means.mean(dim=0)
    return len(maps) * area, mean, area * (variances + (means - mean) ** 2).sum(dim=0)


def even_groups(images: int, batch_size: int) -> list[range]:
    """Cut so many images into batches whose sizes differ by one at most, none larger than asked for.

    A last batch of a single image would weigh like any other value but be normalized by itself.

    >>> even_groups(9, 4)
    [range(0, 3), range(3, 6), range(6, 9)]
    """
    count = -(-images // batch_size)
    starts = [images * n // count for n in range(count + 1)]
    return [range(start, end) for start, end in itertools.pairwise(starts)]
