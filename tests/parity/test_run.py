"""Whole parity runs: both frameworks, real files, the real conversion between them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.base.errors import ConversionError, FormatError, UsageError
from ckptkit.formats.detect import open_reader
from ckptkit.models.synth import Synthetic, synthetic_checkpoint, synthetic_for, write_bundle
from ckptkit.parity.report import ParityReport
from ckptkit.registry.loading import load_registry
from ckptkit.workspace import Located
from tests.support.entries import entry_of
from tests.support.moat_files import flip_byte
from tests.support.moat_reference import load_golden
from tests.support.parity_cases import (
    OUTPUTS,
    SIDE,
    VARIANT,
    convert_to,
    overwrite_metadata,
    overwrite_tensor,
    require_frameworks,
    run_parity,
)
from tests.support.tf_files import write_checkpoint
from tests.support.toys import MOAT, toy_variants

pytestmark = pytest.mark.usefixtures("keras_built_once")
STATISTICS = ("moving_mean", "moving_variance")


@pytest.fixture(autouse=True, scope="module")
def _toys() -> Iterator[None]:
    with toy_variants():
        yield


def write_small(prefix: Path, plant: Callable[[dict[str, Any]], object] | None = None, **how: Any) -> Path:
    """Write the toy of MOAT as published, after ``plant`` changed its tensors; gives the prefix."""
    write_bundle(Synthetic(MOAT, **how), prefix)
    if plant:
        with open_reader(prefix) as reader:
            tensors = {name: np.array(reader.read(name)) for name in reader.specs}
        plant(tensors)
        write_checkpoint(prefix, tensors)
    return prefix


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("small") / "model.ckpt")


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With raw weights and their moving averages."""
    return write_small(tmp_path_factory.mktemp("twins") / "model.ckpt", twins=True)


@pytest.fixture(autouse=True)
def _frameworks() -> None:
    require_frameworks()


def run(path: Path, **options: Any) -> ParityReport:
    return run_parity(Located(path), **{"resolution": SIDE, **options})


def worst(report: ParityReport) -> float:
    return max(stage.relative for stage in report.stages)


