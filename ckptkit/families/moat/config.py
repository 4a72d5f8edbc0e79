"""MOAT's nine variants and the tensors they are made of.

Source of every number: arXiv:2210.01820 and the published code of google-research/deeplab2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckptkit.base.errors import NotFoundError
from ckptkit.families.layouts import batch_norm, conv, layer_norm
from ckptkit.rules.language import Definition, Site

HEAD_SIZE = 32
EXPANSION = 4
SE_RATIO = 0.25
BATCH_NORM_EPSILON = 1e-3
LAYER_NORM_EPSILON = 1e-5
FIRST_ATTENTION_STAGE = 2
"""Stages before this one are MBConv blocks, from here on MOAT blocks."""

POSITION_TABLE_SIZE = {2: 27, 3: 13}
"""Side of the relative position table by stage, the same at every resolution: 2·14 − 1 and 2·7 − 1."""

PUBLISHED_TABLE_SIZES = tuple((side, side) for side in POSITION_TABLE_SIZE.values())


@dataclass(frozen=True)
class MoatConfig:
    """One variant."""

    name: str  # ``moat0`` … ``tiny-moat3``
    stem: int  # channels of the two stem convolutions
    depths: tuple[int, int, int, int]  # blocks per stage
    widths: tuple[int, int, int, int]  # channels per stage
    resolution: int  # input side in pixels that the published checkpoints were trained at
    # ``imagenet`` or ``half``: what the published checkpoints' inputs were normalized with
    normalization: str


MOAT_CONFIGS: dict[str, MoatConfig] = {
    config.name: config
    for config in (
        MoatConfig("moat0", 64, (2, 3, 7, 2), (96, 192, 384, 768), 224, "imagenet"),
        MoatConfig("moat1", 64, (2, 6, 14, 2), (96, 192, 384, 768), 224, "imagenet"),
        MoatConfig("moat2", 128, (2, 6, 14, 2), (128, 256, 512, 1024), 384, "half"),
        MoatConfig("moat3", 160, (2, 12, 28, 2), (160, 320, 640, 1280), 512, "half"),
        MoatConfig("moat4", 256, (2, 12, 28, 2), (256, 512, 1024, 2048), 512, "half"),
        MoatConfig("tiny-moat0", 32, (2, 3, 7, 2), (32, 64, 128, 256), 256, "imagenet"),
        MoatConfig("tiny-moat1", 40, (2, 3, 7, 2), (40, 80, 160, 320), 256, "imagenet"),
        MoatConfig("tiny-moat2", 56, (2, 3, 7, 2), (56, 112, 224, 448), 256, "imagenet"),
        MoatConfig("tiny-moat3", 80, (2, 3, 7, 2), (80, 160, 320, 640), 256, "imagenet"),
    )
}


def moat_config(variant: str) -> MoatConfig:
    """The variant of this name."""
    if variant not in MOAT_CONFIGS:
        raise NotFoundError(
            f"unknown MOAT variant {variant!r}", hint="choose from " + ", ".join(MOAT_CONFIGS)
        )
    return MOAT_CONFIGS[variant]


def moat_sites(
    config: MoatConfig,
    *,
    pos_emb: bool,
    num_classes: int | None,
    table_sizes: Sequence[tuple[int, int]] | None = None,
) -> dict[str, list[Site]]:
    """Return every place of a variant that has a tensor, with its indices and sizes.

    A block's ``number`` counts the blocks of its kind, MBConv or MOAT, through all stages.
    """
    sides = dict(zip(POSITION_TABLE_SIZE, table_sizes or PUBLISHED_TABLE_SIZES, strict=True))
    blocks: list[Site] = []
    channels = config.stem
    of_kind = [0, 0]
    for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
        for block in range(depth):
            blocks.append(
                {
                    "stage": stage,
                    "block": block,
                    "number": of_kind[stage >= FIRST_ATTENTION_STAGE],
                    "in": channels,
                    "out": width,
                    "hidden": EXPANSION * width,
                    "squeezed": int(SE_RATIO * width),
                    "heads": width // HEAD_SIZE,
                    "d": HEAD_SIZE,
                    "table_rows": sides.get(stage, (0, 0))[0],
                    "table_columns": sides.get(stage, (0, 0))[1],
                }
            )
            of_kind[stage >= FIRST_ATTENTION_STAGE] += 1
            channels = width
    attention = [site for site in blocks if site["stage"] >= FIRST_ATTENTION_STAGE]
    return {
        "stem": [{"stem": config.stem}],
        "block": blocks,
        "shortcut": [site for site in blocks if site["in"] != site["out"]],
        "mbconv": [site for site in blocks if site["stage"] < FIRST_ATTENTION_STAGE],
        "attention": attention,
        "position": attention if pos_emb else [],
        "head": [] if num_classes is None else [{"width": channels, "classes": num_classes}],
    }


_BLOCK = "stages.{stage}.{block}"

POSITION_TABLE = f"{_BLOCK}.attention.relative_position_embedding"
"""Canonical name of a block's table."""

MOAT_DEFINITIONS: tuple[Definition, ...] = (
    *conv("stem.conv_0", "stem", "stem", 3, 3, 3),
    *batch_norm("stem.norm_0", "stem", "stem"),
    *conv("stem.conv_1", "stem", "stem", "stem", 3, 3),
    *conv(f"{_BLOCK}.shortcut_conv", "shortcut", "out", "in", 1, 1),
    *batch_norm(f"{_BLOCK}.pre_norm", "block", "in"),
    *conv(f"{_BLOCK}.expand_conv", "block", "hidden", "in", 1, 1, bias=False),
    *batch_norm(f"{_BLOCK}.expand_norm", "block", "hidden"),
    *conv(f"{_BLOCK}.depthwise_conv", "block", "hidden", 1, 3, 3, bias=False),
    *batch_norm(f"{_BLOCK}.depthwise_norm", "block", "hidden"),
    *conv(f"{_BLOCK}.se.reduce", "mbconv", "squeezed", "hidden", 1, 1),
    *conv(f"{_BLOCK}.se.expand", "mbconv", "hidden", "squeezed", 1, 1),
    *conv(f"{_BLOCK}.shrink_conv", "block", "out", "hidden", 1, 1),
    *layer_norm(f"{_BLOCK}.attention_norm", "attention", "out"),
    Definition(POSITION_TABLE, ("heads", "table_rows", "table_columns"), "position", part="position"),
    *conv(f"{_BLOCK}.attention.q", "attention", "out", "out"),
    *conv(f"{_BLOCK}.attention.k", "attention", "out", "out"),
    *conv(f"{_BLOCK}.attention.v", "attention", "out", "out"),
    *conv(f"{_BLOCK}.attention.o", "attention", "out", "out"),
    *layer_norm("norm", "head", "width", part="head"),
    Definition("head.weight", ("classes", "width"), "head", part="head"),
    Definition("head.bias", ("classes",), "head", part="head"),
)
"""Every tensor of the architecture, in canonical (PyTorch) terms."""
