"""What the optimised PyTorch models of all families share: how they are called, and what they refuse."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ckptkit.base.errors import UsageError
from ckptkit.base.parse import Size

if TYPE_CHECKING:
    from typing_extensions import Self


class InferenceModel(nn.Module):
    """A model rewritten for inference: same inputs and outputs as the plain one, other parameters.

    Its maps lie in memory with their channels last, those it returns too. Its ``state_dict`` has other
    tensors than the canonical layout and loads into no plain model; keep the checkpoint it was made from. It
    cannot be trained: BatchNorm is gone. Moving it to a device, to bfloat16 or half, copying and pickling
    work as for every module.

    Parameters
    ----------
    variant : str
    resolution : tuple of int
        Input size (height, width) it is made for; other sizes work too.
    features_only : bool
        Whether calling it gives the stage outputs although there is a head.
    """

    head: nn.Linear | None

    def __init__(self, variant: str, *, resolution: Size, features_only: bool) -> None:
        super().__init__()
        self.variant = variant
        self.resolution = resolution
        self.features_only = features_only

    @abstractmethod
    def _stages(self, x: Tensor) -> list[Tensor]:
        """Outputs of all stages of a batch of images whose channels lie last."""

    @abstractmethod
    def forward_head(self, features: Tensor) -> Tensor:
        """``(N, C, h, w)`` of the last stage to logits ``(N, classes)``; only where there is a head."""

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Run everything but the head: see the plain model.

        Raises
        ------
        UsageError
            When the input is not a batch of RGB images, or as the plain model says.
        """
        if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape:
            raise UsageError(f"input of shape {list(x.shape)}", hint="the model takes (N, 3, H, W)")
        return self._stages(x.contiguous(memory_format=torch.channels_last))

    def forward_stages(self, x: Tensor) -> dict[str, Tensor]:
        """Outputs by name, in order: ``stage1`` …, ``logits`` if there is a head."""
        features = self.forward_features(x)
        outputs = {f"stage{n}": output for n, output in enumerate(features, start=1)}
        if self.head is not None:
            outputs["logits"] = self.forward_head(features[-1])
        return outputs

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(N, 3, H, W)`` to logits ``(N, classes)``, or to the stage outputs."""
        features = self.forward_features(x)
        return features if self.features_only else self.forward_head(features[-1])

    def require_head(self) -> nn.Module:
        """Return the head.

        Raises
        ------
        UsageError
            When there is none.
        """
        if self.head is None:
            raise UsageError("this model has no head", hint="build it with num_classes")
        return self.head

    def train(self, mode: bool = True) -> Self:
        """Refuse training mode.

        Raises
        ------
        UsageError
            When ``mode`` is true.
        """
        if mode:
            raise UsageError(
                f"this {self.variant} is optimised for inference and cannot be trained: it has no BatchNorm",
                hint="build it with optimize=False",
            )
        super().train(False)
        return self

    def extra_repr(self) -> str:
        """Say what it is, first thing in its repr."""
        return (
            f"{self.variant}, optimised for inference at {self.resolution[0]}x{self.resolution[1]}; "
            "its state_dict loads into no plain model"
        )
