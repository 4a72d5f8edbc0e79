"""Turns between shapes: the true one is always among them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptkit.rules.turning import chosen, named, turns, usual
from ckptkit.rules.values import is_turned
from tests.support.judging import turned


@st.composite
def turned_arrays(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """An array, and the same with its axes permuted and some of them merged."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    order = draw(st.permutations(range(len(shape))))
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    moved = array.transpose(order)
    at = draw(st.integers(0, moved.ndim - 1))
    if at and draw(st.booleans()):
        moved = moved.reshape(*moved.shape[: at - 1], -1, *moved.shape[at + 1 :])
    return array, np.ascontiguousarray(moved)


@given(turned_arrays(), st.booleans())
def test_the_true_turn_is_found_and_only_what_fits_bit_for_bit(
    pair: tuple[np.ndarray, np.ndarray], back: bool
) -> None:
    source, target = pair[::-1] if back else pair
    fitting = turns(source.shape, target.shape)
    right = [turn for turn in fitting if is_turned(source, turn, target)]
    assert right
    for turn in fitting:
        assert is_turned(source, turn, target) == np.array_equal(turned(source, turn), target)
        assert np.array_equal(turned(turned(source, turn), turn.inverse), source)


@pytest.mark.parametrize(
    ("source", "target", "axes"),
    [
        ((3, 3, 8, 16), (16, 8, 3, 3), "h w i o -> o i h w"),
        ((3, 3, 8, 8), (8, 8, 3, 3), "h w i o -> o i h w"),
        ((3, 3, 3, 16), (16, 3, 3, 3), "h w i o -> o i h w"),
        ((3, 3, 8, 1), (8, 1, 3, 3), "h w c 1 -> c 1 h w"),
        ((5, 8, 16), (16, 8, 5), "k i o -> o i k"),
        ((8, 2, 4), (8, 8), "i h d -> (h d) i"),
        ((2, 4, 8), (8, 8), "a b c -> c (a b)"),
        ((8, 8), (8, 8), "i o -> o i"),
    ],
)
def test_what_axes_mean_from_tensorflow_to_pytorch(
    source: tuple[int, ...], target: tuple[int, ...], axes: str
) -> None:
    turn = usual(source, target, ("input first", "output first"))
    assert turn is not None
    assert named(turn).axes in {axes, "h d o -> o (h d)"}
    back = usual(target, source, ("output first", "input first"))
    assert back is not None
    array = np.random.default_rng(0).standard_normal(source)
    assert np.array_equal(turned(turned(array, turn), back), array)


@pytest.mark.parametrize(
    ("source", "target", "sure"),
    [
        ((4, 8), (8, 4), "forced"),
        ((8, 8), (8, 8), "guessed"),
        ((3, 3, 4, 8), (8, 4, 3, 3), "forced"),
        ((3, 3, 8, 8), (8, 8, 3, 3), "guessed"),
        ((3, 3, 3, 8), (8, 3, 3, 3), "guessed"),  # three axes of one length
        ((8,), (8,), "forced"),
        ((8,), (1, 8, 1, 1), "forced"),
        ((), (), "forced"),
    ],
)
def test_only_one_way_is_forced(source: tuple[int, ...], target: tuple[int, ...], sure: str) -> None:
    choice = chosen(source, target, ("input first", "output first"))
    assert choice is not None
    assert choice.sure == sure


@pytest.mark.parametrize(("source", "target"), [((2, 3), (5,)), ((0, 3), (3, 1)), ((2, 3, 5), (6, 4))])
def test_other_sizes_have_no_turn(source: tuple[int, ...], target: tuple[int, ...]) -> None:
    assert turns(source, target) == ()


def test_many_axes_of_one_length_do_not_explode() -> None:
    assert len(turns((2,) * 12, (2,) * 12)) == 1
