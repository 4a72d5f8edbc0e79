"""The PyTorch MogaNet's contract: names, shapes, what a call returns, the gate, loading."""

from __future__ import annotations

import argparse
import json
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ckptkit.base.errors import ConversionError  # noqa: E402
from ckptkit.families.base import Structure, get_family  # noqa: E402
from ckptkit.families.filling import load_state  # noqa: E402
from ckptkit.families.moganet import torch_model  # noqa: E402
from tests.support.moganet_torch import (  # noqa: E402
    FEATURE_TOLERANCE,
    LOGITS_TOLERANCE,
    SMALLEST,
    logits_error,
    nchw,
    recipe_model,
    rows_of,
    weights,
)
from tests.support.moganet_weights import (  # noqa: E402
    PARAMETER_COUNTS,
    VARIANTS,
    TensorRow,
    fingerprint,
    load_golden,
    philox_normal,
    published_state_dicts,
    recipe_state,
    tensor_rows,
)

COUNTER = ".num_batches_tracked"
GATES = pytest.mark.parametrize("attn_force_fp32", [False, True], ids=["plain", "fp32gate"])


def _meta(variant=SMALLEST, *, attn_force_fp32=False, **settings):
    with torch.device("meta"):
        return torch_model.build(variant, attn_force_fp32=attn_force_fp32, **settings)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_state_dict_is_the_published_one(variant):
    """Names, order, shapes, types, and which are parameters."""
    model = _meta(variant)
    published = published_state_dicts()[variant]
    rows = rows_of(model)
    assert rows == tensor_rows(variant)  # which tells what differs; the fingerprint is the published code's
    assert fingerprint(rows) == published["sha256"]
    assert len(rows) == published["tensors"]
    assert sum(p.numel() for p in model.parameters()) == published["parameters"] == PARAMETER_COUNTS[variant]
    assert rows_of(_meta(variant, attn_force_fp32=True)) == rows


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_carried_fingerprints_are_those_of_the_facts(variant, shared_folder):
    facts = json.loads((shared_folder / "facts" / "moganet_state_dicts.json").read_text(encoding="utf-8"))
    rows = [
        TensorRow(name, tuple(shape), dtype, kind) for name, shape, dtype, kind in facts[variant]["tensors"]
    ]
    assert published_state_dicts()[variant] == {
        "tensors": len(rows),
        "parameters": sum(math.prod(row.shape) for row in rows if row.kind == "parameter"),
        "sha256": fingerprint(rows),
    }
    assert rows_of(_meta(variant)) == tuple(rows)


@pytest.mark.parametrize("num_classes", [1000, None, 0, 10])
def test_names_follow_the_head_and_the_family_table(num_classes):
    table = get_family("moganet").table("torch", SMALLEST, Structure(False, num_classes or None))
    model = _meta(num_classes=num_classes)
    rows = rows_of(model)
    assert rows == tensor_rows(SMALLEST, num_classes=num_classes or None)
    assert {row.name: row.shape for row in rows if not row.name.endswith(COUNTER)} == {
        b.canonical: b.canonical_shape for b in table.bindings if not b.canonical.endswith(COUNTER)
    }
    assert {row.name for row in rows if row.kind == "parameter"} == {
        b.canonical for b in table.bindings if b.trainable
    }


def _turned(state):
    """Swap rows and columns of everything that lies in the image plane."""
    return {name: array.swapaxes(-1, -2) if array.ndim == 4 else array for name, array in state.items()}


