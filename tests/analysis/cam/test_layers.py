"""Which module makes a stage's output, in both families."""

from __future__ import annotations

from typing import Any

import pytest

from ckptkit.analysis.cam.layers import Pass, find_stage, run_once
from ckptkit.base.errors import UsageError
from ckptkit.models import create_model

torch = pytest.importorskip("torch")

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
    model, found, seen = owners(variant)
    last = {f"stage{n + 2}": f"stages.{n}.{depth - 1}" for n, depth in enumerate(model.config.depths)}
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
