"""MogaNet (arXiv:2211.03295), published for PyTorch by Westlake-AI: in OpenMixup, and in timm's style.

Others publish it too: kecam for Keras 2, birder for PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ckptkit.families.base import Family, PublishedFile, Setting, Structure
from ckptkit.families.moganet import published
from ckptkit.families.moganet.config import MOGANET_CONFIGS, MOGANET_DEFINITIONS, moganet_sites
from ckptkit.families.moganet.dense import parts_around
from ckptkit.families.moganet.layouts import MOGANET_LAYOUTS
from ckptkit.rules.language import Shape, Site

if TYPE_CHECKING:
    from ckptkit.registry.schema import Entry


class MogaNet(Family):
    """The six MogaNet variants."""

    name, title = "moganet", "MogaNet"
    summary = "convolutions with multi-order gated aggregation"
    definitions = MOGANET_DEFINITIONS
    layouts = MOGANET_LAYOUTS
    layout_titles: Mapping[str, str] = {
        "openmixup": "OpenMixup",
        "torch": "timm-style files",
        "kecam": "keras_cv_attention_models",
    }
    published_files: Mapping[str, PublishedFile] = {
        "openmixup": PublishedFile("torch", ".pth", published.openmixup_tree),
        "torch": PublishedFile("torch", ".pth.tar", published.timm_tree),
        "kecam": PublishedFile("keras2", ".h5"),
        "birder": PublishedFile("torch", ".pt", published.birder_tree),
    }
    containers: Mapping[str, Sequence[str]] = {
        "openmixup": ("torch",),
        "torch": ("torch",),
        "keras": ("keras", "tf"),
        "kecam": ("keras2",),
        "birder": ("torch",),
    }
    default_layout: Mapping[str, str] = {"tf": "keras", "keras": "keras-h5", "keras2": "kecam"}
    settings: Mapping[str, Setting] = {
        # Without default: both functions are in use, and no tensor of the authors' files tells which.
        "attn_force_fp32": Setting(
            bool,
            "MogaNet: the gate of the OpenMixup configs, which applies its activation twice.",
            title="attn_force_fp32",
        ),
    }
    models: Mapping[str, str] = {
        "torch": "ckptkit.families.moganet.torch_model",
        "keras": "ckptkit.families.moganet.keras_model",
    }
    flops = published.MMCV
    papers = published.PAPERS
    pages = published.PAGES
    consumer = published.MMDETECTION
    markers: Mapping[tuple[str | None, bool | None, str | None, str], str] = {
        (None, None, "DeiT", "openmixup"): "full",
        (None, None, "DeiT III", "openmixup"): "tint",
        (None, None, "RSB A3", "openmixup"): "open",
        (None, None, "DeiT", "torch"): "dot",
        ("mmpretrain", None, None, "openmixup"): "eye",
        ("kecam", None, None, "kecam"): "target",
    }

    @property
    def variants(self) -> Sequence[str]:
        """Names of the variants."""
        return tuple(MOGANET_CONFIGS)

    def sites(self, variant: str, structure: Structure) -> Mapping[str, Sequence[Site]]:
        """Every place of a variant where a tensor is."""
        return moganet_sites(MOGANET_CONFIGS[variant], num_classes=structure.num_classes)

    def default_resolution(self, variant: str) -> int:
        """Input side of the published figures of every variant; XT and T have files for 256 too."""
        return MOGANET_CONFIGS[variant].resolution

    def normalization(self, variant: str) -> str:
        """Input normalization of the published checkpoints: ImageNet's, for all."""
        return "imagenet"

    def parts_around(self, entry: Entry) -> Mapping[str, Shape]:
        """Neck and heads of the authors' dense-prediction files."""
        return parts_around(MOGANET_CONFIGS[entry.variant].widths, entry.method, entry.setting)

    def unread_at_small_inputs(self, structure: Structure) -> str:
        """Which values a forward pass at a small resolution does not read."""
        return "maps are not reached by the outer values of the large dilated kernels"


MOGANET = MogaNet()
