"""``doctor``: whether this machine has what ckptkit needs, and what to do where it has not."""

from __future__ import annotations

import shutil
import textwrap
from typing import TYPE_CHECKING

import typer

from ckptkit.cli.options import state_of
from ckptkit.cli.output import Output

if TYPE_CHECKING:
    from ckptkit.doctor import Examination, Finding

_COLOURS = {"ok": typer.colors.GREEN, "note": typer.colors.YELLOW, "problem": typer.colors.RED}
_MARGIN = 11
"""Columns before a finding's name: two, the longest verdict, two."""


def doctor(context: typer.Context) -> None:
    """Check what ckptkit depends on, and show what to do where something is missing.

    Versions, optional packages, the cache folder, the lock file, registries, environment variables, the hosts
    of the registry, GPUs, the terminal. Changes nothing. A note is worth knowing; a problem stands in the way
    of fetching, verifying and converting, and makes the command exit with 1. With --offline no host is asked.

    Examples: ckptkit doctor --offline · ckptkit doctor --offline --json
    """
    from ckptkit.cli.output import ExitCode
    from ckptkit.doctor import examine

    state = state_of(context)
    with state.output.progress("checking this machine", None, unit="answers") as advance:
        found = examine(
            offline=state.offline,
            registries=state.registries,
            mirrors=state.mirrors,
            advance=advance,
            stdout=state.output.stdout,
        )
    state.output.result(found, lambda: print_examination(state.output, found))
    if not found.ok:
        raise typer.Exit(int(ExitCode.CHECK_FAILED))


def print_examination(output: Output, found: Examination) -> None:
    """Print every finding under its heading, then what it comes to."""
    width = max(len(finding.name) for finding in found.findings)
    for section in found.sections:
        output.text(section, marked=section, bold=True)
        for finding in found.findings:
            if finding.section == section:
                _print_finding(output, finding, width)
    output.text(_verdict(found))


def _print_finding(output: Output, finding: Finding, width: int) -> None:
    mark = f"{finding.verdict:<{_MARGIN - 4}}"
    margin = " " * (_MARGIN + width + 2)
    first, *more = _lines(output, finding.detail, len(margin))
    output.text(f"  {mark}  {finding.name:<{width}}  {first}", marked=mark, fg=_COLOURS[finding.verdict])
    if finding.hint:
        more += _lines(output, finding.hint, len(margin))
    output.text(*(margin + line for line in more))


def _lines(output: Output, text: str, margin: int) -> list[str]:
    """Break a text at its spaces where a terminal shows it."""
    if not output.stdout.isatty():
        return [text]
    width = max(shutil.get_terminal_size().columns - margin, 20)
    shown = output.line(text)
    return textwrap.wrap(shown, width, break_long_words=False, break_on_hyphens=False) or [""]


def _verdict(found: Examination) -> str:
    problems, notes = len(found.of("problem")), len(found.of("note"))
    words = [
        f"{count} {what}{'s' if count != 1 else ''}"
        for count, what in ((problems, "problem"), (notes, "note"))
        if count
    ]
    base = "fetching, verifying and converting should work" if found.ok else "see what to do above"
    return f"{' and '.join(words) or 'all well'}; {base}"


def register(app: typer.Typer) -> None:
    """Add this command to the root."""
    app.command(short_help="Check what this machine has and lacks.")(doctor)
