"""Keras comes on TensorFlow or not at all, and quietly."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from ckptkit.base.errors import MissingDependencyError, UsageError
from ckptkit.families import keras_backend
from ckptkit.families.base import get_family
from ckptkit.families.keras_backend import build_chain, require_images
from tests.support.commands import pip_install


def test_keras_runs_on_tensorflow():
    assert keras_backend.keras.backend.backend() == "tensorflow"
    keras_backend.require_backend()


def test_another_loaded_backend_is_named(monkeypatch):
    loaded = SimpleNamespace(backend=SimpleNamespace(backend=lambda: "jax"))
    monkeypatch.setitem(sys.modules, "keras", loaded)
    with pytest.raises(UsageError, match=r"backend here is jax; set KERAS_BACKEND=tensorflow"):
        keras_backend.require_backend()


def test_another_backend_asked_for_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    with pytest.raises(UsageError, match="backend here is torch"):
        keras_backend.require_backend()


def test_no_choice_becomes_tensorflow(monkeypatch):
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    keras_backend.require_backend()
    assert os.environ["KERAS_BACKEND"] == "tensorflow"


def test_a_missing_tensorflow_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MissingDependencyError, match=f"needs tensorflow; {pip_install('tensorflow')}"):
        get_family("moat").keras_module()


def test_native_chatter_is_kept_aside(capfd):
    with keras_backend.stderr_aside():
        os.write(2, b"chatter\n")
    os.write(2, b"heard\n")
    assert capfd.readouterr().err == "heard\n"


def test_native_chatter_is_shown_when_the_block_fails(capfd):
    with pytest.raises(ImportError), keras_backend.stderr_aside():
        os.write(2, b"the reason\n")
        raise ImportError
    assert capfd.readouterr().err == "the reason\n"


def test_a_fresh_process_loads_triton_before_tensorflow_and_building_a_model_says_nothing(tmp_path):
    noted = tmp_path / "noted"
    (tmp_path / "triton.py").write_text(
        f"import sys\nwith open({str(noted)!r}, 'w') as file: print('tensorflow' in sys.modules, file=file)\n"
    )
    code = (
        "from ckptkit.families.base import get_family; get_family('moat').keras_module().build('tiny-moat0')"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "KERAS_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert noted.read_text().split() == ["False"]


def test_a_chain_hands_on_the_channels():
    shapes = []
    conv = SimpleNamespace(build=shapes.append, filters=8)
    norm = SimpleNamespace(build=shapes.append)
    build_chain((norm, conv, norm, norm), 3)
    assert [shape[-1] for shape in shapes] == [3, 3, 8, 8]
    assert {shape[:-1] for shape in shapes} == {(None, None, None)}


@pytest.mark.parametrize("shape", [(1, 64, 48, 3), (None, None, None, 3), (0, 1, 1, 3)])
def test_images(shape):
    require_images(SimpleNamespace(shape=shape))


@pytest.mark.parametrize(
    "shape", [(1, 3, 64, 64), (64, 64, 3), (1, 64, 64, 4), (1, 0, 64, 3), (1, 64, 0, 3), (2, 1, 8, 8, 3), ()]
)
def test_what_is_no_batch_of_images_is_refused_in_one_line(shape):
    with pytest.raises(UsageError, match="channels last") as caught:
        require_images(np.zeros(shape))
    assert f"input of shape {list(shape)}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_has_no_shape_is_refused():
    with pytest.raises(UsageError, match="channels last"):
        require_images("cat.png")
