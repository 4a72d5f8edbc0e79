"""MOAT (arXiv:2210.01820), published for TensorFlow by google-research/deeplab2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ckptkit.families.base import Family, Structure
from ckptkit.families.moat.config import MOAT_CONFIGS, MOAT_DEFINITIONS, moat_sites
from ckptkit.families.moat.layouts import MOAT_LAYOUTS
from ckptkit.layouts import Site


class Moat(Family):
    """The nine MOAT variants."""

    name = "moat"
    definitions = MOAT_DEFINITIONS
    layouts = MOAT_LAYOUTS
    published_layouts = ("deeplab2",)
    default_layout: Mapping[str, str] = {
        "tf": "deeplab2",
        "torch": "torch",
        "safetensors": "torch",
        "keras": "keras-h5",
        "npz": "torch",
    }
    behaviour: Mapping[str, Any] = {"pool_size": 2, "window_size": None, "global_attention": False}

    @property
    def variants(self) -> Sequence[str]:
        """Names of the variants."""
        return tuple(MOAT_CONFIGS)

    def sites(self, variant: str, structure: Structure) -> Mapping[str, Sequence[Site]]:
        """Places of a variant where tensors stand."""
        return moat_sites(MOAT_CONFIGS[variant], pos_emb=structure.pos_emb, num_classes=structure.num_classes)

    def default_resolution(self, variant: str) -> int:
        """Input side that the published checkpoints of a variant were trained at."""
        return MOAT_CONFIGS[variant].resolution

    def normalization(self, variant: str) -> str:
        """Input normalization of the published checkpoints of a variant."""
        return MOAT_CONFIGS[variant].normalization

    def unread_at_small_inputs(self, structure: Structure) -> str:
        """Which values a forward pass at a small resolution does not read."""
        return "windows read only parts of the position tables" if structure.pos_emb else ""


MOAT = Moat()
