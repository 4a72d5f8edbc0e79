"""``doctor`` and ``demo``: whether this machine has what ckptkit needs, and the main job step by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ckptkit.base.shown import Column, Piece, Table
from ckptkit.base.text import counted, human_bytes
from ckptkit.cli.completion import complete_ids
from ckptkit.cli.options import State, state_of
from ckptkit.cli.output import ExitCode, Output

if TYPE_CHECKING:
    from ckptkit.compare.verify import VerifyReport
    from ckptkit.doctor import Examination, Finding
    from ckptkit.parity.report import ParityReport
    from ckptkit.workspace import Located, Workspace


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(short_help="Check what this machine has and lacks.")(doctor)
    app.command(short_help="Run the main workflow on a built-in synthetic example.")(demo)


_COLOURS = {"ok": typer.colors.GREEN, "note": typer.colors.YELLOW, "problem": typer.colors.RED}
_MARGIN = 11
"""Columns before a finding's name: two, the longest verdict, two."""


def doctor(context: typer.Context) -> None:
    """Check what ckptkit depends on, and show what to do where something is missing.

    Versions, optional packages, the cache folder, the lock file, registries, environment variables, the hosts
    of the registry, GPUs, the terminal. Changes nothing. A note is worth knowing; a problem prevents
    fetching, verifying or converting, and makes the command exit with 1. With --offline no host is asked.

    Examples: ckptkit doctor --offline · ckptkit doctor --offline --json
    """
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
            if finding.section == section and not finding.purpose:
                _print_finding(output, finding, width)
        output.show(_extras([finding for finding in found.findings if finding.section == section]))
    output.text(_verdict(found))


def _extras(findings: Sequence[Finding]) -> Iterator[Piece]:
    """What can be added to ckptkit: a table, and the commands that install what is missing."""
    extras = [finding for finding in findings if finding.purpose]
    if extras:
        columns = [Column("extra"), Column("what for"), Column("installed")]
        rows = [[one.name, one.purpose, "no" if one.verdict == "optional" else one.detail] for one in extras]
        styles = ["yellow" if one.verdict == "note" else None for one in extras]
        yield Table(columns, rows, styles)
    for one in extras:
        if one.hint:
            lacking = "not installed" if one.verdict == "optional" else "not as supported"
            yield f"  {one.name}: {lacking}; {one.hint}"


def _print_finding(output: Output, finding: Finding, width: int) -> None:
    mark = f"{finding.verdict:<{_MARGIN - 4}}"
    line = f"  {mark}  {finding.name:<{width}}  {finding.detail}"
    output.text(line, marked=mark, fg=_COLOURS[finding.verdict])
    if finding.hint:
        output.text(f"{'':<{_MARGIN + width + 2}}{finding.hint}")


def _verdict(found: Examination) -> str:
    problems, notes = len(found.of("problem")), len(found.of("note"))
    words = [counted(count, what) for count, what in ((problems, "problem"), (notes, "note")) if count]
    base = "fetching, verifying and converting should work" if found.ok else "see what to do above"
    return f"{' and '.join(words) or 'all well'}; {base}"


def demo(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(metavar="[ID]", help="The registry entry to use.", autocompletion=complete_ids),
    ] = "tiny-moat0-256",
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Keep all files there; default: a temporary folder, removed afterwards."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done.")] = False,
) -> None:
    """Fetch, verify, convert and prove a synthetic checkpoint: the whole job without a network.

    Examples: ckptkit demo · ckptkit demo moganet-xt-224 --keep scratch
    """
    import tempfile

    from ckptkit.base.errors import UsageError
    from ckptkit.demo import demo_workspace, serve_synthetic

    state = state_of(context)
    if keep is not None and keep.exists() and not (keep.is_dir() and not any(keep.iterdir())):
        what_is_there = "is not empty" if keep.is_dir() else "is not a folder"
        raise UsageError(f"--keep {keep}: {what_is_there}", hint="name a folder that is new or empty")
    base = state.workspace()
    entry = base.registry[what]
    steps = "write a synthetic artefact, serve it on loopback, fetch, verify --deep, convert, parity"
    if dry_run:
        state.output.note(f"would, for {entry.id}: {steps}")
        state.output.result({"id": entry.id, "dry_run": True})
        return
    say = state.output.text
    say(f"ckptkit demo: {entry.id}, with SYNTHETIC weights (random by a fixed recipe; they predict nothing).")
    with tempfile.TemporaryDirectory(prefix="ckptkit-demo-") as scratch:
        folder = keep or Path(scratch)
        with serve_synthetic(entry, folder / "server") as served:
            say("", "1. A server on this machine stands in for the published URL, by the rule")
            say(f"   --mirror {served.mirror}")
            workspace = demo_workspace(folder, served, base)
            located = _fetch(state, workspace, entry.id, served.published)
        verified = _verify(state, located)
        converted = _convert(state, workspace, located)
        proven = _prove(state, located, converted["safetensors"])
    done = {
        "id": entry.id,
        "dry_run": False,
        "verify": verified.to_json(),
        "converted": {to: str(path) if keep else path.name for to, path in converted.items()},
        "parity": proven.to_json(),
    }
    state.output.result(done)
    if keep:
        settings = f"CKPTKIT_HOME={keep / 'home'} CKPTKIT_TRUST={keep / 'ckptkit.lock'}"
        say("", f"Everything is in {keep}; {settings} let the other commands see it.")


def _fetch(state: State, workspace: Workspace, id: str, published: str) -> Located:
    state.output.text("", f"2. ckptkit fetch {id}", f"   {published}")
    located = workspace.fetch(workspace.registry[id])
    record = workspace.home.record(id)
    if record is not None:
        promised = ", ".join(sorted(record.server_hashes)) or "nothing"
        state.output.text(
            f"   {human_bytes(record.size)}, sha256 {record.sha256[:16]}…; {promised} as the server promised"
        )
    return located


def _verify(state: State, located: Located) -> VerifyReport:
    from ckptkit.compare.verify import VerifyRequest, verify_checkpoint

    state.output.text("", f"3. ckptkit verify {located.name} --deep")
    report = verify_checkpoint(located, VerifyRequest(deep=True))
    state.output.show(report.pieces())
    if not report.ok:
        raise typer.Exit(1)
    return report


def _convert(state: State, workspace: Workspace, located: Located) -> dict[str, Path]:
    from ckptkit.convert.pipeline import Options, convert_checkpoint

    written: dict[str, Path] = {}
    for step, to in (("4.", "safetensors"), ("  ", "torch")):
        state.output.text("", f"{step} ckptkit convert {located.name} --to {to}")
        outcome = convert_checkpoint(located, Options(to), workspace)
        plan = outcome.plan
        state.output.text(
            f"   {outcome.way}: {counted(len(plan.moves), 'tensor')}, {human_bytes(plan.nbytes)}, "
            "written, read back and compared",
            f"   {outcome.path}",
        )
        written[to] = outcome.path
    return written


def _prove(state: State, located: Located, converted: Path) -> ParityReport:
    from ckptkit.base.errors import MissingDependencyError
    from ckptkit.parity.run import ParityRequest, prove

    state.output.text("", f"5. ckptkit parity {located.name} --converted {converted.name}")
    try:
        report = prove(located, ParityRequest(converted=converted, synthetic=True), state.output.note)
    except MissingDependencyError:
        state.output.text("   Everything up to here needs no framework; the forward passes need both.")
        raise
    state.output.show(report.pieces())
    if not report.ok:
        raise typer.Exit(1)
    state.output.text(
        "", "The conversion computes the same function in both frameworks. The weights were synthetic."
    )
    return report
