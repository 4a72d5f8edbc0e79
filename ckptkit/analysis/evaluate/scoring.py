"""The loop over the images: load, run the model, note where each image's class ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext

import numpy

from ckptkit.analysis.evaluate.distributed import Group
from ckptkit.analysis.evaluate.loading import load_batches
from ckptkit.analysis.evaluate.options import EvaluationOptions
from ckptkit.analysis.evaluate.progress import Progress, StateFile
from ckptkit.analysis.evaluate.running import Predictor
from ckptkit.analysis.evaluate.samples import ImageSet
from ckptkit.analysis.model_source import ModelSource
from ckptkit.base.errors import FormatError, command
from ckptkit.base.tensors import Array

ProgressBar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Opens a progress display for (description, images); its context gives a function to call with steps."""


def no_bar(_description: str, _images: int) -> AbstractContextManager[Callable[[int], None]]:
    """Show nothing."""
    return nullcontext(lambda _steps: None)


def score(
    source: ModelSource,
    options: EvaluationOptions,
    images: ImageSet,
    positions: Sequence[int],
    *,
    predictor: Predictor,
    progress: Progress,
    group: Group,
    bar: ProgressBar,
    state: StateFile | None = None,
    doing: str = "evaluating",
) -> None:
    """Take this process' share of the images that are not done yet, and note the results in ``progress``."""
    rest = group.share([position for position in positions if not progress.done[position]])
    size = options.batch_size
    groups = [rest[start : start + size] for start in range(0, len(rest), size)]
    loading = load_batches(images, groups, source.preprocessing, workers=options.threads)
    where = f" (process 1 of {group.world})" if group.world > 1 else ""
    with bar(f"{doing} {source.name}{where}", len(rest)) as advance, closing(loading) as batches:
        for batch in batches:
            group.check()
            ranks = numpy.empty(0, int)
            if batch.positions:
                logits = predictor.run(batch.images)
                samples = [images.samples[position] for position in batch.positions]
                _require_finite(logits, [sample.name for sample in samples], source, amp=options.amp)
                ranks = ranks_of(logits, numpy.array([sample.label for sample in samples], dtype=int))
            progress.note(batch.positions, ranks, batch.bad)
            if state is not None:
                state.save_now_and_then(progress)
            advance(len(batch.positions) + len(batch.bad))


def ranks_of(logits: Array, labels: Array) -> Array:
    """How many classes come before each image's own; among equal logits the lower index comes first.

    ``logits``: (N, classes). ``labels``: (N,) of int.

    >>> ranks_of(numpy.array([[1.0, 3.0, 2.0], [1.0, 1.0, 1.0]]), numpy.array([2, 1]))
    array([1, 1])
    """
    own = numpy.take_along_axis(logits, labels[:, None], axis=1)
    earlier = numpy.arange(logits.shape[1])[None, :] < labels[:, None]
    ranks: Array = ((logits > own) | ((logits == own) & earlier)).sum(axis=1)
    return ranks


def _require_finite(logits: Array, names: Sequence[str], source: ModelSource, *, amp: bool) -> None:
    finite = numpy.isfinite(logits).all(axis=1)
    if not finite.all():
        raise FormatError(
            source.located.path,
            f"its logits for {names[int(numpy.argmin(finite))]} are not all numbers",
            hint="leave --amp out" if amp else command("verify", source.name),
        )
