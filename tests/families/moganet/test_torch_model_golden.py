"""The PyTorch MogaNet against recorded outputs of the published code, and what that comparison can see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from ckptkit.families.filling import load_state  # noqa: E402
from ckptkit.families.moganet import torch_model  # noqa: E402
from tests.support.moganet_torch import (  # noqa: E402
    FEATURE_TOLERANCE,
    LOGITS_TOLERANCE,
    logits_error,
    nchw,
    recipe_model,
    weights,
)
from tests.support.moganet_weights import GOLDEN_CASES, load_golden  # noqa: E402

MEAN_TOLERANCE = 1e-6
"""Of the recorded standard deviation, for a statistic of a whole map, where rounding averages out."""

DOUBLE_TOLERANCE = 1e-13
"""Of the recorded logits' absolute maximum, for float64; 9e-16 is measured."""

PLAIN = "xtiny_224_plain"


def _watched(model: Any) -> dict[str, Any]:
    """Outputs of the patch embeddings and the head's input, filled in by the next forward pass."""
    seen: dict[str, Any] = {}
    for stage in range(1, 5):
        module = model.get_submodule(f"patch_embed{stage}")
        module.register_forward_hook(lambda _, __, out, name=f"patch{stage}": seen.update({name: out}))
    model.head.register_forward_pre_hook(lambda _, inputs: seen.update(pooled=inputs[0]))
    return seen


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_golden(case):
    golden = load_golden(case)
    model = recipe_model(golden.variant, attn_force_fp32=golden.attn_force_fp32)
    seen = _watched(model)
    with torch.inference_mode():
        outputs = model.forward_stages(nchw(golden.input))

    assert list(outputs) == ["stage1", "stage2", "stage3", "stage4", "logits"]
    assert logits_error(outputs["logits"], golden) <= LOGITS_TOLERANCE
    recorded = golden.arrays
    pooled = recorded["pooled"]
    near = {"rtol": 0, "atol": FEATURE_TOLERANCE * float(pooled.std())}
    np.testing.assert_allclose(seen.pop("pooled").numpy(), pooled, **near)
    for name, out in {**outputs, **seen}.items():
        if name == "logits":
            continue
        std = float(recorded[f"{name}_std"])
        near = {"rtol": 0, "atol": FEATURE_TOLERANCE * std}
        wide = out.numpy().astype(np.float64)
        assert wide.mean() == pytest.approx(float(recorded[f"{name}_mean"]), abs=MEAN_TOLERANCE * std)
        assert wide.std() == pytest.approx(std, rel=MEAN_TOLERANCE)
        np.testing.assert_allclose(wide[0, 0, 0, :8], recorded[f"{name}_first8"], **near)
        if name in outputs:
            assert wide.shape == tuple(recorded[f"{name}_shape"])
            np.testing.assert_allclose(wide.mean(axis=(0, 2, 3)), recorded[f"{name}_chan_mean"], **near)


@pytest.mark.parametrize("case", [name for name, (_, _, fp32) in GOLDEN_CASES.items() if not fp32])
def test_golden_in_float64(case):
    golden = load_golden(case)
    recorded = golden.arrays["logits_f64"]
    model = recipe_model(golden.variant, attn_force_fp32=False).double()
    with torch.inference_mode():
        logits = model(nchw(golden.input).double()).numpy()
    assert logits.dtype == recorded.dtype == np.float64
    assert np.abs(logits - recorded).max() <= DOUBLE_TOLERANCE * np.abs(recorded).max()


def test_the_recorded_modes_are_far_apart():
    """What a comparison with the wrong setting would have to overlook."""
    once, twice = load_golden("xtiny_224_plain"), load_golden("xtiny_224_fp32gate")
    for golden, wrong in ((once, True), (twice, False)):
        with torch.inference_mode():
            logits = recipe_model(attn_force_fp32=wrong)(nchw(golden.input))
        moved = np.abs(logits.numpy() - golden.logits).max()
        assert 0.08 < moved < 0.1
        assert (
            logits.numpy().argmax(1) == golden.logits.argmax(1)
        ).all()  # a look at the top class sees nothing


def _twice_activated(self: Any, gate: Any, value: Any) -> Any:
    return self.proj_2(F.silu(F.silu(gate)) * F.silu(F.silu(value)))


def test_a_float64_model_is_not_narrowed_in_the_gate(monkeypatch):
    golden = load_golden("xtiny_224_fp32gate")
    model = recipe_model(attn_force_fp32=True).double()
    x = nchw(golden.input).double()
    with torch.inference_mode():
        logits = model(x)
        monkeypatch.setattr(torch_model.MultiOrderGatedAggregation, "_gated", _twice_activated)
        wide = model(x)
    assert float((logits - wide).abs().max()) <= DOUBLE_TOLERANCE * float(wide.abs().max())
    assert logits_error(logits, golden) <= LOGITS_TOLERANCE


# Mistakes that could have been made. Each replaces one thing the model is made of.


def _tanh_gelu(x: Any) -> Any:
    return F.gelu(x, approximate="tanh")


