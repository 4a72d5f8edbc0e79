from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from ckptkit.base.errors import MissingDependencyError
from ckptkit.parity.backends import require_packages
from tests.support.commands import pip_install

EVERYTHING = ("torch", "tensorflow", "PIL")


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
