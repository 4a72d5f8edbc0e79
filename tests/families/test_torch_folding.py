"""Folding is exact: set against PyTorch's own BatchNorm and convolutions, in float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from ckptkit.families.torch_folding import (  # noqa: E402
    Kernel,
    affine_of,
    gelu_,
    inference_conv,
    inference_layer_norm,
    inference_linear,
)


def batch_norm(width):
    norm = nn.BatchNorm2d(width, eps=1e-3)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.1, 2)
    return norm.double().eval()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(1)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 5, "padding": 4, "dilation": 2, "groups": 6},
    ],
    ids=str,
)
def test_a_norm_behind_any_convolution_goes_into_it(options, bias):
    conv = nn.Conv2d(6, 6, bias=bias, **options).double()
    norm = batch_norm(6)
    folded = inference_conv(Kernel.of(conv).then(affine_of(norm)), conv)
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), norm(conv(x)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_norm_in_front_of_a_1x1_convolution_goes_into_it(stride):
    conv = nn.Conv2d(6, 4, 1, stride).double()
    norm = batch_norm(6)
    folded = inference_conv(Kernel.of(conv).after(affine_of(norm)), conv)
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), conv(norm(x)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("conv", "groups"),
    [(nn.Conv2d(4, 4, 3), 1), (nn.Conv2d(4, 4, (1, 3)), 1), (nn.Conv2d(4, 4, 1, groups=4), 4)],
    ids=["3x3", "1x3", "depthwise"],
)
def test_a_norm_in_front_of_any_other_is_refused(conv, groups):
    with pytest.raises(ValueError, match="no plain 1x1"):
        Kernel.of(conv).after(affine_of(batch_norm(4)), groups=groups)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_keep_type_and_want_no_gradient(dtype):
    conv = nn.Conv2d(3, 4, 3, 2, 1).to(dtype)
    norm = nn.LayerNorm(4, eps=1e-5).to(dtype)
    linear = nn.Linear(3, 4).to(dtype)
    layers = (
        inference_conv(Kernel.of(conv), conv),
        inference_layer_norm(norm),
        inference_linear(linear.weight.detach().double(), linear.bias.detach().double(), linear.weight),
    )
    for made, source in zip(layers, (conv, norm, linear), strict=True):
        assert {p.dtype for p in made.parameters()} == {dtype}
        assert not any(p.requires_grad for p in made.parameters())
        for name, tensor in source.state_dict().items():
            assert torch.equal(made.state_dict()[name], tensor)
            assert made.state_dict()[name].data_ptr() != tensor.data_ptr()
    assert (layers[0].stride, layers[0].padding) == ((2, 2), (1, 1))


def test_gelu_overwrites_its_input():
    x = torch.randn(100, dtype=torch.float64)
    expected = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    assert gelu_(x) is x
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-14)
