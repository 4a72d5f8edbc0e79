"""``verify`` and ``inspect``: the commands that look at checkpoints and change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from ckptkit.base.text import human_bytes
from ckptkit.cli.completion import complete_fetched
from ckptkit.cli.options import StateDictOption, StripPrefixOption, WhichWeights
from ckptkit.cli.output import Column, ExitCode, exit_code
from ckptkit.cli.state import State, state_of

if TYPE_CHECKING:
    from ckptkit.base.errors import CkptkitError
    from ckptkit.compare.inspect import InspectedTensor, Inspection
    from ckptkit.compare.verify import Check, VerifyReport
    from ckptkit.workspace import Workspace

_SHOWN_ITEMS = 8
"""Offenders shown per check; --verbose and --json give all."""

_SHOWN_LINES = 12
"""Lines shown of a text of many lines; --verbose and --json give all."""

_STYLES = {"ok": None, "failed": "red", "skipped": "yellow"}


class SortBy(str, Enum):
    """Order of a list of tensors."""

    FILE = "file"
    NAME = "name"
    SIZE = "size"


def verify(
    context: typer.Context,
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WHAT…",
            help="Ids of fetched entries, or files, folders, prefixes, or - for standard input.",
            autocompletion=complete_fetched,
        ),
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also compare each tensor with the checksum stored beside it.")
    ] = False,
    weights: Annotated[
        WhichWeights, typer.Option(help="Which copy to set against the architecture; auto takes ema.")
    ] = WhichWeights.AUTO,
    state_dict: StateDictOption = None,
    strip_prefix: StripPrefixOption = None,
    variant: Annotated[str | None, typer.Option(help="Overrides what a file is recognised as.")] = None,
    all_entries: Annotated[bool, typer.Option("--all", help="Verify every entry that was fetched.")] = False,
) -> None:
    """Verify checkpoints: checksum, container, names and shapes, values, parameter count.

    Returns 1 when a check does not hold, 5 when a file is damaged. Nothing is downloaded or repaired.

    Examples: ckptkit verify tiny-moat0-256 --deep · ckptkit verify model.ckpt.index --variant tiny-moat0
    """
    from ckptkit.base.errors import CkptkitError
    from ckptkit.compare.verify import verify_checkpoint

    state = state_of(context)
    workspace = state.workspace()
    names = _targets(workspace, what or [], all_entries)
    errors: list[CkptkitError] = []
    codes = {ExitCode.OK}
    with state.output.results() as show:
        for name in names:
            try:
                report = verify_checkpoint(
                    workspace.locate(name, fetch=False, state_dict=state_dict, strip_prefix=strip_prefix),
                    deep=deep,
                    weights=weights.value,
                    variant=variant,
                    progress=state.output.progress,
                )
            except CkptkitError as error:  # the others are verified all the same
                errors.append(error)
                codes.add(exit_code(error))
                show({"name": name, "ok": False, "error": str(error), "exit_code": int(exit_code(error))})
                if len(names) > 1:
                    state.output.warn(f"{name} could not be verified: {error}")
                continue
            codes.add(_code(report))
            show(report, partial(print_report, state, report))
    if errors and len(names) == 1:
        raise errors[0]
    if max(codes) != ExitCode.OK:
        raise typer.Exit(int(max(codes)))


def _code(report: VerifyReport) -> ExitCode:
    return ExitCode.DAMAGED if report.damaged else ExitCode.OK if report.ok else ExitCode.CHECK_FAILED


def _targets(workspace: Workspace, what: Sequence[str], all_entries: bool) -> list[str]:
    from ckptkit.base.errors import NotFoundError, UsageError

    names = list(what)
    if all_entries:
        # By record rather than by state: an entry whose file was cut short is one to verify.
        names += [
            id for id in workspace.registry if id not in names and workspace.home.record(id) is not None
        ]
        if not names:
            raise NotFoundError(
                "nothing has been fetched yet", hint="ckptkit fetch ID; 'ckptkit list' shows the ids"
            )
    if not names:
        raise UsageError("nothing to verify", hint="name ids or files, or give --all")
    return names


def print_report(state: State, report: VerifyReport) -> None:
    rows: list[list[str]] = []
    styles: list[str | None] = []
    for check in report.checks:
        lines = [[check.name, check.status, check.detail]]
        lines += [["", "", item] for item in _shown_items(check, everything=state.output.verbose)]
        rows += lines
        styles += [_STYLES[check.status]] * len(lines)
    state.output.table([Column("check"), Column("status"), Column("found")], rows, styles=styles)
    for note in report.notes:
        state.output.note(f"{report.name}: {note}")
    state.output.text(report.verdict)


def _shown_items(check: Check, *, everything: bool) -> list[str]:
    if everything or len(check.items) <= _SHOWN_ITEMS:
        return list(check.items)
    more = len(check.items) - _SHOWN_ITEMS
    return [*check.items[:_SHOWN_ITEMS], f"… and {more:,} more; --verbose shows all"]


def inspect(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            help="Id of a fetched entry, or a file, folder or prefix, or - for standard input.",
            autocompletion=complete_fetched,
        ),
    ],
    pattern: Annotated[
        str | None,
        typer.Argument(metavar="[PATTERN]", help="List only tensors called so: a glob, or part of a name."),
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Minimum, maximum, mean, deviation, zeros, NaN, infinities.")
    ] = False,
    sort: Annotated[SortBy, typer.Option(help="Order of the tensors; size: largest first.")] = SortBy.FILE,
    layout: Annotated[
        str | None, typer.Option(help="Show the names in this layout too: torch, deeplab2, openmixup, keras.")
    ] = None,
    weights: Annotated[
        WhichWeights | None,
        typer.Option(help="Which copy, where a file holds both in state dicts of their own."),
    ] = None,
    state_dict: StateDictOption = None,
    strip_prefix: StripPrefixOption = None,
    summary: Annotated[bool, typer.Option("--summary", help="Leave the list of tensors out.")] = False,
) -> None:
    """Show what is in a checkpoint: tensors with shape, type and size, and what the file says of itself.

    Reads any supported file, of any model.

    Examples: ckptkit inspect moat.safetensors --summary · ckptkit inspect model.ckpt '*/kernel' --stats
    """
    from ckptkit.compare.inspect import inspect_file

    state = state_of(context)
    located = state.workspace().locate(what, fetch=False)
    inspection = inspect_file(
        located,
        pattern=pattern,
        sort=sort.value,
        stats=stats and not summary,
        layout=layout,
        weights=weights.value if weights else None,
        state_dict=state_dict,
        strip_prefix=strip_prefix,
        progress=state.output.progress,
    )

    def people() -> None:
        for heading, text in _head_lines(inspection, everything=state.output.verbose):
            state.output.text(f"{heading:<12}{text}")
        if not summary:
            state.output.text("")
            _print_tensors(state, inspection.tensors, stats=stats, renamed_to=layout)
        for note in inspection.notes:
            state.output.note(f"note: {note}")

    state.output.result(inspection.to_json(tensors=not summary), people)


def _head_lines(inspection: Inspection, *, everything: bool) -> list[tuple[str, str]]:
    totals = inspection.totals
    types = ", ".join(f"{name} {human_bytes(nbytes)}" for name, nbytes in totals.by_dtype.items())
    lines = [
        ("file", str(inspection.path)),
        ("format", inspection.format),
        ("recognised", _recognised(inspection)),
        ("tensors", f"{totals.tensors:,}, {totals.elements:,} elements, {human_bytes(totals.nbytes)}"),
        ("types", types or "none"),
    ]
    if inspection.parameters is not None:
        lines.append(("parameters", f"{inspection.parameters:,} trainable in {inspection.variant}"))
    if inspection.copies:
        lines.append(("weights", _copies_in_words(inspection)))
    if len(inspection.state_dicts) > 1:
        lines.append(("state dicts", ", ".join(name or "(top)" for name in inspection.state_dicts)))
    lines += [("not read", f"{name}: {why}") for name, why in inspection.left_out.items()]
    lines += [("metadata", f"{key}: {value}") for key, value in inspection.metadata.items()]
    for key, value in inspection.extras.items():
        text = value.split("\n")
        if len(text) == 1:
            lines.append(("also holds", f"{key}: {value}"))
        else:
            lines.append(("also holds", f"{key}:"))
            lines += [("", f"    {line}") for line in _shown_lines(text, everything)]
    return lines


def _shown_lines(text: list[str], everything: bool) -> list[str]:
    """The first lines of a long text, such as a training configuration."""
    if everything or len(text) <= _SHOWN_LINES:
        return text
    more = len(text) - _SHOWN_LINES
    return [*text[:_SHOWN_LINES], f"… and {more:,} more lines; --verbose shows all"]


_COPY_NAMES = {"ema": "moving averages (EMA)", "raw": "raw weights"}


def _copies_in_words(inspection: Inspection) -> str:
    """Which copies of the weights stand where."""
    if len(inspection.copies) == 1:
        (shown,) = inspection.copies
        return f"both copies, each in a state dict of its own; these are the {_COPY_NAMES[shown]}"
    (plain, _), (second, count) = inspection.copies.items()
    return (
        f"{_COPY_NAMES[plain]} under the plain names, {_COPY_NAMES[second]} of {count:,} tensors beside them"
    )


def _recognised(inspection: Inspection) -> str:
    if inspection.variant is None:
        return "no architecture known here"
    parts = [f"{inspection.family}, {inspection.variant}", f"layout {inspection.layout}"]
    if inspection.pos_emb is not None:
        parts.append("with position embedding" if inspection.pos_emb else "without position embedding")
    parts.append(f"{inspection.num_classes:,} classes" if inspection.num_classes is not None else "no head")
    return ", ".join(parts)


def _print_tensors(
    state: State, tensors: Sequence[InspectedTensor], *, stats: bool, renamed_to: str | None
) -> None:
    columns = [Column("name"), Column("shape"), Column("dtype"), Column("size", numeric=True)]
    if renamed_to is not None:
        columns.insert(1, Column(f"in {renamed_to}"))
    if stats:
        columns += [Column(name, numeric=True) for name in _FIGURES]
    rows = []
    for tensor in tensors:
        row = [
            tensor.name,
            "×".join(map(str, tensor.shape)) or "scalar",
            tensor.dtype,
            human_bytes(tensor.nbytes),
        ]
        if renamed_to is not None:
            row.insert(1, tensor.renamed or "–")
        rows.append(row + _figures(tensor) if stats else row)
    if _fits(state, columns, rows):
        state.output.table(columns, rows)
    else:
        _print_stacked(state, columns, rows)


def _fits(state: State, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a drawn table would show every cell whole; plain text is as wide as it likes."""
    import shutil

    if not state.output.stdout.isatty():
        return True
    widths = [
        max(len(state.output.line(cell)) for cell in cells)
        for cells in zip((c.heading for c in columns), *rows, strict=True)
    ]
    return sum(widths) + _COLUMN_GAP * len(widths) <= shutil.get_terminal_size().columns


