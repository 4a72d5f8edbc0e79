"""Every method against its paper's formula, worked out with plain autograd, loops and linear algebra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest

from ckptkit.analysis.cam.methods import METHODS, CamInputs, find_method
from ckptkit.base.errors import UsageError

torch = pytest.importorskip("torch")
pytest.importorskip("captum")

CLASS = 2


class Small(torch.nn.Module):
    """Two convolutions, one of them the stage; what comes after it is linear in it, or bent."""

    def __init__(self, *, linear: bool, channels: int = 5) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stage = torch.nn.Sequential(
            torch.nn.Conv2d(3, channels, 3, stride=2), torch.nn.Tanh(), torch.nn.Conv2d(channels, channels, 1)
        )
        self.bend = (
            torch.nn.Identity()
            if linear
            else torch.nn.Sequential(torch.nn.Conv2d(channels, channels, 3, padding=1), torch.nn.GELU())
        )
        self.head = torch.nn.Linear(channels * 6, 4)
        self.double()

    def after(self, features: Any) -> Any:
        return self.head(self.bend(features).flatten(1))

    def forward(self, images: Any) -> Any:
        return self.after(self.stage(images))


def images() -> Any:
    torch.manual_seed(4)
    return torch.randn(1, 3, 5, 7, dtype=torch.float64)  # the stage's map is 2 by 3


def question(model: Small, *, head: bool = False) -> CamInputs:
    return CamInputs(model, model.stage, images(), CLASS, model.after if head else None)


def activation_and_gradient(model: Small) -> tuple[Any, Any]:
    features = model.stage(images())
    features.retain_grad()
    model.after(features)[0, CLASS].backward()
    return features.detach()[0].numpy(), features.grad[0].numpy()


@pytest.fixture(params=[True, False], ids=["linear", "bent"])
def model(request: pytest.FixtureRequest) -> Small:
    return Small(linear=request.param)


def expect(method: str, asked: CamInputs, expected: Any) -> None:
    found = METHODS[method].signed_map(asked)
    assert found.shape == (2, 3)
    assert not found.requires_grad
    numpy.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)
    assert numpy.abs(expected).max() > 1e-3  # the comparison is of something


def test_grad_cam(model: Small):
    a, g = activation_and_gradient(model)
    expected = numpy.zeros((2, 3))
    for k in range(len(a)):
        expected += g[k].mean() * a[k]
    expect("gradcam", question(model), expected)


def test_hires_cam(model: Small):
    a, g = activation_and_gradient(model)
    expect("hirescam", question(model), numpy.einsum("khw,khw->hw", a, g))


def test_layer_cam(model: Small):
    a, g = activation_and_gradient(model)
    expected = numpy.zeros((2, 3))
    for k, i, j in numpy.ndindex(a.shape):
        if g[k, i, j] > 0:
            expected[i, j] += g[k, i, j] * a[k, i, j]
    expect("layercam", question(model), expected)


def test_grad_cam_plus_plus_by_true_derivatives():
    """With a linear head the paper's derivatives of exp(S) are taken here, one place after the other."""
    model = Small(linear=True)
    features = model.stage(images()).detach()
    first, second, third = (numpy.zeros(features.shape[1:]) for _ in range(3))
    for place in numpy.ndindex(*features.shape[1:]):
        moved = torch.zeros((), dtype=torch.float64, requires_grad=True)
        at = torch.zeros_like(features)
        at[0][place] = 1
        score = model.after(features + moved * at)[0, CLASS].exp()
        for derivatives in (first, second, third):
            (score,) = torch.autograd.grad(score, moved, create_graph=True)
            derivatives[place] = score.item()
    a = features[0].numpy()
    alpha = second / (2 * second + a.sum(axis=(1, 2), keepdims=True) * third)
    weights = (alpha * numpy.maximum(first, 0)).sum(axis=(1, 2))
    expected = numpy.tensordot(weights, a, axes=1)
    scale = model(images())[0, CLASS].exp().item()  # falls out when a map is scaled
    expect("gradcam++", question(model), expected / scale)


def test_grad_cam_plus_plus_without_a_gradient_is_zero():
    model = Small(linear=True)
    with torch.no_grad():
        model.head.weight[CLASS] = 0
    found = METHODS["gradcam++"].signed_map(question(model))
    assert found.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_grad_cam_plus_plus_leaves_out_what_it_would_divide_by_zero():
    class Fixed(CamInputs):
        def activation(self) -> Any:
            return torch.tensor([[[[-1.0, -1.0]], [[2.0, 0.0]]]])

        def gradient(self) -> Any:
            return torch.tensor([[[[1.0, 1.0]], [[0.5, -1.0]]]])

    # Channel 0: 2 + (-2)(1) is zero at both places. Channel 1: 1 / (2 + 2·0.5) · 0.5 + 0 = 1/6.
    found = METHODS["gradcam++"].signed_map(Fixed(None, None, None, 0))
    numpy.testing.assert_allclose(found.numpy(), [[2 / 6, 0]], rtol=1e-6)


def test_eigen_cam(model: Small):
    a, _ = activation_and_gradient(model)
    places = a.reshape(len(a), -1).T
    values, vectors = numpy.linalg.eigh(places.T @ places)
    projected = places @ vectors[:, values.argmax()]
    expect("eigencam", question(model), (projected * numpy.sign(projected.sum())).reshape(2, 3))


@pytest.mark.parametrize("head", [True, False], ids=["from the stage on", "whole passes"])
@pytest.mark.parametrize("channels", [5, 20])  # fewer and more than are ablated at once
def test_ablation_cam(head: bool, channels: int):
    model = Small(linear=False, channels=channels)
    with torch.no_grad():
        features = model.stage(images())
        whole = model.after(features)[0, CLASS]
        expected = torch.zeros(2, 3, dtype=torch.float64)
        for k in range(channels):
            without = features.clone()
            without[0, k] = 0
            expected += (whole - model.after(without)[0, CLASS]) * features[0, k]
    expect("ablationcam", question(model, head=head), expected.numpy())


@pytest.mark.parametrize("method", METHODS)
def test_parameters_and_hooks_are_left_as_they_were(method: str):
    model = Small(linear=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    METHODS[method].signed_map(question(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.of_class])
def test_another_class_has_another_map(method: str):
    model = Small(linear=False)
    one = METHODS[method].signed_map(question(model))
    asked = question(model)
    other = METHODS[method].signed_map(CamInputs(asked.model, asked.layer, asked.images, CLASS + 1))
    assert not torch.allclose(one, other)


def test_a_class_means_nothing_to_eigen_cam():
    model = Small(linear=False)
    maps: Callable[[int], Any] = lambda index: METHODS["eigencam"].signed_map(  # noqa: E731
        CamInputs(model, model.stage, images(), index)
    )
    assert not METHODS["eigencam"].of_class
    assert torch.equal(maps(0), maps(3))


def test_no_such_method():
    with pytest.raises(
        UsageError, match=r"'scorecam'; did you mean hirescam\? choose from gradcam, hirescam, gradcam\+\+"
    ):
        find_method("scorecam")
