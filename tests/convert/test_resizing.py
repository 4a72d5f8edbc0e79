"""``--resolution``: position tables resized once, as the models resize them in every forward pass."""

from __future__ import annotations

import numpy as np
import pytest

import ckptkit
from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.convert.execution import Target, execute
from ckptkit.convert.pipeline import Options, plan
from ckptkit.families.moat.windows import plausible_sizes, resize_table, table_sizes_at
from ckptkit.families.recognition import require_recognition
from ckptkit.formats.detect import open_reader
from ckptkit.models.synth import Synthetic, write_bundle, write_file
from ckptkit.workspace import Located
from tests.support.commands import runner
from tests.support.comparing import verify_checkpoint
from tests.support.moat_files import write_tiny
from tests.support.parity_cases import convert_to, require_frameworks, run_parity

SIZE = (96, 160)
TABLES = {"stages.2.": (11, 19), "stages.3.": (5, 9)}
"""Maps of 6×10 and 3×5 places: 2·6 − 1 = 11, 2·10 − 1 = 19, and so on."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("source") / "model.ckpt")


@pytest.fixture(scope="module")
def resized(source, tmp_path_factory):
    return convert_to(source, tmp_path_factory.mktemp("resized"), "safetensors", resolution=SIZE)


def refusal(source, **options):
    with open_reader(source) as reader, pytest.raises((UsageError, ConversionError)) as error:
        plan(reader, Options("safetensors", **options))
    return error.value


CASES = [
    ((27, 27), (47, 47)),
    ((13, 13), (23, 23)),
    ((27, 27), (63, 31)),
    ((27, 27), (13, 27)),
    ((27, 27), (7, 5)),
    ((13, 13), (1, 1)),
    ((13, 13), (511, 3)),
    ((2, 3), (5, 4)),
    ((1, 1), (3, 5)),
]


@pytest.mark.parametrize(("before", "after"), CASES)
class TestSameAsTheFrameworks:
    @pytest.fixture
    def table(self, before):
        return np.random.default_rng(0).standard_normal((4, *before)).astype(np.float32)

    def test_torch(self, table, after):
        torch = pytest.importorskip("torch")
        theirs = torch.nn.functional.interpolate(
            torch.from_numpy(table)[None], after, mode="bilinear", align_corners=False, antialias=False
        )[0].numpy()
        # PyTorch rounds places once less than TensorFlow, after a fused multiplication: the two are as far
        # from each other.
        np.testing.assert_allclose(resize_table(table, after), theirs, rtol=0, atol=5e-6)

    def test_tensorflow(self, table, after):
        tf = pytest.importorskip("tensorflow")
        theirs = tf.image.resize(table.transpose(1, 2, 0)[None], after, method="bilinear", antialias=False)
        found = resize_table(table, after)
        np.testing.assert_allclose(found, theirs[0].numpy().transpose(2, 0, 1), rtol=0, atol=1e-6)
        assert found.dtype == np.float32


def test_half_pixel_centres_by_hand():
    """0, 1 in four places: centres at −0.25 (the edge), 0.25, 0.75, 1.25 (the edge)."""
    assert resize_table(np.array([[[0.0], [1.0]]]), (4, 1)).ravel().tolist() == [0.0, 0.25, 0.75, 1.0]
    assert resize_table(np.array([[[0.0, 1.0, 2.0, 3.0]]]), (1, 2)).ravel().tolist() == [0.5, 2.5]


@pytest.mark.parametrize(
    ("resolution", "sizes"),
    [
        ((224, 224), ((27, 27), (13, 13))),
        ((256, 256), ((31, 31), (15, 15))),
        ((384, 384), ((47, 47), (23, 23))),
        ((512, 1024), ((63, 127), (31, 63))),
        ((225, 225), ((29, 29), (15, 15))),  # 15 places of 16 pixels, the last one hardly begun; 8 of 32
        ((32, 33), ((3, 5), (1, 3))),
    ],
)
def test_sizes_at_a_resolution(resolution, sizes):
    assert table_sizes_at(resolution) == sizes
    assert plausible_sizes({stage: (4, *size) for stage, size in zip((2, 3), sizes, strict=True)}) == sizes


def test_sizes_are_what_the_models_resize_to(monkeypatch):
    torch = pytest.importorskip("torch")
    from ckptkit.families.moat import torch_model

    seen = set()

    def spy(table, height, width):
        seen.add((2 * height - 1, 2 * width - 1))
        return torch.zeros(1, height * width, height * width)

    monkeypatch.setattr(torch_model, "position_bias", spy)
    with torch.inference_mode():
        torch_model.build("tiny-moat0")(torch.zeros(1, 3, 75, 130))
    assert seen == set(table_sizes_at((75, 130)))


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {2: (4, 47, 47)},
        {2: (4, 46, 46), 3: (8, 22, 22)},
        {2: (4, 47, 47), 3: (8, 13, 13)},
        {2: (4, 47 * 47), 3: (8, 23 * 23)},
        {2: (4, 4095, 4095), 3: (8, 2047, 2047)},
    ],
)
def test_other_shapes_are_not_taken_for_resized_tables(shapes):
    assert plausible_sizes(shapes) is None


def test_only_the_tables_change(source, resized):
    ours, theirs = ckptkit.load(source), ckptkit.load(resized)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        size = next((size for stage, size in TABLES.items() if name.startswith(stage)), None)
        if "relative_position" in name:
            expected = resize_table(array, size)
            assert theirs[name].shape == (len(array), *size)
            np.testing.assert_array_equal(theirs[name], expected)
        else:
            np.testing.assert_array_equal(theirs[name], array)
    assert theirs["stages.2.0.attention.relative_position_embedding"].dtype == np.float32


def test_metadata_and_recognition(resized):
    with open_reader(resized) as reader:
        assert reader.metadata["resolution"] == "96x160"
        assert reader.metadata["position_tables"] == "resized to 11x19, 5x9 for an input of 96x160"
        found = require_recognition(resized, reader.specs)
    assert (found.variant, found.structure.table_sizes) == ("tiny-moat0", ((11, 19), (5, 9)))
    assert verify_checkpoint(Located(resized)).ok


@pytest.mark.parametrize("to", ["tf", "torch", "keras", "npz"])
def test_a_resized_file_converts_to_everything_and_back(resized, tmp_path, to):
    there = convert_to(resized, tmp_path, to)
    with open_reader(there) as reader:
        assert reader.metadata["position_tables"] == "resized to 11x19, 5x9 for an input of 96x160"
    back = convert_to(there, tmp_path, "safetensors", stem="back")
    ours, theirs = ckptkit.load(resized), ckptkit.load(back)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tables_are_resized_before_they_are_rounded(source, resized, tmp_path, dtype):
    half = ckptkit.load(convert_to(source, tmp_path, "safetensors", resolution=SIZE, dtype=dtype))
    name = "stages.2.1.attention.relative_position_embedding"
    np.testing.assert_array_equal(half[name], ckptkit.load(resized)[name].astype(half[name].dtype))


def test_the_published_size_changes_nothing(source, tmp_path):
    with open_reader(source) as reader:
        conversion = plan(reader, Options("safetensors", resolution=(224, 224)))
        execute(conversion, reader, Target("safetensors"), tmp_path / "same.safetensors")
        assert not any(move.resize for move in conversion.moves)
    assert conversion.metadata["resolution"] == "224"
    assert "position_tables" not in conversion.metadata


@pytest.mark.parametrize("to", ["safetensors", "tf"])
def test_both_models_agree_with_the_source_at_that_resolution(source, tmp_path, to):
    require_frameworks()
    converted = convert_to(source, tmp_path, to, resolution=SIZE)
    report = run_parity(Located(source), converted=converted, resolution=SIZE)
    assert report.ok, report.verdict
    assert any("resized for 96x160" in note for note in report.notes)


def test_both_models_read_a_resized_file(resized):
    require_frameworks()
    report = run_parity(Located(resized))
    assert report.ok, report.verdict
    assert (report.inputs.height, report.inputs.width) == SIZE, "what the file says it is for"


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_models_are_built_from_a_resized_file(source, resized, framework):
    require_frameworks()
    models = [ckptkit.create_model("tiny-moat0", framework, checkpoint=file) for file in (source, resized)]
    if framework == "torch":
        import torch

        with torch.inference_mode():
            ours, theirs = (model(torch.ones(1, 3, *SIZE)).numpy() for model in models)
    else:
        ours, theirs = (model(np.ones((1, *SIZE, 3), np.float32)).numpy() for model in models)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)


class TestRefused:
    def test_resizing_twice(self, resized):
        error = refusal(resized, resolution=(64, 64))
        assert "resized already (resized to 11x19, 5x9 for an input of 96x160)" in str(error)

    def test_the_same_size_again_is_no_change(self, resized):
        with open_reader(resized) as reader:
            conversion = plan(reader, Options("npz", resolution=SIZE))
        assert not any(move.resize for move in conversion.moves)
        assert conversion.metadata["position_tables"] == "resized to 11x19, 5x9 for an input of 96x160"

    def test_no_tables(self, tmp_path):
        write_bundle(Synthetic("tiny-moat0", pos_emb=False), tmp_path / "m")
        error = refusal(tmp_path / "m", resolution=SIZE)
        assert "no position tables" in str(error)

    def test_moganet(self, tmp_path):
        error = refusal(write_file(Synthetic("moganet-xt"), tmp_path / "m.pth"), resolution=SIZE)
        assert "family moganet has no position tables" in str(error)

    @pytest.mark.parametrize("resolution", [(0, 224), (16, 16), (224, 31), (5000, 224)])
    def test_sizes_no_input_has(self, source, resolution):
        assert "32 to 4096" in str(refusal(source, resolution=resolution).hint)

    def test_fixed_windows(self, source):
        error = refusal(source, resolution=SIZE, settings={"window_size": {"2": 14, "3": 7}})
        assert "does not follow from the resolution" in str(error)

    def test_whole_map_windows_are_none(self, source):
        with open_reader(source) as reader:
            assert plan(reader, Options("npz", resolution=SIZE, settings={"window_size": None}))

    @pytest.mark.parametrize("shape", [(46, 46), (25, 25)])
    def test_one_table_of_another_size_is_a_wrong_shape(self, tmp_path, shape):
        def plant(tensors):
            name = "moat/block_02_03/attention/relative_position_embedding"
            tensors[name] = np.zeros((len(tensors[name]), *shape), np.float32)

        assert "another shape" in str(refusal(write_tiny(tmp_path / "m", plant)))


class TestCommand:
    def test_side(self, source, tmp_path, capsys):
        out = tmp_path / "out.safetensors"
        run = runner(capsys)("convert", source, "--resolution", "64", "-o", out)
        assert run.code == 0, run.err
        with open_reader(out) as reader:
            assert reader.metadata["resolution"] == "64"

    def test_dry_run_names_what_is_resized(self, source, capsys):
        run = runner(capsys)("convert", source, "--resolution", "96x160", "--dry-run")
        assert run.out.count("resize to 11x19") == 7 and run.out.count("resize to 5x9") == 2

    @pytest.mark.parametrize("text", ["big", "96x", "-3", "1e3"])
    def test_no_size(self, source, capsys, text):
        run = runner(capsys)("convert", source, f"--resolution={text}")
        assert run.code == 2 and "invalid size" in run.err

    def test_too_small(self, source, capsys):
        run = runner(capsys)("convert", source, "--resolution", "16")
        assert run.code == 2 and "32 to 4096" in run.err

    def test_library(self, source, tmp_path):
        out = ckptkit.convert(source, "npz", tmp_path / "out.npz", resolution=SIZE)
        assert ckptkit.load(out)["stages.3.1.attention.relative_position_embedding"].shape == (8, 5, 9)
