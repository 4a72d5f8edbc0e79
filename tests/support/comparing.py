"""The three verbs that look at checkpoints, by paths and with a request's fields as keywords."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ckptkit.base.progress import Progress, no_progress
from ckptkit.compare import diff, inspect, verify
from ckptkit.workspace import Located


def _located(what: str | Path | Located) -> Located:
    return what if isinstance(what, Located) else Located(Path(what))


def compare_files(
    a: str | Path | Located, b: str | Path | Located, progress: Progress = no_progress, **options: Any
) -> diff.Difference:
    return diff.compare_files(_located(a), _located(b), diff.DiffRequest(**options), progress)


def inspect_file(
    what: str | Path | Located, state_dict: str | None = None, **options: Any
) -> inspect.Inspection:
    located = _located(what)
    chosen = located if state_dict is None else located.chosen(state_dict, None)
    return inspect.inspect_file(chosen, inspect.InspectRequest(**options))


def verify_checkpoint(
    located: Located, progress: Progress = no_progress, **options: Any
) -> verify.VerifyReport:
    return verify.verify_checkpoint(located, verify.VerifyRequest(**options), progress)