@pytest.mark.parametrize("size", [(96, 160), (125, 95), (33, 65), (31, 7), (1, 2)])
def test_height_and_width_are_told_apart_at_any_size(size):
    """A transposed image through transposed kernels gives transposed features; strides round up."""
    upright, turned = (recipe_model(features_only=True) for _ in range(2))
    load_state(turned, _turned(weights(SMALLEST)))
    x = nchw(philox_normal(2, (1, *size, 3)))
    with torch.inference_mode():
        pairs = list(zip(upright(x), turned(x.transpose(2, 3)), strict=True))
    for stride, (ours, theirs) in zip((4, 8, 16, 32), pairs, strict=True):
        assert ours.shape[2:] == (-(-size[0] // stride), -(-size[1] // stride))
        np.testing.assert_allclose(
            theirs.transpose(2, 3).numpy(), ours.numpy(), rtol=0, atol=FEATURE_TOLERANCE * float(ours.std())
        )


def test_images_of_a_batch_do_not_see_each_other():
    model = recipe_model()
    golden = load_golden("xtiny_224_plain")
    images = nchw(golden.input)
    with torch.inference_mode():
        alone = torch.cat([model(image[None]) for image in images.flip(0)])
        other_neighbour = model(torch.stack((images[0], torch.zeros_like(images[0]))))
    assert logits_error(alone.flip(0), golden) <= LOGITS_TOLERANCE
    np.testing.assert_allclose(other_neighbour[0].numpy(), golden.logits[0], rtol=0, atol=1e-5)


def test_one_place_reaches_as_far_as_the_orders_do():
    """The three branches of the value reach 2, 2 + 4 and 2 + 9 places."""
    value = recipe_model().blocks1[0].attn.value
    x = torch.zeros(1, 32, 31, 31)
    changed = x.clone()
    changed[0, :, 15, 15] = 1
    projection = torch.eye(32)[..., None, None]
    with torch.no_grad():
        value.PW_conv.weight.copy_(projection)  # leaves the branches apart: 4, 12 and 16 channels
        moved = (value(changed) - value(x)).abs()[0] > 0
    for channels, reach in ((slice(0, 4), 2), (slice(4, 16), 6), (slice(16, 32), 11)):
        rows, columns = torch.nonzero(moved[channels].any(0), as_tuple=True)
        assert (int(rows.min()), int(rows.max())) == (15 - reach, 15 + reach)
        assert (int(columns.min()), int(columns.max())) == (15 - reach, 15 + reach)


def test_the_gate_by_hand():
    """Both functions of the published code, on a constant map whose result the formula gives."""

    def silu(z):
        return z / (1 + math.exp(-z))

    gate, value = 0.5, -2.0
    once = silu(gate) * silu(value)
    twice = silu(silu(gate)) * silu(silu(value))
    for attn_force_fp32, expected in ((False, once), (True, twice)):
        attention = torch_model.build(SMALLEST, attn_force_fp32=attn_force_fp32).blocks1[0].attn
        with torch.no_grad():
            for convolution in (attention.proj_1, attention.gate, attention.value.PW_conv):
                convolution.weight.zero_()
            attention.gate.bias.fill_(gate)
            attention.value.PW_conv.bias.fill_(value)
            attention.proj_2.weight.copy_(torch.eye(32)[..., None, None])
            attention.proj_2.bias.fill_(10)
            out = attention(torch.full((1, 32, 3, 3), 100.0))
        np.testing.assert_allclose(out.numpy(), 110 + expected, rtol=1e-6)


def _dtypes_into_proj_2(model):
    seen = set()
    for name, module in model.named_modules():
        if name.endswith("attn.proj_2"):
            module.register_forward_hook(lambda _, inputs, out: seen.update((inputs[0].dtype, out.dtype)))
    return seen


@pytest.mark.parametrize(
    ("attn_force_fp32", "expected"), [(True, torch.float32), (False, torch.bfloat16)], ids=["fp32", "plain"]
)
def test_the_gate_under_autocast(attn_force_fp32, expected):
    model = recipe_model(attn_force_fp32=attn_force_fp32)
    seen = _dtypes_into_proj_2(model)
    x = nchw(philox_normal(7, (1, 64, 64, 3)))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x)
    assert seen == {expected}
    assert logits.dtype == torch.bfloat16  # autocast goes on outside the gate
    with torch.inference_mode():
        np.testing.assert_allclose(logits.float().numpy(), model(x).numpy(), rtol=0, atol=0.1)


@GATES
@pytest.mark.parametrize(
    ("dtype", "digits"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)], ids=["bfloat16", "float16"]
)
def test_a_half_precision_model_runs(dtype, digits, attn_force_fp32):
    model = recipe_model(attn_force_fp32=attn_force_fp32)
    x = nchw(philox_normal(7, (2, 64, 64, 3)))
    with torch.inference_mode():
        expected = model(x)
        actual = model.to(dtype)(x.to(dtype))
    assert actual.dtype == dtype
    # Seven (ten) bits of mantissa through 18 blocks, in shares of the logits' spread.
    np.testing.assert_allclose(
        actual.float().numpy(), expected.numpy(), rtol=0, atol=digits * float(expected.std())
    )


