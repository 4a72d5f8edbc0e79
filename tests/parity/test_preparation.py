"""The preparation of a picture three times over: it agrees, and every usual mistake shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ckptkit.models.images import preprocessing, tensorflow_pipeline, torch_pipeline
from ckptkit.models.images.preprocessing import Preprocessing
from ckptkit.parity.compare import INPUT, LOGITS
from ckptkit.parity.inputs import (
    LEVELS,
    MEAN_LEVELS,
    Batch,
    compare_preparations,
    image_inputs,
    random_inputs,
)
from ckptkit.parity.report import junit_document
from ckptkit.workspace import Located
from tests.support.moat_files import write_tiny
from tests.support.parity_cases import OUTPUTS, require_frameworks, run_parity
from tests.support.pictures import drawn, save

image = pytest.importorskip("PIL.Image")
BOTH = ("torch", "keras")


@pytest.fixture(autouse=True)
def _frameworks():
    require_frameworks()


def wanted(normalization="imagenet", resize=72, size=(64, 64), interpolation="bicubic"):
    return Preprocessing(size, normalization, resize, interpolation)


def noise(width, height, levels=256):
    random = np.random.default_rng(7)
    values = random.integers(0, levels, (height, width, 3)) * (255 // (levels - 1))
    return image.fromarray(values.astype(np.uint8))


class TestAgreement:
    @pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
    @pytest.mark.parametrize("normalization", ["imagenet", "half"])
    @pytest.mark.parametrize(
        ("picture", "resize", "size"),
        [
            (drawn(160, 120), 72, (64, 64)),
            (drawn(90, 333), 72, (64, 64)),
            (drawn(301, 200), None, (64, 96)),
            (drawn(40, 30), None, (64, 96)),
            (drawn(31, 57), 75, (64, 64)),
            (noise(123, 77), 72, (64, 64)),
            (noise(50, 60, levels=2), 72, (64, 64)),
            (drawn(64, 64), None, (64, 64)),
            (drawn(1, 2), 72, (64, 64)),
            (drawn(500, 3), 72, (64, 64)),
        ],
        ids=lambda value: "x".join(map(str, getattr(value, "size", ()))) or str(value),
    )
    def test_all_three_agree(self, picture, resize, size, normalization, interpolation):
        report = compare_preparations(picture, wanted(normalization, resize, size, interpolation))
        assert [pair.sides for pair in report.pairs] == [
            ("Pillow", "PyTorch"),
            ("Pillow", "TensorFlow"),
            ("PyTorch", "TensorFlow"),
        ]
        assert report.ok, [pair.figures.reason for pair in report.pairs]
        assert report.notes == ()

    def test_lanczos_agrees_where_pytorch_has_it_and_says_so_where_not(self, monkeypatch):
        torch = pytest.importorskip("torch")
        with_all = compare_preparations(drawn(), wanted(interpolation="lanczos"))
        assert with_all.ok
        assert len(with_all.pairs) + 2 * len(with_all.notes) == 3, "three pairs, or one and a note"
        older = torch.nn.functional.interpolate

        def without_lanczos(*arguments, mode, **options):
            if mode == "lanczos":
                raise NotImplementedError("Input Error: Only 3D, 4D and 5D input Tensors supported")
            return older(*arguments, mode=mode, **options)

        monkeypatch.setattr(torch.nn.functional, "interpolate", without_lanczos)
        report = compare_preparations(drawn(), wanted(interpolation="lanczos"))
        assert [pair.sides for pair in report.pairs] == [("Pillow", "TensorFlow")]
        (note,) = report.notes
        assert "not compared with one by PyTorch" in note
        assert note.endswith("has no lanczos interpolation")

    def test_nearest_is_left_out_with_a_reason(self):
        report = compare_preparations(drawn(), wanted(interpolation="nearest"))
        assert (report.pairs, report.worst) == ((), None)
        assert len(report.notes) == 2
        assert all("of two pixels equally near" in note for note in report.notes)

    def test_one_framework_alone_is_compared_with_pillow(self):
        report = compare_preparations(drawn(), wanted(), ["torch"])
        assert [pair.sides for pair in report.pairs] == [("Pillow", "PyTorch")]


def other_filter(monkeypatch, _functional, _tf):
    monkeypatch.setitem(torch_pipeline._MODES, "bicubic", "bilinear")


def other_filter_of_tensorflow(monkeypatch, _functional, _tf):
    monkeypatch.setitem(tensorflow_pipeline._METHODS, "bicubic", "lanczos3")


def other_filter_of_pillow(monkeypatch, _functional, _tf):
    monkeypatch.setattr(image.Resampling, "BICUBIC", image.Resampling.HAMMING)


def no_antialias(monkeypatch, functional, _tf):
    plain = functional.interpolate
    monkeypatch.setattr(functional, "interpolate", lambda *a, antialias, **o: plain(*a, antialias=False, **o))


def no_antialias_of_tensorflow(monkeypatch, _functional, tf):
    monkeypatch.setattr(
        tf.image, "resize", lambda *a, antialias, _resize=tf.image.resize, **o: _resize(*a, **o)
    )


def half_a_pixel(monkeypatch, _functional, tf):
    """The corners of pixels taken for their centres, as TensorFlow 1 did."""
    monkeypatch.setattr(
        tf.image,
        "resize",
        lambda image, size, method, antialias: tf.compat.v1.image.resize(image, size, method),
    )


def aligned_corners(monkeypatch, functional, _tf):
    plain = functional.interpolate
    monkeypatch.setattr(
        functional, "interpolate", lambda *a, align_corners, **o: plain(*a, align_corners=True, **o)
    )


def cut_off_levels(monkeypatch, functional, _tf):
    """Cut off to whole levels instead of rounding."""
    plain = functional.interpolate
    monkeypatch.setattr(functional, "interpolate", lambda *a, **o: plain(*a, **o) - 0.5)


def other_normalization(monkeypatch, _functional, _tf):
    table = torch_pipeline._MEANS_AND_DEVIATIONS
    monkeypatch.setitem(table, "imagenet", table["half"])


def mean_and_deviation_swapped(monkeypatch, _functional, _tf):
    mean, deviation = torch_pipeline._MEANS_AND_DEVIATIONS["imagenet"]
    monkeypatch.setitem(torch_pipeline._MEANS_AND_DEVIATIONS, "imagenet", (deviation, mean))


def means_in_the_order_bgr(monkeypatch, _functional, _tf):
    mean, scale = tensorflow_pipeline._MEAN_AND_SCALE["imagenet"]
    monkeypatch.setitem(tensorflow_pipeline._MEAN_AND_SCALE, "imagenet", (mean[::-1], scale[::-1]))


def channels_in_the_order_bgr(monkeypatch, _functional, _tf):
    plain = torch_pipeline.prepare
    monkeypatch.setattr(torch_pipeline, "prepare", lambda pixels, w: plain(pixels[..., ::-1], w))


def pillow_in_the_order_bgr(monkeypatch, _functional, _tf):
    plain = Preprocessing.normalized
    monkeypatch.setattr(
        Preprocessing, "normalized", lambda self, cut: plain(self, image.merge("RGB", cut.split()[::-1]))
    )


def crop_one_pixel_off(monkeypatch, _functional, _tf):
    monkeypatch.setattr(tensorflow_pipeline, "_before", lambda excess: excess // 2 - 1)


def crop_at_the_corner(monkeypatch, _functional, _tf):
    monkeypatch.setattr(Preprocessing, "box", lambda self, _width, _height: (0, 0, *self.size[::-1]))


def shorter_side_one_pixel_longer(monkeypatch, _functional, _tf):
    plain = torch_pipeline._resized_sides
    monkeypatch.setattr(torch_pipeline, "_resized_sides", lambda *a: tuple(side + 1 for side in plain(*a)))


def resized_to_the_crop_at_once(monkeypatch, _functional, _tf):
    monkeypatch.setattr(tensorflow_pipeline, "_resized_sides", lambda _h, _w, asked: asked.size)


def not_in_proportion(monkeypatch, _functional, _tf):
    monkeypatch.setattr(torch_pipeline, "_resized_sides", lambda _h, _w, asked: (asked.resize, asked.resize))


MISTAKES = [
    (other_filter, "PyTorch"),
    (other_filter_of_tensorflow, "TensorFlow"),
    (no_antialias, "PyTorch"),
    (no_antialias_of_tensorflow, "TensorFlow"),
    (half_a_pixel, "TensorFlow"),
    (aligned_corners, "PyTorch"),
    (cut_off_levels, "PyTorch"),
    (other_normalization, "PyTorch"),
    (mean_and_deviation_swapped, "PyTorch"),
    (means_in_the_order_bgr, "TensorFlow"),
    (channels_in_the_order_bgr, "PyTorch"),
    (pillow_in_the_order_bgr, "Pillow"),
    (crop_one_pixel_off, "TensorFlow"),
    (crop_at_the_corner, "Pillow"),
    (shorter_side_one_pixel_longer, "PyTorch"),
    (resized_to_the_crop_at_once, "TensorFlow"),
    (not_in_proportion, "PyTorch"),
]


@pytest.mark.parametrize(("mistake", "whose"), MISTAKES, ids=[mistake.__name__ for mistake, _ in MISTAKES])
def test_every_mistake_shows_and_only_where_it_was_made(mistake, whose, monkeypatch):
    from torch.nn import functional

    from ckptkit.families.keras_backend import tf

    mistake(monkeypatch, functional, tf)
    report = compare_preparations(drawn(160, 120), wanted())
    assert not report.ok
    assert {pair.sides for pair in report.pairs if not pair.figures.ok} == {
        pair.sides for pair in report.pairs if whose in pair.sides
    }
    assert "prepare the picture differently" in report.worst.reason
    assert whose in report.worst.reason


class TestHalfAPixelAlone:
    """A shift with nothing else changed, on a picture so smooth that no pixel moves by more than 2 levels."""

    def test_the_mean_sees_it(self, monkeypatch):
        y, x = np.mgrid[:64, :64]
        gradient = image.fromarray(np.stack([x + y, 2 * x, 255 - x - y], -1).astype(np.uint8))
        asked = wanted(resize=None)
        assert compare_preparations(gradient, asked).ok
        plain = tensorflow_pipeline.prepare

        def shifted(pixels, wanted):
            prepared = plain(pixels, wanted)
            return (prepared + np.concatenate([prepared[:, 1:], prepared[:, -1:]], 1)) / 2

        monkeypatch.setattr(tensorflow_pipeline, "prepare", shifted)
        report = compare_preparations(gradient, asked)
        worst = max(report.pairs, key=lambda pair: pair.mean_levels)
        assert worst.max_levels < LEVELS, "the largest difference alone would not tell"
        assert worst.mean_levels > MEAN_LEVELS
        assert "on average by 0.6" in report.worst.reason


def test_figures_are_in_levels_of_255(monkeypatch):
    """All of one colour channel off by exactly two levels is allowed nowhere else than at few pixels."""
    plain = torch_pipeline.prepare
    picture, asked = drawn(64, 64), wanted("half", resize=None)
    for levels, ok in ((2, True), (2.1, False)):

        def off(pixels, wanted, levels=levels):
            prepared = plain(pixels, wanted).copy()
            prepared[0, 0, 1] += levels / 127.5
            return prepared

        monkeypatch.setattr(torch_pipeline, "prepare", off)
        report = compare_preparations(picture, asked, ["torch"])
        (pair,) = report.pairs
        assert pair.max_levels == pytest.approx(levels, rel=1e-4)
        assert pair.mean_levels == pytest.approx(levels / (64 * 64 * 3), rel=1e-3)
        assert report.ok is ok


class TestInReports:
    def test_random_inputs_have_no_preparation(self):
        batch = Batch.of(random_inputs(2, (32, 32), None), BOTH)
        assert (batch.prepared, batch.notes) == ((), ())

    def test_a_picture_gives_one_row_before_the_stages(self, tmp_path):
        path = save(drawn(), tmp_path / "cat.png")
        batch = Batch.of(image_inputs(path, None, (64, 64), "imagenet", resize=72), BOTH)
        (row,) = batch.prepared
        assert (row.name, row.verdict, row.shape) == (INPUT, "agrees", (1, 64, 64, 3))
        assert row.limit.value == pytest.approx(2 / 255 / 0.224, rel=2e-3)
        assert batch.notes == ()
        assert INPUT != LOGITS

    def test_the_worst_pair_speaks_for_all(self, tmp_path, monkeypatch):
        path = save(drawn(), tmp_path / "cat.png")
        crop_one_pixel_off(monkeypatch, None, None)
        (row,) = Batch.of(image_inputs(path, None, (64, 64), "half", resize=72), BOTH).prepared
        assert row.verdict == "differs"
        assert "TensorFlow prepare the picture differently" in row.reason

    def test_a_picture_of_one_grey_proves_nothing_and_says_so(self):
        report = compare_preparations(image.new("RGB", (80, 80), (9, 9, 9)), wanted("half"))
        assert report.worst.verdict == "degenerate"

    def test_json_has_every_pair(self):
        values = compare_preparations(drawn(), wanted()).to_json()
        assert values["ok"] is True
        assert [pair["sides"] for pair in values["pairs"]] == [
            ["Pillow", "PyTorch"],
            ["Pillow", "TensorFlow"],
            ["PyTorch", "TensorFlow"],
        ]
        assert {pair["verdict"] for pair in values["pairs"]} == {"agrees"}


def test_the_three_tables_of_means_are_written_down_apart_and_agree():
    for name, (mean, deviation) in preprocessing.NORMALIZATIONS.items():
        assert torch_pipeline._MEANS_AND_DEVIATIONS[name] == ([*mean], [*deviation])
        levels, scale = tensorflow_pipeline._MEAN_AND_SCALE[name]
        np.testing.assert_allclose(levels, np.multiply(mean, 255), rtol=1e-12)
        np.testing.assert_allclose(scale, 1 / np.multiply(deviation, 255), rtol=1e-12)


def test_a_parity_run_has_it_as_its_first_row(tmp_path, monkeypatch):
    other_filter(monkeypatch, None, None)
    path = save(drawn(), tmp_path / "cat.png")
    report = run_parity(Located(write_tiny(tmp_path / "model.ckpt")), image=path, resolution=64)
    assert [stage.name for stage in report.stages] == [INPUT, *OUTPUTS]
    assert (report.ok, report.first_departure) == (False, INPUT)
    assert report.verdict.startswith("DISAGREE on the input: ")
    assert all(stage.ok for stage in report.stages[1:]), "the models saw the same picture"
    assert 'tests="7" failures="1"' in junit_document([report])

    monkeypatch.undo()
    agreed = Batch.of(report.inputs, BOTH).prepared
    held = replace(report, stages=(*agreed, *report.stages[1:]))
    assert held.ok
    assert "all 6 outputs and the picture's preparation within tolerance" in held.verdict
    assert "(input)" not in held.verdict, "its levels of 255 are not a relative difference"
