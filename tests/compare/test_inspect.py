"""Inspection: any file of any model, figures computed the long way, filters and names."""

from __future__ import annotations

import json
import math

import ml_dtypes
import numpy as np
import pytest

from ckptkit.base.errors import FormatError, NotFoundError, UsageError
from ckptkit.compare.inspect import Statistics, statistics
from tests.support.comparing import inspect_file
from tests.support.entries import published_xt
from tests.support.moat_files import AVERAGE, write_tiny
from tests.support.moat_reference import parameter_count, variable_shapes
from tests.support.tensors import OPAQUE, raw_safetensors

RANDOM = np.random.default_rng(7)
LONG = RANDOM.normal(1000.0, 0.01, 600_001)
"""Several pieces, and a deviation that a plain sum of squares in float32 would lose."""


@pytest.mark.parametrize(
    "array",
    [
        LONG,
        LONG.astype("float32"),
        RANDOM.normal(size=(40, 50, 60)).astype("float16").transpose(2, 0, 1),
        RANDOM.integers(-9, 9, (31, 33)),
        np.array([[0.0, -0.0, 5.0]]),
        np.array(2.5, "float32"),
        RANDOM.normal(size=1000).astype(ml_dtypes.bfloat16),
        np.array([True, False, True]),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_statistics_agree_with_exact_arithmetic(array):
    numbers = [float(x) for x in array.ravel()]
    mean = math.fsum(numbers) / len(numbers)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / len(numbers))
    found = statistics(array)
    assert (found.minimum, found.maximum) == (min(numbers), max(numbers))
    assert found.mean == pytest.approx(mean, rel=1e-12, abs=1e-12)
    assert found.std == pytest.approx(deviation, rel=1e-9, abs=1e-12)
    assert found.zeros == numbers.count(0.0)
    assert (found.nans, found.infinities) == (0, 0)


def test_what_is_not_finite_is_counted_and_left_out():
    array = np.ones(500_000, "float32")
    array[[3, 400_000]] = math.nan
    array[7] = -math.inf
    array[8] = 3.0
    found = statistics(array)
    assert (found.nans, found.infinities, found.minimum, found.maximum) == (2, 1, 1.0, 3.0)
    assert found.mean == pytest.approx(1 + 2 / 499_997, rel=1e-12)


@pytest.mark.parametrize("array", [np.array([math.nan, math.inf], "float32"), np.zeros((0, 3))])
def test_no_finite_element_no_figures(array):
    assert statistics(array) == Statistics(None, None, None, None, 0, *((1, 1) if array.size else (0, 0)))


def test_complex_numbers_have_no_figures():
    assert statistics(np.ones(3, "complex64")) is None


def test_numbers_beyond_float64s_square_give_no_deviation_rather_than_infinity():
    found = statistics(np.array([-1e308, 1e308]))
    assert (found.minimum, found.maximum, found.std) == (-1e308, 1e308, None)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("bundle") / "model.ckpt")


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("twins") / "model.ckpt", pos_emb=False, twins=True)


def test_a_checkpoint_is_told_for_what_it_is(bundle):
    found = inspect_file(bundle)
    shapes = variable_shapes("tiny-moat0") | {"global_step": ()}
    assert {t.name: t.shape for t in found.tensors} == shapes
    assert (found.format, found.family, found.variant, found.layout) == (
        "tf",
        "moat",
        "tiny-moat0",
        "deeplab2",
    )
    assert (found.pos_emb, found.num_classes, found.copies) == (True, 1000, {})
    assert found.parameters == parameter_count("tiny-moat0")
    elements = sum(math.prod(shape) for shape in shapes.values())
    assert (found.totals.tensors, found.totals.elements) == (362, elements)
    assert found.totals.by_dtype == {"float32": 4 * (elements - 1), "int64": 8}
    assert found.totals.nbytes == 4 * (elements - 1) + 8


def test_both_copies_are_counted(twins):
    found = inspect_file(twins)
    assert found.pos_emb is False
    shapes = variable_shapes("tiny-moat0", False)
    assert found.copies == {"raw": len(shapes), "ema": sum("/moving_" not in name for name in shapes)}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("logits_head", {"moat/logits_head/bias", "moat/logits_head/kernel"}),
        ("*/logits_head/b*", {"moat/logits_head/bias"}),
        ("moat/stem/conv_[01]/bias", {"moat/stem/conv_0/bias", "moat/stem/conv_1/bias"}),
        ("global_step", {"global_step"}),
    ],
)
def test_pattern(bundle, pattern, names):
    found = inspect_file(bundle, pattern=pattern)
    assert {t.name for t in found.tensors} == names
    assert found.totals.tensors == 362


def test_a_pattern_that_fits_nothing(bundle):
    with pytest.raises(NotFoundError, match="none of its 362 tensors has a name that matches 'nothing'"):
        inspect_file(bundle, pattern="nothing")


def test_sorting(bundle):
    names = [t.name for t in inspect_file(bundle, sort="name").tensors]
    assert names == sorted(names)
    sizes = [t.nbytes for t in inspect_file(bundle, sort="size").tensors]
    assert sizes == sorted(sizes, reverse=True)


