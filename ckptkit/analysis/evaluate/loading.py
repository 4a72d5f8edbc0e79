"""Decoding and preprocessing images ahead of the model, in threads.

Pillow lets go of the interpreter's lock while it decodes and resizes, so threads use all cores, work the same
under every framework, and need no copies of the list of images.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy

from ckptkit.analysis.evaluate.samples import ImageSet, Sample
from ckptkit.base.errors import FormatError
from ckptkit.base.tensors import Array
from ckptkit.models.images.decoding import opened_image
from ckptkit.models.images.preprocessing import Preprocessing

_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """Images ready for a model."""

    positions: list[int]  # which images of the set they are
    images: Array  # (N, H, W, 3) float32
    # Position → what is wrong, for images that cannot be decoded: they are not in ``images``
    bad: dict[int, str]


def load_batches(
    images: ImageSet, groups: Sequence[Sequence[int]], preprocessing: Preprocessing, *, workers: int
) -> Generator[Batch, None, None]:
    """Load images batch by batch."""
    if workers == 0:
        for group in groups:
            yield _batch(group, [_load(images.samples[p], preprocessing) for p in group], preprocessing)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ckptkit-images")
    waiting: deque[tuple[Sequence[int], list[Future[Array | str]]]] = deque()
    rest = iter(groups)
    try:
        while True:
            for group in itertools.islice(rest, _BATCHES_AHEAD + 1 - len(waiting)):
                loads = [pool.submit(_load, images.samples[p], preprocessing) for p in group]
                waiting.append((group, loads))
            if not waiting:
                return
            group, loads = waiting.popleft()
            yield _batch(group, [load.result() for load in loads], preprocessing)
    finally:
        pool.shutdown(cancel_futures=True)


def _load(sample: Sample, preprocessing: Preprocessing) -> Array | str:
    """One image, or what is wrong with it."""
    try:
        with opened_image(sample.read(), sample.name) as picture:
            return preprocessing(picture)
    except FormatError as error:
        return error.reason


def _batch(group: Sequence[int], loaded: Sequence[Array | str], preprocessing: Preprocessing) -> Batch:
    good = [(p, image) for p, image in zip(group, loaded, strict=True) if not isinstance(image, str)]
    bad = {p: image for p, image in zip(group, loaded, strict=True) if isinstance(image, str)}
    stacked = numpy.stack([image for _, image in good]) if good else numpy.empty((0, *preprocessing.size, 3))
    return Batch([p for p, _ in good], stacked.astype(numpy.float32, copy=False), bad)
