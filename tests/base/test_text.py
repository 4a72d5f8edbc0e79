"""The one sink for text: what each target must not get, and what everyone may keep."""

from __future__ import annotations

import ast
import csv
import io
import itertools
import json
import re
import shutil
import subprocess
import time

import pytest
import yaml

from ckptkit.base.text import (
    CONTROLS,
    counted,
    csv_text,
    escaped,
    json_text,
    library_logger,
    printed,
    web_address,
)
from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "ckptkit"

HIDDEN = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x61C, *range(0x200B, 0x2010))]
HIDDEN += [chr(code) for code in (0xAD, *range(0x2028, 0x202F), *range(0x2060, 0x206A), 0xFEFF, 0xE0001)]
HIDDEN += ["\ud800", "\udc80", "\udfff"]
"""Listed, not asked of Python: C0, DEL, C1, bidi, separators, zero-width, tags, half surrogates."""

KEPT = ["tiny-moat0", "Größe", "模型", "модель", "مدل\u200cها", "क्\u200dष", "×±→…", "\N{GRINNING FACE}"]
KEPT += ["\N{MAN}\u200d\N{WOMAN}\u200d\N{GIRL}", "\N{HEAVY BLACK HEART}\ufe0f"]


@pytest.mark.parametrize("target", ["line", "paragraph", "figure", "html", "xml", "markdown", "code", "csv"])
def test_what_is_hidden_is_written_as_a_code(target: str) -> None:
    """In every target; and what people write stays."""
    for sign in HIDDEN:
        for text in (f"a{sign}b", sign, f"{sign}a", f"a{sign}"):
            assert sign not in escaped(text, target)  # type: ignore[arg-type]
    for text in KEPT:
        assert text in escaped(text, target)  # type: ignore[arg-type]


def test_a_line_is_escaped_once() -> None:
    """Again changes nothing, so nobody needs to know whether it was done."""
    for text in [*HIDDEN, "a\x1b[2Jb\\x1b", *KEPT]:
        assert escaped(escaped(text)) == escaped(text)


def test_json_gives_back_what_it_was() -> None:
    """With codes for what is hidden; whether ASCII alone can be written or not."""
    value = {sign: [sign * 2, f"a{sign}"] for sign in [*HIDDEN, *KEPT]}
    for ascii_only in (False, True):
        text = json_text(value, indent=2, ascii_only=ascii_only)
        assert json.loads(text) == value
        assert not [sign for sign in HIDDEN if sign in text.replace("\n", "")]
    assert "模型" in json_text(value)


def test_yaml_gives_back_what_it_was() -> None:
    """On one line."""
    for sign in [*HIDDEN, *KEPT, "---", "a: b", "# c", "*x", "&x", "!!x", "%x", "{", "null", "1e3", "  ", ""]:
        for text in (sign, f"a{sign}", f"{sign}b", f" {sign} "):
            said = escaped(text, "yaml")
            assert yaml.safe_load(said) == text
            assert sign in KEPT or not [one for one in HIDDEN if one in said]


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1+cmd|x!A0",
        "-1+1",
        "@SUM(1)",
        "\t=1",
        "\r=1",
        "\n=1",
        ' "=1',
        "'=1",
        "  @x",
        "＝1",
        "-x",
        "=",
        "\tx",
    ],
)
def test_no_cell_is_a_formula(text: str) -> None:
    """A spreadsheet sees an apostrophe first, whichever separator it takes."""
    [[cell, after]] = csv.reader(io.StringIO(csv_text([[text, "x"]])))
    assert (cell, after) == ("'" + escaped(text), "x")
    for separator in ",;\t|":
        [row] = csv.reader(io.StringIO(csv_text([["x", f"a{separator}{text}"]])), delimiter=separator)
        assert not [cell for cell in row if re.match(r"""[\s"]*[=+\-@]""", cell)]


@pytest.mark.parametrize("text", ["-1", "+2.5", "-1e-05", "-inf", "nan", "1,000", "a=b", "moat0-224", ""])
def test_numbers_and_other_cells_are_left_alone(text: str) -> None:
    """Our own negative numbers are numbers."""
    assert next(csv.reader(io.StringIO(csv_text([[text, "x"]])))) == [text, "x"]


def test_a_row_of_one_empty_cell_is_a_row() -> None:
    """Readers drop blank lines."""
    assert list(csv.reader(io.StringIO(csv_text([["a"], [""], ["b"]])))) == [["a"], [""], ["b"]]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_word_for_a_shell_is_that_word(shell: str) -> None:
    """Also one with controls, and with bytes that are no UTF-8."""
    if not shutil.which(shell):
        pytest.skip(f"no {shell}")
    words = [
        "a b",
        "a'b",
        "$(id)",
        "`id`",
        "a\x1b[2Jb",
        "a\x9bb",
        "\u202ea'\\",
        "a\nb\\n",
        "x\udcff1",
        "\U000e0041",
    ]
    line = "printf '%s\\0' " + " ".join(escaped(word, "shell") for word in words)
    assert line.replace("\\\\", "").isprintable()
    told = subprocess.run(
        [shell, "-c", line], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}, timeout=20
    )
    assert told.stdout == b"".join(word.encode(errors="surrogateescape") + b"\0" for word in words)