def test_figures_only_when_asked_for(bundle):
    (silent,) = inspect_file(bundle, pattern="logits_head/kernel").tensors
    (counted,) = inspect_file(bundle, pattern="logits_head/kernel", stats=True).tensors
    assert silent.statistics is None
    assert counted.statistics.nans == 0
    assert counted.statistics.std == pytest.approx(1 / 16, rel=0.02)  # the recipe: z / sqrt(256)


@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        ("moat/stem/conv_0/kernel", "stem.conv_0.weight"),
        ("moat/block_02_01/attention/q/weight", "stages.2.1.attention.q.weight"),
        ("moat/logits_head/bias" + AVERAGE, "head.bias"),
        ("global_step", None),
    ],
)
def test_names_in_another_layout(twins, name, renamed):
    found = {t.name: t.renamed for t in inspect_file(twins, layout="torch").tensors}
    assert found[name] == renamed


def test_a_layout_that_lacks_some_of_the_tensors(tmp_path):
    """``len(model.weights)`` of kecam's MogaNet-XT is 660: Keras does not count the batches of training."""
    path = tmp_path / "xt.pth"
    path.write_bytes(published_xt())
    found = {t.name.removeprefix("backbone."): t.renamed for t in inspect_file(path, layout="kecam").tensors}
    lacking = [name for name, other in found.items() if other is None]
    assert {name.rpartition(".")[2] for name in lacking} == {"num_batches_tracked"}
    assert len(found) - len(lacking) == 660
    assert found["patch_embed1.projection.4.running_var"] == "stem_2_bn/moving_variance"


def test_an_unknown_layout(bundle):
    with pytest.raises(NotFoundError, match="unknown moat layout 'caffe'"):
        inspect_file(bundle, layout="caffe")


@pytest.fixture
def stranger(tmp_path):
    path = tmp_path / "net.npz"
    np.savez(path, **{"fc.weight": np.arange(6, dtype="float64").reshape(2, 3), "steps": np.int32(5)})
    return path


def test_any_model_can_be_inspected(stranger):
    found = inspect_file(stranger, stats=True)
    assert (found.family, found.variant, found.layout, found.pos_emb, found.parameters) == (None,) * 5
    assert {t.name: (t.shape, t.dtype, t.nbytes) for t in found.tensors} == {
        "fc.weight": ((2, 3), "float64", 48),
        "steps": ((), "int32", 4),
    }
    assert {t.name: t.statistics.maximum for t in found.tensors} == {"fc.weight": 5.0, "steps": 5.0}


def test_names_in_a_layout_of_no_known_model(stranger):
    with pytest.raises(UsageError, match="no names in layout 'torch'"):
        inspect_file(stranger, layout="torch")


def test_json_is_json(stranger):
    values = json.loads(json.dumps(inspect_file(stranger, stats=True).to_json(), allow_nan=False))
    assert values["path"] == str(stranger)
    assert values["tensors"][0]["shape"] == [2, 3]
    assert "tensors" not in inspect_file(stranger).to_json(tensors=False)


def test_metadata_of_safetensors(tmp_path):
    from safetensors.numpy import save_file

    save_file(
        {"a": np.zeros(2, "f4")}, tmp_path / "a.safetensors", metadata={"format": "pt", "origin": "here"}
    )
    assert inspect_file(tmp_path / "a.safetensors").metadata == {"format": "pt", "origin": "here"}


def test_state_dicts_and_extras_of_a_pytorch_file(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "c.pth"
    torch.save(
        {"epoch": 7, "state_dict": {"w": torch.ones(2)}, "state_dict_ema": {"w": torch.zeros(3)}},
        path,
    )
    found = inspect_file(path)
    assert set(found.state_dicts) == {"state_dict", "state_dict_ema"}
    assert "7" in found.extras["epoch"]
    (tensor,) = inspect_file(path, state_dict="state_dict_ema").tensors
    assert tensor.shape == (3,)


def test_damage_is_a_format_error(tmp_path):
    path = tmp_path / "page.tar.gz"
    path.write_text("<!DOCTYPE html><html><body>Not here</body></html>")
    with pytest.raises(FormatError, match=r"page\.tar\.gz"):
        inspect_file(path)


def test_no_such_file(tmp_path):
    with pytest.raises(NotFoundError, match=r"gone\.npz"):
        inspect_file(tmp_path / "gone.npz")


def test_types_without_numbers_have_no_figures(tmp_path):
    path = raw_safetensors(tmp_path / "q.safetensors", OPAQUE)
    found = inspect_file(path, stats=True)
    shown = {one.name: (one.dtype, one.nbytes, one.statistics is None) for one in found.tensors}
    assert shown == {
        "w": ("float32", 8, False),
        "scale": ("float8_e8m0fnu", 3, True),
        "pairs": ("float4_e2m1fn_x2", 6, True),
        "six": ("float6_e2m3fn", 3, True),
        "unheard": ("Q7_X", 5, True),
    }
    assert found.totals.nbytes == 25


def test_what_cannot_be_read_and_what_is_no_tensor_is_listed(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.ones(2), evil=np.array([None]), words=np.array(["x"]))
    values = inspect_file(tmp_path / "a.npz").to_json()
    assert values["left_out"] == {"evil": "Python objects, which ckptkit never unpickles"}
    assert values["extras"] == {"words": "texts [1]"}
    assert [one["name"] for one in values["tensors"]] == ["w"]
