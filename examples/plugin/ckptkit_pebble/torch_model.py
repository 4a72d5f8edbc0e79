"""Pebble in PyTorch. Parameters have the names of the canonical layout."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from ckptkit_pebble.family import VARIANTS


class Pebble(nn.Module):
    """Images (N, 3, H, W) to logits (N, classes), or to the list of the stages' maps."""

    def __init__(self, variant, negative_slope, num_classes, features_only):
        super().__init__()
        width, depth = VARIANTS[variant]
        self.negative_slope = negative_slope
        self.features_only = features_only or num_classes is None
        self.stem = nn.Conv2d(3, width, 4, stride=4)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(depth))
        self.head = None if num_classes is None else nn.Linear(width, num_classes)

    def forward_stages(self, x):
        """Outputs by name, in order; ckptkit compares them one by one."""
        outputs = {"stage1": self.stem(x)}
        for number, block in enumerate(self.blocks, start=2):
            before = outputs[f"stage{number - 1}"]
            outputs[f"stage{number}"] = before + F.leaky_relu(block(before), self.negative_slope)
        if self.head is not None:
            outputs["logits"] = self.head(list(outputs.values())[-1].mean(dim=(2, 3)))
        return outputs

    def forward(self, x):
        """Logits, or the maps."""
        outputs = self.forward_stages(x)
        logits = outputs.pop("logits", None)
        return list(outputs.values()) if self.features_only else logits


def build(variant, *, negative_slope=0.0, resolution=None, num_classes=1000, features_only=False):
    """Build a variant; the settings of the family are arguments."""
    return Pebble(variant, negative_slope, num_classes or None, features_only).float().eval()