@GATES
def test_a_model_without_memory_tells_shapes(attn_force_fp32):
    model = _meta(attn_force_fp32=attn_force_fp32)
    stages = model.forward_stages(torch.zeros(2, 3, 225, 160, device="meta"))
    assert {name: tuple(out.shape) for name, out in stages.items()} == {
        "stage1": (2, 32, 57, 40),
        "stage2": (2, 64, 29, 20),
        "stage3": (2, 96, 15, 10),
        "stage4": (2, 192, 8, 5),
        "logits": (2, 1000),
    }


def test_the_gate_has_no_default():
    with pytest.raises(TypeError, match="attn_force_fp32"):
        torch_model.build(SMALLEST)


def test_a_state_of_another_structure_is_refused():
    state = weights(SMALLEST)
    with pytest.raises(ConversionError, match=r"2 unexpected \(head\.weight, head\.bias\)"):
        load_state(_meta(num_classes=None), state)
    with pytest.raises(ConversionError, match=r"2 of the wrong shape \(head\.weight \[1000, 192\] instead"):
        load_state(_meta(num_classes=10), state)
    with pytest.raises(ConversionError, match=r"1 missing \(norm4\.bias\)"):
        load_state(_meta(), {n: array for n, array in state.items() if n != "norm4.bias"})


def test_half_precision_weights_are_widened():
    half = {
        name: array.astype(np.float16) if array.dtype == np.float32 else array
        for name, array in weights(SMALLEST).items()
    }
    model = _meta()
    load_state(model, half)
    for name, tensor in model.state_dict().items():
        if name.endswith(COUNTER):
            continue
        assert tensor.dtype == torch.float32
        assert np.array_equal(tensor.numpy(), half[name].astype(np.float32)), name


def test_pytorchs_own_strict_loading_takes_a_published_state():
    golden = load_golden("xtiny_224_fp32gate")
    model = torch_model.build(SMALLEST, attn_force_fp32=True)
    state = {name: torch.from_numpy(array) for name, array in recipe_state(SMALLEST).items()}
    model.load_state_dict(state, strict=True)
    assert int(model.state_dict()["norm4.num_batches_tracked"]) == 1000
    with torch.inference_mode():
        assert logits_error(model(nchw(golden.input)), golden) <= LOGITS_TOLERANCE


@pytest.mark.parametrize(
    ("file", "part", "prefix"),
    [
        ("moganet_xtiny_timm.pth.tar", "state_dict_ema", ""),
        ("moga_xtiny_openmixup.pth", "state_dict", "backbone."),
        ("moga_xtiny_openmixup_published.pth", "state_dict", "backbone."),
    ],
)
def test_a_file_of_the_published_training_code_loads_strictly(file, part, prefix, shared_folder):
    """Read by torch itself, renamed here: nothing of ckptkit's reading or layouts takes part."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        stored = torch.load(shared_folder / "checkpoints" / file, map_location="cpu", weights_only=True)[part]
    state = {name.removeprefix(prefix).replace("head.fc.", "head."): array for name, array in stored.items()}
    golden = load_golden("xtiny_224_plain")
    model = _meta()
    model.load_state_dict(state, strict=True, assign=True)
    with torch.inference_mode():
        assert logits_error(model(nchw(golden.input)), golden) <= LOGITS_TOLERANCE
