"""Single layers of the Keras MOAT, against recorded ones and against their definitions in plain numpy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from ckptkit.families.keras_backend import keras, tf
from ckptkit.families.moat import keras_model
from tests.support.moat_keras import loaded, shared_model
from tests.support.moat_reference import load_units, philox_normal

UNITS = load_units()
ATTENTION_UNITS = [name for name, case in UNITS.items() if case.attention is not None]
UNIT_TOLERANCE = 1e-5
"""Of the output's standard deviation; 3.4e-6 was measured."""


@pytest.fixture(scope="module")
def models():
    return {"full": shared_model(), "win12": loaded("tiny-moat0", pool_size=3, window_size={2: 12, 3: 6})}


@pytest.fixture
def unit(request, models):
    """Return a recorded case and the block that should reproduce it."""
    case = UNITS[request.param]
    name = f"block_{case.stage:02d}_{case.block:02d}"
    (block,) = (b for b in models[request.param.split("_")[0]].blocks if b.name == name)
    return case, block


@pytest.mark.parametrize("unit", UNITS, indirect=True)
def test_block_gives_what_was_recorded(unit):
    case, block = unit
    output = block(case.input).numpy()
    assert output.shape == case.output_shape
    assert output.std() == pytest.approx(case.out_std, rel=UNIT_TOLERANCE)
    part = output[:, :: case.step[0], :: case.step[1]]
    np.testing.assert_allclose(part, case.slice, rtol=0, atol=UNIT_TOLERANCE * case.out_std)


@pytest.mark.parametrize("unit", ATTENTION_UNITS, indirect=True)
def test_attention_gives_what_was_recorded(unit):
    case, block = unit
    output = block.attention(case.attention_input).numpy()
    assert output.shape == case.attention_input.shape
    batch, height, width, channels = output.shape
    places = output.reshape(batch, height * width, channels)[:, ::7]
    np.testing.assert_allclose(places, case.attention, rtol=0, atol=UNIT_TOLERANCE * case.attention.std())


@pytest.mark.parametrize("unit", ATTENTION_UNITS, indirect=True)
def test_position_bias_is_what_was_recorded(unit):
    case, block = unit
    _, height, width, _ = case.attention_input.shape
    table = tf.convert_to_tensor(block.attention.relative_position_embedding)
    bias = keras_model.position_bias(table, height, width).numpy()
    np.testing.assert_allclose(bias[0, 0], case.bias_head0_row0, rtol=0, atol=1e-6)
    middle = height * width // 2
    np.testing.assert_allclose(bias[-1, middle], case.bias_lasthead_row_mid, rtol=0, atol=1e-6)


def bilinear(image, height, width):
    """Resize [heads, h, w] by definition: half-pixel centres, edges clamped, in double precision."""

    def weights(length, wanted):
        matrix = np.zeros((wanted, length))
        for place in range(wanted):
            centre = (place + 0.5) * length / wanted - 0.5
            below = math.floor(centre)
            for source, share in ((below, 1 - (centre - below)), (below + 1, centre - below)):
                matrix[place, min(max(source, 0), length - 1)] += share
        return matrix

    rows, columns = weights(image.shape[1], height), weights(image.shape[2], width)
    return np.einsum("ya,hab,xb->hyx", rows, image.astype(np.float64), columns)


@pytest.mark.parametrize("size", [(31, 31), (15, 15), (9, 41), (1, 3), (27, 14)])
def test_table_is_resized_between_pixel_centres(size):
    table = philox_normal(1, (3, 27, 27))
    resized = keras_model.resize_table(tf.constant(table), *size).numpy()
    np.testing.assert_allclose(resized, bilinear(table, *size), rtol=0, atol=1e-5)


def test_table_of_the_right_size_is_left_alone():
    table = philox_normal(2, (2, 13, 13))
    np.testing.assert_array_equal(keras_model.resize_table(tf.constant(table), 13, 13).numpy(), table)


@pytest.mark.parametrize(("height", "width"), [(7, 7), (8, 6), (1, 1), (3, 10)])
def test_position_bias_looks_up_key_minus_query(height, width):
    table = philox_normal(3, (2, 13, 13))
    offsets = bilinear(table, 2 * height - 1, 2 * width - 1)
    places = list(itertools.product(range(height), range(width)))
    expected = [
        [[head[y_k - y_q + height - 1, x_k - x_q + width - 1] for y_k, x_k in places] for y_q, x_q in places]
        for head in offsets
    ]
    bias = keras_model.position_bias(tf.constant(table), height, width).numpy()
    np.testing.assert_allclose(bias, expected, rtol=0, atol=1e-5)


