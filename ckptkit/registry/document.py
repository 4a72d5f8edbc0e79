"""YAML text as plain values, each with the line it stands on, and every fault of the text at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

Location = tuple[str | int, ...]

MAX_DEPTH = 24
"""Nesting; a registry needs six."""
MAX_NODES = 50_000
"""Values after aliases are followed, so that a bomb of aliases ends early; 42 entries make about 1,000."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_DECIMAL = re.compile(
    r"[-+]?(0|[1-9][0-9]*)|[-+]?([0-9]+\.[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|[-+]?\.(inf|nan)", re.IGNORECASE
)
_OTHER_NUMBERS = {
    "a hexadecimal number": re.compile("[-+]?0x.*"),
    "a binary number": re.compile("[-+]?0b.*"),
    "a number in base 60": re.compile(".*:.*"),
    "a number with underscores": re.compile(".*_.*"),
    "an octal number": re.compile("[-+]?0.*"),
}
"""What YAML 1.1 takes for a number too, and hardly anybody means."""
_PLAIN = {_TAG + name for name in ("null", "bool", "int", "float", "str")}


@dataclass
class Document:
    """A parsed YAML file.

    Parameters
    ----------
    value : object
        Dicts, lists and scalars; None when the text could not be parsed.
    lines : dict of location to int
        Line (from 1) of each key and list item, by its path from the root.
    faults : list of (int, str)
        Line and what is wrong there.
    """

    value: Any = None
    lines: dict[Location, int] = field(default_factory=dict)
    faults: list[tuple[int, str]] = field(default_factory=list)

    def line(self, *location: str | int) -> int:
        """Line of a value, or of the nearest thing around it that has one."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)


class _TooMuchError(Exception):
    """The document is larger than any registry."""


def parse(text: str) -> Document:
    """Read YAML text; faults are listed, never raised."""
    document = Document()
    try:
        fault = _excess(text)
        node = None if fault else yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(part for part in (error.context, error.problem) if part)
        fault = (mark.line + 1 if mark else 1, f"not YAML: {what}")
    except yaml.YAMLError as error:
        fault = (1, f"not YAML: {' '.join(str(error).split())}")
    if fault:
        document.faults.append(fault)
        return document
    if node is not None:
        try:
            document.value = _Builder(document).build(node, ())
        except _TooMuchError:
            document.value = None
            document.faults.append((1, f"more than {MAX_NODES:,} values once aliases are followed"))
    return document


def _excess(text: str) -> tuple[int, str] | None:
    """Find what would exhaust the stack or the memory, one event at a time, before a tree is built."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1
        if depth > MAX_DEPTH:
            return _line(event), f"nested more than {MAX_DEPTH} levels deep"
        if count > 2 * MAX_NODES:
            return _line(event), f"more than {MAX_NODES:,} values"
    return None


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")


def _line(place: yaml.Event | yaml.Node) -> int:
    """Line of an event or node, from 1."""
    return place.start_mark.line + 1 if place.start_mark else 1


class _Builder:
    """Turns nodes into values."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._scalars = yaml.constructor.SafeConstructor()
        self._open: set[int] = set()
        self._left = MAX_NODES

    def build(self, node: yaml.Node, location: Location) -> Any:
        """Value of a node; its lines and faults go into the document."""
        self._left -= 1
        if self._left < 0:
            raise _TooMuchError
        if id(node) in self._open:
            self._fault(node, "an alias to something that contains it")
            return None
        self._document.lines.setdefault(location, _line(node))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.build(child, (*location, index)) for index, child in enumerate(node.value)]
            return self._mapping(node, location)
        finally:
            self._open.discard(id(node))

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag == _TAG + "timestamp":
            return node.value  # times stay text: the schema checks them
        if node.tag in (_TAG + "int", _TAG + "float") and not _DECIMAL.fullmatch(node.value):
            kind = next((kind for kind, form in _OTHER_NUMBERS.items() if form.fullmatch(node.value)), None)
            if kind is not None:
                advice = "write it in decimal, or in quotes where it is text"
                self._fault(node, f"{_short(node.value)} is {kind} in YAML; {advice}")
                return None
        if node.tag not in _PLAIN:
            self._fault(node, f"the tag {node.tag.replace(_TAG, '!!')} has no place here")
            return None
        try:
            return self._scalars.construct_object(node)
        except (ValueError, KeyError, yaml.YAMLError):
            self._fault(node, f"{_short(node.value)} cannot be read as {node.tag.replace(_TAG, '')}")
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
                self._fault(key_node, f"key {_short(key)} is given twice (first on line {first_lines[key]})")
                continue
            first_lines[key] = line
            self._document.lines[(*location, key)] = line
            value[key] = self.build(value_node, (*location, key))
        for inherited in self._merged(merged):
            built = self.build(inherited, (*location, "<<"))
            value = {**(built if isinstance(built, dict) else {}), **value}
        return value

    def _merged(self, nodes: list[yaml.Node]) -> Iterator[yaml.Node]:
        """Mappings behind ``<<``; the first named one wins, as YAML 1.1 has it."""
        for node in nodes:
            members = node.value if isinstance(node, yaml.SequenceNode) else [node]
            for member in members:
                if isinstance(member, yaml.MappingNode):
                    yield member
                else:
                    self._fault(member, "<< takes a mapping or a list of mappings")

    def _fault(self, node: yaml.Node, what: str) -> None:
        self._document.faults.append((_line(node), what))
