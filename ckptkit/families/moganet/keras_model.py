"""MogaNet in Keras 3 with the TensorFlow backend, written from arXiv:2211.03295 and the measured facts.

Channels-last, float32. Variables are called as in the ``keras`` layout. Stochastic depth and dropout, which
act in training only, are not part of the model. The layers are in `keras_layers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from ckptkit.base.errors import NotFoundError, UsageError
from ckptkit.families.keras_backend import keras
from ckptkit.families.keras_models import StagedModel, build_chain, built, track
from ckptkit.families.keras_state import load_state, variables_by_name
from ckptkit.families.moganet import keras_layers
from ckptkit.families.moganet.config import MOGANET_CONFIGS
from ckptkit.families.moganet.keras_layers import (
    MogaBlock,
    PatchEmbed,
    StemEmbed,
    Tensor,
    batch_norm,
)

STAGES = ("stage1", "stage2", "stage3", "stage4")
"""The four feature maps, normalized, at strides 4, 8, 16 and 32."""

__all__ = ["STAGES", "MogaNetModel", "build", "load_state", "variables_by_name"]


@keras.saving.register_keras_serializable(package="ckptkit")
class MogaNetModel(StagedModel):
    """One variant.

    Calling it with images (N, H, W, 3) gives the logits (N, classes), or the list of the four feature maps
    (N, H/4, W/4, C1) … (N, H/32, W/32, C4), rounded up, when it is headless or ``features_only``.
    """

    def __init__(
        self,
        variant: str,
        *,
        attn_force_fp32: bool,
        resolution: int | tuple[int, int] | None = None,
        num_classes: int | None = 1000,
        features_only: bool = False,
    ) -> None:
        if variant not in MOGANET_CONFIGS:
            raise NotFoundError(
                f"unknown MogaNet variant {variant!r}", hint="one of " + ", ".join(MOGANET_CONFIGS)
            )
        if not isinstance(attn_force_fp32, bool):
            raise UsageError(
                f"attn_force_fp32={attn_force_fp32!r}",
                hint="give True or False: the weights do not tell, and the logits depend on it",
            )
        config = MOGANET_CONFIGS[variant]
        super().__init__(
            "moganet",
            variant,
            usual=config.resolution,
            resolution=resolution,
            num_classes=num_classes,
            features_only=features_only,
        )
        self.attn_force_fp32 = attn_force_fp32

        self.patch_embeds: list[Any] = [StemEmbed(config.widths[0], "patch_embed1")]
        for stage, (channels, width) in enumerate(zip(config.widths, config.widths[1:], strict=False), 2):
            self.patch_embeds.append(PatchEmbed(channels, width, f"patch_embed{stage}"))
        # One flat list: Keras saves the layers of a list, and does not look for lists in it.
        self.blocks = [
            MogaBlock(width, ratio * width, f"blocks{stage}_{block}", attn_force_fp32=attn_force_fp32)
            for stage, (width, depth, ratio) in enumerate(
                zip(config.widths, config.depths, config.expansions, strict=True), 1
            )
            for block in range(depth)
        ]
        self.norms = [batch_norm(f"norm{stage}") for stage in range(1, len(config.widths) + 1)]
        track(self, (*self.patch_embeds, *self.blocks, *self.norms))
        self.head = None
        if self.num_classes is not None:
            self.head = keras.layers.Dense(
                self.num_classes, kernel_initializer="zeros", name="head", dtype="float32"
            )

    def _stages(self) -> Iterator[tuple[Any, Sequence[MogaBlock], Any]]:
        """Patch embedding, blocks and last norm of each stage."""
        depths = MOGANET_CONFIGS[self.variant].depths
        for depth, end, embed, norm in zip(
            depths, accumulate(depths), self.patch_embeds, self.norms, strict=True
        ):
            yield embed, self.blocks[end - depth : end], norm

    def build(self, input_shape: Any) -> None:
        """Create every variable from the channels alone, without computing a map."""
        channels = 3
        for width, (embed, blocks, norm) in zip(
            MOGANET_CONFIGS[self.variant].widths, self._stages(), strict=True
        ):
            build_chain((embed,), channels)
            build_chain((*blocks, norm), width)
            channels = width
        if self.head is not None:
            self.head.build((None, channels))

    def forward_stages(self, inputs: Any, *, head: bool = True) -> dict[str, Tensor]:
        """Run the model and keep what each stage gives."""
        self.check_input(inputs)
        x = keras.ops.convert_to_tensor(inputs, dtype="float32")
        outputs = {}
        for name, (embed, blocks, norm) in zip(STAGES, self._stages(), strict=True):
            x = embed(x)
            for block in blocks:
                x = block(x)
            outputs[name] = x = norm(x)
        if head and self.head is not None:
            pooled = keras.ops.squeeze(keras_layers.spatial_mean(x), axis=(1, 2))
            outputs["logits"] = self.head(pooled)
        return outputs

    def get_config(self) -> dict[str, Any]:
        """Return the parameters, for ``model.save``."""
        return {**super().get_config(), "attn_force_fp32": self.attn_force_fp32}


def build(variant: str, *, attn_force_fp32: bool, **options: Any) -> MogaNetModel:
    """Make a variant with all its variables, zero until they are loaded; options as for `MogaNetModel`."""
    model: MogaNetModel = built(MogaNetModel(variant, attn_force_fp32=attn_force_fp32, **options))
    return model
