"""What one call of an operation costs, calculated by hand."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace

import pytest

from ckptkit.analysis.profile import convention_of
from ckptkit.base.errors import NotFoundError
from ckptkit.families.flops import FREE, PRODUCTS, Call
from ckptkit.families.moat.published import TENSORFLOW_GRAPH
from ckptkit.families.moganet.published import MMCV

MAP = (1, 6, 4, 5)  # 120 elements, 20 places of 6 channels


def call(operation, *inputs, output=MAP, arguments=()):
    """A call whose arguments are tensors of these shapes, unless ``arguments`` says otherwise."""
    return Call(operation, inputs, arguments or (None,) * len(inputs), output)


@pytest.mark.parametrize(
    ("made", "products"),
    [
        # 120 results, each of a 3×3 window over 8 channels.
        (call("convolution", (1, 8, 4, 5), (6, 8, 3, 3), (6,)), 120 * 72),
        # Depthwise: each result sees one channel.
        (call("convolution", (1, 6, 8, 10), (6, 1, 3, 3), None), 120 * 9),
        (call("mm", (4, 7), (7, 5), output=(4, 5)), 4 * 5 * 7),
        (call("addmm", (5,), (4, 7), (7, 5), output=(4, 5)), 4 * 5 * 7),
        (call("bmm", (3, 4, 7), (3, 7, 5), output=(3, 4, 5)), 3 * 4 * 5 * 7),
        (call("linear", (2, 4, 7), (5, 7), (5,), output=(2, 4, 5)), 2 * 4 * 5 * 7),
    ],
)
@pytest.mark.parametrize("convention", [TENSORFLOW_GRAPH, MMCV], ids=lambda convention: convention.name)
def test_products_are_the_same_by_every_convention(convention, made, products):
    multiplied, everything = convention.cost(made)
    assert multiplied == products
    assert everything >= products


@pytest.mark.parametrize(
    ("made", "tensorflow", "mmcv"),
    [
        (call("convolution", (1, 8, 4, 5), (6, 8, 1, 1), (6,)), 60, 120),
        (call("convolution", (1, 8, 4, 5), (6, 8, 1, 1), None), 0, 0),
        (call("addmm", (5,), (4, 7), (7, 5), output=(4, 5)), 10, 0),
        (call("linear", (4, 7), (5, 7), None, output=(4, 5)), 0, 0),
        (call("add", MAP, MAP), 60, 0),
        (call("mul", MAP, MAP), 60, 0),
        (call("gelu", MAP), 240, 0),
        (call("silu", MAP), 120, 0),
        (call("_softmax", MAP), 300, None),
        (call("mean", MAP, output=(1, 6, 1, 1)), 60, 0),
        # Two operations an element, and 6 a channel once in a batch of 8.
        (call("native_batch_norm", MAP), 120 + Fraction(6 * 6, 16), 240),
        (call("_native_batch_norm_legit_no_training", MAP), 120 + Fraction(6 * 6, 16), 240),
        # 9 an element and 3 for each of the 20 places.
        (call("native_layer_norm", (1, 4, 5, 6), output=(1, 4, 5, 6)), Fraction(9 * 120 + 3 * 20, 2), None),
        # 3 additions under each of 120 windows; the division is a call of its own.
        (call("avg_pool2d", (1, 6, 8, 10), None, arguments=(None, [2, 2])), 180, None),
        (call("div", MAP, MAP), 60, None),
        # Spreading a table row of 7 over 4 × 4 pairs by a one-hot matrix, for a batch of 8.
        (
            call("unfold", (2, 7, 7), None, None, None, output=(2, 4, 7, 4), arguments=(None, 1, 4, 1)),
            Fraction(2 * 4 * 7 * 4 * 7, 8),
            None,
        ),
        (call("sigmoid", MAP), 0, None),
        (call("view", MAP), 0, 0),
    ],
    ids=lambda value: value.operation if isinstance(value, Call) else None,
)
def test_what_everything_else_costs(made, tensorflow, mmcv):
    for convention, extra in ((TENSORFLOW_GRAPH, tensorflow), (MMCV, mmcv)):
        cost = convention.cost(made)
        if extra is None:
            assert cost is None
        else:
            assert cost[1] - cost[0] == extra


@pytest.mark.parametrize("convention", [TENSORFLOW_GRAPH, MMCV], ids=lambda convention: convention.name)
def test_an_operation_stands_in_one_table_only(convention):
    costly = set(convention.operations) | set(PRODUCTS)
    assert not costly & (FREE | convention.free)
    assert not FREE & convention.free
    assert convention.cost(call("cholesky", MAP)) is None


def test_a_family_without_convention_is_named():
    with pytest.raises(NotFoundError, match=r"family 'resnet' .* choose from moat, moganet"):
        convention_of(SimpleNamespace(name="resnet", flops=None))
