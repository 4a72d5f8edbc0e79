"""The maps' formulas: what each makes of a stage's map and the gradient of a class's score.

Throughout, A is the stage's output for one picture, (1, C, h, w), S the logit of the class, and g the
gradient of S with respect to A. captum (arXiv:2009.07896) finds A, g and the ablated scores; negative
evidence is cut off at the end (the papers' ReLU) in every method alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ckptkit.analysis.drawing import require_matplotlib
from ckptkit.base.errors import one_of

_ABLATIONS_AT_ONCE = 16
"""Channels ablated in one forward pass of Ablation-CAM."""


def _captum() -> Any:
    """Import captum, which imports matplotlib."""
    require_matplotlib("a heat map")
    import captum.attr

    return captum.attr


@dataclass(frozen=True)
class CamInputs:
    """What a map is made of."""

    model: Any  # gives logits (N, classes)
    layer: Any  # the module whose output is the stage's, (N, C, h, w)
    images: Any  # one prepared picture, (1, 3, H, W)
    index: int  # the class, by its place among the logits
    # From the stage's output straight to the logits, where that is a function of its own (the head)
    after: Callable[[Any], Any] | None = None

    def activation(self) -> Any:
        """The stage's map A, (1, C, h, w)."""
        return _captum().LayerActivation(self.model, self.layer).attribute(self.images).detach()

    def gradient(self) -> Any:
        """The gradient g of the class's logit with respect to A, (1, C, h, w)."""
        gradients = _captum().LayerGradientXActivation(self.model, self.layer, multiply_by_inputs=False)
        return gradients.attribute(self.differentiable_images(), target=self.index).detach()

    def differentiable_images(self) -> Any:
        """The picture as the start of a graph: the parameters need no gradients then."""
        return self.images.detach().clone().requires_grad_(True)


def grad_cam(inputs: CamInputs) -> Any:
    """Channels weighted by their mean gradient: Grad-CAM (arXiv:1610.02391)."""
    maps = _captum().LayerGradCam(inputs.model, inputs.layer)
    return maps.attribute(inputs.differentiable_images(), target=inputs.index).detach()[0, 0]


def hires_cam(inputs: CamInputs) -> Any:
    """Gradient times activation, summed over the channels: HiResCAM (arXiv:2011.08891)."""
    maps = _captum().LayerGradientXActivation(inputs.model, inputs.layer)
    return maps.attribute(inputs.differentiable_images(), target=inputs.index).detach()[0].sum(dim=0)


def grad_cam_plus_plus(inputs: CamInputs) -> Any:
    """Positive gradients, weighted place by place: Grad-CAM++ (arXiv:1710.11063).

    The class's score is exp(S), as in the paper, whose factor exp(S) falls out when the map is scaled; the
    second and third derivatives of S itself are taken as zero. The weights g²/(2g² + g³·ΣA) assume maps that
    are not negative; in these networks they can be, so places where the denominator is zero get no weight.
    """
    activation, gradient = inputs.activation(), inputs.gradient()
    denominator = 2 + activation.sum(dim=(2, 3), keepdim=True) * gradient  # g² is above and below
    usable = denominator != 0
    share = (1 / denominator.masked_fill(~usable, 1)).masked_fill(~usable, 0)
    weights = (share * gradient.relu()).sum(dim=(2, 3), keepdim=True)
    return (weights * activation)[0].sum(dim=0)


def layer_cam(inputs: CamInputs) -> Any:
    """Positive gradients times activation, place by place: LayerCAM (doi:10.1109/TIP.2021.3089943)."""
    return (inputs.gradient().relu() * inputs.activation())[0].sum(dim=0)


def eigen_cam(inputs: CamInputs) -> Any:
    """The map's first principal component, whatever the class: Eigen-CAM (arXiv:2008.00299).

    Projection of each place's channels on the first right singular vector of the (h·w, C) map, not centred,
    as in the paper. A singular vector has no sign: the one is taken that makes the projections' sum positive.
    """
    import torch

    activation = inputs.activation()[0]
    channels, height, width = activation.shape
    places = activation.reshape(channels, height * width).T
    projected = places @ torch.linalg.svd(places, full_matrices=False).Vh[0]
    return (projected if projected.sum() >= 0 else -projected).reshape(height, width)


def ablation_cam(inputs: CamInputs) -> Any:
    """Channels weighted by what the score loses without them: Ablation-CAM.

    Source: doi:10.1109/WACV45572.2020.9093360.
    The paper divides each loss by the score itself. That one factor of all weights falls out when the map is
    scaled, but would turn the map around where the score is negative; here it is left out.
    """
    activation = inputs.activation()
    channels = activation.shape[1]
    mask = activation.new_tensor(range(channels)).long().reshape(1, channels, 1, 1)
    options = {"target": inputs.index, "perturbations_per_eval": _ABLATIONS_AT_ONCE}
    if inputs.after is not None:
        lost = _captum().FeatureAblation(inputs.after).attribute(activation, feature_mask=mask, **options)
    else:
        ablation = _captum().LayerFeatureAblation(inputs.model, inputs.layer)
        lost = ablation.attribute(inputs.images, layer_mask=mask, **options)
    weights = lost.detach()[:, :, :1, :1]  # the same at every place of a channel
    return (weights * activation)[0].sum(dim=0)


@dataclass(frozen=True)
class Method:
    """One kind of class activation map."""

    name: str  # as options have it
    title: str  # as its authors call it
    # From a `CamInputs` to the map (h, w) before negative evidence is cut off
    signed_map: Callable[[CamInputs], Any]
    of_class: bool = True  # whether the map depends on the class at all
    many_passes: bool = False  # whether it takes a forward pass a few channels, and not one or two in all


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("gradcam", "Grad-CAM", grad_cam),
        Method("hirescam", "HiResCAM", hires_cam),
        Method("gradcam++", "Grad-CAM++", grad_cam_plus_plus),
        Method("layercam", "LayerCAM", layer_cam),
        Method("eigencam", "Eigen-CAM", eigen_cam, of_class=False),
        Method("ablationcam", "Ablation-CAM", ablation_cam, many_passes=True),
    )
}


def find_method(name: str) -> Method:
    """Look a method up.

    >>> find_method("gradcam").title
    'Grad-CAM'
    """
    return METHODS[one_of("method", name, tuple(METHODS))]
