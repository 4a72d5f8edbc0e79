"""The same evil strings through every field of every command, and every form in which it says them.

Each command has rows here: what it is given, and what it prints or writes. A document is parsed by somebody
else's parser and compared with the one of harmless strings: the same elements, links and cells.
"""

from __future__ import annotations

import contextlib
import csv
import enum
import functools
import html.parser
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import urllib.parse
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer.main
import yaml

from ckptkit.base.net import Policy
from ckptkit.cli import app as command_line
from ckptkit.parity.report import Failure, junit_document
from ckptkit.registry.edit import Pin, with_entries
from tests.parity.test_report import report, stage
from tests.support.commands import cache
from tests.support.evaluation import pictures, png, small_model
from tests.support.http_server import FaultServer, raw
from tests.support.torch_files import TENSOR, table, whole, write_zip
from tests.support.torch_files import text as pickled

EVIL = {
    "clear": "a\x1b[2Jb\x1b[31;8mc",
    "title": "\x1b]0;owned\x07\x1bP1;2|x\x1b\\",
    "link": "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "c1": "\x9b31m\x9d0;owned\x9c\x85",
    "c0": "a\x01\x08\x7f\x0b\x0c\x0e\x1a",
    "bidi": "\u202egnp.exe\u2066\u2069\u061c\u200e\u200f\u202a",
    "lines": "a\r\nerror: forged\nb\u2028c\u2029d",
    "invisible": "a\u200bb\ufeffc\u2060d\xad\U000e0041",
    "flood": "z" + "\u0301" * 200,
    "rich": "[bold red]x[/bold red][link=http://evil.example]y[/link][/]",
    "html": "</td></title></script><script>alert(1)</script><img src=x onerror=alert(1)><!--",
    "attribute": '"\' onmouseover="alert(1)" ]]>&lt;![CDATA[ -->',
    "markdown": "x](javascript:alert(1)) ![i](http://evil.example/i) [t][r] `c` | **b** ~~s~~ <b>",
    "heading": "\n\n# Owned\n---\n- item\n> quote\n```\n",
    "address": "see https://evil.example/a www.evil.example me@evil.example",
    "formula": '=HYPERLINK("http://evil.example","x")',
    "plus": "+1+cmd|' /C calc'!A0",
    "at": "@SUM(1)",
    "tab": "\t=1+1",
    "quoted": ' "=1+1',
    "parts": "a;=1+1;\t=1",
    "maths": "$\\frac{1}{0}$ {{7*7}} ${x} %s %(x)s {0} {x} \\N{DASH} \\x1b",
    "yaml": "--- &x !!python/object/apply:os.system [*x] # : - ? |",
    "front": "---",
    "long": "n" * 300,
}
PLAIN = {name: f"plain-{number}" for number, name in enumerate(EVIL)}
HALF = "a\udc9b\ud800"
"""Half surrogates: what holds UTF-8 cannot have them."""

FORBIDDEN = frozenset(
    chr(code)
    for code in (
        *(code for code in range(0x20) if code != 0x0A),
        *range(0x7F, 0xA0),
        *(0xAD, 0x61C, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF, 0xE0041),
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
        *range(0xD800, 0xE000),
    )
)
DRAWN = re.compile(r"\x1b\[(?:[0-9;]*m|2K|[0-9]*A|\?25[lh])|\r")
"""What rich may write to a terminal; no evil string has it but for a colour that rich never uses."""


def is_clean(text: str, *, terminal: bool = False, allowed: str = "") -> bool:
    """Whether nothing in a text is obeyed or hidden."""
    drawn = set(DRAWN.findall(text)) if terminal else set()
    left = set(DRAWN.sub("", text) if terminal else text) - set(allowed)
    return "\x1b[31;8m" not in drawn and not FORBIDDEN & left


# Running a command


_made_of = typer.main.get_command


@functools.cache
def root() -> Any:
    """All commands, made of their functions once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", _made_of)
        return command_line.load_commands()


def commands() -> dict[str, Any]:
    """Every command, by its words."""

    def below(group: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from below(command, (*words, name))
            else:
                yield " ".join((*words, name)), command

    return dict(below(root(), ()))


class Terminal(io.TextIOWrapper):
    """Standard output or error that may be a terminal."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__(io.BytesIO(), "utf-8", "strict", newline="\n", write_through=True)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    @property
    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode()  # type: ignore[attr-defined, no-any-return]


@dataclass
class Run:
    """What a command left."""

    code: int
    out: str
    err: str


