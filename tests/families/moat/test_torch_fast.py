"""The optimised MOAT computes what the plain one computes, and what the published code recorded."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from ckptkit.families.moat import torch_fast, torch_model  # noqa: E402
from ckptkit.families.moat.torch_ops import same_average_pool  # noqa: E402
from tests.support.moat_reference import load_golden, philox_normal  # noqa: E402
from tests.support.moat_torch import (  # noqa: E402
    canonical_weights,
    logits_error,
    nchw,
    recipe_model,
)

TOLERANCE = 1e-4
"""Of logits, absolute: what `create_model` promises; 2e-6 is measured."""


def pair(**settings):
    plain = recipe_model(**settings)
    return plain, torch_fast.optimised(plain)


def require_same_stages(plain, fast, size, batch=2):
    x = nchw(philox_normal(3, (batch, *size, 3)))
    before = x.clone()
    with torch.inference_mode():
        expected, actual = plain.forward_stages(x), fast.forward_stages(x)
        called = fast(x)
    assert torch.equal(x, before)
    assert list(actual) == list(expected)
    for name, ours in actual.items():
        assert ours.shape == expected[name].shape
        scale = max(1.0, float(expected[name].abs().max()))
        torch.testing.assert_close(ours, expected[name], rtol=0, atol=TOLERANCE * scale, msg=name)
    outputs = called if isinstance(called, list) else [called]
    last = list(actual.values())
    for ours, theirs in zip(outputs, last[:5] if len(outputs) == 5 else last[-1:], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"resolution": 64}, (64, 64)),
        ({"resolution": 64}, (96, 64)),  # other windows than the kept bias is for
        ({"resolution": (64, 96)}, (64, 96)),
        ({"resolution": 64, "pos_emb": False}, (64, 64)),
        ({"resolution": 128, "window_size": 4}, (128, 128)),
        ({"resolution": 128, "window_size": {2: 4, 3: 2}, "global_attention": True}, (128, 64)),
        ({"resolution": 64, "pool_size": 3}, (64, 64)),
        ({"resolution": 64, "pool_size": 3}, (61, 75)),
        ({"resolution": (61, 75)}, (61, 75)),
        ({"resolution": 64}, (33, 64)),
        ({"resolution": 64}, (1, 2)),
        ({"resolution": 64, "features_only": True}, (64, 64)),
        ({"variant": "tiny-moat1", "resolution": 64}, (64, 64)),
    ],
    ids=str,
)
def test_every_stage_is_the_plain_models(settings, size):
    require_same_stages(*pair(**settings), size)


@pytest.mark.parametrize("num_classes", [None, 10])
def test_other_heads(num_classes):
    plain = torch_model.build("tiny-moat0", resolution=64, num_classes=num_classes)
    weights = canonical_weights("tiny-moat0")
    own = plain.state_dict()
    plain.load_state_dict(
        {
            name: torch.from_numpy(weights[name].copy())
            for name in own
            if name in weights and weights[name].shape == own[name].shape
        },
        strict=False,
    )
    fast = torch_fast.optimised(plain)
    assert (fast.head is None) == (num_classes is None)
    require_same_stages(plain, fast, (64, 64))


@pytest.mark.parametrize("case", ["tiny_moat0_pe_256_pool2", "tiny_moat0_nope_256_pool2"])
def test_the_published_codes_logits(case):
    golden = load_golden(case)
    fast = torch_fast.optimised(recipe_model(pos_emb="nope" not in case, resolution=256))
    with torch.inference_mode():
        assert logits_error(fast(nchw(golden.input)), golden) <= 1e-5


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (4, 4), (5, 5), (6, 7), (7, 6)], ids=str)
def test_average_pool(size, kernel):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(torch_fast.average_pool(x, kernel), same_average_pool(x, kernel, 2))


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (2, 1), (5, 5), (6, 6), (6, 7), (7, 6)], ids=str)
def test_stride_2_convolution_pads_as_the_plain_one(size):
    conv = torch_model.SameConv2d(4, 4, 3, stride=2, groups=4).double()
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(torch_fast.SameStride2Conv2d(conv)(x), conv(x))


def test_no_batch_norm_is_left_and_nothing_wants_a_gradient():
    fast = pair(resolution=64)[1]
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    assert not any(parameter.requires_grad for parameter in fast.parameters())


def biases(model):
    return [block.attention.bias for stage in model.stages[2:] for block in stage]


def test_the_bias_is_that_of_the_loaded_table():
    plain = recipe_model(resolution=64)
    before = biases(torch_fast.optimised(plain))
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if name.endswith("relative_position_embedding"):
                parameter.mul_(-3)
    fast = torch_fast.optimised(plain)
    for old, new in zip(before, biases(fast), strict=True):
        torch.testing.assert_close(new, -3 * old)
    require_same_stages(plain, fast, (64, 64))


def test_the_bias_is_made_once_for_the_models_resolution(monkeypatch):
    fast = pair(resolution=64)[1]
    made = []
    position_bias = torch_fast.position_bias
    monkeypatch.setattr(
        torch_fast, "position_bias", lambda *args: made.append(args[1:]) or position_bias(*args)
    )
    with torch.inference_mode():
        fast(torch.zeros(1, 3, 64, 64))
        assert made == []
        fast(torch.zeros(1, 3, 96, 64))
    assert made == [(6, 4)] * 7 + [(3, 2)] * 2


def test_biases_that_would_take_too_much_memory_are_not_kept(monkeypatch):
    plain = recipe_model(resolution=64)
    kept = sum(bias.numel() * 4 for bias in biases(torch_fast.optimised(plain)))
    monkeypatch.setattr(torch_fast, "KEPT_BIAS_BYTES", kept)
    assert all(bias is not None for bias in biases(torch_fast.optimised(plain)))
    monkeypatch.setattr(torch_fast, "KEPT_BIAS_BYTES", kept - 1)
    fast = torch_fast.optimised(plain)
    assert biases(fast) == [None] * 9
    require_same_stages(plain, fast, (64, 64))
