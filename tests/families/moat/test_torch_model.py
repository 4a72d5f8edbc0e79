"""The PyTorch MOAT's contract: names, shapes, what a call returns, windows, loading."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ckptkit.base.errors import ConversionError, UsageError  # noqa: E402
from ckptkit.families.base import Structure, get_family  # noqa: E402
from ckptkit.families.filling import load_state  # noqa: E402
from ckptkit.families.moat import torch_model  # noqa: E402
from ckptkit.families.moat.config import MOAT_CONFIGS  # noqa: E402
from ckptkit.families.moat.torch_model import gelu, position_bias, same_average_pool, same_padding  # noqa: E402
from tests.support.moat_reference import (  # noqa: E402
    UNITS_VARIANT,
    load_golden,
    parameter_count,
    philox_normal,
    variable_shapes,
)
from tests.support.moat_torch import (  # noqa: E402
    FEATURE_TOLERANCE,
    LOGITS_TOLERANCE,
    canonical_weights,
    logits_error,
    nchw,
    recipe_model,
)


@pytest.mark.parametrize("pos_emb", [True, False], ids=["posemb", "noposemb"])
@pytest.mark.parametrize("variant", MOAT_CONFIGS)
def test_names_shapes_and_parameter_counts(variant, pos_emb):
    with torch.device("meta"):
        model = torch_model.build(variant, pos_emb=pos_emb)
    table = get_family("moat").table("torch", variant, Structure(pos_emb, 1000))
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    counters = {name for name in state if name.endswith(".num_batches_tracked")}

    assert {name: shape for name, shape in state.items() if name not in counters} == {
        b.canonical: b.canonical_shape for b in table.bindings
    }
    assert counters == {
        name.replace("running_mean", "num_batches_tracked") for name in state if name.endswith("running_mean")
    }
    assert len(state) - len(counters) == len(variable_shapes(variant, pos_emb))
    assert {name for name, _ in model.named_parameters()} == {
        b.canonical for b in table.bindings if b.trainable
    }
    assert sum(p.numel() for p in model.parameters()) == parameter_count(variant, pos_emb)


def _turned(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Swap rows and columns of everything that lies in the image plane."""
    return {
        name: array.swapaxes(-1, -2)
        if array.ndim == 4 or name.endswith("relative_position_embedding")
        else array
        for name, array in weights.items()
    }