@dataclass
class Runs:
    """Runs commands in this process, on a terminal of 80 columns or in a pipe, and looks at all they say."""

    patch: pytest.MonkeyPatch

    def __call__(self, *arguments: str | Path, terminal: bool = False) -> Run:
        out, err = Terminal(terminal=terminal), Terminal(terminal=terminal)
        with self.patch.context() as patch, warnings.catch_warnings():
            patch.setattr(typer.main, "get_command", lambda _: root())
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            patch.setenv("COLUMNS", "80")
            patch.setenv("TERM", "xterm-256color")
            with pytest.raises(SystemExit) as left:
                command_line.main([*map(str, arguments)])
        run = Run(int(left.value.code or 0), out.text, err.text)
        between = "\t" if "tsv" in arguments else ""
        for text, allowed in ((run.out, between), (run.err, "")):
            assert is_clean(text, terminal=terminal, allowed=allowed), (arguments, text)
        assert "Traceback" not in run.err or "-v" in arguments, run.err
        return run


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runs:
    monkeypatch.chdir(tmp_path)
    return Runs(monkeypatch)


# Sources of text


def entry(name: str, text: str, **fields: Any) -> dict[str, Any]:
    """An entry whose texts are all one."""
    return {
        "id": f"evil-{name}",
        "family": "moat",
        "variant": "tiny-moat0",
        "display_name": text,
        "group": text,
        "pretrain_data": text,
        "setting": text,
        "license": text,
        "paper": f"arXiv:{text}",
        "note": text,
        "layout": "torch",
        "format": "safetensors",
        "pool_size": 2,
        "test_resolution": 256,
        "published_params": "3.3M",
        "published_flops": "1.1G",
        "published_top1": 75.5,
        "published_top5": 92.5,
        "known_deviations": [{"figure": "params", "published": "3.3M", "reason": text}],
        "sha256": "0" * 64,
        "size": 1,
        "hash_provenance": {"observed_at": "2026-01-01T00:00:00Z", "url": "https://e.org/x", "note": text},
        "sources": [{"url": f"https://e.org/{urllib.parse.quote(text, safe='')[:300]}", "note": text}],
        "config_url": "https://e.org/c?a=1&b=(2)",
        "log_url": "https://e.org/l",
        **fields,
    }


def registry(path: Path, texts: dict[str, str]) -> Path:
    """A registry of an entry for each string."""
    rows = [entry(name, text) for name, text in texts.items()]
    path.write_text(yaml.safe_dump({"entries": rows}), encoding="utf-8")
    return path


def safetensors(path: Path, texts: dict[str, str]) -> Path:
    """A checkpoint whose tensors and metadata are called so."""
    header: dict[str, Any] = {"__metadata__": {text: text for text in texts.values()}}
    for number, text in enumerate(texts.values()):
        header[text] = {"dtype": "F32", "shape": [1], "data_offsets": [4 * number, 4 * number + 4]}
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + struct.pack("<f", 1e-9) * len(texts))
    return path


