"""Accuracy against cost: pictures for paper, and a page to look into.

matplotlib is imported only when a picture is really drawn.
"""

from __future__ import annotations

from ckptkit.analysis.plotting.figure import FigureOptions
from ckptkit.analysis.plotting.pareto import pareto_front
from ckptkit.analysis.plotting.saving import Saved, save_plot

__all__ = ["FigureOptions", "Saved", "pareto_front", "save_plot"]
