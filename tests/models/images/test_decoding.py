"""Pictures of every kind become upright RGB; what is damaged or says nothing of white is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ckptkit.base.errors import FormatError, NotFoundError
from ckptkit.models.images.decoding import open_image
from tests.support.pictures import drawn, encoded, save

image = pytest.importorskip("PIL.Image")

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def corners(picture):
    """The colours of a 2×2 picture, row by row."""
    assert (picture.mode, picture.size) == ("RGB", (2, 2))
    return [picture.getpixel((x, y)) for y in range(2) for x in range(2)]


def two_by_two(mode, *pixels):
    picture = image.new(mode, (2, 2))
    picture.putdata(pixels)
    return picture


def test_transparency_lies_on_white():
    rgba = two_by_two("RGBA", (*RED, 255), (*RED, 0), (0, 0, 0, 51), (*BLUE, 255))
    assert corners(open_image(encoded(rgba))) == [RED, WHITE, (204, 204, 204), BLUE]
    grey = two_by_two("LA", (10, 255), (10, 0), (0, 51), (200, 255))
    assert corners(open_image(encoded(grey))) == [(10, 10, 10), WHITE, (204, 204, 204), (200, 200, 200)]


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_of_a_plain_mode_lies_on_white_too(mode):
    if mode == "P":
        picture = two_by_two("P", 0, 1, 1, 0)
        picture.putpalette([*RED, *BLUE])
        content, kept = encoded(picture, transparency=1), RED
    elif mode == "L":
        content, kept = encoded(two_by_two("L", 9, 77, 77, 9), transparency=77), (9, 9, 9)
    else:
        content, kept = encoded(two_by_two("RGB", RED, BLUE, BLUE, RED), transparency=BLUE), RED
    assert corners(open_image(content)) == [kept, WHITE, WHITE, kept]


def test_a_palette_without_transparency():
    picture = two_by_two("P", 0, 1, 1, 0)
    picture.putpalette([*RED, *BLUE])
    assert corners(open_image(encoded(picture))) == [RED, BLUE, BLUE, RED]


def test_grey_and_black_and_white():
    assert corners(open_image(encoded(two_by_two("L", 0, 100, 200, 255))))[1] == (100, 100, 100)
    assert corners(open_image(encoded(two_by_two("1", 0, 255, 255, 0))))[1] == WHITE


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bits_of_grey_are_scaled_not_cut(format):
    levels = np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16)
    picture = open_image(encoded(image.fromarray(levels), format))
    assert [colour[0] for colour in corners(picture)] == [0, 100, 200, 255]


def test_a_portable_graymap_of_16_bits():
    content = b"P5 2 2 65535\n" + np.array([0, 257 * 100, 257 * 200, 65535], ">u2").tobytes()
    assert [colour[0] for colour in corners(open_image(content))] == [0, 100, 200, 255]


@pytest.mark.parametrize(
    ("levels", "reason"),
    [
        (np.array([[0, 1], [2, 70_000]], np.int32), "integers beyond 16 bits"),
        (np.array([[0, -1], [2, 3]], np.int32), "integers beyond 16 bits"),
        (np.array([[0, 0.5], [1, 2]], np.float32), "floating-point numbers"),
    ],
)
def test_numbers_that_do_not_say_what_is_white_are_refused(levels, reason):
    with pytest.raises(FormatError, match=f"deep.tif: its pixels are {reason}"):
        open_image(encoded(image.fromarray(levels), "TIFF"), "deep.tif")


def test_cmyk_becomes_rgb_by_the_plain_formula():
    picture = two_by_two("CMYK", (0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255))
    assert corners(open_image(encoded(picture, "TIFF"))) == [WHITE, (0, 255, 255), RED, (0, 0, 0)]
    flat = image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert np.abs(np.asarray(open_image(encoded(flat, "JPEG"))) - np.array([0, 255, 255])).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    """Each value by its definition: where row 0 and column 0 of the stored picture are seen (EXIF, 4.6.4)."""
    seen = np.array([[[10, 0, 0], [20, 0, 0], [30, 0, 0]], [[40, 0, 0], [50, 0, 0], [60, 0, 0]]], np.uint8)
    stored = {
        1: seen,
        2: seen[:, ::-1],
        3: seen[::-1, ::-1],
        4: seen[::-1],
        5: seen.transpose(1, 0, 2),
        6: seen.transpose(1, 0, 2)[::-1],
        7: seen[::-1, ::-1].transpose(1, 0, 2),
        8: seen.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = image.Exif()
    exif[0x0112] = orientation
    content = encoded(image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(np.asarray(open_image(content)), seen)


def test_the_first_frame_of_an_animation():
    frames = [image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(content).getpixel((0, 0)) == RED


def test_a_file_is_named_and_looked_at_by_content(tmp_path):
    path = save(drawn(8, 8), tmp_path / "a.png")
    path = path.rename(tmp_path / "a.jpg")
    assert open_image(path).size == (8, 8)
    with pytest.raises(NotFoundError, match=r"none\.png: no such image"):
        open_image(tmp_path / "none.png")


def test_many_threads_decode_at_once_and_each_fault_is_its_own(monkeypatch):
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 100)
    good, large, damaged = encoded(drawn(8, 8)), encoded(drawn(11, 11)), encoded(drawn(8, 8))[:-30]

    def load(number):
        try:
            return open_image((good, large, damaged)[number % 3], str(number)).size
        except FormatError as error:
            return error.reason

    with ThreadPoolExecutor(8) as pool, pytest.warns(image.DecompressionBombWarning):
        found = list(pool.map(load, range(300)))
    assert found[0::3] == [(8, 8)] * 100
    assert found[1::3] == ["11x11 pixels (RGB PNG) are too many for an input image"] * 100
    assert all(reason.startswith("damaged image") for reason in found[2::3])


def test_what_the_system_does_not_let_be_read(tmp_path):
    with pytest.raises(FormatError, match=r"cannot be read \(Is a directory\)"):
        open_image(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_every_truncation_is_refused_or_decodes_whole(format, tmp_path):
    content = encoded(drawn(12, 12), format)
    for length in range(0, len(content), max(1, len(content) // 60)):
        try:
            assert open_image(content[:length], "cut").size == (12, 12)
        except FormatError as error:
            assert str(error).startswith("cut: ")