def _print_stacked(state: State, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """For a narrow terminal: a tensor's name on one line, the rest below it."""
    first_figure = next(
        (i for i, column in enumerate(columns) if column.heading == _FIGURES[0]), len(columns)
    )
    for name, *rest in rows:
        state.output.text(name)
        state.output.text("    " + "  ".join(rest[: first_figure - 1]))
        figures = [f"{c.heading} {cell}" for c, cell in zip(columns[1:], rest, strict=True)][
            first_figure - 1 :
        ]
        if figures:
            state.output.text("    " + "  ".join(figures))


_FIGURES = ("min", "max", "mean", "std", "zeros", "NaN", "Inf")
_COLUMN_GAP = 3
"""Blanks between the columns of a drawn table."""


def _figures(tensor: InspectedTensor) -> list[str]:
    found = tensor.statistics
    if found is None:
        return ["–"] * len(_FIGURES)
    numbers = (found.minimum, found.maximum, found.mean, found.std)
    counts = (found.zeros, found.nans, found.infinities)
    return [*("–" if n is None else f"{n:.4g}" for n in numbers), *(f"{count:,}" for count in counts)]


def register(app: typer.Typer) -> None:
    """Add these commands to the root."""
    app.command(short_help="Check a checkpoint: checksum, container, shapes, values.")(verify)
    app.command(short_help="Show the tensors in any checkpoint file.")(inspect)
