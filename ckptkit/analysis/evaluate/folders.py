"""Image folders: one folder a class, a flat folder with a file of labels, or just images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ckptkit.analysis.evaluate.samples import IMAGE_ENDINGS, ImageSet, Sample, image_set, stamp_of
from ckptkit.errors import FormatError, NotFoundError, UsageError, storage_error
from ckptkit.images.classes import imagenet_classes

_LINE_BYTES = 4096
_NAMED = 3


def class_folders(folder: Path, num_classes: int) -> ImageSet:
    """Read a folder that has one folder for each class.

    Parameters
    ----------
    folder : Path
    num_classes : int
        Of the model: with ImageNet-1K's 1,000 the folders are called by WordNet ids, else the order of their
        names is that of the classes, as torchvision's ImageFolder has it.

    Raises
    ------
    UsageError
        When a folder is no class of ImageNet-1K, or the model has another number of classes.
    NotFoundError
        When there are no images.
    """
    names = sorted(entry.name for entry in _scan(folder) if entry.is_dir() and not entry.name.startswith("."))
    labels, rule = class_labels(names, num_classes, folder)
    samples = [
        Sample(f"{name}/{path.relative_to(folder / name).as_posix()}", path, labels[name])
        for name in names
        for path in images_below(folder / name)
    ]
    if not samples:
        raise NotFoundError(
            f"{folder}: no images in its {len(names)} folders", hint="their names end in .jpg, .png or .webp"
        )
    return image_set(samples, (stamp_of(sample.path) for sample in samples), str(folder), rule)


def class_labels(names: list[str], num_classes: int, folder: Path) -> tuple[dict[str, int], str]:
    """Tell each class folder's index, and by which rule, in words.

    Raises
    ------
    UsageError
        When the folders do not fit the model.
    """
    wnids = {one.wnid: one.index for one in imagenet_classes()}
    if num_classes == len(wnids):
        strange = [name for name in names if name not in wnids]
        if strange:
            raise UsageError(
                f"{folder}: {_listed(strange)} of its {len(names)} folders are no classes of ImageNet-1K",
                hint="call each one by its WordNet id, like n02099601, or give a flat folder and --labels",
            )
        return {name: wnids[name] for name in names}, "folders are WordNet ids of ImageNet-1K"
    if len(names) != num_classes:
        raise UsageError(
            f"{folder}: {len(names):,} class folders for a model of {num_classes:,} classes",
            hint="give one folder for each class, or a flat folder and --labels",
        )
    return {
        name: index for index, name in enumerate(names)
    }, "classes are folders in the order of their names"


def labelled_folder(folder: Path, labels: Path, num_classes: int) -> ImageSet:
    """Read a folder whose images' classes stand in a file.

    Parameters
    ----------
    folder : Path
    labels : Path
        Lines of an image's path in the folder and its class: an index from 0, or a WordNet id of ImageNet-1K
        where the model has its classes. Blank lines, and what follows a ``#`` at a line's start, say nothing.
    num_classes : int
        Of the model.

    Raises
    ------
    FormatError
        When a line cannot be read, names an image twice or a class that the model has not.
    NotFoundError
        When an image of the file is not in the folder, or there is no such file.
    """
    found = dict(_label_lines(labels, num_classes))
    there = {path.relative_to(folder).as_posix(): path for path in images_below(folder)}
    absent = [name for name in found if name not in there]
    if absent:
        raise NotFoundError(
            f"{folder}: {_listed(absent)} of {labels} not there", hint="names are relative to the folder"
        )
    if not found:
        raise NotFoundError(
            f"{labels}: no labels in it", hint="write lines like ILSVRC2012_val_00000001.JPEG 65"
        )
    samples = [Sample(name, there[name], label) for name, label in found.items()]
    left = len(there) - len(found)
    rule = f"labels from {labels}" + (f"; {left:,} images have none and are left out" if left else "")
    return image_set(samples, (stamp_of(sample.path) for sample in samples), str(folder), rule)


def _label_lines(path: Path, num_classes: int) -> Iterator[tuple[str, int]]:
    seen: set[str] = set()
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(_LINE_BYTES), ""), start=1):
                if not line.strip() or line.startswith("#"):
                    continue
                name, _, label = (
                    line.strip().rpartition(" ") if "\t" not in line else line.strip().rpartition("\t")
                )
                name = name.strip().removeprefix("./")
                if not name:
                    raise FormatError(
                        path,
                        f"line {number} is {line.strip()[:40]!r}, no name and class",
                        hint="class numbers alone could be of another order (ILSVRC's own count from 1)",
                    )
                if name in seen:
                    raise FormatError(path, f"line {number}: {name} has a class already")
                seen.add(name)
                yield name, class_index(label, num_classes, f"{path}: line {number}")
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file of labels", hint="check --labels") from error
    except OSError as error:
        raise storage_error(error, path) from error


def class_index(text: str, num_classes: int, where: str) -> int:
    """Read a class's index, or its WordNet id where the model has ImageNet-1K's classes.

    Raises
    ------
    FormatError
        When it is neither, or the model has fewer classes.

    Examples
    --------
    >>> class_index("207", 1000, "x"), class_index("n02099601", 1000, "x")
    (207, 207)
    """
    stripped = text.strip()
    if stripped.isascii() and stripped.isdigit() and len(stripped) < 10:
        if int(stripped) < num_classes:
            return int(stripped)
        raise FormatError(
            where, f"class {stripped} for a model of {num_classes:,} classes (0 to {num_classes - 1})"
        )
    by_wnid = {one.wnid: one.index for one in imagenet_classes()}
    if num_classes == len(by_wnid) and stripped in by_wnid:
        return by_wnid[stripped]
    raise FormatError(where, f"{stripped[:40]!r} is no class", hint="give its index, counted from 0")


def any_images(folder: Path) -> ImageSet:
    """Read every image below a folder, without labels.

    Raises
    ------
    NotFoundError
        When there are none.
    """
    samples = [Sample(path.relative_to(folder).as_posix(), path) for path in images_below(folder)]
    if not samples:
        raise NotFoundError(f"{folder}: no images in it", hint="their names end in .jpg, .png or .webp")
    return image_set(samples, (stamp_of(sample.path) for sample in samples), str(folder))


def has_folders(folder: Path) -> bool:
    """Whether there are folders in it that could be classes."""
    return any(entry.is_dir() and not entry.name.startswith(".") for entry in _scan(folder))


def images_below(folder: Path) -> Iterator[Path]:
    """Images in a folder and all below it; hidden files and folders apart.

    Raises
    ------
    StorageError
        When a folder cannot be read: the images in it would be missing silently.
    """

    def refuse(error: OSError) -> None:
        raise storage_error(error, error.filename or folder) from error

    for where, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_ENDINGS:
                yield Path(where, name)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise storage_error(error, folder) from error


def _listed(names: list[str] | Mapping[str, object]) -> str:
    named = list(names)
    more = f" and {len(named) - _NAMED:,} more" if len(named) > _NAMED else ""
    return ", ".join(named[:_NAMED]) + more
