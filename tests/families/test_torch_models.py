"""What the PyTorch models of all families have in common: names, shapes, what a call returns, refusals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from ckptkit.base.errors import NotFoundError, UsageError  # noqa: E402
from ckptkit.families.base import Structure, get_family  # noqa: E402
from tests.support.moat_reference import philox_normal  # noqa: E402
from tests.support.moat_torch import nchw  # noqa: E402


@dataclass(frozen=True)
class Case:
    """A small variant of a family, with settings that have no default."""

    family: str
    variant: str
    settings: dict[str, Any]
    resolution: tuple[int, int]
    maps: tuple[tuple[int, ...], ...]  # of the stages, for an image of 64x96

    def build(self, **settings: Any) -> Any:
        return (
            get_family(self.family)
            .torch_module()
            .build(**{"variant": self.variant, **self.settings, **settings})
        )


MOAT = Case(
    "moat",
    "tiny-moat0",
    {},
    (256, 256),
    ((1, 32, 32, 48), (1, 32, 16, 24), (1, 64, 8, 12), (1, 128, 4, 6), (1, 256, 2, 3)),
)
MOGANET = Case(
    "moganet",
    "moganet-t",
    {"attn_force_fp32": False},
    (224, 224),
    ((1, 32, 16, 24), (1, 64, 8, 12), (1, 128, 4, 6), (1, 256, 2, 3)),
)


@pytest.fixture(params=[MOAT, MOGANET], ids=lambda case: case.family)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.mark.parametrize("num_classes", [1000, None, 0, 10])
def test_names_follow_the_head(case, num_classes):
    with torch.device("meta"):
        model = case.build(num_classes=num_classes)
    structure = Structure(get_family(case.family).has_pos_emb, num_classes or None)
    table = get_family(case.family).table("torch", case.variant, structure)
    names = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert names == {b.canonical: b.canonical_shape for b in table.bindings if b.trainable}


def test_build_gives_an_evaluating_float32_model_on_any_default(case):
    torch.set_default_dtype(torch.float64)
    try:
        model = case.build()
    finally:
        torch.set_default_dtype(torch.float32)
    assert not any(module.training for module in model.modules())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values())


@pytest.mark.parametrize(
    ("settings", "logits"),
    [
        ({"features_only": True}, ["logits"]),
        ({"num_classes": None}, []),
        ({"num_classes": 0}, []),
        ({"num_classes": None, "features_only": True}, []),
    ],
)
def test_stage_outputs_instead_of_logits(case, settings, logits):
    model = case.build(**settings)
    x = nchw(philox_normal(1, (1, 64, 96, 3)))
    with torch.inference_mode():
        outputs, stages = model(x), model.forward_stages(x)
    assert tuple(tuple(out.shape) for out in outputs) == case.maps
    assert list(stages) == [*(f"stage{n}" for n in range(1, len(case.maps) + 1)), *logits]
    for ours, theirs in zip(outputs, stages.values(), strict=False):
        assert torch.equal(ours, theirs)


def test_calling_and_forward_stages_agree(case):
    model = case.build(num_classes=7)
    x = nchw(philox_normal(1, (3, 64, 64, 3)))
    with torch.inference_mode():
        assert torch.equal(model(x), model.forward_stages(x)["logits"])
        assert model(x).shape == (3, 7)


def test_a_headless_model_has_no_logits_to_give(case):
    with pytest.raises(UsageError, match="no head"):
        case.build(num_classes=None).forward_head(torch.zeros(1, 256, 1, 1))


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 64, 64, 3), (0, 3, 64, 64), (1, 3, 64, 0)])
def test_what_is_not_a_batch_of_images_is_refused(case, shape):
    with pytest.raises(UsageError, match=r"the model takes \(N, 3, H, W\)") as raised:
        case.build()(torch.zeros(shape))
    assert str(list(shape)) in str(raised.value)


@pytest.mark.parametrize(
    ("case", "settings", "error", "message"),
    [
        (MOAT, {"variant": "moat9"}, NotFoundError, "unknown MOAT variant 'moat9'; choose from moat0"),
        (
            MOGANET,
            {"variant": "moga"},
            NotFoundError,
            "unknown MogaNet variant 'moga'; choose from mog",
        ),
        (MOAT, {"pool_size": 4}, UsageError, "pool_size is 4; it can be 2 or 3"),
        (MOAT, {"window_size": 0}, UsageError, "window_size of stage 2 is 0"),
        (MOGANET, {"attn_force_fp32": None}, UsageError, "attn_force_fp32 is None; it can be true or false"),
        (MOGANET, {"attn_force_fp32": 1}, UsageError, "attn_force_fp32 is 1;"),
        (MOGANET, {"attn_force_fp32": "true"}, UsageError, "attn_force_fp32 is 'true'"),
        *(
            (case, {"num_classes": value}, UsageError, f"num_classes.*{value}")
            for case in (MOAT, MOGANET)
            for value in (-1, 1.5, True)
        ),
        *((case, {"resolution": 0}, UsageError, "resolution is 0") for case in (MOAT, MOGANET)),
        *((case, {"resolution": (224,)}, UsageError, "resolution is") for case in (MOAT, MOGANET)),
    ],
    indirect=["case"],
)
def test_nonsense_is_refused(case, settings, error, message):
    with pytest.raises(error, match=message):
        case.build(**settings)


@pytest.mark.parametrize("wanted", [None, 384, (192, 256)])
def test_resolution(case, wanted):
    expected = {None: case.resolution, 384: (384, 384)}.get(wanted, wanted)
    with torch.device("meta"):
        assert case.build(resolution=wanted).resolution == expected


def test_every_parameter_takes_part(case):
    model = case.build(num_classes=3)
    model(nchw(philox_normal(6, (2, 64, 64, 3)))).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    if case is MOGANET:  # in MOAT keys' biases cancel out
        assert all(parameter.grad.any() for parameter in model.parameters())
