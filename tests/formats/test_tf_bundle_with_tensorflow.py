"""The reader on what TensorFlow writes, and TensorFlow on what the writer writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckptkit.base.errors import ConversionError, FormatError
from ckptkit.base.tensors import DTYPES, TensorSpec, dtype_of
from ckptkit.formats.base import bytes_of
from ckptkit.formats.detect import open_reader
from ckptkit.formats.tf_bundle import TfBundleReader, TfBundleWriter
from tests.convert.test_element_types import TF as ELEMENT_TYPES
from tests.support.tf_files import message
from tests.support.tf_protos import LISTS, const, graph, numbers, tensor

RANDOM = np.random.default_rng(9)
DATA = ".data-00000-of-00001"


@pytest.fixture(scope="module")
def tf() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return pytest.importorskip("tensorflow")


def sample(name: str) -> np.ndarray:
    dtype = DTYPES[name]
    values = RANDOM.integers(0, 2 if dtype.kind == "bool" else 100, (3, 4))
    return values.astype(dtype.numpy)


EVERY_TYPE = {name: sample(name) for name in DTYPES}
SAMPLES = {
    **EVERY_TYPE,
    "scope/scalar": np.array(3.5, "float32"),
    "scope/empty": np.zeros((0, 3), "int64"),
    "scope/kernel": RANDOM.standard_normal((3, 3, 40, 50)).astype("float32"),
}


def save(tf: Any, prefix: Path, tensors: dict[str, Any], slices: dict[str, str] | None = None) -> None:
    """TensorFlow's own writer, without a Saver around it; ``w@1`` is a part of ``w``."""
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=[name.split("@")[0] for name in tensors],
        shape_and_slices=[(slices or {}).get(name, "") for name in tensors],
        tensors=[tf.constant(tensor) for tensor in tensors.values()],
    )


