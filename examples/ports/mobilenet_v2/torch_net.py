"""MobileNetV2 in PyTorch, with torchvision's names.

Two things differ from torchvision's code, or the outputs would: BatchNorm's epsilon is 1e-3, and a
convolution of stride 2 pads right and bottom only, as TensorFlow does where the size is even.
"""

import torch
from torch import nn
from torch.nn import functional

WIDTH, CLASSES, LAST = 0.35, 10, 1280
# Expansion, channels, blocks and first stride of each group of blocks.
GROUPS = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]


def rounded(channels: float) -> int:
    """The nearest multiple of 8, never more than a tenth smaller."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


class SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pad where the stride is 2, then convolve."""
        return super().forward(functional.pad(x, (0, 1, 0, 1)) if self.stride == (2, 2) else x)


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution, its norm and ReLU6."""
    padding = kernel // 2 if stride == 1 else 0
    layer = SameConv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs, eps=1e-3), nn.ReLU6())


class InvertedResidual(nn.Module):
    """A block: wider, depthwise, narrower."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers = [conv(inputs, hidden)] if expansion != 1 else []
        layers += [conv(hidden, hidden, 3, stride, groups=hidden)]
        project = [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs, eps=1e-3)]
        self.conv = nn.Sequential(*layers, *project)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the input where it has the same size."""
        y: torch.Tensor = self.conv(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """The whole model."""

    def __init__(self) -> None:
        super().__init__()
        channels = rounded(32 * WIDTH)
        features: list[nn.Module] = [conv(3, channels, 3, 2)]
        for expansion, base, count, first in GROUPS:
            for block in range(count):
                outputs = rounded(base * WIDTH)
                features.append(InvertedResidual(channels, outputs, 1 if block else first, expansion))
                channels = outputs
        self.features = nn.Sequential(*features, conv(channels, LAST))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(LAST, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give the logits."""
        logits: torch.Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits
