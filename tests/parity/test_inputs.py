from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ckptkit.base.errors import FormatError, NotFoundError, UsageError
from ckptkit.parity.inputs import (
    image_inputs,
    normalization_in,
    parse_resolution,
    random_inputs,
    resolution_in,
)
from tests.support.moat_reference import golden_input


def test_default_inputs_are_those_of_the_recorded_outputs():
    inputs = random_inputs(None, (64, 96), None).array()
    assert inputs.dtype == np.float32
    assert np.array_equal(inputs, golden_input(64, 96))


def test_another_seed_or_batch_gives_other_inputs():
    default = random_inputs(2, (32, 32), None).array()
    assert not np.array_equal(default, random_inputs(2, (32, 32), 7).array())
    assert random_inputs(5, (32, 32), 7).array().shape == (5, 32, 32, 3)


@pytest.mark.parametrize(("batch", "seed"), [(0, 1), (-3, 1), (2, -1), (2, 2**128)])
def test_impossible_random_inputs_are_refused(batch: int, seed: int):
    with pytest.raises(UsageError):
        random_inputs(batch, (32, 32), seed)


@pytest.mark.parametrize("value", [31, 0, -224, 5000, (224, 31), (8000, 224)])
def test_impossible_resolutions_are_refused(value: int | tuple[int, int]):
    with pytest.raises(UsageError, match="resolution"):
        parse_resolution(value)


class TestImage:
    @pytest.fixture(autouse=True)
    def _pillow(self) -> None:
        pytest.importorskip("PIL")

    @staticmethod
    def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
        from PIL import Image

        Image.fromarray(pixels).save(path, **options)
        return path

    @pytest.mark.parametrize(
        ("normalization", "expected"),
        [
            ("half", [(255 / 255 - 0.5) / 0.5, (0 - 0.5) / 0.5, (51 / 255 - 0.5) / 0.5]),
            ("imagenet", [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]),
        ],
    )
    def test_colours_are_normalized_as_rgb(self, tmp_path: Path, normalization: str, expected: list[float]):
        pixels = np.tile(np.array([255, 0, 51], np.uint8), (40, 50, 1))
        inputs = image_inputs(self.save(tmp_path / "a.png", pixels), None, (32, 32), normalization)
        array = inputs.array()
        assert array.shape == (1, 32, 32, 3)
        assert array.dtype == np.float32
        np.testing.assert_allclose(array[0, 7, 9], expected, rtol=1e-6)
        assert inputs.batch == 1

    def test_the_centre_is_kept(self, tmp_path: Path):
        # 96 wide, 32 high: no resizing is needed, so the middle 32 columns must come out untouched.
        pixels = np.random.default_rng(0).integers(0, 256, (32, 96, 3), dtype=np.uint8)
        array = image_inputs(self.save(tmp_path / "a.png", pixels), 1, (32, 32), "half").array()
        np.testing.assert_allclose(array[0], pixels[:, 32:64] / 127.5 - 1, atol=1e-6)

    def test_the_published_evaluation_resizes_the_shorter_side_first(self, tmp_path: Path):
        # 80x64, shorter side to 64 changes nothing, then the middle 32x32.
        pixels = np.random.default_rng(1).integers(0, 256, (80, 64, 3), dtype=np.uint8)
        path = self.save(tmp_path / "a.png", pixels)
        array = image_inputs(path, None, (32, 32), "half", resize=64, interpolation="bilinear").array()
        np.testing.assert_allclose(array[0], pixels[24:56, 16:48] / 127.5 - 1, atol=1e-6)

    def test_small_and_odd_images_are_enlarged(self, tmp_path: Path):
        pixels = np.random.default_rng(2).integers(0, 256, (5, 3, 3), dtype=np.uint8)
        path = self.save(tmp_path / "a.png", pixels)
        assert image_inputs(path, None, (64, 96), "half").array().shape == (1, 64, 96, 3)

    @pytest.mark.parametrize("shape", [(40, 40), (40, 40, 4)], ids=["grey", "with transparency"])
    def test_other_colour_modes_become_rgb(self, tmp_path: Path, shape: tuple[int, ...]):
        path = self.save(tmp_path / "a.png", np.full(shape, 255, np.uint8))
        array = image_inputs(path, None, (32, 32), "half").array()
        np.testing.assert_allclose(array, np.ones((1, 32, 32, 3)), rtol=1e-6)

    def test_a_photograph_taken_sideways_is_turned(self, tmp_path: Path):
        from PIL import Image

        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[:32] = 255  # white above, black below
        picture = Image.fromarray(pixels)
        exif = picture.getexif()
        exif[0x0112] = 3  # turned by half
        picture.save(tmp_path / "a.png", exif=exif)
        array = image_inputs(tmp_path / "a.png", None, (64, 64), "half").array()
        assert array[0, 10].max() == -1
        assert array[0, 50].min() == 1

    def test_a_missing_file_is_not_found(self, tmp_path: Path):
        with pytest.raises(NotFoundError, match=r"no\.png"):
            image_inputs(tmp_path / "no.png", None, (32, 32), "half").array()

    @pytest.mark.parametrize("cut", [0, 1, 20, 60, -30])
    def test_a_damaged_file_is_a_format_error(self, tmp_path: Path, cut: int):
        pixels = np.random.default_rng(3).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        path = self.save(tmp_path / "a.png", pixels)
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(FormatError, match=r"a\.png"):
            image_inputs(path, None, (32, 32), "half").array()

    @pytest.mark.filterwarnings("ignore:Image size")
    def test_an_image_bomb_is_a_format_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        from PIL import Image

        path = self.save(tmp_path / "a.png", np.zeros((40, 40, 3), np.uint8))
        ours, pillows = r"40x40 pixels .* are too many for an input image", r"too large \(Image size"
        for limit, message in ((1000, ours), (100, pillows)):  # Pillow itself refuses above twice its limit
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
            with pytest.raises(FormatError, match=message):
                image_inputs(path, None, (32, 32), "half").array()

    def test_a_folder_is_a_format_error(self, tmp_path: Path):
        with pytest.raises(FormatError):
            image_inputs(tmp_path, None, (32, 32), "half").array()


def test_an_image_is_one_input():
    with pytest.raises(UsageError, match="batch of 1"):
        image_inputs(Path("a.png"), 2, (32, 32), "half")


def test_an_unknown_normalization_is_refused():
    with pytest.raises(UsageError, match="unknown normalization 'zscore'"):
        image_inputs(Path("a.png"), None, (32, 32), "zscore")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "x",
        "224x",
        "x224",
        "224x224x3",
        "16385",
        "224x16385",
        "99999999x99999999",
        "9" * 5000,
        "-1",
        "２２４",
    ],
)
def test_a_file_says_no_size_that_no_input_has(text):
    with pytest.raises(
        FormatError, match=r"its metadata says resolution is '.{0,40}', which is not an input size"
    ):
        resolution_in({"resolution": text}, Path("f.pth"))


def test_what_a_file_says_of_its_inputs():
    path = Path("f.pth")
    assert resolution_in({}, path) is None
    assert resolution_in({"resolution": "224"}, path) == 224
    assert resolution_in({"resolution": "192x16384"}, path) == (192, 16384)
    assert normalization_in({"normalization": "half"}, path) == "half"
    with pytest.raises(FormatError, match=r"its metadata says normalization is 'x{40}', which is not"):
        normalization_in({"normalization": "x" * 5000}, path)
