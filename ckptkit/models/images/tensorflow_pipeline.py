"""The published preparation of a picture once more, by TensorFlow alone.

Written from the description, with nothing of `preprocessing` but what a checkpoint asks for,
so that the two can be set against each other: no Pillow, no size or offset computed there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptkit.base.tensors import Array
from ckptkit.models.images.preprocessing import NEAREST, ROWS_AT_ONCE, NoEquivalentError

if TYPE_CHECKING:
    from ckptkit.models.images.preprocessing import Preprocessing

_METHODS = {"bilinear": "bilinear", "bicubic": "bicubic", "lanczos": "lanczos3"}
_MEAN_AND_SCALE = {
    "imagenet": (
        (123.675, 116.28, 103.53),
        (1 / 58.395, 1 / 57.12, 1 / 57.375),
    ),
    "half": ((127.5, 127.5, 127.5), (1 / 127.5, 1 / 127.5, 1 / 127.5)),
    "birds": ((132.3705, 135.303, 124.3635), (1 / 59.058, 1 / 58.752, 1 / 65.994)),
}
"""In levels, as TensorFlow's published pipelines have them: 255 times mean and deviation of RGB in [0, 1]."""


def prepare(pixels: Array, wanted: Preprocessing) -> Array:
    """Prepare decoded pixels.

    ``pixels``: (height, width, 3) uint8, RGB. Returns (rows, columns, 3) float32.
    """
    from ckptkit.families.keras_backend import tf

    rows, columns = wanted.size
    with tf.device("CPU:0"):
        height, width = pixels.shape[:2]
        new_height, new_width = _resized_sides(height, width, wanted)
        across = []  # in strips: as float32 a large picture takes three times what it took
        for top in range(0, height, ROWS_AT_ONCE):
            strip = tf.cast(tf.constant(pixels[top : top + ROWS_AT_ONCE]), tf.float32)
            across.append(_resize(strip, (strip.shape[0], new_width), wanted.interpolation))
        image = _resize(tf.concat(across, axis=0), (new_height, new_width), wanted.interpolation)
        top, left = (_before(excess) for excess in (new_height - rows, new_width - columns))
        image = tf.image.crop_to_bounding_box(image, top, left, rows, columns)
        mean, scale = _MEAN_AND_SCALE[wanted.normalization]
        prepared: Array = ((image - mean) * scale).numpy()
    return prepared


def _resized_sides(height: int, width: int, wanted: Preprocessing) -> tuple[int, int]:
    """Height and width after resizing: which side is given follows from the picture's shape."""
    rows, columns = wanted.size
    if wanted.resize is None or wanted.resize < max(rows, columns):
        across = rows * width >= columns * height  # of a picture wider than the input, the height is given
        given = rows if across else columns
    else:
        across, given = width >= height, wanted.resize
    return (given, given * width // height) if across else (given * height // width, given)


def _before(excess: int) -> int:
    """Pixels cut off at the top or the left: half of all, and an odd pixel so that they are even."""
    return (excess + 1) // 4 * 2 + (excess % 4 == 2)


def _resize(image: Any, size: tuple[int, int], interpolation: str) -> Any:
    """Resize one side; the picture has 256 levels afterwards, as it had before."""
    from ckptkit.families.keras_backend import tf

    if interpolation == "nearest":
        raise NoEquivalentError(f"TensorFlow: {NEAREST}")
    if tuple(image.shape[:2]) == size:
        return image
    resized = tf.image.resize(image, size, method=_METHODS[interpolation], antialias=True)
    return tf.floor(tf.clip_by_value(resized, 0.0, 255.0) + 0.5)  # halves up, where tf.round goes to even
