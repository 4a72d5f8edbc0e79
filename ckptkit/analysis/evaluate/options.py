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
    """What is evaluated, and how."""

    data: Sequence[str | Path]  # A folder of images, or shards
    labels: Path | None = None  # file of classes, for a flat folder
    class_order: ClassOrder | None = None  # of class folders
    # Take a sample of so many images, spread over the classes, the same one each time
    limit: int | None = None
    framework: Framework = "torch"
    batch_size: int = 32
    workers: int | None = None  # threads that load images
    amp: bool = False  # compute in half precision where autocast thinks it safe
    device: str = "auto"  # ``auto``, ``cpu``, ``cuda`` or ``cuda:N``
    state: Path | None = None  # where to keep what is done over an interruption
    fresh: bool = False  # begin anew, whatever an earlier run left
    # Evaluate all images with the other value of a setting that no tensor tells, too (MogaNet's
    # attn_force_fp32)
    both_gates: bool = False
    check: bool = False  # refuse to begin where there is no published figure to compare with

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
