"""Accuracy against cost: pictures for paper, and a page to look into.

matplotlib is imported only when a picture is really drawn.
"""

from __future__ import annotations

from ckptkit.analysis.plot.figure import FigureOptions
from ckptkit.analysis.plot.points import pareto_front
from ckptkit.analysis.plot.saving import Saved, save_plot

__all__ = ["FigureOptions", "Saved", "pareto_front", "save_plot"]
