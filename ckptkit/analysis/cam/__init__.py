"""Class activation maps: where in a picture the evidence for a class lies.

`methods` has the maps' formulas with their papers, `layers` finds the module that makes a stage's output,
`explainer` runs them on a checkpoint, `heatmap` is what comes of it, `colours`, `drawing` and `saving` make
pictures of that. Nothing here imports torch, captum or Pillow before it is used.
"""

from __future__ import annotations

from ckptkit.analysis.cam.colours import COLORMAPS
from ckptkit.analysis.cam.drawing import LAYOUTS, Style, compose
from ckptkit.analysis.cam.explainer import (
    Explainer,
    SeenPicture,
    head_classes,
    read_picture,
    require_packages,
)
from ckptkit.analysis.cam.heatmap import Heatmap, Spot
from ckptkit.analysis.cam.methods import METHODS, Method, find_method
from ckptkit.analysis.cam.saving import require_ending, save_picture

__all__ = [
    "COLORMAPS",
    "LAYOUTS",
    "METHODS",
    "Explainer",
    "Heatmap",
    "Method",
    "SeenPicture",
    "Spot",
    "Style",
    "compose",
    "find_method",
    "head_classes",
    "read_picture",
    "require_ending",
    "require_packages",
    "save_picture",
]
