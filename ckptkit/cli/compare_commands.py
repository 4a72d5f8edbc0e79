"""``verify``, ``inspect`` and ``diff``: the commands that look at checkpoints and change nothing."""

from __future__ import annotations

from contextlib import ExitStack
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ckptkit.base.errors import NotFoundError, UsageError
from ckptkit.cli.completion import complete_fetched
from ckptkit.cli.options import (
    ShardOption,
    State,
    StateDictOption,
    StripPrefixOption,
    WhichWeights,
    rules_given,
    state_of,
)
from ckptkit.cli.output import ExitCode

if TYPE_CHECKING:
    from ckptkit.workspace import Located, Workspace


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
    structure: Annotated[
        bool,
        typer.Option(
            "--structure", help="Only names, shapes and types: no values, no checksum. Works for URLs too."
        ),
    ] = False,
    weights: Annotated[
        WhichWeights, typer.Option(help="Which copy to compare with the architecture; auto takes ema.")
    ] = WhichWeights.AUTO,
    state_dict: StateDictOption = None,
    strip_prefix: StripPrefixOption = None,
    variant: Annotated[str | None, typer.Option(help="Overrides what a file is recognised as.")] = None,
    all_entries: Annotated[bool, typer.Option("--all", help="Verify every entry that was fetched.")] = False,
    shard: ShardOption = None,
) -> None:
    """Verify checkpoints: checksum, container, names and shapes, values, parameter count.

    Exits with 1 if a check fails, 5 if a file is damaged. Nothing is downloaded or repaired. With
    --structure, WHAT may be a URL (https, s3, gs, hf), of which only the header is transferred.

    Examples: ckptkit verify tiny-moat0-256 --deep · ckptkit verify model.ckpt.index --variant tiny-moat0
    """
    from ckptkit.cli.targets import several, targets
    from ckptkit.compare.verify import VerifyRequest, verify_checkpoint

    state = state_of(context)
    workspace = state.workspace()

    # By record rather than by state: an entry whose file was cut short is one to verify.
    def held() -> list[str]:
        return [id for id in workspace.registry if workspace.home.record(id) is not None]

    every = held() if all_entries else None
    names = targets(context, workspace, what, "verify", among=held, every=every, shard=shard)
    request = VerifyRequest(deep, weights.value, variant, structure)
    with several(state.output, names, "verified", done="passed") as work:
        for name in names:
            with work.one(name):
                located = workspace.locate(
                    name,
                    fetch=False,
                    state_dict=state_dict,
                    strip_prefix=strip_prefix,
                    far=structure or "give --structure to verify names, shapes and types",
                )
                report = verify_checkpoint(located, request, state.output.progress)
                pieces = report.pieces(everything=state.output.verbose)
                work.show(report, partial(state.output.show, pieces))
                if not report.ok:
                    work.failed(name, ExitCode.DAMAGED if report.damaged else ExitCode.CHECK_FAILED)
        workspace.say_what_was_read()


def inspect(
    context: typer.Context,
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="WHAT [PATTERN]",
            help="Id of a fetched entry, or a file, folder or prefix, or - for standard input; and a glob, "
            "or part of a name, to list only such tensors. With --security, any number of these.",
            autocompletion=complete_fetched,
        ),
    ],
    stats: Annotated[
        bool, typer.Option("--stats", help="Minimum, maximum, mean, deviation, zeros, NaN, infinities.")
    ] = False,
    sort: Annotated[SortBy, typer.Option(help="Order of the tensors; size: largest first.")] = SortBy.FILE,
    layout: Annotated[
        str | None, typer.Option(help="Show the names in this layout too, such as torch, deeplab2 or kecam.")
    ] = None,
    weights: Annotated[
        WhichWeights | None,
        typer.Option(help="Which copy to use if a file holds both in state dicts of their own."),
    ] = None,
    state_dict: StateDictOption = None,
    strip_prefix: StripPrefixOption = None,
    summary: Annotated[bool, typer.Option("--summary", help="Omit the list of tensors.")] = False,
    security: Annotated[
        bool,
        typer.Option(
            "--security", help="Instead, list what would run, or leave its folder, when a file is loaded."
        ),
    ] = False,
    sarif: Annotated[
        Path | None,
        typer.Option("--sarif", metavar="FILE", help="Write the findings of --security to a SARIF file too."),
    ] = None,
) -> None:
    """Show what is in a checkpoint: tensors with shape, type and size, and what the file says of itself.

    Reads any supported file, of any model. Of https://, s3://, gs:// and hf://org/name, and of entries that
    are not fetched, only the header is transferred.

    With --security it lists what pickles import and call, code in Keras files, and links and paths that
    leave a file or archive, and exits with 1 unless all of it is known to be harmless. Nothing is run.

    Examples: ckptkit inspect moat.safetensors --summary · ckptkit inspect model.ckpt '*/kernel' --stats
    · ckptkit inspect --security downloaded.pth
    """
    state = state_of(context)
    if security:
        _scan(context, what, sarif)
        return
    if sarif is not None:
        raise UsageError("--sarif is for the findings of --security", hint="add --security")
    if len(what) > 2:
        raise UsageError(f"got unexpected extra argument ({' '.join(what[2:])})")
    _inspect(
        state,
        *what,
        stats=stats,
        sort=sort,
        layout=layout,
        weights=weights,
        state_dict=state_dict,
        strip_prefix=strip_prefix,
        summary=summary,
    )


