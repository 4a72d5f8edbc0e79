"""The optimised MogaNet computes what the plain one computes, and what the published code recorded."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from ckptkit.families.moganet import torch_fast, torch_model  # noqa: E402
from tests.support.moganet_torch import logits_error, nchw, recipe_model  # noqa: E402
from tests.support.moganet_weights import load_golden, philox_normal  # noqa: E402

TOLERANCE = 1e-4
"""Of logits, absolute: what `create_model` promises; 2e-6 is measured."""

GATES = pytest.mark.parametrize("attn_force_fp32", [False, True], ids=["plain", "fp32gate"])


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
    for ours, theirs in zip(outputs, last[:4] if len(outputs) == 4 else last[-1:], strict=True):
        assert torch.equal(ours, theirs)


@GATES
@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, (64, 64)),
        ({"resolution": (64, 96)}, (64, 96)),
        ({}, (61, 75)),
        ({}, (1, 2)),
        ({"features_only": True}, (64, 64)),
        ({"variant": "moganet-t"}, (64, 64)),
    ],
    ids=str,
)
def test_every_stage_is_the_plain_models(settings, size, attn_force_fp32):
    plain = recipe_model(attn_force_fp32=attn_force_fp32, **settings)
    require_same_stages(plain, torch_fast.optimised(plain), size)


@pytest.mark.parametrize("num_classes", [None, 10])
def test_other_heads(num_classes):
    whole = recipe_model()
    plain = torch_model.build("moganet-xt", attn_force_fp32=False, num_classes=num_classes)
    body = {name: tensor for name, tensor in whole.state_dict().items() if not name.startswith("head.")}
    plain.load_state_dict(body, strict=False)
    fast = torch_fast.optimised(plain)
    assert (fast.head is None) == (num_classes is None)
    require_same_stages(plain, fast, (64, 64))


@pytest.mark.parametrize("case", ["xtiny_224_plain", "xtiny_224_fp32gate"])
def test_the_published_codes_logits(case):
    golden = load_golden(case)
    fast = torch_fast.optimised(recipe_model(attn_force_fp32=case.endswith("fp32gate")))
    with torch.inference_mode():
        assert logits_error(fast(nchw(golden.input)), golden) <= 1e-5


@GATES
def test_under_autocast_the_gate_keeps_its_precision(attn_force_fp32):
    plain = recipe_model(attn_force_fp32=attn_force_fp32)
    fast = torch_fast.optimised(plain)
    seen = set()
    for name, module in fast.named_modules():
        if name.endswith("attn.proj_2"):
            module.register_forward_hook(lambda _, inputs, out: seen.update((inputs[0].dtype, out.dtype)))
    x = nchw(philox_normal(7, (1, 64, 64, 3)))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = fast(x)
    assert seen == {torch.float32 if attn_force_fp32 else torch.bfloat16}
    with torch.inference_mode():
        torch.testing.assert_close(logits.float(), plain(x), rtol=0, atol=0.1)


def test_no_batch_norm_is_left_and_nothing_wants_a_gradient():
    fast = torch_fast.optimised(recipe_model())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    assert not any(parameter.requires_grad for parameter in fast.parameters())
