"""From what the user names as test images to a set of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckptkit.analysis.evaluate.folders import (
    ClassOrder,
    any_images,
    class_folders,
    has_folders,
    labelled_folder,
)
from ckptkit.analysis.evaluate.samples import ImageSet
from ckptkit.analysis.evaluate.shards import read_shards, shard_paths
from ckptkit.base.errors import NotFoundError, UsageError


def open_images(
    data: Sequence[str | Path],
    num_classes: int | None,
    *,
    labels: Path | None = None,
    class_order: ClassOrder | None = None,
) -> ImageSet:
    """Find test images, in any form `class_folders`, `labelled_folder` and `read_shards` know."""
    if not data:
        raise UsageError("no test images", hint="name them with --data")
    folder = _folder_of_images(data)
    if labels is not None and (folder is None or num_classes is None):
        raise UsageError("--labels is for one folder of images", hint="shards have their classes in them")
    if class_order is not None and (folder is None or num_classes is None or labels is not None):
        raise UsageError("--class-order is for class folders", hint="leave it out")
    if folder is None:
        return read_shards(_shards(data), num_classes, ", ".join(map(str, data)))
    if num_classes is None:
        return any_images(folder)
    if labels is not None:
        return labelled_folder(folder, labels, num_classes)
    if not has_folders(folder):
        raise UsageError(
            f"{folder}: neither class folders nor tar shards in it",
            hint="give a folder of folders, or name a file of classes with --labels",
        )
    return class_folders(folder, num_classes, class_order)


def _folder_of_images(data: Sequence[str | Path]) -> Path | None:
    """The folder of images that was named; None for shards."""
    folders = [Path(one) for one in data if Path(one).is_dir() and not _tars(Path(one))]
    if folders and len(data) > 1:
        raise UsageError(
            f"{folders[0]} is a folder of images, which stands alone", hint="name one folder, or shards"
        )
    return folders[0] if folders else None


def _tars(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.tar") if path.is_file())


def _shards(data: Sequence[str | Path]) -> list[Path]:
    paths: list[Path] = []
    for one in data:
        path = Path(one)
        expanded = shard_paths(str(one))
        if expanded is not None:
            paths += expanded
        elif path.is_dir():
            paths += _tars(path)
        elif path.exists():
            paths.append(path)
        else:
            raise NotFoundError(f"{one}: no such folder or shard", hint="check --data")
    return paths