class TestAgreement:
    @pytest.mark.parametrize("pos_emb", [True, False])
    def test_a_synthetic_checkpoint_agrees(self, pos_emb: bool):
        said: list[str] = []
        with synthetic_checkpoint(Synthetic(MOAT, pos_emb=pos_emb)) as located:
            report = run_parity(
                located, resolution=(64, 96), batch=3, synthetic=True, name="mine", note=said.append
            )
        assert report.ok, report.verdict
        assert [stage.name for stage in report.stages] == list(OUTPUTS)
        assert [stage.shape for stage in report.stages] == [
            (3, 32, 48, 16),
            (3, 16, 24, 16),
            (3, 8, 12, 32),
            (3, 4, 6, 32),
            (3, 2, 3, 64),
            (3, 1000),
        ]
        assert 0 < worst(report) < 5e-6, "ten times better than asked for: only the order of sums differs"
        assert all(stage.cosine > 0.999999 for stage in report.stages)
        assert (report.pos_emb, report.reference, report.precision) == (pos_emb, "keras", "float32")
        assert report.name == "mine"
        assert report.synthetic
        assert "synthetic weights" in report.verdict
        assert any("Keras" in sentence for sentence in said)
        assert any("PyTorch" in sentence for sentence in said)

    def test_both_models_give_what_the_published_code_gave(self, tiny: Path):
        """Default input and resolution are those of the recorded outputs, so the scales must be theirs."""
        golden = load_golden("tiny_moat0_pe_256_pool2")
        report = run_parity(Located(tiny))
        assert report.ok
        assert (report.inputs.height, report.inputs.width, report.inputs.batch) == (256, 256, 2)
        logits = report.stages[-1]
        assert logits.scale == pytest.approx(float(np.abs(golden.logits).max()), rel=2e-5)
        assert [stage.shape for stage in report.stages[:5]] == [
            tuple(golden.arrays[f"stage{k}_shape"]) for k in range(1, 6)
        ]
        stage5 = report.stages[4]
        assert stage5.scale == pytest.approx(float(np.abs(golden.arrays["stage5"]).max()), rel=2e-5)
        assert report.top is not None
        assert (report.top.top1, report.top.top5) == (2, 2)
        same_answer = len(set(golden.logits.argmax(axis=1))) == 1
        assert report.top.one_answer is same_answer is True

    @pytest.mark.parametrize(
        ("file", "weights"),
        [
            ("tiny_moat0_pe", None),
            ("tiny_moat0_nope_ema", "ema"),
            ("tiny_moat0_nope_ema", "raw"),
            ("tiny_moat0_pe_tf2", None),
        ],
    )
    def test_files_of_the_published_code_agree(self, file: str, weights: Any, shared_folder: Path):
        path = shared_folder / "checkpoints" / f"{file}.tar.gz"
        report = run(path, weights=weights or "auto")
        assert report.ok, report.verdict
        assert report.weights == weights
        assert report.pos_emb is ("nope" not in file)

    def test_ema_is_taken_where_nothing_is_said(self, twins: Path):
        auto, raw = run(twins), run(twins, weights="raw")
        assert auto.ok
        assert raw.ok
        assert (auto.weights, raw.weights) == ("ema", "raw")
        assert auto.stages[-1].scale != raw.stages[-1].scale
        assert "both sides took ema" in " ".join(auto.notes)

    @pytest.mark.parametrize("to", ["safetensors", "torch"])
    def test_a_file_for_pytorch_is_read_by_pytorch_and_converted_for_keras(
        self, to: str, small: Path, tmp_path: Path
    ):
        report = run(convert_to(small, tmp_path, to))
        assert report.ok, report.verdict
        assert report.reference == "torch"
        keras, torch = report.sides
        assert (keras.framework, keras.format, keras.layout) == ("keras", "tf", "deeplab2")
        assert (torch.framework, torch.format, torch.layout) == ("torch", to, "torch")
        assert torch.reads == "the original"

    @pytest.mark.parametrize("layout", ["deeplab2", "keras"])
    def test_tensorflow_names_are_read_by_keras_in_any_container(
        self, layout: str, small: Path, tmp_path: Path
    ):
        report = run(convert_to(small, tmp_path, "safetensors", layout=layout))
        assert report.ok, report.verdict
        assert report.reference == "keras"
        assert report.sides[0].layout == layout

    def test_a_headless_file_is_compared_on_its_stages(self, small: Path, tmp_path: Path):
        report = run(convert_to(small, tmp_path, "safetensors", head=False))
        assert report.ok, report.verdict
        assert [stage.name for stage in report.stages] == list(OUTPUTS[:5])
        assert report.top is None
        assert report.num_classes is None
        assert any("no classification head" in note for note in report.notes)

    def test_a_single_place_is_said_to_test_less(self, small: Path):
        report = run(small, resolution=32)
        assert report.ok
        assert any("single place" in note for note in report.notes)


