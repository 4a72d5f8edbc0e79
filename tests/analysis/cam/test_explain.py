"""Heat maps of real models: stages, classes, what cannot be explained."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest

from ckptkit.analysis.cam.explain import (
    Activations,
    Explainer,
    HeadClasses,
    Pass,
    find_stage,
    read_picture,
    require_packages,
    run_once,
)
from ckptkit.analysis.cam.methods import METHODS, Method
from ckptkit.analysis.cam.picture import Heatmap
from ckptkit.base.errors import FormatError, MissingDependencyError, NotFoundError, UsageError
from ckptkit.families.moat.config import MOAT_CONFIGS
from ckptkit.models import create_model
from ckptkit.models.images.classes import imagenet_classes
from ckptkit.workspace import Workspace
from tests.support.commands import pip_install
from tests.support.patterns import corner_of_noise, noise

torch = pytest.importorskip("torch")
pytest.importorskip("captum")
Image = pytest.importorskip("PIL.Image")


@pytest.mark.parametrize("named", [207, "207", "n02099601", "Golden Retriever"])
def test_imagenet(named: int | str):
    classes = HeadClasses(1000)
    assert classes.find(named) == 207
    found = classes.named(207)
    assert found is not None
    assert found.wnid == "n02099601"


def test_classes_without_names():
    classes = HeadClasses(12)
    assert (classes.find("11"), classes.find(0), classes.named(3)) == (11, 0, None)


@pytest.mark.parametrize("named", ["12", "-1", "tabby", "", "1.0", "٣"])
def test_no_such_class(named: str):
    with pytest.raises(UsageError, match="12 classes without names: give 0 to 11"):
        HeadClasses(12).find(named)


@pytest.mark.parametrize("named", [1000, "crane", "no such thing"])
def test_no_such_class_of_imagenet(named: int | str):
    with pytest.raises(UsageError):
        HeadClasses(1000).find(named)


MOAT = ["tiny-moat0", "moat1"]
MOGANET = ["moganet-xt", "moganet-s"]


def owners(variant: str, **settings: Any) -> tuple[Any, dict[str, str], Pass]:
    with torch.device("meta"):
        model = create_model(variant, num_classes=10, **settings)
        seen = run_once(model, torch.zeros(1, 3, 64, 96))
    names = {id(module): name for name, module in model.named_modules()}
    return model, {stage: names[id(layer)] for stage, layer in seen.layers.items()}, seen


@pytest.mark.parametrize("variant", MOAT)
def test_moat(variant: str):
    _, found, seen = owners(variant)
    depths = MOAT_CONFIGS[variant].depths
    last = {f"stage{n + 2}": f"stages.{n}.{depth - 1}" for n, depth in enumerate(depths)}
    assert found == {"stage1": "stem", **last}
    assert list(seen.grids.values()) == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    assert (seen.last, tuple(seen.logits.shape)) == ("stage5", (1, 10))


@pytest.mark.parametrize("variant", MOGANET)
def test_moganet(variant: str):
    _, found, seen = owners(variant, attn_force_fp32=True)
    assert found == {f"stage{n}": f"norm{n}" for n in (1, 2, 3, 4)}
    assert list(seen.grids.values()) == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert (seen.last, tuple(seen.logits.shape)) == ("stage4", (1, 10))


def test_hooks_go_even_when_the_model_fails():
    with torch.device("meta"):
        model = create_model("tiny-moat0", num_classes=10)
        with pytest.raises(UsageError):
            run_once(model, torch.zeros(1, 4, 64, 64))
        run_once(model, torch.zeros(1, 3, 64, 64))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("text", "stage"), [(None, "stage2"), (1, "stage1"), ("1", "stage1"), (" Stage2 ", "stage2")]
)
def test_names_of_stages(text: Any, stage: str):
    assert find_stage(text, Pass(None, {"stage1": 0, "stage2": 0}, {})) == stage


@pytest.mark.parametrize("text", [0, 3, "stem", "", "stage", "logits"])
def test_no_such_stage(text: Any):
    with pytest.raises(UsageError, match="this model has stage1 to stage2"):
        find_stage(text, Pass(None, {"stage1": 0, "stage2": 0}, {}))


Varied = Callable[..., Explainer]
PICTURE = noise(64, 64)


def by_autograd(explainer: Explainer, target: int) -> dict[str, Any]:
    """Grad-CAM of every stage, by the model's own list of features and plain autograd."""
    pixels = explainer.source.preprocessing(PICTURE)
    features = explainer.model.forward_features(
        torch.from_numpy(pixels).permute(2, 0, 1)[None].requires_grad_()
    )
    for one in features:
        one.retain_grad()
    explainer.model.forward_head(features[-1])[0, target].backward()
    found = {}
    for number, one in enumerate(features, start=1):
        weights = one.grad.mean(dim=(2, 3))[0]
        found[f"stage{number}"] = torch.tensordot(weights, one.detach()[0], dims=1).relu().numpy()
    return found


