"""No regular expression of the package takes a time that grows faster than the text it is run on.

The expressions and the ways they are used are taken from the source: what is new is tried, too.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ckptkit

WAYS = frozenset({"match", "fullmatch", "search", "sub", "subn", "findall", "finditer", "split"})
SIZE = 10_000
"""At so many signs, a time that grows with the square of the length is a tenth of a second and more."""
MOST_S = 0.03
PIECES = (
    *(" ", "\n", "\t", "0", "1", "a", "A", "_", ".", "-", ":", "/", "\\", '"', "'", "(", "[", "{", "<", "%"),
    *(",", ";", "=", "@", "#", "|", "*", "&", "?", "~", "$", "!", "\x00", "\u200d", "\U0001f600", "é"),
    *(
        "a.",
        "a/",
        "a_",
        "a1",
        "0.",
        "0:",
        "1e",
        "a=",
        "?a=",
        "://",
        "://a",
        "://a:",
        "a@",
        "<a",
        "\r\n",
        '\\"',
    ),
    *("-00001-of-", "{0..", "(a", "[a", "--a", "--set a=", "'ckptkit ", "model_checkpoint_path:", "<title>"),
)
ENDS = ("", "!", "\x00\n")


def modules() -> Iterator[Any]:
    for found in pkgutil.walk_packages(ckptkit.__path__, "ckptkit."):
        if found.name.endswith("__main__") or re.search(r"families\..*(torch|keras)", found.name):
            continue  # models, which read no text
        try:
            yield importlib.import_module(found.name)
        except ImportError:
            continue  # a framework that is not installed


def inside(value: Any, depth: int = 3) -> Iterator[re.Pattern[Any]]:
    """Expressions in a table."""
    if isinstance(value, re.Pattern):
        yield value
    elif depth and isinstance(value, dict):
        for one in value.values():
            yield from inside(one, depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for one in value:
            yield from inside(one, depth - 1)


def written(call: ast.Call, module: Any) -> re.Pattern[Any] | None:
    """The expression of ``re.match("…", …)``; None where it is put together."""
    try:
        expression = ast.literal_eval(call.args[0])
    except ValueError:
        return None
    way = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    flags = [word.value for word in call.keywords if word.arg == "flags"] or call.args[
        {"sub": 4, "split": 3}.get(way, 2) :
    ][:1]
    return re.compile(expression, eval(ast.unparse(flags[0]), {"re": re}) if flags else 0)


def uses() -> dict[tuple[re.Pattern[Any], str], str]:
    """Every expression with a way it is used, and where."""
    found: dict[tuple[re.Pattern[Any], str], str] = {}
    for module in modules():
        if not module.__file__ or not module.__file__.endswith(".py"):
            continue
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        for name, value in vars(module).items():
            if not isinstance(value, re.Pattern):
                for pattern in inside(value):
                    for way in ("match", "fullmatch"):
                        found.setdefault((pattern, way), f"{module.__name__}.{name}")
        for call in ast.walk(tree):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            way, owner = call.func.attr, call.func.value
            if way not in WAYS or not isinstance(owner, ast.Name):
                continue
            value = vars(module).get(owner.id)
            pattern = written(call, module) if value is re else value
            if isinstance(pattern, re.Pattern):
                found.setdefault((pattern, way), f"{module.__name__}:{call.lineno}")
    return found


def run(pattern: re.Pattern[Any], way: str, text: str) -> float:
    given: Any = text.encode() if isinstance(pattern.pattern, bytes) else text
    started = time.process_time()
    if way in {"sub", "subn"}:
        getattr(pattern, way)(given[:0], given)
    elif way == "finditer":
        for _ in pattern.finditer(given):
            pass
    else:
        getattr(pattern, way)(given)
    return time.process_time() - started


def slow(pattern: re.Pattern[Any], way: str) -> str | None:
    """A text that the expression is slow on; None where there is none of these."""
    for piece in PIECES:
        for end in ENDS:
            text = piece * (SIZE // len(piece)) + end
            if run(pattern, way, text) > MOST_S and min(run(pattern, way, text) for _ in range(4)) > MOST_S:
                return f"{piece!r} × {SIZE // len(piece)} + {end!r}"
    return None


def test_no_expression_is_slow() -> None:
    tried = uses()
    assert len(tried) > 80  # the search finds them
    found = {
        f"{where}: {pattern.pattern!r}.{way}": slow(pattern, way) for (pattern, way), where in tried.items()
    }
    assert {name: text for name, text in found.items() if text} == {}


@pytest.mark.parametrize(
    ("expression", "way"),
    [
        (r"^\s*a", "search"),
        (r"\S*@", "sub"),
        (r".*a.*b", "search"),
    ],
)
def test_a_slow_one_is_found(expression: str, way: str) -> None:
    assert slow(re.compile(expression, re.MULTILINE), way)
