"""A checkpoint with BatchNorm statistics recomputed from images (Precise BN), written as safetensors.

As in "Rethinking 'Batch' in BatchNorm" (arXiv:2105.07576) and fvcore's ``update_bn_stats``, every layer is
normalized by the statistics of the batch at hand while the images pass through, and what each layer sees is
gathered over all of them. Gathered are the moments of the population itself, mean and variance with division
by the number of values, in float64 and batch by batch (T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating
formulae and a pairwise algorithm for computing sample variances", 1979), rather than an average of variances:
that would leave the variance between the batches' means out.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy

from ckptkit.analysis.evaluate.data import ImageSet, load_batches, open_images, stamp_of
from ckptkit.analysis.evaluate.report import BadImage
from ckptkit.analysis.model_source import ModelSource, SourceRequest
from ckptkit.analysis.runner import hooked, plain_out_of_memory, require_packages, torch_device
from ckptkit.base.errors import UsageError
from ckptkit.base.tensors import DTYPES, Array, TensorSpec
from ckptkit.base.text import counted
from ckptkit.convert.execution import check_written
from ckptkit.convert.pipeline import Provenance, refuse_source
from ckptkit.convert.planning import FamilyPlan, plan_by_layout
from ckptkit.families.base import CANONICAL
from ckptkit.families.recognition import require_recognition
from ckptkit.formats.base import Reader
from ckptkit.formats.builtin import BUILT_IN
from ckptkit.formats.detect import writer_for
from ckptkit.formats.names import DEFAULT_FORMAT, EXTENSIONS, file_ending, without_ending
from ckptkit.formats.writing import refuse_existing_checkpoint
from ckptkit.workspace import Workspace


@dataclass
class Moments:
    """Mean and variance of a growing number of values for each channel."""

    values: int = 0  # for each channel
    mean: Array = field(default_factory=lambda: numpy.zeros(1))  # (C,) float64
    # Sum of squared distances from the mean, (C,) float64
    squares: Array = field(default_factory=lambda: numpy.zeros(1))

    def add(self, values: int, mean: Array, squares: Array) -> None:
        """Take more values in."""
        total = self.values + values
        step = mean - self.mean
        self.squares = self.squares + squares + step**2 * (self.values * values / total)
        self.mean = self.mean + step * (values / total)
        self.values = total

    @property
    def variance(self) -> Array:
        """Of the population: divided by the number of values."""
        variance: Array = self.squares / self.values
        return variance


@contextmanager
def gathered_moments(model: Any) -> Iterator[dict[str, Moments]]:
    """Gather what every BatchNorm layer sees of the images that pass while the block runs."""
    import torch

    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)
    }
    found = {name: Moments() for name in layers}

    def hook(name: str) -> Any:
        def before(layer: Any, inputs: tuple[Any, ...]) -> None:
            values, mean, squares = _moments(inputs[0])
            found[name].add(values, mean.cpu().numpy(), squares.cpu().numpy())
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(squares / values)

        return before

    with hooked(layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()):
        yield found


def _moments(maps: Any) -> tuple[int, Any, Any]:
    """Values, mean and sum of squared distances for each channel of (N, C, H, W), in float64.

    One image at a time: a whole batch in float64 would take twice the memory of the largest map.
    """
    import torch

    each = [torch.var_mean(image.double(), dim=(1, 2), correction=0) for image in maps]
    variances = torch.stack([variance for variance, _ in each])
    means = torch.stack([mean for _, mean in each])
    area = maps.shape[2] * maps.shape[3]
    mean = means.mean(dim=0)
    return len(maps) * area, mean, area * (variances + (means - mean) ** 2).sum(dim=0)


def even_groups(images: int, batch_size: int) -> list[range]:
    """Split the images into batches whose sizes differ by one at most, none larger than ``batch_size``.

    A last batch of a single image would weigh like any other value but be normalized by itself.

    >>> even_groups(9, 4)
    [range(0, 3), range(3, 6), range(6, 9)]
    """
    count = -(-images // batch_size)
    starts = [images * n // count for n in range(count + 1)]
    return [range(start, end) for start, end in itertools.pairwise(starts)]


RECALIBRATED = "recalibrated"
"""What the metadata says of ``bn_statistics``."""

METHOD = "Precise BN (arXiv:2105.07576)"
DEFAULT_IMAGES = 2048
_FORMAT = DEFAULT_FORMAT


@dataclass(frozen=True)
class CalibrationOptions:
    """How statistics are recomputed."""

    data: Sequence[str | Path]  # A folder of images, with or without class folders, or shards
    images: int = DEFAULT_IMAGES  # how many are taken, the same ones each time
    batch_size: int = 32  # most images that pass together
    workers: int | None = None  # as in `EvaluationOptions`
    device: str = "auto"

    def __post_init__(self) -> None:
        for what, value in (("a batch", self.batch_size), ("a calibration", self.images)):
            if value < 2:  # one image has no spread
                raise UsageError(f"{what} of {counted(value, 'image')}", hint="give at least 2")


@dataclass(frozen=True)
class Calibrated:
    """What a calibration wrote, or would write."""

    name: str  # of the source
    path: Path
    layers: int  # BatchNorm layers whose statistics were recomputed
    images: int  # images that passed through the model
    metadata: Mapping[str, str]  # of the file
    bad: tuple[BadImage, ...]  # left out because they cannot be decoded
    tensors: int  # in the file


def refuse_name(output: str | Path) -> None:
    """Raise UsageError for a file name that says another format than the result has."""
    folder, slash, name = os.fspath(output).rpartition("/")
    if file_ending(name) not in BUILT_IN[_FORMAT].endings:
        raise UsageError(
            f"{output}: calibrate writes a {_FORMAT} file",
            hint=f"give -o {folder}{slash}{without_ending(name)}{EXTENSIONS[_FORMAT]}",
        )


def run_calibration(
    request: SourceRequest,
    options: CalibrationOptions,
    output: Path,
    workspace: Workspace,
    *,
    folder: bool = False,
    force: bool = False,
    dry_run: bool = False,
) -> Calibrated:
    """Recompute a checkpoint's BatchNorm statistics from images and write a new file.

    All other tensors are written as they are, under canonical names. In a folder the file is named after the
    source.
    """
    require_packages("calibrate", "torch")
    if not folder:  # before a download
        refuse_name(output)
        refuse_existing_checkpoint(output, force=force)
    with request.open(workspace) as source:
        path = output / f"{source.stem}{EXTENSIONS[_FORMAT]}" if folder else output
        return _calibrate(source, options, path, force=force, dry_run=dry_run)


def _calibrate(
    source: ModelSource, options: CalibrationOptions, output: Path, *, force: bool, dry_run: bool
) -> Calibrated:
    located = source.located
    refuse_source(output, located)
    refuse_existing_checkpoint(output, force=force)
    images = open_images(options.data, None).limited(options.images)
    with (
        located.open(source.weights) as reader,
        Provenance(located) as provenance,
    ):
        conversion = _plan(source, reader)
        specs = _specs(conversion)
        metadata = {
            **conversion.metadata,
            "bn_statistics": RECALIBRATED,
            "bn_images": str(len(images)),
            "bn_images_sha256": listing_digest(images),
            "bn_method": METHOD,
            "bn_preprocessing": str(source.preprocessing),
        }
        if dry_run:
            layers = len(_statistics(conversion)) // 2
            metadata |= provenance.wait()
            return Calibrated(source.name, output, layers, len(images), metadata, (), len(specs))
        moments, passed, bad = _gather(source, options, images)
        metadata |= {"bn_images": str(passed), **provenance.wait()}
        _write(conversion, reader, specs, _tensors(moments), metadata=metadata, output=output, force=force)
    return Calibrated(source.name, output, len(moments), passed, metadata, bad, len(specs))


def _plan(source: ModelSource, reader: Reader) -> FamilyPlan:
    return plan_by_layout(
        reader,
        require_recognition(reader.path, reader.specs, variant=source.variant),
        CANONICAL,
        weights=source.weights,
        head=source.num_classes is not None,
        allow_missing_bn=True,
        settings=source.settings,
        entry=source.entry,
    )


def _statistics(conversion: FamilyPlan) -> list[TensorSpec]:
    """Specs of the statistics: float32, whatever precision the weights are kept in."""
    found = conversion.recognition
    table = found.family.table(CANONICAL, found.variant, found.structure)
    return [
        TensorSpec(row.external, DTYPES["float32"], row.external_shape)
        for row in table.bindings
        if row.part == "bn_statistics"
    ]


def _specs(conversion: FamilyPlan) -> list[TensorSpec]:
    statistics = {spec.name: spec for spec in _statistics(conversion)}
    return [*(spec for spec in conversion.specs if spec.name not in statistics), *statistics.values()]


def listing_digest(images: ImageSet) -> str:
    """SHA-256 over the images' names and sizes, a zero byte between, a line each: which ones they were."""
    digest = hashlib.sha256()
    for sample in images.samples:
        size = str(sample.size) if sample.size >= 0 else stamp_of(sample.path).split("\0")[1]
        digest.update(f"{sample.name}\0{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _gather(
    source: ModelSource, options: CalibrationOptions, images: ImageSet
) -> tuple[dict[str, Moments], int, tuple[BadImage, ...]]:
    """Pass the images through the model; returns each layer's moments, how many passed, which did not."""
    import torch

    device = torch_device(options.device)
    model = source.model("torch", allow_missing_bn=True).to(device)
    bad: dict[int, str] = {}
    groups = even_groups(len(images), options.batch_size)
    loading = load_batches(images, groups, source.preprocessing, workers=options.workers)
    with (
        torch.no_grad(),
        gathered_moments(model) as moments,
        source.workspace.progress(f"calibrating {source.name}", len(images), unit="images") as advance,
        closing(loading) as batches,
    ):
        for batch in batches:
            bad |= batch.bad
            if batch.positions:
                with plain_out_of_memory(len(batch.positions)):
                    model(torch.from_numpy(batch.images).permute(0, 3, 1, 2).contiguous().to(device))
            advance(len(batch.positions) + len(batch.bad))
    passed = len(images) - len(bad)
    if passed < 2:  # one image has no spread
        raise UsageError(
            f"{images.what}: {counted(passed, 'image')} that can be decoded",
            hint="statistics need many, 2048 by default",
        )
    return moments, passed, tuple(BadImage(images.samples[p].name, why) for p, why in sorted(bad.items()))


def _tensors(moments: Mapping[str, Moments]) -> dict[str, Array]:
    tensors = {}
    for name, found in moments.items():
        tensors[f"{name}.running_mean"] = found.mean.astype(numpy.float32)
        tensors[f"{name}.running_var"] = found.variance.astype(numpy.float32)
    return tensors


def _write(
    conversion: FamilyPlan,
    reader: Reader,
    specs: Sequence[TensorSpec],
    statistics: Mapping[str, Array],
    *,
    metadata: Mapping[str, str],
    output: Path,
    force: bool,
) -> None:
    """Write the checkpoint, each tensor checked as it is read, all of them when they are written."""
    moves = {move.target.name: move for move in conversion.moves}
    checksums: dict[str, int] = {}
    with writer_for(_FORMAT)(output, specs, metadata, force=force) as writer:
        for name in writer.order:
            if name in statistics:
                checksums[name] = writer.write(name, statistics[name])
                continue
            move = moves[name]
            for source in move.sources:
                reader.check(source)
            checksums[name] = writer.write(name, move.array(reader.read))
            for source in move.sources:
                reader.release(source)
        writer.finish(partial(check_written, specs=specs, checksums=checksums, output=output))