def with_evidence(seen: Activations, method: str = "gradcam", stage: int | None = None) -> Heatmap:
    """The map of the first class that anything in the picture speaks for."""
    maps = (seen.heatmap(method, stage, target) for target in range(10))
    return next(found for found in maps if not found.is_empty)


def test_every_stage_of_both_families(explainer: Explainer):
    seen = explainer.forward(PICTURE)
    expected = by_autograd(explainer, 7)
    assert list(expected) == list(seen.stages)
    for stage, map_ in expected.items():
        found = seen.heatmap("gradcam", stage, 7)
        assert (found.stage, found.index, found.method) == (stage, 7, "gradcam")
        assert found.strength == pytest.approx(map_.max(), rel=1e-4)
        numpy.testing.assert_allclose(found.heat, map_ / map_.max(), atol=1e-4)


def test_heat_is_a_picture_of_numbers_from_zero_to_one(explainer: Explainer):
    seen = explainer.forward(PICTURE)
    for method in ("gradcam", "hirescam", "gradcam++", "layercam", "eigencam", "ablationcam"):
        heat = with_evidence(seen, method).heat
        assert (heat.dtype, heat.min() >= 0, heat.max()) == (numpy.float32, True, 1)
        assert heat.shape == (2, 2)
        assert not heat.flags.writeable


def test_grad_cam_and_hires_cam_agree_before_a_head_that_takes_the_mean(explainer: Explainer):
    """There the gradient is the same at every place, so its mean is itself: a theorem of HiResCAM's paper."""
    seen = explainer.forward(PICTURE)
    numpy.testing.assert_allclose(seen.heatmap("gradcam").heat, seen.heatmap("hirescam").heat, atol=1e-4)
    one, other = seen.heatmap("gradcam", 1).heat, seen.heatmap("hirescam", 1).heat
    assert not numpy.allclose(one, other, atol=0.01)


def test_ablation_before_a_linear_head(moganet: Explainer):
    """Without channel k the logit loses w[k] times the channel's mean."""
    seen = moganet.forward(PICTURE)
    found = with_evidence(seen, "ablationcam")
    with torch.no_grad():
        features = moganet.model.forward_features(seen.images)[-1][0]
        weights = moganet.model.head.weight[found.index] * features.mean(dim=(1, 2))
        expected = torch.tensordot(weights, features, dims=1).relu().numpy()
    numpy.testing.assert_allclose(found.heat, expected / expected.max(), atol=1e-3)


def test_the_head_is_all_that_comes_after_the_last_stage(explainer: Explainer):
    """So Ablation-CAM need not run the whole model once more for every channel."""
    seen = explainer.forward(PICTURE)
    made: list[Any] = []
    hook = seen.seen.layers[seen.stages[-1]].register_forward_hook(lambda _m, _i, output: made.append(output))
    with torch.no_grad():
        logits = explainer.model(seen.images)
    hook.remove()
    assert torch.equal(explainer.model.forward_head(made[0]), logits)


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("column", [0, 1])
def test_evidence_in_one_corner_is_found_there(explainer: Explainer, varied: Varied, row: int, column: int):
    """The head reads one channel that the textured corner lights up and the rest of the picture does not.

    MOAT's norm before the head, which makes every channel's evidence depend on all others, is taken out.
    """
    lit = varied(explainer, size=(128, 128))
    if hasattr(lit.model, "norm"):
        lit.model.norm = torch.nn.Identity()
    seen = lit.forward(corner_of_noise(128, 0.4, row, column))
    corner = (3 * row, 3 * column)
    channel, sign = clearest_channel(lit.model.forward_features(seen.images)[-1].detach()[0], corner)
    with torch.no_grad():
        lit.model.head.weight[5] = 0
        lit.model.head.weight[5, channel] = sign
    for method in ("gradcam", "hirescam"):
        found = seen.heatmap(method, target=5)
        assert found.heat.shape == (4, 4)
        assert numpy.unravel_index(found.heat.argmax(), (4, 4)) == corner
        assert numpy.delete(found.heat.ravel(), 4 * corner[0] + corner[1]).max() < 0.5
        assert found.peak is not None
        assert found.peak.words == f"{('top', 'bottom')[row]} {('left', 'right')[column]}"


def clearest_channel(features: Any, corner: tuple[int, int]) -> tuple[int, int]:
    """The channel, and its sign, in which the corner stands out most from every other place."""
    best, found = -numpy.inf, (0, 1)
    for channel, values in enumerate(features.numpy()):
        for sign in (1, -1):
            signed = sign * values
            contrast = signed[corner] - 2 * max(
                0, numpy.delete(signed.ravel(), 4 * corner[0] + corner[1]).max()
            )
            if contrast > best:
                best, found = contrast, (channel, sign)
    assert best > 0
    return found


