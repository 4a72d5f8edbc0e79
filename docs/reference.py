"""The reference pages of the site, and the manual page, made from the code so that they cannot lag behind it.

MkDocs loads this file as a hook (``mkdocs.yml``); ``python docs/reference.py`` prints the manual page.
"""

from __future__ import annotations

import posixpath
import re
import sys
import textwrap
from collections.abc import Iterator
from inspect import isfunction
from pathlib import Path
from typing import Any

import yaml

import ckptkit
from ckptkit._version import REPOSITORY, __version__
from ckptkit.base import errors
from ckptkit.base.axes import OPS
from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.cli import app
from ckptkit.cli.help import record
from ckptkit.cli.output import READER_GONE, ExitCode, exit_code, pasteable
from ckptkit.convert.by_rules import assign
from ckptkit.families.base import registry_families
from ckptkit.formats.builtin import BUILT_IN
from ckptkit.parity import case_file, recorder
from ckptkit.registry.schema import json_schema
from ckptkit.rules import file as rules_file

ROOT = Path(__file__).resolve().parent.parent
RULES_EXAMPLES = ROOT / "docs/reference/rules_examples.yaml"
SOURCE = REPOSITORY.removesuffix(".git") + "/blob/main/"
FROM_ROOT = {
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
"""Pages of the site that are files of the repository's root."""

EXIT_CODES = {
    ExitCode.OK: "done, and everything holds",
    ExitCode.CHECK_FAILED: "a check failed: `verify`, `parity`, `diff`, `profile --check`, `eval --check`, "
    "`export`, `registry validate` …",
    ExitCode.USAGE: "wrong usage, or an output exists and `--force` was not given",
    ExitCode.NOT_FOUND: "no such entry, file or variant",
    ExitCode.NETWORK: "the network, or a server",
    ExitCode.DAMAGED: "a damaged or refused file, tensors that do not fit, or a full or read-only disk",
    ExitCode.MISSING_PACKAGE: "an optional package is missing; the message has the line that installs it",
    ExitCode.INTERRUPTED: "interrupted",
}
_ROOM = 78
"""Characters of code that fit beside both menus of a page of 1280 pixels."""
GONE = "whoever read the output went away, as `head` does"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; within a code span nothing ends a cell."""
    cells = [[cell.replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [[*head], ["---"] * len(head), *cells]) + "\n"


def _plain(text: str) -> str:
    """Text for Markdown: its marks are characters like others."""
    return re.sub(r"[\\`*_<>\[\]|]", r"\\\g<0>", text)


def every_command() -> Iterator[tuple[str, Any]]:
    """Each command with its full name, in the order of the help."""

    def below(group: Any, words: str) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            yield f"{words} {name}", command
            if hasattr(command, "commands"):
                yield from below(command, f"{words} {name}")

    root = app.load_commands()
    root.commands = {name: root.commands[name] for name in root.list_commands(None)}
    yield from below(root, "ckptkit")


def parameters(command: Any) -> Iterator[tuple[str, str]]:
    """Each argument and option as a line of usage, and its help."""
    for param in command.params:
        if param.name != "help":
            yield record(param)


def description(command: Any) -> tuple[str, list[str]]:
    """What a command does, and its examples."""
    text, _, last = (command.help or "").partition("Examples:\n")
    return text.strip(), [line.strip() for line in last.splitlines() if line.strip()]


def _commands() -> str:
    """Every command with its options."""
    parts = [
        _table(
            ("option", "meaning"),
            [(f"`{label}`", _plain(text)) for label, text in parameters(app.load_commands())],
        )
    ]
    for name, command in every_command():
        text, examples = description(command)
        parts += [f"## {name}\n", f"{_plain(text)}\n"]
        if examples:
            lines = [line for example in examples for line in pasteable(f"$ {example}", _ROOM, "")]
            parts.append("```console\n" + "\n".join(lines) + "\n```\n")
        rows = [(f"`{label}`", _plain(text)) for label, text in parameters(command)]
        if rows and not hasattr(command, "commands"):
            parts.append(_table(("argument or option", "meaning"), rows))
    return "\n".join(parts)


def _python() -> str:
    """Every public function, by its docstring; errors have a table of their own."""
    functions = [thing for name in ckptkit.__all__ if isfunction(thing := getattr(ckptkit, name))]
    return "\n".join(
        f"::: {one.__module__}.{one.__qualname__}\n    options:\n      heading_level: 2\n"
        f"      heading: ckptkit.{one.__name__}\n      toc_label: {one.__name__}\n"
        for one in functions
    )


def _errors() -> str:
    """Every class of errors with its exit code."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    kinds = [kind for kind in kinds if issubclass(kind, errors.CkptkitError)]
    codes = {kind: str(int(exit_code(kind.__new__(kind)))) for kind in kinds}
    rows = [(f"`{kind.__name__}`", _first_line(kind), code) for kind, code in codes.items()]
    return _table(("class", "meaning", "exit code"), rows)


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0].replace("``", "`")


