"""The few names of a PyTorch pickle that mean something; every other value in words, short and printable."""

from __future__ import annotations

import collections
import datetime
import functools
import pickle
import time
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest

from ckptkit.formats.pickle_machine import GlobalName, Inert, PickleMachine
from ckptkit.formats.torch_pickle import (
    TORCH_HANDLERS,
    StorageRef,
    TensorRef,
    UnsupportedTensor,
    describe,
    describe_extras,
    parse_storage,
    storage_dtype,
    whole_number,
)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("torch.FloatStorage", "float32"),
        ("torch.cuda.BFloat16Storage", "bfloat16"),
        ("torch.LongStorage", "int64"),
        ("torch.storage.UntypedStorage", None),
        ("torch.storage._UntypedStorage", None),
        ("torch.QInt8Storage", "QInt8"),
    ],
)
def test_storage_types(kind: str, wanted: str | None) -> None:
    assert storage_dtype(GlobalName(kind)) == wanted


@pytest.mark.parametrize(
    "kind", [GlobalName("os.FloatStorage"), GlobalName("torch.load"), "torch.FloatStorage", None]
)
def test_what_is_no_storage_type(kind: object) -> None:
    with pytest.raises(ValueError, match="storage"):
        storage_dtype(kind)


def test_numeric_storage_keys_of_old_files() -> None:
    found = parse_storage(("storage", GlobalName("torch.IntStorage"), 94812, "cuda:0", 7))
    assert (found.key, found.dtype, found.count, found.offset) == ("94812", "int32", 7, 0)


@pytest.mark.parametrize("value", [-1, 1 << 62, True, 1.0, "1", None])
def test_whole_numbers(value: object) -> None:
    with pytest.raises(ValueError, match="size"):
        whole_number(value, "size")


STORAGE = StorageRef("0", "float32", 6)
BASIC = (STORAGE, 0, (2, 3), (3, 1))


def rebuilt(name: str, *args: object) -> object:
    return TORCH_HANDLERS[name](args)


@pytest.mark.parametrize(
    ("function", "args", "dtype"),
    [
        ("_rebuild_tensor", BASIC, "float32"),
        ("_rebuild_tensor_v2", (*BASIC, False, {}), "float32"),
        ("_rebuild_tensor_v2", (*BASIC, True, {}, None), "float32"),
        ("_rebuild_tensor_v2", (*BASIC, True, {}, {}), "float32"),
        ("_rebuild_tensor_v3", (*BASIC, False, {}, GlobalName("torch.uint16")), "uint16"),
    ],
)
def test_tensors(function: str, args: tuple[object, ...], dtype: str) -> None:
    found = rebuilt(f"torch._utils.{function}", *args)
    assert isinstance(found, TensorRef)
    assert (found.dtype, found.offset, found.shape, found.strides) == (dtype, 0, (2, 3), (3, 1))


def test_thousands_of_flags_and_endless_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="17 flags"):
        rebuilt("torch._utils._rebuild_tensor_v2", *BASIC, False, {}, dict.fromkeys(range(17), True))
    with pytest.raises(ValueError, match="a storage key of 256 characters"):
        parse_storage(("storage", GlobalName("torch.IntStorage"), "9" * 256, "cpu", 7))


@pytest.mark.parametrize("flag", ["conj", "neg"])
def test_lazy_views_are_not_plain_numbers(flag: str) -> None:
    found = rebuilt("torch._utils._rebuild_tensor_v2", *BASIC, False, {}, {flag: True})
    assert isinstance(found, UnsupportedTensor)
    assert flag in found.kind


def test_parameters_give_their_tensor() -> None:
    tensor = rebuilt("torch._utils._rebuild_tensor", *BASIC)
    for name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        assert rebuilt(name, tensor, True, {}) is tensor


def test_tensor_classes() -> None:
    function, name = GlobalName("torch._utils._rebuild_tensor"), "torch._tensor._rebuild_from_type_v2"
    assert isinstance(rebuilt(name, function, GlobalName("torch.Tensor"), BASIC, {}), TensorRef)
    other = rebuilt(name, function, GlobalName("my.Tensor"), BASIC, {})
    assert isinstance(other, UnsupportedTensor)
    assert "my.Tensor" in other.kind
    assert isinstance(
        rebuilt(name, GlobalName("os.system"), GlobalName("torch.Tensor"), ("x",), {}), UnsupportedTensor
    )
    for inner in (name, "builtins.list"):  # what the budget was not charged for is not built
        assert isinstance(
            rebuilt(name, GlobalName(inner), GlobalName("torch.Tensor"), ([1],), {}), UnsupportedTensor
        )