class TestSettings:
    def test_an_entry_gives_settings_and_resolution(self, small: Path):
        entry = entry_of(
            "https://a.org/x.tar.gz",
            variant=MOAT,
            pool_size=3,
            window_size=2,
            global_attention=True,
            test_resolution=128,
        )
        plain = run(small, resolution=128)
        report = run_parity(Located(small, entry))
        assert report.ok, report.verdict
        of_the_entry = {"pool_size": 3, "window_size": 2, "global_attention": True}
        as_published = {"se_activation": "swish", "layer_norm_epsilon": 1e-5, "input_order": "rgb"}
        assert report.settings == of_the_entry | as_published
        assert (report.inputs.height, report.inputs.width) == (128, 128)
        assert report.sides[1].settings == report.settings, "they travelled in the converted file"
        assert report.name == "test-entry"
        scales = [
            (ours.scale, theirs.scale) for ours, theirs in zip(plain.stages, report.stages, strict=True)
        ]
        assert scales[0][0] == scales[0][1], "the stem has no pool"
        assert all(ours != theirs for ours, theirs in scales[1:]), "the settings must change something"

    def test_the_files_own_settings_count_without_an_entry(self, small: Path, tmp_path: Path):
        path = convert_to(small, tmp_path, "safetensors")
        overwrite_metadata(path, pool_size="3", resolution="96")
        report = run_parity(Located(path))
        assert report.ok, report.verdict
        assert report.settings["pool_size"] == 3
        assert report.inputs.height == 96

    def test_a_registry_entry_has_a_synthetic_stand_in(self):
        entry = load_registry()["tiny-moat0-256-noposemb"]
        with synthetic_checkpoint(synthetic_for(entry), entry) as located:
            report = run_parity(located, synthetic=True, batch=1, resolution=SIDE)
        assert report.ok, report.verdict
        assert (report.name, report.variant, report.pos_emb) == (entry.id, VARIANT, False)

    @pytest.mark.parametrize(
        "metadata",
        [{"pool_size": "[["}, {"pool_size": "[" * 100_000}, {"resolution": "0x10"}, {"resolution": "9" * 40}],
    )
    def test_hostile_metadata_is_a_format_error(self, metadata: dict[str, str], small: Path, tmp_path: Path):
        path = convert_to(small, tmp_path, "safetensors")
        overwrite_metadata(path, **metadata)
        with pytest.raises(FormatError, match="metadata"):
            run_parity(Located(path))


