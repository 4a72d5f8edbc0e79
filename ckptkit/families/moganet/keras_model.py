"""MogaNet in Keras 3 with the TensorFlow backend, written from arXiv:2211.03295 and the measured facts.

Channels-last, float32. Variables are called as in the ``keras`` layout. Stochastic depth and dropout, which
act in training only, are not part of the model. The layers are in `keras_layers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from ckptkit.base.errors import NotFoundError, UsageError
from ckptkit.base.parse import parse_num_classes, parse_size
from ckptkit.families.keras_backend import keras
from ckptkit.families.keras_building import build_chain, require_images, track
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
class MogaNetModel(keras.Model):
    """One variant; the parameters are those of `build`.

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
                f"no MogaNet variant {variant!r}", hint="one of " + ", ".join(MOGANET_CONFIGS)
            )
        if not isinstance(attn_force_fp32, bool):
            raise UsageError(
                f"attn_force_fp32={attn_force_fp32!r}",
                hint="give True or False: the weights do not tell, and the logits depend on it",
            )
        config = MOGANET_CONFIGS[variant]
        classes = parse_num_classes(num_classes)
        size = parse_size(config.resolution if resolution is None else resolution, "resolution")
        super().__init__(name="moganet", dtype="float32")
        self.variant = variant
        self.attn_force_fp32 = attn_force_fp32
        self.num_classes = classes
        self.features_only = features_only
        self.resolution = size
        self.resolution_is_given = resolution is not None

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
        if classes is not None:
            self.head = keras.layers.Dense(classes, kernel_initializer="zeros", name="head", dtype="float32")

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

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Check the input's shape, where an error can still say so in one line, then run the model."""
        require_images(inputs)
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs: Tensor) -> Any:
        """Logits (N, classes), or the list of four feature maps."""
        outputs = self.forward_stages(inputs, head=not self.features_only)
        return outputs["logits"] if "logits" in outputs else list(outputs.values())

    def forward_stages(self, inputs: Any, *, head: bool = True) -> dict[str, Tensor]:
        """Run the model and keep what each stage gives."""
        require_images(inputs)
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
        return {
            "variant": self.variant,
            "attn_force_fp32": self.attn_force_fp32,
            "resolution": list(self.resolution) if self.resolution_is_given else None,
            "num_classes": self.num_classes,
            "features_only": self.features_only,
        }


def build(
    variant: str,
    *,
    attn_force_fp32: bool,
    resolution: int | tuple[int, int] | None = None,
    num_classes: int | None = 1000,
    features_only: bool = False,
) -> MogaNetModel:
    """Make a variant with all its variables, kernels and scales zero until they are loaded."""
    model = MogaNetModel(
        variant,
        attn_force_fp32=attn_force_fp32,
        resolution=resolution,
        num_classes=num_classes,
        features_only=features_only,
    )
    model.build((None, *model.resolution, 3))
    return model
