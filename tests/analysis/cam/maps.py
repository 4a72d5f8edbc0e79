"""Heat maps made by hand, without a model."""

from __future__ import annotations

from typing import Any

import numpy

from ckptkit.analysis.cam.picture import Heatmap
from ckptkit.models.images.classes import imagenet_classes
from tests.support.pictures import drawn


def heatmap(heat: Any = None, *, size: tuple[int, int] = (60, 40), **changed: Any) -> Heatmap:
    """A heat map of a drawn picture; ``size`` is (width, height)."""
    values = numpy.array([[0, 0.25, 0.5], [0, 1, 0]] if heat is None else heat, dtype=numpy.float32)
    known: dict[str, Any] = {
        "name": "moganet-xt-224",
        "picture": drawn(*size),
        "heat": values,
        "strength": float(values.max()),
        "index": 207,
        "image_class": imagenet_classes()[207],
        "probability": 0.123,
        "predicted": True,
        "method": "gradcam",
        "stage": "stage4",
        "preprocessing": "as published",
    }
    return Heatmap(**{**known, **changed})
