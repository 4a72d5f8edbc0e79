"""Pictures decoded: what each kind becomes, and what one may cost."""

from __future__ import annotations

import io
import os
import stat
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ckptkit.base.errors import FormatError, NotFoundError
from ckptkit.models.images.decoding import (
    FORMATS,
    MOST_MEMORY,
    ReducedPictureWarning,
    Room,
    open_image,
    opened_image,
    upright_rgb,
)
from ckptkit.models.images.gathering import ENDINGS
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


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    width: int, height: int, *, bits: int = 8, kind: int = 2, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A file that says this size, with the pixels of 8x8 of 8-bit RGB."""
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(8 * (1 + 3 * 8))))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + pixels + after + chunk(b"IEND", b"")


def directory(entries: list[tuple[int, int, int, int]], order: str = "<") -> bytes:
    """A TIFF file, or Exif block, of one directory: tag, type, count, value."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    table = b"".join(struct.pack(order + "HHLL", *entry) for entry in sorted(entries))
    return mark + struct.pack(order + "LH", 8, len(entries)) + table + bytes(4)


def many(count: int, order: str = "<") -> bytes:
    """Entries that all point at the whole block."""
    return directory([(0x1000 + tag, 7, 12 * count - 60, 8) for tag in range(count)], order)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def jpeg(*segments: bytes) -> bytes:
    whole = encoded(drawn(16, 16), "JPEG")
    return whole[:2] + b"".join(segments) + whole[2:]


def split_exif() -> bytes:
    """One block in as many segments as it needs, which Pillow joins."""
    block = many(20_000)
    return jpeg(
        *(segment(0xE1, b"Exif\0\0" + block[at : at + 60_000]) for at in range(0, len(block), 60_000))
    )


def many_scans() -> bytes:
    whole = encoded(drawn(64, 64), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * 200 + b"\xff\xd9"


def tiff(*entries: tuple[int, int, int, int]) -> bytes:
    usual = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    return directory([*usual, *entries]) + bytes(400)


TILES = ((324, 4, 1, 200), (325, 4, 1, 100))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            png(9400, 9400, kind=6),
            r"9400x9400 pixels \(RGBA PNG\) are too many for an input image; shrink it to",
        ),
        (png(9000, 9000, bits=1, kind=0), "9000x9000 pixels"),
        (png(9000, 9000, bits=16, kind=4), "9000x9000 pixels"),
        (png(7000, 7000, bits=16, kind=0), "7000x7000 pixels"),
        (png(49_000_000, 1), "49000000x1 pixels"),
        (png(1, 49_000_000), "1x49000000 pixels"),
        (png(65_535, 65_535), "too large"),
        (b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + bytes(3) + b",", "too large|not an image"),
        (
            b"BM" + struct.pack("<LLLLllHHLLllLL", 0, 0, 54, 40, 9000, 9000, 1, 32, *[0] * 6),
            "9000x9000 pixels",
        ),
        (b"P6 9000 9000 255\n", "9000x9000 pixels"),
        (png(8, 8, before=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50_000_000)))), "damaged image"),
        (png(8, 8, before=chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(50_000_000)))), "damaged image"),
        (png(8, 8, before=chunk(b"eXIf", many(2000))), "bytes of metadata"),
        (png(8, 8, after=chunk(b"eXIf", many(2000, ">"))), "bytes of metadata"),
        (
            png(
                8,
                8,
                before=chunk(
                    b"zTXt",
                    b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n1\n" + many(2000).hex().encode()),
                ),
            ),
            "bytes of metadata",
        ),
        (jpeg(segment(0xE1, b"Exif\0\0" + many(5000))), "bytes of metadata"),
        (jpeg(segment(0xE2, b"MPF\0" + many(5000, ">"))), "bytes of metadata"),
        (split_exif(), "bytes of metadata"),
        (jpeg(b"junk" * 30_000), "bytes of metadata"),
        (many_scans(), "more than 100 scans"),
        (tiff((322, 4, 1, 65_536), (323, 4, 1, 65_536), *TILES), "tiles of 65,536x65,536 pixels"),
        (tiff((273, 4, 3_000_000, 8), (279, 4, 3_000_000, 8)), "metadata|strips or tiles"),
        (tiff(*((40_000 + tag, 7, 8_000_000, 8) for tag in range(200))), "bytes of metadata"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value[:20],
)
def test_what_asks_for_too_much_is_refused(content: bytes, says: str):
    with pytest.raises(FormatError, match=f"^x.png: .*({says})") as refused:
        open_image(content, "x.png")
    assert len(str(refused.value)) < 300


