"""What PyTorch is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ckptkit.base.errors import UsageError
from ckptkit.parity import backends
from ckptkit.parity.backends import chosen_backends, run_with


@pytest.mark.parametrize(
    ("asked", "given", "chosen"),
    [
        ([], {}, ("keras",)),
        (["onnxruntime"], {}, ("onnxruntime",)),
        (["onnxruntime", "keras", "onnxruntime"], {}, ("onnxruntime", "keras")),
        ([], {"converted": Path("m.ONNX")}, ("onnxruntime",)),
        ([], {"converted": Path("m.safetensors"), "dtype": None}, ("keras",)),
        (["keras"], {"dtype": "float16"}, ("keras",)),
    ],
)
def test_what_is_meant(asked: list[Any], given: dict[str, Any], chosen: tuple[str, ...]):
    assert chosen_backends(asked, **given) == chosen


@pytest.mark.parametrize(
    ("asked", "given", "says"),
    [
        (["onnxruntime"], {"dtype": "float16"}, "leave --dtype out"),
        (["keras", "onnxruntime"], {"dtype": "float16"}, "leave --dtype out"),
        (
            ["keras"],
            {"converted": Path("m.onnx")},
            "for --with onnxruntime, which takes files ending in .onnx",
        ),
        (["onnxruntime"], {"converted": Path("m.pth")}, "for --with keras, which takes checkpoints"),
    ],
)
def test_what_contradicts_itself(asked: list[Any], given: dict[str, Any], says: str):
    with pytest.raises(UsageError, match=says):
        chosen_backends(asked, **given)


def test_each_gets_its_own_words_for_a_conversion(monkeypatch: pytest.MonkeyPatch):
    called: dict[str, Any] = {}
    monkeypatch.setattr(backends, "run_parity", lambda located, **given: called.update(keras=given))
    monkeypatch.setattr(backends, "run_onnx_parity", lambda located, **given: called.update(onnx=given))
    located: Any = object()
    run_with("keras", located, converted=Path("m.pth"), dtype=None, batch=3)
    run_with("onnxruntime", located, converted=Path("m.onnx"), batch=4)
    assert called == {
        "keras": {"converted": Path("m.pth"), "dtype": None, "batch": 3},
        "onnx": {"graph": Path("m.onnx"), "batch": 4},
    }
