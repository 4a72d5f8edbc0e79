"""Constants of TensorFlow graphs built byte by byte; test_tf_bundle_with_tensorflow has TensorFlow's own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckptkit.base.errors import FormatError, UsageError
from ckptkit.formats.builtin import may_begin
from ckptkit.formats.detect import chosen_of, open_reader, writer_for
from tests.support.damage import mutations, survives
from tests.support.tensors import same_bits
from tests.support.tf_files import message
from tests.support.tf_protos import attribute, const, graph, node, saved_model, tensor

SOURCE = np.random.default_rng(14)
W = SOURCE.standard_normal((3, 4)).astype("float32")
TYPES = (
    *("float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"),
    *("uint64", "complex64", "complex128", "bool"),
)
HELD: dict[str, Any] = {
    **{f"net/{name}": SOURCE.integers(0, 2, (2, 3)).astype(name) for name in TYPES},
    "net/bfloat16": W.astype(ml_dtypes.bfloat16),
    "scalar": np.float32(2.5),
    "empty": np.zeros((0, 3), "float32"),
    "negative": np.array([-1, 300, -(1 << 40)]),
}


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


def whole(listed: bool) -> bytes:
    return graph(
        node("images", "Placeholder"),
        *(const(name, tensor(array, listed=listed)) for name, array in HELD.items()),
    )


@pytest.mark.parametrize("listed", [False, True])
def test_a_file_by_hand(tmp_path: Path, listed: bool) -> None:
    """Elements as bytes, and as lists of their kind."""
    raw = whole(listed)
    path = write(tmp_path / "m", raw)
    with open_reader(path) as reader:
        assert (reader.format, list(reader.specs)) == ("graphdef", list(HELD))
        assert reader.metadata == {"inputs": "images"}
        for name, array in HELD.items():
            assert same_bits(reader.read(name), np.asarray(array)), name
            assert not reader.read(name).flags.writeable
            held = reader.raw(name)
            assert held is None if array.dtype.kind in "iu" and listed else True
            assert held is None or bytes(held.data) == array.tobytes()
            assert reader.check(name) is False
            reader.release(name)
    assert may_begin("graphdef", raw[:200])


def test_lists_that_are_shorter_than_the_tensor(tmp_path: Path) -> None:
    """The last element again and again, as TensorFlow reads them; none means zeros."""
    short = {
        "one": ((3, 2), np.float32([1.5]), [1.5] * 6),
        "two": ((4,), np.float32([1, 2]), [1, 2, 2, 2]),
        "content": ((3,), None, [7, 7, 7]),
        "numbers": ((4,), np.int32([5, -6]), [5, -6, -6, -6]),
        "none": ((2,), np.float32([]), [0, 0]),
        "half": ((3,), np.float16([1, 0.5]), [1, 0.5, 0.5]),
        "flags": ((3,), np.array([True]), [True] * 3),
    }
    nodes = [
        const(name, tensor(array, listed=True, shape=shape))
        if array is not None
        else const(name, tensor(np.int64(7), shape=shape))
        for name, (shape, array, _) in short.items()
    ]
    with open_reader(write(tmp_path / "m.pb", graph(*nodes))) as reader:
        for name, (shape, _, values) in short.items():
            assert reader.specs[name].shape == shape
            assert reader.read(name).reshape(-1).tolist() == values


def test_what_is_no_number_is_told(tmp_path: Path) -> None:
    nodes = [
        const("w", tensor(W)),
        const("words", tensor(np.zeros(2, "S1"), kind=7, held=message((8, b"cat"), (8, b"dog")))),
        const("handle", tensor(np.zeros(()), kind=20, held=message((14, b"x")))),
        const("odd", tensor(np.zeros(3, "uint8"), kind=90, shape=(3,))),
        const("quantized", tensor(np.arange(3, dtype="int8"), kind=11)),
        node("v", "VarHandleOp"),
        node("old", "VariableV2"),
    ]
    with open_reader(write(tmp_path / "m.pb", graph(*nodes))) as reader:
        assert reader.extras == {"words": "strings [2]", "handle": "a resource []"}
        away = "a variable, whose value is in a checkpoint and not in the graph"
        assert reader.left_out == {"v": away, "old": away}
        assert {name: str(spec.dtype) for name, spec in reader.specs.items()} == {
            "w": "float32",
            "odd": "DataType 90",
            "quantized": "qint8",
        }
        assert bytes(reader.read("quantized").tobytes()) == b"\0\1\2"


def test_functions_have_constants_too(tmp_path: Path) -> None:
    functions = {"body": [const("w", tensor(W * 2))], "cond": [const("w", tensor(W * 3))]}
    raw = graph(const("w", tensor(W)), functions=functions)
    with open_reader(write(tmp_path / "m.pb", raw)) as reader:
        firsts = {name: reader.read(name)[0, 0] / W[0, 0] for name in reader.specs}
    assert firsts == {"w": 1, "body/w": 2, "cond/w": 3}


@pytest.mark.parametrize("given", ["saved_model.pb", "."])
def test_a_saved_model_without_variables(tmp_path: Path, given: str) -> None:
    (tmp_path / "assets").mkdir()
    write(
        tmp_path / "saved_model.pb", saved_model(graph(const("w", tensor(W))), graph(const("w", tensor(W))))
    )
    with open_reader(tmp_path / given) as reader:
        assert (reader.format, list(reader.specs)) == ("graphdef", ["w", "graph_1/w"])


@pytest.mark.parametrize("given", ["saved_model.pb", "."])
def test_a_saved_model_that_lacks_its_variables(tmp_path: Path, given: str) -> None:
    raw = saved_model(graph(const("w", tensor(W)), node("v", "VarHandleOp")))
    write(tmp_path / "saved_model.pb", raw)
    with pytest.raises(FormatError, match="is the graph of a SavedModel, without its variables") as caught:
        open_reader(tmp_path / given)
    assert "variables/" in (caught.value.hint or "")


def test_a_graph_beside_weights_is_not_what_a_folder_means(tmp_path: Path) -> None:
    write(tmp_path / "m.pb", graph(const("w", tensor(W))))
    np.savez(tmp_path / "m.npz", a=W)
    with open_reader(tmp_path) as reader:
        assert reader.format == "npz"
    names = ["saved_model.pb", "keras_metadata.pb", "model.onnx"]
    assert chosen_of("hf://a/b", names) == "model.onnx"
    assert chosen_of("hf://a/b", ["README.md", "frozen.pb"]) == "frozen.pb"


def test_it_is_read_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="graphdef files are read, not written"):
        writer_for("graphdef")(tmp_path / "m.pb", [], {})


# -- damaged and hostile -------------------------------------------------------------------------------------


def one(array: Any = W, **more: Any) -> bytes:
    return graph(const("w", tensor(array, **more)))


def unknown_shape() -> bytes:
    return graph(const("w", message((1, 1), (2, message((3, 1))), (4, W.tobytes()))))


GOOD = whole(listed=True)
BAD: dict[str, tuple[bytes, str]] = {
    "cut off": (GOOD[:-3], "runs past the end"),
    "too many elements": (one(shape=(2, 2)), "12 elements, not 4"),
    "half an element": (one(held=message((4, b"abcdefg"))), "7 bytes of float32"),
    "vast": (one(shape=(1 << 40,), held=message((5, bytes(4)))), "bytes unpacked in a file of"),
    "vast, of nothing": (one(shape=(1 << 50,), held=b""), "bytes unpacked in a file of"),
    "beyond all bounds": (one(shape=(1 << 62,)), "impossible shape"),
    "negative": (one(shape=(-3, -4)), "impossible shape"),
    "many axes": (one(np.float32([1]), shape=(1,) * 40), "at most 32 are supported"),
    "more axes": (one(np.float32([1]), shape=(1,) * 300), "more than 254 axes"),
    "an unknown shape": (unknown_shape(), "the shape is unknown"),
    "no type": (one(kind=0), "no element type"),
    "two fields": (one(held=message((4, W.tobytes()), (5, W.tobytes()))), "elements in several fields"),
    "two pieces": (one(held=message((5, W.tobytes()), (5, W.tobytes()))), "elements in several fields"),
    "a wrong field": (one(held=message((10, bytes(12)))), "elements of float32 in field 10"),
    "one by one": (one(np.int64([1, 2]), held=message((10, 1), (10, 2))), "one by one"),
    "twice": (graph(const("w", tensor(W)), const("w", tensor(W))), "two tensors are called 'w'"),
    "no value": (graph(node("w", "Const")), "the constant 'w' has 0 values"),
    "two values": (
        graph(node("w", "Const", *[attribute("value", message((8, tensor(W))))] * 2)),
        "the constant 'w' has 2 values",
    ),
    "no constants": (graph(node("a", "Add")), "a TensorFlow graph with no constants"),
    "variables alone": (graph(node("v", "VariableV2")), "variables, whose values are not in it"),
    "a long name": (graph(const("a", tensor(W)), const("w" * 20_000, tensor(W))), "a name of 20000 bytes"),
    "a name that is no UTF-8": (
        graph(const("a", tensor(W))) + one().replace(b"\x0a\x01w", b"\x0a\x01\xff"),
        "utf-8",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused(tmp_path: Path, kind: str) -> None:
    raw, said = BAD[kind]
    path = write(tmp_path / "m.pb", raw)
    start = time.process_time()
    with pytest.raises(FormatError) as caught:
        open_reader(path)
    assert time.process_time() - start < 1
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


def test_more_numbers_than_elements(tmp_path: Path) -> None:
    for held in (b"\1\1\1", b"\x80" * 12):
        raw = one(np.int64([1, 2]), held=message((10, held)))
        with (
            open_reader(write(tmp_path / "m.pb", raw)) as reader,
            pytest.raises(FormatError, match="numbers"),
        ):
            reader.read("w")


def test_many_nodes(tmp_path: Path) -> None:
    add = message((1, node("net/block_3/add", "AddV2", attribute("T", message((6, 1))))))
    path = write(tmp_path / "m.pb", one() + add * 20_000)
    start = time.process_time()
    with open_reader(path) as reader:
        assert list(reader.specs) == ["w"]
    assert time.process_time() - start < 1


def test_mutations(tmp_path: Path) -> None:
    opened = sum(survives(tmp_path / "m.pb", bad, open_reader) for bad in mutations(GOOD, 200, seed=8))
    assert 0 < opened < 200
