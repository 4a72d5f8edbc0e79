"""Faults planted in models and rules: each must be caught, at the first stage that it touches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from ckptkit.base.errors import ConversionError
from ckptkit.families import base
from ckptkit.families.moat.config import MOAT_CONFIGS
from ckptkit.models.synth import Synthetic, write_checkpoint
from ckptkit.rules.language import OPS, Op
from ckptkit.workspace import Located
from tests.support.parity_cases import SIDE, require_frameworks, run_parity

Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """File of a model of one block a stage, whose first attention has two heads already."""
    config = replace(
        MOAT_CONFIGS["tiny-moat0"],
        name="small-for-faults",
        stem=16,
        depths=(1, 1, 1, 1),
        widths=(16, 32, 64, 64),
        resolution=SIDE,
    )
    with patch.dict(MOAT_CONFIGS, {config.name: config}):
        yield write_checkpoint(Synthetic(config.name), tmp_path_factory.mktemp("small") / "m.ckpt")


@pytest.fixture(autouse=True)
def _frameworks() -> Iterator[None]:
    """Both frameworks; and no table expanded from a planted rule may outlive its test."""
    require_frameworks()
    base._table.cache_clear()
    yield
    base._table.cache_clear()


def in_torch_model(name: str, make: Callable[[], Any]) -> Plant:
    """Replace a function or constant of the PyTorch model."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        from ckptkit.families.moat import torch_model

        assert hasattr(torch_model, name)
        patch.setattr(torch_model, name, make())

    return plant


def in_keras_model(name: str, make: Callable[[], Any]) -> Plant:
    """Replace a function or constant of the Keras model."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        from ckptkit.families.moat import keras_model

        assert hasattr(keras_model, name)
        patch.setattr(keras_model, name, make())

    return plant


def in_op(name: str, external: str, canonical: str) -> Plant:
    """Replace an op of the layout rules: only square tensors still fit, which is how such a fault hides."""
    return lambda patch: patch.setitem(OPS, name, Op(name, external, canonical))


def in_rules(change: Callable[[Any], Any]) -> Plant:
    """Replace the rules of the deeplab2 layout."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        from ckptkit.families.moat.layouts import MOAT_LAYOUTS

        layout = MOAT_LAYOUTS["deeplab2"]
        rules = tuple(change(rule) for rule in layout.rules)
        assert rules != layout.rules
        patch.setitem(MOAT_LAYOUTS, "deeplab2", replace(layout, rules=rules))

    return plant


def transposed_op_for(ending: str, op: Op) -> Plant:
    """Give one tensor another op, leaving the others alone."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setitem(OPS, op.name, op)
        in_rules(lambda rule: replace(rule, op=op.name) if rule.canonical.endswith(ending) else rule)(patch)

    return plant


def swap_external(first: str, second: str) -> Plant:
    """Let two rules read each other's tensor."""

    def change(rule: Any) -> Any:
        for here, there in ((first, second), (second, first)):
            if here in rule.external:
                return replace(rule, external=rule.external.replace(here, there))
        return rule

    return in_rules(change)


def tanh_gelu() -> Any:
    import torch.nn.functional as F

    return partial(F.gelu, approximate="tanh")


def keras_tanh_gelu() -> Any:
    import keras

    return partial(keras.ops.gelu, approximate=True)


def symmetric_padding() -> Any:
    import torch.nn.functional as F

    def pad(x: Any, kernel: int, stride: int) -> Any:
        # What PyTorch users write; for an even map it needs one row and column less at the end.
        side = kernel // 2
        return F.pad(x, (side, side, side, side)) if kernel > stride else x

    return pad


def other_layer_norm() -> Any:
    import torch

    return lambda width, _epsilon: torch.nn.LayerNorm(width, 1e-3)


def no_position() -> Any:
    import torch

    return lambda table, height, width: torch.zeros(len(table), height * width, height * width)


def swapped_position() -> Any:
    from ckptkit.families.moat.torch_model import position_bias

    return lambda table, height, width: position_bias(table, height, width).transpose(1, 2)


def constant(value: float) -> Callable[[], float]:
    return lambda: value


FAULTS: dict[str, tuple[Plant, str]] = {
    # The five that must be caught.
    "transposed q, k, v matrices": (in_op("heads_in", "c h d", "c (h d)"), "stage4"),
    "wrong BN epsilon": (in_torch_model("BATCH_NORM_EPSILON", constant(1e-5)), "stage1"),
    "tanh GELU": (in_torch_model("gelu", tanh_gelu), "stage1"),
    "symmetric padding": (in_torch_model("same_padding", symmetric_padding), "stage1"),
    "dropped position embedding": (in_torch_model("position_bias", no_position), "stage4"),
    # Other ways to transpose a kernel.
    "transposed o matrix": (in_op("heads_out", "h d c", "(h d) c"), "stage4"),
    "square convolution, in and out swapped": (
        transposed_op_for("stem.conv_1.weight", Op("swapped", "h w i o", "i o h w")),
        "stage1",
    ),
    "convolution, height and width swapped": (
        transposed_op_for("stem.conv_1.weight", Op("turned", "h w i o", "o i w h")),
        "stage1",
    ),
    "depthwise kernel, height and width swapped": (in_op("depthwise", "h w c 1", "c 1 w h"), "stage2"),
    "heads and their channels interleaved": (in_op("heads_in", "c h d", "(d h) c"), "stage4"),
    # Names.
    "query and key swapped in the rules": (swap_external("/q/", "/k/"), "stage4"),
    "key's and value's biases swapped": (swap_external("/v/bias", "/k/bias"), "stage4"),
    "mean and variance swapped": (swap_external("/moving_mean", "/moving_variance"), "stage1"),
    # Smaller numeric mistakes.
    "wrong LN epsilon": (in_torch_model("_layer_norm", other_layer_norm), "stage4"),
    "query and key swapped in the position bias": (
        in_torch_model("position_bias", swapped_position),
        "stage4",
    ),
}


@pytest.mark.usefixtures("keras_built_once")
@pytest.mark.parametrize(("plant", "departs"), FAULTS.values(), ids=FAULTS.keys())
def test_a_planted_fault_is_caught_where_it_begins(
    plant: Plant, departs: str, small: Path, monkeypatch: pytest.MonkeyPatch
):
    assert_caught(plant, departs, small, monkeypatch)


def test_a_fault_of_the_reference_side_is_caught_just_the_same(small: Path, monkeypatch: pytest.MonkeyPatch):
    """tanh's GELU in Keras, whose model must be built with it."""
    assert_caught(in_keras_model("gelu", keras_tanh_gelu), "stage1", small, monkeypatch)


def assert_caught(plant: Plant, departs: str, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    report = run_parity(Located(small), resolution=SIDE)
    assert not report.ok
    assert report.first_departure == departs, report.verdict
    departed = next(stage for stage in report.stages if not stage.ok)
    assert departed.verdict in {"differs", "not finite"}
    assert not report.stages[-1].ok, "it reaches the logits too"


def test_a_rule_left_out_is_refused(small: Path, monkeypatch: pytest.MonkeyPatch):
    """A rule that reads a tensor which is not there cannot be run at all."""
    in_rules(lambda rule: replace(rule, external=rule.external.replace("se/reduce_conv2d", "se/squeeze")))(
        monkeypatch
    )
    with pytest.raises(ConversionError, match="se/squeeze"):
        run_parity(Located(small), resolution=SIDE)
