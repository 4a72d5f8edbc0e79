"""Where things stand in YAML text, how the text is edited there, and the edits that pin a checksum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from ckptkit.base.errors import UsageError
from ckptkit.base.text import escaped

PINNED_FIELDS = ("sha256", "size", "hash_provenance")

Kind = Literal["scalar", "alias", "mapping", "sequence"]
Replacement = tuple[int, int, str]
"""Start and end of what goes, in characters, and what comes there."""


@dataclass(frozen=True)
class Pin:
    """What was observed of an entry's file.

    Parameters
    ----------
    id : str
    sha256 : str
        64 lower-case hex digits.
    size : int
        Bytes.
    observed_at : str
        ISO 8601 with its zone.
    url : str
        From where it was fetched.
    note : str, optional
        What else is known of the checksum: which of the server's were compared with it.
    """

    id: str
    sha256: str
    size: int
    observed_at: str
    url: str
    note: str | None = None

    def fields(self) -> dict[str, Any]:
        """Return the three pinned fields as an `Entry` holds them."""
        provenance = {"observed_at": self.observed_at, "url": self.url, "note": self.note}
        return {"sha256": self.sha256, "size": self.size, "hash_provenance": provenance}

    def written(self) -> dict[str, str]:
        """Return the three fields as YAML text."""
        when, where = escaped(self.observed_at, "yaml"), escaped(self.url, "yaml")
        note = f", note: {escaped(self.note, 'yaml')}" if self.note else ""
        return {
            # Quoted: 64 digits without a letter would be a number.
            "sha256": escaped(self.sha256, "yaml"),
            "size": str(self.size),
            "hash_provenance": f"{{observed_at: {when}, url: {where}{note}}}",
        }


@dataclass
class Span:
    """A value and where it stands: characters from the start of the text.

    An alias is a leaf at its own place, which nodes of a YAML tree would not tell.
    """

    kind: Kind
    start: int
    end: int
    column: int
    line: int
    value: str = ""
    flow: bool = False
    block_scalar: bool = False
    children: list[Span] = field(default_factory=list)

    def pairs(self) -> Iterator[tuple[Span, Span]]:
        """Keys and values of a mapping."""
        return zip(self.children[::2], self.children[1::2], strict=True)

    def get(self, key: str) -> Span | None:
        """Value of a key of a mapping."""
        if self.kind != "mapping":
            return None
        return next((value for name, value in self.pairs() if name.value == key), None)


def spans(text: str) -> Span:
    """Tree of the first document of ``text``, which is known to be valid YAML."""
    root = Span("sequence", 0, 0, 0, 0)
    stack = [root]
    # The pure-Python scanner counts characters of this very text; libyaml counts without a byte-order mark.
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            kind: Kind = "mapping" if isinstance(event, yaml.MappingStartEvent) else "sequence"
            span = _span(event, kind)
            span.flow = bool(event.flow_style)
            stack[-1].children.append(span)
            stack.append(span)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            span = stack.pop()
            # A block collection "ends" at the next token, behind comments that are not its own.
            span.end = (
                _span(event, span.kind).end if span.flow or not span.children else span.children[-1].end
            )
        elif isinstance(event, yaml.AliasEvent):
            stack[-1].children.append(_span(event, "alias"))
        elif isinstance(event, yaml.ScalarEvent):
            span = _span(event, "scalar")
            span.value = event.value
            span.block_scalar = event.style in {"|", ">"}
            span.end = span.start + len(text[span.start : span.end].rstrip())
            stack[-1].children.append(span)
    return root.children[0]


def _span(event: Any, kind: Kind) -> Span:
    start = event.start_mark
    return Span(kind, start.index, event.end_mark.index, start.column, start.line + 1)


def pinned_text(text: str, pins: Sequence[Pin], path: Path) -> str:
    """Return ``text`` with the three fields of every pin written into its entry, or into a new entry.

    Parameters
    ----------
    text : str
        A valid registry.
    pins : sequence of Pin
    path : Path
        For messages.

    Raises
    ------
    UsageError
        When an entry is written in a way that cannot be edited in place.
    """
    newline = newline_of(text)
    entries = entry_list(text, path, hint="write the checksum by hand")
    places = entry_places(entries)
    edits: list[Replacement] = []
    for pin in pins:
        if pin.id in places:
            edits += _edits(text, places[pin.id], pin, newline, path)
    bodies = [_body(pin) for pin in pins if pin.id not in places]
    return edited(text, [*edits, *appended(text, entries, bodies, newline)])


def _body(pin: Pin) -> list[str]:
    """Lines of an entry that holds a pin alone."""
    return [f"id: {escaped(pin.id, 'yaml')}", *(f"{name}: {value}" for name, value in pin.written().items())]


def newline_of(text: str) -> str:
    """How lines end in ``text``."""
    return "\r\n" if "\r\n" in text else "\n"


def entry_list(text: str, path: Path, *, hint: str) -> Span:
    """Place of the list of entries in a valid registry.

    Raises
    ------
    UsageError
        When it stands elsewhere, behind an alias.
    """
    entries = spans(text).get("entries")
    if entries is None or entries.kind != "sequence":
        raise UsageError(f"{path}: 'entries' is not a list in this place", hint=hint)
    return entries


def entry_places(entries: Span) -> dict[str, Span]:
    """Place of each entry, by id."""
    return {found.value: entry for entry in entries.children if (found := entry.get("id")) is not None}


def edited(text: str, edits: Sequence[Replacement]) -> str:
    """Return ``text`` with all replacements made; of several at one place the first stands first."""
    parts, done = [], 0
    for start, end, replacement in sorted(edits, key=lambda edit: edit[0]):
        parts += [text[done:start], replacement]
        done = max(done, end)
    return "".join([*parts, text[done:]])


def _edits(text: str, entry: Span, pin: Pin, newline: str, path: Path) -> list[Replacement]:
    """Replacements that bring one entry's fields up to date."""
    edits: list[Replacement] = []
    missing: list[str] = []
    for name, written in pin.written().items():
        value = entry.get(name)
        if value is None:
            missing.append(f"{name}: {written}")
        elif value.block_scalar or value.kind == "alias":
            raise UsageError(
                f"{path}: line {value.line}: {name} of {pin.id!r} is written as an alias or a text block",
                hint="write a plain value (or null) there, then pin again",
            )
        else:
            blank = "" if value.start == 0 or text[value.start - 1].isspace() else " "
            edits.append((value.start, value.end, blank + written))
    if missing:
        edits.append(_insertion(text, entry, missing, newline))
    return edits


