"""What a heat map says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest

from ckptkit.analysis.cam.heatmap import Spot
from tests.analysis.cam.maps import heatmap

pytest.importorskip("PIL")


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
