"""A heat map: where in one picture the evidence for one class lies."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from ckptkit.analysis.cam.methods import METHODS
from ckptkit.base.tensors import Array
from ckptkit.models.images.classes import ImageClass

if TYPE_CHECKING:
    from PIL.Image import Image

_ROWS = ("top", "middle", "bottom")
_COLUMNS = ("left", "centre", "right")


@dataclass(frozen=True)
class Spot:
    """A place in the picture as the model saw it."""

    x: float  # pixels from the left and from the top edge
    y: float
    width: int  # size of the picture, pixels
    height: int

    @property
    def words(self) -> str:
        """In which ninth of the picture it lies.

        >>> Spot(200, 20, 224, 224).words
        'top right'
        """
        row = _ROWS[min(int(3 * self.y / self.height), 2)]
        column = _COLUMNS[min(int(3 * self.x / self.width), 2)]
        return "centre" if (row, column) == ("middle", "centre") else f"{row} {column}"

    def to_json(self) -> dict[str, Any]:
        """``x``, ``y`` in pixels and in words."""
        return {"x": round(self.x, 2), "y": round(self.y, 2), "words": self.words}


@dataclass(frozen=True, eq=False)
class Heatmap:
    """Where in a picture the evidence for a class lies, as one method tells it from one stage."""

    name: str  # the entry's id, or the file: whose weights
    picture: Image  # the picture as the model saw it: resized and cut, before normalization
    # ``(h, w)`` float32 at the stage's resolution, 0 (no evidence, or evidence against) to 1 (most)
    heat: Array
    # The largest value before the map was scaled to 1, in units of the class's logit (of the map itself for
    # ``eigencam``)
    strength: float
    index: int  # the class, by its place among the logits
    image_class: ImageClass | None  # the same with its names
    probability: float  # the model's, of this class
    predicted: bool  # whether it is the class the model finds most probable
    method: str  # ``gradcam`` …, ``stage1`` …
    stage: str
    synthetic: bool = False  # whether the weights are random numbers: the heat means nothing then
    preprocessing: str = field(default="", repr=False)

    @property
    def is_empty(self) -> bool:
        """Whether the heat is zero everywhere: nothing in the picture speaks for the class."""
        return self.strength <= 0

    @property
    def short_name(self) -> str:
        """The id, or the file without its folders: what a picture that is passed on may tell."""
        return PurePath(self.name).name

    @property
    def class_name(self) -> str:
        """The class in words, or ``class 7`` where it has no name."""
        return self.image_class.name if self.image_class else f"class {self.index}"

    @property
    def method_title(self) -> str:
        """The method as its authors call it."""
        return METHODS[self.method].title

    @property
    def peak(self) -> Spot | None:
        """Where the heat is highest: the middle of that cell; None when there is no heat."""
        if self.is_empty:
            return None
        row, column = divmod(int(self.heat.argmax()), self.heat.shape[1])
        return self._spot(row, column)

    @property
    def centroid(self) -> Spot | None:
        """Mean place, weighted by the heat; None when there is no heat."""
        if self.is_empty:
            return None
        import numpy

        heat = self.heat.astype(numpy.float64)
        total = heat.sum()
        rows, columns = numpy.arange(heat.shape[0]), numpy.arange(heat.shape[1])
        return self._spot(heat.sum(axis=1) @ rows / total, heat.sum(axis=0) @ columns / total)

    def _spot(self, row: float, column: float) -> Spot:
        width, height = self.picture.size
        x = (float(column) + 0.5) * width / self.heat.shape[1]
        y = (float(row) + 0.5) * height / self.heat.shape[0]
        return Spot(x, y, width, height)

    def upsampled(self) -> Array:
        """The heat at the picture's resolution, (H, W) float32: bilinear, half-pixel centres, edges clamped.

        Bicubic interpolation would overshoot and leave rings around every peak.
        """
        import numpy
        from PIL import Image

        drawn = Image.fromarray(self.heat).resize(self.picture.size, Image.Resampling.BILINEAR)
        larger: Array = numpy.asarray(drawn, dtype=numpy.float32)
        return larger

    def overlay(self, alpha: float = 0.5, colormap: str = "ember") -> Image:
        """Lay the heat over the picture."""
        from ckptkit.analysis.cam.drawing import Style, overlay

        return overlay(self, Style(alpha=alpha, colormap=colormap))

    def save(
        self,
        path: str | Path,
        *,
        layout: str = "overlay",
        alpha: float = 0.5,
        colormap: str = "ember",
        force: bool = False,
    ) -> Path:
        """Write a picture of it: PNG, JPEG or WebP by the name's ending."""
        from ckptkit.analysis.cam.drawing import Style, compose
        from ckptkit.analysis.cam.saving import require_ending, save_picture

        require_ending(Path(path))
        style = Style(layout=layout, alpha=alpha, colormap=colormap)
        return save_picture(compose([self], style), [self], Path(path), force=force)

    def to_json(self) -> dict[str, Any]:
        """Everything but the maps, as JSON has it."""
        known = self.image_class
        return {
            "name": self.name,
            "synthetic": self.synthetic,
            "class": {
                "index": self.index,
                "wnid": known.wnid if known else None,
                "name": known.name if known else None,
            },
            "probability": self.probability,
            "predicted": self.predicted,
            "method": self.method,
            "stage": self.stage,
            "grid": list(self.heat.shape),
            "input": [self.picture.height, self.picture.width],
            "preprocessing": self.preprocessing,
            "strength": self.strength,
            "peak": self.peak.to_json() if self.peak else None,
            "centroid": self.centroid.to_json() if self.centroid else None,
        }
