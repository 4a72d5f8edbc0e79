"""What ``--help`` prints, the same in a pipe, in the manual page and, with bold headings, on a terminal.

Every option is whole on one line, and examples can be pasted. typer's own help differs between its versions.
"""

from __future__ import annotations

import copy
import inspect
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from ckptkit._version import DOCUMENTATION
from ckptkit.cli.output import pasteable, width_of

_HEAD = "Examples: "
_BETWEEN = " · "
_WIDEST = 100
_LABELS = 28
"""Columns of the names of options; longer ones have their text below."""
_NOT_SHOWN = (None, "", inspect.Parameter.empty)
_METAVARS: Mapping[type, str] = {int: "N", float: "X", Path: "PATH"}
_GLOBAL = "Before or after the command: --quiet --verbose --offline --registry FILE --mirror FROM=TO"


def described(parameter: inspect.Parameter) -> inspect.Parameter:
    """A command's parameter with its metavar, its range and its default in words."""
    if get_origin(parameter.annotation) is not Annotated:
        return parameter
    kind, given, *_ = get_args(parameter.annotation)
    info: Any = copy.copy(given)
    kinds = _kinds(kind)
    default = parameter.default
    is_argument = type(info).__name__ == "ArgumentInfo"
    info.metavar = info.metavar or (parameter.name.upper() if is_argument else _metavar(kinds))
    remarks = []
    if info.min is not None or info.max is not None:
        remarks.append(_range(info.min, info.max))
    values = [
        one.value if isinstance(one, Enum) else one
        for one in (default if isinstance(default, list | tuple) else [default])
    ]
    if info.show_default and not any(one in _NOT_SHOWN or isinstance(one, bool) for one in values):
        remarks.append(f"default: {', '.join(map(str, values))}")
    if remarks:
        info.help = f"{(info.help or '').rstrip('.')} ({', '.join(remarks)})."
    info.show_default = False
    return parameter.replace(annotation=Annotated[kind, info])


def _kinds(kind: Any) -> list[Any]:
    """The plain types of an annotation: of its alternatives, and of what a list holds."""
    if get_origin(kind) in {Union, types.UnionType, list}:
        return [plain for part in get_args(kind) for plain in _kinds(part)]
    return [] if kind is type(None) else [kind]


def _metavar(kinds: Sequence[Any]) -> str | None:
    for kind in kinds:
        if kind is bool:
            return None
        if isinstance(kind, type) and issubclass(kind, Enum):
            return f"<{'|'.join(one.value for one in kind)}>"
        if kind in _METAVARS:
            return _METAVARS[kind]
    return "NAME"


def _range(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f"{least:g} to {most:g}"
    return f"at least {least:g}" if least is not None else f"at most {most:g}"


def record(param: Any) -> tuple[str, str]:
    """How an option or argument is written, and what it does."""
    if param.param_type_name == "argument":
        return _argument(param), param.help or ""
    names = ", ".join([*sorted(param.opts, key=len), *param.secondary_opts])
    metavar = "" if param.is_flag or not param.metavar else f" {param.metavar}"
    needed = " (required)" if param.required else ""
    return f"{names}{metavar}", f"{(param.help or '').rstrip('.')}{needed}." if needed else param.help or ""


def _argument(param: Any) -> str:
    name = str(param.metavar or param.name.upper())
    return name if param.required or name.startswith("[") else f"[{name}]"


def examples_in(help_text: str) -> list[str]:
    r"""Return the commands of a docstring's last paragraph, ``Examples: one · another``.

    Examples
    --------
    >>> examples_in("Do it.\n\nExamples: ckptkit list\n· ckptkit list 'moat*'")
    ['ckptkit list', "ckptkit list 'moat*'"]
    """
    last = help_text.strip().rpartition("\n\n")[2]
    if not last.startswith(_HEAD):
        return []
    return " ".join(last.removeprefix(_HEAD).split()).split(_BETWEEN)


def help_of(described: object) -> str:
    """A docstring, or a command's, a paragraph a line, and its examples on lines of their own."""
    text = described if isinstance(described, str) else inspect.getdoc(described) or ""
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n")]
    if found := examples_in(text):
        paragraphs[-1] = "\n".join(["Examples:", *(f"  {example}" for example in found)])
    return "\n\n".join(paragraphs)


def _arguments(command: Any) -> list[Any]:
    return [param for param in command.params if param.param_type_name == "argument"]


def usage(context: Any) -> str:
    """How a command is written."""
    command = context.command
    below = ["COMMAND [ARGS]…"] if hasattr(command, "commands") else []
    needed = [
        f"{min(param.opts, key=len)} {param.metavar}"
        for param in command.params
        if param.required and param.param_type_name == "option"
    ]
    words = ["[OPTIONS]", *needed, *map(_argument, _arguments(command)), *below]
    return f"Usage: {context.command_path} {' '.join(words)}"


def page(command: Any, context: Any, summaries: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """The help of a command; of a group with the summaries of its commands, by heading."""
    stream = sys.stdout
    is_seen = stream.isatty()
    room = min(width_of(stream), _WIDEST)
    arguments = _arguments(command)
    options = [param for param in command.get_params(context) if param not in arguments and not param.hidden]
    lines = _paragraph(usage(context), room, 2, first="")
    for paragraph in (command.help or "").split("\n\n"):
        head, *examples = paragraph.split("\n")
        lines += ["", *_paragraph(head, room, 2)]
        for example in map(str.strip, examples):
            lines += pasteable(example, room, "    ") if is_seen else [f"    {example}"]
    longest = max((len(name) for commands in (summaries or {}).values() for name in commands), default=0)
    for heading, commands in (summaries or {}).items():
        lines += ["", _heading(f"{heading}:"), *_listed(commands.items(), room, longest)]
    for heading, params in (("Arguments:", arguments), ("Options:", options)):
        if params:
            lines += ["", _heading(heading), *_listed(map(record, params), room)]
    last = f"Documentation: {DOCUMENTATION}" if context.parent is None else _GLOBAL
    return "\n".join([*lines, "", *_paragraph(last, room, 2)])


def _heading(text: str) -> str:
    import typer

    return typer.style(text, bold=True)  # click takes it off where it is not wanted


def _listed(rows: Iterable[tuple[str, str]], room: int, longest: int = 0) -> Iterator[str]:
    """Names on the left, what they mean on the right, or below a name that is too long."""
    rows = list(rows)
    column = min(max(longest, *(len(name) for name, _ in rows)) + 4, _LABELS)
    for name, text in rows:
        fits = len(name) + 4 <= column
        lines = _paragraph(text, room, column)
        if fits:
            first = lines[0].lstrip() if lines else ""
            yield f"  {name:<{column - 2}}{first}".rstrip()
        else:
            yield f"  {name}"
        yield from lines[fits:]


def _paragraph(text: str, room: int, indent: int, first: str | None = None) -> list[str]:
    margin = " " * indent
    return textwrap.wrap(
        text,
        room,
        initial_indent=margin if first is None else first,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    )


def shown_by(command: Any, summaries: Callable[[], Mapping[str, Mapping[str, str]]] | None = None) -> Any:
    """What click calls for the help of a command."""

    def format_help(context: Any, formatter: Any) -> None:
        formatter.write(page(command, context, summaries() if summaries else None) + "\n")

    return format_help
