"""MogaNet's six variants and the tensors they are made of.

Source of every number: arXiv:2211.03295 and the published code of Westlake-AI/MogaNet and OpenMixup.
"""

from __future__ import annotations

from dataclasses import dataclass

from ckptkit.base.errors import NotFoundError
from ckptkit.families.layouts import batch_norm, conv
from ckptkit.rules.language import Definition, Site

BATCH_NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class MogaNetConfig:
    """One variant."""

    name: str  # ``moganet-xt`` … ``moganet-xl``
    widths: tuple[int, int, int, int]  # channels per stage
    depths: tuple[int, int, int, int]  # blocks per stage
    # Hidden channels of the feed-forward part, in multiples of the stage's channels
    expansions: tuple[int, int, int, int] = (8, 8, 4, 4)
    resolution: int = 224  # input side in pixels of the published figures


MOGANET_CONFIGS: dict[str, MogaNetConfig] = {
    config.name: config
    for config in (
        MogaNetConfig("moganet-xt", (32, 64, 96, 192), (3, 3, 10, 2)),
        MogaNetConfig("moganet-t", (32, 64, 128, 256), (3, 3, 12, 2)),
        MogaNetConfig("moganet-s", (64, 128, 320, 512), (2, 3, 12, 2)),
        MogaNetConfig("moganet-b", (64, 160, 320, 512), (4, 6, 22, 3)),
        MogaNetConfig("moganet-l", (64, 160, 320, 640), (4, 6, 44, 4)),
        MogaNetConfig("moganet-xl", (96, 192, 480, 960), (6, 6, 44, 4)),
    )
}


def moganet_config(variant: str) -> MogaNetConfig:
    """The variant of this name."""
    if variant not in MOGANET_CONFIGS:
        raise NotFoundError(
            f"unknown MogaNet variant {variant!r}", hint="choose from " + ", ".join(MOGANET_CONFIGS)
        )
    return MOGANET_CONFIGS[variant]


def value_split(width: int) -> tuple[int, int, int]:
    """Channels of the three branches of the multi-order value: an eighth, three eighths, a half.

    >>> value_split(64)
    (8, 24, 32)
    """
    low, high = width // 8, width // 2
    return low, width - low - high, high


def moganet_sites(config: MogaNetConfig, *, num_classes: int | None) -> dict[str, list[Site]]:
    """Return every place of a variant that has a tensor, with its indices and sizes.

    A block's ``number`` counts the blocks through all stages.
    """
    blocks: list[Site] = []
    stages: list[Site] = []
    previous = config.widths[0] // 2
    for stage, (width, depth, expansion) in enumerate(
        zip(config.widths, config.depths, config.expansions, strict=True), start=1
    ):
        member = int(stage > 1)  # birder counts the embedding of the later stages, the blocks, the norm
        stages.append({"stage": stage, "in": previous, "out": width, "member": member + depth})
        _, middle, high = value_split(width)
        blocks += [
            {
                "stage": stage,
                "block": block,
                "ordinal": block + 1,
                "member": member + block,
                "number": len(blocks) + block,
                "out": width,
                "hidden": expansion * width,
                "middle": middle,
                "high": high,
            }
            for block in range(depth)
        ]
        previous = width
    return {
        "stem": stages[:1],
        "downsample": stages[1:],
        "block": blocks,
        "stage": stages,
        "head": [] if num_classes is None else [{"width": previous, "classes": num_classes}],
    }


EMBEDDING_BIAS = "embedding_bias"
"""The part that biases of convolutions before a norm are: an edition of the network has none."""

_BLOCK = "blocks{stage}.{block}"
_PATCH = "patch_embed{stage}"

MOGANET_DEFINITIONS: tuple[Definition, ...] = (
    *conv(f"{_PATCH}.projection.0", "stem", "in", 3, 3, 3, bias_part=EMBEDDING_BIAS),
    *batch_norm(f"{_PATCH}.projection.1", "stem", "in", counter=True),
    *conv(f"{_PATCH}.projection.3", "stem", "out", "in", 3, 3, bias_part=EMBEDDING_BIAS),
    *batch_norm(f"{_PATCH}.projection.4", "stem", "out", counter=True),
    *conv(f"{_PATCH}.projection", "downsample", "out", "in", 3, 3, bias_part=EMBEDDING_BIAS),
    *batch_norm(f"{_PATCH}.norm", "downsample", "out", counter=True),
    Definition(f"{_BLOCK}.layer_scale_1", (1, "out", 1, 1), "block"),
    Definition(f"{_BLOCK}.layer_scale_2", (1, "out", 1, 1), "block"),
    *batch_norm(f"{_BLOCK}.norm1", "block", "out", counter=True),
    *conv(f"{_BLOCK}.attn.proj_1", "block", "out", "out", 1, 1),
    *conv(f"{_BLOCK}.attn.gate", "block", "out", "out", 1, 1),
    *conv(f"{_BLOCK}.attn.value.DW_conv0", "block", "out", 1, 5, 5),
    *conv(f"{_BLOCK}.attn.value.DW_conv1", "block", "middle", 1, 5, 5),
    *conv(f"{_BLOCK}.attn.value.DW_conv2", "block", "high", 1, 7, 7),
    *conv(f"{_BLOCK}.attn.value.PW_conv", "block", "out", "out", 1, 1),
    *conv(f"{_BLOCK}.attn.proj_2", "block", "out", "out", 1, 1),
    Definition(f"{_BLOCK}.attn.sigma.scale", (1, "out", 1, 1), "block"),
    *batch_norm(f"{_BLOCK}.norm2", "block", "out", counter=True),
    *conv(f"{_BLOCK}.mlp.fc1", "block", "hidden", "out", 1, 1),
    *conv(f"{_BLOCK}.mlp.dwconv", "block", "hidden", 1, 3, 3),
    *conv(f"{_BLOCK}.mlp.fc2", "block", "out", "hidden", 1, 1),
    *conv(f"{_BLOCK}.mlp.decompose", "block", 1, "hidden", 1, 1),
    Definition(f"{_BLOCK}.mlp.sigma.scale", (1, "hidden", 1, 1), "block"),
    *batch_norm("norm{stage}", "stage", "out", counter=True),
    Definition("head.weight", ("classes", "width"), "head", part="head"),
    Definition("head.bias", ("classes",), "head", part="head"),
)
"""Every tensor of the architecture, in canonical terms: the names of the timm-style release."""