def _insertion(text: str, entry: Span, lines: list[str], newline: str) -> Replacement:
    """Put new fields behind the sources, or at the end of the entry."""
    after = entry.get("sources")
    if entry.flow:
        end = entry.children[-1].end
        return end, end, "".join(f", {line}" for line in lines)
    end = (after or entry).end
    indent = " " * entry.children[0].column
    return behind_line(text, end, [indent + line for line in lines], newline)


def behind_line(text: str, position: int, lines: list[str], newline: str) -> Replacement:
    """Put new lines behind the line that holds ``position``, so that a comment at its end stays with it."""
    end = text.find("\n", position)
    block = newline.join(lines)
    if end < 0:
        return len(text), len(text), newline + block
    return end + 1, end + 1, block + newline


def appended(text: str, entries: Span, bodies: Sequence[list[str]], newline: str) -> list[Replacement]:
    """New entries at the end of the list, each given as the lines of its fields."""
    if not bodies:
        return []
    if entries.flow and entries.children:
        end = entries.children[-1].end
        return [(end, end, "".join(", {" + ", ".join(body) + "}" for body in bodies))]
    column = 2 if entries.flow else entries.column
    lines: list[str] = []
    for body in bodies:
        first, *rest = body
        blank = [""] if lines or entries.children else []
        lines += [*blank, " " * column + f"- {first}", *(" " * (column + 2) + line for line in rest)]
    if not entries.children:  # entries: []
        start = len(text[: entries.start].rstrip(" "))
        return [(start, entries.end, newline + newline.join(lines))]
    return [behind_line(text, entries.end, lines, newline)]
