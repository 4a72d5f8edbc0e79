"""What a heat map says of itself, and its pictures: colours, overlays, sheets, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest

from ckptkit._version import __version__
from ckptkit.analysis.cam.picture import (
    COLORMAPS,
    Spot,
    Style,
    _Writer,
    caption_of,
    colour_table,
    compose,
    save_picture,
)
from ckptkit.base.errors import StorageError, UsageError
from tests.analysis.cam.maps import heatmap

Image = pytest.importorskip("PIL.Image")


def test_the_peak_is_the_middle_of_the_hottest_cell():
    """Cells of a 60x40 picture with a 2x3 map are 20 pixels wide and high; the hottest is the fifth."""
    found = heatmap()
    assert found.peak == Spot(30, 30, 60, 40)
    assert found.peak.words == "bottom centre"


def test_the_centroid_is_the_mean_place():
    centroid = heatmap().centroid
    assert centroid is not None
    assert centroid.x == pytest.approx((0.25 * 30 + 0.5 * 50 + 1 * 30) / 1.75)
    assert centroid.y == pytest.approx((0.25 * 10 + 0.5 * 10 + 1 * 30) / 1.75)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (0, 0, "top left"),
        (639.9, 383.9, "bottom right"),
        (640, 384, "bottom right"),
        (320, 192, "centre"),
        (212, 192, "middle left"),
        (214, 130, "centre"),
        (430, 100, "top right"),
        (300, 300, "bottom centre"),
    ],
)
def test_ninths_of_the_picture(x: float, y: float, words: str):
    assert Spot(x, y, 640, 384).words == words


def test_heat_is_enlarged_as_torch_does_it():
    torch = pytest.importorskip("torch")
    values = numpy.random.default_rng(5).random((5, 7), dtype=numpy.float32)
    found = heatmap(values, size=(83, 61)).upsampled()
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None], (61, 83), mode="bilinear", align_corners=False
    )[0, 0]
    assert found.dtype == numpy.float32
    numpy.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_no_heat_has_no_place():
    found = heatmap(numpy.zeros((2, 3)))
    assert (found.is_empty, found.peak, found.centroid) == (True, None, None)
    assert not found.upsampled().any()


def test_json():
    values = json.loads(json.dumps(heatmap().to_json()))
    assert values == {
        "name": "moganet-xt-224",
        "synthetic": False,
        "class": {"index": 207, "wnid": "n02099601", "name": "golden retriever"},
        "probability": 0.123,
        "predicted": True,
        "method": "gradcam",
        "stage": "stage4",
        "grid": [2, 3],
        "input": [40, 60],
        "preprocessing": "as published",
        "strength": 1.0,
        "peak": {"x": 30.0, "y": 30.0, "words": "bottom centre"},
        "centroid": {"x": 35.71, "y": 21.43, "words": "centre"},
    }


def test_a_class_without_a_name():
    found = heatmap(index=3, image_class=None)
    assert found.class_name == "class 3"
    assert found.to_json()["class"] == {"index": 3, "wnid": None, "name": None}


def test_saving(tmp_path: Path):
    image = pytest.importorskip("PIL.Image")
    found = heatmap()
    path = found.save(tmp_path / "one.png", alpha=0.25, colormap="grey")
    with image.open(path) as read:
        assert read.tobytes() == found.overlay(alpha=0.25, colormap="grey").tobytes()
    with image.open(found.save(tmp_path / "two.png", layout="side-by-side")) as read:
        assert read.width > 3 * 60


def lightness(colours: numpy.ndarray) -> numpy.ndarray:
    """L* of sRGB colours, by the definitions of IEC 61966-2-1 and CIE 15."""
    encoded = colours.astype(numpy.float64) / 255
    linear = numpy.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126729, 0.7151522, 0.0721750]
    return numpy.where(luminance > 216 / 24389, 116 * numpy.cbrt(luminance) - 16, luminance * 24389 / 27)


@pytest.mark.parametrize("name", COLORMAPS)
def test_lightness_rises_in_even_steps(name: str):
    table = colour_table(name)
    assert (table.shape, table.dtype) == ((256, 3), numpy.uint8)
    found = lightness(table)
    assert numpy.abs(found - numpy.linspace(12, 96, 256)).max() < 1  # one step of L* is hardly seen
    assert (numpy.diff(found[::4]) > 0).all()


def test_tables_are_different_and_cannot_be_changed():
    tables = [colour_table(name) for name in COLORMAPS]
    assert len({table.tobytes() for table in tables}) == len(COLORMAPS)
    assert not any(table.flags.writeable for table in tables)


def test_grey_is_grey():
    assert (colour_table("grey") == colour_table("grey")[:, :1]).all()


def test_no_such_table():
    with pytest.raises(UsageError, match="unknown colormap 'jet'; choose from ember, lagoon, grey"):
        colour_table("jet")


def pixels(picture: Any) -> numpy.ndarray:
    return numpy.asarray(picture).astype(int)


def test_an_overlay_mixes_picture_and_colours():
    one = heatmap([[1.0, 1.0], [1.0, 1.0]])
    hottest = colour_table("lagoon")[255]
    found = pixels(compose([one], Style(alpha=0.3, colormap="lagoon")))
    assert found.shape == (40, 60, 3)
    assert numpy.abs(found - (0.7 * pixels(one.picture) + 0.3 * hottest)).max() <= 0.5 + 1e-3


def test_the_ends_of_alpha():
    one = heatmap()
    assert (pixels(compose([one], Style(alpha=0))) == pixels(one.picture)).all()
    assert (pixels(compose([one], Style(alpha=1))) == pixels(compose([one], Style("heat")))).all()


def test_heat_alone_has_the_tables_colours():
    found = pixels(compose([heatmap([[0.0, 1.0]], size=(40, 20))], Style("heat")))
    table = colour_table("ember")
    assert (found[:, 0] == table[0]).all()
    assert (found[:, -1] == table[255]).all()
    assert (found == found[:1]).all()  # no change down the columns


@pytest.mark.parametrize("size", [(224, 224), (256, 256), (640, 384), (64, 64), (32, 300)])
def test_side_by_side(size: tuple[int, int]):
    one = heatmap(size=size)
    sheet = compose([one], Style("side-by-side"))
    factor = {64: 3, 32: 5}.get(size[0], 1)  # panels of less than 160 pixels are enlarged
    width, height = size[0] * factor, size[1] * factor
    assert sheet.width == 3 * width + 2 * 10 + 2 * 8
    assert sheet.height > height + 2 * 10 + 40  # two lines at least
    panels = [
        sheet.crop((10 + n * (width + 8), 10, 10 + n * (width + 8) + width, 10 + height)) for n in range(3)
    ]
    if factor == 1:
        drawn = [one.picture, compose([one], Style("heat")), compose([one], Style("overlay"))]
        assert [panel.tobytes() for panel in panels] == [picture.tobytes() for picture in drawn]
    below = pixels(sheet.crop((0, 10 + height, sheet.width, sheet.height)))
    assert (below < 60).all(axis=2).sum() > 200  # dark letters


def test_the_scale_runs_from_no_evidence_to_most():
    sheet = compose([heatmap(size=(200, 100))], Style("side-by-side"))
    top = 10 + 100 + 4
    bar = pixels(sheet.crop((10 + 208, top, 10 + 208 + 200, top + 8)))
    table = colour_table("ember")
    assert numpy.abs(bar[4, 0] - table[0]).max() <= 2
    assert numpy.abs(bar[4, -1] - table[255]).max() <= 2


@pytest.mark.parametrize(
    ("count", "columns", "rows"), [(2, 2, 1), (4, 4, 1), (5, 3, 2), (6, 3, 2), (9, 3, 3)]
)
def test_several_overlays_fill_rows(count: int, columns: int, rows: int):
    sheet = compose([heatmap(index=n, image_class=None, size=(200, 50)) for n in range(count)], Style())
    assert sheet.width == columns * 200 + (columns - 1) * 8 + 20
    assert rows * 50 < sheet.height < rows * (50 + 30) + 80


def test_several_side_by_side_are_rows():
    sheet = compose([heatmap(stage=f"stage{n}", size=(200, 100)) for n in (1, 2, 3)], Style("side-by-side"))
    assert sheet.width == 3 * 200 + 2 * 8 + 20
    assert sheet.height > 300


def test_words_of_one():
    caption, labels = caption_of([heatmap()])
    assert caption == ["moganet-xt-224: golden retriever (207) 12.3%, predicted", "Grad-CAM at stage4 (2x3)"]
    assert labels == [""]


def test_words_tell_apart_what_differs():
    classes = [heatmap(), heatmap(index=3, image_class=None, probability=0.5, predicted=False)]
    assert caption_of(classes) == (
        ["moganet-xt-224", "Grad-CAM at stage4 (2x3)"],
        ["golden retriever (207) 12.3%, predicted", "class 3 50.0%"],
    )
    methods = [heatmap(), heatmap(method="gradcam++")]
    assert caption_of(methods) == (
        ["moganet-xt-224: golden retriever (207) 12.3%, predicted", "stage4 (2x3)"],
        ["Grad-CAM", "Grad-CAM++"],
    )
    stages = [heatmap(), heatmap(stage="stage1", heat=numpy.ones((8, 12)))]
    assert caption_of(stages)[0][1:] == ["Grad-CAM"]
    assert caption_of(stages)[1] == ["stage4 (2x3)", "stage1 (8x12)"]


def test_words_of_nothing_and_of_random_weights():
    caption, labels = caption_of([heatmap(numpy.zeros((2, 2)), synthetic=True, name="/home/me/my.pth")])
    assert caption[0].startswith("my.pth: golden")
    assert caption[-1] == "synthetic weights: neither the class nor the heat means anything"
    assert labels == ["no evidence"]


@pytest.mark.parametrize("width", [40, 90, 300])
def test_no_line_is_wider_than_its_room(width: int):
    writer = _Writer(13)
    text = (
        "a-very-long-file-name-without-any-blank.safetensors: black-and-tan coonhound (165) 99.9%, predicted"
    )
    lines = writer.wrap(text, width)
    assert all(writer.font.getlength(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert writer.wrap("", width) == []


def test_letters_that_the_font_lacks():
    assert _Writer(13).wrap("Bœuf à 3×4 猫", 500) == ["B?uf a 3?4 ?"]


@pytest.mark.parametrize(
    ("style", "message"),
    [
        ({"layout": "row"}, "unknown layout 'row'; choose from overlay, side-by-side, heat"),
        ({"colormap": "jet"}, "unknown colormap 'jet'"),
        ({"alpha": 1.5}, "alpha 1.5"),
        ({"alpha": float("nan")}, "alpha nan"),
    ],
)
def test_no_such_style(style: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        Style(**style)


MAPS = [heatmap(synthetic=True), heatmap(method="layercam", index=3, image_class=None, synthetic=True)]


def save(path: Path, **options: Any) -> Path:
    return save_picture(MAPS[0].picture, MAPS, path, **options)


def test_png_tells_what_it_shows(tmp_path: Path):
    with Image.open(save(tmp_path / "a.png")) as read:
        assert read.format == "PNG"
        assert read.tobytes() == MAPS[0].picture.tobytes()
        assert read.text == {
            "entry": "moganet-xt-224",
            "class": "207 golden retriever; 3 class 3",
            "method": "gradcam; layercam",
            "stage": "stage4",
            "preprocessing": "as published",
            "weights": "synthetic",
            "Software": f"ckptkit {__version__}",
        }


@pytest.mark.parametrize(("name", "kind"), [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("b.webp", "WEBP")])
def test_other_kinds_tell_it_in_exif(name: str, kind: str, tmp_path: Path):
    with Image.open(save(tmp_path / name)) as read:
        assert (read.format, read.size) == (kind, (60, 40))
        exif = read.getexif()
        off = numpy.asarray(read.convert("RGB")).astype(int) - numpy.asarray(MAPS[0].picture)
    assert exif[0x0131] == f"ckptkit {__version__}"
    assert exif[0x010E].startswith(
        "entry moganet-xt-224, class 207 golden retriever; 3 class 3, method gradcam"
    )
    assert numpy.abs(off).mean() < 12


def test_paths_stay_at_home_and_any_letter_is_kept(tmp_path: Path):
    maps = [heatmap(name="/home/me/müh/моя.pth")]
    with Image.open(save_picture(maps[0].picture, maps, tmp_path / "a.png")) as read:
        assert read.text["entry"] == "моя.pth"
        assert "weights" not in read.text


def test_an_existing_file_stays(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already"):
        save(path)
    assert path.read_bytes() == b"mine"
    save(path, force=True)
    with Image.open(path) as read:
        read.load()
    assert [one.name for one in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["a.gif", "a", "a.png.txt"])
def test_no_such_kind(name: str, tmp_path: Path):
    with pytest.raises(
        UsageError, match=r"cannot tell the picture format from '.*'; choose from \.png, \.jpg"
    ):
        save(tmp_path / name)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        save(tmp_path / "file" / "a.png")


def test_the_same_maps_give_the_same_bytes(tmp_path: Path):
    assert save(tmp_path / "a.png").read_bytes() == save(tmp_path / "b.png").read_bytes()
