"""Comparisons of real files of all formats, with faults planted in them; and how tensors are paired."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from safetensors.numpy import load_file, save_file

from ckptkit.base.errors import ConversionError, FormatError, NotFoundError, UsageError
from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.compare.arrays import Tolerance
from ckptkit.compare.diff import (
    AlignedTensor,
    OnlyInOne,
    Pairing,
    pair_by_architecture,
    pair_by_name,
)
from ckptkit.convert.execution import execute
from ckptkit.convert.pipeline import Options, plan
from ckptkit.families.base import Structure, get_family
from ckptkit.families.binding import match
from ckptkit.families.recognition import recognise
from ckptkit.formats.detect import open_reader, writer_for
from ckptkit.formats.names import EXTENSIONS
from ckptkit.formats.torch_writer import TorchWriter
from ckptkit.models.synth import Synthetic, write_bundle
from ckptkit.registry.loading import load_registry
from ckptkit.rules.language import OPS, Binding
from ckptkit.workspace import Located
from tests.support.comparing import compare_files
from tests.support.moat_files import AVERAGE, data_offset, flip_byte, tiny_tensors, write_tiny
from tests.support.moat_reference import variable_shapes
from tests.support.tensors import OPAQUE, raw_safetensors, some_arrays, specs_of, write_all

FORMATS = ("tf", "torch", "safetensors", "npz")
KERNEL = "moat/block_01_00/expand_conv/kernel"
CANONICAL = "stages.1.0.expand_conv.weight"


def write(path: Path, arrays: Mapping[str, Any], to: str = "safetensors") -> Path:
    write_all(writer_for(to)(path, specs_of(arrays), {}), arrays)
    return path


def convert(source: Path, target: Path, to: str, **options: Any) -> Path:
    with open_reader(source) as reader:
        return execute(
            plan(reader, Options(to, **options)), reader, Options(to, **options).target, target
        ).path


@pytest.fixture(scope="module")
def moat(tmp_path_factory) -> Path:
    """Folder with one tiny-moat0 in every format and layout, and its original as `model.ckpt`."""
    folder = tmp_path_factory.mktemp("moat")
    write_tiny(folder / "model.ckpt")
    for to in FORMATS:
        for layout in ("torch", "deeplab2", "keras"):
            convert(folder / "model.ckpt", folder / f"{to}-{layout}{EXTENSIONS[to]}", to, layout=layout)
    return folder


def conversions(folder: Path) -> list[Path]:
    return [folder / f"{to}-{layout}{EXTENSIONS[to]}" for to in FORMATS for layout in ("torch", "keras")]


# -- files that hold the same --------------------------------------------------------------------------------


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("layout", ["torch", "deeplab2", "keras"])
def test_a_conversion_is_the_same_as_its_source(moat, to, layout):
    found = compare_files(moat / "model.ckpt", moat / f"{to}-{layout}{EXTENSIONS[to]}")
    assert found.same
    assert (found.paired, found.identical, found.paired_by) == (361, 361, "architecture")
    assert found.left_out_a == (
        OnlyInOne("global_step", "int64", (), None, "global_step: counts training steps"),
    )
    assert found.verdict == "same: 361 tensors, bit for bit; left out by rule: 1 in A"
    assert (found.a.layout, found.b.layout, found.b.format) == ("deeplab2", layout, to)


def test_everything_counts_also_what_a_rule_explains(moat):
    found = compare_files(moat / "model.ckpt", moat / "torch-torch.pth", everything=True)
    assert not found.same
    assert [one.name for one in found.only_a] == ["global_step"]
    assert found.left_out_a == ()
    assert found.verdict == "differ: 1 only in A"


def test_as_is_pairs_by_plain_names_and_axes(moat):
    found = compare_files(moat / "model.ckpt", moat / "npz-torch.npz", layout="as-is")
    assert (found.paired, len(found.only_a), len(found.only_b)) == (0, 362, 361)
    assert "no tensor has one name in both files" in found.notes
    kept = compare_files(moat / "tf-keras.ckpt", moat / "safetensors-deeplab2.safetensors", layout="as-is")
    depthwise = [name for name in variable_shapes("tiny-moat0") if name.endswith("/depthwise_kernel")]
    assert sorted(one.name for one in kept.only_b) == sorted(depthwise)
    assert kept.identical == kept.paired == 361 - len(depthwise)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("other", FORMATS)
def test_any_tensors_in_any_two_formats(tmp_path, to, other):
    arrays = {
        "matrix": np.arange(12, dtype="float32").reshape(3, 4).T,
        "empty": np.zeros((0, 3), "float16"),
        "scalar": np.array(7, "int64"),
        "flags": np.array([True, False]),
        "special": np.array([1.5, np.nan, -0.0, np.inf], "float32"),
    }
    one = write(tmp_path / f"one{EXTENSIONS[to]}", arrays, to)
    two = write(tmp_path / f"two{EXTENSIONS[other]}", arrays, other)
    found = compare_files(one, two)
    assert found.same
    assert (found.paired, found.identical, found.paired_by) == (5, 5, "names")
    assert found.verdict == "same: 5 tensors, bit for bit"


# -- files that do not ---------------------------------------------------------------------------------------


def changed_copy(source: Path, target: Path, name: str, change: Callable[[Any], Any]) -> Path:
    arrays = {key: array.copy() for key, array in load_file(source).items()}
    arrays[name] = change(arrays[name])
    save_file(arrays, target)
    return target


def test_one_changed_element_is_found_across_axis_orders(moat, tmp_path):
    def change(kernel):
        kernel[5, 3, 0, 0] += np.float32(0.125)
        return kernel

    copy = changed_copy(moat / "safetensors-torch.safetensors", tmp_path / "b.safetensors", CANONICAL, change)
    original = tiny_tensors()[KERNEL]  # HWIO
    before = float(original[0, 0, 3, 5])
    after = float(np.float32(original[0, 0, 3, 5]) + np.float32(0.125))
    found = compare_files(moat / "model.ckpt", copy)
    (one,) = found.changed
    assert (one.name, one.name_a, one.name_b, one.kind) == (CANONICAL, KERNEL, CANONICAL, "values")
    assert (one.shape_a, one.shape_b) == (original.shape[::-1], original.shape[::-1])  # 1×1: OIHW reversed
    values = one.values
    assert (values.differing, values.at, values.values) == (1, (5, 3, 0, 0), (before, after))
    assert values.max_abs == after - before
    assert values.relative == (after - before) / max(map(abs, original.ravel().tolist()))
    assert found.identical == 360
    assert found.verdict == "differ: 1 of 361 tensors in both has other values"


@pytest.mark.parametrize("to", FORMATS)
def test_a_transposed_square_kernel_is_seen(moat, tmp_path, to):
    name = "stages.2.1.attention.q.weight"
    assert load_file(moat / "safetensors-torch.safetensors")[name].shape == (128, 128)
    wrong = changed_copy(
        moat / "safetensors-torch.safetensors",
        tmp_path / "b.safetensors",
        name,
        lambda x: np.ascontiguousarray(x.T),
    )
    found = compare_files(moat / f"{to}-keras{EXTENSIONS[to]}", wrong)
    assert [one.name for one in found.changed] == [name]


def test_every_kind_at_once(tmp_path):
    a = {
        "same": np.ones(3, "float32"),
        "gone": np.zeros((2, 2), "float32"),
        "shape": np.zeros((2, 3), "float32"),
        "dtype": np.array([1.0, 1 / 3], "float32"),
        "exact dtype": np.array([1.0, 0.5], "float32"),
        "values": np.array([1.0, -8.0], "float32"),
        "nan": np.array([1.0, 2.0], "float32"),
        "zero": np.array([0.0], "float32"),
    }
    b = {
        "same": np.ones(3, "float32"),
        "shape": np.zeros((3, 2), "float32"),
        "dtype": np.array([1.0, 1 / 3], "float16"),
        "exact dtype": np.array([1.0, 0.5], "float16"),
        "values": np.array([1.5, -8.0], "float32"),
        "nan": np.array([1.0, np.nan], "float32"),
        "zero": np.array([-0.0], "float32"),
        "new": np.array(3, "int64"),
    }
    found = compare_files(write(tmp_path / "a.npz", a, "npz"), write(tmp_path / "b.pth", b, "torch"))
    assert found.counts == {
        "paired": 7,
        "identical": 1,
        "tolerated": 0,
        "only_in_a": 1,
        "only_in_b": 1,
        "not_read_in_a": 0,
        "not_read_in_b": 0,
        "other_shape": 1,
        "other_dtype": 2,
        "other_values": 3,
        "left_out_a": 0,
        "left_out_b": 0,
        "other_metadata": 0,
    }
    assert found.only_a == (OnlyInOne("gone", "float32", (2, 2)),)
    assert found.only_b == (OnlyInOne("new", "int64", ()),)
    assert [one.name for one in found.of_kind("values")] == ["nan", "values", "zero"]  # worst first
    (shape,) = found.of_kind("shape")
    assert (shape.shape_a, shape.shape_b, shape.values) == ((2, 3), (3, 2), None)
    by_name = {one.name: one.values for one in found.changed}
    assert by_name["dtype"].max_abs == abs(float(np.float32(1 / 3)) - float(np.float16(1 / 3)))
    assert by_name["exact dtype"].same
    assert (by_name["values"].max_abs, by_name["values"].relative) == (0.5, 0.0625)
    assert by_name["nan"].nan_only_b == 1
    assert by_name["zero"].zero_signs == 1
    assert found.verdict == (
        "differ: 1 only in A; 1 only in B; 1 of 7 tensors in both has other shape; "
        "2 of 7 tensors in both have other dtype; 3 of 7 tensors in both have other values"
    )
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["same"] is False
    assert plain["counts"] == found.counts
    assert [one["name"] for one in plain["changed"]] == [one.name for one in found.changed]
    assert "changed" not in found.to_json(tensors=False)


@pytest.mark.parametrize(
    ("options", "same", "tolerated"),
    [
        ({}, False, 0),
        ({"tolerance": 1e-4}, False, 1),  # the other one is of another type
        ({"tolerance": 1e-4, "ignore_dtype": True}, False, 1),
        ({"tolerance": 1e-2, "ignore_dtype": True}, True, 2),
        ({"relative": 1e-2, "ignore_dtype": True}, True, 2),
        ({"relative": 1e-5}, False, 1),
        ({"ignore_dtype": True}, False, 0),
    ],
)
def test_tolerances(tmp_path, options, same, tolerated):
    a = {"x": np.array([100, 2], "float32"), "y": np.array([1.001, 2], "float32"), "z": np.ones(2, "float32")}
    b = a | {"x": np.array([100, 2.00005], "float32"), "y": a["y"].astype(ml_dtypes.bfloat16)}
    found = compare_files(
        write(tmp_path / "a.safetensors", a), write(tmp_path / "b.safetensors", b), **options
    )
    assert (found.same, len(found.tolerated), found.identical) == (same, tolerated, 1)
    if same:
        worst = float(np.float32(1.001)) - 1.0  # bfloat16 has no nearer neighbour than 1
        assert (
            found.verdict == f"same: 3 tensors, 1 bit for bit, 2 within the tolerance (max abs {worst:.3g})"
        )


def test_ignored_types_that_hold_the_same_values_are_no_difference(tmp_path):
    one = write(tmp_path / "a.safetensors", {"x": np.array([1.5, 2], "float32")})
    two = write(tmp_path / "b.safetensors", {"x": np.array([1.5, 2], "float16")})
    assert not compare_files(one, two).same
    found = compare_files(one, two, ignore_dtype=True)
    assert (found.same, len(found.tolerated), found.tolerance) == (True, 1, Tolerance(0, 0, True))


@pytest.mark.parametrize("option", ["tolerance", "relative"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_tolerance_that_is_none(tmp_path, option, value):
    with pytest.raises(UsageError, match=f"invalid --{option} "):
        compare_files(tmp_path / "a", tmp_path / "b", **{option: value})


def test_missing_tensors_on_both_sides(moat, tmp_path):
    arrays = load_file(moat / "safetensors-torch.safetensors")
    gone = {"head.bias", "stages.0.0.se.reduce.weight"}  # without its bias, a head is still a head
    copy = tmp_path / "b.safetensors"
    save_file(
        {name: array for name, array in arrays.items() if name not in gone} | {"more": np.ones(1)}, copy
    )
    found = compare_files(moat / "model.ckpt", copy)
    assert {one.canonical for one in found.only_a} == gone
    assert [(one.name, one.remark) for one in found.only_b] == [("more", "not known to tiny-moat0")]
    assert found.identical == found.paired == 359


def test_another_variant_is_said_and_compared_by_canonical_names(moat, tmp_path):
    write_bundle(Synthetic("tiny-moat1"), tmp_path / "model.ckpt")
    found = compare_files(tmp_path / "model.ckpt", moat / "torch-torch.pth")
    assert "A is moat tiny-moat1, B is moat tiny-moat0" in found.notes
    a, b = variable_shapes("tiny-moat1"), variable_shapes("tiny-moat0")
    assert found.paired == len(a.keys() & b.keys())
    assert {one.name_a for one in found.of_kind("shape")} == {n for n in a.keys() & b.keys() if a[n] != b[n]}
    assert {one.name for one in found.only_a} == a.keys() - b.keys()


# -- which tensors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern", [CANONICAL, KERNEL, "stages.1.0.expand_conv.*", "*01_00/expand_conv/kernel"]
)
def test_only_some_by_any_of_their_names(moat, tmp_path, pattern):
    copy = changed_copy(
        moat / "safetensors-torch.safetensors", tmp_path / "b.safetensors", "head.bias", lambda x: x + 1
    )
    found = compare_files(moat / "model.ckpt", copy, only=pattern)
    assert (found.same, found.paired, found.only) == (True, 1, pattern)
    assert not compare_files(moat / "model.ckpt", copy).same


def test_only_finds_a_lone_tensor_by_its_canonical_name(moat, tmp_path):
    arrays = load_file(moat / "safetensors-torch.safetensors")
    save_file({name: a for name, a in arrays.items() if name != CANONICAL}, tmp_path / "b.safetensors")
    found = compare_files(moat / "model.ckpt", tmp_path / "b.safetensors", only="stages.1.0.expand_conv")
    assert [(one.name, one.canonical) for one in found.only_a] == [(KERNEL, CANONICAL)]
    assert found.paired == 0


def test_only_nothing(moat):
    with pytest.raises(NotFoundError, match=r"no tensor of .* matches 'nothing'"):
        compare_files(moat / "model.ckpt", moat / "torch-torch.pth", only="nothing")


# -- two copies of the weights -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("twins")
    write_tiny(folder / "model.ckpt", twins=True)
    for weights in ("ema", "raw"):
        convert(folder / "model.ckpt", folder / f"{weights}.safetensors", "safetensors", weights=weights)
    return folder


@pytest.mark.parametrize(
    ("weights", "other", "same"),
    [
        ({}, "ema", True),
        ({}, "raw", False),
        ({"weights": "ema", "weights_b": "auto"}, "ema", True),
        ({"weights": "raw", "weights_b": "auto"}, "raw", True),
        ({"weights": "raw", "weights_b": "auto"}, "ema", False),
    ],
)
def test_weights_choose_the_copy(twins, weights, other, same):
    found = compare_files(twins / "model.ckpt", twins / f"{other}.safetensors", **weights)
    assert found.same is same
    trainable = sum(not n.endswith(("moving_mean", "moving_variance")) for n in variable_shapes("tiny-moat0"))
    assert len(found.of_kind("values")) == (0 if same else trainable)
    assert len(found.left_out_a) == trainable + 1  # the other copy, and global_step


def test_one_file_against_itself_in_both_copies(twins):
    model = twins / "model.ckpt"
    found = compare_files(model, model, weights="raw", weights_b="ema")
    assert (found.a.weights, found.b.weights, found.same) == ("raw", "ema", False)
    assert compare_files(model, model).counts["identical"] == len(tiny_tensors(twins=True))


def test_half_a_copy_is_no_obstacle_unless_asked_for(tmp_path):
    def plant(tensors):
        for name in [n for n in tensors if n.endswith(AVERAGE)][10:]:
            del tensors[name]

    half = write_tiny(tmp_path / "model.ckpt", plant, twins=True)
    found = compare_files(half, half)
    assert (found.same, found.a.weights) == (True, "raw")
    with pytest.raises(ConversionError, match=r"model\.ckpt: .* have no moving average"):
        compare_files(half, half, weights="ema")


def test_a_copy_that_is_not_there_is_refused(moat, tmp_path):
    with pytest.raises(UsageError, match=r"model\.ckpt: this file holds no moving averages"):
        compare_files(moat / "model.ckpt", moat / "torch-torch.pth", weights="ema")
    plain = write(tmp_path / "a.safetensors", {"x": np.ones(2, "float32")})
    with pytest.raises(UsageError, match="cannot tell which of its tensors are raw"):
        compare_files(plain, plain, weights="raw")


def test_state_dicts_of_one_file(tmp_path):
    torch = pytest.importorskip("torch")
    model = {"state_dict": {"x": torch.ones(2)}, "state_dict_ema": {"x": torch.tensor([1.0, 1.25])}}
    torch.save(model, tmp_path / "a.pth")
    found = compare_files(
        tmp_path / "a.pth", tmp_path / "a.pth", state_dict="state_dict", state_dict_b="state_dict_ema"
    )
    assert (found.a.state_dict, found.b.state_dict) == ("state_dict", "state_dict_ema")
    assert [one.values.max_abs for one in found.changed] == [0.25]
    assert compare_files(tmp_path / "a.pth", tmp_path / "a.pth", state_dict="state_dict").same


# -- metadata ------------------------------------------------------------------------------------------------


def test_metadata_is_compared_when_asked_for(tmp_path):
    arrays = {"x": np.ones(2, "float32")}
    save_file(arrays, tmp_path / "a.safetensors", {"made": "by me", "layout": "torch", "both": "1"})
    save_file(arrays, tmp_path / "b.safetensors", {"made": "by you", "layout": "keras", "both": "1"})
    save_file(arrays, tmp_path / "c.safetensors", {"made": "by me", "layout": "keras", "both": "1"})
    a, b, c = (tmp_path / f"{letter}.safetensors" for letter in "abc")
    assert compare_files(a, b).same
    found = compare_files(a, b, metadata=True)
    assert [(one.key, one.a, one.b, one.counts) for one in found.metadata] == [
        ("layout", "torch", "keras", False),
        ("made", "by me", "by you", True),
    ]
    assert (found.same, found.verdict) == (False, "differ: metadata (1)")
    assert compare_files(a, c, metadata=True).same
    assert not compare_files(a, c, metadata=True, everything=True).same


def test_other_settings_are_said_even_when_nobody_asks(moat, tmp_path):
    arrays = load_file(moat / "safetensors-torch.safetensors")
    for letter, size in (("a", "2"), ("b", "3")):
        save_file(arrays, tmp_path / f"{letter}.safetensors", {"pool_size": size})
    found = compare_files(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert found.same
    assert found.notes == ("pool_size is 2 in A, 3 in B: models built from them compute different things",)


def test_an_entry_says_its_settings(moat, tmp_path):
    entry = load_registry()["tiny-moat0-256"]
    assert entry.pool_size is not None
    save_file(
        load_file(moat / "safetensors-torch.safetensors"),
        tmp_path / "b.safetensors",
        {"pool_size": json.dumps(entry.pool_size)},
    )
    found = compare_files(Located(moat / "model.ckpt", entry), tmp_path / "b.safetensors", metadata=True)
    assert found.a.name == "tiny-moat0-256"
    assert "pool_size" not in {one.key for one in found.metadata}


# -- damage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turned", [False, True])
def test_a_damaged_tensor_is_refused_by_name(moat, tmp_path, turned):
    damaged = write_tiny(tmp_path / "model.ckpt")
    flip_byte(Path(f"{damaged}.data-00000-of-00001"), data_offset(damaged, KERNEL) + 7)
    sides = (damaged, moat / "torch-torch.pth")
    with pytest.raises(FormatError, match=f"'{KERNEL}': checksum"):
        compare_files(*(sides[::-1] if turned else sides))
    assert compare_files(*sides, only="head").same


@pytest.mark.parametrize("to", ["torch", "npz"])
def test_damage_in_a_zip_is_seen(tmp_path, to):
    mark = np.frombuffer(b"a mark that stands once in file", "uint8")
    path = write(tmp_path / f"a{EXTENSIONS[to]}", {"x": mark}, to)
    sound = path.read_bytes()
    assert sound.count(mark.tobytes()) == 1
    flip_byte(path, sound.index(mark.tobytes()) + 4)
    with pytest.raises(FormatError, match="CRC-32"):
        compare_files(path, path)


def test_no_such_file(moat):
    with pytest.raises(NotFoundError, match="no such file"):
        compare_files(moat / "model.ckpt", moat / "nothing.pth")


# -- element types without numbers, and what cannot be read --------------------------------------------------


def test_opaque_types_are_compared_by_type_shape_and_bytes(tmp_path):
    a = raw_safetensors(tmp_path / "a.safetensors", OPAQUE)
    assert compare_files(a, a).verdict == "same: 5 tensors, bit for bit"
    other = {
        **OPAQUE,
        "scale": ("F8_E8M0", [3], b"abd"),
        "pairs": ("F4", [6, 2], b"123456"),
        "six": ("F6_E3M2", [4], b"xyz"),
        "unheard": ("Q7_X", [3], b"123456"),
    }
    found = compare_files(a, raw_safetensors(tmp_path / "b.safetensors", other), tolerance=9.0)
    assert not found.same
    assert {one.name: one.kind for one in found.changed} == {
        "scale": "values",
        "pairs": "shape",
        "six": "dtype",
        "unheard": "values",
    }
    (scale,) = (one.values for one in found.changed if one.name == "scale")
    assert (scale.differing, scale.elements, scale.remark) == (1, 3, "counted in bytes")
    json.dumps(found.to_json(), allow_nan=False)
    plain = {**OPAQUE, "scale": ("U8", [3], b"abc")}
    typed = raw_safetensors(tmp_path / "c.safetensors", plain)
    assert not compare_files(a, typed, ignore_dtype=True).same, "bytes of one type are no values of another"


def test_what_cannot_be_read_is_a_difference_and_what_is_no_tensor_is_told(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.ones(2), evil=np.array([None]), words=np.array(["x"]))
    np.savez(tmp_path / "b.npz", w=np.ones(2))
    why = "Python objects, which ckptkit never unpickles"
    found = compare_files(tmp_path / "a.npz", tmp_path / "b.npz")
    assert (found.same, found.verdict) == (False, "differ: 1 in A cannot be read")
    assert (found.a.left_out, found.a.also, found.b.left_out) == ({"evil": why}, {"words": "texts [1]"}, {})
    assert found.notes == ("A: also in the file, not compared: words",)
    assert found.to_json()["a"]["left_out"] == {"evil": why}
    itself = compare_files(tmp_path / "a.npz", tmp_path / "a.npz")
    assert (itself.counts["not_read_in_a"], itself.counts["not_read_in_b"], itself.same) == (1, 1, False)
    assert compare_files(tmp_path / "a.npz", tmp_path / "b.npz", only="w").same
    assert not compare_files(tmp_path / "a.npz", tmp_path / "b.npz", only="ev*").same


# -- any files -----------------------------------------------------------------------------------------------


NOT_IN_SAFETENSORS = frozenset({"complex128", "float8_e4m3b11fnuz"})


@given(a=some_arrays(without=NOT_IN_SAFETENSORS), b=some_arrays(without=NOT_IN_SAFETENSORS))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_the_same_as_itself_and_counts_are_symmetrical(tmp_path_factory, a, b):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _file: None)  # hundreds of files that nobody needs after a crash
        folder = tmp_path_factory.mktemp("any")
        b = {**b, **dict(list(a.items())[:2])}  # so that some names meet
        one, two = write(folder / "a.safetensors", a), write(folder / "b.safetensors", b)
    itself = compare_files(one, one)
    assert (itself.same, itself.identical) == (True, len(a))
    there, back = compare_files(one, two).counts, compare_files(two, one).counts
    there["only_in_a"], there["only_in_b"] = there["only_in_b"], there["only_in_a"]
    assert there == back
    assert there["identical"] >= min(2, len(a))


def test_progress_is_told_in_bytes_of_a(tmp_path):
    from contextlib import contextmanager

    told: list[Any] = []

    @contextmanager
    def progress(_description: str, total: int | None):
        told.append(total)
        yield told.append

    path = write(tmp_path / "a.safetensors", {"x": np.ones(5, "float32"), "y": np.ones(2, "int8")})
    compare_files(path, path, progress=progress)
    assert told[0] == 22
    assert sum(told[1:]) == 22


# -- as the published code wrote them ------------------------------------------------------------------------


def test_both_releases_of_one_moganet_hold_the_same(shared_folder):
    folder = shared_folder / "checkpoints"
    timm = folder / "moganet_xtiny_timm.pth.tar"
    assert compare_files(folder / "moga_xtiny_openmixup_published.pth", timm).same
    raw = compare_files(timm, timm, weights="raw", weights_b="ema")
    assert (raw.a.state_dict, raw.b.state_dict) == ("state_dict", "state_dict_ema")
    assert raw.counts["other_values"] > 0


# -- which copy is taken where one of two is incomplete ------------------------------------------------------


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_whole_copy_is_compared_where_the_usual_one_is_not_whole(tmp_path, weights):
    """OpenMixup's plain names hold the averages, so they are what is left when a raw buffer is gone."""
    tensors = {t.spec.name: t for t in Synthetic("moganet-xt", twins=True).tensors()}
    del tensors["ema_backbone_blocks1_0_attn_gate_weight"]
    path = tmp_path / "m.pth"
    with TorchWriter(path, [t.spec for t in tensors.values()], {}) as writer:
        for name in writer.order:
            writer.write(name, tensors[name].make())
        writer.finish()
    entry = load_registry()["moganet-xt-224"].model_copy(update={"weights": weights})
    found = compare_files(Located(path, entry), Located(path, entry))
    assert found.same
    assert (found.a.weights, found.b.weights) == ("ema", "ema")