def log_file(path: Path, texts: dict[str, str]) -> Path:
    """A training log whose columns are called so."""
    lines = [
        json.dumps({"mode": "val", "epoch": epoch, "iter": 1, **dict.fromkeys(texts.values(), -1.5 * epoch)})
        for epoch in (1, 2)
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def file_name(text: str) -> str:
    """The same as far as a file can be called so."""
    return text.replace("/", "_").replace("\0", "0")[:60]


# What documents are, by others' parsers


class Elements(html.parser.HTMLParser):
    """Tags with their attributes' names, and where links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, ...]] = []
        self.links: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, *(name for name, _ in attrs)))
        self.links |= {str(value).split(":")[0] for name, value in attrs if name in ("href", "src")}

    def handle_endtag(self, tag: str) -> None:
        self.found.append((f"/{tag}",))

    def handle_comment(self, data: str) -> None:
        self.found.append(("!",))


def html_shape(text: str) -> object:
    page = Elements(text)
    assert page.links <= {"http", "https", "data"}
    return page.found


def xml_shape(text: str) -> object:
    """Elements and attributes in order; of a picture only which there are, for letters differ."""
    root = ElementTree.fromstring(text.encode())
    found = [(one.tag, *sorted(one.attrib)) for one in root.iter()]
    return set(found) if "svg" in root.tag else found


def markdown_shape(text: str) -> object:
    """Tokens and where links lead, as markdown-it sees them; and no address that GitHub would make a link."""
    markdown_it = pytest.importorskip("markdown_it")
    tokens = (
        markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)
    )
    shape: list[object] = []
    for token in tokens:
        inner = [
            one for one in token.children or () if one.type not in ("text", "text_special", "code_inline")
        ]
        links = [str(one.attrGet("href") or one.attrGet("src"))[:14] for one in inner]
        shape.append((token.type, [one.type for one in inner], links))
        for one in token.children or ():
            if one.type == "text":
                assert not FORBIDDEN & set(one.content)
    plain = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)|\]\([^)\s]*\)|<https?://[^<>\s]*>", "", text)
    assert not re.search(r"(?i)https?://|\bwww\.|\w@\w", plain)
    return shape


def csv_shape(text: str) -> object:
    """Rows and columns; no cell is a formula, with whichever separator."""
    rows = list(csv.reader(io.StringIO(text), strict=True))
    for separator in ",;\t":
        for cell in (cell for row in csv.reader(io.StringIO(text), delimiter=separator) for cell in row):
            number = re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", cell)
            assert number or not re.match(r"[\s\"]*[=+\-@\t\r]", cell), (separator, cell)
    return [len(row) for row in rows]


def tsv_shape(text: str) -> list[int]:
    """How many cells each line has."""
    return [line.count("\t") for line in text.splitlines()]


def json_strings(value: Any) -> Iterator[str]:
    """All texts in a value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from (key, *json_strings(item))
    elif isinstance(value, list):
        for item in value:
            yield from json_strings(item)


def same_shape(made: Callable[[dict[str, str]], str], shape: Callable[[str], object]) -> None:
    """A document of evil strings is one of harmless ones but for the strings."""
    evil, plain = made(EVIL), made(PLAIN)
    assert is_clean(evil), evil
    assert shape(evil) == shape(plain)


def holds_all(text: str, texts: Sequence[str] = tuple(EVIL.values())) -> None:
    """JSON that gives every string back as it was."""
    found = "\0\0".join(json_strings(json.loads(text)))
    assert [one for one in texts if one not in found] == []


# Commands


class Sources:
    """Files that hold a set of strings wherever a file can."""

    def __init__(self, folder: Path, texts: dict[str, str]) -> None:
        folder.mkdir()
        self.folder = folder
        self.registry = registry(folder / "r.yaml", texts)
        self.checkpoint = safetensors(
            folder / f"{file_name(''.join(texts.values())[:90])}.safetensors", texts
        )
        self.other = safetensors(
            folder / "other.safetensors", {name: f"x{text}" for name, text in texts.items()}
        )
        self.rules = folder / "rules.yaml"
        named = [text.replace("{", "{{").replace("}", "}}") for text in texts.values()]
        mapped = [{"source": text, "target": f"x{text}", "sure": "guessed"} for text in named]
        self.rules.write_text(yaml.safe_dump({"version": 2, "rules": mapped}))
        self.log = log_file(folder / f"{file_name(texts['clear'] + texts['bidi'])}.log.json", texts)
        self.faulty = folder / f"{file_name(texts['c1'] + texts['rich'])}.yaml"
        self.faulty.write_text(
            yaml.safe_dump({"entries": [{"id": text, text: text, "format": text} for text in texts.values()]})
        )


Arguments = Callable[[Sources, Path], Sequence[str | Path]]


@dataclass(frozen=True)
class Row:
    """One way to run a command: what it prints, or writes into a file, and how that is looked at."""

    command: str
    arguments: Arguments
    form: str = "text"
    code: int = 0
    writes: str = ""
    needs: str = ""

    def __str__(self) -> str:
        return f"{self.command}-{self.writes.replace('.', '') or self.form}".replace(" ", "-")


def given(*arguments: str) -> Arguments:
    """Arguments in which @NAME is one of the sources, and ``OUT`` the file to write."""
    return lambda sources, out: [
        getattr(sources, one[1:]) if one.startswith("@") else out if one == "OUT" else one
        for one in arguments
    ]


EVERY = "--columns", "id,name,group,pretrain,setting,license,paper,note,url,config,log,file"
LIST = "list", "evil-*", "--registry", "@registry"
INSPECT = "inspect", "@checkpoint"
DIFF = "diff", "@checkpoint", "@other", "--metadata", "--everything"
CONVERT = "convert", "@checkpoint", "--layout", "as-is"
PLOT = "plot", "evil-*", "--registry", "@registry", "-o", "OUT"
LOGS = "logs", "@log"

ADD = "registry", "add", "x", "https://e.org/x", "--file", "OUT"

ROWS = [
    *(
        Row("list", given(*LIST, *EVERY, "--format", form), form)
        for form in ("csv", "tsv", "markdown", "html", "json")
    ),
    *(
        Row("list", given(*LIST, *EVERY, "-o", "OUT"), writes=name)
        for name in ("a.csv", "a.tsv", "a.md", "a.html", "a.json", "a.txt")
    ),
    Row("list", given(*LIST)),
    Row("list", given(*LIST, *EVERY)),
    Row("list", given(*LIST, "--json"), "json"),
    Row("show", given("show", "evil-*", "--registry", "@registry")),
    Row("show", given("show", "evil-*", "--registry", "@registry", "--json"), "json"),
    Row("fetch", given("fetch", "evil-clear", "evil-html", "--registry", "@registry", "--dry-run")),
    Row("fetch", given("fetch", "evil-clear", "--registry", "@registry", "--dry-run", "--json"), "some json"),
    Row("import", given("import", "evil-clear", "@checkpoint", "--registry", "@registry", "--json"), code=5),
    Row("import", given("import", "evil-clear", "@checkpoint", "--registry", "@registry"), code=5),
    Row("verify", given("verify", "@checkpoint", "--deep")),
    Row("verify", given("verify", "@checkpoint", "--deep", "--json"), "some json"),
    Row("inspect", given(*INSPECT)),
    Row("inspect", given(*INSPECT, "--stats", "-v")),
    Row("inspect", given(*INSPECT, "--json"), "json"),
    Row("inspect", given(*INSPECT, "--security", "-v")),
    Row("inspect", given(*INSPECT, "--security", "--json"), "some json"),
    Row("diff", given(*DIFF, "-v"), code=1),
    Row("diff", given(*DIFF, "--json"), "json", code=1),
    Row("convert", given(*CONVERT, "--to", "npz", "--dtype", "float16", "--dry-run")),
    Row("convert", given(*CONVERT, "--dtype", "float16", "-o", "OUT"), writes="a.npz"),
    Row("convert", given(*CONVERT, "-o", "OUT"), writes="a.pth"),
    Row("convert", given(*CONVERT, "--to", "npz", "--dry-run", "--json"), "names of tensors"),
    Row("convert", given("convert", "@checkpoint", "--to", "torch"), code=5),
    Row("synth", given("synth", "tiny-moat0-256", "--dry-run", "-o", "@checkpoint"), code=2),
    Row(
        "parity", given("parity", "@checkpoint", "--junit", "OUT"), code=5, writes="a.xml", needs="tensorflow"
    ),
    Row("parity", given("parity", "@checkpoint", "--json"), code=5, needs="tensorflow"),
    Row("synth", given("synth", "tiny-moat0-256", "--dry-run", "-o", "OUT", "--json"), "some json"),
    Row("plot", given(*PLOT), writes="a.html"),
    Row(
        "plot",
        given("plot", "evil-*", "--registry", "@registry", "-o", "a.html", "--force", "--json"),
        "some json",
    ),
    Row("plot", given(*PLOT), writes="a.svg", needs="matplotlib"),
    Row("plot", given(*PLOT, "--title", "\x1b[2J$x$"), writes="a.png", needs="matplotlib"),
    Row("logs", given(*LOGS)),
    Row("logs", given(*LOGS, "--format", "csv"), "csv"),
    Row("logs", given(*LOGS, "--json"), "json"),
    Row("logs", given(*LOGS, "--metric", "nothing"), code=2),
    Row("logs", given(*LOGS, "-o", "OUT"), writes="a.svg", needs="matplotlib"),
    Row(
        "registry add",
        given(
            "registry",
            "add",
            "x",
            "https://e.org/x",
            "--file",
            "OUT",
            "--checkpoint",
            "@checkpoint",
            "--variant",
            "moat0",
        ),
        code=5,
    ),
    Row("parity", given("parity", "--case", "@faulty"), code=2),
    Row("record", given("record", "--case", "@faulty", "--side", "left", "-o", "OUT"), code=2),
    Row("record", given("record", "--case", "@faulty", "--side", "left", "-o", "OUT", "--json"), code=2),
    Row("record", given("record", "--emit", "OUT", "--json"), "some json", writes="", needs=""),
    Row("rules check", given("rules", "check", "@rules", "@checkpoint", "@other", "-v")),
    Row("rules check", given("rules", "check", "@rules", "@checkpoint", "@other", "--json"), "some json"),
    Row("registry validate", given("registry", "validate", "@faulty", "@registry"), code=1),
    Row("registry validate", given("registry", "validate", "@faulty", "--json"), "some json", code=1),
    Row(
        "registry add",
        given(
            *ADD,
            "--variant",
            "moat0",
            "--layout",
            "torch",
            "--format",
            "torch",
            "--note",
            "".join(EVIL.values()),
            "--dry-run",
            "--json",
        ),
        "some json",
    ),
    Row("registry schema", given("registry", "schema"), "some json"),
    Row("registry schema", given("registry", "schema", "--json"), "some json"),
    Row("registry pin", given("registry", "pin", "evil-clear", "--registry", "@registry"), code=3),
    Row("registry pin", given("registry", "pin", "evil-clear", "--registry", "@registry", "--json"), code=3),
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sources]:
    folder = tmp_path_factory.mktemp("sources")
    return {"evil": Sources(folder / "evil", EVIL), "plain": Sources(folder / "plain", PLAIN)}


SHAPES: dict[str, Callable[[str], object]] = {
    "csv": csv_shape,
    "tsv": tsv_shape,
    "html": html_shape,
    "md": markdown_shape,
    "markdown": markdown_shape,
    "svg": xml_shape,
    "xml": xml_shape,
}


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_what_is_printed_and_written(
    row: Row, run: Runs, sources: dict[str, Sources], tmp_path: Path
) -> None:
    if row.needs:
        pytest.importorskip(row.needs)
    texts = {}
    for kind, source in sources.items():
        out = tmp_path / f"{kind}-{row.writes}"
        done = run(*row.arguments(source, out))
        assert done.code == row.code, done.err
        texts[kind] = out.read_bytes().decode(errors="replace") if row.writes else done.out
    form = row.writes.rpartition(".")[2] or row.form
    if form in ("json", "some json", "names of tensors"):
        assert is_clean(texts["evil"])
        holds_all(texts["evil"], () if form == "some json" else tuple(EVIL.values()))
    elif form in SHAPES:
        assert is_clean(texts["evil"], allowed="\t" if form == "tsv" else "")
        assert SHAPES[form](texts["evil"]) == SHAPES[form](texts["plain"])
    elif form == "text":
        run(*row.arguments(sources["evil"], tmp_path / "terminal"), terminal=True)
    elif form == "txt":
        assert is_clean(texts["evil"])


@pytest.mark.parametrize(
    "options", [(), ("-v",), ("--json",), ("-o", "rules.yaml"), ("-o", "rules.yaml", "-v")]
)
def test_a_draft_of_rules(
    run: Runs, sources: dict[str, Sources], tmp_path: Path, options: Sequence[str]
) -> None:
    """Names, the paths in its comments and its questions: the file is as clean as what is printed."""
    evil = sources["evil"]
    done = run("rules", "suggest", evil.checkpoint, evil.other, *options)
    assert done.code in (0, 1), done.err  # how sure it is of such names does not matter here
    run("rules", "suggest", evil.checkpoint, evil.other, *options, "--force", terminal=True)
    if "-o" in options:
        text = (tmp_path / "rules.yaml").read_text()
        assert is_clean(text)
        targets = [rule["target"] for rule in yaml.safe_load(text)["rules"]]
        assert any(EVIL["bidi"] in target.replace("{{", "{").replace("}}", "}") for target in targets)


class TestTorchFiles:
    """State dicts, tensors and other values of a pickle."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        tensors = dict.fromkeys(EVIL.values(), TENSOR)
        tables = {text: table(**tensors) for text in ("model\x1b[2J\u202e", "ema\x9b31m")}
        said = {f"k{text}": pickled(text) for text in EVIL.values()}
        return write_zip(tmp_path / "m\x1b[2J\u202e.pth", whole(table(**tables, **said)))

    @pytest.mark.parametrize(
        "command", [("inspect",), ("verify", "--deep"), ("convert", "--layout", "as-is")]
    )
    def test_a_choice_of_state_dicts(self, run: Runs, file: Path, command: Sequence[str]) -> None:
        assert "m\\x1b[2J\\u202e.pth" in run(*command, file).err + run(*command, file).out
        run(*command, file, terminal=True)

    def test_all_that_is_in_it(self, run: Runs, file: Path) -> None:
        chosen = "--state-dict", "model\x1b[2J\u202e"
        assert run("inspect", file, *chosen, "-v", terminal=True).code == 0
        holds_all(run("inspect", file, *chosen, "--json").out, list(EVIL.values()))


class TestServers:
    """Reason phrases, headers, and names in URLs."""

    @pytest.mark.parametrize("names", [("clear", "bidi", "html", "rich"), ("title", "c1", "invisible")])
    def test_what_a_server_says(
        self, run: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: Sequence[str]
    ) -> None:
        monkeypatch.setattr(Policy, "wait", lambda *_: 0.0)
        text = "".join(EVIL[name] for name in names)
        said = text.encode() + text.encode("latin-1", "ignore")
        answers = [
            b"HTTP/1.1 499 " + said + b"\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 302 x\r\nContent-Length: 0\r\nLocation: ftp://x/" + said + b"\r\n\r\n",
            b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: "'
            + said
            + b'"\r\nx-goog-generation: '
            + said
            + b"\r\nContent-Type: text/html"
            + said
            + b"\r\nx-goog-hash: md5="
            + said
            + b"\r\n\r\n"
            + said[:5],
            said + b"\r\n\r\n",
        ]
        with FaultServer() as server:
            for answer in answers:
                path = f"/a{urllib.parse.quote(text[:40], safe='')}.pth"
                overlay = tmp_path / "r.yaml"
                row = entry(
                    "x",
                    "x",
                    sources=[{"url": server.url(path)}],
                    format="torch",
                    sha256=None,
                    size=None,
                    hash_provenance=None,
                )
                overlay.write_text(yaml.safe_dump({"entries": [row]}))
                server.fail(path, *[raw(answer)] * 40)
                for options in (("-v",), ("--json",)):
                    run("fetch", "evil-x", "--registry", overlay, "--force", *options)
                run("fetch", "evil-x", "--registry", overlay, "--force", terminal=True)
        for kept in Path(os.environ["CKPTKIT_HOME"]).rglob("*"):
            assert not FORBIDDEN & set(kept.name)


@pytest.mark.parametrize("begun", ["entries:\n- {id: a}\n", "entries: [{id: a}]\n"])
def test_yaml_that_is_written_is_read_as_it_was(tmp_path: Path, begun: str) -> None:
    """New entries, changed ones and pins: what is in the file is seen, and nothing else is in it."""
    written = begun
    for name, text in EVIL.items():
        fields = {"display_name": text, "note": text, "sources": [{"url": "https://e.org/x", "note": text}]}
        written = with_entries(written, {f"new-{name}": fields}, tmp_path / "r.yaml")
        written = with_entries(written, {"a": {"note": text, "license": text}}, tmp_path / "r.yaml")
        pin = Pin(f"new-{name}", "0" * 64, 1, "2026-01-01", text, text)
        written = with_entries(written, {pin.id: pin.fields()}, tmp_path / "r.yaml")
    assert is_clean(written)
    first, *rows = yaml.safe_load(written)["entries"]
    assert (first["note"], first["license"]) == (text, text)
    for row, text in zip(rows, EVIL.values(), strict=True):
        assert [row["display_name"], row["note"], row["sources"][0]["note"]] == [text] * 3
        assert [row["hash_provenance"][key] for key in ("url", "note")] == [text] * 2


def test_junit_of_reports() -> None:
    """Names, notes, reasons: the same elements and attributes as of harmless ones."""

    def made(texts: dict[str, str]) -> str:
        results: list[Any] = []
        for text in texts.values():
            differs = stage(text, 1.0, "differs")
            results.append(report(replace(differs, reason=text), name=text, source=text, notes=(text,)))
            results.append(Failure(text, "FormatError", text))
        return junit_document(results)

    same_shape(made, xml_shape)
    assert "[bold red]x[/bold red]" in ElementTree.fromstring(made(EVIL)).findall("testsuite")[18].get(
        "name", ""
    )


def test_the_cache(run: Runs, tmp_path: Path) -> None:
    """Records that say anything, and files called anything."""
    home = Path(os.environ["CKPTKIT_HOME"])
    record = cache("tiny-moat0-256")
    said = {**json.loads(record.to_json()), "etag": EVIL["clear"], "generation": EVIL["c1"] + EVIL["bidi"]}
    said |= {"url": f"https://e.org/{EVIL['title']}", "note": EVIL["rich"], "ckptkit_version": EVIL["c0"]}
    (home / "artefacts" / "tiny-moat0-256" / f"{record.file}.json").write_text(json.dumps(said))
    for number, text in enumerate([*EVIL.values(), HALF]):
        for folder in ("artefacts", "artefacts/tiny-moat0-256", "unpacked", "converted", "logs"):
            (home / folder).mkdir(exist_ok=True)
            name = os.fsencode(file_name(text).replace("\ud800", ""))
            Path(home, folder, os.fsdecode(name)).write_text("x") if number % 2 else Path(
                home, folder, os.fsdecode(name)
            ).mkdir()
    for words in (
        ("ls",),
        ("verify",),
        ("path", "tiny-moat0-256"),
        ("checksums",),
        ("rm", "*", "--dry-run"),
        ("prune", "--dry-run"),
    ):
        for options in ((), ("--json",)):
            done = run("cache", *words, *options)
            if options and done.out:
                json.loads(done.out)
        run("cache", *words, terminal=True)
    run("show", "tiny-moat0-256")
    json.loads(run("show", "tiny-moat0-256", "--json").out)


@pytest.mark.parametrize(
    "variable", ["CKPTKIT_HOME", "CKPTKIT_TRUST", "CKPTKIT_REGISTRY", "CKPTKIT_MIRROR", "HTTPS_PROXY"]
)
def test_the_environment(run: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str) -> None:
    """Paths and rules out of variables, in `doctor` and where they are used."""
    from ckptkit import doctor

    monkeypatch.setattr(doctor, "questions", list)
    evil = "".join(EVIL[name] for name in ("clear", "c1", "bidi", "rich", "lines"))
    monkeypatch.setenv(variable, str(tmp_path / evil.replace("/", "_")))
    run("doctor", "--offline", terminal=True)
    said = "".join(json_strings(json.loads(run("doctor", "--offline", "--json").out)))
    assert evil[:40] in said or variable == "CKPTKIT_MIRROR"  # an error's words are escaped already
    run("fetch", "tiny-moat0-256", "--offline")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small model and pictures: names of files, classes, pictures; what the checkpoint says of itself."""
    pytest.importorskip("torch")
    pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("models")
    name = file_name(EVIL["clear"] + EVIL["bidi"] + EVIL["rich"])
    said = {f"x{text}": text for text in EVIL.values()}
    model = small_model(folder / f"{name}.safetensors", **said, resolution="64")
    texts = [*EVIL.values()]
    for number, text in enumerate(texts):
        tree = folder / "data" / file_name(f"class{number % 10} {texts[number % 10]}")
        tree.mkdir(parents=True, exist_ok=True)
        (tree / f"{file_name(text)[:40]}.png").write_bytes(png(pictures(1, number)[0]))
    bad = folder / "data" / file_name(f"class0 {texts[0]}") / f"{file_name(EVIL['c1'])}.png"
    bad.write_bytes(b"no picture")
    return {"MODEL": model, "DATA": folder / "data", "CLASS": bad.parent}


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "MODEL", "CLASS"),
        ("cam", "MODEL", "CLASS", "-o", "OUT", "--force"),
        ("eval", "MODEL", "--data", "DATA", "--skip-bad", "--limit", "20"),
        ("calibrate", "MODEL", "--data", "DATA", "--images", "2", "-o", "OUT", "--force"),
    ],
    ids=lambda words: words[0],
)
def test_what_a_model_says(run: Runs, models: dict[str, Path], tmp_path: Path, words: Sequence[str]) -> None:
    """Of pictures, of classes, and of pictures that are none."""
    pytest.importorskip("captum") if words[0] == "cam" else None
    out = tmp_path / file_name(EVIL["c1"])
    out.mkdir()
    told = [*map(str, ({**models, "OUT": f"{out}/"}.get(word, word) for word in words))]
    done = run(*told)
    assert done.code in (0, 5), done.err  # 5: a picture that is none
    run(*told, terminal=True)
    found = "\0".join(json_strings(json.loads(run(*told, "--json").out)))
    assert EVIL["clear"] in found or words[0] == "calibrate"