@pytest.mark.parametrize(
    ("name", "args", "wanted"),
    [
        ("collections.OrderedDict", (), {}),
        ("collections.OrderedDict", ([["a", 1], ("b", 2)],), {"a": 1, "b": 2}),
        ("collections.OrderedDict", ({"a": 1},), {"a": 1}),
        ("collections.defaultdict", (GlobalName("builtins.list"),), {}),
        ("builtins.set", ([1, 2],), [1, 2]),
        ("torch.Size", ([3, 4],), (3, 4)),
        ("torch.Size", (), ()),
        ("_codecs.encode", ("ÿ", "latin1"), b"\xff"),
        ("builtins.complex", (1.0, 2.0), 1 + 2j),
        ("builtins.bytes", (), b""),
    ],
)
def test_containers(name: str, args: tuple[object, ...], wanted: object) -> None:
    assert rebuilt(name, *args) == wanted


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("_codecs.encode", ("x", "rot13")),
        ("_codecs.encode", ("x", "zlib")),
        ("builtins.bytes", (1 << 60,)),
        ("builtins.complex", ("1", "2")),
    ],
)
def test_calls_beyond_the_plain_ones_stay_inert(name: str, args: tuple[object, ...]) -> None:
    assert isinstance(rebuilt(name, *args), Inert)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("collections.OrderedDict", (3,)),
        ("collections.OrderedDict", ([["a"]],)),
        ("collections.OrderedDict", ([], [])),
        ("builtins.set", (Inert("builtins.map", ()),)),
        ("torch._utils._rebuild_tensor", BASIC[:3]),
        ("torch._utils._rebuild_tensor", (Inert("x", ()), *BASIC[1:])),
        ("torch._utils._rebuild_tensor_v3", (*BASIC, False, {}, "uint16")),
        ("torch._utils._rebuild_parameter", ()),
        ("torch._tensor._rebuild_from_type_v2", (1, 2)),
    ],
)
def test_malformed_calls(name: str, args: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        rebuilt(name, *args)


# -- values in words ---------------------------------------------------------------------------------------

TENSOR = TensorRef(StorageRef("0", "float32", 6), "float32", 0, (2, 3), (3, 1))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "3"),
        (2**200, hex(2**200)),
        (76.48, "76.48"),
        (None, "None"),
        ("plain", "plain"),
        ("a\n\x1b[31mb\u202e", "a\\n\\x1b[31mb\\u202e"),
        (b"abc", "3 bytes"),
        ([1, "a"], "[1, a]"),
        ((), "()"),
        ({"a": {"b": {"c": {"d": 1}}}}, "{a: {b: {c: table of 1 value}}}"),
        (TENSOR, "tensor of float32 [2, 3]"),
        ({"w": TENSOR}, "table of 1 value"),
        (GlobalName("os.system"), "os.system"),
        (Inert("os.system", ("rm",)), "os.system(rm)"),
        (Inert("argparse.Namespace", (), {"lr": 0.1}), "argparse.Namespace(lr=0.1)"),
    ],
)
def test_describe(value: object, said: str) -> None:
    assert describe(value) == said


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value", [np.float64(76.5), np.float32(0.25), np.int64(-3), np.uint8(200), np.bool_(True)]
)
def test_numpy_scalars(value: np.generic, protocol: int) -> None:
    raw = pickle.dumps(value, protocol)
    loaded = PickleMachine(Path("x"), raw, 0, len(raw), handlers=TORCH_HANDLERS).run()
    assert describe(loaded) == str(value)


ARRAY = np.arange(6, dtype="float32").reshape(2, 3)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (ARRAY, "[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]"),
        (ARRAY.T, "[[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]"),
        (np.arange(4, dtype=">i2"), "[0, 1, 2, 3]"),
        (np.array(2.5), "2.5"),
        (np.zeros((3, 40), "uint8"), "array of uint8 [3, 40]"),
        (np.zeros((0, 2)), "array of float64 [0, 2]"),
        (np.array(["a"], dtype=object), "array of Python objects [1]"),
        (np.dtype("float32"), "numpy.float32"),
        (datetime.datetime(2022, 11, 19, 3, 12, 45), "2022-11-19 03:12:45"),
        (datetime.datetime(2022, 11, 19, 3, 12, 45, 500, fold=1), "2022-11-19 03:12:45.000500"),
        (
            datetime.datetime(1999, 1, 2, tzinfo=datetime.timezone(-datetime.timedelta(hours=3.5))),
            "1999-01-02 00:00:00-03:30",
        ),
        (datetime.date(2026, 12, 31), "2026-12-31"),
        (datetime.timedelta(days=2, seconds=5), "2 days, 0:00:05"),
        (PurePosixPath("/runs/a/epoch_300.pth"), "/runs/a/epoch_300.pth"),
        (PureWindowsPath("C:/runs/x"), "C:\\runs\\x"),
        (collections.deque([1, 2], 5), "collections.deque((), 5, 1, 2)"),
        (functools.partial(int, "7", base=8), None),
    ],
)
def test_common_objects(value: object, said: str | None, protocol: int) -> None:
    raw = pickle.dumps(value, protocol)
    loaded = PickleMachine(Path("x"), raw, 0, len(raw), handlers=TORCH_HANDLERS).run()
    found = describe(loaded)
    assert found == said if said is not None else found.startswith("functools.partial(")


