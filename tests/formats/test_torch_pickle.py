"""The few names of a PyTorch pickle that mean something."""

from __future__ import annotations

import pytest

from ckptkit.formats.pickle_machine import GlobalName, Inert
from ckptkit.formats.torch_pickle import (
    TORCH_HANDLERS,
    StorageRef,
    TensorRef,
    UnsupportedTensor,
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
