"""Definitions taken out of their package."""

from __future__ import annotations

import textwrap

import pytest

from ckptkit.export.source_code import NotSelfContainedError, SelfContained

PACKAGE = {
    "__init__": "from quarry.sizes import WIDE",
    "sizes": '''
        from __future__ import annotations
        from typing import TYPE_CHECKING, TypeAlias
        if TYPE_CHECKING:
            from collections.abc import Sequence
            Shape = Sequence[int]
        Pair: TypeAlias = "tuple[Side, Side]"
        Side: TypeAlias = int
        WIDE = 7
        """How wide."""
        UNUSED = 8
    ''',
    "model": '''
        from __future__ import annotations
        import math as m
        from dataclasses import dataclass
        from ckptkit.base.errors import UsageError
        from quarry import WIDE
        from .sizes import Pair, Shape
        FAMILY = object()
        UNUSED = FAMILY

        @dataclass(frozen=True)
        class Stone:
            """A stone."""
            weight: float = 2.0  # tonnes

        def build(count: int, *, shape: Shape = (), pair: Pair | None = None) -> float:
            FAMILY.check_setting(
                "count", count
            )
            if count < 0:
                raise UsageError(f"count is {count}", hint="give more")
            return later(count) + WIDE

        def later(count: int) -> float:
            return m.floor(count * Stone().weight)
    ''',
    "whole": "from quarry import sizes\ndef build():\n    return sizes.WIDE\n",
    "renamed": "from quarry.sizes import WIDE as width\ndef build():\n    return width\n",
    "inside": "def build():\n    from quarry.sizes import WIDE\n    return WIDE\n",
    "clash": """
        from quarry.sizes import WIDE
        from quarry.other import use
        def build():
            return use() + WIDE
    """,
    "other": "WIDE = 1\ndef use():\n    return WIDE\n",
}


@pytest.fixture
def quarry(tmp_path, monkeypatch):
    folder = tmp_path / "quarry"
    folder.mkdir()
    for name, text in PACKAGE.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "quarry"]:
        del sys.modules[name]


def gathered(module: str) -> SelfContained:
    code = SelfContained(("ckptkit", "quarry"))
    code.add(module, "build")
    return code


def run(code: SelfContained) -> dict:
    names = {"__name__": "typing"}  # dataclasses looks its module up
    exec(f"from __future__ import annotations\n{code.imports()}\n{code.text()}", names)
    return names


def test_it_computes_the_same_without_the_package(quarry):
    names = run(gathered("quarry.model"))
    assert names["build"](3) == 13
    with pytest.raises(ValueError, match=r"^count is -1 \(give more\)$"):
        names["build"](-1)


def test_only_what_is_needed_is_taken(quarry):
    code = gathered("quarry.model")
    assert "quarry" not in code.imports() + code.text()
    assert "ckptkit" not in code.imports()
    assert {"FAMILY", "UNUSED"}.isdisjoint(code.names)
    assert "check_setting" not in code.text()
    assert {"Shape", "Pair", "Side", "Sequence", "WIDE"} <= code.names


def test_the_text_is_the_sources(quarry):
    text = gathered("quarry.model").text()
    assert 'WIDE = 7\n"""How wide."""' in text
    assert "weight: float = 2.0  # tonnes" in text
    changed = PACKAGE["sizes"].replace("WIDE = 7", "WIDE = 9")
    (quarry / "sizes.py").write_text(textwrap.dedent(changed))
    assert run(gathered("quarry.model"))["build"](3) == 15


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("quarry.whole", "quarry.whole imports the module quarry.sizes; import the names it needs"),
        ("quarry.renamed", "imports quarry.sizes.WIDE under another name"),
        ("quarry.inside", "quarry.inside imports the module quarry.sizes"),
        ("quarry.clash", "both have a name WIDE"),
        ("quarry.sizes", "quarry.sizes has no build"),
        ("quarry.nowhere", "the source of quarry.nowhere is not there"),
    ],
)
def test_what_cannot_be_taken_out_is_named(quarry, module, says):
    with pytest.raises(NotSelfContainedError, match=says):
        gathered(module)
