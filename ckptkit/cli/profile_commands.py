"""``profile``: what a model costs, and whether the published figures say the same."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from ckptkit.base.parse import parse_resolution
from ckptkit.base.shown import Column
from ckptkit.base.text import counted
from ckptkit.cli.completion import complete_ids_or_variants
from ckptkit.cli.options import SettingOptions, State, parse_settings, state_of
from ckptkit.cli.output import Output

if TYPE_CHECKING:
    from ckptkit.analysis.profile import ProfileReport
    from ckptkit.registry.schema import Entry

_STYLES = {"known": "yellow", "off": "red", "stale": "red"}


def profile(
    context: typer.Context,
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ID|VARIANT…",
            help="Ids, globs on them, or variants; of several the figures, of one its modules.",
            autocompletion=complete_ids_or_variants,
        ),
    ] = None,
    resolution: Annotated[
        str | None,
        typer.Option(metavar="SIDE|HxW", help="Input size in pixels; default that of the published figures."),
    ] = None,
    depth: Annotated[
        int, typer.Option(min=0, help="Levels of modules: 0 the model, 1 its stages, 2 their blocks, …")
    ] = 1,
    no_head: Annotated[bool, typer.Option("--no-head", help="Without the classification head.")] = False,
    no_pos_emb: Annotated[bool, typer.Option("--no-pos-emb", help="Without position tables.")] = False,
    settings: SettingOptions = None,
    all_entries: Annotated[bool, typer.Option("--all", help="The figures of every entry.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if a published figure is not reproduced.")
    ] = False,
) -> None:
    """Count parameters and multiply-adds, by module and beside the published figures.

    Needs no weights, but PyTorch. Counts as each family's publication does. With --check a figure that is
    off by more than 2% fails, unless the registry lists the deviation as known.

    Examples: ckptkit profile moganet-xt-224 --depth 2 · ckptkit profile moat0 --resolution 512x1024
    · ckptkit profile --all --check
    """
    from ckptkit.analysis.profile import profile_model
    from ckptkit.base.errors import UsageError
    from ckptkit.cli.output import ExitCode
    from ckptkit.cli.targets import several, targets, with_models

    state = state_of(context)
    workspace = state.workspace()

    known = partial(with_models, workspace, synthetic=True, serving=("whole", "backbone"))
    every = known() if all_entries else None
    names = targets(context, workspace, what, "count", among=known, every=every, files=False)
    count = partial(
        profile_model,
        registry=workspace.registry,
        resolution=parse_resolution(resolution),
        num_classes=None if no_head else 1000,
        pos_emb=False if no_pos_emb else None,
        settings=parse_settings(settings),
    )
    if all_entries:
        if resolution or no_head or no_pos_emb or settings:
            raise UsageError(
                "--all counts every entry as it was published", hint="name one for other options"
            )
        ok = _audit(state, [workspace.registry[name] for name in names])
    elif names == what and len(names) == 1:
        report = count(names[0])
        ok = report.ok
        state.output.result(report.to_json(depth), lambda: _print_report(state.output, report, depth))
    else:
        ok = True  # the batch ends with what failed
        audits = []
        with several(state.output, names, "counted") as work:
            for name in names:
                with work.one(name):
                    audits.append(count(name))
                    if check and not audits[-1].ok:
                        work.failed(name, ExitCode.CHECK_FAILED)
            for place, audit in enumerate(audits):  # one table of all
                work.show(audit.summary(), *[partial(print_audit, state.output, audits)][place:])
    if check and not ok:
        raise typer.Exit(int(ExitCode.CHECK_FAILED))


def _print_report(output: Output, report: ProfileReport, depth: int) -> None:
    for operation, calls in report.profile.uncounted.items():
        output.warn(
            f"not counted: {counted(calls, 'call')} of {operation}, which the convention does not know"
        )
    output.show(report.pieces(depth))


def _audit(state: State, entries: Sequence[Entry]) -> bool:
    """Audit entries as they were published, print the result; whether all figures hold."""
    from ckptkit.analysis.profile import audit_registry

    with state.output.progress("counting", len(entries), unit="entries") as advance:
        audits = audit_registry(entries, advance=advance)
    state.output.result([audit.summary() for audit in audits], lambda: print_audit(state.output, audits))
    return all(audit.ok for audit in audits)


def print_audit(output: Output, audits: Sequence[ProfileReport]) -> None:
    """Print the verdict, the figures of all entries, and what is to say about those that do not agree."""
    from ckptkit.analysis.profile import FIGURE_LABELS

    failed = [audit.name for audit in audits if not audit.ok]
    known = sum(one.verdict == "known" for audit in audits for one in audit.checks)
    verdict = "failed: " + ", ".join(failed) if failed else "all published figures reproduced"
    output.text(f"{counted(len(audits), 'entry')}, {counted(known, 'known deviation')}; {verdict}")
    columns = [Column("id"), Column("resolution")]
    for label in FIGURE_LABELS.values():
        columns += [Column(label, numeric=True), Column("published", numeric=True), Column("verdict")]
    rows, styles = [], []
    for audit in audits:
        row = [audit.name, "×".join(map(str, audit.profile.subject.resolution))]
        for one in audit.checks:
            row += [one.exactly, one.published or "–", one.verdict]
        rows.append(row)
        found = {_STYLES.get(one.verdict) for one in audit.checks}
        styles.append("red" if "red" in found else "yellow" if "yellow" in found else None)
    output.table(columns, rows, styles=styles)
    for reason, whose in _by_reason(audits).items():
        output.text(f"{reason} ({', '.join(whose)})")
    for audit in audits:
        for operation, calls in audit.profile.uncounted.items():
            output.warn(f"{audit.name}: not counted: {counted(calls, 'call')} of {operation}")


def _by_reason(audits: Sequence[ProfileReport]) -> dict[str, list[str]]:
    """Ids by the reason of a verdict, since many rows of one table share a reason."""
    from ckptkit.analysis.profile import FIGURE_LABELS

    reasons: dict[str, list[str]] = {}
    for audit in audits:
        for one in audit.checks:
            if one.reason:
                figure = " ".join(filter(None, (FIGURE_LABELS[one.figure], one.published)))
                reason = f"{one.verdict}: {figure}: {one.reason}"
                reasons.setdefault(reason, []).append(audit.name)
    return reasons


def register(app: typer.Typer) -> None:
    """Add this command to the root."""
    app.command(short_help="Count parameters and multiply-adds.")(profile)
