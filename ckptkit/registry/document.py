"""YAML text as plain values, each with its line, and every fault of the text at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ckptkit.base.budget import Budget
from ckptkit.base.errors import CkptkitError
from ckptkit.base.files import open_named, storage_error

Location = tuple[str | int, ...]

MAX_DEPTH = 24
"""Nesting; a registry needs six."""
MAX_NODES = 50_000
"""Values after aliases are followed, so that a bomb of aliases ends early; 93 entries make about 2,500."""

MAX_DIGITS = 400
"""Of one number; Python reads longer ones in a time that grows with the square of their length."""

_LONGEST_FAULT = 500
_TAG = "tag:yaml.org,2002:"
_DECIMALS: dict[type[int] | type[float], re.Pattern[str]] = {
    int: re.compile("[-+]?(?:0|[1-9][0-9]*)"),
    float: re.compile(
        r"[-+]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[-+]?[0-9]+)?|\.inf|\.nan)", re.IGNORECASE
    ),
}
_OTHER_NUMBERS = (
    ("a hexadecimal number", re.compile("[-+]?0x")),
    ("a binary number", re.compile("[-+]?0b")),
    ("a number in base 60", re.compile("[^:]*:")),
    ("a number with underscores", re.compile("[^_]*_")),
    ("an octal number", re.compile("[-+]?0")),
)
"""How numbers begin that are some to YAML 1.1 too, and that hardly anybody means."""
_BOOLS = yaml.constructor.SafeConstructor.bool_values
_PLAIN = {_TAG + name for name in ("null", "bool", "int", "float", "str")}
_COLLECTIONS = {_TAG + "map", _TAG + "seq"}


@dataclass
class Document:
    """A parsed YAML file."""

    value: Any = None  # dicts, lists and scalars; None when the text could not be parsed
    lines: dict[Location, int] = field(default_factory=dict)  # from 1, of each key and list item, by its path
    faults: list[tuple[int, str]] = field(default_factory=list)  # line and what is wrong there

    def line(self, *location: str | int) -> int:
        """Line of a value, or of the nearest thing around it that has one."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)


def read_text(
    path: Path,
    most: int,
    absent: CkptkitError,
    refuse: Callable[[str], CkptkitError],
    encoding: str = "utf-8",
) -> tuple[str, bytes]:
    """Text of a file that a user names, newlines as they are, and its bytes; at most ``most`` of them.

    ``refuse`` makes an error of what is wrong, which begins with the line.
    """
    try:
        with open_named(path) as file:
            data = file.read(most + 1)
    except FileNotFoundError as error:
        raise absent from error
    except OSError as error:
        raise storage_error(error, path) from error
    if len(data) > most:
        raise refuse(f"line 1: larger than {most:,} bytes")
    try:
        return data.decode(encoding), data
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise refuse(f"line {line}: not UTF-8 text: byte 0x{data[error.start]:02x}") from error


class _TooMuchError(Exception):
    """The document asks for more than any registry needs."""

    def __init__(self, what: str, line: int = 1) -> None:
        super().__init__(what)
        self.line = line


class _Bounded:
    """A part of a loader, which ends it before what it reads exhausts the stack or the memory."""

    _depth = 0
    _count = 0

    def descend_resolver(self, current_node: yaml.Node | None, current_index: Any) -> None:
        """Count a value; PyYAML calls this before it reads what is in it."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _TooMuchError(f"nested more than {MAX_DEPTH} levels deep", _line(current_node))
        self._count_one(current_node)
        super().descend_resolver(current_node, current_index)  # type: ignore[misc]

    def compose_node(self, parent: yaml.Node | None, index: Any) -> Any:
        """Count an alias, which the loader written in Python reads slowly."""
        if self.check_event(yaml.AliasEvent):  # type: ignore[attr-defined]
            self._count_one(parent)
        return super().compose_node(parent, index)  # type: ignore[misc]

    def _count_one(self, parent: yaml.Node | None) -> None:
        self._count += 1
        if self._count > 2 * MAX_NODES:
            raise _TooMuchError(f"more than {MAX_NODES:,} values", _line(parent))

    def ascend_resolver(self) -> None:
        """Leave a value."""
        self._depth -= 1
        super().ascend_resolver()  # type: ignore[misc]


def bounded_loader(loader: Any) -> Any:
    """A loader of PyYAML's with bounds."""
    return type(f"Bounded{loader.__name__}", (_Bounded, loader), {})


