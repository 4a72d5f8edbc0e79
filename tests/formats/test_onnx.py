"""The weights of ONNX models: those that the onnx package writes, and others put together byte by byte."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckptkit.base.errors import FormatError, UsageError
from ckptkit.formats.builtin import may_begin
from ckptkit.formats.detect import open_reader, writer_for
from ckptkit.formats.onnx import _TYPE_NAMES
from ckptkit.formats.protobuf_wire import bytes_field, number_field, varint
from tests.support.damage import mutations, survives
from tests.support.foreign_files import (
    ONNX_NUMBERS,
    onnx_attribute,
    onnx_graph,
    onnx_model,
    onnx_node,
    onnx_tensor,
    onnx_value,
)
from tests.support.tensors import same_bits

SOURCE = np.random.default_rng(4)
HELD: dict[str, Any] = {
    "conv.weight": SOURCE.standard_normal((4, 3, 2, 2)).astype("float32"),
    "conv.bias": np.zeros(4, "float16"),
    "scale": SOURCE.standard_normal(5).astype(ml_dtypes.bfloat16),
    "step": np.array(7, "int64"),
    "empty": np.zeros((0, 3), "float32"),
    "mask": np.array([True, False]),
    "axes": np.array([0, -1, 300], "int64"),
}


def tensors(held: dict[str, Any]) -> list[bytes]:
    return [onnx_tensor(name, array) for name, array in held.items()]


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


def assert_held(path: Path, held: dict[str, Any]) -> None:
    with open_reader(path) as reader:
        assert reader.format == "onnx"
        assert list(reader.specs) == list(held)
        for name, array in held.items():
            assert same_bits(reader.read(name), np.asarray(array)), name
            raw = reader.raw(name)
            assert raw is None or bytes(raw.data) == array.tobytes()
            assert reader.check(name) is False
            reader.release(name)


def test_a_file_by_hand(tmp_path: Path) -> None:
    raw = onnx_model(
        onnx_graph(tensors(HELD)), bytes_field(14, bytes_field(1, b"author") + bytes_field(2, b"x"))
    )
    path = write(tmp_path / "m.bin", raw)
    assert_held(path, HELD)
    assert_held(tmp_path, HELD)
    assert may_begin("onnx", raw[:200])
    with open_reader(path) as reader:
        assert reader.metadata == {
            "ir_version": "8",
            "producer": "test",
            "opset": "ai.onnx 17",
            "author": "x",
        }


def test_a_folder_with_weights_and_their_graph_is_that_of_the_weights(tmp_path: Path) -> None:
    write(tmp_path / "m.onnx", onnx_model(onnx_graph(tensors(HELD))))
    np.savez(tmp_path / "m.npz", a=np.zeros(3))
    with open_reader(tmp_path) as reader:
        assert reader.format == "npz"


# -- against the onnx package --------------------------------------------------------------------------------


def model_of(onnx: Any, initializers: list[Any], nodes: Any = (), **more: Any) -> Any:
    from onnx import TensorProto, helper

    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 8, 8])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, 10])]
    graph = helper.make_graph(list(nodes), "g", inputs, outputs, initializers, **more)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("x.y", 1)]
    )


def test_what_onnx_writes(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import numpy_helper

    model = model_of(onnx, [numpy_helper.from_array(array, name) for name, array in HELD.items()])
    onnx.save(model, tmp_path / "m.onnx")
    assert_held(tmp_path / "m.onnx", HELD)
    with open_reader(tmp_path / "m.onnx") as reader:
        assert reader.metadata["inputs"] == "images float32 [N, 3, 8, 8]"
        assert reader.metadata["outputs"] == "logits float32 [?, 10]"
        assert reader.metadata["opset"] == "ai.onnx 18, x.y 1"


@pytest.mark.parametrize("one_file", [True, False])
def test_external_data_of_onnx(tmp_path: Path, one_file: bool) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import numpy_helper

    model = model_of(onnx, [numpy_helper.from_array(array, name) for name, array in HELD.items()])
    onnx.save(
        model,
        tmp_path / "m.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=one_file,
        location="m.onnx.data" if one_file else None,
        size_threshold=8,
        convert_attribute=False,
    )
    assert len([*tmp_path.iterdir()]) == (2 if one_file else 1 + len(HELD))
    assert_held(tmp_path / "m.onnx", HELD)


ALL = [name for name in _TYPE_NAMES.values() if name != "string"]


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_every_type_as_onnx_reads_it(tmp_path: Path, name: str, raw: bool) -> None:
    """In the bytes, and in the fields that a type may have its elements in."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    kind = next(number for number, known in _TYPE_NAMES.items() if known == name)
    values: Any = [0, 1, 3, 1, 2, 0] if name != "bool" else [0, 1, 1, 0, 1, 1]
    if name[:3] in ("int", "com"):
        values = [-value for value in values] if name not in ("int2", "int4") else [0, 1, -1, 1, -2, 0]
    plain = helper.make_tensor("w", kind, [2, 3], values)
    made = numpy_helper.from_array(numpy_helper.to_array(plain), "w") if raw else plain
    assert made.data_type == kind
    assert made.HasField("raw_data") is raw
    onnx.save(model_of(onnx, [made]), tmp_path / "m.onnx")
    with open_reader(tmp_path / "m.onnx") as reader:
        spec = reader.specs["w"]
        assert spec.shape == (2, 3)
        assert str(spec.dtype) == name
        held = reader.raw("w")
        expected = numpy_helper.from_array(numpy_helper.to_array(plain), "w").raw_data
        if spec.dtype.itemsize:
            assert reader.read("w").tobytes() == expected
        else:
            assert held is not None and bytes(held.data) == expected


