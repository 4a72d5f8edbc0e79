"""``export``: hand a checkpoint over to other tools."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from ckptkit.base.shown import Column
from ckptkit.base.tensors import FLOAT_DTYPES, float_named
from ckptkit.base.text import human_bytes
from ckptkit.cli.options import (
    SourceArgument,
    SourceOptions,
    one_of_these,
    state_of,
)
from ckptkit.cli.output import Output
from ckptkit.cli.remote_output import Place
from ckptkit.export.targets import TARGETS, ExportRequest, target_named

if TYPE_CHECKING:
    from ckptkit.export.targets import Exported


def export(
    context: typer.Context,
    what: SourceArgument,
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
            help="Folder or file to write; onnx: also - for standard output. Default: here, by the source's "
            "name.",
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
) -> None:
    """Export a checkpoint for other tools, checked after it is written.

    --push needs huggingface_hub, and finds token and endpoint as that does (HF_TOKEN, 'hf auth login'). A
    failed check exits with 1 and leaves nothing.

    Examples: ckptkit export tiny-moat0-256 --synthetic --to hf -o moat-hf
    · ckptkit export tiny-moat0-256 --synthetic --to keras -o moat.keras
    · ckptkit export moganet-xt-224 --synthetic --to backbone -o moganet-backbone
    """
    from ckptkit.base.errors import UsageError
    from ckptkit.cli.output import ExitCode
    from ckptkit.export.targets import run_export

    state = state_of(context)
    if push is None and (private or push_synthetic):
        raise UsageError("--private and --push-synthetic require --push", hint="give --push ORG/NAME")
    request = ExportRequest(
        to=to,
        output=output,
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
    place = Place(state, None if request.writes_folder else output, force=force)
    request.require(offline=state.offline, synthetic=chosen.synthetic)
    with place as where:
        if where.is_elsewhere:
            where.refuse_existing()
            request = replace(request, output=where.path)
        with chosen.of(what).open(state.workspace()) as source:
            exported = run_export(source, request)
        path: str | None = str(exported.path)
        if where.is_elsewhere and exported.ok:
            if len(exported.files) > 1:
                where.refuse_several("the graph and its weights are two files")
            path = where.shown(exported.path) if dry_run else where.deliver(exported.path)
    state.output.result(
        exported.to_json() | ({"path": path} if where.is_elsewhere else {}),
        lambda: _print(state.output, exported, request, path),
    )
    if not exported.ok:
        raise typer.Exit(int(ExitCode.CHECK_FAILED))


def _print(output: Output, exported: Exported, request: ExportRequest, path: str | None) -> None:
    if request.dry_run:
        sizes = ["?" if file.nbytes is None else human_bytes(file.nbytes) for file in exported.files]
        rows = [[file.name, size] for file, size in zip(exported.files, sizes, strict=True)]
        output.table([Column("file"), Column("size", numeric=True)], rows)
        place = f" to {path}" if exported.kept else ""
        pushed = f", and push to {request.push}" if request.push else ""
        output.note(f"would write {len(rows)} files{place}{pushed}; {exported.verdict}")
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