def test_the_card_of_an_export(run: Runs, models: dict[str, Path], tmp_path: Path) -> None:
    """Metadata of the file and fields of the registry, in Markdown, its head, and the configuration."""
    texts = ["".join([*EVIL.values()][start::5]) for start in range(5)]
    cards = []
    for number, text in enumerate(["plain", *texts]):
        overlay, model, folder = tmp_path / "r.yaml", tmp_path / "m.safetensors", tmp_path / f"hf{number}"
        shape: dict[str, Any] = {"family": "moganet", "variant": "moganet-xt", "attn_force_fp32": True}
        shape |= {"pool_size": None, "test_resolution": 64, "known_deviations": []}
        shape |= {"sha256": None, "size": None, "hash_provenance": None}
        overlay.write_text(yaml.safe_dump({"entries": [entry("x", text, **shape)]}))
        told = {"source_url": f"javascript:{text}", "weights": text, "source_sha256": text}
        with_metadata(models["MODEL"], model, entry="evil-x", bn_statistics=text, **told)
        done = run("export", model, "--to", "hf", "-o", folder, "--registry", overlay)
        assert done.code == 0, done.err
        config = (folder / "config.json").read_text(encoding="utf-8")
        assert is_clean(config)
        holds_all(config, [text])
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert is_clean(card)
        head, body = card.removeprefix("---\n").split("\n---\n", 1)
        assert yaml.safe_load(head)["tags"] == ["image-classification", "moganet", "ckptkit"]
        cards.append(markdown_shape(body))
        shutil.rmtree(folder)
    for card in cards:
        assert card == cards[0]


