"""Which tensor is set against which: by name, and through a family's canonical names."""

from __future__ import annotations

import numpy as np
import pytest

from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.compare.diff.pairing import Pairing, Seat, pair_by_architecture, pair_by_name
from ckptkit.families.base import Structure, get_family, recognise
from ckptkit.families.binding import match
from ckptkit.rules.language import OPS, Binding
from tests.support.moat_reference import variable_shapes

FLOAT32 = DTYPES["float32"]
AVERAGE = "/ExponentialMovingAverage"


def specs(shapes) -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, FLOAT32, tuple(shape)) for name, shape in shapes.items()}


def layout_specs(family: str, layout: str, variant: str, *, counters: bool = True, num_classes=1000):
    structure = Structure(pos_emb=family == "moat", num_classes=num_classes)
    table = get_family(family).table(layout, variant, structure)
    return specs({b.external: b.external_shape for b in table.bindings if counters or b.part != "counter"})


def paired(a, b, weights="auto") -> Pairing:
    """Pair two files; ``weights`` are those of the first."""
    match_a = match(a, recognise(a), weights=weights)
    return pair_by_architecture(a, b, match_a, match(b, recognise(b)))


def names(singles) -> list[str]:
    return [single.spec.name for single in singles]


def test_by_name():
    found = pair_by_name(specs({"x": (2,), "y": (3,)}), specs({"z": (4,), "x": (5,)}))
    (pair,) = found.pairs
    assert (pair.name, pair.a.shape, pair.b.shape, pair.comparable) == ("x", (2,), (5,), False)
    assert (names(found.only_a), names(found.only_b)) == (["y"], ["z"])
    assert not any(single.by_rule for single in (*found.only_a, *found.only_b))


def test_two_layouts_meet_in_canonical_axis_order():
    published = specs(variable_shapes("tiny-moat0"))
    found = paired(published, layout_specs("moat", "torch", "tiny-moat0"))
    assert len(found.pairs) == len(published)
    assert (found.only_a, found.only_b) == ((), ())
    assert all(pair.comparable for pair in found.pairs)
    by_name = {pair.name: pair for pair in found.pairs}
    pair = by_name["stages.2.1.attention.o.weight"]
    assert pair.a.spec.name == "moat/block_02_01/attention/o/weight"
    array = np.arange(np.prod(pair.a.spec.shape)).reshape(pair.a.spec.shape)
    heads, width, channels = array.shape
    assert np.array_equal(pair.a.view(array), array.reshape(heads * width, channels).T)


def test_one_layout_keeps_its_axes_and_names():
    published = specs(variable_shapes("tiny-moat0"))
    found = paired(published, published)
    assert [pair.name for pair in found.pairs].count("moat/block_02_01/attention/o/weight") == 1
    assert all(pair.name == pair.a.spec.name and pair.a.shape == pair.a.spec.shape for pair in found.pairs)


def test_aliases_are_the_same_tensor():
    published = specs(variable_shapes("tiny-moat0"))
    tf2 = {name.replace("moat/stem/", ""): spec.shape for name, spec in published.items()}
    found = paired(published, specs(tf2))
    assert (len(found.pairs), found.only_a, found.only_b) == (len(published), (), ())
    assert "stem.conv_0.weight" in {pair.name for pair in found.pairs}


def test_what_a_rule_explains_is_told_apart_from_what_nothing_explains():
    published = specs(variable_shapes("tiny-moat0"))
    more = published | specs(
        {"global_step": (), "moat/stem/conv_0/kernel/Adam": (3, 3, 3, 32), "mystery": (7,)}
    )
    found = paired(more, layout_specs("moat", "torch", "tiny-moat0"))
    assert {single.spec.name: (single.by_rule, single.remark) for single in found.only_a} == {
        "global_step": (True, "global_step: counts training steps"),
        "moat/stem/conv_0/kernel/Adam": (True, "optimizer slots: per-variable state of the optimizer"),
        "mystery": (False, "not known to tiny-moat0"),
    }