def ours(prefix: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    specs = [TensorSpec(name, dtype_of(array), array.shape) for name, array in tensors.items()]
    with TfBundleWriter(prefix, specs, metadata or {}) as writer:
        for name in writer.order:
            writer.write(name, tensors[name])
        writer.finish()


def assert_reads(path: Path, tensors: dict[str, np.ndarray]) -> TfBundleReader:
    with TfBundleReader(path, verify=True) as reader:
        assert set(reader.specs) == set(tensors)
        for name, array in tensors.items():
            found = reader.read(name)
            assert (found.dtype, found.shape) == (array.dtype, array.shape), name
            assert found.tobytes() == array.tobytes(), name
            assert reader.check(name)
    return reader


def test_reads_every_element_type(tf: Any, tmp_path: Path) -> None:
    save(tf, tmp_path / "m", SAMPLES)
    assert list(assert_reads(tmp_path / "m", SAMPLES).notes) == []


QUANTIZED = {"qint8": "int8", "quint8": "uint8", "qint16": "int16", "quint16": "uint16", "qint32": "int32"}
NARROW = ("int4", "uint4", "int2", "uint2", "float4_e2m1fn")


def test_types_of_which_only_bytes_are_known(tf: Any, tmp_path: Path) -> None:
    made = {name: tf.bitcast(tf.constant([[1, 2], [3, 0]], plain), name) for name, plain in QUANTIZED.items()}
    made |= {name: tf.constant(np.array([[1, 1], [0, 1]], getattr(ml_dtypes, name))) for name in NARROW}
    made["words"] = tf.constant(["a", ""])
    save(tf, tmp_path / "m", made)
    with TfBundleReader(tmp_path / "m", verify=True) as reader:
        assert reader.also == {"words": "strings [2]"}
        specs = [reader.specs[name] for name in made if name != "words"]
        assert {spec.dtype.kind for spec in specs} == {"opaque"}
        with TfBundleWriter(tmp_path / "n", specs, {}) as writer:
            for name in writer.order:
                assert reader.check(name, writer.write(name, bytes_of(reader, name)))
            writer.finish()
        for name in NARROW:  # these have a type in ml_dtypes, and so values
            assert reader.read(name).tolist() == [[1, 1], [0, 1]]
    for name, plain in QUANTIZED.items():
        (again,) = tf.raw_ops.RestoreV2(
            prefix=str(tmp_path / "n"), tensor_names=[name], shape_and_slices=[""], dtypes=[name]
        )
        assert tf.bitcast(again, plain).numpy().tolist() == [[1, 2], [3, 0]]


def test_the_table_of_element_types_is_whole(tf: Any) -> None:
    from tensorflow.core.framework import types_pb2

    numbers = {number for number in types_pb2.DataType.values() if 0 < number < 100}
    assert numbers | {77} == set(ELEMENT_TYPES)


@pytest.mark.parametrize("count", [1, 17, 12_000])
def test_writes_the_same_bytes_as_tensorflow(tf: Any, tmp_path: Path, count: int) -> None:
    names = [
        f"model/layer_{number % 97}/a_rather_long_name_of_a_variable/{number}" for number in range(count)
    ]
    tensors = {name: np.full(number % 5, number, "float32") for number, name in enumerate(names)}
    tensors = dict(sorted((tensors | SAMPLES).items()))  # as a Saver does: SaveV2 keeps the order it is given
    save(tf, tmp_path / "theirs", tensors)
    ours(tmp_path / "ours", tensors)
    assert (tmp_path / f"ours{DATA}").read_bytes() == (tmp_path / f"theirs{DATA}").read_bytes()
    index = (tmp_path / "ours.index").read_bytes()
    assert index == (tmp_path / "theirs.index").read_bytes()
    if count == 12_000:
        assert len(index) > 256 << 10  # more than one block


def test_tensorflow_reads_what_is_written(tf: Any, tmp_path: Path) -> None:
    ours(tmp_path / "m", SAMPLES, {"layout": "deeplab2", "note": "ä" * 500})
    reader = tf.train.load_checkpoint(str(tmp_path / "m"))
    shapes = reader.get_variable_to_shape_map()
    assert shapes == {name: list(array.shape) for name, array in SAMPLES.items()}
    for name, array in SAMPLES.items():
        found = reader.get_tensor(name)
        assert (found.dtype, np.shape(found)) == (array.dtype, array.shape)
        assert np.asarray(found).tobytes() == array.tobytes()


def test_tensorflow_reads_bfloat16_casts(tf: Any, tmp_path: Path) -> None:
    kernel = SAMPLES["scope/kernel"].transpose(3, 2, 0, 1)
    with TfBundleWriter(tmp_path / "m", [TensorSpec("k", DTYPES["bfloat16"], kernel.shape)], {}) as writer:
        writer.write("k", kernel)
        writer.finish()
    found = tf.train.load_checkpoint(str(tmp_path / "m")).get_tensor("k")
    np.testing.assert_array_equal(found, tf.cast(kernel, tf.bfloat16).numpy())
    assert found.dtype == ml_dtypes.bfloat16


def test_tf1_saver_restores_what_is_written(tf: Any, tmp_path: Path) -> None:
    v1 = tf.compat.v1
    kernel, step = SAMPLES["scope/kernel"], np.array(12, "int64")
    ours(tmp_path / "m", {"scope/kernel": kernel, "global_step": step})
    with tf.Graph().as_default(), v1.Session() as session:
        variables = [
            v1.get_variable("scope/kernel", kernel.shape),
            v1.get_variable("global_step", (), "int64"),
        ]
        v1.train.Saver().restore(session, str(tmp_path / "m"))
        found = session.run(variables)
    np.testing.assert_array_equal(found[0], kernel)
    assert found[1] == 12


@pytest.mark.parametrize("resource", [False, True])
def test_partitioned_variables_of_a_tf1_saver(tf: Any, tmp_path: Path, resource: bool) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        for axis, name in enumerate(["rows", "columns"]):
            v1.get_variable(
                name, (10, 7), initializer=v1.random_normal_initializer(seed=axis), use_resource=resource,
                partitioner=v1.fixed_size_partitioner(3, axis=axis),
            )  # fmt: skip
        v1.get_variable("text", initializer=tf.constant(["a", "b"]), use_resource=resource)
        v1.get_variable("flag", initializer=tf.constant([True, False, True]), use_resource=resource)
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(tmp_path / "m"), write_meta_graph=False)
    theirs = tf.train.load_checkpoint(str(tmp_path / "m"))
    expected = {name: theirs.get_tensor(name) for name in ("rows", "columns", "flag")}
    reader = assert_reads(tmp_path, expected)  # the folder: its `checkpoint` file has an absolute path
    assert (reader.notes, reader.also) == ([], {"text": "strings [2]"})


