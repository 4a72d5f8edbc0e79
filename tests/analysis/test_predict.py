"""Predictions: ranked rightly, of the right picture, the same from both frameworks."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

import ckptkit
from ckptkit.analysis.model_source import SourceRequest
from ckptkit.analysis.predict import Predictor, rank
from ckptkit.analysis.runner import require_packages
from ckptkit.base.errors import (
    ConversionError,
    FormatError,
    MissingDependencyError,
    NotFoundError,
    UsageError,
)
from ckptkit.convert.execution import Target, execute
from ckptkit.convert.pipeline import Options, plan
from ckptkit.formats.detect import open_reader
from ckptkit.models.images.gathering import Gatherer, NamedPicture
from ckptkit.models.images.preprocessing import Preprocessing
from ckptkit.models.synth import Synthetic, write_checkpoint
from ckptkit.workspace import Workspace
from tests.support import toys
from tests.support.commands import pip_install
from tests.support.moat_files import write_tiny
from tests.support.pictures import drawn, save

image = pytest.importorskip("PIL.Image")

SIDE = 64


class TestRanking:
    def test_by_hand(self):
        logits = np.log(np.array([1.0, 5.0, 2.0, 2.0]))
        top = rank(logits.astype(np.float32), 3)
        assert [(one.rank, one.index) for one in top] == [(1, 1), (2, 2), (3, 3)], "of equals the first"
        np.testing.assert_allclose([one.probability for one in top], [0.5, 0.2, 0.2], rtol=1e-6)
        assert {(one.wnid, one.name) for one in top} == {(None, None)}

    def test_a_thousand_classes_have_names(self):
        logits = np.zeros(1000, np.float32)
        logits[[207, 817]] = [math.log(999), math.log(99)]
        first, second, third = rank(logits, 3)
        assert (first.wnid, first.name) == ("n02099601", "golden retriever")
        assert (second.wnid, second.name) == ("n04285008", "sports car")
        total = 998 + 999 + 99
        assert first.probability == pytest.approx(999 / total)
        assert (third.index, third.probability) == (0, pytest.approx(1 / total))

    def test_more_than_there_are(self):
        assert len(rank(np.zeros(3, np.float32), 9)) == 3

    def test_large_logits_do_not_overflow(self):
        assert rank(np.array([1e4, 0, -1e4], np.float32), 1)[0].probability == 1.0


class Counting:
    """A model whose logits are ten times the mean of each channel; remembers how it was called."""

    def __init__(self, framework="torch", answer=None):
        self.framework, self.answer = framework, answer
        self.shapes: list[tuple[int, ...]] = []
        self.built = 0

    def source(self, num_classes=3):
        def model(framework):
            assert framework == self.framework
            self.built += 1
            return self

        self.to = lambda **_: self
        return SimpleNamespace(
            name="counting",
            variant="none",
            num_classes=num_classes,
            preprocessing=Preprocessing((32, 32), "half"),
            model=model,
            synthetic=False,
            located=SimpleNamespace(path="counting.pth"),
            has_tags=False,
        )

    def __call__(self, images):
        self.shapes.append(tuple(images.shape))
        return self.answer if self.answer is not None else 10 * images.mean((2, 3))


def named(*colours):
    return [NamedPicture(f"{i}", lambda c=c: image.new("RGB", (40, 40), c)) for i, c in enumerate(colours)]


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


class TestBatches:
    @pytest.fixture(autouse=True)
    def _torch(self):
        pytest.importorskip("torch")

    @pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
    def test_each_picture_gets_its_own_answer(self, batch_size):
        counting = Counting()
        predictor = Predictor(counting.source(), "torch", 1, batch_size)
        found = list(predictor.predict(named(GREEN, RED, BLUE, BLUE, RED)))
        assert [(one.image, one.best.index) for one in found] == [
            ("0", 1),
            ("1", 0),
            ("2", 2),
            ("3", 2),
            ("4", 0),
        ]
        assert sum(shape[0] for shape in counting.shapes) == 5
        assert {shape[1:] for shape in counting.shapes} == {(3, 32, 32)}
        assert max(shape[0] for shape in counting.shapes) == min(batch_size, 5)
        assert counting.built == 1

    def test_a_batch_is_predicted_before_the_next_is_read(self):
        read = []

        def reading(number):
            def read_it():
                read.append(number)
                return image.new("RGB", (40, 40))

            return NamedPicture(str(number), read_it)

        predictions = Predictor(Counting().source(), batch_size=2).predict(reading(i) for i in range(100))
        next(predictions)
        assert read == [0, 1]

    def test_a_bad_picture_leaves_the_others_theirs(self):
        def bad():
            raise FormatError("bad.png", "damaged image")

        pictures = [*named(GREEN, RED), NamedPicture("bad.png", bad), *named(BLUE)]
        faults = []
        predictor = Predictor(Counting().source(), top=1, batch_size=2)
        found = [one.best.index for one in predictor.predict(pictures, on_fault=faults.append)]
        assert found == [1, 0, 2]
        assert [(fault.name, str(fault.error)) for fault in faults] == [("bad.png", "bad.png: damaged image")]
        with pytest.raises(FormatError, match="damaged image"):
            list(predictor.predict(pictures))

    def test_a_picture_too_narrow_is_named(self):
        pictures = [NamedPicture("line.png", lambda: image.new("RGB", (1_000_000, 1)))]
        with pytest.raises(FormatError, match=r"line\.png: 1000000x1 pixels are too long and narrow"):
            list(Predictor(Counting().source()).predict(pictures))

    def test_no_model_is_built_for_nothing(self):
        counting = Counting()
        predictor = Predictor(counting.source())
        assert list(predictor.predict([])) == []
        with pytest.raises(NotFoundError):
            list(
                predictor.predict([NamedPicture("none", lambda: (_ for _ in ()).throw(NotFoundError("no")))])
            )
        assert counting.built == 0

    def test_what_the_caller_makes_of_a_picture_comes_back(self):
        predictor = Predictor(Counting().source())
        found = predictor.predict(named(RED, BLUE), extra=lambda picture: picture.getpixel((0, 0)))
        assert [one.extra for one in found] == [RED, BLUE]

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_an_answer_that_is_no_number_is_refused(self, value):
        import torch

        counting = Counting(answer=torch.tensor([[1.0, value, 0.0]]))
        with pytest.raises(
            FormatError, match=r"counting\.pth: the model's answer to 0 contains NaN or infinite"
        ):
            list(Predictor(counting.source()).predict(named(RED)))


@pytest.mark.parametrize(
    ("options", "message"), [({"top": 0}, "invalid top 0"), ({"batch_size": 0}, "invalid batch size 0")]
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Predictor(Counting().source(), **options)


def test_a_checkpoint_without_a_head_names_no_classes():
    with pytest.raises(UsageError, match="counting has no classification head"):
        Predictor(Counting().source(num_classes=None))


@pytest.mark.parametrize(
    ("hidden", "frameworks", "says"),
    [
        (["torch"], ["torch"], f"predict needs torch; {pip_install('torch')}"),
        (["tensorflow"], ["torch"], None),
        (["tensorflow"], ["keras"], f"predict needs tensorflow; {pip_install('tensorflow')}"),
        (["onnx"], ["onnxruntime"], f"predict needs onnx; {pip_install('onnx')}"),
        (["PIL", "torch"], ["torch"], f"predict needs torch and pillow; {pip_install('torch', 'pillow')}"),
    ],
)
def test_missing_packages(hidden, frameworks, says, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec("numpy")  # whatever else is installed here, all but the hidden are there
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else found)
    if says is None:
        require_packages("predict", *frameworks)
        return
    with pytest.raises(MissingDependencyError) as caught:
        require_packages("predict", *frameworks)
    assert str(caught.value) == says


class TestRealModels:
    @pytest.mark.parametrize("id", ["tiny-moat0-256", "moganet-xt-224"])
    def test_both_frameworks_say_the_same(self, id, tmp_path):
        pytest.importorskip("torch")
        pytest.importorskip("tensorflow")
        paths = [save(drawn(90, 70, seed), tmp_path / f"{seed}.png") for seed in range(2)]
        ours, theirs = (
            ckptkit.predict(id, paths, framework=framework, synthetic=True, resolution=SIDE, batch_size=2)
            for framework in ("torch", "tf")
        )
        assert [one.image for one in ours] == [one.image for one in theirs] == [str(path) for path in paths]
        for one, other in zip(ours, theirs, strict=True):
            assert [guess.index for guess in one.top] == [guess.index for guess in other.top]
            np.testing.assert_allclose(
                [guess.probability for guess in one.top],
                [guess.probability for guess in other.top],
                rtol=1e-4,
            )
        assert len({one.top for one in ours}) == 2, "each picture its own answer"

    def test_onnx_runtime_says_the_same(self, tmp_path):
        for package in ("torch", "onnxruntime", "onnxscript"):
            pytest.importorskip(package)
        picture = save(drawn(90, 70, 1), tmp_path / "1.png")
        with toys.toy_variants():
            file = toys.toy_file(tmp_path, toys.MOAT)
            ours, theirs = (
                ckptkit.predict(file, picture, framework=framework)[0]
                for framework in ("torch", "onnxruntime")
            )
        assert (ours.framework, theirs.framework) == ("torch", "onnxruntime")
        assert [guess.index for guess in ours.top] == [guess.index for guess in theirs.top]
        np.testing.assert_allclose(
            [guess.probability for guess in ours.top], [guess.probability for guess in theirs.top], rtol=1e-4
        )

    def test_the_numbers_are_the_models_own(self, tmp_path):
        """Set against the model called by hand on the picture prepared by hand."""
        torch = pytest.importorskip("torch")
        pixels = np.asarray(drawn(SIDE, SIDE))
        (prediction,) = ckptkit.predict(
            "tiny-moat0", image.fromarray(pixels), synthetic=True, resolution=SIDE
        )
        mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        images = ((pixels / 255 - mean) / deviation).astype(np.float32).transpose(2, 0, 1)[None]
        with SourceRequest("tiny-moat0", synthetic=True).open(Workspace()) as source, torch.inference_mode():
            model = ckptkit.create_model("tiny-moat0", checkpoint=source.located.path, resolution=SIDE)
            probabilities = torch.softmax(model(torch.from_numpy(images).contiguous()).double(), 1)[0]
        values, places = torch.topk(probabilities, 5)
        assert [guess.index for guess in prediction.top] == places.tolist()
        np.testing.assert_allclose([guess.probability for guess in prediction.top], values, rtol=1e-4)
        assert prediction.best == prediction.top[0]

    def test_a_head_of_other_classes_gives_numbers_only(self, tmp_path):
        torch = pytest.importorskip("torch")
        torch.manual_seed(3)
        model = ckptkit.create_model("moganet-xt", num_classes=10, attn_force_fp32=True)
        torch.save(model.state_dict(), tmp_path / "ten.pth")
        (prediction,) = ckptkit.predict(
            tmp_path / "ten.pth", drawn(), settings={"attn_force_fp32": True}, resolution=SIDE, top=99
        )
        assert sorted(guess.index for guess in prediction.top) == list(range(10))
        assert sum(guess.probability for guess in prediction.top) == pytest.approx(1)
        assert {(guess.wnid, guess.name) for guess in prediction.top} == {(None, None)}

    def test_json_says_what_was_done(self, tmp_path):
        pytest.importorskip("torch")
        (prediction,) = ckptkit.predict(
            "moganet-xt-224", save(drawn(), tmp_path / "a.png"), synthetic=True, resolution=SIDE, top=2
        )
        values = prediction.to_json()
        assert values["image"] == str(tmp_path / "a.png")
        assert [set(guess) for guess in values["top"]] == [
            {"rank", "index", "probability", "wnid", "name"}
        ] * 2
        assert (values["model"], values["variant"], values["framework"]) == (
            "moganet-xt-224",
            "moganet-xt",
            "torch",
        )
        assert values["preprocessing"] == {
            "size": [64, 64],
            "resize": 71,
            "interpolation": "bicubic",
            "normalization": "imagenet",
        }
        assert values["weights"]["synthetic"] is True
        assert values["weights"]["file"] is None
        assert "synthetic weights" in values["weights"]["note"]

    def test_weights_without_statistics_are_refused(self, tmp_path):
        pytest.importorskip("torch")
        source = write_checkpoint(Synthetic("tiny-moat0", bn_statistics=False), tmp_path / "no.ckpt")
        with pytest.raises(ConversionError, match="BatchNorm moving statistics"):
            ckptkit.predict(source, drawn(), resolution=SIDE)

    def test_weights_without_a_head_are_refused_in_words(self, tmp_path):
        pytest.importorskip("torch")
        with open_reader(write_tiny(tmp_path / "whole.ckpt")) as reader:
            conversion = plan(reader, Options("safetensors", layout="torch", head=False))
            path = execute(conversion, reader, Target("safetensors"), tmp_path / "headless.safetensors").path
        with pytest.raises(UsageError, match="has no classification head"):
            ckptkit.predict(path, drawn())


class TestWhatIsAskedOfThePythonFace:
    def test_one_or_many_folders_and_pictures(self, tmp_path):
        pytest.importorskip("torch")
        for name in ("b", "a"):
            save(drawn(), tmp_path / "folder" / f"{name}.png")
        options = {"synthetic": True, "resolution": SIDE, "top": 1}
        found = ckptkit.predict("tiny-moat0", [tmp_path / "folder", drawn()], **options)
        assert [one.image.rpartition("/")[2] for one in found] == ["a.png", "b.png", "picture 2"]
        assert len({one.best.index for one in found}) == 1, "three times the same picture"
        (alone,) = ckptkit.predict("tiny-moat0", str(tmp_path / "folder" / "a.png"), **options)
        assert alone.best.index == found[0].best.index

    def test_the_first_fault_ends_it_before_any_download(self, tmp_path):
        pytest.importorskip("torch")
        with pytest.raises(NotFoundError, match=r"none\.png: no such image"):
            ckptkit.predict("moat0-224", [tmp_path / "none.png"])

    def test_no_such_framework(self):
        with pytest.raises(UsageError, match="unknown framework 'jax'"):
            ckptkit.predict("tiny-moat0", [], framework="jax", synthetic=True)


def test_gathered_pictures_go_straight_in(tmp_path):
    pytest.importorskip("torch")
    save(image.new("RGB", (40, 40), BLUE), tmp_path / "blue.png")
    predictor = Predictor(Counting().source(), top=1)
    (found,) = predictor.predict(Gatherer().gather([tmp_path]).pictures)
    assert found.best.index == 2