class _SamePaddedConv(torch.nn.Conv2d):
    """TensorFlow's "same" padding: on even sizes nothing before and one after."""

    def forward(self, x: Any) -> Any:
        if self.stride == (1, 1):
            return super().forward(x)
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class _UndilatedConv(torch.nn.Conv2d):
    def forward(self, x: Any) -> Any:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.kernel_size[0] // 2, 1, self.groups)


class _EdgePaddedConv(torch.nn.Conv2d):
    def forward(self, x: Any) -> Any:
        if self.padding == (0, 0):
            return super().forward(x)
        vertical, horizontal = self.padding
        padded = F.pad(x, (horizontal, horizontal, vertical, vertical), mode="replicate")
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _unshortened(self: Any, x: Any) -> Any:
    return attention_forward(self, x) - x


def _shortcut_before_the_norm(self: Any, x: Any) -> Any:
    normed = self.norm1(x)
    x = x + self.layer_scale_1 * (self.attn(normed) - normed + x)
    return x + self.layer_scale_2 * self.mlp(self.norm2(x))


def _every_order_on_the_input(self: Any, x: Any) -> Any:
    _, middle, high = x.split(self.split, dim=1)
    low = self.DW_conv0(x)[:, : self.split[0]]
    return self.PW_conv(torch.cat((low, self.DW_conv1(middle), self.DW_conv2(high)), dim=1))


def _highest_order_first(self: Any, x: Any) -> Any:
    low, middle, high = self.DW_conv0(x).split(self.split, dim=1)
    return self.PW_conv(torch.cat((self.DW_conv2(high), self.DW_conv1(middle), low), dim=1))


def _scale_the_common_part(self: Any, x: Any, common: Any) -> Any:
    return x + self.scale * common


def _ungated_value(self: Any, gate: Any, value: Any) -> Any:
    return self.proj_2(F.silu(gate) * value)


def _sigmoid_gate(self: Any, gate: Any, value: Any) -> Any:
    return self.proj_2(gate.sigmoid() * F.silu(value))


def _stage_norms_off_the_path(self: Any, x: Any) -> list[Any]:
    outputs = []
    for stage in range(1, 5):
        x = self.get_submodule(f"patch_embed{stage}")(x)
        for block in self.get_submodule(f"blocks{stage}"):
            x = block(x)
        outputs.append(self.get_submodule(f"norm{stage}")(x))
    return outputs


attention_forward = torch_model.MultiOrderGatedAggregation.forward

AGGREGATION = torch_model.MultiOrderGatedAggregation
MISTAKES: dict[str, tuple[Any, str, Any, float]] = {
    "BatchNorm epsilon 1e-3": (torch_model, "BATCH_NORM_EPSILON", 1e-3, 5.3e-3),
    "BatchNorm epsilon 1e-6": (torch_model, "BATCH_NORM_EPSILON", 1e-6, 4.8e-5),
    "tanh GELU": (torch_model, "gelu", _tanh_gelu, 1.1e-4),
    "GELU for SiLU": (torch_model, "silu", F.gelu, 2.7e-2),
    "TensorFlow's padding": (torch.nn, "Conv2d", _SamePaddedConv, 0.34),
    "no dilation": (torch.nn, "Conv2d", _UndilatedConv, 2.2e-2),
    "edges repeated instead of zeros": (torch.nn, "Conv2d", _EdgePaddedConv, 0.24),
    "no shortcut inside the aggregation": (AGGREGATION, "forward", _unshortened, 0.63),
    "the shortcut from before the norm": (torch_model.MogaBlock, "forward", _shortcut_before_the_norm, 0.16),
    "every order on the input": (
        torch_model.MultiOrderDWConv,
        "forward",
        _every_order_on_the_input,
        4.6e-2,
    ),
    "the highest order first": (torch_model.MultiOrderDWConv, "forward", _highest_order_first, 4.6e-2),
    "the common part scaled": (torch_model.ElementScale, "forward", _scale_the_common_part, 0.13),
    "a value without activation": (AGGREGATION, "_gated", _ungated_value, 4.2e-2),
    "a sigmoid gate": (AGGREGATION, "_gated", _sigmoid_gate, 0.1),
    "stage norms off the path": (
        torch_model.MogaNetModel,
        "forward_features",
        _stage_norms_off_the_path,
        0.3,
    ),
}
"""What is planted where, and how far it moved the logits, relative to the largest, when measured here."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_moves_the_logits(mistake, monkeypatch):
    owner, seam, fault, distance = MISTAKES[mistake]
    golden = load_golden(PLAIN)
    monkeypatch.setattr(owner, seam, fault)
    with torch.inference_mode():
        error = logits_error(recipe_model()(nchw(golden.input)), golden)
    assert error > 10 * LOGITS_TOLERANCE
    assert error == pytest.approx(distance, rel=0.1)


@pytest.mark.parametrize(
    "name",
    ["blocks1.0.attn.proj_1.weight", "blocks3.9.attn.gate.weight", "blocks4.1.attn.value.PW_conv.weight"],
)
def test_a_transposed_square_weight_moves_the_logits(name):
    golden = load_golden(PLAIN)
    model = recipe_model()
    state = weights("moganet-xt")
    load_state(model, {**state, name: state[name].swapaxes(0, 1)})
    with torch.inference_mode():
        assert logits_error(model(nchw(golden.input)), golden) > 100 * LOGITS_TOLERANCE