def test_long_lists_of_numbers(tmp_path: Path) -> None:
    """Over several windows, at whose ends numbers are cut."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    values = SOURCE.integers(-(1 << 62), 1 << 62, 300_000)
    values[::3] = SOURCE.integers(-200, 200, 100_000)
    onnx.save(
        model_of(onnx, [helper.make_tensor("w", TensorProto.INT64, [3, 100_000], values)]),
        tmp_path / "m.onnx",
    )
    with open_reader(tmp_path / "m.onnx") as reader:
        assert reader.read("w").tolist() == values.reshape(3, -1).tolist()


def test_constants_and_graphs_in_nodes(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weight, shape = np.ones((2, 2), "float32"), np.array([2, -1], "int64")

    def constant(name: str, array: Any) -> Any:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))

    inner = helper.make_graph(
        [constant("c", weight * 3)], "then", [], [], [numpy_helper.from_array(weight * 2, "w")]
    )
    branch = helper.make_node("If", ["x"], ["y"], name="choose", then_branch=inner, else_branch=inner)
    nodes = [
        constant("big", weight),
        constant("sizes", shape),
        constant("eps", np.array(0.5, "float32")),
        branch,
    ]
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("s", TensorProto.FLOAT, [1], [2.0]),
        helper.make_tensor("i", TensorProto.INT64, [1], [3]),
        [9],
    )
    model = model_of(onnx, [numpy_helper.from_array(weight, "w")], nodes, sparse_initializer=[sparse])
    onnx.save(model, tmp_path / "m.onnx")
    with open_reader(tmp_path / "m.onnx") as reader:
        assert {name: reader.read(name).reshape(-1)[0] for name in reader.specs} == {
            "big": 1,
            "w": 1,
            "choose/then_branch/w": 2,
            "choose/then_branch/c": 3,
            "choose/else_branch/w": 2,
            "choose/else_branch/c": 3,
        }
        assert reader.left_out == {"s": "a sparse tensor"}
        assert reader.extras == {
            "sizes": "a constant of the graph, int64 [2]",
            "eps": "a constant of the graph, float32 []",
        }


def test_weights_in_attributes_of_other_nodes(tmp_path: Path) -> None:
    """What a node holds besides is carried, or mentioned: nothing is left out in silence."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    def tensor(array: Any) -> Any:
        return numpy_helper.from_array(np.asarray(array, "float32"))

    nodes = [
        helper.make_node("TreeEnsemble", ["x"], ["a"], domain="ai.onnx.ml", nodes_splits=tensor([1, 2])),
        helper.make_node("Own", ["x"], ["b"], domain="own", ts=[tensor([3, 4]), tensor([5, 6])]),
        helper.make_node("LinearRegressor", ["x"], ["c"], domain="ai.onnx.ml", coefficients=[0.5] * 20),
        helper.make_node("Constant", [], ["d"], value_floats=[1.0, 2.0]),
        helper.make_node("ConstantOfShape", ["s"], ["e"], value=tensor([7])),
        helper.make_node("Upsample", ["x"], ["f"], scales=[1.0, 2.0]),
    ]
    model = model_of(onnx, [], nodes)
    model.training_info.add().algorithm.initializer.append(tensor([8, 9]))
    onnx.save(model, tmp_path / "m.onnx")
    with open_reader(tmp_path / "m.onnx") as reader:
        assert {name: reader.read(name).tolist() for name in reader.specs} == {
            "a/nodes_splits": [1, 2],
            "b/ts/0": [3, 4],
            "b/ts/1": [5, 6],
        }
        assert reader.extras == {
            "c/coefficients": "20 numbers in the graph itself",
            "d": "2 numbers in the graph itself",
            "training_info": "graphs of a training, which are not read",
        }


