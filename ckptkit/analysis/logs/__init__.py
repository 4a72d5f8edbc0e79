"""The training logs that are published beside checkpoints: fetched, read, and drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ckptkit.analysis.logs.fetching import fetch_log
from ckptkit.analysis.logs.parsing import parse_log
from ckptkit.analysis.logs.records import FIGURES, Epoch, TrainingLog
from ckptkit.base.home import user_path
from ckptkit.registry.query import EntryFacts

if TYPE_CHECKING:
    from ckptkit.registry import Entry
    from ckptkit.workspace import Named, Workspace

__all__ = ["FIGURES", "Epoch", "TrainingLog", "fetch_log", "parse_log", "read_log"]


def read_log(what: Named, workspace: Workspace, *, refresh: bool = False) -> TrainingLog:
    """Read the training log of an entry, or one that lies on this machine."""
    if isinstance(what, EntryFacts):
        return _of_entry(what, workspace, refresh=refresh)
    named_like_a_file = "/" in str(what) or Path(what).suffix in (".json", ".csv")
    if isinstance(what, Path) or named_like_a_file or workspace.is_path(what):
        return parse_log(user_path(what))
    return _of_entry(workspace.registry[what], workspace, refresh=refresh)


def _of_entry(entry: Entry, workspace: Workspace, *, refresh: bool) -> TrainingLog:
    log = parse_log(fetch_log(entry, workspace, refresh=refresh), name=entry.id)
    return replace(
        log,
        url=entry.log_url,
        published_top1=entry.published_top1,
        published_top5=entry.published_top5,
        weights=entry.weights,
    )
