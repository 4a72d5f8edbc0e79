"""Variants of one block a stage: whole models whose export takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ckptkit.families.moat.config import MOAT_CONFIGS
from ckptkit.families.moganet.config import MOGANET_CONFIGS
from ckptkit.models import create_model
from ckptkit.models.synth import Synthetic, write_checkpoint

MOAT, MOGANET = "toy-moat", "toy-moganet"
SIDE = 64
SETTINGS: dict[str, dict[str, Any]] = {MOAT: {}, MOGANET: {"attn_force_fp32": True}}
STAGES = {
    MOAT: ("stage1", "stage2", "stage3", "stage4", "stage5"),
    MOGANET: ("stage1", "stage2", "stage3", "stage4"),
}


@contextmanager
def toy_variants() -> Iterator[None]:
    """Make both families know their toy."""
    moat = replace(
        MOAT_CONFIGS["tiny-moat0"],
        name=MOAT,
        stem=16,
        depths=(1, 1, 1, 1),
        widths=(16, 32, 32, 64),
        resolution=SIDE,
    )
    moganet = replace(
        MOGANET_CONFIGS["moganet-xt"],
        name=MOGANET,
        widths=(16, 16, 32, 48),
        depths=(1, 1, 1, 1),
        resolution=SIDE,
    )
    with patch.dict(MOAT_CONFIGS, {MOAT: moat}), patch.dict(MOGANET_CONFIGS, {MOGANET: moganet}):
        yield


def toy_file(folder: Path, variant: str) -> Path:
    """Write a toy's checkpoint as its family publishes them, with the recipe's weights."""
    return write_checkpoint(Synthetic(variant), folder / f"{variant}.ckpt", force=True)


def toy_model(folder: Path, variant: str, framework: Any = "torch", **options: Any) -> Any:
    """Build a toy with the weights of its file."""
    path = toy_file(folder, variant)
    return create_model(variant, framework, checkpoint=path, **{**SETTINGS[variant], **options})
