"""MogaNet (arXiv:2211.03295), published for PyTorch by Westlake-AI: in OpenMixup, and in timm's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ckptkit.families.base import MUST_BE_TOLD, Family, Structure
from ckptkit.families.moganet.config import MOGANET_CONFIGS, MOGANET_DEFINITIONS, moganet_sites
from ckptkit.families.moganet.layouts import MOGANET_LAYOUTS
from ckptkit.rules.language import Site


class MogaNet(Family):
    """The six MogaNet variants."""

    name = "moganet"
    definitions = MOGANET_DEFINITIONS
    layouts = MOGANET_LAYOUTS
    published_layouts = ("openmixup", "torch")
    containers: Mapping[str, Sequence[str]] = {
        "openmixup": ("torch",),
        "torch": ("torch",),
        "keras": ("keras", "tf"),
    }
    default_layout: Mapping[str, str] = {
        "tf": "keras",
        "torch": "torch",
        "safetensors": "torch",
        "keras": "keras-h5",
        "npz": "torch",
    }
    behaviour: Mapping[str, Any] = {"attn_force_fp32": MUST_BE_TOLD}
    has_pos_emb = False

    @property
    def variants(self) -> Sequence[str]:
        """Names of the variants."""
        return tuple(MOGANET_CONFIGS)

    def sites(self, variant: str, structure: Structure) -> Mapping[str, Sequence[Site]]:
        """Places of a variant where tensors stand."""
        return moganet_sites(MOGANET_CONFIGS[variant], num_classes=structure.num_classes)

    def default_resolution(self, variant: str) -> int:
        """Input side of the published figures of every variant; XT and T have files for 256 too."""
        return MOGANET_CONFIGS[variant].resolution

    def normalization(self, variant: str) -> str:
        """Input normalization of the published checkpoints: ImageNet's, for all."""
        return "imagenet"

    def unread_at_small_inputs(self, structure: Structure) -> str:
        """Which values a forward pass at a small resolution does not read."""
        return "maps are not reached by the outer values of the large dilated kernels"


MOGANET = MogaNet()