@pytest.mark.parametrize("stage", [2, None])
def test_the_mirrored_picture_has_the_mirrored_heat(explainer: Explainer, varied: Varied, stage: int | None):
    """A model with mirrored kernels and position tables, at a size at which all strides are symmetric too."""
    variant = explainer.source.variant
    extra = {"pool_size": 3} if variant.startswith("tiny-moat") else {"attn_force_fp32": True}
    torch.manual_seed(11)
    model = create_model(variant, num_classes=10, **extra)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 4 or name.endswith("relative_position_embedding"):
                parameter.copy_((parameter + parameter.flip(-1)) / 2)
            elif "scale" in name:
                parameter.fill_(0.5)  # from 1e-5, with which blocks do next to nothing
    symmetric = varied(explainer, model=model.requires_grad_(False), size=(65, 65))
    picture = corner_of_noise(65, 0.4, 0, 0)
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    found = with_evidence(symmetric.forward(picture), stage=stage)
    again = symmetric.forward(mirrored).heatmap(stage=stage, target=found.index)
    numpy.testing.assert_allclose(again.heat, found.heat[:, ::-1], atol=2e-3)
    assert numpy.abs(found.heat - found.heat[:, ::-1]).max() > 0.02  # ten times the tolerance


def test_no_evidence_is_said_and_not_divided_by(explainer: Explainer, varied: Varied):
    none = varied(explainer)
    with torch.no_grad():
        none.model.head.weight[3] = 0
    found = none.forward(PICTURE).heatmap(target=3)
    assert (found.is_empty, found.strength, found.peak, found.centroid) == (True, 0, None, None)
    assert found.heat.tolist() == [[0, 0], [0, 0]]
    assert found.to_json()["peak"] is None
    assert numpy.asarray(found.overlay(alpha=0)).tolist() == numpy.asarray(found.picture).tolist()


def test_the_predicted_class_and_any_other(explainer: Explainer):
    seen = explainer.forward(PICTURE)
    with torch.no_grad():
        logits = explainer.model(seen.images)[0].double().numpy()
    shares = numpy.exp(logits) / numpy.exp(logits).sum()
    default = seen.heatmap()
    assert (default.index, default.predicted) == (int(logits.argmax()), True)
    assert default.probability == pytest.approx(shares.max(), rel=1e-6)
    assert default.image_class == imagenet_classes()[default.index]
    other = seen.heatmap(target="n01440764")
    assert (other.index, other.class_name, other.predicted) == (0, "tench", default.index == 0)
    assert other.probability == pytest.approx(shares[0], rel=1e-6)
    assert default.synthetic


def test_damaged_weights_are_named(explainer: Explainer, varied: Varied):
    damaged = varied(explainer)
    with torch.no_grad():
        damaged.model.head.weight[0, 0] = float("nan")
    with pytest.raises(FormatError, match=r"NaN or infinite.*ckptkit verify"):
        damaged.forward(PICTURE)


def test_a_map_that_is_not_finite_is_named(moganet: Explainer, monkeypatch: pytest.MonkeyPatch):
    broken = Method("gradcam", "Grad-CAM", lambda question: question.activation()[0, 0] / 0)
    monkeypatch.setitem(METHODS, "gradcam", broken)
    with pytest.raises(FormatError, match="evidence for this class contains NaN or infinite"):
        moganet.forward(PICTURE).heatmap()


def test_weights_without_a_head(explainer: Explainer):
    with pytest.raises(UsageError, match="without a classification head"):
        Explainer(replace(explainer.source, num_classes=None))


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        (("captum",), f"a heat map needs captum; {pip_install('captum')}"),
        (("PIL",), f"a heat map needs pillow; {pip_install('pillow')}"),
        (("torch",), f"a heat map needs torch; {pip_install('torch')}"),
        (
            ("torch", "captum", "PIL"),
            f"needs torch and captum and pillow; {pip_install('torch', 'captum', 'pillow')}",
        ),
    ],
)
def test_missing_packages(hidden: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in hidden else real(name, *rest)
    )
    with pytest.raises(MissingDependencyError) as raised:
        require_packages()
    assert str(raised.value).endswith(message)


def test_reading_a_picture(tmp_path: Path):
    PICTURE.save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png", Workspace()).size == (64, 64)
    assert read_picture(PICTURE, Workspace()).size == (64, 64)
    with pytest.raises(NotFoundError, match="no such image"):
        read_picture(tmp_path / "b.png", Workspace())
    PICTURE.save(tmp_path / "b.png")
    with pytest.raises(UsageError, match="holds 2 pictures"):
        read_picture(tmp_path, Workspace())