MALFORMED = {
    "month 13": Inert("datetime.datetime", (bytes([7, 230, 13, 1, 0, 0, 0, 0, 0, 0]),)),
    "short date": Inert("datetime.date", (b"ab",)),
    "endless duration": Inert("datetime.timedelta", (10**15, 0, 0)),
    "duration in words": Inert("datetime.timedelta", ("x", 0, 0)),
    "path of numbers": Inert("pathlib.PosixPath", (1, 2)),
    "device without type": Inert("torch.device", ()),
    "array of wrong length": Inert(
        "numpy.core.multiarray._reconstruct", (), (1, (3,), Inert("numpy.dtype", ("f4",)), False, b"abc")
    ),
    "array of endless shape": Inert(
        "numpy.core.multiarray._reconstruct",
        (),
        (1, (1 << 61,) * 8, Inert("numpy.dtype", ("f4",)), False, b""),
    ),
    "number of a type that is none": Inert(
        "numpy.core.multiarray.scalar", (Inert("numpy.dtype", ("O8",)), b"12345678")
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_common_objects_are_told_as_calls(case: str) -> None:
    assert describe(MALFORMED[case]).startswith(MALFORMED[case].name + "(")


def test_long_lists_show_their_first_values() -> None:
    assert (
        describe({"params": list(range(276))}) == "{params: [0, 1, 2, 3, 4, 5, 6, 7, … 276 values in total]}"
    )


def test_limits() -> None:
    assert describe("x" * 10**6, 50) == "x" * 49 + "…"
    assert len(describe(list(range(10**6)))) <= 1000


def test_values_that_share_each_other_do_not_explode() -> None:
    value: object = "leaf"
    for _ in range(60):
        value = [value] * 200
    started = time.process_time()
    assert len(describe(value)) <= 1000
    endless: list[object] = []
    endless.append(endless)
    assert describe(endless) == "[[[list of 1 value]]]"
    assert time.process_time() - started < 1


def test_extras() -> None:
    root = {
        "state_dict": {"w": TENSOR},
        "epoch": 3,
        "meta": {"time": "now", "nested": {"a": 1}},
        "optimizer": {"state": {0: {"m": TENSOR}}, "lr": 0.1},
        "odd": {"w": TENSOR},
    }
    assert describe_extras(root, ["state_dict"]) == {
        "epoch": "3",
        "meta.time": "now",
        "meta.nested": "{a: 1}",
        "optimizer.state": "table of 1 value",
        "optimizer.lr": "0.1",
        "odd": "table of 1 value",
    }
    assert describe_extras(root, [""]) == {}
    assert describe_extras([1], ["x"]) == {}


def test_thousands_of_extras_are_cut() -> None:
    assert len(describe_extras({f"k{i}": i for i in range(5000)}, [])) == 1000
    found = describe_extras({"args": Inert("argparse.Namespace", (), {f"k{i}": i for i in range(300)})}, [])
    assert (len(found), found["args.k199"], found["args.…"]) == (201, "199", "100 values more")


def test_objects_with_attributes_are_told_field_by_field() -> None:
    config = Inert("mmcv.utils.config.ConfigDict", (), {"lr": 1}, [("lr", 1), ("type", "AdamW")])
    root = {
        "args": Inert(
            "argparse.Namespace", (), {"lr": 0.1, "inner": Inert("argparse.Namespace", (), {"a": 1})}
        ),
        "config": config,
        "slotted": Inert("my.Slotted", (), (None, {"x": 1})),
        "model": Inert("my.Model", (), {"weight": TENSOR}),
        "number": Inert("my.Number", (7,)),
    }
    assert describe_extras(root, []) == {
        "args.lr": "0.1",
        "args.inner": "argparse.Namespace(a=1)",
        "config": "mmcv.utils.config.ConfigDict",
        "config.lr": "1",
        "config.type": "AdamW",
        "slotted": "my.Slotted",
        "slotted.x": "1",
        "model": "my.Model(weight=tensor of float32 [2, 3])",
        "number": "my.Number(7)",
    }


def test_texts_of_several_lines_keep_them_and_nothing_else() -> None:
    config = "model = dict(\n\ttype='x\x1b[2J')\r\nend\u2028\n\n"
    assert describe_extras({"meta": {"config": config}}, [])["meta.config"] == (
        "model = dict(\n    type='x\\x1b[2J')\nend\\u2028"
    )
    assert describe_extras({"outer": {"inner": {"config": "a\nb"}}}, []) == {"outer.inner": "{config: a\\nb}"}


def test_long_texts_under_many_keys_stay_bounded() -> None:
    text = "line\n" * 200_000
    found = describe_extras({f"k{i}": text for i in range(500)}, [])
    assert found["k0"].endswith("…")
    assert sum(map(len, found.values())) < 2_000_000
