"""PyTorch stand-ins for TensorFlow's operations, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ckptkit.families.moat.torch_model import gelu, position_bias, same_average_pool, same_padding  # noqa: E402

RNG_KEY = 5


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(RNG_KEY).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "before", "after"),
    [
        (8, 3, 2, 0, 1),  # an even size: the only padding is at the end
        (7, 3, 2, 1, 1),
        (8, 3, 1, 1, 1),
        (8, 2, 2, 0, 0),
        (7, 2, 2, 0, 1),
        (1, 3, 2, 1, 1),
        (5, 1, 1, 0, 0),
    ],
)
def test_same_padding_pads_the_end_first(size, kernel, stride, before, after):
    x = torch.arange(1.0, size + 1).reshape(1, 1, size, 1).repeat(1, 1, 1, size)
    padded = same_padding(x, kernel, stride)
    expected = [0.0] * before + list(range(1, size + 1)) + [0.0] * after
    assert padded[0, 0, :, before].tolist() == expected
    assert padded.shape == (1, 1, len(expected), len(expected))
    assert (len(expected) - kernel) // stride + 1 == math.ceil(size / stride)


def test_same_padding_treats_the_axes_apart():
    padded = same_padding(torch.ones(1, 1, 4, 5), 3, 2)
    assert padded[0, 0, 0].tolist() == [0, 1, 1, 1, 1, 1, 0]
    assert padded[0, 0, :, 1].tolist() == [1, 1, 1, 1, 0]


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("size", [(6, 6), (7, 5), (6, 9), (1, 1)])
def test_average_pool_divides_by_real_pixels(kernel, size):
    x = _random(2, 3, *size)
    height, width = size
    expected = np.zeros((2, 3, math.ceil(height / 2), math.ceil(width / 2)), np.float32)
    for row, column in np.ndindex(expected.shape[2:]):
        # TensorFlow: the total padding is halved rounding down before the first pixel.
        top = 2 * row - max((expected.shape[2] - 1) * 2 + kernel - height, 0) // 2
        left = 2 * column - max((expected.shape[3] - 1) * 2 + kernel - width, 0) // 2
        seen = x[:, :, max(top, 0) : top + kernel, max(left, 0) : left + kernel]
        expected[:, :, row, column] = seen.mean(axis=(2, 3))
    actual = same_average_pool(torch.from_numpy(x), kernel, 2).numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


def test_gelu_is_exact():
    points = [-3.0, -1.0, -0.1, 0.0, 0.5, 2.0]
    expected = [x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in points]
    actual = gelu(torch.tensor(points, dtype=torch.float64)).tolist()
    assert actual == pytest.approx(expected, abs=1e-15)  # the tanh form is off by 1e-4


def _resized(table: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Bilinear, half-pixel centres, edges clamped; in float64, one value at a time."""
    heads, height, width = table.shape
    out = np.zeros((heads, rows, columns))
    for row, column in np.ndindex(rows, columns):
        y = (row + 0.5) * height / rows - 0.5
        x = (column + 0.5) * width / columns - 0.5
        for dy, dx in np.ndindex(2, 2):
            yy, xx = math.floor(y) + dy, math.floor(x) + dx
            weight = (1 - abs(y - yy)) * (1 - abs(x - xx))
            out[:, row, column] += weight * table[:, np.clip(yy, 0, height - 1), np.clip(xx, 0, width - 1)]
    return out


@pytest.mark.parametrize("window", [(7, 7), (8, 8), (6, 6), (3, 5), (9, 4), (1, 1)])
def test_position_bias_by_query_and_key(window):
    height, width = window
    table = _random(2, 13, 13)
    small = _resized(table.astype(np.float64), 2 * height - 1, 2 * width - 1)
    expected = np.zeros((2, height * width, height * width))
    for query, key in np.ndindex(height * width, height * width):
        down = key // width - query // width
        right = key % width - query % width
        expected[:, query, key] = small[:, down + height - 1, right + width - 1]
    actual = position_bias(torch.from_numpy(table), height, width)
    # Coordinates up to 13 are float32 too: off by 5e-7 where neighbours differ by up to 5.
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-5)


def test_position_bias_of_matching_size_is_not_resized():
    table = _random(1, 5, 5)
    bias = position_bias(torch.from_numpy(table), 3, 3).numpy()
    assert set(bias.ravel()) == set(table.ravel())
    assert bias[0, 0, 8] == table[0, 4, 4]  # first query, last key: the far corner
    assert bias[0, 8, 0] == table[0, 0, 0]


def test_position_bias_is_float32_whatever_the_table():
    table = torch.from_numpy(_random(1, 13, 13)).bfloat16()
    bias = position_bias(table, 8, 8)
    assert bias.dtype == torch.float32
    assert torch.equal(bias, position_bias(table.float(), 8, 8))