@pytest.mark.parametrize("size", [5, 63, 64, 8191, 8192, 70_000])
def test_parts_that_begin_far_inside(tf: Any, tmp_path: Path, size: int) -> None:
    """The keys of parts encode numbers in one to three bytes here."""
    whole = RANDOM.standard_normal((size + 3, 2)).astype("float32")
    total = f"{size + 3} 2"
    save(
        tf,
        tmp_path / "m",
        {"w@0": whole[:size], "w@1": whole[size:, :1], "w@2": whole[size:, 1:]},
        {"w@0": f"{total} 0,{size}:-", "w@1": f"{total} {size},3:0,1", "w@2": f"{total} {size},3:1,1"},
    )
    assert_reads(tmp_path / "m", {"w": whole})


def test_several_shards(tf: Any, tmp_path: Path) -> None:
    first = {"a": RANDOM.standard_normal(50), "z": RANDOM.standard_normal((2, 3))}
    second = {"b": np.arange(9), "m": np.array(True)}
    save(tf, tmp_path / "part0", first)
    save(tf, tmp_path / "part1", second)
    prefixes = [str(tmp_path / "part0"), str(tmp_path / "part1")]
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=prefixes, destination_prefix=str(tmp_path / "m"))
    assert (tmp_path / "m.data-00001-of-00002").is_file()
    assert_reads(tmp_path / "m", first | second)


class _Net:
    """Built inside the tests: tensorflow must not be imported with this module."""

    @staticmethod
    def build(tf: Any) -> Any:
        module = tf.Module()
        module.layer = tf.Module()
        module.layer.kernel = tf.Variable(
            RANDOM.standard_normal((4, 5)), name="dense/kernel", dtype="float32"
        )
        module.bias = [tf.Variable(np.zeros(5, "float32"), name="dense/bias"), tf.Variable(1, dtype="int64")]
        return module


def test_object_based_checkpoints(tf: Any, tmp_path: Path) -> None:
    module = _Net.build(tf)
    tf.train.Checkpoint(model=module).save(str(tmp_path / "ckpt"))
    expected = {
        "dense/kernel": module.layer.kernel.numpy(),
        "dense/bias": module.bias[0].numpy(),
        "Variable": np.asarray(module.bias[1].numpy()),
        "save_counter": np.array(1, "int64"),
    }
    reader = assert_reads(tmp_path, expected)
    assert reader.keys["dense/kernel"] == "model/layer/kernel/.ATTRIBUTES/VARIABLE_VALUE"


def test_a_sharded_variable_comes_as_one(tf: Any, tmp_path: Path) -> None:
    from tensorflow.python.distribute.sharded_variable import ShardedVariable

    whole = np.arange(20, dtype="float32").reshape(10, 2)
    module = tf.Module()
    module.table = ShardedVariable(
        [tf.Variable(whole[:5], name="table/part_0"), tf.Variable(whole[5:], name="table/part_1")]
    )
    tf.train.Checkpoint(m=module).save(str(tmp_path / "ckpt"))
    with TfBundleReader(tmp_path, verify=True) as reader:
        assert [reader.read(name).tolist() for name, one in reader.specs.items() if one.shape] == [
            whole.tolist()
        ]
        assert reader.left_out == {}


def test_variables_of_one_name_are_all_there(tf: Any, tmp_path: Path) -> None:
    """Also where their bytes are the same: nothing but what model.export copies is read once."""
    module = tf.Module()
    module.boxes = [tf.Module() for _ in range(3)]
    for box, value in zip(module.boxes, (1.0, 2.0, 1.0), strict=True):
        box.kernel = tf.Variable(value, name="kernel")
    tf.train.Checkpoint(m=module).save(str(tmp_path / "ckpt"))
    with TfBundleReader(tmp_path, verify=True) as reader:
        found = {name: float(reader.read(name)) for name in reader.specs if name != "save_counter"}
        assert found == {"kernel": 1.0, "m/boxes/1/kernel": 2.0, "m/boxes/2/kernel": 1.0}
        assert reader.namesakes == {"m/boxes/1/kernel": "kernel", "m/boxes/2/kernel": "kernel"}