def with_metadata(source: Path, target: Path, **metadata: str) -> None:
    """Copy a safetensors file with more metadata."""
    body = source.read_bytes()
    length = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + length])
    header["__metadata__"] = {"format": "pt", "attn_force_fp32": "true", "resolution": "64", **metadata}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    target.write_bytes(struct.pack("<Q", len(head)) + head + body[8 + length :])


# What is typed, and what is new

ELSEWHERE = {
    **dict.fromkeys(
        ("cache ls", "cache rm", "cache prune", "cache verify", "cache path", "cache checksums"),
        test_the_cache,
    ),
    "doctor": test_the_environment,
    "rules suggest": test_a_draft_of_rules,
    **dict.fromkeys(("predict", "cam", "eval", "calibrate"), test_what_a_model_says),
    "export": test_the_card_of_an_export,
    **dict.fromkeys(("demo", "profile"), None),  # of what is built in alone; see what is typed
}
"""Commands whose sources are more than files that exist before."""


def test_every_command_and_every_form_has_a_row() -> None:
    """A new command, or a new form of what one says, is tried too."""
    for name, command in commands().items():
        rows = [row for row in ROWS if row.command == name]
        assert rows or name in ELSEWHERE, name
        words = [[*map(str, row.arguments(_Anything(), Path("OUT")))] for row in rows]  # type: ignore[arg-type]
        for option in command.params if rows else ():
            if "--json" in option.opts:
                assert any("--json" in one for one in words), name
            if "--format" in option.opts:
                tried = {one[one.index("--format") + 1] for one in words if "--format" in one}
                assert choices_of(option) <= {*tried, "table", "json"}, name
            if "--junit" in option.opts:
                assert any("--junit" in one for one in words), name


