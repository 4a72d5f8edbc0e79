"""The PyTorch MOAT against recorded outputs of the published code, and what that comparison can see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ckptkit.families.filling import load_state  # noqa: E402
from ckptkit.families.moat import torch_model  # noqa: E402
from tests.support.moat_reference import GOLDEN_CASES, UNITS_VARIANT, load_golden, load_units  # noqa: E402
from tests.support.moat_torch import (  # noqa: E402
    FEATURE_TOLERANCE,
    LOGITS_TOLERANCE,
    canonical_weights,
    logits_error,
    nchw,
    nhwc,
    recipe_model,
)

MEAN_TOLERANCE = 1e-6
"""Of the recorded standard deviation, for a statistic of a whole map, where rounding averages out."""

UNITS = load_units()
ATTENTION_UNITS = [name for name, unit in UNITS.items() if unit.attention is not None]


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_golden(case):
    golden = load_golden(case)
    model = recipe_model(golden.variant, pos_emb=golden.pos_emb, pool_size=golden.pool_size)
    with torch.inference_mode():
        outputs = model.forward_stages(nchw(golden.input))

    assert list(outputs) == ["stage1", "stage2", "stage3", "stage4", "stage5", "logits"]
    assert logits_error(outputs["logits"], golden) <= LOGITS_TOLERANCE
    recorded = golden.arrays
    for stage in range(1, 6):
        out, std = nhwc(outputs[f"stage{stage}"]), float(recorded[f"stage{stage}_std"])
        assert out.shape == tuple(recorded[f"stage{stage}_shape"])
        wide = out.astype(np.float64)
        assert wide.mean() == pytest.approx(float(recorded[f"stage{stage}_mean"]), abs=MEAN_TOLERANCE * std)
        assert wide.std() == pytest.approx(std, rel=MEAN_TOLERANCE)
        near = {"rtol": 0, "atol": FEATURE_TOLERANCE * std}
        np.testing.assert_allclose(out[:, 0, :8, 0], recorded[f"stage{stage}_row0_ch0"], **near)
        np.testing.assert_allclose(wide.mean(axis=(1, 2)), recorded[f"stage{stage}_channel_mean"], **near)
        activated = torch_model.gelu(outputs[f"stage{stage}"])
        np.testing.assert_allclose(nhwc(activated)[:, 0, :8, 0], recorded[f"res{stage}_row0_ch0"], **near)
        if f"stage{stage}" in recorded:
            np.testing.assert_allclose(out, recorded[f"stage{stage}"], **near)


@pytest.fixture(scope="module")
def unit_models() -> dict[int, Any]:
    """Models of the unit cases by pool size: whole-map windows with 2, windows 12 and 6 with 3."""
    return {2: recipe_model(), 3: recipe_model(pool_size=3, window_size={2: 12, 3: 6})}


@pytest.mark.parametrize("name", UNITS)
def test_single_block(name, unit_models):
    unit = UNITS[name]
    block = unit_models[unit.pool_size].stages[unit.stage][unit.block]
    with torch.inference_mode():
        out = nhwc(block(nchw(unit.input)))
    assert out.shape == unit.output_shape
    assert out.astype(np.float64).std() == pytest.approx(unit.out_std, rel=1e-5)
    atol = FEATURE_TOLERANCE * unit.out_std
    np.testing.assert_allclose(out[:, :: unit.step[0], :: unit.step[1]], unit.slice, rtol=0, atol=atol)


@pytest.mark.parametrize("name", ATTENTION_UNITS)
def test_attention_layer(name, unit_models):
    unit = UNITS[name]
    attention = unit_models[unit.pool_size].stages[unit.stage][unit.block].attention
    with torch.inference_mode():
        out = attention(torch.from_numpy(unit.attention_input)).flatten(1, 2).numpy()
    scale = float(unit.attention.std())
    np.testing.assert_allclose(out[:, ::7], unit.attention, rtol=0, atol=FEATURE_TOLERANCE * scale)


@pytest.mark.parametrize("name", ATTENTION_UNITS)
def test_position_bias(name, unit_models):
    unit = UNITS[name]
    table = unit_models[2].stages[unit.stage][unit.block].attention.relative_position_embedding
    height, width = unit.window
    bias = torch_model.position_bias(table.detach(), height, width).numpy()
    near = {"rtol": 0, "atol": 2e-6}  # values up to 2; coordinates of the resize are float32
    np.testing.assert_allclose(bias[0, 0], unit.bias_head0_row0, **near)
    np.testing.assert_allclose(bias[-1, height * width // 2], unit.bias_lasthead_row_mid, **near)


def _swapped_bias(table: Any, height: int, width: int) -> Any:
    return position_bias(table, height, width).transpose(1, 2)


def _aligned_corners(table: Any, height: int, width: int) -> Any:
    size = (2 * height - 1, 2 * width - 1)
    resized = torch.nn.functional.interpolate(table[None], size, mode="bilinear", align_corners=True)
    return position_bias(resized[0], height, width)


def _no_bias(table: Any, height: int, width: int) -> Any:
    return torch.zeros(1, height * width, height * width)


def _symmetric_padding(x: Any, kernel: int, stride: int) -> Any:
    if kernel == 2:  # that of the pool stays
        return same_padding(x, kernel, stride)
    return torch.nn.functional.pad(x, (kernel // 2,) * 4)


def _tanh_gelu(x: Any) -> Any:
    return torch.nn.functional.gelu(x, approximate="tanh")


position_bias, same_padding = torch_model.position_bias, torch_model.same_padding

MISTAKES: dict[str, tuple[str, Any, float]] = {
    "LayerNorm epsilon 1e-6": ("_layer_norm", lambda width, _: torch.nn.LayerNorm(width, 1e-6), 5e-5),
    "LayerNorm epsilon 1e-3": ("_layer_norm", lambda width, _: torch.nn.LayerNorm(width, 1e-3), 6e-3),
    "BatchNorm epsilon 1e-5": ("BATCH_NORM_EPSILON", 1e-5, 1e-2),
    "tanh GELU": ("gelu", _tanh_gelu, 9e-4),
    "table resized with aligned corners": ("position_bias", _aligned_corners, 2e-4),
    "query and key swapped in the bias": ("position_bias", _swapped_bias, 1e-2),
    "position bias dropped": ("position_bias", _no_bias, 5e-3),
    "symmetric padding": ("same_padding", _symmetric_padding, 0.2),
}
"""What is planted where, and how far it moves the logits by measurements on the published code (one digit is
known); only the dropped bias was measured here."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_moves_the_logits(mistake, monkeypatch):
    seam, fault, distance = MISTAKES[mistake]
    golden = load_golden("tiny_moat0_pe_256_pool2")
    monkeypatch.setattr(torch_model, seam, fault)
    with torch.inference_mode():
        logits = recipe_model()(nchw(golden.input))
    moved = float(np.abs(logits.numpy() - golden.logits).max())
    assert logits_error(logits, golden) > LOGITS_TOLERANCE
    assert distance / 1.5 < moved < distance * 1.5


@pytest.mark.parametrize("name", ["stages.2.1.attention.q.weight", "stages.3.1.attention.o.weight"])
def test_a_transposed_square_weight_moves_the_logits(name):
    golden = load_golden("tiny_moat0_pe_256_pool2")
    model = recipe_model()
    weights = canonical_weights(UNITS_VARIANT)
    load_state(model, {**weights, name: weights[name].T})
    with torch.inference_mode():
        assert logits_error(model(nchw(golden.input)), golden) > 100 * LOGITS_TOLERANCE
