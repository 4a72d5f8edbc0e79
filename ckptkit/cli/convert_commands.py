"""``convert`` and ``synth``: the commands that write checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptkit.base.errors import UsageError, listed, one_of
from ckptkit.base.parse import parse_bytes, parse_resolution, parse_turn, turn_of_torchrun
from ckptkit.base.shown import Column
from ckptkit.base.tensors import FLOAT_DTYPES, float_named
from ckptkit.base.text import counted, human_bytes, shape_text
from ckptkit.cli.completion import complete_ids, complete_ids_or_variants
from ckptkit.cli.options import (
    SettingOptions,
    ShardOption,
    State,
    StateDictOption,
    StripPrefixOption,
    WeightsOption,
    WhichWeights,
    one_of_these,
    parse_settings,
    rules_given,
    state_of,
)
from ckptkit.cli.remote_output import Place
from ckptkit.formats.builtin import format_of
from ckptkit.formats.names import DEFAULT_FORMAT, FORMATS, GRAPHS, OUTPUT_HELP, format_named, format_to_write

if TYPE_CHECKING:
    from ckptkit.base.parse import Turn
    from ckptkit.convert.pipeline import Options, Outcome
    from ckptkit.convert.planning import Plan
    from ckptkit.convert.sharing import Shared
    from ckptkit.workspace import Located


def convert(
    context: typer.Context,
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WHAT…",
            help="Ids (fetched if needed), globs on them, or files (.tar.gz, .index, prefix, .pth, "
            ".safetensors, .h5 …), or - for standard input.",
            autocompletion=complete_ids,
        ),
    ] = None,
    to: Annotated[
        str | None,
        one_of_these(
            lambda text: text if text.lower() in GRAPHS else format_named(text),  # refused with its source
            FORMATS,
            help=f"Format to write. Default: by the ending of --output, else {DEFAULT_FORMAT}.",
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="Names and axis order, such as torch, deeplab2, keras or kecam. Default: as usual. "
            "as-is: of any model, keep both and change the container alone."
        ),
    ] = None,
    dtype: Annotated[
        str | None, one_of_these(float_named, FLOAT_DTYPES, help="Cast floating tensors.")
    ] = None,
    weights: WeightsOption = WhichWeights.AUTO,
    state_dict: StateDictOption = None,
    strip_prefix: StripPrefixOption = None,
    no_head: Annotated[bool, typer.Option("--no-head", help="Leave the classification head out.")] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH|URL",
            help=f"{OUTPUT_HELP}, folder/, "
            "s3://bucket/file (gs, az, hf), or - for standard output. "
            "Default: the cache for ids, here for files.",
        ),
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Overrides what the file is recognised as.")] = None,
    allow_missing_bn: Annotated[
        bool, typer.Option("--allow-missing-bn", help="Convert a file that lacks all BatchNorm statistics.")
    ] = False,
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Split safetensors, PyTorch, Keras or DCP into shards, e.g. 500MB."
        ),
    ] = None,
    shard: ShardOption = None,
    resolution: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS|HxW",
            help="Resize MOAT's position tables for this input, as the model does at run time.",
        ),
    ] = None,
    settings: SettingOptions = None,
    rules: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Your own names and axis orders, for any model: a YAML file."),
    ] = None,
    reverse: Annotated[
        bool, typer.Option("--reverse", help="Read --rules from the target to the source.")
    ] = False,
    require: Annotated[
        str | None,
        one_of_these(
            lambda text: one_of("--require", text, ("proven",)),
            ("proven",),
            help="Refuse --rules that are not all proven (sure: proven).",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not read the result back.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, write nothing.")] = False,
    all_entries: Annotated[
        bool, typer.Option("--all", help="Convert every entry that was fetched; --to FORMAT alone does too.")
    ] = False,
) -> None:
    """Convert checkpoints between TensorFlow, PyTorch, safetensors and Keras.

    Examples: ckptkit convert tiny-moat0-256 --to safetensors
    · ckptkit convert model.ckpt -o moat.pth
    · ckptkit convert tiny-moat0-256 -o s3://bucket/moat.safetensors
    """
    from ckptkit.cli.targets import is_bare, several, targets
    from ckptkit.convert.pipeline import Options, convert_checkpoint, planned_paths

    state = state_of(context)
    workspace = state.workspace()
    every = None
    if all_entries or (not what and not is_bare(context)):
        every = [located.name for located in workspace.fetched()]
    names = targets(context, workspace, what, "convert", every=every)
    if every:
        state.output.note(f"{counted(len(names), 'fetched entry')} to convert")
    where = Place(state, output, force=force, results=len(names), to=to)
    options = Options(
        to=format_to_write(to, where.file, names[0]),
        layout=layout,
        dtype=dtype,
        weights=weights.value,
        head=not no_head,
        allow_missing_bn=allow_missing_bn,
        variant=variant,
        max_shard_size=_shard_size(max_shard_size),
        settings=parse_settings(settings),
        resolution=parse_resolution(resolution),
        rules=rules_given(rules, reverse=reverse),
        require="proven" if require else None,
    )
    turn = _turn(shard, options, where)
    done = "would be converted" if dry_run else None
    with where, several(state.output, names, "converted", done=done, key="source") as work:
        if not format_of(options.to).one_file or options.max_shard_size is not None:
            where.refuse_several("this writes several files")
        found: dict[str, Located] = {}
        for name in names:
            with work.one(name):
                found[name] = workspace.locate(name, state_dict=state_dict, strip_prefix=strip_prefix)
        planned = planned_paths(tuple(found.values()), options, where.path, folder=where.folder)
        for path in planned:
            if path is not None and not dry_run and turn is None:  # of all, before the first is written
                format_of(options.to).refuse_existing(path, force=force)
        for (name, located), path in zip(found.items(), planned, strict=True):
            with work.one(name):
                if not dry_run:
                    where.refuse_existing()
                outcome = convert_checkpoint(
                    located,
                    options,
                    workspace,
                    output=path,
                    force=force,
                    check=not no_check,
                    dry_run=dry_run,
                    turn=turn,
                )
                shown = where.shown(outcome.path) if dry_run else where.deliver(outcome.path)
                _note(state, located, outcome)
                value = {"source": located.name, "path": shown, "dry_run": dry_run, **_as_json(outcome)}
                if dry_run:
                    value |= {"moves": _moves_json(outcome)}
                    work.show(value, partial(_print_plan, state, outcome, shown or "-"))
                else:
                    _note_written(state, located, outcome, checked=not no_check)
                    work.show(value, *([] if shown is None or outcome.is_partial else [shown]))


def _turn(shard: str | None, options: Options, where: Place) -> Turn | None:
    """Which of several processes this is: told, or under torchrun where the result is in shards."""
    turn = parse_turn(shard) if shard is not None else None
    if turn is None and options.max_shard_size is not None:
        turn = turn_of_torchrun(os.environ)
    if turn is not None and where.is_elsewhere:
        raise UsageError(
            f"--shard {turn} writes into a folder that all processes share", hint="give a path as --output"
        )
    return turn


def _as_json(outcome: Outcome) -> dict[str, Any]:
    plan = outcome.plan
    shared = outcome.shared
    share = (
        {}
        if shared is None
        else {"shard": str(shared.turn), "complete": shared.is_complete, "missing": list(shared.missing)}
    )
    return {
        **share,
        "reused": outcome.reused,
        "from": plan.source_format,
        "to": outcome.target.format,
        "layout": plan.layout,
        "weights": plan.weights,
        "tensors": len(plan.moves),
        "bytes": plan.nbytes,
        "left_out": plan.left_out,
        "filled": plan.filled,
        "also_in_file": dict(plan.also),
        "notes": list(plan.notes),
    }


def _moves_json(outcome: Outcome) -> list[dict[str, Any]]:
    return [
        {
            "target": move.target.name,
            "shape": list(move.target.shape),
            "dtype": str(move.target.dtype),
            "op": move.op,
            "source": move.sources[0] if len(move.sources) == 1 else None,
            "sources": list(move.sources),
        }
        for move in outcome.plan.moves
    ]


def _note(state: State, located: Located, outcome: Outcome) -> None:
    plan = outcome.plan
    for note in (*plan.notes, *_left_out_in_words(plan)):
        state.output.note(f"{located.name}: {note}")
    if plan.metadata.get("bn_statistics") == "missing":
        state.output.warn(f"{located.name}: converted without BatchNorm statistics, which the file lacks")


def _note_written(state: State, located: Located, outcome: Outcome, *, checked: bool) -> None:
    plan = outcome.plan
    if outcome.shared is not None:
        _note_shared(state, located, outcome.shared)
    if outcome.is_partial:
        return
    if outcome.reused:
        state.output.note(f"{located.name}: already up to date")
    else:
        done = "written, read back and compared" if checked else "written (not read back)"
        state.output.note(
            f"{located.name}: {outcome.way}, {counted(len(plan.moves), 'tensor')}, "
            f"{human_bytes(plan.nbytes)} {done}{_ignored(plan)}"
        )
    if outcome.converted is not None and outcome.converted.losses:
        from ckptkit.convert.execution import describe_losses

        shown = None if state.output.verbose else 3
        state.output.warn(f"{located.name}: {describe_losses(outcome.converted.losses, shown=shown)}")


def _note_shared(state: State, located: Located, shared: Shared) -> None:
    """What one process of several wrote, and what it leaves to the others."""
    done = f"{shared.own} of {counted(shared.total, 'shard')} written"
    left = f"not written yet: {listed(shared.missing)}" if shared.missing else "all are written"
    state.output.note(f"{located.name}: --shard {shared.turn}: {done}; {left}")
    for other in shared.others:
        state.output.note(f"{other} holds shards of another conversion to this name; remove it if that ended")


def _ignored(plan: Plan) -> str:
    return f"; {len(plan.ignored)} left out by rule" if plan.ignored else ""


def _left_out_in_words(plan: Plan) -> Iterator[str]:
    """What of the source is not in the result: by rule, and what is not a tensor."""
    by_rule: dict[str, list[str]] = {}
    for name, rule in plan.left_out.items():
        by_rule.setdefault(rule, []).append(name)
    for rule, names in by_rule.items():
        yield f"left out by rule: {rule}: {listed(names)}"
    if plan.also:
        yield f"also in the file, not converted: {listed(plan.also)}"


def _print_plan(state: State, outcome: Outcome, shown_as: str) -> None:
    plan = outcome.plan
    rows = [
        [
            move.target.name,
            shape_text(move.target.shape),
            str(move.target.dtype),
            move.op,
            listed(move.sources) or "–",
        ]
        for move in plan.moves
    ]
    rows += [["–", "", "", f"left out: {one.rule}", one.name] for one in plan.ignored]
    columns = [Column("target"), Column("shape"), Column("dtype"), Column("op"), Column("source")]
    state.output.table(columns, rows)
    state.output.note(
        f"would write {counted(len(plan.moves), 'tensor')}, {human_bytes(plan.nbytes)}, to {shown_as}"
        f"{_ignored(plan)}; {plan.subject}, {outcome.way}"
    )


def _shard_size(text: str | None) -> int | None:
    if text is None:
        return None
    if (size := parse_bytes(text, "--max-shard-size")) > 0:
        return size
    raise UsageError(f"--max-shard-size: invalid size {text!r}", hint="write it like 500MB or 2GB")


def synth(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="Id of an entry, or a variant such as tiny-moat0.",
            autocompletion=complete_ids_or_variants,
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH|URL",
            help="File as published (.tar.gz, .pth, .pth.tar), a TensorFlow prefix (.ckpt), folder/, "
            "s3://bucket/file (gs, az, hf), or - for standard output. Default: here, by id.",
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="Published layout: openmixup or torch (timm style) for MogaNet, deeplab2 for MOAT."
        ),
    ] = None,
    no_pos_emb: Annotated[
        bool, typer.Option("--no-pos-emb", help="A MOAT variant without position tables.")
    ] = False,
    ema: Annotated[bool, typer.Option("--ema", help="Moving averages and raw weights, both.")] = False,
    no_bn: Annotated[
        bool, typer.Option("--no-bn", help="Without BatchNorm statistics, like the first uploads.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written.")] = False,
) -> None:
    """Write a synthetic checkpoint in the published format: no download, the same bytes everywhere.

    Examples: ckptkit synth tiny-moat0-256 · ckptkit synth moganet-xt --layout torch --ema
    """
    from ckptkit.families.synthetic import NOTE
    from ckptkit.models.synth import published_ending, refuse_unpublished, synthetic_as, write_checkpoint

    state = state_of(context)
    synthetic = synthetic_as(
        what, state.registry(), layout=layout, pos_emb=not no_pos_emb, ema=ema, bn=not no_bn
    )
    name = f"{what}{published_ending(synthetic)}"
    specs = [tensor.spec for tensor in synthetic.tensors()]
    size = human_bytes(sum(spec.nbytes for spec in specs))
    with Place(state, output, force=force) as where:
        path = where.path / name if where.path and where.folder else where.path or Path(name)
        refuse_unpublished(synthetic, where.file or path)
        if dry_run:
            shown: str | None = where.shown(path)
            state.output.note(f"would write {counted(len(specs), 'tensor')}, {size}, to {shown}")
        else:
            state.output.note(f"{what}: {NOTE}")
            where.refuse_existing()
            write_checkpoint(synthetic, path, force=force)
            shown = where.deliver(path)
            state.output.note(f"{counted(len(specs), 'tensor')}, {size}")
    written = {
        "path": shown,
        "dry_run": dry_run,
        "tensors": len(specs),
        "bytes": sum(s.nbytes for s in specs),
    }
    state.output.result(written, *([] if dry_run or shown is None else [shown]))


def register(app: typer.Typer) -> None:
    """Add these commands to the root."""
    app.command(short_help="Convert between TensorFlow, PyTorch, safetensors …")(convert)
    app.command(short_help="Write a synthetic checkpoint in the published format.")(synth)