def _exit_codes() -> str:
    """What each exit status means."""
    rows = [(str(int(code)), EXIT_CODES[code]) for code in ExitCode]
    return _table(("code", "meaning"), [*rows, (str(READER_GONE), GONE)])


def _formats() -> str:
    """Every built-in format."""
    rows = [
        (
            f"`{format.name}`",
            " ".join(f"`{ending}`" for ending in format.endings),
            " ".join(f"`{word}`" for word in format.aliases),
            "read" if format.read_only else "read, written",
            format.checksum or "",
        )
        for format in BUILT_IN.values()
    ]
    return _table(("name", "endings", "also understood", "is", "checksum of a tensor"), rows)


def _rules() -> str:
    """The language of rules files: the docstring of the code that reads them."""
    return _page_of(rules_file, "yaml")


def rules_examples() -> list[dict[str, Any]]:
    """Examples of rules: title, text, the file, and the tensors of a source (name, shape, element type)."""
    examples: list[dict[str, Any]] = yaml.safe_load(RULES_EXAMPLES.read_text(encoding="utf-8"))
    for one in examples:
        given = {
            name: row if isinstance(row, dict) else {"shape": row} for name, row in one["source"].items()
        }
        one["source"] = {
            name: TensorSpec(name, DTYPES[row.get("dtype", "float32")], tuple(row["shape"]))
            for name, row in given.items()
        }
    return examples


def _rules_examples() -> str:
    """Each example with what the code makes of its source."""
    parts = []
    for one in rules_examples():
        rules = rules_file.rules_in(one["rules"], Path("rules.yaml"))
        made = assign(Path("source"), one["source"], rules)
        rows = [
            (
                "<br>".join(f"`{name}` {list(one['source'][name].shape)}" for name in move.sources) or "–",
                f"`{move.target.name}` {list(move.target.shape)}",
            )
            for move in made.moves
        ]
        parts.append(f"## {one['title']}\n\n{one['text']}\n\n```yaml\n{one['rules'].strip()}\n```\n")
        parts.append(_table(("source", "target"), rows))
    return "\n".join(parts)


def _rule_keys() -> str:
    """Every key of a rule."""
    properties = rules_file.rule_schema()["properties"]
    return _table(("key", ""), [(f"`{key}`", field["description"]) for key, field in properties.items()])


def _cases() -> str:
    """Case files, in the same way."""
    return _page_of(case_file, "yaml")


def _recorder() -> str:
    """The recorder that `record --emit` writes."""
    return _page_of(recorder, "python")


def _page_of(module: Any, language: str) -> str:
    """A module's docstring as a page."""
    text = (module.__doc__ or "").replace("``", "`")

    def block(found: re.Match[str]) -> str:
        return f":\n\n```{language}\n{textwrap.dedent(found[1]).strip()}\n```\n\n"

    return re.sub(r"::\n\n((?:    .*\n|\n)+)", block, text)


def _operations() -> str:
    """Every change of axes that has a name."""
    rows = [(f"`{op.name}`", f"`{op.external}` → `{op.canonical}`") for op in OPS.values() if op.external]
    return _table(("op", "axes"), [("`identity`", "nothing changes"), *rows])


def _registry() -> str:
    """Every field of a registry file."""
    parts = []
    for kind, schema in json_schema(registry_families())["$defs"].items():
        required = schema.get("required", ())
        rows = [
            (
                f"`{name}`",
                _type(field) + ", required" * (name in required),
                _plain(field.get("description", "")),
            )
            for name, field in schema.get("properties", {}).items()
        ]
        if rows:
            about = _plain(schema.get("description", "").partition("\n\n")[0])
            parts += [f"## {kind}\n", f"{about}\n", _table(("field", "type", "meaning"), rows)]
    return "\n".join(parts)


