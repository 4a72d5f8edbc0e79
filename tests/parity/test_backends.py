"""What PyTorch is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ckptkit.base.errors import UsageError
from ckptkit.parity.backends import chosen_backends


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