def test_nodes_and_functions_of_one_name(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    def constant(value: float) -> Any:
        return helper.make_node(
            "Constant", [], ["y"], value=numpy_helper.from_array(np.full(2, value, "float32"))
        )

    def branch(value: float, name: str, output: str) -> Any:
        inner = helper.make_graph([constant(value)], "then", [], [])
        return helper.make_node("If", ["x"], [output], name=name, then_branch=inner)

    opsets = [helper.make_opsetid("", 20)]
    functions = [
        helper.make_function("one", "F", ["x"], ["y"], [constant(1)], opsets),
        helper.make_function("two", "F", ["x"], ["y"], [constant(2)], opsets),
        helper.make_function("two", "F", ["x"], ["y"], [constant(3)], opsets, overload="v"),
        helper.make_function("two", "G", ["x"], ["y"], [constant(4)], opsets),
    ]
    nodes = [branch(5, "same", "p"), branch(6, "same", "q"), branch(7, "", "r")]
    model = model_of(onnx, [], nodes)
    model.functions.extend(functions)
    onnx.save(model, tmp_path / "m.onnx")
    with open_reader(tmp_path / "m.onnx") as reader:
        assert {name: reader.read(name)[0] for name in reader.specs} == {
            "one:F/y": 1,
            "two:F/y": 2,
            "two:F:v/y": 3,
            "G/y": 4,
            "same/then_branch/y": 5,
            "q/then_branch/y": 6,
            "r/then_branch/y": 7,
        }


def test_initializers_that_are_inputs_too(tmp_path: Path) -> None:
    """As IR version 3 wanted it."""
    more = bytes_field(11, onnx_value("conv.bias", 1, 4)) + bytes_field(11, onnx_value("x", 1, "N", 3))
    path = write(tmp_path / "m.onnx", onnx_model(onnx_graph(tensors(HELD), more=more)))
    with open_reader(path) as reader:
        assert reader.metadata["inputs"] == "x float32 [N, 3]"


def test_texts_are_told(tmp_path: Path) -> None:
    text = onnx_tensor(
        "labels", np.zeros(2, "S1"), kind=8, fields=bytes_field(6, b"cat") + bytes_field(6, b"dog")
    )
    with open_reader(write(tmp_path / "m.onnx", onnx_model(onnx_graph([text, *tensors(HELD)])))) as reader:
        assert reader.extras == {"labels": "texts [2]"}
        assert "labels" not in reader.specs


def test_it_is_read_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="onnx files are read, not written"):
        writer_for("onnx")(tmp_path / "m.onnx", [], {})


# -- damaged and hostile -------------------------------------------------------------------------------------

W = np.arange(4, dtype="float32")


def with_tensor(*made: bytes) -> bytes:
    return onnx_model(onnx_graph(list(made)))


def external(**keys: Any) -> bytes:
    return with_tensor(onnx_tensor("w", W, external={"location": "w.bin", **keys}))


def deep(levels: int) -> bytes:
    graph = onnx_graph([onnx_tensor("w", W)])
    for _ in range(levels):
        graph = onnx_graph(nodes=[onnx_node("If", "y", onnx_attribute("then_branch", graph=graph))])
    return onnx_model(graph)