@pytest.mark.filterwarnings("ignore:Tag data larger")
@pytest.mark.parametrize("format", ["WEBP", "AVIF"])
def test_exif_blocks_of_other_containers(format: str):
    if format not in image.SAVE:
        image.init()
    if format not in image.SAVE:
        pytest.skip(f"this Pillow writes no {format}")
    with pytest.raises(FormatError, match="bytes of metadata"):
        open_image(encoded(drawn(16, 16), format, exif=many(2000)))


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    "content",
    [
        POSTSCRIPT,
        struct.pack("<LLL", 0xC6D3D0C5, 30, len(POSTSCRIPT)) + bytes(18) + POSTSCRIPT,
        b"\xd7\xcd\xc6\x9a\0\0" + bytes(100),
        b"%PDF-1.4\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2000),
        b"8BPS\0\1" + bytes(200),
        b"GRIB" + bytes(100),
        b"\x89HDF\r\n\x1a\n" + bytes(100),
        b"BUFR" + bytes(100),
    ],
    ids=lambda content: content[:4].hex(),
)
@pytest.mark.parametrize("ending", [".jpg", ".eps", ".png"])
def test_no_program_is_started(content: bytes, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for program in ("gs", "gswin32c", "djpeg", "convert", "rsvg-convert", "inkscape"):
        path = tmp_path / "bin" / program
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\necho ran > {tmp_path / 'RAN'}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    picture = tmp_path / f"x{ending}"
    picture.write_bytes(content)
    for source in (picture, content, io.BytesIO(content)):
        with pytest.raises(FormatError, match="not an image of a format that is read"):
            open_image(source)
    if content is POSTSCRIPT:
        with image.open(picture) as opened, pytest.raises(FormatError, match="another program would have to"):
            upright_rgb(opened, "x")
    assert not (tmp_path / "RAN").exists()


def test_the_formats_are_those_of_the_endings():
    image.init()
    assert {image.EXTENSION[ending] for ending in ENDINGS} == set(FORMATS)


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Room for 100 x 100 pixels of RGB."""
    monkeypatch.setattr("ckptkit.models.images.decoding.MOST_MEMORY", 4 * 100 * 100 + 32 * 100)
    yield


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True, "subsampling": 2}], ids=["baseline", "progressive"]
)
def test_a_large_jpeg_is_decoded_at_half_its_size_and_says_so(options: dict[str, object]):
    picture = drawn(110, 90) if options else drawn(180, 120)
    content = encoded(picture, "JPEG", quality=95, **options)
    with pytest.warns(ReducedPictureWarning, match=r"^big.jpg: \d+x\d+ pixels are too many .* decoded at"):
        half = open_image(content, "big.jpg")
    assert half.size == (picture.width // 2, picture.height // 2)
    whole = np.asarray(picture.resize(half.size, image.Resampling.BOX), float)
    assert np.abs(np.asarray(half, float) - whole).mean() < 6


@pytest.mark.usefixtures("small_memory")
def test_one_that_just_fits_is_decoded_whole(recwarn: pytest.WarningsRecorder):
    assert open_image(encoded(drawn(100, 100), "JPEG")).size == (100, 100)
    assert not recwarn.list
    turned = image.Exif()
    turned[0x0112] = 6
    for content in (encoded(drawn(100, 100), exif=turned), encoded(drawn(101, 100))):
        with pytest.raises(FormatError, match="too many for an input image"):
            open_image(content)
    assert open_image(encoded(drawn(50, 80), exif=turned)).size == (80, 50)


def test_strips_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch):
    """Transparency and 16 bits are converted a few rows at a time."""
    random = np.random.default_rng(3)
    rgba = image.fromarray(random.integers(0, 256, (37, 53, 4), np.uint8), "RGBA")
    deep = image.fromarray(random.integers(0, 65_536, (37, 53), np.uint16))
    whole = [np.asarray(open_image(encoded(picture))) for picture in (rgba, deep)]
    expected = image.alpha_composite(image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    np.testing.assert_array_equal(whole[0], np.asarray(expected))
    monkeypatch.setattr("ckptkit.models.images.decoding._STRIP", 200)
    for picture, before in zip((rgba, deep), whole, strict=True):
        np.testing.assert_array_equal(np.asarray(open_image(encoded(picture))), before)


def test_threads_share_the_memory():
    room = Room(100)
    order: list[str] = []
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with room.taken(70):
            inside.set()
            leave.wait(10)
            order.append("first")

    def second() -> None:
        with room.taken(500):  # more than there is: alone
            order.append("second")

    threads = [threading.Thread(target=one) for one in (first, second)]
    threads[0].start()
    inside.wait(10)
    threads[1].start()
    with room.taken(30):
        order.append("small")
    leave.set()
    for thread in threads:
        thread.join(10)
    assert order == ["small", "first", "second"]


def test_a_picture_keeps_its_room_until_it_is_done_with(monkeypatch: pytest.MonkeyPatch):
    room = Room(MOST_MEMORY)
    monkeypatch.setattr("ckptkit.models.images.decoding.ROOM", room)
    with opened_image(encoded(drawn(50, 40))) as picture:
        assert picture.size == (50, 40)
        assert room._taken >= 4 * 50 * 40
    assert room._taken == 0


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux counts it")
def test_the_memory_of_the_largest_stays_below_256_mb(tmp_path: Path):
    import subprocess

    path = tmp_path / "large.png"
    compressor = zlib.compressobj(1)
    row = bytes(1 + 4 * 5000)
    pixels = b"".join([*(compressor.compress(row) for _ in range(5000)), compressor.flush()])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 5000, 5000, 8, 6, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    code = (
        "import sys\nfrom pathlib import Path\nfrom ckptkit.models.images.decoding import open_image\n"
        "open_image(Path(sys.argv[1]))\n"
        "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout or 0) < 256 << 10