def _type(field: dict[str, Any]) -> str:
    """A field's type in words."""
    if "enum" in field:
        return " ".join(f"`{value}`" for value in field["enum"])
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(one) for one in field["anyOf"]))
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    return str(field.get("const", field.get("type", "any")))


PARTS = {
    "commands": _commands,
    "python": _python,
    "errors": _errors,
    "exit codes": _exit_codes,
    "formats": _formats,
    "rules": _rules,
    "rules examples": _rules_examples,
    "rule keys": _rule_keys,
    "operations": _operations,
    "cases": _cases,
    "case keys": case_file.reference,
    "recorder": _recorder,
    "registry": _registry,
}
"""What a line of a page that ends with ``<!-- from the code: … -->`` is replaced by."""


def on_files(files: Any, config: Any) -> Any:
    """MkDocs: add the pages that are files of the repository's root."""
    from mkdocs.structure.files import File

    for name, source in FROM_ROOT.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """MkDocs: fill in what comes from the code; let links that leave the site lead to the repository."""
    name = page.file.src_uri
    text = re.sub(".*<!-- from the code: (.+?) -->", lambda found: PARTS[found[1]](), markdown)
    return re.sub(r"\]\(([^)\s]+)\)", lambda found: f"]({_link(name, found[1])})", text)


def on_page_content(page_html: str, **_: Any) -> str:
    """MkDocs: keep options in the text from being broken at their hyphens."""
    return re.sub(r"(?<!<pre>)<code>([^<\n]+)</code>", _whole_words, page_html)


def _whole_words(found: re.Match[str]) -> str:
    words = re.sub(r"(?<!\S)\S{0,30}-\S{1,30}(?!\S)", r'<span class="word">\g<0></span>', found[1])
    return f"<code>{words}</code>"


def _link(page: str, target: str) -> str:
    """Where a link of a page leads on the site, or in the repository where the site has no such page."""
    path, mark, anchor = target.partition("#")
    if not path or ":" in path:
        return target
    folder = posixpath.dirname(FROM_ROOT.get(page, f"docs/{page}"))
    file = posixpath.normpath(posixpath.join(folder, path))
    pages = {source: made for made, source in FROM_ROOT.items()}
    if file not in pages and not file.startswith("docs/"):
        return f"{SOURCE}{file}{mark}{anchor}"
    wanted = pages.get(file, file.removeprefix("docs/"))
    return posixpath.relpath(wanted, posixpath.dirname(page) or ".") + mark + anchor


def manual_page() -> str:
    """The manual page, in roff."""
    lines = [
        f'.TH CKPTKIT 1 "" "ckptkit {__version__}" "User Commands"',
        ".SH NAME",
        f"ckptkit \\- {_roff(description(app.load_commands())[0]).rstrip('.')}",
        ".SH SYNOPSIS",
        ".B ckptkit",
        "[OPTIONS] COMMAND [ARGS]...",
        ".SH OPTIONS",
        *_definitions(parameters(app.load_commands())),
        ".SH COMMANDS",
    ]
    for name, command in every_command():
        text, examples = description(command)
        lines += [f".SS {_roff(name)}", "\n.P\n".join(map(_roff, text.split("\n\n")))]
        if not hasattr(command, "commands"):
            lines += _definitions(parameters(command))
        if examples:
            broken = [line for example in examples for line in pasteable(example, 70)]
            lines += [".P", "Examples:", ".nf", *(f"  {_roff(line, keep=True)}" for line in broken), ".fi"]
    lines += [".SH EXIT STATUS"]
    lines += _definitions((str(int(code)), text.replace("`", "")) for code, text in EXIT_CODES.items())
    lines += [
        *_definitions([(str(READER_GONE), GONE.replace("`", ""))]),
        ".SH SEE ALSO",
        _roff(REPOSITORY.removesuffix(".git")),
    ]
    return "\n".join(lines) + "\n"


def _definitions(pairs: Any) -> list[str]:
    return [line for label, text in pairs for line in (".TP", f".B {_roff(label)}", _roff(text) or "\\&")]


def _roff(text: object, *, keep: bool = False) -> str:
    """Text for roff, in ASCII: its control characters escaped; with ``keep`` its blanks stay."""
    line = str(text) if keep else " ".join(str(text).split())
    line = line.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    line = re.sub(r"[^\x00-\x7f]", lambda found: f"\\[u{ord(found[0]):04X}]", line)
    return f"\\&{line}" if line.startswith((".", "'")) else line


if __name__ == "__main__":
    sys.stdout.write(manual_page())