def test_models_inside_models_keep_every_variable(tf: Any, tmp_path: Path) -> None:
    keras = tf.keras

    def inner(name: str) -> Any:
        inputs = keras.Input((4,))
        return keras.Model(inputs, keras.layers.Dense(4, name="dense")(inputs), name=name)

    inputs, outer = keras.Input((4,)), keras.Input((4,))
    middle = keras.Model(inputs, inner("second")(inner("first")(inputs)), name="middle")
    model = keras.Model(outer, keras.layers.Dense(4, name="dense")(middle(outer)))
    for number, variable in enumerate(model.weights):
        variable.assign(np.full(variable.shape, number, "float32"))
    tf.train.Checkpoint(model=model).save(str(tmp_path / "ckpt"))
    with TfBundleReader(tmp_path, verify=True) as reader:
        found = sorted(float(reader.read(n).flat[0]) for n in reader.specs if n != "save_counter")
    assert found == [*range(len(model.weights))]


def test_saved_models(tf: Any, tmp_path: Path) -> None:
    module = _Net.build(tf)
    tf.saved_model.save(module, str(tmp_path / "saved"))
    with TfBundleReader(tmp_path / "saved", verify=True) as reader:
        np.testing.assert_array_equal(reader.read("dense/kernel"), module.layer.kernel.numpy())
        assert {"dense/bias", "Variable"} <= set(reader.specs)


def test_slot_variables_of_an_optimizer(tf: Any, tmp_path: Path) -> None:
    kernel = tf.Variable(np.arange(3, dtype="float32"), name="dense/kernel")
    optimizer = tf.compat.v1.train.AdamOptimizer(0.5, beta1=0.75)
    optimizer.minimize(lambda: tf.reduce_sum(kernel * [1.0, 2.0, 3.0]))
    model = tf.train.Checkpoint(kernel=kernel)
    tf.train.Checkpoint(model=model, optimizer=optimizer).write(str(tmp_path / "m"))
    with TfBundleReader(tmp_path / "m", verify=True) as reader:
        assert {"dense/kernel", "dense/kernel/m", "dense/kernel/v"} <= set(reader.specs)
        assert (
            reader.keys["dense/kernel/m"]
            == "model/kernel/.OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE"
        )
        np.testing.assert_allclose(reader.read("dense/kernel/m"), [0.25, 0.5, 0.75])  # (1 - beta1) x gradient


def test_an_optimizer_slot_with_missing_parts_is_no_obstacle(tf: Any, tmp_path: Path) -> None:
    """TensorFlow reads what is whole of such a file, and so do we; a weight like this is refused by name."""
    from ckptkit.convert.loading import load_tensors
    from ckptkit.convert.pipeline import Options, plan

    w = np.arange(20, dtype="float32").reshape(10, 2)
    halves = {"w@1": w[:5], "w@2": w[5:], "w/part_0/Adagrad": w[:5], "b": w[0]}
    slices = {"w@1": "10 2 0,5:-", "w@2": "10 2 5,5:-", "w/part_0/Adagrad": "10 2 0,5:-"}
    save(tf, tmp_path / "m", halves, slices)
    assert tf.train.load_checkpoint(str(tmp_path / "m")).get_tensor("w").tobytes() == w.tobytes()
    reason = "parts are missing: 10 of 20 elements are there"
    with TfBundleReader(tmp_path / "m") as reader:
        assert reader.left_out == {"w/part_0/Adagrad": reason}
        loaded = load_tensors(reader, "as-is")
        assert loaded.keys() == {"w", "b"}
        assert loaded.left_out == {"w/part_0/Adagrad": "optimizer slots: per-variable state of the optimizer"}
        (one,) = plan(reader, Options("torch", layout="as-is")).ignored
        assert (one.name, one.rule) == ("w/part_0/Adagrad", "optimizer slots")
    save(tf, tmp_path / "m", {"w@1": w[:5], "b": w[0]}, slices)
    with TfBundleReader(tmp_path / "m") as reader:
        assert reader.left_out == {"w": reason}
        with pytest.raises(ConversionError, match=f"'w' .{reason}"):
            plan(reader, Options("torch", layout="as-is"))


