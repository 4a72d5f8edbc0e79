"""``diff``: the command that says what differs between two checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from ckptkit.cli.completion import complete_fetched
from ckptkit.cli.options import StateDictOption, StripPrefixOption, WhichWeights
from ckptkit.cli.output import Column, Output
from ckptkit.cli.state import state_of

if TYPE_CHECKING:
    from ckptkit.compare.diff import Changed, Difference, OnlyInOne, OtherMetadata, Side

_SHOWN_ROWS = 20
"""Rows shown per table; --verbose and --json give all."""

_COLUMN_GAP = 3
"""Blanks between the columns of a drawn table."""


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
        WhichWeights, typer.Option(help="Which copy where a file holds both; auto takes ema.")
    ] = WhichWeights.AUTO,
    weights_b: Annotated[
        WhichWeights | None, typer.Option("--weights-b", help="For B, where it is another copy.")
    ] = None,
    state_dict: StateDictOption = None,
    state_dict_b: Annotated[
        str | None,
        typer.Option("--state-dict-b", metavar="KEY[.KEY…]", help="For B, where it is another one."),
    ] = None,
    strip_prefix: StripPrefixOption = None,
    strip_prefix_b: Annotated[
        list[str] | None,
        typer.Option("--strip-prefix-b", metavar="PREFIX", help="For B, where it is another one."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Only tensors called so: a glob, or part of a name."),
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
        bool, typer.Option("--ignore-dtype", help="Another element type alone is no difference.")
    ] = False,
    metadata: Annotated[bool, typer.Option("--metadata", help="Compare metadata and settings too.")] = False,
    everything: Annotated[
        bool,
        typer.Option(
            "--all", help="Count also what is left out by rule (step counters, optimizer state, other copy)."
        ),
    ] = False,
    summary: Annotated[bool, typer.Option("--summary", help="Leave the lists of tensors out.")] = False,
) -> None:
    """Say what differs between two checkpoints, of any formats and layouts.

    Tensors of two files of one family are paired by what they are, in one axis order; all others by name.
    Lists begin with the largest relative difference. Returns 0 when nothing differs, 1 when something does.

    Examples: ckptkit diff model.ckpt moat.safetensors
    · ckptkit diff a.pth b.pth --tolerance 1e-6 --only 'stages.0.*'
    """
    from ckptkit.cli.output import ExitCode
    from ckptkit.compare.diff import compare_files

    state = state_of(context)
    workspace = state.workspace()
    found = compare_files(
        workspace.locate(a, fetch=False),
        workspace.locate(b, fetch=False),
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
        progress=state.output.progress,
    )
    state.output.result(
        found.to_json(tensors=not summary),
        lambda: print_difference(state.output, found, tensors=not summary),
    )
    if not found.same:
        raise typer.Exit(int(ExitCode.CHECK_FAILED))


def print_difference(output: Output, found: Difference, *, tensors: bool = True) -> None:
    """Print what was compared, a table for each kind of difference, the notes and the verdict."""
    for heading, text in _head_lines(found):
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
    output.text(found.verdict)


def _head_lines(found: Difference) -> list[tuple[str, str]]:
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
    rows = [[one.name, _shape(one.shape), one.dtype, one.remark] for one in lone]
    _print_table(output, heading, columns, rows)


def _print_left_out(output: Output, heading: str, left_out: Mapping[str, str]) -> None:
    columns = [Column("tensor"), Column("reason")]
    _print_table(output, heading, columns, [[name, why] for name, why in left_out.items()])


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
            [f"{_shape(one.shape_a)} {one.dtype_a}", f"{_shape(one.shape_b)} {one.dtype_b}"]
            if other_type
            else [_shape(one.shape_a)]
        )
        rows.append(row + _figures(one, where=output.verbose) if figures else row)
    _print_table(output, heading, columns, rows)


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
    _print_table(output, "other metadata", columns, rows)


def _print_table(
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
    if _fits(output, columns, shown):
        output.table(columns, shown)
    else:
        _print_stacked(output, columns, shown)
    if len(rows) > len(shown):
        output.text(f"… and {len(rows) - len(shown):,} more; --verbose shows all")
    if not output.stdout.isatty():
        output.text("")


def _fits(output: Output, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a drawn table would show every cell whole; plain text is as wide as it likes."""
    import shutil

    if not output.stdout.isatty():
        return True
    cells = zip((column.heading for column in columns), *rows, strict=True)
    width = sum(max(len(output.line(cell)) for cell in column) + _COLUMN_GAP for column in cells)
    return width <= shutil.get_terminal_size().columns


def _print_stacked(output: Output, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """For a narrow terminal: what it is on one line, the rest below it."""
    for first, *rest in rows:
        output.text(first)
        for column, cell in zip(columns[1:], rest, strict=True):
            if cell:
                output.text(f"    {column.heading} {cell}")


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def register(app: typer.Typer) -> None:
    """Add this command to the root."""
    app.command(short_help="Say what differs between two checkpoints.")(diff)
