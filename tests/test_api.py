"""The Python face has exactly the designed names and parameters, and does what it says."""

from __future__ import annotations

import importlib
import inspect
import types
from pathlib import Path

import numpy as np
import pytest

import ckptkit
from ckptkit.errors import NotFoundError, UsageError
from ckptkit.formats.detect import open_reader
from ckptkit.formats.names import EXTENSIONS
from ckptkit.synth import Synthetic, synthetic_tensor, write_archive

NAMES = ("registry", "fetch", "verify", "convert", "load", "create_model", "parity")


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_a_documented_function_even_after_its_module_was_imported(name):
    for module in ("ckptkit.registry", "ckptkit.verify", "ckptkit.convert", "ckptkit.parity"):
        importlib.import_module(module)
    function = getattr(ckptkit, name)
    assert isinstance(function, types.FunctionType)
    assert inspect.getdoc(function)
    assert name in dir(ckptkit)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("verify", {"deep"}),
        ("convert", {"to", "output", "force"}),
        ("load", {"layout"}),
        (
            "create_model",
            {
                "framework",
                "checkpoint",
                "resolution",
                "num_classes",
                "features_only",
                "pos_emb",
                "pool_size",
                "window_size",
                "attn_force_fp32",
            },
        ),
    ],
)
def test_the_designed_parameters_are_there(name, parameters):
    assert parameters <= inspect.signature(getattr(ckptkit, name)).parameters.keys()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'download'"):
        ckptkit.download  # noqa: B018


@pytest.fixture
def archive(tmp_path):
    return write_archive(Synthetic("tiny-moat0"), tmp_path / "tiny.tar.gz")


def test_verify_convert_and_load_a_file(archive, tmp_path):
    assert ckptkit.verify(archive, deep=True).ok
    target = ckptkit.convert(archive, to="safetensors", output=str(tmp_path / "t.safetensors"))
    assert target == tmp_path / "t.safetensors"
    state = ckptkit.load(target)
    kernel = synthetic_tensor("moat/stem/conv_0/kernel", (3, 3, 3, 32))
    np.testing.assert_array_equal(state["stem.conv_0.weight"], kernel.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(ckptkit.load(target, layout="deeplab2")["moat/stem/conv_0/kernel"], kernel)


@pytest.fixture
def arrays(tmp_path):
    np.savez(tmp_path / "net.npz", w=np.arange(4, dtype=np.float32))
    return tmp_path / "net.npz"


@pytest.mark.parametrize(
    ("output", "options", "name"),
    [
        ("a.pth", {}, "a.pth"),
        ("new/", {}, "new/net.safetensors"),
        ("new/", {"to": "tensorflow"}, "new/net.ckpt"),
        (".", {"to": "st"}, "net.safetensors"),
        (None, {}, "net.safetensors"),
        (Path("x.npz"), {"dtype": "half"}, "x.npz"),
        ("~/a.npz", {}, "a.npz"),
    ],
    ids=str,
)
def test_convert_takes_the_format_from_the_name(arrays, monkeypatch, output, options, name):
    monkeypatch.chdir(arrays.parent)
    monkeypatch.setenv("HOME", str(arrays.parent))
    path = ckptkit.convert(arrays, output=output, layout="as-is", **options)
    assert path.resolve() == arrays.parent / name
    with open_reader(path) as reader:
        assert name.endswith(EXTENSIONS[reader.format])
        assert reader.specs["w"].dtype.name == ("float16" if "dtype" in options else "float32")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"output": "a.pth", "to": "npz"}, "a.pth is the name of a torch file, not of npz"),
        ({"output": "a.keras"}, "a.keras is the name of a whole Keras model"),
        ({"output": "a.foo"}, "cannot tell the format"),
        ({"to": "torhc"}, "no format 'torhc'; did you mean torch"),
        ({"dtype": "double"}, "no dtype 'double'; one of float32, float16, bfloat16"),
        ({"output": "net.npz", "force": True}, "net.npz is the source itself"),
        ({"output": "net.npz/"}, "net.npz is a file"),
    ],
    ids=str,
)
def test_convert_refuses_what_a_name_contradicts(arrays, tmp_path, monkeypatch, call, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=says):
        ckptkit.convert(arrays, layout="as-is", **call)
    assert [path.name for path in tmp_path.iterdir()] == ["net.npz"]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: ckptkit.create_model("tiny-moat0", framework="jax"),
            "no framework 'jax'; one of torch, keras",
        ),
        (lambda: ckptkit.export("tiny-moat0", "hf", "x.onnx", synthetic=True), "--to onnx"),
        (lambda: ckptkit.export("tiny-moat0", output="x", synthetic=True), "nothing says what to export to"),
        (lambda: ckptkit.export("tiny-moat0", "onxn", synthetic=True), "did you mean onnx"),
        (lambda: ckptkit.parity("tiny-moat0", synthetic=True, backend="jax"), "no backend 'jax'"),
        (lambda: ckptkit.parity("tiny-moat0", synthetic=True, dtype="int8"), "no dtype 'int8'"),
    ],
    ids=str,
)
def test_words_that_nothing_is_called(call, says):
    with pytest.raises(UsageError, match=says):
        call()


def test_an_unknown_id_is_said_so():
    with pytest.raises(NotFoundError, match="moat2-384"):
        ckptkit.fetch("moat2-383")


def test_parity_of_a_synthetic_variant():
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    report = ckptkit.parity("tiny-moat0", synthetic=True, resolution=64)
    assert report.ok and report.synthetic
    assert [stage.name for stage in report.stages] == [*(f"stage{n}" for n in range(1, 6)), "logits"]
