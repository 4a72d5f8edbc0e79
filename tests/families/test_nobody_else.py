"""No room but families/ knows a family by name, or a setting of one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from ckptkit.families.base import families, get_family

ROOT = Path(__file__).parent.parent.parent / "ckptkit"
BUILT_IN = [get_family(name) for name in families(plugins=False)]
WORDS = {
    word.lower()
    for family in BUILT_IN
    for word in (family.name, family.title, *family.settings, *family.layouts)
} - {"torch", "keras", "keras-h5"}
#: Where a word may still be; docstrings and help may name what exists.
EXCEPTIONS = {
    "demo.py": {"moat"},  # the entry that the demo shows unless told otherwise
    "cli/start_commands.py": {"moat"},
    "api/environment.py": {
        "birder",
        "deeplab2",
        "kecam",
        "openmixup",
        "wd-tagger",
    },  # a Literal; test_api.py holds it to the layouts
    "parity/causes_keras.py": {"pool_size"},  # an attribute of Keras' MaxPooling2D, not the setting
}


def words_of(path: Path) -> Iterator[str]:
    """Every name of a family or setting in names and texts of a module, but for docstrings and help."""
    tree = ast.parse(path.read_text())
    shown = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            shown.add(node.body[0].value)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            shown.add(node.value)
        if isinstance(node, ast.keyword) and node.arg in ("help", "hint", "short_help"):
            shown |= set(ast.walk(node.value))
    for node in ast.walk(tree):
        text = (
            node.id
            if isinstance(node, ast.Name)
            else node.attr
            if isinstance(node, ast.Attribute)
            else node.arg
            if isinstance(node, (ast.arg, ast.keyword)) and node.arg
            else node.module or ""
            if isinstance(node, ast.ImportFrom)
            else node.value
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in shown
            else ""
        )
        lower = text.lower()
        for word in WORDS:
            if word in lower and re.search(rf"(?<![a-z]){word}(?![a-z])", lower):
                yield word


def test_no_other_room_knows_a_family() -> None:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith("families/") and (words := set(words_of(path))):
            found[name] = words
    assert found == EXCEPTIONS