def choices_of(option: Any) -> set[str]:
    """Values of an option that is an enumeration, whichever version of typer made it."""
    if hasattr(option, "type"):  # Click's, before typer 0.28
        return {*getattr(option.type, "choices", ())}
    kind = option.type_descriptor.annotation
    return {one.value for one in kind} if issubclass(kind, enum.Enum) else set()


class _Anything:
    def __getattr__(self, name: str) -> str:
        return name


WORDS = "".join(EVIL.values())[:2000].replace("\0", "") + HALF.replace("\ud800", "")


@pytest.mark.parametrize("name", sorted(commands()))
def test_what_is_typed(run: Runs, name: str, tmp_path: Path) -> None:
    """Each argument and the value of each option, in the line that refuses it."""
    if name == "doctor":
        pytest.skip("takes nothing")
    for option in commands()[name].params:
        flags = [flag for flag in option.opts if flag.startswith("--")]
        if not getattr(option, "is_flag", False):
            told = [*flags[:1], file_name(WORDS)] if "output" in option.name else [*flags[:1], WORDS]
            assert run(*name.split(), *told, "--offline").code in range(7), (name, told)
    run(*name.split(), f"--{EVIL['clear']}", "-v", terminal=True)
    run(EVIL["c1"], *name.split())


def test_half_surrogates(run: Runs, tmp_path: Path) -> None:
    """In names of tensors, and bytes of file names that are no UTF-8."""
    path = safetensors(tmp_path / os.fsdecode(b"m\xff\x9b.safetensors"), {"half": HALF})
    for words in (("inspect", path), ("verify", path), ("convert", path, "--layout", "as-is", "--to", "npz")):
        run(*words)
        run(*words, terminal=True)
        run(*words, "--json", "--force") if words[0] == "convert" else run(*words, "--json")


