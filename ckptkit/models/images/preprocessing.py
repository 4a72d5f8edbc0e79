"""From a picture to a model's input, as the published evaluation of a checkpoint does it.

Resize the shorter side, keep the centre, normalize. Pillow resizes (as torchvision's and OpenMixup's
evaluation does), so that both frameworks' models see the same numbers. Sizes and offsets are rounded as
torchvision's ``Resize`` and ``CenterCrop`` round them. `ckptkit.models.images.torch_pipeline` and
`ckptkit.models.images.tensorflow_pipeline` do the same once more, each with its framework alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptkit.base.errors import FormatError, UsageError, choose_from
from ckptkit.base.tensors import Array

if TYPE_CHECKING:
    from PIL.Image import Image

    from ckptkit.models.loading import Framework

NORMALIZATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "birds": ((0.5191, 0.5306, 0.4877), (0.2316, 0.2304, 0.2588)),
}
"""Mean and standard deviation of each channel, for RGB in [0, 1]."""

_SAME = 5e-4
"""Mean and deviation are published with three or four decimals."""


def normalization_by(mean: Sequence[float], std: Sequence[float]) -> str | None:
    """The name of a normalization that is given in numbers; None where it has none.

    >>> normalization_by((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), normalization_by((0, 0, 0), (1, 1, 1))
    ('imagenet', None)
    """
    found = (*mean, *std)
    for name, known in NORMALIZATIONS.items():
        numbers = (*known[0], *known[1])
        if len(found) == 6 and all(abs(a - b) < _SAME for a, b in zip(found, numbers, strict=True)):
            return name
    return None


DEFAULT_INTERPOLATION = "bicubic"
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")

MOST_PIXELS = 24_000_000
"""Pixels that a resized picture may have: 96 MB, and as much again while it is made."""


@dataclass(frozen=True)
class Preprocessing:
    """How a checkpoint wants its pictures.

    >>> from PIL import Image
    >>> Preprocessing((224, 224), "imagenet", resize=248)(Image.new("RGB", (640, 480))).shape
    (224, 224, 3)
    """

    size: tuple[int, int]  # height and width of the input, pixels
    normalization: str
    # Shorter side before the centre crop, pixels, where the published evaluation has one
    resize: int | None = None
    interpolation: str = DEFAULT_INTERPOLATION

    def __post_init__(self) -> None:
        for what, value, known in (
            ("normalization", self.normalization, tuple(NORMALIZATIONS)),
            ("interpolation", self.interpolation, INTERPOLATIONS),
        ):
            if value not in known:
                raise UsageError(f"unknown {what} {value!r}", hint=choose_from(known))

    def __call__(self, picture: Image) -> Array:
        """Prepare one picture: (height, width, 3) float32."""
        return self.normalized(self.cut(picture))

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Size (width, height) to which a picture of this size is resized before the crop.

        One side is given, the other follows in proportion, cut off to whole pixels.

        >>> Preprocessing((224, 224), "imagenet", resize=248).resized(500, 333)
        (372, 248)
        >>> Preprocessing((192, 256), "imagenet").resized(500, 333)
        (288, 192)
        """
        rows, columns = self.size
        if self.resize is not None and self.resize >= max(rows, columns):
            shorter = min(width, height)
            return self.resize * width // shorter, self.resize * height // shorter
        if columns * height >= rows * width:
            return columns, columns * height // width
        return rows * width // height, rows

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the centre crop in a resized picture of this size."""
        rows, columns = self.size
        left, top = round((width - columns) / 2), round((height - rows) / 2)
        return left, top, left + columns, top + rows

    def cut(self, picture: Image) -> Image:
        """Resize the shorter side, then keep the centre: what the model sees, before normalization."""
        from PIL import Image

        filters = Image.Resampling[self.interpolation.upper()]
        resized = self.resized(picture.width, picture.height)
        if math.prod(resized) > MOST_PIXELS:
            raise FormatError(
                "image",
                f"{picture.width}x{picture.height} pixels are too long and narrow: resized they would be "
                f"{resized[0]:,}x{resized[1]:,}",
                hint="cut out the part that matters",
            )
        # Across, then down, as one call of Pillow did up to version 12; later ones resize tall pictures down
        # first, which rounds some pixels differently, by 13 levels of 255 at hard edges.
        across = picture.resize((resized[0], picture.height), filters)
        return across.resize(resized, filters).crop(self.box(*resized))

    def normalized(self, picture: Image) -> Array:
        """Normalize a picture of the input's size: (height, width, 3) float32."""
        import numpy

        mean, std = (numpy.array(rgb, numpy.float32) for rgb in NORMALIZATIONS[self.normalization])
        pixels = numpy.asarray(picture, dtype=numpy.float32) / numpy.float32(255)
        normalized: Array = (pixels - mean) / std
        return normalized

    def __str__(self) -> str:
        rows, columns = self.size
        before = f"shorter side to {self.resize}" if self.resize else "resized to cover"
        return f"{before}, {self.interpolation}, centre {rows}x{columns}, normalization {self.normalization}"


@dataclass(frozen=True)
class Transform:
    """Makes a model's input of pictures: `ckptkit.transform`."""

    preprocessing: Preprocessing
    framework: Framework

    def __call__(self, pictures: Image | Array | Sequence[Image | Array]) -> Any:
        """Prepare pictures for a call of the model.

        Parameters
        ----------
        pictures : PIL.Image.Image or numpy.ndarray, or a sequence of them
            An array is (H, W, 3) RGB or (H, W) grey, uint8. Sizes may differ.

        Returns
        -------
        torch.Tensor or numpy.ndarray
            float32: (N, 3, height, width) for PyTorch and ONNX Runtime, (N, height, width, 3) for Keras; N is
            1 for a single picture.
        """
        import numpy

        several = pictures if isinstance(pictures, Sequence) else [pictures]
        if not several:
            raise UsageError("no pictures", hint="give one at least")
        batch = numpy.stack([self.preprocessing(_upright(one)) for one in several])
        if self.framework == "keras":
            return batch
        batch = numpy.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        if self.framework == "onnxruntime":
            return batch
        import torch

        return torch.from_numpy(batch)

    def __str__(self) -> str:
        return f"{self.preprocessing}, for {self.framework}"


def _upright(picture: Any) -> Image:
    """A picture as RGB, the right way up; an array is one that is upright."""
    from PIL import Image

    from ckptkit.models.images.decoding import upright_rgb

    if hasattr(picture, "convert"):
        return upright_rgb(picture, "image")
    shape, dtype = getattr(picture, "shape", None), str(getattr(picture, "dtype", None))
    if shape is None or dtype != "uint8" or not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)):
        what = f"an array {dtype} {tuple(shape)}" if shape is not None else repr(picture)
        raise UsageError(
            f"{what} is not a picture", hint="give PIL images, or uint8 arrays of (height, width, 3)"
        )
    return Image.fromarray(picture).convert("RGB")


NEAREST = "of two pixels equally near, 'nearest' takes another one than Pillow's"

ROWS_AT_ONCE = 1024
"""Of a picture that is resized across: every row by itself."""


class NoEquivalentError(Exception):
    """A framework has nothing that does the same: the comparison is skipped, and says so."""
