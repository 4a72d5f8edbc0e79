"""``eval`` and ``calibrate``: accuracy on labelled images, BatchNorm statistics recomputed from images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ckptkit.base.text import counted
from ckptkit.cli.options import (
    FrameworkOption,
    SourceArgument,
    SourceOptions,
    State,
    file_to_write,
    state_of,
)
from ckptkit.cli.output import Output
from ckptkit.cli.remote_output import Place

if TYPE_CHECKING:
    from ckptkit.analysis.evaluate.report import BadImage, Evaluation

_SHOWN_BAD = 10
"""Bad images shown; --verbose and --json give all."""

DataOption = Annotated[
    list[str],
    typer.Option(
        "--data",
        metavar="DIR|TAR",
        help="A folder with one subfolder per class, or WebDataset shards: a tar, a folder of them, a "
        "pattern like 'val-{000..049}.tar'; may be repeated for shards.",
    ),
]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Images per batch.")]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=0, help="Threads that load images; default one for each core, at most 8."),
]
DeviceOption = Annotated[
    str,
    typer.Option(metavar="auto|cpu|cuda|cuda:N", help="Where the model runs; auto: a GPU if there is one."),
]


class ClassOrderName(str, Enum):
    """How names of class folders are ordered."""

    TEXT = "text"
    NUMBER = "number"


def evaluate(
    context: typer.Context,
    what: SourceArgument,
    data: DataOption,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Classes of a flat folder's images: lines of name and class."),
    ] = None,
    class_order: Annotated[
        ClassOrderName | None,
        typer.Option(help="Of class folders' names: as text 10 comes before 2, as a number after it."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Number of images, spread over the classes, always the same ones."),
    ] = None,
    batch_size: BatchOption = 32,
    workers: WorkersOption = None,
    amp: Annotated[
        bool, typer.Option("--amp", help="Half precision where autocast thinks it safe; PyTorch only.")
    ] = False,
    device: DeviceOption = "auto",
    framework: FrameworkOption = "torch",
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if a published figure is out of tolerance.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Exit with 0 even if some images cannot be decoded.")
    ] = False,
    both_gates: Annotated[
        bool,
        typer.Option(
            "--both-gates", help="MogaNet: evaluate with the other attn_force_fp32 too, on all images."
        ),
    ] = False,
    state_file: Annotated[
        Path | None,
        file_to_write("--state", metavar="FILE", help="File to save progress in; default: in the cache."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over instead of resuming after an interruption.")
    ] = False,
    chosen: SourceOptions = SourceOptions(),
) -> None:
    """Measure top-1 and top-5 accuracy on labelled images, beside the published figures.

    A published figure agrees when a value that rounds to it is in the 95% (Wilson) interval of the measured
    one. Needs Pillow and PyTorch, TensorFlow or ONNX Runtime. After an interruption the same command
    resumes. Started by torchrun, the processes share the images. Images that cannot be decoded count neither
    way; they are named, and without --skip-bad the command exits with 5.

    Examples: ckptkit eval moganet-xt-224 --data imagenet/val --synthetic --limit 3
    · ckptkit eval tiny-moat0-256 --data imagenet/val --batch-size 8
    """
    from ckptkit.analysis.evaluate.loop import EvaluationOptions, run_evaluation
    from ckptkit.cli.output import ExitCode
    from ckptkit.models import framework_named

    options = EvaluationOptions(
        data=data,
        labels=labels,
        class_order=class_order.value if class_order else None,
        limit=limit,
        framework=framework_named(framework),
        batch_size=batch_size,
        workers=workers,
        amp=amp,
        device=device,
        state=state_file,
        fresh=fresh,
        both_gates=both_gates,
        check=check,
    )
    with _first_speaks(state_of(context)) as state:
        report = run_evaluation(chosen.of(what), options, state.workspace())
        state.output.result(report, lambda: _print_report(state.output, report))
    if check and not report.ok:
        raise typer.Exit(int(ExitCode.CHECK_FAILED))
    if report.bad and not skip_bad:
        raise typer.Exit(int(ExitCode.DAMAGED))


@contextmanager
def _first_speaks(state: State) -> Iterator[State]:
    """Under torchrun let the first process alone print, errors too: the others have the same to say."""
    from ckptkit.analysis.evaluate.distributed import world_of_environment

    rank, _ = world_of_environment()
    if rank == 0:
        yield state
        return
    import os

    from ckptkit.base.errors import CkptkitError
    from ckptkit.cli.output import ExitCode, exit_code

    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        state.output = Output(quiet=True, stdout=nowhere, stderr=nowhere)
        try:
            yield state
        except CkptkitError as error:
            raise typer.Exit(int(exit_code(error))) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(int(ExitCode.INTERRUPTED)) from error


def _print_report(output: Output, report: Evaluation) -> None:
    output.show(report.pieces())
    _print_bad(output, report.bad, "counted neither way")


def _print_bad(output: Output, found: Sequence[BadImage], so: str) -> None:
    if not found:
        return
    output.warn(f"{counted(len(found), 'image')} cannot be decoded ({so}):")
    shown = found if output.verbose else found[:_SHOWN_BAD]
    for bad in shown:
        output.warn(f"  {bad.name}: {bad.reason}")
    if len(shown) < len(found):
        output.warn(f"  and {len(found) - len(shown):,} more (--verbose lists all)")


def calibrate(
    context: typer.Context,
    what: SourceArgument,
    data: DataOption,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE|URL",
            help="The .safetensors file to write, folder/, s3://bucket/file, or - for standard output.",
        ),
    ],
    images: Annotated[
        int, typer.Option(min=2, help="Number of images, always the same ones; all if there are fewer.")
    ] = 2048,
    batch_size: BatchOption = 32,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done; write nothing.")
    ] = False,
    chosen: SourceOptions = SourceOptions(),
) -> None:
    """Recompute BatchNorm's moving statistics from images (Precise BN), and write a new safetensors file.

    For files that lack them, such as MOAT's first uploads, or whose statistics do not fit their weights. Take
    training images; their classes do not matter. All other tensors stay as they are; the file's metadata say
    what was done and from which images. Needs PyTorch and Pillow.

    Examples: ckptkit calibrate tiny-moat0-256 --data images/ -o calibrated.safetensors --synthetic
    · ckptkit calibrate moganet-xt-224 --data imagenet/val -o moganet.safetensors --images 4 --dry-run
    """
    from ckptkit.analysis.evaluate.calibration import CalibrationOptions, refuse_name, run_calibration

    state = state_of(context)
    options = CalibrationOptions(data, images, batch_size, workers, device)
    with Place(state, output, force=force) as where:
        assert where.path is not None
        if where.file is not None:  # as the user wrote it
            refuse_name(where.file)
            where.refuse_existing()
        done = run_calibration(
            chosen.of(what),
            options,
            where.path,
            state.workspace(),
            folder=where.folder,
            force=force,
            dry_run=dry_run,
        )
        shown = where.shown(done.path) if dry_run else where.deliver(done.path)
    _print_bad(state.output, done.bad, "left out")
    state.output.note(
        f"{done.name}: {'would recompute' if dry_run else 'recomputed'} the statistics of "
        f"{counted(done.layers, 'BatchNorm layer')} from {counted(done.images, 'image')} "
        f"({done.metadata['bn_preprocessing']}); "
        f"{counted(done.tensors, 'tensor')}"
    )
    done_json = {
        "path": shown,
        "dry_run": dry_run,
        "layers": done.layers,
        "images": done.images,
        "tensors": done.tensors,
        "bad": [{"name": bad.name, "reason": bad.reason} for bad in done.bad],
    }
    state.output.result(done_json, *([] if shown is None else [shown]))


def register(app: typer.Typer) -> None:
    """Add these commands to the root."""
    app.command("eval", short_help="Measure accuracy and compare it with the published figures.")(evaluate)
    app.command(short_help="Recompute BatchNorm statistics from images.")(calibrate)