def _inspect(
    state: State,
    what: str,
    pattern: str | None = None,
    *,
    stats: bool,
    sort: SortBy,
    layout: str | None,
    weights: WhichWeights | None,
    state_dict: str | None,
    strip_prefix: list[str] | None,
    summary: bool,
) -> None:
    from ckptkit.compare.inspect import InspectRequest, inspect_file

    workspace = state.workspace()
    located = workspace.locate(
        what,
        fetch=False,
        state_dict=state_dict,
        strip_prefix=strip_prefix,
        far=not stats or "leave --stats out",
    )
    request = InspectRequest(
        pattern=pattern,
        sort=sort.value,
        stats=stats and not summary,
        layout=layout,
        weights=weights.value if weights else None,
    )
    inspection = inspect_file(located, request, state.output.progress)
    workspace.say_what_was_read()

    pieces = inspection.pieces(everything=state.output.verbose, tensors=not summary, renamed_to=layout)
    state.output.result(inspection.to_json(tensors=not summary), lambda: state.output.show(pieces))


def _scan(context: typer.Context, what: list[str], sarif: Path | None) -> None:
    """List what would run when files are loaded, one after the other."""
    from ckptkit.base.files import StagedFile
    from ckptkit.base.text import json_text
    from ckptkit.cli.targets import several, targets
    from ckptkit.compare import security
    from ckptkit.compare.scan import scan_path

    state = state_of(context)
    workspace = state.workspace()
    names = targets(context, workspace, what, "scan")
    reports: list[security.SecurityReport] = []
    if sarif is not None:
        security.refuse_other_file(sarif)
    with ExitStack() as stack:
        staged = None if sarif is None else stack.enter_context(StagedFile(sarif, force=True))
        with several(state.output, names, "scanned", done="passed", key="path") as work:
            for name in names:
                with work.one(name):
                    located = workspace.locate(name, fetch=False)
                    alone = located.artefact or located.path
                    report = scan_path(alone.parent if located.companions else alone)
                    reports.append(report)
                    gap = [""] * (len(reports) > 1)
                    pieces = [*gap, *report.pieces(everything=state.output.verbose)]
                    work.show(report.to_json(), partial(state.output.show, pieces))
                    if not report.ok:
                        work.failed(name, ExitCode.CHECK_FAILED)
            if staged is not None:
                staged.append(json_text(security.sarif(reports), indent=2).encode() + b"\n")
                staged.commit()


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
    rules: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Compare what convert --rules FILE would make of A with B."),
    ] = None,
    reverse: Annotated[
        bool, typer.Option("--reverse", help="Read --rules from the target to the source.")
    ] = False,
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
    names_only: Annotated[
        bool,
        typer.Option("--names-only", help="Compare only names, shapes and types. Works for URLs too."),
    ] = False,
    metadata: Annotated[bool, typer.Option("--metadata", help="Compare metadata and settings too.")] = False,
    everything: Annotated[
        bool,
        typer.Option(
            "--everything",
            help="Count also what is left out by rule (step counters, optimizer state, other copy).",
        ),
    ] = False,
    summary: Annotated[bool, typer.Option("--summary", help="Omit the lists of tensors.")] = False,
) -> None:
    """Show the differences between two checkpoints of any format and layout.

    Tensors of two files of one family are paired by what they are, in one axis order; all others by name, or
    by --rules. Lists begin with the largest relative difference. Exits with 0 if nothing differs, 1 if
    something does.

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
        rules=rules_given(rules, reverse=reverse),
        names_only=names_only,
    )
    first, second = _both(workspace, a, b, far=names_only or "give --names-only to compare names and shapes")
    found = compare_files(first, second, request, state.output.progress)
    workspace.say_what_was_read()
    state.output.result(
        found.to_json(tensors=not summary),
        lambda: state.output.show(found.pieces(everything=state.output.verbose, tensors=not summary)),
    )
    if not found.same:
        raise typer.Exit(int(ExitCode.CHECK_FAILED))


def _both(workspace: Workspace, *names: str, far: bool | str) -> list[Located]:
    """Find both files; where neither is there, one message says so."""
    found: list[Located] = []
    missing: list[NotFoundError] = []
    for name in names:
        try:
            found.append(workspace.locate(name, fetch=False, far=far))
        except NotFoundError as error:
            missing.append(error)
    if len(missing) > 1 and missing[0].message != missing[1].message:
        raise NotFoundError("; ".join(error.message for error in missing), hint=missing[0].hint)
    if missing:
        raise missing[0]
    return found


def register(app: typer.Typer) -> None:
    """Add these commands to the root."""
    app.command(short_help="Check a checkpoint: checksum, container, shapes, values.")(verify)
    app.command(short_help="Show the tensors in any checkpoint file.")(inspect)
    app.command(short_help="Show the differences between two checkpoints.")(diff)
