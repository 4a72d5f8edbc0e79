"""What PyTorch is compared with, and what must be installed for it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ckptkit.base.errors import MissingDependencyError, UsageError
from ckptkit.parity.backends import chosen_backends, require_packages
from tests.support.commands import pip_install

EVERYTHING = ("torch", "tensorflow", "PIL")


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


class Pretend(MetaPathFinder):
    """Answers for the optional packages: some are there, the others are not."""

    def __init__(self, hidden: Sequence[str]) -> None:
        self.hidden = hidden

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in self.hidden:
            raise ModuleNotFoundError(name)
        return ModuleSpec(name, None) if name in EVERYTHING else None


@pytest.mark.parametrize(
    ("hidden", "image", "says"),
    [
        (["torch"], False, f"needs torch; {pip_install('torch')}"),
        (["tensorflow"], False, f"needs tensorflow; {pip_install('tensorflow')}"),
        (
            ["torch", "tensorflow"],
            False,
            f"needs torch and tensorflow; {pip_install('torch', 'tensorflow')}",
        ),
        (["PIL"], True, f"needs pillow; {pip_install('pillow')}"),
        (["tensorflow", "PIL"], True, f"needs tensorflow and pillow; {pip_install('tensorflow', 'pillow')}"),
        (["PIL"], False, None),
        ([], True, None),
    ],
)
def test_what_is_missing_is_named_with_one_install_line(
    hidden: list[str], image: bool, says: str | None, monkeypatch: pytest.MonkeyPatch
):
    for package in EVERYTHING:
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Pretend(hidden), *sys.meta_path])
    if says is None:
        require_packages(image=image)
        return
    with pytest.raises(MissingDependencyError) as caught:
        require_packages(image=image)
    assert str(caught.value).endswith(says)


def test_a_package_blocked_by_none_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match="torch"):
        require_packages()