BAD: dict[str, tuple[bytes, str]] = {
    "cut off": (with_tensor(onnx_tensor("w", W))[:-8], "runs past the end"),
    "short": (with_tensor(onnx_tensor("w", W, shape=(5,))), "needs 20 bytes, not 16"),
    "vast": (with_tensor(onnx_tensor("w", W, shape=(1 << 60,) * 4)), "needs"),
    "negative": (with_tensor(onnx_tensor("w", W, shape=(-4,))), "a negative size"),
    "many axes": (with_tensor(onnx_tensor("w", W, shape=(1,) * 99)), "has the shape"),
    "twice": (with_tensor(onnx_tensor("w", W), onnx_tensor("w", W)), "two tensors are called 'w'"),
    "no weights": (onnx_model(onnx_graph(nodes=[onnx_node("Relu", "y")])), "an ONNX graph without weights"),
    "two fields": (
        with_tensor(onnx_tensor("w", W, fields=bytes_field(9, W.tobytes()) + bytes_field(4, W.tobytes()))),
        "its elements in two fields",
    ),
    "a wrong field": (
        with_tensor(onnx_tensor("w", W, fields=bytes_field(7, b"\1\1\1\1"))),
        "of float32 has its elements in field 7",
    ),
    "a number too few": (
        with_tensor(onnx_tensor("w", W.astype("int64"), fields=bytes_field(7, b"\1\1\1"))),
        "of 4 numbers has 3 bytes",
    ),
    "unpacked numbers": (
        with_tensor(onnx_tensor("w", W.astype("int64"), fields=number_field(7, 3) * 4)),
        "one by one",
    ),
    "graphs in graphs": (deep(21), "more than 20 graphs in each other"),
    "a name that is no UTF-8": (
        with_tensor(onnx_tensor("w", W).replace(b"\x42\x01w", b"\x42\x01\xff")),
        "utf-8",
    ),
    "missing": (external(), "its file of weights 'w.bin' is missing"),
    "upwards": (external(location="../w.bin"), "which is not in the model's folder"),
    "hidden upwards": (external(location="a/../../w.bin"), "which is not in the model's folder"),
    "absolute": (external(location="/etc/passwd"), "which is not in the model's folder"),
    "a drive": (external(location="C:w.bin"), "which is not in the model's folder"),
    "backslashes": (external(location="..\\w.bin"), "which is not in the model's folder"),
    "nowhere": (external(location=""), "which is not in the model's folder"),
    "the folder": (external(location="."), "which is not in the model's folder"),
    "a zero": (external(location="w\0.bin"), "which is not in the model's folder"),
    "long": (external(location="w" * 5000), "which is not in the model's folder"),
    "another length": (external(length=12), "of 16 bytes has 12 in 'w.bin'"),
    "no number": (external(offset="-8"), "the offset or length '-8'"),
    "digits without end": (external(offset="9" * 5000), "the offset or length"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused(tmp_path: Path, kind: str) -> None:
    raw, said = BAD[kind]
    path = write(tmp_path / "m.onnx", raw)
    start = time.process_time()
    with pytest.raises(FormatError) as caught:
        open_reader(path)
    assert time.process_time() - start < 1
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("way", ["file", "folder", "dangling"])
def test_no_link_is_followed(tmp_path: Path, way: str) -> None:
    (tmp_path / "outside").mkdir()
    write(tmp_path / "outside" / "w.bin", W.tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    location = "sub/w.bin" if way == "folder" else "w.bin"
    target = {"file": "../outside/w.bin", "folder": "../outside", "dangling": "nowhere"}[way]
    (folder / location.split("/", maxsplit=1)[0]).symlink_to(target)
    path = write(folder / "m.onnx", external(location=location))
    with pytest.raises(FormatError, match="is reached through a link"):
        open_reader(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.bin")
    with pytest.raises(FormatError, match="is missing"):
        open_reader(write(tmp_path / "m.onnx", external()))


def test_external_data_by_hand(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "w.bin", b"....." + W.tobytes())
    path = write(tmp_path / "m.onnx", external(location="sub/w.bin", offset=5, checksum="ab"))
    assert_held(path, {"w": W})
    write(tmp_path / "sub" / "w.bin", b"....." + W.tobytes()[:-1])
    with pytest.raises(FormatError, match=r"w\.bin: tensor 'w' of m\.onnx ends beyond it"):
        open_reader(path)


def test_numbers_that_are_not_as_many_as_they_should(tmp_path: Path) -> None:
    for raw in (b"\1" * 5, b"\x80" * 12, varint(-1) + b"\1\1\1\1\1\1"):
        made = onnx_tensor("w", W.astype("int64"), fields=bytes_field(7, raw))
        reader = open_reader(write(tmp_path / "m.onnx", with_tensor(made)))
        with reader, pytest.raises(FormatError, match="not the 4 numbers"):
            reader.read("w")


def test_floats_in_several_pieces(tmp_path: Path) -> None:
    """Packed, one by one, and both: protocol buffers may be so."""
    one_by_one = b"".join(b"\x25" + value.tobytes() for value in W)
    halves = bytes_field(4, W[:2].tobytes()) + b"".join(b"\x25" + value.tobytes() for value in W[2:])
    for fields in (bytes_field(4, W.tobytes()), one_by_one, halves):
        assert_held(write(tmp_path / "m.onnx", with_tensor(onnx_tensor("w", W, fields=fields))), {"w": W})


def test_mutations(tmp_path: Path) -> None:
    raw = onnx_model(onnx_graph(tensors(HELD)))
    opened = sum(
        survives(tmp_path / "m.onnx", damaged, open_reader) for damaged in mutations(raw, 300, seed=8)
    )
    assert 0 < opened < 300


def test_numbers_of_types_are_those_of_the_specification() -> None:
    assert {name: number for number, name in _TYPE_NAMES.items() if name in ONNX_NUMBERS} == ONNX_NUMBERS
    onnx = pytest.importorskip("onnx")
    theirs = {number: name.lower() for name, number in onnx.TensorProto.DataType.items() if number}
    for number, name in _TYPE_NAMES.items():
        other = theirs[number].replace("double", "float64")
        assert (
            other == name.replace("_", "").replace("fnx2", "").replace("fnu", "")[: len(other)]
            or (other == "float" and name == "float32")
            or name.startswith("float8")
        ), (number, other, name)