def test_whatever_others_write_is_shown_on_a_real_terminal(tmp_path: Path) -> None:
    """A library's logger, a warning, a traceback, `print`: on a terminal, and in a pipe."""
    pty = pytest.importorskip("pty")
    code = (
        "import logging, sys, warnings\n"
        "from ckptkit.cli import app, entries\n"
        f"evil = {EVIL['clear'] + EVIL['title'] + EVIL['c1'] + EVIL['bidi']!r}\n"
        "def columns(*_):\n"
        "    logging.warning(evil); warnings.warn(evil); print(evil); print(evil, file=sys.stderr)\n"
        "    raise OSError(evil)\n"
        "entries.field_named = columns\n"
        "app.main(['list', '--columns', 'id', '-v'])\n"
    )
    leader, follower = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=follower, stderr=follower, cwd=tmp_path)
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):
        while piece := os.read(leader, 65536):
            shown += piece
    os.close(leader)
    assert process.wait(30) == 5
    piped = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=tmp_path, check=False, timeout=60
    )
    for text in (shown.decode().replace("\r\n", "\n"), (piped.stdout + piped.stderr).decode()):
        assert not FORBIDDEN & set(text.replace("\x1b[31;8m", "")), text
        assert text.count("\\x1b]0;owned\\x07") >= 5
        assert "Traceback" in text and "warning: a" in text
    assert b"\x1b" not in piped.stdout + piped.stderr
