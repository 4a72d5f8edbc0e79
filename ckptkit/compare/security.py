"""What a file would do on the machine that loads it: findings, as text, JSON and SARIF.

What is looked at, and how it is judged, is in `ckptkit.compare.scan`.
"""

from __future__ import annotations

import os
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from ckptkit._version import __version__
from ckptkit.base.errors import UsageError
from ckptkit.base.files import open_regular
from ckptkit.base.shown import Marked, Piece, Shown
from ckptkit.base.text import counted, escaped

Severity = Literal["dangerous", "suspicious", "harmless"]
SEVERITIES: Sequence[Severity] = ("dangerous", "suspicious", "harmless")

RULES: Mapping[str, str] = {
    "pickle-name": "A pickle imports a name, and perhaps calls it, when it is loaded.",
    "pickle-unclear": "A pickle has parts whose effect cannot be told without loading it.",
    "keras-code": "A Keras configuration holds code, or names code that loading it imports.",
    "hdf5-outside": "An HDF5 file takes data from other files.",
    "archive-path": "A member of an archive leads out of the folder that it is unpacked to, or is a link.",
    "onnx-outside": "An ONNX model keeps weights in files outside its folder.",
    "graph-code": "A file holds a program or operations that read or write files.",
    "not-scanned": "A part of the file could not be looked at.",
}
"""Kinds of findings, which are the rules of SARIF."""

_LEVELS = {"dangerous": "error", "suspicious": "warning", "harmless": "none"}
_COLOURS = {"dangerous": "red", "suspicious": "yellow", "harmless": "green"}
_WIDTH, _SHOWN, _LISTED = 80, 200, 20
_HEAD = 512


@dataclass(frozen=True)
class Finding:
    """One thing that a file does or holds."""

    severity: Severity
    rule: str  # a key of `RULES`
    place: str  # the part of the file, such as ``archive/data.pkl``; "" is the file itself
    offset: int | None  # in that part
    what: str  # the name or the member
    why: str  # what it does, in words
    file: str = ""  # of a folder, relative to it; "" where a file was scanned


@dataclass(frozen=True, repr=False)
class SecurityReport(Shown):
    """Everything that was found in one file or folder, the most dangerous first."""

    path: Path
    findings: tuple[Finding, ...]
    scanned: Mapping[str, int]  # what was looked at, by kind
    omitted: int = 0  # findings beyond those listed

    @property
    def verdict(self) -> Severity:
        """The most severe of the findings."""
        return min((one.severity for one in self.findings), key=SEVERITIES.index, default="harmless")

    @property
    def ok(self) -> bool:
        """Whether everything in it is known to be harmless."""
        return self.verdict == "harmless"

    @property
    def headline(self) -> str:
        """The result in one line."""
        counts = Counter(one.severity for one in self.findings)
        numbers = ", ".join(f"{counts[one]} {one}" for one in SEVERITIES if counts[one])
        return f"{self.path}: {self.verdict} ({numbers or 'nothing found'})"

    def pieces(self, *, everything: bool = False) -> Iterator[Piece]:
        """The verdict, then each finding with its place and reason; harmless names together."""
        yield Marked.of(self.headline, self.verdict, _COLOURS[self.verdict])
        kinds = ", ".join(counted(count, kind) for kind, count in self.scanned.items())
        yield from _wrapped(f"scanned: {kinds or 'nothing that can hold code or links'}")
        told = [one for one in self.findings if everything or one.severity != "harmless"]
        listed = told if everything else told[:_LISTED]
        for one in listed:
            yield ""
            what = one.what if len(one.what) <= _SHOWN else one.what[: _SHOWN - 1] + "…"
            first, *rest = _wrapped(f"{one.severity}: {what}")
            yield Marked.of(first, one.severity, _COLOURS[one.severity])
            yield from rest
            yield from _wrapped(f"{one.why}", "  ")
            where = [one.place] * bool(one.place) + [f"offset {one.offset}"] * (one.offset is not None)
            yield from _wrapped(f"at {', '.join(where)}", "  ") if where else ()
        if len(listed) < len(told):
            yield f"… and {len(told) - len(listed):,} more; --verbose shows all"
        harmless = list(dict.fromkeys(one.what for one in self.findings if one.severity == "harmless"))
        if harmless and not everything:
            yield ""
            more = f", … and {len(harmless) - _LISTED:,} more" if len(harmless) > _LISTED else ""
            yield from _wrapped(f"harmless: {', '.join(harmless[:_LISTED])}{more}", after="  ")
        if self.omitted:
            yield f"{counted(self.omitted, 'more finding', 'are')} not listed"

    def to_json(self) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes."""
        return {
            "path": str(self.path),
            "ok": self.ok,
            "verdict": self.verdict,
            "scanned": dict(self.scanned),
            "findings": [asdict(one) for one in self.findings],
            "omitted": self.omitted,
        }


def _wrapped(text: str, before: str = "", after: str = "") -> list[str]:
    return textwrap.wrap(
        escaped(text), _WIDTH, initial_indent=before, subsequent_indent=before + after, break_on_hyphens=False
    ) or [before]


def sarif(reports: Iterable[SecurityReport]) -> dict[str, Any]:
    """The findings of several files in the Static Analysis Results Interchange Format 2.1.0.

    Examples
    --------
    >>> found = Finding("dangerous", "pickle-name", "data.pkl", 3, "os.system", "runs commands")
    >>> log = sarif([SecurityReport(Path("a b.pth"), (found,), {})])
    >>> log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    'a%20b.pth'
    """
    rules = [{"id": id, "shortDescription": {"text": text}} for id, text in RULES.items()]
    numbers = {id: number for number, id in enumerate(RULES)}
    results = [
        {
            "ruleId": one.rule,
            "ruleIndex": numbers[one.rule],
            "level": _LEVELS[one.severity],
            "kind": "fail" if one.severity != "harmless" else "informational",  # which has no level
            "message": {"text": f"{one.what}: {one.why}"},
            "locations": [_location(report.path, one)],
        }
        for report in reports
        for one in report.findings
    ]
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "ckptkit", "version": __version__, "rules": rules}},
                "columnKind": "unicodeCodePoints",
                "results": results,
            }
        ],
    }


def refuse_other_file(path: Path) -> None:
    """Refuse to replace anything but such a file; the next one replaces an older one, as CI wants."""
    with suppress(OSError), open_regular(path) as file:  # nothing there, or a device: see StagedFile
        head = file.read(_HEAD)
        if head and b"sarif" not in head:
            raise UsageError(f"{path} exists and is not a SARIF file", hint="name another file")


def _location(path: Path, found: Finding) -> dict[str, Any]:
    path /= found.file
    uri = path.as_uri() if path.is_absolute() else quote(os.fsencode(path.as_posix()))
    physical: dict[str, Any] = {"artifactLocation": {"uri": uri}}
    place = found.place.removeprefix(found.file).removeprefix(":")
    if not place and found.offset is not None:
        physical["region"] = {"byteOffset": found.offset}
    location: dict[str, Any] = {"physicalLocation": physical}
    if place:
        where = place if found.offset is None else f"{place}@{found.offset}"
        location["logicalLocations"] = [{"fullyQualifiedName": where}]
    return location
