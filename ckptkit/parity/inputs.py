"""What both models see: seeded random numbers, or one image prepared as its checkpoint wants it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ckptkit.base.errors import UsageError
from ckptkit.base.tensors import Array
from ckptkit.models.images.decoding import open_image
from ckptkit.models.images.preprocessing import DEFAULT_INTERPOLATION, NORMALIZATIONS, Preprocessing

DEFAULT_SEED = 20260101
"""Seed of the inputs that the reference outputs of the published code were recorded with."""

DEFAULT_BATCH = 2

SIDES = (32, 4096)
"""Smallest and largest input side: the models' stride, and what no classifier exceeds."""

_LARGEST_SEED = 2**128 - 1


@dataclass(frozen=True)
class Inputs:
    """A batch of images and where it came from.

    Parameters
    ----------
    batch, height, width : int
    seed : int or None
        Of random inputs; None for an image.
    image : Path or None
    normalization : str or None
        How the image was normalized; None for random inputs, which stand for normalized ones.
    """

    batch: int
    height: int
    width: int
    seed: int | None = None
    image: Path | None = None
    normalization: str | None = None
    resize: int | None = None
    interpolation: str | None = None

    def array(self) -> Array:
        """Make the batch: (batch, height, width, 3) float32.

        Raises
        ------
        NotFoundError, FormatError
            When the image file is not there, or is no image.
        """
        if self.image is not None:
            return _image_array(self)
        import numpy

        generator = numpy.random.Generator(numpy.random.Philox(key=self.seed or 0))
        return generator.standard_normal((self.batch, self.height, self.width, 3), dtype=numpy.float32)

    def preprocessing(self) -> Preprocessing:
        """How an image is prepared for this batch."""
        return Preprocessing(
            (self.height, self.width),
            self.normalization or "imagenet",
            self.resize,
            self.interpolation or DEFAULT_INTERPOLATION,
        )

    def __str__(self) -> str:
        size = f"{self.height}x{self.width}"
        if self.image is not None:
            return f"image {self.image} at {size}, normalization {self.normalization}"
        return f"{self.batch} random inputs at {size}, seed {self.seed}"


def random_inputs(batch: int | None, size: tuple[int, int], seed: int | None) -> Inputs:
    """Describe standard normal inputs, the same on every machine.

    Raises
    ------
    UsageError
        When batch or seed is out of range.

    Examples
    --------
    >>> random_inputs(None, (64, 32), None).array().shape
    (2, 64, 32, 3)
    """
    batch = DEFAULT_BATCH if batch is None else batch
    seed = DEFAULT_SEED if seed is None else seed
    if batch < 1:
        raise UsageError(f"a batch of {batch}", hint="one input at least")
    if not 0 <= seed <= _LARGEST_SEED:
        raise UsageError(f"seed {seed}", hint="a number from 0 to 2**128 - 1")
    return Inputs(batch, *size, seed=seed)


def image_inputs(
    image: Path,
    batch: int | None,
    size: tuple[int, int],
    normalization: str,
    *,
    resize: int | None = None,
    interpolation: str | None = None,
) -> Inputs:
    """Describe one image: resized so that it covers ``size``, cut to its centre, normalized.

    Parameters
    ----------
    image : Path
        Any file that Pillow opens.
    batch : int or None
        An image is a batch of one.
    size : (int, int)
        Height and width of the input.
    normalization : {"imagenet", "half"}
    resize : int, optional
        Shorter side before the cut, in pixels, where the published evaluation has one.
    interpolation : str, optional
        ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``; default bicubic.

    Raises
    ------
    UsageError
        When more than one input is asked for, or the normalization is unknown.
    """
    if batch not in (None, 1):
        raise UsageError(f"one image is a batch of 1, not of {batch}", hint="leave --batch out")
    if normalization not in NORMALIZATIONS:
        raise UsageError(f"no normalization {normalization!r}", hint="one of " + ", ".join(NORMALIZATIONS))
    return Inputs(
        1,
        *size,
        image=image,
        normalization=normalization,
        resize=resize,
        interpolation=interpolation or DEFAULT_INTERPOLATION,
    )


def parse_resolution(value: int | tuple[int, int], *, what: str = "resolution") -> tuple[int, int]:
    """Read a resolution, a side or (height, width), and refuse what no input can have.

    Raises
    ------
    UsageError
        When a side is not within `SIDES`.

    Examples
    --------
    >>> parse_resolution(224), parse_resolution((192, 256))
    ((224, 224), (192, 256))
    """
    height, width = (value, value) if isinstance(value, int) else value
    if not all(SIDES[0] <= side <= SIDES[1] for side in (height, width)):
        raise UsageError(
            f"{what} {height}x{width}", hint=f"both sides must be from {SIDES[0]} to {SIDES[1]} pixels"
        )
    return height, width


def _image_array(inputs: Inputs) -> Array:
    image: Array = inputs.preprocessing()(open_image(inputs.image or Path()))[None]
    return image
