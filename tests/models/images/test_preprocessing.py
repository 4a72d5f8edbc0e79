"""The published preparation: sizes, crop, filter, normalization, set against arithmetic done by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ckptkit.base.errors import FormatError, UsageError
from ckptkit.models.images.preprocessing import MOST_PIXELS, Preprocessing
from tests.support.pictures import drawn

image = pytest.importorskip("PIL.Image")


def of(size, resize=None, **options):
    return Preprocessing(size, options.pop("normalization", "half"), resize, **options)


@pytest.mark.parametrize(
    ("wanted", "picture", "resized"),
    [
        # torchvision's Resize(248): int(248 * longer / shorter); 248 * 500 / 333 = 372.37
        (of((224, 224), 248), (500, 333), (372, 248)),
        (of((224, 224), 248), (333, 500), (248, 372)),
        (of((224, 224), 248), (300, 300), (248, 248)),
        # 248 * 299 / 224 = 331.04, 248 * 4999 / 5000 is never reached: the shorter side is given
        (of((224, 224), 248), (4999, 5000), (248, 248)),
        (of((224, 224), 248), (1, 3), (248, 744)),
        # without a size of its own the picture just covers the input, whichever side that needs
        (of((256, 256)), (640, 480), (341, 256)),
        (of((192, 256)), (500, 333), (288, 192)),
        (of((192, 256)), (300, 400), (256, 341)),
        (of((192, 256)), (400, 300), (256, 192)),
        # a shorter side smaller than the input would leave a part of it empty
        (of((64, 96), 80), (100, 100), (96, 96)),
    ],
)
def test_sizes(wanted, picture, resized):
    assert wanted.resized(*picture) == resized
    assert resized[0] >= wanted.size[1]
    assert resized[1] >= wanted.size[0]


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (248, 248, (12, 12, 236, 236)),
        (372, 248, (74, 12, 298, 236)),
        # odd excesses: torchvision's CenterCrop takes int(round(excess / 2)), half to even
        (225, 224, (0, 0, 224, 224)),
        (227, 224, (2, 0, 226, 224)),
        (229, 224, (2, 0, 226, 224)),
        (224, 231, (0, 4, 224, 228)),
    ],
)
def test_the_centre(width, height, box):
    assert of((224, 224)).box(width, height) == box


@pytest.mark.parametrize("size", [(5, 4), (12, 7)])
@pytest.mark.parametrize("resize", [None, 16])
def test_one_colour_stays_itself(size, resize):
    prepared = Preprocessing((8, 12), "imagenet", resize)(image.new("RGB", size, (255, 0, 51)))
    assert prepared.dtype == np.float32
    assert prepared.shape == (8, 12, 3)
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(prepared, np.broadcast_to(expected, prepared.shape), rtol=1e-6)


def test_a_picture_of_the_right_size_is_only_normalized():
    pixels = np.arange(32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 3)
    prepared = of((32, 32))(image.fromarray(pixels))
    np.testing.assert_allclose(prepared, pixels / 127.5 - 1, atol=1e-6)


def test_the_crop_is_of_the_resized_picture():
    wanted = of((32, 32), 40)
    picture = drawn(90, 60)
    whole = np.asarray(picture.resize((60, 40), image.Resampling.BICUBIC))
    np.testing.assert_array_equal(np.asarray(wanted.cut(picture)), whole[4:36, 14:46])


@pytest.mark.parametrize("size", [(90, 333), (90, 200), (40, 333), (333, 90)])
def test_resizing_is_across_then_down_whatever_the_version_of_pillow(size):
    """Set against the kernel itself: cubic with a = -1/2, widened when shrinking, rounded after each pass."""
    picture, wanted = drawn(*size), of((64, 64), 72)
    pixels = np.asarray(picture).astype(np.float64)
    width, height = wanted.resized(*size)
    for axis, length in ((1, width), (0, height)):
        pixels = np.floor(np.tensordot(weights(pixels.shape[axis], length), pixels, (1, axis)) + 0.5)
        pixels = np.moveaxis(pixels.clip(0, 255), 0, axis)
    left, top = round((width - 64) / 2), round((height - 64) / 2)
    cut = np.asarray(wanted.cut(picture)).astype(np.float64)
    difference = np.abs(cut - pixels[top : top + 64, left : left + 64])
    assert difference.max() <= 2
    assert difference.mean() < 0.01


def weights(old, new):
    """Keys' cubic convolution as a (new, old) matrix."""
    scale = max(old / new, 1)
    centres = (np.arange(new) + 0.5) * old / new
    x = np.abs((np.arange(old) + 0.5 - centres[:, None]) / scale)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    kernel = np.where(x < 1, near, np.where(x < 2, far, 0))
    return kernel / kernel.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3000, 2)])
def test_tiny_and_narrow_pictures(size):
    prepared = of((32, 48), 50)(drawn(*size))
    assert prepared.shape == (32, 48, 3)
    assert np.isfinite(prepared).all()


def test_what_would_take_gigabytes_is_refused_in_words():
    wanted = of((224, 224), 248)
    longest = MOST_PIXELS // 248 // 248
    assert wanted.cut(image.new("RGB", (longest, 1))).size == (224, 224)
    with pytest.raises(FormatError, match=rf"{longest + 1}x1 pixels are too long and narrow"):
        wanted.cut(image.new("RGB", (longest + 1, 1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalization": "zscore"}, "unknown normalization 'zscore'"),
        ({"interpolation": "area"}, "unknown interpolation"),
    ],
)
def test_what_is_not_known_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        of((32, 32), **options)