@pytest.mark.parametrize(
    ("size", "window", "turned_window"),
    [
        ((250, 190), None, None),  # odd at every stage: 125x95, 63x48, 32x24, 16x12, 8x6
        ((33, 65), None, None),
        ((128, 192), {2: (4, 6), 3: (2, 3)}, {2: (6, 4), 3: (3, 2)}),
    ],
)
def test_height_and_width_are_told_apart(size, window, turned_window):
    """A transposed image through transposed kernels gives transposed features."""
    upright = recipe_model(window_size=window, features_only=True)
    turned = recipe_model(window_size=turned_window, features_only=True)
    load_state(turned, _turned(canonical_weights(UNITS_VARIANT)))
    x = nchw(philox_normal(2, (1, *size, 3)))
    with torch.inference_mode():
        pairs = list(zip(upright(x), turned(x.transpose(2, 3)), strict=True))
    height, width = size
    for ours, theirs in pairs:
        height, width = -(-height // 2), -(-width // 2)
        assert ours.shape[2:] == (height, width)
        np.testing.assert_allclose(
            theirs.transpose(2, 3).numpy(), ours.numpy(), rtol=0, atol=FEATURE_TOLERANCE * float(ours.std())
        )


@pytest.mark.parametrize("window", [{2: 12, 3: 6}, ((12, 12), (6, 6)), (None, 6)])
def test_a_window_of_the_maps_size_is_the_whole_map(window):
    x = nchw(philox_normal(3, (1, 192, 192, 3)))
    with torch.inference_mode():
        assert torch.equal(recipe_model(window_size=window)(x), recipe_model()(x))


def test_places_of_other_windows_are_not_seen():
    """Attention in windows: a change of one window's input stays in that window."""
    block = recipe_model(window_size={2: (4, 4)}).stages[2][1]
    x = nchw(philox_normal(4, (1, 8, 12, 128)))
    changed = x.clone()
    changed[:, :, 0, 5] += 1  # in the second window, two places from its left edge
    with torch.inference_mode():
        moved = (block(changed) - block(x)).abs().amax(dim=(0, 1)) > 1e-6
    expected = torch.zeros(8, 12, dtype=torch.bool)
    expected[:4, 4:8] = True  # the depthwise kernel reaches one place, still inside the window
    assert torch.equal(moved, expected)


def test_global_attention_is_the_last_block_of_each_stage():
    windowed = recipe_model(window_size=4, global_attention=True)
    whole = recipe_model()
    x = {stage: nchw(philox_normal(stage, (1, 8, 8, width))) for stage, width in ((2, 128), (3, 256))}
    for stage, features in x.items():
        pairs = list(zip(windowed.stages[stage], whole.stages[stage], strict=True))[1:]
        with torch.inference_mode():
            same = [torch.equal(ours(features), theirs(features)) for ours, theirs in pairs]
        assert same == [False] * (len(pairs) - 1) + [True]


def test_a_window_that_does_not_divide_the_map_is_refused():
    with pytest.raises(UsageError, match="map of 14x14 cannot be cut into windows of 12x12"):
        torch_model.build("tiny-moat0", resolution=224, window_size={2: 12})
    model = torch_model.build("tiny-moat0", window_size={3: (6, 4)})
    with (
        torch.inference_mode(),
        pytest.raises(UsageError, match="map of 7x7 cannot be cut into windows of 6x4"),
    ):
        model(torch.zeros(1, 3, 224, 224))


def test_a_table_loaded_after_a_forward_pass_counts():
    """The published TF2 code freezes the bias of the initial table, whatever is loaded later."""
    golden = load_golden("tiny_moat0_pe_256_pool2")
    model = torch_model.build(UNITS_VARIANT)
    x = nchw(golden.input)
    with torch.inference_mode():
        model(x)
        load_state(model, canonical_weights(UNITS_VARIANT))
        assert logits_error(model(x), golden) <= LOGITS_TOLERANCE
        for stage in model.stages[2:]:
            for block in stage:
                block.attention.relative_position_embedding.data.zero_()  # unseen by version counters
        changed = model(x).numpy()
    assert np.abs(changed - golden.logits).max() > 1e-3


def test_a_state_of_another_structure_is_refused():
    model = torch_model.build(UNITS_VARIANT, pos_emb=False)
    with pytest.raises(ConversionError, match=r"9 unexpected \(stages\.2\.0\.attention\."):
        load_state(model, canonical_weights(UNITS_VARIANT, True))
    with pytest.raises(ConversionError, match="9 missing"):
        load_state(torch_model.build(UNITS_VARIANT), canonical_weights(UNITS_VARIANT, False))


def test_pytorchs_own_strict_loading_takes_a_converted_state():
    golden = load_golden("tiny_moat0_pe_256_pool2")
    model = torch_model.build(UNITS_VARIANT)
    state = {name: torch.from_numpy(array.copy()) for name, array in canonical_weights(UNITS_VARIANT).items()}
    model.load_state_dict(state, strict=True)
    with torch.inference_mode():
        assert logits_error(model(nchw(golden.input)), golden) <= LOGITS_TOLERANCE


def test_a_bfloat16_model_runs():
    model = recipe_model(window_size={2: 4, 3: 2})
    x = nchw(philox_normal(7, (2, 64, 64, 3)))
    with torch.inference_mode():
        expected = model(x)
        actual = model.bfloat16()(x.bfloat16())
    assert actual.dtype == torch.bfloat16
    # Seven bits of mantissa through fourteen blocks: a few hundredths of the logits' spread.
    np.testing.assert_allclose(
        actual.float().numpy(), expected.numpy(), rtol=0, atol=0.2 * float(expected.std())
    )


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
