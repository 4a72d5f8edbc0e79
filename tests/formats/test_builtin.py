"""What a format is called is said in one place: `ckptkit.formats`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.formats.builtin import BUILT_IN, WORDS, format_of, may_begin
from ckptkit.formats.foreign import LIKELY
from ckptkit.formats.names import EXTENSIONS, OUTPUT_HELP
from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "ckptkit"
COMPARED = re.compile(rf"\.(?:format|to|source_format) (?:==|!=) \"(?:{'|'.join(BUILT_IN)})\"")

MAY_NAME_ONE = {
    "api/environment.py": "a Literal for editors; tests/test_api.py compares it with the formats",
    "registry/schema.py": "it is below the formats; a test holds its names to theirs",
    "families/moat/__init__.py": "in which container the family is published",
    "families/moganet/__init__.py": "in which container the family is published",
    "families/moat/published.py": "in which container the code that takes backbones wants them",
    "families/keras_backend.py": "TensorFlow as a device string and a backend, not the container",
    "models/synth.py": "it makes files as families publish them: TensorFlow archives, PyTorch state dicts",
    "models/loading.py": "another word for a framework",
    "parity/backends.py": "another word for a framework",
    "parity/case_file.py": "names of frameworks that run a side, and its recording",
    "parity/child.py": "which files the loaders of Keras and safetensors themselves take",
    "parity/sides.py": "names of frameworks; a recording is of numpy's format",
    "export/hub.py": "the hub takes nothing else",
    "export/targets.py": "the ending of a graph, which is exported",
    "doctor.py": "the name of an extra",
    "compare/scan.py": "graphs, in which it looks for what they would run",
    # to go, each with its room:
    "cli/start_commands.py": "the demo's steps",
    "parity/run.py": "what a conversion for a comparison writes",
    "store/unpack.py": "names of PyTorch files that look like archives",
    "store/sources.py": "what a file without a name is called in the cache",
}
"""Files outside of the room that say the name or the ending of a format, and why; none may be added."""


def _plain_texts(tree: ast.Module) -> Iterator[str]:
    """Texts of a module that are not documentation."""
    documentation = {
        id(statement.value)
        for node in ast.walk(tree)
        for statement in ast.iter_child_nodes(node)
        if isinstance(statement, ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


def _names_a_format(path: Path) -> bool:
    """Whether a module has a text that is a format's name or ending, or compares with one.

    ``torch`` and ``keras`` are frameworks and layouts, and ``onnx`` a package and what is exported: these
    count in comparisons alone.
    """
    text = path.read_text(encoding="utf-8")
    words = {
        *(BUILT_IN.keys() - {"torch", "keras", "onnx"}),
        *(ending for format in BUILT_IN.values() for ending in format.endings),
    }
    return bool(COMPARED.search(text)) or not words.isdisjoint(_plain_texts(ast.parse(text)))


def test_no_other_room_names_a_format() -> None:
    naming = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.parent != PACKAGE / "formats" and _names_a_format(path)
    }
    assert naming <= MAY_NAME_ONE.keys(), "ask the format instead: ckptkit.formats.builtin.format_of"


def test_no_reader_is_asked_what_it_may_not_have() -> None:
    asked = re.compile(r"(?:get|has)attr\(\s*(?:\w+\.)*_?reader\b")
    assert not [path for path in PACKAGE.rglob("*.py") if asked.search(path.read_text(encoding="utf-8"))]


def test_names_words_and_endings_are_each_of_one_format() -> None:
    words = [word for format in BUILT_IN.values() for word in (format.name, *format.aliases)]
    endings = [ending for format in BUILT_IN.values() for ending in format.endings]
    assert len(set(words)) == len(words) == len(BUILT_IN) + len(WORDS)
    assert len(set(endings)) == len(endings)
    assert all(ending.startswith(".") and ending == ending.lower() for ending in endings)
    assert all(format_of(name) is format for name, format in BUILT_IN.items())
    assert {name for name, format in BUILT_IN.items() if format.read_only} == {
        "deepspeed",
        "tf1",
        "orbax",
        "paddle",
        "flax",
        "onnx",
        "graphdef",
        "gguf",
    }


def test_members_of_archives_are_called_by_every_ending() -> None:
    assert {ending for format in BUILT_IN.values() for ending in format.endings} <= set(LIKELY)


def test_help_lists_what_can_be_written() -> None:
    assert OUTPUT_HELP == (
        "File (.safetensors, .pth, .weights.h5, .h5, .npz), prefix for tf (.ckpt), folder for dcp (.dcp)"
    )
    assert EXTENSIONS["keras"] == ".weights.h5"


@pytest.mark.parametrize(
    ("dtype", "able"),
    [
        ("float32", ["safetensors", "torch", "tf", "keras", "keras2", "npz", "dcp"]),
        ("bfloat16", ["safetensors", "torch", "tf", "keras", "dcp"]),
        ("complex128", ["torch", "tf", "keras", "keras2", "npz", "dcp"]),
    ],
)
def test_element_types(dtype: str, able: list[str]) -> None:
    spec = TensorSpec("w", DTYPES[dtype], (2,))
    assert [name for name in EXTENSIONS if format_of(name).holds(spec)] == able


def test_how_a_download_may_begin() -> None:
    assert may_begin("tf", b"\x1f\x8b".ljust(512, b"\0"))
    assert may_begin("npz", b"PK\x03\x04".ljust(512, b"\0"))
    assert may_begin("safetensors", (100).to_bytes(8, "little") + b'{"'.ljust(512))
    assert not may_begin("torch", b"GGUF".ljust(512, b"\0"))
    assert may_begin("of another package", b"GGUF".ljust(512, b"\0"))
