"""How attention windows are asked for and cut."""

from __future__ import annotations

import numpy as np
import pytest

from ckptkit.base.errors import UsageError
from ckptkit.families.moat.windows import parse_window_size


@pytest.mark.parametrize(
    ("asked", "stage2", "stage3"),
    [
        (None, None, None),
        (7, (7, 7), (7, 7)),
        ((7, 5), (7, 5), (7, 5)),
        ([7, 5], (7, 5), (7, 5)),
        ({2: 14, 3: 7}, (14, 14), (7, 7)),
        ({"2": [14, 12], "3": None}, (14, 12), None),
        ({3: (7, 5)}, None, (7, 5)),
        ({}, None, None),
        (((14, 14), (7, 7)), (14, 14), (7, 7)),
        ((14, None), (14, 14), None),
        ([None, [7, 7]], None, (7, 7)),
        ((None, None), None, None),
    ],
)
def test_window_size(asked, stage2, stage3):
    assert parse_window_size(asked) == {2: stage2, 3: stage3}


@pytest.mark.parametrize(
    "asked",
    [0, -7, True, 7.0, "7", (7, 0), (7,), (7, 7, 7), (7, "7"), {2: 0}, {4: 7}, {True: 7}, {"stage2": 7}, ()],
)
def test_nonsense_is_refused(asked):
    with pytest.raises(UsageError, match=r"window_size"):
        parse_window_size(asked)


def test_windows_stand_in_raster_order():
    torch = pytest.importorskip("torch")
    from ckptkit.families.moat.torch_model import join_windows, split_windows

    image = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    expected = [
        image[n, top : top + 2, left : left + 3] for n in range(2) for top in (0, 2) for left in (0, 3)
    ]
    windows = split_windows(torch.from_numpy(image), (2, 3))
    np.testing.assert_array_equal(windows.numpy(), np.stack(expected))
    np.testing.assert_array_equal(join_windows(windows, (4, 6)).numpy(), image)


@pytest.mark.parametrize("size", [(4, 7), (5, 6)])
def test_a_map_that_windows_do_not_divide_is_refused(size):
    torch = pytest.importorskip("torch")
    from ckptkit.families.moat.torch_model import split_windows

    with pytest.raises(UsageError, match=f"map of {size[0]}x{size[1]} cannot be cut into windows of 2x3"):
        split_windows(torch.zeros(1, *size, 8), (2, 3))