def test_leftovers_of_one_name_are_paired_too():
    a = specs(variable_shapes("tiny-moat0")) | specs({"global_step": (), "mystery": (7,)})
    b = layout_specs("moat", "torch", "tiny-moat0") | specs({"mystery": (8,), "global_step": ()})
    found = paired(a, b)
    assert {pair.name: pair.comparable for pair in found.pairs[-2:]} == {
        "global_step": True,
        "mystery": False,
    }
    assert (found.only_a, found.only_b) == ((), ())


def with_averages() -> dict[str, TensorSpec]:
    """Published names, each parameter with its moving average beside it."""
    shapes = variable_shapes("tiny-moat0")
    statistics = ("moving_mean", "moving_variance")
    return specs(shapes | {n + AVERAGE: s for n, s in shapes.items() if not n.endswith(statistics)})


@pytest.mark.parametrize(
    ("weights", "suffix", "left_out"),
    [
        ("ema", AVERAGE, "raw weights: their moving averages were chosen"),
        ("raw", "", "moving averages: the raw weights were chosen"),
    ],
)
def test_the_copy_that_is_wanted_is_compared(weights, suffix, left_out):
    both = with_averages()
    found = paired(both, layout_specs("moat", "torch", "tiny-moat0"), weights)
    in_a = {pair.name: pair.a.spec.name for pair in found.pairs}
    assert in_a["head.bias"] == "moat/logits_head/bias" + suffix
    assert len(found.only_a) == len(both) - len(found.pairs)
    assert {(single.by_rule, single.remark) for single in found.only_a} == {(True, left_out)}
    assert found.only_b == ()


def test_two_files_with_both_copies_are_compared_in_both():
    both = with_averages()
    found = paired(both, both)
    assert len(found.pairs) == len(both)
    assert all(pair.a.spec.name == pair.b.spec.name for pair in found.pairs)


def test_step_counters_that_only_one_file_has_are_no_difference():
    with_them = layout_specs("moganet", "openmixup", "moganet-xt")
    found = paired(with_them, layout_specs("moganet", "keras", "moganet-xt", counters=False))
    counters = [name for name in with_them if name.endswith("num_batches_tracked")]
    assert sorted(names(found.only_a)) == sorted(counters)
    assert counters
    assert all(single.by_rule and single.canonical for single in found.only_a)
    assert len(found.pairs) == len(with_them) - len(counters)


def test_a_missing_head_is_a_difference():
    found = paired(
        layout_specs("moganet", "openmixup", "moganet-xt"),
        layout_specs("moganet", "torch", "moganet-xt", num_classes=None),
    )
    assert [(single.spec.name, single.canonical, single.by_rule) for single in found.only_a] == [
        ("head.fc.weight", "head.weight", False),
        ("head.fc.bias", "head.bias", False),
    ]


@pytest.mark.parametrize(
    ("op", "shape", "seated"),
    [
        ("conv", (3, 3, 8, 16), (16, 8, 3, 3)),
        ("conv", (5, 5, 8, 16), (16, 8, 5, 5)),  # not what the table says: compared in the right order still
        ("heads_in", (16, 2, 32), (64, 16)),
        ("heads_out", (2, 32, 16), (16, 64)),
        ("flatten", (2, 32), (64,)),
        ("channels", (8,), (1, 8, 1, 1)),
        ("identity", (4, 4), (4, 4)),
    ],
)
def test_a_shape_in_canonical_order(op, shape, seated):
    binding = Binding("w", (0,), "w", (0,), OPS[op], True, "body")
    seat = Seat.canonical(TensorSpec("w", FLOAT32, shape), binding)
    assert seat.shape == seated
    assert seat.view(np.zeros(shape)).shape == seated


@pytest.mark.parametrize(
    ("op", "shape"), [("depthwise", (3, 3, 8, 2)), ("conv", (3, 3)), ("linear", (2, 3, 4))]
)
def test_a_shape_that_does_not_fit_is_never_compared(op, shape):
    binding = Binding("w", (0,), "w", (0,), OPS[op], True, "body")
    seat = Seat.canonical(TensorSpec("w", FLOAT32, shape), binding)
    assert (seat.op, seat.shape) == (None, shape)