class TestPrecision:
    @pytest.mark.parametrize(("dtype", "roundoff"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
    def test_a_rounded_conversion_agrees_within_the_roundoff_of_its_type(
        self, dtype: str, roundoff: float, small: Path
    ):
        report = run(small, dtype=dtype)
        assert report.ok, report.verdict
        assert report.precision == dtype
        assert report.sides[1].dtype == dtype
        assert report.sides[0].dtype == "float32"
        assert 0.3 * roundoff < worst(report) < 5 * roundoff, "rounding shows, by about what was measured"

    def test_a_file_that_was_rounded_before_is_held_to_float32(self, small: Path, tmp_path: Path):
        report = run(convert_to(small, tmp_path, "safetensors", dtype="float16"))
        assert report.ok, report.verdict
        assert (report.precision, report.sides[0].dtype) == ("float32", "float16")
        assert worst(report) < 5e-6

    def test_a_given_rounded_file_is_held_to_its_own_type(self, small: Path, tmp_path: Path):
        converted = convert_to(small, tmp_path, "torch", dtype="bfloat16")
        report = run(small, converted=converted)
        assert report.ok, report.verdict
        assert report.precision == "bfloat16"
        assert report.sides[1].reads == str(converted)


class TestImage:
    def test_an_image_is_one_input(self, small: Path, tmp_path: Path):
        pillow = pytest.importorskip("PIL.Image")
        pixels = np.random.default_rng(0).integers(0, 256, (100, 80, 3), dtype=np.uint8)
        image = tmp_path / "cat.png"
        pillow.fromarray(pixels).save(image)
        report = run(small, image=image)
        assert report.ok, report.verdict
        assert report.stages[-1].shape == (1, 1000)
        assert report.inputs.normalization == "imagenet", "what MOAT was published with"
        assert report.to_json()["inputs"]["image"] == str(image)


@pytest.fixture(scope="module")
def first_upload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without BatchNorm statistics."""

    def without_statistics(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.endswith(STATISTICS)]:
            del tensors[name]

    return write_small(tmp_path_factory.mktemp("first") / "model.ckpt", without_statistics)


class TestMissingStatistics:
    def test_it_is_refused(self, first_upload: Path):
        with pytest.raises(ConversionError, match="meaningless") as caught:
            run(first_upload)
        assert "--allow-missing-bn" in str(caught.value)

    @pytest.mark.parametrize("to", [None, "safetensors"])
    def test_it_is_compared_when_allowed_and_the_report_says_so(
        self, to: str | None, first_upload: Path, tmp_path: Path
    ):
        path = convert_to(first_upload, tmp_path, to, allow_missing_bn=True) if to else first_upload
        report = run(path, allow_missing_bn=True)
        assert report.ok, report.verdict
        assert any("mean 0 and variance 1" in note for note in report.notes)

    def test_the_statistics_are_mean_0_and_variance_1(self, first_upload: Path, tmp_path: Path):
        def neutral(tensors: dict[str, Any]) -> None:
            for name, array in tensors.items():
                if name.endswith(STATISTICS):
                    array[...] = 1 if name.endswith("variance") else 0

        expected = run(write_small(tmp_path / "model.ckpt", neutral))
        found = run(first_upload, allow_missing_bn=True)
        assert [stage.scale for stage in found.stages] == [stage.scale for stage in expected.stages]


class TestGivenConversion:
    def test_a_good_one_is_proven(self, small: Path, tmp_path: Path):
        converted = convert_to(small, tmp_path, "torch")
        report = run(small, converted=converted)
        assert report.ok, report.verdict
        assert report.sides[1].reads == str(converted)

    def test_a_tensorflow_conversion_of_a_file_for_pytorch(self, small: Path, tmp_path: Path):
        source = convert_to(small, tmp_path, "safetensors")
        report = run(source, converted=convert_to(source, tmp_path, "tf"))
        assert report.ok, report.verdict
        assert report.reference == "torch"

    @pytest.mark.parametrize(
        ("tensor", "departs"),
        [
            ("stages.0.0.se.reduce.weight", "stage2"),
            ("stages.3.0.attention.o.weight", "stage5"),
            ("head.weight", "logits"),
        ],
    )
    def test_a_corrupted_one_departs_where_it_is_corrupted(
        self, tensor: str, departs: str, small: Path, tmp_path: Path
    ):
        converted = convert_to(small, tmp_path, "safetensors")
        overwrite_tensor(converted, tensor, struct.pack("<4f", 20.0, -20.0, 20.0, -20.0))
        report = run(small, converted=converted)
        assert not report.ok
        assert report.first_departure == departs
        assert report.verdict.startswith("DISAGREE")

    @pytest.mark.parametrize(("resolution", "departs"), [(32, None), (256, "stage4")])
    def test_a_small_input_does_not_read_all_of_a_position_table_and_the_report_says_so(
        self, resolution: int, departs: str | None, small: Path, tmp_path: Path
    ):
        converted = convert_to(small, tmp_path, "safetensors")
        table = "stages.2.0.attention.relative_position_embedding"
        overwrite_tensor(converted, table, struct.pack("<f", 50.0))  # its corner: the farthest displacement
        report = run(small, converted=converted, resolution=resolution)
        assert report.first_departure == departs
        assert any("only parts of the position tables" in note for note in report.notes) is (departs is None)

    def test_what_a_small_input_reads_of_it_is_compared(self, small: Path, tmp_path: Path):
        converted = convert_to(small, tmp_path, "safetensors")
        table = "stages.2.0.attention.relative_position_embedding"
        middle = 4 * (13 * 27 + 13)  # no displacement, in a table of 27 by 27 float32
        overwrite_tensor(converted, table, struct.pack("<f", 50.0), at=middle)
        assert run(small, converted=converted).first_departure == "stage4"

    def test_nan_in_it_is_named(self, small: Path, tmp_path: Path):
        converted = convert_to(small, tmp_path, "safetensors")
        overwrite_tensor(converted, "stages.1.0.expand_norm.bias", struct.pack("<f", float("nan")))
        report = run(small, converted=converted)
        assert report.first_departure == "stage3"
        departed = report.stages[2]
        assert departed.verdict == "not finite"
        assert "PyTorch side" in departed.reason
        assert "Keras side" not in departed.reason

    def test_the_copy_it_was_made_of_is_taken(self, twins: Path, tmp_path: Path):
        report = run(twins, converted=convert_to(twins, tmp_path, "safetensors", weights="raw"))
        assert report.ok, report.verdict
        assert report.weights == "raw", "although moving averages are what is taken otherwise"

    def test_the_other_copy_is_a_disagreement(self, twins: Path, tmp_path: Path):
        converted = convert_to(twins, tmp_path, "safetensors", weights="raw")
        assert run(twins, weights="ema", converted=converted).first_departure == "stage1"

    def test_a_setting_that_travelled_wrongly_shows(self, small: Path, tmp_path: Path):
        converted = convert_to(small, tmp_path, "safetensors")
        overwrite_metadata(converted, pool_size="3")
        report = run(small, converted=converted)
        assert report.first_departure == "stage2"
        assert any("pool_size is 3, the source 2" in note for note in report.notes)

    def test_one_of_another_model_is_refused(self, small: Path, tmp_path: Path):
        other = convert_to(write_small(tmp_path / "other.ckpt", pos_emb=False), tmp_path, "safetensors")
        with pytest.raises(ConversionError, match="without position embedding"):
            run(small, converted=other)

    @pytest.mark.parametrize("to", ["torch", "safetensors"])
    def test_one_with_the_sources_own_names_reaches_keras_by_way_of_tensorflow(
        self, small: Path, tmp_path: Path, to: str
    ):
        source = convert_to(small, tmp_path, "safetensors", stem="source")
        converted = convert_to(source, tmp_path, to)
        report = run(source, converted=converted)
        assert report.ok, report.verdict
        keras, torch = report.sides
        assert (keras.format, keras.layout) == ("tf", "deeplab2")
        assert keras.reads == f"{converted}, by way of TensorFlow's format"
        assert torch.reads == "the original"
        if to == "safetensors":
            overwrite_tensor(converted, "stages.1.0.expand_norm.bias", struct.pack("<f", 3.0))
            assert run(source, converted=converted).first_departure == "stage3", "it is the file that counts"

    def test_it_has_its_own_precision(self, small: Path, tmp_path: Path):
        with pytest.raises(UsageError, match="leave --dtype out"):
            run(small, converted=convert_to(small, tmp_path, "torch"), dtype="float16")


class TestBadSources:
    def test_nan_in_the_source_is_a_failure_although_both_sides_have_it(self, tmp_path: Path):
        def spoil(tensors: dict[str, Any]) -> None:
            tensors["moat/block_01_00/expand_norm/beta"][3] = np.nan

        report = run(write_small(tmp_path / "model.ckpt", spoil))
        assert report.first_departure == "stage3"
        assert report.stages[2].verdict == "not finite"
        assert "Keras side" in report.stages[2].reason
        assert "PyTorch side" in report.stages[2].reason

    def test_a_dead_stage_is_a_failure_although_both_sides_agree(self, tmp_path: Path):
        def kill(tensors: dict[str, Any]) -> None:
            tensors["moat/stem/conv_1/kernel"][...] = 0
            tensors["moat/stem/conv_1/bias"][...] = 0

        report = run(write_small(tmp_path / "model.ckpt", kill))
        assert report.first_departure == "stage1"
        assert report.stages[0].verdict == "degenerate"
        assert report.stages[0].max_abs == 0

    def test_a_flipped_bit_of_the_source_is_found_by_its_checksum(self, tmp_path: Path):
        prefix = write_small(tmp_path / "model.ckpt")
        with open_reader(prefix) as reader:
            values = np.array(reader.read("moat/block_02_00/shrink_conv/kernel")).tobytes()
        data = prefix.with_name(prefix.name + ".data-00000-of-00001")
        flip_byte(data, data.read_bytes().index(values) + 7)
        with pytest.raises(FormatError, match="block_02_00/shrink_conv/kernel"):
            run(prefix)

    def test_a_missing_variable_is_named(self, tmp_path: Path):
        prefix = write_small(tmp_path / "model.ckpt", lambda tensors: tensors.pop("moat/stem/conv_0/bias"))
        with pytest.raises(ConversionError, match="moat/stem/conv_0/bias"):
            run(prefix)

    def test_a_file_with_one_copy_has_no_ema(self, small: Path):
        with pytest.raises(UsageError, match="no moving averages"):
            run(small, weights="ema")

    def test_windows_that_do_not_fit_are_a_usage_error(self, small: Path):
        entry = entry_of("https://a.org/x.tar.gz", variant=MOAT, window_size=3)
        with pytest.raises(UsageError, match="windows"):
            run_parity(Located(small, entry), resolution=SIDE)