def test_windows_stand_in_raster_order_and_come_back_in_place():
    image = philox_normal(4, (2, 6, 8, 3))
    seen = []

    def centre(windows):
        seen.append(windows.numpy())
        return windows - tf.reduce_mean(windows, axis=(1, 2), keepdims=True)

    output = keras_model.in_windows(centre, tf.constant(image), (3, 4)).numpy()
    corners = [(n, top, left) for n in range(2) for top in (0, 3) for left in (0, 4)]
    cut = [image[n, top : top + 3, left : left + 4] for n, top, left in corners]
    np.testing.assert_array_equal(seen[0], np.stack(cut))
    for (n, top, left), window in zip(corners, cut, strict=True):
        expected = window - window.mean(axis=(0, 1))
        np.testing.assert_allclose(output[n, top : top + 3, left : left + 4], expected, atol=1e-6)


def padded_same(image, kernel):
    """Pad [N, H, W, C] with NaN as TensorFlow's SAME does at stride 2: the odd pixel goes after."""
    before_after = []
    for side in image.shape[1:3]:
        total = max((math.ceil(side / 2) - 1) * 2 + kernel - side, 0)
        before_after.append((total // 2, total - total // 2))
    return np.pad(image.astype(np.float64), ((0, 0), *before_after, (0, 0)), constant_values=np.nan)


@pytest.mark.parametrize("sides", [(8, 8), (7, 7), (6, 5), (1, 2)])
@pytest.mark.parametrize("size", [2, 3])
def test_average_pool_divides_by_real_pixels(sides, size):
    image = philox_normal(5, (2, *sides, 4))
    padded = padded_same(image, size)
    rows, columns = (math.ceil(side / 2) for side in sides)
    expected = np.empty((2, rows, columns, 4))
    for y, x in itertools.product(range(rows), range(columns)):
        window = padded[:, 2 * y : 2 * y + size, 2 * x : 2 * x + size]
        expected[:, y, x] = np.nanmean(window, axis=(1, 2))
    output = keras_model.average_pool(tf.constant(image), size).numpy()
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sides", [(8, 8), (7, 7), (6, 5)])
def test_strided_convolution_pads_as_tensorflow_does(sides):
    image, kernel = philox_normal(6, (1, *sides, 2)), philox_normal(7, (3, 3, 2, 4))
    layer = keras_model.conv("c", 4, 3, 2, bias=False)
    layer.build((None, None, None, 2))
    layer.kernel.assign(kernel)
    padded = np.nan_to_num(padded_same(image, 3))
    rows, columns = (math.ceil(side / 2) for side in sides)
    expected = np.empty((1, rows, columns, 4))
    for y, x in itertools.product(range(rows), range(columns)):
        window = padded[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
        expected[:, y, x] = np.einsum("nijc,ijco->no", window, kernel.astype(np.float64))
    output = keras_model.spatial_conv(layer, tf.constant(image)).numpy()
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)


def test_gelu_is_the_exact_one():
    x = np.linspace(-6, 6, 97, dtype=np.float32)
    expected = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.astype(np.float64)]
    np.testing.assert_allclose(keras_model.gelu(x).numpy(), expected, rtol=0, atol=1e-6)


def test_squeeze_excite_by_definition():
    layer = keras_model.SqueezeExcite(3, 8)
    layer.build((None, None, None, 8))
    values = [philox_normal(10 + i, tuple(v.shape)) for i, v in enumerate(layer.weights)]
    layer.set_weights(values)
    image = philox_normal(8, (2, 5, 4, 8))
    by_name = {v.path.removeprefix("se/"): w for v, w in zip(layer.weights, values, strict=True)}
    inner = image.mean(axis=(1, 2)) @ by_name["reduce_conv2d/kernel"][0, 0] + by_name["reduce_conv2d/bias"]
    inner = inner / (1 + np.exp(-inner))
    outer = inner @ by_name["expand_conv2d/kernel"][0, 0] + by_name["expand_conv2d/bias"]
    expected = image / (1 + np.exp(-outer))[:, None, None]
    np.testing.assert_allclose(layer(image).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "epsilon"), [(keras_model.batch_norm, 1e-3), (keras_model.layer_norm, 1e-5)]
)
def test_epsilons(make, epsilon):
    assert make("norm").epsilon == epsilon


def test_layers_stay_float32_under_another_policy():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layer = keras_model.Attention(64, 13)
        layer.build(None)
        output = layer(philox_normal(9, (1, 4, 4, 64)))
    finally:
        keras.config.set_dtype_policy(policy)
    assert {v.dtype for v in layer.weights} == {"float32"}
    assert output.dtype == tf.float32