def test_links_lead_to_the_web_alone() -> None:
    """In ASCII, without what would end a link in Markdown or HTML."""
    for url in (
        "javascript:alert(1)",
        "data:text/html,x",
        " https://e.org",
        "ftp://e.org",
        "//e.org",
        "file:///x",
    ):
        assert web_address(url) is None
    assert web_address("https://e.org/a?b=c&d=%20#e") == "https://e.org/a?b=c&d=%20#e"
    found = web_address("https://e.org/\x1b\u202e\udcff)(][<>\"'|`\\ \n")
    assert found is not None
    assert found.isascii()
    assert not set(found) & set("()[]<>\"'|`\\ \n\x1b")


def test_a_stream_lets_lines_through_and_colours_on_a_terminal_alone() -> None:
    """Whoever writes: a library's logger, a traceback, a plug-in."""
    text = "\x1b[1mbold\x1b[0m C:\\temp\ta\x1b[2Jb\x9b31m\u202e\x1b]0;x\x07\n"
    plain = "C:\\temp\ta\\x1b[2Jb\\x9b31m\\u202e\\x1b]0;x\\x07\n"
    assert printed(text, "terminal") == "\x1b[1mbold\x1b[0m " + plain
    assert printed(text, "file") == "\\x1b[1mbold\\x1b[0m " + plain
    assert printed("a\r\x1b[Ab\n", "terminal") == "a\\r\\x1b[Ab\n"
    assert printed("\r 50%", "terminal") == "\r 50%"
    assert printed("\n\x1b[A", "terminal") == "\n\x1b[A"


def test_names_hold_no_controls() -> None:
    """What is refused in a name is hidden, too; other invisible signs are shown as codes alone."""
    assert all(
        CONTROLS.search(sign) for sign in "\0\x1f\x7f\x80\x9f\u061c\u200e\u202a\u202e\u2066\u2069\u2028\ud800"
    )
    assert not any(CONTROLS.search(text) for text in KEPT)


def test_a_long_text_of_anything_is_quick() -> None:
    """Each target spends a time in proportion to the text; PyYAML is slower by itself."""
    length = 1 << 15
    texts = [
        "\x1b",
        "\u202e",
        "e\u0301\u0301",
        "a",
        ";",
        ';"',
        "; ",
        "www.",
        "a@",
        "a@b.c",
        "`",
        "\N{GRINNING FACE}\u200d",
    ]
    for text in [*texts, "1", "\n", "\t", "a:", "\x1b[0;", "|= ", '"', "-", "](", "\udc80", "\u200c"]:
        long = text * (length // len(text))
        for target in ("line", "paragraph", "figure", "html", "markdown", "code", "csv", "shell"):
            begun = time.process_time()
            escaped(long, target)  # type: ignore[arg-type]
            assert time.process_time() - begun < 1, (text, target)


def test_what_the_python_face_logs_is_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """As a command would print it."""
    with caplog.at_level("INFO", logger="ckptkit"):
        library_logger().warning("%s: %s", "a\x1b[2J", "b\nc")
    assert caplog.messages == ["a\\x1b[2J: b\\nc"]


def test_one_function_says_how_many() -> None:
    """No message puts a number before a noun of several by itself: it would say "1 tensors"."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
    nouns = {
        node.args[1].value
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "counted"
        if isinstance(node.args[1], ast.Constant)
    }
    several = {counted(2, noun.split()[-1]).removeprefix("2 ") for noun in nouns}
    assert {"tensors", "entries", "images", "classes"} < several
    found = re.compile(rf" (?:[\w-]+ )?(?:{'|'.join(several)})\b")

    def is_number(value: ast.FormattedValue) -> bool:
        text = ast.unparse(value.value)
        return (
            isinstance(value.value, ast.BinOp)
            or (value.format_spec is not None and "','" in ast.dump(value.format_spec))
            or re.match(r"(?:len|sum|max|min)\(", text) is not None
            or text.rpartition(".")[2] in {"count", "total", "number", *several}
        ) and not re.fullmatch(r"[A-Z_]+", text)

    by_hand = [
        f"{path.relative_to(PACKAGE)}:{text.lineno}: {ast.unparse(number)}{words.value}"
        for path, tree in trees.items()
        for text in ast.walk(tree)
        if isinstance(text, ast.JoinedStr)
        for number, words in itertools.pairwise(text.values)
        if isinstance(number, ast.FormattedValue) and isinstance(words, ast.Constant)
        if is_number(number) and found.match(words.value)
    ]
    assert not by_hand, "\n".join(by_hand)
