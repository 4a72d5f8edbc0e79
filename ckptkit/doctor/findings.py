"""What an examination finds: one thing looked at, what it is like, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    section : str
        Under which heading it stands: ``versions``, ``packages``, ``cache``, …
    name : str
        What was looked at.
    verdict : {"ok", "note", "problem"}
        A note is worth knowing; a problem stands in the way of fetching, verifying and converting.
    said : str
        What was found.
    advice : str
        What to do; empty where there is nothing to do.
    """

    section: str
    name: str
    verdict: Verdict
    said: str
    advice: str = ""


@dataclass(frozen=True)
class Examination:
    """Everything that was found.

    Attributes
    ----------
    findings : tuple of Finding
        In the order of their sections.
    """

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.of("problem")

    def of(self, verdict: Verdict) -> list[Finding]:
        """The findings with one verdict."""
        return [finding for finding in self.findings if finding.verdict == verdict]

    @property
    def sections(self) -> Sequence[str]:
        """The headings, in order."""
        return list(dict.fromkeys(finding.section for finding in self.findings))

    def to_json(self) -> dict[str, Any]:
        """Plain values that `json.dumps` takes."""
        return {
            "ok": self.ok,
            "problems": len(self.of("problem")),
            "notes": len(self.of("note")),
            "findings": [asdict(finding) for finding in self.findings],
        }
