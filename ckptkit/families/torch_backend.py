"""What the PyTorch models of all families have in common: NCHW, float32, for inference."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from ckptkit.base.errors import UsageError
from ckptkit.base.parse import Size, parse_num_classes


class StagedModel(nn.Module):
    """A model that gives the outputs of its stages one after the other, the logits last."""

    def __init__(
        self,
        variant: str,
        *,
        num_features: int,
        resolution: Size,
        num_classes: int | None,
        features_only: bool,
    ) -> None:
        super().__init__()
        self.variant = variant
        self.num_features = num_features  # channels of the last stage, which the head takes
        self.resolution = resolution
        self.num_classes = num_classes
        self.features_only = features_only or num_classes is None
        self.head: nn.Module | None = None

    @abstractmethod
    def stage_outputs(self, x: Tensor) -> list[Tensor]:
        """Maps ``(N, C, h, w)`` of all stages, from images ``(N, 3, H, W)``."""

    @abstractmethod
    def pooled(self, x: Tensor) -> Tensor:
        """What the head takes, ``(N, C)``, from the last stage's map."""

    def reset_classifier(self, num_classes: int | None) -> None:
        """Give the model a new head of this many classes, which must be trained.

        With None or 0 it has none, and a call gives the list of the stages' maps.
        """
        self.num_classes = parse_num_classes(num_classes)
        self.features_only = self.num_classes is None
        like = next(self.parameters())
        self.head = None
        if self.num_classes is not None:
            self.head = nn.Linear(
                self.num_features, self.num_classes, device=like.device, dtype=like.dtype
            ).train(self.training)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Run everything but the head."""
        if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape:
            raise UsageError(f"input of shape {list(x.shape)}", hint="the model takes (N, 3, H, W)")
        return self.stage_outputs(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """``(N, C, h, w)`` of the last stage to logits ``(N, classes)``; only where there is a head."""
        if self.head is None:
            raise UsageError("this model has no head", hint="build it with num_classes")
        return self.head(self.pooled(features))

    def forward_stages(self, x: Tensor) -> dict[str, Tensor]:
        """Outputs by name, in order: ``stage1`` …, then ``logits`` where there is a head."""
        features = self.forward_features(x)
        outputs = {f"stage{n}": output for n, output in enumerate(features, start=1)}
        if self.head is not None:
            outputs["logits"] = self.forward_head(features[-1])
        return outputs

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(N, 3, H, W)`` to logits ``(N, classes)``, or to the list of the stages' maps."""
        features = self.forward_features(x)
        return features if self.features_only else self.forward_head(features[-1])
