"""The Python face has exactly the designed names and parameters, and does what it says."""

from __future__ import annotations

import importlib
import inspect
import types

import numpy as np
import pytest

import ckptkit
from ckptkit.errors import NotFoundError
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


def test_an_unknown_id_is_said_so():
    with pytest.raises(NotFoundError, match="moat2-384"):
        ckptkit.fetch("moat2-383")


def test_parity_of_a_synthetic_variant():
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    report = ckptkit.parity("tiny-moat0", synthetic=True, resolution=64)
    assert report.ok and report.synthetic
    assert [stage.name for stage in report.stages] == [*(f"stage{n}" for n in range(1, 6)), "logits"]
