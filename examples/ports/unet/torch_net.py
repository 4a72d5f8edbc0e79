"""A UNet of two levels in PyTorch, and a file of random weights: ``python torch_net.py FILE.pth``."""

import sys

import torch
from torch import nn


def double(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions, each with its norm and ReLU."""
    layers: list[nn.Module] = []
    for size in (inputs, outputs):
        layers += [nn.Conv2d(size, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Down twice and up again, with what was seen on the way down."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = double(3, 8), double(8, 16), double(16, 32)
        self.up2, self.merge2 = nn.ConvTranspose2d(32, 16, 2, 2), double(32, 16)
        self.up1, self.merge1 = nn.ConvTranspose2d(16, 8, 2, 2), double(16, 8)
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give two channels of the input's size."""
        one = self.down1(x)
        two = self.down2(self.pool(one))
        x = self.middle(self.pool(two))
        x = self.merge2(torch.cat([two, self.up2(x)], 1))
        x = self.merge1(torch.cat([one, self.up1(x)], 1))
        head: torch.Tensor = self.head(x)
        return head


if __name__ == "__main__":
    torch.manual_seed(0)
    model = UNet()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            around = 1.0 if value.ndim == 1 and name.endswith(("weight", "var")) else 0.0
            value.copy_(around + 0.15 * torch.randn_like(value))
    torch.save(model.state_dict(), sys.argv[1])
