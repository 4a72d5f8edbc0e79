"""The examples a user reads: those of README and documentation, and those that each command's help prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ckptkit.cli.app import load_commands
from tests.conftest import REPOSITORY

_BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
_PROGRAM = re.compile(r"```python\n(.*?)```", re.DOTALL)
_PLACEHOLDER = re.compile(r"(?<= )[A-Z]+(?= |$)")  # ID, FILE: not to be typed as it is
_INLINE = re.compile(r"(?<!`)`(ckptkit [^`]+)`(?!`)")


@dataclass(frozen=True)
class Example:
    """One command line and where it is printed."""

    where: str
    line: str


DOCS = REPOSITORY / "docs"
TUTORIAL = DOCS / "tutorial.md"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.glob("howto/*.md")), *sorted(DOCS.glob("explanation/*.md"))]
"""Pages whose examples stand alone; those of the tutorial follow one another."""


def page_examples() -> list[Example]:
    """Every ``$ ckptkit …`` in a console block of a page, and every command in its running text."""
    return [example for page in PAGES for example in examples_of(page)]


def examples_of(page: Path) -> list[Example]:
    text = page.read_text(encoding="utf-8")
    blocks = [
        line.removeprefix("$ ").partition(" # ")[0].strip()
        for block in _BLOCK.findall(text)
        for line in map(str.strip, re.sub(r"\\\n\s*", "", block).splitlines())
        if line.startswith("$ ")
    ]
    inline = [" ".join(found.split()) for found in _INLINE.findall(_BLOCK.sub("", text))]
    inline = [line for line in inline if not _PLACEHOLDER.search(line)]
    return [Example(page.name, line) for line in dict.fromkeys([*blocks, *inline])]


def page_programs() -> dict[str, str]:
    """The pages' Python blocks, by page and number."""
    return {f"{page.name}-{n}": text for page in PAGES for n, text in enumerate(programs_of(page))}


def programs_of(page: Path) -> list[str]:
    """A page's Python blocks."""
    return _PROGRAM.findall(page.read_text(encoding="utf-8"))


@cache
def commands() -> list[str]:
    """Every command, groups' ones with both words, as click knows them."""
    return sorted(" ".join(words) for words in _leaves(load_commands(), ()))


def _leaves(command: object, words: tuple[str, ...]) -> list[tuple[str, ...]]:
    below = getattr(command, "commands", None)
    if below is None:
        return [words]
    return [leaf for name, child in below.items() for leaf in _leaves(child, (*words, name))]


def printed_examples(command: str) -> list[Example]:
    """What stands under ``Examples:`` in the help of a command, as it is really printed in a pipe."""
    section = _helps()[command].partition("  Examples:\n")[2].partition("\n\n")[0]
    return [Example(f"{command} --help", line.strip()) for line in section.splitlines()]


@cache
def _helps() -> dict[str, str]:
    """Every command's help, all printed into one pipe."""
    program = (
        "import sys; from ckptkit.cli.app import main\n"
        "for command in sys.argv[1:]:\n"
        "    try: main([*command.split(), '--help'])\n"
        "    except SystemExit: print('<end>', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *commands()],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    return dict(zip(commands(), done.stdout.split("<end>\n")[:-1], strict=True))
