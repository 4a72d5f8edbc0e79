"""``verify``, ``inspect`` and ``diff``: the commands that look at checkpoints and change nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from ckptkit.base.errors import NotFoundError
from ckptkit.base.text import human_bytes, shape_text
from ckptkit.cli.completion import complete_fetched
from ckptkit.cli.options import State, StateDictOption, StripPrefixOption, WhichWeights, state_of
from ckptkit.cli.output import Column, ExitCode, Output

if TYPE_CHECKING:
    from ckptkit.compare.diff import Changed, Difference, OnlyInOne, OtherMetadata, Side
    from ckptkit.compare.inspect import InspectedTensor, Inspection
    from ckptkit.compare.verify import Check, VerifyReport
    from ckptkit.workspace import Located, Workspace


_SHOWN_ITEMS = 8
"""Offenders shown per check; --verbose and --json give all."""

_SHOWN_LINES = 12
"""Lines shown of a text of many lines; --verbose and --json give all."""

_COLOURS = {"ok": typer.colors.GREEN, "failed": typer.colors.RED, "skipped": typer.colors.YELLOW}


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
            help="Ids of fetched entries, globs on them, files, folders, prefixes, or - for standard input.",
            autocompletion=complete_fetched,
        ),
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also compare each tensor with the checksum stored beside it.")
    ] = False,
    weights: Annotated[
        WhichWeights, typer.Option(help="Which copy to compare with the architecture; auto takes ema.")
    ] = WhichWeights.AUTO,
    state_dict: StateDictOption = None,
    strip_prefix: StripPrefixOption = None,
    variant: Annotated[str | None, typer.Option(help="Overrides what a file is recognised as.")] = None,
    all_entries: Annotated[bool, typer.Option("--all", help="Verify every entry that was fetched.")] = False,
) -> None:
    """Verify checkpoints: checksum, container, names and shapes, values, parameter count.

    Exits with 1 if a check fails, 5 if a file is damaged. Nothing is downloaded or repaired.

    Examples: ckptkit verify tiny-moat0-256 --deep · ckptkit verify model.ckpt.index --variant tiny-moat0
    """
    from ckptkit.cli.targets import several, targets
    from ckptkit.compare.verify import VerifyRequest, verify_checkpoint

    state = state_of(context)
    workspace = state.workspace()

    # By record rather than by state: an entry whose file was cut short is one to verify.
    def held() -> list[str]:
        return [id for id in workspace.registry if workspace.home.record(id) is not None]

    names = targets(context, workspace, what, "verify", among=held, every=held() if all_entries else None)
    request = VerifyRequest(deep, weights.value, variant)
    with several(state.output, names, "verified", done="passed") as work:
        for name in names:
            with work.one(name):
                located = workspace.locate(
                    name, fetch=False, state_dict=state_dict, strip_prefix=strip_prefix
                )
                report = verify_checkpoint(located, request, state.output.progress)
                work.show(report, partial(print_report, state, report))
                if not report.ok:
                    work.failed(name, ExitCode.DAMAGED if report.damaged else ExitCode.CHECK_FAILED)


def print_report(state: State, report: VerifyReport) -> None:
    state.output.text(report.verdict)
    width = max(len(check.name) for check in report.checks)
    for check in report.checks:
        line = f"{check.status:<7}  {check.name:<{width}}  {check.detail}"
        state.output.text(line, marked=check.status, fg=_COLOURS[check.status])
        state.output.text(
            *(f"         {item}" for item in _shown_items(check, everything=state.output.verbose))
        )
    for note in report.notes:
        state.output.note(f"{report.name}: {note}")


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
        typer.Argument(
            metavar="[PATTERN]", help="List only tensors whose name matches: a glob, or part of a name."
        ),
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
        typer.Option(help="Which copy to use if a file holds both in state dicts of their own."),
    ] = None,
    state_dict: StateDictOption = None,
    strip_prefix: StripPrefixOption = None,
    summary: Annotated[bool, typer.Option("--summary", help="Omit the list of tensors.")] = False,
) -> None:
    """Show what is in a checkpoint: tensors with shape, type and size, and what the file says of itself.

    Reads any supported file, of any model.

    Examples: ckptkit inspect moat.safetensors --summary · ckptkit inspect model.ckpt '*/kernel' --stats
    """
    from ckptkit.compare.inspect import InspectRequest, inspect_file

    state = state_of(context)
    located = state.workspace().locate(what, fetch=False, state_dict=state_dict, strip_prefix=strip_prefix)
    request = InspectRequest(
        pattern=pattern,
        sort=sort.value,
        stats=stats and not summary,
        layout=layout,
        weights=weights.value if weights else None,
    )
    inspection = inspect_file(located, request, state.output.progress)

    def people() -> None:
        for heading, text in _inspection_lines(inspection, everything=state.output.verbose):
            state.output.text(f"{heading:<12}{text}")
        if not summary:
            state.output.text("")
            _print_tensors(state, inspection.tensors, stats=stats, renamed_to=layout)
        for note in inspection.notes:
            state.output.note(f"note: {note}")

    state.output.result(inspection.to_json(tensors=not summary), people)


def _inspection_lines(inspection: Inspection, *, everything: bool) -> list[tuple[str, str]]:
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
    """Where each copy of the weights is."""
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
            shape_text(tensor.shape),
            tensor.dtype,
            human_bytes(tensor.nbytes),
        ]
        if renamed_to is not None:
            row.insert(1, tensor.renamed or "–")
        rows.append(row + _statistics(tensor) if stats else row)
    state.output.table(columns, rows)


_FIGURES = ("min", "max", "mean", "std", "zeros", "NaN", "Inf")


def _statistics(tensor: InspectedTensor) -> list[str]:
    found = tensor.statistics
    if found is None:
        return ["–"] * len(_FIGURES)
    numbers = (found.minimum, found.maximum, found.mean, found.std)
    counts = (found.zeros, found.nans, found.infinities)
    return [*("–" if n is None else f"{n:.4g}" for n in numbers), *(f"{count:,}" for count in counts)]


_SHOWN_ROWS = 20
"""Rows shown per table; --verbose and --json give all."""


class PairBy(str, Enum):
    """How tensors of two files are paired."""

    AUTO = "auto"
    AS_IS = "as-is"


def diff(
    context: typer.Context,
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="Id of a fetched entry, or a file, folder or prefix, or - for standard input.",
            autocompletion=complete_fetched,
        ),
    ],
    b: Annotated[
        str,
        typer.Argument(
            metavar="B",
            help="The same; figures are relative to A.",
            autocompletion=complete_fetched,
        ),
    ],
    layout: Annotated[
        PairBy,
        typer.Option(help="as-is: pair by plain names and leave axes alone, whatever the layouts."),
    ] = PairBy.AUTO,
    weights: Annotated[
        WhichWeights, typer.Option(help="Which copy to use if a file holds both; auto takes ema.")
    ] = WhichWeights.AUTO,
    weights_b: Annotated[
        WhichWeights | None, typer.Option("--weights-b", help="The same for B, if it differs.")
    ] = None,
    state_dict: StateDictOption = None,
    state_dict_b: Annotated[
        str | None,
        typer.Option("--state-dict-b", metavar="KEY[.KEY…]", help="The same for B, if it differs."),
    ] = None,
    strip_prefix: StripPrefixOption = None,
    strip_prefix_b: Annotated[
        list[str] | None,
        typer.Option("--strip-prefix-b", metavar="PREFIX", help="The same for B, if it differs."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Only tensors whose name matches: a glob, or part of a name."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(metavar="X", help="Largest absolute difference allowed; 0: bit for bit.")
    ] = 0.0,
    relative: Annotated[
        float,
        typer.Option(
            metavar="X", help="The same as a share of A's largest value in that tensor; either suffices."
        ),
    ] = 0.0,
    ignore_dtype: Annotated[
        bool, typer.Option("--ignore-dtype", help="Ignore differences in element type alone.")
    ] = False,
    metadata: Annotated[bool, typer.Option("--metadata", help="Compare metadata and settings too.")] = False,
    everything: Annotated[
        bool,
        typer.Option(
            "--all", help="Count also what is left out by rule (step counters, optimizer state, other copy)."
        ),
    ] = False,
    summary: Annotated[bool, typer.Option("--summary", help="Omit the lists of tensors.")] = False,
) -> None:
    """Show the differences between two checkpoints of any format and layout.

    Tensors of two files of one family are paired by what they are, in one axis order; all others by name.
    Lists begin with the largest relative difference. Exits with 0 if nothing differs, 1 if something does.

    Examples: ckptkit diff model.ckpt moat.safetensors
    · ckptkit diff a.pth b.pth --tolerance 1e-6 --only 'stages.0.*'
    """
    from ckptkit.cli.output import ExitCode
    from ckptkit.compare.diff import DiffRequest, compare_files

    state = state_of(context)
    workspace = state.workspace()
    request = DiffRequest(
        layout=layout.value,
        weights=weights.value,
        weights_b=weights_b.value if weights_b else None,
        state_dict=state_dict,
        state_dict_b=state_dict_b,
        strip_prefix=strip_prefix,
        strip_prefix_b=strip_prefix_b,
        only=only,
        everything=everything,
        metadata=metadata,
        tolerance=tolerance,
        relative=relative,
        ignore_dtype=ignore_dtype,
    )
    first, second = _both(workspace, a, b)
    found = compare_files(first, second, request, state.output.progress)
    state.output.result(
        found.to_json(tensors=not summary),
        lambda: print_difference(state.output, found, tensors=not summary),
    )
    if not found.same:
        raise typer.Exit(int(ExitCode.CHECK_FAILED))


def _both(workspace: Workspace, *names: str) -> list[Located]:
    """Find both files; where neither is there, one message says so."""
    found: list[Located] = []
    missing: list[NotFoundError] = []
    for name in names:
        try:
            found.append(workspace.locate(name, fetch=False))
        except NotFoundError as error:
            missing.append(error)
    if len(missing) > 1 and missing[0].message != missing[1].message:
        raise NotFoundError("; ".join(error.message for error in missing), hint=missing[0].hint)
    if missing:
        raise missing[0]
    return found


def print_difference(output: Output, found: Difference, *, tensors: bool = True) -> None:
    """Print the verdict, what was compared, a table for each kind of difference, and the notes."""
    output.text(found.verdict)
    for heading, text in _difference_lines(found):
        output.text(f"{heading:<10}{text}")
    if tensors:
        _print_lone(output, "only in A", found.only_a)
        _print_lone(output, "only in B", found.only_b)
        _print_left_out(output, "cannot be read in A", found.a.left_out)
        _print_left_out(output, "cannot be read in B", found.b.left_out)
        _print_changed(output, "other shape", found.of_kind("shape"))
        _print_changed(output, "other dtype", found.of_kind("dtype"))
        _print_changed(output, "other values", found.of_kind("values"))
        if output.verbose:
            _print_changed(output, "within the tolerance", found.tolerated)
            _print_lone(output, "left out by rule, in A", found.left_out_a)
            _print_lone(output, "left out by rule, in B", found.left_out_b)
    _print_metadata(output, found.metadata)
    for note in found.notes:
        output.note(f"note: {note}")


def _difference_lines(found: Difference) -> list[tuple[str, str]]:
    by = "by their place in the architecture, others by" if found.paired_by == "architecture" else "by"
    lines = [
        ("A", _described(found.a)),
        ("B", _described(found.b)),
        ("paired", f"{found.paired:,} tensor{'' if found.paired == 1 else 's'} {by} name"),
    ]
    if found.only is not None:
        lines.append(("looked at", f"only what matches {found.only!r}"))
    for side, left_out in (("A", found.left_out_a), ("B", found.left_out_b)):
        for remark, count in Counter(one.remark for one in left_out).items():
            lines.append(("left out", f"{count:,} in {side}, {remark}"))
    return lines


def _described(side: Side) -> str:
    parts = [side.format]
    parts += [f"{side.variant}, layout {side.layout}"] if side.variant else ["no architecture known here"]
    parts += [f"{side.weights} weights"] if side.weights else []
    parts += [f"state dict {side.state_dict}"] if side.state_dict else []
    return f"{side.name}: {', '.join(parts)}, {side.tensors:,} tensor{'' if side.tensors == 1 else 's'}"


def _print_lone(output: Output, heading: str, lone: Sequence[OnlyInOne]) -> None:
    columns = [Column("tensor"), Column("shape"), Column("dtype"), Column("remark")]
    rows = [[one.name, shape_text(one.shape), one.dtype, one.remark] for one in lone]
    _print_section(output, heading, columns, rows)


def _print_left_out(output: Output, heading: str, left_out: Mapping[str, str]) -> None:
    columns = [Column("tensor"), Column("reason")]
    _print_section(output, heading, columns, [[name, why] for name, why in left_out.items()])


def _print_changed(output: Output, heading: str, changed: Sequence[Changed]) -> None:
    other_type = any(one.dtype_a != one.dtype_b or one.shape_a != one.shape_b for one in changed)
    figures = any(one.values for one in changed)
    columns = [Column("tensor")]
    columns += [Column("called in A"), Column("called in B")] if output.verbose else []
    columns += [Column("in A"), Column("in B")] if other_type else [Column("shape")]
    if figures:
        columns += [Column("max abs", numeric=True), Column("relative", numeric=True)]
        columns += [Column("differing", numeric=True), Column("remark")]
    rows = []
    for one in changed:
        row = [one.name]
        row += [one.name_a, one.name_b] if output.verbose else []
        row += (
            [f"{shape_text(one.shape_a)} {one.dtype_a}", f"{shape_text(one.shape_b)} {one.dtype_b}"]
            if other_type
            else [shape_text(one.shape_a)]
        )
        rows.append(row + _figures(one, where=output.verbose) if figures else row)
    _print_section(output, heading, columns, rows)


def _figures(changed: Changed, *, where: bool) -> list[str]:
    values = changed.values
    if values is None:
        return ["–", "–", "–", ""]
    remarks = [values.remark] if values.remark else []
    if where and values.at is not None and values.values is not None:
        remarks.append(f"largest at {list(values.at)}: {values.values[0]:g} and {values.values[1]:g}")
    return [
        "–" if values.in_bytes else f"{values.max_abs:.3g}",
        "–" if values.in_bytes or values.relative is None else f"{values.relative:.3g}",
        f"{values.differing:,} of {values.elements:,}",
        "; ".join(remarks),
    ]


def _print_metadata(output: Output, metadata: Sequence[OtherMetadata]) -> None:
    columns = [Column("key"), Column("in A"), Column("in B"), Column("remark")]
    rows = [
        [
            one.key,
            "–" if one.a is None else one.a,
            "–" if one.b is None else one.b,
            "" if one.counts else "does not count: how the file was made",
        ]
        for one in metadata
    ]
    _print_section(output, "other metadata", columns, rows)


def _print_section(
    output: Output, heading: str, columns: Sequence[Column], rows: Sequence[Sequence[str]]
) -> None:
    """Print a list that has anything in it under its heading, cut to what a person reads."""
    if not rows:
        return
    output.text("")
    output.text(f"{heading} ({len(rows):,})")
    shown = rows if output.verbose else rows[:_SHOWN_ROWS]
    filled = [i for i, _ in enumerate(columns) if any(row[i] for row in shown)]
    columns = [columns[i] for i in filled]
    shown = [[row[i] for i in filled] for row in shown]
    output.table(columns, shown)
    if len(rows) > len(shown):
        output.text(f"… and {len(rows) - len(shown):,} more; --verbose shows all")
    if not output.stdout.isatty():
        output.text("")


def register(app: typer.Typer) -> None:
    """Add these commands to the root."""
    app.command(short_help="Check a checkpoint: checksum, container, shapes, values.")(verify)
    app.command(short_help="Show the tensors in any checkpoint file.")(inspect)
    app.command(short_help="Show the differences between two checkpoints.")(diff)
