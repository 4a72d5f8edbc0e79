"""Plans: what they move, what they leave out, what they refuse, and in which words."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ckptkit.base.errors import ConversionError, NotFoundError, UsageError
from ckptkit.base.tensors import DTYPES, OPAQUE, TensorSpec
from ckptkit.convert.pipeline import Options, plan
from ckptkit.formats.readers import MappedReader
from ckptkit.formats.tf_bundle import TfBundleReader
from ckptkit.registry.loading import load_registry


class Altered(MappedReader):
    """A reader whose specs a test has changed; the bytes stay those of the file."""

    def __init__(self, reader, specs, metadata=None):
        self.path, self.format, self.notes = reader.path, reader.format, reader.notes
        self.specs, self.metadata = specs, dict(metadata or reader.metadata)


@pytest.fixture
def plain(bundles):
    with TfBundleReader(bundles["plain"]) as reader:
        yield reader


@pytest.fixture
def twins(bundles):
    with TfBundleReader(bundles["twins"]) as reader:
        yield reader


def test_everything_is_moved_or_left_out_by_name(plain):
    conversion = plan(plain, Options("safetensors"))
    assert {m.source for m in conversion.moves} | {i.name for i in conversion.ignored} == set(plain.specs)
    assert [(i.name, i.rule) for i in conversion.ignored] == [("global_step", "global_step")]
    assert (conversion.layout, conversion.recognition.variant) == ("torch", "tiny-moat0")
    assert conversion.nbytes == 13_539_672 - 8  # the published code's data file, less its int64 global_step


@pytest.mark.parametrize(
    ("target", "source", "naive"),
    [
        ("stem.conv_1.weight", "moat/stem/conv_1/kernel", lambda a: a.transpose(3, 2, 0, 1)),
        (
            "stages.0.0.depthwise_conv.weight",
            "moat/block_00_00/depthwise_conv/depthwise_kernel",
            lambda a: a.transpose(2, 3, 0, 1),
        ),
        (
            "stages.2.0.attention.q.weight",
            "moat/block_02_00/attention/q/weight",
            lambda a: a.reshape(a.shape[0], -1).T,
        ),
        (
            "stages.2.0.attention.o.weight",
            "moat/block_02_00/attention/o/weight",
            lambda a: a.reshape(-1, a.shape[-1]).T,
        ),
        ("stages.2.0.attention.q.bias", "moat/block_02_00/attention/q/bias", lambda a: a.reshape(-1)),
        ("head.weight", "moat/logits_head/kernel", lambda a: a[0, 0].T),
        ("stem.norm_0.running_var", "moat/stem/norm_0/moving_variance", lambda a: a),
    ],
)
def test_moves_are_what_one_would_write_by_hand(plain, target, source, naive):
    move = next(m for m in plan(plain, Options("safetensors")).moves if m.target.name == target)
    assert move.source == source
    array = plain.read(source)
    np.testing.assert_array_equal(move.apply(array), naive(array))
    assert np.shares_memory(move.apply(array), array)


def test_the_same_layout_changes_nothing(plain):
    for move in plan(plain, Options("safetensors", layout="deeplab2")).moves:
        assert (move.target.name, move.op) == (move.source, "identity")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_applies_to_floats(plain, dtype):
    assert {s.dtype.name for s in plan(plain, Options("safetensors", dtype=dtype)).specs} == {dtype}


def test_no_head_drops_the_head_and_says_so(plain):
    conversion = plan(plain, Options("safetensors", head=False))
    dropped = {i.name for i in conversion.ignored if i.rule == "head"}
    assert dropped == {
        "moat/final_layer_norm/gamma",
        "moat/final_layer_norm/beta",
        "moat/logits_head/kernel",
        "moat/logits_head/bias",
    }
    assert not [s.name for s in conversion.specs if s.name.startswith(("head.", "norm."))]
    assert conversion.metadata["num_classes"] == "0"


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_one_copy_is_taken(twins, weights):
    conversion = plan(twins, Options("safetensors", weights=weights))
    kernel = next(m for m in conversion.moves if m.target.name == "stem.conv_0.weight")
    assert kernel.source.endswith("/ExponentialMovingAverage") == (weights == "ema")
    assert conversion.metadata["weights"] == weights
    assert any(weights in note for note in conversion.notes)


def test_metadata_carries_provenance_and_behaviour(plain):
    entry = load_registry()["tiny-moat0-256"]
    decided = plan(plain, Options("safetensors"), entry=entry)
    metadata = decided.with_metadata({"source_sha256": "ab" * 32}).metadata
    assert metadata["entry"] == "tiny-moat0-256"
    assert metadata["source_sha256"] == "ab" * 32
    assert (metadata["pool_size"], metadata["pos_emb"], metadata["normalization"]) == (
        "2",
        "true",
        "imagenet",
    )
    assert (metadata["variant"], metadata["layout"], metadata["bn_statistics"]) == (
        "tiny-moat0",
        "torch",
        "present",
    )


def test_metadata_of_a_converted_file_travels_on(plain):
    said = {"entry": "mine", "pool_size": "3", "weights": "ema", "unrelated": "x"}
    metadata = plan(Altered(plain, plain.specs, said), Options("torch")).metadata
    assert (metadata["entry"], metadata["pool_size"], metadata["weights"]) == ("mine", "3", "ema")
    assert "unrelated" not in metadata


def without(specs, *names):
    return {name: spec for name, spec in specs.items() if name not in names}


def resized(specs, name, shape):
    return {**specs, name: dataclasses.replace(specs[name], shape=shape)}


def added(specs, name):
    return {**specs, name: TensorSpec(name, DTYPES["float32"], (3,))}


KERNEL = "moat/block_01_00/expand_conv/kernel"


@pytest.mark.parametrize(
    ("change", "options", "error", "words"),
    [
        (lambda s: without(s, KERNEL), {}, ConversionError, f"1 tensor ({KERNEL}) missing for tiny-moat0"),
        (
            lambda s: without(s, "moat/stem/norm_0/moving_mean"),
            {"allow_missing_bn": True},
            ConversionError,
            "missing",
        ),
        (
            lambda s: resized(s, KERNEL, (1, 1, 32, 255)),
            {},
            ConversionError,
            "[1, 1, 32, 255] instead of [1, 1, 32, 256]",
        ),
        (
            lambda s: added(s, "mystery/kernel"),
            {},
            ConversionError,
            "1 tensor (mystery/kernel) not known to tiny-moat0",
        ),
        (
            lambda s: without(s, "moat/logits_head/kernel", "moat/logits_head/bias"),
            {},
            ConversionError,
            "--no-head",
        ),
        (lambda s: s, {"variant": "tiny-moat1"}, ConversionError, "unlike tiny-moat1"),
        (lambda s: s, {"variant": "moat9"}, NotFoundError, "unknown variant 'moat9'"),
        (lambda s: s, {"layout": "onnx"}, NotFoundError, "choose from torch, deeplab2, keras"),
        (lambda s: s, {"dtype": "int8"}, UsageError, "choose from float32, float16, bfloat16"),
        (lambda s: s, {"to": "xyz"}, UsageError, "choose from safetensors, torch, tf, keras, keras2, npz"),
        (lambda s: s, {"to": "npz", "max_shard_size": 1}, UsageError, "torch, keras and dcp have shards"),
        (lambda s: s, {"weights": "ema"}, UsageError, "no moving averages"),
    ],
    ids=lambda value: None if callable(value) else str(value),  # an address would differ between workers
)
def test_what_does_not_fit_is_refused_in_one_line(plain, change, options, error, words):
    with pytest.raises(error) as caught:
        plan(Altered(plain, change(dict(plain.specs))), Options(**{"to": "safetensors", **options}))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_first_uploads_need_consent_and_are_labelled(bundles):
    with TfBundleReader(bundles["no-bn"]) as reader:
        with pytest.raises(ConversionError, match="--allow-missing-bn"):
            plan(reader, Options("safetensors"))
        conversion = plan(reader, Options("safetensors", allow_missing_bn=True))
    assert conversion.metadata["bn_statistics"] == "missing"
    assert not [s.name for s in conversion.specs if "running_" in s.name]
    assert any("not for predictions" in note for note in conversion.notes)


def test_a_headless_file_converts_without_a_head(plain):
    headless = {n: s for n, s in plain.specs.items() if "logits_head" not in n and "final_layer" not in n}
    conversion = plan(Altered(plain, headless), Options("safetensors", head=False))
    assert len(conversion.moves) == 361 - 4


def detector(plain, *names):
    headless = {n: s for n, s in plain.specs.items() if "logits_head" not in n and "final_layer" not in n}
    return Altered(plain, headless | {name: TensorSpec(name, DTYPES["float32"], (3,)) for name in names})


def test_a_detectors_checkpoint_is_called_so_and_gives_its_backbone(plain):
    whole = detector(plain, "PanopticDeepLab/semantic_head/kernel", "instance_decoder/aspp/kernel")
    with pytest.raises(ConversionError) as caught:
        plan(whole, Options("safetensors"))
    assert caught.value.message.endswith(
        ": a segmentor's checkpoint: backbone tiny-moat0 with PanopticDeepLab, instance_decoder"
    )
    assert "--no-head" in caught.value.hint
    conversion = plan(whole, Options("safetensors", head=False))
    assert len(conversion.moves) == 361 - 4
    assert {one.rule for one in conversion.ignored} == {"PanopticDeepLab", "instance_decoder", "global_step"}
    with pytest.raises(ConversionError, match=r"1 tensor \(mystery\) not known"):
        plan(detector(plain, "PanopticDeepLab/x", "mystery"), Options("safetensors", head=False))


def test_a_weight_that_cannot_be_read_is_named_with_the_reason(plain):
    torn = Altered(plain, without(dict(plain.specs), KERNEL))
    torn.left_out = {KERNEL: "parts are missing: 1 of 2 elements are there", f"{KERNEL}/Adam": "parts"}
    with pytest.raises(ConversionError) as caught:
        plan(torn, Options("safetensors"))
    assert f"1 tensor cannot be read: '{KERNEL}' (parts are missing: 1 of 2 elements" in str(caught.value)
    whole = Altered(plain, dict(plain.specs))
    whole.left_out = {f"{KERNEL}/Adam": "parts are missing"}
    assert [one.rule for one in plan(whole, Options("safetensors")).ignored][-1] == "optimizer slots"


def test_two_variables_of_one_name_with_other_values_are_refused_by_name(plain):
    twice = Altered(plain, added(dict(plain.specs), "variables/3"))
    twice.namesakes = {"variables/3": KERNEL}
    with pytest.raises(ConversionError) as caught:
        plan(twice, Options("safetensors"))
    assert f"1 tensor (variables/3) of a name that another one has too, with other values: {KERNEL}" in str(
        caught.value
    )
    assert "--layout as-is" in caught.value.hint


@pytest.mark.parametrize(("kind", "id"), [("plain", "tiny-moat0-256-noposemb"), ("twins", "tiny-moat0-256")])
def test_an_entry_decides_whether_there_is_a_position_embedding(bundles, kind, id):
    with (
        TfBundleReader(bundles[kind]) as reader,
        pytest.raises(ConversionError, match=f"position embedding that {id}"),
    ):
        plan(reader, Options("safetensors"), entry=load_registry()[id])


def test_a_familys_tensors_must_be_numbers(plain):
    kernel = "moat/stem/conv_0/kernel"
    specs = {**plain.specs, kernel: dataclasses.replace(plain.specs[kernel], dtype=OPAQUE["qint32"])}
    with pytest.raises(ConversionError, match=rf"'{kernel}' \(qint32\)") as caught:
        plan(Altered(plain, specs), Options("tf"))
    assert "--layout as-is" in caught.value.hint


def test_what_cannot_be_read_is_refused_by_name_unless_a_rule_leaves_it_out(plain):
    reader = Altered(plain, plain.specs)
    reader.left_out = {"moat/stem/lists": "lists of any length"}
    with pytest.raises(ConversionError, match=r"1 tensor cannot be read: 'moat/stem/lists' \(lists of any"):
        plan(reader, Options("safetensors"))
    specs = {name: spec for name, spec in plain.specs.items() if name != "global_step"}
    reader = Altered(plain, specs)
    reader.left_out = {"global_step": "lists of any length"}
    assert "counts training steps" in plan(reader, Options("safetensors")).left_out["global_step"]