_LOADER = bounded_loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def parse(text: str) -> Document:
    """Read YAML text; faults are listed, never raised."""
    document = Document()
    try:
        node = yaml.compose(text, Loader=_LOADER)
        if node is not None:
            document.value = _Builder(document, len(text)).build(node, ())
    except _TooMuchError as error:
        document.faults.append((error.line, str(error)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(part for part in (error.context, error.problem) if part)
        document.faults.append((mark.line + 1 if mark else 1, bounded(f"not YAML: {what}")))
    except yaml.YAMLError as error:
        document.faults.append((1, bounded(f"not YAML: {' '.join(str(error).split())}")))
    return document


def bounded(what: str) -> str:
    """Cut a sentence that quotes a file at length."""
    return what if len(what) <= _LONGEST_FAULT else what[: _LONGEST_FAULT - 1] + "…"


def short(text: str, *, quoted: bool = True) -> str:
    """The start of a text that a fault quotes."""
    cut = text if len(text) <= 40 else text[:39] + "…"
    return repr(cut) if quoted else cut


def _line(node: yaml.Node | None) -> int:
    """Line of a node, from 1."""
    return node.start_mark.line + 1 if node is not None and node.start_mark else 1


class _Builder:
    """Turns nodes into values."""

    def __init__(self, document: Document, nbytes: int) -> None:
        self._document = document
        self._open: set[int] = set()
        self._left = MAX_NODES
        self._budget = Budget(nbytes, _TooMuchError)

    def build(self, node: yaml.Node, location: Location) -> Any:
        """Value of a node; its lines and faults go into the document."""
        self._left -= 1
        if self._left < 0:
            raise _TooMuchError(f"more than {MAX_NODES:,} values once aliases are followed")
        if id(node) in self._open:
            self._fault(node, "an alias to something that contains it")
            return None
        self._document.lines.setdefault(location, _line(node))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if node.tag not in _COLLECTIONS:
            return self._foreign_tag(node)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.build(child, (*location, index)) for index, child in enumerate(node.value)]
            return self._mapping(node, location)
        finally:
            self._open.discard(id(node))

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text, tag = node.value, node.tag
        self._budget.spend(names=len(text))  # again for every alias: whoever checks it reads it again
        if tag == _TAG + "timestamp":
            return text  # times stay text: the schema checks them
        if tag not in _PLAIN:
            return self._foreign_tag(node)
        if tag in (_TAG + "int", _TAG + "float"):
            return self._number(node, text, float if tag.endswith("float") else int)
        if tag == _TAG + "null":
            return None
        if tag == _TAG + "bool" and text.lower() not in _BOOLS:
            self._fault(node, f"{short(text)} cannot be read as bool")
            return None
        return _BOOLS[text.lower()] if tag == _TAG + "bool" else text

    def _foreign_tag(self, node: yaml.Node) -> None:
        self._fault(node, f"the tag {short(node.tag.replace(_TAG, '!!'), quoted=False)} has no place here")

    def _number(self, node: yaml.ScalarNode, text: str, kind: type[int] | type[float]) -> int | float | None:
        """Value of a decimal number; others are named but not read, which may take long."""
        if len(text) <= MAX_DIGITS and _DECIMALS[kind].fullmatch(text):
            return kind(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        other = next((other for other, start in _OTHER_NUMBERS if start.match(text)), None)
        if other is None or _DECIMALS[kind].fullmatch(text):
            self._fault(node, f"{short(text)} cannot be read as {kind.__name__}")
        else:
            advice = "write it in decimal, or in quotes where it is text"
            self._fault(node, f"{short(text)} is {other} in YAML; {advice}")
        return None

    def _mapping(self, node: yaml.Node, location: Location) -> dict[str, Any]:
        value: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                merged.append(value_node)
                continue
            key = key_node.value
            line = _line(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self._fault(key_node, "a key must be text")
                continue
            if key in first_lines:
                self._fault(key_node, f"key {short(key)} is given twice (first on line {first_lines[key]})")
                continue
            first_lines[key] = line
            self._document.lines[(*location, key)] = line
            value[key] = self.build(value_node, (*location, key))
        bases = [self.build(base, (*location, "<<")) for base in self._merged(merged)]
        if not bases:
            return value
        whole: dict[str, Any] = {}
        for base in reversed(bases):
            whole.update(base or {})  # None: an alias to something that contains it
        whole.update(value)
        return whole

    def _merged(self, nodes: list[yaml.Node]) -> Iterator[yaml.Node]:
        """Mappings after ``<<``; the first named one wins, as YAML 1.1 has it."""
        for node in nodes:
            members = node.value if isinstance(node, yaml.SequenceNode) else [node]
            for member in members:
                if isinstance(member, yaml.MappingNode):
                    yield member
                else:
                    self._fault(member, "<< takes a mapping or a list of mappings")

    def _fault(self, node: yaml.Node, what: str) -> None:
        self._document.faults.append((_line(node), what))
