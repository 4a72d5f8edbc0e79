"""An MLP-Mixer in PyTorch, with timm's names; its GELU is the approximation that Flax computes."""

import torch
from sizes import BLOCKS, CHANNELS, CLASSES, PATCH, SEQUENCE, TOKENS, WIDTH
from torch import nn


class Mlp(nn.Module):
    """Two dense layers."""

    def __init__(self, outer: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(outer, inner), nn.GELU("tanh"), nn.Linear(inner, outer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Mixing over tokens, then over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.mlp_tokens = nn.LayerNorm(WIDTH, 1e-6), Mlp(SEQUENCE, TOKENS)
        self.norm2, self.mlp_channels = nn.LayerNorm(WIDTH, 1e-6), Mlp(WIDTH, CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        x = x + self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp_channels(self.norm2(x))


class Stem(nn.Module):
    """Patches as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        return self.proj(x).flatten(2).transpose(1, 2)


class Mixer(nn.Module):
    """The whole model."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = Stem(), nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH, 1e-6), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        return self.head(self.norm(self.blocks(self.stem(x))).mean(1))
