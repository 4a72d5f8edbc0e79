"""``export``: hand checkpoints over to other tools."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptkit.base.errors import UsageError
from ckptkit.base.shown import Column
from ckptkit.base.tensors import FLOAT_DTYPES, float_named
from ckptkit.base.text import counted, human_bytes
from ckptkit.cli.completion import complete_ids
from ckptkit.cli.options import (
    SourceOptions,
    State,
    one_of_these,
    state_of,
)
from ckptkit.cli.output import ExitCode, Output
from ckptkit.cli.remote_output import Place
from ckptkit.export.targets import TARGETS, ExportRequest, target_named
from ckptkit.formats.names import file_ending
from ckptkit.workspace import STANDARD

if TYPE_CHECKING:
    from ckptkit.export.targets import Exported
    from ckptkit.workspace import Workspace


def export(
    context: typer.Context,
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ID|FILE…",
            help="Ids (fetched if needed), globs on them, or checkpoint files; variants with --synthetic.",
            autocompletion=complete_ids,
        ),
    ] = None,
    to: Annotated[
        str | None,
        one_of_these(
            target_named,
            tuple(TARGETS),
            help="hf: a folder for the Hugging Face hub, which transformers and create_model load. "
            "backbone: headless weights as dense-prediction code loads them. "
            "onnx (also by an --output that ends in .onnx), saved-model: a graph that runs without ckptkit. "
            "keras: a whole model for keras.saving.load_model after 'import ckptkit.keras', as a file "
            "NAME.keras or, by any other name, a folder; convert --to keras writes the weights alone.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Folder or file to write, for several sources the folder of all; onnx: also - for standard "
            "output. Default: here, by the source's name.",
        ),
    ] = None,
    dtype: Annotated[
        str | None, one_of_these(float_named, FLOAT_DTYPES, help="hf, backbone: cast floating tensors.")
    ] = None,
    features: Annotated[
        bool,
        typer.Option("--features", help="onnx, saved-model, keras: the stages' outputs instead of logits."),
    ] = False,
    opset: Annotated[int | None, typer.Option(min=1, help="onnx: version of the operators.")] = None,
    chosen: SourceOptions = SourceOptions(),
    push: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="hf, keras: send it to the hub, in one commit.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="A repository that --push creates is private.")
    ] = False,
    push_synthetic: Annotated[
        bool, typer.Option("--push-synthetic", help="Push synthetic weights, which --push refuses.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written.")] = False,
    all_entries: Annotated[
        bool, typer.Option("--all", help="Every fetched entry; with --synthetic every entry.")
    ] = False,
) -> None:
    """Export checkpoints for other tools, checked after it is written.

    --push needs huggingface_hub, and finds token and endpoint as that does (HF_TOKEN, 'hf auth login'). A
    failed check exits with 1 and leaves nothing.

    Examples: ckptkit export tiny-moat0-256 --synthetic --to hf -o moat-hf
    · ckptkit export tiny-moat0-256 --synthetic --to keras -o moat.keras
    · ckptkit export moganet-xt-224 --synthetic --to backbone -o moganet-backbone
    · ckptkit export tiny-moat0-256 moganet-xt-224 --synthetic --to hf -o exported/
    """
    from ckptkit.cli.targets import several, targets, with_models

    state = state_of(context)
    workspace = state.workspace()
    every = with_models(workspace, synthetic=chosen.synthetic) if all_entries else None
    names = targets(context, workspace, what, "export", every=every)
    if len(names) > 1:
        output = _for_several(output, push, len(names))
    if push is None and (private or push_synthetic):
        raise UsageError("--private and --push-synthetic require --push", hint="give --push ORG/NAME")
    request = ExportRequest(
        to=to,
        output=output,
        within=len(names) > 1 and output is not None,
        dtype=dtype,
        features=features,
        opset=opset,
        force=force,
        dry_run=dry_run,
        push=push,
        private=private,
        push_synthetic=push_synthetic,
        bars=sys.stderr.isatty() and not state.output.quiet,
        verbose=state.output.verbose,
    )
    place = Place(
        state,
        None if request.writes_folder else output,
        force=force,
        results=1 if output is None else len(names),
    )
    request.require(offline=state.offline, synthetic=chosen.synthetic)
    with place as where:
        if where.is_elsewhere:
            where.refuse_existing()
            request = replace(request, output=where.path)
        export_one = partial(_export_one, state, workspace, chosen, request, where)
        if names == what and len(names) == 1:
            value, people, code = export_one(names[0])
            state.output.result(value, people)
            if code:
                raise typer.Exit(code)
            return
        taken: dict[Path, str] = {}
        with several(state.output, names, "exported", key="source") as work:
            for name in names:
                with work.one(name):
                    value, people, code = export_one(name, taken)
                    work.show({"source": name, **value}, people)
                    if code:
                        work.failed(name, code)


def _for_several(output: str | None, push: str | None, count: int) -> str | None:
    """Several results go into a folder, each under its source's name."""
    if push is not None:
        raise UsageError("--push sends one export to one repository", hint="name one source")
    if output is None or output == STANDARD or output.endswith("/"):
        return output
    if file_ending(output):
        raise UsageError(f"{output} is one file, but there are {count} exports", hint="give -o FOLDER/")
    return f"{output}/"


def _export_one(
    state: State,
    workspace: Workspace,
    chosen: SourceOptions,
    request: ExportRequest,
    where: Place,
    name: str,
    taken: dict[Path, str] | None = None,
) -> tuple[dict[str, Any], Callable[[], None], int]:
    """Export one source: what it comes to for JSON, how people see it, and the exit status.

    ``taken`` are the places of earlier ones; no result replaces another of the same command.
    """
    from ckptkit.export.targets import place_of, run_export

    with chosen.of(name).open(workspace) as source:
        path = place_of(source, request)
        if taken is not None and (other := taken.setdefault(path, name)) != name:
            raise UsageError(f"{path} is the result of {other} already", hint="export one of them alone")
        exported = run_export(source, request)
    shown: str | None = str(exported.path)
    if where.is_elsewhere and exported.ok:
        if len(exported.files) > 1:
            where.refuse_several("the graph and its weights are two files")
        shown = where.shown(exported.path) if request.dry_run else where.deliver(exported.path)
    value = exported.to_json() | ({"path": shown} if where.is_elsewhere else {})
    people = partial(_print, state.output, exported, request, shown)
    return value, people, 0 if exported.ok else int(ExitCode.CHECK_FAILED)


def _print(output: Output, exported: Exported, request: ExportRequest, path: str | None) -> None:
    if request.dry_run:
        sizes = ["?" if file.nbytes is None else human_bytes(file.nbytes) for file in exported.files]
        rows = [[file.name, size] for file, size in zip(exported.files, sizes, strict=True)]
        output.table([Column("file"), Column("size", numeric=True)], rows)
        place = f" to {path}" if exported.kept else ""
        pushed = f", and push to {request.push}" if request.push else ""
        output.note(f"would write {counted(len(rows), 'file')}{place}{pushed}; {exported.verdict}")
        return
    if not exported.ok:
        output.warn(exported.verdict)
        return
    output.note(exported.verdict)
    for file in exported.files:
        if file.nbytes is not None:
            output.note(f"  {file.name}  {human_bytes(file.nbytes)}")
    if exported.kept and path is not None:
        output.text(path)
    if exported.pushed is not None:
        output.text(exported.pushed)


def register(app: typer.Typer) -> None:
    """Add this command to the root."""
    app.command(short_help="Export a checkpoint for other tools.")(export)