# -- pairing -------------------------------------------------------------------------------------------------


FLOAT32 = DTYPES["float32"]


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
    return [single.name for single in singles]


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
    assert {single.name: (single.by_rule, single.remark) for single in found.only_a} == {
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
    assert [(single.name, single.canonical, single.by_rule) for single in found.only_a] == [
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
    seat = AlignedTensor.canonical(TensorSpec("w", FLOAT32, shape), binding)
    assert seat.shape == seated
    assert seat.view(np.zeros(shape)).shape == seated


@pytest.mark.parametrize(
    ("op", "shape"), [("depthwise", (3, 3, 8, 2)), ("conv", (3, 3)), ("linear", (2, 3, 4))]
)
def test_a_shape_that_does_not_fit_is_never_compared(op, shape):
    binding = Binding("w", (0,), "w", (0,), OPS[op], True, "body")
    seat = AlignedTensor.canonical(TensorSpec("w", FLOAT32, shape), binding)
    assert (seat.op, seat.shape) == (None, shape)


def test_names_only_reads_no_value(tmp_path):
    one, other = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    a = write(tmp_path / "a.safetensors", {"same": one, "values": one, "shape": one, "dtype": one, "a": one})
    changed = {"shape": one.T.copy(), "dtype": one.astype(np.float16), "b": one}
    b = write(tmp_path / "b.npz", {"same": one, "values": other, **changed}, "npz")

    found = compare_files(a, b, names_only=True)

    assert [(one.name, one.kind) for one in found.changed] == [("dtype", "dtype"), ("shape", "shape")]
    assert ([one.name for one in found.only_a], [one.name for one in found.only_b]) == (["a"], ["b"])
    assert (found.identical, found.to_json()["names_only"]) == (2, True)
    ignored = compare_files(a, b, names_only=True, ignore_dtype=True)
    assert [one.name for one in ignored.changed] == ["shape"]


def test_names_only_through_the_architecture(moat):
    found = compare_files(moat / "model.ckpt", moat / "torch-torch.pth", names_only=True)
    assert found.same
    assert found.verdict.startswith("same names, shapes and types: ")
    assert "values not compared" in found.verdict
