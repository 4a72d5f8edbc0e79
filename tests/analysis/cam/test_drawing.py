"""Overlays pixel by pixel, and sheets: sizes, places, words."""

from __future__ import annotations

from typing import Any

import numpy
import pytest

from ckptkit.analysis.cam.colours import colour_table
from ckptkit.analysis.cam.drawing import Style, _Writer, caption_of, compose
from ckptkit.base.errors import UsageError
from tests.analysis.cam.maps import heatmap

pytest.importorskip("PIL")


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
        ({"layout": "row"}, "no layout 'row'; one of overlay, side-by-side, heat"),
        ({"colormap": "jet"}, "no colormap 'jet'"),
        ({"alpha": 1.5}, "alpha 1.5"),
        ({"alpha": float("nan")}, "alpha nan"),
    ],
)
def test_no_such_style(style: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        Style(**style)
