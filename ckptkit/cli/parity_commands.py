"""``parity`` and ``record``: the commands that prove a conversion by running models."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptkit.base.parse import parse_resolution
from ckptkit.base.tensors import FLOAT_DTYPES, float_named
from ckptkit.cli.completion import complete_ids
from ckptkit.cli.options import (
    ShardOption,
    SourceOptions,
    file_to_write,
    one_of_these,
    parse_settings,
    state_of,
    usage_of,
)
from ckptkit.cli.output import Output
from ckptkit.cli.remote_output import Place, one_file

if TYPE_CHECKING:
    from ckptkit.base.files import StagedFile
    from ckptkit.parity.report import Failure, Report
    from ckptkit.workspace import Workspace


def _backend(text: str) -> str:
    from ckptkit.parity.run import backend_named

    return backend_named(text)


def parity(
    context: typer.Context,
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WHAT…",
            help="Ids (fetched if needed), globs on them, or files; with --synthetic ids or variants.",
            autocompletion=complete_ids,
        ),
    ] = None,
    backends: Annotated[
        list[str] | None,
        one_of_these(
            _backend,
            ("keras", "onnxruntime", "recorded"),
            param="--with",
            help="What PyTorch is compared with, default keras; may be repeated, one report each.",
        ),
    ] = None,
    converted: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prove this instead of a fresh conversion: one of WHAT, its .onnx file, or a recording.",
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Number of random inputs; default: 2.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the random inputs; default: 20260101.")] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="One image instead of random inputs; how it is prepared is compared too."
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        one_of_these(
            float_named,
            FLOAT_DTYPES,
            help="Convert to this type and compare with the original; the tolerance follows.",
        ),
    ] = None,
    allow_missing_bn: Annotated[
        bool,
        typer.Option(
            "--allow-missing-bn", help="Compare a file without BatchNorm statistics, taken as 0 and 1."
        ),
    ] = False,
    junit: Annotated[
        Path | None,
        file_to_write(metavar="FILE", help="Also write JUnit XML for CI; an older report is replaced."),
    ] = None,
    cases: Annotated[
        list[Path] | None,
        typer.Option(
            "--case", metavar="FILE", help="A case file instead of WHAT: any two models; may be repeated."
        ),
    ] = None,
    all_entries: Annotated[
        bool, typer.Option("--all", help="Every fetched entry; with --synthetic every entry.")
    ] = False,
    shard: ShardOption = None,
    chosen: SourceOptions = SourceOptions(),
) -> None:
    """Run the forward pass in TensorFlow and PyTorch on the same inputs and compare them stage by stage.

    The model of the framework it was published for reads the file as it is (Keras for MOAT, PyTorch for
    MogaNet), the other one its conversion. Exits with 1 if they disagree. Needs both frameworks. With
    --with onnxruntime PyTorch's model is compared with its own ONNX graph, which needs no TensorFlow.

    With --case two models of your own are compared: a case file names their code, checkpoints and inputs.
    A case runs that code, so take only cases that you trust. Every model runs in a process of its own.

    Examples: ckptkit parity tiny-moat0-256 --synthetic
    · ckptkit parity moganet-xt-224 --converted moganet.ckpt --resolution 96 --junit parity.xml
    · ckptkit parity tiny-moat0-256 --synthetic --with onnxruntime --resolution 64
    · ckptkit parity --case case.yaml
    """
    from ckptkit.base.errors import CkptkitError, UsageError
    from ckptkit.cli.output import ExitCode
    from ckptkit.cli.targets import several, targets, with_models
    from ckptkit.models.synth import named_checkpoint
    from ckptkit.parity.apart import kept_processes
    from ckptkit.parity.report import Failure
    from ckptkit.parity.run import ParityRequest, prove

    state = state_of(context)
    if cases:
        _refuse_beside_cases(context)
        _prove_cases(state.output, cases, junit)
        return
    workspace = state.workspace()
    asked = ParityRequest(
        converted=converted,
        batch=batch,
        resolution=parse_resolution(chosen.resolution),
        seed=seed,
        image=image,
        weights=chosen.weights.value,
        dtype=dtype,
        variant=chosen.variant,
        allow_missing_bn=allow_missing_bn,
        settings=parse_settings(chosen.settings),
        synthetic=chosen.synthetic,
    )

    serving = ("whole", "backbone")
    known = partial(with_models, workspace, synthetic=True, serving=serving)
    every = with_models(workspace, synthetic=chosen.synthetic, serving=serving) if all_entries else None
    names = targets(context, workspace, what, "compare", among=known, every=every, shard=shard)
    if converted is not None and len(names) > 1:
        raise UsageError("--converted works for a single checkpoint", hint="name its source alone")
    requests = asked.with_each(backends or ())
    for request in requests:
        request.require()
    named: dict[str, Any] = {key: getattr(chosen, key) for key in ("synthetic", "state_dict", "strip_prefix")}
    results: list[Report | Failure] = []

    def fault(name: str, error: CkptkitError) -> Failure:
        failure = Failure(name, str(error), type(error).__name__)
        results.append(failure)
        return failure

    with (
        ExitStack() as stack,
        several(state.output, names, "compared", done="agree", fault=fault) as work,
        kept_processes() as processes,
    ):
        staged = _staged(stack, junit)
        if chosen.synthetic:  # nothing is fetched first
            processes.start(requests[0].models)
        for place, name in enumerate(names, 1):
            note = _prefixed(state.output, f"{place}/{len(names)} {name}" if len(names) > 1 else name)
            with work.one(name):
                if not chosen.synthetic:
                    _refuse_without_models(workspace, name)
                with named_checkpoint(name, workspace, **named) as (located, called):
                    for request in requests:
                        report = prove(located, replace(request, name=called), note)
                        results.append(report)
                        work.show(report, partial(state.output.show, report.pieces()))
                        if not report.ok:
                            work.failed(name, ExitCode.CHECK_FAILED)
        _write_junit(staged, results)


def _refuse_beside_cases(context: typer.Context) -> None:
    """A case file says all there is to say."""
    from ckptkit.base.errors import UsageError

    fitting = {"cases", "junit", "as_json"}
    for param in context.command.params:
        source = context.get_parameter_source(param.name or "")
        if source is not None and source.name == "COMMANDLINE" and param.name not in fitting:
            label = param.opts[0] if param.param_type_name == "option" else "WHAT"
            raise UsageError(
                f"{label} and --case contradict each other", hint="the case file says what to run"
            )


def _prove_cases(output: Output, cases: Sequence[Path], junit: Path | None) -> None:
    from ckptkit.base.errors import CkptkitError
    from ckptkit.cli.output import ExitCode
    from ckptkit.cli.targets import several
    from ckptkit.parity.any_model import prove_case
    from ckptkit.parity.report import Failure

    results: list[Report | Failure] = []

    def fault(name: str, error: CkptkitError) -> Failure:
        failure = Failure(name, str(error), type(error).__name__)
        results.append(failure)
        return failure

    names = [str(case) for case in cases]
    with ExitStack() as stack, several(output, names, "compared", done="agree", fault=fault) as work:
        staged = _staged(stack, junit)
        for place, name in enumerate(names, 1):
            note = _prefixed(output, f"{place}/{len(names)} {name}" if len(names) > 1 else name)
            with work.one(name):
                report = prove_case(name, note)
                results.append(report)
                work.show(report, partial(output.show, report.pieces()))
                if not report.ok:
                    work.failed(name, ExitCode.CHECK_FAILED)
        _write_junit(staged, results)


def record(
    context: typer.Context,
    case: Annotated[Path | None, typer.Option(metavar="FILE", help="The case file.")] = None,
    side: Annotated[str | None, typer.Option(metavar="<left|right>", help="Which side to run.")] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The .npz file to write, or a folder/ for it; - is standard output.",
        ),
    ] = None,
    emit: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Write the recorder for code that runs elsewhere, and nothing else."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Record what one side of a case computes, so that it can be compared where that side cannot run.

    The file has the inputs, the output of each stage and the result; a case reads it as a side of framework
    recorded. With --emit a recorder is written: one Python file that needs only numpy (Python 3.6, TensorFlow
    1.x), for environments without ckptkit.

    Examples: ckptkit record --case case.yaml --side left -o left.npz
    · ckptkit record --emit recorder.py
    """
    from ckptkit.base.errors import UsageError
    from ckptkit.parity.any_model import emit_recorder, record_case
    from ckptkit.parity.sides import recording_name

    state = state_of(context)
    if emit is not None:
        if case is not None or side is not None or output is not None:
            raise UsageError("--emit writes the recorder alone", hint="leave --case, --side and --output out")
        path = one_file(emit)
        if path is None:
            raise UsageError("--emit writes a file", hint="record --emit recorder.py")
        written = emit_recorder(path, force=force)
    else:
        missing = [
            name
            for name, value in (("--case", case), ("--side", side), ("--output", output))
            if value is None
        ]
        if len(missing) == 3:
            typer.echo(usage_of(context), err=True)
        if missing or case is None or side is None or output is None:
            raise UsageError(
                f"record needs {' and '.join(missing)}", hint="or --emit FILE, to write the recorder"
            )
        with Place(state, output, force=force) as place:
            assert place.path is not None
            path = place.path / recording_name(side) if place.folder else place.path
            record_case(case, side, path, force=force, say=_prefixed(state.output, f"{case}"))
            delivered = place.deliver(path)
            if delivered is None:
                return
            written = Path(delivered)
    state.output.result({"path": str(written)}, f"wrote {written}")


def _refuse_without_models(workspace: Workspace, name: str) -> None:
    """Refuse an entry of a family that has no models, before it is downloaded."""
    from ckptkit.families.base import get_family

    if not workspace.is_path(name) and name in workspace.registry:
        get_family(workspace.registry[name].family)


def _prefixed(output: Output, name: str) -> Any:
    return lambda sentence: output.note(f"{name}: {sentence} …")


def _staged(stack: ExitStack, junit: Path | None) -> StagedFile | None:
    """Open the report file before the long work, so that a wrong path is found at once."""
    if junit is None:
        return None
    from ckptkit.base.files import StagedFile
    from ckptkit.parity.report import refuse_other_file

    refuse_other_file(junit)
    return stack.enter_context(StagedFile(junit, force=True))


def _write_junit(staged: StagedFile | None, results: Sequence[Report | Failure]) -> None:
    if staged is None:
        return
    from ckptkit.parity.report import junit_document

    staged.append(junit_document(results).encode())
    staged.commit()


def register(app: typer.Typer) -> None:
    """Add these commands to the root."""
    app.command(short_help="Run both frameworks and compare stage by stage.")(parity)
    app.command(short_help="Record what one side of a case computes.")(record)