@pytest.mark.parametrize(
    "given", ["v1/m.ckpt", "v1/checkpoint", "v1", "v1/m.ckpt.meta", "v2/m.ckpt.meta", "v2/checkpoint"]
)
def test_files_of_a_session(tf: Any, tmp_path: Path, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a Saver leaves, in its first format and in the one of today."""
    monkeypatch.chdir(tmp_path)
    held = {"a/v": np.arange(12, dtype="float32").reshape(3, 4), "step": np.int64(7)}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, value in held.items():
            tf.compat.v1.get_variable(name, initializer=value)
        session.run(tf.compat.v1.global_variables_initializer())
        for version, folder in ((tf.compat.v1.train.SaverDef.V1, "v1"), (None, "v2")):
            Path(folder).mkdir()
            saver = tf.compat.v1.train.Saver(**({"write_version": version} if version else {}))
            saver.save(session, f"{folder}/m.ckpt")
    if given == "v1/m.ckpt.meta":
        with pytest.raises(FormatError) as caught:
            open_reader(given)
        assert caught.value.hint == "give v1/m.ckpt"
        return
    with open_reader(given) as reader:
        assert reader.format == {"v1": "tf1", "v2": "tf"}[given[:2]]
        assert {name: reader.read(name).tolist() for name in reader.specs} == {
            name: value.tolist() for name, value in held.items()
        }


# -- V1 checkpoints ------------------------------------------------------------------------------------------

V1_TYPES = (
    *("float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "complex64"),
    *("complex128", "bool"),
)
"""What TensorFlow's writer of them takes: no bfloat16, uint32 and uint64."""


def save_slices(tf: Any, path: Path, tensors: dict[str, Any], slices: dict[str, str] | None = None) -> None:
    """TensorFlow's own writer of V1 checkpoints; ``w@1`` is a part of ``w``."""
    tf.raw_ops.SaveSlices(
        filename=str(path),
        tensor_names=[name.split("@")[0] for name in tensors],
        shapes_and_slices=[(slices or {}).get(name, "") for name in tensors],
        data=[tf.constant(tensor) for tensor in tensors.values()],
    )


def test_every_type_of_v1(tf: Any, tmp_path: Path) -> None:
    held = {name: RANDOM.integers(0, 2, (3, 4)).astype(name) for name in V1_TYPES}
    held |= {"net/kernel": SAMPLES["scope/kernel"], "scalar": np.array(3.5, "float32")}
    held |= {"empty": np.zeros((0, 3), "int64"), "negative": np.array([-1, 300, -(1 << 40)])}
    held |= {"quantized": np.arange(-4, 4, dtype="int16") * 1000}
    save_slices(tf, tmp_path / "m.ckpt", held)
    theirs = tf.train.load_checkpoint(str(tmp_path / "m.ckpt")).get_variable_to_shape_map()
    with open_reader(tmp_path / "m.ckpt") as reader:
        assert {*reader.specs} == {*held} == {*theirs}
        for name, array in held.items():
            assert reader.read(name).tobytes() == array.tobytes()
            assert reader.check(name) is True
        reader.check_rest()


def test_parts_of_v1_and_their_shards(tf: Any, tmp_path: Path) -> None:
    whole = np.arange(24, dtype="float32").reshape(6, 4)
    cuts = {"w@0": "6 4 0,2:-", "w@1": "6 4 2,4:0,1", "w@2": "6 4 2,4:1,3"}
    parts = {"w@0": whole[:2], "w@1": whole[2:, :1], "w@2": whole[2:, 1:]}
    save_slices(tf, tmp_path / "m.ckpt", parts, cuts)
    for number, names in enumerate((["w@0", "w@2"], ["w@1"])):
        path = tmp_path / f"s.ckpt-{number:05d}-of-00002"
        save_slices(tf, path, {name: parts[name] for name in names}, cuts)
    for given in ("m.ckpt", "s.ckpt"):
        with open_reader(tmp_path / given) as reader:
            assert reader.read("w").tolist() == whole.tolist()
    with open_reader(tmp_path / "s.ckpt") as reader, pytest.raises(FormatError, match="missing"):
        (tmp_path / "s.ckpt-00001-of-00002").unlink()
        open_reader(tmp_path / "s.ckpt")


# -- graphs --------------------------------------------------------------------------------------------------


LISTED = {**LISTS, **dict.fromkeys(("qint8", "quint8", "qint16", "quint16", "qint32", "int4", "uint4"), 7)}


@pytest.mark.parametrize("way", ["content", "list", "short list", "one", "nothing"])
def test_constants_as_tensorflow_reads_them(tf: Any, tmp_path: Path, way: str) -> None:
    """Every type, as bytes and in its list, which may be shorter than the tensor."""
    held, expected = {}, {}
    for name in sorted(DTYPES.keys() | LISTED.keys() if way == "content" else LISTED):
        dtype = tf.dtypes.as_dtype(name)
        keep = {"short list": 3, "one": 1, "nothing": 0}.get(way, 6)
        array = np.array([0, 1, 1, 0, 0, 1]).astype(getattr(dtype.as_numpy_dtype, name, dtype.as_numpy_dtype))
        whole_numbers = LISTED.get(name) == 7  # those of quantized types have no plain ones in numpy
        plain = array[:keep].view(f"i{array.dtype.itemsize}") if whole_numbers else array[:keep]
        fields = {4: plain.tobytes()} if way == "content" else {LISTED[name]: numbers(plain)}
        made = tensor(array, kind=dtype.as_datatype_enum, held=message(*fields.items()))
        held[name] = made
        expected[name] = tf.io.parse_tensor(made, dtype).numpy().tobytes()
    (tmp_path / "m.pb").write_bytes(graph(*(const(name, made) for name, made in held.items())))
    with open_reader(tmp_path / "m.pb") as reader:
        assert {*reader.specs} == {*held}
        for name, raw in expected.items():
            assert reader.read(name).tobytes() == raw, name


def test_a_frozen_graph_of_tensorflow(tf: Any, tmp_path: Path) -> None:
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    kernel, scale = RANDOM.standard_normal((2, 3)).astype("float32"), np.array([1, 2, 0.5], "float16")

    class Model(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel, self.scale = tf.Variable(kernel, name="kernel"), tf.Variable(scale, name="scale")

        @tf.function(input_signature=[tf.TensorSpec([None, 2], name="x")])
        def __call__(self, x: Any) -> Any:
            y = x @ self.kernel + tf.cast(self.scale, tf.float32)
            body = lambda y: y * tf.constant([[1.5, 2.5, 3.5]], name="factor")  # noqa: E731
            return tf.while_loop(lambda y: tf.reduce_sum(y) < 9, body, (y,))

    model = Model()
    frozen = convert_variables_to_constants_v2(
        model.__call__.get_concrete_function(), lower_control_flow=False
    )
    (tmp_path / "frozen.pb").write_bytes(frozen.graph.as_graph_def().SerializeToString())
    with open_reader(tmp_path / "frozen.pb") as reader:
        assert (reader.format, reader.metadata) == ("graphdef", {"inputs": "x"})
        held = {name: reader.read(name) for name in reader.specs}
        assert not reader.left_out
    assert [value.tobytes() for value in (kernel, scale)] == [
        value.tobytes() for value in held.values() if value.tobytes() in (kernel.tobytes(), scale.tobytes())
    ]
    factors = [name for name, value in held.items() if value.tolist() == [[1.5, 2.5, 3.5]]]
    assert len(factors) == 1
    assert factors[0].startswith("while_body")

    tf.saved_model.save(model, str(tmp_path / "saved"))
    with open_reader(tmp_path / "saved") as reader:
        assert (reader.format, {*reader.specs}) == ("tf", {"kernel", "scale"})
    graph = (tmp_path / "saved" / "saved_model.pb").rename(tmp_path / "saved_model.pb")
    with pytest.raises(FormatError, match="without its variables"):
        open_reader(graph)


def test_a_saved_model_of_constants(tf: Any, tmp_path: Path) -> None:
    """TensorFlow writes variables for it, and none of them is a tensor."""
    kernel = RANDOM.standard_normal((2, 3)).astype("float32")

    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 2])])
        def __call__(self, x: Any) -> Any:
            return x @ tf.constant(kernel, name="kernel")

    tf.saved_model.save(Model(), str(tmp_path))
    for given in (tmp_path, tmp_path / "saved_model.pb"):
        with open_reader(given) as reader:
            assert reader.format == "graphdef"
            assert kernel.tobytes() in [reader.read(name).tobytes() for name in reader.specs]
