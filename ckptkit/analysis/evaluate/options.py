"""What is to be evaluated, and how."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptkit.analysis.evaluate.folders import ClassOrder
from ckptkit.base.errors import UsageError
from ckptkit.models import Framework

_MAX_THREADS = 8


@dataclass(frozen=True)
class EvaluationOptions:
    """What is evaluated, and how.

    Parameters
    ----------
    data : sequence of path
        A folder of images, or shards; see `open_images`.
    labels : Path, optional
        File of classes, for a flat folder.
    class_order : {"text", "number"}, optional
        Of class folders; see `class_folders`.
    limit : int, optional
        Take a sample of so many images, spread over the classes, the same one each time.
    framework : {"torch", "keras"}
    batch_size : int
    workers : int or None
        Threads that load images; None takes one for each core, eight at most.
    amp : bool
        Compute in half precision where autocast thinks it safe; PyTorch only.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    state : Path, optional
        Where to keep what is done over an interruption; default a file in the cache.
    fresh : bool
        Begin anew, whatever an earlier run left.
    both_gates : bool
        Evaluate all images with the other value of a setting that no tensor tells, too (MogaNet's
        attn_force_fp32). Without it a sample is tried when the result is below the published figure.
    check : bool
        Refuse to begin where there is no published figure to compare with.
    """

    data: Sequence[str | Path]
    labels: Path | None = None
    class_order: ClassOrder | None = None
    limit: int | None = None
    framework: Framework = "torch"
    batch_size: int = 32
    workers: int | None = None
    amp: bool = False
    device: str = "auto"
    state: Path | None = None
    fresh: bool = False
    both_gates: bool = False
    check: bool = False

    def __post_init__(self) -> None:
        for what, value, least in (
            ("batch size", self.batch_size, 1),
            ("limit", self.limit, 1),
            ("number of workers", self.workers, 0),
        ):
            if value is not None and value < least:
                raise UsageError(f"a {what} of {value}", hint=f"give at least {least}")
        if self.amp and self.framework != "torch":
            raise UsageError("--amp is for --framework torch", hint="leave it out")

    @property
    def threads(self) -> int:
        """Threads that load images."""
        return worker_threads(self.workers)


def worker_threads(wanted: int | None) -> int:
    """Threads that load images: as wanted, else one for each core, at most eight."""
    return min(_MAX_THREADS, os.cpu_count() or 1) if wanted is None else wanted
