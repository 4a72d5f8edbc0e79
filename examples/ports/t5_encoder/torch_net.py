"""The T5-style encoder in PyTorch, with one matrix for q, k and v."""

import torch
from sizes import BLOCKS, BUCKETS, HEADS, INNER, SIZE, VOCABULARY, WIDTH, buckets
from torch import nn


class Attention(nn.Module):
    """Self-attention with one matrix for q, k and v."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * HEADS * SIZE, bias=False)
        self.out = nn.Linear(HEADS * SIZE, WIDTH, bias=False)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Run it."""
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, SIZE)).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-1, -2) + bias).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a feed-forward layer, each after its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = nn.RMSNorm(WIDTH, 1e-6), Attention()
        self.norm2 = nn.RMSNorm(WIDTH, 1e-6)
        self.fc1, self.fc2 = nn.Linear(WIDTH, INNER, bias=False), nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Run it."""
        x = x + self.attn(self.norm1(x), bias)
        return x + self.fc2(self.fc1(self.norm2(x)).relu())


class Encoder(nn.Module):
    """Token ids in, encoded tokens out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.position_bias = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(BUCKETS, HEADS)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = nn.RMSNorm(WIDTH, 1e-6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Run it."""
        bias = self.position_bias(torch.from_numpy(buckets(ids.shape[1]))).permute(2, 0, 1)
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, bias)
        return self.norm(x)
